"""Object format 2 through the whole flow: made, listed, verified, restored, refused where it is not what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import io
import logging
import threading

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.backup.inventory.key_choice import key_of
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.restore_plan import plan_restore
from duckling_provider.backup.reading.verified_read import read_verified
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.errors import (
    DucklingError,
    IntegrityError,
    ModeError,
    NotFoundError,
    StoreError,
    WrongKeyError,
)
from duckling_provider.config import load
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats import segments
from duckling_provider.formats.segment_fetch import BUFFERS, REFETCHES
from duckling_provider.formats.trailer import END_BYTES
from duckling_provider.oversight.check import looks
from duckling_provider.stores import concurrency
from duckling_provider.stores.store import BytesBody

KEY, OTHER_KEY = "c4" * 32, "d5" * 32
SEGMENT = 128 * 1024
KEY_1 = "production/backup-2020-01-01T00-00-00-000Z.db"


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """A small replica has several."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SEGMENT)


class Site:
    """An entry with format 2, its replica, and a store in memory."""

    def __init__(self, installation, plain):
        self.installation, self.plain = installation, plain
        self.store = MemoryStore(prefix="production/", mode="client-aes256")
        self.configure()

    def configure(self, **fields):
        s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s3cret-1"}
        s3 |= {"encryption": "client-aes256", "encryptionKey": KEY, "objectFormat": 2, **fields}
        self.installation.write(self.installation.entry(s3={k: v for k, v in s3.items() if v is not None}))
        self.database = self.installation.database()
        return self.database

    def back_up(self):
        """The key of a new backup, of which this machine knows nothing afterwards."""
        snapshot = take_snapshot(self.database)
        key = upload_snapshot(self.database, self.store, snapshot).key
        snapshot.path.with_suffix(".json").unlink()
        return key

    def data(self, key):
        return self.store.objects[key][1]

    def replace(self, key, data, **fields):
        stored, _ = self.store.objects[key]
        self.store.objects[key] = (dataclasses.replace(stored, size=len(data), **fields), data)

    def move(self, old, new):
        for suffix in ("", ".mac"):
            stored, data = self.store.objects[old + suffix]
            self.store.objects[new + suffix] = (dataclasses.replace(stored, key=new + suffix), data)

    def restored(self, tmp_path, key="latest"):
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"
        restore_backup(self.database, self.store, key, to=target)
        return target.read_bytes()


@pytest.fixture
def site(installation, make_replica):
    return Site(installation, make_replica(installation.replica()).read_bytes())


def test_a_backup_of_format_2_is_made_listed_verified_and_restored(site, tmp_path):
    key = site.back_up()
    stored, data = site.store.objects[key]
    fingerprint = EncryptionKey.parse(KEY).fingerprint
    assert stored.metadata["duckling-format"] == "2"
    assert "duckling-identity" not in stored.metadata
    assert site.data(f"{key}.mac") == data[-32:].hex().encode()
    assert site.plain[: 1 << 12] not in data
    assert [(found.key, found.has_mac) for found in list_backups(site.store)] == [(key, True)]
    found = verify_backup(site.database, site.store)
    assert (found.evidence, found.size, found.key_fingerprint) == ("HMAC-SHA256", len(site.plain), fingerprint)
    assert site.restored(tmp_path) == site.plain
    assert plan_restore(site.database, site.store).backup.size == len(site.plain)
    assert looks(site.store, list_backups(site.store))[0][key].fault == ""
    assert identify_backup(site.database, site.store, key).origin is not None


def test_the_original_server_refuses_it(site):
    """It compares the HMAC of the whole object under the key with the ``.mac``."""
    key = site.back_up()
    assert hmac.digest(bytes.fromhex(KEY), site.data(key), hashlib.sha256).hex().encode() != site.data(f"{key}.mac")


def test_an_upload_that_is_tried_again_finds_its_object_and_another_one_is_refused(site):
    snapshot = take_snapshot(site.database)
    key = upload_snapshot(site.database, site.store, snapshot).key
    before = site.data(key)
    upload_snapshot(site.database, site.store, find_snapshot(site.database, snapshot.filename))
    assert site.data(key) == before
    other = site.back_up()
    site.move(other, key)
    with pytest.raises(DucklingError, match="stamp of its name"):
        upload_snapshot(site.database, site.store, snapshot)


@pytest.mark.parametrize("before,after", [(1, 2), (2, 1)])
def test_a_snapshot_is_sealed_again_when_the_format_was_changed(site, tmp_path, before, after):
    snapshot = take_snapshot(site.configure(objectFormat=before))
    key = upload_snapshot(site.configure(objectFormat=after), site.store, snapshot).key
    assert site.store.objects[key][0].metadata["duckling-format"] == str(after)
    assert site.restored(tmp_path, key) == site.plain


@pytest.mark.parametrize("kept", [{}, {"duckling-format": "1"}], ids=["lost", "of format 1"])
def test_the_end_of_an_object_decides_its_format_whatever_its_metadata_say(site, tmp_path, kept):
    key = site.back_up()
    site.replace(key, site.data(key), metadata=kept)
    assert site.restored(tmp_path) == site.plain
    assert key_of(site.store, key, [EncryptionKey.parse(KEY)]) == EncryptionKey.parse(KEY).fingerprint


def test_a_backup_of_format_2_is_read_where_the_entry_makes_format_1(site, tmp_path):
    site.back_up()
    site.configure(objectFormat=None)
    assert site.restored(tmp_path) == site.plain


# --- which one is the latest ---------------------------------------------------------------------------------


def test_with_format_2_an_object_of_format_1_is_never_the_latest_but_is_restored_by_its_key(site, tmp_path, caplog):
    site.configure(objectFormat=1)
    first = site.back_up()
    site.configure()
    with pytest.raises(NotFoundError):
        resolve(site.database, site.store)
    assert site.restored(tmp_path, first) == site.plain
    second = site.back_up()
    site.configure(objectFormat=1)
    third = site.back_up()
    assert resolve(site.database, site.store) == third
    site.configure()
    assert resolve(site.database, site.store) == second
    assert resolve(site.database, site.store, proven=False) == second
    assert f"{third} is passed over: it is of format 1" in caplog.text


def test_an_object_that_lost_its_end_is_damaged_and_no_older_one_is_taken_in_its_place(site):
    site.back_up()
    newest = site.back_up()
    site.replace(newest, site.data(newest)[:-1])
    assert resolve(site.database, site.store) == newest
    with pytest.raises(IntegrityError):
        verify_backup(site.database, site.store, note=False)


# --- names ---------------------------------------------------------------------------------------------------


def test_an_old_object_under_a_newer_name_is_refused_also_when_it_is_named(site):
    old = site.back_up()
    newer = "production/backup-2999-01-01T00-00-00-000Z.db"
    site.move(old, newer)
    for chosen in (False, True):
        with pytest.raises(IntegrityError, match="footer has not the stamp of its name"):
            identify_backup(site.database, site.store, newer, chosen=chosen)


def test_an_object_without_a_stamp_in_its_name_is_restored_by_its_key_with_a_warning(site, tmp_path, caplog):
    site.move(site.back_up(), "production/before-the-upgrade.db")
    with caplog.at_level(logging.WARNING):
        assert site.restored(tmp_path, "production/before-the-upgrade.db") == site.plain
    assert "its name does not tell" in caplog.text


def test_an_object_of_another_database_is_restored_only_by_its_key_whatever_its_metadata_say(site, tmp_path, caplog):
    key = site.back_up()
    site.replace(key, site.data(key), metadata={})
    site.installation.write(dict(site.database.entry, id="renamed", s3=site.database.entry["s3"] | {"pathPrefix": ""}))
    renamed = site.installation.database("renamed")
    with pytest.raises(ModeError, match="is of the database 'production'"):
        verify_backup(renamed, site.store)
    site.database = renamed
    assert site.restored(tmp_path, key) == site.plain
    assert "is a backup of the database 'production'" in caplog.text


# --- damaged -------------------------------------------------------------------------------------------------


def spoil(data, position):
    spoilt = bytearray(data)
    spoilt[position] ^= 1
    return bytes(spoilt)


def swapped(data):
    return data[SEGMENT : 2 * SEGMENT] + data[:SEGMENT] + data[2 * SEGMENT :]


#: What becomes of an object; a number is the byte that is altered.
DAMAGE = {
    "the first segment": 0,
    "the second segment": SEGMENT,
    "the footer": -END_BYTES - 1,
    "the length": -END_BYTES + 3,
    "the magic": -END_BYTES + 5,
    "the HMAC": -1,
    "cut": lambda data: data[: len(data) // 2],
    "without its first bytes": lambda data: data[16:],
    "extended": lambda data: data + bytes(16),
    "two segments changed places": swapped,
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_object_is_refused_and_the_replica_stays_as_it_was(site, damage, metadata):
    key = site.back_up()
    kept = {} if metadata else {"metadata": {}}
    how, data = DAMAGE[damage], site.data(key)
    site.replace(key, spoil(data, how) if isinstance(how, int) else how(data), **kept)
    with pytest.raises(IntegrityError):
        verify_backup(site.database, site.store, key)
    with pytest.raises(IntegrityError):
        # All of it is fetched: from this machine, the good segments would be taken.
        restore_backup(site.database, site.store, key, no_delta=True)
    assert site.database.replica.read_bytes() == site.plain


def test_a_mac_that_is_missing_or_of_another_object_is_refused(site):
    first, second = site.back_up(), site.back_up()
    index = len(site.plain)
    site.replace(first, spoil(site.data(first), index))
    with pytest.raises(IntegrityError, match="HMAC verification failed: its index or footer is damaged"):
        verify_backup(site.database, site.store, first)
    site.store.objects[f"{second}.mac"] = site.store.objects[f"{first}.mac"]
    with pytest.raises(IntegrityError, match=r"the \.mac belongs to another object"):
        verify_backup(site.database, site.store, second)
    del site.store.objects[f"{second}.mac"]
    with pytest.raises(IntegrityError, match=r"its \.mac is missing"):
        verify_backup(site.database, site.store, second)


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
def test_another_key_is_told_as_such_and_an_earlier_one_reads_it(site, tmp_path, metadata):
    key = site.back_up()
    if not metadata:
        site.replace(key, site.data(key), metadata={})
    site.configure(encryptionKey=OTHER_KEY)
    with pytest.raises(WrongKeyError, match="key") as caught:
        verify_backup(site.database, site.store, key)
    assert caught.value.proven == metadata
    assert key_of(site.store, key, [EncryptionKey.parse(OTHER_KEY)]) == (
        EncryptionKey.parse(KEY).fingerprint if metadata else None
    )
    site.configure(encryptionKey=OTHER_KEY, previousEncryptionKeys=[KEY])
    assert site.restored(tmp_path, key) == site.plain


# --- on the way ----------------------------------------------------------------------------------------------


class BadLine(MemoryStore):
    """Of segment 1, the first `damaged` answers are; `cut` of its answers end early. Counts requests under way."""

    damaged = cut = 0

    def __init__(self, good):
        super().__init__(prefix=good.prefix, mode=good.mode)
        self.objects = good.objects
        self.most = self.now = 0
        self.lock = threading.Lock()

    def open_range(self, key, start, stop, *, etag=""):
        data = self.objects[key][1][start:stop]
        store = self

        class Stream(io.BytesIO):
            def close(self):
                with store.lock:
                    store.now -= not self.closed
                super().close()

        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if SEGMENT <= start < 2 * SEGMENT and self.cut:
                self.cut -= 1
                data = data[: len(data) // 2]
            elif start == SEGMENT and self.damaged:
                self.damaged -= 1
                data = spoil(data, 77)
        return Stream(data)


def test_a_segment_that_arrives_damaged_is_fetched_again_at_most_twice_and_no_byte_of_it_is_handed_on(site):
    key = site.back_up()
    line = BadLine(site.store)
    backup = identify_backup(site.database, line, key)
    for damaged in range(REFETCHES + 2):
        line.damaged, got = damaged, bytearray()
        if damaged <= REFETCHES:
            read_verified(backup, line, sink=got.extend)
            assert bytes(got) == site.plain
        else:
            with pytest.raises(IntegrityError, match=f"bytes {SEGMENT} to {2 * SEGMENT - 1}"):
                read_verified(backup, line, sink=got.extend)
            assert bytes(got) == site.plain[:SEGMENT]
        assert line.damaged == 0
    assert line.most <= BUFFERS


def test_an_answer_that_breaks_off_goes_on_where_it_was_and_one_that_always_does_is_the_stores_error(site, monkeypatch):
    monkeypatch.setattr(concurrency, "pause_after", lambda attempt: 0.0 * attempt)
    key = site.back_up()
    line = BadLine(site.store)
    line.cut = 2
    backup = identify_backup(site.database, line, key)
    got = bytearray()
    read_verified(backup, line, sink=got.extend)
    assert bytes(got) == site.plain
    line.cut = 1000
    with pytest.raises(StoreError, match="the store sent"):
        read_verified(backup, line)


# --- the setting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"objectFormat": 3}, "expected a whole number from 1 to 2"),
        ({"objectFormat": "2"}, "expected a whole number, got a string"),
        ({"encryption": "none"}, 'objectFormat: 2 is a format of "client-aes256" only'),
        ({"encryption": "sse-s3"}, 'objectFormat: 2 is a format of "client-aes256" only'),
    ],
)
def test_a_format_that_there_is_not_or_not_for_this_mode_is_told(site, fields, cause):
    s3 = site.database.entry["s3"] | fields
    site.installation.write(site.installation.entry(s3=s3))
    assert any(cause in str(problem) for problem in load().problems)


def test_an_object_of_format_1_is_as_before_where_the_setting_is_left_out(site):
    site.configure(objectFormat=None)
    site.store.put(KEY_1, BytesBody(b""))
    assert site.store.objects[site.back_up()][0].metadata["duckling-format"] == "1"
