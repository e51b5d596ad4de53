"""What proves that bytes of this machine are a segment of a backup: the backup's index, this machine's record of it, or
the checksums that a killed download left.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from duckling_provider.backup.inventory import segment_records
from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.inventory.segment_records import SegmentRecord, record_of
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import StateFileError
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.config.databases import Database
from duckling_provider.formats.crypto import BytesLike, PartMac
from duckling_provider.formats.segments import SegmentKeys, Segments
from duckling_provider.formats.trailer import Trailer
from duckling_provider.formats.upload_body import PartChecksums
from duckling_provider.stores.parts import PartPlan


class Proof(Protocol):
    """What tells the segments of one backup, each of `segment` bytes but the last, from other bytes."""

    @property
    def segment(self) -> int: ...

    def proves(self, number: int, data: memoryview) -> bool:
        """Whether these bytes are the segment of that number."""


@dataclass(frozen=True)
class ByIndex:
    """By the proven index of an object of format 2."""

    trailer: Trailer
    segments: Segments

    @property
    def segment(self) -> int:
        return self.trailer.footer.segment_bytes

    def proves(self, number: int, data: memoryview) -> bool:
        tagger = self.segments.tagger(number)
        tagger.update(data)
        return tagger.digest() == self.trailer.tag(number)


@dataclass(frozen=True)
class ByRecord:
    """By what this machine remembers of the backup."""

    record: SegmentRecord

    @property
    def segment(self) -> int:
        return self.record.segment

    def proves(self, number: int, data: memoryview) -> bool:
        return _gmac(self.record.key, number, data) == self.record.checksums[number]


def proof_of(database: Database, backup: StoredBackup) -> Proof | None:
    """What proves each segment of a backup; None where index and record are missing."""
    if backup.trailer is not None and backup.encryption_key is not None:
        return ByIndex(backup.trailer, backup.trailer.footer.segments(SegmentKeys(backup.encryption_key)))
    record = record_of(database, backup.key.rpartition("/")[2])
    if record is None or record.size != backup.size or backup.sha256 not in (None, record.sha256):
        return None
    return ByRecord(record)


class Received:
    """Checksums of a download's segments as they arrive, so that a restore that goes on with it can prove what it finds
    where neither an index nor a record does.

    On disk: a line of JSON, ``{"segment": bytes, "key": 64 hex digits}``, then a line of 32 hex digits for each
    segment that has arrived, from the first on: GMACs, as in `segment_records`. What a crash tore has not arrived.

    :param path: beside the note of the download.
    :param size: of the file in bytes.
    :param goes_on: whether what is there may be used; else it begins with nothing.
    """

    def __init__(self, path: Path, size: int, *, goes_on: bool) -> None:
        self.segment = segment_records.SEGMENT_BYTES
        self._path, self._size = path, size
        self._key, self._known = (_received(path, self.segment) if goes_on else None) or (secrets.token_hex(32), [])
        self._begin()

    def _begin(self) -> None:
        self._made = PartChecksums(PartPlan(self._size, self.segment), lead=0, key=bytes.fromhex(self._key))
        self._written, self._fd = len(self._known), -1
        head = json.dumps({"segment": self.segment, "key": self._key})
        with contextlib.suppress(OSError, StateFileError):  # then no restore goes on with it
            write_durably(self._path, "".join(f"{line}\n" for line in (head, *self._known)).encode())
            self._fd = open_state(self._path, os.O_WRONLY | os.O_APPEND)

    def forget(self) -> None:
        """It begins with nothing: the bytes that it knows are not the backup's."""
        self.close()
        self._key, self._known = secrets.token_hex(32), []
        self._begin()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def proves(self, number: int, data: memoryview) -> bool:
        """Whether these bytes are the segment of that number that had arrived."""
        return number < len(self._known) and _gmac(self._key, number, data) == self._known[number]

    def update(self, chunk: BytesLike) -> None:
        """The next bytes of the file, in chunks of any length, which are written already."""
        self._made.update(chunk)
        if len(self._made.complete) > self._written and self._fd >= 0:
            more = self._made.complete[self._written :]
            self._written += len(more)
            with contextlib.suppress(OSError):  # torn, it proves less
                os.write(self._fd, "".join(f"{line}\n" for line in more).encode())


def _received(path: Path, segment: int) -> tuple[str, list[str]] | None:
    """(key, checksums) of the file that `Received` keeps; None where there is none that can be used."""
    try:
        head, *lines = read_state(path).decode().split("\n")
        data = json.loads(head)
        key, whole = data["key"], [line for line in lines[:-1] if len(bytes.fromhex(line)) == PartMac.BYTES]
        usable = len(bytes.fromhex(key)) == 32 and data["segment"] == segment and len(whole) == len(lines) - 1
    except (OSError, StateFileError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (key, whole) if usable else None


def _gmac(key: str, number: int, data: memoryview) -> str:
    checksum = PartMac(bytes.fromhex(key), number)
    checksum.update(data)
    return checksum.hexdigest()
