"""Whether MySQL keeps the values of a column that gets another type.

In a lax ``sql_mode`` it truncates and bends values into a new type, so each value that is there has to fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import (
    BINARIES,
    BLOB_BYTES,
    INTEGER_BITS,
    INTEGERS,
    TEXT_BYTES,
    TEXTS,
    TIMES,
)
from duckling_provider.replication.model.shapes import NOT_ASCII
from duckling_provider.replication.model.tables import Column

#: Character sets that lack no character, and those that lack the ones beyond the basic plane.
_WHOLE_UNICODE = frozenset({"utf8mb4", "utf16", "utf16le", "utf32"})
_BASIC_PLANE = frozenset({"utf8mb3", "utf8", "ucs2"})

#: Those in which no text is longer than in UTF-8.
_AS_LONG_AS_UTF8 = frozenset({"utf8mb4", "utf8mb3", "utf8", "latin1", "ascii"})

#: What the families are called in `_CONDITIONS`; other types are their own family.
_FAMILIES: dict[str, str] = (
    dict.fromkeys(INTEGERS, "integer")
    | dict.fromkeys(TEXTS, "text")
    | dict.fromkeys(BINARIES | BLOB_BYTES.keys(), "bytes")
)


def condition(old: Column, new: Column, *, is_charset_known: bool) -> str | None:
    """What has to hold for each value `{}` so that MySQL kept it: "" for nothing, None when there is no telling.

    :param is_charset_known: whether `new` has its character set by its own text; the table's default otherwise.
    """
    if old.generated or new.generated:
        return None  # the expression may be another one
    conditions = [_kind_condition(old, new)]
    if old.charset or new.charset:
        conditions.append(_charset_condition(old, new, is_known=is_charset_known))
        if new.data_type in TEXT_BYTES and not (is_charset_known and new.charset in _AS_LONG_AS_UTF8):
            # Its limit is one of bytes, and a character may have four of them.
            conditions.append(f"length({{}}) <= {TEXT_BYTES[new.data_type] // 4}")
    if None in conditions:
        return None
    return " AND ".join(f"({part})" for part in conditions if part)


def _charset_condition(old: Column, new: Column, *, is_known: bool) -> str | None:
    """A character that the new set lacks becomes a question mark."""
    if {old.charset, new.charset} & NOT_ASCII and old.charset != new.charset:
        return None
    if is_known and new.charset in _WHOLE_UNICODE:
        return ""
    if is_known and new.charset in _BASIC_PLANE:
        return "NOT regexp_matches({}, '[\\x{10000}-\\x{10FFFF}]')"
    if is_known and new.charset == old.charset:
        return ""
    return "regexp_full_match({}::VARCHAR, '[\\x00-\\x7F]*', 's')"


def _kind_condition(old: Column, new: Column) -> str | None:
    same = "" if old.column_type == new.column_type else None
    if "zerofill" in old.column_type or "zerofill" in new.column_type:
        return same
    families = (_FAMILIES.get(old.data_type, old.data_type), _FAMILIES.get(new.data_type, new.data_type))
    known = _CONDITIONS.get(families)
    found = known(old, new) if known is not None else _SAME
    return same if found == _SAME else found


#: "Only when the type is the same to the letter."
_SAME = "same"


def _integers(_: Column, new: Column) -> str:
    bits = INTEGER_BITS[new.data_type]
    low, high = (0, 2**bits - 1) if new.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return f"{{}}::HUGEINT BETWEEN {low} AND {high}"


def _integer_to_decimal(_: Column, new: Column) -> str:
    if types.duck_type(new) == "VARCHAR":
        return _SAME
    return f"TRY_CAST({{}} AS {types.duck_type(new)}) IS NOT NULL" + " AND {} >= 0" * new.unsigned


def _decimals(old: Column, new: Column) -> str:
    wide = "VARCHAR" in {types.duck_type(old), types.duck_type(new)}
    if wide or (old.scale or 0) > (new.scale or 0) or new.unsigned != old.unsigned:
        return _SAME
    return f"TRY_CAST({{}} AS {types.duck_type(new)}) IS NOT NULL"


def _float_to_double(old: Column, new: Column) -> str | None:
    return "" if "(" not in old.column_type + new.column_type else None


def _texts(old: Column, new: Column) -> str | None:
    return _SAME if old.json or new.json else _text_condition(old, new)


def _bytes(old: Column, new: Column) -> str | None:
    if new.data_type == "binary":
        return _SAME
    longest = _length(new) if new.data_type == "varbinary" else BLOB_BYTES[new.data_type]
    return f"octet_length({{}}) <= {longest}" if old.data_type != "binary" else None


def _enums(_: Column, new: Column) -> str | None:
    if not types.are_told_apart(types.enum_values(new)):
        return None
    values = ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(set(types.enum_values(new))))
    return f"{{}} IN ({values}, '')"


def _sets(old: Column, new: Column) -> str | None:
    kept = types.enum_values(old)
    return "" if types.enum_values(new)[: len(kept)] == kept and types.are_told_apart(kept) else None


def _precisions(old: Column, new: Column) -> str | None:
    return "" if (new.precision or 0) >= (old.precision or 0) else None


def _integer_to_text(_: Column, new: Column) -> str:
    if new.data_type == "char":
        return _SAME
    return f"length({{}}::VARCHAR) <= {_length(new)}" if new.data_type == "varchar" else ""


_CONDITIONS: dict[tuple[str, str], Callable[[Column, Column], str | None]] = {
    ("integer", "integer"): _integers,
    ("integer", "decimal"): _integer_to_decimal,
    ("integer", "text"): _integer_to_text,
    ("decimal", "decimal"): _decimals,
    ("float", "double"): _float_to_double,
    ("text", "text"): _texts,
    ("bytes", "bytes"): _bytes,
    ("enum", "enum"): _enums,
    ("set", "set"): _sets,
    ("date", "datetime"): _precisions,
    **{(kind, kind): _precisions for kind in TIMES},
}


def _text_condition(old: Column, new: Column) -> str | None:
    if "char" in {old.data_type, new.data_type} and old.data_type != new.data_type:
        # CHAR loses spaces at its end.
        return f"length({{}}) <= {_length(new)} AND {{}} = rtrim({{}}, ' ')" if _length(new) else None
    if new.data_type in TEXT_BYTES:
        return f"strlen({{}}) <= {TEXT_BYTES[new.data_type]}"
    return f"length({{}}) <= {_length(new)}"


def _length(column: Column) -> int:
    match = re.search(r"\((\d+)\)", column.column_type)
    return int(match[1]) if match else TEXT_BYTES.get(column.data_type, 0)
