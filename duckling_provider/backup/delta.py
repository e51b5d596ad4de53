"""What of a backup lies on this machine already, so that a restore fetches the rest only.

The replica, or a local backup, lends the segments that are those of the wanted backup. Each is proven on private bytes:
on a reflink of the file or in memory, never on a file that another program may write. What proves them is the index of
an object of format 2, and for format 1 and plain files the record that this machine keeps of that backup
(`segment_records`). A damaged file lends its good segments only. The restore's own proof, of the whole, comes after and
counts alone: what is lent saves the way, not the proof.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from duckling_provider.backup.backup_object import StoredBackup
from duckling_provider.backup.names import parse_name
from duckling_provider.backup.segment_records import record_of
from duckling_provider.backup.snapshot import sidecar_of
from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import clone
from duckling_provider.base.errors import CancelledError, DucklingError
from duckling_provider.base.state_files import open_state
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.formats.crypto import IV_BYTES, CtrCipher, PartMac
from duckling_provider.formats.pipeline import DurableWriter
from duckling_provider.formats.segments import SegmentKeys
from duckling_provider.replica.access import replica_access
from duckling_provider.stores.fetch import PIECE, fetch
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)

#: Whether these bytes are the segment of that number.
Proof = Callable[[int, memoryview], bool]


@dataclass(frozen=True)
class Lent:
    """Segments of `segment` bytes of the file `fd` that are those of the backup already: `numbers`, of a file of `size`
    bytes.
    """

    fd: int
    size: int
    segment: int
    numbers: frozenset[int]
    because: str = ""  #: why there are none

    @property
    def missing(self) -> list[int]:
        return [number for number in range(-(-self.size // self.segment)) if number not in self.numbers]

    @property
    def bytes_lent(self) -> int:
        return sum(stop - start for start, stop in map(self.bounds, self.numbers))

    def bounds(self, number: int) -> tuple[int, int]:
        """First byte and byte after the last of a segment."""
        return number * self.segment, min((number + 1) * self.segment, self.size)

    def pieces(self, number: int) -> Iterator[memoryview]:
        """The bytes of a segment, each piece in memory of its own."""
        start, stop = self.bounds(number)
        for position in range(start, stop, PIECE):
            yield memoryview(os.pread(self.fd, min(PIECE, stop - position), position))

    def chunks(self, backup: StoredBackup, store: BackupSource, control: Control) -> Generator[memoryview, None, None]:
        """The object's bytes in order, as `fetch` gives them, those of format 2 apart: what is lent is read here, and
        encrypted anew for format 1, whose HMAC is of the ciphertext.
        """
        cipher, lead = None, 0
        if backup.encryption_key is not None:
            lead = IV_BYTES
            with contextlib.closing(store.open_range(backup.key, 0, lead, etag=backup.etag)) as stream:
                iv = stream.read(lead)
            cipher = CtrCipher(backup.encryption_key, iv)
            yield memoryview(iv)
        spans = [(start + lead, stop + lead) for start, stop in map(self.bounds, self.missing)]
        fetched = fetch(store, backup.key, spans=spans, etag=backup.etag, control=control)
        with contextlib.closing(fetched):
            for number in range(-(-self.size // self.segment)):
                start, stop = self.bounds(number)
                if number in self.numbers:
                    stream_of = cipher.stream(start) if cipher is not None else None
                    for piece in self.pieces(number):
                        yield piece if stream_of is None else memoryview(stream_of.update(piece))
                    continue
                while start < stop:
                    piece = next(fetched)
                    start += len(piece)
                    yield piece


class Patch:
    """Writes a file's bytes, which come in order, but for the segments that were lent: they lie there."""

    def __init__(self, lent: Lent, writer: DurableWriter) -> None:
        self._lent, self._writer, self._position = lent, writer, 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """`chunk` lies within one segment."""
        if self._position // self._lent.segment in self._lent.numbers:
            os.lseek(self._lent.fd, len(chunk), os.SEEK_CUR)
        else:
            self._writer.write(chunk)
        self._position += len(chunk)


def lend(database: Database, backup: StoredBackup, fd: int, *, owner: str, control: Control) -> Lent:
    """Fill the new file `fd` with the segments of the backup that lie on this machine.

    :param owner: whose hold keeps the replica's writers away; empty where none does.
    :raises CancelledError: the caller asked to stop. Whatever else goes wrong lends nothing.
    """
    proof, segment = _proof(database, backup)
    if proof is None:
        return Lent(fd, backup.size, segment, frozenset(), "what its segments are is not recorded on this machine")
    reason = "neither a replica nor a local backup is here"
    for lender, access in _lenders(database, backup, owner, control):
        try:
            with access as source:
                found = _lent(source, fd, backup.size, segment, proof, control)
        except CancelledError:
            raise
        except (DucklingError, OSError) as error:
            reason = f"{lender} can't be read now: {error}"
            log.info("%s lends nothing: %s", lender, error)
            continue
        if found:
            lent = Lent(fd, backup.size, segment, found)
            log.info("%s of %s are as in %s", human_bytes(lent.bytes_lent), human_bytes(backup.size), lender)
            return lent
        reason = f"no segment is as in {lender}"
    os.ftruncate(fd, 0)
    return Lent(fd, backup.size, segment, frozenset(), reason)


def _proof(database: Database, backup: StoredBackup) -> tuple[Proof | None, int]:
    """What proves segments, None where nothing does; and how large they are."""
    trailer = backup.trailer
    if trailer is not None and backup.encryption_key is not None:
        segments = trailer.footer.segments(SegmentKeys(backup.encryption_key))

        def by_index(number: int, data: memoryview) -> bool:
            tagger = segments.tagger(number)
            tagger.update(data)
            return tagger.digest() == trailer.tag(number)

        return by_index, trailer.footer.segment_bytes
    record = record_of(database, backup.key.rpartition("/")[2])
    if record is None or record.size != backup.size or backup.sha256 not in (None, record.sha256):
        return None, 1

    def by_record(number: int, data: memoryview) -> bool:
        checksum = PartMac(bytes.fromhex(record.key), number)
        checksum.update(data)
        return checksum.hexdigest() == record.checksums[number]

    return by_record, record.segment


def _lenders(
    database: Database, backup: StoredBackup, owner: str, control: Control
) -> Iterator[tuple[str, contextlib.AbstractContextManager[int]]]:
    """(name, context with a descriptor) of the files that may lend, the best first: the backup's own local copy, the
    replica, the newest local backup.
    """
    if not database.is_here:
        return
    own = database.backup_dir / backup.key.rpartition("/")[2]
    copies = [p for p in database.backup_dir.glob("backup-*.db") if parse_name(p.name) and sidecar_of(p).exists()]
    if own in copies:
        yield f"the local backup {own.name}", _copy(own)
    if database.replica.exists():
        yield "the replica", _replica(database.replica, owner, control)
    newest = max((copy for copy in copies if copy != own), default=None)
    if newest is not None:
        yield f"the local backup {newest.name}", _copy(newest)


@contextlib.contextmanager
def _copy(path: Path) -> Iterator[int]:
    fd = open_state(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _replica(replica: Path, owner: str, control: Control) -> Iterator[int]:
    # Without a hold, it lends only while no other program is at it.
    with replica_access(replica, operation="restore", owner=owner, wait=0, control=control):
        fd = os.open(replica, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)


def _lent(source: int, fd: int, size: int, segment: int, proof: Proof, control: Control) -> frozenset[int]:
    """The segments of `source` that are proven; they lie in `fd` then, which has `size` bytes."""
    cloned = clone(source, fd)
    os.ftruncate(fd, size)
    there = os.fstat(source).st_size
    control.begin("compare", min(size, there))
    buffer, found = memoryview(bytearray(min(segment, size))), set()
    for number in range(-(-size // segment)):
        start, stop = number * segment, min((number + 1) * segment, size)
        if stop > there:
            break
        control.advance(stop - start)
        data = buffer[: stop - start]
        if os.preadv(fd if cloned else source, [data], start) == len(data) and proof(number, data):
            if not cloned:
                _write_all(fd, data, start)
            found.add(number)
    return frozenset(found)


def _write_all(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written
