"""When each table of a replica was last found equal to its server's, as the replica itself has it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import ReplicaError
from duckling_provider.base.moments import iso
from duckling_provider.base.units import ago
from duckling_provider.replica.access import replica_access
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.validated import TableValidation
from duckling_provider.replication.replica_file import opened

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database

State: TypeAlias = Literal["equal", "overdue", "not yet", "incomparable", "recopy"]
"""Of a table: found equal within the interval; found equal before that; not compared to its end since it was copied;
it can't be compared; it waits for a new copy."""


@dataclass(frozen=True)
class TableStanding:
    """:param validated: each row was found equal at this time or later; None if that is not so.
    :param compared: rows that the comparison looked at which goes on or ended last.
    :param unsettled: rows of it that changed during each look.
    :param differences: rows that differed, ever, and were replaced; the last at `differed`.
    """

    name: str
    state: State
    validated: datetime | None
    begun: datetime | None
    compared: int
    unsettled: int
    differences: int
    differed: datetime | None
    note: str


@dataclass(frozen=True)
class Standing:
    """:param validated: the oldest time among the tables; None if one was never compared to its end.
    :param interval_days: as configured; 0 compares nothing.
    """

    validated: datetime | None
    interval_days: float
    tables: tuple[TableStanding, ...]

    def sentence(self, now: datetime) -> str:
        """The state of all tables in one sentence."""
        count = len(self.tables)
        if not count:
            return "the replica has no tables"
        off = "; nothing more is compared: validateIntervalDays is 0" if not self.interval_days else ""
        if self.validated is not None and all(table.state in {"equal", "overdue"} for table in self.tables):
            late = sum(table.state == "overdue" for table in self.tables)
            overdue = (
                f", {late} longer ago than the {self.interval_days:g} days that are wanted" if late and not off else ""
            )
            each = "the one table was" if count == 1 else f"all {count} tables were"
            return f"{each} found equal to MySQL, row by row, the first {ago(self.validated, now)}{overdue}{off}"
        words = {"not yet": "not compared yet", "incomparable": "not comparable", "recopy": "waiting for a new copy"}
        counted = {word: sum(table.state == state for table in self.tables) for state, word in words.items()}
        told = ", ".join(f"{number} {word}" for word, number in counted.items() if number)
        return f"of {count} table{'s' * (count != 1)}: {told}{off}"

    def as_json(self) -> dict[str, Any]:
        return {
            "validated": _iso(self.validated),
            "intervalDays": self.interval_days,
            "differences": sum(table.differences for table in self.tables),
            "tables": [
                {
                    "name": table.name,
                    "state": table.state,
                    "validated": _iso(table.validated),
                    "begun": _iso(table.begun),
                    "rowsCompared": table.compared,
                    "unsettled": table.unsettled,
                    "differences": table.differences,
                    "differedAt": _iso(table.differed),
                    "note": table.note,
                }
                for table in self.tables
            ],
        }


def read_standing(
    database: Database, *, control: Control | None = None, owner: str = "duckling validate", wait: float = 60.0
) -> Standing:
    """What the replica of `database` knows of its own tables; the server is not asked.

    :raises BusyError: another process uses the replica for longer than `wait` seconds.
    :raises ReplicaError: there is none, or it is not ours.
    """
    replica = database.replica
    with replica_access(replica, operation="validate", owner=owner, wait=wait, control=control):
        if not replica.exists():
            raise ReplicaError(
                "there is no such file", subject=str(replica), hint=f"A sync makes it: duckling sync {database.id}"
            )
        with opened(replica, read_only=True) as connection:
            ledger = Ledger.open(connection)
            states, known = ledger.tables(), ledger.validations.read()
    now = datetime.now(timezone.utc)
    limit = now - timedelta(days=database.validate_interval_days)
    tables = tuple(
        _standing(state, known.get(name, TableValidation(name)), limit)
        for name, state in states.items()
        if database.mirrors(name)
    )
    since = [table.validated for table in tables if table.state in {"equal", "overdue"}]
    validated = min((at for at in since if at is not None), default=None) if len(since) == len(tables) else None
    return Standing(validated, database.validate_interval_days, tables)


def _standing(state: TableState, known: TableValidation, limit: datetime) -> TableStanding:
    word: State
    note = known.note
    if state.state != "ok":
        word, note = "recopy", state.note
    elif known.note:
        word = "incomparable"
    elif known.validated_at is None:
        word = "not yet"
    else:
        word = "equal" if known.validated_at >= limit else "overdue"
    if known.unsettled and not note:
        note = f"{known.unsettled} row{'s' * (known.unsettled != 1)} changed at each look"
    return TableStanding(
        state.name,
        word,
        known.validated_at,
        known.begun_at,
        known.rows,
        known.unsettled,
        known.differences,
        known.differed_at,
        note,
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)
