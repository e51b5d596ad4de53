"""What a local backup's sidecar says of it: a `Snapshot`, all that later steps need to know.

On disk: ``BACKUP_PATH/<id>/backup-<stamp>.db`` and beside it ``backup-<stamp>.json`` (the sidecar). A file without a
sidecar is not ours and is left alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from duckling_provider.backup.inventory.names import PIN_SUFFIX, STATE_SUFFIX, parse_name
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import DamagedError, NotFoundError
from duckling_provider.base.state_files import read_state
from duckling_provider.config.databases import Database
from duckling_provider.formats.segments import TAG_BYTES
from duckling_provider.formats.trailer import Footer, trailer_bytes
from duckling_provider.formats.upload_body import lead_bytes
from duckling_provider.replica.reading import Rows, rows_of_json
from duckling_provider.stores.parts import MIN_PART, PartPlan

SIDECAR_SUFFIX = ".json"
UPLOAD_SUFFIX = ".upload"
UPLOAD_LOCK_SUFFIX = ".lock"


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
