"""Whether this host's clock is right, by the ``Date`` of the answers that a store gives anyway."""

from __future__ import annotations

import contextlib
import threading
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Protocol

from duckling_provider.base.units import span

#: More than this is told. Stores refuse signatures that are 15 minutes off.
TOLERANCE = timedelta(minutes=2)


class _Response(Protocol):
    @property
    def headers(self) -> dict[str, str]: ...


class StoreClock:
    """What the answers of one store said of the time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How far this host is ahead; of several answers the least, because one may have been held up on its way.
        self._ahead: timedelta | None = None

    def observe(self, http_response: _Response | None = None, **_: object) -> None:
        """A handler of botocore's ``after-call`` event; it gets refusals as well."""
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            told = parsedate_to_datetime(http_response.headers.get("Date", "")) if http_response is not None else None
            if told is None:
                return
            ahead = _now() - (told if told.tzinfo is not None else told.replace(tzinfo=timezone.utc))
            with self._lock:
                if self._ahead is None or abs(ahead) < abs(self._ahead):
                    self._ahead = ahead

    @property
    def fault(self) -> str:
        """How wrong the clock is, in a sentence; empty where it is right, or no answer had the time."""
        ahead = self._ahead
        if ahead is None or abs(ahead) <= TOLERANCE:
            return ""
        which = "ahead of" if ahead > timedelta(0) else "behind"
        return (
            f"this host's clock is {span(abs(ahead).total_seconds())} {which} the store's: backups get wrong names. "
            "Set it by NTP"
        )


def _now() -> datetime:
    return datetime.now(timezone.utc)
