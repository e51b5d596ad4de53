"""Which tables are compared next, and how much of them in one go, so that each is compared once per interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from duckling_provider.replication.model.validated import TableValidation

#: Rows of one piece at most: a look at them takes the server a fraction of a second.
PIECE_ROWS = 10_000
#: Bytes of rows that the server reads for one piece.
_PIECE_BYTES = 8 << 20
#: What a table costs besides its rows, in rows.
_TABLE_COST = 500
#: A comparison begins when this share of the interval has passed since the last one began, and as much is left to
#: finish it.
_SHARE = 0.5
#: Of the time that has passed, comparing takes this much at most, and that many seconds in one go.
BURDEN, _MOST_SECONDS = 0.04, 300.0
#: Seconds between two goes at least: one piece takes that share of them, and less can't be looked at.
PAUSE = 60.0
#: Seconds that count as passed where nothing was ever compared.
_FIRST = 3600.0


@dataclass(frozen=True)
class Allowance:
    """What one go may look at: rows, and seconds after which no other piece is begun."""

    rows: int
    seconds: float


def allowance(
    rows: Mapping[str, int], known: Mapping[str, TableValidation], interval: float, now: datetime
) -> Allowance:
    """The share of all tables that is due since something was last compared.

    :param rows: about how many each table has.
    :param interval: seconds in which each table is to be compared once.
    :returns: no seconds when it is too early.
    """
    looked = [table.looked_at for table in known.values() if table.looked_at is not None]
    passed = max(0.0, (now - max(looked)).total_seconds()) if looked else _FIRST
    if passed < PAUSE:
        return Allowance(0, 0.0)
    total = sum(rows.values()) + _TABLE_COST * len(rows)
    share = min(1.0, passed / (interval * _SHARE))
    return Allowance(int(total * share), min(passed * BURDEN, _MOST_SECONDS))


def due(names: Iterable[str], known: Mapping[str, TableValidation], interval: float, now: datetime) -> list[str]:
    """Those of `names` to compare, the most urgent first: begun ones, then those never compared, then the oldest."""
    wait = timedelta(seconds=interval * _SHARE)
    found = []
    for name in names:
        table = known.get(name, TableValidation(name))
        if table.place is not None:
            found.append((0, table.begun_at or now, name))
        elif table.begun_at is None:
            found.append((1, now, name))
        elif now - table.begun_at >= wait or table.begun_at > now:
            found.append((2, table.begun_at, name))
    return [name for _, _, name in sorted(found)]


def piece_rows(row_bytes: int) -> int:
    """Rows of one piece, of which each has about `row_bytes` on the server."""
    return max(1, min(PIECE_ROWS, _PIECE_BYTES // max(1, row_bytes)))


def cost_of(rows: int) -> int:
    """What looking at a piece takes from an allowance: a look costs something even if there are no rows."""
    return rows + _TABLE_COST
