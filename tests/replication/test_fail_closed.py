"""What is not proven to leave values as they are marks the table for a new copy; nothing differs in silence."""

import contextlib

import pytest

from duckling_provider.replication.apply.batch import BatchLimits
from duckling_provider.replication.apply.foreign_keys import read_references
from duckling_provider.replication.apply.reach import Reach
from duckling_provider.replication.ddl.statements import Followed, Wrote, read_statement
from duckling_provider.replication.ddl.steps import SetPrimaryKey, TruncateTable, Unclear
from duckling_provider.replication.model.ledger import Ledger


def marked(mirror):
    return {name for name, state in mirror.states.items() if state.state != "ok"}


def assert_no_silence(mirror):
    """Each table is equal or known not to be."""
    for name, state in mirror.states.items():
        if state.state == "ok":
            ours, theirs = mirror.rows(name)
            assert ours == theirs, name


def on_mariadb(*values):
    return pytest.param(*values, marks=pytest.mark.mariadb_only)


TABLES = (
    "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(20), n INT)",
    "CREATE TABLE u (id INT PRIMARY KEY, v VARCHAR(20), n INT)",
    "CREATE TABLE w (id INT PRIMARY KEY)",
    "INSERT INTO t VALUES (1, 'a', 1), (2, 'a', NULL), (3, 'ü', 3)",
    "INSERT INTO u VALUES (7, 'x', 7)",
    "INSERT INTO w VALUES (1), (2)",
)


# ---- statements, without a server ----


@pytest.mark.parametrize(
    "statement",
    [
        "GRANT SELECT ON shop.* TO x@y",
        "SET PASSWORD FOR x = 'secret'",
        "CREATE OR REPLACE DEFINER=`root`@`%` VIEW t AS SELECT 1",
        "CREATE ALGORITHM=UNDEFINED DEFINER=a@b SQL SECURITY DEFINER VIEW v AS SELECT 1",
        "CREATE AGGREGATE FUNCTION f() RETURNS INT RETURN 1",
        "CREATE UNIQUE INDEX i ON t (v)",
        "DROP INDEX i ON t",
        "ALTER DATABASE shop CHARACTER SET latin1",
        "OPTIMIZE TABLE t",
        "CREATE TEMPORARY TABLE t (a INT)",
        "DROP TEMPORARY TABLE t",
        "CREATE VIEW t AS SELECT 1",
        "ALTER TABLE t ALTER COLUMN n SET DEFAULT 7, ALTER INDEX i INVISIBLE",
    ],
)
def test_what_is_known_to_be_harmless_marks_nothing(statement):
    meaning = read_statement(statement, "shop", "shop")
    assert isinstance(meaning, Followed)
    assert meaning.steps == ()


@pytest.mark.parametrize(
    "statement,expected",
    [
        ("ALTER TABLE t ADD c INT", ["t"]),
        ("ALTER ONLINE TABLE shop.t COMMENT 'inplace'", ["t"]),
        ("ALTER TABLE IF EXISTS t ADD INDEX (n), RENAME TO u", ["t"]),
        ("ALTER TABLE t RENAME INDEX i TO j", ["t"]),
        ("CREATE UNIQUE INDEX i ON t (v) COMMENT 'on'", ["t"]),
        ("DROP INDEX IF EXISTS i ON t", ["t"]),
        ("OPTIMIZE TABLE t, other.v, u", ["t", "u"]),
        ("ALTER TABLE t ADD c INT, ALGORITHM = INPLACE", []),
        ("ALTER TABLE t ADD c INT, ALGORITHM INSTANT", []),
        ("CREATE INDEX i ON t (v) ALGORITHM = NOCOPY", []),
        ("ALTER TABLE t RENAME TO u", []),
        ("ALTER TABLE t DISABLE KEYS", []),
        ("ALTER TABLE other.t ADD c INT", []),
        ("CREATE TABLE t (a INT)", []),
        ("DROP TABLE t", []),
        ("TRUNCATE t", []),
    ],
)
def test_what_may_write_each_row_again_is_known(statement, expected):
    meaning = read_statement(statement, "shop", "shop")
    assert isinstance(meaning, Followed)
    assert list(meaning.rebuilt) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE m (a INT) ENGINE=MRG_MyISAM UNION=(t, u)",
        "CREATE TABLE other.m (a INT) UNION (shop.t)",
        "ALTER TABLE m UNION = (t)",
        "ALTER TABLE t ENGINE MERGE",
    ],
)
def test_a_statement_that_defines_a_merge_table_counts_as_having_written_all_that_it_names(statement):
    meaning = read_statement(statement, "shop", "shop")
    assert isinstance(meaning, Wrote)
    assert "t" in meaning.named


@pytest.mark.parametrize(
    "statement",
    [
        "FROBNICATE TABLE t",
        "REPAIR TABLE t",
        "SET STATEMENT sql_mode='' FOR ALTER TABLE t MODIFY v INT",
        "CREATE FROBNICATOR t",
        "ALTER FROBNICATOR t",
        "DROP TABLE t, u SOMEHOW",
        "RENAME TABLE t TO x SOMEHOW",
        r"ALTER TABLE t ADD c VARCHAR(9) DEFAULT 'a\n'",
        r"ALTER TABLE t COMMENT 'a\', DROP COLUMN v -- '",
        "HANDLER t OPEN",
        "SET @a = 1, @b = (SELECT f FROM t)",
    ],
)
def test_what_is_not_known_counts_as_having_written_all_that_it_names(statement):
    meaning = read_statement(statement, "shop", "shop")
    assert isinstance(meaning, Wrote)
    assert meaning.targets is None
    assert "t" in meaning.named


@pytest.mark.parametrize(
    "action",
    [
        "IMPORT TABLESPACE",
        "DISCARD TABLESPACE",
        "IMPORT PARTITION p0 TABLESPACE",
        "TRUNCATE PARTITION p0",
        "DROP PARTITION p0",
        "REPAIR PARTITION p0",
        "EXCHANGE PARTITION p0 WITH TABLE u",
        "CONVERT PARTITION p0 TO TABLE u",
        "CONVERT TABLE u TO PARTITION p1 VALUES LESS THAN (9)",
        "ADD SYSTEM VERSIONING",
        "DROP SYSTEM VERSIONING",
        "ADD PERIOD FOR SYSTEM_TIME (a, b)",
        "ENGINE = MEMORY",
        "ADD c SERIAL",
        "CONVERT TO CHARACTER SET latin1",
        "CONVERT TO CHARACTER SET DEFAULT",
        "SECONDARY_LOAD",
        "ADD c INT SOMEHOW",
    ],
)
def test_what_an_alter_table_does_to_rows_without_showing_it_marks_the_table(action):
    meaning = read_statement(f"ALTER TABLE t ADD x INT, {action}", "shop", "shop")
    assert [(type(step), step.name) for step in meaning.steps] == [(Unclear, "t")]


def test_settings_that_no_value_depends_on_stand_before_a_statement_without_harm():
    statement = "SET STATEMENT lock_wait_timeout=5, max_statement_time = (1+1) FOR TRUNCATE TABLE t"
    assert read_statement(statement, "shop", "shop") == Followed((TruncateTable("t"),), truncated=(("shop", "t"),))
    doubly = "SET STATEMENT lock_wait_timeout=5 FOR SET STATEMENT sql_mode='' FOR TRUNCATE TABLE t"
    assert isinstance(read_statement(doubly, "shop", "shop"), Wrote)


@pytest.mark.parametrize(
    "statement", ["DROP INDEX `PRIMARY` ON t", "ALTER TABLE t DROP INDEX `PRIMARY`", "ALTER TABLE t DROP KEY `PRIMARY`"]
)
def test_the_primary_key_goes_by_its_name_as_an_index_too(statement):
    assert read_statement(statement, "shop", "shop").steps == (SetPrimaryKey("t", ()),)


def test_a_statement_reaches_what_triggers_views_routines_and_keys_write():
    tables = ["Orders", "items", "log", "audit", "other"]
    reach = Reach(
        {"orders": frozenset({"log"}), "v": frozenset({"items"}), "f": frozenset({"audit"})}, frozenset({"f"}), False
    )
    children = {"log": ["audit"]}

    def written(statement, reach=reach):
        return reach.written_by(read_statement(statement, "shop", "shop"), tables, children)

    assert written("INSERT INTO orders SELECT * FROM other") == {"Orders", "log", "audit"}
    assert written("REPLACE v VALUES (1)") == {"items"}
    assert written("SELECT `shop`.`f`()") == {"audit"}
    assert written("SELECT g()") == set(tables), "a function that the user can't see"
    assert written("REPLACE INTO percona.checksums SELECT count(*) FROM items") == set()
    assert written("REPLACE INTO percona.other SELECT f() FROM items") == {"audit"}
    assert written("UPDATE other, items SET other.n = items.n") == {"other", "items"}
    assert written("LOAD DATA INFILE 'x' INTO TABLE items") == {"items"}
    assert written("INSERT INTO items VALUES (1)", Reach()) == set(tables), "triggers are hidden"
    hidden = Reach({"items": None}, is_hidden=False)
    assert written("INSERT INTO items VALUES (1)", hidden) == set(tables)


# ---- on a real server ----


@pytest.mark.mysql
@pytest.mark.parametrize(
    "statements,expected",
    [
        on_mariadb(["SET STATEMENT lock_wait_timeout=5 FOR TRUNCATE TABLE t"], set()),
        on_mariadb(["SET STATEMENT lock_wait_timeout=5 FOR ALTER TABLE t DROP n"], set()),
        on_mariadb(["SET STATEMENT max_statement_time=50 FOR RENAME TABLE t TO t2"], set()),
        on_mariadb(["SET STATEMENT sql_mode='' FOR ALTER TABLE t MODIFY v INT"], {"t"}),
        on_mariadb(["ALTER IGNORE TABLE t ADD UNIQUE (v)"], {"t"}),
        (["ALTER TABLE t DROP INDEX `PRIMARY`", "INSERT INTO t VALUES (1, 'again', 1)"], set()),
        (["DROP INDEX `PRIMARY` ON t", "INSERT INTO t VALUES (1, 'again', 1)"], set()),
        (["ALTER TABLE t MODIFY v VARCHAR(20) CHARACTER SET latin1"], {"t"}),
        (["ALTER TABLE t CONVERT TO CHARACTER SET utf8mb3"], {"t"}),
        (["ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4"], set()),
        (["ALTER TABLE t ENGINE = BLACKHOLE"], {"t"}),
        (["ALTER TABLE t ENGINE = MyISAM"], set()),
        (["ALTER TABLE t MODIFY n INT NOT NULL"], {"t"}),
        (["ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (n)"], {"t"}),
        (["UPDATE t SET id = 0 WHERE id = 1", "ALTER TABLE t MODIFY id INT AUTO_INCREMENT"], {"t"}),
        (["ALTER TABLE t MODIFY id INT AUTO_INCREMENT"], set()),
        (["RENAME TABLE t TO T"], set()),
        (["ALTER TABLE t CHANGE v V VARCHAR(20) CHARACTER SET utf8mb4"], set()),
        (["CREATE TABLE c SELECT * FROM t"], set()),
        (["CREATE TABLE c AS SELECT id, n + 1 AS m FROM t", "DELETE FROM c WHERE id = 1"], set()),
        on_mariadb(["CREATE OR REPLACE TABLE u AS SELECT id FROM t"], set()),
    ],
    ids=lambda value: "; ".join(value)[:60] if isinstance(value, list) else "",
)
def test_ddl_differs_from_the_server_in_no_table_that_is_not_marked(mirror, statements, expected):
    mirror.run(*TABLES)
    mirror.catch_up()
    mirror.run("SET sql_mode = ''", "SET NAMES utf8mb4", *statements)
    mirror.catch_up()
    assert_no_silence(mirror)
    assert marked(mirror) == expected
    assert {"RENAME": {"T", "u", "w"}, "CREATE": {"t", "u", "w", "c"}}.get(
        statements[0].split()[0], set(mirror.states)
    ) >= set(mirror.states)


@pytest.mark.mysql
def test_both_tables_of_an_exchange_of_partitions_are_marked(mirror):
    mirror.run(
        "CREATE TABLE p (id INT PRIMARY KEY) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (100))",
        "CREATE TABLE q (id INT PRIMARY KEY)",
        "INSERT INTO p VALUES (1)",
        "INSERT INTO q VALUES (2)",
    )
    mirror.catch_up()
    mirror.run("ALTER TABLE p EXCHANGE PARTITION p0 WITH TABLE q")
    mirror.catch_up()
    assert marked(mirror) == {"p", "q"}


@pytest.mark.mysql
@pytest.mark.parametrize("expression", ["id * 3", "id + 1"])
@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
@pytest.mark.mysql_too
def test_another_expression_of_a_generated_column_needs_a_new_copy(mirror, expression, kind):
    mirror.run(f"CREATE TABLE g (id INT PRIMARY KEY, g INT AS (id * 2) {kind})", "INSERT INTO g (id) VALUES (1), (2)")
    mirror.catch_up()
    with contextlib.suppress(Exception):
        mirror.run(f"ALTER TABLE g MODIFY g INT AS ({expression}) {kind}")
    mirror.catch_up()
    assert_no_silence(mirror)


@pytest.mark.mysql
@pytest.mark.parametrize(
    "definition,is_followed",
    [
        ("c INT", True),
        ("c INT NOT NULL", True),
        ("c INT NOT NULL DEFAULT 7", True),
        ("c INT DEFAULT '-7'", True),
        ("c INT DEFAULT 1.6", False),
        ("c INT DEFAULT '1e2'", False),
        ("c INT UNSIGNED DEFAULT 4294967295", True),
        ("c BOOLEAN DEFAULT TRUE", True),
        ("c VARCHAR(9) NOT NULL", True),
        ("c VARCHAR(9) DEFAULT 'plain'", True),
        ("c VARCHAR(9) DEFAULT 'é'", False),
        (r"c VARCHAR(9) DEFAULT 'a\n'", False),
        ("c VARCHAR(9) DEFAULT _latin1'a'", False),
        ("c VARCHAR(3) DEFAULT 'a  '", False),
        ("c ENUM('x','y') DEFAULT 'x'", True),
        ("c ENUM('x','y') DEFAULT 'X'", False),
        ("c ENUM('x','y') NOT NULL", False),
        ("c DATETIME DEFAULT '2020-01-01 10:00:00'", True),
        ("c DATETIME DEFAULT '2020-01-01 10:00:00.6'", False),
        ("c DATETIME DEFAULT '20200101100000'", False),
        ("c DATE NOT NULL DEFAULT '0000-00-00'", True),
        ("c TIMESTAMP", False),
        ("c TIMESTAMP NULL", True),
        ("c TIMESTAMP DEFAULT CURRENT_TIMESTAMP", False),
        ("c DECIMAL(6,2) DEFAULT 1.5", True),
        ("c DECIMAL(6,2) DEFAULT 1.555", False),
        ("c DOUBLE NOT NULL DEFAULT 0", True),
        ("c FLOAT DEFAULT 0.1", False),
        ("c BIT(3) DEFAULT b'101'", True),
        ("c INT DEFAULT (1 + 1)", False),
        ("c INT AS (id + 1) STORED", False),
    ],
)
def test_no_default_is_computed_that_can_mean_two_values(mirror, definition, is_followed):
    mirror.run("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    mirror.catch_up()
    mirror.run("SET explicit_defaults_for_timestamp = OFF", f"ALTER TABLE t ADD {definition}")
    mirror.catch_up()
    assert marked(mirror) == (set() if is_followed else {"t"})
    if "0000" not in definition and "BIT" not in definition:
        assert_no_silence(mirror)


BY_STATEMENT = {
    "trigger": "INSERT INTO t VALUES (9, 'x', 1)",
    "view": "INSERT INTO v VALUES (9, 'x', 1)",
    "cascade": "DELETE FROM parent WHERE id = 1",
    "function": "SELECT f()",
    "load": "LOAD DATA LOCAL INFILE '{file}' INTO TABLE u",
    "prefix": "SET STATEMENT lock_wait_timeout=5 FOR UPDATE u SET n = 5",
}


@pytest.mark.mysql
@pytest.mark.parametrize("sees_triggers", [True, False])
@pytest.mark.parametrize(
    "way", [on_mariadb(way) if "SET STATEMENT" in statement else way for way, statement in BY_STATEMENT.items()]
)
@pytest.mark.mysql_too
def test_statements_mark_what_they_reach(mirror, tmp_path, way, sees_triggers):
    file = tmp_path / "rows"
    file.write_text("30\tloaded\t1\n")
    user = f"GRANT TRIGGER, SHOW VIEW ON `{mirror.database}`.* TO 'duckling'@'%'"
    mirror.run(
        *TABLES,
        "CREATE TABLE parent (id INT PRIMARY KEY)",
        "CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE)",
        "INSERT INTO parent VALUES (1), (2)",
        "INSERT INTO child VALUES (1, 1), (2, 2)",
        "CREATE TRIGGER after_t AFTER INSERT ON t FOR EACH ROW INSERT INTO u VALUES (NEW.id, 'by trigger', 0)",
        "CREATE VIEW v AS SELECT * FROM u",
        "CREATE FUNCTION f() RETURNS INT DETERMINISTIC BEGIN UPDATE u SET n = 99; RETURN 1; END",
    )
    mirror.catch_up(references=read_references(mirror.server, mirror.database))
    if sees_triggers:
        mirror.run(user)
    mirror.run("SET GLOBAL local_infile = ON")
    try:
        with contextlib.closing(mirror.mariadb.connect(mirror.database, local_infile=True)) as session:
            with session.cursor() as cursor:
                cursor.execute("SET binlog_format = STATEMENT")
                cursor.execute(BY_STATEMENT[way].format(file=file))
        mirror.catch_up(references=read_references(mirror.server, mirror.database))
    finally:
        if sees_triggers:
            mirror.run(user.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
    assert_no_silence(mirror)
    if sees_triggers:
        reached = {"trigger": {"t", "u"}, "cascade": {"parent", "child"}}.get(way, {"u"})
        assert marked(mirror) == reached
    assert all(line[1] != "recopy" or ":" in line[2] for line in Ledger.open(mirror.replica).history())


@pytest.mark.mysql
def test_tables_that_a_statement_only_reads_are_not_copied_again(mirror):
    mirror.run(*TABLES)
    mirror.catch_up()
    mirror.run("CREATE DATABASE IF NOT EXISTS percona_test", "CREATE TABLE percona_test.sums (c INT PRIMARY KEY)")
    mirror.run("SET binlog_format = STATEMENT", "REPLACE INTO percona_test.sums SELECT COUNT(*) FROM t")
    mirror.run("DROP DATABASE percona_test")
    mirror.catch_up()
    assert marked(mirror) == set()


@pytest.mark.mysql
@pytest.mark.parametrize("limits", [BatchLimits(), BatchLimits(seconds=0)], ids=["one batch", "two"])
def test_a_trigger_that_is_gone_before_it_can_be_read_leaves_no_table_trusted(mirror, limits):
    mirror.run(*TABLES)
    mirror.run("CREATE TRIGGER after_w AFTER INSERT ON w FOR EACH ROW INSERT INTO u VALUES (NEW.id + 50, 'x', 0)")
    mirror.catch_up()
    rights = f"TRIGGER, SHOW VIEW, EXECUTE ON {mirror.database}.* {{}} {mirror.mariadb.user}@'%'"
    mirror.run(f"GRANT {rights.format('TO')}")
    mirror.run("SET binlog_format = STATEMENT", "INSERT INTO w VALUES (9)", "DROP TRIGGER after_w")
    mirror.catch_up(limits=limits)
    mirror.run(f"REVOKE {rights.format('FROM')}")
    assert_no_silence(mirror)
    assert "u" in marked(mirror)


@pytest.mark.mysql
def test_a_statement_that_is_not_known_leaves_a_line_in_the_history(mirror):
    mirror.run(*TABLES)
    mirror.catch_up()
    mirror.run("REPAIR TABLE t")
    mirror.catch_up()
    assert_no_silence(mirror)
    assert any(kind == "statement" and "REPAIR" in note for _, kind, note in Ledger.open(mirror.replica).history())


@pytest.mark.mysql
@pytest.mark.parametrize("kind", ["ENUM", "SET"])
def test_choices_among_bytes_are_copied_again(mirror, kind):
    mirror.run(f"CREATE TABLE c (id INT PRIMARY KEY, v {kind}('p','q')) CHARACTER SET binary")
    mirror.run("INSERT INTO c VALUES (1, 'p')")
    mirror.catch_up()
    assert marked(mirror) == {"c"}


@pytest.mark.mysql
def test_a_column_called_rowid_is_a_column_like_others(mirror):
    mirror.run("CREATE TABLE k (rowid INT, v INT)", "INSERT INTO k VALUES (1, 1), (1, 2), (NULL, 9), (5, 5)")
    mirror.catch_up()
    mirror.run("START TRANSACTION", "DELETE FROM k WHERE v = 1", "DELETE FROM k WHERE v = 9", "COMMIT")
    mirror.catch_up()
    mirror.assert_equal("k")
    assert mirror.rows("k")[0] == [(1, 2), (5, 5)]


@pytest.mark.mysql
def test_keys_with_dates_that_no_calendar_has_do_not_take_each_others_place(mirror):
    mirror.run(
        "CREATE TABLE d (d DATE, n INT, PRIMARY KEY (d))",
        "INSERT INTO d VALUES ('0000-00-00', 1), ('2024-00-00', 2), ('2024-01-01', 3)",
    )
    mirror.catch_up()
    mirror.run("UPDATE d SET n = 10 WHERE d = '0000-00-00'", "UPDATE d SET d = '2024-02-00' WHERE n = 3")
    mirror.catch_up()
    assert sorted(mirror.replica.execute("SELECT n FROM d").fetchall()) == [(2,), (3,), (10,)]
    mirror.run("DELETE FROM d WHERE n = 2", "UPDATE d SET d = '2024-05-05' WHERE n = 10")
    mirror.catch_up()
    assert mirror.replica.execute("SELECT n, d::VARCHAR FROM d ORDER BY n").fetchall() == [
        (3, None),
        (10, "2024-05-05"),
    ]


@pytest.mark.mysql
def test_a_table_that_an_online_change_replaces_keeps_its_old_rows_until_the_new_one_is_copied(mirror):
    mirror.run(*TABLES)
    wanted = {"t", "u", "w"}.__contains__
    mirror.catch_up(wanted=wanted)
    mirror.run(
        "CREATE TABLE _t_gho LIKE t", "INSERT INTO _t_gho SELECT * FROM t", "RENAME TABLE t TO _t_del, _t_gho TO t"
    )
    mirror.catch_up(wanted=wanted)
    assert marked(mirror) == {"t"}
    assert mirror.replica.execute("SELECT count(*) FROM t").fetchall() == [(3,)]


@pytest.mark.mysql
def test_the_user_of_the_replica_sees_triggers_only_with_the_right_to(mirror):
    mirror.run(*TABLES, "CREATE TRIGGER after_t AFTER INSERT ON t FOR EACH ROW DELETE FROM u")
    assert mirror.reach().is_hidden
