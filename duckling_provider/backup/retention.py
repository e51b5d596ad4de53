"""Which old backups go. A pure function makes the plan; `clean_up` carries it out.

Three rules: only exact names of this database's backups count; a backup goes when it is older than the retention; the
newest complete backup stays whatever its age, so that a month of failing backups never eats the last good one.

What a killed upload left in the store goes too: an unfinished upload that was not continued by the time a newer backup
is complete, and a ``.mac`` whose object never came. So does what a killed restore to elsewhere left on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from duckling_provider.backup.backup_object import list_backups
from duckling_provider.backup.local_backups import LocalBackups
from duckling_provider.backup.names import MAC_SUFFIX, SKEW, ListedBackup, assemble, date_faults, parse_name
from duckling_provider.backup.snapshot import UPLOAD_LOCK_SUFFIX, UPLOAD_SUFFIX, clear_partials
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import AccessDeniedError, BusyError, NotFoundError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.replica.downloads import clear_downloads
from duckling_provider.stores.store import BackupSource, Store, UploadLog

#: Unfinished uploads of ours older than this are given up. A retry of an upload of 500 GB is well within it.
ABANDONED_AFTER = timedelta(days=3)


#: Bytes that no backup has: less than one header page of a DuckDB file.
_EMPTY = 4096


@dataclass(frozen=True)
class RetentionPlan:
    """What goes and what stays, each newest first."""

    delete: tuple[ListedBackup, ...]
    keep: tuple[ListedBackup, ...]


def plan_retention(
    backups: Sequence[ListedBackup], *, now: datetime, keep_days: float, needs_mac: bool = False
) -> RetentionPlan:
    """Decide by age.

    :param now: aware; a backup goes when it was made more than `keep_days` days before.
    :param needs_mac: a backup without its ``.mac`` is not complete, so it is not the one that always stays. Where none
        is complete (the mode was changed, say), the newest of all stays: it may be the only one there is.
    """
    ordered = sorted(backups, key=lambda b: (b.created, b.key), reverse=True)
    # A date that can't be true must not make a backup the newest. Where there is no other, it stays.
    dated = [b for b in ordered if not b.misdated(now)] or ordered
    complete = [b for b in dated if b.has_mac or not needs_mac] or dated
    # An empty object is listed like a good one; then the newest that can be one stays beside it.
    stay = [*complete[:1], *[b for b in complete if b.size > _EMPTY][:1]]
    limit = timedelta(days=keep_days)
    delete = tuple(b for b in ordered if b not in stay and now - b.created > limit)
    return RetentionPlan(delete, tuple(b for b in ordered if b not in delete))


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
    #: Plain text that killed restores to elsewhere had left.
    downloads_removed: tuple[Path, ...] = ()


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
    :raises StoreError: when the store refuses.
    :raises FileSystemError: when the operating system does.
    """
    with disk_errors(database.backup_path, subject=database.id):
        moment = now or datetime.now(timezone.utc)
        return _clean_up(database, store, dry_run=dry_run, now=moment, control=control or Control())


def _clean_up(
    database: Database, store: Store | None, *, dry_run: bool, now: datetime, control: Control
) -> CleanupResult:
    local = LocalBackups(database)
    found_here = list_backups(local)
    notes = date_faults(found_here, now=now, url=local.url)
    local_plan = plan_retention(found_here, now=now, keep_days=database.local_retention_days)
    deleted, busy = [], []
    downloads = clear_downloads(database.backup_dir, dry_run=dry_run)
    for backup in local_plan.delete:
        control.check()
        try:
            if not dry_run:
                local.delete(backup.key)
        except BusyError:
            busy.append(backup.key)
        else:
            deleted.append(backup.key)
    if not dry_run:
        with contextlib.suppress(FileNotFoundError):
            clear_partials(database.backup_dir)
    s3_deleted: list[str] = []
    s3_kept: int | None = None
    aborted, versions_stay = 0, False
    days = database.s3.backup_retention_days if database.s3 is not None else 0
    if store is not None:
        store = store.under(control)
        rows = [(found.key, found.size, found.modified) for found in store.list(store.prefix)]
        backups = assemble(store.prefix, rows)
        s3_kept = len(backups)
        notes += date_faults(backups, now=now, url=store.url)
        if days > 0:
            plan = plan_retention(backups, now=now, keep_days=days, needs_mac=store.mode == CLIENT)
            s3_kept = len(plan.keep)
            for backup in plan.delete:
                control.check()
                if not dry_run:
                    versions_stay = delete_backup(store, backup.key) or versions_stay
                s3_deleted.append(backup.key)
        if not dry_run:
            aborted = _abort_abandoned(database, store, backups, now=now)
            _delete_lone_macs(database, store, rows, now=now)
        if store.clock_fault:
            notes.append(store.clock_fault)
    return CleanupResult(
        local_deleted=tuple(deleted),
        s3_deleted=tuple(s3_deleted),
        local_kept=len(local_plan.keep) + len(busy),
        s3_kept=s3_kept,
        busy=tuple(busy),
        uploads_aborted=aborted,
        downloads_removed=downloads,
        versions_stay=versions_stay,
        dry_run=dry_run,
        notes=tuple(notes),
    )


def _abort_abandoned(database: Database, store: Store, backups: Sequence[ListedBackup], *, now: datetime) -> int:
    """Abort the unfinished uploads that are old, and those of this installation that were interrupted before the newest
    complete backup was made; returns how many.
    """
    complete = (b for b in backups if b.has_mac or store.mode != CLIENT)
    newest = next((b.created for b in complete if not b.misdated(now)), None)
    stored = {backup.key for backup in backups}
    superseded, count = set(), 0

    def abandoned(key: str, begun: datetime) -> bool:
        taken = parse_name(key.removeprefix(store.prefix))
        if taken is None or key in superseded:
            return taken is not None
        # No upload is older than its snapshot, whatever the store's clock says of its beginning; a name of the future
        # says nothing.
        return now - (begun if taken - now > SKEW else max(begun, taken)) > ABANDONED_AFTER

    with contextlib.ExitStack() as locks:
        for path in sorted(database.backup_dir.glob("backup-*.db")):
            created, key = parse_name(path.name), store.prefix + path.name
            log_path = path.with_suffix(UPLOAD_SUFFIX)
            if newest is None or created is None or created >= newest or (key in stored and not log_path.exists()):
                continue
            with contextlib.suppress(BusyError):  # another process is uploading it
                locks.enter_context(FileLock(path.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0))
                superseded.add(key)
                found = UploadLog.owner(log_path)
                if found is not None and found[0].get("store") == store.url:
                    # By its id: some stores do not list what is unfinished.
                    store.abort(str(found[0].get("key")), found[1])
                    log_path.unlink(missing_ok=True)
                    count += 1
        return count + store.sweep(store.prefix, abandoned=abandoned)


def _delete_lone_macs(
    database: Database, store: Store, rows: Sequence[tuple[str, int, datetime | None]], *, now: datetime
) -> None:
    """A ``.mac`` is stored just before its object appears: killed in between, an upload leaves it alone."""
    keys = {key for key, _, _ in rows}
    for key, _, modified in rows:
        name = key.removeprefix(store.prefix).removesuffix(MAC_SUFFIX)
        if parse_name(name) is None or not key.endswith(MAC_SUFFIX) or key.removesuffix(MAC_SUFFIX) in keys:
            continue
        local = database.backup_dir / name
        if local.exists():
            # Ours: the lock tells whether its upload lives.
            quiet: contextlib.AbstractContextManager[object] = FileLock(
                local.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0
            )
        elif modified is not None and now - modified > ABANDONED_AFTER:
            quiet = contextlib.nullcontext()
        else:
            continue
        # Who may not delete keeps it; it does no harm.
        with contextlib.suppress(BusyError, AccessDeniedError), quiet:
            try:
                store.head(key.removesuffix(MAC_SUFFIX))
            except NotFoundError:
                store.delete(key)


def delete_backup(store: BackupSource, key: str) -> bool:
    """Delete a backup and its ``.mac``, where it has one; returns whether a noncurrent version stays in the store.

    The object goes first: a ``.mac`` alone is nothing, an object without one looks like damage.
    """
    kept = store.delete(key)
    return store.delete(key + MAC_SUFFIX) or kept
