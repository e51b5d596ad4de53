"""A consistent local copy of a replica, and everything later steps need to know of it, from one read of the file.

The copy is consistent because nothing writes meanwhile: the replica's lock keeps out those who honour it, DuckDB's own
file lock keeps out everybody else, the write-ahead log is folded in before, and inode, size and mtime are compared
after. What cannot be proven consistent is no snapshot.

The same pass over the bytes makes: the copy (or a reflink clone, where the file system can), its SHA-256, a checksum
of each part of the object to be, the verdict on DuckDB's block checksums, and for client-aes256 the HMAC of the
ciphertext to be, under a fresh IV, or the index of its segments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.backup.making.partials import partial_backup, partial_of, prepared_folder, published
from duckling_provider.backup.making.seal import Seal
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import clone
from duckling_provider.base.errors import BusyError, DamagedError, ReplicaError, SnapshotError
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.formats.pipeline import DurableWriter, in_turn, one_pass
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.blocks import BlockReport, BlockVerifier
from duckling_provider.replica.child_process import warm_up
from duckling_provider.replica.duckdb_file import full_scan, header_of, rows_of
from duckling_provider.replica.exchange import identity
from duckling_provider.replica.freshness import validated_since
from duckling_provider.replica.origin import Origin, ensure_origin
from duckling_provider.replica.quiet import quiet, require_unchanged
from duckling_provider.replica.reading import Rows

log = logging.getLogger(__name__)


def take_snapshot(
    database: Database,
    *,
    control: Control | None = None,
    owner: str = "",
    wait: float = 60.0,
    now: datetime | None = None,
) -> Snapshot:
    """Make a local backup of the replica.

    :param owner: the run it belongs to, shown to those who wait.
    :param wait: seconds to wait for the process that holds or writes the replica.
    :param now: the moment in the backup's name.
    :raises BusyError: when the replica is still held or written after `wait` seconds.
    :raises ReplicaError: when there is no usable DuckDB file.
    :raises DamagedError: when the replica is damaged; no backup is made of it.
    :raises NoSpaceError: before anything is written, where that can be known.
    :raises SnapshotError: when the copy could not be proven consistent.
    """
    control = control or Control()
    started = time.monotonic()
    moment = now or datetime.now(timezone.utc)
    folder = prepared_folder(database)
    target = folder / backup_name(stamp_of(moment))
    if target.exists():
        raise SnapshotError("a backup of this very millisecond exists", subject=str(target))
    partial = partial_of(target)
    with disk_errors(folder, subject=database.id, needed=_size_of(database.replica)), partial_backup(target) as out:
        seal, report, storage, origin, validated, held = _copied(
            database, out, moment, owner=owner, wait=wait, control=control
        )
        _judge(report, partial, database)
        snapshot = seal.snapshot(target, database, moment, storage=storage, started=started, origin=origin.encode())
        snapshot = replace(snapshot, validated=validated, held_ms=int(held * 1000))
        if database.s3 is not None:
            snapshot = replace(snapshot, rows=_counted(partial, control))
        with published(snapshot, seal.record(snapshot)):
            os.rename(partial, target)
    return snapshot


def _copied(
    database: Database, out: int, moment: datetime, *, owner: str, wait: float, control: Control
) -> tuple[Seal, BlockReport, str | None, Origin, str | None, float]:
    """Copy the quiet replica to `out`; its digests, the verdict on its blocks, its storage version, its identity,
    since when it is known to equal MySQL, and the seconds for which it was held.

    The replica is let go as soon as its bytes are copied: at once where the file system can share them, else before
    they are on the disk.
    """
    replica = database.replica
    with contextlib.ExitStack() as held:
        deadline = time.monotonic() + wait
        held.enter_context(replica_access(replica, operation="snapshot", owner=owner, wait=wait, control=control))
        began = time.monotonic()
        left = max(0.0, deadline - began)
        source = held.enter_context(quiet(replica, wait=left, control=control))
        origin = ensure_origin(replica, host=database.here)
        before, header, size = identity(replica), header_of(replica), os.fstat(source).st_size
        validated = validated_since(replica)
        seal = Seal.for_database(database, size, moment, origin=origin.encode())
        if database.s3 is not None:
            warm_up()  # it will count the rows
        verifier = BlockVerifier()
        stages = [in_turn(seal.hash, verifier.update), seal.encrypt]
        if clone(source, out):
            require_unchanged(replica, before)
            held.close()
            ended = time.monotonic()
            control.begin("snapshot", size)
            one_pass(out, size, stages, control)
            os.fsync(out)
        else:
            require_space(database.backup_dir, size, subject=database.id, purpose="a local backup")
            control.begin("snapshot", size)
            with DurableWriter(out) as writer:
                one_pass(source, size, [*stages, writer.write], control)
                require_unchanged(replica, before)
                held.close()
                ended = time.monotonic()
    with os.fdopen(os.dup(out), "rb", buffering=0) as copy:
        since = iso(validated) if validated else None
        return seal, verifier.finish(size, file=copy), header.storage_name, origin, since, ended - began


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _counted(copy: Path, control: Control) -> Rows | None:
    """The rows of each table; None where DuckDB can't tell, which is no reason to be without a backup."""
    try:
        return rows_of(copy, control=control)
    except (DamagedError, ReplicaError, BusyError) as error:
        log.warning("the rows of %s could not be counted, so no drill will compare them: %s", copy, error)
        return None


def _judge(report: BlockReport, copy: Path, database: Database) -> None:
    """A bad block that is in use is damage. DuckDB's own scan may still pass, since it reads no index: it only tells
    how bad things are.
    """
    if not report.bad_count:
        return
    blocks = ", ".join(str(block) for block in report.bad[:10])
    try:
        full_scan(copy)
        verdict = "DuckDB still reads every table, so an index is hit"
        hint = "Copy it into a new file (COPY FROM DATABASE) soon, or restore the last good one"
    except (DamagedError, ReplicaError) as error:
        verdict = f"DuckDB says: {error.cause}"
        hint = "Restore the last good one"
    raise DamagedError(
        f"the replica is damaged: {report.bad_count} of {report.blocks} blocks are missing or have a wrong checksum "
        f"({blocks}); {verdict}",
        subject=str(database.replica),
        hint=f"No backup was made of it and none deleted. {hint}: duckling restore {database.id} latest",
    )
