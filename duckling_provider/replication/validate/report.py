"""What a validation found: per table, bounded, and of no row more than its primary key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from duckling_provider.replication.model.tables import Position

State: TypeAlias = Literal["equal", "different", "missing", "extra", "columns", "recopy", "altered"]
"""Of a table: the same rows; not; not in the replica; not in MySQL any more; other columns than in MySQL; waits for a
new copy; altered in MySQL while it was being read."""


@dataclass(frozen=True)
class Difference:
    """One row by its primary key, column -> text of the value; no other content of a row is reported.

    ``missing`` from the replica, ``extra`` in it, ``different`` in other columns than the key.
    """

    kind: Literal["missing", "extra", "different"]
    key: dict[str, str | None]


@dataclass(frozen=True)
class TableReport:
    """:param mysql_rows: None where they were not counted.
    :param missing: how many rows; likewise `extra` and `different`. Without a primary key, a row that differs is one
        missing and one extra.
    :param differences: the first of them in the key's order; none without a primary key.
    :param rows_read: rows that had to be read from MySQL because checksums did not agree.
    """

    name: str
    state: State
    mysql_rows: int | None = None
    replica_rows: int | None = None
    missing: int = 0
    extra: int = 0
    different: int = 0
    differences: tuple[Difference, ...] = ()
    rows_read: int = 0
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.state == "equal"

    def __str__(self) -> str:
        if self.state == "equal":
            return f"{self.name}: equal, {self.mysql_rows} rows"
        parts = [f"{self.name}: {self.state}"]
        if self.mysql_rows is not None and self.replica_rows is not None:
            parts.append(f"{self.mysql_rows} rows in MySQL, {self.replica_rows} in the replica")
        if self.state == "different":
            parts.append(f"{self.missing} missing, {self.extra} extra, {self.different} different")
        return ", ".join([*parts, *self.notes])


@dataclass(frozen=True)
class ValidationReport:
    """:param position: of both sides.
    :param replica_position: what the replica's own bookkeeping says; older than `position` where nothing that concerns
        it lies in between.
    """

    position: Position
    replica_position: Position
    tables: tuple[TableReport, ...]
    seconds: float = field(compare=False, default=0.0)

    @property
    def equal(self) -> bool:
        """Every table; one that waits for a new copy is not."""
        return all(table.equal for table in self.tables)

    def as_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "position": str(self.position),
            "replicaPosition": str(self.replica_position),
            "seconds": round(self.seconds, 3),
            "tables": [
                {
                    "name": table.name,
                    "state": table.state,
                    "rows": {"mysql": table.mysql_rows, "replica": table.replica_rows},
                    "missing": table.missing,
                    "extra": table.extra,
                    "different": table.different,
                    "differences": [asdict(difference) for difference in table.differences],
                    "rowsRead": table.rows_read,
                    "notes": list(table.notes),
                }
                for table in self.tables
            ],
        }
