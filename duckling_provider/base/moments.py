"""Moments as texts: the contract's two spellings of a UTC time, and reading the ones that people write."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from duckling_provider.base.errors import RequestError

_STAMP = re.compile(r"(?:backup-)?(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)(?:-(\d{3}))?Z?(?:\.db)?", re.ASCII)


def stamp_of(moment: datetime) -> str:
    """``2025-03-01T14:32:11.482Z`` -> ``"2025-03-01T14-32-11-482Z"``; `moment` must be aware."""
    return iso(moment).replace(":", "-").replace(".", "-")


def readable(moment: datetime) -> str:
    """``"2025-03-01 14:32:11"``, in UTC, for people; `moment` must be aware."""
    # Not strftime: it writes the year 1 as 1.
    return moment.astimezone(timezone.utc).isoformat(" ")[:19]


def iso(moment: datetime) -> str:
    """``"2025-03-01T14:32:11.482Z"``, as JavaScript's Date and the REST API write it; `moment` must be aware."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_moment(text: str) -> datetime:
    """Read an ISO 8601 time, or the stamp in a backup's name (`stamp_of`), the name around it or not.

    Without an offset it means UTC. A plain date means its midnight.

    :raises RequestError: when it is none.
    """
    written = text.strip()
    if stamp := _STAMP.fullmatch(written):
        day, hour, minute, second, millis = stamp.groups(default="000")
        written = f"{day}T{hour}:{minute}:{second}.{millis}Z"
    try:
        moment = datetime.fromisoformat(written.replace("Z", "+00:00"))
    except ValueError:
        raise RequestError(
            "this is not an ISO 8601 time",
            subject=text,
            hint="Write it like 2025-03-01T14:32:11Z, 2025-03-01, or as in a backup's name.",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
