"""The replica's own bookkeeping, inside the replica: how far it is, what each table looks like, what was noticed.

It is in a schema of its own, `_duckling`, so no mirrored table can collide with it, and in the same file as the data,
so that a batch and its position are one DuckDB transaction, and each backup knows where to go on from.

The ledger begins and ends no transactions: what it writes belongs to the caller's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from duckling_provider.base.errors import NotFoundError, ReplicaError
from duckling_provider.replica.duckdb_file import open_error
from duckling_provider.replication.model import validated
from duckling_provider.replication.model.tables import Column, Position, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCHEMA = "_duckling"

#: Tables of the Node server in schema `main` that are no mirrored tables.
SERVER_TABLES = frozenset({"cdc_binlog_position", "appender_watermarks", "sync_log"})

Owner: TypeAlias = Literal["ours", "duckling-server", "foreign", "absent"]
State: TypeAlias = Literal["ok", "recopy", "copying"]

_VERSION = 1
_KEPT_HISTORY = 1000

# No keys or indexes: a row that is deleted and inserted again in one transaction would collide with itself.
_TABLES = {
    "about": "version INTEGER NOT NULL, database VARCHAR NOT NULL, source VARCHAR NOT NULL",
    "position": 'file VARCHAR NOT NULL, "offset" UBIGINT NOT NULL, gtid VARCHAR NOT NULL, server VARCHAR NOT NULL, '
    "updated_at TIMESTAMP NOT NULL",
    "tables": "name VARCHAR NOT NULL, state VARCHAR NOT NULL, note VARCHAR NOT NULL, start VARCHAR, "
    "columns VARCHAR NOT NULL, primary_key VARCHAR NOT NULL, rows UBIGINT",
    "counters": '"table" VARCHAR NOT NULL, what VARCHAR NOT NULL, count UBIGINT NOT NULL',
    "history": "noted_at TIMESTAMP NOT NULL, kind VARCHAR NOT NULL, note VARCHAR NOT NULL",
    validated.TABLE: validated.COLUMNS,
}


@dataclass(frozen=True)
class TableState:
    """What the ledger knows of one table.

    :param start: changes up to here are in the table already, because it was copied later than the replica's position.
    :param rows: at the last full copy; None when it never was copied as a whole.
    """

    table: Table
    state: State = "ok"
    note: str = ""
    start: Position | None = None
    rows: int | None = None

    @property
    def name(self) -> str:
        return self.table.name


class Ledger:
    """The bookkeeping of an open replica.

    :param catalog: the name under which the replica is attached; the connection's own database when omitted.
    """

    def __init__(self, connection: DuckDBPyConnection, *, catalog: str | None = None) -> None:
        self._connection = connection
        self._prefix = f'"{catalog}".{SCHEMA}' if catalog else SCHEMA
        #: What the rolling validation knows of each table.
        self.validations = validated.Validations(connection, SCHEMA, catalog)

    @classmethod
    def create(cls, connection: DuckDBPyConnection, *, database: str = "", catalog: str | None = None) -> Ledger:
        """Make the bookkeeping of a new replica; what is there already stays.

        :param database: the id of the database in databases.json, for people who wonder whose file this is.
        """
        ledger = cls(connection, catalog=catalog)
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {ledger._prefix}")
        for name, columns in _TABLES.items():
            connection.execute(f"CREATE TABLE IF NOT EXISTS {ledger._prefix}.{name} ({columns})")
        if not ledger._rows("SELECT 1 FROM {}.about"):
            ledger._run("INSERT INTO {}.about VALUES (?, ?, '')", [_VERSION, database])
        return ledger

    @classmethod
    def open(cls, connection: DuckDBPyConnection, *, catalog: str | None = None) -> Ledger:
        """The bookkeeping of an existing replica.

        :raises ReplicaError: when there is none, or it is of a newer release.
        """
        import duckdb

        ledger = cls(connection, catalog=catalog)
        try:
            version = ledger._rows("SELECT version FROM {}.about")[0][0]
        except (duckdb.CatalogException, IndexError) as error:
            raise ReplicaError(
                "the file holds no bookkeeping of ours: it was not made by this software's sync",
                hint="duckling adopt, with the database's id, takes over a replica of the Node server.",
            ) from error
        if version > _VERSION:
            raise ReplicaError(
                f"its bookkeeping is of version {version}, and this release knows {_VERSION} at most",
                hint="Install the release that wrote the replica, or a newer one.",
            )
        return ledger

    def source(self) -> str:
        """The name of the MySQL database that is mirrored; empty until it is known."""
        return str(self._rows("SELECT source FROM {}.about")[0][0])

    def set_source(self, name: str) -> None:
        self._run("UPDATE {}.about SET source = ?", [name])

    def position(self) -> Position | None:
        """Everything up to here is in the replica; None before the first full copy is done."""
        rows = self._rows('SELECT file, "offset", gtid, server FROM {}.position')
        return Position(*rows[0]) if rows else None

    def save_position(self, position: Position) -> None:
        values = [position.file, position.offset, position.gtid, position.server, _now()]
        updated = self._rows(
            'UPDATE {}.position SET file = ?, "offset" = ?, gtid = ?, server = ?, updated_at = ? RETURNING 1', values
        )
        if not updated:
            self._run("INSERT INTO {}.position VALUES (?, ?, ?, ?, ?)", values)

    def tables(self) -> dict[str, TableState]:
        rows = self._rows("SELECT name, state, note, start, columns, primary_key, rows FROM {}.tables ORDER BY name")
        return {
            name: TableState(
                Table(name, tuple(Column(**column) for column in json.loads(columns)), tuple(json.loads(primary_key))),
                state,
                note,
                Position(**json.loads(start)) if start else None,
                count,
            )
            for name, state, note, start, columns, primary_key, count in rows
        }

    def save_table(self, state: TableState) -> None:
        """Insert or replace what is known of one table."""
        self._run("DELETE FROM {}.tables WHERE name = ?", [state.name])
        self._run(
            "INSERT INTO {}.tables VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                state.name,
                state.state,
                state.note,
                json.dumps(asdict(state.start)) if state.start else None,
                json.dumps([asdict(column) for column in state.table.columns], ensure_ascii=False),
                json.dumps(list(state.table.primary_key), ensure_ascii=False),
                state.rows,
            ],
        )

    def forget_table(self, name: str) -> None:
        self._run("DELETE FROM {}.tables WHERE name = ?", [name])
        self.validations.forget(name)

    def mark_recopy(self, name: str, note: str) -> None:
        """The table can't be followed any more: its changes are skipped until it has been copied again.

        :param note: why, in plain words.
        """
        known = self.tables().get(name, TableState(Table(name, ())))
        self.save_table(replace(known, state="recopy", note=note))
        self.record("recopy", f"{name}: {note}")

    def count(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to the counters: (table, what) -> how many more."""
        for (table, what), more in counts.items():
            updated = self._rows(
                'UPDATE {}.counters SET count = count + ? WHERE "table" = ? AND what = ? RETURNING 1',
                [more, table, what],
            )
            if not updated:
                self._run("INSERT INTO {}.counters VALUES (?, ?, ?)", [table, what, more])

    def counters(self) -> dict[tuple[str, str], int]:
        return {(table, what): n for table, what, n in self._rows('SELECT "table", what, count FROM {}.counters')}

    def record(self, kind: str, note: str) -> None:
        """Add a line to the history, of which the newest thousand are kept."""
        self._run("INSERT INTO {}.history VALUES (?, ?, ?)", [_now(), kind, note])
        excess = self._rows("SELECT count(*) FROM {}.history")[0][0] - _KEPT_HISTORY
        # Not at each line: a deletion rewrites more than it frees.
        if excess > _KEPT_HISTORY // 10:
            self._run(
                "DELETE FROM {0}.history WHERE rowid IN "
                "(SELECT rowid FROM {0}.history ORDER BY noted_at, rowid LIMIT ?)",
                [excess],
            )

    def history(self, limit: int = 100) -> list[tuple[str, str, str]]:
        """The newest lines first: when (UTC, ISO 8601), kind, note."""
        rows = self._rows(
            "SELECT noted_at, kind, note FROM {}.history ORDER BY noted_at DESC, rowid DESC LIMIT ?", [limit]
        )
        return [(at.isoformat(timespec="seconds"), kind, note) for at, kind, note in rows]

    def _run(self, statement: str, values: Iterable[object] = ()) -> None:
        self._connection.execute(statement.format(self._prefix), list(values))

    def _rows(self, statement: str, values: Iterable[object] = ()) -> list[Any]:
        return self._connection.execute(statement.format(self._prefix), list(values)).fetchall()


def owner_of(path: Path) -> Owner:
    """Who made the file at `path`, as a read-only connection sees it.

    :raises BusyError: when another process has it open for writing.
    :raises ReplicaError: when DuckDB can't read it.
    """
    import duckdb

    if not os.path.lexists(path):
        return "absent"
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            return owner_in(connection)
    except duckdb.Error as error:
        raise open_error(path, error, cause="DuckDB can't use it") from error


def owner_in(connection: DuckDBPyConnection) -> Owner:
    """Who made the file that `connection` has open."""
    found = set(
        connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database()"
        ).fetchall()
    )
    if (SCHEMA, "about") in found:
        return "ours"
    return "duckling-server" if ("main", "cdc_binlog_position") in found else "foreign"


def server_position(path: Path, database_id: str) -> Position | None:
    """Where the Node server has got to with the replica at `path`; None when its table has no row of the database.

    :raises BusyError: when another process has it open for writing.
    :raises ReplicaError: when DuckDB can't read it, or it is not the Node server's.
    """
    import duckdb

    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            row = _server_row(connection, database_id)
    except duckdb.Error as error:
        raise open_error(path, error, cause="DuckDB can't use it") from error
    return None if row is None else Position(row[0], int(row[1]))


def _server_row(connection: DuckDBPyConnection, database_id: str) -> tuple[str, int] | None:
    found: tuple[str, int] | None = connection.execute(
        "SELECT filename, position FROM main.cdc_binlog_position WHERE database_id = ?", [database_id]
    ).fetchone()
    return found


def adopt(path: Path, database_id: str, tables: Mapping[str, Table], *, server: str = "") -> list[TableState]:
    """Take over a replica of the Node server: from now on its position is ours, its own tables stay as they are.

    A table whose columns are not what a copy by us would have is marked for a new copy; so is one that is missing.

    :param tables: what MySQL has now; only these are mirrored.
    :param server: identity of the MySQL server, for the position.
    :raises NotFoundError: when the file has no position of `database_id`.
    :raises ReplicaError: when the file is not the Node server's.
    """
    import duckdb

    owner = owner_of(path)
    if owner != "duckling-server":
        says = {"ours": "it is ours already", "absent": "there is no such file"}
        raise ReplicaError(
            says.get(owner, "it has no table cdc_binlog_position, so the Node server did not write it"),
            subject=str(path),
            operation="adopt",
            hint="Only a replica of the Node server can be adopted.",
        )
    try:
        with duckdb.connect(str(path)) as connection:
            connection.begin()
            row = _server_row(connection, database_id)
            if row is None:
                raise NotFoundError(
                    f"cdc_binlog_position has no row of {database_id}",
                    subject=str(path),
                    operation="adopt",
                    hint="The id must be the one under which the Node server kept the database.",
                )
            position = Position(row[0], int(row[1]), server=server)
            ledger = Ledger.create(connection, database=database_id)
            ledger.save_position(position)
            states = [_adopted(connection, table) for _, table in sorted(tables.items())]
            for state in states:
                ledger.save_table(state)
            ledger.record("adopted", f"from the Node server, at {position}")
            connection.commit()
    except duckdb.Error as error:
        raise open_error(path, error, cause="DuckDB can't use it") from error
    return states


def _adopted(connection: DuckDBPyConnection, table: Table) -> TableState:
    from duckling_provider.replication.model import types

    present = dict(
        connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = current_database() AND schema_name = 'main' AND table_name = ?",
            [table.name],
        ).fetchall()
    )
    if not present:
        return TableState(table, "recopy", "not in the adopted file")
    wanted = {
        column.name: connection.execute(f"SELECT typeof(NULL::{types.duck_type(column)})").fetchall()[0][0]
        for column in table.columns
    }
    differing = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if differing:
        return TableState(table, "recopy", f"adopted with other columns than MySQL has: {', '.join(differing)}")
    return TableState(table)


def _now() -> datetime:
    # Without an offset: DuckDB needs another library to hand out times that have one.
    return datetime.now(timezone.utc).replace(tzinfo=None)
