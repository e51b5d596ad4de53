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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.inventory.names import LATEST
from duckling_provider.backup.reading.fallback import Wanted
from duckling_provider.backup.reading.receive import Delta, received_file
from duckling_provider.backup.reading.target import new_beside, require_new_path
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.durable_files import sync_folder
from duckling_provider.base.errors import BusyError, DucklingError, ReplicaError
from duckling_provider.base.moments import stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.downloads import clear_downloads, give_name, inherit_permissions, left_download
from duckling_provider.replica.duckdb_file import ReadLock
from duckling_provider.replica.exchange import replace_replica
from duckling_provider.replica.locks import place_hold, read_hold, release_hold
from duckling_provider.replica.origin import Origin, ensure_origin
from duckling_provider.replica.read_copy import renew_read_copy
from duckling_provider.stores.store import BackupSource

#: A hold that a restore places for itself ends with its process; this is only the outer limit.
_HOLD_SECONDS = 7 * 86400.0

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

    :param store: where to take it from: the database's S3 store or `LocalBackups`.
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
    wanted = Wanted(database, store, key, before, fallback, any_origin)
    delta = Delta(database, store, wanted=not no_delta)
    target = to if to is not None else Path(os.path.realpath(database.replica))
    with left_download(new_beside(target), notes=database.backup_path) as delta.left:
        if to is not None:
            backup, kept = _restore_elsewhere(wanted, delta, to, finish, control), None
        else:
            backup, kept = _restore_in_place(wanted, delta, target, control, keep_old=keep_old, owner=owner, wait=wait)
    return _result(backup, started, target, kept, delta)


def _restore_elsewhere(
    wanted: Wanted, delta: Delta, to: Path, finish: Callable[[Path], None] | None, control: Control
) -> StoredBackup:
    database = wanted.database
    with disk_errors(database.backup_path, subject=database.id):
        clear_downloads(database.backup_path)  # what a killed one left may have the name
    require_new_path(database, to)
    with (
        _downloaded(wanted, to, delta, control) as (backup, new),
        disk_errors(to.parent, subject=database.id, needed=backup.size),
    ):
        if finish is not None:
            finish(new)
        give_name(new, to, notes=database.backup_path)
        sync_folder(to.parent)
    return backup


def _restore_in_place(
    wanted: Wanted, delta: Delta, replica: Path, control: Control, *, keep_old: bool, owner: str, wait: float
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
            _downloaded(wanted, replica, delta, control) as (backup, new),
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


@contextlib.contextmanager
def _downloaded(wanted: Wanted, target: Path, delta: Delta, control: Control) -> Iterator[tuple[StoredBackup, Path]]:
    """The backup, and its content as a proven file beside `target`; removed on leaving unless it was renamed."""
    with contextlib.ExitStack() as stack:
        yield wanted.first_sound(
            lambda found: (found, stack.enter_context(received_file(found, target, delta, control)))
        )


def _renew_read_copy(database: Database) -> None:
    """Readers see what was restored; that they can't, is no reason for a restore to fail."""
    try:
        renew_read_copy(database)
    except (DucklingError, OSError) as error:
        log.warning("the copy for readers %s stays as it was until the next sync: %s", database.read_copy, error)


def _result(backup: StoredBackup, started: float, replaced: Path, kept: Path | None, delta: Delta) -> RestoreResult:
    took = int((time.monotonic() - started) * 1000)
    fingerprint, origin = backup.key_fingerprint, backup.origin
    return RestoreResult(
        backup.key, backup.size, took, replaced, kept, fingerprint, origin, delta.bytes_lent, delta.because
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
