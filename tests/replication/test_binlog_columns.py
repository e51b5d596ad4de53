"""What of a table's columns the binlog or the server hides: invisible keys, names."""

import pytest
from fixtures.replica_file import opened

from duckling_provider.replication.mysql import preflight
from duckling_provider.replication.sync import sync

pytestmark = pytest.mark.mysql


def here(entry, query):
    with opened(entry.replica) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.mysql_only
def test_keys_that_mysql_generates_and_hides_are_keys(site, mariadb):
    """``sql_generate_invisible_primary_key``, with ``show_gipk_in_create_table_and_information_schema`` off."""
    mariadb.execute("SET GLOBAL show_gipk_in_create_table_and_information_schema = OFF")
    try:
        keyless = ["SET sql_generate_invisible_primary_key = ON", "CREATE TABLE {} (v INT)"]
        site.run(keyless[0], keyless[1].format("t"), "INSERT INTO t VALUES (1), (1), (2)")
        entry = site()
        sync(entry)
        site.run("UPDATE t SET v = 3 WHERE v = 1 LIMIT 1", "INSERT INTO t VALUES (4)", keyless[0],
                 keyless[1].format("u"), "INSERT INTO u VALUES (5)", "ALTER TABLE u ADD w INT")  # fmt: skip
        done = sync(entry)
        assert (done.recopy, done.copied) == ({}, ())
        assert here(entry, "SELECT v FROM t ORDER BY v") == [(1,), (2,), (3,), (4,)]
        assert here(entry, "SELECT my_row_id, v, w FROM u") == [(1, 5, None)]
    finally:
        mariadb.execute("SET GLOBAL show_gipk_in_create_table_and_information_schema = ON")


def test_changes_that_name_no_columns_are_copied_again_and_the_server_is_warned_of(site, mariadb, monkeypatch):
    """As of MySQL 5.7, which has no ``binlog_row_metadata``."""
    known = preflight.variable
    monkeypatch.setattr(
        preflight, "variable", lambda at, name: None if name == "binlog_row_metadata" else known(at, name)
    )
    mariadb.execute("SET GLOBAL binlog_row_metadata = MINIMAL")
    try:
        site.run("CREATE TABLE t (a INT PRIMARY KEY, b INT)", "CREATE TABLE u (a INT)", "INSERT INTO t VALUES (1, 2)")
        entry = site()
        sync(entry)
        for number in (7, 8):
            site.run(f"UPDATE t SET b = {number}")
            done = sync(entry)
            assert done.copied == ("t",)
            assert here(entry, "SELECT b FROM t") == [(number,)]
        site.run("ALTER TABLE t RENAME COLUMN a TO c, RENAME COLUMN b TO a")
        sync(entry)
        assert here(entry, "SELECT a FROM t") == [(8,)]
    finally:
        mariadb.execute("SET GLOBAL binlog_row_metadata = FULL")
