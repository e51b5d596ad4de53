"""A consistent local copy of a replica, and everything later steps need to know of it, from one read of the file.

The copy is consistent because nothing writes meanwhile: the replica's lock keeps out those who honour it, DuckDB's own
file lock keeps out everybody else, the write-ahead log is folded in before, and inode, size and mtime are compared
after. What cannot be proven consistent is no snapshot.

The same pass over the bytes makes: the copy (or a reflink clone, where the file system can), its SHA-256, a checksum
of each part of the object to be, the verdict on DuckDB's block checksums, and for client-aes256 the HMAC of the
ciphertext to be, under a fresh IV, or the index of its segments.

On disk: ``BACKUP_PATH/<id>/backup-<stamp>.db`` and beside it ``backup-<stamp>.json`` (the sidecar). A file without a
sidecar is not ours and is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from duckling_provider.backup.inventory.names import PIN_SUFFIX, STATE_SUFFIX, backup_name, parse_name
from duckling_provider.backup.inventory.segment_records import FOLDER, SegmentChecksums, SegmentRecord, checksum_key
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import (
    clear_leftovers,
    clear_torn,
    clone,
    make_folder,
    partial_file,
    sync_folder,
    write_durably,
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
from duckling_provider.base.state_files import read_state
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, S3Settings
from duckling_provider.formats.crypto import BytesLike, CtrCipher, Mac, new_iv
from duckling_provider.formats.pipeline import CHUNK, DurableWriter, in_turn, one_pass
from duckling_provider.formats.segments import TAG_BYTES, SegmentKeys, SegmentTags
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
from duckling_provider.replica.reading import Rows, rows_of_json
from duckling_provider.stores import parts
from duckling_provider.stores.parts import MIB, MIN_PART, PartPlan, plan_parts

SIDECAR_SUFFIX = ".json"
PARTIAL_SUFFIX = ".partial"
UPLOAD_SUFFIX = ".upload"
UPLOAD_LOCK_SUFFIX = ".lock"


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A complete local backup, as its sidecar records it.

    `size` in bytes, `sha256` of the file in hex; `part_size` and `part_checksums` (of the file's bytes in each part,
    see `upload_body.PartChecksums`, under `checksum_key`, all in hex) describe the cut of the object; `mac` and
    `key_fingerprint` (hex) are set when it was sealed for client-aes256, and with them `iv` (hex) for format 1, or
    `lineage` and `index` (hex, see `formats.segments`) and `generation` (see `formats.trailer`) for format 2; `storage`
    is DuckDB's storage version, e.g.
    ``"v1.5"``; `origin` is the replica's, see `replica.origin`, None for what another program made; `validated` is
    since when all tables of the replica were known to equal MySQL's (ISO 8601), None if that is not known;
    `held_ms` is for how long no process could write the replica, None where it is not known; `rows` are those of each
    table, for a drill to compare, None where they were not counted.
    """

    path: Path
    database: str
    stamp: str
    created_at: str
    size: int
    sha256: str
    part_size: int
    part_checksums: tuple[str, ...]
    checksum_key: str
    iv: str | None
    mac: str | None
    key_fingerprint: str | None
    storage: str | None
    duration_ms: int
    format: int = 2
    origin: str | None = None
    validated: str | None = None
    held_ms: int | None = None
    rows: Rows | None = None
    lineage: str | None = None
    index: str | None = None
    generation: int = 0

    @property
    def filename(self) -> str:
        return self.path.name

    @property
    def plan(self) -> PartPlan:
        footer = self.footer
        extra = lead_bytes(encrypted=self.iv is not None) if footer is None else trailer_bytes(footer)
        return PartPlan(self.size + extra, self.part_size)

    @property
    def footer(self) -> Footer | None:
        """Of the object to be; None where that is none of format 2."""
        if self.lineage is None:
            return None
        return Footer(
            database=self.database,
            stamp=self.stamp,
            size=self.size,
            lineage=bytes.fromhex(self.lineage),
            key_fingerprint=self.key_fingerprint or "",
            origin=self.origin,
            generation=self.generation,
        )

    @property
    def upload_log(self) -> Path:
        return self.path.with_suffix(UPLOAD_SUFFIX)

    @property
    def upload_lock(self) -> Path:
        return self.path.with_suffix(UPLOAD_LOCK_SUFFIX)

    def save(self) -> None:
        data = asdict(self)
        del data["path"]
        write_durably(sidecar_of(self.path), json.dumps(data).encode())

    def _require_sane(self) -> None:
        """:raises ValueError: a field has a type or value that `save` never writes."""
        for name, kinds in _TYPES.items():
            if type(getattr(self, name)) not in kinds:
                raise ValueError(f"{name} has another type")
        if self.size < 0 or self.part_size < MIN_PART:
            raise ValueError("size or part_size is out of range")
        footer = self.footer
        if footer is not None:
            digits = 2 * TAG_BYTES * footer.segment_count
            if self.iv is not None or self.index is None or len(self.index) != digits or not _is_hex(self.index):
                raise ValueError("index doesn't fit size and lineage")
        if len(self.part_checksums) != self.plan.count or not all(_is_hex(code) for code in self.part_checksums):
            raise ValueError("part_checksums don't fit size and part_size")
        for name, digits in _DIGITS.items():
            value = getattr(self, name)
            if value is not None and not (_is_hex(value) and len(value) == digits):
                raise ValueError(f"{name} is not {digits} hexadecimal digits")

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """:raises NotFoundError: when there is no complete backup at `path`.
        :raises DamagedError: when its sidecar can't be used, or the file has another size.
        """
        try:
            data = json.loads(read_state(sidecar_of(path)))
            size = path.stat().st_size
            # Sidecars outlive versions of this program: what a later one added is left aside.
            # What it has since a later version is missing in older ones.
            data = {**_LATER_FIELDS, **data}
            known = {field.name: data[field.name] for field in fields(cls) if field.name != "path"}
            known["part_checksums"] = tuple(data["part_checksums"])
            known["rows"] = None if data["rows"] is None else rows_of_json(data["rows"])
            snapshot = cls(path=path, **known)
            snapshot._require_sane()
        except FileNotFoundError:
            raise NotFoundError("no such local backup", subject=str(path)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"its sidecar can't be used ({type(error).__name__}: {error})",
                subject=str(path),
                hint="Another version or program wrote it. The .db file itself may be fine: DuckDB opens it.",
            ) from error
        if size != snapshot.size:
            raise DamagedError(f"the local backup has {size} bytes, {snapshot.size} were recorded", subject=str(path))
        return snapshot


_TEXT, _NUMBER = (str,), (int,)
_TEXT_OR_NONE = (str, type(None))
#: The types of a sidecar's fields.
_TYPES: dict[str, tuple[type, ...]] = {
    "database": _TEXT,
    "stamp": _TEXT,
    "created_at": _TEXT,
    "size": _NUMBER,
    "sha256": _TEXT,
    "part_size": _NUMBER,
    "checksum_key": _TEXT,
    "iv": _TEXT_OR_NONE,
    "mac": _TEXT_OR_NONE,
    "key_fingerprint": _TEXT_OR_NONE,
    "storage": _TEXT_OR_NONE,
    "duration_ms": _NUMBER,
    "format": _NUMBER,
    "origin": _TEXT_OR_NONE,
    "validated": _TEXT_OR_NONE,
    "held_ms": (int, type(None)),
    "lineage": _TEXT_OR_NONE,
    "index": _TEXT_OR_NONE,
    "generation": _NUMBER,
}
#: Those that are hexadecimal, and how many digits they have.
_DIGITS = {"sha256": 64, "checksum_key": 64, "iv": 32, "mac": 64, "key_fingerprint": 16, "lineage": 32}
#: Of fields that sidecars of earlier versions lack.
_LATER_FIELDS = {
    "origin": None,
    "validated": None,
    "held_ms": None,
    "rows": None,
    "lineage": None,
    "index": None,
    "generation": 0,
}


def _is_hex(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]+", text) is not None


def sidecar_of(path: Path) -> Path:
    return path.with_suffix(SIDECAR_SUFFIX)


def companions(path: Path) -> tuple[Path, ...]:
    """The files that belong to the local backup at `path`, the sidecar first."""
    own = (path.with_suffix(suffix) for suffix in (SIDECAR_SUFFIX, UPLOAD_SUFFIX, UPLOAD_LOCK_SUFFIX))
    return (*own, *(path.with_name(path.name + suffix) for suffix in (STATE_SUFFIX, PIN_SUFFIX)))


def find_snapshot(database: Database, filename: str) -> Snapshot:
    """The local backup of that file name.

    :raises NotFoundError: when there is none.
    """
    if parse_name(filename) is None:
        raise NotFoundError("this is not the name of a local backup", subject=filename)
    return Snapshot.load(database.backup_dir / filename)


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
