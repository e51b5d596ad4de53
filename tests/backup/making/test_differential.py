"""A backup sends what changed since the last one that was verified in full, and is the plain file all the same."""

from __future__ import annotations

import random
import subprocess
import sys
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
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.flow import back_up
from duckling_provider.backup.inventory import segment_records
from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.segment_records import record_of, records
from duckling_provider.backup.inventory.states import read_state, record_state
from duckling_provider.backup.making.copy_refusals import remember_refusal, remembered_refusal
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verified_read import read_verified
from duckling_provider.backup.reading.verify import verify_upload
from duckling_provider.backup.retention.clean_up import clean_up
from duckling_provider.base.errors import IntegrityError, StoreError
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.formats import segments
from duckling_provider.oversight.check import check_database
from duckling_provider.replica.origin import ensure_origin
from duckling_provider.stores import s3_client
from duckling_provider.stores.parts import MIB, MIN_PART
from duckling_provider.stores.s3 import open_store

# ---- with a store in memory and files of any bytes ---------------------------------------------------------


class Site(GenerationsSite):
    """A database whose plain files are uploaded, of a replica that has an identity."""

    def __init__(self, installation, **fields):
        super().__init__(installation, **fields)
        self.database.replica.write_bytes(b"a replica")
        self.origin = ensure_origin(self.database.replica, host="here")

    def snapshot(self, data, origin=None):
        return super().snapshot(data, origin or self.origin.encode())

    def upload(self, data, origin=None, **more):
        return super().upload(data, origin or self.origin.encode(), **more)

    def plain(self, key):
        if self.store.mode == "none":
            return super().plain(key)
        found = bytearray()
        backup = identify_backup(self.database, self.store, key, chosen=True, compare=False)
        read_verified(backup, self.store, sink=found.extend)
        return bytes(found)


@pytest.fixture
def site(installation, monkeypatch):
    use_short_segments(monkeypatch)
    return Site(installation)


@pytest.mark.parametrize("size", [0, 16 * MIB, 16 * MIB + 5])
@pytest.mark.parametrize("fields", [{}, {"encryption": "client-aes256", "encryptionKey": "5b" * 32, "objectFormat": 2}])
def test_where_parts_are_segments_one_checksum_serves_both(installation, fields, size):
    site = Site(installation, partSizeMiB=8, **fields)
    data = some_bytes(size)
    made = site.snapshot(data)
    record = record_of(site.database, made.filename)
    assert (made.checksum_key, made.part_checksums[: len(record.checksums)]) == (record.key, record.checksums)
    assert len(record.checksums) == max(1, -(-size // segment_records.SEGMENT_BYTES))
    site.configure(partSizeMiB=16)
    other = site.snapshot(data)
    assert other.checksum_key != record.key
    assert record_of(site.database, other.filename).checksums == record.checksums


def test_only_changed_segments_are_sent(site):
    first = some_bytes(SIZE)
    done = site.upload(first)
    assert (done.bytes_sent, done.bytes_copied) == (SIZE, 0)
    assert done.because == "no earlier upload to this bucket is recorded on this machine"
    done = site.upload(changed(first, 0, 5, 6))
    assert (done.bytes_sent, done.bytes_copied, done.because) == (3 * SEGMENT, SIZE - 3 * SEGMENT, "")
    # From the one that was verified in full last.
    done = site.upload(changed(first, 0, 5, 6, 9) + b"grown by this")
    assert done.bytes_sent == SEGMENT + SIZE % SEGMENT + len(b"grown by this")
    done = site.upload(changed(first, 0, 5, 6, 9)[: SIZE - MIB])
    assert done.bytes_sent < SEGMENT
    assert site.upload(changed(first, 0, 5, 6, 9)[: SIZE - MIB]).bytes_sent == 0


def test_what_was_not_verified_in_full_lends_nothing(site):
    first = some_bytes(SIZE)
    site.upload(first, verified="")
    assert site.upload(first, verified="sent").because == "no earlier backup was verified in full"
    assert site.upload(first).because == "no earlier backup was verified in full"
    assert site.upload(first).because == ""


def test_the_source_is_the_newest_that_was_verified_in_full(site):
    first = some_bytes(SIZE)
    one = site.upload(first)
    site.upload(changed(first, 1), verified="sent")
    site.store.objects.pop(list_backups(site.store)[0].key)
    done = site.upload(changed(first, 1))
    assert done.bytes_sent == SEGMENT
    assert one.key in site.store.objects


def test_two_hosts_with_one_prefix_copy_from_their_own_backups_only(site, installation, tmp_path, monkeypatch):
    here, there = some_bytes(SIZE), some_bytes(SIZE, seed=2)
    folder = replace(installation, data_path=tmp_path / "there", backup_path=tmp_path / "there" / "backups")
    folder.data_path.mkdir()
    site.upload(here)
    with monkeypatch.context() as environment:
        environment.setenv("DATA_PATH", str(folder.data_path))
        environment.setenv("BACKUP_PATH", str(folder.backup_path))
        other = Site(folder)
        other.store, other.moment = site.store, site.moment
        assert other.upload(there).because == "no earlier upload to this bucket is recorded on this machine"
        assert other.upload(changed(there, 1)).bytes_sent == SEGMENT
        site.moment = other.moment
    assert site.upload(changed(here, 2)).bytes_sent == SEGMENT
    assert len(list_backups(site.store)) == 4


def test_every_so_many_are_sent_in_full(site):
    site.configure(fullUploadEvery=3)
    first = some_bytes(SIZE)
    because = [site.upload(first).because for _ in range(7)]
    full = "one of 3 is sent in full (s3.fullUploadEvery)"
    assert because[1:] == ["", "", full, "", "", full]


def test_where_each_is_sent_in_full_the_reason_does_not_say_one_of_one(site):
    site.configure(fullUploadEvery=1)
    site.upload(some_bytes(SIZE))
    assert site.upload(some_bytes(SIZE)).because == "each is sent in full (s3.fullUploadEvery)"


def test_after_a_disproof_everything_is_sent_once(site):
    first = some_bytes(SIZE)
    site.upload(first)
    bad = site.upload(first, verified="disproved")
    assert f"{bad.key} was disproved at" in site.upload(first).because
    assert site.upload(first).because == ""
    # A drill finds an old one bad.
    old = min(list_backups(site.store), key=lambda found: found.created)
    record_state(site.database, site.store, site.store.head(old.key), "disproved", means="drill", reason="no")
    assert f"{old.key} was disproved at" in site.upload(first).because
    assert site.upload(first).because == ""


REFUSED = {
    "the source is deleted": lambda site, key: site.store.objects.pop(key),
    "the source is replaced": lambda site, key: site.store.objects.update(
        {key: (replace(site.store.head(key), etag="another"), site.store.objects[key][1])}
    ),
    "the record is lost": lambda site, key: record_of(site.database, key.rpartition("/")[2]).path.unlink(),
    "the record is damaged": lambda site, key: record_of(site.database, key.rpartition("/")[2]).path.write_text("{"),
    "another replica": lambda site, _: setattr(site, "origin", replace(site.origin, replica="0123456789abcdef")),
    "another bucket": lambda site, _: setattr(type(site.store), "url", "memory-two:"),
    "too small": lambda site, _: site.configure(partSizeMiB=16),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_where_no_source_can_be_trusted_all_is_sent(site, fault, monkeypatch):
    monkeypatch.setattr(MemoryStore, "url", "memory:")
    first = some_bytes(SIZE)
    done = site.upload(first)
    REFUSED[fault](site, done.key)
    done = site.upload(first)
    assert (done.bytes_sent, bool(done.because)) == (SIZE, True)


def test_an_object_from_the_future_lends_nothing(site):
    first = some_bytes(SIZE)
    site.moment = datetime.now(timezone.utc) + timedelta(days=300)
    site.upload(first)
    site.moment = BEGAN
    assert site.upload(first).bytes_sent == SIZE


@pytest.mark.parametrize("ahead", ["the name", "all"])
def test_a_clock_that_was_ahead_once_stops_neither_full_uploads_nor_the_rotation(site, monkeypatch, ahead):
    site.configure(fullUploadEvery=3)
    first = some_bytes(SIZE)
    site.moment = datetime.now(timezone.utc) + timedelta(days=300)
    done = site.upload(first)
    if ahead == "all":
        record = record_of(site.database, done.key.rpartition("/")[2])
        replace(record, uploaded=replace(record.uploaded, full_at=iso(site.moment))).save()
    site.moment = BEGAN
    because = [site.upload(first).because for _ in range(7)]
    assert [bool(text) for text in because] == [True, False, False, True, False, False, True]
    believed = [record for record in records(site.database) if record.stamp < stamp_of(BEGAN + timedelta(days=1))]
    uploads = [record.uploaded.number for record in believed]
    assert uploads == [6, 5, 4, 3, 2, 1, 0]


def test_a_disproof_counts_though_all_was_sent_by_a_clock_that_was_ahead(site):
    first = some_bytes(SIZE)
    done = site.upload(first)
    record = record_of(site.database, done.key.rpartition("/")[2])
    later = iso(datetime.now(timezone.utc) + timedelta(days=300))
    replace(record, uploaded=replace(record.uploaded, full_at=later)).save()
    assert site.upload(first).because == f"all was sent the last time at {later}, by a wrong clock"
    assert site.upload(first).because == ""


def test_what_was_sent_in_parts_of_another_size_lends_its_segments(site):
    first = some_bytes(SIZE)
    site.upload(first)
    site.configure(partSizeMiB=6)
    assert site.upload(changed(first, 4)).bytes_sent == SEGMENT


def test_a_snapshot_that_was_altered_is_not_sent(site):
    first = some_bytes(SIZE)
    site.upload(first)
    snapshot = site.snapshot(changed(first, 3))
    snapshot.path.write_bytes(changed(first, 3, 3))
    with pytest.raises(Exception, match="changed since it was made"):
        upload_snapshot(site.database, site.store, snapshot)


def test_the_record_outlives_the_local_copy_and_goes_with_the_object(site):
    first = some_bytes(SIZE)
    done = site.upload(first)
    name = done.key.rpartition("/")[2]
    (site.database.backup_dir / name).unlink()
    clean_up(site.database, site.store)
    assert site.upload(changed(first, 2)).bytes_sent == SEGMENT
    del site.store.objects[done.key]
    clean_up(site.database, site.store)
    assert record_of(site.database, name) is None


def test_the_newest_that_was_verified_in_full_outlives_its_retention(site):
    site.configure(s3BackupRetentionDays=1)
    first = some_bytes(SIZE)
    one = site.upload(first)
    others = [site.upload(first, verified="sent") for _ in range(2)]
    clean_up(site.database, site.store)
    kept = {backup.key for backup in list_backups(site.store)}
    assert kept == {one.key, others[-1].key}


def test_what_sent_proves_does_not_replace_what_full_proved(site):
    done = site.upload(some_bytes(SIZE))
    stored = site.store.head(done.key)
    record_state(site.database, site.store, stored, "verified", means="sent")
    [listed] = list_backups(site.store)
    assert read_state(site.database, site.store, listed).is_whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "fields"),
    [
        (0, {}),
        *(pytest.param(seed, {}, marks=pytest.mark.full) for seed in (1, 2)),
        # Each is sent whole, and lends and borrows by its record.
        pytest.param(3, {"encryption": "client-aes256", "encryptionKey": "c4" * 32}, marks=pytest.mark.full),
    ],
    ids=["0", "1", "2", "format 1"],
)
def test_hundreds_of_generations_are_each_restored_as_they_were_backed_up(site, seed, fields, full):
    site.configure(**fields)
    site.store.mode = fields.get("encryption", "none")
    draw = random.Random(seed)
    site.configure(fullUploadEvery=7)
    data = HEAD + some_bytes(SIZE, seed)
    sent = lent = 0
    for generation in range(200 if full else 25):
        data = after(data, draw, generation)
        done = site.upload(data, verified=a_way_to_verify(draw))  # compares the object with the file
        sent += done.bytes_sent
        if draw.random() < 0.7:
            (site.database.backup_dir / done.key.rpartition("/")[2]).unlink()
        if draw.random() < 0.5:  # with what the replica has of it, which is a generation before
            lent += restore_backup(site.database, site.store, done.key).bytes_lent
        else:
            restore_backup(site.database, site.store, done.key, no_delta=True)
        assert site.database.replica.read_bytes() == data
        if draw.random() < 0.05:
            record_of(site.database, done.key.rpartition("/")[2]).path.unlink()
        for old in list_backups(site.store)[12:]:
            site.store.delete(old.key)
    assert sent > 0
    assert lent > 0


# ---- verification ------------------------------------------------------------------------------------------


def damage(site, key, position):
    stored, data = site.store.objects[key]
    site.store.objects[key] = (stored, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


@pytest.fixture
def duckdb_site(site, small_replica, installation):
    """A site whose bytes begin as a DuckDB file does."""
    small_replica(installation.replica())
    site.head = installation.replica().read_bytes()[:SEGMENT]
    return site


def test_sent_reads_what_was_sent_and_finds_damage_there(duckdb_site):
    site = duckdb_site
    first = site.head + some_bytes(SIZE)
    site.upload(first)
    good = site.upload(changed(first, 5, 90), verified="")
    result = verify_upload(site.database, site.store, good.key)
    assert result.evidence == "sent"
    assert read_state(site.database, site.store, list_backups(site.store)[0]).name == "verified"
    bad = site.upload(changed(first, 5, 90), verified="")
    damage(site, bad.key, 90 * SEGMENT + 9)
    with pytest.raises(IntegrityError, match="SHA-256 verification failed"):
        verify_upload(site.database, site.store, bad.key)
    assert read_state(site.database, site.store, list_backups(site.store)[0]).name == "disproved"


def test_sent_reads_other_copied_segments_each_time_until_all_were_read(duckdb_site, monkeypatch):
    site = duckdb_site
    monkeypatch.setattr("duckling_provider.backup.reading.verify._SAMPLE", 4)
    site.configure(fullUploadEvery=100)
    first = site.head + some_bytes(SIZE)
    site.upload(first)
    found = 0
    for _ in range(4):
        done = site.upload(first, verified="")
        damage(site, done.key, 77 * SEGMENT)
        try:
            verify_upload(site.database, site.store, done.key)
        except IntegrityError:
            found += 1
        for suffix in ("", ".state"):
            site.store.delete(done.key + suffix)
    assert found == 1


@pytest.mark.parametrize(
    ("fields", "age", "evidence"),
    [
        ({}, timedelta(days=1), "sent"),
        ({"verify": "sent"}, timedelta(days=1), "sent"),
        ({"verify": "full"}, timedelta(days=1), "full"),
        ({"verify": "head"}, timedelta(days=1), "head"),
        ({}, timedelta(days=8), "full"),
        ({"verifyFullIntervalDays": 0.5}, timedelta(days=1), "full"),
    ],
)
def test_how_much_is_read_follows_the_setting_and_the_last_time(duckdb_site, fields, age, evidence, monkeypatch):
    site = duckdb_site
    site.configure(**fields)
    first = site.head + some_bytes(SIZE)
    one = site.upload(first, verified="")
    stored = site.store.head(one.key)
    at = datetime.now(timezone.utc) - age
    record_state(site.database, site.store, stored, "verified", means="full", at=at)
    done = site.upload(first, verified="")
    assert done.bytes_copied
    asked = []
    monkeypatch.setattr(
        "duckling_provider.backup.reading.verify.verify_backup",
        lambda *_, full=True, **__: asked.append("full" if full else "head"),
    )
    result = verify_upload(site.database, site.store, done.key)
    assert (asked[0] if asked else result.evidence) == evidence


# ---- with real stores and DuckDB ---------------------------------------------------------------------------


class Real:
    def __init__(self, installation, server, make_proxy, **fields):
        self.installation, self.fields = installation, fields
        self.bucket, self.client = server.new_bucket(), server.client()
        self.proxy = make_proxy(server)
        self.through(self.proxy.server)

    def through(self, server, **fields):
        entry = self.installation.entry(s3=server.s3(self.bucket, partSizeMiB=5, **self.fields, **fields))
        self.installation.write(entry)
        self.database = self.installation.database()
        self.store = open_store(self.database)

    def back_up(self):
        self.proxy.seen.clear()
        return back_up(self.database, self.store)

    def sent(self):
        return sum(seen.size for seen in self.proxy.seen if seen.operation == "UploadPart" and seen.status == 200)

    def is_whole(self, key):
        data = bytearray()
        read_verified(identify_backup(self.database, self.store, key), self.store, sink=data.extend)
        return data == self.installation.replica().read_bytes()


@pytest.fixture
def real(installation, make_replica, make_proxy, monkeypatch):
    """In three segments, as short as the smallest part: the second is the one that a change leaves."""
    monkeypatch.setattr(segment_records, "SEGMENT_BYTES", MIN_PART)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", MIN_PART)
    replica = make_replica(installation.replica(), rows=250_000)
    assert 2 * MIN_PART < replica.stat().st_size < 3 * MIN_PART - 100_000
    return lambda server, **fields: Real(installation, server, make_proxy, **fields)


@pytest.fixture
def real_segments(installation, medium_replica, make_proxy):
    """As `real`, in segments as they are."""
    medium_replica(installation.replica())
    return lambda server, **fields: Real(installation, server, make_proxy, **fields)


def append(replica):
    """One table more, by a process of DuckDB's own."""
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE TABLE one_more AS SELECT 42 AS a')"
    subprocess.run([sys.executable, "-c", program, str(replica)], check=True)


@pytest.mark.server
@pytest.mark.parametrize(
    ("server", "mode"),
    [
        ("moto_server", "none"),
        ("moto_server", "sse-s3"),
        ("seaweed_server", "none"),
        ("moto_server", "client-aes256"),
        ("seaweed_server", "client-aes256"),
    ],
)
def test_the_second_backup_sends_less_and_is_verified(real_segments, request, server, mode):
    encrypted = {"encryptionKey": "c4" * 32, "objectFormat": 2} if mode == "client-aes256" else {}
    site = real_segments(request.getfixturevalue(server), encryption=mode, **encrypted)
    assert site.back_up().upload.because
    append(site.installation.replica())
    done = site.back_up()
    assert done.upload.because == ""
    assert done.upload.bytes_sent == site.sent() < done.upload.size
    assert done.upload.bytes_copied >= 8 * MIB
    assert done.verified.evidence == "sent"
    assert site.is_whole(done.upload.key)


@pytest.mark.server
def test_another_mode_in_between_copies_what_the_store_encrypts_itself_and_else_sends_all(real, moto_server):
    site = real(moto_server)
    site.back_up()
    site.through(site.proxy.server, encryption="sse-s3")
    done = site.back_up().upload
    assert (done.because, done.bytes_sent, site.is_whole(done.key)) == ("", 0, True)
    head = site.client.head_object(Bucket=site.bucket, Key=done.key)
    assert head["ServerSideEncryption"] == "AES256"
    site.through(site.proxy.server, encryption="client-aes256", encryptionKey="c4" * 32, objectFormat=2)
    done = site.back_up().upload
    assert done.because
    assert (done.bytes_copied, site.is_whole(done.key)) == (0, True)
    site.through(site.proxy.server)
    done = site.back_up().upload
    assert site.is_whole(done.key)
    assert (
        site.client.get_object(Bucket=site.bucket, Key=done.key)["Body"].read()
        == site.installation.replica().read_bytes()
    )


@pytest.mark.server
def test_a_store_that_does_not_copy_gets_full_uploads_and_is_not_asked_again(real, s3_server):
    site = real(s3_server)
    site.back_up()
    done = site.back_up()
    assert "without an ETag" in done.upload.because
    assert site.is_whole(done.upload.key)
    assert site.proxy.count("UploadPartCopy") == 1
    done = site.back_up()
    assert "without an ETag" in done.upload.because
    assert site.proxy.count("UploadPartCopy") == 0


@pytest.mark.server
@pytest.mark.parametrize("refused", ["HeadObject", "UploadPartCopy"])
def test_who_may_not_read_an_earlier_backup_sends_all(real, moto_server, refused):
    site = real(moto_server)
    earlier = site.back_up().upload.key
    site.proxy.before = lambda seen: (
        (403, "AccessDenied")
        if seen.operation == refused and (refused == "UploadPartCopy" or seen.key.endswith(earlier))
        else None
    )
    done = upload_snapshot(site.database, site.store, take_snapshot(site.database))
    assert (done.bytes_copied, done.bytes_sent) == (0, done.size)
    assert done.because
    site.proxy.before = lambda _: None
    assert site.is_whole(done.key)


@pytest.mark.server
@pytest.mark.parametrize("answer", [(503, "SlowDown"), (403, "InvalidObjectState"), (404, "NoSuchKey")])
def test_a_copy_that_failed_for_its_source_or_the_hour_is_asked_for_again_with_the_next_backup(
    real, moto_server, monkeypatch, answer
):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    site = real(moto_server)
    site.back_up()
    site.proxy.before = lambda seen: answer if seen.operation == "UploadPartCopy" else None
    done = site.back_up()
    assert done.upload.because.startswith("the store did not copy: ")
    assert (done.upload.bytes_copied, site.is_whole(done.upload.key)) == (0, True)
    site.proxy.before = lambda _: None
    assert site.back_up().upload.because == ""


@pytest.mark.server
@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_policy_that_hides_an_earlier_backup_costs_a_full_upload_and_no_failure(real, moto_auth_server, mode):
    encrypted = {"encryptionKey": "c4" * 32, "objectFormat": 2} if mode == "client-aes256" else {}
    site = real(moto_auth_server, encryption=mode, **encrypted)
    earlier = site.back_up().upload.key
    hidden = {"s3:GetObject": f"arn:aws:s3:::{site.bucket}/{earlier}"}
    site.through(moto_auth_server.user("s3:*", denied=hidden))
    done = site.back_up()
    assert done.upload.because.startswith(f"{earlier} may not be read: ")
    assert done.upload.because.endswith("s3:GetObject is not allowed")
    assert (done.upload.bytes_copied, done.verified.is_whole) == (0, True)
    # From this one, which may be read.
    append(site.installation.replica())
    done = site.back_up()
    assert (done.upload.because, done.verified.evidence) == ("", "sent")
    assert site.is_whole(done.upload.key)


@pytest.mark.server
def test_check_finds_that_a_store_copies_by_now(real, moto_server):
    site = real(moto_server)
    remember_refusal(site.database, site.store, "")  # there is no folder yet
    site.back_up()
    remember_refusal(site.database, site.store, "it did not, last week")
    assert remembered_refusal(site.database, site.store) == "it did not, last week"
    assert not [step.error for step in check_database(site.database, site.store) if step.error]
    assert remembered_refusal(site.database, site.store) == ""
    assert site.back_up().upload.because == ""


@pytest.mark.server
@pytest.mark.parametrize("fate", ["goes on", "source replaced"])
def test_an_interrupted_differential_upload_goes_on_with_its_parts(real, moto_server, monkeypatch, fate):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    site = real(moto_server)
    first = site.back_up()
    append(site.installation.replica())
    site.proxy.before = lambda seen: (503, "SlowDown") if seen.operation == "CompleteMultipartUpload" else None
    with pytest.raises(StoreError):
        site.back_up()
    sent = site.sent()
    assert 0 < sent < first.upload.size
    if fate == "source replaced":
        site.client.put_object(Bucket=site.bucket, Key=first.upload.key, Body=b"x" * first.upload.size)
    site.proxy.before = lambda _: None
    site.proxy.seen.clear()
    done = back_up(site.database, site.store, resume=True)
    assert site.is_whole(done.upload.key)
    assert not site.client.list_multipart_uploads(Bucket=site.bucket).get("Uploads")
    if fate == "goes on":
        assert (site.sent(), site.proxy.count("UploadPartCopy")) == (0, 0)
        assert done.upload.bytes_sent == sent
    else:
        assert site.sent() == done.upload.size
