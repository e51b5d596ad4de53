"""Which tables a database has, as ``information_schema`` describes them."""

from __future__ import annotations

import re
from typing import Any

from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.mysql.source import query, server_of

#: Engines whose tables have exactly the rows that the binlog tells of them. Not so BLACKHOLE, which keeps none, MERGE,
#: which shows those of other tables, and FEDERATED, SPIDER or CONNECT, which show those of other servers and files.
_ENGINES = "'InnoDB', 'MyISAM', 'Aria', 'MEMORY', 'ARCHIVE', 'CSV', 'ROCKSDB', 'TokuDB', 'ndbcluster'"
_IS_MIRRORED = f"t.TABLE_TYPE = 'BASE TABLE' AND (t.ENGINE IS NULL OR t.ENGINE IN ({_ENGINES}))"
_OTHERS = f"""
    SELECT t.TABLE_NAME, t.TABLE_TYPE, t.ENGINE FROM information_schema.TABLES t WHERE t.TABLE_SCHEMA = %s
    AND t.TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND NOT ({_IS_MIRRORED}) ORDER BY t.TABLE_NAME"""

_COLUMNS = f"""
    SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.IS_NULLABLE, c.CHARACTER_SET_NAME,
        c.COLLATION_NAME, c.NUMERIC_PRECISION, c.NUMERIC_SCALE, c.DATETIME_PRECISION, c.EXTRA
    FROM information_schema.COLUMNS c
    JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME
    WHERE c.TABLE_SCHEMA = %s AND {_IS_MIRRORED}
    ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"""

_KEYS = """
    SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = %s AND INDEX_NAME = 'PRIMARY' ORDER BY TABLE_NAME, SEQ_IN_INDEX"""

_SHOWS_KEYS = "show_gipk_in_create_table_and_information_schema"

#: MariaDB's JSON is a LONGTEXT with this check; every column may have such a check of its own.
_JSON_CHECKS = """
    SELECT TABLE_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS
    WHERE CONSTRAINT_SCHEMA = %s AND CHECK_CLAUSE LIKE 'json_valid(%%'"""
_JSON_CHECK = re.compile(r"json_valid\(`((?:[^`]|``)+)`\)", re.IGNORECASE)


def read_tables(connection: Any, database: str) -> dict[str, Table]:
    """All tables of `database` that can be mirrored, by name: no views, no sequences, and none of `unmirrored`.

    A table without any column that the user may read is not seen at all.
    """
    _show_generated_keys(connection)
    json = _json_columns(connection, database)
    columns: dict[str, list[Column]] = {}
    for row in query(connection, _COLUMNS, database):
        table, name = str(row[0]), str(row[1])
        columns.setdefault(table, []).append(_column(row[1:], checked_as_json=(table, name) in json))
    keys: dict[str, list[str]] = {}
    for table, name in query(connection, _KEYS, database):
        keys.setdefault(str(table), []).append(str(name))
    return {name: Table(name, tuple(found), tuple(keys.get(name, ()))) for name, found in columns.items()}


def unmirrored(connection: Any, database: str) -> dict[str, str]:
    """Tables whose rows can't be followed by the binlog: name -> what they are, e.g. ``"system-versioned"``."""
    return {
        _text(name): "system-versioned" if _text(kind) == "SYSTEM VERSIONED" else f"of the engine {_text(engine)}"
        for name, kind, engine in query(connection, _OTHERS, database)
    }


def _show_generated_keys(connection: Any) -> None:
    """Have MySQL show the keys that it makes by ``sql_generate_invisible_primary_key``, since its binlog has them."""
    if query(connection, "SHOW SESSION VARIABLES WHERE Variable_name = %s AND Value = 'OFF'", _SHOWS_KEYS):
        query(connection, f"SET SESSION {_SHOWS_KEYS} = ON")


def _column(row: tuple[Any, ...], *, checked_as_json: bool) -> Column:
    name, data_type, column_type, nullable, charset, collation, precision, scale, time_digits, extra = row
    data_type = _text(data_type).lower()
    numeric = data_type in {"decimal", "bit"}
    return Column(
        name=_text(name),
        data_type=data_type,
        column_type=_text(column_type),
        nullable=_text(nullable).upper() == "YES",
        charset=_text(charset).lower() if charset is not None else None,
        collation=_text(collation).lower() if collation is not None else None,
        precision=_number(precision) if numeric else _number(time_digits),
        scale=_number(scale) if data_type == "decimal" else None,
        # Not DEFAULT_GENERATED, which only says that the default is an expression.
        generated=bool(re.search(r"\b(virtual|stored|persistent)\b", _text(extra), re.IGNORECASE)),
        json=data_type == "json" or (data_type == "longtext" and checked_as_json),
    )


def _json_columns(connection: Any, database: str) -> set[tuple[str, str]]:
    if server_of(connection).kind != "mariadb":
        return set()
    found = set()
    for table, clause in query(connection, _JSON_CHECKS, database):
        match = _JSON_CHECK.fullmatch(_text(clause).strip())
        if match:
            found.add((_text(table), match[1].replace("``", "`")))
    return found


def _text(value: Any) -> str:
    # MySQL 8 returns some of these columns as bytes.
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
