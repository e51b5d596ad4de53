"""SIGKILL at any step and at random moments of a copy, of following the binlog and of a restore: MySQL and the replica
are equal in the end. A table without a key would show each change that was lost or applied twice.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import sys
import threading
import time

import duckdb
import pytest

pytestmark = pytest.mark.mysql

_ROWS = 20_000
#: Kills in each phase, where all of them are run.
_KILLS = 20


@pytest.fixture
def moments(pick, full):
    """Steps of `total` at which to kill: a few, or all of them and at least `_KILLS`."""
    return lambda total: itertools.islice(itertools.cycle(pick(total, 3)), max(total, _KILLS) if full else 3)


@pytest.fixture
def site(installation, mariadb, database, duckling):
    """The entry `production`, which mirrors a database with one table that has a key and one that has none."""

    class Site:
        replica = installation.replica()

        def run(self, *statements):
            mariadb.execute(list(statements), database)

        def connect(self):
            return mariadb.connect(database)

        def clear(self):
            for path in installation.data_path.glob("production.db*"):
                path.unlink()

        def must(self, *arguments):
            done = duckling(*arguments)
            assert done.code == 0, done.said
            return done

        def assert_equal(self):
            done = duckling("validate", "production")
            assert done.code == 0, done.said

        @contextlib.contextmanager
        def busy(self):
            stop = threading.Event()

            def write():
                with contextlib.closing(mariadb.connect(database)) as connection:
                    cursor = connection.cursor()
                    while not stop.is_set():
                        cursor.execute("INSERT INTO log VALUES (RAND())")
                        number = random.randint(1, _ROWS)
                        cursor.execute("UPDATE orders SET total = total + 1 WHERE id = %s", (number,))
                        stop.wait(0.002)

            writer = threading.Thread(target=write)
            writer.start()
            try:
                yield
            finally:
                stop.set()
                writer.join()

    installation.write(installation.entry(mysqlConnectionString=mariadb.url(database)))
    made = Site()
    made.run(
        "CREATE TABLE orders (id INT PRIMARY KEY, customer VARCHAR(50), total INT)",
        "CREATE TABLE log (line VARCHAR(50))",
        f"INSERT INTO orders SELECT seq, CONCAT('customer ', seq), 0 FROM seq_1_to_{_ROWS}",
        "INSERT INTO log VALUES ('one'), ('two'), ('two')",
    )
    return made


def test_a_full_copy_killed_at_any_step_is_completed(site, duckling, moments):
    total = site.must("sync", "production").steps
    for at in moments(total):
        site.clear()
        assert duckling("sync", "production", action="kill", at=at).code in {0, -signal.SIGKILL}
        site.run("UPDATE orders SET total = total + 1 WHERE id < 100", "INSERT INTO log VALUES ('more')")
        site.must("sync", "production")
        site.assert_equal()


def test_following_killed_at_any_step_loses_nothing_and_applies_nothing_twice(site, duckling, moments):
    site.must("sync", "production")
    site.run("INSERT INTO log VALUES ('first')")
    total = site.must("sync", "production").steps
    for at in moments(total):
        site.run("UPDATE orders SET total = total + 1 WHERE id < 100", "INSERT INTO log VALUES ('more'), ('more')")
        assert duckling("sync", "production", action="kill", at=at).code in {0, -signal.SIGKILL}
        site.must("sync", "production")
        site.assert_equal()


def test_a_new_copy_of_one_table_killed_at_any_step_is_made_again(site, duckling, moments):
    site.must("sync", "production")

    def change():
        # What it leaves is not followed: the table is marked, and copied again.
        site.run("ALTER TABLE orders FORCE, ADD made INT AS (total + 1) STORED", "INSERT INTO log VALUES ('more')")
        site.run("ALTER TABLE orders DROP made", "UPDATE orders SET total = total + 1 WHERE id < 100")
        site.run("ALTER TABLE orders MODIFY customer VARCHAR(60) CHARACTER SET latin1")
        site.run("ALTER TABLE orders MODIFY customer VARCHAR(50) CHARACTER SET utf8mb4")

    change()
    total = site.must("sync", "production").steps
    for at in moments(total):
        change()
        assert duckling("sync", "production", action="kill", at=at).code in {0, -signal.SIGKILL}
        site.must("sync", "production")
        site.assert_equal()


def test_kills_at_random_moments_while_mysql_is_busy(site, full, seed):
    moments = random.Random(seed)
    kills = 0
    with site.busy():
        for _ in range(_KILLS if full else 2):
            command = [sys.executable, "-m", "duckling_provider.cli.app", "sync", "production", "--for", "60"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0.8, 4.0))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    assert kills >= (15 if full else 1)
    site.must("sync", "production")
    site.assert_equal()


def test_a_restore_killed_at_any_step_is_followed_by_catching_up(site, duckling, moments):
    site.must("sync", "production")
    site.must("backup", "production")
    total = site.must("restore", "production", "--local").steps
    for at in moments(total):
        site.run("UPDATE orders SET total = total + 1 WHERE id < 100", "INSERT INTO log VALUES ('more')")
        site.must("sync", "production")
        duckling("restore", "production", "--local", action="kill", at=at)
        site.must("sync", "production")
        site.assert_equal()


def counted(replica):
    """The counter as the replica has it; 0 while it can't be read because it is written."""
    with contextlib.suppress(duckdb.IOException), duckdb.connect(str(replica), read_only=True) as connection:
        return connection.execute("SELECT n FROM counter").fetchone()[0]
    return 0


def test_a_backup_taken_while_changes_pour_in_is_what_mysql_was_at_its_position(site, tmp_path):
    """Each transaction adds one to a counter and a line with its number: at any commit, the two agree. The lines have
    no key: from a position that is not exactly that of the content, catching up would lose some or double them.
    """
    site.run("CREATE TABLE counter (id INT PRIMARY KEY, n INT)", "INSERT INTO counter VALUES (1, 0)")
    site.run("CREATE TABLE entries (n INT)")
    site.must("sync", "production")
    stop = threading.Event()
    written = []

    def write():
        connection = site.connect()
        number = 0
        began = time.monotonic()
        while not stop.is_set():
            connection.begin()
            cursor = connection.cursor()
            number += 1
            cursor.execute("UPDATE counter SET n = %s", (number,))
            cursor.execute("INSERT INTO entries VALUES (%s)", (number,))
            connection.commit()
            time.sleep(max(0.0, began + number / 500 - time.monotonic()))  # two row changes each: 1,000 a second
        written.append(number)
        connection.close()

    command = [sys.executable, "-m", "duckling_provider.cli.app", "sync", "production", "--for", "60"]
    writer = threading.Thread(target=write)
    writer.start()
    follower = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # In the middle: some of it is in the replica already, and more keeps coming.
        deadline = time.monotonic() + 60
        while counted(site.replica) < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        site.must("backup", "production", "--wait", "60")
    finally:
        stop.set()
        writer.join()
        follower.kill()
        follower.wait()
    restored = tmp_path / "restored.db"
    site.must("restore", "production", "--local", "--to", str(restored))
    with duckdb.connect(str(restored), read_only=True) as connection:
        (number,) = connection.execute("SELECT n FROM counter").fetchone()
        lines = connection.execute("SELECT count(*), coalesce(max(n), 0) FROM entries").fetchone()
    assert 1000 <= number < written[0]
    assert lines == (number, number)
    site.must("restore", "production", "--local")
    site.must("sync", "production")
    site.assert_equal()
