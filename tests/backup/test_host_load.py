"""What a backup leaves to the host's other programs: bandwidth and page cache."""

import os
import time

import pytest

from duckling_provider.backup.flow import back_up
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.bandwidth import Bandwidth
from duckling_provider.base.cancellation import Control
from duckling_provider.base.host_load import forget
from duckling_provider.stores.s3 import open_store


@pytest.fixture
def database(installation, s3_server, make_replica):
    installation.write(installation.entry(s3=s3_server.s3(s3_server.new_bucket())))
    make_replica(installation.replica())
    return installation.database()


def test_upload_and_verification_keep_to_the_limit_and_are_counted(database, tmp_path):
    size = database.replica.stat().st_size
    rate = size * 2  # bytes a second
    control = Control(bandwidth=Bandwidth(tmp_path, rate * 8 / 1e6))
    began = time.monotonic()
    back_up(database, open_store(database), control=control)
    assert size <= control.sent < size * 1.1
    assert size <= control.received < size * 1.1
    # Half a second each, but for the first turn, which waits for none.
    assert time.monotonic() - began >= 0.9


def test_without_a_limit_bytes_are_counted_all_the_same(database):
    control = Control()
    done = back_up(database, open_store(database), control=control)
    assert control.sent >= done.snapshot.size
    assert done.snapshot.held_ms is not None
    assert 0 <= done.snapshot.held_ms <= done.snapshot.duration_ms


def test_a_backup_leaves_nothing_of_itself_in_the_page_cache(database, cached, make_replica):
    make_replica(database.replica, rows=200_000)
    with database.replica.open("rb") as file:
        os.fsync(file.fileno())
        forget(file.fileno())
    if cached(database.replica) > 0.1:
        pytest.skip("the file system of the temporary folder is memory itself")
    done = back_up(database, open_store(database))
    assert cached(database.replica) < 0.2
    assert cached(done.snapshot.path) < 0.2


def test_a_replica_that_is_in_use_stays_in_the_page_cache(database, cached):
    database.replica.read_bytes()
    take_snapshot(database)
    assert cached(database.replica) > 0.9


def test_a_working_set_stays_in_the_page_cache_through_backup_verification_and_restore(
    database, cached, make_replica, tmp_path
):
    make_replica(database.replica, rows=200_000)
    other = tmp_path / "other"
    other.write_bytes(os.urandom(8 << 20))
    store = open_store(database)
    for path in (database.replica, other):
        path.read_bytes()
    done = back_up(database, store)
    verify_backup(database, store, done.upload.key)
    restore_backup(database, store, done.upload.key, to=tmp_path / "restored.db")
    assert cached(database.replica) > 0.8
    assert cached(other) > 0.8
