"""A whole backup in one call, from the replica to the clean-up, and what an interrupted one left to go on with."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import datetime, timezone

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.backup.inventory.sidecar import Snapshot, find_snapshot
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import BackupResult, upload_snapshot
from duckling_provider.backup.reading.verify import VerifyResult, verify_upload
from duckling_provider.backup.retention.clean_up import CleanupResult, clean_up, trim_local
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    CancelledError,
    DamagedError,
    DucklingError,
    NotFoundError,
    StateFileError,
    StoreError,
)
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.stores.store import Store


@dataclass(frozen=True)
class FlowResult:
    """Everything one automatic backup did; `upload` and `verified` are None for a database without S3.

    The backup is good even when the clean-up after it failed.
    """

    snapshot: Snapshot
    upload: BackupResult | None
    verified: VerifyResult | None
    cleanup: CleanupResult | None
    cleanup_error: DucklingError | None
    duration_ms: int
    clock_fault: str = ""
    #: Whether it went on with what an earlier run had left.
    resumed: bool = False
    #: Local backups that made room for the new one.
    trimmed: tuple[str, ...] = ()

    @property
    def deleted(self) -> tuple[str, ...]:
        """The names and keys of all backups that went."""
        return (*self.trimmed, *((*self.cleanup.local_deleted, *self.cleanup.s3_deleted) if self.cleanup else ()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: backups whose date can't be true, a clock that is wrong, uploads that stay."""
        if self.cleanup is not None:
            return (*self.cleanup.notes, *self.cleanup.uploads_left)
        return (self.clock_fault,) if self.clock_fault else ()


def interrupted_upload(database: Database) -> Snapshot | None:
    """The newest local backup, when its upload was begun and neither ended nor was given up."""
    for listed in _newest_here(database):
        with contextlib.suppress(DamagedError, NotFoundError, StateFileError):
            snapshot = find_snapshot(database, listed.key)
            return snapshot if snapshot.upload_log.exists() else None
    return None


def _newest_here(database: Database) -> list[ListedBackup]:
    """The newest local backup whose date can be true; none or one."""
    now = datetime.now(timezone.utc)
    return [found for found in list_backups(LocalBackups(database)) if not found.misdated(now)][:1]


def unfinished_backup(database: Database, store: Store) -> Snapshot | None:
    """The newest local backup, when it is sound and newer than every complete one in the store; None when there is
    nothing to go on with: a backup that has become the second newest is not worth its upload.
    """
    now = datetime.now(timezone.utc)
    for listed in _newest_here(database):
        complete = (found for found in list_backups(store) if found.has_mac or store.mode != CLIENT)
        if all(found.created < listed.created or found.misdated(now) for found in complete):
            with contextlib.suppress(DamagedError, NotFoundError):
                return find_snapshot(database, listed.key)
    return None


def back_up(
    database: Database,
    store: Store | None,
    *,
    resume: bool = False,
    control: Control | None = None,
    owner: str = "",
    wait: float = 60.0,
) -> FlowResult:
    """Snapshot, upload, verify, clean up: what the backup DAG does, in one call.

    Retention runs only after the new backup was verified.

    :param store: None for a database without S3.
    :param resume: go on with the `unfinished_backup`, where there is one, in place of a new snapshot.
    """
    control = control or Control()
    started = time.monotonic()
    unfinished = unfinished_backup(database, store.under(control)) if resume and store is not None else None
    trimmed = trim_local(database, control=control) if unfinished is None else ()
    snapshot = unfinished or take_snapshot(database, control=control, owner=owner, wait=wait)
    upload = verified = None
    if store is not None:
        upload = upload_snapshot(database, store, snapshot, control=control)
        try:
            verified = verify_upload(database, store, upload.key, control=control)
        except StoreError as error:
            later = f"The backup is stored, but not verified yet: duckling verify {database.id}"
            error.hint = " ".join(filter(None, (error.hint, later)))
            raise
    cleanup: CleanupResult | None = None
    cleanup_error: DucklingError | None = None
    try:
        cleanup = clean_up(database, store, control=control)
        cleanup_error = next(iter(cleanup.s3_refused.values()), None)
    except CancelledError:
        raise
    except DucklingError as error:
        cleanup_error = error
    took = int((time.monotonic() - started) * 1000)
    clock = store.clock_fault if store is not None else ""
    return FlowResult(
        snapshot, upload, verified, cleanup, cleanup_error, took, clock, resumed=unfinished is not None, trimmed=trimmed
    )
