"""MySQL's binary JSON, as the text that MySQL itself shows for it.

Formats: MySQL's ``sql-common/json_binary.h`` (storage), ``json_dom.cc`` (text); MariaDB stores JSON as text.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_DOUBLE, _STRING, _OPAQUE = 11, 12, 15
_NUMBERS = {5: "<h", 6: "<H", 7: "<i", 8: "<I", 9: "<q", 10: "<Q"}
_LITERALS = {0: "null", 1: "true", 2: "false"}
#: Kinds whose value stands in the place of its offset; numbers of 32 bits do so in large containers only.
_INLINED = {_LITERAL, 5, 6}
_DATE, _TIME, _DATETIME, _TIMESTAMP, _NEWDECIMAL = 10, 11, 12, 7, 246
#: MySQL nests no deeper.
_DEEPEST = 100


def json_text(data: bytes, decimal: Callable[[int, int], Callable[[bytes, int], tuple[Any, int]]]) -> str:
    """The text of the value that `data` holds; of nothing at all, which MySQL writes for a lost value, ``null``.

    :param decimal: makes the reader of a DECIMAL of so many digits and decimals.
    :raises ValueError, IndexError, struct.error: `data` is no value of MySQL's.
    """
    if not data:
        return "null"
    return _Texts(decimal).value(data[0], data[1:], 0)


class _Texts:
    def __init__(self, decimal: Callable[[int, int], Callable[[bytes, int], tuple[Any, int]]]) -> None:
        self._decimal = decimal

    def value(self, kind: int, data: bytes, depth: int) -> str:
        if depth > _DEEPEST:
            raise ValueError("JSON is nested too deeply")
        if kind <= _LARGE_ARRAY:
            return self._container(kind, data, depth)
        if kind == _LITERAL:
            return _LITERALS[data[0]]
        if kind in _NUMBERS:
            return str(struct.unpack_from(_NUMBERS[kind], data)[0])
        if kind == _DOUBLE:
            return double_text(struct.unpack_from("<d", data)[0])
        if kind == _STRING:
            length, at = _length(data, 0)
            return _quoted(data[at : at + length].decode())
        if kind == _OPAQUE:
            length, at = _length(data, 1)
            return self._opaque(data[0], data[at : at + length])
        raise ValueError(f"JSON has a value of the unknown type {kind}")

    def _container(self, kind: int, data: bytes, depth: int) -> str:
        is_large, is_object = kind in {_LARGE_OBJECT, _LARGE_ARRAY}, kind in {_SMALL_OBJECT, _LARGE_OBJECT}
        width, layout = (4, "<I") if is_large else (2, "<H")
        (count,) = struct.unpack_from(layout, data, 0)
        at, keys = 2 * width, []
        if is_object:
            for n in range(count):
                place = at + n * (width + 2)
                (offset,) = struct.unpack_from(layout, data, place)
                (length,) = struct.unpack_from("<H", data, place + width)
                keys.append(_quoted(data[offset : offset + length].decode()))
            at += count * (width + 2)
        values = []
        for n in range(count):
            place = at + n * (width + 1)
            inner = data[place]
            if inner in _INLINED or (is_large and inner in {7, 8}):
                values.append(self.value(inner, data[place + 1 : place + 1 + width], depth + 1))
            else:
                (offset,) = struct.unpack_from(layout, data, place + 1)
                if not offset:
                    raise ValueError("JSON has a value without a place")
                values.append(self.value(inner, data[offset:], depth + 1))
        if is_object:
            return "{" + ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True)) + "}"
        return "[" + ", ".join(values) + "]"

    def _opaque(self, kind: int, data: bytes) -> str:
        if kind == _NEWDECIMAL:
            number: Decimal = self._decimal(data[0], data[1])(data, 2)[0]
            return format(number, "f")
        if kind in {_DATE, _TIME, _DATETIME, _TIMESTAMP}:
            return f'"{_moment(kind, *struct.unpack("<q", data))}"'
        return f'"base64:type{kind}:{base64.b64encode(data).decode()}"'


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length in groups of seven bits, the lowest first; and where it ends."""
    length = 0
    for n in range(5):
        length |= (data[at + n] & 0x7F) << 7 * n
        if not data[at + n] & 0x80:
            return length, at + n + 1
    raise ValueError("JSON has a length of more than five bytes")


def _quoted(text: str) -> str:
    # Python's escapes are MySQL's: \b \t \n \f \r \" \\ and \u00XX for the other control characters.
    return json.dumps(text, ensure_ascii=False)


def _moment(kind: int, packed: int) -> str:
    """Packed as ``TIME_to_longlong_packed`` does: 24 bits of microseconds, one sign for all."""
    sign, packed = ("-", -packed) if packed < 0 else ("", packed)
    micros, rest = packed & 0xFFFFFF, packed >> 24
    if kind == _TIME:
        return f"{sign}{rest >> 12 & 0x3FF:02}:{rest >> 6 & 63:02}:{rest & 63:02}.{micros:06}"
    day, clock = rest >> 17, rest & 0x1FFFF
    year, month = divmod(day >> 5, 13)
    date = f"{year:04}-{month:02}-{day & 31:02}"
    if kind == _DATE:
        return date
    return f"{date} {clock >> 12:02}:{clock >> 6 & 63:02}:{clock & 63:02}.{micros:06}"


def double_text(number: float) -> str:
    """As MySQL's ``my_gcvt`` writes it, with ``.0`` for what would pass for an integer: the shortest digits that mean
    the same number; with an exponent if they begin more than 14 places behind the point, and integers if they begin
    more than 15 before it.
    """
    if number == 0:
        return "-0.0" if str(number).startswith("-") else "0.0"
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    if not isinstance(exponent, int):
        raise ValueError("JSON has a number that is none")  # noqa: TRY004 - infinity or not a number
    figures, point = "".join(map(str, digits)), len(digits) + exponent
    minus = "-" * sign
    if point >= -14 and (point <= 15 or len(figures) > point):
        if point <= 0:
            return f"{minus}0.{'0' * -point}{figures}"
        whole = figures[:point].ljust(point, "0")
        return f"{minus}{whole}.{figures[point:] or '0'}"
    mantissa = figures[0] + ("." + figures[1:]) * (len(figures) > 1)
    return f"{minus}{mantissa}e{point - 1}"
