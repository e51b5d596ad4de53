"""A restore that was killed goes on with the segments that it had, when the same backup is restored again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from contextlib import closing

import pytest
from fixtures.delta import KINDS, SEGMENT, DeltaSite

from duckling_provider.backup.inventory import segment_records
from duckling_provider.backup.inventory.segment_records import record_of
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading import receive
from duckling_provider.backup.reading.proofs import Received
from duckling_provider.base.errors import NotFoundError
from duckling_provider.formats import segments
from duckling_provider.formats.pipeline import DurableWriter
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.downloads import GOES_ON_WITHIN
from duckling_provider.replica.exchange import NEW_SUFFIX

pytestmark = pytest.mark.slow

#: Whole segments that the killed restores here had written.
HAD = 5


def _killing_after(limit):
    """A writer that ends this process when so many bytes are written."""
    written = 0

    class Killing(DurableWriter):
        def write(self, chunk):
            nonlocal written
            if written >= limit:
                os.kill(os.getpid(), signal.SIGKILL)
            super().write(chunk)
            written += len(chunk)

    return Killing


class Site(DeltaSite):
    """As on a new machine: neither replica nor local backup, and on request no record either."""

    def begin(self, *, record=False):
        self.forget_copy()
        if not record:
            record_of(self.database, self.snapshot.filename).path.unlink()
        self.replica.unlink()
        return self

    def killed_restore(self, had=HAD, **more):
        """A restore in a process of its own that gets SIGKILL when it has fetched and written `had` segments."""
        child = os.fork()
        if child == 0:
            try:
                # Not that of `delta`, which writes what this machine lends.
                receive.DurableWriter = _killing_after(had * SEGMENT)
                self.restore(**more)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    @property
    def left(self):
        return self.replica.with_name(self.replica.name + NEW_SUFFIX)

    def spoil(self, number):
        """One byte of what was left."""
        with self.left.open("r+b") as file:
            file.seek(number * SEGMENT + 99)
            byte = file.read(1)[0] ^ 1
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte]))

    def assert_came(self, kept, **more):
        """The same restore again is right, leaves nothing, and has fetched all but `kept` segments."""
        done = self.restore(**more)
        assert self.replica.read_bytes() == self.good
        self.assert_tidy()
        # The last one is short, and may be zeros, as what was not written yet is.
        assert done.bytes_lent // SEGMENT == kept
        fetched = len(self.good) - done.bytes_lent
        # And heads and trailers.
        assert fetched <= self.store.asked < fetched + SEGMENT // 2

    def assert_tidy(self):
        assert not self.left.exists()
        assert not list(self.database.backup_dir.glob("restoring-*"))


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(segment_records, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SEGMENT)


@pytest.fixture(params=KINDS)
def site(request, installation, make_replica):
    return Site(installation, make_replica, KINDS[request.param]).begin()


@pytest.fixture
def plain(installation, make_replica):
    return Site(installation, make_replica, KINDS["plain"]).begin()


def test_it_goes_on_with_the_segments_that_it_has(site):
    site.killed_restore()
    assert site.left.stat().st_mode & 0o077 == 0
    site.assert_came(kept=HAD)


@pytest.mark.parametrize("kind", ["plain", "format 1"])
def test_it_does_so_by_the_record_of_this_machine_too(installation, make_replica, kind):
    site = Site(installation, make_replica, KINDS[kind]).begin(record=True)
    site.killed_restore()
    assert not list(site.database.backup_dir.glob("*.received"))
    site.assert_came(kept=HAD)


def test_killed_again_it_goes_on_with_what_both_had(site):
    site.killed_restore()
    site.killed_restore(had=2)
    site.assert_came(kept=HAD + 2)


def test_each_segment_is_proven_again(site):
    site.killed_restore()
    site.spoil(2)
    site.assert_came(kept=HAD - 1)


def test_a_forged_file_with_forged_checksums_costs_a_download_and_no_correctness(installation, make_replica):
    site = Site(installation, make_replica, KINDS["format 1"]).begin()
    site.killed_restore()
    site.spoil(2)
    (received,) = site.database.backup_dir.glob("*.received")
    head, *lines = received.read_text().splitlines()
    made = segment_records.SegmentChecksums(len(site.good), json.loads(head)["key"])
    made.update(site.left.read_bytes()[: HAD * SEGMENT].ljust(len(site.good)))
    lines[2] = made.record(site.database.backup_dir, database="", stamp="", sha256="").checksums[2]
    received.write_text("\n".join((head, *lines, "")))
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert (done.bytes_lent, "HMAC verification failed" in done.full_because) == (0, True)
    site.assert_tidy()


@pytest.mark.parametrize("torn", [b"", b"{}\n", b"[1]\nzz\n", b'{"segment": 1, "key": "00"}\n', b"\xff\n"])
def test_checksums_that_are_none_prove_nothing(tmp_path, torn):
    path = tmp_path / "restoring-0.received"
    path.touch(mode=0o600)
    path.write_bytes(torn)
    with closing(Received(path, 3 * SEGMENT, goes_on=True)) as received:
        received.update(bytes(SEGMENT))
        assert not received.proves(0, memoryview(bytes(SEGMENT)))
    with closing(Received(path, 3 * SEGMENT, goes_on=True)) as received:
        assert received.proves(0, memoryview(bytes(SEGMENT)))


def test_checksums_that_end_within_a_line_prove_what_is_whole(plain):
    plain.killed_restore()
    (received,) = plain.database.backup_dir.glob("*.received")
    received.write_bytes(received.read_bytes()[:-20])
    plain.assert_came(kept=HAD - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_replica_has_lent_is_not_lost(installation, make_replica, kind):
    """The killed one had compared, and fetched one of three segments."""
    site = Site(installation, make_replica, KINDS[kind]).begin(record=True)
    site.replica.write_bytes(site.good)
    site.damage(2, 3, 7)
    site.killed_restore(had=1)
    site.replica.unlink()
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert (done.bytes_lent, site.fetched) == (len(site.good) - 2 * SEGMENT, 2)


def test_what_it_lacks_the_replica_lends(installation, make_replica):
    site = Site(installation, make_replica, KINDS["format 2"]).begin()
    site.killed_restore()
    site.replica.write_bytes(site.good)
    site.damage(1, 6)
    done = site.restore()
    assert site.replica.read_bytes() == site.good
    assert (done.bytes_lent, site.fetched) == (len(site.good) - SEGMENT, 1)


def test_a_restore_to_elsewhere_goes_on_too(site, tmp_path):
    to = tmp_path / "copy.db"
    site.killed_restore(to=to)
    done = site.restore(to=to)
    assert (to.read_bytes(), done.bytes_lent) == (site.good, HAD * SEGMENT)
    assert to.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.db"]


def test_a_log_beside_it_is_not_replayed(plain):
    plain.killed_restore()
    log = plain.left.with_name(f"{plain.left.name}.wal")
    log.write_bytes(b"of a restore up to a moment")
    plain.assert_came(kept=HAD)
    assert not log.exists()


def another_backup(site):
    site.replica.write_bytes(site.good)
    site.key = upload_snapshot(site.database, site.store, take_snapshot(site.database)).key
    site.replica.unlink()
    record_of(site.database, site.key.rpartition("/")[2]).path.unlink()
    for path in site.database.backup_dir.glob("backup-*"):
        path.unlink()


def another_object(site):
    stored, data = site.store.objects[site.key]
    site.store.objects[site.key] = dataclasses.replace(stored, etag="another"), data


def a_day_later(site):
    then = time.time() - GOES_ON_WITHIN - 60
    os.utime(site.left, (then, then))


def from_the_future(site):
    then = time.time() + GOES_ON_WITHIN + 60
    os.utime(site.left, (then, then))


def another_file(site):
    """Of the same name and content."""
    content = site.left.read_bytes()
    site.left.rename(site.left.with_suffix(".gone"))
    site.left.touch(mode=0o600)
    site.left.write_bytes(content)


def another_program(site):
    """It looks at the replica in between."""
    with replica_access(site.replica, operation="sync"):
        assert not site.left.exists()


@pytest.mark.parametrize(
    "change", [another_backup, another_object, a_day_later, from_the_future, another_file, another_program]
)
def test_anything_else_removes_them(plain, change):
    plain.killed_restore()
    change(plain)
    plain.assert_came(kept=0)


def test_a_note_that_was_being_written_does_not_stay(plain):
    plain.killed_restore()
    (note,) = plain.database.backup_dir.glob("restoring-*.json")
    torn = [note.with_name(f".{name}.0123abcd.tmp") for name in (note.name, f"{note.stem}.received")]
    for path in torn:
        path.touch(mode=0o600)
    plain.assert_came(kept=HAD)
    assert [path for path in torn if path.exists()] == []


def test_asked_to_fetch_all_it_fetches_all(plain):
    plain.killed_restore()
    plain.assert_came(kept=0, no_delta=True)


def test_a_failure_before_the_download_leaves_them_for_the_next_try(plain):
    plain.killed_restore()
    objects, plain.store.objects = plain.store.objects, {}
    with pytest.raises(NotFoundError):
        plain.restore()
    plain.store.objects = objects
    plain.assert_came(kept=HAD)
