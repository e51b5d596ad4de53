"""Whether two descriptions of a table mean the same values: one followed through DDL, one of the server's own words.

What a statement means depends on settings that it does not tell, such as ``sql_mode`` or the database's character set.
"""

from __future__ import annotations

from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import BLOB_BYTES, CHOICES, TEXTS
from duckling_provider.replication.model.tables import Column, Table

#: Character sets in which bytes below 128 are not all ASCII: what is known of ASCII is not known of them.
NOT_ASCII = frozenset({"swe7"})


def difference(ours: Table, theirs: Table) -> str:
    """In which columns the two differ, as a note; empty when they are alike."""
    one = {column.name.lower(): _meaning(column) for column in ours.columns}
    other = {column.name.lower(): _meaning(column) for column in theirs.columns}
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if names:
        return f"its columns are not those of the server: {', '.join(names)}"
    if [name.lower() for name in ours.primary_key] != [name.lower() for name in theirs.primary_key]:
        return "its primary key is not that of the server"
    return ""


def _meaning(column: Column) -> tuple[object, ...]:
    kind = column.data_type
    if kind == "json" or (kind in TEXTS and kind != "char"):
        kind = "text"
    elif kind in BLOB_BYTES:
        kind = "blob"
    detail: object = None
    if kind in CHOICES:
        detail = tuple(types.enum_values(column))
    elif kind == "binary":
        detail = column.column_type
    elif column.charset in NOT_ASCII:
        detail = column.charset
    return types.duck_type(column), kind, detail
