"""The upload of a snapshot: the object that it becomes in the store, stored once whatever interrupts that."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TypedDict

from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.metadata import describe
from duckling_provider.backup.inventory.names import MAC_SUFFIX
from duckling_provider.backup.inventory.segment_records import record_of
from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.backup.making.basis import Basis
from duckling_provider.backup.making.copy_refusals import remember_refusal
from duckling_provider.backup.making.differential import (
    SegmentedBody,
    UploadPlan,
    basis_of,
    copies_binding,
    plan_upload,
    remember_upload,
)
from duckling_provider.backup.making.seal import sealed_for
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import (
    AccessDeniedError,
    CancelledError,
    DamagedError,
    DucklingError,
    NoSuchBucketError,
    NotFoundError,
)
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.interruptible import AbandonedError
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.formats.crypto import CtrCipher
from duckling_provider.formats.segments import SegmentCipher, SegmentKeys
from duckling_provider.formats.trailer import FORMAT, Lineage, encode_trailer
from duckling_provider.formats.upload_body import SnapshotBody
from duckling_provider.replica.reading import rows_digest
from duckling_provider.stores.parts import TooManyPartsError
from duckling_provider.stores.store import (
    BAD_CREDENTIALS,
    SSE_ALGORITHM,
    BytesBody,
    Copies,
    CopyRefusedError,
    Store,
    StoredObject,
    UploadLog,
)

_AN_EARLIER_TRY = "an earlier try stored it and left no record of how"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackupResult:
    """An uploaded backup: `size` of the ``.db`` file in bytes, `duration_ms` of the upload.

    Of the object's bytes, `bytes_sent` were sent, in one or several tries, and the store copied `bytes_copied` of an
    earlier one; `because` says why all were sent, empty where they were not. None where an earlier run did it and left
    no record.
    """

    key: str
    size: int
    duration_ms: int
    mode: str
    sha256: str | None
    bytes_sent: int | None = None
    bytes_copied: int | None = None
    because: str = ""


def upload_snapshot(
    database: Database, store: Store, snapshot: Snapshot, *, control: Control | None = None
) -> BackupResult:
    """Store a snapshot under its key, encrypted as the entry says.

    Calling it again after an interruption continues the upload; after a success it finds the object there and does
    nothing.

    For client-aes256 the ``.mac`` is stored before the object appears, so an object without its ``.mac`` never exists.

    :raises StoreError: when the store refuses or fails; the parts that arrived are kept for the next call where a
        retry can help.
    :raises DamagedError: when the snapshot is no longer what was copied.
    """
    control = control or Control()
    store = store.under(control)
    started = time.monotonic()
    key = store.prefix + snapshot.filename
    log.info("%s%s: %s", store.url, key, _encryption(database, store))
    with (
        disk_errors(snapshot.path.parent, subject=database.id),
        FileLock(snapshot.upload_lock, operation=f"upload of {snapshot.filename}", control=control),
    ):
        # Before it is sealed again: the sidecar must go on telling what the object in the store is.
        record = record_of(database, snapshot.filename)
        uploaded = None if record is None else record.uploaded
        if not _is_there(database, store, key, snapshot):
            snapshot, basis = _sealed(database, store, key, snapshot, control)
            stored, plan = _stored(database, store, key, snapshot, control, basis)
            uploaded = remember_upload(database, store, snapshot, stored, plan)
        elif uploaded is None or uploaded.key != key:
            # The try that stored it ended before it could note that.
            uploaded = remember_upload(database, store, snapshot, store.head(key), UploadPlan(because=_AN_EARLIER_TRY))
    result = BackupResult(
        key, snapshot.size, int((time.monotonic() - started) * 1000), store.mode, _public_sha256(store, snapshot)
    )
    if uploaded is None:
        return result
    return replace(result, bytes_sent=uploaded.sent_bytes, bytes_copied=uploaded.copied_bytes, because=uploaded.because)


def _sealed(
    database: Database, store: Store, key: str, snapshot: Snapshot, control: Control
) -> tuple[Snapshot, Basis | str | None]:
    """The snapshot as the entry wants its object to be, and what that shares segments with, see `basis_of`."""
    if store.mode != CLIENT or database.s3 is None or database.s3.object_format != FORMAT:
        return sealed_for(database, snapshot, control=control), None
    basis = basis_of(database, store, snapshot, binding=_binding(store, key, snapshot))
    lineage = basis.lineage if isinstance(basis, Basis) else None
    if basis is not None and lineage is None and snapshot.generation:
        lineage = Lineage.new()
    return sealed_for(database, snapshot, lineage=lineage, control=control), basis


def _stored(
    database: Database, store: Store, key: str, snapshot: Snapshot, control: Control, basis: Basis | str | None
) -> tuple[StoredObject, UploadPlan]:
    """Store the object, as much of it as can be by copies; returns what the store has, and how it came there."""
    plan = plan_upload(database, store, snapshot, binding=_binding(store, key, snapshot), basis=basis)
    record = record_of(database, snapshot.filename)
    if plan.copies is not None and record is not None:
        copies = plan.copies
        log.info(
            "%s%s: %s of %s are as in %s, and copied by the store",
            *(store.url, key, human_bytes(copies.cut.copied_bytes), human_bytes(copies.cut.size), copies.source.key),
        )
        try:
            parts = SegmentedBody(
                snapshot.path,
                copies.cut,
                record,
                digests=store.signs_payloads,
                control=control,
                **_around(database, store, snapshot),
            )
            with parts as body:
                return _put(database, store, key, snapshot, body, control, copies), plan
        except (CopyRefusedError, TooManyPartsError) as error:
            if isinstance(error, CopyRefusedError) and error.retryable:
                plan = UploadPlan(because=f"the store did not copy: {error.cause}")
            else:
                plan = UploadPlan(because=f"the store copies no parts: {error.cause}")
                remember_refusal(database, store, plan.because)
    if snapshot.generation:
        snapshot = sealed_for(database, snapshot, lineage=Lineage.new(), control=control)
    log.info("%s%s: all of it is sent: %s", store.url, key, plan.because)
    try:
        return _send(database, store, key, snapshot, control), plan
    except TooManyPartsError as error:
        smaller = snapshot
        snapshot = sealed_for(database, snapshot, cautious=True, control=control)
        if snapshot.plan == smaller.plan:
            raise
        log.warning("%s: sent again in %d larger parts; %s", error.cause, snapshot.plan.count, error.hint)
        return _send(database, store, key, snapshot, control), plan


def _encryption(database: Database, store: Store) -> str:
    """The mode, and what tells its key from others: a log must answer which one a backup needs."""
    s3 = database.s3
    if store.mode == CLIENT and s3 is not None and s3.encryption_key is not None:
        return f"encryption {CLIENT}, key fingerprint {s3.encryption_key.fingerprint}"
    kms = f", KMS key {s3.kms_key_id or 'of the account'}" if s3 is not None and store.mode == "sse-kms" else ""
    return f"encryption {store.mode}{kms}"


class _Around(TypedDict):
    cipher: CtrCipher | SegmentCipher | None
    lead: bytes
    tail: bytes


def _around(database: Database, store: Store, snapshot: Snapshot) -> _Around:
    """What makes the file's bytes those of the object to be, see `SnapshotBody`."""
    key = database.s3.encryption_key if store.mode == CLIENT and database.s3 is not None else None
    cipher: CtrCipher | SegmentCipher | None = None
    lead = tail = b""
    if key is not None and snapshot.footer is not None:
        keys, index = SegmentKeys(key), bytes.fromhex(snapshot.index or "")
        cipher, tail = SegmentCipher(keys, index), encode_trailer(keys, snapshot.footer, index)
    elif key is not None:
        lead = bytes.fromhex(snapshot.iv or "")
        cipher = CtrCipher(key, lead)
    return {"cipher": cipher, "lead": lead, "tail": tail}


def _body(database: Database, store: Store, snapshot: Snapshot, control: Control) -> SnapshotBody:
    """The bytes of the object to be."""
    return SnapshotBody(
        snapshot.path,
        snapshot.plan,
        checksums=snapshot.part_checksums,
        checksum_key=bytes.fromhex(snapshot.checksum_key),
        digests=store.signs_payloads,
        control=control,
        **_around(database, store, snapshot),
    )


def _send(database: Database, store: Store, key: str, snapshot: Snapshot, control: Control) -> StoredObject:
    control.begin("upload", snapshot.plan.size)
    with _body(database, store, snapshot, control) as body:
        return _put(database, store, key, snapshot, body, control)


def _put(
    database: Database,
    store: Store,
    key: str,
    snapshot: Snapshot,
    body: SnapshotBody,
    control: Control,
    copies: Copies | None = None,
) -> StoredObject:
    """Store the object, its ``.mac`` just before it appears; a ``.mac`` that is left without its object goes."""
    encrypted = store.mode == CLIENT

    def write_mac() -> None:
        if snapshot.mac is not None:
            store.put(key + MAC_SUFFIX, BytesBody(snapshot.mac.encode()), content_type="text/plain")

    binding = _binding(store, key, snapshot)
    try:
        return store.put(
            key,
            body,
            metadata=describe(
                mode=store.mode,
                size=snapshot.size,
                database=database.id,
                fingerprint=snapshot.key_fingerprint,
                sha256=_public_sha256(store, snapshot),
                origin=snapshot.origin,
                identity=_identity(database, snapshot),
                rows=_rows(database, store, snapshot),
                object_format=1 if snapshot.footer is None else FORMAT,
            ),
            before_visible=write_mac if encrypted else None,
            upload_log=UploadLog(snapshot.upload_log, binding if copies is None else copies_binding(binding, copies)),
            copies=copies,
            control=control,
        )
    except DucklingError as error:
        # An abandoned request may yet make the object appear.
        stopped = isinstance(error, CancelledError) and not isinstance(error, AbandonedError)
        ended = isinstance(error, AccessDeniedError) and error.code in BAD_CREDENTIALS
        nowhere = isinstance(error, NoSuchBucketError)
        if encrypted and (stopped or not (error.retryable or ended or nowhere)):
            _remove_lone_mac(store, key)
        raise


def _identity(database: Database, snapshot: Snapshot) -> str | None:
    """What binds an object to its name; one of format 2 does so by its footer."""
    key = database.s3.encryption_key if database.s3 is not None and snapshot.footer is None else None
    return None if key is None or snapshot.mac is None else key.identity(database.id, snapshot.stamp, snapshot.mac)


def _rows(database: Database, store: Store, snapshot: Snapshot) -> str | None:
    key = database.s3.encryption_key if store.mode == CLIENT and database.s3 is not None else None
    return None if snapshot.rows is None else rows_digest(snapshot.rows, key)


def _public_sha256(store: Store, snapshot: Snapshot) -> str | None:
    """What the store may know of the plaintext: nothing, where it is encrypted before it gets there."""
    return None if store.mode == CLIENT else snapshot.sha256


def _binding(store: Store, key: str, snapshot: Snapshot) -> dict[str, object]:
    """What the log of an interrupted upload is bound to: it goes on with just the same object only."""
    return {
        "store": store.url,
        "key": key,
        "sha256": snapshot.sha256,
        "iv": snapshot.iv,
        "part_size": snapshot.part_size,
        "mode": store.mode,
        # Not for the others: their logs of earlier versions are to go on.
        **({"mac": snapshot.mac} if snapshot.footer is not None else {}),
    }


def _is_there(database: Database, store: Store, key: str, snapshot: Snapshot) -> bool:
    """Whether this very snapshot was uploaded by an earlier try whose success was not recorded."""
    try:
        found = identify_backup(database, store, key, chosen=True, compare=False, archived=True)
    except NotFoundError:
        return False
    except AccessDeniedError as error:
        if error.action not in {"s3:GetObject", "s3:ListBucket"}:
            raise
        # Many stores answer so for what is not there, too. If these permissions are missing, the upload will tell.
        return False
    same = found.mac == snapshot.mac if snapshot.mac else found.sha256 == snapshot.sha256
    if not same or found.size != snapshot.size:
        raise DamagedError(
            "another object has this backup's key", subject=store.url + key, hint="It is left as it is; back up again."
        )
    # An earlier try may have ended before it could look at the encryption: then `put` is to judge.
    wanted = SSE_ALGORITHM.get(store.mode)
    return wanted is None or store.head(key).sse == wanted


def _remove_lone_mac(store: Store, key: str) -> None:
    """Raises nothing: another error is on its way to the caller."""
    try:
        if not _exists(store, key):
            store.delete(key + MAC_SUFFIX)
    except DucklingError as error:
        log.warning("could not tidy up %s: %s", key + MAC_SUFFIX, error)


def _exists(store: Store, key: str) -> bool:
    try:
        store.head(key)
    except NotFoundError:
        return False
    return True
