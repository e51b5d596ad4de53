"""What of a backup lies on this machine already, so that a restore fetches the rest only.

The replica, or a local backup, lends the segments that are those of the wanted backup. Each is proven on private bytes:
on a reflink of the file or in memory, never on a file that another program may write. What proves them is the index of
an object of format 2, and for format 1 and plain files the record that this machine keeps of that backup
(`segment_records`). A damaged file lends its good segments only. The restore's own proof, of the whole, comes after and
counts alone: what is lent saves the way, not the proof.

What a killed restore of the same backup had received already is proven in the same way, in place. Where neither index
nor record is here, by the checksums that it took of what arrived (`Received`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.inventory.names import parse_name
from duckling_provider.backup.inventory.sidecar import sidecar_of
from duckling_provider.backup.reading.proofs import Proof, Received
from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import clone
from duckling_provider.base.errors import CancelledError, DucklingError
from duckling_provider.base.host_load import Passing, forget
from duckling_provider.base.state_files import open_state
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.formats.crypto import BytesLike, CtrCipher
from duckling_provider.formats.pipeline import DurableWriter, Fanout
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.downloads import Download
from duckling_provider.stores.fetch import PIECE, fetch
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)


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
            piece = memoryview(bytearray(min(PIECE, stop - position)))
            yield piece[: os.preadv(self.fd, [piece], position)]
        forget(self.fd, start, stop - start)

    def chunks(self, backup: StoredBackup, store: BackupSource, control: Control) -> Generator[memoryview, None, None]:
        """The object's bytes behind the IV in order, as `fetch` gives them, those of format 2 apart: what is lent is
        read here, and encrypted anew for format 1, whose HMAC is of the ciphertext.
        """
        cipher, lead = None, 0
        if backup.encryption_key is not None and backup.iv is not None:
            lead = len(backup.iv)
            cipher = CtrCipher(backup.encryption_key, backup.iv)
        spans = [(start + lead, stop + lead) for start, stop in map(self.bounds, self.missing)]
        fetched = fetch(store, backup.key, spans=spans, etag=backup.etag, control=control)
        with contextlib.closing(fetched):
            for number in range(-(-self.size // self.segment)):
                start, stop = self.bounds(number)
                if number in self.numbers:
                    stream_of = cipher.stream(start) if cipher is not None else None
                    for piece in self.pieces(number):
                        if stream_of is not None:
                            stream_of.update_into(piece, piece)
                        yield piece
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
            self._writer.skip_to(self._position + len(chunk))
        else:
            self._writer.write(chunk)
        self._position += len(chunk)


def lend(
    database: Database,
    backup: StoredBackup,
    download: Download,
    proof: Proof | None,
    received: Received | None,
    *,
    owner: str,
    control: Control,
) -> Lent:
    """Fill the new file with the segments of the backup that lie on this machine, beside those that it has already.

    :param proof: see `proof_of`.
    :param received: proves what a killed restore had received, where `proof` is None.
    :param owner: whose hold keeps the replica's writers away; empty where none does.
    :raises CancelledError: the caller asked to stop. Whatever else goes wrong lends nothing.
    """
    fd = download.fd
    reason = "neither a replica nor a local backup is here"
    if proof is None:
        reason = "what its segments are is not recorded on this machine"
    there: frozenset[int] = frozenset()
    known: Proof | None = proof or received
    segment = 1 if known is None else known.segment
    if download.goes_on and known is not None:
        there = _lent(fd, fd, backup.size, known, control)
        kept = Lent(fd, backup.size, segment, there)
        log.info("%s of %s are there from a restore that was killed", *map(human_bytes, (kept.bytes_lent, backup.size)))
        if not kept.missing:
            return kept
    for lender, access in _lenders(database, backup, owner, control):
        if proof is None:
            break
        try:
            with access as source:
                found = _lent(source, fd, backup.size, proof, control, there)
        except CancelledError:
            raise
        except (DucklingError, OSError) as error:
            reason = f"{lender} can't be read now: {error}"
            log.info("%s lends nothing: %s", lender, error)
            continue
        if found != there:
            lent = Lent(fd, backup.size, segment, found)
            log.info("%s of %s are as in %s", human_bytes(lent.bytes_lent), human_bytes(backup.size), lender)
            return lent
        reason = f"no segment is as in {lender}"
    if there:
        return Lent(fd, backup.size, segment, there)
    os.ftruncate(fd, 0)
    return Lent(fd, backup.size, segment, frozenset(), reason)


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


def _lent(
    source: int,
    fd: int,
    size: int,
    proof: Proof,
    control: Control,
    there: frozenset[int] = frozenset(),
) -> frozenset[int]:
    """The segments of `source` that are proven; they lie in `fd` then, which has `size` bytes.

    :param source: may be `fd` itself.
    :param there: those that lie there already; they count among the result.
    """
    segment = proof.segment
    in_place = source == fd or (not there and clone(source, fd))
    length = os.fstat(source).st_size
    os.ftruncate(fd, size)
    control.begin("compare", min(size, length))
    found, places = set(there), deque[int]()
    passing = Passing(source, length)

    def write(data: BytesLike) -> None:
        writer.skip_to(places.popleft())
        writer.write(data)

    # One is read and looked at while the one before is written.
    with DurableWriter(fd) as writer, Fanout(write) as copies:
        spare = copies.spare(min(segment, size))
        for number in range(-(-size // segment)):
            start, stop = number * segment, min((number + 1) * segment, size)
            if stop > length:
                break
            control.advance(stop - start)
            data = spare[: stop - start]
            if number in there or os.preadv(fd if in_place else source, [data], start) != len(data):
                continue
            passing.done(start, stop)
            if not proof.proves(number, data):
                continue
            found.add(number)
            if not in_place:
                places.append(start)
                copies.put(data)
                spare = copies.spare(min(segment, size))
    return frozenset(found)
