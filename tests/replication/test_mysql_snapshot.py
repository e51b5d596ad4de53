"""The position of a snapshot is exact, to the transaction, while others write: both ways to get it."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from duckling_provider.replication.mysql import mysql_snapshot as consistent
from duckling_provider.replication.mysql.mysql_snapshot import consistent_snapshot, without_snapshot
from duckling_provider.replication.mysql.source import SourceError, connect, query

pytestmark = pytest.mark.mysql


@contextlib.contextmanager
def _under_lock(source: Any):
    """As on a server that doesn't tell the position of a snapshot."""
    with contextlib.closing(connect(source)) as connection, contextlib.closing(connect(source)) as lock:
        query(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield connection, consistent._open_under_lock(connection, lock, source, None)


@contextlib.contextmanager
def _writers(mariadb: Any, database: str, count: int):
    """Each transaction is one row, written until the block ends."""
    done = threading.Event()

    def write() -> None:
        with contextlib.closing(mariadb.connect(database)) as connection, connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute("INSERT INTO t (x) VALUES (1)")
                done.wait(0.001)

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _row_places(mariadb: Any, start: Any) -> tuple[list[int], set[int]]:
    """Of the binlog from `start` on: where each row event begins (each transaction has one), and all ends of events.

    MariaDB 11.8 does not tell the ends of row events.
    """
    events = mariadb.execute(f"SHOW BINLOG EVENTS IN '{start.file}' FROM {start.offset}")
    rows = [int(event[1]) for event in events if event[2].startswith("Write_rows")]
    return rows, {start.offset} | {int(event[4]) for event in events}


@pytest.mark.parametrize("way", [consistent_snapshot, _under_lock], ids=["status", "lock"])
def test_a_snapshot_holds_exactly_what_is_before_its_position(mariadb, database, source, way):
    mariadb.execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT)", database)
    with consistent_snapshot(source) as (_, start):
        pass
    found = []
    with _writers(mariadb, database, 4):
        for _ in range(20):
            with way(source) as (connection, position):
                counts = {query(connection, "SELECT COUNT(*) FROM t")[0][0] for _ in range(3)}
                assert len(counts) == 1
                found.append((position, counts.pop()))
    assert found[-1][1] > found[0][1]
    row_begins, all_ends = _row_places(mariadb, start)
    for position, rows in found:
        assert position.file == start.file
        assert position.offset in all_ends
        assert sum(begin < position.offset for begin in row_begins) == rows
        assert position.gtid
        assert position.server


def test_the_lock_gives_up_where_a_transaction_keeps_a_table(mariadb, database, source, monkeypatch):
    monkeypatch.setattr(consistent, "LOCK_WAIT", 1)
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    with contextlib.closing(mariadb.connect(database, autocommit=False)) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(SourceError) as failure, _under_lock(source):
            pass
    assert failure.value.retryable
    assert "try again when it is over" in str(failure.value)


def test_tables_without_snapshots_are_known(mariadb, database, source):
    mariadb.execute(["CREATE TABLE a (i INT)", "CREATE TABLE b (i INT) ENGINE = MyISAM"], database)
    with contextlib.closing(connect(source)) as connection:
        assert without_snapshot(connection) == {"b": "MyISAM"}
