"""A checksum of a table that MySQL and DuckDB compute alike, each where its rows are.

Each value becomes a text that both can write (`mysql_text`, `replica_text`), a row's texts make one text, and of its
SHA-256 some digits say in which bucket the row is counted, and 60 bits are added up per bucket, so that the order of
rows doesn't matter. A row with a primary key falls into the bucket of its key, so it stays there whatever else of it
differs.

The texts keep different values apart; that is all they must do. Where both sides write the same value in two ways (a
DOUBLE of 1e15 is such a case), the bucket differs without cause, and a look at its rows then finds them equal.
So an equal checksum proves equality, and an unequal one proves nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from duckling_provider.replication.model.families import BYTES, CHARACTERS, CHOICES, INTEGERS
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.model.types import select_expression
from duckling_provider.replication.mysql.source import query

#: Rows of one bucket that are aimed at: as many must be read to find a single one that differs.
_BUCKET_ROWS = 4096
#: Hex digits of a bucket's name at most: each side keeps a sum for each of 65,536 buckets.
_MOST_DIGITS = 4

#: Texts of at most 64 KiB: they are part of the row's text as they are, of others only their hash is.
_SHORT_TEXTS = CHARACTERS | CHOICES | {"tinytext", "text"}
#: Character sets whose bytes are UTF-8 already.
_UTF8 = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii"})
_INTEGERS = INTEGERS | {"year"}
_FLOATS = frozenset({"float", "double", "real"})
_SPATIAL = frozenset(
    {
        "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon",
        "geometrycollection", "geomcollection",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Bucket:
    """Number of rows and sum of their hashes."""

    rows: int
    total: int


class TableChecksum:
    """The checksum of one table.

    :param rows: about how many there are; decides the number of buckets.
    """

    def __init__(self, table: Table, rows: int) -> None:
        self._table = table
        self._digits = next((n for n in range(_MOST_DIGITS) if _BUCKET_ROWS * 16**n >= rows), _MOST_DIGITS)

    def of_mysql(self, connection: Any) -> dict[str | None, Bucket]:
        """The buckets as the server computes them; None is the bucket of rows that were too long for it."""
        bucket, row = self._mysql_bucket, f"CONCAT_WS('|', {', '.join(map(mysql_text, self._table.columns))})"
        rows = query(
            connection,
            f"SELECT b, COUNT(*), SUM(CAST(CONV(LEFT(h, 15), 16, 10) AS UNSIGNED)) FROM ("
            f"SELECT {bucket} AS b, {mysql_hash(row)} AS h FROM {quote_mysql(self._table.name)}) AS r GROUP BY b",
        )
        return {_text(name): Bucket(int(count), int(total or 0)) for name, count, total in rows}

    def replica_query(self, relation: str) -> str:
        """DuckDB's query for (bucket, rows, sum).

        :param relation: SQL of a table whose columns ``c0``, ``c1``, … are the columns in their DuckDB types.
        """
        texts = (replica_text(column, f"c{n}") for n, column in enumerate(self._table.columns))
        row = f"concat_ws('|', {', '.join(texts)})"
        return (
            "SELECT b, count(*), sum(CAST('0x' || left(h, 15) AS BIGINT)) FROM ("
            f"SELECT {self.replica_bucket} AS b, {replica_hash(row)} AS h FROM {relation}) "
            "GROUP BY b"
        )

    def mysql_where(self, buckets: Collection[str | None]) -> str:
        """MySQL's condition for the rows of `buckets`; empty where that is all of them."""
        return self._where(self._mysql_bucket, buckets)

    def replica_where(self, buckets: Collection[str | None]) -> str:
        """DuckDB's condition for the same rows."""
        return self._where(self.replica_bucket, buckets)

    @property
    def _mysql_bucket(self) -> str:
        texts = ", ".join(mysql_text(column) for _, column in self.bucket_columns)
        key = f"CONCAT_WS('|', {texts})"
        return f"LEFT({mysql_hash(key)}, {self._digits})"

    @property
    def replica_bucket(self) -> str:
        texts = ", ".join(replica_text(column, f"c{n}") for n, column in self.bucket_columns)
        key = f"concat_ws('|', {texts})"
        return f"left({replica_hash(key)}, {self._digits})"

    @property
    def bucket_columns(self) -> list[tuple[int, Column]]:
        """Those that decide on a row's bucket, with their places: of the key, or all where there is none."""
        key = set(self._table.primary_key)
        numbered = list(enumerate(self._table.columns))
        return [(n, column) for n, column in numbered if column.name in key] or numbered

    def _where(self, bucket: str, buckets: Collection[str | None]) -> str:
        # Half of the buckets in a list save no more than what looking them up costs.
        if None in buckets or 2 * len(buckets) > 16**self._digits:
            return ""
        names = ", ".join(f"'{name}'" for name in sorted(filter(None, buckets)))
        return f"{bucket} IN ({names})"


def mysql_hash(text: str) -> str:
    """SQL of MySQL for 64 hex digits: of all hashes that both sides have, the one that no server lacks.

    MySQL has MD5 and SHA1 in a component only, from 9.6 on.
    """
    return f"SHA2({text}, 256)"


def replica_hash(text: str) -> str:
    """SQL of DuckDB for the same digits."""
    return f"sha256({text})"


def mysql_row_hash(table: Table) -> str:
    """SQL of MySQL for the first 64 bits of the hash of a row's texts, as 16 digits; NULL where they are too long."""
    row = f"CONCAT_WS('|', {', '.join(map(mysql_text, table.columns))})"
    return f"LEFT({mysql_hash(row)}, 16)"


def replica_row_hash(table: Table) -> str:
    """SQL of DuckDB for the same digits, of columns ``c0``, ``c1``, …"""
    texts = (replica_text(column, f"c{n}") for n, column in enumerate(table.columns))
    row = f"concat_ws('|', {', '.join(texts)})"
    return f"left({replica_hash(row)}, 16)"


def mysql_text(column: Column) -> str:
    """SQL of MySQL for a text of the column's value; no NULL, and no ``|`` that could be taken for the next value's.

    Dates with a zero in them are NULL in the replica, so they are written like NULL.
    """
    name, kind = quote_mysql(column.name), column.data_type
    if kind in _INTEGERS:
        text = f"{name} + 0"  # without the zeros of ZEROFILL
    elif kind in _FLOATS:
        text = f"{name} + 0e0"  # all digits of a FLOAT, and no rounding to those of FLOAT(M, D)
    elif kind == "decimal":
        text = f"CAST({name} AS CHAR)"
    elif kind == "bit":
        text = f"CAST({name} AS UNSIGNED)"
    elif kind == "timestamp":
        text = f"NULLIF(CAST(UNIX_TIMESTAMP({name}) * 1000000 AS SIGNED), 0)"
    elif kind in {"date", "datetime"}:
        text = f"IF(DAYOFMONTH({name}) * MONTH({name}), {_moment(column)}, NULL)"
    elif kind == "time":
        # Of a negative TIME each of these parts is positive.
        text = f"CONCAT({name} < 0, ':', HOUR({name}) * 3600 + MINUTE({name}) * 60 + SECOND({name}), '.', "
        text += f"MICROSECOND({name}))"
    elif kind in _SHORT_TEXTS and column.charset != "binary":
        utf8 = name if column.charset in _UTF8 else f"CONVERT({name} USING utf8mb4)"
        utf8 = f"CAST({utf8} AS BINARY)"
        text = f"CONCAT(LENGTH({utf8}), ':', {utf8})"
    elif kind in BYTES:
        text = mysql_hash(name)
    elif kind in _SPATIAL:
        text = mysql_hash(f"SUBSTRING(HEX({name}), 9)")  # without the SRID
    else:
        text = mysql_hash(f"CONVERT({select_expression(column)} USING utf8mb4)")
    return f"IFNULL({text}, 'n')"


def _moment(column: Column) -> str:
    """A DATETIME with all six digits of its second, a DATE as it is."""
    text = f"CAST({quote_mysql(column.name)} AS CHAR)"
    if column.data_type == "date":
        return text
    digits = column.precision or 0
    return f"CONCAT({text}, '{'' if digits else '.'}{'0' * (6 - digits)}')" if digits < 6 else text


def replica_text(column: Column, name: str) -> str:
    """SQL of DuckDB for the same text, of a column `name` that is of `types.duck_type`."""
    kind = column.data_type
    if kind == "timestamp":
        text = f"CAST(epoch_us({name}) AS VARCHAR)"
    elif kind == "datetime":
        text = f"strftime({name}, '%Y-%m-%d %H:%M:%S.%f')"
    elif kind == "time":
        microseconds = f"abs(epoch_us({name}))"
        text = (
            f"CAST(epoch_us({name}) < 0 AS INTEGER) || ':' || {microseconds} // 1000000 || '.' || "
            f"{microseconds} % 1000000"
        )
    elif kind in _SHORT_TEXTS and column.charset != "binary":
        text = f"strlen({name}) || ':' || {name}"
    elif kind in _FLOATS:
        # 12.0 and 1e-05 are 12 and 1e-5 there.
        text = rf"regexp_replace(CAST(CAST({name} AS DOUBLE) AS VARCHAR), 'e\+?(-?)0*', 'e\1')"
        text = rf"regexp_replace({text}, '\.0(e|$)', '\1')"
    elif kind == "decimal":
        text = rf"regexp_replace(CAST({name} AS VARCHAR), '^(-?)\.', '\10.')"
    elif kind in _INTEGERS or kind in {"bit", "date"}:
        text = f"CAST({name} AS VARCHAR)"
    elif kind in _SPATIAL:
        text = replica_hash(f"hex({name})")
    else:
        text = replica_hash(name)
    return f"coalesce({text}, 'n')"


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
