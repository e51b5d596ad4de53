"""Row events of the binlog, decoded: what a table looks like to the event, and its rows as Python values.

Done here because mysql-replication builds two dicts for each row, a handful of calls for each value, and parses the
table's description again for each event: 15,000 rows a second are out of its reach. It also gives an empty SET and NULL
alike and is wrong about negative TIMEs with fractions. The values are of the kinds that it gives, otherwise: int,
float, Decimal, str, bytes for what is no text, naive datetime in UTC, date, timedelta, frozenset for SET, "0101" for
BIT.

Formats: MySQL's ``libs/mysql/binlog/event/rows_event.h`` and ``sql/log_event.cc``; values as in MySQL's
``my_time.cc`` and ``decimal.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any, Final, TypeAlias

from duckling_provider.replication.binlog.binary_json import json_text
from duckling_provider.replication.binlog.charsets import Charsets, Decode, UndecodableError


class _ZeroDate:
    def __repr__(self) -> str:
        return "ZERO_DATE"


#: A date that only MySQL has: 0000-00-00, 2024-00-07, 2023-02-30. Told from NULL so that it can be counted.
ZERO_DATE: Final = _ZeroDate()

Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
"""(event, offset) -> (value, offset after it)."""

(
    _TINY, _SHORT, _LONG, _FLOAT, _DOUBLE, _TIMESTAMP, _LONGLONG, _INT24, _DATE, _TIME, _DATETIME, _YEAR, _VARCHAR,
    _BIT, _TIMESTAMP2, _DATETIME2, _TIME2,
) = 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19  # fmt: skip
_VECTOR, _JSON, _NEWDECIMAL, _ENUM, _SET, _BLOB, _VAR_STRING, _STRING, _GEOMETRY = (
    242, 245, 246, 247, 248, 252, 253, 254, 255,
)  # fmt: skip
_NUMERIC = frozenset({_TINY, _SHORT, _INT24, _LONG, _LONGLONG, _NEWDECIMAL, _FLOAT, _DOUBLE, _YEAR})
_TEXT = frozenset({_STRING, _VAR_STRING, _VARCHAR, _BLOB})
_ONE_BYTE_OF_METADATA = frozenset({_FLOAT, _DOUBLE, _TIMESTAMP2, _DATETIME2, _TIME2, _BLOB, _GEOMETRY, _JSON, _VECTOR})
_TWO_BYTES_OF_METADATA = frozenset({_VARCHAR, _STRING, _VAR_STRING, _ENUM, _SET, _NEWDECIMAL, _BIT})
_INTEGERS = {
    _TINY: ("<b", "<B"), _SHORT: ("<h", "<H"), _LONG: ("<i", "<I"), _LONGLONG: ("<q", "<Q"),
}  # fmt: skip


@dataclass(frozen=True)
class TableMap:
    """A table as its row events see it: `readers` in the order of `columns`."""

    schema: str
    name: str
    columns: tuple[str, ...]
    readers: tuple[Reader, ...]


#: MariaDB's may have fractions, whose digits the binlog does not tell.
_OLD_TEMPORAL = frozenset({_TIMESTAMP, _DATETIME, _TIME})
_REBUILD = "which the binlog tells too little of; ALTER TABLE … FORCE with mysql56_temporal_format = ON changes it"


def table_name(body: bytes) -> tuple[str, str]:
    """(schema, table) of a table map event without its table id and flags."""
    end = 1 + body[0]
    return body[1:end].decode(), body[end + 2 : end + 2 + body[end + 1]].decode()


def parse_table_map(body: bytes, charsets: Charsets, *, mariadb: bool) -> TableMap:
    """What a table map event tells, which needs ``binlog_row_metadata=FULL``.

    :param body: the event without header, table id, flags and checksum.
    :param charsets: id of a collation -> name of its character set, as the server has them.
    :raises UndecodableError: when it names no columns, or a type or character set is unknown.
    """
    schema, name = table_name(body)
    at = 4 + len(schema.encode()) + len(name.encode())
    count, at = packed(body, at)
    kinds = list(body[at : at + count])
    length, at = packed(body, at + count)
    metadata = _column_metadata(kinds, body[at : at + length])
    at += length + (count + 7) // 8
    fields: dict[int, bytes] = {}
    while at < len(body):
        tag = body[at]
        length, at = packed(body, at + 1)
        fields[tag] = body[at : at + length]
        at += length
    if 4 not in fields:
        raise UndecodableError("its changes name no columns: binlog_row_metadata is not FULL")
    names = tuple(text.decode() for text in _texts(fields[4]))
    if len(names) != count or len(kinds) != count:
        raise ValueError("another number of names than of columns")

    numeric = [index for index, kind in enumerate(kinds) if kind in _NUMERIC]
    signs = fields.get(1, b"")
    unsigned = {index for bit, index in enumerate(numeric) if signs[bit // 8 : bit // 8 + 1] and
                signs[bit // 8] & (0x80 >> bit % 8)}  # fmt: skip
    texts = [i for i, kind in enumerate(kinds) if kind in _TEXT or (mariadb and kind == _GEOMETRY)]
    lists = [i for i, kind in enumerate(kinds) if kind in {_ENUM, _SET}]
    collations = _collations(texts, fields.get(2), fields.get(3)) | _collations(lists, fields.get(10), fields.get(11))
    enums, sets = iter(_value_lists(fields.get(6, b""))), iter(_value_lists(fields.get(5, b"")))

    readers: list[Reader] = []
    for index, (kind, meta) in enumerate(zip(kinds, metadata, strict=True)):
        # Without a collation it is no text.
        decode = charsets.decoder(collations[index], names[index]) if index in collations else bytes
        values: list[str] = []
        if kind in {_ENUM, _SET}:
            values = [str(decode(value)) for value in next(enums if kind == _ENUM else sets, ())]
        if mariadb and kind in _OLD_TEMPORAL:
            readers.append(_unreadable(f"column {names[index]} is of the format before MySQL 5.6, {_REBUILD}"))
            continue
        readers.append(_reader(kind, meta, decode, values, names[index], unsigned=index in unsigned))
    return TableMap(schema, name, names, tuple(readers))


def read_rows(body: bytes, at: int, table: TableMap, *, images: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """The rows of one event, each as its images: one for insert and delete, (before, after) for an update.

    :param body: number of columns, bitmaps of the columns present, and the rows, from `at` on.
    :raises UndecodableError: when columns are missing (``binlog_row_image`` is not FULL).
    """
    count, at = packed(body, at)
    if count != len(table.readers):
        raise UndecodableError("its changes have another number of columns than their description")
    width = (count + 7) // 8
    full = (1 << count) - 1
    for _ in range(images):
        if int.from_bytes(body[at : at + width], "little") & full != full:
            raise UndecodableError(
                "its changes lack columns: binlog_row_image is not FULL, or the server leaves virtual columns out"
            )
        at += width
    readers, end = table.readers, len(body)
    numbered = tuple(enumerate(readers))
    while at < end:
        row = []
        for _ in range(images):
            nulls = int.from_bytes(body[at : at + width], "little") & full
            at += width
            image: list[Any] = []
            if nulls:
                for index, read in numbered:
                    if nulls >> index & 1:
                        image.append(None)
                    else:
                        value, at = read(body, at)
                        image.append(value)
            else:
                for read in readers:
                    value, at = read(body, at)
                    image.append(value)
            row.append(tuple(image))
        yield tuple(row)


def packed(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer, and where it ends."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}[first]
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


def _packed_all(data: bytes) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = packed(data, at)
        numbers.append(number)
    return numbers


def _texts(data: bytes) -> list[bytes]:
    texts, at = [], 0
    while at < len(data):
        length, at = packed(data, at)
        texts.append(data[at : at + length])
        at += length
    return texts


def _value_lists(data: bytes) -> list[list[bytes]]:
    lists, at = [], 0
    while at < len(data):
        count, at = packed(data, at)
        values = []
        for _ in range(count):
            length, at = packed(data, at)
            values.append(data[at : at + length])
            at += length
        lists.append(values)
    return lists


def _collations(columns: Sequence[int], default: bytes | None, each: bytes | None) -> dict[int, int]:
    """Column -> id of its collation: either a default with (place, id) of the exceptions, or one id for each."""
    if each is not None:
        return dict(zip(columns, _packed_all(each), strict=False))
    if default is None:
        return {}
    usual, *pairs = _packed_all(default)
    exceptions = dict(zip(pairs[::2], pairs[1::2], strict=False))
    return {column: exceptions.get(place, usual) for place, column in enumerate(columns)}


def _column_metadata(kinds: list[int], data: bytes) -> list[bytes]:
    """Cuts the metadata by column; an ENUM or SET hides behind a STRING, so `kinds` is corrected too."""
    result, at = [], 0
    for index, kind in enumerate(kinds):
        size = 1 if kind in _ONE_BYTE_OF_METADATA else 2 if kind in _TWO_BYTES_OF_METADATA else 0
        meta = data[at : at + size]
        at += size
        if kind == _STRING and meta[0] in {_ENUM, _SET}:
            kinds[index] = meta[0]
        result.append(meta)
    return result


def _reader(kind: int, meta: bytes, decode: Decode, values: list[str], column: str, *, unsigned: bool) -> Reader:
    if kind in _INTEGERS:
        return _plain(_INTEGERS[kind][unsigned])
    if kind == _INT24:
        return lambda data, at: (int.from_bytes(data[at : at + 3], "little", signed=not unsigned), at + 3)
    if kind in {_FLOAT, _DOUBLE}:
        return _plain("<f" if kind == _FLOAT else "<d")
    if kind == _YEAR:
        return lambda data, at: (data[at] + 1900 if data[at] else 0, at + 1)
    if kind in {_VARCHAR, _VAR_STRING, _STRING}:
        # Two bits of a CHAR's length are hidden, inverted, in the byte of the type.
        hidden = ((meta[0] << 4) & 0x300) ^ 0x300
        longest = hidden + meta[1] if kind == _STRING else int.from_bytes(meta, "little")
        return _sized(2 if longest > 255 else 1, decode)
    if kind == _BLOB:
        return _sized(meta[0], decode)
    if kind in {_GEOMETRY, _VECTOR}:
        return _sized(meta[0], bytes)
    if kind == _JSON:
        return _sized(meta[0], lambda data: json_text(data, _decimal))
    if kind == _NEWDECIMAL:
        return _decimal(meta[0], meta[1])
    if kind == _BIT:
        bits = meta[1] * 8 + meta[0]
        size = (bits + 7) // 8
        return lambda data, at: (f"{int.from_bytes(data[at : at + size], 'big'):0{bits}b}", at + size)
    if kind == _ENUM:
        choices, size = ["", *values], meta[1]
        return lambda data, at: (choices[int.from_bytes(data[at : at + size], "little")], at + size)
    if kind == _SET:
        return _set(values, meta[1])
    if kind == _DATE:
        return _date
    if kind in {_TIMESTAMP2, _DATETIME2, _TIME2}:
        return {_TIMESTAMP2: _timestamp2, _DATETIME2: _datetime2, _TIME2: _time2}[kind](meta[0])
    if kind in {_TIMESTAMP, _DATETIME, _TIME}:
        return {_TIMESTAMP: _old_timestamp, _DATETIME: _old_datetime, _TIME: _old_time}[kind]

    return _unreadable(f"column {column} is of the type {kind} of the binlog, which is unknown here")


def _unreadable(reason: str) -> Reader:
    def read(*_: object) -> tuple[Any, int]:
        raise UndecodableError(reason)

    return read


def _plain(layout: str) -> Reader:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)
    if layout in {"<B", "<b"}:
        return lambda data, at: (unpack(data, at)[0], at + 1)
    return lambda data, at: (unpack(data, at)[0], at + size)


def _sized(size: int, decode: Callable[[bytes], Any]) -> Reader:
    if size == 1:

        def short(data: bytes, at: int) -> tuple[Any, int]:
            end = at + 1 + data[at]
            return decode(data[at + 1 : end]), end

        return short

    def long(data: bytes, at: int) -> tuple[Any, int]:
        start = at + size
        end = start + int.from_bytes(data[at:start], "little")
        return decode(data[start:end]), end

    return long


#: Bytes that a rest of 0-8 digits takes; nine take four.
_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


_WIDE = Context(prec=80)


def _decimal(precision: int, scale: int) -> Reader:
    def groups(digits: int, *, rest_first: bool) -> list[tuple[int, int]]:
        whole, rest = [(4, 9)] * (digits // 9), [(_DIGIT_BYTES[digits % 9], digits % 9)] if digits % 9 else []
        return rest + whole if rest_first else whole + rest

    parts = groups(precision - scale, rest_first=True) + groups(scale, rest_first=False)
    size = sum(width for width, _ in parts)
    top, ones = 1 << (size * 8 - 1), (1 << size * 8) - 1

    def read(data: bytes, at: int) -> tuple[Any, int]:
        raw = int.from_bytes(data[at : at + size], "big")
        negative = not raw & top
        # The sign bit is inverted, and a negative number is the complement of its absolute value.
        raw = ~raw & ones & ~top if negative else raw ^ top
        shift, number = size * 8, 0
        for width, digits in parts:
            shift -= width * 8
            number = number * 10**digits + (raw >> shift & (1 << width * 8) - 1)
        return Decimal(-number if negative else number).scaleb(-scale, _WIDE), at + size

    return read


def _set(values: list[str], size: int) -> Reader:
    known: dict[int, frozenset[str]] = {}

    def read(data: bytes, at: int) -> tuple[Any, int]:
        mask = int.from_bytes(data[at : at + size], "little")
        if mask not in known:
            if len(known) > 1000:
                known.clear()
            known[mask] = frozenset(value for bit, value in enumerate(values) if mask >> bit & 1)
        return known[mask], at + size

    return read


def _date(data: bytes, at: int) -> tuple[Any, int]:
    packed = int.from_bytes(data[at : at + 3], "little")
    try:
        return date(packed >> 9, packed >> 5 & 15, packed & 31), at + 3
    except ValueError:
        return ZERO_DATE, at + 3


def _fraction(digits: int) -> tuple[int, int]:
    """(bytes, microseconds of one unit) of a fraction of so many digits."""
    size = (digits + 1) // 2
    return size, int(10 ** (6 - 2 * size))


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None)


def _timestamp2(digits: int) -> Reader:
    size, unit = _fraction(digits)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        seconds, end = int.from_bytes(data[at : at + 4], "big"), at + 4 + size
        micros = int.from_bytes(data[at + 4 : end], "big") * unit if size else 0
        if not seconds:
            return ZERO_DATE, end
        return _EPOCH + timedelta(seconds=seconds, microseconds=micros), end

    return read


def _datetime2(digits: int) -> Reader:
    size, unit = _fraction(digits)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        packed, end = int.from_bytes(data[at : at + 5], "big") - 0x8000000000, at + 5 + size
        micros = int.from_bytes(data[at + 5 : end], "big") * unit if size else 0
        day, clock = packed >> 17, packed & 0x1FFFF
        year, month = divmod(day >> 5, 13)
        try:
            return datetime(year, month, day & 31, clock >> 12, clock >> 6 & 63, clock & 63, micros), end  # noqa: DTZ001
        except ValueError:
            return ZERO_DATE, end

    return read


def _time2(digits: int) -> Reader:
    size, unit = _fraction(digits)
    width = 3 + size
    zero = 0x800000 << size * 8
    mask = (1 << size * 8) - 1

    def read(data: bytes, at: int) -> tuple[Any, int]:
        # Seconds and fraction are one number with one sign.
        packed = int.from_bytes(data[at : at + width], "big") - zero
        sign, packed = (-1, -packed) if packed < 0 else (1, packed)
        clock = packed >> size * 8
        seconds = (clock >> 12) * 3600 + (clock >> 6 & 63) * 60 + (clock & 63)
        return sign * timedelta(seconds=seconds, microseconds=(packed & mask) * unit), at + width

    return read


# The types of tables that were made before MySQL 5.6 and never rebuilt.


def _old_timestamp(data: bytes, at: int) -> tuple[Any, int]:
    seconds = int.from_bytes(data[at : at + 4], "little")
    return (_EPOCH + timedelta(seconds=seconds) if seconds else ZERO_DATE), at + 4


def _old_datetime(data: bytes, at: int) -> tuple[Any, int]:
    day, clock = divmod(int.from_bytes(data[at : at + 8], "little"), 1000000)
    try:
        return datetime(  # noqa: DTZ001
            day // 10000, day // 100 % 100, day % 100, clock // 10000, clock // 100 % 100, clock % 100
        ), at + 8
    except ValueError:
        return ZERO_DATE, at + 8


def _old_time(data: bytes, at: int) -> tuple[Any, int]:
    packed = int.from_bytes(data[at : at + 3], "little", signed=True)
    sign, packed = (-1, -packed) if packed < 0 else (1, packed)
    return sign * timedelta(hours=packed // 10000, minutes=packed // 100 % 100, seconds=packed % 100), at + 3
