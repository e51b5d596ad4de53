"""A backup is believed to be of this replica, of this name and of this database only where it can be."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider import config
from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.choice import resolve
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import MAC_SUFFIX, backup_name
from duckling_provider.backup.inventory.sidecar import Snapshot, sidecar_of
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import RestoreResult, restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.errors import ConfigError, IntegrityError, ModeError, RequestError, StateFileError
from duckling_provider.base.moments import stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.replica import origin as origin_module
from duckling_provider.replica.origin import ORIGIN_SUFFIX, Origin
from duckling_provider.stores.store import BytesBody

KEY = "c4" * 32
PREFIX = "production/"
SECOND = timedelta(seconds=1)

pytestmark = pytest.mark.server  # replicas are made by a child process


@dataclass
class Machine:
    """A machine of its own: a data folder with a databases.json that is the same on all of them."""

    folder: Path
    store: MemoryStore
    host: str
    fields: dict[str, Any]

    @property
    def database(self) -> Database:
        s3 = {"enabled": True, "bucket": "b", "region": "eu-1", "accessKeyId": "A", "secretAccessKey": "S"}
        entry = {"id": "production", "name": "P", "duckdbPath": "data/production.db", "s3": {**s3, **self.fields}}
        file = self.folder / "data" / "databases.json"
        file.write_text(json.dumps([entry]))
        file.chmod(0o600)
        return config.load({"DATA_PATH": str(file.parent), "DUCKLING_HOST": self.host}).database("production")

    @property
    def replica(self) -> Path:
        return self.folder / "data" / "production.db"

    def back_up(self) -> str:
        snapshot = take_snapshot(self.database)
        return upload_snapshot(self.database, self.store, snapshot).key

    def restore(self, key: str = "latest", **options: Any) -> RestoreResult:
        return restore_backup(self.database, self.store, key, **options)


@pytest.fixture
def machine(tmp_path: Path, small_replica: Callable[[Path], Path]) -> Callable[..., Machine]:
    """``machine(name)``: one more with the same store; without a replica where `replica` is False."""
    store = MemoryStore(prefix=PREFIX, mode="client-aes256")

    def make(name: str, *, replica: bool = True, host: str = "", copy_of: Machine | None = None) -> Machine:
        fields = {"encryption": "client-aes256", "encryptionKey": KEY}
        made = Machine(tmp_path / name, store, host or name, fields)
        if copy_of is not None:
            shutil.copytree(copy_of.folder, made.folder)
        else:
            (made.folder / "data").mkdir(parents=True)
            if replica:
                small_replica(made.replica)
        return made

    return make


# ---- which replica -----------------------------------------------------------------------------------------


def test_latest_refuses_the_backup_of_another_machine_and_names_both(machine):
    one, two = machine("one"), machine("two")
    first, second = one.back_up(), two.back_up()
    for asking in (one, two):
        before = asking.replica.read_bytes()
        with pytest.raises(RequestError) as caught:
            asking.restore()
        told = str(caught.value)
        assert all(part in told for part in (first, second, "one (replica", "two (replica", "--any-origin"))
        assert asking.replica.read_bytes() == before
    assert one.restore(any_origin=True).key == second
    assert one.restore(first).key == first


def test_latest_refuses_the_only_backup_when_it_is_of_another_replica(machine):
    one, two = machine("one"), machine("two")
    key = one.back_up()
    with pytest.raises(RequestError, match="another replica than the one here"):
        two.restore()
    assert two.restore(any_origin=True).key == key
    # What was taken knowingly is this replica's past from now on.
    assert two.restore().key == key
    assert two.restore(two.back_up()).key == two.restore().key
    # What the other machine makes later is not.
    one.back_up()
    with pytest.raises(RequestError):
        two.restore()


def test_a_machine_without_a_replica_takes_the_newest_and_says_whose_it_is(machine, caplog):
    one, two, new = machine("one"), machine("two"), machine("new", replica=False)
    one.back_up()
    key = two.back_up()
    done = new.restore()
    assert (done.key, done.origin.host) == (key, "two")
    assert "several replicas" in caplog.text


def test_a_machine_that_replaces_another_goes_on_without_a_word(machine):
    old, new = machine("old"), machine("new", replica=False)
    old.back_up()
    shutil.rmtree(old.folder)
    new.restore()
    for _ in range(3):
        key = new.back_up()
        assert new.restore().key == key


def test_a_replica_that_is_made_again_in_its_place_keeps_its_identity(machine, small_replica):
    one = machine("one")
    one.back_up()
    one.replica.unlink()
    small_replica(one.replica)
    key = one.back_up()
    assert one.restore().key == key


def test_a_renamed_host_is_the_same_replica(machine):
    one = machine("one")
    one.back_up()
    one.host = "container-4711"
    key = one.back_up()
    assert (one.restore().key, one.restore().origin.host) == (key, "container-4711")


@pytest.mark.parametrize("how", ["folder", "disk"])
def test_a_clone_is_another_replica_once_it_backs_up(machine, monkeypatch, tmp_path, how):
    one = machine("one", host="same")
    one.back_up()
    if how == "folder":
        clone = machine("clone", copy_of=one, host="same")
        assert clone.restore().key == one.restore().key  # its own past
        other = clone.back_up()
    else:
        # All of the disk was copied: even the inode is the same, and the machine's id is a new one.
        clone = one
        (tmp_path / "machine-id").write_text("other\n")
        with monkeypatch.context() as patch:
            patch.setattr(origin_module, "_MACHINE_ID", tmp_path / "machine-id")
            saved = (path := Path(f"{one.replica}{ORIGIN_SUFFIX}")).read_bytes()
            other = clone.back_up()
            assert clone.restore().key == other
        os.truncate(path, 0)
        path.write_bytes(json.dumps({**json.loads(saved), "inode": path.stat().st_ino}).encode())
    with pytest.raises(RequestError):
        one.restore()
    one.back_up()
    for asking in (one, *([clone] if how == "folder" else [])):
        with pytest.raises(RequestError, match=other):
            asking.restore()


def test_a_folder_that_moved_to_another_disk_needs_no_word(machine):
    one = machine("one")
    key = one.back_up()
    moved = machine("moved", copy_of=one)
    shutil.rmtree(one.folder)
    assert moved.restore().key == key
    assert moved.back_up() == resolve(moved.database, moved.store)


def test_a_clock_that_is_behind_makes_no_older_backup_the_latest(machine):
    """Here the newest seems to be of the future; the store, which has the right time, says that it is not."""
    one = machine("one")
    one.back_up()
    day = timedelta(days=1)
    key, moment = f"{PREFIX}{backup_name(stamp_of(datetime.now(timezone.utc) + day))}", datetime.now(timezone.utc) + day
    for end in ("", MAC_SUFFIX):
        stored, data = one.store.objects[min(one.store.objects) + end]
        one.store.objects[key + end] = dataclasses.replace(stored, key=key + end, modified=moment), data
    assert resolve(one.database, one.store) != key  # as long as the store's answers have no time
    one.store.clock_fault = "this host's clock is 24 h 0 min behind the store's. Set it by NTP"
    with pytest.raises(RequestError, match="which is in the future here") as caught:
        resolve(one.database, one.store)
    assert (key in str(caught.value), "This host's clock is 24 h" in str(caught.value)) == (True, True)


def test_backups_without_an_origin_restore_as_before(machine):
    one, two = machine("one"), machine("two")
    key = one.back_up()
    stored, data = one.store.objects[key]
    metadata = {name: value for name, value in stored.metadata.items() if name != "duckling-origin"}
    one.store.objects[key] = (dataclasses.replace(stored, metadata=metadata), data)
    assert two.restore().key == key
    assert two.restore().origin is None


def test_a_local_backup_carries_its_origin_and_one_of_a_former_version_is_read(machine):
    one = machine("one")
    one.back_up()
    source = LocalBackups(one.database)
    key = resolve(one.database, source)
    assert identify_backup(one.database, source, key).origin.host == "one"
    sidecar = sidecar_of(one.database.backup_dir / key)
    former = json.loads(sidecar.read_text())
    del former["origin"]
    sidecar.write_text(json.dumps(former))
    assert identify_backup(one.database, source, key).origin is None


def test_an_identity_file_that_is_a_link_is_refused(machine, tmp_path):
    one = machine("one")
    target = tmp_path / "elsewhere"
    target.write_text("{}")
    Path(f"{one.replica}{ORIGIN_SUFFIX}").symlink_to(target)
    with pytest.raises(StateFileError):
        one.back_up()
    assert target.read_text() == "{}"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"origin": 7}', '{"origin": "replica=zz", "inode": 1}'])
def test_an_identity_file_that_says_nothing_gives_way_to_a_new_one(machine, content):
    one = machine("one")
    path = Path(f"{one.replica}{ORIGIN_SUFFIX}")
    path.write_text(content)
    path.chmod(0o600)
    one.back_up()
    assert Origin.parse(json.loads(path.read_text())["origin"]) is not None


@pytest.mark.parametrize("text", [None, "", "replica=", "replica=XYZ; host=a", "host=a", "replica=0123456789abcdef0"])
def test_what_is_no_origin_is_none(text):
    assert Origin.parse(text) is None


def test_an_origin_is_read_as_it_was_written():
    moment = datetime(2025, 3, 1, 14, tzinfo=timezone.utc)
    taken = Origin("a" * 16, "one", (("c" * 16, moment - SECOND),))
    origin = Origin("b" * 16, "db1.example.com").after_taking(taken, moment)
    assert Origin.parse(origin.encode()) == origin
    assert (origin.owns(taken, moment), origin.owns(taken, moment + SECOND)) == (True, False)


# ---- which backup ------------------------------------------------------------------------------------------


def copied(store: MemoryStore, key: str, to: str, **metadata: str) -> None:
    """What a writer of the bucket can do: an object and its .mac under another name, with other metadata."""
    stored, data = store.objects[key]
    changed = {**stored.metadata, **{f"duckling-{name}": value for name, value in metadata.items()}}
    store.put(to, BytesBody(data), metadata={name: value for name, value in changed.items() if value})
    store.put(to + MAC_SUFFIX, BytesBody(store.objects[key + MAC_SUFFIX][1]))


def test_an_old_backup_under_a_later_name_is_refused_by_latest_and_by_its_key(machine):
    one = machine("one")
    old = one.back_up()
    later = f"{PREFIX}backup-{datetime.now(timezone.utc) + 5 * SECOND:%Y-%m-%dT%H-%M-%S}-000Z.db"
    copied(one.store, old, later)
    before = one.replica.read_bytes()
    for key in ("latest", later):
        with pytest.raises(IntegrityError, match="identity"):
            one.restore(key)
        with pytest.raises(IntegrityError, match="identity"):
            verify_backup(one.database, one.store, key)
    assert one.replica.read_bytes() == before
    assert one.restore(old).key == old


def test_backups_of_two_databases_that_share_a_key_cannot_be_swapped(machine, caplog):
    one = machine("one")
    key = one.back_up()
    other = one.database.model_copy(update={"id": "other"})
    # As it is, it says what it is.
    with pytest.raises(ModeError, match="of the database 'production'"):
        identify_backup(other, one.store, key)
    assert identify_backup(other, one.store, key, chosen=True).key == key
    assert "is a backup of the database 'production', not of 'other'" in caplog.text
    # With forged metadata, it is refused by its key too.
    copied(one.store, key, key, database="other")
    for chosen in (False, True):
        with pytest.raises(IntegrityError, match="identity"):
            identify_backup(other, one.store, key, chosen=chosen)


def test_an_object_without_an_identity_is_refused_only_where_one_is_demanded(machine):
    one = machine("one")
    key = one.back_up()
    copied(one.store, key, key, identity="")
    assert one.restore().key == key
    one.fields["requireIdentity"] = True
    with pytest.raises(IntegrityError, match="requireIdentity"):
        one.restore(key)
    assert one.restore(one.back_up()).size > 0


@pytest.mark.parametrize("mode", ["none", "sse-s3", "sse-kms"])
def test_an_identity_can_be_demanded_only_where_there_is_a_key(machine, mode):
    one = machine("one")
    one.fields = {"encryption": mode, "requireIdentity": True}
    with pytest.raises(ConfigError, match="requireIdentity"):
        _ = one.database


@pytest.mark.parametrize("mode", ["client-aes256", "none"])
def test_an_object_that_is_not_the_local_backup_of_its_name_is_refused(machine, mode):
    one, two = machine("one"), machine("two")
    if mode == "none":
        one.store.mode = mode
        one.fields = two.fields = {"encryption": mode}
        with two.replica.open("r+b") as file:  # not the same bytes as the other's
            file.seek(0, os.SEEK_END)
            file.write(bytes(262_144))
    key, foreign = one.back_up(), two.back_up()
    if mode == "none":
        copied_sha = one.store.objects[foreign][0].metadata["duckling-sha256"]
        stored, data = one.store.objects[foreign]
        one.store.put(key, BytesBody(data), metadata={**stored.metadata, "duckling-sha256": copied_sha})
    else:
        copied(one.store, foreign, key, identity="")
    with pytest.raises(IntegrityError, match="local one of the same name"):
        one.restore(key)
    for companion in one.database.backup_dir.glob("backup-*"):
        companion.unlink()
    assert one.restore(key).key == key


def test_a_snapshot_that_is_sealed_again_still_vouches_for_what_was_uploaded(machine):
    one = machine("one")
    key = one.back_up()
    one.fields["partSizeMiB"] = 16
    snapshot = Snapshot.load(one.database.backup_dir / key.rpartition("/")[2])
    assert upload_snapshot(one.database, one.store, snapshot).key == key
    assert one.restore(key).key == key
