"""Errors of the core and of Airflow, as answers in the contract's shape: ``{"success": false, "error": "…"}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from duckling_provider.base.errors import (
    BusyError,
    ConfigError,
    DucklingError,
    ErrorRecord,
    IntegrityError,
    ModeError,
    NotFoundError,
    RequestError,
    StoreError,
    sentences,
)

#: Of the core's errors by class, the most special first. What is left is a fault on this side.
_STATUS: tuple[tuple[type[DucklingError], int], ...] = (
    (NotFoundError, 404),
    (BusyError, 409),
    (StoreError, 502),
    (IntegrityError, 502),  # what the store returned is not what was stored
    (ModeError, 400),
    (ConfigError, 400),
    (RequestError, 400),
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
        more: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.more = dict(more or {})
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        return {"success": False, "error": self.error, **self.more}


def of_core(error: DucklingError) -> ApiError:
    """The answer to an error of the core."""
    return ApiError(_status_of(type(error)), str(error))


def _status_of(kind: type[DucklingError]) -> int:
    return next((status for known, status in _STATUS if issubclass(kind, known)), 500)


def _kinds(kind: type[DucklingError]) -> Iterator[type[DucklingError]]:
    yield kind
    for special in kind.__subclasses__():
        yield from _kinds(special)


def of_record(record: ErrorRecord | None, *, more: Mapping[str, object]) -> ApiError:
    """The answer to a run that failed, by what its task recorded (`DucklingError.as_record`)."""
    if record is None:
        return ApiError(500, "the run failed without saying why; its log in Airflow tells more", more=more)
    status = {kind.__name__: _status_of(kind) for kind in _kinds(DucklingError)}.get(record["kind"], 500)
    return ApiError(status, sentences(record), more=more)
