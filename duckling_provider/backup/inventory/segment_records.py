"""What is remembered of a backup's bytes when they are gone from this machine: a checksum of each segment of 8 MiB, and
what became of it in the store.

The next backup is compared with it segment by segment, so that only what changed is sent; a restore takes from the disk
what is the same already. On disk: ``BACKUP_PATH/<id>/segments/backup-<stamp>.json``, two lines of JSON: what is known
of the backup, and its long lists. It outlives the local copy, as long as the backup is in the store.

The checksums are GMACs, a tenth of the cost of SHA-256 (`formats.crypto.PartMac`). All records of a database share one
random key, so that equal segments at one place have equal checksums. No byte is authenticated by them towards anybody:
key and checksums lie in the same file, for its owner only, and whoever could read one could write the other. For bytes
that were made without knowing the key, two segments have one checksum with a chance of 2**-108.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from duckling_provider.backup.inventory.names import backup_name, parse_name
from duckling_provider.base.durable_files import make_folder, write_durably
from duckling_provider.base.errors import StateFileError
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.config.databases import Database
from duckling_provider.formats.upload_body import PartChecksums
from duckling_provider.stores.parts import MIB, PartPlan

#: Bytes of a segment; only tests have others.
SEGMENT_BYTES = 8 * MIB
#: Records of backups without a local copy that stay, at most.
MOST = 60
_FORMAT = 1
#: Beside the local backups, of the records.
FOLDER = "segments"
#: The first line of a record is shorter than this.
_MOST_HEAD = 64 * 1024


@dataclass(frozen=True)
class Uploaded:
    """What a backup's upload left in the store: `etag` without quotes, `size` of the object in bytes, `version` empty
    where the bucket keeps none.

    `sent` are the spans (first byte, byte after the last) that were sent; the store copied the others. `because` says
    why all was sent, empty where it was not. `full_at` is when all was sent the last time (ISO 8601), `since_full` how
    many backups ago, `number` counts the uploads of this database.
    """

    store: str
    key: str
    etag: str
    version: str
    size: int
    mode: str
    sent: tuple[tuple[int, int], ...]
    because: str
    full_at: str
    since_full: int
    number: int

    @property
    def sent_bytes(self) -> int:
        return sum(stop - start for start, stop in self.sent)

    @property
    def copied_bytes(self) -> int:
        return self.size - self.sent_bytes

    @classmethod
    def parse(cls, data: Any) -> Uploaded:
        """:raises ValueError, KeyError, TypeError: it is none."""
        known = {field.name: data[field.name] for field in fields(cls)}
        sent = tuple((int(start), int(stop)) for start, stop in known.pop("sent"))
        made = cls(sent=sent, **known)
        numbers = (made.size, made.since_full, made.number)
        texts = (made.store, made.key, made.etag, made.version, made.mode, made.because, made.full_at)
        if not all(type(number) is int for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a field of another type")
        return made


@dataclass(frozen=True)
class SegmentRecord:
    """`size` of the ``.db`` file in bytes, `sha256` of it in hex; `checksums` (32 hex digits each) under `key` (64) of
    its segments of `segment` bytes, the last one shorter; `origin` as in `sidecar.Snapshot`.
    """

    path: Path
    database: str
    stamp: str
    size: int
    sha256: str
    segment: int
    key: str
    checksums: tuple[str, ...]
    origin: str | None = None
    uploaded: Uploaded | None = None

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte and byte after the last of a segment."""
        return index * self.segment, min((index + 1) * self.segment, self.size)

    def unchanged_since(self, earlier: SegmentRecord) -> list[bool]:
        """Of each segment, whether the other record has the same bytes at the same place."""
        if (self.segment, self.key) != (earlier.segment, earlier.key):
            return [False] * len(self.checksums)
        # A segment of another length has another checksum.
        return [code == other for code, other in zip(self.checksums, earlier.checksums, strict=False)] + [False] * max(
            0, len(self.checksums) - len(earlier.checksums)
        )

    def save(self) -> None:
        head = asdict(self) | {"format": _FORMAT}
        del head["path"]
        lists = {"checksums": head.pop("checksums"), "sent": []}
        if self.uploaded is not None:
            lists["sent"] = head["uploaded"].pop("sent")
            head["uploaded"]["bytes_sent"] = self.uploaded.sent_bytes
        make_folder(self.path.parent)
        write_durably(self.path, b"\n".join(json.dumps(part).encode() for part in (head, lists)))

    def with_upload(self, uploaded: Uploaded) -> SegmentRecord:
        """Saved with what became of it in the store."""
        known = replace(self, uploaded=uploaded)
        known.save()
        return known

    @classmethod
    def load(cls, path: Path) -> SegmentRecord | None:
        """None where there is none, or none that can be used: it only saves work."""
        try:
            head, _, rest = read_state(path).partition(b"\n")
            data, lists = json.loads(head), json.loads(rest)
            if data["format"] != _FORMAT:
                return None
            data["checksums"] = tuple(lists["checksums"])
            known = {field.name: data[field.name] for field in fields(cls) if field.name != "path"}
            uploaded = known.pop("uploaded")
            if uploaded is not None:
                uploaded = Uploaded.parse(uploaded | {"sent": lists["sent"]})
            record = cls(path=path, uploaded=uploaded, **known)
        except (OSError, StateFileError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if record._is_sane() else None

    def _is_sane(self) -> bool:
        texts = (self.database, self.stamp, self.sha256, self.key, *self.checksums)
        if not all(isinstance(text, str) for text in texts) or type(self.size) is not int:
            return False
        if type(self.segment) is not int or self.segment < 1 or not re.fullmatch("[0-9a-f]{64}", self.key):
            return False
        return self.path.name == _name(self.stamp) and len(self.checksums) == max(1, -(-self.size // self.segment))


class SegmentChecksums:
    """Makes the checksums while a file passes in order, in chunks of any length.

    :param plan: the cut of an object that begins with the file. Where its parts are segments (`are_parts`), what makes
        the checksums (`made`) makes those of all parts.
    """

    def __init__(self, size: int, key: str, *, plan: PartPlan | None = None) -> None:
        self.key, self.segment, self._size = key, SEGMENT_BYTES, size
        self._own = PartPlan(size, self.segment)
        self.are_parts = plan is not None and plan.part_size == self.segment
        self.made = PartChecksums(plan if plan and self.are_parts else self._own, lead=0, key=bytes.fromhex(key))
        self.update = self.made.update

    def record(
        self, folder: Path, *, database: str, stamp: str, sha256: str, origin: str | None = None
    ) -> SegmentRecord:
        """What is to be remembered when all bytes have passed; not saved yet.

        :param folder: of the local backups.
        """
        path = folder / FOLDER / _name(stamp)
        codes = self.made.finish()[: self._own.count]
        return SegmentRecord(path, database, stamp, self._size, sha256, self.segment, self.key, codes, origin)


def _name(stamp: str) -> str:
    return Path(backup_name(stamp)).with_suffix(".json").name


def records_folder(database: Database) -> Path:
    """Where the records are, and what else is remembered of uploads; it may not be there yet."""
    return database.backup_dir / FOLDER


def records(database: Database) -> Iterator[SegmentRecord]:
    """Of the backups that were made here, the newest first. Read as they are asked for: each has some MiB."""
    for path in _paths(database):
        record = SegmentRecord.load(path)
        if record is not None and record.database == database.id:
            yield record


def record_of(database: Database, name: str) -> SegmentRecord | None:
    """Of the backup with that file name, where this machine has one."""
    if not database.is_here or parse_name(name) is None:
        return None
    record = SegmentRecord.load((records_folder(database) / name).with_suffix(".json"))
    return record if record is not None and record.database == database.id else None


def bytes_sent(database: Database, name: str) -> int | None:
    """How much of the backup with that file name was sent; None where this machine does not know. Reads the first line
    of its record only.
    """
    if not database.is_here or parse_name(name) is None:
        return None
    try:
        fd = open_state((records_folder(database) / name).with_suffix(".json"), os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            sent = json.loads(file.readline(_MOST_HEAD))["uploaded"]["bytes_sent"]
    except (OSError, StateFileError, ValueError, KeyError, TypeError):
        return None
    return sent if type(sent) is int else None


def checksum_key(database: Database) -> str:
    """The key that the next record is to have: that of the newest, or a new one."""
    newest = next(records(database), None)
    return secrets.token_hex(32) if newest is None else newest.key


def forget_records(database: Database, stored: Sequence[str]) -> None:
    """Remove the records of backups that are neither here nor in the store any more.

    :param stored: the file names of those in the store.
    """
    kept = 0
    for path in _paths(database):
        name = path.with_suffix(".db").name
        if (database.backup_dir / name).exists():
            continue
        kept += 1
        if name not in stored or kept > MOST:
            path.unlink(missing_ok=True)


def _paths(database: Database) -> list[Path]:
    found: list[Path] = []
    with contextlib.suppress(OSError):
        folder = records_folder(database)
        found = [path for path in folder.glob("backup-*.json") if parse_name(path.with_suffix(".db").name)]
    return sorted(found, reverse=True)
