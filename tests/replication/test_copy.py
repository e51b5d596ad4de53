"""Full copies of a real MariaDB: equal row by row, whatever is written, killed or altered meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.replica_file import opened

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, CancelledError, DucklingError

pytestmark = pytest.mark.mysql

# Each makes a table and fills it. Together: every kind of key, no key, engines without snapshots, odd names.
TABLES = {
    "int_key": [
        "CREATE TABLE int_key (id INT PRIMARY KEY, a VARCHAR(50), b DECIMAL(12, 3), c DATETIME(6), d BLOB, e DOUBLE)",
        """INSERT INTO int_key SELECT seq * 3, CONCAT('näme ', seq), seq / 7, '2024-01-01' + INTERVAL seq SECOND,
            UNHEX(MD5(seq)), seq / 3 FROM seq_1_to_5000""",
        "UPDATE int_key SET a = NULL, b = NULL, c = NULL, d = NULL, e = NULL WHERE id % 11 = 0",
    ],
    "gaps": [
        "CREATE TABLE gaps (id BIGINT PRIMARY KEY, a INT)",
        "INSERT INTO gaps SELECT -9223372036854775807 + CAST(seq * seq * seq AS SIGNED), seq FROM seq_0_to_900",
        "INSERT INTO gaps VALUES (9223372036854775807, 1), (0, 2)",
    ],
    "unsigned": [
        "CREATE TABLE `unsigned` (id BIGINT UNSIGNED PRIMARY KEY, a TINYINT UNSIGNED)",
        "INSERT INTO `unsigned` SELECT 18446744073709551615 - seq, seq % 256 FROM seq_0_to_700",
    ],
    "composite": [
        """CREATE TABLE composite (tenant INT, name VARCHAR(30) COLLATE utf8mb4_general_ci, day DATE, n INT,
            PRIMARY KEY (tenant, name, day))""",
        """INSERT INTO composite SELECT seq % 3, CONCAT('N', seq DIV 9), '2024-01-01' + INTERVAL seq % 9 DAY, seq
            FROM seq_1_to_2000""",
    ],
    "text_key": [
        "CREATE TABLE text_key (k VARCHAR(40) CHARACTER SET latin1 PRIMARY KEY, n INT)",
        "INSERT INTO text_key SELECT CONCAT(CHAR(65 + seq % 26), 'é\\'\\\\\"%', seq), seq FROM seq_1_to_1500",
        "INSERT INTO text_key VALUES ('', 0)",
    ],
    "binary_key": [
        "CREATE TABLE binary_key (k BINARY(16) PRIMARY KEY, n INT)",
        "INSERT INTO binary_key SELECT UNHEX(MD5(seq)), seq FROM seq_1_to_1500",
    ],
    "zero_date_key": [
        "CREATE TABLE zero_date_key (k DATE, n INT, PRIMARY KEY (k, n))",
        "INSERT INTO zero_date_key SELECT '2024-01-01' + INTERVAL seq DAY, seq FROM seq_1_to_100",
    ],
    "enum_key": [
        "CREATE TABLE enum_key (k ENUM('z', 'a', 'm') , n INT, PRIMARY KEY (k, n))",
        "INSERT INTO enum_key SELECT 1 + seq % 3, seq FROM seq_1_to_500",
    ],
    "no_key": [
        "CREATE TABLE no_key (a INT, b VARCHAR(20))",
        "INSERT INTO no_key SELECT seq % 10, IF(seq % 5, 'twice', NULL) FROM seq_1_to_1000",
    ],
    "no_key_myisam": [
        "CREATE TABLE no_key_myisam (a INT, b VARCHAR(20)) ENGINE = MyISAM",
        "INSERT INTO no_key_myisam SELECT seq % 10, 'x' FROM seq_1_to_300",
    ],
    "emptied": ["CREATE TABLE emptied (id INT PRIMARY KEY, a VARCHAR(5))"],
    "empty_no_key": ["CREATE TABLE empty_no_key (a VARCHAR(5))"],
    "select `x` \"y\" 'z' ü": [
        "CREATE TABLE `select ``x`` \"y\" 'z' ü` (`order` INT PRIMARY KEY, `a ``b`` \"c\" 'd'` INT, `ß %s {0}` TEXT)",
        "INSERT INTO `select ``x`` \"y\" 'z' ü` VALUES (1, 2, 'three'), (4, NULL, '')",
    ],
}


@pytest.fixture
def filled(mariadb: Any, database: str) -> list[str]:
    """`database` with all of TABLES."""
    for statements in TABLES.values():
        mariadb.execute(statements, database)
    return sorted(TABLES)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ranges of few rows."""
    from duckling_provider.replication.copy import ranges

    monkeypatch.setattr(ranges, "_FIRST_ROWS", 16)
    monkeypatch.setattr(ranges, "RANGE_ROWS", 128)


def copy(source: Any, target: Path, tables: Any, *, control: Control | None = None, **options: Any) -> Any:
    from duckling_provider.replication.copy.table_copy import copy_tables

    return copy_tables(
        source, target, tables, position=position_of(source), control=control or Control(), workers=3, **options
    )


def position_of(source: Any) -> Any:
    from duckling_provider.replication.mysql.source import connect, current_position

    with contextlib.closing(connect(source)) as connection:
        return current_position(connection)


def in_mysql(mariadb: Any, database: str, table: str) -> Counter[Any]:
    return Counter(mariadb.execute(f"SELECT * FROM `{table.replace('`', '``')}`", database))


def in_duckdb(path: Path, table: str) -> Counter[Any]:
    with opened(path) as connection:
        name = '"' + table.replace('"', '""') + '"'
        return Counter(connection.execute(f"SELECT * FROM main.{name}").fetchall())


def tables_in(path: Path) -> set[str]:
    with opened(path) as connection:
        return {
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
            ).fetchall()
        }


def assert_equal(mariadb: Any, database: str, path: Path, tables: Any) -> None:
    for table in tables:
        wanted, found = in_mysql(mariadb, database, table), in_duckdb(path, table)
        assert found == wanted, (table, list((wanted - found).items())[:3], list((found - wanted).items())[:3])


# ---- contents ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_ranges")
def test_every_kind_of_table_is_equal_row_by_row(
    mariadb: Any, database: str, source: Any, filled: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "new.db"
    done = copy(source, target, filled)
    assert_equal(mariadb, database, target, filled)
    assert set(done.copied) == set(filled) == tables_in(target)
    assert {name: state.rows for name, state in done.tables.items()} == {
        name: sum(in_mysql(mariadb, database, name).values()) for name in filled
    }
    assert not target.with_name("new.db.wal").exists()


@pytest.mark.mysql_too
@pytest.mark.parametrize("fast", [True, False], ids=["connectorx", "pymysql"])
def test_choices_of_bytes_come_as_their_text(
    mariadb: Any, database: str, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fast: bool
) -> None:
    """DuckDB would write bytes as escapes, a backslash as \\x5C."""
    from duckling_provider.replication.copy import table_copy

    mariadb.execute(
        [
            r"CREATE TABLE c (id INT PRIMARY KEY, e ENUM('a\\b', 'ä'), s SET('a\\b', 'ä')) CHARACTER SET binary",
            r"INSERT INTO c VALUES (1, 'a\\b', 'a\\b,ä'), (2, 'ä', ''), (3, NULL, NULL)",
        ],
        database,
    )
    if not fast:
        monkeypatch.setattr(table_copy, "can_be_fast", lambda *_: False)
    copy(source, tmp_path / "new.db", ["c"])
    assert in_duckdb(tmp_path / "new.db", "c") == Counter([(1, r"a\b", r"a\b,ä"), (2, "ä", ""), (3, None, None)])


@pytest.mark.usefixtures("filled")
def test_the_file_has_the_storage_version_asked_for(source: Any, tmp_path: Path) -> None:
    import struct

    target = tmp_path / "new.db"
    copy(source, target, ["emptied"], storage_version="v1.5.0")
    headers = target.read_bytes()[4096:12288]
    first, second = headers[:4096], headers[4096:]
    active = max((first, second), key=lambda header: struct.unpack_from("<Q", header, 8)[0])
    assert struct.unpack_from("<Q", active, 56)[0] == 7  # v1.5


@pytest.mark.usefixtures("filled")
def test_only_the_tables_asked_for_are_copied(source: Any, tmp_path: Path) -> None:
    done = copy(source, tmp_path / "new.db", ["emptied", "no_key", "was dropped"])
    assert tables_in(tmp_path / "new.db") == {"emptied", "no_key"}
    assert done.vanished == ("was dropped",)


@pytest.mark.usefixtures("database")
def test_a_database_without_tables_makes_a_file_with_a_ledger(source: Any, tmp_path: Path) -> None:
    done = copy(source, tmp_path / "new.db", [])
    assert done.tables == {}
    assert done.position == done.end == position_of(source)


def test_names_that_differ_in_case_only_are_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(DucklingError, match="both Orders and orders"):
        copy(source, tmp_path / "new.db", ["orders", "Orders"])


@pytest.mark.usefixtures("small_ranges")
def test_ranges_meet_each_row_exactly_once(database: str, source: Any, filled: list[str]) -> None:
    from duckling_provider.replication.copy.ranges import Pace, Statistics, is_rangeable, key_ranges
    from duckling_provider.replication.mysql.schema import read_tables
    from duckling_provider.replication.mysql.source import connect, query

    with contextlib.closing(connect(source)) as connection:
        tables = read_tables(connection, database)
        rangeable = {name for name in filled if is_rangeable(tables[name])}
        assert set(filled) - rangeable == {"enum_key", "no_key", "no_key_myisam", "empty_no_key"}
        for name in rangeable:
            quoted = name.replace("`", "``")
            total = query(connection, f"SELECT COUNT(*) FROM `{quoted}`")[0][0]
            sizes = []
            for found in key_ranges(connection, tables[name], Statistics.read(connection, name), Pace()):
                where = f"WHERE {found.where}" if found.where else ""
                sizes.append(query(connection, f"SELECT COUNT(*) FROM `{quoted}` {where}")[0][0])
                assert found.bounded
            assert sum(sizes) == total
            assert max(sizes, default=0) <= 16
            assert len(sizes) >= total / 16


@pytest.mark.usefixtures("filled", "small_ranges")
def test_a_boundary_that_cannot_be_written_down_leaves_the_rest_to_one_stream(
    mariadb: Any, database: str, source: Any, tmp_path: Path
) -> None:
    mariadb.execute("INSERT INTO zero_date_key SELECT '0000-00-00', seq FROM seq_1_to_50", database)
    copy(source, tmp_path / "new.db", ["zero_date_key"])
    found = in_duckdb(tmp_path / "new.db", "zero_date_key")
    wanted = mariadb.execute("SELECT NULLIF(k, '0000-00-00'), n FROM zero_date_key", database)
    assert found == Counter(wanted)


def test_both_transports_bring_the_same(
    source: Any, database: str, filled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mariadb: Any
) -> None:
    from duckling_provider.replication.copy import table_copy as module

    monkeypatch.setattr(module, "can_be_fast", lambda *_: False)
    copy(source, tmp_path / "slow.db", filled)
    assert_equal(mariadb, database, tmp_path / "slow.db", filled)


def test_tls_is_not_given_up_for_speed(source: Any) -> None:
    from pymysql.constants import CLIENT

    from duckling_provider.replication.copy.transport import can_be_fast
    from duckling_provider.replication.mysql.source import Tls, connect

    with contextlib.closing(connect(source)) as connection:
        assert can_be_fast(source, connection)
        assert not can_be_fast(replace(source, tls=Tls(mode="REQUIRED")), connection)
        assert not can_be_fast(replace(source, unix_socket="/run/mysqld/mysqld.sock"), connection)
        # Where the server offers none there is none to give up.
        offered = connection.server_capabilities & CLIENT.SSL
        assert can_be_fast(replace(source, host="db.example.com"), connection) is not bool(offered)


@pytest.mark.usefixtures("filled")
def test_a_panic_of_connectorx_is_an_error_without_the_password(source: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from duckling_provider.replication.copy import transport

    url = source.url().get_secret_value()
    secrets = [source.password.get_secret_value(), url.split(":")[2].rpartition("@")[0]]
    for query in ("SELECT CAST('100:00:00' AS TIME) AS c0", "SELECT nonsense"):
        with pytest.raises(transport._UnfitError) as caught:
            transport._read_by_connectorx(url, source, query, None)
        told = str(caught.value) + "".join(capfd.readouterr())
        assert not any(secret in told for secret in secrets)


# ---- changes meanwhile -------------------------------------------------------------------------------------


class Writers:
    """Two sessions that change `keyed` and `keyless` at random until the block ends."""

    def __init__(self, mariadb: Any, database: str) -> None:
        self._mariadb, self._database = mariadb, database
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed,)) for seed in (1, 2)]
        self.errors: list[BaseException] = []

    def _write(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            with contextlib.closing(self._mariadb.connect(self._database, autocommit=False)) as connection:
                cursor = connection.cursor()
                while not self._stop.is_set():
                    for _ in range(rng.randint(1, 5)):
                        self._change(cursor, rng, seed)
                    connection.commit()
                    self._stop.wait(0.001)  # to leave something for the copy
        except BaseException as error:
            self.errors.append(error)

    def _change(self, cursor: Any, rng: random.Random, seed: int) -> None:
        # Odd keys belong to one session and even ones to the other, so that they never wait for each other.
        key = rng.randrange(3000) * 2 + seed - 1
        kind = rng.randrange(6)
        if kind == 0:
            cursor.execute("REPLACE INTO keyed VALUES (%s, %s)", (key, rng.random()))
        elif kind == 1:
            cursor.execute("DELETE FROM keyed WHERE id = %s", (key,))
        elif kind == 2:
            cursor.execute("UPDATE IGNORE keyed SET id = %s WHERE id = %s", (rng.randrange(3000) * 2 + seed - 1, key))
        elif kind == 3:
            cursor.execute(
                "UPDATE keyed SET a = a + 1 WHERE id BETWEEN %s AND %s AND id %% 2 = %s", (key, key + 9, seed - 1)
            )
        else:
            cursor.execute("INSERT INTO keyless VALUES (%s, 'same')", (rng.randrange(5),))

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors


def replayed(source: Any, done: Any, path: Path) -> tuple[dict[Any, Any], Counter[Any]]:
    """`keyed` and `keyless` after the binlog from the copy's position, by a reader that knows nothing of ours."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.event import XidEvent
    from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    keyed = {row[0]: row for row in in_duckdb(path, "keyed")}
    keyless = in_duckdb(path, "keyless")
    end = position_of(source)
    settings = {"host": source.host, "port": source.port, "user": source.user}
    stream = BinLogStreamReader(
        connection_settings={**settings, "passwd": source.password.get_secret_value().encode()},
        server_id=random.randrange(10_000, 10_000_000),
        log_file=done.position.file,
        log_pos=done.position.offset,
        resume_stream=True,
        blocking=False,
        only_events=[DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent, XidEvent],
        only_schemas=[source.database],
    )

    def replay(event: Any) -> None:
        for row in event.rows:
            before = row.get("before_values") or (row["values"] if isinstance(event, DeleteRowsEvent) else None)
            after = row.get("after_values") or (row["values"] if isinstance(event, WriteRowsEvent) else None)
            if event.table == "keyless":
                keyless[tuple(after.values())] += 1
                continue
            if before:
                keyed.pop(next(iter(before.values())), None)
            if after:
                keyed[next(iter(after.values()))] = tuple(after.values())

    with contextlib.closing(stream):
        transaction: list[Any] = []
        for event in stream:
            # Positions are ends of transactions, and MariaDB 11.8 tells no others: what ends at the start or before
            # belongs to the copy.
            if not isinstance(event, XidEvent):
                transaction.append(event)
                continue
            place, changes, transaction = (stream.log_file, event.packet.log_pos), transaction, []
            for change in changes:
                start = done.tables[change.table].start
                if place > (start.file, start.offset):
                    replay(change)
    assert end.order >= done.end.order
    return keyed, keyless


@pytest.mark.usefixtures("small_ranges")
def test_a_copy_under_writes_converges_when_the_binlog_is_applied(
    mariadb: Any, database: str, source: Any, tmp_path: Path, *, full: bool
) -> None:
    mariadb.execute(
        [
            "CREATE TABLE keyed (id INT PRIMARY KEY, a DOUBLE)",
            "CREATE TABLE keyless (a INT, b VARCHAR(10))",
            "INSERT INTO keyed SELECT seq, seq FROM seq_1_to_6000",
            "INSERT INTO keyless SELECT seq % 5, 'same' FROM seq_1_to_3000",
        ],
        database,
    )
    for attempt in range(3 if full else 1):
        target = tmp_path / f"{attempt}.db"
        with Writers(mariadb, database):
            time.sleep(0.2)
            done = copy(source, target, ["keyed", "keyless"])
            time.sleep(0.2)
        assert done.position.order <= min(state.start.order for state in done.tables.values())
        keyed, keyless = replayed(source, done, target)
        assert keyless == in_mysql(mariadb, database, "keyless")
        assert Counter(keyed.values()) == in_mysql(mariadb, database, "keyed")
        # There was something to converge: the copy alone is not what MySQL has now.
        assert in_duckdb(target, "keyed") != in_mysql(mariadb, database, "keyed")


class Interfering(Control):
    """Calls `act` with the table's name each time the copy of one begins."""

    def __init__(self, act: Any) -> None:
        self._act, self.seen = act, []
        super().__init__()

    def begin(self, step: str, total: int) -> None:
        super().begin(step, total)
        self.seen.append(step)
        self._act(step.removeprefix("copy "), len(self.seen))


@pytest.mark.usefixtures("filled")
def test_a_table_whose_columns_change_is_begun_again(mariadb: Any, database: str, source: Any, tmp_path: Path) -> None:
    def alter(table: str, time: int) -> None:
        if time <= 2:
            mariadb.execute(f"ALTER TABLE {table} ADD COLUMN extra{time} INT DEFAULT {time}", database)

    control = Interfering(alter)
    done = copy(source, tmp_path / "new.db", ["int_key"], control=control)
    assert control.seen == ["copy int_key"] * 3
    assert_equal(mariadb, database, tmp_path / "new.db", ["int_key"])
    assert [column.name for column in done.tables["int_key"].table.columns][-2:] == ["extra1", "extra2"]


@pytest.mark.usefixtures("filled")
def test_a_table_that_changes_all_the_time_is_given_up_with_its_name(
    mariadb: Any, database: str, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from duckling_provider.replication.copy import table_copy as module

    monkeypatch.setattr(module, "_PAUSE", 0)

    def alter(table: str, time: int) -> None:
        if table == "int_key":
            mariadb.execute(f"ALTER TABLE {table} ADD COLUMN extra{time} INT", database)

    done = copy(source, tmp_path / "new.db", ["int_key", "emptied"], control=Interfering(alter))
    (error,) = done.refused
    assert str(error).startswith("int_key: copy: its columns changed")
    assert tables_in(tmp_path / "new.db") == {"emptied"}


@pytest.mark.usefixtures("filled")
def test_a_table_that_is_dropped_meanwhile_is_left_out(
    mariadb: Any, database: str, source: Any, tmp_path: Path
) -> None:
    done = copy(
        source,
        tmp_path / "new.db",
        ["emptied", "int_key", "no_key"],
        control=Interfering(lambda table, _: table == "emptied" or mariadb.execute(f"DROP TABLE {table}", database)),
    )
    assert done.vanished == ("int_key", "no_key")
    assert tables_in(tmp_path / "new.db") == {"emptied"}


# ---- interruptions -----------------------------------------------------------------------------------------


def test_a_cancelled_copy_goes_on_where_it_was(
    mariadb: Any, database: str, source: Any, filled: list[str], tmp_path: Path
) -> None:
    control = Interfering(lambda _, time: time == 5 and control.cancel())
    with pytest.raises(CancelledError):
        copy(source, tmp_path / "new.db", filled, control=control)
    finished = tables_in(tmp_path / "new.db")
    assert finished == set(filled[:4])
    done = copy(source, tmp_path / "new.db", filled)
    assert set(done.copied) == set(filled) - finished
    assert_equal(mariadb, database, tmp_path / "new.db", filled)


@pytest.mark.usefixtures("filled")
def test_what_has_changed_since_the_interruption_is_copied_again(
    mariadb: Any, database: str, source: Any, tmp_path: Path
) -> None:
    target = tmp_path / "new.db"
    copy(source, target, ["emptied", "int_key", "no_key"])
    mariadb.execute(["ALTER TABLE emptied ADD COLUMN more INT", "DROP TABLE no_key"], database)
    done = copy(source, target, ["emptied", "int_key"])
    assert done.copied == ("emptied",)
    assert tables_in(target) == {"emptied", "int_key"} == set(done.tables)
    assert_equal(mariadb, database, target, ["emptied", "int_key"])


@pytest.mark.usefixtures("small_ranges")
def test_large_rows_are_committed_in_between_and_never_pass_for_a_whole_table(
    mariadb: Any, database: str, source: Any, filled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from duckling_provider.replication.copy import copy_file as module

    monkeypatch.setattr(module, "_ROW_GROUP_BYTES", 5000)
    target = tmp_path / "new.db"

    class Impatient(Control):
        def advance(self, count: int) -> None:
            if target.stat().st_size > 100_000:
                self.cancel()
            super().advance(count)

    with pytest.raises(CancelledError):
        copy(source, target, ["int_key"], control=Impatient())
    assert tables_in(target) == set()
    copy(source, target, filled)
    assert_equal(mariadb, database, target, filled)


@pytest.mark.usefixtures("filled")
def test_what_was_caught_up_before_the_interruption_stands_at_the_position_of_the_file(
    source: Any, tmp_path: Path
) -> None:
    import duckdb

    from duckling_provider.replication.model.ledger import Ledger

    target = tmp_path / "new.db"
    first = copy(source, target, ["emptied", "int_key"])
    applied = replace(first.end, file="mysql-bin.999999")
    with duckdb.connect(str(target)) as connection:
        ledger = Ledger.open(connection)
        ledger.save_position(applied)
        ledger.save_table(replace(first.tables["emptied"], start=None))
    second = copy(source, target, ["emptied", "int_key"])
    # No server ever had that position, so what stands there is copied again; a real one is in the binlog.
    assert second.copied == ("emptied",)
    with duckdb.connect(str(target)) as connection:
        ledger = Ledger.open(connection)
        ledger.save_position(first.end)
        ledger.save_table(replace(first.tables["emptied"], start=None))
    third = copy(source, target, ["emptied", "int_key"])
    assert third.copied == ()
    assert third.tables["emptied"].start == first.end
    assert third.position.order <= first.end.order


@pytest.mark.usefixtures("filled")
def test_a_file_that_was_not_created_to_its_end_is_begun_again(source: Any, tmp_path: Path) -> None:
    (tmp_path / "new.db").write_bytes(b"\0" * 4096)
    copy(source, tmp_path / "new.db", ["emptied"])
    assert tables_in(tmp_path / "new.db") == {"emptied"}


_CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from duckling_provider.base.cancellation import Control
from duckling_provider.replication.copy import copy_file, ranges
from duckling_provider.replication.copy.table_copy import copy_tables
from duckling_provider.replication.mysql.source import Source, connect, current_position

task = json.loads(sys.stdin.read())
ranges._FIRST_ROWS, ranges.RANGE_ROWS, copy_file._ROW_GROUP_BYTES = 16, 128, 20_000

class Deadly(Control):
    seen = 0
    def begin(self, step, total):
        super().begin(step, total)
        print(step, flush=True)
        self.seen += 1
        if self.seen == task["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

source = Source.parse(task["url"], subject="production")
copy_tables(source, Path(task["target"]), task["tables"], position=current_position(connect(source)), control=Deadly())
"""


def child(task: dict[str, Any]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(task).encode())
    process.stdin.close()
    return process


def test_kills_at_each_table_boundary_lose_nothing(
    mariadb: Any, database: str, source: Any, filled: list[str], tmp_path: Path, *, full: bool
) -> None:
    target = tmp_path / "new.db"
    task = {"url": mariadb.url(database), "target": str(target), "tables": filled}
    # Each run finishes two tables and dies at the beginning of the third.
    kills = 3 if full else 1
    for _ in range(kills):
        process = child({**task, "die_at": 3})
        assert process.wait(60) == -signal.SIGKILL
    done = copy(source, target, filled)
    assert set(done.copied) == set(filled[2 * kills :])
    assert_equal(mariadb, database, target, filled)


def test_kills_at_any_moment_lose_nothing(
    mariadb: Any, database: str, source: Any, filled: list[str], tmp_path: Path, *, full: bool
) -> None:
    target = tmp_path / "new.db"
    task = {"url": mariadb.url(database), "target": str(target), "tables": filled, "die_at": 0}
    rng = random.Random(int(os.environ.get("DUCKLING_SEED", "7")))
    killed = 0
    for _ in range(20 if full else 2):
        process = child(task)
        assert process.stdout is not None
        process.stdout.readline()  # the first table has begun
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        killed += process.wait(60) == -signal.SIGKILL
    assert killed
    copy(source, target, filled)
    assert_equal(mariadb, database, target, filled)
    assert tables_in(target) == set(filled)


@pytest.mark.usefixtures("database")
def test_two_copies_into_one_file_are_refused(source: Any, filled: list[str], tmp_path: Path) -> None:
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path / "new.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BusyError):
            copy(source, tmp_path / "new.db", filled)
        other.communicate()
