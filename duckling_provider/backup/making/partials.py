"""A local backup while it is being made: whole or not there, whatever kills its maker, and what a killed one leaves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from duckling_provider.backup.inventory.names import parse_name
from duckling_provider.backup.inventory.segment_records import FOLDER, SegmentRecord
from duckling_provider.backup.inventory.sidecar import SIDECAR_SUFFIX, Snapshot, sidecar_of
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.durable_files import clear_leftovers, clear_torn, make_folder, partial_file, sync_folder
from duckling_provider.base.errors import SnapshotError
from duckling_provider.config.databases import Database

log = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"


def prepared_folder(database: Database) -> Path:
    """The folder of the local backups, made where it is missing, without what killed processes left in it."""
    folder = database.backup_dir
    with disk_errors(folder.parent, subject=database.id, needed=0):
        make_folder(folder)
    for odd in clear_partials(folder):
        log.warning("%s", odd)
    return folder


def partial_of(target: Path) -> Path:
    """Where the local backup `target` lies until it is whole."""
    return target.with_name(target.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def partial_backup(target: Path) -> Iterator[int]:
    """A new file at `partial_of(target)`, gone after the block unless it was renamed.

    While it is there, no clean-up takes the sidecar of `target` for a dead process's.

    :raises SnapshotError: another process makes the backup of that name.
    """
    partial = partial_of(target)
    with contextlib.ExitStack() as stack:
        try:
            out = stack.enter_context(partial_file(partial))
        except FileExistsError:
            raise SnapshotError("a backup of this very millisecond is being made", subject=str(partial)) from None
        yield out


@contextlib.contextmanager
def published(snapshot: Snapshot, record: SegmentRecord | None) -> Iterator[None]:
    """Write the sidecar and the record of segments; the block gives the copy its final name.

    The sidecar first: a copy that lies there without one is not ours, never a torn backup of ours.
    """
    try:
        if record is not None:
            record.save()
        snapshot.save()
        yield
    except BaseException:
        sidecar_of(snapshot.path).unlink(missing_ok=True)
        if record is not None:
            record.path.unlink(missing_ok=True)
        raise
    sync_folder(snapshot.path.parent)


def clear_partials(folder: Path) -> list[str]:
    """Remove what killed snapshots and uploads left; living ones hold an flock on their files.

    :returns: a sentence about each file that can't be removed: no new backup needs its name.
    """
    partials = (path for path in sorted(folder.glob(f"*{PARTIAL_SUFFIX}")) if parse_name(path.stem) is not None)
    odd = [*clear_leftovers(partials), *clear_torn(folder, "*"), *clear_torn(folder / FOLDER, "*")]
    for sidecar in folder.glob(f"backup-*{SIDECAR_SUFFIX}"):
        # Killed between the sidecar and the rename. A living snapshot has its partial file still, or the copy already:
        # they are looked at in that order.
        copy = sidecar.with_suffix(".db")
        if parse_name(copy.name) is not None and not partial_of(copy).exists() and not copy.exists():
            try:
                sidecar.unlink(missing_ok=True)
            except OSError as error:
                odd.append(f"{sidecar}: cannot be removed: {error.strerror}")
    return odd
