"""Rows that the server told of against the replica's, in DuckDB; and putting right those that differ.

All of it happens in one transaction of the replica, which stands at a known position: what the binlog changed up to
there since the server was asked, is set apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from duckling_provider.replication.model.names import fold, quote
from duckling_provider.replication.model.tables import Table
from duckling_provider.replication.model.types import duck_type, from_transport
from duckling_provider.replication.validate.checksum import replica_row_hash
from duckling_provider.replication.validate.keys import Key, KeyTexts
from duckling_provider.replication.validate.touched import Touched

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

Kind: TypeAlias = Literal["missing", "extra", "different"]

#: Names under which tables are handed to DuckDB, and of the rows as the server has them.
_TOLD, _KEYS, _THEIRS = "duckling_told", "duckling_named", "duckling_theirs"


def misshapen(connection: DuckDBPyConnection, table: Table) -> str:
    """How the replica's table differs from what a copy of `table` would be, as a note; empty when it does not."""
    found = {
        fold(name): kind
        for name, kind in connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() "
            "AND schema_name = 'main' AND lower(table_name) = lower(?)",
            [table.name],
        ).fetchall()
    }
    if not found:
        return "it is not in the replica"
    kinds = ", ".join(f"typeof(CAST(NULL AS {duck_type(column)}))" for column in table.columns)
    types = connection.execute(f"SELECT {kinds}").fetchall()[0]
    wanted = {fold(column.name): kind for column, kind in zip(table.columns, types, strict=True)}
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"its columns in the replica are not those of a copy: {', '.join(names)}" if names else ""


def relation_of(table: Table) -> str:
    """SQL of the replica's rows, with columns ``c0``, ``c1``, …"""
    values = ", ".join(f"{quote(column.name)} AS c{n}" for n, column in enumerate(table.columns))
    return f"(SELECT {values} FROM main.{quote(table.name)})"


def next_keys(
    connection: DuckDBPyConnection, table: Table, key: Key, after: KeyTexts | None, count: int
) -> list[KeyTexts]:
    """The `count` keys of the replica that follow `after` in DuckDB's order; fewer only at the end."""
    where = f"WHERE {key.duck_compared(after, '>', '>')}" if after is not None else ""
    names = [f"k{place}" for place in range(len(key.columns))]
    known = " AND ".join(f"{name} IS NOT NULL" for name in names)
    texts = ", ".join(key.duck_text(place, name) for place, name in enumerate(names))
    rows = connection.execute(
        f"SELECT {texts} FROM (SELECT DISTINCT {', '.join(names)} FROM {_keyed(table, key)} {where}) "
        f"WHERE {known} ORDER BY {', '.join(names)} LIMIT {count}"
    ).fetchall()
    return [tuple(row) for row in rows]


def _keyed(table: Table, key: Key) -> str:
    """The replica's rows with their columns and, once more as ``k0``, ``k1``, …, those of the key."""
    return f"(SELECT *, {_key_columns(table, key)} FROM {relation_of(table)})"


def _key_columns(table: Table, key: Key) -> str:
    places = {column.name: place for place, column in enumerate(table.columns)}
    return ", ".join(f"c{places[column.name]} AS k{n}" for n, column in enumerate(key.columns))


class Sides:
    """Both sides of one table.

    :param connection: to the replica, in a transaction.
    """

    def __init__(self, connection: DuckDBPyConnection, table: Table, key: Key, touched: Touched) -> None:
        self._connection, self._table, self._key, self._touched = connection, table, key, touched
        self._names = [f"k{place}" for place in range(len(key.columns))]
        self._listed = ", ".join(self._names)
        self._texts = ", ".join(key.duck_text(place, name) for place, name in enumerate(self._names))
        self._rows = _keyed(table, key)

    def doubtful(
        self, told: Sequence[tuple[str | None, ...]], after: KeyTexts | None, upto: KeyTexts | None, limit: int
    ) -> tuple[set[KeyTexts], set[KeyTexts]]:
        """Keys of a piece whose checksums are not the same on both sides, and those that changed meanwhile.

        :param told: as `Asker.next_rows`.
        :param after: where the piece begins, and `upto` where it ends, None for the beginning and the end.
        :param limit: of each.
        """
        bounds = [self._key.duck_compared(after, ">", ">")] if after is not None else []
        bounds += [self._key.duck_compared(upto, "<", "<=")] if upto is not None else []
        bounds += [f"{name} IS NOT NULL" for name in self._names]  # see `drop_without_key`
        inside = " AND ".join(f"({bound})" for bound in bounds)
        self._register(_TOLD, told, checksum=True)
        theirs = f"(SELECT {self._values}, h FROM {_TOLD})"
        # Where the sides sort differently only the server knows what is inside.
        is_inside = f"WHERE {inside}" if self._key.is_ordered_alike else f"SEMI JOIN {theirs} USING ({self._listed})"
        differ = self._connection.execute(
            f"WITH ours AS (SELECT {self._listed}, {replica_row_hash(self._table)} AS o "
            f"FROM (SELECT * FROM {self._rows} {is_inside})) "
            f"SELECT {self._texts} FROM {theirs} FULL JOIN "
            f"(SELECT {self._listed}, count(*) AS n, min(o) AS o FROM ours GROUP BY {self._listed}) "
            f"USING ({self._listed}) WHERE n IS DISTINCT FROM 1 OR h IS NULL OR h <> o LIMIT {limit}"
        ).fetchall()
        changed = self._changed(is_inside, limit)
        return {tuple(row) for row in differ} - changed, changed

    def surplus(
        self, asked: Sequence[KeyTexts], present: Sequence[tuple[str | None, ...]], limit: int
    ) -> tuple[set[KeyTexts], set[KeyTexts]]:
        """Those of the keys `asked` that the server does not have, and those that changed meanwhile."""
        self._register(_KEYS, asked)
        self._register(_TOLD, present)
        named, told = (f"(SELECT {self._values} FROM {name})" for name in (_KEYS, _TOLD))
        absent = self._connection.execute(
            f"SELECT {self._texts} FROM {named} ANTI JOIN {told} USING ({self._listed})"
        ).fetchall()
        changed = self._changed(f"SEMI JOIN {named} USING ({self._listed})", limit)
        return {tuple(row) for row in absent} - changed, changed

    def drop_without_key(self) -> int:
        """Remove the rows with a NULL in the key, which MySQL can't have; how many there were."""
        nulls = " OR ".join(f"{quote(column.name)} IS NULL" for column in self._key.columns)
        done = self._connection.execute(f"DELETE FROM main.{quote(self._table.name)} WHERE {nulls}").fetchall()
        return int(done[0][0])

    def differing(
        self, keys: Sequence[KeyTexts], values: Iterable[pa.Table]
    ) -> tuple[dict[KeyTexts, Kind], set[KeyTexts]]:
        """Those of `keys` whose rows differ by value, and those that changed meanwhile.

        :param values: what the server has under these keys, as `Asker.values`.
        """
        self._take(values)
        self._register(_KEYS, keys)
        among = f"SEMI JOIN (SELECT {self._values} FROM {_KEYS}) USING ({self._listed})"
        columns = ", ".join(f"c{n}" for n in range(len(self._table.columns)))
        # Each row counts +1 where MySQL has it and -1 where the replica has: equal ones cancel out.
        rows = self._connection.execute(
            f"SELECT {self._texts}, bool_or(surplus > 0), bool_or(surplus < 0) FROM ("
            f"SELECT {self._listed}, sum(side) AS surplus FROM (SELECT *, 1 AS side FROM {_THEIRS} {among} "
            f"UNION ALL SELECT *, -1 AS side FROM {self._rows} {among}) "
            f"GROUP BY {self._listed}, {columns} HAVING sum(side) <> 0) GROUP BY {self._listed}"
        ).fetchall()
        kinds: dict[tuple[bool, bool], Kind] = {(True, False): "missing", (False, True): "extra"}
        differ = {tuple(key): kinds.get((more, less), "different") for *key, more, less in rows}
        changed = self._changed(among, len(keys))
        return {key: kind for key, kind in differ.items() if key not in changed}, changed

    def repair(self, keys: Sequence[KeyTexts]) -> None:
        """Give `keys` the rows that `differing` was told of."""
        self._register(_KEYS, keys)
        table = f"main.{quote(self._table.name)}"
        names = ", ".join(quote(column.name) for column in self._table.columns)
        columns = ", ".join(f"c{n}" for n in range(len(self._table.columns)))
        pairs = zip(self._key.columns, self._names, strict=True)
        same = " AND ".join(f"t.{quote(column.name)} = named.{name}" for column, name in pairs)
        named = f"(SELECT {self._values} FROM {_KEYS})"
        self._connection.execute(f"DELETE FROM {table} AS t USING {named} AS named WHERE {same}")
        self._connection.execute(
            f"INSERT INTO {table} ({names}) SELECT {columns} FROM {_THEIRS} SEMI JOIN {named} USING ({self._listed})"
        )

    @property
    def _values(self) -> str:
        return ", ".join(
            f"{self._key.duck_value(place, f't{place}')} AS {name}" for place, name in enumerate(self._names)
        )

    def _changed(self, is_inside: str, limit: int) -> set[KeyTexts]:
        touched = self._touched.registered(self._connection, self._table)
        if touched is None:
            return set()
        rows = self._connection.execute(
            f"SELECT DISTINCT {self._texts} FROM (SELECT * FROM {touched} {is_inside}) LIMIT {limit}"
        ).fetchall()
        return {tuple(row) for row in rows if None not in row}

    def _take(self, values: Iterable[pa.Table]) -> None:
        places = {column.name: place for place, column in enumerate(self._table.columns)}
        kinds = [f"c{n} {duck_type(column)}" for n, column in enumerate(self._table.columns)]
        kinds += [f"k{n} {duck_type(column)}" for n, column in enumerate(self._key.columns)]
        self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {_THEIRS} ({', '.join(kinds)})")
        loaded = [from_transport(column, f"c{n}") for n, column in enumerate(self._table.columns)]
        loaded += [loaded[places[column.name]] for column in self._key.columns]
        for piece in values:
            self._connection.register(_TOLD, piece)
            self._connection.execute(f"INSERT INTO {_THEIRS} SELECT {', '.join(loaded)} FROM {_TOLD}")

    def _register(self, name: str, rows: Sequence[tuple[str | None, ...]], *, checksum: bool = False) -> None:
        import pyarrow as pa

        count = len(self._names)
        names = [f"t{place}" for place in range(count)] + ["h"] * checksum
        lanes = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        self._connection.register(name, pa.table([pa.array(lane, pa.string()) for lane in lanes], names=names))
