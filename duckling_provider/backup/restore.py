"""Bringing a replica back: everything is proven on a temporary file before the replica is touched, then the file is
exchanged.

The order is the contract's: writers are held off, the object is downloaded to a temporary file beside the replica
while it is verified and decrypted in the same pass, DuckDB itself has to open it, and only then does `exchange` give it
the replica's name. Whatever fails before that leaves the replica as it was, byte for byte; a crash within it is undone
or completed by the next access.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.backup_object import StoredBackup, identify_backup, resolve
from duckling_provider.backup.names import LATEST
from duckling_provider.backup.pipeline import DurableWriter
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import (
    make_folder,
    partial_file,
    remove_unless_locked,
    sync_folder,
    write_durably,
)
from duckling_provider.base.errors import (
    BusyError,
    DamagedError,
    IntegrityError,
    ReplicaError,
    RequestError,
)
from duckling_provider.base.moments import stamp_of
from duckling_provider.base.state_files import create_state, read_state
from duckling_provider.config.databases import Database
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.duckdb_file import ReadLock, open_check, wal_files
from duckling_provider.replica.exchange import NEW_SUFFIX, replace_replica
from duckling_provider.replica.locks import place_hold, read_hold, release_hold
from duckling_provider.stores.store import BackupSource

#: A hold that a restore places for itself ends with its process; this is only the outer limit.
_HOLD_SECONDS = 7 * 86400.0

#: What link(2) says on file systems without hard links (SMB, some FUSE ones).
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)

#: How names of the notes of downloads begin, in the folder of the local backups.
_NOTE_PREFIX = "restoring-"

log = logging.getLogger(__name__)

_STOP_WRITER = "A restore would pull the file from under it. Stop that process, then restore."
_STOP_SERVER = (
    'The Duckling server writes it ("writer": "duckling-server") and keeps it open as long as its process runs, even '
    "when its sync is stopped: shut that process down, restore, and start it again."
)


@dataclass(frozen=True)
class RestoreResult:
    """`size` of the restored file in bytes; `replaced` is the file that is new; `kept` where the old one stays, if
    asked for; `key_fingerprint` tells which key read the backup, None where it was not encrypted here.
    """

    key: str
    size: int
    duration_ms: int
    replaced: Path
    kept: Path | None
    key_fingerprint: str | None = None


def restore_backup(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    before: datetime | None = None,
    to: Path | None = None,
    keep_old: bool = False,
    control: Control | None = None,
    owner: str = "",
    wait: float = 60.0,
) -> RestoreResult:
    """Replace the replica by a backup, or write the backup to another path.

    :param store: where to take it from: the database's S3 store or `local.LocalBackups`.
    :param key: a key, a bare file name, or ``latest``.
    :param before: with ``latest``: the newest backup made before that time.
    :param to: a path that does not exist yet; the replica is not touched then.
    :param keep_old: leave the old file and its write-ahead log beside the new one.
    :param owner: a hold of this owner (the run that paused the writers) is used; without one, a hold is placed for the
        duration.
    :param wait: seconds to wait for the process that holds or writes the replica.
    :raises IntegrityError, ModeError, NotFoundError, NoSpaceError, BusyError, StoreError: the replica is as it was.
    """
    control = control or Control()
    store = store.under(control)
    started = time.monotonic()
    if to is not None:
        backup = _restore_elsewhere(database, store, key, before, to, control)
        return _result(backup, started, to, None)
    replica = Path(os.path.realpath(database.replica))
    with disk_errors(replica.parent, subject=database.id, needed=0):
        # On a new machine there may be nothing yet.
        replica.parent.mkdir(parents=True, exist_ok=True)
    with _held(replica, owner, wait=wait, control=control) as holder:
        with replica_access(replica, operation="restore", owner=holder, wait=wait, control=control):
            # Not to copy hundreds of gigabytes first and then find the replica in use; also undoes an interrupted
            # restore.
            with _writers_kept_out(replica, database, wait=wait, control=control):
                pass
        backup = identify_backup(database, store, resolve(database, store, key, before=before), chosen=key != LATEST)
        with _download(database, store, backup, replica, control) as new:
            with (
                replica_access(replica, operation="restore", owner=holder, wait=wait, control=control),
                _writers_kept_out(replica, database, wait=wait, control=control),
                _writers_kept_out(new, database, wait=0, control=control),
                disk_errors(replica.parent, subject=database.id, needed=backup.size),
            ):
                control.check()
                _inherit_permissions(replica, new)
                keep_as = f"{replica.name}.old-{stamp_of(datetime.now(timezone.utc))}" if keep_old else None
                kept = replace_replica(new, database.replica, keep_as=keep_as)
    return _result(backup, started, replica, kept)


def _result(backup: StoredBackup, started: float, replaced: Path, kept: Path | None) -> RestoreResult:
    took = int((time.monotonic() - started) * 1000)
    return RestoreResult(backup.key, backup.size, took, replaced, kept, backup.key_fingerprint)


def _restore_elsewhere(
    database: Database, store: BackupSource, key: str, before: datetime | None, to: Path, control: Control
) -> StoredBackup:
    if Path(os.path.realpath(to)) == Path(os.path.realpath(database.replica_path)):
        raise RequestError("this is the replica itself", subject=str(to), hint="To replace it, name no other path.")
    if to.exists() or to.is_symlink():
        raise RequestError(
            "there is a file of that name already", subject=str(to), hint="Name a path that does not exist."
        )
    if logs := wal_files(to):
        raise RequestError(
            f"a write-ahead log of another file lies there: {logs[0].name}", subject=str(to), hint="Move it away first."
        )
    if not to.parent.is_dir():
        raise RequestError("its folder does not exist", subject=str(to), hint=f"Create {to.parent} first.")
    backup = identify_backup(database, store, resolve(database, store, key, before=before), chosen=key != LATEST)
    with (
        _download(database, store, backup, to, control) as new,
        disk_errors(to.parent, subject=database.id, needed=backup.size),
    ):
        _give_name(new, to)
        sync_folder(to.parent)
    return backup


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
    database: Database, store: BackupSource, backup: StoredBackup, target: Path, control: Control
) -> Iterator[Path]:
    """The backup as a complete, proven and synced file beside `target`; removed on leaving unless it was renamed."""
    new = target.with_name(target.name + NEW_SUFFIX)
    require_space(target.parent, backup.size, subject=database.id, purpose="the restored file")
    with disk_errors(target.parent, subject=database.id, needed=backup.size):
        clear_downloads(database)
        # What a killed restore left. Nothing is ever written into a file that is there: it may be another user's.
        remove_unless_locked(new)
        with _noted(database, new), _unfinished(new) as fd:
            _receive(store, backup, new, fd, control)
            yield new


@contextlib.contextmanager
def _unfinished(new: Path) -> Iterator[int]:
    """`partial_file`, for one restore at a time."""
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(partial_file(new))
        except FileExistsError:
            raise BusyError("another restore is writing it", holder="another restore", subject=str(new)) from None
        yield fd


def _receive(store: BackupSource, backup: StoredBackup, new: Path, fd: int, control: Control) -> None:
    with DurableWriter(fd) as writer:
        report = backup.read(store, sink=writer.write, control=control)
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


def _inherit_permissions(replica: Path, new: Path) -> None:
    """Users who could read and write the old file can read and write the new one."""
    try:
        old = replica.stat()
    except FileNotFoundError:
        return  # `new` is the folder owner's already
    fd = os.open(new, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, old.st_mode & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
    finally:
        os.close(fd)


def _give_name(new: Path, to: Path) -> None:
    """Give a finished file the name `to`, which must be free.

    :raises RequestError: it is taken.
    """
    try:
        try:
            os.link(new, to)  # unlike a rename, this fails when the name is taken
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # The name is taken by an empty file of ours first, which the rename then replaces.
            os.close(create_state(to))
            os.rename(new, to)
    except FileExistsError:
        raise RequestError("there is a file of that name by now", subject=str(to)) from None


@contextlib.contextmanager
def _noted(database: Database, new: Path) -> Iterator[None]:
    """A note of where a download is written, so that one whose process was killed is found: it is plain text."""
    if not database.is_here:
        yield
        return
    make_folder(database.backup_dir)
    note = database.backup_dir / f"{_NOTE_PREFIX}{secrets.token_hex(4)}.json"
    write_durably(note, json.dumps({"download": str(new.absolute())}).encode())
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def clear_downloads(database: Database) -> int:
    """Remove the unfinished downloads of restores whose process is gone; returns how many there were."""
    removed = 0
    if not database.is_here:
        return removed
    for note in database.backup_dir.glob(f"{_NOTE_PREFIX}*.json"):
        try:
            path = Path(json.loads(read_state(note))["download"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not path.is_absolute() or not path.name.endswith(NEW_SUFFIX):
            continue
        if path.exists():
            if not remove_unless_locked(path):
                continue  # its restore is at work
            log.warning("%s: removed the download of a restore that was interrupted", path)
            removed += 1
        note.unlink(missing_ok=True)
    return removed
