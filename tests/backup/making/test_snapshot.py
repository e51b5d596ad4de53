"""A snapshot is the replica as some commit left it, with everything about it recorded, or there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import hmac
import itertools
import json
import os
import shutil
import subprocess
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.partials import clear_partials
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    BusyError,
    CancelledError,
    DamagedError,
    DucklingError,
    NoSpaceError,
    NotFoundError,
    ReplicaError,
    SnapshotError,
)
from duckling_provider.replica.blocks import read_header

KEY = "c4" * 32
OTHER_KEY = "5d" * 32
PART = 5 << 20
BLOCK = 262_144
FIRST_BLOCK = 12_288

# ---- what children do --------------------------------------------------------------------------------------

_WRITER = """
import sys
import threading
import duckdb

connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE live (i BIGINT)")
print("writing")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
rows = 0
while not stop.is_set():
    connection.execute("INSERT INTO live SELECT range FROM range(1000)")
    rows += 1000
    if rows % 5000 == 0:
        connection.execute("CHECKPOINT")
connection.close()
print(rows)
"""

_COMMUTER = """
import sys
import threading
import time
import duckdb

stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
batch = 0
while not stop.is_set():
    try:
        connection = duckdb.connect(sys.argv[1])
    except duckdb.IOException:
        time.sleep(0.01)
        continue
    for _ in range(3):
        connection.execute("BEGIN")
        connection.execute(f"INSERT INTO a SELECT {batch}, range FROM range(500)")
        connection.execute(f"INSERT INTO b SELECT {batch}, md5(range::VARCHAR) FROM range(500)")
        connection.execute("COMMIT")
        batch += 1
    if batch % 2:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    connection.close()
    print(batch)
    time.sleep(0.1)
"""

_SLOW_SNAPSHOT = """
import sys
from duckling_provider import config
from duckling_provider.base.cancellation import Control
from duckling_provider.backup.making.snapshot import take_snapshot

def progress(step, done, total):
    if step == "snapshot" and 0 < done:
        print("copying")
        sys.stdin.readline()

Control.INTERVAL = 0
print(take_snapshot(config.load().database("production"), control=Control(progress)).filename)
"""

_LIMITED_SNAPSHOT = """
import resource
from duckling_provider import config
from duckling_provider.base.errors import DucklingError
from duckling_provider.backup.making.snapshot import take_snapshot

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    take_snapshot(config.load().database("production"))
except DucklingError as error:
    print(type(error).__name__, getattr(error, "needed", 0))
"""

_SQL = """
import sys
import duckdb

connection = duckdb.connect()
for statement in sys.argv[1:]:
    connection.execute(statement)
connection.close()
"""


@pytest.fixture
def sql(start_child):
    """``sql(*statements)``: run statements by DuckDB in a child process."""

    def run(*statements):
        child = start_child(_SQL, *statements)
        assert child.end() == (0, [])

    return run


@pytest.fixture
def production(installation, small_replica):
    """The database of an installation with one sound, quiet replica and no S3."""
    installation.write(installation.entry())
    small_replica(installation.replica())
    return installation.database()


def left(database):
    """Names of what lies in the folder of local backups."""
    names = os.listdir(database.backup_dir) if database.backup_dir.exists() else []
    return sorted({*names} - {"segments"})


def contents(database):
    return {name: (database.backup_dir / name).read_bytes() for name in left(database)}


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x55]))


# ---- consistency -------------------------------------------------------------------------------------------


def test_a_snapshot_is_the_quiet_replica_byte_for_byte(production):
    snapshot = take_snapshot(production)
    assert snapshot.path.read_bytes() == production.replica.read_bytes()
    assert left(production) == [snapshot.filename, snapshot.path.with_suffix(".json").name]


def test_a_live_writer_is_named_after_the_wait_and_nothing_is_left(production, query_replica, start_child):
    writer = start_child(_WRITER, production.replica)
    assert writer.line() == "writing"
    with pytest.raises(BusyError) as caught:
        take_snapshot(production, wait=1.0)
    assert f"PID {writer.pid}" in str(caught.value)
    assert caught.value.retryable
    assert left(production) == []
    code, lines = writer.end()
    assert code == 0
    assert query_replica(production.replica, "SELECT count(*) FROM live") == [[int(lines[-1])]]


def test_snapshots_between_the_commits_of_a_writer_are_never_torn(production, query_replica, start_child, sql):
    sql(
        f"ATTACH '{production.replica}' AS r",
        "CREATE TABLE r.a (batch BIGINT, i BIGINT)",
        "CREATE TABLE r.b (batch BIGINT, note VARCHAR)",
    )
    writer = start_child(_COMMUTER, production.replica)
    snapshots = []
    for _ in range(20):
        committed = writer.line()  # more than at the last snapshot
        with contextlib.suppress(BusyError, SnapshotError):
            snapshots.append(take_snapshot(production, wait=5.0))
        if len(snapshots) == 4:
            break
    code, lines = writer.end()
    assert code == 0
    assert len(snapshots) >= 3
    state = (
        "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b), (SELECT coalesce(max(batch), -1) + 1 FROM a), "
        "(SELECT count(DISTINCT batch) FROM b), (SELECT bit_xor(hash(note)) IS NOT NULL FROM b)"
    )
    batches = 0
    for snapshot in snapshots:
        assert not list(snapshot.path.parent.glob("*.wal*"))
        assert hashlib.sha256(snapshot.path.read_bytes()).hexdigest() == snapshot.sha256
        [[rows_a, rows_b, found, distinct, _]] = query_replica(snapshot.path, state)
        assert (rows_a, rows_b, distinct) == (found * 500, found * 500, found)
        assert found % 3 == 0
        assert found >= batches
        batches = found
    # The writer has lost nothing by it.
    assert query_replica(production.replica, "SELECT count(*) FROM a") == [[int([committed, *lines][-1]) * 500]]


@pytest.mark.parametrize("storage", ["v1.0.0", "v1.5.0"])
def test_rows_that_are_only_in_the_log_are_in_the_backup(installation, make_replica, query_replica, storage):
    installation.write(installation.entry())
    replica = make_replica(installation.replica(), storage=storage, wal=True)
    assert replica.with_name(replica.name + ".wal").stat().st_size > 0
    before = read_header(replica.read_bytes())
    snapshot = take_snapshot(installation.database())
    rows = "SELECT count(*) FROM customers WHERE name = 'only in the WAL'"
    assert query_replica(snapshot.path, rows) == [[10]]
    assert query_replica(replica, rows) == [[10]]
    assert list(replica.parent.glob("*.wal*")) == []
    after = read_header(snapshot.path.read_bytes())
    assert (after.version, after.storage) == (before.version, before.storage)
    assert snapshot.storage == storage.removesuffix(".0")


def test_a_symbolic_link_as_replica_backs_up_its_target(installation, make_replica, query_replica):
    target = make_replica(installation.data_path / "elsewhere" / "real.db", wal=True)
    installation.replica().symlink_to(target)
    installation.write(installation.entry())
    snapshot = take_snapshot(installation.database())
    assert not snapshot.path.is_symlink()
    assert query_replica(snapshot.path, "SELECT count(*) FROM customers") == [[2010]]
    assert installation.replica().readlink() == target


def _touch(replica):
    status = replica.stat()
    os.utime(replica, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _append(replica):
    with replica.open("ab") as file:
        file.write(b"x")


def _replace(replica):
    shutil.copyfile(replica, replica.with_suffix(".tmp"))
    replica.with_suffix(".tmp").rename(replica)


def _begin_log(replica):
    replica.with_name(replica.name + ".wal").write_bytes(b"something")


@pytest.mark.parametrize("meddle", [_touch, _append, _replace, _begin_log])
def test_a_file_that_changes_while_it_is_copied_makes_no_snapshot(production, meddle):
    def progress(step, done, _total):
        if step == "snapshot" and done == 0:
            meddle(production.replica)

    with pytest.raises(SnapshotError) as caught:
        take_snapshot(production, control=Control(progress))
    assert caught.value.retryable
    assert left(production) == []


def test_a_snapshot_that_is_cancelled_leaves_nothing_and_lets_go_of_the_replica(production):
    control = Control(lambda step, _done, _total: control.cancel() if step == "snapshot" else None)
    with pytest.raises(CancelledError):
        take_snapshot(production, control=control)
    assert left(production) == []
    assert take_snapshot(production, wait=0).size == production.replica.stat().st_size


def test_two_snapshots_of_one_millisecond_do_not_overwrite_each_other(production):
    moment = datetime(2025, 3, 1, 14, 32, 11, 482_000, tzinfo=timezone.utc)
    first = take_snapshot(production, now=moment)
    assert first.filename == "backup-2025-03-01T14-32-11-482Z.db"
    before = contents(production)
    with pytest.raises(SnapshotError):
        take_snapshot(production, now=moment)
    assert contents(production) == before


def test_a_snapshot_of_the_same_millisecond_in_the_making_is_left_alone(production):
    moment = datetime(2025, 3, 1, tzinfo=timezone.utc)
    production.backup_dir.mkdir(parents=True)
    partial = production.backup_dir / "backup-2025-03-01T00-00-00-000Z.db.partial"
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SnapshotError) as caught:
            take_snapshot(production, now=moment)
    assert caught.value.retryable
    assert left(production) == [partial.name]


def test_what_is_none_of_ours_in_the_places_of_leftovers_blocks_no_backup(production, caplog):
    production.backup_dir.mkdir(parents=True)
    odd = [production.backup_dir / f"backup-2025-03-0{day}T00-00-00-000Z.db.partial" for day in (1, 2, 3)]
    odd[0].symlink_to("/etc/hostname")
    os.mkfifo(odd[1])
    odd[2].touch()
    odd[2].chmod(0o666)
    odd.append(production.replica.with_name(f"{production.replica.name}.duckling-new"))
    odd[-1].symlink_to("nowhere")
    snapshot = take_snapshot(production)
    assert snapshot.path.read_bytes() == production.replica.read_bytes()
    assert all(str(path) in caplog.text and os.path.lexists(path) for path in odd)


@pytest.mark.slow
def test_a_file_encrypted_by_duckdb_is_copied_as_it_is(installation, sql):
    replica = installation.replica()
    sql(
        "SET force_mbedtls_unsafe = 'true'",
        f"ATTACH '{replica}' AS r (ENCRYPTION_KEY 'swordfish')",
        "CREATE TABLE r.t AS SELECT range AS i FROM range(1000)",
        "CHECKPOINT r",
    )
    installation.write(installation.entry())
    snapshot = take_snapshot(installation.database())
    assert snapshot.path.read_bytes() == replica.read_bytes()
    assert snapshot.storage == "encrypted"


# ---- what is recorded --------------------------------------------------------------------------------------


def seal_of(snapshot, key):
    """(IV || ciphertext, HMAC) that the sidecar promises, made by other means than ours."""
    iv, raw = bytes.fromhex(snapshot.iv), bytes.fromhex(key)
    stored = iv + Cipher(algorithms.AES(raw), modes.CTR(iv)).encryptor().update(snapshot.path.read_bytes())
    return stored, hmac.new(raw, stored, hashlib.sha256).hexdigest()


def checksums_of(data, sidecar, *, lead):
    """GMAC of the file's bytes in each part of an object that begins with `lead` other bytes."""
    cuts = [0, *range(sidecar["part_size"] - lead, len(data), sidecar["part_size"]), len(data)]
    # GCM encrypts nothing here, so all that it returns is the tag.
    gcm = AESGCM(bytes.fromhex(sidecar["checksum_key"]))
    return [
        gcm.encrypt(number.to_bytes(12, "big"), b"", data[a:b]).hex()
        for number, (a, b) in enumerate(itertools.pairwise(cuts))
    ]


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_the_sidecar_records_what_another_implementation_computes(installation, s3_settings, big_replica, mode):
    installation.write(installation.entry(s3=s3_settings(mode)))
    big_replica(installation.replica())
    database = installation.database()
    snapshot = take_snapshot(database)
    data = snapshot.path.read_bytes()
    sidecar = json.loads(snapshot.path.with_suffix(".json").read_text())
    assert sidecar["size"] == len(data)
    assert sidecar["sha256"] == hashlib.sha256(data).hexdigest()
    assert sidecar["part_size"] == PART
    lead = 16 if mode == "client-aes256" else 0
    assert sidecar["part_checksums"] == checksums_of(data, sidecar, lead=lead)
    assert sidecar["database"] == "production"
    assert snapshot.filename == f"backup-{sidecar['stamp']}.db"
    if mode == "client-aes256":
        assert sidecar["mac"] == seal_of(snapshot, KEY)[1]
        assert KEY not in json.dumps(sidecar)
    else:
        assert (sidecar["iv"], sidecar["mac"], sidecar["key_fingerprint"]) == (None, None, None)
    assert find_snapshot(database, snapshot.filename) == snapshot


@pytest.fixture
def s3_settings():
    """``s3_settings(mode, key=KEY, part=5)``: the s3 object of an entry, of a store that is asked nothing."""

    def settings(mode, key=KEY, part=5):
        extra = {"encryptionKey": key} if mode == "client-aes256" else {}
        return {
            "enabled": True,
            "bucket": "bucket",
            "region": "us-east-1",
            "accessKeyId": "id",
            "secretAccessKey": "secret",
            "endpoint": "http://127.0.0.1:9",
            "encryption": mode,
            "partSizeMiB": part,
            **extra,
        }

    return settings


def test_each_snapshot_has_an_iv_of_its_own(installation, s3_settings, make_replica):
    installation.write(installation.entry(s3=s3_settings("client-aes256")))
    make_replica(installation.replica())
    snapshots = [take_snapshot(installation.database()) for _ in range(3)]
    assert len({snapshot.sha256 for snapshot in snapshots}) == 1
    assert len({snapshot.iv for snapshot in snapshots}) == 3
    assert all(len(bytes.fromhex(snapshot.iv)) == 16 for snapshot in snapshots)


def test_backups_are_for_their_owner_only_whatever_the_umask(production):
    before = os.umask(0)
    try:
        take_snapshot(production)
    finally:
        os.umask(before)
    modes_found = {name: oct((production.backup_dir / name).stat().st_mode & 0o777) for name in left(production)}
    assert set(modes_found.values()) == {"0o600"}
    assert production.backup_dir.stat().st_mode & 0o777 == 0o700


def test_two_databases_keep_their_backups_apart(installation, make_replica):
    installation.write(installation.entry("one"), installation.entry("two"))
    moment = datetime(2025, 3, 1, tzinfo=timezone.utc)
    taken = {}
    for seed, name in enumerate(["one", "two"]):
        make_replica(installation.replica(name), seed=seed)
        taken[name] = take_snapshot(installation.database(name), now=moment)
    assert taken["one"].path != taken["two"].path
    assert taken["one"].path.read_bytes() == installation.replica("one").read_bytes()
    assert taken["two"].path.read_bytes() == installation.replica("two").read_bytes()


def test_a_local_backup_that_lost_bytes_is_not_found_as_good(production):
    snapshot = take_snapshot(production)
    os.truncate(snapshot.path, snapshot.size - 1)
    with pytest.raises(DamagedError):
        find_snapshot(production, snapshot.filename)
    snapshot.path.with_suffix(".json").unlink()
    with pytest.raises(NotFoundError):
        find_snapshot(production, snapshot.filename)


# ---- damage ------------------------------------------------------------------------------------------------


def test_a_damaged_replica_makes_no_backup_and_the_older_ones_stay(production, query_replica):
    take_snapshot(production)
    older = contents(production)
    [[block]] = query_replica(
        production.replica,
        "SELECT max(block_id) FROM pragma_storage_info('orders') WHERE column_name = 'note' AND persistent",
    )
    flip(production.replica, FIRST_BLOCK + block * BLOCK + 1000)
    damaged = production.replica.read_bytes()
    with pytest.raises(DamagedError) as caught:
        take_snapshot(production)
    assert str(block) in str(caught.value)
    assert str(production.replica) in str(caught.value)
    assert not caught.value.retryable
    assert contents(production) == older
    assert production.replica.read_bytes() == damaged


@pytest.mark.parametrize("position", [100, 4096 + 100, 8192 + 100])
def test_a_damaged_header_makes_no_backup(production, position):
    flip(production.replica, position)
    with pytest.raises(DamagedError) as caught:
        take_snapshot(production)
    assert str(production.replica) in str(caught.value)
    assert left(production) == []


@pytest.mark.parametrize("cut", [1, BLOCK, 3 * BLOCK + 17])
def test_a_replica_that_lost_its_end_makes_no_backup(production, cut):
    os.truncate(production.replica, production.replica.stat().st_size - cut)
    with pytest.raises(DamagedError) as caught:
        take_snapshot(production)
    assert str(production.replica) in str(caught.value)
    assert left(production) == []


def test_a_bad_block_of_an_index_is_damage_although_every_table_reads_well(installation, query_replica, sql):
    replica = installation.replica()
    sql(
        f"ATTACH '{replica}' AS r (STORAGE_VERSION 'v1.5.0')",
        "CREATE TABLE r.t AS SELECT range AS i FROM range(200000)",
        "CREATE INDEX of_t ON r.t (i)",
        "CHECKPOINT r",
    )
    installation.write(installation.entry())
    index = unreferenced(query_replica, replica, "t")
    assert index
    flip(replica, FIRST_BLOCK + index[0] * BLOCK + 5000)
    assert query_replica(replica, "SELECT count(*), bit_xor(hash(i)) IS NOT NULL FROM t") == [[200_000, True]]
    with pytest.raises(DamagedError) as caught:
        take_snapshot(installation.database())
    assert f"({index[0]})" in str(caught.value)
    assert "index" in str(caught.value)
    assert left(installation.database()) == []


def unreferenced(query_replica, replica, table):
    """Blocks that hold neither metadata nor rows of `table`."""
    [[blocks]] = query_replica(replica, "SELECT total_blocks FROM pragma_database_size()")
    used = query_replica(
        replica,
        f"SELECT block_id FROM pragma_storage_info('{table}') WHERE persistent "
        "UNION SELECT block_id FROM pragma_metadata_info()",
    )
    return sorted({*range(blocks)} - {block for [block] in used})


def test_a_torn_free_block_does_not_prevent_a_backup(installation, query_replica, sql):
    replica = installation.replica()
    sql(
        f"ATTACH '{replica}' AS r (STORAGE_VERSION 'v1.5.0')",
        "CREATE TABLE r.gone AS SELECT md5(range::VARCHAR) AS note FROM range(100000)",
        "CREATE TABLE r.stays AS SELECT md5(range::VARCHAR) AS note FROM range(100000)",
        "CHECKPOINT r",
        "DROP TABLE r.gone",
        "CHECKPOINT r",
    )
    installation.write(installation.entry())
    [[free]] = query_replica(replica, "SELECT free_blocks FROM pragma_database_size()")
    unused = unreferenced(query_replica, replica, "stays")
    assert len(unused) == free > 0
    flip(replica, FIRST_BLOCK + unused[0] * BLOCK + 1000)
    snapshot = take_snapshot(installation.database())
    assert snapshot.path.read_bytes() == replica.read_bytes()


# ---- no replica --------------------------------------------------------------------------------------------


def _missing(path):
    assert not path.exists()


def _empty(path):
    path.touch()


def _text(path):
    path.write_text("id,name\n" * 10_000)


def _folder(path):
    path.mkdir()


def _dangling(path):
    path.symlink_to(path.with_name("nowhere.db"))


def _pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_missing, _empty, _text, _folder, _dangling, _pipe])
def test_without_a_usable_replica_there_is_an_error_with_its_path_and_nothing_else(installation, make):
    installation.write(installation.entry())
    make(installation.replica())
    database = installation.database()
    with pytest.raises(ReplicaError) as caught:
        take_snapshot(database)
    assert str(database.replica) in str(caught.value)
    assert left(database) == []


def test_a_missing_folder_of_the_replica_is_named(installation):
    installation.write(installation.entry(duckdbPath=str(installation.data_path / "nowhere" / "x.db")))
    with pytest.raises(DucklingError) as caught:
        take_snapshot(installation.database())
    assert "nowhere" in str(caught.value)
    assert left(installation.database()) == []


def test_a_backup_folder_that_cannot_be_made_is_named(installation, make_replica):
    installation.write(installation.entry())
    make_replica(installation.replica())
    installation.backup_path.write_text("in the way")
    with pytest.raises(DucklingError) as caught:
        take_snapshot(installation.database())
    assert str(installation.backup_path) in str(caught.value)


# ---- no space ----------------------------------------------------------------------------------------------


def test_too_little_space_is_found_before_anything_is_written(production, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(NoSpaceError) as caught:
        take_snapshot(production)
    size = production.replica.stat().st_size
    assert (caught.value.needed, caught.value.free) == (size, 1_000_000)
    assert "for the file + 16.0 MiB margin), 976.6 KiB free" in str(caught.value)
    assert left(production) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here: the limit of file sizes is tested in its stead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_small_disk_is_refused_with_both_numbers(installation, big_replica, small_disk, monkeypatch):
    monkeypatch.setenv("BACKUP_PATH", str(small_disk / "backups"))
    installation.write(installation.entry())
    big_replica(installation.replica())
    database = installation.database()
    with pytest.raises(NoSpaceError) as caught:
        take_snapshot(database)
    assert caught.value.needed == installation.replica().stat().st_size
    assert caught.value.free <= 40 << 20
    assert left(database) == []


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(installation, big_replica, small_disk, monkeypatch):
    monkeypatch.setenv("BACKUP_PATH", str(small_disk / "backups"))
    installation.write(installation.entry())
    replica = big_replica(installation.replica())
    database = installation.database()
    other = small_disk / "another program's"
    usage = shutil.disk_usage(small_disk)
    # At the check there is room enough; then another program takes it.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))

    def progress(step, done, _total):
        if step == "snapshot" and done == 0:
            other.write_bytes(b"x" * (25 << 20))

    with pytest.raises(NoSpaceError) as caught:
        take_snapshot(database, control=Control(progress))
    assert caught.value.needed == replica.stat().st_size
    assert left(database) == []
    assert other.stat().st_size == 25 << 20


def test_a_limit_on_file_sizes_is_an_error_of_space_and_leaves_nothing(installation, big_replica, start_child):
    installation.write(installation.entry())
    replica = big_replica(installation.replica())
    child = start_child(_LIMITED_SNAPSHOT)
    assert child.end() == (0, [f"NoSpaceError {replica.stat().st_size}"])
    assert left(installation.database()) == []


# ---- crashes -----------------------------------------------------------------------------------------------


def test_what_a_killed_snapshot_left_is_removed_by_the_next(installation, big_replica, start_child):
    installation.write(installation.entry())
    big_replica(installation.replica())
    database = installation.database()
    child = start_child(_SLOW_SNAPSHOT)
    assert child.line() == "copying"
    child.kill()
    [partial] = left(database)
    assert partial.endswith(".partial")
    snapshot = take_snapshot(database, wait=0)
    assert left(database) == [snapshot.filename, snapshot.path.with_suffix(".json").name]


def test_a_living_snapshot_is_left_alone_by_another(installation, big_replica, start_child):
    installation.write(installation.entry())
    big_replica(installation.replica())
    database = installation.database()
    child = start_child(_SLOW_SNAPSHOT)
    assert child.line() == "copying"
    with pytest.raises(BusyError) as caught:
        take_snapshot(database, wait=0.3)
    assert f"PID {child.pid}" in str(caught.value)
    [partial] = left(database)
    assert partial.endswith(".partial")
    code, lines = child.end()
    assert code == 0
    assert find_snapshot(database, lines[-1]).path.read_bytes() == installation.replica().read_bytes()


def test_a_snapshot_whose_file_is_cleared_away_at_birth_begins_again(production, monkeypatch):
    # Between a file's creation and its lock another process may take it for one that a killed snapshot left.
    flock, cleared = fcntl.flock, []

    def clear_first(fd, operation):
        if not cleared and list(production.backup_dir.glob("*.partial")):
            cleared.append(fd)
            clear_partials(production.backup_dir)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", clear_first)
    snapshot = take_snapshot(production)
    assert cleared
    assert snapshot.path.read_bytes() == production.replica.read_bytes()


def test_a_file_without_a_sidecar_is_somebody_else_s_and_stays(production):
    production.backup_dir.mkdir(parents=True)
    other = production.backup_dir / "backup-2025-03-02T00-00-00-000Z.db"
    other.write_bytes(b"brought here by hand")
    _age(other)
    take_snapshot(production)
    assert other.read_bytes() == b"brought here by hand"


def test_a_sidecar_whose_copy_never_came_is_removed_unless_it_is_in_the_making(production):
    production.backup_dir.mkdir(parents=True)
    living, dead, other = (
        production.backup_dir / name
        for name in ("backup-2025-03-01T00-00-00-000Z.json", "backup-2025-03-02T00-00-00-000Z.json", "backup-plan.json")
    )
    for path in (living, dead, other):
        path.write_text("{}")
    with living.with_suffix(".db.partial").open("w") as partial:
        fcntl.flock(partial, fcntl.LOCK_EX)
        take_snapshot(production)
        assert (living.exists(), dead.exists(), other.exists()) == (True, False, True)


def _age(path):
    long_ago = (datetime.now(timezone.utc) - timedelta(hours=2)).timestamp()
    os.utime(path, (long_ago, long_ago))


def test_snapshots_of_one_replica_queue_up(production):
    taken = []

    def take(number):
        taken.append(take_snapshot(production, now=datetime(2025, 3, 1, 0, 0, number, tzinfo=timezone.utc)))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({snapshot.filename for snapshot in taken}) == 3
    assert {snapshot.sha256 for snapshot in taken} == {hashlib.sha256(production.replica.read_bytes()).hexdigest()}


# ---- the configuration changes between snapshot and upload -------------------------------------------------


CHANGES = {
    "encryption is switched on": (("none",), ("client-aes256",)),
    "encryption is switched off": (("client-aes256",), ("none",)),
    "another key": (("client-aes256", KEY), ("client-aes256", OTHER_KEY)),
    "other parts": (("client-aes256", KEY, 5), ("client-aes256", KEY, 9)),
    "other parts, not encrypted": (("none", KEY, 5), ("none", KEY, 9)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_configuration_seals_the_same_bytes_anew(installation, s3_settings, medium_replica, change):
    before, after = CHANGES[change]
    installation.write(installation.entry(s3=s3_settings(*before)))
    replica = medium_replica(installation.replica())
    taken = take_snapshot(installation.database())
    installation.write(installation.entry(s3=s3_settings(*after)))
    database = installation.database()
    store = MemoryStore(prefix="production/", mode=after[0])
    upload_snapshot(database, store, taken)
    sealed = find_snapshot(database, taken.filename)
    _, stored = store.objects[f"production/{taken.filename}"]
    if after[0] == "none":
        assert sealed.iv is None
        assert list(store.objects) == [f"production/{taken.filename}"]
        assert stored == replica.read_bytes()
    else:
        assert sealed.iv != taken.iv
        key = after[1] if len(after) > 1 else KEY
        expected, mac = seal_of(sealed, key)
        assert stored == expected
        assert store.objects[f"production/{taken.filename}.mac"][1] == mac.encode()
    assert sealed.part_size == (9 << 20 if len(after) > 2 else PART)
    assert list(sealed.part_checksums) == checksums_of(
        replica.read_bytes(), dataclasses.asdict(sealed), lead=16 if after[0] == "client-aes256" else 0
    )
    unchanged = {"iv", "mac", "key_fingerprint", "part_size", "part_checksums", "checksum_key"}
    fields = [field.name for field in dataclasses.fields(sealed) if field.name not in unchanged]
    assert [getattr(sealed, name) for name in fields] == [getattr(taken, name) for name in fields]


def test_an_unchanged_configuration_keeps_the_iv(installation, s3_settings, make_replica):
    installation.write(installation.entry(s3=s3_settings("client-aes256")))
    make_replica(installation.replica())
    database = installation.database()
    taken = take_snapshot(database)
    store = MemoryStore(prefix="production/", mode="client-aes256")
    upload_snapshot(database, store, taken)
    assert find_snapshot(database, taken.filename) == taken
    assert store.objects[f"production/{taken.filename}"][1] == seal_of(taken, KEY)[0]


def test_a_copy_that_was_altered_is_not_sealed_anew(installation, s3_settings, make_replica):
    installation.write(installation.entry(s3=s3_settings("none")))
    make_replica(installation.replica())
    taken = take_snapshot(installation.database())
    flip(taken.path, 100_000)
    installation.write(installation.entry(s3=s3_settings("client-aes256")))
    store = MemoryStore(prefix="production/", mode="client-aes256")
    sidecar = Path(taken.path.with_suffix(".json")).read_bytes()
    with pytest.raises(DamagedError):
        upload_snapshot(installation.database(), store, taken)
    assert store.objects == {}
    assert taken.path.with_suffix(".json").read_bytes() == sidecar
