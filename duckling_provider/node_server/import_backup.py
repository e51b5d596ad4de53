"""A DuckDB file that another program has put aside becomes a local backup like those of our own snapshots.

It is read whole first: what becomes a backup here can be restored. The file itself stays where it is, byte for byte.
Where the two places are on one file system, nothing is copied: a reflink, or else a second name for the same file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from datetime import datetime
from pathlib import Path

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.backup.inventory.sidecar import Snapshot, sidecar_of
from duckling_provider.backup.making.partials import partial_backup, partial_of, prepared_folder, published
from duckling_provider.backup.making.seal import Seal
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import clone
from duckling_provider.base.errors import DamagedError, SnapshotError
from duckling_provider.base.moments import stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.formats.pipeline import DurableWriter, in_turn, one_pass
from duckling_provider.replica.blocks import BlockVerifier
from duckling_provider.replica.duckdb_file import ReadLock, checkpoint, header_of, open_check, pending_wal


def imported_path(database: Database, moment: datetime) -> Path:
    """Where the backup of that moment lies, or would."""
    return database.backup_dir / backup_name(stamp_of(moment))


def import_backup(database: Database, source: Path, moment: datetime, *, control: Control | None = None) -> Snapshot:
    """Make a local backup of `database` out of the file `source`; where it is one already, nothing is done.

    A write-ahead log beside it is folded into a copy; `source` is never written.

    :param moment: when the file was made.
    :raises DamagedError: it is no whole DuckDB file, so no backup.
    :raises BusyError: another process has it open for writing.
    :raises NoSpaceError: it must be copied, and there is no room.
    """
    control = control or Control()
    started = time.monotonic()
    folder = prepared_folder(database)
    target = imported_path(database, moment)
    if sidecar_of(target).exists() and target.exists():
        return Snapshot.load(target)
    if target.exists():
        raise SnapshotError("another file has this name", subject=str(target), retryable=False)
    partial = partial_of(target)
    with (
        disk_errors(folder, subject=database.id, needed=source.stat().st_size),
        ReadLock(source, control=control) as lock,
        partial_backup(target) as out,  # also where nothing is written to it: it keeps clean-ups off
    ):
        wals = pending_wal(source)
        is_link = False
        if not clone(lock.fileno(), out):
            is_link = not wals and _can_link(source, folder)
            if not is_link:
                _copy(lock.fileno(), out, database, control)
        if wals:
            _fold_in(wals, source, partial, control)
        fd, path = (lock.fileno(), source) if is_link else (out, partial)
        seal, storage = _checked(fd, path, database, moment, control)
        snapshot = seal.snapshot(target, database, moment, storage=storage, started=started)
        with published(snapshot, seal.record(snapshot)):
            if is_link:
                os.link(source, target)
            else:
                os.fsync(out)
                os.rename(partial, target)
    return snapshot


def _can_link(source: Path, folder: Path) -> bool:
    """Another file system, another user's file, a file system without links: all of it shows by trying."""
    trial = folder / f".{secrets.token_hex(8)}.link"
    try:
        os.link(source, trial)
    except OSError:
        return False
    trial.unlink()
    return True


def _copy(source: int, out: int, database: Database, control: Control) -> None:
    size = os.fstat(source).st_size
    require_space(database.backup_dir, size, subject=database.id, purpose="a local backup")
    control.begin("copy", size)
    with DurableWriter(out) as writer:
        one_pass(source, size, [writer.write], control)


def _fold_in(wals: list[Path], source: Path, partial: Path, control: Control) -> None:
    copies = [partial.with_name(partial.name + wal.name.removeprefix(source.name)) for wal in wals]
    try:
        for wal, copy in zip(wals, copies, strict=True):
            shutil.copyfile(wal, copy)
        checkpoint(partial, control=control)
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)


def _checked(fd: int, path: Path, database: Database, moment: datetime, control: Control) -> tuple[Seal, str | None]:
    """The digests of the file, once every block in use is proven sound and DuckDB has opened it."""
    size = os.fstat(fd).st_size
    header = header_of(path)
    seal, verifier = Seal.for_database(database, size, moment), BlockVerifier()
    control.begin("check", size)
    one_pass(fd, size, [in_turn(seal.hash, verifier.update), seal.encrypt], control)
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
        report = verifier.finish(size, file=file)
    if report.bad_count:
        raise DamagedError(
            f"{report.bad_count} of {report.blocks} DuckDB blocks are missing or have a wrong checksum",
            subject=str(path),
            hint="It was copied while it was written, or the disk has damaged it; it stays as it is and is no backup.",
        )
    open_check(path, control=control)
    return seal, header.storage_name
