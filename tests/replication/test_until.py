"""A database is brought back as MySQL had it at a moment, from a backup and the binlog."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import duckdb
import pytest
from fixtures.command_line import run_here
from fixtures.replica_file import opened

from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.base.errors import NotFoundError, ReplicationError, RequestError
from duckling_provider.base.moments import iso
from duckling_provider.replica.duckdb_file import wal_files
from duckling_provider.replication.binlog.stream import PositionLostError
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.tables import Commit, Position
from duckling_provider.replication.mysql.source import connect, current_position
from duckling_provider.replication.route import Goal
from duckling_provider.replication.sync import sync
from duckling_provider.replication.until import plan_until, restore_until

pytestmark = pytest.mark.mysql

TABLES = ("orders", "log", "notes")


def tables(site):
    site.run(
        "CREATE TABLE orders (id INT PRIMARY KEY, customer VARCHAR(50), total DECIMAL(10,2), at DATETIME(6))",
        "CREATE TABLE log (line VARCHAR(20))",
        "CREATE TABLE notes (id INT PRIMARY KEY, text TEXT)",
        "INSERT INTO orders SELECT seq, CONCAT('customer ', seq), seq / 7, NOW(6) FROM seq_1_to_200",
        "INSERT INTO log VALUES ('one'), ('two'), ('two')",
        "INSERT INTO notes VALUES (1, 'Zoë'), (2, NULL)",
    )


def there(server, database):
    """All rows as the server has them now."""
    return {name: sorted(map(repr, server.execute(f"SELECT * FROM {name}", database))) for name in TABLES}


def here(path):
    with opened(path) as connection:
        return {name: sorted(map(repr, connection.execute(f"FROM {name}").fetchall())) for name in TABLES}


def now_there(server):
    """The server's time, and its position; a second lies around it, in which nothing is written."""
    time.sleep(1.1)
    (moment,) = server.execute("SELECT NOW(6)")[0]
    return moment.replace(tzinfo=timezone.utc)


@pytest.fixture
def backup(site):
    """A synced entry and its local backup."""
    tables(site)
    entry = site()
    sync(entry)
    take_snapshot(entry)
    return entry, LocalBackups(entry)


@pytest.mark.mysql_too
def test_it_equals_mysql_at_that_moment_however_it_is_named(site, backup, mariadb, database, source, tmp_path):
    entry, store = backup
    site.run(
        "UPDATE orders SET total = total + 1 WHERE id % 3 = 0",
        "DELETE FROM orders WHERE id > 190",
        "INSERT INTO log VALUES ('three')",
        "ALTER TABLE notes ADD COLUMN more INT",
        "INSERT INTO notes VALUES (3, 'after', 7)",
    )
    moment, wanted = now_there(mariadb), there(mariadb, database)
    connection = connect(source)
    position = current_position(connection)
    connection.close()
    time.sleep(1.1)
    site.run("DELETE FROM orders", "DROP TABLE notes", "INSERT INTO log VALUES ('too late')")
    gtid = position.gtid if mariadb.is_mariadb else position.gtid.split(",")[-1]
    goals = [Goal(moment), Goal(position=f"{position.file}:{position.offset}"), Goal(position=gtid)]
    for number, goal in enumerate(goals):
        path = tmp_path / f"{number}.db"
        plan, route = plan_until(entry, store, goal, to=path)
        done = restore_until(entry, store, goal, to=path)
        assert here(path) == wanted, goal
        assert done.left == ()
        assert done.route.end.order == position.order
        assert (plan.target, route.end.order) == (path, position.order)
        assert route.since <= moment <= route.to + timedelta(seconds=10)
        assert wal_files(path) == []
    with duckdb.connect(str(path)) as connection:
        assert Ledger.open(connection).position().order == position.order
    assert [path.name for path in tmp_path.iterdir() if "duckling" in path.name] == []


def test_a_table_that_can_not_be_followed_stays_at_its_last_exact_moment_and_is_named(
    site, backup, mariadb, database, tmp_path
):
    entry, store = backup
    site.run("INSERT INTO notes VALUES (3, 'exact')", "INSERT INTO log VALUES ('before')")
    exact, left = there(mariadb, database), now_there(mariadb)
    # What each row became is not in the statement's text.
    site.run("ALTER TABLE notes MODIFY text VARCHAR(50) CHARACTER SET ascii", "INSERT INTO notes VALUES (4, 'lost')")
    site.run("INSERT INTO log VALUES ('after')")
    moment, wanted = now_there(mariadb), there(mariadb, database)
    done = restore_until(entry, store, Goal(moment), to=tmp_path / "x.db")
    assert [table.name for table in done.left] == ["notes"]
    assert abs((done.left[0].at - left).total_seconds()) < 5
    assert here(tmp_path / "x.db") == {**wanted, "notes": exact["notes"]}


def test_a_binlog_that_does_not_reach_back_is_an_error_before_the_download(site, backup, tmp_path):
    entry, store = backup
    take_snapshot(entry, now=datetime.now(timezone.utc) - timedelta(days=400))
    with pytest.raises(ReplicationError, match=r"binlog does not reach back to the backup of .*: it begins with"):
        restore_until(entry, store, Goal(datetime.now(timezone.utc) - timedelta(days=300)), to=tmp_path / "x.db")
    assert list(tmp_path.glob("x.db*")) == []


def test_a_position_that_the_server_lost_is_an_error_and_leaves_nothing(site, backup, tmp_path):
    entry, store = backup
    with duckdb.connect(str(entry.replica)) as connection:
        Ledger.open(connection).save_position(Position("gone.000001", 4, "", "elsewhere"))
    take_snapshot(entry)
    time.sleep(0.01)
    with pytest.raises(PositionLostError, match=r"the binlog after gone.000001:4 is gone"):
        restore_until(entry, store, Goal(datetime.now(timezone.utc)), to=tmp_path / "x.db")
    assert list(tmp_path.glob("x.db*")) == []


@pytest.mark.mariadb_only
def test_a_clock_that_stepped_back_makes_a_time_ambiguous_and_a_position_does_not(site, backup, mariadb, tmp_path):
    entry, store = backup
    moment = now_there(mariadb)
    time.sleep(1.1)
    site.run("INSERT INTO log VALUES ('late')")
    site.run(
        f"SET timestamp = {moment.timestamp() - 3600:.0f}",
        "INSERT INTO log VALUES ('early')",
        "INSERT INTO log VALUES ('again')",
    )
    with pytest.raises(ReplicationError, match="MySQL's clock stepped back") as told:
        restore_until(entry, store, Goal(moment), to=tmp_path / "x.db")
    assert "--until-position" in told.value.hint
    goal = Goal.of(None, told.value.hint.rpartition("--until-position ")[2].rstrip("."))
    restore_until(entry, store, goal, to=tmp_path / "x.db")
    assert here(tmp_path / "x.db")["log"] == ["('one',)", "('two',)", "('two',)"]


def test_the_command_says_how_far_back_it_can_go_and_goes_there(site, backup, mariadb, database, tmp_path):
    site.run("INSERT INTO log VALUES ('three')")
    moment, wanted = now_there(mariadb), there(mariadb, database)
    path, to = tmp_path / "x.db", ("--local", "--to", tmp_path / "x.db")
    time.sleep(1.1)
    site.run("DROP TABLE log")
    planned = run_here("restore", "production", "--until", iso(moment), *to, "--dry-run", "--json").json
    assert planned["transactions"] >= 1
    assert planned["reachableFrom"] <= iso(moment) <= planned["reachableTo"]
    assert not path.exists()
    shown = run_here("restore", "production", "--until", iso(moment), *to, "--dry-run")
    assert "reach     every moment from" in shown.out
    done = run_here("restore", "production", "--until", iso(moment), *to, "--json").json
    assert (done["path"], done["changes"], done["tables"]) == (str(path), 1, [])
    assert done["position"] == planned["position"]
    assert here(path) == wanted


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--until", "2025-03-01"), "--until needs --to"),
        (("--until", "2025-03-01", "--until-position", "b.1:4", "--to", "/x.db"), "a time and a position were given"),
        (("backup-2025-03-01T14-32-11-482Z.db", "--until", "2025-03-01", "--to", "/x.db"), "chooses the backup"),
        (("--until", "2999-01-01", "--to", "/x.db"), "that time is in the future"),
        (("--until-position", "yesterday", "--to", "/x.db"), "this is no position of a binlog"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(site, arguments, told):
    answer = run_here("restore", "production", *arguments)
    assert (answer.code, told in answer.err) == (2, True), answer.err


def test_there_must_be_a_backup_from_before(site, backup, tmp_path):
    entry, store = backup
    with pytest.raises(NotFoundError, match="no backup from before"):
        restore_until(entry, store, Goal(datetime(2020, 1, 1, tzinfo=timezone.utc)), to=tmp_path / "x.db")
    with pytest.raises(RequestError, match="has no transaction"):
        restore_until(entry, store, Goal(position="binlog.999999:4"), to=tmp_path / "x.db")


def test_a_time_in_whole_seconds_is_wanted_only_where_all_of_its_second_is():
    moment = datetime(2025, 3, 1, 12, 0, 30, 500_000, tzinfo=timezone.utc)
    whole, seconds = Goal(moment), moment.timestamp()

    def included(timestamp):
        return whole.includes(Commit(Position("b.1", 4), timestamp), mariadb=True)

    assert included(int(seconds) - 1)
    assert not included(int(seconds))  # somewhen within that second
    assert included(seconds - 0.000001 - 0.25)
    assert not included(seconds)
