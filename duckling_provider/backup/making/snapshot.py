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
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from duckling_provider.backup.inventory.names import backup_name, parse_name
from duckling_provider.backup.inventory.segment_records import FOLDER, SegmentChecksums, SegmentRecord, checksum_key
from duckling_provider.backup.inventory.sidecar import SIDECAR_SUFFIX, Snapshot, sidecar_of
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import (
    clear_leftovers,
    clear_torn,
    clone,
    make_folder,
    partial_file,
    sync_folder,
)
from duckling_provider.base.errors import (
    BusyError,
    DamagedError,
    NotFoundError,
    ReplicaError,
    SnapshotError,
    StateFileError,
)
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, S3Settings
from duckling_provider.formats.crypto import BytesLike, CtrCipher, Mac, new_iv
from duckling_provider.formats.pipeline import CHUNK, DurableWriter, in_turn, one_pass
from duckling_provider.formats.segments import SegmentKeys, SegmentTags
from duckling_provider.formats.trailer import FORMAT, Footer, Lineage, encode_trailer, mac_of, trailer_bytes
from duckling_provider.formats.upload_body import PartChecksums, lead_bytes
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.blocks import BlockReport, BlockVerifier
from duckling_provider.replica.child_process import warm_up
from duckling_provider.replica.duckdb_file import full_scan, header_of, rows_of
from duckling_provider.replica.exchange import identity
from duckling_provider.replica.freshness import validated_since
from duckling_provider.replica.origin import Origin, ensure_origin
from duckling_provider.replica.quiet import quiet, require_unchanged
from duckling_provider.replica.reading import Rows
from duckling_provider.stores import parts
from duckling_provider.stores.parts import MIB, plan_parts

PARTIAL_SUFFIX = ".partial"


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


def sealed_for(
    database: Database,
    snapshot: Snapshot,
    *,
    cautious: bool = False,
    lineage: Lineage | None = None,
    control: Control | None = None,
) -> Snapshot:
    """The snapshot, prepared for the entry's present encryption mode, key, format and part size.

    Mostly it already is. After a change of the configuration its bytes are read again, proven to be the same, and
    sealed under a fresh IV or lineage; the sidecar is replaced.

    :param cautious: in no more parts than every store takes.
    :param lineage: of an object of format 2; None: whatever it has.
    :raises DamagedError: when the file is no longer what the sidecar says.
    """
    settings = database.s3
    if settings is None:
        return snapshot
    key, footer = _key(settings), snapshot.footer
    most = min(settings.max_parts, parts.SAFE_PARTS) if cautious else settings.max_parts
    if lineage is None and footer is not None:
        lineage = Lineage(footer.lineage, footer.generation)
    wanted = _footer(database, snapshot.size, stamp=snapshot.stamp, origin=snapshot.origin, lineage=lineage)
    if footer is not None and wanted is not None and key is not None and _differs_in_generation(footer, wanted):
        snapshot = _counted_anew(snapshot, wanted, key)
        footer = snapshot.footer
    if footer == wanted and (key.fingerprint if key else None) == snapshot.key_fingerprint:
        size = snapshot.plan.size
        # Once cut for a store that takes few parts, it stays so: the upload may be half done.
        cuts = [
            plan_parts(size, part_size=settings.part_size, max_parts=count)
            for count in (most, min(most, parts.SAFE_PARTS))
        ]
        if snapshot.plan in cuts:
            return snapshot
    control = control or Control()
    seal = Seal(snapshot.size, key, part_size=settings.part_size, max_parts=most, footer=wanted)
    control.begin("seal", snapshot.size)
    fd = os.open(snapshot.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        one_pass(fd, snapshot.size, [seal.hash, seal.encrypt], control)
    finally:
        os.close(fd)
    if seal.sha256.hexdigest() != snapshot.sha256:
        raise DamagedError(
            "the local backup is no longer what was copied",
            subject=str(snapshot.path),
            hint="The disk or another program altered it; make a new backup.",
        )
    sealed = replace(snapshot, **seal.facts())
    sealed.save()
    return sealed


def _key(settings: S3Settings) -> EncryptionKey | None:
    """What new objects are encrypted with here; None: nothing."""
    return settings.encryption_key if settings.encryption == CLIENT else None


def _footer(
    database: Database, size: int, *, stamp: str, origin: str | None, lineage: Lineage | None = None
) -> Footer | None:
    """Of a new lineage where none is given; None where the entry wants no object of format 2."""
    key = _key(database.s3) if database.s3 is not None and database.s3.object_format == FORMAT else None
    if key is None:
        return None
    lineage = lineage or Lineage.new()
    return Footer(database.id, stamp, size, lineage.value, key.fingerprint, origin, lineage.generation)


def _differs_in_generation(footer: Footer, wanted: Footer) -> bool:
    """Whether the two differ in that alone, and are of one length, so that no part is cut elsewhere."""
    alike = replace(footer, generation=wanted.generation)
    return footer != wanted and alike == wanted and len(footer.encode()) == len(wanted.encode())


def _counted_anew(snapshot: Snapshot, footer: Footer, key: EncryptionKey) -> Snapshot:
    """The snapshot with another generation: its index stays, and no byte is read again."""
    index = bytes.fromhex(snapshot.index or "")
    mac = mac_of(encode_trailer(SegmentKeys(key), footer, index))
    counted = replace(snapshot, generation=footer.generation, mac=mac)
    counted.save()
    return counted


def _next_lineage(database: Database) -> Lineage | None:
    """What the next object of format 2 will probably be sealed under, by the newest local backups; None: a new one.

    A guess, which spares the upload a second reading of the file. Wrong, it costs one, so it is made where the last
    upload was not sent whole, or might have been the first.
    """
    s3 = database.s3
    if s3 is None or not database.verifies_bytes:
        return None
    found: list[Snapshot] = []
    for sidecar in sorted(database.backup_dir.glob(f"backup-*{SIDECAR_SUFFIX}"), reverse=True)[:2]:
        with contextlib.suppress(NotFoundError, DamagedError, StateFileError):
            found.append(Snapshot.load(sidecar.with_suffix(".db")))
    key = _key(s3)
    if not found or key is None or found[0].lineage is None or found[0].key_fingerprint != key.fingerprint:
        return None
    generation = found[0].generation + 1
    both_whole = [each.generation for each in found] == [0, 0]
    if generation >= s3.full_upload_every or both_whole:
        return None
    return Lineage(bytes.fromhex(found[0].lineage), generation)


class Seal:
    """The two stages of a pass that prepare a file for upload; they take about the same time.

    :param key: for client-aes256.
    :param footer: for format 2.
    """

    @classmethod
    def for_database(cls, database: Database, size: int, moment: datetime, *, origin: str | None = None) -> Seal:
        """As the entry wants the object to be, now.

        :param moment, origin: of the backup.
        """
        settings = database.s3
        if settings is None:
            seal = cls(size, None, part_size=8 * MIB, max_parts=10_000)
        else:
            lineage = _next_lineage(database) if settings.object_format == FORMAT else None
            footer = _footer(database, size, stamp=stamp_of(moment), origin=origin, lineage=lineage)
            most = settings.max_parts
            seal = cls(size, _key(settings), part_size=settings.part_size, max_parts=most, footer=footer)
        seal.segments = SegmentChecksums(size, checksum_key(database))
        return seal

    def __init__(
        self, size: int, key: EncryptionKey | None, *, part_size: int, max_parts: int, footer: Footer | None = None
    ) -> None:
        lead = lead_bytes(encrypted=key is not None and footer is None)
        extra = lead if footer is None else trailer_bytes(footer)
        self._size = size
        self._key = key
        self._footer = footer
        self.plan = plan_parts(size + extra, part_size=part_size, max_parts=max_parts)
        self.sha256 = hashlib.sha256()
        self.checksum_key = secrets.token_bytes(32)
        self.checksums = PartChecksums(self.plan, lead=lead, key=self.checksum_key)
        self.segments: SegmentChecksums | None = None
        self.iv: bytes | None = None
        self.mac: Mac | None = None
        self.tags: SegmentTags | None = None
        if key is not None and footer is not None:
            self._keys = SegmentKeys(key)
            self.tags = SegmentTags(footer.segments(self._keys))
        elif key is not None:
            self.iv = new_iv()
            self.mac = Mac(key, self.iv)
            self._stream = CtrCipher(key, self.iv).stream()
            self._ciphertext = memoryview(bytearray(CHUNK))

    def hash(self, chunk: BytesLike) -> None:
        self.sha256.update(chunk)
        self.checksums.update(chunk)
        if self.segments is not None:
            self.segments.update(chunk)

    def record(self, snapshot: Snapshot) -> SegmentRecord | None:
        """What is to be remembered of the segments, when all bytes have passed; None where they were not wanted."""
        if self.segments is None:
            return None
        return self.segments.record(
            snapshot.path.parent,
            database=snapshot.database,
            stamp=snapshot.stamp,
            sha256=snapshot.sha256,
            origin=snapshot.origin,
        )

    def encrypt(self, chunk: BytesLike) -> None:
        if self.tags is not None:
            # Encrypting is left to the upload: the index needs the plain text only.
            self.tags.update(chunk)
        elif self.mac is not None:
            self.mac.update(self._ciphertext[: self._stream.update_into(chunk, self._ciphertext)])

    def facts(self) -> dict[str, Any]:
        """The fields of a `Snapshot` that are the seal's, when all bytes have passed."""
        index, mac = None, self.mac.hexdigest() if self.mac else None
        if self.tags is not None and self._footer is not None:
            index = self.tags.finish()
            mac = mac_of(encode_trailer(self._keys, self._footer, index))
        return {
            "part_size": self.plan.part_size,
            "part_checksums": self.checksums.finish(),
            "checksum_key": self.checksum_key.hex(),
            "iv": self.iv.hex() if self.iv else None,
            "mac": mac,
            "key_fingerprint": self._key.fingerprint if self._key else None,
            "lineage": self._footer.lineage.hex() if self._footer else None,
            "index": index.hex() if index is not None else None,
            "generation": self._footer.generation if self._footer else 0,
        }

    def snapshot(
        self,
        target: Path,
        database: Database,
        moment: datetime,
        *,
        storage: str | None,
        started: float,
        origin: str | None = None,
    ) -> Snapshot:
        """What the sidecar says when all bytes have passed.

        :param moment, origin: as `for_database` got them.
        :param started: of `time.monotonic`.
        """
        return Snapshot(
            path=target,
            database=database.id,
            stamp=stamp_of(moment),
            created_at=moment.astimezone(timezone.utc).isoformat(),
            size=self._size,
            sha256=self.sha256.hexdigest(),
            storage=storage,
            duration_ms=int((time.monotonic() - started) * 1000),
            origin=origin,
            **self.facts(),
        )


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
