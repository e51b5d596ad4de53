"""Which tables a sync copies again, and how many of them."""

import shutil

import pytest
from fixtures.replica_file import opened

from duckling_provider.base.errors import NoSpaceError
from duckling_provider.replication import again
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.shapes import difference
from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.sync import sync, validate_replica

pytestmark = [pytest.mark.mysql, pytest.mark.mariadb_only]


def history(entry):
    with opened(entry.replica) as connection:
        return Ledger.open(connection).history()


def states(entry):
    with opened(entry.replica) as connection:
        return {name: state.state for name, state in Ledger.open(connection).tables().items()}


def column_type(entry, table, name):
    with opened(entry.replica) as connection:
        return connection.execute(
            "SELECT data_type FROM duckdb_columns() WHERE table_name = ? AND column_name = ?", [table, name]
        ).fetchall()[0][0]


@pytest.mark.parametrize(
    "statements,table,name,kind",
    [
        (["ALTER TABLE b ADD w VARCHAR(9)", "INSERT INTO b VALUES (2, 'x', 0xff00)"], "b", "w", "BLOB"),
        (["SET sql_mode = 'ORACLE'", "CREATE TABLE o (id INT PRIMARY KEY, d DATE)",
          "INSERT INTO o VALUES (1, '2020-01-01 10:00:00')"], "o", "d", "TIMESTAMP"),
        (["SET sql_mode = 'REAL_AS_FLOAT'", "CREATE TABLE r (id INT PRIMARY KEY, d REAL)",
          "INSERT INTO r VALUES (1, 0.1)"], "r", "d", "FLOAT"),
    ],
    ids=["character set of the table", "Oracle's types", "meaning of REAL"],
)  # fmt: skip
def test_what_a_statement_means_by_settings_that_it_does_not_tell(site, statements, table, name, kind):
    site.run(
        "CREATE TABLE b (id INT PRIMARY KEY, v VARCHAR(9)) CHARACTER SET binary",
        "INSERT INTO b VALUES (1, 'x')",
    )
    entry = site()
    sync(entry)
    site.run(*statements)
    sync(entry)
    assert column_type(entry, table, name) == kind
    assert validate_replica(entry).equal


def test_shapes_that_are_followed_rightly_are_not_copied_again(site):
    site.run("CREATE TABLE a (id INT PRIMARY KEY)", "INSERT INTO a VALUES (1)")
    entry = site()
    sync(entry)
    site.run(
        "CREATE TABLE t (id SMALLINT(3) UNSIGNED AUTO_INCREMENT PRIMARY KEY, a NVARCHAR(5), b NUMERIC(5), c REAL, "
        "d BOOL, e JSON, f LONG VARCHAR, g ENUM('x ', 'it''s'), h SET('p','q'), i BIT, j BINARY, k TINYBLOB, l YEAR, "
        "m TIME(3), n TIMESTAMP NULL, o FLOAT(30), p DECIMAL(60,3), q POINT, r INT AS (d + 1) STORED, "
        "s CHAR(3) COLLATE latin1_bin, u DEC, v DATETIME(6))",
        "ALTER TABLE a ADD b VARCHAR(5), ADD c TEXT, ADD d INTEGER",
        "ALTER TABLE a CONVERT TO CHARACTER SET utf8mb4",
    )
    done = sync(entry)
    assert done.copied == ()
    assert done.recopy == {}


def test_a_difference_of_shape_names_the_columns():
    ours = Table("t", (Column("a", "int", "int"), Column("b", "varchar", "varchar(9)")), ("a",))
    theirs = Table("t", (Column("A", "int", "int(11)"), Column("b", "varbinary", "varbinary(9)")), ("A",))
    assert difference(ours, theirs).endswith(": b")
    assert difference(ours, ours) == ""
    assert "primary key" in difference(ours, Table("t", ours.columns))


def test_a_system_versioned_table_is_neither_copied_nor_marked_at_each_change(site):
    site.run("CREATE TABLE t (id INT PRIMARY KEY)", "CREATE TABLE h (id INT PRIMARY KEY) WITH SYSTEM VERSIONING")
    entry = site()
    sync(entry)
    for n in (1, 2):
        site.run(f"INSERT INTO h VALUES ({n})", f"UPDATE h SET id = id + 10 WHERE id = {n}")
        done = sync(entry)
        assert (done.recopy, done.copied) == ({}, ())
    site.run("ALTER TABLE t ADD SYSTEM VERSIONING")
    sync(entry)
    sync(entry)
    assert "h" not in states(entry)
    assert "t" not in states(entry)


def test_one_run_copies_no_more_than_its_bounds_and_says_what_waits(site, monkeypatch):
    names = ["a", "b", "c"]
    site.run(*[f"CREATE TABLE {name} (id INT PRIMARY KEY, v INT)" for name in names])
    site.run(*[f"INSERT INTO {name} VALUES (1, 1), (2, 1)" for name in names])
    entry = site()
    sync(entry)
    site.run(*[f"ALTER IGNORE TABLE {name} ADD UNIQUE (v)" for name in names])
    monkeypatch.setattr(again, "_MOST_TABLES", 2)
    done = sync(entry)
    assert len(done.copied) == 2
    ((name, reason),) = done.recopy.items()
    assert "ALTER IGNORE" in reason
    assert "later run" in reason
    assert states(entry)[name] == "recopy"
    assert sync(entry).copied == (name,)
    assert validate_replica(entry).equal


def test_without_room_nothing_is_copied_and_the_changes_are_in_the_replica(site, monkeypatch):
    site.run("CREATE TABLE t (id INT PRIMARY KEY, v INT)", "CREATE TABLE u (id INT PRIMARY KEY)")
    site.run("INSERT INTO t VALUES (1, 1), (2, 1)")
    entry = site()
    sync(entry)
    site.run("ALTER IGNORE TABLE t ADD UNIQUE (v)", "INSERT INTO u VALUES (7)")
    usage = shutil.disk_usage(entry.replica.parent)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
        with pytest.raises(NoSpaceError, match="new copies of t"):
            sync(entry)
    with opened(entry.replica) as connection:
        assert connection.execute("FROM u").fetchall() == [(7,)]
    assert states(entry)["t"] == "recopy"
    assert sync(entry).copied == ("t",)
