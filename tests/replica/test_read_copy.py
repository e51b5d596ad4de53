"""The copy for readers: on real file systems with reflinks, and refused on others."""

import os
import shutil
import stat
import subprocess

import duckdb
import pytest

from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, ConfigError, NoSpaceError, ReplicaError
from duckling_provider.oversight.check import check_database
from duckling_provider.replica.read_copy import MARK, find_read_copy, renew_read_copy, require_read_copy
from duckling_provider.replication.run import MakeWayError, Run

COUNT = "SELECT count(*) FROM customers"


@pytest.fixture
def entry(installation):
    """``entry(folder)``: a database whose replica and copy for readers are in `folder`."""

    def make(folder, **fields):
        fields = {"duckdbPath": str(folder / "live.db"), "readCopyPath": str(folder / "read.db"), **fields}
        installation.write(installation.entry(**fields))
        return installation.database()

    return make


def rows(path, query=COUNT):
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchone()[0]


def step(database):
    (found,) = [step for step in check_database(database, None) if step.name == "copy for readers"]
    return found


def test_the_copy_opens_by_itself_and_has_what_was_only_in_the_log(entry, reflinks, make_replica):
    database = entry(reflinks)
    make_replica(reflinks / "live.db", rows=1000, wal=True)
    assert step(database).detail.startswith("can be made as")
    copy = renew_read_copy(database)
    assert copy == find_read_copy(database)
    assert {path.name for path in reflinks.iterdir()} == {"live.db", "read.db"}
    shutil.move(reflinks / "live.db", reflinks / "gone")
    assert rows(reflinks / "read.db") == 1010


def is_shared(path):
    """Whether all of its blocks belong to another file too."""
    extents = subprocess.run(["filefrag", "-v", path], capture_output=True, text=True, check=True).stdout.splitlines()
    flags = [line.rpartition(":")[2] for line in extents if line.partition(":")[0].strip().isdigit()]
    return flags != [] and all("shared" in flag for flag in flags)


def test_the_copy_takes_no_space_of_its_own(entry, reflinks, make_replica):
    database = entry(reflinks)
    make_replica(reflinks / "live.db")
    renew_read_copy(database)
    assert is_shared(reflinks / "read.db")


def test_a_reader_keeps_its_copy_while_the_next_one_takes_its_place(entry, reflinks, make_replica):
    database = entry(reflinks)
    make_replica(reflinks / "live.db", rows=1000)
    renew_read_copy(database)
    with duckdb.connect(str(reflinks / "read.db"), read_only=True) as reader:
        make_replica(reflinks / "live.db", rows=2000)
        assert not find_read_copy(database).is_current(database)
        assert step(database).detail.partition("UTC, ")[2].startswith("older than the replica")
        renew_read_copy(database)
        assert step(database).detail.partition("UTC, ")[2].startswith("equal to the replica")
        assert reader.execute(COUNT).fetchone()[0] == 1000
    assert rows(reflinks / "read.db") == 2000


def test_an_unchanged_replica_is_not_copied_again(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    first = renew_read_copy(database)
    inode = first.path.stat().st_ino
    assert renew_read_copy(database) == first
    assert first.path.stat().st_ino == inode


def test_the_copy_is_for_the_folders_group_and_nobody_writes_it(entry, xfs, make_replica):
    folder = xfs / "readers"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, -1, 1234)
    database = entry(xfs, readCopyPath=str(folder / "read.db"))
    make_replica(xfs / "live.db")
    found = renew_read_copy(database).path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o440
    assert found.st_gid == folder.stat().st_gid
    assert step(database).detail.endswith(f"readable by its group {found.st_gid}")


@pytest.mark.parametrize("kind", ["a file", "a link", "a folder", "another's copy"])
def test_what_no_sync_has_made_is_never_replaced(entry, xfs, make_replica, kind):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    path, target = xfs / "read.db", xfs / "mine.db"
    make_replica(target, rows=10)
    if kind == "a file":
        target.rename(path)
    elif kind == "a link":
        path.symlink_to(target)
    elif kind == "a folder":
        path.mkdir()
    else:
        target.rename(path)
        os.setxattr(path, MARK, b'{"database": "other", "made": "2025-03-01T14:32:11.482Z", "replica": [1, 2, 3]}')
    before = path.lstat()
    for attempt in (renew_read_copy, require_read_copy):
        with pytest.raises(ConfigError) as caught:
            attempt(database)
        assert caught.value.field == "readCopyPath"
    assert "readCopyPath" in step(database).error
    assert path.lstat() == before


def test_what_a_killed_process_left_is_cleared_away(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    left = xfs / "read.db.duckling-new"
    left.write_bytes(b"half a copy")
    left.chmod(0o440)
    renew_read_copy(database)
    assert not left.exists()
    assert rows(xfs / "read.db") == 2000


def test_a_log_beside_the_copy_is_never_replayed_into_the_next(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    first = renew_read_copy(database)
    (xfs / "read.db.wal").write_bytes(b"of a writer")
    make_replica(xfs / "live.db", rows=10)
    with pytest.raises(ReplicaError, match=r"a write-ahead log lies beside it: read\.db\.wal"):
        renew_read_copy(database)
    assert find_read_copy(database) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write a file of mode 0440")
def test_a_program_that_writes_the_copy_is_named(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    renew_read_copy(database)
    make_replica(xfs / "live.db", rows=10)
    with duckdb.connect(str(xfs / "read.db")), pytest.raises(BusyError, match=f"open for writing in PID {os.getpid()}"):
        renew_read_copy(database)


def test_on_a_full_disk_the_old_copy_stays_or_the_new_one_is_whole(entry, reflinks, make_replica):
    database = entry(reflinks)
    make_replica(reflinks / "live.db", rows=1000)
    renew_read_copy(database)
    make_replica(reflinks / "live.db", rows=2000)
    filler = os.open(reflinks / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        for size in (16 << 20, 1 << 20, 4096):
            try:
                while os.write(filler, bytes(size)):
                    os.fsync(filler)
            except OSError:
                continue
        try:
            renew_read_copy(database)
            expected = 2000
        except NoSpaceError:
            expected = 1000
    finally:
        os.ftruncate(filler, 0)
        os.fsync(filler)
        os.close(filler)
    assert rows(reflinks / "read.db") == expected
    assert {path.name for path in reflinks.iterdir()} == {"live.db", "read.db", "filler"}
    renew_read_copy(database)
    assert rows(reflinks / "read.db") == 2000


def test_where_blocks_cannot_be_shared_it_is_refused_and_nothing_is_copied(entry, shares_no_blocks, make_replica):
    database = entry(shares_no_blocks)
    make_replica(shares_no_blocks / "live.db")
    for attempt in (require_read_copy, renew_read_copy):
        with pytest.raises(ConfigError, match="can't share blocks between files") as caught:
            attempt(database)
        assert "XFS and Btrfs" in caught.value.hint
    assert "can't share blocks" in step(database).error
    assert [path.name for path in shares_no_blocks.iterdir() if path.name.startswith("read")] == []


def test_another_file_system_than_the_replicas_is_refused(entry, xfs, tmp_path, make_replica):
    database = entry(xfs, readCopyPath=str(tmp_path / "read.db"))
    make_replica(xfs / "live.db")
    for attempt in (require_read_copy, renew_read_copy):
        with pytest.raises(ConfigError, match="is on another file system than the replica"):
            attempt(database)
    assert not (tmp_path / "read.db").exists()


def test_a_missing_folder_is_told_and_not_made(entry, tmp_path, make_replica):
    database = entry(tmp_path, readCopyPath=str(tmp_path / "readers" / "read.db"))
    make_replica(tmp_path / "live.db")
    assert "there is no folder" in step(database).error
    assert not (tmp_path / "readers").exists()


def test_a_restore_renews_the_copy(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db", rows=1000)
    take_snapshot(database)
    make_replica(xfs / "live.db", rows=2000)
    renew_read_copy(database)
    restore_backup(database, LocalBackups(database))
    assert rows(xfs / "read.db") == 1000
    assert find_read_copy(database).is_current(database)
    assert [backup.key for backup in LocalBackups(database).list("")] != []


def test_a_sync_that_makes_way_leaves_what_it_has_applied_for_readers(entry, xfs, make_replica):
    database = entry(xfs)
    make_replica(xfs / "live.db")
    run = Run(database, Control(), "test", 0.0)

    def stretch():
        with run.read_copy_behind():
            make_replica(xfs / "live.db", rows=10)
            raise MakeWayError

    with run.access("sync"), pytest.raises(MakeWayError):
        stretch()
    assert rows(xfs / "read.db") == 10
    # Else now and then: making one for each stretch would be for no reader's good.
    with run.access("sync"), run.read_copy_behind():
        make_replica(xfs / "live.db", rows=20)
    assert rows(xfs / "read.db") == 10


def test_a_restore_does_not_fail_with_the_copy(entry, shares_no_blocks, make_replica, query_replica, caplog):
    database = entry(shares_no_blocks)
    make_replica(shares_no_blocks / "live.db", rows=1000)
    take_snapshot(database)
    make_replica(shares_no_blocks / "live.db", rows=2000)
    restore_backup(database, LocalBackups(database))
    assert query_replica(shares_no_blocks / "live.db", COUNT) == [[1000]]
    assert "stays as it was until the next sync" in caplog.text


def test_a_snapshot_is_a_clone_where_blocks_can_be_shared(entry, reflinks, make_replica, monkeypatch, query_replica):
    monkeypatch.setenv("BACKUP_PATH", str(reflinks / "backups"))
    database = entry(reflinks)
    make_replica(reflinks / "live.db", wal=True)
    snapshot = take_snapshot(database)
    assert is_shared(snapshot.path)
    assert query_replica(snapshot.path, COUNT) == [[2010]]
