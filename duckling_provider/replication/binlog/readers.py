"""Readers of single values of the binlog's row events, one for each way in which a column is stored.

Formats: MySQL's ``my_time.cc`` and ``decimal.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any, Final, TypeAlias

from duckling_provider.replication.binlog.charsets import UndecodableError


class _ZeroDate:
    def __repr__(self) -> str:
        return "ZERO_DATE"


#: A date that only MySQL has: 0000-00-00, 2024-00-07, 2023-02-30. Told from NULL so that it can be counted.
ZERO_DATE: Final = _ZeroDate()

Reader: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
"""(event, offset) -> (value, offset after it)."""


def unreadable_reader(reason: str) -> Reader:
    def read(*_: object) -> tuple[Any, int]:
        raise UndecodableError(reason)

    return read


def plain_reader(layout: str) -> Reader:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)
    if layout in {"<B", "<b"}:
        return lambda data, at: (unpack(data, at)[0], at + 1)
    return lambda data, at: (unpack(data, at)[0], at + size)


def sized_reader(size: int, decode: Callable[[bytes], Any]) -> Reader:
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


def decimal_reader(precision: int, scale: int) -> Reader:
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


def set_reader(values: list[str], size: int) -> Reader:
    known: dict[int, frozenset[str]] = {}

    def read(data: bytes, at: int) -> tuple[Any, int]:
        mask = int.from_bytes(data[at : at + size], "little")
        if mask not in known:
            if len(known) > 1000:
                known.clear()
            known[mask] = frozenset(value for bit, value in enumerate(values) if mask >> bit & 1)
        return known[mask], at + size

    return read


def read_date(data: bytes, at: int) -> tuple[Any, int]:
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


def timestamp2_reader(digits: int) -> Reader:
    size, unit = _fraction(digits)

    def read(data: bytes, at: int) -> tuple[Any, int]:
        seconds, end = int.from_bytes(data[at : at + 4], "big"), at + 4 + size
        micros = int.from_bytes(data[at + 4 : end], "big") * unit if size else 0
        if not seconds:
            return ZERO_DATE, end
        return _EPOCH + timedelta(seconds=seconds, microseconds=micros), end

    return read


def datetime2_reader(digits: int) -> Reader:
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


def time2_reader(digits: int) -> Reader:
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


def read_old_timestamp(data: bytes, at: int) -> tuple[Any, int]:
    seconds = int.from_bytes(data[at : at + 4], "little")
    return (_EPOCH + timedelta(seconds=seconds) if seconds else ZERO_DATE), at + 4


def read_old_datetime(data: bytes, at: int) -> tuple[Any, int]:
    day, clock = divmod(int.from_bytes(data[at : at + 8], "little"), 1000000)
    try:
        return datetime(  # noqa: DTZ001
            day // 10000, day // 100 % 100, day % 100, clock // 10000, clock // 100 % 100, clock % 100
        ), at + 8
    except ValueError:
        return ZERO_DATE, at + 8


def read_old_time(data: bytes, at: int) -> tuple[Any, int]:
    packed = int.from_bytes(data[at : at + 3], "little", signed=True)
    sign, packed = (-1, -packed) if packed < 0 else (1, packed)
    return sign * timedelta(hours=packed // 10000, minutes=packed // 100 % 100, seconds=packed % 100), at + 3
