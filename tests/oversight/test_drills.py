"""A drill restores a backup as a machine would that has nothing else, says what it found, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.sidecar import sidecar_of
from duckling_provider.backup.inventory.states import read_state, record_state
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.retention.clean_up import clean_up
from duckling_provider.base.errors import DamagedError, IntegrityError, NoSpaceError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.oversight import drills
from duckling_provider.oversight.drill_reading import read
from duckling_provider.oversight.drills import DrillError, drill
from duckling_provider.oversight.record import RECORD, read_record
from duckling_provider.replica.child_process import JOB
from duckling_provider.replica.reading import rows_digest

pytestmark = pytest.mark.slow

KEY = "c4" * 32
PREFIX = "production/"


class Stored:
    """A backup in a store in memory, and ways to spoil it."""

    def __init__(self, installation: Any, mode: str, **fields: Any) -> None:
        s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
        s3 |= {"encryption": mode} | ({"encryptionKey": KEY} if mode == "client-aes256" else {})
        fields = {"mysqlConnectionString": None, **fields}
        installation.write(installation.entry(s3=s3, **fields))
        self.database = installation.database()
        self.store = MemoryStore(prefix=PREFIX, mode=mode)
        self.snapshot = take_snapshot(self.database)
        self.key = upload_snapshot(self.database, self.store, self.snapshot).key

    def lose_host(self) -> None:
        shutil.rmtree(self.database.backup_path)
        self.database.replica.unlink()

    def replace(self, data: bytes, **metadata: str) -> None:
        stored, _ = self.store.objects[self.key]
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        changed = dataclasses.replace(stored, size=len(data), etag=etag, metadata={**stored.metadata, **metadata})
        self.store.objects[self.key] = changed, data

    def flip(self, position: int) -> None:
        data = bytearray(self.store.objects[self.key][1])
        data[position] ^= 1
        self.replace(bytes(data))

    @property
    def state(self) -> Any:
        (listed,) = list_backups(self.store)
        return read_state(self.database, self.store, listed)


@pytest.fixture
def stored(installation: Any, small_replica: Any) -> Any:
    small_replica(installation.replica())
    return lambda mode="none", **fields: Stored(installation, mode, **fields)


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_sound_backup_is_tested_from_the_bucket_alone(stored, mode):
    backup = stored(mode, drillQueries=["SELECT count(*) = 4000 FROM orders"])
    backup.lose_host()
    done = drill(backup.database, backup.store)
    assert (done.key, done.tables, done.rows, done.queries) == (backup.key, 2, 6000, 1)
    assert done.compared
    assert backup.state.name == "tested"
    assert backup.state.decisive.means == "drill"
    assert backup.state.last("verified") == done.tested.replace(microsecond=done.tested.microsecond // 1000 * 1000)
    assert (done.catch_up, done.catch_up_note) == ("unknown", "the entry names no MySQL server")
    record = read_record(backup.database)
    assert (record.tested.key, record.tested.seconds) == (backup.key, done.restore_ms / 1000)
    assert [transfer.means for transfer in record.transfers] == ["drill"]


def test_it_touches_neither_replica_nor_local_backups_and_removes_its_file(stored, installation):
    backup = stored()
    before = files_below(installation.data_path)
    done = drill(backup.database, backup.store)
    own = {backup.database.backup_path / name for name in (RECORD, ".record.lock")}
    assert {path: data for path, data in files_below(installation.data_path).items() if path not in own} == before
    assert backup.database.drill_path.stat().st_mode & 0o777 == 0o700
    assert done.compared
    assert done.notes == ()


def test_the_rows_are_in_the_sidecar_and_their_digest_beside_the_object(stored):
    backup = stored("client-aes256")
    rows = json.loads(sidecar_of(backup.snapshot.path).read_text())["rows"]
    assert rows == [["main", "customers", 2000], ["main", "orders", 4000]]
    digest = backup.store.objects[backup.key][0].metadata["duckling-rows"]
    counted = tuple(tuple(row) for row in rows)
    assert digest == rows_digest(counted, EncryptionKey.parse(KEY)) != rows_digest(counted, None)


def test_other_rows_than_were_recorded_disprove_it_and_are_named(stored):
    backup = stored()
    sidecar = sidecar_of(backup.snapshot.path)
    facts = json.loads(sidecar.read_text())
    facts["rows"][1][2] = 4001
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(IntegrityError, match=r"step rows: .*: orders has 4,000 rows, 4,001 rows recorded"):
        drill(backup.database, backup.store)
    assert backup.state.name == "disproved"


def test_without_the_host_the_digest_tells_that_the_rows_are_others(stored):
    backup = stored("client-aes256")
    backup.lose_host()
    backup.replace(backup.store.objects[backup.key][1], **{"duckling-rows": "0" * 64})
    with pytest.raises(IntegrityError, match=r"2 tables with 6,000 rows, and others were recorded"):
        drill(backup.database, backup.store)
    assert backup.state.name == "disproved"


def test_a_backup_that_says_nothing_of_its_rows_is_tested_all_the_same(stored):
    backup = stored()
    backup.lose_host()
    stored_object, data = backup.store.objects[backup.key]
    backup.store.objects[backup.key] = dataclasses.replace(stored_object, metadata={}), data
    done = drill(backup.database, backup.store)
    assert not done.compared
    assert backup.state.name == "tested"


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_damage_is_found_and_disproves_after_a_second_read(stored, mode, caplog):
    backup = stored(mode)
    backup.flip(300_000)
    with pytest.raises(IntegrityError, match="drill, step download"):
        drill(backup.database, backup.store)
    assert "once more from the beginning" in caplog.text
    assert backup.state.name == "disproved"
    assert list(backup.database.drill_path.iterdir()) == []


def test_damage_of_one_read_only_is_a_note(stored):
    backup = stored()
    good, bad = backup.store.open_range, []

    def once(key, start, stop, **options):
        stream = good(key, start, stop, **options)
        if stop - start > 1000 and not bad:
            bad.append(stream.read(1))
            stream.getbuffer()[500] ^= 1
            stream.seek(0)
        return stream

    backup.store.open_range = once
    done = drill(backup.database, backup.store)
    assert len(done.notes) == 1
    assert done.notes[0].startswith("a first try failed, and a second did not: memory:production/backup-")
    assert backup.state.name == "tested"


def test_what_duckdb_can_not_read_is_disproved_though_its_bytes_are_right(stored, monkeypatch):
    backup = stored()
    real = drills.run_duckdb
    tries = []

    def crashing(action, path, control, **options):
        tries.append(path)
        path.write_bytes(b"\0" * 8192)  # the disk's fault, say: here DuckDB really meets something else
        return real(action, path, control, **options)

    monkeypatch.setattr(drills, "run_duckdb", crashing)
    with pytest.raises(DamagedError, match="drill, step read"):
        drill(backup.database, backup.store)
    assert len(tries) == 2
    assert backup.state.name == "disproved"


def test_a_query_that_is_not_true_fails_the_drill_and_disproves_nothing(stored):
    backup = stored(drillQueries=["SELECT true", "SELECT count(*) = 0 FROM orders"])
    with pytest.raises(DrillError, match=r"step queries: drillQueries 2 is not passed: it yielded 'False'"):
        drill(backup.database, backup.store)
    assert backup.state.name == "uploaded"


QUERIES = {
    "SELECT true": "",
    "SELECT max(id) = 1999 FROM customers": "",
    "SELECT 1": "it yielded '1' instead of true",
    "SELECT NULL::BOOLEAN": "it yielded 'None' instead of true",
    "SELECT 'true'": "it yielded 'true' instead of true",
    "SELECT true WHERE false": "it yielded no row instead of one value",
    "SELECT true FROM range(3)": "it yielded more than one row instead of one value",
    "SELECT true, true": "it yielded 2 values instead of one value",
    "SELECT true; SELECT true": "it is 2 statements, and must be one",
    "SELECT sum(hash(i)) > 0 FROM range(1000000000000) t(i)": "it took longer than 0.5 s",
    "SELECT count(*) > 0 FROM read_text('/etc/passwd')": "Permission Error",
    "COPY orders TO '/tmp/orders-of-a-drill.csv'": "Permission Error",
    "ATTACH '/tmp/orders-of-a-drill.db'": "Permission Error",
    "DELETE FROM orders": "Invalid Input Error",
    "SET enable_external_access = true": "Invalid Input Error",
    "SET memory_limit = '64GB'": "Invalid Input Error",
    "SELECT true FROM nowhere": "Catalog Error",
}


def test_each_query_must_yield_true_within_its_time_and_reach_nothing_else(stored, tmp_path):
    replica = stored().database.replica
    before = replica.read_bytes()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / JOB).write_text(json.dumps({"queries": list(QUERIES), "seconds": 0.5}))
    found = read(str(replica), str(tmp_path / "job"))
    for (query, fault), told in zip(QUERIES.items(), found["faults"], strict=True):
        assert told.startswith(fault), query
        assert bool(told) == bool(fault), query
    assert replica.read_bytes() == before
    assert not Path("/tmp/orders-of-a-drill.csv").exists()


def test_a_backup_that_is_too_large_for_the_disk_is_never_called_tested(stored, monkeypatch):
    backup = stored()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(NoSpaceError, match="drill, step download: no space left for a drill"):
        drill(backup.database, backup.store)
    assert backup.state.name == "uploaded"


def test_the_scratch_folder_is_where_it_is_wanted(stored, monkeypatch, tmp_path, installation):
    monkeypatch.setenv("DUCKLING_DRILL_PATH", str(tmp_path / "scratch"))
    backup = stored()
    drill(backup.database, backup.store)
    assert backup.database.drill_path == tmp_path / "scratch" / "production"
    assert (tmp_path / "scratch" / "production").stat().st_mode & 0o777 == 0o700


def test_what_a_killed_drill_left_goes_with_the_next_and_with_a_clean_up(stored):
    backup = stored()
    folder = backup.database.drill_path
    folder.mkdir(parents=True)
    dead, living = folder / "drill-dead.db", folder / "drill-living.db"
    for use in (lambda: drill(backup.database, backup.store), lambda: clean_up(backup.database, backup.store)):
        for path in (dead, living):
            path.touch(mode=0o600)
        with living.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            use()
        assert [path.name for path in folder.iterdir()] == ["drill-living.db"]


def test_a_named_backup_is_taken_and_one_that_was_disproved_becomes_tested(stored):
    backup = stored()
    record_state(backup.database, backup.store, backup.store.head(backup.key), "disproved", means="full")
    done = drill(backup.database, backup.store, backup.key)
    assert done.key == backup.key
    assert backup.state.name == "tested"


@pytest.mark.mysql
@pytest.mark.mysql_too
def test_it_tells_whether_the_binlog_still_reaches_back(stored, installation, mariadb, database):
    from duckling_provider.replication.sync import sync

    mariadb.execute(["CREATE TABLE t (id INT PRIMARY KEY)", "INSERT INTO t VALUES (1)"], database)
    installation.write(installation.entry(mysqlConnectionString=mariadb.url(database)))
    installation.replica().unlink()
    position = sync(installation.database()).position
    backup = stored(mysqlConnectionString=mariadb.url(database))
    done = drill(backup.database, backup.store)
    assert (done.catch_up, done.warnings, done.compared) == ("yes", (), True)
    purged = dataclasses.replace(position, file="gone.000001", gtid="")
    told = f"MySQL no longer has the binlog after {purged}: a sync would need a full copy"
    assert drills._catch_up(backup.database, purged) == ("no", told)
