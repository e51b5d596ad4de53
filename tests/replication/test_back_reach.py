"""Whether the binlog reaches back to the newest verified backup, as syncs record it."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight.back_reach import Stood, note_reach, stood_at, with_position
from duckling_provider.oversight.promises import standing_of
from duckling_provider.oversight.record import note, read_record
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.source import connect, query
from duckling_provider.replication.run import source_of
from duckling_provider.replication.sync import sync

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 2000))
def test_a_backup_is_never_taken_for_later_than_it_is(syncs: list[tuple[int, int]], minute: int):
    """Syncs one after the other, each with its minutes and what it applies: a backup has the position at its moment."""
    history: list[Stood] = []
    at, stands = 0, 0
    real: list[tuple[int, int]] = []  # (minute until which it held, position)
    for minutes, applied in syncs:
        at += minutes
        history = with_position(history, Position("bin.1", stands), until=NOW + timedelta(minutes=at))
        real.append((at, stands))
        stands += applied
    found = stood_at(history, NOW + timedelta(minutes=minute))
    exact = next((position for until, position in real if minute <= until), None)
    assert (found is None) == (exact is None)
    assert found is None or found.offset == exact


@pytest.mark.mysql
def test_a_sync_records_whether_the_binlog_still_reaches_back_to_the_newest_backup(site: Any, mariadb: Any):
    site.run("CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    entry = site()

    def synced() -> None:
        note_reach(entry, sync(entry).began)

    synced()
    made = datetime.now(timezone.utc)
    key = f"production/{backup_name(stamp_of(made))}"
    note(entry, lambda record: record.verified(key, 7, seconds=1.0, at=made))

    def promise() -> Any:
        return standing_of(entry, read_record(entry), now=datetime.now(timezone.utc)).promise

    assert promise().by_binlog is False
    site.run("INSERT INTO t VALUES (2)")
    synced()
    assert (promise().by_binlog, promise().loss) == (True, 0.0)
    # The next sync goes on from where it is, but the backup can't any more.
    site.run("FLUSH BINARY LOGS", "INSERT INTO t VALUES (3)", "FLUSH BINARY LOGS")
    synced()
    with contextlib.closing(connect(source_of(entry))) as connection:
        while len(files := query(connection, "SHOW BINARY LOGS")) > 1:
            # Not before the server has seen that the sync's reader is gone.
            site.run(f"PURGE BINARY LOGS TO '{files[-1][0]}'")
            time.sleep(0.05)
    synced()
    assert promise().by_binlog is False
