"""A restore ends with the whole backup in the replica's place and nothing of the old one beside it, or with the replica
as it was, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.metadata import describe
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.restore_plan import plan_restore
from duckling_provider.backup.retention.clean_up import clean_up
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import MARGIN
from duckling_provider.base.durable_files import make_folder, partial_file, write_durably
from duckling_provider.base.errors import (
    BusyError,
    CancelledError,
    DamagedError,
    DucklingError,
    IntegrityError,
    ModeError,
    NoSpaceError,
    NotFoundError,
    ReplicaError,
    RequestError,
    StateFileError,
    StoreError,
    WrongKeyError,
)
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, NEW_SUFFIX
from duckling_provider.replica.locks import HOLD_SUFFIX, LOCK_SUFFIX, place_hold, read_hold, replica_lock
from duckling_provider.replica.origin import ORIGIN_SUFFIX
from duckling_provider.stores.s3 import open_store
from duckling_provider.stores.store import BytesBody

KEY = "c4" * 32
OTHER_KEY = "5d" * 32
IV = bytes(range(16))
NAME = "backup-2025-03-01T14-32-11-482Z.db"
OBJECT = f"production/{NAME}"
OLDER = "production/backup-2025-02-01T00-00-00-000Z.db"
NEWER = "production/backup-2025-04-01T00-00-00-000Z.db"
VECTORS = Path(__file__).parents[2] / "vectors" / "client-aes256"
STORAGES = ["v1.0.0", "v1.5.0"]
BLOCK, FIRST_BLOCK = 262_144, 12_288
WAL_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery")

# ---- what children do --------------------------------------------------------------------------------------

_WRITER = """
import sys
import duckdb

connection = duckdb.connect(sys.argv[1])
connection.execute("INSERT INTO customers SELECT -1000, 'live', 0, now()")
print("writing")
sys.stdin.readline()
print(connection.execute("SELECT count(*) FROM customers").fetchone()[0])
connection.close()
"""

_READER = """
import sys
import duckdb

connection = duckdb.connect(sys.argv[1], read_only=True)
print("reading")
sys.stdin.readline()
print(connection.execute("SELECT count(*), bit_xor(hash(note)) IS NOT NULL FROM orders").fetchone())
"""

_LOCAL_RESTORE = """
import os, resource, signal, sys
from duckling_provider import config
from duckling_provider.base.cancellation import Control
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.restore_plan import plan_restore

database = config.load().database("production")
how = sys.argv[1]
control = Control()
if how == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
elif how == "killed":
    control = Control(lambda step, done, total: done and os.kill(os.getpid(), signal.SIGKILL))
try:
    restore_backup(database, LocalBackups(database), wait=0, control=control)
except Exception as error:
    print(type(error).__name__, error)
"""

_ENCRYPTED = """
import sys
import duckdb

connection = duckdb.connect()
connection.execute("SET force_mbedtls_unsafe = 'true'")
connection.execute(f"ATTACH '{sys.argv[1]}' AS r (ENCRYPTION_KEY 'x')")
if sys.argv[2] == "make":
    connection.execute("CREATE TABLE r.t AS SELECT range AS i FROM range(10000)")
else:
    print(connection.execute("SELECT sum(i) FROM r.t").fetchone()[0])
connection.close()
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout


# ---- what a bucket holds -----------------------------------------------------------------------------------


def encrypt(plain: bytes, *, key: str = KEY) -> tuple[bytes, bytes]:
    """The object and its ``.mac`` of the contract, made by the libraries themselves."""
    raw = bytes.fromhex(key)
    stored = IV + Cipher(algorithms.AES(raw), modes.CTR(IV)).encryptor().update(plain)
    return stored, hmac.new(raw, stored, hashlib.sha256).hexdigest().encode()


class Bucket(MemoryStore):
    """A memory store that remembers which bytes of objects were asked for, and is filled by hand."""

    def __init__(self, mode: str) -> None:
        super().__init__(prefix="production/", mode=mode)
        self.asked: list[tuple[str, int, int]] = []

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> BinaryIO:
        self.asked.append((key, start, stop))
        return super().open_range(key, start, stop, etag=etag)

    def was_downloaded(self) -> bool:
        """Whether more than the first bytes and the end of an object, which tells its format, were asked for."""
        return any(stop - start > 64 << 10 for _, start, stop in self.asked)

    def add(self, plain: bytes, key: str = OBJECT, *, metadata: bool = True, database: str = "production") -> None:
        """A backup as a complete upload leaves it, with or without the store's memory for metadata."""
        if self.mode == "client-aes256":
            stored, mac = encrypt(plain)
            self.put(f"{key}.mac", BytesBody(mac), content_type="text/plain")
            proof = {"fingerprint": EncryptionKey.parse(KEY).fingerprint}
        else:
            stored, proof = plain, {"sha256": hashlib.sha256(plain).hexdigest()}
        told = describe(mode=self.mode, size=len(plain), database=database, **proof) if metadata else {}
        self.put(key, BytesBody(stored), metadata=told)

    def bytes_of(self, key: str = OBJECT) -> bytearray:
        return bytearray(self.objects[key][1])

    def spoil(self, content: bytes, key: str = OBJECT) -> None:
        """Other bytes under the same name and metadata."""
        known = self.objects[key][0]
        self.objects[key] = (dataclasses.replace(known, size=len(content), etag="spoiled"), bytes(content))

    def flip(self, position: int) -> None:
        content = self.bytes_of()
        content[position] ^= 1
        self.spoil(content)


# ---- the site ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Site:
    """An installation whose replica has a write-ahead log of its own, and what its bucket is to hold."""

    installation: Any
    good: bytes
    mode: str = "none"

    @property
    def replica(self) -> Path:
        return Path(self.installation.replica())

    @property
    def folder(self) -> Path:
        return Path(self.installation.data_path)

    def database(self, *, key: str = KEY, **fields: Any) -> Any:
        s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
        s3["encryption"] = self.mode
        if self.mode == "client-aes256":
            s3["encryptionKey"] = key
        self.installation.write(self.installation.entry(s3=s3, **fields))
        return self.installation.database()

    def bucket(self, *, metadata: bool = True) -> Bucket:
        """A bucket with one good backup in it."""
        bucket = Bucket(self.mode)
        bucket.add(self.good, metadata=metadata)
        return bucket

    def contents(self) -> dict[str, bytes]:
        """Everything beside the replica; lock file and identity stay for ever, and the configuration is the test's."""
        return {
            path.name: path.read_bytes()
            for path in self.folder.iterdir()
            if path.is_file() and not path.name.endswith((LOCK_SUFFIX, ORIGIN_SUFFIX)) and path.name != "databases.json"
        }

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The claim about failures: replica and log byte-identical, no temporary file, no journal, no hold."""
        before, inode = self.contents(), self.replica.stat().st_ino
        assert self.replica.name in before
        yield
        assert self.contents() == before
        assert self.replica.stat().st_ino == inode


@dataclasses.dataclass(frozen=True)
class Files:
    good: dict[str, bytes]
    old: dict[str, bytes]
    old_wal: dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, make_replica: Callable[..., Path]) -> Files:
    """By storage version: a backup's file of 50 customers, and an old replica of 20 and 10 more in its log."""
    home = tmp_path_factory.mktemp("files")
    made = Files({}, {}, {})
    for storage in STORAGES:
        old = make_replica(home / storage / "old.db", rows=20, seed=1, storage=storage, wal=True)
        made.old[storage] = old.read_bytes()
        made.old_wal[storage] = old.with_name("old.db.wal").read_bytes()
        made.good[storage] = make_replica(home / storage / "good.db", rows=50, seed=2, storage=storage).read_bytes()
    return made


@pytest.fixture
def make_site(installation: Any, files: Files) -> Callable[..., Site]:
    def make(mode: str = "none", *, storage: str = "v1.5.0") -> Site:
        site = Site(installation, files.good[storage], mode)
        site.replica.write_bytes(files.old[storage])
        site.replica.with_name("production.db.wal").write_bytes(files.old_wal[storage])
        return site

    return make


COUNT = "SELECT count(*), count(*) FILTER (id < 0) FROM customers"
MODES = ["none", "client-aes256"]

# ---- the replica comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_no_log_of_the_old_replica_reaches_the_new_one(
    make_site: Callable[..., Site], query_replica: Any, tmp_path: Path, storage: str
):
    site = make_site(storage=storage)
    for suffix in WAL_SUFFIXES[1:]:
        shutil.copyfile(f"{site.replica}.wal", f"{site.replica}{suffix}")
    if storage == "v1.0.0":
        # What is at stake: put beside the new file by hand, the old log brings rows that the backup never had.
        trap = tmp_path / "trap.db"
        trap.write_bytes(site.good)
        shutil.copyfile(f"{site.replica}.wal", f"{trap}.wal")
        assert query_replica(trap, COUNT) == [[60, 10]]

    result = restore_backup(site.database(), site.bucket(), wait=0)
    assert site.contents() == {"production.db": site.good}
    assert query_replica(site.replica, COUNT) == [[50, 0]]
    assert (result.key, result.size, result.replaced, result.kept) == (OBJECT, len(site.good), site.replica, None)


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
@pytest.mark.parametrize("mode", MODES)
def test_a_backup_restores_also_from_a_store_that_forgets_metadata(
    make_site: Callable[..., Site], mode: str, *, metadata: bool
):
    site = make_site(mode)
    restore_backup(site.database(), site.bucket(metadata=metadata), OBJECT, wait=0)
    assert site.contents() == {"production.db": site.good}


@pytest.mark.server
@pytest.mark.parametrize("mode", MODES)
def test_title_case_metadata_is_understood(make_site: Callable[..., Site], s3_server: Any, mode: str):
    """rclone is one of the stores that answer with ``X-Amz-Meta-Duckling-Mode``."""
    site = make_site(mode)
    bucket = s3_server.new_bucket()
    extra = {"encryptionKey": KEY} if mode == "client-aes256" else {}
    site.installation.write(site.installation.entry(s3=s3_server.s3(bucket, encryption=mode, **extra)))
    database = site.installation.database()
    store = open_store(database)
    key = upload_snapshot(database, store, take_snapshot(database)).key
    metadata = s3_server.client().head_object(Bucket=bucket, Key=key)["Metadata"]
    assert metadata["Duckling-Mode"] == mode
    expected = site.replica.read_bytes()

    site.replica.write_bytes(b"lost")
    assert restore_backup(database, store, wait=0).key == key
    assert site.contents() == {"production.db": expected}

    # And it is not only understood where it agrees.
    spoiled = {**metadata, "Duckling-Size": "1"}
    body = s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    s3_server.client().put_object(Bucket=bucket, Key=key, Body=body, Metadata=spoiled)
    with site.untouched(), pytest.raises(IntegrityError, match="of a file that had 1"):
        restore_backup(database, store, wait=0)


@pytest.mark.server
@pytest.mark.parametrize("mode", ["none", "sse-s3", "sse-kms", "client-aes256"])
def test_every_mode_comes_back_from_a_store_in_many_parts(
    installation: Any, moto_server: Any, medium_replica: Callable[[Path], Path], mode: str
):
    extra = {"encryptionKey": KEY} if mode == "client-aes256" else {}
    s3 = moto_server.s3(moto_server.new_bucket(), encryption=mode, partSizeMiB=5, **extra)
    installation.write(installation.entry(s3=s3))
    database = installation.database()
    replica = medium_replica(installation.replica())
    expected = replica.read_bytes()
    store = open_store(database)
    upload_snapshot(database, store, take_snapshot(database))
    replica.write_bytes(b"lost")
    progress: list[tuple[int, int]] = []
    restore_backup(database, store, wait=0, control=Control(lambda _, done, total: progress.append((done, total))))
    assert replica.read_bytes() == expected
    size = len(expected) + (16 if mode == "client-aes256" else 0)
    assert progress[-1] == (size, size)


@pytest.mark.parametrize("text", ["\n", "\r\n", "  "])
def test_white_space_around_the_mac_is_none_of_it(make_site: Callable[..., Site], text: str):
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.spoil(text.encode() + encrypt(site.good)[1].upper() + text.encode(), f"{OBJECT}.mac")
    restore_backup(site.database(), bucket, wait=0)
    assert site.contents() == {"production.db": site.good}


def test_an_object_made_by_another_implementation_restores(make_site: Callable[..., Site], query_replica: Any):
    site = make_site("client-aes256")
    key = json.loads((VECTORS / "key.json").read_text())["encryptionKey"]
    bucket = Bucket("client-aes256")
    for name in (NAME, f"{NAME}.mac"):
        bucket.put(f"production/{name}", BytesBody((VECTORS / name).read_bytes()))
    restore_backup(site.database(key=key), bucket, NAME, wait=0)
    assert site.contents() == {"production.db": (VECTORS / "replica.db").read_bytes()}
    assert query_replica(site.replica, "SELECT count(*) > 0 FROM duckdb_tables()") == [[True]]


def test_a_file_encrypted_by_duckdb_comes_back_byte_for_byte(make_site: Callable[..., Site]):
    site = make_site("client-aes256")
    for path in (site.replica, site.replica.with_name("production.db.wal")):
        path.unlink()
    run(_ENCRYPTED, site.replica, "make")
    database, store = site.database(), Bucket("client-aes256")
    expected = site.replica.read_bytes()
    upload_snapshot(database, store, take_snapshot(database))
    site.replica.write_bytes(b"lost")
    restore_backup(database, store, wait=0)
    assert site.contents() == {"production.db": expected}
    assert run(_ENCRYPTED, site.replica, "sum").split() == [str(sum(range(10_000)))]


def test_a_local_backup_restores(make_site: Callable[..., Site], query_replica: Any):
    site = make_site("client-aes256")
    database = site.database()
    snapshot = take_snapshot(database)
    expected = snapshot.path.read_bytes()
    for key in ("latest", snapshot.filename):
        site.replica.write_bytes(b"lost")
        assert restore_backup(database, LocalBackups(database), key, wait=0).key == snapshot.filename
        assert site.contents() == {"production.db": expected}
    assert query_replica(site.replica, COUNT) == [[30, 10]]  # the log of then is part of the backup
    assert snapshot.path.read_bytes() == expected


def test_a_damaged_local_backup_is_refused(make_site: Callable[..., Site]):
    site = make_site()
    database = site.database()
    snapshot = take_snapshot(database)
    content = bytearray(snapshot.path.read_bytes())
    content[len(content) // 2] ^= 1
    snapshot.path.write_bytes(content)
    with site.untouched(), pytest.raises(IntegrityError, match="SHA-256"):
        restore_backup(database, LocalBackups(database), wait=0)


# ---- which backup ------------------------------------------------------------------------------------------


def test_latest_is_the_newest_complete_one(make_site: Callable[..., Site]):
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.add(site.good, OLDER)
    bucket.add(site.good, NEWER)
    bucket.delete(f"{NEWER}.mac")
    assert restore_backup(site.database(), bucket, wait=0).key == OBJECT


def test_the_newest_before_a_time_is_taken(make_site: Callable[..., Site], files: Files):
    site = make_site()
    bucket = site.bucket()
    bucket.add(files.old["v1.5.0"], OLDER)
    limit = datetime(2025, 3, 1, 14, 32, 11, 482_000, tzinfo=timezone.utc)
    assert restore_backup(site.database(), bucket, before=limit, wait=0).key == OLDER
    assert site.contents() == {"production.db": files.old["v1.5.0"]}


def test_what_can_not_be_resolved_is_refused(make_site: Callable[..., Site]):
    site = make_site()
    bucket, database = site.bucket(), site.database()
    ancient = datetime(2024, 1, 1, tzinfo=timezone.utc)
    with site.untouched():
        with pytest.raises(NotFoundError, match="2025-03-01"):
            restore_backup(database, bucket, before=ancient, wait=0)
        with pytest.raises(NotFoundError, match="no backup"):
            restore_backup(database, Bucket("none"), wait=0)
        with pytest.raises(NotFoundError, match="no such object"):
            restore_backup(database, bucket, OLDER, wait=0)
        with pytest.raises(DucklingError, match="a key and a time"):
            restore_backup(database, bucket, OBJECT, before=ancient, wait=0)


@pytest.mark.parametrize(
    "key",
    [
        f"staging/{NAME}",
        f"production/../staging/{NAME}",
        f"../{NAME}",
        f"/production/{NAME}",
        f"production/{NAME}.mac",
        "production/",
        "",
    ],
)
def test_a_key_outside_the_prefix_is_refused_before_the_store_is_asked(make_site: Callable[..., Site], key: str):
    site = make_site()
    bucket = site.bucket()
    bucket.add(site.good, f"staging/{NAME}")
    with site.untouched(), pytest.raises(DucklingError):
        restore_backup(site.database(), bucket, key, wait=0)
    assert bucket.asked == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("claimed", ["zzz", "", "Client-AES256", "client-aes512"])
def test_a_mode_that_this_program_does_not_know_is_told_as_such(
    make_site: Callable[..., Site], mode: str, claimed: str
):
    site = make_site(mode)
    bucket = site.bucket()
    stored, data = bucket.objects[OBJECT]
    metadata = {**stored.metadata, "duckling-mode": claimed}
    bucket.objects[OBJECT] = (dataclasses.replace(stored, metadata=metadata), data)
    with site.untouched(), pytest.raises(ModeError, match=f"its duckling-mode '{claimed}' is none that") as caught:
        restore_backup(site.database(), bucket, OBJECT, wait=0)
    assert "Upgrade" in (caught.value.hint or "")


def test_another_database_s_backup_is_taken_only_by_its_name(make_site: Callable[..., Site]):
    """Two entries may share a prefix by mistake; after a rename the old backups are still wanted."""
    site = make_site()
    bucket = Bucket("none")
    bucket.add(site.good, database="staging")
    with site.untouched(), pytest.raises(ModeError, match="staging"):
        restore_backup(site.database(), bucket, wait=0)
    assert not bucket.was_downloaded()
    restore_backup(site.database(), bucket, OBJECT, wait=0)
    assert site.contents() == {"production.db": site.good}


# ---- a damaged one and the next good one -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_newest_backup_names_the_next_good_one_and_fallback_takes_it(
    make_site: Callable[..., Site], caplog: pytest.LogCaptureFixture, mode: str, damage: str
):
    site = make_site(mode)
    bucket, database = site.bucket(), site.database()
    for key in (NEWER, "production/backup-2025-03-15T00-00-00-000Z.db"):
        bucket.add(site.good, key)
        whole = bucket.bytes_of(key)
        if key != NEWER or damage == "cut":
            bucket.spoil(whole[:-1000], key)
        elif damage == "empty":
            bucket.spoil(b"", key)
        else:
            whole[len(whole) // 2] ^= 1
            bucket.spoil(whole, key)
    bucket.add(site.good, OLDER)
    # By the name and by latest alike, and the cut one between the two is no advice.
    for key in (NEWER, "latest"):
        caplog.clear()
        with site.untouched(), pytest.raises(IntegrityError) as caught:
            restore_backup(database, bucket, key, wait=0)
        assert caught.value.subject == bucket.url + NEWER
        assert f"looks whole is {NAME}" in (caught.value.hint or "")
        # What was only looked at for the advice was not taken.
        assert f"{OBJECT} is taken" not in caplog.text
        assert ("is taken" in caplog.text) == (key == "latest")
    result = restore_backup(database, bucket, fallback=True, wait=0)
    assert result.key == OBJECT
    assert f"{OBJECT} is taken" in caplog.text
    assert site.contents() == {"production.db": site.good}


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_line_costs_no_newer_backup(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, mode: str):
    site = make_site(mode)
    bucket, database = site.bucket(), site.database()
    bucket.add(site.good, NEWER)
    honest, spoiled = bucket.open_range, []

    def once(key: str, start: int, stop: int, *, etag: str = "") -> Any:
        stream = honest(key, start, stop, etag=etag)
        if key != NEWER or stop - start < 1000 or spoiled:
            return stream
        spoiled.append(start)
        data = bytearray(stream.read())
        data[-1] ^= 1
        return io.BytesIO(bytes(data))

    monkeypatch.setattr(bucket, "open_range", once)
    with site.untouched(), pytest.raises(StoreError, match="two readings of it differ") as caught:
        restore_backup(database, bucket, fallback=True, wait=0)
    assert caught.value.retryable
    spoiled.clear()
    with site.untouched(), pytest.raises(IntegrityError, match="verification failed") as found:
        restore_backup(database, bucket, wait=0)
    assert f"duckling verify production {NEWER.rpartition('/')[2]} tells" in (found.value.hint or "")
    assert restore_backup(database, bucket, fallback=True, wait=0).key == NEWER


def test_the_fallback_of_a_restore_to_elsewhere_leaves_nothing_else_there(
    make_site: Callable[..., Site], tmp_path: Path
):
    site = make_site()
    bucket = site.bucket()
    bucket.add(site.good, NEWER)
    damaged = bucket.bytes_of(NEWER)
    damaged[len(damaged) // 2] ^= 1
    bucket.spoil(damaged, NEWER)
    target = tmp_path / "there" / "copy.db"
    target.parent.mkdir()
    assert restore_backup(site.database(), bucket, to=target, fallback=True).key == OBJECT
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"copy.db": site.good}


def test_what_a_killed_restore_left_in_the_name_is_removed_by_the_next(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    database, to = site.database(), tmp_path / "copy.db"
    left = to.with_name(f"copy.db{NEW_SUFFIX}")
    note = database.backup_dir / "restoring-0123abcd.json"
    make_folder(note.parent)
    for path, content in ((to, b""), (left, b"a part"), (note, b'{"download": "%s", "naming": true}' % bytes(left))):
        write_durably(path, content)
    assert restore_backup(database, site.bucket(), to=to).replaced == to
    assert (to.read_bytes(), left.exists(), note.exists()) == (site.good, False, False)


@pytest.mark.parametrize("fallback", [False, True])
def test_where_none_is_good_the_first_one_s_damage_is_told(make_site: Callable[..., Site], *, fallback: bool):
    site = make_site()
    bucket = site.bucket()
    bucket.spoil(bucket.bytes_of()[:-1000])
    with site.untouched(), pytest.raises(IntegrityError, match="of a file that had") as caught:
        restore_backup(site.database(), bucket, fallback=fallback, wait=0)
    assert "looks whole" not in str(caught.value)


def test_what_is_refused_was_not_taken(make_site: Callable[..., Site], caplog: pytest.LogCaptureFixture):
    """The newest needs another key: the older one is not meant, and no line says that it is taken."""
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.add(site.good, OLDER)
    record_state(site.database(), bucket, bucket.head(OLDER), "verified", means="full")
    bucket.objects[OBJECT] = (
        dataclasses.replace(
            bucket.objects[OBJECT][0],
            metadata={**bucket.objects[OBJECT][0].metadata, "duckling-key-fingerprint": "0" * 16},
        ),
        bucket.objects[OBJECT][1],
    )
    with site.untouched(), pytest.raises(WrongKeyError):
        restore_backup(site.database(), bucket, wait=0)
    assert "is taken" not in caplog.text


@pytest.mark.parametrize("suffix", [JOURNAL_SUFFIX, NEW_SUFFIX])
def test_a_plan_says_when_a_file_that_is_none_of_ours_is_in_the_way(make_site: Callable[..., Site], suffix: str):
    site = make_site()
    site.database().replica.with_name(f"production.db{suffix}").symlink_to("nowhere")
    with pytest.raises(StateFileError, match="is a symbolic link"):
        plan_restore(site.database(), site.bucket())
    with pytest.raises(StateFileError, match="is a symbolic link"):
        restore_backup(site.database(), site.bucket(), wait=0)


def test_a_wrong_key_is_no_damage_that_a_fallback_passes_over(make_site: Callable[..., Site]):
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.add(site.good, OLDER)
    with site.untouched(), pytest.raises(WrongKeyError):
        restore_backup(site.database(key=OTHER_KEY), bucket, fallback=True, wait=0)


def test_garbage_in_the_place_of_a_backup_is_passed_over(make_site: Callable[..., Site]):
    """Without metadata it looks like a wrong key, and that is not proven."""
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.add(site.good, NEWER, metadata=False)
    bucket.spoil(os.urandom(5000), NEWER)
    with site.untouched(), pytest.raises(WrongKeyError, match="or its first bytes are damaged") as caught:
        restore_backup(site.database(), bucket, wait=0)
    assert NAME in (caught.value.hint or "")
    assert restore_backup(site.database(), bucket, fallback=True, wait=0).key == OBJECT


def test_a_damaged_local_backup_falls_back_to_the_one_before(make_site: Callable[..., Site]):
    site = make_site()
    database = site.database()
    first = take_snapshot(database)
    newest = take_snapshot(database)
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    with site.untouched(), pytest.raises(DamagedError) as caught:
        restore_backup(database, LocalBackups(database), wait=0)
    assert first.filename in (caught.value.hint or "")
    assert restore_backup(database, LocalBackups(database), fallback=True, wait=0).key == first.filename


# ---- what it would do --------------------------------------------------------------------------------------


def test_a_plan_says_what_a_restore_would_do_and_writes_nothing(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site("client-aes256")
    bucket, database = site.bucket(), site.database()
    with site.untouched():
        plan = plan_restore(database, bucket)
    assert (plan.backup.key, plan.backup.size, plan.target) == (OBJECT, len(site.good), site.replica)
    assert plan.created == datetime(2025, 3, 1, 14, 32, 11, 482_000, tzinfo=timezone.utc)
    assert plan.backup.encryption_key is not None
    assert plan.backup.encryption_key.fingerprint == EncryptionKey.parse(KEY).fingerprint
    assert (plan.needed, plan.margin) == (len(site.good) + MARGIN, MARGIN)
    assert plan.old_size == site.replica.stat().st_size
    assert plan.newer_by > 0  # it was written today
    assert plan.holder is None
    assert not bucket.was_downloaded()

    # As old as the backup, and its log is younger: that counts.
    os.utime(site.replica, (plan.created.timestamp(), plan.created.timestamp()))
    assert plan_restore(database, bucket).newer_by > 0
    site.replica.with_name("production.db.wal").unlink()
    assert plan_restore(database, bucket).newer_by == 0

    site.replica.unlink()
    plan = plan_restore(database, bucket)
    assert (plan.old_size, plan.old_written, plan.newer_by) == (None, None, 0)
    assert plan_restore(database, bucket, to=tmp_path / "copy.db").target == tmp_path / "copy.db"
    with pytest.raises(DucklingError, match="folder does not exist"):
        plan_restore(database, bucket, to=tmp_path / "none" / "copy.db")


def test_a_plan_names_who_has_the_replica(make_site: Callable[..., Site]):
    site = make_site()
    bucket, database = site.bucket(), site.database()
    with replica_lock(site.replica, operation="sync", owner="a run"):
        assert f"PID {os.getpid()}, sync (a run)" in (plan_restore(database, bucket).holder or "")
    place_hold(site.replica, owner="another run", reason="restore", seconds=60)
    assert "another run" in (plan_restore(database, bucket).holder or "")


# ---- objects that are not what they should be --------------------------------------------------------------


def flip(position: int) -> Callable[[Bucket], None]:
    return lambda bucket: bucket.flip(position % len(bucket.bytes_of()))


def cut(count: int) -> Callable[[Bucket], None]:
    return lambda bucket: bucket.spoil(bucket.bytes_of()[:-count])


def keep(count: int) -> Callable[[Bucket], None]:
    return lambda bucket: bucket.spoil(bucket.bytes_of()[:count])


def extend(count: int) -> Callable[[Bucket], None]:
    return lambda bucket: bucket.spoil(bucket.bytes_of() + b"\0" * count)


def mac(content: bytes | None) -> Callable[[Bucket], None]:
    if content is None:
        return lambda bucket: bucket.delete(f"{OBJECT}.mac")
    return lambda bucket: bucket.spoil(content, f"{OBJECT}.mac")


def another_mac(bucket: Bucket) -> None:
    bucket.spoil(encrypt(b"another file")[1], f"{OBJECT}.mac")


def another_object(bucket: Bucket) -> None:
    """Complete, with the same key, and of the same length: only the mac is not of it."""
    plain = bucket.bytes_of()
    plain[len(plain) // 2] ^= 1
    bucket.spoil(plain)


ENCRYPTED_DAMAGE: Mapping[str, tuple[Callable[[Bucket], None], str]] = {
    "first byte of the IV": (flip(0), "first bytes are damaged|key is wrong"),
    "last byte of the IV": (flip(15), "first bytes are damaged|key is wrong"),
    "checksum of the header": (flip(16), "HMAC verification failed"),
    "magic of the header": (flip(16 + 8), "first bytes are damaged|key is wrong"),
    "first database header": (flip(16 + 4096 + 8), "HMAC verification failed"),
    "first block": (flip(16 + FIRST_BLOCK), "HMAC verification failed"),
    "middle": (flip(16 + FIRST_BLOCK + BLOCK + 777), "HMAC verification failed"),
    "last byte": (flip(-1), "HMAC verification failed"),
    "one byte short": (cut(1), "of a file that had|HMAC verification failed"),
    "one block short": (cut(BLOCK), "of a file that had|HMAC verification failed"),
    "IV only": (keep(16), "truncated"),
    "less than an IV": (keep(5), "truncated"),
    "empty": (keep(0), "truncated"),
    "one byte long": (extend(1), "of a file that had|HMAC verification failed"),
    "one block long": (extend(BLOCK), "of a file that had|HMAC verification failed"),
    "no mac": (mac(None), "mac is missing"),
    "empty mac": (mac(b""), "mac is not 64 hex characters"),
    "half a mac": (mac(b"ab" * 16), "mac is not 64 hex characters"),
    "no hex in the mac": (mac(b"xy" * 32), "mac is not 64 hex characters"),
    "a long mac": (mac(b"ab" * 9_999), "mac is not 64 hex characters"),
    "mac of another object": (another_mac, "HMAC verification failed"),
    "object of another mac": (another_object, "HMAC verification failed"),
}


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
@pytest.mark.parametrize("damage", ENCRYPTED_DAMAGE)
def test_a_damaged_encrypted_object_never_becomes_the_replica(
    make_site: Callable[..., Site], damage: str, *, metadata: bool
):
    site = make_site("client-aes256")
    bucket = site.bucket(metadata=metadata)
    spoil, message = ENCRYPTED_DAMAGE[damage]
    spoil(bucket)
    with site.untouched(), pytest.raises(IntegrityError, match=message) as caught:
        restore_backup(site.database(), bucket, OBJECT, wait=0)
    if metadata:
        assert not isinstance(caught.value, WrongKeyError)  # the key is provably the right one
    assert not caught.value.retryable
    assert caught.value.hint


PLAIN_DAMAGE: Mapping[str, tuple[Callable[[Bucket], None], str]] = {
    "checksum of the header": (flip(0), "SHA-256|no sound DuckDB file"),
    "magic of the header": (flip(8), "no DuckDB file"),
    "first database header": (flip(4096 + 8), "SHA-256|no sound DuckDB file"),
    "first block": (flip(FIRST_BLOCK), "SHA-256|blocks are missing or have a wrong checksum"),
    "middle": (flip(FIRST_BLOCK + BLOCK + 777), "SHA-256|blocks are missing or have a wrong checksum"),
    "last byte": (flip(-1), "SHA-256|blocks are missing or have a wrong checksum"),
    "one byte short": (cut(1), "of a file that had|blocks are missing|middle of a DuckDB block"),
    "one block short": (cut(BLOCK), "of a file that had|blocks are missing"),
    "header only": (keep(FIRST_BLOCK), "of a file that had|blocks are missing"),
    "half a header": (keep(5000), "of a file that had|no sound DuckDB file"),
    "twelve bytes": (keep(12), "of a file that had|no sound DuckDB file"),
    "empty": (keep(0), "no DuckDB file"),
    "one byte long": (extend(1), "of a file that had|middle of a DuckDB block"),
}


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
@pytest.mark.parametrize("damage", PLAIN_DAMAGE)
def test_a_damaged_plain_object_never_becomes_the_replica(
    make_site: Callable[..., Site], damage: str, *, metadata: bool
):
    site = make_site()
    bucket = site.bucket(metadata=metadata)
    spoil, message = PLAIN_DAMAGE[damage]
    spoil(bucket)
    with site.untouched(), pytest.raises(IntegrityError, match=message) as caught:
        restore_backup(site.database(), bucket, OBJECT, wait=0)
    assert not caught.value.retryable
    assert caught.value.hint


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
def test_a_wrong_key_is_told_before_the_download(make_site: Callable[..., Site], *, metadata: bool):
    site = make_site("client-aes256")
    bucket = site.bucket(metadata=metadata)
    with site.untouched(), pytest.raises(WrongKeyError, match=r"s3\.encryptionKey") as caught:
        restore_backup(site.database(key=OTHER_KEY), bucket, wait=0)
    assert not bucket.was_downloaded()
    assert KEY not in str(caught.value)
    assert OTHER_KEY not in str(caught.value)


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no-metadata"])
@pytest.mark.parametrize("stored_as,read_as", [("client-aes256", "none"), ("none", "client-aes256")])
def test_an_object_of_another_mode_is_refused_before_the_download(
    make_site: Callable[..., Site], stored_as: str, read_as: str, *, metadata: bool
):
    site = make_site(stored_as)
    bucket = site.bucket(metadata=metadata)
    site.mode = bucket.mode = read_as
    with site.untouched(), pytest.raises(ModeError, match="encrypted") as caught:
        restore_backup(site.database(), bucket, OBJECT, wait=0)
    assert not bucket.was_downloaded()
    assert "s3.encryption" in str(caught.value)


def test_ciphertext_without_anything_that_tells_it_is_refused_under_mode_none(make_site: Callable[..., Site]):
    site = make_site("client-aes256")
    bucket = site.bucket(metadata=False)
    bucket.delete(f"{OBJECT}.mac")
    site.mode = bucket.mode = "none"
    with site.untouched(), pytest.raises(IntegrityError, match="no DuckDB file"):
        restore_backup(site.database(), bucket, wait=0)


def test_a_plain_object_with_a_mac_contradicts_itself(make_site: Callable[..., Site]):
    site = make_site()
    bucket = site.bucket(metadata=False)
    bucket.put(f"{OBJECT}.mac", BytesBody(b"ab" * 32))
    with site.untouched(), pytest.raises(ModeError, match="contradicts itself"):
        restore_backup(site.database(), bucket, wait=0)


def test_a_store_that_breaks_off_for_good_leaves_the_replica(make_site: Callable[..., Site]):
    class Breaking(Bucket):
        def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> BinaryIO:
            if stop - start > 1024:
                raise StoreError("no answer", subject=key, retryable=False)
            return super().open_range(key, start, stop, etag=etag)

    site = make_site()
    bucket = Breaking("none")
    bucket.add(site.good)
    with site.untouched(), pytest.raises(StoreError, match="no answer"):
        restore_backup(site.database(), bucket, wait=0)


def test_a_backup_that_duckdb_can_not_open_never_becomes_the_replica(make_site: Callable[..., Site]):
    """Every checksum may be right and the contents wrong all the same: two blocks that changed places."""
    site = make_site()
    content = bytearray(site.good)
    first, second = (slice(FIRST_BLOCK + at * BLOCK, FIRST_BLOCK + (at + 1) * BLOCK) for at in (0, 2))
    content[first], content[second] = content[second], content[first]
    bucket = Bucket("none")
    bucket.add(bytes(content))
    with site.untouched(), pytest.raises(IntegrityError, match="DuckDB can't open it"):
        restore_backup(site.database(), bucket, wait=0)


# ---- room --------------------------------------------------------------------------------------------------


def test_too_little_room_is_told_with_its_margin_before_the_download(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
):
    site = make_site("client-aes256")
    bucket = site.bucket()
    free = len(site.good) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with site.untouched(), pytest.raises(NoSpaceError) as caught:
        restore_backup(site.database(), bucket, wait=0)
    assert (caught.value.needed, caught.value.free) == (len(site.good), free)
    words = "16.8 MiB needed (780.0 KiB for the file + 16.0 MiB margin), 780.0 KiB free. Make room for 16.0 MiB there"
    assert words in str(caught.value)
    assert not bucket.was_downloaded()


def test_a_disk_that_fills_up_meanwhile_leaves_the_replica(make_site: Callable[..., Site]):
    site = make_site()
    take_snapshot(site.database())
    with site.untouched():
        assert run(_LOCAL_RESTORE, "full").startswith("NoSpaceError production: the disk filled up")


# ---- stopped in the middle ---------------------------------------------------------------------------------


def test_a_cancelled_restore_leaves_the_replica(make_site: Callable[..., Site]):
    site = make_site("client-aes256")
    control = Control(lambda step, done, _: control.cancel() if step == "download" and done else None)
    with site.untouched(), pytest.raises(CancelledError):
        restore_backup(site.database(), site.bucket(), wait=0, control=control)


def test_after_a_killed_download_the_next_restore_goes_through(make_site: Callable[..., Site]):
    site = make_site()
    database = site.database()
    expected = take_snapshot(database).path.read_bytes()
    before = site.contents()
    assert run(_LOCAL_RESTORE, "killed") == ""
    debris = {f"production.db{HOLD_SUFFIX}", "production.db.duckling-new"}
    assert {name: content for name, content in site.contents().items() if name not in debris} == before
    assert f"production.db{HOLD_SUFFIX}" in site.contents()
    site.replica.write_bytes(b"lost")
    restore_backup(database, LocalBackups(database), wait=0)
    assert site.contents() == {"production.db": expected}


# ---- another place -----------------------------------------------------------------------------------------


def test_another_path_gets_the_backup_and_the_replica_is_left(
    make_site: Callable[..., Site], tmp_path: Path, start_child: Callable[..., Any]
):
    site = make_site("client-aes256")
    writer = start_child(_WRITER, site.replica)  # who goes on meanwhile
    assert writer.line() == "writing"
    to = tmp_path / "elsewhere" / "copy.db"
    to.parent.mkdir()
    with site.untouched():
        result = restore_backup(site.database(), site.bucket(), to=to, wait=0)
    assert (result.replaced, result.kept, result.size) == (to, None, len(site.good))
    assert to.read_bytes() == site.good
    assert os.listdir(to.parent) == ["copy.db"]
    assert to.stat().st_mode & 0o777 == 0o600
    writer.tell()
    assert writer.line() == "31"


def test_a_path_that_is_taken_is_refused(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    bucket, database = site.bucket(), site.database()
    file, dangling, folder = tmp_path / "file.db", tmp_path / "dangling.db", tmp_path / "folder.db"
    file.write_bytes(b"mine")
    dangling.symlink_to(tmp_path / "nothing")
    folder.mkdir()
    before = set(os.listdir(tmp_path))
    with site.untouched():
        for to in (file, dangling, folder, site.replica):
            with pytest.raises(DucklingError):
                restore_backup(database, bucket, to=to, wait=0)
        with pytest.raises(DucklingError, match="folder does not exist"):
            restore_backup(database, bucket, to=tmp_path / "no" / "copy.db", wait=0)
    assert file.read_bytes() == b"mine"
    assert set(os.listdir(tmp_path)) == before
    assert not bucket.was_downloaded()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("other.db.wal", "write-ahead log of other.db"),
        ("what.wal?.db", r"write-ahead log of what\?.db"),
        ("x" * 240 + ".db", "longer than 242 bytes"),
        ("\u00e9" * 125, "longer than 242 bytes"),
        ("bad\udcff.db", "not UTF-8"),
    ],
)
def test_a_name_that_can_not_work_is_refused_before_the_download(make_site: Any, tmp_path: Path, name: str, cause: str):
    site = make_site()
    bucket = site.bucket()
    with site.untouched(), pytest.raises(RequestError, match=cause):
        restore_backup(site.database(), bucket, to=tmp_path / name, wait=0)
    assert not bucket.was_downloaded()


@pytest.mark.parametrize("suffix", WAL_SUFFIXES)
def test_a_path_beside_which_a_log_lies_is_refused(make_site: Callable[..., Site], tmp_path: Path, suffix: str):
    """DuckDB would replay it into the restored file, or refuse the file for its sake."""
    site = make_site()
    to = tmp_path / "copy.db"
    log = to.with_name(to.name + suffix)
    shutil.copyfile(f"{site.replica}.wal", log)
    before = set(os.listdir(tmp_path))
    with site.untouched(), pytest.raises(DucklingError, match=log.name):
        restore_backup(site.database(), site.bucket(), to=to, wait=0)
    assert set(os.listdir(tmp_path)) == before


def test_what_a_killed_restore_left_there_is_no_part_of_the_next(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    left = tmp_path / "copy.db.duckling-new"
    left.write_bytes(b"left" * len(site.good))
    restore_backup(site.database(), site.bucket(), to=tmp_path / "copy.db", wait=0)
    assert (tmp_path / "copy.db").read_bytes() == site.good
    assert not left.exists()


def left_by_a_killed_restore(database: Any, tmp_path: Path) -> Path:
    """Its download, and the note of where that is."""
    download = tmp_path / "elsewhere" / "copy.db.duckling-new"
    download.parent.mkdir()
    download.write_bytes(b"plain text")
    download.chmod(0o600)
    make_folder(database.backup_path)
    note = database.backup_path / "restoring-0a1b2c3d.json"
    write_durably(note, json.dumps({"download": str(download)}).encode())
    return download


def test_a_cleanup_removes_what_a_killed_restore_to_elsewhere_left(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    database = site.database()
    download = left_by_a_killed_restore(database, tmp_path)
    assert clean_up(database, None, dry_run=True).downloads_removed == (download,)
    assert download.exists()
    with partial_file(download.with_name("alive.db.duckling-new")):
        note = database.backup_path / "restoring-ffffffff.json"
        write_durably(note, json.dumps({"download": str(download.with_name("alive.db.duckling-new"))}).encode())
        assert clean_up(database, None).downloads_removed == (download,)
        assert [path.name for path in download.parent.iterdir()] == ["alive.db.duckling-new"]
        assert list(database.backup_path.glob("restoring-*")) == [note]


def test_a_restore_removes_it_too_also_on_another_machine(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    database = site.database(host="another-machine", queue="there")
    download = left_by_a_killed_restore(database, tmp_path)
    restore_backup(database, site.bucket(), to=tmp_path / "mine.db")
    assert not download.exists()
    assert list(database.backup_path.iterdir()) == []


def test_two_restores_to_one_path_do_not_mix(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site()
    database, bucket, to = site.database(), site.bucket(), tmp_path / "copy.db"
    refused = []

    def second(step: str, done: int, _: int) -> None:
        if step == "download" and done and not refused:
            with pytest.raises(BusyError) as caught:
                restore_backup(database, bucket, to=to, wait=0)
            refused.append(caught.value)

    restore_backup(database, bucket, to=to, wait=0, control=Control(second))
    assert refused
    assert to.read_bytes() == site.good
    assert not to.with_name("copy.db.duckling-new").exists()


def test_a_damaged_object_leaves_nothing_at_another_path(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site("client-aes256")
    bucket = site.bucket()
    bucket.flip(-1)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with site.untouched(), pytest.raises(IntegrityError):
        restore_backup(site.database(), bucket, to=folder / "copy.db", wait=0)
    assert os.listdir(folder) == []


# ---- the old file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_the_old_file_is_kept_with_its_log_and_both_open(
    make_site: Callable[..., Site], query_replica: Any, files: Files, storage: str
):
    site = make_site(storage=storage)
    result = restore_backup(site.database(), site.bucket(), keep_old=True, wait=0)
    assert result.kept is not None
    assert site.contents() == {
        "production.db": site.good,
        result.kept.name: files.old[storage],
        f"{result.kept.name}.wal": files.old_wal[storage],
    }
    assert query_replica(site.replica, COUNT) == [[50, 0]]
    assert query_replica(result.kept, COUNT) == [[30, 10]]


def test_a_question_mark_in_the_name_loses_no_row(make_site: Callable[..., Site], query_replica: Any, files: Files):
    """DuckDB's log of what?.db is what.wal?.db."""
    site = make_site()
    database = site.database(duckdbPath="data/what?.db")
    replica, wal = site.folder / "what?.db", site.folder / "what.wal?.db"
    replica.write_bytes(files.old["v1.5.0"])
    wal.write_bytes(files.old_wal["v1.5.0"])
    snapshot = take_snapshot(database)
    assert query_replica(snapshot.path, COUNT) == [[30, 10]]

    replica.write_bytes(files.old["v1.5.0"])
    wal.write_bytes(files.old_wal["v1.5.0"])
    result = restore_backup(database, site.bucket(), keep_old=True, wait=0)
    assert (replica.read_bytes(), wal.exists()) == (site.good, False)
    assert query_replica(result.kept, COUNT) == [[30, 10]]
    assert query_replica(replica, COUNT) == [[50, 0]]


def test_who_could_use_the_old_file_can_use_the_new_one(make_site: Callable[..., Site]):
    site = make_site()
    site.replica.chmod(0o640)
    owner = (4321, 1234) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(site.replica, *owner)
    restore_backup(site.database(), site.bucket(), wait=0)
    stat = site.replica.stat()
    assert stat.st_mode & 0o7777 == 0o640
    assert (stat.st_uid, stat.st_gid) == owner


def test_on_a_new_machine_there_is_nothing_to_replace(make_site: Callable[..., Site], query_replica: Any):
    site = make_site("client-aes256")
    replica = site.folder / "not" / "yet" / "there.db"
    result = restore_backup(site.database(duckdbPath=str(replica)), site.bucket(), keep_old=True, wait=0)
    assert result.kept is None
    assert set(os.listdir(replica.parent)) == {"there.db", f"there.db{LOCK_SUFFIX}"}
    assert replica.read_bytes() == site.good
    assert replica.stat().st_mode & 0o777 == 0o600
    assert query_replica(replica, COUNT) == [[50, 0]]


def test_a_lone_log_where_the_replica_was_does_not_reach_the_new_one(make_site: Callable[..., Site]):
    site = make_site(storage="v1.0.0")
    site.replica.unlink()
    restore_backup(site.database(), site.bucket(), wait=0)
    assert site.contents() == {"production.db": site.good}


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 12_288])
def test_whatever_file_is_in_the_replica_s_place_is_replaced(make_site: Callable[..., Site], content: bytes):
    site = make_site()
    site.replica.write_bytes(content)
    restore_backup(site.database(), site.bucket(), wait=0)
    assert site.contents() == {"production.db": site.good}


def test_a_folder_in_the_replica_s_place_is_left(make_site: Callable[..., Site]):
    site = make_site()
    site.replica.unlink()
    (site.replica / "inside").mkdir(parents=True)
    before = site.contents()
    with pytest.raises(ReplicaError, match="is a folder"):
        restore_backup(site.database(), site.bucket(), wait=0)
    assert (site.replica / "inside").is_dir()
    assert site.contents() == before


def test_a_link_stays_a_link_and_its_target_is_replaced(
    make_site: Callable[..., Site], tmp_path: Path, query_replica: Any
):
    site = make_site(storage="v1.0.0")
    target = tmp_path / "disk" / "real.db"
    target.parent.mkdir()
    site.replica.rename(target)
    Path(f"{site.replica}.wal").rename(f"{target}.wal")
    site.replica.symlink_to(target)
    restore_backup(site.database(), site.bucket(), wait=0)
    assert site.replica.is_symlink()
    assert set(os.listdir(target.parent)) == {"real.db", f"real.db{LOCK_SUFFIX}"}
    assert target.read_bytes() == site.good
    assert site.contents() == {"production.db": site.good}
    assert query_replica(site.replica, COUNT) == [[50, 0]]


def test_a_folder_that_is_reached_by_a_link_is_no_obstacle(make_site: Callable[..., Site], tmp_path: Path):
    site = make_site(storage="v1.0.0")
    (tmp_path / "link").symlink_to(site.folder)
    database = site.database(duckdbPath=str(tmp_path / "link" / "production.db"))
    restore_backup(database, site.bucket(), wait=0)
    assert site.contents() == {"production.db": site.good}


# ---- others --------------------------------------------------------------------------------------------------


def test_a_writer_in_another_process_is_named_and_nothing_is_downloaded(
    make_site: Callable[..., Site], start_child: Callable[..., Any]
):
    site = make_site()
    bucket = site.bucket()
    writer = start_child(_WRITER, site.replica)
    assert writer.line() == "writing"
    with site.untouched(), pytest.raises(BusyError, match=f"PID {writer.pid}") as caught:
        restore_backup(site.database(), bucket, wait=0)
    assert caught.value.retryable
    assert not bucket.was_downloaded()
    writer.tell()
    assert writer.line() == "31"  # it lost nothing


def test_a_writer_that_comes_during_the_download_is_not_robbed_of_its_file(
    make_site: Callable[..., Site], start_child: Callable[..., Any]
):
    site = make_site()
    database, bucket = site.database(), site.bucket()
    writers: list[Any] = []
    before: list[dict[str, bytes]] = []

    def come(step: str, done: int, _: int) -> None:
        if step == "download" and done and not writers:
            writers.append(start_child(_WRITER, site.replica))
            assert writers[0].line() == "writing"
            before.append({name: data for name, data in site.contents().items() if ".duckling-" not in name})

    with pytest.raises(BusyError):
        restore_backup(database, bucket, wait=0, control=Control(come))
    assert site.contents() == before[0]
    writers[0].tell()
    assert writers[0].line() == "31"


def test_a_reader_may_stay_and_goes_on_with_the_old_file(
    make_site: Callable[..., Site], start_child: Callable[..., Any], query_replica: Any
):
    site = make_site()
    reader = start_child(_READER, site.replica)
    assert reader.line() == "reading"
    restore_backup(site.database(), site.bucket(), wait=0)
    assert site.contents() == {"production.db": site.good}
    reader.tell()
    assert reader.line() == "(40, True)"
    assert query_replica(site.replica, COUNT) == [[50, 0]]


def test_the_run_s_own_hold_is_used_and_left_for_its_release(make_site: Callable[..., Site]):
    site = make_site()
    hold = place_hold(site.replica, owner="run 3", reason="restore", seconds=600, wait=0)
    restore_backup(site.database(), site.bucket(), owner="run 3", wait=0)
    assert read_hold(site.replica) == hold
    assert site.replica.read_bytes() == site.good


@pytest.mark.parametrize("owner", ["", "run 4"])
def test_somebody_else_s_hold_is_respected(make_site: Callable[..., Site], owner: str):
    site = make_site()
    bucket = site.bucket()
    place_hold(site.replica, owner="run 3", reason="restore", seconds=600, wait=0)
    with site.untouched(), pytest.raises(BusyError, match="run 3"):
        restore_backup(site.database(), bucket, owner=owner, wait=0)
    assert not bucket.was_downloaded()


def test_nobody_writes_between_download_and_exchange(make_site: Callable[..., Site]):
    """Those who honour the protocol find the hold; without one of the run's own the restore places and removes it."""
    site = make_site()
    seen = []

    def look(*_: object) -> None:
        seen.append(read_hold(site.replica))
        with pytest.raises(BusyError, match=f"restore by PID {os.getpid()}"):
            place_hold(site.replica, owner="sync", reason="sync", seconds=1, wait=0)

    restore_backup(site.database(), site.bucket(), wait=0, control=Control(look))
    assert seen
    assert None not in seen
    assert read_hold(site.replica) is None
