"""Rows of MySQL against rows of the replica, in DuckDB: which are missing, extra or different, by primary key.

MySQL's rows come piece by piece, as a full copy reads and converts them; of each only the key and DuckDB's 64-bit hash
of all its values are kept. What exceeds DuckDB's memory limit goes to its temporary files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.model.types import duck_type, from_transport
from duckling_provider.replication.validate.report import Difference

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

#: Characters of one key value that a report shows.
_SHOWN = 200

_PIECE = "duckling_piece"


class Contrast:
    """The comparison of one table.

    :param duck: has a temporary catalog of its own, in which `staged` and `differences` are made.
    """

    def __init__(self, duck: DuckDBPyConnection, table: Table) -> None:
        self._duck, self._table = duck, table
        places = {column.name: (place, column) for place, column in enumerate(table.columns)}
        #: (place among the columns, column), in the key's order.
        self._key: list[tuple[int, Column]] = [places[name] for name in table.primary_key]
        self._names = [f"k{n}" for n in range(len(self._key))]
        kinds = "".join(f"k{n} {duck_type(column)}, " for n, (_, column) in enumerate(self._key))
        duck.execute(f"CREATE OR REPLACE TEMP TABLE staged ({kinds}h UBIGINT, side TINYINT)")
        keys = "".join(f"{from_transport(column, f'c{place}')}, " for place, column in self._key)
        values = ", ".join(from_transport(column, f"c{n}") for n, column in enumerate(table.columns))
        self._insert = f"INSERT INTO staged SELECT {keys}hash({values}), 1 FROM {_PIECE}"
        self.rows = 0

    def add(self, piece: pa.Table) -> None:
        """Rows of MySQL, as `transport.Transport` has them."""
        self._duck.register(_PIECE, piece)
        try:
            self._duck.execute(self._insert)
        finally:
            self._duck.unregister(_PIECE)
        self.rows += piece.num_rows

    def against(self, relation: str) -> tuple[int, int, int]:
        """How many rows are (missing, extra, different) in the replica. Without a key, nothing is different: such a row
        is missing and another is extra.

        :param relation: SQL of the replica's rows, with columns ``c0``, ``c1``, … in their DuckDB types.
        """
        named = "".join(f"{name}, " for name in self._names)
        ours = "".join(f"c{place} AS {name}, " for name, (place, _) in zip(self._names, self._key, strict=True))
        values = ", ".join(f"c{n}" for n in range(len(self._table.columns)))
        # Each row counts +1 where it is in MySQL and -1 in the replica: equal ones cancel out, and so do duplicates.
        unequal = (
            f"SELECT {named}h, sum(side) AS surplus FROM "
            f"(FROM staged UNION ALL SELECT {ours}hash({values}) AS h, -1 AS side FROM {relation}) "
            f"GROUP BY {named}h HAVING sum(side) <> 0"
        )
        if not self._key:
            missing, extra = self._duck.execute(
                "SELECT coalesce(sum(surplus) FILTER (surplus > 0), 0), "
                f"coalesce(-sum(surplus) FILTER (surplus < 0), 0) FROM ({unequal})"
            ).fetchall()[0]
            return int(missing), int(extra), 0
        by_key = ", ".join(self._names)
        self._duck.execute(
            f"CREATE OR REPLACE TEMP TABLE differences AS SELECT {by_key}, CASE WHEN NOT bool_or(surplus < 0) "
            "THEN 'missing' WHEN NOT bool_or(surplus > 0) THEN 'extra' ELSE 'different' END AS kind "
            f"FROM ({unequal}) GROUP BY {by_key}"
        )
        self._duck.execute("DROP TABLE staged")
        rows = self._duck.execute("SELECT kind, count(*) FROM differences GROUP BY kind").fetchall()
        counts: dict[str, int] = dict(rows)
        return counts.get("missing", 0), counts.get("extra", 0), counts.get("different", 0)

    def first(self, count: int) -> tuple[Difference, ...]:
        """The first differences in the key's order, after `against`; none without a key."""
        if not self._key:
            return ()
        shown = ", ".join(
            f"lower(hex({name}))" if duck_type(column) == "BLOB" else f"CAST({name} AS VARCHAR)"
            for name, (_, column) in zip(self._names, self._key, strict=True)
        )
        rows = self._duck.execute(
            f"SELECT kind, {shown} FROM differences ORDER BY {', '.join(self._names)} LIMIT ?", [count]
        ).fetchall()
        names = [column.name for _, column in self._key]
        return tuple(
            Difference(kind, {name: _shortened(value) for name, value in zip(names, values, strict=True)})
            for kind, *values in rows
        )


def _shortened(value: str | None) -> str | None:
    return value if value is None or len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
