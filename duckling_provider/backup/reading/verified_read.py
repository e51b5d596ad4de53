"""One pass over a stored backup: verified, decrypted, its DuckDB blocks checked, its bytes handed on in order."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, cast

from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.reading.delta import Lent
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DamagedError, DucklingError, IntegrityError, ModeError, ReplicaError
from duckling_provider.formats.crypto import IV_BYTES, BytesLike, CtrCipher, Mac
from duckling_provider.formats.pipeline import Fanout, Stage
from duckling_provider.formats.segment_fetch import fetch_segments
from duckling_provider.formats.segments import SegmentKeys
from duckling_provider.formats.trailer import Trailer
from duckling_provider.replica.blocks import HEADER_BYTES, BlockReport, BlockVerifier
from duckling_provider.stores.fetch import PIECE, fetch
from duckling_provider.stores.store import BackupSource


def read_verified(
    backup: StoredBackup,
    store: BackupSource,
    *,
    sink: Callable[[BytesLike], object] | None = None,
    lent: Lent | None = None,
    control: Control | None = None,
    step: str = "download",
) -> BlockReport:
    """Read the whole object once: verify, decrypt, check DuckDB's blocks, and hand the file's bytes to `sink` in
    order.

    :param lent: what of it lies on this machine, and is read there in place of the store. `sink` gets all bytes.

    What `sink` got may be used only when this returns. Of an object of format 2 it gets no byte before its segment is
    proven.

    Memory: `fetch`'s window of 32 MiB, in which bytes are decrypted too; for format 2 the buffers of `fetch_segments`,
    32 MiB as well.

    :raises IntegrityError: when HMAC, SHA-256, length or a block in use are not as they should be.
    """
    control = control or Control()
    control.begin(step, backup.object_size)
    blocks = _Blocks()
    sinks = [sink] if sink is not None else []
    subject = store.url + backup.key
    if backup.trailer is not None:
        seen = _read_segments(backup, backup.trailer, store, [blocks.update, *sinks], control, lent)
    else:
        # The IV was read before; so what is written at one place of a page lies at the same place of one in memory.
        span = (0 if backup.iv is None else len(backup.iv), backup.object_size)
        chunks: Generator[memoryview, None, None]
        if lent is None:
            chunks = fetch(store, backup.key, spans=[span], etag=backup.etag, control=control)
        else:
            chunks = lent.chunks(backup, store, control)
        with contextlib.closing(chunks):
            read = _read_plain if backup.encryption_key is None else _read_encrypted
            seen = read(backup, chunks, blocks, sinks, control, subject=subject)
    try:
        return _checked_blocks(backup, store, blocks)
    except IntegrityError as error:
        error.found = seen
        raise


def _checked_blocks(backup: StoredBackup, store: BackupSource, blocks: _Blocks) -> BlockReport:
    """What DuckDB's own checksums say, after the digest of the whole object has spoken."""
    subject = store.url + backup.key
    report = blocks.finish(backup.size, file=cast("BinaryIO", _ObjectFile(store, backup)), subject=subject)
    proven = backup.mac is not None or backup.sha256 is not None
    if report.bad_count:
        raise IntegrityError(
            f"{report.bad_count} of {report.blocks} DuckDB blocks are missing or have a wrong checksum",
            subject=subject,
            hint="The replica was damaged when it was backed up; use an older backup."
            if proven
            else "The object is damaged, or the replica was when it was backed up; use another backup.",
        )
    if not proven and blocks.loose_end(backup.size):
        raise IntegrityError(
            "it ends in the middle of a DuckDB block: truncated or extended",
            subject=subject,
            hint="Use another backup.",
        )
    return report


def _read_segments(
    backup: StoredBackup,
    trailer: Trailer,
    store: BackupSource,
    stages: list[Stage],
    control: Control,
    lent: Lent | None = None,
) -> str:
    """Segments are received and proven by `fetch_segments`' threads; this one looks at them in order.

    :returns: the HMAC of index and footer, in hex.
    """
    control.advance(backup.object_size - backup.size)  # the trailer, which was read and proven before
    found = proven_segments(backup, trailer, store, numbers=None if lent is None else lent.missing, control=control)
    with contextlib.closing(found):
        for number in range(trailer.footer.segment_count):
            if lent is not None and number in lent.numbers:
                pieces = lent.pieces(number)
            else:
                _, plain = next(found)
                pieces = (plain[at : at + PIECE] for at in range(0, len(plain), PIECE))
            for piece in pieces:
                for stage in stages:
                    stage(piece)
                control.advance(len(piece))
    return trailer.mac


def proven_segments(
    backup: StoredBackup,
    trailer: Trailer,
    store: BackupSource,
    *,
    numbers: Iterable[int] | None = None,
    control: Control | None = None,
) -> Generator[tuple[int, memoryview], None, None]:
    if backup.encryption_key is None:
        raise ModeError("not an encrypted backup", subject=store.url + backup.key)
    keys = SegmentKeys(backup.encryption_key)
    return fetch_segments(store, backup.key, trailer, keys, numbers=numbers, etag=backup.etag, control=control)


def _read_plain(
    backup: StoredBackup,
    chunks: Iterator[memoryview],
    blocks: _Blocks,
    sinks: list[Stage],
    control: Control,
    *,
    subject: str,
) -> str:
    """:returns: the SHA-256 of what was read, in hex."""
    digest = hashlib.sha256()
    with Fanout(blocks.update, *sinks) as others:
        for chunk in chunks:
            others.put(chunk)
            digest.update(chunk)
            control.advance(len(chunk))
    if backup.sha256 is not None and digest.hexdigest() != backup.sha256:
        failed = IntegrityError(
            "SHA-256 verification failed: its bytes are not those that were uploaded",
            subject=subject,
            hint="The object is damaged; use another backup.",
        )
        failed.found = digest.hexdigest()
        raise failed
    return digest.hexdigest()


def _read_encrypted(
    backup: StoredBackup,
    chunks: Iterator[memoryview],
    blocks: _Blocks,
    sinks: list[Stage],
    control: Control,
    *,
    subject: str,
) -> str:
    """:returns: the HMAC of what was read, in hex."""
    key = backup.encryption_key
    if key is None or backup.mac is None or backup.iv is None:
        raise ModeError("not an encrypted backup", subject=subject)
    mac = Mac(key, backup.iv)
    stream = CtrCipher(key, backup.iv).stream()
    control.advance(len(backup.iv))

    def decrypt(chunk: BytesLike) -> None:
        stream.update_into(chunk, chunk)
        plain.put(chunk)
        blocks.update(chunk)

    # The HMAC has to see all bytes in order, and without SHA instructions it takes longer than all the rest: so its
    # thread does nothing else.
    with Fanout(*sinks) as plain, Fanout(decrypt) as sealed:
        for chunk in chunks:
            mac.update(chunk)
            sealed.put(chunk)
            control.advance(len(chunk))
    if not mac.matches(backup.mac):
        failed = IntegrityError(
            "HMAC verification failed: the object is damaged, its upload was interrupted, or the .mac belongs to "
            "another one",
            subject=subject,
            hint="Use another backup. If every backup fails, the key may be another one than they were made with.",
        )
        failed.found = mac.hexdigest()
        raise failed
    return mac.hexdigest()


class _ObjectFile:
    """A stored ``.db`` file at random access, for the few reads that following DuckDB's free list takes; the digest of
    the whole object has vouched for its bytes by then.
    """

    def __init__(self, store: BackupSource, backup: StoredBackup) -> None:
        self._store, self._backup = store, backup
        self._position = 0

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._backup.trailer is not None:
            return self._proven(self._backup.trailer, start, min(start + size, self._backup.size))
        key = self._backup.encryption_key
        if key is None:
            return self._range(start, start + size)
        data = self._range(IV_BYTES + start, IV_BYTES + start + size)
        return CtrCipher(key, self._range(0, IV_BYTES)).apply(data, start)

    def _proven(self, trailer: Trailer, start: int, stop: int) -> bytes:
        length = trailer.footer.segment_bytes
        numbers = range(start // length, -(-stop // length)) if start < stop else ()
        found = b"".join(bytes(p) for _, p in proven_segments(self._backup, trailer, self._store, numbers=numbers))
        return found[start % length :][: max(0, stop - start)]

    def _range(self, start: int, stop: int) -> bytes:
        stop = min(stop, self._backup.object_size)
        if start >= stop:
            return b""
        stream = self._store.open_range(self._backup.key, start, stop, etag=self._backup.etag)
        with contextlib.closing(stream):
            return stream.read(stop - start)


class _Blocks:
    """DuckDB's own checksums as a stage whose verdict waits: the digest of the whole object speaks first."""

    def __init__(self) -> None:
        self._verifier = BlockVerifier()
        self._error: DucklingError | None = None

    def update(self, chunk: BytesLike) -> None:
        if self._error is None:
            try:
                self._verifier.update(chunk)
            except (DamagedError, ReplicaError) as error:
                self._error = error

    def loose_end(self, size: int) -> bool:
        """Whether a file of `size` bytes ends within a block."""
        header = self._verifier.header
        return header is not None and header.block_size is not None and (size - HEADER_BYTES) % header.block_size != 0

    def finish(self, size: int, *, file: BinaryIO | None, subject: str) -> BlockReport:
        try:
            if self._error is not None:
                raise self._error
            return self._verifier.finish(size, file=file)
        except (DamagedError, ReplicaError) as error:
            raise IntegrityError(
                f"the object holds no sound DuckDB file: {error.cause}", subject=subject, hint="Use another backup."
            ) from error
