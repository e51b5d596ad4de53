"""Objects of format 2 share segments: the store copies what did not change, and each object stands alone still."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from fixtures.any_bytes import HEAD
from fixtures.generations import (
    BEGAN,
    SEGMENT,
    SIZE,
    GenerationsSite,
    a_way_to_verify,
    after,
    changed,
    some_bytes,
    use_short_segments,
)

from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_upload
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, IntegrityError, StoreError
from duckling_provider.base.moments import stamp_of
from duckling_provider.formats import segments
from duckling_provider.formats.segment_fetch import fetch_segments
from duckling_provider.formats.segments import SegmentKeys
from duckling_provider.replica.origin import Origin
from duckling_provider.stores.store import CopyRefusedError

KEY, OTHER_KEY = "c4" * 32, "d5" * 32
ORIGIN = Origin("3a91c4075be82d66", "here").encode()
_FORMAT_2 = {"encryption": "client-aes256", "encryptionKey": KEY, "objectFormat": 2}


class Site(GenerationsSite):
    """A database whose files become objects of format 2."""

    def __init__(self, installation):
        super().__init__(installation, **_FORMAT_2)

    def configure(self, **fields):
        """As it was at first, but for these."""
        self.fields = dict(_FORMAT_2)
        super().configure(**fields)

    def snapshot(self, data, origin=ORIGIN):
        return super().snapshot(data, origin)

    def upload(self, data, origin=ORIGIN, **more):
        return super().upload(data, origin, **more)

    def footer(self, key):
        return identify_backup(self.database, self.store, key, chosen=True, compare=False).trailer.footer

    def plain(self, key):
        backup = identify_backup(self.database, self.store, key, chosen=True, compare=False)
        found = fetch_segments(self.store, key, backup.trailer, SegmentKeys(backup.encryption_key))
        return b"".join(bytes(piece) for _, piece in found)

    def trailer(self, key):
        """Bytes that are always sent."""
        return self.store.head(key).size - self.footer(key).size


@pytest.fixture
def site(installation, monkeypatch):
    use_short_segments(monkeypatch)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SEGMENT)
    return Site(installation)


@pytest.mark.parametrize("kept", [True, False], ids=["with local backups", "without"])
def test_changed_segments_are_sent_and_the_trailer_whatever_is_left_on_this_machine(site, kept):
    first = some_bytes(SIZE)
    whole = site.upload(first, kept=kept)
    assert (whole.bytes_sent, whole.because) == (SIZE + site.trailer(whole.key), "there is no earlier backup")
    done = site.upload(changed(first, 0, 5, 6), kept=kept)
    assert (done.bytes_sent, done.because) == (3 * SEGMENT + site.trailer(done.key), "")
    assert done.bytes_copied == SIZE - 3 * SEGMENT
    again = site.upload(changed(first, 0, 5, 6), kept=kept)
    assert again.bytes_sent == site.trailer(again.key)
    grown = site.upload(changed(first, 0, 5, 6) + b"grown by this", kept=kept)
    assert grown.bytes_sent == site.footer(grown.key).size % SEGMENT + site.trailer(grown.key)
    keys = [result.key for result in (whole, done, again, grown)]
    assert [site.footer(key).generation for key in keys] == [0, 1, 2, 3]
    assert len({site.footer(key).lineage for key in keys}) == 1


def test_each_object_stands_alone(site):
    first = some_bytes(SIZE)
    one, two = site.upload(first), site.upload(changed(first, 3))
    for suffix in ("", ".mac", ".state"):
        site.store.delete(one.key + suffix)
    assert site.plain(two.key) == changed(first, 3)


def test_after_so_many_and_after_a_disproof_all_is_sent_under_a_new_lineage(site):
    site.configure(fullUploadEvery=3)
    first = some_bytes(SIZE)
    done = [site.upload(first) for _ in range(4)]
    assert [site.footer(each.key).generation for each in done] == [0, 1, 2, 0]
    assert done[3].because == "one of 3 is sent in full (s3.fullUploadEvery)"
    assert site.footer(done[3].key).lineage != site.footer(done[0].key).lineage
    bad = site.upload(first, verified="disproved")
    whole = site.upload(first)
    assert f"{bad.key} was disproved" in whole.because
    assert site.footer(whole.key).generation == 0
    assert site.upload(first).because == ""


def test_only_what_was_verified_in_full_lends_segments_and_generations_count_all(site):
    first = some_bytes(SIZE)
    one = site.upload(first)
    two = site.upload(changed(first, 1), verified="sent")
    three = site.upload(changed(first, 1), verified="")
    assert three.bytes_sent == SEGMENT + site.trailer(three.key)
    assert [site.footer(each.key).generation for each in (one, two, three)] == [0, 1, 2]


def test_an_object_from_the_future_lends_nothing(site):
    first = some_bytes(SIZE)
    site.moment = datetime.now(timezone.utc) + timedelta(days=300)
    site.upload(first)
    site.moment = BEGAN
    assert site.upload(first).because == "there is no earlier backup"


def test_what_was_sent_in_parts_of_another_size_lends_its_segments(site):
    first = some_bytes(SIZE)
    site.upload(first)
    site.configure(partSizeMiB=6)
    done = site.upload(changed(first, 4))
    assert done.bytes_sent == SEGMENT + site.trailer(done.key)


FOREIGN = Origin("0123456789abcdef", "elsewhere").encode()


@pytest.mark.parametrize(
    ("fields", "origin", "because"),
    [
        ({"encryptionKey": OTHER_KEY, "previousEncryptionKeys": [KEY]}, ORIGIN, "wrong key"),
        ({}, FOREIGN, "is of another replica"),
        ({}, None, "is of another replica"),
    ],
    ids=["another key", "another replica", "a replica that is not known"],
)
def test_an_object_of_another_key_or_replica_lends_nothing(site, fields, origin, because):
    first = some_bytes(SIZE)
    site.upload(first)
    site.configure(**fields)
    done = site.upload(first, origin=origin)
    assert because in done.because
    assert site.footer(done.key).generation == 0


def test_a_damaged_renamed_or_older_formats_object_lends_nothing(site):
    first = some_bytes(SIZE)
    site.configure(objectFormat=1)
    snapshot = site.snapshot(first)
    key = upload_snapshot(site.database, site.store, snapshot).key
    record_state(site.database, site.store, site.store.head(key), "verified", means="full")
    site.configure()
    done = site.upload(first)
    assert done.because == f"{key} is of format 1"
    later = f"production/backup-{stamp_of(site.moment + timedelta(seconds=5))}.db"
    for suffix in ("", ".mac"):
        stored, data = site.store.objects[done.key + suffix]
        site.store.objects[later + suffix] = (replace(stored, key=later + suffix), data)
    assert site.upload(first).because == ""
    stored, data = site.store.objects[done.key]
    site.store.objects[done.key] = (stored, data[:-1] + bytes([data[-1] ^ 1]))
    for newer in list_backups(site.store)[:2]:
        site.store.delete(newer.key)
    assert "HMAC verification failed" in site.upload(first).because


def test_a_store_that_refuses_to_copy_gets_all_of_it_under_a_new_lineage(site, monkeypatch):
    first = some_bytes(SIZE)
    one = site.upload(first)
    put = site.store.put

    def refuse(*arguments, copies=None, **more):
        if copies is not None:
            raise CopyRefusedError("it copies nothing")
        return put(*arguments, **more)

    monkeypatch.setattr(site.store, "put", refuse)
    two = site.upload(first)
    assert "it copies nothing" in two.because
    assert (site.footer(two.key).generation, two.bytes_copied) == (0, 0)
    assert site.footer(two.key).lineage != site.footer(one.key).lineage
    assert "it copies nothing" in site.upload(first).because


def test_an_interrupted_upload_is_the_same_object_when_it_is_tried_again(site, monkeypatch):
    first = some_bytes(SIZE)
    site.upload(first)
    snapshot = site.snapshot(changed(first, 2))
    put = site.store.put

    def break_off(key, body, *, upload_log=None, copies=None, **more):
        if copies is not None:
            upload_log.begin("upload-1")
            raise StoreError("the store fell silent")
        return put(key, body, **more)

    monkeypatch.setattr(site.store, "put", break_off)
    with pytest.raises(StoreError):
        upload_snapshot(site.database, site.store, snapshot)
    sealed = find_snapshot(site.database, snapshot.filename)
    monkeypatch.setattr(site.store, "put", put)
    done = upload_snapshot(site.database, site.store, sealed)
    assert done.bytes_sent == SEGMENT + site.trailer(done.key)
    assert site.store.read_small(f"{done.key}.mac", 64) == sealed.mac.encode()


def test_a_cancelled_look_at_earlier_backups_ends_the_upload(site, monkeypatch):
    site.upload(some_bytes(SIZE))
    snapshot = site.snapshot(some_bytes(SIZE))
    control = Control()
    monkeypatch.setattr(site.store, "head", lambda _: control.check())
    control.cancel()
    with pytest.raises(CancelledError):
        upload_snapshot(site.database, site.store, snapshot, control=control)


def test_the_pass_of_the_snapshot_is_the_only_one_once_a_lineage_is_known_here(site, monkeypatch):
    first = some_bytes(SIZE)
    site.upload(first)
    passes = []
    monkeypatch.setattr("duckling_provider.backup.making.seal.one_pass", lambda *_: passes.append(1))
    for number in range(1, 4):
        assert site.upload(changed(first, number)).because == ""
    assert passes == []


def test_sent_proves_what_was_sent_and_a_sample_of_what_was_copied(site, installation, small_replica):
    small_replica(installation.replica())
    first = installation.replica().read_bytes()[:SEGMENT] + some_bytes(SIZE)
    site.upload(first)
    good = site.upload(changed(first, 5, 90), verified="")
    found = verify_upload(site.database, site.store, good.key)
    assert (found.evidence, found.size) == ("sent", len(first))
    bad = site.upload(changed(first, 5, 90), verified="")
    assert bad.bytes_copied > 0
    stored, data = site.store.objects[bad.key]
    at = 90 * SEGMENT
    site.store.objects[bad.key] = (stored, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(IntegrityError, match=f"bytes {at} to"):
        verify_upload(site.database, site.store, bad.key)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_generations_of_any_changes_are_each_restored_as_they_were_backed_up(site, seed, full):
    draw = random.Random(seed)
    site.configure(fullUploadEvery=7)
    data, copied, lent = HEAD + some_bytes(SIZE, seed), 0, 0
    for generation in range(150 if full else 15):
        data = after(data, draw, generation)
        verified = a_way_to_verify(draw)
        done = site.upload(data, verified=verified, kept=draw.random() < 0.7)  # compares the object with the file
        copied += done.bytes_copied
        # With what the replica has of it, which is a generation before, or with nothing.
        lent += restore_backup(site.database, site.store, done.key, no_delta=draw.random() < 0.5).bytes_lent
        assert site.database.replica.read_bytes() == data
        for old in list_backups(site.store)[12:]:
            site.store.delete(old.key)
    assert copied > 0
    assert lent > 0
