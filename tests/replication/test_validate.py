"""What a validation sees: every kind of difference, with its key, and nothing where there is none."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from fixtures.replica_file import opened

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, CancelledError, ReplicaError
from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.generated import read_by_keys
from duckling_provider.replication.binlog.stream import BinlogStream
from duckling_provider.replication.copy.table_copy import copy_tables
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.names import quote, quote_mysql
from duckling_provider.replication.model.tables import Position, RowChange
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, current_position, query
from duckling_provider.replication.validate.report import Difference, TableReport, ValidationReport
from duckling_provider.replication.validate.validation import validate

pytestmark = pytest.mark.mysql

#: Column -> (definition, a value as SQL of MySQL, another one as SQL of DuckDB).
TYPES = {
    "tiny": ("TINYINT", "-128", "-127"),
    "tiny_u": ("TINYINT UNSIGNED", "255", "254"),
    "bool": ("TINYINT(1)", "1", "0"),
    "small": ("SMALLINT", "-32768", "5"),
    "medium": ("MEDIUMINT UNSIGNED", "16777215", "16777214"),
    "int": ("INT", "-2147483648", "0"),
    "int_zero": ("INT(10) UNSIGNED ZEROFILL", "42", "43"),
    "big": ("BIGINT", "-9223372036854775808", "-9223372036854775807"),
    "big_u": ("BIGINT UNSIGNED", "18446744073709551615", "18446744073709551614"),
    "dec": ("DECIMAL(12, 3)", "-1.500", "-1.501"),
    "dec_part": ("DECIMAL(4, 4)", "-0.0500", "-0.0501"),
    "dec_38": ("DECIMAL(38, 10)", "1234567890123456789012345678.0000000001", "0"),
    "dec_65": ("DECIMAL(65, 30)", "-12345678901234567890123456789012345.000000000000000000000000000001", "'0'"),
    "float": ("FLOAT", "3.1415927", "3.141593"),
    "double": ("DOUBLE", "0.30000000000000004e0", "0.3"),
    "double_whole": ("DOUBLE", "12", "13"),
    "double_small": ("DOUBLE(10, 2)", "1.25", "1.26"),
    "bit": ("BIT(17)", "b'10000000000000001'", "65536"),
    "bit1": ("BIT(1)", "b'1'", "0"),
    "char": ("CHAR(10)", "'abc'", "'abd'"),
    "varchar": ("VARCHAR(50)", "'naïve 🦆 | \\'\"'", "'naive 🦆 | ''\"'"),
    "varchar_case": ("VARCHAR(50) COLLATE utf8mb4_general_ci", "'Case'", "'case'"),
    "varchar_space": ("VARCHAR(50) COLLATE utf8mb4_general_ci", "'end'", "'end '"),
    "varchar_accent": ("VARCHAR(50) COLLATE utf8mb4_unicode_ci", "'é'", "'e'"),
    "latin1": ("VARCHAR(50) CHARACTER SET latin1", "'é€'", "'é'"),
    "binary_text": ("VARCHAR(50) COLLATE utf8mb4_bin", "'x'", "'X'"),
    "text": ("LONGTEXT", "REPEAT('ü', 100000)", "repeat('ü', 99999) || 'u'"),
    "text_latin1": ("TEXT CHARACTER SET latin1", "'é'", "'e'"),
    "empty": ("VARCHAR(5)", "''", "NULL"),
    "null_text": ("VARCHAR(5)", "NULL", "''"),
    "null_word": ("VARCHAR(5)", "NULL", "'n'"),
    "null_int": ("INT", "NULL", "0"),
    "blob": ("BLOB", "x'00ff00'", "'\\x00\\xff'::BLOB"),
    "empty_blob": ("BLOB", "''", "NULL"),
    "binary": ("BINARY(4)", "x'0100'", "'\\x01'::BLOB"),
    "varbinary": ("VARBINARY(10)", "x'ff'", "'\\xfe'::BLOB"),
    "json": ("JSON", "'{\"a\": [1, 2.5, null]}'", "'{\"a\": [1, 2.5, 0]}'"),
    "enum": ("ENUM('a', 'b''c', '')", "'b''c'", "'a'"),
    "set": ("SET('x', 'y', 'z')", "'z,x'", "'x'"),
    "empty_set": ("SET('x', 'y')", "''", "NULL"),
    "date": ("DATE", "'2024-02-29'", "DATE '2024-03-01'"),
    "date_old": ("DATE", "'0001-01-01'", "DATE '0001-01-02'"),
    "date_zero": ("DATE", "'0000-00-00'", "DATE '2000-01-01'"),
    "date_half": ("DATE", "'2024-05-00'", "DATE '2024-05-01'"),
    "datetime": ("DATETIME", "'9999-12-31 23:59:59'", "TIMESTAMP '9999-12-31 23:59:58'"),
    "datetime6": ("DATETIME(6)", "'1000-01-01 00:00:00.000001'", "TIMESTAMP '1000-01-01 00:00:00'"),
    "datetime_zero": ("DATETIME", "'0000-00-00 00:00:00'", "TIMESTAMP '2000-01-01 00:00:00'"),
    "ts": ("TIMESTAMP(6) NULL", "'2024-07-01 12:00:00.123456'", "TIMESTAMP '2024-07-01 12:00:00.123457'"),
    "ts_zero": ("TIMESTAMP NULL", "'0000-00-00 00:00:00'", "TIMESTAMP '1970-01-01 00:00:00'"),
    "time": ("TIME", "'-838:59:59'", "to_microseconds(3020399000000)"),
    "time6": ("TIME(6)", "'-00:00:00.000001'", "to_microseconds(1)"),
    "year": ("YEAR", "2155", "2154"),
    "year_zero": ("YEAR", "0", "1901"),
    "generated": ("INT AS (id * 2) VIRTUAL", None, "-1"),
    "point": ("POINT", "ST_GeomFromText('POINT(1 2)')", "'\\x01'::BLOB"),
    "select `x` \"y\" 'z' |": ("INT", "1", "2"),
}  # fmt: skip


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return tmp_path / "replica's file.db"


def mirror(source: Any, replica: Path) -> None:
    """A full copy of every table, at the position where the source stands."""
    with contextlib.closing(connect(source)) as connection:
        position = current_position(connection)
        tables = read_tables(connection, source.database)
    done = copy_tables(source, replica, tables, position=position, control=Control())
    claim(replica)(done.end)


def claim(replica: Path) -> Any:
    """A `catch_up` that only says that it did, so that differences stay."""

    def catch_up(position: Position) -> None:
        with opened(replica, read_only=False) as connection:
            Ledger.open(connection).save_position(position)

    return catch_up


def spoil(replica: Path, *statements: str) -> None:
    with opened(replica, read_only=False) as connection:
        for statement in statements:
            connection.execute(statement)


def check(source: Any, replica: Path, tables: Any = None, **options: Any) -> ValidationReport:
    return validate(source, replica, tables, control=Control(), **{"catch_up": claim(replica), **options})


def only(report: ValidationReport) -> TableReport:
    (table,) = report.tables
    return table


def ids(table: TableReport, kind: str | None = None) -> list[str | None]:
    return [difference.key["id"] for difference in table.differences if kind in {None, difference.kind}]


@pytest.fixture
def every_type(mariadb, database, source, replica) -> Path:
    """One row for each type and one more, all alike but for their id, and one in which all is NULL."""
    columns = ", ".join(f"{quote_mysql(name)} {kind}" for name, (kind, _, _) in TYPES.items())
    written = {name: value for name, (_, value, _) in TYPES.items() if value is not None}
    names, values = ", ".join(map(quote_mysql, written)), ", ".join(written.values())
    count = len(TYPES) + 1
    mariadb.execute(
        [
            f"CREATE TABLE everything (id INT PRIMARY KEY, {columns})",
            f"INSERT INTO everything (id, {names}) VALUES (1, {values})",
            f"INSERT INTO everything (id, {names}) SELECT seq, {names} FROM everything, seq_2_to_{count} WHERE id = 1",
            f"INSERT INTO everything (id) VALUES ({count + 1})",
        ],
        database,
    )
    mirror(source, replica)
    return replica


@pytest.mark.mysql_too
def test_equal_sides_are_equal_for_every_type_without_reading_a_row(every_type, source):
    report = validate(source, every_type, control=Control())
    table = only(report)
    assert (table.state, table.mysql_rows, table.replica_rows) == ("equal", len(TYPES) + 2, len(TYPES) + 2)
    assert table.rows_read == 0
    assert table.notes == ()
    assert report.equal
    assert report.position == report.replica_position


def test_rows_from_the_binlog_are_equal_for_every_type_without_reading_a_row(every_type, mariadb, database, source):
    written = ", ".join(quote_mysql(name) for name, (_, value, _) in TYPES.items() if value is not None)
    mariadb.execute(
        [
            f"INSERT INTO everything (id, {written}) SELECT 1000 + id, {written} FROM everything",
            "UPDATE everything SET id = id + 5000 WHERE id BETWEEN 10 AND 20",
        ],
        database,
    )

    def catch_up(position: Position) -> None:
        with duckdb.connect(str(every_type)) as connection:
            ledger = Ledger.open(connection)
            start = ledger.position()
            assert start is not None
            applier = Applier(connection, ledger, database=database, reread=partial(read_by_keys, source))
            with BinlogStream(source, start) as stream:
                for event in stream.read_until(position):
                    applier.take(event)
            applier.flush()

    table = only(check(source, every_type, catch_up=catch_up))
    assert (table.state, table.mysql_rows, table.rows_read) == ("equal", 2 * (len(TYPES) + 2), 0)


def test_one_different_value_of_any_type_is_found(every_type, source):
    spoil(
        every_type,
        *(
            f"UPDATE everything SET {quote(name)} = {value} WHERE id = {number}"
            for number, (name, (_, _, value)) in enumerate(TYPES.items(), 1)
        ),
    )
    table = only(check(source, every_type, max_differences=100))
    assert ids(table, "different") == [str(number) for number in range(1, len(TYPES) + 1)]
    assert (table.missing, table.extra, table.different) == (0, 0, len(TYPES))


def test_null_for_any_value_is_found_and_any_value_for_null(every_type, source):
    values = {name: kind for name, (kind, value, _) in TYPES.items() if value is not None and value != "NULL"}
    zeros = {"date_zero", "date_half", "datetime_zero", "ts_zero"}
    names = [name for name in values if name not in zeros]
    spoil(
        every_type,
        *(f"UPDATE everything SET {quote(name)} = NULL WHERE id = {number}" for number, name in enumerate(names, 1)),
    )
    table = only(check(source, every_type, max_differences=100))
    assert ids(table, "different") == [str(number) for number in range(1, len(names) + 1)]


def test_values_that_both_sides_write_differently_are_equal(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (id INT PRIMARY KEY, d DOUBLE, f FLOAT, z DECIMAL(8, 2) ZEROFILL)",
            "INSERT INTO t VALUES (1, 1e15, 1e15, 1), (2, 1e16, 1e16, 2), (3, 1e-5, 1e-5, 3), (4, 1e300, 1e30, 4)",
            "INSERT INTO t VALUES (5, -0.0, -0.0, 5), (6, 123456789012345678, 16777217, 6), (7, 5e-324, 1e-40, 7)",
        ],
        database,
    )
    mirror(source, replica)
    assert only(check(source, replica)).state == "equal"


def test_missing_and_extra_rows_are_told_by_their_keys(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (tenant INT, id VARCHAR(300), day DATE, x INT, PRIMARY KEY (day, id, tenant))",
            "INSERT INTO t SELECT seq % 7, CONCAT('Ü|', seq), '2024-01-01', seq FROM seq_1_to_5000",
            "INSERT INTO t VALUES (1, REPEAT('x', 300), '2025-01-01', 1)",
        ],
        database,
    )
    mirror(source, replica)
    spoil(
        replica,
        "DELETE FROM t WHERE x = 77 OR strlen(id) = 300",
        "INSERT INTO t VALUES (5, '', '2023-01-01', 1)",
        "UPDATE t SET x = 0 WHERE x = 4000",
    )
    table = only(check(source, replica))
    assert (table.mysql_rows, table.replica_rows) == (5001, 5000)
    assert (table.missing, table.extra, table.different) == (2, 1, 1)
    assert table.differences == (
        Difference("extra", {"day": "2023-01-01", "id": "", "tenant": "5"}),
        Difference("different", {"day": "2024-01-01", "id": "Ü|4000", "tenant": "3"}),
        Difference("missing", {"day": "2024-01-01", "id": "Ü|77", "tenant": "0"}),
        Difference("missing", {"day": "2025-01-01", "id": "x" * 199 + "…", "tenant": "1"}),
    )


def test_swapped_values_are_different(mariadb, database, source, replica):
    mariadb.execute(["CREATE TABLE t (id INT PRIMARY KEY, a INT)", "INSERT INTO t VALUES (1, 10), (2, 20)"], database)
    mirror(source, replica)
    spoil(replica, "UPDATE t SET a = 30 - a")
    assert ids(only(check(source, replica))) == ["1", "2"]


def test_text_that_moves_to_the_next_column_is_different(mariadb, database, source, replica):
    mariadb.execute(
        ["CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(9), b VARCHAR(9))", "INSERT INTO t VALUES (1, 'x|1:y', 'z')"],
        database,
    )
    mirror(source, replica)
    spoil(replica, "UPDATE t SET a = 'x', b = 'y|1:z'")
    assert ids(only(check(source, replica))) == ["1"]


def test_duplicates_count_where_there_is_no_key(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (a INT, b VARCHAR(20))",
            "INSERT INTO t SELECT 1, 'same' FROM seq_1_to_100",
            "INSERT INTO t VALUES (NULL, NULL), (NULL, ''), (NULL, '')",
        ],
        database,
    )
    mirror(source, replica)
    assert only(check(source, replica)).state == "equal"
    # The same number of rows, one of them twice instead of once.
    spoil(replica, "UPDATE t SET b = NULL WHERE rowid = (SELECT max(rowid) FROM t WHERE b = '')")
    table = only(check(source, replica))
    assert (table.state, table.mysql_rows, table.replica_rows) == ("different", 103, 103)
    assert (table.missing, table.extra, table.different, table.differences) == (1, 1, 0, ())
    spoil(replica, "INSERT INTO t SELECT 1, 'same' FROM range(5)", "DELETE FROM t WHERE a IS NULL")
    table = only(check(source, replica))
    assert (table.missing, table.extra) == (3, 5)


def test_the_list_is_bounded_and_the_counts_are_not(mariadb, database, source, replica):
    mariadb.execute(
        ["CREATE TABLE t (id INT PRIMARY KEY, a INT)", "INSERT INTO t SELECT seq, 1 FROM seq_1_to_30000"], database
    )
    mirror(source, replica)
    spoil(replica, "UPDATE t SET a = 2 WHERE id > 10000")
    table = only(check(source, replica))
    assert table.different == 20000
    assert ids(table) == [str(number) for number in range(10001, 10021)]
    assert len(only(check(source, replica, max_differences=3)).differences) == 3
    assert only(check(source, replica, max_differences=0)).differences == ()


def test_one_difference_in_100000_rows_is_found_and_few_rows_are_read(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (id BIGINT UNSIGNED PRIMARY KEY, a VARCHAR(40), b DOUBLE, c DATETIME(3))",
            "INSERT INTO t SELECT seq * 1000003, MD5(seq), seq / 7, NOW() + INTERVAL seq SECOND FROM seq_1_to_100000",
        ],
        database,
    )
    mirror(source, replica)
    spoil(replica, "UPDATE t SET b = nextafter(b, 'inf'::DOUBLE) WHERE id = 77777::BIGINT * 1000003")
    table = only(check(source, replica))
    assert table.differences == (Difference("different", {"id": str(77777 * 1000003)}),)
    assert 0 < table.rows_read < 1000


def test_keys_that_a_collation_calls_equal_are_different_keys(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (id VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, a INT)",
            "INSERT INTO t VALUES ('Alice', 1), ('Bob', 2)",
        ],
        database,
    )
    mirror(source, replica)
    spoil(replica, "UPDATE t SET id = 'alice' WHERE id = 'Alice'")
    table = only(check(source, replica))
    assert table.differences == (Difference("missing", {"id": "Alice"}), Difference("extra", {"id": "alice"}))


def test_keys_without_a_calendar_date_are_compared_too(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (id DATE, n BINARY(2), PRIMARY KEY (id, n))",
            "INSERT INTO t VALUES ('0000-00-00', 'ab'), ('2024-00-00', 'ab'), ('2024-01-01', 'cd')",
        ],
        database,
    )
    mirror(source, replica)
    assert only(check(source, replica)).state == "equal"
    spoil(replica, "DELETE FROM t WHERE id IS NULL")
    table = only(check(source, replica))
    assert table.missing == 1  # by key: both are the same NULL
    assert table.differences == (Difference("missing", {"id": None, "n": "6162"}),)


def test_tables_of_only_one_side_and_those_that_wait_for_a_copy(mariadb, database, source, replica):
    names = ["left_out", "recopied", "same", "vanished"]
    mariadb.execute([f"CREATE TABLE {name} (id INT PRIMARY KEY)" for name in names], database)
    mariadb.execute([f"INSERT INTO {name} VALUES (1), (2)" for name in names], database)
    mirror(source, replica)
    with duckdb.connect(str(replica)) as connection:
        Ledger.open(connection).mark_recopy("recopied", "an ALTER TABLE that can't be followed")
        connection.execute("CREATE TABLE the_users_own (x INT)")
    mariadb.execute(
        ["DROP TABLE vanished", "CREATE TABLE new (id INT PRIMARY KEY)", "INSERT INTO new VALUES (1)"], database
    )
    report = check(source, replica, ["new", "recopied", "same"])
    assert [(table.name, table.state) for table in report.tables] == [
        ("new", "missing"),
        ("recopied", "recopy"),
        ("same", "equal"),
        ("vanished", "extra"),
    ]
    assert not report.equal
    assert [(table.mysql_rows, table.replica_rows) for table in report.tables] == [
        (1, None),
        (None, None),
        (2, 2),
        (None, 2),
    ]
    assert report.tables[1].notes == ("an ALTER TABLE that can't be followed",)


def test_other_columns_and_other_types_are_told(mariadb, database, source, replica):
    mariadb.execute(
        [
            "CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT)",
            "INSERT INTO t VALUES (1, 1, 1)",
            "CREATE TABLE u (id INT PRIMARY KEY, a INT)",
            "INSERT INTO u VALUES (1, 5)",
        ],
        database,
    )
    mirror(source, replica)
    spoil(replica, "ALTER TABLE t RENAME b TO c", "ALTER TABLE u ALTER a TYPE VARCHAR")
    report = check(source, replica)
    assert [(table.state, table.notes) for table in report.tables] == [
        ("columns", ("not in the replica: b", "not in MySQL: c")),
        ("equal", ("a is VARCHAR in the replica, a new copy would make it INTEGER",)),
    ]


def test_a_report_as_json_has_keys_and_no_other_content(mariadb, database, source, replica):
    mariadb.execute(
        ["CREATE TABLE t (id INT PRIMARY KEY, a TEXT)", "INSERT INTO t VALUES (1, 'secret of MySQL'), (2, 'x')"],
        database,
    )
    mirror(source, replica)
    spoil(replica, "UPDATE t SET a = 'secret of the replica' WHERE id = 1")
    report = check(source, replica)
    data = report.as_json()
    text = json.dumps(data)
    assert "secret" not in text + str(only(report))
    assert data["equal"] is False
    assert data["tables"] == [
        {
            "name": "t",
            "state": "different",
            "rows": {"mysql": 2, "replica": 2},
            "missing": 0,
            "extra": 0,
            "different": 1,
            "differences": [{"kind": "different", "key": {"id": "1"}}],
            "rowsRead": 2,
            "notes": [],
        }
    ]
    assert str(only(report)) == "t: different, 2 rows in MySQL, 2 in the replica, 0 missing, 0 extra, 1 different"


def test_a_replica_that_stands_elsewhere_is_not_compared(mariadb, database, source, replica):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    mirror(source, replica)
    mariadb.execute("INSERT INTO t VALUES (1)", database)
    with pytest.raises(ReplicaError) as failure:
        validate(source, replica, control=Control())
    assert failure.value.retryable
    assert "stands at" in str(failure.value)

    def too_far(position: Position) -> None:
        claim(replica)(Position(position.file, position.offset + 1, "", position.server))

    with pytest.raises(ReplicaError):
        check(source, replica, catch_up=too_far)
    assert only(check(source, replica)).missing == 1


def test_a_file_that_is_not_ours_or_not_there_is_refused(source, replica):
    with pytest.raises(ReplicaError, match="no such file"):
        validate(source, replica, control=Control())
    duckdb.connect(str(replica)).close()
    with pytest.raises(ReplicaError, match="no bookkeeping"):
        validate(source, replica, control=Control())


def test_it_is_right_while_writes_go_on(mariadb, database, source, replica, full):
    mariadb.execute(
        [
            "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a INT, b VARCHAR(40))",
            "INSERT INTO t SELECT seq, seq, MD5(seq) FROM seq_1_to_20000",
        ],
        database,
    )
    mirror(source, replica)
    done = threading.Event()
    written = [0, 0, 0]

    def write(worker: int) -> None:
        with contextlib.closing(mariadb.connect(database)) as connection, connection.cursor() as cursor:
            while not done.is_set():
                number = 1 + (written[worker] * 7919 + worker) % 20000
                cursor.execute("UPDATE t SET a = a + 1, b = RAND() WHERE id = %s", (number,))
                cursor.execute("INSERT INTO t (a, b) VALUES (%s, 'new')", (worker,))
                cursor.execute("DELETE FROM t WHERE id = %s", (number - 1,))
                written[worker] += 3
                done.wait(0.05)  # `follow` is not made for speed

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3 if full else 2):
            time.sleep(0.3)
            report = check(source, replica, catch_up=lambda position: follow(source, replica, position))
            assert report.equal, report.as_json()
            assert only(report).rows_read == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert min(written) > 0


def follow(source: Any, replica: Path, end: Position) -> None:
    """Apply the binlog up to `end` in the plainest way there is."""
    with duckdb.connect(str(replica)) as connection:
        ledger = Ledger.open(connection)
        start = ledger.position()
        assert start is not None
        connection.begin()
        with BinlogStream(source, start) as stream:
            for event in stream.read_until(end):
                if isinstance(event, RowChange):
                    if event.before is not None:
                        connection.execute("DELETE FROM t WHERE id = ?", [event.before[0]])
                    if event.after is not None:
                        connection.execute("INSERT INTO t VALUES (?, ?, ?)", list(event.after))
        ledger.save_position(end)
        connection.commit()


def test_a_table_without_snapshots_is_compared_with_a_note(mariadb, database, source, replica):
    mariadb.execute(["CREATE TABLE t (id INT PRIMARY KEY) ENGINE = MyISAM", "INSERT INTO t VALUES (1)"], database)
    mirror(source, replica)
    table = only(check(source, replica))
    assert table.state == "equal"
    assert table.notes == ("a table of MyISAM has no snapshots: it is compared as it is now",)


def test_a_table_that_is_altered_meanwhile_is_told_and_the_others_go_on(mariadb, database, source, replica):
    names = ["a", "b", "c", "d"]
    mariadb.execute([f"CREATE TABLE {name} (id INT PRIMARY KEY)" for name in names], database)
    mirror(source, replica)

    def catch_up(position: Position) -> None:
        mariadb.execute(["ALTER TABLE b MODIFY id BIGINT", "DROP TABLE c"], database)
        claim(replica)(position)

    report = check(source, replica, catch_up=catch_up)
    assert [table.state for table in report.tables] == ["equal", "altered", "altered", "equal"]


def test_a_cancellation_ends_the_servers_work_too(mariadb, database, source, replica):
    mariadb.execute(["CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)"], database)
    mirror(source, replica)
    control = Control()
    with contextlib.closing(mariadb.connect(database)) as blocker:

        def block(position: Position) -> None:
            claim(replica)(position)
            query(blocker, "LOCK TABLES t WRITE")
            threading.Timer(1.0, control.cancel).start()

        # The table is locked for as long as the block lasts: only the cancellation can end this.
        with pytest.raises(CancelledError):
            validate(source, replica, control=control, catch_up=block)
        left = mariadb.execute("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT b, COUNT%'")
    assert left == ((0,),)


def test_a_replica_that_is_being_written_is_busy(mariadb, database, source, replica):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    mirror(source, replica)
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(replica)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(BusyError):
            validate(source, replica, control=Control())
        writer.communicate()
