"""What the rolling validation knows of each table, inside the replica: it is committed with the rows that it is about,
and travels with backups.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TABLE = "validation"
COLUMNS = (
    "name VARCHAR NOT NULL, begun_at TIMESTAMP, looked_at TIMESTAMP, validated_at TIMESTAMP, place VARCHAR, "
    "shape VARCHAR NOT NULL, rows UBIGINT NOT NULL, unsettled UBIGINT NOT NULL, differences UBIGINT NOT NULL, "
    "differed_at TIMESTAMP, note VARCHAR NOT NULL"
)

Direction: TypeAlias = Literal["theirs", "ours"]
"""Along MySQL's keys, or along the replica's."""


@dataclass(frozen=True)
class Place:
    """How far the comparison of a table has come: up to `after`, the texts of a key (`validate.keys`); None is its
    beginning.
    """

    direction: Direction = "theirs"
    after: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TableValidation:
    """Of one table; times in UTC.

    :param begun_at: when the comparison began that goes on, or that ended last.
    :param looked_at: when rows of it were last compared.
    :param validated_at: the table was found equal row by row, each row at this time or later; None if it never was.
    :param place: None while no comparison goes on.
    :param shape: of the table that is being compared; a table of another shape is compared from its beginning.
    :param rows: how many that comparison has looked at.
    :param unsettled: rows of it that changed during each look.
    :param differences: rows that differed, ever, and were repaired.
    :param note: why it can't be compared; empty if it can.
    """

    name: str
    begun_at: datetime | None = None
    looked_at: datetime | None = None
    validated_at: datetime | None = None
    place: Place | None = None
    shape: str = ""
    rows: int = 0
    unsettled: int = 0
    differences: int = 0
    differed_at: datetime | None = None
    note: str = ""


class Validations:
    """Reads and writes them; begins and ends no transactions.

    :param schema: the name of the bookkeeping's schema.
    :param catalog: the name under which the replica is attached; the connection's own database when None.
    """

    def __init__(self, connection: DuckDBPyConnection, schema: str, catalog: str | None) -> None:
        self._connection, self._schema, self._catalog = connection, schema, catalog
        self._table = (f'"{catalog}".' if catalog else "") + f"{schema}.{TABLE}"

    def read(self) -> dict[str, TableValidation]:
        """By table; empty where the replica is of a release that validated nothing."""
        return {} if self._is_missing() else {row.name: row for row in map(_from_row, self._rows())}

    def save(self, found: TableValidation) -> None:
        """Insert or replace what is known of one table."""
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table} ({COLUMNS})")
        self._connection.execute(f"DELETE FROM {self._table} WHERE name = ?", [found.name])
        values = [
            found.name,
            *map(_to_utc, (found.begun_at, found.looked_at, found.validated_at)),
            json.dumps([found.place.direction, found.place.after]) if found.place else None,
            found.shape,
            found.rows,
            found.unsettled,
            found.differences,
            _to_utc(found.differed_at),
            found.note,
        ]
        self._connection.execute(f"INSERT INTO {self._table} VALUES ({', '.join('?' * len(values))})", values)

    def forget(self, name: str) -> None:
        """What bears this name from here on was never compared; what was found before still counts."""
        if not self._is_missing():
            self._connection.execute(
                f"UPDATE {self._table} SET begun_at = NULL, validated_at = NULL, place = NULL, rows = 0, "
                "unsettled = 0, note = '' WHERE name = ?",
                [name],
            )

    def _rows(self) -> list[Any]:
        return self._connection.execute(
            "SELECT name, begun_at, looked_at, validated_at, place, shape, rows, unsettled, differences, differed_at, "
            f"note FROM {self._table} ORDER BY name"
        ).fetchall()

    def _is_missing(self) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE database_name = coalesce(?, current_database()) AND schema_name = ? "
            "AND table_name = ?",
            [self._catalog, self._schema, TABLE],
        ).fetchall()
        return not found


def oldest(tables: Iterable[str], known: Mapping[str, TableValidation]) -> datetime | None:
    """Since when all of `tables` are known to be equal; None if one is not, or there are none."""
    found = (known.get(name, TableValidation(name)) for name in tables)
    times = [None if table.note else table.validated_at for table in found]
    proven = [time for time in times if time is not None]
    return min(proven) if proven and len(proven) == len(times) else None


def _from_row(row: tuple[Any, ...]) -> TableValidation:
    name, begun, looked, validated, place, shape, rows, unsettled, differences, differed, note = row
    moments = (begun, looked, validated, differed)
    begun, looked, validated, differed = (at and at.replace(tzinfo=timezone.utc) for at in moments)
    found = None
    if place is not None:
        direction, after = json.loads(place)
        found = Place(direction, None if after is None else tuple(after))
    return TableValidation(name, begun, looked, validated, found, shape, rows, unsettled, differences, differed, note)


def _to_utc(moment: datetime | None) -> datetime | None:
    # Without an offset: DuckDB needs another library to hand out times that have one.
    return None if moment is None else moment.astimezone(timezone.utc).replace(tzinfo=None)
