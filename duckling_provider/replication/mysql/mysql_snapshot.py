"""One moment of MySQL, and its exact position in the binlog.

InnoDB's consistent snapshot says nothing about the binlog: a transaction is written to the binlog before it is visible,
so a position that is merely read before or after may be off by the transactions that commit meanwhile. Two exact ways:

MariaDB (and Percona Server) take the snapshot and the binlog's position under one lock of their own, and tell it as
the status ``Binlog_snapshot_file`` and ``Binlog_snapshot_position``. No writer waits.

Elsewhere the tables are locked for the moment in which the snapshot is opened: ``LOCK TABLES … READ`` waits until
every transaction that changed one of them has ended altogether, and what others commit between snapshot and position
concerns other tables. Writers wait for that moment only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Literal

from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.source import (
    Source,
    SourceError,
    connect,
    current_position,
    query,
    server_of,
    translated,
)

#: Seconds to wait for the tables' lock; everybody who writes them waits behind us for as long.
LOCK_WAIT = 10

_DENIED = frozenset({1044, 1142, 1227})

_TABLES = """
    SELECT TABLE_NAME FROM information_schema.TABLES
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' ORDER BY TABLE_NAME
"""
_WITHOUT_SNAPSHOT = """
    SELECT TABLE_NAME, ENGINE FROM information_schema.TABLES
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' AND ENGINE NOT IN (
        SELECT ENGINE FROM information_schema.ENGINES WHERE TRANSACTIONS = 'YES')
"""


@contextlib.contextmanager
def consistent_snapshot(
    source: Source,
    tables: Collection[str] | None = None,
    *,
    cursor: Literal["list", "stream"] = "list",
    read_timeout: float = 600.0,
) -> Iterator[tuple[Any, Position]]:
    """A connection inside a snapshot of `source`, and the position that snapshot stands at, to the transaction.

    Everything the connection reads until the block ends is as of that position, as long as it begins no other
    transaction. Tables of an engine without transactions (`without_snapshot`) are read as they are at the time. An
    ALTER TABLE after the snapshot makes reading that table fail; a new snapshot can read it.

    :param tables: what will be read, as far as it must be locked; None means every base table of the database.
    :param cursor: the connection's default cursor, as for `source.connect`; so is `read_timeout`.
    :raises SourceError: no connection, no right to LOCK TABLES, or their lock did not come within `LOCK_WAIT` seconds.
    """
    with contextlib.closing(connect(source, cursor=cursor, read_timeout=read_timeout)) as connection:
        with translated(source, "snapshot"):
            query(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            position = open_with_position(connection)
        if position is None:
            with contextlib.closing(connect(source)) as lock:
                position = _open_under_lock(connection, lock, source, tables)
        yield connection, position


def without_snapshot(connection: Any) -> dict[str, str]:
    """Tables of the current database that no snapshot covers, and their engine, e.g. ``{"log": "MyISAM"}``."""
    return {str(name): str(engine) for name, engine in query(connection, _WITHOUT_SNAPSHOT)}


def open_with_position(connection: Any) -> Position | None:
    """Open the snapshot where the server itself knows its position; None where it does not."""
    query(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
    rows = query(connection, "SHOW STATUS LIKE 'binlog_snapshot%'")
    status = {str(name).lower(): str(value) for name, value in rows}
    file, offset = status.get("binlog_snapshot_file", ""), status.get("binlog_snapshot_position", "")
    if not file or not offset.isdigit():
        query(connection, "ROLLBACK")
        return None
    server = server_of(connection)
    if server.kind == "mariadb":
        gtid = str(query(connection, "SELECT BINLOG_GTID_POS(%s, %s)", file, int(offset))[0][0] or "")
    else:
        gtid = status.get("binlog_snapshot_gtid_executed", "").replace("not-in-consistent-snapshot", "")
    return Position(file, int(offset), "".join(gtid.split()), server.identity)


def _open_under_lock(connection: Any, lock: Any, source: Source, tables: Collection[str] | None) -> Position:
    with translated(source, "snapshot"):
        names = [str(name) for (name,) in query(lock, _TABLES)] if tables is None else sorted(tables)
        query(lock, f"SET SESSION lock_wait_timeout = {LOCK_WAIT}")
    if names:
        try:
            with translated(source, "lock tables for a moment"):
                query(lock, "LOCK TABLES " + ", ".join(f"{quote_mysql(name)} READ" for name in names))
        except SourceError as error:
            if error.code in _DENIED:
                error.hint = "Grant the user SELECT and LOCK TABLES on the database"
            elif error.code == 1205:
                error.hint = f"A transaction has kept one of the tables for {LOCK_WAIT} s; try again when it is over"
            raise
    # The lock ends with its connection, whatever happens.
    with translated(source, "snapshot"):
        query(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT")
        position = current_position(lock)
        query(lock, "UNLOCK TABLES")
    return position
