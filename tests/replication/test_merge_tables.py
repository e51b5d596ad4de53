"""What is written to a MERGE table lies in tables that the binlog does not name; the comparison is by queries."""

import contextlib

import duckdb
import pytest
from fixtures.replica_file import opened

from duckling_provider.replication.mysql.merge_tables import MergeTables
from duckling_provider.replication.sync import sync

pytestmark = pytest.mark.mysql

COLUMNS = "(id INT, v VARCHAR(9))"


@pytest.fixture
def other(mariadb):
    """Another database."""
    name = mariadb.create_database()
    yield name
    mariadb.execute(f"DROP DATABASE {name}")


def assert_equal(entry, mariadb, database):
    with opened(entry.replica) as replica:
        for name in ("t", "u"):
            ours = replica.execute(f"FROM {name}").fetchall()
            assert sorted(ours) == sorted(mariadb.execute(f"SELECT * FROM {name}", database)), name


@pytest.mark.mysql_too
def test_tables_that_are_written_through_another_database_are_copied_again(site, mariadb, database, other):
    def merged(name, union):
        return f"CREATE TABLE {name} {COLUMNS} ENGINE = MERGE UNION = ({union}) INSERT_METHOD = LAST"

    site.run(*(f"CREATE TABLE {name} {COLUMNS} ENGINE = MyISAM" for name in ("t", "u", "alone")))
    site.run("INSERT INTO t VALUES (1, 'a')", merged(f"{other}.m", f"{database}.t, {database}.u"))
    site.run(f"CREATE TABLE {other}.plain {COLUMNS}")
    entry = site(validateIntervalDays=0)
    sync(entry)
    statement = "SET binlog_format = STATEMENT"
    ways = {
        "rows": [f"INSERT INTO {other}.m VALUES (2, 'b')"],
        "a statement": [statement, f"USE {other}", "INSERT INTO m VALUES (3, 'c')"],
        "emptied": [f"USE {other}", "TRUNCATE m"],
        "gone since": [merged(f"{other}.n", f"{database}.t"), f"INSERT INTO {other}.n VALUES (4, 'd')",
                       f"DROP TABLE {other}.n"],
        "here, and gone since": [merged("n", "u"), "INSERT INTO n VALUES (5, 'e')", "DROP TABLE n"],
        "does not fit any more": [f"INSERT INTO {other}.m VALUES (6, 'f')", "ALTER TABLE t ENGINE = InnoDB"],
    }  # fmt: skip
    for way, statements in ways.items():
        site.run(*statements)
        copied = sync(entry).copied
        assert copied, way
        assert_equal(entry, mariadb, database)
        if way in {"rows", "emptied", "gone since", "here, and gone since"}:
            assert "alone" not in copied
    site.run(f"INSERT INTO {other}.plain VALUES (1, 'a')", f"TRUNCATE {other}.plain")
    assert sync(entry).copied == ()


def test_a_table_that_the_user_may_not_see_counts_as_a_merge_table_of_those_with_such_columns(
    site, mariadb, database, other
):
    site.run(*(f"CREATE TABLE {name} {COLUMNS} ENGINE = MyISAM" for name in ("t", "u")))
    site.run("CREATE TABLE wider (id INT, v VARCHAR(9), w INT) ENGINE = MyISAM", f"CREATE TABLE inno {COLUMNS}")
    site.run(
        f"CREATE TABLE {other}.m {COLUMNS} ENGINE = MERGE UNION = ({database}.t, {database}.u) INSERT_METHOD = LAST",
        f"CREATE TABLE {other}.unlike (id BIGINT, v VARCHAR(9))",
        "CREATE USER 'narrow'@'%' IDENTIFIED BY 'narrow'",
        f"GRANT SELECT, LOCK TABLES ON {database}.* TO 'narrow'@'%'",
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'narrow'@'%'",
    )
    try:
        url = f"mysql://narrow:narrow@127.0.0.1:{mariadb.port}/{database}"
        site.installation.write(site.installation.entry(mysqlConnectionString=url, validateIntervalDays=0))
        entry = site.installation.database()
        sync(entry)
        site.run(f"INSERT INTO {other}.unlike VALUES (1, 'a')")
        assert sync(entry).copied == ()
        site.run(f"INSERT INTO {other}.m VALUES (1, 'a')")
        assert sync(entry).copied == ("t", "u")
        assert_equal(entry, mariadb, database)
        site.run(f"TRUNCATE {other}.m")
        assert set(sync(entry).copied) >= {"t", "u"}
        assert_equal(entry, mariadb, database)
        with contextlib.closing(duckdb.connect(str(entry.replica), read_only=True)) as replica:
            ((note,),) = replica.execute(
                "SELECT DISTINCT note FROM _duckling.history WHERE kind = 'recopy' AND note LIKE 't: rows%'"
            ).fetchall()
            assert note == f"t: rows of it may have been written through {other}.m, which the user may not see"
    finally:
        mariadb.execute("DROP USER 'narrow'@'%'")


def test_what_the_user_sees_and_what_the_server_writes_for_itself_is_no_unknown_table():
    merged = MergeTables({("x", "m"): ("t",)}, {"t": ("int",), "u": ("uuid",)}, frozenset({("x", "plain")}))
    assert merged.written_through("x", "m", [3]) == ("t",)
    assert merged.written_through("x", "plain", [3]) == ()
    assert merged.written_through("mysql", "rds_heartbeat2", [3]) == ()
    assert merged.written_through("y", "plain", [3]) == ("t", "u"), "a type that is not known may be any"
    assert merged.written_through("y", "plain", [8]) == ("u",)
    assert merged.written_through("y", "plain") == ("t", "u")
    assert MergeTables().written_through("y", "plain") == ()
