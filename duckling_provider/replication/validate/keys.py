"""Primary keys as texts that MySQL and DuckDB both read and write, each value one text.

Numbers and dates are written as they are, texts and bytes in hexadecimal, of UTF-8 where they are texts. So a key can
be kept, compared and put into either side's SQL without quoting, and no character set comes in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duckling_provider.replication.copy.ranges import compared, is_rangeable
from duckling_provider.replication.model.families import CHARACTERS, INTEGERS
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.model.types import DUCKDB_DIGITS, duck_type

KeyTexts = tuple[str, ...]

#: Character sets of which each character becomes itself again by way of Unicode, in MySQL's own mapping.
_FAITHFUL = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii", "latin1"})
_BYTES = frozenset({"binary", "varbinary"})
_TIMES = frozenset({"date", "datetime"})

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}( \d{2}:\d{2}:\d{2}(\.\d+)?)?")
_HEX = re.compile(r"([0-9A-Fa-f]{2})*")


class UnfitKeyError(Exception):
    """A key has a value that the replica does not hold as a key, such as a date that no calendar has."""


@dataclass(frozen=True)
class Key:
    """The primary key of a table whose rows can be named one by one on both sides."""

    columns: tuple[Column, ...]

    @staticmethod
    def of(table: Table) -> Key | None:
        """None where there is no key, or not one of this kind."""
        if not is_rangeable(table):
            return None
        by_name = {column.name: column for column in table.columns}
        columns = tuple(by_name[name] for name in table.primary_key)
        for column in columns:
            if column.data_type in CHARACTERS and column.charset not in _FAITHFUL:
                return None
            if column.data_type == "decimal" and (column.precision or 10) > DUCKDB_DIGITS:
                return None
        return Key(columns)

    @property
    def is_ordered_alike(self) -> bool:
        """Whether both sides sort it alike. Texts they don't: MySQL sorts by a collation, DuckDB by bytes."""
        return not any(column.data_type in CHARACTERS for column in self.columns)

    @property
    def has_dates(self) -> bool:
        """Whether a value may be one that the replica has as NULL."""
        return any(column.data_type in _TIMES for column in self.columns)

    def check(self, key: Sequence[str | None]) -> None:
        """:raises UnfitKeyError: it is not one of the texts that this module writes."""
        for place, text in enumerate(key):
            self._checked(place, text or "")

    # ---- MySQL -------------------------------------------------------------------------------------------------

    @property
    def mysql_names(self) -> list[str]:
        return [quote_mysql(column.name) for column in self.columns]

    @property
    def mysql_texts(self) -> list[str]:
        """SQL of MySQL for the texts."""
        return [_mysql_text(column) for column in self.columns]

    def mysql_beyond(self, after: KeyTexts) -> str:
        """MySQL's condition for the rows that come later in the order of the key."""
        return compared(self.mysql_names, self._mysql_literals(after), ">", ">")

    def mysql_any(self, keys: Sequence[KeyTexts]) -> str:
        """MySQL's condition for the rows with one of `keys`, and those that a collation takes for one of them."""
        names = self.mysql_names
        if len(names) == 1:
            return f"{names[0]} IN ({', '.join(self._mysql_literals(key)[0] for key in keys)})"
        each = (zip(names, self._mysql_literals(key), strict=True) for key in keys)
        return " OR ".join("(" + " AND ".join(f"{name} = {text}" for name, text in pairs) + ")" for pairs in each)

    def _mysql_literals(self, key: KeyTexts) -> list[str]:
        return [_mysql_literal(column, text) for column, text in zip(self.columns, key, strict=True)]

    # ---- DuckDB ------------------------------------------------------------------------------------------------

    def duck_value(self, place: int, text: str) -> str:
        """DuckDB's expression for the value at `place` of the key, from an expression for its text."""
        column = self.columns[place]
        if column.data_type in CHARACTERS:
            return f"decode(unhex({text}))"
        return f"unhex({text})" if column.data_type in _BYTES else f"CAST({text} AS {duck_type(column)})"

    def duck_text(self, place: int, value: str) -> str:
        """DuckDB's expression for the text, from an expression for the value at `place` of the key."""
        kind = self.columns[place].data_type
        if kind in CHARACTERS | _BYTES:
            return f"hex({value})"
        # DuckDB leaves the only digit before the point out of a DECIMAL(4,4).
        return rf"regexp_replace(CAST({value} AS VARCHAR), '^(-?)\.', '\10.')"

    def duck_compared(self, key: KeyTexts, strict: str, last: str) -> str:
        """DuckDB's condition for the rows on one side of `key`, by names ``k0``, ``k1``, …; as `ranges.compared`."""
        literals = [self.duck_value(place, f"'{self._checked(place, text)}'") for place, text in enumerate(key)]
        return compared([f"k{place}" for place in range(len(key))], literals, strict, last)

    def _checked(self, place: int, text: str) -> str:
        return _checked(self.columns[place], text)


def _mysql_text(column: Column) -> str:
    name = quote_mysql(column.name)
    if column.data_type in CHARACTERS:
        return f"HEX(CONVERT({name} USING utf8mb4))"
    if column.data_type in _BYTES:
        return f"HEX({name})"
    return f"CAST({name} + 0 AS CHAR)" if column.data_type in INTEGERS | {"year"} else f"CAST({name} AS CHAR)"


def _mysql_literal(column: Column, text: str) -> str:
    _checked(column, text)
    if column.data_type in CHARACTERS:
        value = f"_utf8mb4 0x{text}" if text else "_utf8mb4 ''"
        # Converted here, so that the column's index can find it.
        return f"CONVERT({value} USING {column.charset}) COLLATE {column.collation}"
    if column.data_type in _BYTES:
        return f"0x{text}" if text else "''"
    return f"'{text}'" if column.data_type in _TIMES else text


def _checked(column: Column, text: str) -> str:
    """`text`, which goes into SQL as it is.

    :raises UnfitKeyError: it is no text of such a column.
    """
    pattern = _NUMBER
    if column.data_type in CHARACTERS | _BYTES:
        pattern = _HEX
    elif column.data_type in _TIMES:
        pattern = _TIME
    if not pattern.fullmatch(text) or (pattern is _TIME and ("-00" in text or text.startswith("0000"))):
        raise UnfitKeyError(column.name)
    return text
