"""The rolling validation: what it finds and mends, what it must not take for a difference, and what it may cost."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from fixtures.command_line import run_here
from fixtures.replica_file import opened

from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.moments import iso
from duckling_provider.replica.locks import place_hold, release_hold
from duckling_provider.replication.copying import renew_tables
from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.validated import TableValidation
from duckling_provider.replication.rolling import Rolling
from duckling_provider.replication.run import Run, Synced
from duckling_provider.replication.sync import sync
from duckling_provider.replication.validate import schedule
from duckling_provider.replication.validate.looks import Asker

pytestmark = pytest.mark.mysql

#: An interval in days after which everything is due again at once.
ALWAYS = 1e-9


EVER = datetime(1, 1, 1, tzinfo=timezone.utc)


class Proof:
    """An entry with its replica, and the rolling validation alone: without the rest of a sync, which costs seconds."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.entry = site(validateIntervalDays=ALWAYS)

    def copy(self, *statements: str) -> None:
        """Run `statements` on the server and make the replica."""
        self.run(*statements)
        self.entry = self.site(validateIntervalDays=0)
        sync(self.entry)
        self.entry = self.site(validateIntervalDays=ALWAYS)

    def run(self, *statements: str) -> None:
        self.site.run(*statements)

    def spoil(self, *statements: str) -> None:
        """Change the replica behind the sync's back."""
        with opened(self.entry.replica, read_only=False) as connection:
            for statement in statements:
                connection.execute(statement)

    def ours(self, sql: str) -> list[tuple[Any, ...]]:
        with opened(self.entry.replica) as connection:
            return connection.execute(sql).fetchall()

    def every(self, names: Iterable[str]) -> dict[str, list[tuple[Any, ...]]]:
        with opened(self.entry.replica) as connection:
            return {name: connection.execute(f"FROM {name} ORDER BY ALL").fetchall() for name in names}

    def known(self) -> dict[str, TableValidation]:
        with opened(self.entry.replica) as connection:
            return Ledger.open(connection).validations.read()

    def history(self, kind: str) -> list[str]:
        return [note for (note,) in self.ours(f"SELECT note FROM _duckling.history WHERE kind = '{kind}' ORDER BY ALL")]

    def once(self) -> Synced:
        """One go."""
        run = Run(self.entry, Control(), "test", 30.0)
        run.fold_names()
        run.look_at_replica()
        following = Following(run)
        following.follow(None)
        Rolling(run, following).work()
        return run.done

    def all(self) -> dict[str, int]:
        """Goes until each table was compared from its beginning to its end; the differences by table."""
        begun, found = datetime.now(timezone.utc), {}
        for _ in range(20):
            for name, count in self.once().differing.items():
                found[name] = found.get(name, 0) + count
            left = self._left(begun)
            if not left:
                return found
        pytest.fail(f"never compared: {left}")

    def _left(self, begun: datetime) -> set[str]:
        with opened(self.entry.replica) as connection:
            ledger = Ledger.open(connection)
            known = ledger.validations.read()
            names = {state.name for state in ledger.tables().values() if state.state == "ok"}
        return {
            name
            for name in names
            if name not in known or ((known[name].validated_at or EVER) < begun and not known[name].note)
        }

    def renew(self) -> None:
        """Copy again what is marked."""
        run = Run(self.entry, Control(), "test", 30.0)
        run.fold_names()
        run.look_at_replica()
        renew_tables(run, Following(run))


@pytest.fixture
def proof(site: Any, monkeypatch: pytest.MonkeyPatch) -> Proof:
    """One go looks at everything, unless a test says otherwise."""
    allow(monkeypatch, 10**9)
    return Proof(site)


def allow(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(schedule, "allowance", lambda *_: schedule.Allowance(rows=rows, seconds=1e9))


#: Name -> (definition of the key, values in the server's words); each table has a column ``v``.
KEYS = {
    "number": ("id BIGINT UNSIGNED, PRIMARY KEY (id)", ["0", "1", "7", "9223372036854775808", "18446744073709551615"]),
    "text": (
        "id VARCHAR(100) COLLATE utf8mb4_general_ci, PRIMARY KEY (id)",
        ["''", "'Alice'", "'bob'", "'Émile'", "'zoë 🦆'", "'a|b'", "'quote'''", "'\\\\'"],
    ),
    "old_text": ("id CHAR(9) CHARACTER SET latin1, PRIMARY KEY (id)", ["'a'", "'B'", "'é'", "'€'", "'ß'"]),
    "long_text": ("id VARCHAR(700), PRIMARY KEY (id)", ["REPEAT('x', 700)", "REPEAT('ü', 699)", "'y'", "'z'"]),
    "pair": (
        "a VARCHAR(9) COLLATE utf8mb4_unicode_ci, b DECIMAL(9,3), c DATE, PRIMARY KEY (c, a, b)",
        ["'x', -0.5, '2024-02-29'", "'X2', 1.25, '2024-02-29'", "'y', 0, '1999-01-01'", "'y', 0.001, '1999-01-01'"],
    ),
    "bytes": ("id VARBINARY(16), PRIMARY KEY (id)", ["x''", "x'00'", "x'0000'", "x'ff'", "x'00ff27'"]),
    "fixed": ("id BINARY(4), PRIMARY KEY (id)", ["x'01'", "x'0100ff'", "x'ffffffff'", "x'27272727'"]),
    "moment": (
        "id DATETIME(6), n INT, PRIMARY KEY (id, n)",
        ["'2024-01-01 00:00:00.000001', 1", "'2024-01-01 00:00:00.1', 1", "'1000-01-01', -5", "'9999-12-31', 2"],
    ),
    # Compared as a whole.
    "choice": ("id ENUM('b','a','c','d'), PRIMARY KEY (id)", ["'a'", "'b'", "'c'", "'d'"]),
    "stamp": ("id TIMESTAMP(3), PRIMARY KEY (id)", ["'2024-01-01 00:00:00.5'", "'2001-01-01'", "'1999-01-01'"]),
    "zero_date": ("id DATE, PRIMARY KEY (id)", ["'2024-01-01'", "'2024-01-02'", "'0000-00-00'", "'2024-05-00'"]),
    "japanese": ("id VARCHAR(9) CHARACTER SET sjis, PRIMARY KEY (id)", ["'a'", "'ア'", "'b'", "'日本'"]),
    "none": ("id INT, w VARCHAR(9)", ["1, 'a'", "1, 'a'", "NULL, NULL", "2, ''", "3, 'x'"]),
}  # fmt: skip
WHOLE = {"choice", "stamp", "zero_date", "japanese", "none"}


@pytest.mark.mysql_too
def test_an_altered_a_missing_and_an_extra_row_are_found_repaired_and_counted_whatever_the_key_is(proof, mariadb, full):
    # One kind of each in the short form on the second server.
    kinds = KEYS if full or mariadb.is_mariadb else {name: KEYS[name] for name in ("pair", "choice")}
    statements = ["SET SESSION sql_mode = ''"]
    for name, (columns, keys) in kinds.items():
        statements.append(f"CREATE TABLE {name} (v VARCHAR(20), {columns})")
        statements.append(f"INSERT INTO {name} VALUES " + ", ".join(f"('v{n}', {key})" for n, key in enumerate(keys)))
    proof.copy(*statements)
    before = proof.every(kinds)
    assert proof.all() == {}
    assert all(known.validated_at and not known.differences for known in proof.known().values())
    statements = []
    for name, (columns, _) in kinds.items():
        key = ", ".join(re.findall(r"(?:^|, )(\w+) ", columns.partition(", PRIMARY")[0]))
        statements.append(f"UPDATE {name} SET v = 'other' WHERE v = 'v0'")
        statements.append(f"DELETE FROM {name} WHERE v = 'v1'")
        # A second row with the same key, which no key of the replica forbids.
        statements.append(f"INSERT INTO {name} (v, {key}) SELECT 'twice', {key} FROM {name} WHERE v = 'v2'")
    proof.spoil(*statements)
    found = proof.all()
    assert found == {name: 4 if name == "none" else 3 for name in kinds}
    known = proof.known()
    assert {name: known[name].differences for name in kinds} == found
    assert all(known[name].differed_at for name in kinds)
    told = proof.history("difference")
    assert len(told) == len(kinds)
    assert "pair: 3 rows differed from MySQL (1 missing, 1 extra, 1 different) and were copied again" in told
    waiting = {name for (name,) in proof.ours("SELECT name FROM _duckling.tables WHERE state = 'recopy'")}
    assert waiting == WHOLE & kinds.keys()
    proof.renew()
    assert proof.every(kinds) == before


def test_keys_that_only_the_replica_has_are_found(proof):
    proof.copy(
        "CREATE TABLE number (id INT PRIMARY KEY, v INT)",
        "INSERT INTO number VALUES (10, 1), (20, 2)",
        "CREATE TABLE text (id VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, v INT)",
        "INSERT INTO text VALUES ('Alice', 1), ('bob', 2)",
        "CREATE TABLE nothing (id INT PRIMARY KEY)",
        "CREATE TABLE latin (id VARCHAR(20) CHARACTER SET latin1 PRIMARY KEY)",
        "INSERT INTO latin VALUES ('?')",
    )
    proof.spoil(
        "INSERT INTO number VALUES (0, 0), (15, 0), (99, 0), (NULL, 7)",
        # What a collation takes for the same key, and what the character set can't hold.
        "INSERT INTO text VALUES ('ALICE', 1), ('', 3), ('zz', 4), (NULL, 5)",
        "INSERT INTO nothing VALUES (1)",
        "INSERT INTO latin VALUES ('日')",
    )
    assert proof.all() == {"number": 4, "text": 4, "nothing": 1, "latin": 1}
    assert proof.ours("FROM number ORDER BY id") == [(10, 1), (20, 2)]
    assert proof.ours("FROM text ORDER BY id") == [("Alice", 1), ("bob", 2)]
    assert proof.ours("FROM nothing") == []
    assert proof.ours("FROM latin") == [("?",)]


#: Column -> (definition, value on the server, another one that looks alike in the replica).
EDGES = {
    "spaces": ("VARCHAR(9) COLLATE utf8mb4_general_ci", "'a'", "'a '"),
    "case_only": ("VARCHAR(9) COLLATE utf8mb4_general_ci", "'a'", "'A'"),
    "composed": ("VARCHAR(9)", "'é'", "'e' || chr(769)"),
    "emoji": ("VARCHAR(9)", "'🦆'", "'🦢'"),
    "empty": ("VARCHAR(9)", "''", "NULL"),
    "scale": ("DECIMAL(50,3)", "1.500", "'1.5'"),
    "digits": ("DECIMAL(38,20)", "0.00000000000000000001", "0.00000000000000000002"),
    "double": ("DOUBLE", "0.1", "0.1::DOUBLE + 1.3877787807814457e-17"),
    "float": ("FLOAT", "16777216", "16777218"),
    "fraction": ("DATETIME(6)", "'2024-01-01 00:00:00.000001'", "TIMESTAMP '2024-01-01'"),
    "stamp": ("TIMESTAMP(3) NULL", "'2024-01-01 00:00:00.001'", "TIMESTAMP '2024-01-01 00:00:00.002'"),
    "zero": ("DATE", "'0000-00-00'", "DATE '0001-01-01'"),
    "day": ("DATE", "'2024-02-29'", "DATE '2024-03-01'"),
    "span": ("TIME(6)", "'-838:59:58.999999'", "to_microseconds(-3020398999998)"),
    "year": ("YEAR", "2024", "2023"),
    "json": ("JSON", "'{\"b\": 1, \"a\": [1, 2]}'", "replace(json, '1', '9')"),
    "nul": ("VARBINARY(9)", "x'610062'", "'a\\x00c'::BLOB"),
    "nul_end": ("BINARY(3)", "x'61'", "'a'::BLOB"),
    "bits": ("BIT(64)", "b'1000000000000000000000000000000000000000000000000000000000000000'", "0"),
    "no_set": ("SET('x','y')", "''", "NULL"),
    "sets": ("SET('x','y')", "'y,x'", "'y,x'"),
    "place": ("POINT", "ST_GeomFromText('POINT(1 2)', 4326)", "'\\x01'::BLOB"),
    "big": ("BIGINT UNSIGNED", "18446744073709551615", "9223372036854775807"),
    "made": ("INT AS (id * 2) STORED", None, "0"),
    "words": ("LONGTEXT", "REPEAT('ü', 70000)", "repeat('ü', 69999) || 'u'"),
}  # fmt: skip


@pytest.mark.mysql_too
def test_a_difference_at_the_edge_of_a_type_is_found_and_no_edge_is_one(proof):
    columns = ", ".join(f"`{name}` {kind}" for name, (kind, _, _) in EDGES.items())
    written = {name: value for name, (_, value, _) in EDGES.items() if value is not None}
    names, values = ", ".join(f"`{name}`" for name in written), ", ".join(written.values())
    insert = "".join(f"({number}, {values}), " for number in range(1, len(EDGES) + 1))
    fill = f"INSERT INTO e (id, {names}) VALUES {insert.removesuffix(', ')}"
    proof.copy("SET SESSION sql_mode = ''", f"CREATE TABLE e (id INT PRIMARY KEY, {columns})", fill)
    # The same rows once more, by way of the binlog.
    proof.run("SET SESSION sql_mode = ''", f"INSERT INTO e (id, {names}) SELECT id + 1000, {names} FROM e")
    proof.run("INSERT INTO e (id) VALUES (5000)")
    assert proof.all() == {}
    before = proof.ours("FROM e ORDER BY id")
    for number, (name, (_, _, other)) in enumerate(EDGES.items(), 1):
        proof.spoil(f'UPDATE e SET "{name}" = {other} WHERE id = {number}')
    assert proof.all() == {"e": len(EDGES)}
    assert proof.ours("FROM e ORDER BY id") == before


def test_values_that_both_sides_write_differently_are_no_difference(proof):
    proof.copy(
        "CREATE TABLE t (id INT PRIMARY KEY, d DOUBLE, f FLOAT)",
        "INSERT INTO t VALUES (1, 1e15, 1e15), (2, -0.0, -0.0), (3, 1e300, 1e30), (4, 5e-324, 1e-40)",
        "CREATE TABLE none (d DOUBLE)",
        "INSERT INTO none VALUES (1e15), (-0.0), (1e15)",
    )
    proof.run("INSERT INTO t SELECT id + 10, d, f FROM t", "INSERT INTO none SELECT d FROM none")
    assert proof.all() == {}
    assert {name: known.unsettled for name, known in proof.known().items()} == {"t": 0, "none": 0}


def test_a_table_of_another_shape_or_none_at_all_is_copied_again(proof):
    proof.copy(*(f"CREATE TABLE t{n} (id INT PRIMARY KEY, a INT, b VARCHAR(9))" for n in range(4)))
    proof.spoil(
        "DROP TABLE t0",
        "ALTER TABLE t1 DROP COLUMN b",
        "ALTER TABLE t2 ALTER COLUMN a TYPE VARCHAR",
        "ALTER TABLE t3 ADD COLUMN c INT",
    )
    assert proof.all() == {f"t{n}": 1 for n in range(4)}
    assert sorted(proof.history("difference")) == [
        "t0: it is not in the replica",
        "t1: its columns in the replica are not those of a copy: b",
        "t2: its columns in the replica are not those of a copy: a",
        "t3: its columns in the replica are not those of a copy: c",
    ]
    proof.renew()
    assert proof.all() == {}


def between(monkeypatch: pytest.MonkeyPatch, name: str, action: Any) -> list[int]:
    """Have `action` happen after each answer of `Asker.<name>`; the list grows by one each time."""
    original, calls = getattr(Asker, name), []

    def answered(self: Asker, *arguments: Any) -> Any:
        answer = original(self, *arguments)
        calls.append(1)
        action(len(calls))
        return answer

    monkeypatch.setattr(Asker, name, answered)
    return calls


def test_rows_that_change_after_they_were_read_are_looked_at_again_and_are_no_difference(proof, monkeypatch):
    proof.copy(
        "CREATE TABLE t (id INT PRIMARY KEY, v INT)",
        "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3), (4, 4)",
        "CREATE TABLE s (id VARCHAR(9) PRIMARY KEY, v INT)",
        "INSERT INTO s VALUES ('a', 1), ('b', 2), ('c', 3)",
        "CREATE TABLE none (v INT)",
        "INSERT INTO none VALUES (1), (2)",
    )
    changes = [
        "UPDATE t SET v = v + 100 WHERE id = 1",
        "DELETE FROM t WHERE id = 2",
        "INSERT INTO t VALUES (50, 50)",
        "UPDATE t SET id = 60 WHERE id = 3",
        "UPDATE s SET v = v + 100 WHERE id = 'a'",
        "DELETE FROM s WHERE id = 'b'",
        "UPDATE none SET v = v + 100 WHERE v = 1",
    ]
    proof.spoil("UPDATE t SET v = 0 WHERE id = 4")
    answers = between(monkeypatch, "next_rows", lambda count: proof.run(*changes) if count == 1 else None)
    looked = between(
        monkeypatch, "values", lambda count: proof.run("UPDATE t SET v = v + 1 WHERE id = 1") if count == 1 else None
    )
    whole = between(
        monkeypatch, "buckets", lambda count: proof.run("INSERT INTO none VALUES (9)") if count == 1 else None
    )
    assert proof.all() == {"t": 1}
    assert proof.ours("FROM t ORDER BY id") == [(1, 102), (4, 4), (50, 50), (60, 3)]
    assert answers
    assert whole
    assert len(looked) >= 2


def test_a_row_that_changes_at_each_look_is_counted_as_unsettled_and_the_others_are_equal(proof, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    for name in ("next_rows", "values"):
        between(monkeypatch, name, lambda _: proof.run("UPDATE t SET v = v + 1 WHERE id = 1"))
    assert proof.once().differing == {}
    known = proof.known()["t"]
    assert (known.unsettled, known.differences) == (1, 0)
    assert known.validated_at is not None


def test_a_table_that_is_altered_or_emptied_meanwhile_is_no_difference(proof, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    statements = ["ALTER TABLE t ADD COLUMN w INT", "TRUNCATE TABLE t", "ALTER TABLE t DROP COLUMN v", "DROP TABLE t"]
    between(monkeypatch, "next_rows", lambda count: proof.run(statements[count - 1]) if count <= 4 else None)
    for _ in statements:
        assert proof.once().differing == {}
    assert proof.history("difference") == []


def test_children_that_go_with_their_parent_meanwhile_are_no_difference(proof, monkeypatch):
    proof.copy(
        "CREATE TABLE p (id INT PRIMARY KEY)",
        "CREATE TABLE c (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE)",
        "INSERT INTO p VALUES (1), (2), (3)",
        "INSERT INTO c VALUES (1, 1), (2, 2), (3, 3)",
    )
    between(
        monkeypatch, "next_rows", lambda count: proof.run(f"DELETE FROM p WHERE id = {count}") if count < 3 else None
    )
    assert proof.all() == {}
    assert proof.ours("FROM c") == [(3, 3)]


def test_no_false_alarm_while_a_writer_hammers_the_tables(proof, mariadb, database, monkeypatch, full):
    proof.copy(
        "CREATE TABLE t (id INT PRIMARY KEY, v INT, w VARCHAR(20))",
        "INSERT INTO t SELECT seq, 0, 'x' FROM seq_1_to_300",
        "CREATE TABLE s (id VARCHAR(20) PRIMARY KEY, v INT)",
        "INSERT INTO s SELECT CONCAT('key ', seq), 0 FROM seq_1_to_300",
        "CREATE TABLE none (v INT, w INT)",
        "INSERT INTO none SELECT seq, 0 FROM seq_1_to_300",
    )
    proof.spoil("UPDATE t SET w = 'spoiled' WHERE id = 299")
    # Each answer of the server lets the writer do so many rounds more, beside what is done with the answer.
    rounds = 40 if full else 8
    permits, written = threading.Semaphore(rounds), []
    for name in ("next_rows", "values", "present", "buckets", "where"):
        between(monkeypatch, name, lambda _: permits.release(rounds))
    stop = threading.Event()

    def write() -> None:
        with mariadb.connect(database) as connection, connection.cursor() as cursor:
            while permits.acquire() and not stop.is_set():
                written.append(1)
                number = len(written)
                row = number % 200 + 1
                cursor.execute(f"UPDATE t SET v = v + 1 WHERE id = {row}")
                cursor.execute(f"REPLACE INTO t VALUES ({1000 + row}, {number}, 'y')")
                cursor.execute(f"DELETE FROM t WHERE id = {1000 + (row + 100) % 200}")
                other = f"CONCAT('key ', {row}, IF(v % 2, '', 'a'))"
                cursor.execute(f"UPDATE s SET v = v + 1, id = {other} WHERE id IN ('key {row}', 'key {row}a')")
                cursor.execute(f"UPDATE none SET w = w + 1 WHERE v = {row}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found: dict[str, int] = {}
        for _ in range(2):
            for name, count in proof.once().differing.items():
                found[name] = found.get(name, 0) + count
    finally:
        stop.set()
        permits.release()
        writer.join()
    assert len(written) > rounds
    for name, count in proof.all().items():  # where it was missed above, because its row changed each time
        found[name] = found.get(name, 0) + count
    assert found == {"t": 1}


def test_nothing_is_compared_while_the_server_hides_what_is_in_its_binlog(proof, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1)")
    proof.spoil("UPDATE t SET v = 0")
    with monkeypatch.context() as patched:
        patched.setattr(Asker, "shows", lambda *_: False)
        assert (proof.once().pieces, proof.known()) == (0, {})
        answers = iter([True])
        patched.setattr(Asker, "shows", lambda *_: next(answers, False))
        # Seen to differ once, and not again: it may be the server that lags behind.
        assert proof.once().differing == {}
    assert proof.known() == {}
    assert proof.all() == {"t": 1}


@pytest.mark.mysql_too
def test_a_server_shows_what_is_in_its_binlog_up_to_where_it_stands(source):
    with Asker(source, Control()) as asker:
        position = asker.position()
        assert asker.shows(position)
        if position.server.startswith("server-id"):  # MariaDB
            ahead = replace(position, offset=position.offset + 1000)
        else:
            head, _, last = position.gtid.rpartition("-")
            ahead = replace(position, gtid=f"{head}-{int(last) + 1}")
        assert not asker.shows(ahead)


def test_a_server_that_goes_in_the_middle_leaves_what_is_known_as_it_was(proof, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    proof.spoil("UPDATE t SET v = 0 WHERE id = 2")
    original = Asker.values

    def cut(self: Asker, *arguments: Any) -> Any:
        proof.run(f"KILL {self._connection.thread_id()}")
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Asker, "values", cut)
        with pytest.raises(DucklingError) as caught:
            proof.once()
        assert caught.value.retryable
    assert proof.known() == {}
    assert proof.all() == {"t": 1}
    assert proof.ours("FROM t ORDER BY id") == [(1, 1), (2, 2)]


def test_a_table_that_the_server_refuses_to_compare_is_never_called_equal_and_the_others_are_compared(
    proof, monkeypatch
):
    proof.copy(*(f"CREATE TABLE {name} (id INT PRIMARY KEY, v INT)" for name in ("a", "b", "c")))
    original = Asker.next_rows

    def refused(self: Asker, table: Any, *arguments: Any) -> Any:
        if table.name == "b":
            self._rows("SELECT no_such_function(1)")
        return original(self, table, *arguments)

    monkeypatch.setattr(Asker, "next_rows", refused)
    for _ in range(3):
        done = proof.once()
    known = proof.known()
    assert known["a"].validated_at
    assert known["c"].validated_at
    assert known["b"].validated_at is None
    assert known["b"].note.startswith("it can't be compared: ")
    assert done.validated is None
    assert "no_such_function" in known["b"].note
    assert proof.history("validation")


def test_nothing_is_compared_where_the_interval_is_0(proof, site):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY)")
    proof.entry = site(validateIntervalDays=0)
    done = proof.once()
    assert (done.pieces, done.validated, proof.known()) == (0, None, {})


def test_a_go_looks_at_no_more_than_its_share_however_large_the_tables_are(proof, site, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t SELECT seq, seq FROM seq_1_to_5000")
    monkeypatch.setattr(schedule, "PIECE_ROWS", 100)
    allow(monkeypatch, 3000)
    counted = [proof.once() for _ in range(3)]
    # A piece costs 100 rows and what a look costs.
    assert [(done.pieces, done.compared) for done in counted] == [(5, 500)] * 3
    assert proof.known()["t"].rows == 1500
    assert proof.known()["t"].place.after == ("1500",)


def test_a_new_copy_or_another_table_of_that_name_was_never_compared(proof):
    proof.copy(*(f"CREATE TABLE {name} (id INT PRIMARY KEY, v INT)" for name in ("a", "b", "c", "d")))
    proof.spoil("INSERT INTO a VALUES (1, 1)")
    assert proof.all() == {"a": 1}
    proof.entry = proof.entry.model_copy(update={"validate_interval_days": 0.0})
    proof.run("RENAME TABLE a TO x, b TO a, x TO b", "DROP TABLE c", "CREATE TABLE c (id INT PRIMARY KEY)")
    proof.once()
    known = proof.known()
    assert [known[name].validated_at for name in ("a", "b", "c") if name in known] == [None, None, None]
    assert known["d"].validated_at is not None
    proof.spoil("UPDATE _duckling.tables SET state = 'recopy' WHERE name = 'd'")
    proof.renew()
    assert proof.known()["d"].validated_at is None


def test_a_comparison_goes_on_where_it_was_whenever_a_run_is_killed(proof, monkeypatch):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t SELECT seq, seq FROM seq_1_to_400")
    monkeypatch.setattr(schedule, "PIECE_ROWS", 100)
    allow(monkeypatch, 1)
    proof.once()
    assert proof.known()["t"].rows == 100
    proof.spoil("UPDATE t SET v = 0 WHERE id = 150", "DELETE FROM t WHERE id = 160")
    spoiled = proof.ours("FROM t ORDER BY id")
    steps = ["next_rows", "position", "values"]
    for name in steps:
        with monkeypatch.context() as patched:

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            between(patched, name, die)
            with pytest.raises(KeyboardInterrupt):
                proof.once()
        assert proof.known()["t"].rows == 100
        assert proof.ours("FROM t ORDER BY id") == spoiled
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        save = Ledger.record

        def died(self: Ledger, *arguments: Any) -> None:
            save(self, *arguments)
            raise KeyboardInterrupt

        patched.setattr(Ledger, "record", died)
        proof.once()
    # Repaired, and not committed.
    assert proof.ours("FROM t ORDER BY id") == spoiled
    assert proof.history("difference") == []
    assert proof.once().differing == {"t": 2}
    assert proof.known()["t"].rows == 200


_KILLED = """
import os, signal
from duckling_provider import config
from duckling_provider.replication.model.validated import Validations
from duckling_provider.replication.sync import sync
save = Validations.save
def killed(self, found):
    save(self, found)
    os.kill(os.getpid(), signal.SIGKILL)
Validations.save = killed
sync(config.load().database("production"))
"""


def test_a_run_that_is_killed_in_the_middle_of_a_repair_has_repaired_and_counted_nothing(proof):
    proof.copy("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "INSERT INTO t VALUES (1, 1), (2, 2)")
    proof.spoil("UPDATE t SET v = 0 WHERE id = 2")
    assert subprocess.run([sys.executable, "-c", _KILLED], check=False).returncode == -signal.SIGKILL
    assert proof.ours("FROM t ORDER BY id") == [(1, 1), (2, 0)]
    assert (proof.known(), proof.history("difference")) == ({}, [])
    assert proof.all() == {"t": 1}
    assert proof.ours("FROM t ORDER BY id") == [(1, 1), (2, 2)]


def test_the_status_says_when_each_table_was_last_found_equal_and_backups_carry_it(proof):
    proof.copy(
        "CREATE TABLE a (id INT PRIMARY KEY, v INT)",
        "INSERT INTO a VALUES (1, 1), (2, 2)",
        "CREATE TABLE b (v INT)",
        "CREATE TABLE c (id INT PRIMARY KEY)",
    )
    assert take_snapshot(proof.entry).validated is None
    fresh = run_here("validate", "production", "--status", "--json").json
    assert (fresh["success"], fresh["validated"], fresh["differences"]) == (True, None, 0)
    assert {table["name"]: table["state"] for table in fresh["tables"]} == dict.fromkeys("abc", "not yet")
    assert "of 3 tables: 3 not compared yet" in run_here("validate", "production", "--status").out

    proof.spoil("DELETE FROM a WHERE id = 1")
    begun = datetime.now(timezone.utc)
    done = sync(proof.entry)
    assert (done.differing, done.differences) == ({"a": 1}, 1)
    assert done.validated is not None
    assert begun < done.validated
    snapshot = take_snapshot(proof.entry)
    assert snapshot.validated == iso(done.validated)
    assert Snapshot.load(snapshot.path) == snapshot
    proof.entry = proof.site(validateIntervalDays=7)
    known = run_here("validate", "production", "--status", "--json").json
    assert (known["validated"], known["intervalDays"], known["differences"]) == (iso(done.validated), 7, 1)
    (row,) = [table for table in known["tables"] if table["name"] == "a"]
    assert (row["state"], row["differences"], row["rowsCompared"], row["note"]) == ("equal", 1, 2, "")
    told = run_here("validate", "production", "--status").out
    assert "all 3 tables were found equal to MySQL, row by row, the first just now" in told

    # A run that makes way knows it still; when another program has written the file, nothing is known.
    place_hold(proof.entry.replica, owner="restore run", reason="restore", seconds=600, wait=0)
    starved = sync(proof.entry, wait=0)
    assert (starved.outcome, starved.yields, starved.validated) == ("made way", 1, done.validated)
    release_hold(proof.entry.replica, owner="restore run")
    assert take_snapshot(proof.entry).validated == iso(done.validated)
    proof.spoil("CREATE TABLE main.other (i INT)")
    assert take_snapshot(proof.entry).validated is None
    proof.spoil("DROP TABLE main.other", "UPDATE _duckling.tables SET state = 'recopy', note = 'why' WHERE name = 'c'")
    waits = run_here("validate", "production", "--status", "--json").json
    assert waits["validated"] is None
    assert [table["note"] for table in waits["tables"] if table["state"] == "recopy"] == ["why"]
    assert "of 3 tables: 1 waiting for a new copy" in run_here("validate", "production", "--status").out
