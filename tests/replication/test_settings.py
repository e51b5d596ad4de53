"""Statements that a session's settings, its temporary tables or another database give another meaning.

All cases of one server share a database: each has a table of its own, ``{t}``. The comparison is by queries on both
sides.
"""

import contextlib

import duckdb
import pymysql.err
import pytest

from duckling_provider.replication.apply.reach import Reach
from duckling_provider.replication.binlog.dump import RawEvent
from duckling_provider.replication.binlog.queries import read_query
from duckling_provider.replication.ddl.statements import Followed, Wrote, read_statement
from duckling_provider.replication.ddl.steps import AddColumn, DropTable, TruncateTable
from duckling_provider.replication.model.shapes import difference
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.sync import sync

UNKNOWN_VARIABLE = 1193  # MariaDB 11.8 has no old_alter_table any more
BY_STATEMENT = "SET binlog_format = STATEMENT"
TEMPORARY = "CREATE TEMPORARY TABLE {t} (id INT, v INT, n INT, PRIMARY KEY (n))"
GENERATED = (
    "CREATE TABLE g{t} (id INT PRIMARY KEY, v VARCHAR(9), d DECIMAL(4,2), s INT AS (v = 'A') STORED, "
    "c VARCHAR(9) AS (CONCAT(d)) VIRTUAL, q DECIMAL(20,8) AS (id / 3) STORED)"
)
MYISAM = " ENGINE = MyISAM"
OTHER_DIGITS = "SET div_precision_increment = 8"
ROW = "INSERT INTO g{t} (id, v, d) VALUES (1, 'a', 1.5)"

#: Statements; None between them: a sync. The first word says on which server alone.
CASES = (
    # character sets of the client
    ("SET NAMES latin1", "RENAME TABLE {t} TO `ü{t}`".encode("latin1"), "TRUNCATE `ü{t}`".encode("latin1")),
    ("SET NAMES latin1", BY_STATEMENT, "UPDATE {t} SET v = 'ü'".encode("latin1")),
    ("SET NAMES sjis", "ALTER TABLE {t} ADD c VARCHAR(9) DEFAULT 'x' COMMENT '表', DROP n".encode("cp932")),
    # names and comments
    ("RENAME TABLE {t} TO a€{t}", "TRUNCATE a€{t}"),
    ("RENAME TABLE {t} TO `a\u3000{t}`", None, "TRUNCATE a\u3000{t}"),
    ("RENAME TABLE {t} TO `0xag{t}`", None, "TRUNCATE 0xag{t}"),
    ("ALTER TABLE {t} ADD c INT DEFAULT 1 /*!99999 DEFAULT 2 */",),
    ("ALTER TABLE {t} ADD c INT DEFAULT 1 /*!80000 DEFAULT 2 */",),
    ("ALTER TABLE {t} ADD c INT DEFAULT 1 /*M! DEFAULT 2 */",),
    ("mysql", "/*M! SAVEPOINT */ TRUNCATE {t}"),
    # defaults
    ("ALTER TABLE {t} ADD c ENUM('X', 'x') NOT NULL DEFAULT 'x'",),
    ("ALTER TABLE {t} ADD c ENUM('x', 'y')", "UPDATE {t} SET c = 'x'", "ALTER TABLE {t} MODIFY c ENUM('X', 'x', 'y')"),
    ("ALTER TABLE {t} ADD c VARCHAR(20) DEFAULT 1e3",),
    ("ALTER TABLE {t} ADD c VARCHAR(20) DEFAULT 007",),
    ("ALTER TABLE {t} ADD c VARCHAR(20) DEFAULT -0",),
    ("ALTER TABLE {t} ADD c VARCHAR(20) DEFAULT .5",),
    ("mariadb", "ALTER TABLE {t} ADD c ENUM('2', '1') DEFAULT 1"),
    ("mariadb", "ALTER TABLE {t} ADD c ENUM('0', '1') DEFAULT TRUE"),
    ("mariadb", "ALTER TABLE {t} ADD c INT DEFAULT 1, ALTER c SET DEFAULT 2"),
    # sql_mode
    ("mariadb", "SET sql_mode = 'EMPTY_STRING_IS_NULL'", "ALTER TABLE {t} ADD c VARCHAR(5) DEFAULT ''"),
    ("mariadb", "SET sql_mode = 'ANSI_QUOTES'", 'ALTER TABLE {t} ADD c VARCHAR(20) DEFAULT "v"'),
    ("mariadb", "SET sql_mode = 'ORACLE'", "ALTER TABLE {t} ADD c DATE DEFAULT '2020-01-01'"),
    ("SET sql_mode = 'ANSI_QUOTES'", 'ALTER TABLE "{t}" ADD "c" INT DEFAULT 7, DROP "n"'),
    (r"ALTER TABLE {t} ADD c INT DEFAULT 1 COMMENT '\', ADD d INT DEFAULT 7 -- '",),
    ("SET sql_mode = NO_BACKSLASH_ESCAPES", r"ALTER TABLE {t} ADD c INT DEFAULT 1 COMMENT '\', ADD d INT -- '"),
    ("SET sql_mode = PAD_CHAR_TO_FULL_LENGTH", "ALTER TABLE {t} MODIFY v CHAR(5)", "ALTER TABLE {t} MODIFY v TEXT"),
    # character sets of columns
    ("UPDATE {t} SET v = '[a]'", "ALTER TABLE {t} MODIFY v VARCHAR(20) CHARACTER SET swe7"),
    ("ALTER TABLE {t} ADD c LONGTEXT", "UPDATE {t} SET c = REPEAT('x', 200)",
     "ALTER TABLE {t} MODIFY c TINYTEXT CHARACTER SET utf16"),
    ("ALTER TABLE {t} ADD c LONGTEXT", "UPDATE {t} SET c = REPEAT('x', 20000)",
     "ALTER TABLE {t} MODIFY c TEXT CHARACTER SET utf32"),
    # what is computed
    (GENERATED, ROW, None, "ALTER TABLE g{t} MODIFY d DECIMAL(6,4)"),
    (GENERATED, ROW, None, "ALTER TABLE g{t} MODIFY v VARCHAR(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
    (GENERATED, ROW, None, "ALTER TABLE g{t} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
    (GENERATED, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} FORCE, ALGORITHM = COPY"),
    (GENERATED, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ADD x INT, ALGORITHM = COPY"),
    (GENERATED, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ENGINE = MyISAM"),
    (GENERATED, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} PARTITION BY HASH (id)"),
    (GENERATED, ROW, None, OTHER_DIGITS, "SET old_alter_table = 1", "ALTER TABLE g{t} ADD x INT"),
    (GENERATED, ROW, None, OTHER_DIGITS, "SET old_alter_table = 1", "CREATE INDEX i ON g{t} (d)"),
    (GENERATED, ROW, None, OTHER_DIGITS, "SET old_alter_table = 1", "OPTIMIZE TABLE g{t}"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ADD x INT"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} DROP c"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ADD INDEX (d), RENAME TO h{t}"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "CREATE INDEX i ON g{t} (d)"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} MAX_ROWS = 1000"),
    (GENERATED + MYISAM, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ALTER v SET DEFAULT 'x', ADD CHECK (id > 0)"),
    (GENERATED, ROW, None, OTHER_DIGITS, "ALTER TABLE g{t} ADD x INT, ALGORITHM = INPLACE"),
    # temporary tables
    (BY_STATEMENT, TEMPORARY, "TRUNCATE {t}"),
    (BY_STATEMENT, TEMPORARY, "ALTER TABLE {t} ADD c INT DEFAULT 3"),
    (BY_STATEMENT, TEMPORARY, "DROP INDEX `PRIMARY` ON {t}"),
    (BY_STATEMENT, TEMPORARY, "ALTER TABLE {t} RENAME TO z{t}"),
    ("SET binlog_format = MIXED", TEMPORARY, "TRUNCATE {t}"),
    # statements that write
    ("mariadb", BY_STATEMENT, "ANALYZE UPDATE {t} SET n = 77"),
    ("mariadb", BY_STATEMENT, "ANALYZE FORMAT = JSON DELETE FROM {t}"),
    (BY_STATEMENT, "CREATE VIEW {other}.v{t} AS SELECT * FROM {here}.{t}", "USE {other}", "UPDATE v{t} SET n = 5"),
    (BY_STATEMENT, "USE {other}", "CREATE TABLE x{t} (id INT)",
     "CREATE TRIGGER g{t} AFTER INSERT ON x{t} FOR EACH ROW DELETE FROM {here}.{t}", "INSERT INTO x{t} VALUES (1)"),
    (BY_STATEMENT, "CREATE FUNCTION {other}.f{t}() RETURNS INT BEGIN DELETE FROM {here}.{t}; RETURN 1; END",
     "USE {other}", "DO f{t}()"),
    (BY_STATEMENT, "CREATE FUNCTION f{t}() RETURNS INT BEGIN DELETE FROM {t}; RETURN 1; END",
     "CREATE TABLE y{t} (a INT)", "INSERT INTO y{t} VALUES (f{t}())"),
    # values
    ("CREATE TABLE z{t} (d DOUBLE)", "INSERT INTO z{t} VALUES (-0e0), (0e0)", "DELETE FROM z{t} LIMIT 1"),
    ("CREATE TABLE z{t} (d DOUBLE)", "INSERT INTO z{t} VALUES (-0e0), (0e0)", None, "DELETE FROM z{t} LIMIT 1"),
)  # fmt: skip


def run(session, statement):
    """One statement, in the character set of the session if it is bytes."""
    if isinstance(statement, bytes):
        session._execute_command(3, statement)
        session._read_query_result()
        return
    with session.cursor() as cursor:
        try:
            cursor.execute(statement)
        except pymysql.err.OperationalError as error:
            if error.args[0] != UNKNOWN_VARIABLE:
                raise


@pytest.fixture
def elsewhere(mariadb):
    """Another database, while the user of the replica sees all triggers and routines."""
    rights = "TRIGGER, SHOW VIEW, EXECUTE ON *.*"
    before = mariadb.execute("SELECT @@GLOBAL.log_bin_trust_function_creators")[0][0]
    name = mariadb.create_database()
    mariadb.execute(["SET GLOBAL log_bin_trust_function_creators = ON", f"GRANT {rights} TO {mariadb.user}@'%'"])
    yield name
    mariadb.execute([
        f"REVOKE {rights} FROM {mariadb.user}@'%'", f"SET GLOBAL log_bin_trust_function_creators = {before}",
        f"DROP DATABASE {name}",
    ])  # fmt: skip


@pytest.mark.mysql
@pytest.mark.mysql_too
def test_no_setting_of_a_session_makes_a_difference_in_silence(mirror, mariadb, elsewhere):
    mine, other = ("mariadb", "mysql") if mariadb.is_mariadb else ("mysql", "mariadb")
    cases = {f"t{number}": case for number, case in enumerate(CASES) if case[0] != other}
    with contextlib.ExitStack() as stack:
        sessions = {}
        for table, case in cases.items():
            session = sessions[table] = stack.enter_context(contextlib.closing(mariadb.connect(mirror.database)))
            mirror.run(
                f"CREATE TABLE {table} (id INT PRIMARY KEY, v VARCHAR(20), n INT)",
                f"INSERT INTO {table} VALUES (1, 'a', 1), (2, 'x', NULL), (3, 'ü', 3)",
            )
            for statement in case[case[0] == mine : case.index(None)] if None in case else ():
                run(session, _of(statement, table, mirror.database, elsewhere))
        mirror.catch_up()
        # Where a statement may have written rows, DDL that comes later in the same batch marks everything.
        for table, case in sorted(cases.items(), key=lambda item: _writes(item[1])):
            for statement in case[case.index(None) + 1 if None in case else case[0] == mine :]:
                run(sessions[table], _of(statement, table, mirror.database, elsewhere))
            if _writes(case):
                mirror.catch_up()
        mirror.catch_up()
        different = []
        present = read_tables(mirror.server, mirror.database)
        for name, table in present.items():
            state = mirror.states.get(name)
            if state is None or state.state != "ok" or difference(state.table, table):
                continue  # known to differ
            ours, theirs = mirror.rows(name)
            if list(map(repr, ours)) != list(map(repr, theirs)):
                different.append(f"{name}: {ours} here, {theirs} there")
    assert not different, "\n".join(different)
    followed = sum(name in mirror.states and mirror.states[name].state == "ok" for name in present)
    assert followed > len(present) / 4, "nearly all tables are marked: that proves nothing"


def _writes(case):
    return any("binlog_format" in str(statement) or "SAVEPOINT" in str(statement) for statement in case)


def _of(statement, table, here, other):
    text = statement if isinstance(statement, str) else statement.decode("latin1")
    for name, value in {"{t}": table, "{here}": here, "{other}": other}.items():
        text = text.replace(name, value)
    return text if isinstance(statement, str) else text.encode("latin1")


@pytest.mark.mysql
@pytest.mark.mysql_too
def test_statements_of_other_databases_mark_what_they_reach_and_nothing_else(mirror, mariadb, elsewhere):
    mirror.run("CREATE TABLE t (id INT PRIMARY KEY)", "CREATE TABLE u (id INT PRIMARY KEY)", "INSERT INTO u VALUES (1)")
    mirror.catch_up()
    mariadb.execute(
        [
            "CREATE TABLE t (id INT)",
            "CREATE TABLE x (id INT)",
            f"CREATE TRIGGER g AFTER INSERT ON x FOR EACH ROW DELETE FROM {mirror.database}.u",
            BY_STATEMENT,
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET id = 2",
            "DELETE FROM t",
        ],
        elsewhere,
    )
    mirror.catch_up()
    assert {name for name, state in mirror.states.items() if state.state != "ok"} == set()
    mariadb.execute([BY_STATEMENT, "INSERT INTO x VALUES (1)"], elsewhere)
    mirror.catch_up()
    assert {name for name, state in mirror.states.items() if state.state != "ok"} == {"u"}


@pytest.mark.mysql
@pytest.mark.mariadb_only
def test_what_triggers_of_other_databases_write_is_unknown_to_who_may_not_see_them(mirror, mariadb):
    mirror.run("CREATE TABLE t (id INT PRIMARY KEY)")
    mirror.catch_up()
    other = mariadb.create_database()
    try:
        mariadb.execute(["CREATE TABLE x (id INT)", BY_STATEMENT, "INSERT INTO x VALUES (1)"], other)
        mirror.catch_up()
    finally:
        mariadb.execute(f"DROP DATABASE {other}")
    assert mirror.states["t"].state == "recopy"


@pytest.mark.mysql
@pytest.mark.mysql_too
def test_tables_of_engines_whose_rows_the_binlog_does_not_tell_are_left_out_and_told(site, mariadb, database):
    site.run("CREATE TABLE t (id INT PRIMARY KEY) ENGINE = MyISAM", "CREATE TABLE u LIKE t")
    site.run("CREATE TABLE m (id INT PRIMARY KEY) ENGINE = MERGE UNION = (t, u) INSERT_METHOD = LAST")
    if not mariadb.is_mariadb or mariadb.execute("SELECT 1 FROM information_schema.ENGINES WHERE ENGINE = 'BLACKHOLE'"):
        site.run("CREATE TABLE b (id INT PRIMARY KEY) ENGINE = BLACKHOLE")
    entry = site()
    sync(entry)
    site.run("INSERT INTO m VALUES (1)")
    sync(entry)
    sync(entry)
    with duckdb.connect(str(entry.replica), read_only=True) as replica:
        names = replica.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()
        assert sorted(names) == [("t",), ("u",)]
        assert replica.execute("SELECT id FROM u").fetchall() == [(1,)]


# ---- without a server ----


def test_a_statement_of_another_database_reaches_what_is_seen_there_and_by_foreign_keys():
    def written(statement, reach):
        return reach.written_by(read_statement(statement, "shop", "other"), ["t", "u", "child"], {"parent": ["child"]})

    seen = Reach({"x": frozenset({"u"})}, is_hidden=False, is_hidden_elsewhere=False)
    assert written("UPDATE t SET id = 1", seen) == set()
    assert written("INSERT INTO x VALUES (1)", seen) == {"u"}
    assert written("DELETE FROM parent", seen) == {"child"}
    assert written("UPDATE shop.t, u SET t.id = 1", seen) == {"t", "u"}
    assert written("UPDATE t SET id = 1", Reach(is_hidden=False)) == {"t", "u", "child"}


def test_a_mode_that_is_told_settles_what_a_backslash_and_a_quote_mean():
    statement = r"ALTER TABLE t ADD c INT COMMENT '\', ADD d INT -- '"
    assert isinstance(read_statement(statement, "shop", "shop"), Wrote)
    known = [read_statement(statement, "shop", "shop", sql_mode=mode) for mode in (0, 1 << 20)]
    assert [[step.column.name for step in meaning.steps if isinstance(step, AddColumn)] for meaning in known] == [
        ["c"], ["c", "d"],
    ]  # fmt: skip
    assert read_statement('TRUNCATE "t"', "shop", "shop", sql_mode=4).steps == (TruncateTable("t"),)


def test_a_mode_that_is_not_known_to_be_harmless_marks_what_is_altered():
    for mode in (0x80000000, 0x200, 1 << 34, 1 << 50):
        assert isinstance(read_statement("ALTER TABLE t ADD c INT", "shop", "shop", sql_mode=mode), Wrote)
    for mode in (0x01000000, 0x600000, 0x40000000, 0x80000, 4, None):
        assert isinstance(read_statement("ALTER TABLE t ADD c INT", "shop", "shop", sql_mode=mode), Followed)


def test_ddl_of_a_session_with_temporary_tables_counts_as_about_all_that_it_names():
    meaning = read_statement("TRUNCATE t", "shop", "shop", of_session=True)
    assert isinstance(meaning, Wrote)
    assert "t" in meaning.named
    assert read_statement("DROP TEMPORARY TABLE t", "shop", "shop", of_session=True) == Followed(())
    assert isinstance(read_statement("DROP INDEX `PRIMARY` ON t", "shop", "shop", of_session=True), Wrote)
    # Of a temporary table the server writes DROP TEMPORARY TABLE.
    dropped = read_statement("DROP TABLE t", "shop", "shop", of_session=True)
    assert dropped.steps == (DropTable("t"),)


def test_what_only_mariadb_reads_makes_a_statement_of_mysql_unclear():
    statement = "ALTER TABLE t ADD c INT DEFAULT 1 /*M! DEFAULT 2 */"
    assert isinstance(read_statement(statement, "shop", "shop"), Followed)
    assert isinstance(read_statement(statement, "shop", "shop", mariadb=False), Wrote)


@pytest.mark.parametrize(
    "status,mode,collation,databases",
    [
        (b"", None, None, None),
        (b"\0abcd\1\4\0\0\0\0\0\0\0\6\3std\4\x08\0\x08\0\x2d\0", 4, 8, None),
        (b"\1\0\0\0\0\0\0\0\0\x05\x06+05:00\x0c\2a\0b\0\x0d\1\2\3", 0, None, frozenset({"a", "b"})),
        (b"\x0c\xfe\4\x08\0\0\0\0\0", None, 8, None),
        (b"\x0b\4root\4host\4\x08\0\0\0\0\0", None, 8, None),
        (b"\xc8\4\x08\0\0\0\0\0", None, None, None),
    ],
)
def test_what_a_statement_depends_on_is_read_up_to_what_is_unknown(status, mode, collation, databases):
    body = b"\1\0\0\0\0\0\0\0\4\0\0" + len(status).to_bytes(2, "little") + status + b"shop\0TRUNCATE t"
    query = read_query(RawEvent(0, 2, 1, 0, body))
    assert (query.schema, query.text) == ("shop", b"TRUNCATE t")
    assert (query.sql_mode, query.collation, query.databases) == (mode, collation, databases)
