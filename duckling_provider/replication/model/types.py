"""Types of MySQL in DuckDB, and the two ways a value gets there: the full copy and the changes from the binlog.

The copy asks the server for `select_expression`, which every client carries exactly, and DuckDB makes `duck_type` of it
by `from_transport`. A change comes from the binlog through `decode` and `from_change`. Both ways end in equal values.

Choices that are not obvious:

- FLOAT is fetched as DOUBLE: MySQL prints a FLOAT with six digits, and the binlog has all of its bits.
- TIME is an INTERVAL, since DuckDB's TIME ends at 24:00 and knows no sign. Ours consist of microseconds only; among
  such intervals equality and order are exact, and ``date + time`` does what one expects.
- DATETIME and TIMESTAMP are both TIMESTAMP, the latter in UTC; what DuckDB calls TIMESTAMPTZ shows other text on every
  reader's machine.
- JSON, ENUM and SET are VARCHAR with the text that MySQL shows: no value can fail to be stored, and altering the list
  of an ENUM needs no change here.
- BIT is UBIGINT, the spatial types are BLOB with WKB.
- Dates that no calendar has (zeros in them, the year 0, the 31st of February) are NULL; `zero_date` finds them.
"""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import json
import re
import socket
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duckling_provider.replication.model.families import BYTES, TEXTS
from duckling_provider.replication.model.names import quote, quote_mysql
from duckling_provider.replication.model.tables import Column

if TYPE_CHECKING:
    import pyarrow as pa

DUCKDB_DIGITS = 38

_INTEGERS = {"tinyint": ("TINYINT", 8), "smallint": ("SMALLINT", 16), "mediumint": ("INTEGER", 24)}
_INTEGERS |= {"int": ("INTEGER", 32), "integer": ("INTEGER", 32), "bigint": ("BIGINT", 64)}
_SPATIAL = frozenset({"geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon"})
_SPATIAL |= {"geometrycollection", "geomcollection"}


def unchanged(value: Any) -> Any:
    """What `decode` returns for columns whose values fit as they are."""
    return value


@dataclass(frozen=True)
class _Mapping:
    """How one column is carried; `{}` in the texts stands for the quoted column.

    :param transport: name of the arrow type in which `select` arrives, likewise `change` for `decode`'s values.
    """

    duck: str
    transport: str
    change: str
    select: str = "{}"
    load: str = ""  #: of the transported column; a plain cast when empty
    apply: str = ""  #: of the changed column; a plain cast when empty
    decode: Callable[[Any], Any] = unchanged
    zero: str = ""  #: of the transported column: whether it is a date that no calendar has
    report: str | None = None


def duck_type(column: Column) -> str:
    """The type that `column` has in DuckDB, as SQL."""
    return _mapping(column).duck


def select_expression(column: Column) -> str:
    """What the copy selects for `column`, without an alias: plain SQL for MySQL 5.7 and later and MariaDB.

    It means the same whatever the session's time zone and ``sql_mode`` are.
    """
    return _mapping(column).select.replace("{}", quote_mysql(column.name))


def transport_arrow(column: Column) -> pa.DataType:
    """The arrow type for what pymysql returns for `select_expression`; another client may arrive at another one."""
    return _arrow(_mapping(column).transport)


def from_transport(column: Column, name: str) -> str:
    """DuckDB's expression for the value of `column` from the transported column `name`, which it quotes itself."""
    mapping = _mapping(column)
    return (mapping.load or f"CAST({{}} AS {mapping.duck})").replace("{}", quote(name))


def zero_date(column: Column, name: str) -> str | None:
    """DuckDB's expression that is true where the transported column `name` held a date that became NULL.

    None for columns that hold no dates.
    """
    zero = _mapping(column).zero
    return zero.replace("{}", quote(name)) if zero else None


def decode(column: Column) -> Callable[[Any], Any]:
    """A function that turns a value of the binlog as `rows` reads it into one for an array of `change_arrow`.

    None comes back as None; `readers.ZERO_DATE` is the caller's. It is `unchanged` where there is nothing to do.

    :raises ValueError, TypeError, LookupError, ArithmeticError: by that function, for what the type can't hold.
    """
    function = _mapping(column).decode
    return function if function is unchanged else lambda value: None if value is None else function(value)


def change_arrow(column: Column) -> pa.DataType:
    """The arrow type of what `decode` returns."""
    return _arrow(_mapping(column).change)


def from_change(column: Column, name: str) -> str:
    """DuckDB's expression for the value of `column` from a column of `change_arrow`, whose `name` it quotes itself."""
    mapping = _mapping(column)
    return (mapping.apply or f"CAST({{}} AS {mapping.duck})").replace("{}", quote(name))


def report(column: Column) -> str | None:
    """What of `column` the replica can't hold as MySQL does, as a sentence for people; None when nothing is lost."""
    said = _mapping(column).report
    if not said and "COMPRESSED" in re.sub("'.*'", "", column.column_type):
        said = "it is COMPRESSED, and its changes can't be read from the binlog: each makes a new copy of the table"
    return f"{column.name}: {said}" if said else None


def enum_values(column: Column) -> list[str]:
    """The list of an ENUM or SET in its order."""
    return [_unescape(text) for text in re.findall(r"'((?:[^'\\]|''|\\.)*)'", column.column_type, re.DOTALL)]


def are_told_apart(values: Sequence[str]) -> bool:
    """Whether no collation takes two of an ENUM's or SET's `values` for equal: a lax server gives the first then."""
    plain = {
        "".join(c for c in unicodedata.normalize("NFKD", value) if not unicodedata.combining(c)).casefold().rstrip()
        for value in values
    }
    return len(plain) == len(values) and all(value.isascii() for value in plain)


def _arrow(name: str) -> pa.DataType:
    import pyarrow as pa

    if name.startswith("decimal"):
        precision, scale = map(int, name[8:-1].split(","))
        return pa.decimal128(precision, scale)
    return pa.timestamp("us") if name == "timestamp" else getattr(pa, name)()


@functools.lru_cache(maxsize=4096)
def _mapping(column: Column) -> _Mapping:
    kind = column.data_type
    if kind in _INTEGERS:
        return _integer(column)
    if kind == "decimal":
        return _decimal(column)
    if kind in {"float", "double", "real"}:
        # Adding 0 makes a DOUBLE of a FLOAT, and takes the rounding to D digits out of FLOAT(M, D)'s text.
        duck = "FLOAT" if kind == "float" else "DOUBLE"
        return _Mapping(duck, "float64", "float64", select="({} + 0e0)")
    if kind == "bit":
        return _Mapping("UBIGINT", "uint64", "uint64", select="CAST({} AS UNSIGNED)", decode=_bits)
    if kind == "year":
        return _Mapping("SMALLINT", "int16", "int16")
    if kind == "vector":
        # As text: clients take a VECTOR for a string of some character set.
        return _Mapping("BLOB", "large_string", "large_binary", select="HEX({})", load="unhex({})")
    if kind in BYTES:
        decode = _padded(column) if kind == "binary" else unchanged
        return _Mapping("BLOB", "large_binary", "large_binary", decode=decode)
    if kind in _SPATIAL:
        # Both ways begin with four bytes of SRID.
        return _Mapping(
            "BLOB",
            "large_string",
            "large_binary",
            select="HEX({})",
            load="unhex(substr({}, 9))",
            decode=lambda value: value[4:],
            report="the SRID is not kept, only the WKB, with the axes as they are stored: longitude first",
        )
    if kind in {"date", "datetime", "timestamp", "time"}:
        return _time(column)
    if kind in _ADDRESSES:
        return _Mapping("VARCHAR", "large_string", "large_string", select="CAST({} AS CHAR)", decode=_ADDRESSES[kind])
    return _text(column)


def _integer(column: Column) -> _Mapping:
    duck, bits = _INTEGERS[column.data_type]
    width = 32 if bits == 24 else bits
    if column.unsigned:
        return _Mapping("U" + duck, f"uint{width}", f"uint{width}")
    return _Mapping(duck, f"int{width}", f"int{width}")


def _decimal(column: Column) -> _Mapping:
    precision, scale = column.precision or 10, column.scale or 0
    if precision <= DUCKDB_DIGITS:
        duck = f"DECIMAL({precision},{scale})"
        return _Mapping(duck, "large_string", f"decimal({precision},{scale})", select="CAST({} AS CHAR)")
    return _Mapping(
        "VARCHAR",
        "large_string",
        "large_string",
        select="CAST({} AS CHAR)",
        decode=lambda value: format(decimal.Decimal(value), "f"),
        report=f"DECIMAL({precision},{scale}) has more than the {DUCKDB_DIGITS} digits of DuckDB's and is kept as text",
    )


def _time(column: Column) -> _Mapping:
    if column.data_type == "time":
        return _Mapping(
            "INTERVAL",
            "large_string",
            "int64",
            select="CAST({} AS CHAR)",
            apply="to_microseconds({})",
            decode=lambda value: value // dt.timedelta(microseconds=1),
        )
    if column.data_type == "timestamp":
        # Stored as seconds since 1970, the zero date as 0; a zone would come in only by showing it.
        return _Mapping(
            "TIMESTAMP",
            "int64",
            "timestamp",
            select="CAST(UNIX_TIMESTAMP({}) * 1000000 AS SIGNED)",
            load="make_timestamp(nullif(CAST({} AS BIGINT), 0))",
            zero="({} = 0)",
        )
    # As text, which costs the server less than any arithmetic that spots dates that no calendar has. DuckDB has a year
    # 0 and no 31st of February.
    duck = "DATE" if column.data_type == "date" else "TIMESTAMP"
    load = f"CASE WHEN {{}} >= '0001' THEN TRY_CAST({{}} AS {duck}) END"
    return _Mapping(
        duck,
        "large_string",
        "date32" if duck == "DATE" else "timestamp",
        select="CAST({} AS CHAR)",
        load=load,
        zero=f"({{}} IS NOT NULL AND {load} IS NULL)",
    )


def _text(column: Column) -> _Mapping:
    kind = column.data_type
    if kind == "enum" or kind in TEXTS:
        return _Mapping("VARCHAR", "large_string", "large_string")
    if kind == "set":
        order = {value: number for number, value in enumerate(enum_values(column))}

        def join(members: Any) -> str:
            # MySQL shows them in the order of the list.
            return ",".join(sorted(members, key=lambda member: (order.get(member, len(order)), member)))

        return _Mapping("VARCHAR", "large_string", "large_string", decode=join)
    if kind == "json":
        return _Mapping("VARCHAR", "large_string", "large_string", select="CAST({} AS CHAR)")
    return _Mapping(
        "VARCHAR",
        "large_string",
        "large_string",
        select="CAST({} AS CHAR)",
        decode=str,
        report=f"the type {kind} is not known and kept as text",
    )


def _inet4(value: Any) -> str:
    return socket.inet_ntop(socket.AF_INET, bytes(value).ljust(4, b"\0"))


def _inet6(value: Any) -> str:
    return socket.inet_ntop(socket.AF_INET6, bytes(value).ljust(16, b"\0"))


def _uuid(value: Any) -> str:
    """MariaDB stores the groups of a UUID from the last to the first, so that those made of times sort by them.

    Not so the versions from 6 on, which sort by themselves: ``rec_need_swap`` in MariaDB's ``sql_type_uuid.h``.
    """
    data = bytes(value).ljust(16, b"\0")
    if data[6] & -data[8] & 0x80:
        data = data[12:] + data[10:12] + data[8:10] + data[6:8] + data[:6]
    return str(uuid.UUID(bytes=data))


#: Types that only MariaDB has; in the binlog they are BINARYs.
_ADDRESSES: dict[str, Callable[[Any], str]] = {"inet4": _inet4, "inet6": _inet6, "uuid": _uuid}


def _bits(value: str) -> int:
    """The binlog's bits are a text, the highest first."""
    return int(value, 2)


def _padded(column: Column) -> Callable[[Any], Any]:
    """The binlog leaves zeros at the end of a BINARY out."""
    length = re.search(r"\((\d+)\)", column.column_type)
    width = int(length[1]) if length else 1
    return lambda value: value.ljust(width, b"\0")


def json_text(value: Any) -> str:
    """A value of MySQL's binary JSON as the text that MySQL shows for it; text passes as it is."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(_plain(key))}: {_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_json, value)) + "]"
    value = _plain(value)
    if isinstance(value, float):
        # 1e+20 and 1e-07 in Python are 1e20 and 1e-7 there.
        return re.sub(r"e\+?(-?)0*", r"e\1", repr(value))
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, (dt.date, dt.time, dt.timedelta)):
        value = str(value)
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, (bytes, bytearray)) else value


def _unescape(text: str) -> str:
    """A value of an ENUM's or SET's list as ``information_schema`` writes it."""
    known = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "Z": "\x1a", "b": "\b"}
    return re.sub(
        r"\\(.)|''",
        lambda match: "'" if match[1] is None else known.get(match[1], match[1]),
        text,
        flags=re.DOTALL,
    )
