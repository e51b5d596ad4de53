"""Cutting a table into key ranges: small enough to be held in memory, disjoint, and together the whole key space.

A table whose key is one integer without large gaps is cut by arithmetic: a range of n key values has n rows at most.
Every other key is walked: the key of every n-th row, in key order, is a boundary, and the table's own index finds it.
So a range's size depends neither on gaps nor on how few values a composite key's first column has.

Boundaries are read once and each row lies between exactly two of them, whatever is written meanwhile. A row that
changes its key during the copy may be read twice or not at all; both are put right by the binlog, which has that
change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from duckling_provider.replication.model.families import CHARACTERS, INTEGERS
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Column, Table

#: Bytes of one range in memory that are aimed at.
RANGE_BYTES = 8 << 20
#: Rows of one range at most: a row group of DuckDB.
RANGE_ROWS = 122_880
#: Rows of a table's first ranges at most: statistics may be a day old, and rows may have grown to a megabyte since.
_FIRST_ROWS = 4096
#: How many times larger the next range may be than what its predecessors prove to be harmless.
_GROWTH = 8
#: Key values per row up to which the key counts as one without large gaps.
_SPARSE = 2.0

_NUMBERS = INTEGERS | {"decimal", "year"}
_INTEGERS = _NUMBERS - {"decimal"}
_BYTES = frozenset({"binary", "varbinary"})
_TIMES = frozenset({"date", "datetime"})

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}( \d{2}:\d{2}:\d{2}(\.\d+)?)?")
_HEX = re.compile(r"([0-9A-Fa-f]{2})*")


@dataclass(frozen=True)
class KeyRange:
    """A condition for WHERE; `bounded` when it is known to hold for few rows only."""

    where: str
    bounded: bool = True


@dataclass(frozen=True)
class Statistics:
    """What the server believes of a table: estimates, which may be a day old, and 0 where it has none."""

    rows: int = 0
    row_bytes: int = 0

    @classmethod
    def read(cls, connection: Any, table: str) -> Statistics:
        """Those of a table of the connection's database."""
        row = _row(
            connection,
            "SELECT TABLE_ROWS, AVG_ROW_LENGTH FROM information_schema.TABLES"
            " WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = %s",
            table,
        )
        return cls(*(int(value or 0) for value in row)) if row else cls()


class Pace:
    """How many rows the next range should have so that it stays near `RANGE_BYTES`; learns from what was read.

    :param row_bytes: the server's estimate, 0 when there is none.
    """

    def __init__(self, row_bytes: int = 0) -> None:
        self.rows = max(1, min(_FIRST_ROWS, RANGE_BYTES // max(1, row_bytes)))

    def learn(self, rows: int, size: int) -> None:
        """`rows` rows took `size` bytes in memory."""
        if rows and size:
            fitting = RANGE_BYTES * rows // size
            self.rows = max(1, min(fitting, rows * _GROWTH if rows >= self.rows else self.rows * 2, RANGE_ROWS))


def is_rangeable(table: Table) -> bool:
    """Whether the key orders and compares in SQL by values that can be written as literals.

    ENUM and SET sort by number but compare as text, TIMESTAMP depends on the session, FLOAT has no exact literal,
    and of TEXT and BLOB only a prefix is in the index. Tables with such a key are read in one go.
    """
    columns = {column.name: column for column in table.columns}
    usable = _NUMBERS | CHARACTERS | _BYTES | _TIMES
    return bool(table.primary_key) and all(columns[name].data_type in usable for name in table.primary_key)


def key_ranges(connection: Any, table: Table, statistics: Statistics, pace: Pace) -> Iterator[KeyRange]:
    """The ranges in key order; none for an empty table.

    A generator that asks the server as it goes: `pace` decides the size of each range when it is asked for.

    :param connection: with a plain cursor; no other code may use it until the generator ends.
    """
    columns = {column.name: column for column in table.columns}
    key = [columns[name] for name in table.primary_key]
    if len(key) == 1 and key[0].data_type in _INTEGERS:
        name = quote_mysql(key[0].name)
        sql = f"SELECT MIN({name}), MAX({name}) FROM {quote_mysql(table.name)}"
        bounds = _row(connection, sql)
        if bounds is None or bounds[0] is None:
            return
        low, high = int(bounds[0]), int(bounds[1])
        if high - low < max(_SPARSE * statistics.rows, pace.rows):
            while low <= high:
                top = min(high, low + pace.rows - 1)
                yield KeyRange(f"{name} BETWEEN {low} AND {top}")
                low = top + 1
            return
    yield from _walk(connection, table.name, key, pace)


def _walk(connection: Any, table: str, key: list[Column], pace: Pace) -> Iterator[KeyRange]:
    shown = ", ".join(_shown(column) for column in key)
    order = ", ".join(quote_mysql(column.name) for column in key)
    after = ""
    while True:
        where = f" WHERE {after}" if after else ""
        sql = f"SELECT {shown} FROM {quote_mysql(table)}{where} ORDER BY {order}"
        sql += f" LIMIT 1 OFFSET {pace.rows - 1}"
        bound = _row(connection, sql)
        if bound is None:
            # What is left has fewer rows than asked for.
            yield KeyRange(after)
            return
        literals = [_literal(*pair) for pair in zip(key, bound, strict=True)]
        if None in literals:
            yield KeyRange(after, bounded=False)
            return
        written = [literal for literal in literals if literal is not None]
        names = [quote_mysql(column.name) for column in key]
        upto = compared(names, written, "<", "<=")
        yield KeyRange(f"{after} AND {upto}" if after else upto)
        after = compared(names, written, ">", ">")


def compared(names: Sequence[str], literals: Sequence[str], strict: str, last: str) -> str:
    """``(a, b) > (x, y)`` as SQL, spelled out: the server uses no index for a comparison of rows.

    :param strict: the operator for all columns but the last, ``<`` or ``>``, and `last` the one for that.
    """
    if len(names) == 1:
        return f"{names[0]} {last} {literals[0]}"
    either = []
    for depth in range(len(names)):
        operator = last if depth == len(names) - 1 else strict
        equal = [f"{name} = {literal}" for name, literal in zip(names[:depth], literals[:depth], strict=True)]
        either.append("(" + " AND ".join([*equal, f"{names[depth]} {operator} {literals[depth]}"]) + ")")
    # The bound of the first column alone says nothing new, but every optimizer makes an index range of it.
    return f"({names[0]} {strict}= {literals[0]} AND ({' OR '.join(either)}))"


def _shown(column: Column) -> str:
    """The key's value in a form that makes a literal."""
    name = quote_mysql(column.name)
    return f"HEX({name})" if column.data_type in CHARACTERS | _BYTES else f"CAST({name} AS CHAR)"


def _literal(column: Column, value: Any) -> str | None:
    """The value as SQL, None when there is no safe way to write it."""
    text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    if column.data_type in _NUMBERS:
        return text if _NUMBER.fullmatch(text) else None
    if column.data_type in _TIMES:
        return f"'{text}'" if _TIME.fullmatch(text) and "-00" not in text and not text.startswith("0000") else None
    if not _HEX.fullmatch(text):
        return None
    # Bytes in the column's own character set: no quoting, whatever sql_mode the session has, and no conversion.
    if column.data_type in CHARACTERS:
        return f"_{column.charset or 'utf8mb4'} 0x{text}" if text else "''"
    return f"0x{text}" if text else "''"


def _row(connection: Any, sql: str, *arguments: str) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments or None)
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row
