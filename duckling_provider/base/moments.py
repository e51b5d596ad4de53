"""Moments as texts: the contract's two spellings of a UTC time, and reading the ones that people write."""

from __future__ import annotations

from datetime import datetime, timezone

from duckling_provider.base.errors import RequestError


def stamp_of(moment: datetime) -> str:
    """``2025-03-01T14:32:11.482Z`` -> ``"2025-03-01T14-32-11-482Z"``; `moment` must be aware."""
    utc = moment.astimezone(timezone.utc)
    return f"{utc:%Y-%m-%dT%H-%M-%S}-{utc.microsecond // 1000:03d}Z"


def iso(moment: datetime) -> str:
    """``"2025-03-01T14:32:11.482Z"``, as JavaScript's Date and the REST API write it; `moment` must be aware."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_moment(text: str) -> datetime:
    """Read an ISO 8601 time; without an offset it means UTC. A plain date means its midnight.

    :raises RequestError: when it is none.
    """
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise RequestError(
            "this is not an ISO 8601 time", subject=text, hint="Write it like 2025-03-01T14:32:11Z or 2025-03-01."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
