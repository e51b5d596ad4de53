"""Proving that a stored backup can be restored, without restoring it and without writing its plain text anywhere."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from duckling_provider.backup.backup_object import identify_backup, resolve
from duckling_provider.backup.names import LATEST, RULES
from duckling_provider.backup.states import noted_damage, object_of, record_state
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import IntegrityError
from duckling_provider.config.databases import Database
from duckling_provider.stores.store import BackupSource


@dataclass(frozen=True)
class VerifyResult:
    """`size` of the ``.db`` file and `object_size` in bytes; `evidence` names what vouches for the bytes:
    ``"HMAC-SHA256"``, ``"SHA-256"`` or ``"DuckDB block checksums"``. `key_fingerprint` tells which key read it, None
    for an object that is not encrypted here.
    """

    key: str
    mode: str
    size: int
    object_size: int
    evidence: str
    duration_ms: int
    key_fingerprint: str | None = None


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
    :raises IntegrityError: when the backup would not restore.
    :raises NotFoundError: when there is no such backup.
    """
    started = time.monotonic()
    if control is not None:
        store = store.under(control)
    found = resolve(database, store, key, any_origin=True, proven=False)
    with noted_damage(database, store, found) if note else contextlib.nullcontext():
        result = _verify(database, store, found, chosen=key not in RULES, full=full, started=started, control=control)
    if note and full and (stored := object_of(store, found)) is not None:
        record_state(database, store, stored, "verified", means="full")
    return result


def _verify(
    database: Database,
    store: BackupSource,
    key: str,
    *,
    chosen: bool,
    full: bool,
    started: float,
    control: Control | None,
) -> VerifyResult:
    backup = identify_backup(database, store, key, chosen=chosen, archived=not full)
    if backup.mac is not None:
        evidence = "HMAC-SHA256"
    else:
        evidence = "SHA-256" if backup.sha256 is not None else "DuckDB block checksums"
    if full:
        report = backup.read(store, control=control, step="verify")
        if report.skipped and backup.mac is None and backup.sha256 is None:
            raise IntegrityError(
                "nothing vouches for its bytes: the file is encrypted by DuckDB and the store kept no metadata",
                subject=store.url + backup.key,
                hint="Use client-aes256, whose .mac needs no metadata, or a store that keeps metadata.",
            )
    return VerifyResult(
        key=backup.key,
        mode=backup.mode,
        size=backup.size,
        object_size=backup.object_size,
        evidence=evidence if full else "head",
        duration_ms=int((time.monotonic() - started) * 1000),
        key_fingerprint=backup.key_fingerprint,
    )
