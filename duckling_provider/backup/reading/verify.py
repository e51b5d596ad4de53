"""Whether a stored backup would restore: it is read back, and its plain text is written nowhere.

What is found is recorded beside the backup. Nothing is noted against one before it was read a second time.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from duckling_provider.backup.inventory.backup_object import StoredBackup, identify_backup
from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.backup.inventory.names import LATEST, RULES
from duckling_provider.backup.inventory.segment_records import SegmentRecord, Uploaded, record_of
from duckling_provider.backup.inventory.states import note_damage, read_states, record_state
from duckling_provider.backup.reading.verified_read import proven_segments, read_verified
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    DamagedError,
    DucklingError,
    IntegrityError,
    ReplacedError,
    StoreError,
    WrongKeyError,
)
from duckling_provider.config.databases import Database
from duckling_provider.formats.crypto import PartMac
from duckling_provider.stores.fetch import fetch
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
        with contextlib.closing(
            proven_segments(backup, backup.trailer, store, numbers=wanted, control=control)
        ) as found:
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
