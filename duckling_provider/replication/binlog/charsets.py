"""Text of the binlog, which is in the column's own character set, as the server itself would convert it.

Python's codecs differ from MySQL's mappings here and there (eucjpms, sjis, cp125x, …), and a copy, which the server
converts, must not differ from what comes later. So only Unicode's own encodings are decoded by Python; of all others
the server is asked for its mapping, a part of it when a character first needs it.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Decode: TypeAlias = Callable[[bytes], "str | bytes"]

_UNICODE = {
    "utf8": "utf-8", "utf8mb3": "utf-8", "utf8mb4": "utf-8", "ucs2": "utf-16-be", "utf16": "utf-16-be",
    "utf16le": "utf-16-le", "utf32": "utf-32-be",
}  # fmt: skip

#: Bytes that begin a character of two, by character set: MySQL's ``strings/ctype-*.cc``.
_LEADS = {
    "sjis": (*range(0x81, 0xA0), *range(0xE0, 0xFD)),
    "cp932": (*range(0x81, 0xA0), *range(0xE0, 0xFD)),
    "big5": tuple(range(0xA1, 0xFA)),
    "gbk": tuple(range(0x81, 0xFF)),
    "gb2312": tuple(range(0xA1, 0xF8)),
    "gb18030": tuple(range(0x81, 0xFF)),
    "euckr": tuple(range(0x81, 0xFF)),
    "ujis": (0x8E, 0x8F, *range(0xA1, 0xFF)),
    "eucjpms": (0x8E, 0x8F, *range(0xA1, 0xFF)),
}
_OF_THREE = frozenset({"ujis", "eucjpms"})


class UndecodableError(ValueError):
    """A row event that can't be given in values; its text says why, in words for the table's note."""


class Charsets:
    """The character sets of one server.

    :param names: id of a collation -> name of its character set, in lower case.
    :param widths: name of a character set -> most bytes of a character.
    :param ask: runs a query on the server.
    """

    def __init__(
        self, names: Mapping[int, str], widths: Mapping[str, int], ask: Callable[[str], Iterable[tuple[Any, ...]]]
    ) -> None:
        self._names, self._widths, self._ask = names, widths, ask
        self._parts: dict[tuple[str, bytes], dict[bytes, str]] = {}
        self._table = functools.cache(self._read_table)

    def name(self, collation: int) -> str:
        return self._names.get(collation, f"of collation {collation}")

    def decoder(self, collation: int, column: str) -> Decode:
        """Decodes the values of a `column` of that collation.

        :raises UndecodableError: by the function, for what the server has no mapping of either, or is unknown here.
        """
        charset = self.name(collation)
        if charset == "binary":
            return bytes
        if charset in {"utf8", "utf8mb3", "utf8mb4"}:
            return bytes.decode
        if charset in _UNICODE:
            return functools.partial(_decode_wide, codecs.lookup(_UNICODE[charset]), charset, column)
        if charset in _LEADS:
            return functools.partial(self._decode_multibyte, charset, column)
        if self._widths.get(charset) == 1:
            return functools.partial(self._decode_single, charset)
        return functools.partial(_decode_unknown, charset, column)

    def _decode_single(self, charset: str, data: bytes) -> str:
        return codecs.charmap_decode(data, "strict", self._table(charset))[0]

    def _read_table(self, charset: str) -> str:
        found = self._converted(charset, [bytes([byte]) for byte in range(256)])
        # What the server can't convert at all is a question mark in a copy too.
        return "".join(found.get(bytes([byte]), "?") for byte in range(256))

    def _decode_multibyte(self, charset: str, column: str, data: bytes) -> str:
        if data.isascii():
            return data.decode()
        leads, text, at = _LEADS[charset], [], 0
        while at < len(data):
            byte = data[at]
            if byte < 0x80:
                text.append(chr(byte))
                at += 1
                continue
            size = 2 if byte in leads else 1
            if size == 2 and charset == "gb18030" and data[at + 1 : at + 2] in _DIGITS:
                size = 4
            elif byte == 0x8F and charset in _OF_THREE:
                size = 3
            character = data[at : at + size]
            at += size
            # A row of the table at a time: all characters that begin alike.
            head = character[:-1]
            part = self._parts.get((charset, head))
            if part is None:
                last = range(0x30, 0xFF) if head else range(0x80, 0x100)
                part = self._converted(charset, [head + bytes([byte]) for byte in last])
                self._parts[charset, head] = part
            if character not in part:
                raise UndecodableError(f"column {column} holds what the server's {charset} has no character for")
            text.append(part[character])
        return "".join(text)

    def _converted(self, charset: str, characters: list[bytes]) -> dict[bytes, str]:
        """Each of `characters` as the server converts it, without those that it refuses."""
        converted = "HEX(CONVERT(CAST(CAST(X'{}' AS BINARY) AS CHAR CHARACTER SET {}) USING utf8mb4))"
        (row,) = self._ask("SELECT " + ", ".join(converted.format(each.hex(), charset) for each in characters))
        texts = (bytes.fromhex(str(value)).decode() if value else "" for value in row)
        return {each: text for each, text in zip(characters, texts, strict=True) if len(text) == 1}


_DIGITS = frozenset(bytes([byte]) for byte in range(0x30, 0x3A))


def _decode_wide(info: codecs.CodecInfo, charset: str, column: str, data: bytes) -> str:
    text, _ = info.decode(data, "strict")
    if charset == "ucs2" and any(character > "\uffff" for character in text):
        raise UndecodableError(f"column {column} is in ucs2 and holds halves of characters beyond it")
    return text


def _decode_unknown(charset: str, column: str, data: bytes) -> str:
    if data.isascii():
        return data.decode()
    raise UndecodableError(f"column {column} is in the character set {charset}, which is unknown here")
