"""MERGE tables of a server: a row that is written to one of them lies in a table of MyISAM, which the binlog does not
name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.mysql.preflight import privileges
from duckling_provider.replication.mysql.source import query

_MERGE_TABLES = """
    SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES
    WHERE TABLE_TYPE = 'BASE TABLE' AND (ENGINE = 'MRG_MYISAM' OR ENGINE IS NULL)"""
_ENGINES = """
    SELECT TABLE_NAME, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE = 'BASE TABLE'"""
_COLUMNS = """
    SELECT TABLE_NAME, DATA_TYPE FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s ORDER BY ORDINAL_POSITION"""
_SEEN = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA <> %s"
#: Databases in which only the server itself makes tables.
_OF_THE_SERVER = frozenset({"mysql", "sys", "information_schema", "performance_schema"})

_UNION = re.compile(r"\bUNION=\(")
_MEMBER = re.compile(r"(?:`((?:[^`]|``)+)`\.)?`((?:[^`]|``)+)`[,)]")

#: What the binlog calls a column's type, by what ``information_schema`` calls it; others may be any.
_KINDS: Mapping[str, frozenset[int]] = {
    "tinyint": frozenset({1}), "smallint": frozenset({2}), "int": frozenset({3}), "float": frozenset({4}),
    "double": frozenset({5}), "timestamp": frozenset({7, 17}), "bigint": frozenset({8}), "mediumint": frozenset({9}),
    "date": frozenset({10}), "time": frozenset({11, 19}), "datetime": frozenset({12, 18}), "year": frozenset({13}),
    "varchar": frozenset({15}), "varbinary": frozenset({15}), "bit": frozenset({16}), "decimal": frozenset({246}),
    "json": frozenset({245, 252}), "char": frozenset({254}), "binary": frozenset({254}), "enum": frozenset({254}),
    "set": frozenset({254}),
    **dict.fromkeys(("tinytext", "text", "mediumtext", "longtext"), frozenset({252})),
    **dict.fromkeys(("tinyblob", "blob", "mediumblob", "longblob"), frozenset({252})),
}  # fmt: skip


@dataclass(frozen=True)
class MergeTables:
    """Which tables of the mirrored database get the rows that are written to others.

    :param members: (database, name) of a MERGE table -> its tables in the mirrored database.
    :param suspects: tables that may belong to a MERGE table which the user can't see, each with the types of its
        columns; empty when there is none, or the user sees everything.
    :param seen: what the user sees of other databases.
    """

    members: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    suspects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seen: frozenset[tuple[str, str]] = frozenset()

    def written_through(self, schema: str, name: str, kinds: Sequence[int] | None = None) -> tuple[str, ...]:
        """The tables that get, or may get, what is written to ``schema.name``.

        :param kinds: the types of its columns, as the binlog has them; None when they are not known.
        """
        known = self.members.get((schema, name))
        if known is not None or not self.suspects or schema in _OF_THE_SERVER or (schema, name) in self.seen:
            return known or ()
        return tuple(table for table, types in self.suspects.items() if kinds is None or _is_alike(types, kinds))


def read_merge_tables(connection: Any, database: str) -> MergeTables:
    """What the user of `connection` sees now. Where a MERGE table can't be looked into, any table may be one of its."""
    engines = {_text(name): _text(engine).upper() for name, engine in query(connection, _ENGINES, database)}
    mine = sorted(name for name, engine in engines.items() if engine == "MYISAM")
    if not mine and not {"MRG_MYISAM", "NONE"} & set(engines.values()):
        return MergeTables()  # neither part of one, nor one
    members: dict[tuple[str, str], tuple[str, ...]] = {}
    for schema, name in (map(_text, row) for row in query(connection, _MERGE_TABLES)):
        found = _members(connection, schema, name)
        members[schema, name] = tuple(engines) if found is None else tuple(t for s, t in found if s == database)
    rows = [_text(row[0]) for row in query(connection, "SHOW GRANTS")]
    everywhere, _, _ = privileges(rows, database)
    sees_all = everywhere & {"SELECT", "ALL PRIVILEGES", "ALL"} and not any(row.startswith("REVOKE") for row in rows)
    if sees_all or not mine:
        return MergeTables(members)
    types: dict[str, tuple[str, ...]] = dict.fromkeys(mine, ())
    for name, kind in (map(_text, row) for row in query(connection, _COLUMNS, database)):
        if name in types:
            types[name] += (kind.lower(),)
    seen = frozenset((_text(schema), _text(name)) for schema, name in query(connection, _SEEN, database))
    return MergeTables(members, types, seen)


def _members(connection: Any, schema: str, name: str) -> list[tuple[str, str]] | None:
    """(database, name) of its tables; None where that can't be seen: they do not fit together now, or are hidden."""
    import pymysql.err

    try:
        ((_, shown),) = query(connection, f"SHOW CREATE TABLE {quote_mysql(schema)}.{quote_mysql(name)}")
    except pymysql.err.Error:
        return None
    text = _text(shown)
    found: list[tuple[str, str]] = []
    for union in _UNION.finditer(text):
        at = union.end()
        while member := _MEMBER.match(text, at):
            found.append(((member[1] or quote_mysql(schema)[1:-1]).replace("``", "`"), member[2].replace("``", "`")))
            at = member.end()
    return found


def _is_alike(types: Sequence[str], kinds: Sequence[int]) -> bool:
    """Whether a MERGE table of columns of `kinds` may consist of tables with columns of `types`."""
    return len(types) == len(kinds) and all(
        kind in _KINDS.get(name, {kind}) for name, kind in zip(types, kinds, strict=True)
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
