"""The tables of a DuckDB file, counted or read to their end: what a snapshot records of them and a drill compares."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from duckling_provider.config.keys import EncryptionKey

#: Rows by (schema, table), of all tables that are no part of DuckDB itself, in order.
Rows = tuple[tuple[str, str, int], ...]

_COLUMNS_AT_A_TIME = 32
_DIGEST_LABEL = b"duckling rows v1\0"


def count_rows(connection: DuckDBPyConnection) -> Rows:
    """How many rows each table has; DuckDB knows that without reading them."""
    return tuple(
        (schema, table, _one(connection, f"SELECT count(*) FROM {_name(schema, table)}"))  # noqa: S608 - quoted
        for schema, table in stored_columns(connection)
    )


def read_rows(connection: DuckDBPyConnection) -> Rows:
    """Read every stored column of every table, and count their rows; hashing is what makes DuckDB fetch the data and
    not just statistics.
    """
    found = []
    for (schema, table), columns in stored_columns(connection).items():
        count = 0
        for start in range(0, len(columns), _COLUMNS_AT_A_TIME):
            hashes = ", ".join(f"bit_xor(hash({_quoted(n)}))" for n in columns[start : start + _COLUMNS_AT_A_TIME])
            count = _one(connection, f"SELECT count(*), {hashes} FROM {_name(schema, table)}")  # noqa: S608 - quoted
        found.append((schema, table, count))
    return tuple(found)


def stored_columns(connection: DuckDBPyConnection) -> dict[tuple[str, str], list[str]]:
    """The columns of each table that hold data, by (schema, table)."""
    # Generated columns hold no data, and computing them may fail for reasons of their own. DuckDB 1.5 can't tell.
    known = {row[0] for row in connection.execute("DESCRIBE SELECT * FROM duckdb_columns()").fetchall()}
    stored = "NOT is_generated" if "is_generated" in known else "true"
    rows = connection.execute(
        "SELECT schema_name, table_name, column_name FROM duckdb_columns() "  # noqa: S608 - no input
        "JOIN (SELECT table_oid, schema_oid FROM duckdb_tables() WHERE database_name = current_database()) "
        "USING (table_oid, schema_oid) "
        f"WHERE database_name = current_database() AND NOT internal AND {stored} "
        "ORDER BY schema_name, table_name, column_index"
    ).fetchall()
    tables: dict[tuple[str, str], list[str]] = {}
    for schema, table, column in rows:
        tables.setdefault((schema, table), []).append(column)
    return tables


def rows_of_json(data: Any) -> Rows:
    """Rows as `json` writes them.

    :raises ValueError, TypeError: these are none.
    """
    rows = tuple((schema, table, count) for schema, table, count in data)
    if not all(type(s) is str and type(t) is str and type(n) is int and n >= 0 for s, t, n in rows):
        raise ValueError("rows are not lists of schema, table and number")
    return rows


def rows_digest(rows: Rows, key: EncryptionKey | None) -> str:
    """64 hex characters that are the same for the same rows only: what an object's metadata has of them.

    SHA-256 of a label and the rows as JSON; where the object is encrypted, a code that only its key makes, since few
    numbers are easily guessed.
    """
    content = _DIGEST_LABEL + json.dumps(rows, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest() if key is None else key.vouch(content)


def differences(found: Rows, recorded: Rows) -> list[str]:
    """A phrase about each table that has not the rows that were recorded."""
    here = {(schema, table): count for schema, table, count in found}
    there = {(schema, table): count for schema, table, count in recorded}
    return [
        f"{shown(*name)} has {_counted(here.get(name))}, {_counted(there.get(name))} recorded"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def shown(schema: str, table: str) -> str:
    """The table's name for people."""
    return table if schema == "main" else f"{schema}.{table}"


def _counted(count: int | None) -> str:
    return "no such table" if count is None else f"{count:,} row{'s' * (count != 1)}"


def _one(connection: DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0]) if row else 0


def _name(schema: str, table: str) -> str:
    return f"{_quoted(schema)}.{_quoted(table)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
