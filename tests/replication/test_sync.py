"""A sync makes the replica, keeps it equal to MySQL, and gets out of everybody's way."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time

import duckdb
import pytest
from fixtures.replica_file import opened

from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import ConfigError, DucklingError, ReplicaError
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.locks import place_hold, release_hold, state_path
from duckling_provider.replication.binlog.stream import PositionLostError
from duckling_provider.replication.copy.table_copy import copy_tables
from duckling_provider.replication.copying import COPY_SUFFIX, TABLES_SUFFIX
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.mysql.source import Source, connect, current_position
from duckling_provider.replication.sync import adopt_replica, sync, validate_replica

pytestmark = pytest.mark.mysql

_SYNC = """
import sys
from duckling_provider import config
from duckling_provider.replication.sync import sync
sync(config.load().database("production"), seconds=float(sys.argv[1]) if len(sys.argv) > 1 else None, wait=60)
"""

#: While there are changes, only a waiting program makes it close the file; it says when it begins to follow.
_LONG_STRETCH = """
from duckling_provider.replication import following as module
from duckling_provider.replication.binlog import stream
module._STRETCH_SECONDS = 600
stream._SKIPS_BETWEEN_PAUSES = 10**9
stretch = module.Following._stretch
def told(run, gathered, events, deadline):
    if deadline is not None:
        print("stretch", flush=True)
    return stretch(run, gathered, events, deadline)
module.Following._stretch = told
"""


def orders(site, count=1000):
    site.run(
        "CREATE TABLE orders (id INT PRIMARY KEY, customer VARCHAR(50), total DECIMAL(10,2), at DATETIME(6))",
        "CREATE TABLE log (line TEXT)",
        f"INSERT INTO orders SELECT seq, CONCAT('customer ', seq), seq / 7, NOW(6) FROM seq_1_to_{count}",
        "INSERT INTO log VALUES ('one'), ('two'), ('two')",
    )


def rows(entry, query):
    with opened(entry.replica) as connection:
        return connection.execute(query).fetchall()


def purge(server, name):
    """Write something and have the server forget it; a log that a connection still reads from stays at first."""
    server.execute(["INSERT INTO t VALUES (2)", "FLUSH BINARY LOGS"], name)
    last = server.execute("SHOW BINARY LOGS")[-1][0]
    deadline = time.monotonic() + 30
    while server.execute("SHOW BINARY LOGS")[0][0] != last:
        assert time.monotonic() < deadline
        server.execute(f"PURGE BINARY LOGS TO '{last}'")
        # The server notices that a reader is gone when it sends it something.
        server.execute("UPDATE t SET id = id + 1 ORDER BY id DESC", name)
        time.sleep(0.2)


def until(claim):
    deadline = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def follows(entry, query, value):
    """Whether the replica has that by now; it can't be read while it is being written."""
    with contextlib.suppress(duckdb.IOException):
        return rows(entry, query) == [(value,)]
    return False


def is_open(entry):
    """Whether a process writes the replica just now."""
    try:
        rows(entry, "SELECT 1")
    except duckdb.IOException:
        return True
    return False


def is_equal(entry):
    report = validate_replica(entry)
    assert report.equal, report.as_json()
    return report


@pytest.mark.mysql_too
def test_the_first_run_copies_everything_and_the_next_ones_apply_changes(site):
    orders(site)
    entry = site()
    first = sync(entry)
    assert (first.outcome, sorted(first.copied)) == ("caught up", ["log", "orders"])
    assert rows(entry, "SELECT count(*), sum(total) FROM orders")[0][0] == 1000
    site.run(
        "UPDATE orders SET total = -1 WHERE id <= 10",
        "DELETE FROM orders WHERE id > 990",
        "INSERT INTO orders VALUES (5000, NULL, NULL, NULL)",
        "UPDATE orders SET id = 6000 WHERE id = 500",
        "DELETE FROM log WHERE line = 'two' LIMIT 1",
    )
    second = sync(entry)
    assert (second.outcome, second.changes, second.copied) == ("caught up", 23, ())
    assert rows(entry, "SELECT count(*) FROM orders") == [(991,)]
    assert rows(entry, "SELECT line FROM log ORDER BY line") == [("one",), ("two",)]
    assert sync(entry).changes == 0
    assert {table.name for table in is_equal(entry).tables} == {"log", "orders"}


def test_changes_of_the_schema_are_followed_and_what_cannot_be_is_copied_again(site):
    orders(site)
    entry = site()
    sync(entry)
    site.run(
        "ALTER TABLE orders ADD COLUMN note VARCHAR(20) DEFAULT 'none'",
        "INSERT INTO orders VALUES (2000, 'x', 1, NOW(6), 'new')",
        "CREATE TABLE more (id INT PRIMARY KEY, v INT)",
        "INSERT INTO more VALUES (1, 1)",
        "RENAME TABLE log TO journal",
        "INSERT INTO journal VALUES ('three')",
    )
    sync(entry)
    assert {table.name for table in is_equal(entry).tables} == {"journal", "more", "orders"}
    site.run("ALTER TABLE orders MODIFY customer VARBINARY(50)", "UPDATE orders SET customer = 'c' WHERE id = 1")
    sync(entry)
    sync(entry)
    is_equal(entry)


def test_only_the_wanted_tables_are_mirrored_and_a_wanted_one_is_added_later(site):
    orders(site)
    entry = site(excludeTables=["log"])
    sync(entry)
    assert rows(entry, "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'") == [("orders",)]
    entry = site()
    assert sync(entry).copied == ("log",)
    is_equal(entry)


def test_a_hold_and_a_waiter_end_the_run_and_the_next_one_goes_on(site):
    orders(site)
    entry = site()
    sync(entry)
    site.run("UPDATE orders SET total = -2")
    place_hold(entry.replica, owner="restore run", reason="restore", seconds=600, wait=0)
    held = sync(entry, wait=0)
    assert (held.outcome, held.changes) == ("made way", 0)
    assert "restore run" in held.reason
    release_hold(entry.replica, owner="restore run")
    assert sync(entry).changes == 1000
    is_equal(entry)


def test_a_snapshot_gets_its_turn_while_a_sync_follows_busy_changes(site, mariadb, database):
    orders(site)
    entry = site()
    sync(entry)
    stop = threading.Event()

    def write():
        with mariadb.connect(database) as connection:
            cursor = connection.cursor()
            while not stop.is_set():
                cursor.execute("UPDATE orders SET total = RAND() * 100 WHERE id = %s", (random.randint(1, 1000),))
                stop.wait(0.001)

    writer = threading.Thread(target=write)
    follower = subprocess.Popen([sys.executable, "-c", _LONG_STRETCH + _SYNC, "600"], stdout=subprocess.PIPE)
    writer.start()
    try:
        assert follower.stdout.readline() == b"stretch\n"
        until(lambda: is_open(entry))
        snapshot = take_snapshot(entry, wait=60)
    finally:
        stop.set()
        writer.join()
        follower.kill()
        follower.communicate()
    with duckdb.connect(str(snapshot.path), read_only=True) as connection:
        assert Ledger.open(connection).position() is not None
    sync(entry)
    is_equal(entry)


def test_a_restored_backup_catches_up_from_where_it_stood(site):
    orders(site)
    entry = site()
    sync(entry)
    snapshot = take_snapshot(entry)
    site.run("UPDATE orders SET total = -3", "INSERT INTO log VALUES ('late')")
    sync(entry)
    with replica_access(entry.replica, operation="restore", wait=0):
        entry.replica.unlink()
        entry.replica.write_bytes(snapshot.path.read_bytes())
    assert sync(entry).changes == 1001
    is_equal(entry)


def test_a_purged_position_fails_or_copies_anew_as_the_entry_says(site, new_server):
    with new_server() as server:
        name = server.create_database()
        server.execute(["CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)"], name)
        entry = _entry_for(site, server.url(name))
        sync(entry)
        purge(server, name)
        with pytest.raises(PositionLostError) as caught:
            sync(entry)
        assert "onPositionLost" in str(caught.value)
        assert f"the server has {server.execute('SHOW BINARY LOGS')[0][0]} to " in str(caught.value)
        entry = _entry_for(site, server.url(name), onPositionLost="resync")
        assert sync(entry).copied == ("t",)
        is_equal(entry)


def test_somebody_elses_file_is_never_written(site):
    orders(site)
    entry = site()
    with duckdb.connect(str(entry.replica)) as connection:
        connection.execute("CREATE TABLE mine (a INT)")
    before = entry.replica.read_bytes()
    with pytest.raises(ReplicaError) as caught:
        sync(entry)
    assert "consent" in str(caught.value)
    assert entry.replica.read_bytes() == before


def test_a_replica_of_the_node_server_is_adopted_at_its_position(site, mariadb, database):
    orders(site, 50)
    entry = site()
    file, offset = mariadb.execute("SHOW MASTER STATUS")[0][:2]
    with duckdb.connect(str(entry.replica)) as connection:
        connection.execute('CREATE TABLE orders (id INTEGER, customer VARCHAR, total DECIMAL(10,2), "at" TIMESTAMP)')
        for row in mariadb.execute("SELECT * FROM orders", database):
            connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?)", row)
        connection.execute(
            "CREATE TABLE cdc_binlog_position (database_id VARCHAR PRIMARY KEY, filename VARCHAR NOT NULL, "
            "position BIGINT NOT NULL, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
        )
        connection.execute("INSERT INTO cdc_binlog_position VALUES ('production', ?, ?, now())", [file, offset])
    with pytest.raises(ReplicaError) as caught:
        sync(entry)
    assert "duckling adopt production" in str(caught.value)
    states = {state.name: state.state for state in adopt_replica(entry)}
    assert states == {"orders": "ok", "log": "recopy"}
    site.run("UPDATE orders SET total = 9 WHERE id = 7")
    assert sync(entry).changes >= 1
    is_equal(entry)


def test_the_password_is_in_no_error(site, mariadb, database):
    url = mariadb.url(database).replace(f":{mariadb.port}/", ":1/")
    entry = _entry_for(site, url)
    with pytest.raises(DucklingError) as caught:
        sync(entry)
    assert mariadb.password not in repr(caught.value)
    assert mariadb.password not in str(caught.value)


def _entry_for(site, url, **fields):
    site.installation.write(site.installation.entry(mysqlConnectionString=url, **fields))
    return site.installation.database()


def test_what_cannot_be_mirrored_exactly_is_told(site):
    site.run(
        "CREATE TABLE t (id INT PRIMARY KEY, big DECIMAL(65,30), day DATE)",
        "INSERT INTO t VALUES (1, 1, '0000-00-00'), (2, 2, '2024-02-29')",
    )
    entry = site()
    done = sync(entry)
    assert done.position is not None
    big, day = done.notes
    assert big.startswith("t.big: ")
    assert "kept as text" in big
    assert day == "t: 1 zero dates became NULL"
    is_equal(entry)


@pytest.mark.parametrize("call", [sync, adopt_replica, validate_replica])
def test_a_replica_with_another_writer_is_left_alone(site, call):
    with pytest.raises(ConfigError) as caught:
        call(site(writer="duckling-server"))
    assert caught.value.field == "writer"


def test_new_copies_that_a_killed_run_left_are_not_used(site):
    """Between them and the replica's position lie changes that would never be applied."""
    orders(site)
    entry = site(excludeTables=["log"])
    sync(entry)
    left = entry.replica.with_name(entry.replica.name + TABLES_SUFFIX)
    source = Source.parse(entry.mysql_connection_string, subject="production")
    with contextlib.closing(connect(source)) as connection:
        position = current_position(connection)
    copy_tables(source, left, ["log"], position=position, control=Control())
    site.run("INSERT INTO log VALUES ('in between')", "UPDATE orders SET total = -5")
    sync(entry)
    entry = site()
    assert sync(entry).copied == ("log",)
    is_equal(entry)
    assert not left.exists()


#: Statements that leave an ENUM a list of bytes, of which the first is no text.
_UNREADABLE = (
    "CREATE TABLE {0} (id INT PRIMARY KEY, v ENUM('ä', 'b', 'c\\\\d')) CHARACTER SET latin1",
    "ALTER TABLE {0} CONVERT TO CHARACTER SET binary",
    "ALTER TABLE {0} CONVERT TO CHARACTER SET utf8mb4",
    "INSERT INTO {0} VALUES (1, 3)",
)


def unreadable(name):
    return [statement.format(name) for statement in _UNREADABLE]


@pytest.mark.mysql_too
def test_a_table_that_cannot_be_copied_holds_no_other_back(site):
    site.run(*unreadable("a"), "CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1)")
    entry = site()
    sync(entry)
    assert rows(entry, "FROM a") == [(1, "c\\d")]
    # Both are copied again: t, since what its new column holds is not in the binlog.
    site.run("INSERT INTO a VALUES (2, 1)", "ALTER TABLE t ADD c TIMESTAMP DEFAULT CURRENT_TIMESTAMP")
    with pytest.raises(ReplicaError, match=r"^a: copy: v holds the bytes e4"):
        sync(entry)
    assert rows(entry, "SELECT id, c IS NOT NULL FROM t") == [(1, True)]
    # It stays what it was, and marked, so the next run says the same.
    assert rows(entry, "FROM a") == [(1, "c\\d")]
    site.run("INSERT INTO t (id) VALUES (2)")
    with pytest.raises(ReplicaError, match="MODIFY the column to BIGINT"):
        sync(entry)
    assert rows(entry, "SELECT id FROM t") == [(1,), (2,)]
    site.run("ALTER TABLE a MODIFY v BIGINT UNSIGNED", "ALTER TABLE a MODIFY v ENUM('ä', 'b', 'c')")
    sync(entry)
    assert rows(entry, "FROM a ORDER BY id") == [(1, "c"), (2, "ä")]
    is_equal(entry)


def test_a_first_copy_names_every_table_that_it_cannot_copy_and_keeps_the_others(site):
    site.run(*unreadable("a"), *unreadable("y"), "UPDATE a SET v = 1", "UPDATE y SET v = 1")
    site.run("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    entry = site()
    with pytest.raises(ReplicaError, match=r"2 tables can't be copied: a: copy: v holds .*; y: copy: v holds "):
        sync(entry)
    assert not entry.replica.exists()
    with duckdb.connect(str(state_path(entry.replica, COPY_SUFFIX)), read_only=True) as unfinished:
        assert unfinished.execute("FROM t").fetchall() == [(1,)]
    entry = site(excludeTables=["a", "y"])
    assert sync(entry).copied == ("t",)


def test_a_renamed_table_is_not_copied_again(site):
    orders(site)
    entry = site()
    sync(entry)
    site.run("RENAME TABLE orders TO sales", "UPDATE sales SET total = -6 WHERE id = 1")
    assert sync(entry).copied == ()
    is_equal(entry)


def test_two_syncs_at_once_end_equal(site):
    orders(site)
    entry = site()
    sync(entry)
    site.run("UPDATE orders SET total = -7", "INSERT INTO log SELECT line FROM log", "UPDATE orders SET total = -8")
    runs = [subprocess.Popen([sys.executable, "-c", _SYNC]) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    is_equal(entry)


def test_columns_of_nothing_but_null_are_copied(site):
    site.run(
        "CREATE TABLE t (id INT PRIMARY KEY, a TIMESTAMP NULL, b DATE, c DATETIME(6))",
        "INSERT INTO t (id) VALUES (1), (2)",
    )
    entry = site()
    sync(entry)
    is_equal(entry)


def test_a_table_that_was_left_out_for_a_while_is_copied_again(site):
    orders(site)
    entry = site()
    sync(entry)
    entry = site(excludeTables=["log"])
    sync(entry)
    site.run("INSERT INTO log VALUES ('unseen')", "UPDATE orders SET total = -9")
    sync(entry)
    assert rows(entry, "SELECT count(*) FROM log") == [(3,)]
    entry = site()
    assert sync(entry).copied == ("log",)
    is_equal(entry)


def test_another_database_of_the_same_server_is_refused(site, mariadb):
    orders(site)
    entry = site()
    sync(entry)
    other = mariadb.create_database()
    before = entry.replica.read_bytes()
    with pytest.raises(ReplicaError) as caught:
        sync(_entry_for(site, mariadb.url(other)))
    assert other in str(caught.value)
    assert entry.replica.read_bytes() == before
    mariadb.execute(f"DROP DATABASE {other}")


def test_a_binlog_that_was_begun_anew_is_never_gone_on_with(site, new_server):
    with new_server() as server:
        name = server.create_database()
        server.execute(["CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)"], name)
        entry = _entry_for(site, server.url(name))
        sync(entry)
        server.execute(["RESET MASTER", *(f"INSERT INTO t VALUES ({n})" for n in range(2, 40))], name)
        for call in (sync, validate_replica, sync):
            with pytest.raises(PositionLostError):
                call(entry)


def test_a_dropped_database_leaves_no_tables(site, mariadb, database):
    orders(site)
    entry = site()
    sync(entry)
    mariadb.execute([f"DROP DATABASE `{database}`", f"CREATE DATABASE `{database}`"])
    site.run("CREATE TABLE fresh (id INT PRIMARY KEY)")
    sync(entry)
    assert [table.name for table in is_equal(entry).tables] == ["fresh"]
    assert rows(entry, "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'") == [("fresh",)]


def test_a_replica_that_vanishes_meanwhile_is_not_replaced_by_an_empty_file(site):
    orders(site)
    entry = site()
    sync(entry)
    follower = subprocess.Popen([sys.executable, "-c", _SYNC, "300"], stderr=subprocess.PIPE, text=True)
    # Once it has applied this, it follows.
    site.run("UPDATE orders SET total = -10")
    until(lambda: follows(entry, "SELECT max(total) FROM orders", -10))
    entry.replica.unlink()
    site.run("UPDATE orders SET total = -11")
    assert "it is gone" in follower.communicate(timeout=60)[1]
    assert not entry.replica.exists()
    assert sorted(sync(entry).copied) == ["log", "orders"]


def test_a_reader_is_waited_for(site):
    orders(site)
    entry = site()
    sync(entry)
    site.run("UPDATE orders SET total = -11")
    program = (
        "import sys, duckdb; c = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); sys.stdin.readline()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", program, str(entry.replica)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    reader.stdout.readline()
    threading.Timer(3, reader.communicate, args=("\n",)).start()
    assert sync(entry, wait=30).changes == 1000


def test_two_first_copies_at_once_copy_once(site):
    orders(site)
    entry = site()
    runs = [subprocess.Popen([sys.executable, "-c", _SYNC]) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    is_equal(entry)
    with opened(entry.replica) as connection:
        assert Ledger.open(connection).source() != ""


@pytest.mark.mysql_only
def test_vectors_are_copied_and_followed(site):
    site.run("CREATE TABLE t (id INT PRIMARY KEY, v VECTOR(3))", "INSERT INTO t VALUES (1, TO_VECTOR('[1,2.5,-3]'))")
    entry = site()
    sync(entry)
    site.run("INSERT INTO t VALUES (2, NULL), (3, TO_VECTOR('[0]'))", "UPDATE t SET v = TO_VECTOR('[7]') WHERE id = 1")
    assert sync(entry).recopy == {}
    assert rows(entry, "SELECT id, hex(v) FROM t ORDER BY id") == [(1, "0000E040"), (2, None), (3, "00000000")]
    is_equal(entry)


@pytest.mark.mysql_only
def test_what_a_foreign_key_does_to_children_is_read_from_the_binlog(site):
    """MySQL logs it since 9.6, so nothing is to be done again, and no table is copied again."""
    site.run(
        "CREATE TABLE parent (id INT PRIMARY KEY)",
        "CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent (id) "
        "ON DELETE SET NULL ON UPDATE CASCADE)",
        "INSERT INTO parent VALUES (1), (2)",
        "INSERT INTO child VALUES (10, 1), (20, 2)",
    )
    entry = site()
    sync(entry)
    site.run("DELETE FROM parent WHERE id = 1", "UPDATE parent SET id = 3 WHERE id = 2")
    done = sync(entry)
    assert (done.recopy, done.copied) == ({}, ())
    assert rows(entry, "SELECT * FROM child ORDER BY id") == [(10, None), (20, 3)]


def test_names_are_folded_as_a_server_without_case_does(site, new_server):
    """Names in the URL, in statements and in filters, with ``lower_case_table_names=1``."""
    with new_server("--lower-case-table-names=1") as server:
        server.execute(["CREATE DATABASE Shop", "CREATE TABLE Shop.Orders (id INT PRIMARY KEY)",
                        "CREATE TABLE Shop.Secret (id INT)", "INSERT INTO Shop.ORDERS VALUES (1)"])  # fmt: skip
        site.installation.write(
            site.installation.entry(mysqlConnectionString=server.url("Shop"), excludeTables=["Secret", "SECRET2"])
        )
        entry = site.installation.database()
        assert sync(entry).copied == ("orders",)
        server.execute(
            [
                "CREATE TABLE Items (id INT)",
                "INSERT INTO ITEMS VALUES (1)",
                "ALTER TABLE iTems ADD Price INT",
                "CREATE TABLE Secret2 (id INT)",
                "INSERT INTO Orders VALUES (2)",
                "RENAME TABLE Items TO SHOP.Articles",
                "INSERT INTO ARTICLES VALUES (2, 3)",
            ],
            "SHOP",
        )
        done = sync(entry)
        assert (done.outcome, done.recopy, done.copied) == ("caught up", {}, ())
        assert rows(entry, "SELECT * FROM articles ORDER BY id") == [(1, None), (2, 3)]
        assert rows(entry, "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main' ORDER BY 1") == [
            ("articles",), ("orders",)]  # fmt: skip
        is_equal(entry)
        with duckdb.connect(str(entry.replica)) as connection:
            connection.execute("INSERT INTO orders VALUES (99)")
            connection.execute("UPDATE _duckling.validation SET looked_at = looked_at - INTERVAL 1 HOUR")
        always = entry.model_copy(update={"validate_interval_days": 1e-9})
        assert sync(always).differing == {"orders": 1}
        assert rows(entry, "SELECT name FROM _duckling.validation ORDER BY 1") == [("articles",), ("orders",)]
        server.execute("DROP DATABASE SHOP")
        server.execute("CREATE DATABASE SHOP")
        sync(entry)
        assert rows(entry, "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'") == []


def test_each_sync_leaves_its_state_for_readers_and_a_reader_delays_none(site, xfs):
    orders(site)
    files = {"duckdbPath": str(xfs / "live.db"), "readCopyPath": str(xfs / "read.db")}
    entry = site(**files)
    assert sync(entry).read_copy is not None
    with duckdb.connect(str(xfs / "read.db"), read_only=True) as reader:
        site.run("DELETE FROM orders WHERE id > 10")
        done = sync(entry, wait=0)
        assert (done.outcome, done.notes) == ("caught up", ())
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
    with duckdb.connect(str(xfs / "read.db"), read_only=True) as reader:
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (10,)
        position = reader.execute("SELECT * FROM _duckling.position").fetchall()
    assert position == rows(entry, "SELECT * FROM _duckling.position")
    before = (xfs / "read.db").stat().st_ino
    assert sync(entry).read_copy > done.read_copy
    assert (xfs / "read.db").stat().st_ino == before
    # While it follows, the copy does too.
    site.run("DELETE FROM orders WHERE id > 5")
    assert sync(entry, seconds=1).outcome == "out of time"
    with duckdb.connect(str(xfs / "read.db"), read_only=True) as reader:
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (5,)


def test_a_copy_for_readers_that_cannot_be_made_ends_the_sync_before_it_begins(site, shares_no_blocks):
    orders(site)
    entry = site(readCopyPath=str(shares_no_blocks / "read.db"))
    with pytest.raises(ConfigError, match="can't share blocks"):
        sync(entry)
    assert not entry.replica.exists()
