"""Reading a stored backup back, verified: for a restore into a file, for a verification nowhere, so that its plain text
is written nowhere.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import BinaryIO, cast

from duckling_provider.backup.inventory.backup_object import StoredBackup, identify_backup, list_backups, resolve
from duckling_provider.backup.inventory.names import LATEST, RULES
from duckling_provider.backup.inventory.segment_records import SegmentRecord, Uploaded, record_of
from duckling_provider.backup.inventory.states import note_damage, read_states, record_state
from duckling_provider.backup.reading.delta import Lent
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    DamagedError,
    DucklingError,
    IntegrityError,
    ModeError,
    ReplacedError,
    ReplicaError,
    StoreError,
    WrongKeyError,
)
from duckling_provider.config.databases import Database
from duckling_provider.formats.crypto import IV_BYTES, BytesLike, CtrCipher, Mac, PartMac
from duckling_provider.formats.pipeline import Fanout, Stage
from duckling_provider.formats.segment_fetch import fetch_segments
from duckling_provider.formats.segments import SegmentKeys
from duckling_provider.formats.trailer import Trailer
from duckling_provider.replica.blocks import HEADER_BYTES, BlockReport, BlockVerifier
from duckling_provider.stores.fetch import PIECE, fetch
from duckling_provider.stores.store import BackupSource, StoredObject

log = logging.getLogger(__name__)
_BLOCKS = "DuckDB block checksums"
#: Of what the store copied, one segment in so many is read back, another one after each upload.
_SAMPLE = 50
#: So many of the newest backups are asked when one was last read in full.
_LOOKED_AT = 30


@dataclass(frozen=True)
class VerifyResult:
    """`size` of the ``.db`` file and `object_size` in bytes; `evidence` names what vouches for the bytes:
    ``"HMAC-SHA256"``, ``"SHA-256"``, ``"DuckDB block checksums"``, ``"head"`` where no more than that was read, or
    ``"sent"`` where only what was sent was read back and compared with what was recorded of it here. `key_fingerprint`
    tells which key read it, None for an object that is not encrypted here.
    """

    key: str
    mode: str
    size: int
    object_size: int
    evidence: str
    duration_ms: int
    key_fingerprint: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every byte was read back."""
        return self.evidence not in ("head", "sent")


def verify_backup(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    full: bool = True,
    note: bool = True,
    control: Control | None = None,
) -> VerifyResult:
    """Read the object back and check HMAC or SHA-256, length, and every DuckDB block.

    :param key: a key, a bare file name, or ``latest``.
    :param full: False looks at head, ``.mac`` and first bytes only (``s3.verify: head``).
    :param note: record the outcome beside the backup; False where `database` is not quite the entry (another key).
    :raises IntegrityError: when the backup would not restore, in two readings.
    :raises StoreError: when two readings differ, see `read_again`.
    :raises NotFoundError: when there is no such backup.
    """
    started = time.monotonic()
    if control is not None:
        store = store.under(control)
    found = resolve(database, store, key, any_origin=True, proven=False)
    chosen = key not in RULES
    try:
        backup = _proven(database, store, found, full=full, chosen=chosen, control=control)
    except (IntegrityError, DamagedError) as error:
        read_again(database, store, found, error, full=full, chosen=chosen, control=control)
        if note and not isinstance(error, ReplacedError):
            note_damage(database, store, found, error)
        raise
    evidence = "HMAC-SHA256" if backup.mac is not None else "SHA-256" if backup.sha256 is not None else _BLOCKS
    result = VerifyResult(
        key=backup.key,
        mode=backup.mode,
        size=backup.size,
        object_size=backup.object_size,
        evidence=evidence if full else "head",
        duration_ms=int((time.monotonic() - started) * 1000),
        key_fingerprint=backup.key_fingerprint,
    )
    if note and full:
        # Of the very object that was read: by now, another may have its key.
        record_state(
            database, store, StoredObject(backup.key, backup.object_size, backup.etag), "verified", means="full"
        )
    return result


def _proven(
    database: Database,
    store: BackupSource,
    key: str,
    *,
    full: bool,
    chosen: bool,
    control: Control | None,
    step: str = "verify",
) -> StoredBackup:
    backup = identify_backup(database, store, key, chosen=chosen, archived=not full)
    vouched = backup.mac is not None or backup.sha256 is not None
    if full and read_verified(backup, store, control=control, step=step).skipped and not vouched:
        raise IntegrityError(
            "nothing vouches for its bytes: the file is encrypted by DuckDB and the store kept no metadata",
            subject=store.url + backup.key,
            hint="Use client-aes256, whose .mac needs no metadata, or a store that keeps metadata.",
        )
    return backup


def read_again(
    database: Database,
    store: BackupSource,
    key: str,
    error: IntegrityError | DamagedError,
    *,
    full: bool = True,
    chosen: bool = True,
    control: Control | None = None,
) -> None:
    """Read a backup a second time, over new connections, because the first reading found it damaged: `error`.

    All of it, since an HMAC does not tell which place is bad. Returns when both readings brought the same.

    :raises StoreError: they differ, so nothing is known of the backup: the way to it is bad, or this machine.
    """
    if isinstance(error, ReplacedError) or (isinstance(error, WrongKeyError) and error.proven):
        return
    log.warning("%s%s: %s; it is read a second time, over new connections", store.url, key, error.cause)
    try:
        _proven(database, store.afresh(), key, full=full, chosen=chosen, control=control, step="verify again")
    except (IntegrityError, DamagedError) as again:
        if (again.cause, _digest_in(again)) == (error.cause, _digest_in(error)):
            error.hint = " ".join(filter(None, (error.hint, "It was read twice, with the same result.")))
            return
    raise StoreError(
        "two readings of it differ: the network, a proxy or this machine's memory alters what is read",
        subject=store.url + key,
        hint="Nothing is noted against the backup. Try again; if it stays, from another machine.",
    ) from error


def _digest_in(error: DucklingError) -> str:
    return error.found if isinstance(error, IntegrityError) else ""


def verify_upload(database: Database, store: BackupSource, key: str, *, control: Control | None = None) -> VerifyResult:
    """Verify a backup as ``s3.verify`` says: all of it, or after a differential upload what was sent and a sample of
    what was copied, or its head.

    :raises IntegrityError, NotFoundError: as `verify_backup`.
    """
    setting = database.s3.verify if database.s3 is not None else None
    if setting == "head":
        return verify_backup(database, store, key, full=False, control=control)
    record = record_of(database, key.rpartition("/")[2]) if setting != "full" else None
    if record is None or not _is_sent_enough(database, store, key, record):
        return verify_backup(database, store, key, control=control)
    control = control or Control()
    try:
        return _verify_sent(database, store.under(control), key, record, control)
    except IntegrityError as error:
        log.warning("%s%s: %s; all of it is read", store.url, key, error.cause)
        result = verify_backup(database, store, key, control=control)
        if result.evidence == _BLOCKS:  # which tell less than what was recorded here
            note_damage(database, store, key, error)
            raise
        return result


def _is_sent_enough(database: Database, store: BackupSource, key: str, record: SegmentRecord) -> bool:
    """Whether reading what was sent will do: the store has copied something, and it is not time to read all again."""
    uploaded = record.uploaded
    if database.s3 is None or uploaded is None or (uploaded.store, uploaded.key) != (store.url, key):
        return False
    if not uploaded.copied_bytes:
        return False
    now = datetime.now(timezone.utc)
    newest = [backup for backup in list_backups(store) if not backup.misdated(now)][:_LOOKED_AT]
    known = read_states(database, store, newest).values()
    last = max((state.whole_at for state in known if state.whole_at is not None), default=None)
    return last is not None and now - last < timedelta(days=database.s3.verify_full_interval_days)


def _verify_sent(
    database: Database, store: BackupSource, key: str, record: SegmentRecord, control: Control
) -> VerifyResult:
    """Read back what was sent, and of what the store copied one segment in `_SAMPLE`, another one each time."""
    started = time.monotonic()
    uploaded = record.uploaded
    backup = identify_backup(database, store, key, chosen=True)
    if uploaded is None or (backup.etag.strip('"'), backup.object_size) != (uploaded.etag, uploaded.size):
        raise IntegrityError(
            "it is another object than was uploaded from here", subject=store.url + key, hint="Make a new backup."
        )
    wanted = [
        number
        for number in range(len(record.checksums))
        if _was_sent(uploaded, *record.bounds(number)) or number % _SAMPLE == uploaded.number % _SAMPLE
    ]
    if backup.trailer is not None:
        lengths = (stop - start for start, stop in map(backup.trailer.footer.bounds, wanted))
        control.begin("verify", sum(lengths))
        with contextlib.closing(_segments(backup, backup.trailer, store, numbers=wanted, control=control)) as found:
            for _, plain in found:
                control.advance(len(plain))
    else:
        _compare_sent(backup, store, record, wanted, control)
    took = int((time.monotonic() - started) * 1000)
    stored = StoredObject(backup.key, backup.object_size, backup.etag)
    record_state(database, store, stored, "verified", means="sent")
    return VerifyResult(
        backup.key, backup.mode, backup.size, backup.object_size, "sent", took, key_fingerprint=backup.key_fingerprint
    )


def _compare_sent(
    backup: StoredBackup, store: BackupSource, record: SegmentRecord, wanted: list[int], control: Control
) -> None:
    """Segments of a plain file, by number, with what was recorded of them here.

    :raises IntegrityError: one is another.
    """
    key = backup.key
    spans = [record.bounds(number) for number in wanted]
    control.begin("verify", sum(stop - start for start, stop in spans))
    chunks = fetch(store, key, spans=spans, etag=backup.etag, control=control)
    with contextlib.closing(chunks):
        for number, (start, stop) in zip(wanted, spans, strict=True):
            checksum, left = PartMac(bytes.fromhex(record.key), number), stop - start
            while left:
                chunk = next(chunks)
                checksum.update(chunk)
                left -= len(chunk)
                control.advance(len(chunk))
            if checksum.hexdigest() != record.checksums[number]:
                raise IntegrityError(
                    f"its bytes {start}-{stop} are not those that were backed up",
                    subject=store.url + key,
                    hint="The store lost or mixed them; the next backup is sent whole. Use another one.",
                )


def _was_sent(uploaded: Uploaded, start: int, stop: int) -> bool:
    at = bisect.bisect_right(uploaded.sent, (start, uploaded.size + 1)) - 1
    return any(begin < stop and start < end for begin, end in uploaded.sent[max(0, at) : at + 2])


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
    found = _segments(backup, trailer, store, numbers=None if lent is None else lent.missing, control=control)
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


def _segments(
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
    with Fanout(*sinks) as plain:
        for chunk in chunks:
            plain.put(chunk)
            digest.update(chunk)
            blocks.update(chunk)
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
    # One core's work, on bytes in its cache; the other cores receive and write.
    with Fanout(*sinks) as plain:
        for chunk in chunks:
            mac.update(chunk)
            stream.update_into(chunk, chunk)
            plain.put(chunk)
            blocks.update(chunk)
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
        found = b"".join(bytes(p) for _, p in _segments(self._backup, trailer, self._store, numbers=numbers))
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
