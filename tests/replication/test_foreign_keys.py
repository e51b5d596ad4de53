"""Rows that foreign keys delete or change are in no binlog: the replica is equal to MySQL all the same."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from duckling_provider.replication.apply.foreign_keys import Reference, altered, parse_references, read_references
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect
from duckling_provider.replication.sync import sync, validate_replica

pytestmark = pytest.mark.mysql


class Shop:
    """A database whose binlog is followed from its first table on."""

    def __init__(self, mirror):
        self.mirror, self.run = mirror, mirror.run

    def references(self):
        return read_references(self.mirror.server, self.mirror.database)

    def follow(self, known=None):
        """What can't be followed any more; the rest is equal to MySQL then.

        :param known: the foreign keys that there were when following began.
        """
        self.mirror.catch_up(references=self.references() if known is None else known, read_references=self.references)
        marked = {name for name, state in self.mirror.states.items() if state.state != "ok"}
        self.mirror.assert_equal(*(read_tables(self.mirror.server, self.mirror.database).keys() - marked))
        return marked


@pytest.fixture
def shop(mirror):
    return Shop(mirror)


@pytest.fixture
def synced(site):
    """``synced.follow()``: a whole sync; what it copied again. The replica is equal to MySQL then."""

    def follow():
        done = sync(synced.entry)
        report = validate_replica(synced.entry)
        assert report.equal, report.as_json()
        return set(done.copied)

    synced = SimpleNamespace(entry=site(), run=site.run, follow=follow)
    return synced


def family(key="INT", on="ON DELETE CASCADE", child_key="id INT PRIMARY KEY", number=""):
    return (
        f"CREATE TABLE parent{number} (id {key} PRIMARY KEY, v INT)",
        f"CREATE TABLE child{number} ({child_key}, p {key}, FOREIGN KEY (p) REFERENCES parent{number} (id) {on})",
    )


def members(*options, number="", **more):
    """:param number: behind the names of parent and child, where there are several."""
    return (
        *family(*options, number=number, **more),
        f"INSERT INTO parent{number} VALUES (1, 0), (2, 0), (3, 0), (4, 0)",
        f"INSERT INTO child{number} (id, p) VALUES (1, 1), (2, 1), (3, 2), (4, NULL), (5, 4)",
    )


def people(shop, *options, **more):
    shop.run(*members(*options, **more))
    shop.follow()


KINDS_OF_KEYS = (
    ("INT", "id INT PRIMARY KEY"),
    ("BIGINT UNSIGNED", "id INT"),
    ("CHAR(36)", "id INT PRIMARY KEY"),
    ("VARCHAR(20) COLLATE utf8mb4_bin", "id INT"),
)


def test_children_go_with_their_parents_without_a_new_copy(synced):
    for number, (key, child_key) in enumerate(KINDS_OF_KEYS):
        synced.run(*members(key, child_key=child_key, number=number))
    synced.follow()
    for number in range(len(KINDS_OF_KEYS)):
        synced.run(
            f"DELETE FROM parent{number} WHERE id = 3",
            "START TRANSACTION",
            f"INSERT INTO child{number} (id, p) VALUES (6, 1)",
            f"DELETE FROM parent{number} WHERE id = 1",
            f"INSERT INTO parent{number} VALUES (1, 9)",
            f"INSERT INTO child{number} (id, p) VALUES (1, 1), (7, 1)",
            "COMMIT",
            f"UPDATE parent{number} SET v = v + 1",
            f"DELETE FROM parent{number} WHERE id = 2",
        )
    assert synced.follow() == set()


@pytest.mark.mariadb_only
def test_children_that_are_changed_are_copied_again(shop):
    ways = {
        "ON DELETE SET NULL": "DELETE FROM parent{} WHERE id = 1",
        "ON UPDATE CASCADE": "UPDATE parent{} SET id = 10 WHERE id = 1",
        "ON UPDATE SET NULL": "UPDATE parent{} SET id = 10 WHERE id = 1",
    }
    for number, on in enumerate(ways):
        people(shop, on=on, number=number)
    shop.run(*(statement.format(number) for number, statement in enumerate(ways.values())))
    assert shop.follow() == {"child0", "child1", "child2"}


def test_parents_without_children_cost_no_new_copy(shop):
    people(shop, on="ON DELETE SET NULL ON UPDATE CASCADE")
    shop.run("DELETE FROM parent WHERE id = 3", "UPDATE parent SET v = 3")
    assert shop.follow() == set()


def test_whole_lines_of_descent_go(shop):
    people(shop)
    shop.run(
        "CREATE TABLE grandchild (id INT PRIMARY KEY, c INT, FOREIGN KEY (c) REFERENCES child (id) ON DELETE CASCADE)",
        "CREATE TABLE tree (id INT PRIMARY KEY, up INT, FOREIGN KEY (up) REFERENCES tree (id) ON DELETE CASCADE)",
        "INSERT INTO grandchild VALUES (1, 1), (2, 2), (3, 3), (4, 4)",
        "INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, NULL), (6, 5)",
    )
    shop.follow()
    shop.run("DELETE FROM parent WHERE id = 1", "DELETE FROM tree WHERE id = 2", "DELETE FROM tree WHERE id = 5")
    assert shop.follow() == set()


def test_deletions_without_checks_take_no_children(shop):
    people(shop)
    shop.run("SET foreign_key_checks = 0", "DELETE FROM parent WHERE id = 1")
    assert shop.follow() == set()


def test_a_parent_that_is_not_mirrored_is_heeded_too(synced, site):
    synced.entry = site(excludeTables=["parent"])
    synced.run(*family(), "INSERT INTO parent VALUES (1, 0)", "INSERT INTO child VALUES (1, 1)")
    assert synced.follow() == {"child"}
    synced.run("DELETE FROM parent")
    assert synced.follow() == set()


@pytest.mark.mariadb_only
def test_children_that_are_changed_are_equal_again_after_one_sync(synced):
    synced.run(*family(on="ON DELETE SET NULL"), "INSERT INTO parent VALUES (1, 0)", "INSERT INTO child VALUES (1, 1)")
    assert synced.follow() == {"parent", "child"}
    synced.run("DELETE FROM parent")
    assert synced.follow() == {"child"}


@pytest.mark.mariadb_only
def test_collations_that_leave_a_doubt_lead_to_a_new_copy(shop):
    people(shop, "VARCHAR(20) COLLATE utf8mb4_unicode_ci")
    shop.run(
        "INSERT INTO parent VALUES ('ä', 0)", "INSERT INTO child VALUES (9, 'A')", "DELETE FROM parent WHERE v = 7"
    )
    shop.follow()
    shop.run("DELETE FROM parent WHERE id = 'ä'")
    assert shop.follow() == {"child"}


def test_case_is_heeded_as_mysql_does(shop):
    people(shop, "VARCHAR(20) COLLATE utf8mb4_general_ci")
    shop.run("INSERT INTO parent VALUES ('Abc', 0)", "INSERT INTO child VALUES (9, 'aBC'), (10, '2')")
    shop.follow()
    shop.run("DELETE FROM parent WHERE id = 'abc'")
    assert shop.follow() == set()


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM parent WHERE id = 1", "ALTER TABLE child DROP FOREIGN KEY child_ibfk_1"),
        ("DELETE FROM parent WHERE id = 1", "RENAME TABLE parent TO parents"),
        ("ALTER TABLE child RENAME TO children", "DELETE FROM parent WHERE id = 1"),
        (
            "ALTER TABLE child DROP FOREIGN KEY child_ibfk_1",
            "DELETE FROM parent WHERE id = 1",
            "UPDATE child SET p = NULL WHERE p = 1",
            "ALTER TABLE child ADD FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE",
            "DELETE FROM parent WHERE id = 4",
        ),
    ],
    ids=["dropped later", "parent renamed later", "child renamed before", "added later"],
)
def test_keys_that_were_others_then_are_no_matter(shop, statements):
    people(shop)
    shop.run(*statements)
    shop.follow()


def test_a_key_that_comes_while_a_sync_follows_is_known(shop):
    people(shop)
    before = shop.references()
    shop.run(
        "CREATE TABLE later (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE)",
        "INSERT INTO later VALUES (1, 1), (2, 2)",
        "DELETE FROM parent WHERE id = 1",
    )
    assert shop.follow(known=before) == set()


@pytest.mark.mariadb_only
def test_foreign_keys_are_read_without_more_rights_than_to_read(mariadb, database, source):
    mariadb.execute(
        [
            "CREATE TABLE `pa``rent` (`a b` INT, c INT, PRIMARY KEY (`a b`, c))",
            "CREATE TABLE child (x INT, y INT, FOREIGN KEY (x, y) REFERENCES `pa``rent` (`a b`, c) ON UPDATE CASCADE)",
            "CREATE TABLE strict (x INT, y INT, FOREIGN KEY (x, y) REFERENCES `pa``rent` (`a b`, c))",
        ],
        database,
    )
    with contextlib.closing(connect(source)) as connection:
        found = read_references(connection, database)
    assert found == [Reference("child", ("x", "y"), "", "pa`rent", ("a b", "c"), "", "CASCADE")]


@pytest.mark.mariadb_only
@pytest.mark.parametrize("form", ["ROW", "STATEMENT"])
def test_children_of_a_parent_in_another_database_are_copied_again(synced, mariadb, form):
    other = mariadb.create_database()
    try:
        mariadb.execute(["CREATE TABLE parent (id INT PRIMARY KEY)", "INSERT INTO parent VALUES (1), (2), (3)"], other)
        synced.run(
            "CREATE TABLE child (id INT PRIMARY KEY, p INT, "
            f"FOREIGN KEY (p) REFERENCES `{other}`.parent (id) ON DELETE CASCADE)",
            "CREATE TABLE grandchild (c INT, FOREIGN KEY (c) REFERENCES child (id) ON DELETE CASCADE)",
            "INSERT INTO child VALUES (1, 1), (2, 2), (3, 3)",
            "INSERT INTO grandchild VALUES (1), (1), (3)",
        )
        assert synced.follow() == {"child", "grandchild"}
        mariadb.execute(["INSERT INTO parent VALUES (7)"], other)
        assert synced.follow() == set()
        mariadb.execute([f"SET binlog_format = {form}", "DELETE FROM parent WHERE id = 1"], other)
        assert synced.follow() == {"child", "grandchild"}
    finally:
        synced.run("DROP TABLE IF EXISTS grandchild, child")
        mariadb.execute(f"DROP DATABASE `{other}`")


@pytest.mark.mariadb_only
def test_children_of_a_parent_that_moves_away_while_a_sync_follows_are_copied_again(mirror, mariadb):
    mirror.run(*family(), "INSERT INTO parent VALUES (1, 0)", "INSERT INTO child VALUES (1, 1)")
    before = read_references(mirror.server, mirror.database)
    mirror.catch_up(references=before)
    other = mariadb.create_database()
    try:
        mirror.run(f"RENAME TABLE parent TO {other}.parent", f"DELETE FROM {other}.parent")
        mirror.catch_up(references=before)
    finally:
        mariadb.execute(["SET foreign_key_checks = OFF", f"DROP DATABASE `{other}`"])
    assert mirror.states["child"].state == "recopy"


def test_other_databases_are_told_apart():
    line = "  CONSTRAINT `c` FOREIGN KEY (`a`) REFERENCES `other`.`t` (`b`) ON DELETE SET NULL,"
    assert parse_references("child", line) == [Reference("child", ("a",), "other", "t", ("b",), "SET NULL", "")]


@pytest.mark.parametrize(
    "statement,name",
    [
        ("ALTER TABLE child DROP FOREIGN KEY k", "child"),
        ("/* x */ alter  ignore table if exists `d b`.`ch``ild` ADD FOREIGN KEY (a) REFERENCES p (a)", "ch`ild"),
        ("CREATE TABLE child (a INT REFERENCES p (a))", None),
    ],
)
def test_the_altered_table_is_found(statement, name):
    assert altered(statement) == name
