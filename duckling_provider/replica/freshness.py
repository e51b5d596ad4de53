"""How old the oldest change is that is not in the replica, how often syncs in a row had to make way, and since when the
replica is known to equal its server.

The replica itself can't be asked while another process has it open, so both are kept in a file beside it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.base.errors import ReplicationError
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.base.units import human_seconds
from duckling_provider.replica.exchange import identity
from duckling_provider.replica.locks import state_path

SYNC_SUFFIX = ".duckling-sync"


@dataclass(frozen=True)
class Freshness:
    """What the last runs left; times in seconds since 1970.

    :param yields: runs in a row that made way to other processes.
    :param waiting_since: when the oldest change was made that was not applied; None when there was none.
    :param current_at: when the replica was last known to have everything; None when that was never so.
    :param validated: all tables were known to equal MySQL's then; None if one was not, or it is not known.
    :param differences: rows ever found to differ from MySQL's, the last when it was `differed`.
    :param file: `exchange.identity` of the replica that this is about.
    """

    yields: int = 0
    waiting_since: float | None = None
    current_at: float | None = None
    validated: float | None = None
    differences: int = 0
    differed: float | None = None
    file: tuple[int, int, int] | None = None

    def lag(self, now: float) -> float:
        """Seconds that the replica may be behind: the age of the oldest change not applied, or at most that."""
        since = self.waiting_since if self.waiting_since is not None else self.current_at
        return 0.0 if since is None else max(0.0, now - since)


def read_freshness(replica: Path) -> Freshness:
    """What is noted beside `replica`; nothing where no sync has ended yet, or what is there makes no sense.

    :raises StateFileError: the file is none of ours.
    """
    try:
        found = json.loads(read_state(state_path(replica, SYNC_SUFFIX)))
        yields, waiting, current = found["yields"], found["waiting_since"], found["current_at"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Freshness()
    freshness = Freshness(_count(yields), _moment(waiting), _moment(current))
    # Of a release that validated nothing it has no more.
    validated, differed = _moment(found.get("validated")), _moment(found.get("differed"))
    file = tuple(map(_count, found.get("file") or ()))
    return replace(
        freshness,
        validated=validated,
        differences=_count(found.get("differences")),
        differed=differed,
        file=(file[0], file[1], file[2]) if len(file) == 3 else None,
    )


def validated_since(replica: Path) -> datetime | None:
    """When all tables of `replica` were known to equal MySQL's; None if they were not, or another program than our sync
    wrote the file last, or put it there.

    :raises StateFileError: as `read_freshness`.
    """
    known = read_freshness(replica)
    if known.validated is None or known.file is None or known.file != identity(replica):
        return None
    return datetime.fromtimestamp(known.validated, timezone.utc)


def _count(found: object) -> int:
    return found if isinstance(found, int) else 0


def _moment(found: object) -> float | None:
    return float(found) if isinstance(found, (int, float)) else None


def write_freshness(replica: Path, freshness: Freshness) -> None:
    """Note it beside `replica`. Losing it loses a count, so it is written in place."""
    fd = open_state(state_path(replica, SYNC_SUFFIX), os.O_WRONLY, create=True)
    with os.fdopen(fd, "wb") as file:
        file.truncate()
        file.write(json.dumps(asdict(freshness)).encode())


def require_turn(freshness: Freshness, most: int, *, reason: str, lag: float, subject: str) -> None:
    """Fail the run that is one too many to make way.

    :param most: how many may make way in a row; 0 for any number.
    :raises ReplicationError: they were as many.
    """
    if most and freshness.yields >= most:
        raise ReplicationError(
            f"{freshness.yields} runs in a row made way, and changes wait for {human_seconds(lag)}: {reason}",
            subject=subject,
            operation="sync",
            hint="End the program that keeps the replica open, or let it close the file between queries; "
            "maxSyncYields says how many runs may make way.",
        )
