"""How far behind a replica is, also while another process keeps it."""

import contextlib
import subprocess
import sys
import time

import pytest

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replica.freshness import SYNC_SUFFIX, Freshness, read_freshness, write_freshness
from duckling_provider.replica.locks import place_hold, release_hold, state_path
from duckling_provider.replication.sync import sync

_READER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=True)
print("reads", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def reader(replica):
    command = [sys.executable, "-c", _READER, str(replica)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"reads\n"
        try:
            yield
        finally:
            process.stdin.close()


@pytest.mark.mysql
@pytest.mark.mariadb_only  # MySQL tells when a transaction was committed, whatever the session's clock says
def test_a_reader_that_stays_does_not_hide_how_long_changes_wait(site):
    site.run("CREATE TABLE t (id INT PRIMARY KEY)")
    entry = site()
    assert sync(entry).lag == 0.0
    # The session's clock is an hour behind, so its change is an hour old.
    site.run(f"SET timestamp = {int(time.time()) - 3600}", "INSERT INTO t VALUES (1)")
    with reader(entry.replica):
        starved = sync(entry, wait=0)
    assert starved.outcome == "made way"
    assert starved.changes == 0
    assert 3600 <= starved.lag < 3600 + 3600
    done = sync(entry)
    assert (done.outcome, done.changes, done.lag) == ("caught up", 1, 0.0)


@pytest.mark.mysql
def test_an_idle_sync_is_not_behind(site):
    site.run("CREATE TABLE t (id INT PRIMARY KEY)")
    entry = site()
    sync(entry)
    site.run(f"SET timestamp = {int(time.time()) - 3600}", "INSERT INTO t VALUES (1)")
    done = sync(entry, seconds=3)
    assert (done.outcome, done.changes, done.lag) == ("out of time", 1, 0.0)


@pytest.mark.mysql
def test_too_many_runs_in_a_row_that_made_way_fail(site):
    site.run("CREATE TABLE t (id INT PRIMARY KEY)")
    entry = site(maxSyncYields=3)
    sync(entry)
    place_hold(entry.replica, owner="restore run", reason="restore", seconds=600, wait=0)
    for number in (1, 2):
        done = sync(entry, wait=0)
        assert (done.outcome, done.yields) == ("made way", number)
    with pytest.raises(ReplicationError, match="3 runs in a row made way") as caught:
        sync(entry, wait=0)
    assert not caught.value.retryable
    assert "restore run" in str(caught.value)
    release_hold(entry.replica, owner="restore run")
    sync(entry)
    assert read_freshness(entry.replica).yields == 0


def test_what_is_noted_is_read_again_and_nonsense_is_nothing(tmp_path):
    replica = tmp_path / "x.db"
    assert read_freshness(replica) == Freshness()
    noted = Freshness(3, 1000.0, 900.0)
    write_freshness(replica, noted)
    write_freshness(replica, noted)
    assert read_freshness(replica) == noted
    assert noted.lag(1600.0) == 600.0
    known = Freshness(0, None, 900.0, validated=800.0, differences=3, differed=700.0, file=(1, 2, 3))
    write_freshness(replica, known)
    assert read_freshness(replica) == known
    # A run of an earlier release left less.
    state_path(replica, SYNC_SUFFIX).write_text('{"yields": 3, "waiting_since": 1000.0, "current_at": 900.0}')
    assert read_freshness(replica) == noted
    assert Freshness(1, None, 900.0).lag(1000.0) == 100.0
    for text in ("", "[]", "{}", '{"yields": 1}', "nonsense"):
        state_path(replica, SYNC_SUFFIX).write_text(text)
        assert read_freshness(replica) == Freshness()
