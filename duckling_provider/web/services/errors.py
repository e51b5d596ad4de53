"""Errors of the core and of Airflow, as answers in the contract's shape: ``{"success": false, "error": "…"}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from duckling_provider.base.errors import (
    BusyError,
    ConfigError,
    DucklingError,
    IntegrityError,
    ModeError,
    NotFoundError,
    StoreError,
)

#: Of the core's errors by class, the most special first. What is left is a fault on this side.
_STATUS: tuple[tuple[type[DucklingError], int], ...] = (
    (NotFoundError, 404),
    (BusyError, 409),
    (StoreError, 502),
    (IntegrityError, 502),  # what the store returned is not what was stored
    (ModeError, 400),
    (ConfigError, 400),
)


class ApiError(Exception):
    """An answer that is not 2xx.

    :param status: of HTTP.
    :param error: a sentence without secrets.
    :param more: further fields, such as ``runId``.
    :param headers: further headers.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.more = dict(more or {})
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"success": False, "error": self.error, **self.more}


def of_core(error: DucklingError) -> ApiError:
    """The answer to an error of the core; a plain `DucklingError` is about what was asked for."""
    if type(error) is DucklingError:
        return ApiError(400, str(error))
    return ApiError(next((status for kind, status in _STATUS if isinstance(error, kind)), 500), str(error))


def of_record(record: Mapping[str, Any] | None, *, more: Mapping[str, Any]) -> ApiError:
    """The answer to a run that failed, by what its task recorded (`task_run.recorded`)."""
    if record is None:
        return ApiError(500, "the run failed without saying why; its log in Airflow tells more", more=more)
    by_name = {"DucklingError": 400, "AccessDeniedError": 502, "NoSuchBucketError": 502, "WrongKeyError": 502}
    by_name |= {kind.__name__: status for kind, status in _STATUS}
    text = " ".join(part for part in (f"{record.get('what')}.", record.get("hint")) if part)
    return ApiError(by_name.get(str(record.get("kind")), 500), text, more=more)
