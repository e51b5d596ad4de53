import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from duckling_provider.base.errors import DucklingError
from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.batch import BatchLimits
from duckling_provider.replication.apply.generated import read_by_keys
from duckling_provider.replication.binlog.stream import BinlogStream
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.tables import Column, Commit, Position, RowChange, Table
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import current_position

pytestmark = pytest.mark.mysql


def on_mariadb(statements):
    """A case that only MariaDB knows, for `parametrize`."""
    first = statements if isinstance(statements, str) else statements[0]
    return pytest.param(statements, marks=pytest.mark.mariadb_only, id=first[:60])


KEYED = "CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(20), b DECIMAL(10,2))"
KEYLESS = "CREATE TABLE t (id INT, a VARCHAR(20), b DECIMAL(10,2))"


@pytest.mark.parametrize("table", [KEYED, KEYLESS], ids=["keyed", "keyless"])
@pytest.mark.parametrize("by_gtid", [True, False], ids=["gtid", "offset"])
def test_inserts_updates_and_deletes(mirror, table, by_gtid):
    mirror.run(table, "INSERT INTO t VALUES (1, 'x', 1.5), (2, NULL, NULL), (3, 'z', 0)")
    mirror.catch_up(by_gtid=by_gtid)
    mirror.assert_equal("t")
    mirror.run("UPDATE t SET a = 'y' WHERE id = 2", "DELETE FROM t WHERE id = 1", "REPLACE INTO t VALUES (3, 'w', 1)")
    mirror.run("INSERT INTO t VALUES (4, 'new', 7)", "UPDATE t SET b = b + 1")
    applied = mirror.catch_up(by_gtid=by_gtid)
    mirror.assert_equal("t")
    assert applied.changes >= 6


@pytest.mark.parametrize("table", [KEYED, KEYLESS], ids=["keyed", "keyless"])
def test_keys_change_places(mirror, table):
    mirror.run(table, "INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3)")
    mirror.catch_up()
    mirror.run("UPDATE t SET id = id + 10 ORDER BY id DESC")
    mirror.run("START TRANSACTION", "UPDATE t SET id = 0 WHERE id = 11", "UPDATE t SET id = 11 WHERE id = 12",
               "UPDATE t SET id = 12 WHERE id = 0", "DELETE FROM t WHERE id = 13", "INSERT INTO t VALUES (13, 'a', 1)",
               "COMMIT")  # fmt: skip
    mirror.catch_up()
    mirror.assert_equal("t")


def test_keys_of_several_columns_and_odd_names(mirror):
    mirror.run(
        'CREATE TABLE `se"lect` (`k 1` INT, `ключ` VARCHAR(9) COLLATE utf8mb4_general_ci, `c0` DATE NOT NULL, '
        "PRIMARY KEY (`ключ`, `c0`, `k 1`))",
        "INSERT INTO `se\"lect` VALUES (1, 'a', '2024-01-01'), (1, 'b', '0000-00-00'), (2, 'b', '0000-00-00')",
        "UPDATE `se\"lect` SET `ключ` = 'A' WHERE `ключ` = 'a'",
        'DELETE FROM `se"lect` WHERE `k 1` = 2',
    )
    mirror.catch_up()
    mirror.run("UPDATE `se\"lect` SET `k 1` = 7 WHERE `ключ` = 'b'")
    mirror.catch_up()
    assert sorted(mirror.replica.execute('SELECT "k 1", "ключ", c0::VARCHAR FROM "se""lect"').fetchall()) == [
        (1, "A", "2024-01-01"),
        (7, "b", None),
    ]
    assert mirror.states['se"lect'].table.primary_key == ("ключ", "c0", "k 1")
    assert Ledger.open(mirror.replica).counters()['se"lect', "zero dates"] >= 1


def test_of_equal_rows_exactly_those_go_that_went(mirror):
    mirror.run("CREATE TABLE t (a INT, b VARCHAR(5))")
    mirror.run("INSERT INTO t VALUES (1, NULL), (1, NULL), (1, NULL), (2, 'x'), (2, 'x'), (NULL, NULL), (NULL, NULL)")
    mirror.catch_up()
    mirror.run(
        "DELETE FROM t WHERE a = 1 LIMIT 2",
        "DELETE FROM t WHERE a IS NULL LIMIT 1",
        "UPDATE t SET b = 'y' WHERE a = 2 LIMIT 1",
    )
    mirror.catch_up()
    mirror.assert_equal("t")
    assert len(mirror.rows("t")[0]) == 4


def test_a_rolled_back_transaction_leaves_nothing(mirror):
    mirror.run(KEYED, "INSERT INTO t VALUES (1, 'x', 1)")
    mirror.run("START TRANSACTION", "INSERT INTO t VALUES (2, 'x', 1)", "DELETE FROM t WHERE id = 1", "ROLLBACK")
    mirror.run("START TRANSACTION", "INSERT INTO t VALUES (3, 'x', 1)", "SAVEPOINT s", "DELETE FROM t WHERE id = 1",
               "ROLLBACK TO s", "COMMIT")  # fmt: skip
    mirror.catch_up()
    mirror.assert_equal("t")


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE t ADD COLUMN c INT"],
        ["ALTER TABLE t ADD COLUMN c INT UNSIGNED NOT NULL DEFAULT 5 AFTER id, ADD d VARCHAR(9) DEFAULT 'e''x' FIRST"],
        ["ALTER TABLE t ADD COLUMN (c BIGINT NOT NULL, d TEXT NOT NULL, e DECIMAL(5,2) DEFAULT -1.5)"],
        ["ALTER TABLE t ADD c ENUM('a','b') DEFAULT 'b', ADD KEY (c), ADD d DATE DEFAULT '2020-02-02', ENGINE=InnoDB"],
        on_mariadb(
            ["ALTER TABLE t ADD COLUMN IF NOT EXISTS a INT, ADD COLUMN IF NOT EXISTS c DATETIME(3) NULL DEFAULT NULL"]
        ),
        ["ALTER TABLE t DROP COLUMN b"],
        ["ALTER TABLE t DROP b, ADD b VARCHAR(3) DEFAULT 'new', ALGORITHM=COPY"],
        ["ALTER TABLE t RENAME COLUMN a TO `select`"],
        ["ALTER TABLE t CHANGE COLUMN id `key id` BIGINT UNSIGNED NOT NULL"],
        ["ALTER TABLE t MODIFY id BIGINT NOT NULL FIRST", "ALTER TABLE t MODIFY a TEXT, MODIFY b DECIMAL(20,2)"],
        ["ALTER TABLE t MODIFY COLUMN a VARCHAR(3) NOT NULL COMMENT 'shorter, and they fit'"],
        ["ALTER TABLE t DROP PRIMARY KEY", "UPDATE t SET a = 'z'", "ALTER TABLE t ADD PRIMARY KEY (a(3), id)"],
        ["ALTER TABLE t RENAME TO u", "RENAME TABLE u TO v", "ALTER TABLE v ADD c INT, RENAME t"],
        ["CREATE TABLE u LIKE t", "INSERT INTO u SELECT * FROM t", "RENAME TABLE t TO x, u TO t, x TO u",
         "DROP TABLE u"],
        ["CREATE TABLE u (PRIMARY KEY (id)) SELECT id, a FROM t"],
        ["CREATE TABLE u AS SELECT id + 1 AS n, concat(a, 'x') AS c FROM t"],
        ["CREATE TABLE IF NOT EXISTS t (x INT)", "DROP TABLE IF EXISTS t, nothing", KEYED],
        on_mariadb(["CREATE OR REPLACE TABLE t (id INT PRIMARY KEY, z VARCHAR(5))", "INSERT INTO t VALUES (9, 'z')"]),
        ["TRUNCATE TABLE t", "INSERT INTO t VALUES (1, 'again', 5)"],
        ["CREATE INDEX i ON t (a)", "DROP INDEX i ON t", "CREATE VIEW w AS SELECT * FROM t", "DROP VIEW w",
         "ANALYZE TABLE t", "OPTIMIZE TABLE t", "ALTER TABLE t COMMENT = 'x', AUTO_INCREMENT = 7"],
        ["ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4", "ALTER TABLE t ALTER COLUMN a SET DEFAULT 'q'"],
        ["/* why */ ALTER TABLE `t` -- comment\n ADD `c` /*!50000 INT */ NULL"],
        pytest.param(["ALTER TABLE `t` ADD `c` INT /*M!100100 NULL */"], marks=pytest.mark.mariadb_only),
    ],
    ids=lambda statements: statements[0][:60],
)  # fmt: skip
def test_ddl_is_followed(mirror, statements):
    mirror.run(KEYED, "INSERT INTO t VALUES (1, 'x', 1.5), (2, 'yy', 2)")
    mirror.catch_up()
    mirror.run(*statements)
    applied = mirror.catch_up()
    assert applied.marked == {}
    mirror.assert_equal()
    # And what comes then finds its columns.
    for table, state in read_tables(mirror.server, mirror.database).items():
        first = state.primary_key[0] if state.primary_key else state.columns[0].name
        mirror.run(
            f"UPDATE `{table}` SET `{first}` = 77 LIMIT 1", f"DELETE FROM `{table}` WHERE `{first}` <> 77 LIMIT 1"
        )
    mirror.catch_up()
    mirror.assert_equal()
    here = {
        row[0]
        for row in mirror.replica.execute(
            "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
        ).fetchall()
    }
    assert here == set(mirror.states) == set(read_tables(mirror.server, mirror.database))


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ADD c INT AS (id + 1) STORED",
        "ALTER TABLE t ADD c DATETIME DEFAULT CURRENT_TIMESTAMP",
        "ALTER TABLE t ADD c INT NOT NULL AUTO_INCREMENT UNIQUE",
        "ALTER TABLE t MODIFY a VARCHAR(1)",
        "ALTER TABLE t MODIFY a INT",
        "ALTER TABLE t MODIFY b DECIMAL(10,1)",
        "ALTER TABLE t MODIFY b DOUBLE",
        "ALTER TABLE t CHANGE a b2 INT, CHANGE b a2 INT",
        "ALTER TABLE t CONVERT TO CHARACTER SET latin1",
        on_mariadb("ALTER TABLE t ADD SYSTEM VERSIONING"),
        on_mariadb("ALTER TABLE t ADD c UUID"),
    ],
)
def test_what_can_not_be_followed_needs_a_new_copy_and_the_others_go_on(mirror, statement):
    mirror.run(KEYED, "CREATE TABLE u (id INT)", "INSERT INTO t VALUES (1, 'x', 1.55), (2, 'yy', 2)")
    mirror.catch_up()
    mirror.run(statement, "INSERT INTO u VALUES (1)", "DELETE FROM t LIMIT 1")
    applied = mirror.catch_up()
    state = mirror.states["t"]
    assert state.state == "recopy"
    assert state.note
    mirror.assert_equal("u")
    assert applied.marked == {"t": state.note}
    # A table that is created again is whole again.
    mirror.run("DROP TABLE t", KEYED, "INSERT INTO t VALUES (5, 'x', 1)")
    mirror.catch_up()
    mirror.assert_equal()


def test_ddl_of_other_databases_is_told_by_its_names(mirror):
    other = mirror.mariadb.create_database()
    mirror.run(KEYED, "INSERT INTO t VALUES (1, 'x', 1)")
    mirror.mariadb.execute(
        ["CREATE TABLE t (x INT)", "DROP TABLE t", f"ALTER TABLE {mirror.database}.t ADD c INT",
         f"CREATE TABLE {mirror.database}.u (id INT)", f"RENAME TABLE {mirror.database}.u TO v"], other,
    )  # fmt: skip
    mirror.mariadb.execute(f"DROP DATABASE {other}")
    mirror.catch_up()
    mirror.assert_equal()
    assert set(mirror.states) == {"t"}


@pytest.mark.parametrize("come", ["CREATE TABLE T (a INT PRIMARY KEY)", "RENAME TABLE other TO T"])
def test_a_twin_that_differs_in_case_only_leaves_the_other_table_alone(mirror, come):
    mirror.run(KEYED, "CREATE TABLE other (a INT PRIMARY KEY)", "INSERT INTO t VALUES (1, 'x', 1)")
    mirror.catch_up()
    mirror.run(come, "INSERT INTO T VALUES (7)", "INSERT INTO t VALUES (2, 'y', 2)", "DROP TABLE T")
    mirror.catch_up()
    mirror.assert_equal("t")
    assert "T" not in mirror.states


def test_tables_that_are_not_wanted_are_neither_made_nor_kept(mirror):
    mirror.run(KEYED, "CREATE TABLE skipped (id INT)", "CREATE TABLE u (id INT)")
    wanted = {"t", "u"}.__contains__
    mirror.catch_up(wanted=wanted)
    assert set(mirror.states) == {"t", "u"}
    mirror.run("RENAME TABLE u TO skipped2", "RENAME TABLE skipped TO u")
    mirror.catch_up(wanted=wanted)
    assert {name: state.state for name, state in mirror.states.items()} == {"t": "ok", "u": "recopy"}


def test_a_giant_transaction_is_written_in_parts_and_committed_once(mirror):
    mirror.run(KEYED, "CREATE TABLE u (a INT, b TEXT)")
    mirror.catch_up()
    before = Ledger.open(mirror.replica).position()
    mirror.run("START TRANSACTION", "INSERT INTO t SELECT seq, 'x', seq / 7 FROM seq_1_to_1500",
               "UPDATE t SET id = id + 100000", "INSERT INTO u SELECT seq % 10, repeat('y', 1000) FROM seq_1_to_600",
               "DELETE FROM u WHERE a = 3", "DELETE FROM t WHERE id > 101200", "COMMIT")  # fmt: skip
    ledger = Ledger.open(mirror.replica)
    applier = Applier(mirror.replica, ledger, database=mirror.database, limits=BatchLimits(changes=700, bytes=100_000))
    with BinlogStream(mirror.source, before) as stream:
        for number, event in enumerate(stream.read()):
            if applier.take(event):
                break
            if applier.in_transaction and number % 50 == 0:
                # No reader sees half of it, nor would a restart.
                assert mirror.replica.cursor().execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    assert applier.applied.batches == 1
    mirror.assert_equal()


def test_half_a_transaction_is_given_up_not_committed(mirror):
    mirror.run(KEYED)
    mirror.catch_up()
    mirror.run("START TRANSACTION", "INSERT INTO t VALUES (1, 'x', 1)", "INSERT INTO t VALUES (2, 'x', 1)", "COMMIT")
    ledger = Ledger.open(mirror.replica)
    applier = Applier(mirror.replica, ledger, database=mirror.database)
    with BinlogStream(mirror.source, ledger.position()) as stream:
        for event in stream.read():
            applier.take(event)
            if applier.pending:
                break
    with pytest.raises(DucklingError, match="not complete"):
        applier.flush()
    applier.abandon()
    assert mirror.replica.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    mirror.catch_up()
    mirror.assert_equal()


def test_changes_up_to_the_tables_own_start_are_in_it_already(mirror):
    mirror.run("CREATE TABLE t (a INT)", "CREATE TABLE u (a INT)")
    mirror.catch_up()
    mirror.run("INSERT INTO t VALUES (1)", "INSERT INTO u VALUES (1)", "FLUSH BINARY LOGS", "ALTER TABLE t ADD b INT")
    # As a copy does it: t is read here, later than the replica's position.
    ledger = Ledger.open(mirror.replica)
    mirror.replica.execute("ALTER TABLE t ADD b INT")
    mirror.replica.execute("INSERT INTO t VALUES (1, NULL)")
    table = read_tables(mirror.server, mirror.database)["t"]
    ledger.save_table(TableState(table, start=current_position(mirror.server)))
    mirror.run("INSERT INTO t VALUES (2, 2)", "INSERT INTO u VALUES (2)")
    mirror.catch_up()
    mirror.assert_equal()
    assert mirror.states["t"].start is None


def test_a_keyless_table_that_lacks_a_row_is_told(mirror):
    mirror.run("CREATE TABLE t (a INT)", "INSERT INTO t VALUES (1), (2)")
    mirror.catch_up()
    mirror.replica.execute("DELETE FROM t WHERE a = 1")
    mirror.run("DELETE FROM t WHERE a = 1")
    applied = mirror.catch_up()
    assert "not in the replica" in applied.marked["t"]


@pytest.mark.parametrize("spoil", ["DROP TABLE t", "ALTER TABLE t ALTER a TYPE INTEGER USING 0"])
def test_a_table_that_duckdb_refuses_does_not_stop_the_others(mirror, spoil):
    mirror.run(KEYED, "CREATE TABLE u (a INT)", "INSERT INTO t VALUES (1, 'x', 1)")
    mirror.catch_up()
    mirror.replica.execute(spoil)
    mirror.run("INSERT INTO u VALUES (1)", "INSERT INTO t VALUES (2, 'text', 1)", "INSERT INTO u VALUES (2)")
    with pytest.raises(DucklingError) as caught:
        mirror.catch_up()
    assert caught.value.retryable
    assert mirror.states["t"].state == "recopy"
    mirror.catch_up()
    mirror.assert_equal("u")


def test_what_is_in_a_keyed_table_already_does_no_harm(mirror):
    mirror.run(KEYED, "INSERT INTO t VALUES (1, 'x', 1), (2, 'x', 1)", "UPDATE t SET id = 3 WHERE id = 1")
    start = Ledger.open(mirror.replica).position()
    mirror.catch_up()
    start_rows = mirror.rows("t")[0]
    mirror.run("DELETE FROM t WHERE id = 2")
    mirror.catch_up()
    Ledger.open(mirror.replica).save_position(start)
    mirror.catch_up()
    mirror.assert_equal()
    assert start_rows != mirror.rows("t")[0]


def test_all_types_arrive_as_they_are_read(mirror):
    mirror.run(
        "CREATE TABLE t (id INT PRIMARY KEY, j JSON, s SET('a','b','c'), e ENUM('x','y'), f FLOAT, d DOUBLE, "
        "bi BINARY(4), bl BLOB, bt BIT(5), y YEAR, da DATE, dt DATETIME(6), big DECIMAL(65,30), u BIGINT UNSIGNED)",
        "INSERT INTO t VALUES (1, '{\"a\": [1, null]}', 'c,a', 'y', 0.1, 0.1, 'ab', x'00ff', b'10001', 2024, "
        "'2024-02-29', '2024-02-29 12:00:00.123456', 1.000000000000000000000000000001, 18446744073709551615), "
        "(2, NULL, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    )
    mirror.catch_up()
    rows = mirror.replica.execute("SELECT * FROM t ORDER BY id").fetchall()
    assert rows[0][1:4] == ('{"a": [1, null]}', "a,c", "y")
    assert rows[0][5] == 0.1
    assert rows[0][6:10] == (b"ab\0\0", b"\0\xff", 17, 2024)
    assert rows[0][12:] == ("1.000000000000000000000000000001", 2**64 - 1)
    assert rows[1] == (2, None, "", *[None] * 11)


GENERATED = (
    "CREATE TABLE t (id INT, k VARCHAR(9), n INT, v INT AS (n + 1) VIRTUAL, s VARCHAR(20) AS (CONCAT(x, '!')) STORED, "
    "i INT INVISIBLE DEFAULT 7, x VARCHAR(9), f FLOAT, d DATETIME, PRIMARY KEY (id, k))"
)


def test_generated_and_invisible_columns(mirror):
    mirror.run(
        GENERATED,
        "INSERT INTO t (id, k, n, x, f, d) VALUES (1, 'a', 1, 'ä', 0.5, '2024-02-29'), (2, 'B', NULL, 'b', NULL, NULL)",
        "UPDATE t SET id = 9 WHERE id = 1",
        "UPDATE t SET n = 5, x = NULL WHERE id = 2",
        "INSERT INTO t (id, k, n) VALUES (3, '', 1), (4, 'ü', 2)",
        "DELETE FROM t WHERE id = 3",
    )
    assert mirror.catch_up().marked == {}
    mirror.assert_equal()
    mirror.run("UPDATE t SET n = n + 1, i = 8")
    assert mirror.catch_up().marked == {}
    mirror.assert_equal()


def test_generated_columns_that_can_not_be_known_any_more_need_a_new_copy(mirror):
    mirror.run(GENERATED, "INSERT INTO t (id, k, n) VALUES (1, 'a', 1)")
    mirror.catch_up()

    def too_late(table, keys):
        mirror.run("UPDATE t SET n = 9")
        return read_by_keys(mirror.source, table, keys)

    ledger = Ledger.open(mirror.replica)
    mirror.run("UPDATE t SET n = 2")
    applier = Applier(mirror.replica, ledger, database=mirror.database, reread=too_late)
    with BinlogStream(mirror.source, ledger.position()) as stream:
        for event in stream.read_until(current_position(mirror.server)):
            applier.take(event)
    applier.flush()
    # Servers that write all columns never ask.
    values = mirror.replica.execute("SELECT n, v FROM t").fetchall()
    assert values == [(2, 3)] if mirror.states["t"].state == "ok" else values == [(1, 2)]


@pytest.mark.mariadb_only
def test_statements_of_two_phases(mirror):
    mirror.run(KEYED, "INSERT INTO t VALUES (1, 'x', 1)")
    mirror.catch_up()
    mirror.run("SET SESSION binlog_alter_two_phase = ON", "ALTER TABLE t ADD c INT DEFAULT 4", "UPDATE t SET a = 'y'")
    mirror.catch_up()
    mirror.assert_equal()
    mirror.run("XA START 'x'", "INSERT INTO t VALUES (2, 'x', 1, 1)", "XA END 'x'", "XA COMMIT 'x' ONE PHASE")
    mirror.catch_up()
    mirror.assert_equal()
    mirror.run("XA START 'y'", "INSERT INTO t VALUES (3, 'x', 1, 1)", "XA END 'y'", "XA PREPARE 'y'", "XA ROLLBACK 'y'")
    assert mirror.catch_up().marked == {}
    mirror.assert_equal()


def test_a_batch_is_committed_by_count_and_by_age():
    connection = duckdb.connect()
    ledger = Ledger.create(connection)
    connection.execute("CREATE TABLE t (id INTEGER)")
    ledger.save_table(TableState(Table("t", (Column("id", "int", "int(11)"),), ("id",))))
    applier = Applier(connection, ledger, database="d", limits=BatchLimits(changes=3, seconds=0.2))
    names = ("id",)
    committed = []
    for number in range(7):
        applier.take(RowChange("insert", "t", names, None, (number,)))
        committed.append(applier.take(Commit(Position("b.1", number + 10), 0.0)))
    assert committed == [False, False, True, False, False, True, False]
    assert ledger.position() == Position("b.1", 15)
    time.sleep(0.25)
    assert applier.take(None) is True
    assert ledger.position() == Position("b.1", 16)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(7,)]


def test_a_table_that_was_altered_since_is_not_asked_for_its_generated_columns(mirror):
    mirror.run("CREATE TABLE g (id INT PRIMARY KEY, v INT)")
    mirror.catch_up()
    mirror.run("ALTER TABLE g DROP v")
    with pytest.raises(NotFollowedError, match="it was altered since"):
        read_by_keys(mirror.source, mirror.states["g"].table, [(1,)])


CHILD = """
import sys, duckdb
from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.batch import BatchLimits
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.mysql.source import Source
from duckling_provider.replication.binlog.stream import BinlogStream
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
url, path = sys.stdin.readline().strip(), sys.argv[1]
source = Source.parse(url, subject="test")
connection = duckdb.connect(path)
ledger = Ledger.open(connection)
applier = Applier(connection, ledger, database=source.database, limits=BatchLimits(changes=50, seconds=0.05))
with BinlogStream(source, ledger.position(), follow=True) as stream:
    print("started", flush=True)
    for event in stream.read():
        if applier.take(event):
            print("committed", flush=True)
"""


@pytest.mark.parametrize("by_gtid", [True, False], ids=["gtid", "offset"])
def test_after_each_kill_it_goes_on_where_it_was(mirror, by_gtid, full):
    mirror.run("CREATE TABLE k (id INT AUTO_INCREMENT PRIMARY KEY, a INT, b TEXT)", "CREATE TABLE d (a INT, b INT)")
    mirror.catch_up()
    stop = threading.Event()

    def write():
        dice = random.Random(7)
        connection = mirror.mariadb.connect(mirror.database)
        with connection, connection.cursor() as cursor:
            number = 0
            while not stop.is_set():
                number += 1
                connection.begin()
                for _ in range(dice.randrange(1, 6)):
                    a = dice.randrange(1000)
                    cursor.execute(
                        dice.choice([
                            f"INSERT INTO k (a, b) VALUES ({a}, 'x'), ({a}, NULL)",
                            f"UPDATE k SET a = a + 1, id = -id WHERE a = {a} AND id > 0 LIMIT 3",
                            f"DELETE FROM k WHERE a = {a} LIMIT 2",
                            f"INSERT INTO d VALUES ({a % 7}, 1), ({a % 7}, 1)",
                            f"UPDATE d SET b = b + 1 WHERE a = {a % 7} LIMIT 1",
                            f"DELETE FROM d WHERE a = {a % 7} LIMIT 1",
                        ])
                    )  # fmt: skip
                connection.commit()
                stop.wait(0.002)
                if number % 200 == 0:
                    cursor.execute(f"ALTER TABLE k ADD COLUMN n{number} INT NOT NULL DEFAULT {number}")

    writer = threading.Thread(target=write)
    writer.start()
    dice = random.Random(1)
    try:
        positions = []
        for _ in range(20 if full else 3):
            if not by_gtid:
                ledger = Ledger.open(mirror.replica)
                now = ledger.position()
                ledger.save_position(Position(now.file, now.offset, "", now.server))
            mirror.replica.close()
            root = Path(__file__).parents[2]
            command = [sys.executable, "-c", CHILD, str(mirror.path)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as child:
                child.stdin.write(mirror.mariadb.url(mirror.database).encode() + b"\n")
                child.stdin.flush()
                assert child.stdout.readline() == b"started\n"
                for _ in range(dice.randrange(1, 4)):
                    assert child.stdout.readline() == b"committed\n"
                time.sleep(dice.uniform(0, 0.2))  # somewhere in the next batch
                child.send_signal(signal.SIGKILL)
            mirror.replica = duckdb.connect(str(mirror.path))
            positions.append(Ledger.open(mirror.replica).position().order)
    finally:
        stop.set()
        writer.join()
    assert positions == sorted(positions)
    assert len(set(positions)) == len(positions)
    mirror.catch_up(by_gtid=by_gtid)
    mirror.assert_equal()
