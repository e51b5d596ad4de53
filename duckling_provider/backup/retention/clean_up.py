"""Which old backups go. A pure function makes the plan, with a reason for each backup; `clean_up` carries it out.

Only exact names of this database's backups count. A backup goes when it is older than the retention, and none of these
holds:

- it is the newest complete one, the newest verified one or the newest that a drill restored, whatever its age, so that
  a month of failing backups never eats the last good one;
- it is pinned;
- ``s3.retention`` keeps it: the newest good one of each of so many days, weeks (ISO 8601), months and years, in UTC.

A disproved backup is none of these, unless there is no other.

Local backups also go for want of room, the oldest first, while uploads fail too: `trim_local`. The newest complete one
and the pinned ones stay.

What a killed upload left in the store goes too: an unfinished upload that was not continued by the time a newer backup
is complete, and a ``.mac`` or ``.state`` whose object never came. So does what a killed restore to elsewhere left on
the disk.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from duckling_provider.backup.inventory.backup_object import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import (
    COMPANION_SUFFIXES,
    SKEW,
    ListedBackup,
    assemble,
    date_faults,
    parse_name,
)
from duckling_provider.backup.inventory.segment_records import forget_records
from duckling_provider.backup.inventory.sidecar import UPLOAD_LOCK_SUFFIX, UPLOAD_SUFFIX
from duckling_provider.backup.inventory.states import BackupState, State, read_state
from duckling_provider.backup.making.snapshot import clear_partials
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import MARGIN, disk_errors
from duckling_provider.base.errors import (
    AccessDeniedError,
    BusyError,
    FileSystemError,
    NotFoundError,
    StateFileError,
    StoreError,
)
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.config.fields import MAX_DAYS
from duckling_provider.config.s3 import CLIENT, Retention
from duckling_provider.replica.downloads import clear_downloads, clear_scratch
from duckling_provider.stores.store import BackupSource, Store, StoredObject, Swept, UploadLog

#: Unfinished uploads of ours older than this are given up. A retry of an upload of 500 GB is well within it.
ABANDONED_AFTER = timedelta(days=3)

#: Bytes that no backup has: less than one header page of a DuckDB file.
_EMPTY = 4096
#: Why a backup stays that no want of room takes.
NEWEST = "the newest complete one"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """Whether a backup stays, and why."""

    backup: ListedBackup
    keep: bool
    reason: str


@dataclass(frozen=True)
class RetentionPlan:
    """What becomes of each backup, the newest first."""

    decisions: tuple[Decision, ...]

    @property
    def delete(self) -> tuple[ListedBackup, ...]:
        return tuple(decision.backup for decision in self.decisions if not decision.keep)

    @property
    def keep(self) -> tuple[ListedBackup, ...]:
        return tuple(decision.backup for decision in self.decisions if decision.keep)


def plan_retention(
    backups: Sequence[ListedBackup],
    *,
    now: datetime,
    keep_days: float,
    needs_mac: bool = False,
    rule: Retention | None = None,
    state: Callable[[ListedBackup], State] = lambda _: "verified",
    whole: Callable[[ListedBackup], bool] | None = None,
) -> RetentionPlan:
    """Decide by age, evidence, pins and the rule.

    :param now: aware; a backup goes when it was made more than `keep_days` days before.
    :param needs_mac: a backup without its ``.mac`` is not complete, so it is not the one that always stays. Where none
        is complete (the mode was changed, say), the newest of all stays: it may be the only one there is.
    :param rule: what stays beyond `keep_days`.
    :param state: looks up the state of a backup. Asked only of those that may stay for what they are.
    :param whole: looks up whether all of a backup was read and found good: the newest one stays, since the next ones
        are copied from it.
    """
    ordered = sorted(backups, key=lambda b: (b.created, b.key), reverse=True)
    # A date that can't be true must not make a backup the newest. Where there is no other, it stays.
    dated = [b for b in ordered if not b.misdated(now)] or ordered
    complete = [b for b in dated if b.has_mac or not needs_mac] or dated
    reasons = _always(complete, state, whole)
    if rule is not None:
        for backup, period in _kept_by(rule, complete, state):
            reasons.setdefault(backup.key, period)
    limit = timedelta(days=keep_days)
    decisions = []
    for backup in ordered:
        old = now - backup.created > limit
        reason = "pinned" if backup.is_pinned else reasons.get(backup.key)
        if reason is None and backup.misdated(now):
            reason = "its date can't be true"
        if reason is None:
            days = "than what s3.retention keeps" if rule is not None and not keep_days else f"than {keep_days:g} days"
            reason = f"{'older' if old else 'not older'} {days}"
        decisions.append(Decision(backup, backup.is_pinned or backup.key in reasons or not old, reason))
    return RetentionPlan(tuple(decisions))


def _always(
    complete: Sequence[ListedBackup],
    state: Callable[[ListedBackup], State],
    whole: Callable[[ListedBackup], bool] | None,
) -> dict[str, str]:
    """Why a backup stays whatever its age, by key.

    :param complete: newest first.
    """
    reasons: dict[str, str] = {}
    wanted: dict[str, Callable[[ListedBackup], bool]] = {
        "the newest that a drill restored": lambda b: state(b) == "tested",
        "the newest verified one": lambda b: state(b) in ("verified", "tested"),
    }
    if whole is not None:
        wanted["the newest that was verified in full"] = whole
    good = (b for b in complete if state(b) != "disproved")
    newest = next(good, None) or next(iter(complete), None)
    if newest is None:
        return reasons
    reasons[newest.key] = NEWEST
    # An empty object is listed like a good one; then the newest that can be one stays beside it.
    if newest.size <= _EMPTY and (other := next((b for b in good if b.size > _EMPTY), None)) is not None:
        reasons[other.key] = "the newest complete one that is not empty"
    for backup in complete:
        for reason, is_it in list(wanted.items()):
            if is_it(backup):
                reasons.setdefault(backup.key, reason)
                del wanted[reason]
        if not wanted:
            break
    return reasons


#: How a day, a week, a month and a year are called, so that two moments in one have one name.
_PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "daily": lambda made: made.isoformat()[:10],
    "weekly": lambda made: "{:04}-W{:02}".format(*made.isocalendar()),
    "monthly": lambda made: made.isoformat()[:7],
    "yearly": lambda made: made.isoformat()[:4],
}


def _kept_by(
    rule: Retention, complete: Sequence[ListedBackup], state: Callable[[ListedBackup], State]
) -> Iterator[tuple[ListedBackup, str]]:
    """(backup, period) of those that `rule` keeps: of each of the newest so many periods in which there is one that is
    not disproved, the newest that is proven, or the newest.
    """
    for name, named in _PERIODS.items():
        periods: dict[str, list[ListedBackup]] = {}
        for backup in complete:
            periods.setdefault(named(backup.created.astimezone(timezone.utc)), []).append(backup)
        left = getattr(rule, name)
        for period, made in periods.items():  # newest first
            if not left:
                break
            found = next((b for b in made if state(b) in ("verified", "tested")), None)
            found = found or next((b for b in made if state(b) == "uploaded"), None)
            if found is not None:
                yield found, f"{name}: {period}"
                left -= 1


@dataclass(frozen=True)
class Room:
    """What bounds the local backups together. In bytes: `most` that they may have (0: any), `free` on the disk, and
    `needed` there for the next one.
    """

    most: int
    free: int
    needed: int

    @classmethod
    def of(cls, database: Database, *, coming: bool) -> Room:
        """:param coming: whether the next backup is about to be made, which counts towards `most`."""
        folder = database.backup_dir
        while not folder.exists():
            folder = folder.parent
        with contextlib.suppress(FileNotFoundError):
            needed = database.replica.stat().st_size
            most = database.local_backups_max_bytes
            if most and coming:
                most = max(1, most - needed)  # 0 is no bound
            return cls(most, shutil.disk_usage(folder).free, needed + MARGIN)
        return cls(database.local_backups_max_bytes, 0, 0)


def trimmed(plan: RetentionPlan, room: Room) -> RetentionPlan:
    """`plan` for local backups, with more of them deleted, the oldest first, until they fit: down to the newest
    complete one and those that are pinned.
    """
    total = sum(decision.backup.size for decision in plan.decisions if decision.keep)
    free = room.free + sum(decision.backup.size for decision in plan.decisions if not decision.keep)
    decisions = []
    for decision in reversed(plan.decisions):
        backup, reason = decision.backup, ""
        if room.most and total > room.most:
            reason = f"the local backups have more than localBackupsMaxBytes, {human_bytes(room.most)}"
        elif free < room.needed:
            reason = f"less than {human_bytes(room.needed)}, the room for one more, is free"
        if decision.keep and reason and not backup.is_pinned and decision.reason != NEWEST:
            decision = Decision(backup, keep=False, reason=reason)  # noqa: PLW2901 - what becomes of this one
            total, free = total - backup.size, free + backup.size
        decisions.append(decision)
    return RetentionPlan(tuple(reversed(decisions)))


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
    local = LocalBackups(database)
    found_here = list_backups(local)
    notes = date_faults(found_here, now=now, url=local.url)
    known_here = _looked_up(database, local)
    local_plan = plan_retention(
        found_here, now=now, keep_days=database.local_retention_days, state=lambda backup: known_here(backup).name
    )
    local_plan = trimmed(local_plan, Room.of(database, coming=False))
    downloads = clear_downloads(database.backup_dir, dry_run=dry_run)
    downloads += clear_scratch(database.drill_path, dry_run=dry_run)
    deleted, busy = [backup.key for backup in local_plan.delete], list[str]()
    if not dry_run:
        deleted, busy, odd = _delete_local(local, local_plan, control)
        notes += odd
        with contextlib.suppress(FileNotFoundError):
            notes += clear_partials(database.backup_dir)
    s3_deleted: list[str] = []
    s3_kept: int | None = None
    s3_decisions: tuple[Decision, ...] = ()
    swept, versions_stay = Swept(), False
    refused: dict[str, StoreError] = {}
    days = database.s3.backup_retention_days if database.s3 is not None else 0
    if store is None and not dry_run:
        forget_records(database, ())
    if store is not None:
        store = store.under(control)
        rows = list(store.list(store.prefix))
        backups = assemble(store.prefix, rows)
        s3_kept = len(backups)
        notes += date_faults(backups, now=now, url=store.url)
        rule = database.s3.retention if database.s3 is not None else None
        if days > 0 or rule is not None:
            known = _looked_up(database, store)
            plan = plan_retention(
                backups,
                now=now,
                keep_days=days,
                needs_mac=store.mode == CLIENT,
                rule=rule,
                state=lambda backup: known(backup).name,
                whole=lambda backup: known(backup).is_whole,
            )
            s3_decisions = plan.decisions
            s3_kept = len(plan.keep)
            s3_deleted = [backup.key for backup in plan.delete]
            if not dry_run:
                s3_deleted, refused, versions_stay = _delete_stored(store, s3_deleted, control)
        if not dry_run:
            forget_records(database, [backup.name for backup in backups])
            swept = _abort_abandoned(database, store, backups, now=now, notes=notes)
            notes += [swept.note] if swept.note else []
            _delete_lone_companions(database, store, rows, now=now, notes=notes)
        if store.clock_fault:
            notes.append(store.clock_fault)
    return CleanupResult(
        local_deleted=tuple(deleted),
        s3_deleted=tuple(s3_deleted),
        local_kept=len(local_plan.decisions) - len(deleted),
        s3_kept=s3_kept,
        busy=tuple(busy),
        uploads_aborted=swept.aborted,
        uploads_left=swept.left,
        s3_refused=refused,
        downloads_removed=downloads,
        local_decisions=local_plan.decisions,
        s3_decisions=s3_decisions,
        versions_stay=versions_stay,
        dry_run=dry_run,
        notes=tuple(notes),
    )


def _looked_up(database: Database, source: BackupSource) -> Callable[[ListedBackup], BackupState]:
    """Looks up what is known of backups, of each once."""
    known: dict[str, BackupState] = {}

    def state(backup: ListedBackup) -> BackupState:
        if backup.key not in known:
            known[backup.key] = read_state(database, source, backup, strict=True)
        return known[backup.key]

    return state


def _abort_abandoned(
    database: Database, store: Store, backups: Sequence[ListedBackup], *, now: datetime, notes: list[str]
) -> Swept:
    """Abort the unfinished uploads that are old, and those of this installation that were interrupted before the newest
    complete backup was made.

    :param notes: receives a sentence about each file beside a local backup that is none of ours.
    """
    complete = (b for b in backups if b.has_mac or store.mode != CLIENT)
    newest = next((b.created for b in complete if not b.misdated(now)), None)
    stored = {backup.key for backup in backups}
    superseded, count, left = set(), 0, []

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
            with _noted_when_odd(notes), contextlib.suppress(BusyError):  # another process is uploading it
                locks.enter_context(FileLock(path.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0))
                superseded.add(key)
                found = UploadLog.owner(log_path)
                if found is not None and found[0].get("store") == store.url:
                    # By its id: some stores do not list what is unfinished.
                    try:
                        store.abort(str(found[0].get("key")), found[1])
                    except StoreError as error:
                        left.append(f"an unfinished upload could not be aborted: {error}")
                        continue
                    log_path.unlink(missing_ok=True)
                    count += 1
        swept = store.sweep(store.prefix, abandoned=abandoned)
        # What the store lists as well is told once.
        return Swept(count + swept.aborted, tuple(dict.fromkeys((*left, *swept.left))), swept.note)


@contextlib.contextmanager
def _noted_when_odd(notes: list[str]) -> Iterator[None]:
    """A file in the place of a state file that is none of ours is named, and the clean-up goes on with the others."""
    try:
        yield
    except StateFileError as error:
        notes.append(str(error))


def _delete_lone_companions(
    database: Database, store: Store, rows: Sequence[StoredObject], *, now: datetime, notes: list[str]
) -> None:
    """A ``.mac`` is stored just before its object appears: killed in between, an upload leaves it alone. So does a
    deletion.

    :param notes: as of `_abort_abandoned`.
    """
    keys = {row.key for row in rows}
    for row in rows:
        suffix = next((suffix for suffix in COMPANION_SUFFIXES if row.key.endswith(suffix)), None)
        if suffix is None or row.key.removesuffix(suffix) in keys:
            continue
        key, name = row.key.removesuffix(suffix), row.key.removeprefix(store.prefix).removesuffix(suffix)
        if parse_name(name) is None:
            continue
        local = database.backup_dir / name
        if local.exists():
            # Ours: the lock tells whether its upload lives.
            quiet: contextlib.AbstractContextManager[object] = FileLock(
                local.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0
            )
        elif row.modified is not None and now - row.modified > ABANDONED_AFTER:
            quiet = contextlib.nullcontext()
        else:
            continue
        # Who may not delete keeps it; it does no harm.
        with _noted_when_odd(notes), contextlib.suppress(BusyError, AccessDeniedError), quiet:
            try:
                store.head(key)
            except NotFoundError:
                store.delete(row.key)


def delete_backup(store: BackupSource, key: str) -> bool:
    """Delete a backup and its companions; returns whether a noncurrent version stays in the store.

    The object goes first: a ``.mac`` alone is nothing, an object without one looks like damage.
    """
    kept = [store.delete(key + suffix) for suffix in ("", *COMPANION_SUFFIXES)]
    return any(kept)
