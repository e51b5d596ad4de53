"""A restore takes from this machine what lies there already, and what comes out is the backup, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from fixtures.delta import KINDS, SEGMENT, DeltaSite

from duckling_provider.backup.inventory import segment_records
from duckling_provider.backup.inventory.segment_records import record_of
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.base.errors import IntegrityError
from duckling_provider.formats import segments


@pytest.fixture(params=KINDS)
def site(request, installation, make_replica, monkeypatch):
    monkeypatch.setattr(segment_records, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SEGMENT)
    return DeltaSite(installation, make_replica, KINDS[request.param])


@pytest.fixture
def plain(installation, make_replica, monkeypatch):
    monkeypatch.setattr(segment_records, "SEGMENT_BYTES", SEGMENT)
    return DeltaSite(installation, make_replica, KINDS["plain"])


def test_a_damaged_replica_lends_its_good_segments_only(site):
    site.forget_copy()
    site.damage(0, 2, 3, 7)
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert site.fetched == 4
    assert done.bytes_lent == len(site.good) - 4 * SEGMENT
    assert done.full_because == ""


@pytest.mark.parametrize("fate", ["grown", "shrunk", "a byte more"])
def test_a_replica_of_another_size_lends_what_it_has(site, fate):
    site.forget_copy()
    if fate == "grown":
        program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE TABLE more AS SELECT 42 AS a')"
        subprocess.run([sys.executable, "-c", program, str(site.replica)], check=True)
    else:
        site.replica.write_bytes(site.good[: 5 * SEGMENT + 7] if fate == "shrunk" else site.good + b"x")
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert done.bytes_lent > 0
    assert site.store.asked < len(site.good)


def test_a_local_backup_that_is_the_wanted_one_needs_no_download(site):
    site.replica.unlink()
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert site.fetched == 0
    assert done.bytes_lent == len(site.good)


def test_no_delta_fetches_all(site):
    done = site.restore(no_delta=True)
    assert site.fetched == len(site.good) // SEGMENT
    assert (done.bytes_lent, done.full_because) == (0, "it was asked for")


def test_a_restore_to_elsewhere_takes_from_the_replica_too(site, tmp_path):
    site.forget_copy()
    site.damage(1)
    site.restore(to=tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_bytes() == site.good
    assert site.fetched == 1
    assert (tmp_path / "copy.db").stat().st_mode & 0o077 == 0


def test_without_its_record_all_is_fetched_and_the_result_says_so(plain):
    plain.forget_copy()
    record_of(plain.database, plain.snapshot.filename).path.unlink()
    done = plain.restore()
    assert plain.replica.read_bytes() == plain.good
    assert done.full_because == "what its segments are is not recorded on this machine"


def test_the_record_that_proves_a_backup_is_read_once(plain, monkeypatch):
    plain.forget_copy()
    read = []
    load = segment_records.SegmentRecord.load
    monkeypatch.setattr(segment_records.SegmentRecord, "load", lambda path: read.append(path) or load(path))
    assert plain.restore().bytes_lent > 0
    assert len(read) == 1


def test_a_record_that_lies_costs_a_full_download_and_no_correctness(plain):
    plain.forget_copy()
    plain.damage(2)
    wrong = take_record_of_damaged(plain)
    done = plain.restore()
    assert wrong
    assert plain.replica.read_bytes() == plain.good
    assert "SHA-256 verification failed" in done.full_because


def take_record_of_damaged(site):
    """Its record says of one segment what the damaged replica has."""
    record = record_of(site.database, site.snapshot.filename)
    made = segment_records.SegmentChecksums(len(site.good), record.key)
    made.update(site.replica.read_bytes())
    new = made.record(site.database.backup_dir, database="production", stamp=record.stamp, sha256=record.sha256)
    new.save()
    return new.checksums != record.checksums


def test_a_damaged_object_is_refused_though_most_of_it_is_here(site):
    site.forget_copy()
    site.damage(4)
    before = site.replica.read_bytes()
    stored, data = site.store.objects[site.key]
    position = 4 * SEGMENT + 1000
    site.store.objects[site.key] = (stored, data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(IntegrityError):
        site.restore()
    assert site.replica.read_bytes() == before


def test_another_local_backup_lends_where_there_is_no_replica(site):
    take_snapshot(site.database)
    site.forget_copy()
    shutil.move(site.replica, site.replica.with_suffix(".gone"))
    site.restore()
    assert site.replica.read_bytes() == site.good
    assert site.fetched == 0
