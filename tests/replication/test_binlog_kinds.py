"""What a binlog may hold beside plain row events of one server: XA, compressed transactions, JSON, odd character sets,
old formats, another server's files after a failover, and events that are unknown here.
"""

import contextlib
import struct
import time

import duckdb
import pytest
from fixtures.binlog import events

from duckling_provider.base.errors import ReplicaError, ReplicationError
from duckling_provider.replication.binlog import dump
from duckling_provider.replication.binlog.binary_json import double_text
from duckling_provider.replication.binlog.dump import BinlogDump, RawEvent, unpacked
from duckling_provider.replication.binlog.stream import BinlogStream, Unfollowed
from duckling_provider.replication.model.tables import Commit, Position, RowChange
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.preflight import PreflightError, examine, preflight
from duckling_provider.replication.mysql.source import Source, SourceError, connect, current_position, query, translated
from duckling_provider.replication.sync import sync

pytestmark = pytest.mark.mysql


def rows(found):
    assert not [event for event in found if isinstance(event, Unfollowed)]
    return [(event.kind, event.before, event.after) for event in found if isinstance(event, RowChange)]


# ---- XA ----------------------------------------------------------------------------------------------------


@pytest.mark.mysql_too
@pytest.mark.parametrize("run", ["one run", "a run that begins in between", "a run that begins in a later file"])
def test_rows_of_an_xa_transaction_count_from_its_commit_on(mariadb, database, source, position, run):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    start = position()
    name = f"'{database}', 'branch', 7"
    with contextlib.closing(mariadb.connect(database)) as connection, connection.cursor() as cursor:
        for statement in (f"XA START {name}", "INSERT INTO t VALUES (1), (2)", f"XA END {name}", f"XA PREPARE {name}"):
            cursor.execute(statement)
    mariadb.execute("INSERT INTO t VALUES (9)", database)
    assert rows(events(source, start)) == [("insert", None, (9,))]
    if run != "one run":
        start = position()
    if run.endswith("file"):
        mariadb.execute(["FLUSH BINARY LOGS", "INSERT INTO t VALUES (8)", "FLUSH BINARY LOGS"], database)
        start = position()
    mariadb.execute([f"XA COMMIT {name}", "INSERT INTO t VALUES (10)"], database)
    found = events(source, start)
    expected = [(1,), (2,), (10,)] if run != "one run" else [(9,), (1,), (2,), (10,)]
    assert rows(found) == [("insert", None, row) for row in expected]
    # The two rows and the commit are one transaction, at the place of the commit.
    inserts = [n for n, event in enumerate(found) if isinstance(event, RowChange) and event.after in {(1,), (2,)}]
    assert isinstance(found[inserts[-1] + 1], Commit)
    assert found[-1].position.gtid == position().gtid


@pytest.mark.mysql_too
def test_an_xa_transaction_that_is_rolled_back_changes_nothing(mariadb, database, source, position):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    start = position()
    mariadb.execute(["XA START 'q'", "INSERT INTO t VALUES (1)", "XA END 'q'", "XA PREPARE 'q'", "XA ROLLBACK 'q'"],
                    database)  # fmt: skip
    found = events(source, start)
    assert rows(found) == []
    assert found[-1].position == position()


@pytest.mark.mysql_too
def test_an_xa_transaction_in_one_phase_counts_at_once(mariadb, database, source, position):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    start = position()
    mariadb.execute(["XA START 'q'", "INSERT INTO t VALUES (1)", "XA END 'q'", "XA COMMIT 'q' ONE PHASE"], database)
    assert rows(events(source, start)) == [("insert", None, (1,))]


# ---- compressed transactions -------------------------------------------------------------------------------


@pytest.mark.mysql_only
def test_compressed_transactions_are_read(mariadb, database, source, position):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY, a TEXT)", database)
    start = position()
    text = "y" * 3000
    mariadb.execute(
        [
            "SET SESSION binlog_transaction_compression = ON",
            "START TRANSACTION",
            *(f"INSERT INTO t VALUES ({n}, '{text}')" for n in range(300)),
            "COMMIT",
            "UPDATE t SET a = 'z' WHERE id = 7",
        ],
        database,
    )
    # Of another database: it stopped every sync of the server.
    other = mariadb.create_database()
    mariadb.execute(["SET SESSION binlog_transaction_compression = ON", "CREATE TABLE t (id INT)",
                     "INSERT INTO t VALUES (1)", f"DROP DATABASE {other}"], other)  # fmt: skip
    found = events(source, start)
    assert rows(found) == [
        *(("insert", None, (n, text)) for n in range(300)),
        ("update", (7, text), (7, "z")),
    ]
    ends = [event.position for event in found if isinstance(event, Commit)]
    assert rows(events(source, ends[0])) == [("update", (7, text), (7, "z"))]
    assert ends[-1].gtid == position().gtid


def payload(algorithm, data):
    fields = bytes([2, 3, 0xFC, algorithm, 0, 1, 1, len(data), 0])
    return RawEvent(1, dump.TRANSACTION_PAYLOAD, 1, 500, fields + data, 100)


def test_a_payload_of_an_unknown_algorithm_or_that_breaks_off_stops_the_sync():
    with pytest.raises(ReplicationError, match="unknown algorithm 7"):
        list(unpacked(payload(7, b"")))
    event = struct.pack("<IBIIIH", 1, 16, 1, 19 + 8, 0, 0) + bytes(8)
    assert [(raw.kind, raw.end, len(raw.body)) for raw in unpacked(payload(255, event * 2))] == [(16, 500, 8)] * 2
    with pytest.raises(ReplicationError, match="breaks off"):
        list(unpacked(payload(255, event[:-1])))


# ---- what is not known, or not true ------------------------------------------------------------------------


def strange(source, start, monkeypatch, *raws):
    """The stream's events where the server's own are followed by `raws`."""
    own = BinlogDump.events

    def told(self):
        yield from own(self)
        yield from raws

    monkeypatch.setattr(BinlogDump, "events", told)
    with BinlogStream(source, start) as stream:
        found = []
        with pytest.raises(ReplicationError) as caught:
            found.extend(stream.read())
        return stream.position, str(caught.value)


def test_an_unknown_event_stops_the_sync_before_it(mariadb, database, source, position, monkeypatch):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", database)
    start = position()
    mariadb.execute("INSERT INTO t VALUES (1)", database)
    ignorable = RawEvent(1, 199, 1, 0, b"", ignorable=True)
    stands, told = strange(source, start, monkeypatch, ignorable, RawEvent(1, 200, 1, 4242, b"??", 4200))
    assert stands == position()
    assert "of the type 200, which is unknown here, at offset 4200" in told
    assert "stays as it was" in told


def table_map(database, *, columns=1, kinds=b"\x03", names=b"\x04\x03\x02id"):
    schema = bytes([len(database)]) + database.encode() + b"\0"
    return bytes(8) + schema + b"\x01t\x00" + bytes([columns]) + kinds + b"\x00\x00" + names


@pytest.mark.parametrize(
    "broken",
    [{"columns": 200}, {"columns": 255}, {"names": b"\x04\xfe"}, {"names": b"\x04\x03\xffid"},
     {"names": b"\x04\x06\x02id\x02it"}, {"kinds": b"\x0f"}],
    ids=str,
)  # fmt: skip
def test_a_table_map_that_is_not_well_formed_is_refused(source, database, position, monkeypatch, broken):
    raw = RawEvent(1, dump.TABLE_MAP, 1, 0, table_map(database, **broken))
    start = position()
    stands, told = strange(source, start, monkeypatch, raw)
    assert stands.order == start.order
    assert "the description of table t is malformed" in told


# ---- values ------------------------------------------------------------------------------------------------

JSON = """
    CAST(DATE '2024-02-29' AS JSON) | CAST(TIME '-12:00:01' AS JSON) | CAST(TIME '838:59:58.999999' AS JSON)
    | CAST(TIMESTAMP '2024-02-29 01:02:03.000004' AS JSON) | JSON_ARRAY(x'00ff', b'101', CAST('é' AS BINARY))
    | JSON_ARRAY(1e-7, 1e0, 0.1e0, -0e0, 1e14, 1e15, 1e16, 1.5e300, 123456789012345.6e0, 1.25e-13, 1.25e-14, 1.25e-15)
    | JSON_ARRAY(1.10, -0.05, 12345678901234567890.123456789, CAST(1 AS DECIMAL(65,30)))
    | JSON_OBJECT('b', 1, 'a', JSON_OBJECT('é"\\\\', NULL), 'dd', JSON_ARRAY(TRUE, FALSE, NULL, '', 'x'))
    | JSON_ARRAY(-32768, 65535, -2147483648, 4294967295, -9223372036854775808, 18446744073709551615)
    | CAST('"a\\\\u0001\\\\n\\\\t\\\\b\\\\f\\\\r\\\\u007f/"' AS JSON) | CAST('[]' AS JSON) | CAST('{}' AS JSON)
    | JSON_ARRAY(REPEAT('x', 70000), 1, -1, 70000, NULL, JSON_OBJECT(REPEAT('k', 300), 2)) | CAST('null' AS JSON)
    | JSON_ARRAY(CAST('2024-01-01' AS DATETIME), YEAR('2024-01-01'), ST_GeomFromText('POINT(1 2)'))
"""


@pytest.mark.mysql_only
def test_json_is_told_as_the_server_shows_it(mariadb, database, source, position):
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY, j JSON)", database)
    start = position()
    values = JSON.split("|")
    mariadb.execute([f"INSERT INTO t VALUES ({n}, {value})" for n, value in enumerate(values)], database)
    shown = mariadb.execute("SELECT id, CAST(j AS CHAR) FROM t ORDER BY id", database)
    assert [after for _, _, after in rows(events(source, start))] == [*shown]


@pytest.mark.mysql_only
def test_doubles_in_json_are_told_as_the_server_shows_them(mariadb):
    numbers = [s * m * 10.0**e for s in (1, -1) for m in (1, 1.5, 1.2345678901234567, 9.999999999999999)
               for e in range(-30, 31)] + [5e-324, 1.7976931348623157e308, 2.0**53, 0.1 + 0.2]  # fmt: skip
    doubles = [text if "e" in text else f"{text}e0" for text in map(repr, numbers)]
    sql = "SELECT " + ", ".join(f"CAST(JSON_ARRAY({double}) AS CHAR)" for double in doubles)
    (shown,) = mariadb.execute(sql)
    assert [f"[{double_text(number)}]" for number in numbers] == [*shown]


#: Characters, by their bytes, that Python's codecs take for others, or for none.
ODD = {
    "eucjpms": ["3130A1C13230", "A1C1A1DDA1F1", "8FA2B7", "8EB1", "ADA1"],
    "sjis": ["815F", "8160", "817C", "B1", "5C7E"],
    "cp932": ["8160", "FA4A", "8754"],
    "ujis": ["A1C0", "A1C1", "8FA2B7", "8EB1"],
    "big5": ["A145", "A14E", "A15A", "A440", "F9D5"],
    "gbk": ["A1A4", "A1AA", "8140"],
    "gb2312": ["A1A4", "A1AA"],
    "gb18030": ["8130813081", "A1A4", "81308130", "A8BC", "8431A439"],
    "euckr": ["A1A4", "A2E6", "B0A1"],
    **{
        charset: ["".join(f"{byte:02X}" for byte in range(0x80, 0x100))]
        for charset in ("cp1250", "cp1251", "cp1256", "cp1257", "latin1", "latin2", "latin5", "latin7", "greek",
                        "hebrew", "tis620", "koi8r", "koi8u", "cp850", "cp852", "cp866", "keybcs2", "macce", "macroman",
                        "armscii8", "geostd8", "dec8", "hp8", "swe7")
    },
}  # fmt: skip


@pytest.mark.mysql_too
def test_text_of_every_character_set_is_told_as_the_server_converts_it(mariadb, database, source, position):
    known = {row[0] for row in mariadb.execute("SELECT CHARACTER_SET_NAME FROM information_schema.CHARACTER_SETS")}
    odd = {charset: texts for charset, texts in ODD.items() if charset in known}
    assert len(odd) > 25
    columns = ", ".join(f"{charset} VARCHAR(200) CHARACTER SET {charset}" for charset in odd)
    mariadb.execute(f"CREATE TABLE t (id INT PRIMARY KEY, {columns})", database)
    start = position()
    mariadb.execute(
        [
            # As a client of that character set would; what the server refuses becomes NULL or is cut.
            f"INSERT INTO t (id, {charset}) "
            f"VALUES ({100 * m + n}, CAST(CAST(X'{text}' AS BINARY) AS CHAR CHARACTER SET {charset}))"
            for m, charset in enumerate(odd)
            for n, text in enumerate(odd[charset])
        ],
        database,
    )
    with contextlib.closing(connect(source)) as connection:
        shown = query(connection, f"SELECT id, {', '.join(odd)} FROM t ORDER BY id")
    assert sum(value is not None for row in shown for value in row[1:]) > 30
    assert [after for _, _, after in rows(events(source, start))] == shown


#: Character set of a table before and after, and a choice that the server itself can still show then.
CONVERTED = (
    ("latin1", "cp1250", "é"), ("utf8mb4", "latin1", "é"), ("utf8mb4", "utf32", "ab"), ("utf8mb4", "utf16", "ab"),
    ("koi8r", "cp1251", "ж"), ("utf8mb3", "ucs2", "ab"), ("ascii", "utf8mb4", "ab"),
)  # fmt: skip


@pytest.mark.mysql_too
def test_choices_of_a_table_whose_character_set_was_changed_are_those_of_the_server(site, mariadb, database):
    """Servers write to the binlog which choices a column has, in another character set than they say."""
    site.run(
        *(
            f"CREATE TABLE t{n} (id INT PRIMARY KEY, e ENUM('x','{choice}'), s SET('y','{choice}')) CHARACTER SET {old}"
            for n, (old, _, choice) in enumerate(CONVERTED)
        )
    )
    entry = site(validateIntervalDays=0)
    sync(entry)
    for step in range(2):
        if step:
            site.run(*(f"ALTER TABLE t{n} CONVERT TO CHARACTER SET {new}" for n, (_, new, _) in enumerate(CONVERTED)))
            sync(entry)
        site.run(*(f"INSERT INTO t{n} VALUES ({step}, 2, 3)" for n in range(len(CONVERTED))))
        sync(entry)
        with duckdb.connect(str(entry.replica), read_only=True) as replica:
            for n, names in enumerate(CONVERTED):
                ours = replica.execute(f"SELECT e, s FROM t{n}").fetchall()
                theirs = mariadb.execute(f"SELECT e, s FROM t{n}", database)
                assert ours == list(theirs), names


#: Character set of a table before, a choice, and its bytes in it, which no server can show after the change to utf8mb4.
UNREADABLE = (("cp1251", "ж", "e6"), ("latin1", "é", "e9"), ("sjis", "東", "93 8c"))


@pytest.mark.mysql_too
def test_choices_that_were_made_unreadable_are_named_until_they_are_repaired(site, mariadb, database, source):
    lists = {f"t{n}": (f"ENUM('x','{choice}')", f"SET('y','{choice}')") for n, (_, choice, _) in enumerate(UNREADABLE)}
    for (name, (enum, members)), (old, _, _) in zip(lists.items(), UNREADABLE, strict=True):
        # Without a primary key a table is read in one piece, with one by ranges.
        key = "KEY" if name == "t0" else "PRIMARY KEY"
        site.run(f"CREATE TABLE {name} (id INT NOT NULL, e {enum}, s {members}, {key} (id)) CHARACTER SET {old}")
    entry = site(validateIntervalDays=0)
    sync(entry)
    for name in lists:
        site.run(f"ALTER TABLE {name} CONVERT TO CHARACTER SET utf8mb4")
        site.run(f"INSERT INTO {name} VALUES (1, 2, 3), (2, 1, 1)")
    with contextlib.closing(connect(source)) as connection:
        with pytest.raises(SourceError, match="not UTF-8: the bytes e6"), translated(source, "look"):
            query(connection, "SELECT e FROM t0")
    for (name, (enum, members)), (_, _, stored) in zip(lists.items(), UNREADABLE, strict=True):
        with pytest.raises(ReplicaError, match=f"{name}: copy: e holds the bytes {stored}, which") as caught:
            sync(entry)
        assert "MODIFY the column to BIGINT UNSIGNED first" in str(caught.value)
        site.run(
            f"ALTER TABLE {name} MODIFY e BIGINT UNSIGNED, MODIFY s BIGINT UNSIGNED",
            f"ALTER TABLE {name} MODIFY e {enum}, MODIFY s {members}",
        )
    sync(entry)
    with duckdb.connect(str(entry.replica), read_only=True) as replica:
        for name, (_, choice, _) in zip(lists, UNREADABLE, strict=True):
            ours = replica.execute(f"SELECT e, s FROM {name} ORDER BY id").fetchall()
            assert ours == [(choice, f"y,{choice}"), ("x", "y")]
            assert ours == list(mariadb.execute(f"SELECT e, s FROM {name} ORDER BY id", database))


@pytest.mark.mysql_only
def test_texts_beside_a_vector_are_in_their_own_character_sets(mirror):
    mirror.run(
        "CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(9) CHARACTER SET latin1, v VECTOR(2), g POINT, j JSON, "
        "b TINYTEXT CHARACTER SET utf16, c BLOB, d VARCHAR(9) CHARACTER SET cp1251, e ENUM('ж') CHARACTER SET cp1251)"
    )
    mirror.catch_up()
    mirror.run(
        "INSERT INTO t VALUES (1, 'ü', x'3f8000003f800000', POINT(1, 2), '[\"ü\"]', '東京', x'00ff', 'жук', 'ж')",
        "INSERT INTO t VALUES (2, 'ü', NULL, NULL, NULL, '東京', NULL, 'жук', 'ж')",
    )
    mirror.catch_up()
    rows = mirror.replica.execute("SELECT a, b, c, d, e, j FROM t ORDER BY id").fetchall()
    assert rows == [("ü", "東京", b"\x00\xff", "жук", "ж", '["ü"]'), ("ü", "東京", None, "жук", "ж", None)]


@pytest.mark.mariadb_only
def test_temporal_columns_of_the_old_format_are_never_guessed(new_server):
    with new_server("--mysql56-temporal-format=OFF") as server:
        name = server.create_database()
        source = Source.parse(server.url(name), subject="production")
        server.execute("CREATE TABLE t (id INT PRIMARY KEY, d DATETIME(3), t TIME(3), s TIMESTAMP(6) NULL)", name)
        with contextlib.closing(connect(source)) as connection:
            start = current_position(connection)
        server.execute(["INSERT INTO t (id, d) VALUES (1, '2024-01-02 03:04:05.678')",
                        "INSERT INTO t (id, t) VALUES (2, '-01:02:03.456')"], name)  # fmt: skip
        found = events(source, start)
    lost = [event for event in found if isinstance(event, Unfollowed)]
    assert [event.tables for event in lost] == [("t",)] * 2
    assert "mysql56_temporal_format" in lost[0].note
    assert not [event for event in found if isinstance(event, RowChange)]


# ---- failover ----------------------------------------------------------------------------------------------


def replicate(primary, replica):
    user = "GRANT REPLICATION SLAVE ON *.* TO 'copier'@'%'"
    primary.execute(["CREATE USER 'copier'@'%' IDENTIFIED BY 'copier'", user])
    word, kind = ("MASTER", "SLAVE") if replica.is_mariadb else ("SOURCE", "REPLICA")
    how = "MASTER_USE_GTID=slave_pos" if replica.is_mariadb else "SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1"
    where = f"{word}_HOST='127.0.0.1', {word}_PORT={primary.port}, {word}_USER='copier', {word}_PASSWORD='copier'"
    to = "MASTER" if replica.is_mariadb else "REPLICATION SOURCE"
    replica.execute([f"CHANGE {to} TO {where}, {how}", f"START {kind}"])


def wait_for(server, sql, expected, database):
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(Exception):
            if server.execute(sql, database) == expected:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_after_a_failover_the_promoted_server_is_gone_on_with(new_server):
    """A stands at its seventh file, B at its first."""
    options = ("--log-slave-updates=ON",)
    with new_server(*options) as a, new_server(*options, "--server-id=4712") as b:
        replicate(a, b)
        a.execute(["CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY)", *["FLUSH BINARY LOGS"] * 6])
        a.execute("INSERT INTO shop.t VALUES (1)")
        source, promoted = (Source.parse(server.url("shop"), subject="production") for server in (a, b))
        with contextlib.closing(connect(source)) as connection:
            position = current_position(connection)
        wait_for(b, "SELECT id FROM t", ((1,),), "shop")
        b.execute("STOP SLAVE" if b.is_mariadb else "STOP REPLICA")
        b.execute(["INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (3)"], "shop")
        with contextlib.closing(connect(promoted)) as connection:
            assert is_available(connection, position)
            end = current_position(connection)
            assert end.order < position.order
        with BinlogStream(promoted, position) as stream:
            found = [event for event in stream.read_until(end) if event is not None]
            assert rows(found) == [("insert", None, (2,)), ("insert", None, (3,))]
            assert stream.position == end
        with BinlogStream(promoted, Position(position.file, position.offset, end.gtid, position.server)) as stream:
            assert rows(list(stream.read_until(end))) == []
        # A lacks what B has made: its own binlog is not the way back.
        with contextlib.closing(connect(source)) as connection:
            assert not is_available(connection, end)


def test_a_replica_that_writes_no_binlog_of_its_own_is_refused(new_server):
    with new_server() as a, new_server("--log-slave-updates=OFF", "--server-id=4712") as b:
        a.execute("CREATE DATABASE shop")
        with contextlib.closing(connect(Source.parse(a.url("shop"), subject="production"))) as connection:
            assert examine(connection, Source.parse(a.url("shop"), subject="production")) == []
        replicate(a, b)
        wait_for(b, "SELECT 1", ((1,),), "shop")
        with pytest.raises(PreflightError) as caught:
            preflight(Source.parse(b.url("shop"), subject="production"))
    assert "does not write to its binlog what it gets from its primary" in str(caught.value)
    assert [finding.fatal for finding in caught.value.findings] == [True]


@pytest.mark.parametrize("option,fatal", [("ignore-db=shop", True), ("do-db=other", True), ("do-db=shop", False),
                                          ("ignore-db=other", False)])  # fmt: skip
def test_a_binlog_that_lacks_the_database_is_refused(new_server, option, fatal):
    with new_server(f"--binlog-{option}") as server:
        server.execute("CREATE DATABASE shop")
        source = Source.parse(server.url("shop"), subject="production")
        with contextlib.closing(connect(source)) as connection:
            (finding,) = examine(connection, source)
    name = "binlog_" + option.partition("=")[0].replace("-", "_")
    assert (finding.setting, finding.value, finding.fatal) == (name, option.partition("=")[2], fatal)
