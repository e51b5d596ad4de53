"""What an earlier version left when it was stopped or killed is understood by this one: its files were kept."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from duckling_provider.backup.flow import interrupted_upload
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.seal import sealed_for
from duckling_provider.base.errors import BusyError
from duckling_provider.replica.downloads import clear_downloads
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, identity, recover
from duckling_provider.replica.locks import HOLD_SUFFIX, LOCK_SUFFIX, ProcessId, read_hold, replica_lock
from duckling_provider.stores.store import UploadLog

SAMPLES = Path(__file__).parents[1] / "vectors" / "state-files"
BACKUP = "backup-2026-11-26T00-38-02-094Z"
KEY = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210"


def put(name: str, folder: Path, *, as_name: str = "", **changes: Any) -> Path:
    """A sample in its place; `changes` are what no sample can know, such as the numbers of files."""
    text = (SAMPLES / name).read_text().replace("FOLDER", str(folder))
    path = folder / (as_name or name)
    path.write_text(json.dumps(json.loads(text) | changes) if changes else text)
    path.chmod(0o600)
    return path


@pytest.fixture
def database(installation: Any) -> Any:
    """With the local copy that the sidecar is of; that its bytes are others shows only when they are sent."""
    s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
    installation.write(installation.entry(s3=s3 | {"encryption": "client-aes256", "encryptionKey": KEY}))
    database = installation.database()
    database.backup_dir.mkdir(parents=True)
    size = json.loads((SAMPLES / f"{BACKUP}.json").read_text())["size"]
    with (database.backup_dir / f"{BACKUP}.db").open("wb") as copy:
        copy.truncate(size)
    return database


def test_a_local_backup_and_its_unfinished_upload_go_on(database: Any):
    put(f"{BACKUP}.json", database.backup_dir)
    put(f"{BACKUP}.upload", database.backup_dir)
    snapshot = find_snapshot(database, f"{BACKUP}.db")
    assert (snapshot.key_fingerprint, snapshot.storage) == (database.s3.encryption_key.fingerprint, "v2.0")
    assert sealed_for(database, snapshot) == snapshot  # not sealed again under another IV
    assert interrupted_upload(database) == snapshot
    binding = {
        "store": "s3://b/",
        "key": f"production/{BACKUP}.db",
        "sha256": snapshot.sha256,
        "iv": snapshot.iv,
        "part_size": snapshot.part_size,
        "mode": "client-aes256",
    }
    parts = {0: '"9b2cf535f27731c974343645a3985328"', 2: '"d41d8cd98f00b204e9800998ecf8427e"'}
    assert UploadLog(snapshot.upload_log, binding).load() == ("2~example-upload-id", parts)


def test_holds_name_their_owner_and_their_process(tmp_path: Path):
    replica = tmp_path / "production.db"
    put("production.db.duckling-hold", tmp_path)
    hold = read_hold(replica)
    assert hold is not None
    assert (hold.owner, hold.reason, hold.process) == (
        "duckling_restore__production manual__2026-11-26",
        "restore",
        None,
    )
    assert hold.expires == datetime(2026, 11, 26, 14, 36, 28, 448_764, tzinfo=timezone.utc)
    put("production.db.duckling-hold.of-a-process", tmp_path, as_name=f"production.db{HOLD_SUFFIX}")
    bound = read_hold(replica)
    assert bound is not None
    assert isinstance(bound.process, ProcessId)
    assert (bound.process.host, bound.process.is_gone()) == ("db1.example.com", False)


def test_a_lock_s_holder_is_named(tmp_path: Path):
    path = put("production.db.duckling-lock", tmp_path)
    assert path.name == f"production.db{LOCK_SUFFIX}"
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(BusyError, match=r"PID 4695, snapshot \(duckling backup\)"),
            replica_lock(tmp_path / "production.db", operation="backup", wait=0),
        ):
            pytest.fail("the lock was taken")


@pytest.mark.parametrize("renamed", [False, True], ids=["before-the-rename", "after-it"])
def test_an_interrupted_restore_is_undone_or_completed(tmp_path: Path, *, renamed: bool):
    replica, aside = tmp_path / "production.db", tmp_path / "production.db.duckling-old"
    new = tmp_path / "production.db.duckling-new"
    replica.write_bytes(b"old")
    os.link(replica, aside)
    new.write_bytes(b"new")
    (tmp_path / "production.db.duckling-old.wal").write_bytes(b"log")
    numbers = {"new_inode": new.stat().st_ino, "old_identity": identity(replica)}
    put("production.db.duckling-journal", tmp_path, as_name=f"production.db{JOURNAL_SUFFIX}", **numbers)
    if renamed:
        new.rename(replica)
    assert recover(replica) is not None
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"production.db": b"new"} if renamed else {"production.db": b"old", "production.db.wal": b"log"})


def test_the_download_of_a_killed_restore_is_found_by_its_note(tmp_path: Path):
    note = put("restoring-44c85e72.json", tmp_path)
    download = tmp_path / "copy.db.duckling-new"
    download.write_bytes(b"plain text")
    download.chmod(0o600)
    assert clear_downloads(tmp_path) == (download,)
    assert not note.exists()
    assert not download.exists()
