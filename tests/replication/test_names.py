from __future__ import annotations

import duckdb
import pytest

from duckling_provider.replication.model.names import collisions, fold, literal, quote, quote_mysql

NAMES = [
    "plain",
    "two words",
    'has "quotes"',
    "has `ticks`",
    "it's",
    "ключ",
    "数据",
    "select",
    "a.b",
    "%s",
    "a;b",
    "\\",
]


@pytest.mark.parametrize("name", [*NAMES, "🦆"])
def test_every_name_can_be_one_in_duckdb(name):
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE {quote(name)} AS SELECT 1 AS {quote(name)}")
        assert [column[0] for column in connection.table(quote(name)).description] == [name]
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [(name,)]
        assert connection.execute(f"SELECT {literal(name)}").fetchall() == [(name,)]


@pytest.mark.mysql
@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_one_in_mysql(mariadb, database, name):
    mariadb.execute(f"CREATE TABLE {quote_mysql(name)} ({quote_mysql(name)} INT)", database)
    assert mariadb.execute("SHOW TABLES", database) == ((name,),)
    assert mariadb.execute(f"DESCRIBE {quote_mysql(name)}", database)[0][0] == name


@pytest.mark.parametrize("one,other", [("Orders", "orders"), ("É", "é"), ("ß", "SS"), ("K", "\u212a"), ("İ", "i")])
def test_names_fold_as_duckdb_compares_them(one, other):
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE {quote(one)} (i INTEGER)")
        try:
            connection.execute(f"CREATE TABLE {quote(other)} (i INTEGER)")
            same = False
        except duckdb.Error:
            same = True
    assert (fold(one) == fold(other)) is same
    assert collisions([one, "else", other]) == ([(one, other)] if same else [])
