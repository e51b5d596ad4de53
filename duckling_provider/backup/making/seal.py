"""How a file is prepared to be an object: the cut into parts, a checksum of each, key and lineage, all in one pass.

For client-aes256, that is the HMAC of the ciphertext to be, under a fresh IV, or the index of its segments.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from duckling_provider.backup.inventory.segment_records import SegmentChecksums, SegmentRecord, checksum_key
from duckling_provider.backup.inventory.sidecar import SIDECAR_SUFFIX, Snapshot
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DamagedError, NotFoundError, StateFileError
from duckling_provider.base.moments import stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, S3Settings
from duckling_provider.formats.crypto import BytesLike, CtrCipher, Mac, new_iv
from duckling_provider.formats.pipeline import CHUNK, one_pass
from duckling_provider.formats.segments import SegmentKeys, SegmentTags
from duckling_provider.formats.trailer import FORMAT, Footer, Lineage, encode_trailer, mac_of, trailer_bytes
from duckling_provider.formats.upload_body import PartChecksums, lead_bytes
from duckling_provider.stores import parts
from duckling_provider.stores.parts import MIB, plan_parts


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
        seal._remember_segments(checksum_key(database))
        return seal

    def __init__(
        self, size: int, key: EncryptionKey | None, *, part_size: int, max_parts: int, footer: Footer | None = None
    ) -> None:
        lead = lead_bytes(encrypted=key is not None and footer is None)
        extra = lead if footer is None else trailer_bytes(footer)
        self._size, self._lead = size, lead
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

    def _remember_segments(self, key: str) -> None:
        self.segments = SegmentChecksums(self._size, key, plan=None if self._lead else self.plan)
        if self.segments.are_parts:
            self.checksum_key, self.checksums = bytes.fromhex(key), self.segments.made

    def hash(self, chunk: BytesLike) -> None:
        self.sha256.update(chunk)
        self.checksums.update(chunk)
        if self.segments is not None and not self.segments.are_parts:
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
