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
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duckling_provider.replication.model import Column
from duckling_provider.replication.names import quote, quote_mysql

if TYPE_CHECKING:
    import pyarrow as pa

DUCKDB_DIGITS = 38

_INTEGERS = {"tinyint": ("TINYINT", 8), "smallint": ("SMALLINT", 16), "mediumint": ("INTEGER", 24)}
_INTEGERS |= {"int": ("INTEGER", 32), "integer": ("INTEGER", 32), "bigint": ("BIGINT", 64)}
_TEXTS = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext"})
_BYTES = frozenset({"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"})
_SPATIAL = frozenset({"geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon"})
_SPATIAL |= {"geometrycollection", "geomcollection"}

#: Stands for a date that no calendar has on the way from the server: days and microseconds that no date has.
_NO_DAY, _NO_MOMENT = -(1 << 31), -(1 << 62)
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - the binlog's times are UTC without saying so

#: MySQL's names of character sets that are not Python's.
_CODECS = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "utf8": "utf-8",
    "latin2": "iso8859-2",
    "latin5": "iso8859-9",
    "latin7": "iso8859-13",
    "greek": "iso8859-7",
    "hebrew": "iso8859-8",
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "koi8r": "koi8-r",
    "koi8u": "koi8-u",
    "macroman": "mac-roman",
    "macce": "mac-latin2",
    "hp8": "hp-roman8",
    "tis620": "tis-620",
    "sjis": "shift_jis",
    "ujis": "euc_jp",
    "eucjpms": "euc_jp",
    "euckr": "euc_kr",
}


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

    None comes back as None; `rows.ZERO_DATE` is the caller's. It is `unchanged` where there is nothing to do.

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
    return f"{column.name}: {said}" if said else None


def enum_values(column: Column) -> list[str]:
    """The list of an ENUM or SET in its order."""
    return [_unescape(text) for text in re.findall(r"'((?:[^'\\]|''|\\.)*)'", column.column_type, re.DOTALL)]


def decode_text(data: bytes | bytearray, charset: str | None) -> str:
    """`data` in MySQL's character set `charset` as text.

    :raises UnicodeDecodeError: for bytes that the character set does not have.
    :raises LookupError: for one of the few character sets that Python does not know.
    """
    if charset == "latin1":
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            # MySQL's latin1 is cp1252 with the five holes filled as in ISO 8859-1.
            return "".join(_latin1()[byte] for byte in data)
    name = charset or "utf8mb4"
    return data.decode(_CODECS.get(name, name))


@functools.cache
def _latin1() -> list[str]:
    return [bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256)]


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
        return _Mapping(duck, "float64", "float64", select="({} + 0e0)", decode=float)
    if kind == "bit":
        return _Mapping("UBIGINT", "uint64", "uint64", select="CAST({} AS UNSIGNED)", decode=_bits)
    if kind == "year":
        return _Mapping("SMALLINT", "int16", "int16", decode=lambda year: 0 if year == 1900 else year)
    if kind in _BYTES:
        return _Mapping("BLOB", "large_binary", "large_binary", decode=_bytes_decoder(column))
    if kind in _SPATIAL:
        # Both ways begin with four bytes of SRID.
        return _Mapping(
            "BLOB",
            "large_string",
            "large_binary",
            select="HEX({})",
            load="unhex(substr({}, 9))",
            decode=lambda value: bytes(value[4:]),
            report="the SRID is not kept, only the WKB",
        )
    if kind in {"date", "datetime", "timestamp", "time"}:
        return _time(column)
    if kind in _ADDRESSES:
        return _Mapping("VARCHAR", "large_string", "large_string", select="CAST({} AS CHAR)", decode=_ADDRESSES[kind])
    return _text(column)


def _integer(column: Column) -> _Mapping:
    duck, bits = _INTEGERS[column.data_type]
    width = 32 if bits == 24 else bits
    if not column.unsigned:
        return _Mapping(duck, f"int{width}", f"int{width}")
    # Without FULL row metadata the binlog does not say that a column is unsigned.
    modulus = 1 << bits
    return _Mapping("U" + duck, f"uint{width}", f"uint{width}", decode=lambda value: value % modulus)


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
            decode=lambda value: None if value.replace(microsecond=0) == _EPOCH else value,
            zero="({} = 0)",
        )
    if column.data_type == "date":
        return _Mapping(
            "DATE",
            "int64",
            "date32",
            select=_since_1970("DATEDIFF({}, '1970-01-01')", _NO_DAY),
            load=f"(DATE '1970-01-01' + CAST(nullif({{}}, {_NO_DAY}) AS INTEGER))",
            zero=f"({{}} = {_NO_DAY})",
        )
    return _Mapping(
        "TIMESTAMP",
        "int64",
        "timestamp",
        select=_since_1970("TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', {})", _NO_MOMENT),
        load=f"make_timestamp(nullif(CAST({{}} AS BIGINT), {_NO_MOMENT}))",
        zero=f"({{}} = {_NO_MOMENT})",
    )


def _since_1970(count: str, never: int) -> str:
    """`count` as SQL, `never` for dates that no calendar has: the server's functions say NULL for most of them."""
    real = "{} >= '0001-01-01' AND DAYOFMONTH({}) <= DAYOFMONTH(LAST_DAY({}))"
    return f"CASE WHEN {{}} IS NULL THEN NULL WHEN {real} THEN COALESCE({count}, {never}) ELSE {never} END"


def _text(column: Column) -> _Mapping:
    charset = column.charset

    def decode(value: Any) -> Any:
        return decode_text(value, charset) if isinstance(value, (bytes, bytearray)) else value

    if column.data_type == "enum" or column.data_type in _TEXTS:
        return _Mapping("VARCHAR", "large_string", "large_string", decode=decode)
    if column.data_type == "set":
        values = enum_values(column)
        order = {value: number for number, value in enumerate(values)}

        def join(value: Any) -> Any:
            # MySQL shows the members in the order of the list.
            if isinstance(value, (set, frozenset)):
                return ",".join(sorted(value, key=lambda member: (order.get(member, len(order)), member)))
            return decode(value)

        return _Mapping("VARCHAR", "large_string", "large_string", decode=join)
    if column.data_type == "json":
        return _Mapping("VARCHAR", "large_string", "large_string", select="CAST({} AS CHAR)", decode=json_text)
    return _Mapping(
        "VARCHAR",
        "large_string",
        "large_string",
        select="CAST({} AS CHAR)",
        decode=lambda value: decode(value) if isinstance(value, bytes) else str(value),
        report=f"the type {column.data_type} is not known and kept as text",
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


def _bits(value: Any) -> int:
    """The binlog's bits are a text, the highest first."""
    if isinstance(value, (bytes, bytearray)):
        return int.from_bytes(value, "big")
    return int(value, 2) if isinstance(value, str) else int(value)


def _bytes_decoder(column: Column) -> Callable[[Any], bytes]:
    length = re.search(r"\((\d+)\)", column.column_type)
    # The binlog leaves zeros at the end of a BINARY out.
    width = int(length[1]) if length and column.data_type == "binary" else 0

    def decode(value: Any) -> bytes:
        data = value.encode() if isinstance(value, str) else bytes(value)
        return data.ljust(width, b"\0")

    return decode


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
