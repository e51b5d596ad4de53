# ruff: noqa: DTZ001 - made-up statements, and times as they are in UTC
import time
from dataclasses import replace

import pytest
from fixtures.binlog import events

from duckling_provider.replication.binlog.gtids import GtidState
from duckling_provider.replication.binlog.readers import ZERO_DATE
from duckling_provider.replication.binlog.stream import BinlogStream, PositionLostError, Unfollowed
from duckling_provider.replication.model.tables import Commit, Position, RowChange, SchemaChange

pytestmark = pytest.mark.mysql


def only(kind, found):
    return [event for event in found if isinstance(event, kind)]


def by_file(position):
    return Position(position.file, position.offset, "", position.server)


@pytest.fixture(params=["gtid", "file and offset"])
def start_from(request):
    return (lambda position: position) if request.param == "gtid" else by_file


@pytest.mark.mysql_too
def test_changes_and_their_ends_come_in_order(mariadb, database, source, position, start_from):
    start = start_from(position())
    mariadb.execute(
        [
            "CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(10))",
            "INSERT INTO t VALUES (1, 'x'), (2, NULL)",
            "START TRANSACTION",
            "UPDATE t SET a = 'y' WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
            "COMMIT",
            "START TRANSACTION",
            "INSERT INTO t VALUES (3, 'never')",
            "ROLLBACK",
        ],
        database,
    )
    found = only((RowChange, SchemaChange, Commit), events(source, start))
    names = ("id", "a")
    assert [event if isinstance(event, RowChange) else type(event) for event in found] == [
        SchemaChange,
        RowChange("insert", "t", names, None, (1, "x")),
        RowChange("insert", "t", names, None, (2, None)),
        Commit,
        RowChange("update", "t", names, (1, "x"), (1, "y")),
        RowChange("delete", "t", names, (2, None), None),
        Commit,
    ]
    end = position()
    assert by_file(found[-1].position) == by_file(end)
    # MySQL can't tell which transactions end at an offset.
    assert found[-1].position.gtid == (end.gtid if mariadb.is_mariadb or start.gtid else "")
    assert 0 <= time.time() - found[-1].timestamp < 3600


@pytest.mark.mysql_too
def test_each_end_is_a_place_to_go_on_from(mariadb, database, source, position, start_from):
    start = start_from(position())
    mariadb.execute(["CREATE TABLE t (id INT)", "CREATE TABLE m (id INT) ENGINE=MyISAM"], database)
    for number in range(5):
        mariadb.execute([f"INSERT INTO {'tm'[number % 2]} VALUES ({number})"], database)
    mariadb.execute(["FLUSH BINARY LOGS", "INSERT INTO t VALUES (5)", "TRUNCATE t"], database)
    everything = events(source, start)
    ends = [event.position for event in everything if isinstance(event, (Commit, SchemaChange))]
    assert len(ends) >= 10
    for end in ends:
        rest = events(source, start_from(end))
        place = next(n for n, event in enumerate(everything) if getattr(event, "position", None) == end)
        kept = only((RowChange, SchemaChange), everything[place + 1 :])
        found = only((RowChange, SchemaChange), rest)
        if not start.gtid:  # at the head of a file MySQL does tell its transactions
            kept, found = without_gtids(kept), without_gtids(found)
        assert found == kept


def without_gtids(events):
    return [
        replace(event, position=replace(event.position, gtid="")) if isinstance(event, SchemaChange) else event
        for event in events
    ]


def test_only_the_database_and_the_wanted_tables_are_told(mariadb, database, source, position):
    other = mariadb.create_database()
    start = position()
    mariadb.execute([f"CREATE TABLE {other}.t (id INT)", f"INSERT INTO {other}.t VALUES (1)"])
    mariadb.execute(["CREATE TABLE t (id INT)", "CREATE TABLE u (id INT)"], database)
    mariadb.execute(["INSERT INTO t VALUES (1)", "INSERT INTO u VALUES (2)"], database)
    mariadb.execute(f"DROP DATABASE {other}")
    found = events(source, start, wanted=lambda name: name == "u")
    assert [change.table for change in only(RowChange, found)] == ["u"]
    # What is of others moves the position all the same.
    assert only((Commit, SchemaChange), found)[-1].position == position()


def test_reading_ends_at_the_position_asked_for(mariadb, database, source, position, start_from):
    start = start_from(position())
    mariadb.execute(["CREATE TABLE t (id INT)", "INSERT INTO t VALUES (1)"], database)
    end = position()
    mariadb.execute("INSERT INTO t VALUES (2)", database)
    with BinlogStream(source, start) as stream:
        found = list(stream.read_until(end))
    assert [change.after for change in only(RowChange, found)] == [(1,)]
    with BinlogStream(source, end) as stream:
        assert list(stream.read_until(end)) == []


def test_a_quiet_server_gives_the_caller_a_chance_again_and_again(mariadb, database, source, position):
    mariadb.execute("CREATE TABLE t (id INT)", database)
    with BinlogStream(source, position(), follow=True) as stream:
        reading = stream.read()
        assert [next(reading) for _ in range(3)] == [None] * 3
        mariadb.execute("INSERT INTO t VALUES (7)", database)
        change = next(event for event in reading if isinstance(event, RowChange))
        assert change.after == (7,)
        assert isinstance(next(reading), Commit)


def test_a_new_file_is_a_new_position(mariadb, source, position, start_from):
    start = start_from(position())
    mariadb.execute("FLUSH BINARY LOGS")
    found = only(Commit, events(source, start))
    if not mariadb.is_mariadb and start.gtid:
        assert found == []  # MySQL begins with the newest file; the transactions are the position
    else:
        assert [commit.position.file for commit in found] == [position().file] != [start.file]


def test_a_purged_position_is_lost(mariadb, database, source, position, start_from):
    mariadb.execute(["CREATE TABLE t (id INT)", "INSERT INTO t VALUES (1)"], database)
    start = start_from(position())
    mariadb.execute(["INSERT INTO t VALUES (2)", "FLUSH BINARY LOGS", "INSERT INTO t VALUES (3)"], database)
    # The server keeps what it may need itself after a crash for a moment.
    deadline = time.monotonic() + 20
    while start.file in {row[0] for row in mariadb.execute("SHOW BINARY LOGS")} and time.monotonic() < deadline:
        mariadb.execute(f"PURGE BINARY LOGS TO '{position().file}'")
        time.sleep(0.2)
    with pytest.raises(PositionLostError) as caught:
        events(source, start)
    assert caught.value.retryable is False
    assert caught.value.kept[0] == position().file
    assert "onPositionLost" in str(caught.value)


def test_a_position_beyond_the_end_and_one_of_another_server_are_lost(source, position):
    now = position()
    with pytest.raises(PositionLostError):
        events(source, Position(now.file, now.offset + 10_000, "", now.server))
    with pytest.raises(PositionLostError, match="another"):
        events(source, Position(now.file, now.offset, "", "another"))


def test_a_binlog_that_began_anew_is_not_the_one_of_the_position(mariadb, database, source, position, start_from):
    mariadb.execute(["CREATE TABLE t (id INT)", *[f"INSERT INTO t VALUES ({n})" for n in range(20)]], database)
    start = start_from(position())
    mariadb.execute("RESET MASTER")
    with pytest.raises(PositionLostError):
        events(source, start)
    mariadb.execute("INSERT INTO t VALUES (99)", database)
    with pytest.raises(PositionLostError):
        events(source, start)


@pytest.mark.mariadb_only
def test_sequences_are_no_tables(mariadb, database, source, position):
    start = position()
    mariadb.execute(["CREATE SEQUENCE s", "SELECT NEXTVAL(s)", "CREATE TABLE t (id INT)"], database)
    assert not only((RowChange, Unfollowed), events(source, start))


@pytest.mark.mariadb_only
def test_compressed_events_are_read(mariadb, database, source, position):
    start = position()
    mariadb.execute("SET GLOBAL log_bin_compress = ON, GLOBAL log_bin_compress_min_len = 10")
    try:
        text = "x" * 500
        mariadb.execute(
            [
                f"CREATE TABLE t (id INT, a TEXT) COMMENT '{text}'",
                f"INSERT INTO t VALUES (1, '{text}')",
                "UPDATE t SET id = 2",
                "DELETE FROM t",
            ],
            database,
        )
    finally:
        mariadb.execute("SET GLOBAL log_bin_compress = OFF")
    found = events(source, start)
    assert text in only(SchemaChange, found)[0].statement
    assert [(c.kind, c.before, c.after) for c in only(RowChange, found)] == [
        ("insert", None, (1, text)),
        ("update", (1, text), (2, text)),
        ("delete", (2, text), None),
    ]


def test_rows_without_all_columns_names_or_as_statements_can_not_be_followed(mariadb, database, source, position):
    mariadb.execute(["CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT)", "INSERT INTO t VALUES (1, 2, 3)"], database)
    for setting in ("binlog_row_image = MINIMAL", "binlog_format = STATEMENT"):
        start = position()
        mariadb.execute([f"SET SESSION {setting}", "UPDATE t SET a = a + 1 WHERE id = 1"], database)
        found = events(source, start)
        assert not only(RowChange, found)
        assert only((Unfollowed, SchemaChange), found)
    start = position()
    mariadb.execute("SET GLOBAL binlog_row_metadata = MINIMAL")
    try:
        mariadb.execute("UPDATE t SET a = a + 1 WHERE id = 1", database)
    finally:
        mariadb.execute("SET GLOBAL binlog_row_metadata = FULL")
    (lost,) = only(Unfollowed, events(source, start))
    assert "binlog_row_metadata" in lost.note


@pytest.mark.mysql_too
def test_values_of_all_kinds(mariadb, database, source, position):
    from datetime import date, datetime, timedelta
    from decimal import Decimal

    start = position()
    cases = {
        "TINYINT": ("-128", -128),
        "TINYINT UNSIGNED": ("255", 255),
        "MEDIUMINT": ("-8388608", -8388608),
        "MEDIUMINT UNSIGNED": ("16777215", 16777215),
        "YEAR": ("2024", 2024),
        "INT UNSIGNED": ("4294967295", 4294967295),
        "BIGINT": ("-9223372036854775808", -(2**63)),
        "BIGINT UNSIGNED": ("18446744073709551615", 2**64 - 1),
        "DOUBLE": ("1.5e300", 1.5e300),
        "FLOAT": ("0.5", 0.5),
        "DECIMAL(65,30)": ("-12345678901234567890123456789012345.123456789012345678901234567891",
                           Decimal("-12345678901234567890123456789012345.123456789012345678901234567891")),
        "DECIMAL(10,0)": ("-7", Decimal(-7)),
        "DECIMAL(4,4)": ("0.0001", Decimal("0.0001")),
        "BIT(10)": ("b'1000000001'", "1000000001"),
        "CHAR(3)": ("'é'", "é"),
        "CHAR(255)": ("'long'", "long"),
        "VARCHAR(300)": ("'😀'", "😀"),
        "VARCHAR(9) CHARACTER SET latin1": ("'€ü'", "€ü"),
        "VARCHAR(9) CHARACTER SET utf16": ("'€ü'", "€ü"),
        "VARBINARY(9)": ("x'00ff'", b"\0\xff"),
        "MEDIUMBLOB": ("x'00ff'", b"\0\xff"),
        "LONGTEXT": ("'z'", "z"),
        "ENUM('a','ü''')": ("'ü'''", "ü'"),
        "SET('x','y','z')": ("'x,z'", frozenset({"x", "z"})),
        "SET('q')": ("''", frozenset()),
        "DATE": ("'9999-12-31'", date(9999, 12, 31)),
        "DATETIME(6)": ("'1000-01-01 00:00:00.000001'", datetime(1000, 1, 1, 0, 0, 0, 1)),
        "DATETIME(3)": ("'2024-02-29 23:59:59.123'", datetime(2024, 2, 29, 23, 59, 59, 123000)),
        "TIMESTAMP(1)": ("'2024-02-29 23:59:59.1'", datetime(2024, 2, 29, 23, 59, 59, 100000)),
        "TIME(6)": ("'-838:59:58.000001'", -timedelta(hours=838, minutes=59, seconds=58, microseconds=1)),
        "TIME(2)": ("'-00:00:00.01'", -timedelta(microseconds=10000)),
        "TIME": ("'838:59:59'", timedelta(hours=838, minutes=59, seconds=59)),
        "DATE NOT NULL": ("'0000-00-00'", ZERO_DATE),
        "DATETIME(2)": ("'2024-00-00 00:00:00'", ZERO_DATE),
        "TIMESTAMP(3) NOT NULL DEFAULT '2020-01-01'": ("'0000-00-00'", ZERO_DATE),
        "INT": ("NULL", None),
    }  # fmt: skip
    columns = ", ".join(f"`c{n}` {kind}" for n, kind in enumerate(cases))
    values = ", ".join(value for value, _ in cases.values())
    mariadb.execute([f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES ({values})"], database)
    (change,) = only(RowChange, events(source, start))
    assert dict(zip(cases, change.after, strict=True)) == {kind: value for kind, (_, value) in cases.items()}


def test_a_table_with_hundreds_of_columns(mariadb, database, source, position):
    start = position()
    columns = ", ".join(f"c{n} INT" for n in range(300))
    values = ", ".join("NULL" if n % 3 else str(n) for n in range(300))
    mariadb.execute(
        [f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES ({values})", "UPDATE t SET c0 = 9"], database
    )
    insert, update = only(RowChange, events(source, start))
    assert insert.after == tuple(None if n % 3 else n for n in range(300))
    assert update.before == insert.after
    assert update.after == (9, *insert.after[1:])


def test_sets_of_transactions_as_mysql_and_mariadb_write_them():
    one, two = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4c9e3dfc-9d25-11e9-8d2e-0242ac1cfd7e"
    state = GtidState(f"{one.upper()}:1-3:5,\n{two}:7", mariadb=False)
    for origin, number in ((one, 6), (one, 4), (two, 9), (one, 2), ("aa", 1)):
        state.begin(origin, str(number))
        state.end()
    assert state.end() == f"{one}:1-6,{two}:7:9,aa:1"
    state = GtidState("0-1-5,3-1-9", mariadb=True)
    state.begin("0", "2-6")
    assert state.end() == "0-2-6,3-1-9"
    state = GtidState(None, mariadb=True)
    state.begin("0", "2-6")
    assert state.end() == ""


def test_no_password_in_errors(source):
    from dataclasses import replace

    from duckling_provider.base.errors import DucklingError

    with pytest.raises(DucklingError) as caught:
        BinlogStream(replace(source, port=1), Position("x", 4))
    assert source.password.get_secret_value() not in str(caught.value)
