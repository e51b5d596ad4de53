"""Row events of the binlog, decoded: what a table looks like to the event, and its rows as Python values.

Done here because mysql-replication builds two dicts for each row, a handful of calls for each value, and parses the
table's description again for each event: 15,000 rows a second are out of its reach. It also gives an empty SET and NULL
alike and is wrong about negative TIMEs with fractions. The values are of the kinds that it gives, otherwise: int,
float, Decimal, str, bytes for what is no text, naive datetime in UTC, date, timedelta, frozenset for SET, "0101" for
BIT.

Formats: MySQL's ``libs/mysql/binlog/event/rows_event.h`` and ``sql/log_event.cc``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from duckling_provider.replication.binlog.binary_json import json_text
from duckling_provider.replication.binlog.charsets import Charsets, Decode, UndecodableError
from duckling_provider.replication.binlog.readers import (
    Reader,
    datetime2_reader,
    decimal_reader,
    plain_reader,
    read_date,
    read_old_datetime,
    read_old_time,
    read_old_timestamp,
    set_reader,
    sized_reader,
    time2_reader,
    timestamp2_reader,
    unreadable_reader,
)

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
    """A table as its row events see it: `readers` in the order of `columns`.

    :param choices: of each ENUM and SET. Where a table was converted to another character set, servers write them in
        the one before, and nothing tells so.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    readers: tuple[Reader, ...]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
    # What each server counts as text here.
    counted = _TEXT | ({_GEOMETRY} if mariadb else {_VECTOR})
    texts = [i for i, kind in enumerate(kinds) if kind in counted]
    lists = [i for i, kind in enumerate(kinds) if kind in {_ENUM, _SET}]
    collations = _collations(texts, fields.get(2), fields.get(3)) | _collations(lists, fields.get(10), fields.get(11))
    enums, sets = iter(_value_lists(fields.get(6, b""))), iter(_value_lists(fields.get(5, b"")))

    choices: dict[str, tuple[str, ...]] = {}
    readers: list[Reader] = []
    for index, (kind, meta) in enumerate(zip(kinds, metadata, strict=True)):
        # Without a collation it is no text.
        decode = charsets.decoder(collations[index], names[index]) if index in collations else bytes
        values: list[str] = []
        if kind in {_ENUM, _SET}:
            values = [_choice(decode, value, names[index]) for value in next(enums if kind == _ENUM else sets, ())]
            choices[names[index]] = tuple(values)
        if mariadb and kind in _OLD_TEMPORAL:
            readers.append(unreadable_reader(f"column {names[index]} is of the format before MySQL 5.6, {_REBUILD}"))
            continue
        readers.append(_reader(kind, meta, decode, values, names[index], unsigned=index in unsigned))
    return TableMap(schema, name, names, tuple(readers), choices)


def _choice(decode: Decode, value: bytes, column: str) -> str:
    """One of the list of an ENUM or SET, which may be of the character set binary."""
    try:
        text = decode(value)
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise UndecodableError(f"column {column} has choices that are no text of its character set: {error}") from error


def column_kinds(body: bytes) -> bytes:
    """The types of a table's columns, from a TABLE_MAP_EVENT without table id and flags."""
    schema, name = table_name(body)
    count, at = packed(body, 4 + len(schema.encode()) + len(name.encode()))
    return body[at : at + count]


def told_columns(body: bytes, at: int, table: TableMap, *, images: int) -> Sequence[int]:
    """The places of the columns that the rows of one event have; mostly all of them.

    :param body: as for `read_rows`.
    :raises UndecodableError: when an update's images have different ones (``binlog_row_image`` is not FULL).
    """
    count, at = packed(body, at)
    if count != len(table.readers):
        raise UndecodableError("its changes have another number of columns than their description")
    width = (count + 7) // 8
    full = (1 << count) - 1
    maps = {int.from_bytes(body[at + width * n : at + width * (n + 1)], "little") & full for n in range(images)}
    if len(maps) > 1:
        raise UndecodableError("its changes lack columns: binlog_row_image is not FULL")
    (told,) = maps
    return range(count) if told == full else tuple(place for place in range(count) if told >> place & 1)


def read_rows(
    body: bytes, at: int, table: TableMap, *, images: int, places: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """The rows of one event, each as its images: one for insert and delete, (before, after) for an update.

    :param body: number of columns, bitmaps of the columns present, and the rows, from `at` on.
    :param places: of the columns that the rows have, by `told_columns`.
    """
    count, at = packed(body, at)
    at += (count + 7) // 8 * images
    end = len(body)
    readers = table.readers if len(places) == count else tuple(table.readers[place] for place in places)
    numbered = tuple(enumerate(readers))
    width = (len(readers) + 7) // 8
    full = (1 << len(readers)) - 1
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
        return plain_reader(_INTEGERS[kind][unsigned])
    if kind == _INT24:
        return lambda data, at: (int.from_bytes(data[at : at + 3], "little", signed=not unsigned), at + 3)
    if kind in {_FLOAT, _DOUBLE}:
        return plain_reader("<f" if kind == _FLOAT else "<d")
    if kind == _YEAR:
        return lambda data, at: (data[at] + 1900 if data[at] else 0, at + 1)
    if kind in {_VARCHAR, _VAR_STRING, _STRING}:
        # Two bits of a CHAR's length are hidden, inverted, in the byte of the type.
        hidden = ((meta[0] << 4) & 0x300) ^ 0x300
        longest = hidden + meta[1] if kind == _STRING else int.from_bytes(meta, "little")
        return sized_reader(2 if longest > 255 else 1, decode)
    if kind == _BLOB:
        return sized_reader(meta[0], decode)
    if kind in {_GEOMETRY, _VECTOR}:
        return sized_reader(meta[0], bytes)
    if kind == _JSON:
        return sized_reader(meta[0], lambda data: json_text(data, decimal_reader))
    if kind == _NEWDECIMAL:
        return decimal_reader(meta[0], meta[1])
    if kind == _BIT:
        bits = meta[1] * 8 + meta[0]
        size = (bits + 7) // 8
        return lambda data, at: (f"{int.from_bytes(data[at : at + size], 'big'):0{bits}b}", at + size)
    if kind == _ENUM:
        choices, size = ["", *values], meta[1]
        return lambda data, at: (choices[int.from_bytes(data[at : at + size], "little")], at + size)
    if kind == _SET:
        return set_reader(values, meta[1])
    if kind == _DATE:
        return read_date
    if kind in {_TIMESTAMP2, _DATETIME2, _TIME2}:
        return {_TIMESTAMP2: timestamp2_reader, _DATETIME2: datetime2_reader, _TIME2: time2_reader}[kind](meta[0])
    if kind in {_TIMESTAMP, _DATETIME, _TIME}:
        return {_TIMESTAMP: read_old_timestamp, _DATETIME: read_old_datetime, _TIME: read_old_time}[kind]

    return unreadable_reader(f"column {column} is of the type {kind} of the binlog, which is unknown here")
