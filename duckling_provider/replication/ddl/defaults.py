"""What the rows that exist get in a new column.

The server bends a default into the column's type by rules that depend on its version and settings, so only such
defaults are taken from the statement as can mean but one value. For all others the table is copied again.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from duckling_provider.replication.ddl.steps import AddColumn
from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import CHARACTERS, FLOATS, INTEGER_BITS, TEXT_BYTES
from duckling_provider.replication.model.names import literal
from duckling_provider.replication.model.tables import Column

#: Printable ASCII without the characters that some character set has another one for, and no space at the end.
_PLAIN_TEXT = re.compile(r"(?:[ !%-?A-Z_a-z]*[!%-?A-Z_a-z])?")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
#: A FLOAT has all integers up to here.
_WHOLE_FLOATS = 1 << 24


class _Unknown:
    """The type of `UNKNOWN`."""


#: "The server alone knows."
UNKNOWN: Final = _Unknown()


def default_of(step: AddColumn) -> str | _Unknown | None:
    """The value of existing rows, as an SQL expression of the column's type; None for NULL."""
    column, default = step.column, step.default
    kind = column.data_type
    if column.generated or default.kind == "expression":
        return UNKNOWN
    if default.kind == "none":
        return _nothing_said(step)
    if default.value is None:
        return None if (column.nullable and kind != "timestamp") or step.explicit_null else UNKNOWN
    if isinstance(default.value, bytes):
        number = int.from_bytes(default.value, "big")
        return str(number) if kind == "bit" and number < 1 << (column.precision or 1) else UNKNOWN
    if "zerofill" in column.column_type:
        return UNKNOWN
    if kind in {"date", "datetime"} and default.value in {"0000-00-00", "0000-00-00 00:00:00"}:
        return None
    if default.number and (kind == "enum" or (kind in CHARACTERS and not _INTEGER.fullmatch(default.value))):
        return UNKNOWN  # a place in the list; a number that the server writes in its own way
    found = _written(column, default.value)
    return UNKNOWN if found is None else f"CAST({literal(found)} AS {types.duck_type(column)})" if found else "''"


def _nothing_said(step: AddColumn) -> str | _Unknown | None:
    column = step.column
    kind = column.data_type
    if column.nullable:
        # A TIMESTAMP is NOT NULL unless it says otherwise, where explicit_defaults_for_timestamp is off.
        return None if kind != "timestamp" or step.explicit_null else UNKNOWN
    if kind in INTEGER_BITS or kind in FLOATS or kind == "decimal":
        return f"CAST(0 AS {types.duck_type(column)})" if types.duck_type(column) != "VARCHAR" else UNKNOWN
    return "''" if kind in CHARACTERS or kind in TEXT_BYTES else UNKNOWN


def _written(column: Column, text: str) -> str | None:
    """The literal, when the column holds it as it is written."""
    kind = column.data_type
    fits = False
    if kind in INTEGER_BITS:
        bits = INTEGER_BITS[kind]
        low, high = (0, 2**bits - 1) if column.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        fits = _INTEGER.fullmatch(text) is not None and low <= int(text) <= high
    elif kind in FLOATS:
        fits = (
            "(" not in column.column_type
            and _INTEGER.fullmatch(text) is not None
            and (0 if column.unsigned else -_WHOLE_FLOATS) <= int(text) <= _WHOLE_FLOATS
        )
    elif kind == "decimal":
        fits = _fits_decimal(column, text)
    elif kind in CHARACTERS:
        length = re.search(r"\((\d+)\)", column.column_type)
        fits = _PLAIN_TEXT.fullmatch(text) is not None and length is not None and len(text) <= int(length[1])
    elif kind == "enum":
        fits = text != "" and _PLAIN_TEXT.fullmatch(text) is not None and _is_choice(column, text)
    elif kind == "date":
        fits = _is_moment(text, "%Y-%m-%d")
    elif kind == "datetime":
        fits = _is_moment(text, "%Y-%m-%d %H:%M:%S")
    return text if fits else None


def _is_choice(column: Column, text: str) -> bool:
    choices = types.enum_values(column)
    return text in choices and types.are_told_apart(choices)


def _fits_decimal(column: Column, text: str) -> bool:
    match = re.fullmatch(r"(-?)([0-9]+)(?:\.([0-9]+))?", text)
    if match is None or types.duck_type(column) == "VARCHAR":
        return False
    sign, whole, fraction = match.groups()
    scale = column.scale or 0
    room = (column.precision or 10) - scale
    return not (sign and column.unsigned) and len(whole.lstrip("0")) <= room and len(fraction or "") <= scale


def _is_moment(text: str, form: str) -> bool:
    """A moment of the calendar, written in full."""
    try:
        moment = dt.datetime.strptime(text, form)  # noqa: DTZ007 - a DATETIME has no zone
    except ValueError:
        return False
    return moment.year >= 1000 and moment.strftime(form) == text
