"""Replicas of the shapes of real schemas, after random work on the server and kills of the sync, hold what it holds.

The comparison is this file's own: rows fetched by pymysql and by duckdb, made alike here. `make mysql` has thousands of
statements, kills, and three million rows; `make test` a short form.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from datetime import date, datetime

import duckdb
import pymysql.cursors
import pymysql.err
import pytest
from fixtures.schemas import EMPLOYEES, FILMS, MUSIC, Dice

from duckling_provider.replication.sync import sync

pytestmark = [pytest.mark.mysql, pytest.mark.mysql_too]

WHOLE = os.environ.get("DUCKLING_SERVERS") == "all" or "DUCKLING_SCHEMAS" in os.environ
SEED = int(os.environ.get("DUCKLING_SEED", "20250301"))
#: Random operations on each shape, between two comparisons, and between two kills.
OPERATIONS, ROUND, KILL_AFTER = (3000, 500, 150) if WHOLE else (80, 80, 80)

_FOLLOW = """
import sys
from duckling_provider import config
from duckling_provider.replication.sync import sync
entry = config.load().database("production")
print("begins", flush=True)
while True:
    sync(entry, seconds=3600, wait=60)
"""

SPATIAL = {"geometry", "point", "linestring", "polygon"}


def theirs(kind, value):
    """A value from pymysql, as it should be in the replica."""
    if kind in {"date", "datetime", "timestamp"} and not isinstance(value, date | datetime):
        return None  # no calendar has it
    if value is not None and kind == "bit":
        return int.from_bytes(value, "big")
    if value is not None and kind in SPATIAL:
        return bytes(value[4:])  # the SRID comes before the WKB
    return str(value) if value is not None and kind == "decimal" else value


def ours(kind, value):
    """A value from duckdb; decimals of more than 38 digits are texts."""
    return str(value) if value is not None and kind == "decimal" else value


def columns_of(server, database):
    """Of each base table: its columns as (name, type) in order, and the columns of its primary key."""
    found = {}
    query = """SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_KEY FROM information_schema.COLUMNS c JOIN
        information_schema.TABLES t USING (TABLE_SCHEMA, TABLE_NAME) WHERE t.TABLE_TYPE = 'BASE TABLE'
        AND TABLE_SCHEMA = DATABASE() ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"""
    for table, column, kind, key in server.execute(query, database):
        columns, keys = found.setdefault(table, ([], []))
        columns.append((column, kind.lower()))
        if key == "PRI":
            keys.append((column, kind.lower()))
    return found


def quoted(names, mark):
    return ", ".join(mark + name + mark for name in names)


def assert_equal(server, database, path):
    """Each base table of the server is in the replica, and no other, with the same columns and rows."""
    tables = columns_of(server, database)
    with (
        contextlib.closing(server.connect(database)) as theirs_at,
        duckdb.connect(str(path), read_only=True) as ours_at,
    ):
        present = ours_at.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'").fetchall()
        assert {name for (name,) in present} == set(tables)
        for table, (columns, key) in tables.items():
            names, kinds = zip(*columns, strict=True)
            known = ours_at.execute(f'DESCRIBE main."{table}"').fetchall()
            assert {row[0] for row in known} == set(names), table
            # In the order of its key a large table is compared without being held; texts sort in other ways there.
            ordered = bool(key) and all(kind in {"int", "date"} for _, kind in key)
            order = [name for name, _ in key] if ordered else []
            there = rows(theirs_at.cursor(pymysql.cursors.SSCursor), table, names, order, "`", kinds, theirs)
            here = rows(ours_at.cursor(), table, names, order, '"', kinds, ours)
            if not ordered:
                there, here = (sorted(side, key=repr) for side in (there, here))
            for number, (wanted, found) in enumerate(itertools.zip_longest(there, here)):
                assert found == wanted, f"{table}, row {number}"


def rows(cursor, table, names, order, mark, kinds, made_alike):
    by = f" ORDER BY {quoted(order, mark)}" if order else ""
    cursor.execute(f"SELECT {quoted(names, mark)} FROM {mark}{table}{mark}{by}")
    while batch := cursor.fetchmany(10_000):
        for row in batch:
            yield tuple(made_alike(kind, value) for kind, value in zip(kinds, row, strict=True))
    cursor.close()


@pytest.fixture
def following():
    """``following()``: a sync that follows in a process of its own; ``.kill()`` ends it as the kernel would."""
    processes = []

    def start():
        process = subprocess.Popen([sys.executable, "-c", _FOLLOW], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        processes.append(process)
        assert process.stdout.readline() == b"begins\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def catch_up(entry):
    """The sync until it has everything: what it could not follow is copied by the next run."""
    for _ in range(10):
        done = sync(entry, wait=60)
        if done.outcome == "caught up" and not done.recopy and not done.changes:
            return
    pytest.fail(f"ten runs in a row had something left: {done}")


def work(session, shape, dice, size, count):
    """Random operations; those that the server refuses are part of it.

    :returns: how many statements took effect.
    """
    effective = 0
    with session.cursor() as cursor:
        for _ in range(count):
            odd = dice.random.random()
            chosen = shape.ddl(dice) if odd < 0.02 else shape.operation(dice, size)
            statements = (chosen,) if isinstance(chosen, str) else chosen
            if odd > 0.99:
                statements = ("SET binlog_format = 'STATEMENT'", *statements, "SET binlog_format = 'ROW'")
            for statement in statements:
                with contextlib.suppress(pymysql.err.MySQLError):
                    effective += cursor.execute(statement) > 0
            session.rollback()
    return effective


def fill(server, database, shape, dice, size):
    server.execute(list(shape.tables), database)
    server.execute(["SET NAMES utf8mb4", *shape.fill(dice, size)], database)


@pytest.mark.parametrize("shape", [FILMS, MUSIC, EMPLOYEES], ids=lambda shape: shape.name)
def test_random_work_and_kills_leave_the_replica_equal(site, mariadb, database, following, shape):
    dice, size = Dice(SEED), 200 if WHOLE else 40
    fill(mariadb, database, shape, dice, size)
    # With them the sync knows what a statement of another format may reach.
    mariadb.execute(f"GRANT TRIGGER, SHOW VIEW ON `{database}`.* TO '{mariadb.user}'@'%'")
    entry = site()
    sync(entry, wait=60)
    kills = effective = 0
    with contextlib.closing(mariadb.connect(database)) as session:
        for _ in range(0, OPERATIONS, ROUND):
            # In the short form one of the three shapes sees a kill: a process costs more than all the statements.
            if WHOLE or shape is FILMS:
                for _ in range(0, ROUND, KILL_AFTER):
                    process = following()
                    effective += work(session, shape, dice, size, KILL_AFTER)
                    process.kill()
                    assert process.wait() == -signal.SIGKILL
                    kills += 1
            else:
                effective += work(session, shape, dice, size, ROUND)
            catch_up(entry)
            assert_equal(mariadb, database, entry.replica)
    print(f"{shape.name}: {OPERATIONS} operations, {effective} statements that changed rows, {kills} kills")
    assert effective > OPERATIONS / 3


@pytest.mark.skipif(not WHOLE, reason="minutes: make mysql")
def test_three_million_rows_and_random_work_leave_the_replica_equal(site, mariadb, database, following):
    dice, size = Dice(SEED), 300_000
    fill(mariadb, database, EMPLOYEES, dice, size)
    entry = site()
    catch_up(entry)
    with contextlib.closing(mariadb.connect(database)) as session:
        for _ in range(4):
            process = following()
            work(session, EMPLOYEES, dice, size, 500)
            process.kill()
            process.wait()
    mariadb.execute("UPDATE salaries SET salary = salary + 1 WHERE emp_no % 3 = 0", database)
    catch_up(entry)
    assert_equal(mariadb, database, entry.replica)
    with duckdb.connect(str(entry.replica), read_only=True) as replica:
        total = replica.execute("SELECT sum(estimated_size) FROM duckdb_tables() WHERE schema_name = 'main'").fetchone()
    assert total[0] > 3_000_000
