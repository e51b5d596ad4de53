"""Bringing a replica back: everything is proven on a temporary file before the replica is touched, then the file is
exchanged.

The order is the contract's: writers are held off, the object is downloaded to a temporary file beside the replica
while it is verified and decrypted in the same pass, DuckDB itself has to open it, and only then does `exchange` give it
the replica's name. Whatever fails before that leaves the replica as it was, byte for byte; a crash within it is undone
or completed by the next access.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from duckling_provider.backup.inventory.backup_object import StoredBackup, identify_backup, resolve
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import LATEST, RULES, parse_name
from duckling_provider.backup.reading.delta import Lent, Patch, Received, identity_of, is_provable, lend
from duckling_provider.backup.reading.verify import read_again, read_verified
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import MARGIN, disk_errors, require_space
from duckling_provider.base.durable_files import sync_folder
from duckling_provider.base.errors import (
    BusyError,
    DamagedError,
    DucklingError,
    IntegrityError,
    NotFoundError,
    ReplicaError,
    RequestError,
    WrongKeyError,
)
from duckling_provider.base.moments import stamp_of
from duckling_provider.base.state_files import open_state
from duckling_provider.config.databases import Database
from duckling_provider.formats.pipeline import DurableWriter, in_turn
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.blocks import BlockReport
from duckling_provider.replica.child_process import warm_up
from duckling_provider.replica.downloads import (
    Download,
    LeftDownload,
    clear_downloads,
    give_name,
    inherit_permissions,
    left_download,
    unfinished,
)
from duckling_provider.replica.duckdb_file import ReadLock, open_check, owner_of_wal, wal_files
from duckling_provider.replica.exchange import NEW_SUFFIX, replace_replica, require_journal
from duckling_provider.replica.locks import holder_of, place_hold, read_hold, release_hold
from duckling_provider.replica.origin import Origin, ensure_origin
from duckling_provider.replica.read_copy import renew_read_copy
from duckling_provider.stores.store import BackupSource

#: A hold that a restore places for itself ends with its process; this is only the outer limit.
_HOLD_SECONDS = 7 * 86400.0
#: Of a file, in bytes; NAME_MAX of Linux.
_LONGEST_NAME = 255

#: What a damaged backup raises: its object does, or its sidecar.
_DAMAGE = (IntegrityError, DamagedError)

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_STOP_WRITER = "A restore would pull the file from under it. Stop that process, then restore."
_STOP_SERVER = (
    'The Duckling server writes it ("writer": "duckling-server") and keeps it open as long as its process runs, even '
    "when its sync is stopped: shut that process down, restore, and start it again."
)


@dataclass(frozen=True)
class RestoreResult:
    """`size` of the restored file in bytes; `replaced` is the file that is new; `kept` where the old one stays, if
    asked for; `key_fingerprint` tells which key read the backup, None where it was not encrypted here; `origin` of
    which replica it is, None where it does not say so.
    """

    key: str
    size: int
    duration_ms: int
    replaced: Path
    kept: Path | None
    key_fingerprint: str | None = None
    origin: Origin | None = None
    bytes_lent: int = 0  #: of the file, taken from this machine in place of the store
    full_because: str = ""  #: why none were


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. Sizes in bytes, moments aware.

    `created` is the moment in the backup's name, None where it has none; `needed` (the file and the margin) is asked
    of the file system that has `free`. `holder` is who keeps the replica from being replaced now, None: no process.
    `old_size` and `old_written` are of the file that would be replaced, None where there is none.
    """

    backup: StoredBackup
    target: Path
    created: datetime | None
    needed: int
    free: int
    holder: str | None
    old_size: int | None = None
    old_written: datetime | None = None

    @property
    def margin(self) -> int:
        return self.needed - self.backup.size

    @property
    def newer_by(self) -> float:
        """Seconds for which the replica was written after the backup was made; 0 when it was not, as far as one can
        tell.
        """
        if self.old_written is None or self.created is None:
            return 0.0
        return max(0.0, (self.old_written - self.created).total_seconds())


def restore_backup(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    before: datetime | None = None,
    to: Path | None = None,
    keep_old: bool = False,
    fallback: bool = False,
    any_origin: bool = False,
    no_delta: bool = False,
    control: Control | None = None,
    owner: str = "",
    wait: float = 60.0,
    finish: Callable[[Path], None] | None = None,
) -> RestoreResult:
    """Replace the replica by a backup, or write the backup to another path.

    :param store: where to take it from: the database's S3 store or `local.LocalBackups`.
    :param key: a key, a bare file name, ``latest`` or ``latest-tested``.
    :param before: with ``latest``: the newest backup made before that time.
    :param to: a path that does not exist yet; the replica is not touched then.
    :param keep_old: leave the old file and its write-ahead log beside the new one.
    :param fallback: where the backup is damaged, take the newest older one that is not; each one that is passed over is
        logged.
    :param any_origin: with ``latest``: take the newest also when it is, or may be, of another replica than this one.
    :param no_delta: fetch all of it, whatever lies on this machine.
    :param owner: a hold of this owner (the run that paused the writers) is used; without one, a hold is placed for the
        duration.
    :param wait: seconds to wait for the process that holds or writes the replica.
    :param finish: with `to`: changes the proven file before it gets its name.
    :raises IntegrityError, ModeError, NotFoundError, NoSpaceError, BusyError, StoreError: the replica is as it was.
    """
    control = control or Control()
    store = store.under(control)
    started = time.monotonic()
    wanted = _Wanted(database, store, key, before, fallback, any_origin)
    delta = _Delta(database, store, wanted=not no_delta)
    target = to if to is not None else Path(os.path.realpath(database.replica))
    with left_download(_new_beside(target), notes=database.backup_path) as delta.left:
        if to is not None:
            backup, kept = _restore_elsewhere(wanted, delta, to, finish, control), None
        else:
            backup, kept = _restore_in_place(wanted, delta, target, control, keep_old=keep_old, owner=owner, wait=wait)
    return _result(backup, started, target, kept, delta)


def _new_beside(target: Path) -> Path:
    return target.with_name(target.name + NEW_SUFFIX)


def _restore_elsewhere(
    wanted: _Wanted, delta: _Delta, to: Path, finish: Callable[[Path], None] | None, control: Control
) -> StoredBackup:
    database = wanted.database
    with disk_errors(database.backup_path, subject=database.id):
        clear_downloads(database.backup_path)  # what a killed one left may have the name
    _require_new_path(database, to)
    with (
        wanted.downloaded(to, delta, control) as (backup, new),
        disk_errors(to.parent, subject=database.id, needed=backup.size),
    ):
        if finish is not None:
            finish(new)
        give_name(new, to, notes=database.backup_path)
        sync_folder(to.parent)
    return backup


def _restore_in_place(
    wanted: _Wanted, delta: _Delta, replica: Path, control: Control, *, keep_old: bool, owner: str, wait: float
) -> tuple[StoredBackup, Path | None]:
    """The backup, and where the old replica is kept."""
    database = wanted.database
    with disk_errors(replica.parent, subject=database.id, needed=0):
        # On a new machine there may be nothing yet.
        replica.parent.mkdir(parents=True, exist_ok=True)
    with _held(replica, owner, wait=wait, control=control) as holder:
        delta.owner = holder
        with replica_access(replica, operation="restore", owner=holder, wait=wait, control=control):
            # Not to copy hundreds of gigabytes first and then find the replica in use; also undoes an interrupted
            # restore.
            with _writers_kept_out(replica, database, wait=wait, control=control):
                pass
        with (
            wanted.downloaded(replica, delta, control) as (backup, new),
            replica_access(replica, operation="restore", owner=holder, wait=wait, control=control),
            _writers_kept_out(replica, database, wait=wait, control=control),
            _writers_kept_out(new, database, wait=0, control=control),
            disk_errors(replica.parent, subject=database.id, needed=backup.size),
        ):
            control.check()
            inherit_permissions(replica, new)
            keep_as = f"{replica.name}.old-{stamp_of(datetime.now(timezone.utc))}" if keep_old else None
            if backup.origin is not None:
                ensure_origin(replica, host=database.here, taken=backup.origin)
            kept = replace_replica(new, database.replica, keep_as=keep_as)
            _renew_read_copy(database)
    return backup, kept


def _renew_read_copy(database: Database) -> None:
    """Readers see what was restored; that they can't, is no reason for a restore to fail."""
    try:
        renew_read_copy(database)
    except (DucklingError, OSError) as error:
        log.warning("the copy for readers %s stays as it was until the next sync: %s", database.read_copy, error)


def _result(backup: StoredBackup, started: float, replaced: Path, kept: Path | None, delta: _Delta) -> RestoreResult:
    took = int((time.monotonic() - started) * 1000)
    fingerprint, origin = backup.key_fingerprint, backup.origin
    return RestoreResult(
        backup.key, backup.size, took, replaced, kept, fingerprint, origin, delta.bytes_lent, delta.because
    )


def plan_restore(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    before: datetime | None = None,
    to: Path | None = None,
    fallback: bool = False,
    any_origin: bool = False,
) -> RestorePlan:
    """What `restore_backup` with the same arguments would do; nothing is written. Raises as it does.

    The backup's head, ``.mac`` and first bytes are looked at; whether all of it is sound shows in the download.
    """
    if to is None:
        target = Path(os.path.realpath(database.replica))
        require_journal(target)
    else:
        _require_new_path(database, to)
        target = to
    with contextlib.suppress(FileNotFoundError):
        # A download that was interrupted is removed; what is none of ours is in the way.
        os.close(open_state(_new_beside(target), os.O_RDONLY))
    wanted = _Wanted(database, store, key, before, fallback, any_origin)
    backup = wanted.first_sound(lambda found: found)
    existing = target.parent
    while not existing.exists():
        existing = existing.parent
    old = target.stat() if to is None and target.exists() else None
    written = None
    if old is not None:
        last = max([old.st_mtime, *(path.lstat().st_mtime for path in wal_files(database.replica))])
        written = datetime.fromtimestamp(last, timezone.utc)
    return RestorePlan(
        backup=backup,
        target=target,
        created=parse_name(backup.key.rpartition("/")[2]),
        needed=backup.size + MARGIN,
        free=shutil.disk_usage(existing).free,
        holder=holder_of(target) if to is None else None,
        old_size=old.st_size if old is not None else None,
        old_written=written,
    )


@dataclass(frozen=True)
class _Wanted:
    """Which backup a restore is to take: `key` or, with `fallback`, an older one where that is damaged."""

    database: Database
    store: BackupSource
    key: str
    before: datetime | None
    fallback: bool
    any_origin: bool

    @contextlib.contextmanager
    def downloaded(self, target: Path, delta: _Delta, control: Control) -> Iterator[tuple[StoredBackup, Path]]:
        """The backup, and its content as a proven file beside `target`; removed on leaving unless it was renamed."""
        with contextlib.ExitStack() as stack:
            yield self.first_sound(
                lambda found: (
                    found,
                    stack.enter_context(_download(self.database, self.store, found, target, delta, control)),
                )
            )

    def first_sound(self, use: Callable[[StoredBackup], Result]) -> Result:
        """What `use` makes of the backup that is meant, or with `fallback` of the newest older one that is sound.

        :param use: may read the backup, and raises `IntegrityError` or `DamagedError` when it is damaged.
        :raises IntegrityError, DamagedError: it is damaged; the hint names the next older one that looks whole.
        """
        key = resolve(self.database, self.store, self.key, before=self.before, any_origin=self.any_origin)
        chosen = self.key not in RULES
        while True:
            try:
                # Nothing is noted beside it: it may be the line that is bad, and this the only backup there is.
                return use(identify_backup(self.database, self.store, key, chosen=chosen))
            except _DAMAGE as error:
                # A key that is proven to be another one is no damage: with the right one, the backup is good.
                other_key = isinstance(error, WrongKeyError) and error.proven
                goes_on = self.fallback and not other_key
                older = self._next_whole(key, strict=goes_on)
                if older is None:
                    raise
                if isinstance(error, IntegrityError) and error.found:
                    # Bytes came that are not those that were stored: a bad line must not cost what is newest.
                    if goes_on:
                        read_again(self.database, self.store, key, error, chosen=chosen)
                    again = f"duckling verify {self.database.id} {key.rpartition('/')[2]}"
                    error.hint = f"{error.hint} Before that, {again} tells whether the network is bad or the backup."
                if not goes_on:
                    name = older.rpartition("/")[2]
                    advice = f"The next older backup that looks whole is {name}: name it"
                    advice += "." if other_key else ", or add --fallback (conf: fallback)."
                    error.hint = f"{error.hint} {advice}" if error.hint else advice
                    raise
                log.warning("passed over, since it is damaged: %s; %s is taken", error.what, older)
                key, chosen = older, False

    def _next_whole(self, key: str, *, strict: bool) -> str | None:
        """The newest backup older than `key` whose head, ``.mac`` and first bytes are as they should be.

        :param strict: whether an error in looking is raised; otherwise it counts as "there is none".
        """
        while (created := parse_name(key.rpartition("/")[2])) is not None:
            try:
                key = resolve(self.database, self.store, LATEST, before=created, any_origin=self.any_origin, quiet=True)
                identify_backup(self.database, self.store, key)
            except NotFoundError:
                return None
            except _DAMAGE:
                continue
            except DucklingError:
                if strict:
                    raise
                return None
            return key
        return None


def _require_new_path(database: Database, to: Path) -> None:
    """:raises RequestError: a restore to elsewhere can't make a new file at `to`."""
    with disk_errors(to.parent, subject=database.id):
        _require_free(database, to)


def _require_free(database: Database, to: Path) -> None:
    _require_usable_name(to)
    if Path(os.path.realpath(to)) == Path(os.path.realpath(database.replica_path)):
        raise RequestError("this is the replica itself", subject=str(to), hint="To replace it, name no other path.")
    if to.exists() or to.is_symlink():
        raise RequestError(
            "there is a file of that name already", subject=str(to), hint="Name a path that does not exist."
        )
    try:
        logs = wal_files(to)
    except ReplicaError as error:
        raise RequestError(error.cause, subject=str(to), hint="Name another.") from None
    if logs:
        raise RequestError(
            f"a write-ahead log of another file lies there: {logs[0].name}", subject=str(to), hint="Move it away first."
        )
    if not to.parent.is_dir():
        raise RequestError("its folder does not exist", subject=str(to), hint=f"Create {to.parent} first.")


def _require_usable_name(to: Path) -> None:
    """Before all of it is downloaded: what DuckDB or the file system would not take then."""
    try:
        longest = len((to.name + NEW_SUFFIX).encode())
    except UnicodeEncodeError:
        raise RequestError(
            "DuckDB opens no file whose name is not UTF-8", subject=str(to), hint="Name another."
        ) from None
    if longest > _LONGEST_NAME:
        most = _LONGEST_NAME - len(NEW_SUFFIX)
        raise RequestError(f"its name is longer than {most} bytes", subject=to.name[:40] + "…", hint="Name another.")
    with contextlib.suppress(ValueError):
        owner = owner_of_wal(to)
        raise RequestError(
            f"DuckDB would take it for the write-ahead log of {owner.name}", subject=str(to), hint="Name another."
        )


@contextlib.contextmanager
def _held(replica: Path, owner: str, *, wait: float, control: Control) -> Iterator[str]:
    """The replica held for `owner`; a hold that was there before (a DAG's pause) is left for its own release."""
    hold = read_hold(replica)
    if owner and hold is not None and hold.owner == owner and not hold.is_stale:
        yield owner
        return
    holder = owner or f"restore by PID {os.getpid()}"
    place_hold(
        replica, owner=holder, reason="restore", seconds=_HOLD_SECONDS, wait=wait, process_bound=True, control=control
    )
    try:
        yield holder
    finally:
        release_hold(replica, owner=holder)


@contextlib.contextmanager
def _writers_kept_out(path: Path, database: Database, *, wait: float, control: Control) -> Iterator[None]:
    """DuckDB's own lock on `path` against writers who know nothing of ours; readers may stay, they keep the old
    file.
    """
    if not path.exists():
        yield
        return
    try:
        lock = ReadLock(path, wait=wait, control=control).__enter__()
    except ReplicaError:
        # What is no DuckDB file has no DuckDB writer; replacing it is what a restore is for. Only a file can be
        # replaced, though.
        if not path.is_file():
            raise
        yield
        return
    except BusyError as error:
        raise BusyError(
            error.cause,
            holder=error.holder,
            subject=str(path),
            hint=_STOP_SERVER if database.writer == "duckling-server" else _STOP_WRITER,
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextlib.contextmanager
def _download(
    database: Database, store: BackupSource, backup: StoredBackup, target: Path, delta: _Delta, control: Control
) -> Iterator[Path]:
    """The backup as a complete, proven and synced file beside `target`; removed on leaving unless it was renamed."""
    new = _new_beside(target)
    with disk_errors(target.parent, subject=database.id, needed=backup.size):
        # By its mere name: a restore to elsewhere may run on another machine than the entry's, and leaves notes there.
        notes = database.backup_path
        clear_downloads(notes)
        of = identity_of(store, backup) if delta.is_wanted else ""
        with unfinished(new, notes=notes, of=of, left=delta.left) as download:
            missing = max(0, backup.size - download.allocated)
            require_space(target.parent, missing, subject=database.id, purpose="the restored file")
            _receive(store, backup, new, download, delta, control)
            yield new


@dataclass
class _Delta:
    """Whether a restore takes from this machine what lies here, and what came of it: `bytes_lent`, or `because`.

    :param wanted: False: all is to be fetched.
    :param owner: whose hold keeps the replica's writers away; empty where none does.
    :param left: what a restore to the same place left that was killed.
    """

    database: Database
    store: BackupSource
    wanted: bool
    owner: str = ""
    left: LeftDownload | None = None
    bytes_lent: int = 0
    because: str = ""

    @property
    def is_wanted(self) -> bool:
        return self.wanted and not isinstance(self.store, LocalBackups)

    @contextlib.contextmanager
    def received(self, backup: StoredBackup, download: Download) -> Iterator[Received | None]:
        """What is to be kept of the bytes that arrive, for a restore that goes on with them; None where that is not
        needed.
        """
        if not self.is_wanted or is_provable(self.database, backup):
            yield None
            return
        with contextlib.closing(Received(download.received, backup.size, goes_on=download.goes_on)) as received:
            yield received

    def lend(
        self, backup: StoredBackup, download: Download, received: Received | None, control: Control
    ) -> Lent | None:
        """What fills the new file already; None where all is to be fetched."""
        self.bytes_lent, self.because = 0, "" if self.wanted else "it was asked for"
        if not self.is_wanted:
            return None
        lent = lend(self.database, backup, download, received, owner=self.owner, control=control)
        self.bytes_lent, self.because = lent.bytes_lent, lent.because
        if not lent.numbers:
            log.info("%s%s: all of it is fetched: %s", self.store.url, backup.key, lent.because)
            return None
        return lent

    def failed(self, backup: StoredBackup, fd: int, error: IntegrityError) -> None:
        """What was lent did not make the backup: nothing of it is used."""
        log.warning("%s%s: all of it is fetched: %s", self.store.url, backup.key, error.cause)
        self.bytes_lent, self.because = 0, f"with what was here: {error.cause}"
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)


def _fill(
    store: BackupSource, backup: StoredBackup, download: Download, delta: _Delta, control: Control
) -> BlockReport:
    """The backup's bytes into the new file, and their proof."""
    fd = download.fd
    warm_up()  # it will open the file
    with delta.received(backup, download) as received:
        noted = [] if received is None else [received.update]
        lent = delta.lend(backup, download, received, control)
        if lent is not None:
            try:
                with DurableWriter(fd) as writer:
                    sink = in_turn(Patch(lent, writer).write, *noted)
                    return read_verified(backup, store, sink=sink, lent=lent, control=control)
            except IntegrityError as error:
                delta.failed(backup, fd, error)
                if received is not None:
                    received.forget()
        with DurableWriter(fd) as writer:
            return read_verified(backup, store, sink=in_turn(writer.write, *noted), control=control)


def _receive(
    store: BackupSource, backup: StoredBackup, new: Path, download: Download, delta: _Delta, control: Control
) -> None:
    report = _fill(store, backup, download, delta, control)
    if report.skipped:
        return  # encrypted by DuckDB: only the owner of that key can open it
    try:
        open_check(new, control=control)
    except DamagedError as error:
        raise IntegrityError(
            f"the backup arrived as it was stored, but DuckDB can't open it: {error.cause}",
            subject=store.url + backup.key,
            hint="The replica was damaged when it was backed up; use an older backup.",
        ) from error
