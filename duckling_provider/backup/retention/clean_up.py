"""The removal of the backups that `rules` lets go, local ones and those in S3, and of what killed runs left.

Local backups go for want of room while uploads fail too: `trim_local`. What a killed restore to elsewhere left on the
disk goes as well.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import COMPANION_SUFFIXES, ListedBackup, assemble, date_faults
from duckling_provider.backup.inventory.segment_records import forget_records
from duckling_provider.backup.inventory.states import BackupState, read_state
from duckling_provider.backup.making.partials import clear_partials
from duckling_provider.backup.retention.leftovers import abort_abandoned, delete_lone_companions
from duckling_provider.backup.retention.rules import Decision, RetentionPlan, Room, plan_retention, trimmed
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import AccessDeniedError, BusyError, FileSystemError, StateFileError, StoreError
from duckling_provider.config.databases import Database
from duckling_provider.config.fields import MAX_DAYS
from duckling_provider.config.s3 import CLIENT
from duckling_provider.replica.downloads import clear_downloads, clear_scratch
from duckling_provider.stores.store import BackupSource, Store, Swept

log = logging.getLogger(__name__)


def trim_local(database: Database, *, now: datetime | None = None, control: Control | None = None) -> tuple[str, ...]:
    """Make room for the next local backup, which must not wait until uploads go well again; the names that went.

    :raises FileSystemError: the operating system refuses.
    """
    with disk_errors(database.backup_path, subject=database.id):
        local = LocalBackups(database)
        known_here = _looked_up(database, local)
        everything = plan_retention(
            list_backups(local),
            now=now or datetime.now(timezone.utc),
            keep_days=MAX_DAYS,
            state=lambda backup: known_here(backup).name,
        )
        plan = trimmed(everything, Room.of(database, coming=True))
        deleted, _, odd = _delete_local(local, plan, control or Control())
    for told in odd:
        log.warning("%s", told)
    for name in deleted:
        log.info("%s%s was deleted to make room for the next one", local.url, name)
    return tuple(deleted)


def _delete_local(local: LocalBackups, plan: RetentionPlan, control: Control) -> tuple[list[str], list[str], list[str]]:
    """The names that went, those that are in use, and a sentence about each that can't be deleted: it keeps no other
    from going.
    """
    deleted: list[str] = []
    busy: list[str] = []
    odd: list[str] = []
    for backup in plan.delete:
        control.check()
        try:
            delete_backup(local, backup.key)
        except BusyError:
            busy.append(backup.key)
        except (FileSystemError, StateFileError) as error:
            odd.append(str(error))
        else:
            deleted.append(backup.key)
    return deleted, busy, odd


def _delete_stored(
    store: Store, keys: Sequence[str], control: Control
) -> tuple[list[str], dict[str, StoreError], bool]:
    """What was deleted; why others were not; whether noncurrent versions stay.

    A locked backup keeps none of the others. Where all would be refused, the first one tells.
    """
    deleted: list[str] = []
    refused: dict[str, StoreError] = {}
    versions_stay = False
    for key in keys:
        control.check()
        try:
            versions_stay = delete_backup(store, key) or versions_stay
        except StoreError as error:
            refused[key] = error
            if error.retryable or isinstance(error, AccessDeniedError):
                break
        else:
            deleted.append(key)
    return deleted, refused, versions_stay


@dataclass(frozen=True)
class CleanupResult:
    """Names of local files and keys of objects that were deleted, or would be (`dry_run`); `busy` ones were left
    for the next time. `notes` is what a person should know: backups whose date can't be true, a clock that is wrong.
    `versions_stay`: the bucket keeps noncurrent versions of what was deleted.
    """

    local_deleted: tuple[str, ...]
    s3_deleted: tuple[str, ...]
    local_kept: int
    s3_kept: int | None
    busy: tuple[str, ...]
    uploads_aborted: int
    versions_stay: bool
    dry_run: bool
    notes: tuple[str, ...] = ()
    #: What became of each backup, local ones and those in S3, and why.
    local_decisions: tuple[Decision, ...] = ()
    s3_decisions: tuple[Decision, ...] = ()
    #: Plain text that killed restores to elsewhere had left.
    downloads_removed: tuple[Path, ...] = ()
    #: Of each unfinished upload that could not be listed or aborted, why.
    uploads_left: tuple[str, ...] = ()
    #: By key, why the store did not delete a backup.
    s3_refused: Mapping[str, StoreError] = field(default_factory=dict)


def clean_up(
    database: Database,
    store: Store | None,
    *,
    dry_run: bool = False,
    now: datetime | None = None,
    control: Control | None = None,
) -> CleanupResult:
    """Apply the retention to local backups and, where ``s3BackupRetentionDays`` is set, to those in S3.

    :param store: the database's store, None when it has none.
    :param now: the clock, for tests.
    :raises StoreError: when the store can't be listed or asked about; what it refuses to delete is in the result.
    :raises FileSystemError: when the operating system does.
    """
    with disk_errors(database.backup_path, subject=database.id):
        moment = now or datetime.now(timezone.utc)
        return _clean_up(database, store, dry_run=dry_run, now=moment, control=control or Control())


def _clean_up(
    database: Database, store: Store | None, *, dry_run: bool, now: datetime, control: Control
) -> CleanupResult:
    work = _CleanUp(database, dry_run, now, control)
    here = work.here()
    if store is not None:
        there = work.there(store.under(control))
    else:
        there = _There()
        if not dry_run:
            forget_records(database, ())
    return CleanupResult(
        local_deleted=tuple(here.deleted),
        local_kept=len(here.decisions) - len(here.deleted),
        local_decisions=here.decisions,
        busy=tuple(here.busy),
        downloads_removed=here.downloads,
        s3_deleted=tuple(there.deleted),
        s3_kept=there.kept,
        s3_decisions=there.decisions,
        s3_refused=there.refused,
        uploads_aborted=there.swept.aborted,
        uploads_left=there.swept.left,
        versions_stay=there.versions_stay,
        dry_run=dry_run,
        notes=tuple(work.notes),
    )


@dataclass(frozen=True)
class _Here:
    """What a clean-up did on this machine; see `CleanupResult`."""

    decisions: tuple[Decision, ...]
    deleted: list[str]
    busy: list[str]
    downloads: tuple[Path, ...]


@dataclass
class _There:
    """What a clean-up did in the store; see `CleanupResult`."""

    kept: int | None = None
    decisions: tuple[Decision, ...] = ()
    deleted: list[str] = field(default_factory=list)
    refused: Mapping[str, StoreError] = field(default_factory=dict)
    swept: Swept = field(default_factory=Swept)
    versions_stay: bool = False


@dataclass
class _CleanUp:
    """One clean-up; `notes` gathers what a person should know."""

    database: Database
    dry_run: bool
    now: datetime
    control: Control
    notes: list[str] = field(default_factory=list)

    def here(self) -> _Here:
        """The local backups, and what killed runs left beside them."""
        database, local = self.database, LocalBackups(self.database)
        found = list_backups(local)
        self.notes += date_faults(found, now=self.now, url=local.url)
        known = _looked_up(database, local)
        plan = plan_retention(
            found, now=self.now, keep_days=database.local_retention_days, state=lambda backup: known(backup).name
        )
        plan = trimmed(plan, Room.of(database, coming=False))
        downloads = clear_downloads(database.backup_dir, dry_run=self.dry_run)
        downloads += clear_scratch(database.drill_path, dry_run=self.dry_run)
        if self.dry_run:
            return _Here(plan.decisions, [backup.key for backup in plan.delete], [], downloads)
        deleted, busy, odd = _delete_local(local, plan, self.control)
        self.notes += odd
        with contextlib.suppress(FileNotFoundError):
            self.notes += clear_partials(database.backup_dir)
        return _Here(plan.decisions, deleted, busy, downloads)

    def there(self, store: Store) -> _There:
        """The backups in the store, and what killed uploads left."""
        database = self.database
        rows = list(store.list(store.prefix))
        backups = assemble(store.prefix, rows)
        self.notes += date_faults(backups, now=self.now, url=store.url)
        done = _There(kept=len(backups))
        plan = self._plan(store, backups)
        if plan is not None:
            done.kept, done.decisions = len(plan.keep), plan.decisions
            done.deleted = [backup.key for backup in plan.delete]
        if not self.dry_run:
            if plan is not None:
                done.deleted, done.refused, done.versions_stay = _delete_stored(store, done.deleted, self.control)
            forget_records(database, [backup.name for backup in backups])
            done.swept = abort_abandoned(database, store, backups, now=self.now, notes=self.notes)
            self.notes += [done.swept.note] if done.swept.note else []
            delete_lone_companions(database, store, rows, now=self.now, notes=self.notes)
        if store.clock_fault:
            self.notes.append(store.clock_fault)
        return done

    def _plan(self, store: Store, backups: Sequence[ListedBackup]) -> RetentionPlan | None:
        """None where the entry has no retention in S3."""
        s3 = self.database.s3
        if s3 is None or (s3.backup_retention_days <= 0 and s3.retention is None):
            return None
        known = _looked_up(self.database, store)
        return plan_retention(
            backups,
            now=self.now,
            keep_days=s3.backup_retention_days,
            needs_mac=store.mode == CLIENT,
            rule=s3.retention,
            state=lambda backup: known(backup).name,
            whole=lambda backup: known(backup).is_whole,
        )


def _looked_up(database: Database, source: BackupSource) -> Callable[[ListedBackup], BackupState]:
    """Looks up what is known of backups, of each once."""
    known: dict[str, BackupState] = {}

    def state(backup: ListedBackup) -> BackupState:
        if backup.key not in known:
            known[backup.key] = read_state(database, source, backup, strict=True)
        return known[backup.key]

    return state


def delete_backup(store: BackupSource, key: str) -> bool:
    """Delete a backup and its companions; returns whether a noncurrent version stays in the store.

    The object goes first: a ``.mac`` alone is nothing, an object without one looks like damage.
    """
    kept = [store.delete(key + suffix) for suffix in ("", *COMPANION_SUFFIXES)]
    return any(kept)
