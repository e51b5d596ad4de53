"""Which parts of a backup the store is to copy from an earlier one, so that what travels is what changed; or why all of
it is sent.

The object stays what it is in full. A plain file (modes ``none`` and ``sse-*``) has as its source the newest backup
that was verified in full, of the same replica, of which this machine remembers the segments and what the store called
it (`segment_records`). An object of format 2 needs nothing local: footers tell lineage and generation, indexes tell
which segments are the same, and the present key must vouch for its footer. After ``s3.fullUploadEvery`` backups, and
after any backup was disproved, everything is sent: one rotten segment must not be inherited for ever.

A store that refuses is asked again after a week, or once ``duckling check`` finds that it copies.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.names import SKEW, ListedBackup
from duckling_provider.backup.inventory.segment_records import SegmentRecord, Uploaded, record_of, records
from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.backup.inventory.states import read_states
from duckling_provider.backup.making.basis import (
    LOOKED_AT,
    Basis,
    disproof_since,
    find_basis,
    full_by_turn,
    one_line,
    unread,
)
from duckling_provider.backup.making.copy_refusals import remembered_refusal
from duckling_provider.base.errors import CancelledError, DucklingError
from duckling_provider.base.moments import iso, parse_moment, stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT, S3Settings
from duckling_provider.formats import segments
from duckling_provider.formats.upload_body import SnapshotBody
from duckling_provider.replica.origin import Origin
from duckling_provider.stores.parts import MIN_PART, Cut, Limits, plan_copies
from duckling_provider.stores.store import Copies, Store, StoredObject, UploadLog

_ONE_REQUEST = "it is sent in one request"
_NOT_RECORDED = "its segments were not recorded when it was made"
_ANOTHER_SOURCE = "what an earlier try copied from is another object by now"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadPlan:
    """`copies` is what the store has of the object already, None for a full upload; then `because` says why."""

    copies: Copies | None = None
    because: str = ""


def basis_of(database: Database, store: Store, snapshot: Snapshot, *, binding: dict[str, object]) -> Basis | str | None:
    """What an object of format 2 is to share segments with, or why with none; None for an upload that an earlier try
    has begun: the snapshot is sealed for it.
    """
    record = record_of(database, snapshot.filename)
    if _log_of(snapshot, binding) is not None:
        return None
    if snapshot.plan.count == 1:
        return _ONE_REQUEST
    if record is None or record.sha256 != snapshot.sha256 or record.segment != segments.SEGMENT_BYTES:
        return _NOT_RECORDED
    return remembered_refusal(database, store) or find_basis(database, store, snapshot)


def plan_upload(
    database: Database,
    store: Store,
    snapshot: Snapshot,
    *,
    binding: dict[str, object],
    basis: Basis | str | None = None,
) -> UploadPlan:
    """How a snapshot is to be uploaded. Looks at the store, and changes nothing there but for an upload of other parts,
    which it aborts.

    :param binding: of the upload's log, for a full upload.
    :param basis: what the snapshot was sealed for, in format 2, see `basis_of`.
    :raises CancelledError: the caller asked to stop. Whatever else goes wrong is a reason for a full upload.
    """
    record, settings = record_of(database, snapshot.filename), database.s3
    if settings is None:
        return UploadPlan(because="the entry has no settings of a store")
    try:
        begun = _begun(store, snapshot, binding)
        if begun is not None:
            return begun
        if snapshot.footer is not None:
            found: tuple[StoredObject, list[bool]] | str = basis if isinstance(basis, str) else _ANOTHER_SOURCE
            if isinstance(basis, Basis):
                found = basis.source, basis.unchanged(snapshot)
        else:
            found = _source(database, settings, store, snapshot, record)
        if isinstance(found, str) or record is None:
            return UploadPlan(because=str(found))
        source, unchanged = found
        size, limits = snapshot.plan.size, _limits(settings, store, record)
        cut = plan_copies(unchanged, size, segment=record.segment, limits=limits, covered=snapshot.size)
    except CancelledError:
        raise
    except (DucklingError, OSError) as error:
        return UploadPlan(because=f"no earlier backup could be looked at: {one_line(error)}")
    if not cut.copied:
        return UploadPlan(because=f"no segment is as it was in {source.key}")
    return UploadPlan(Copies(cut, source, set(cut.copied)))


def _limits(settings: S3Settings, store: Store, record: SegmentRecord) -> Limits:
    return Limits(settings.part_size, settings.max_parts, equal=store.equal_parts, least=min(MIN_PART, record.segment))


def _source(
    database: Database, settings: S3Settings, store: Store, snapshot: Snapshot, record: SegmentRecord | None
) -> tuple[StoredObject, list[bool]] | str:
    """What segments of a plain file are copied from, and which are the same there; or why all is sent."""
    if store.mode == CLIENT:
        return "each object of format 1 is encrypted under an IV of its own (s3.objectFormat)"
    if snapshot.plan.count == 1:
        return _ONE_REQUEST
    if record is None or record.sha256 != snapshot.sha256:
        return _NOT_RECORDED
    if refusal := remembered_refusal(database, store):
        return refusal
    last = _last_upload(database)
    if last is None or last.store != store.url:
        return "no earlier upload to this bucket is recorded on this machine"
    if last.since_full + 1 >= settings.full_upload_every:
        return full_by_turn(settings.full_upload_every)
    if parse_moment(last.full_at) > datetime.now(timezone.utc) + SKEW:  # it would hide what was disproved since
        return f"all was sent the last time at {last.full_at}, by a wrong clock"
    backups = [b for b in list_backups(store) if not b.misdated(datetime.now(timezone.utc))][:LOOKED_AT]
    states = read_states(database, store, backups)
    if disproof := disproof_since(backups, states, since=parse_moment(last.full_at)):
        return disproof
    reasons = []
    for backup in backups:
        if backup.created >= datetime.fromisoformat(snapshot.created_at) or not states[backup.key].is_whole:
            continue
        earlier = record_of(database, backup.name)
        if earlier is None or earlier.uploaded is None:
            reasons.append(f"what was uploaded as {backup.key} is not recorded on this machine")
        elif reason := _unusable(earlier, earlier.uploaded, backup, store, snapshot):
            reasons.append(reason)
        else:
            source = _head(store, backup)
            if isinstance(source, str):
                reasons.append(source)
            elif _same(source, earlier.uploaded):
                return source, record.unchanged_since(earlier)
            else:
                reasons.append(f"{backup.key} is another object than was uploaded")
    return reasons[0] if reasons else "no earlier backup was verified in full"


def _head(store: Store, backup: ListedBackup) -> StoredObject | str:
    """What the store tells of a backup, or why it does not."""
    try:
        return store.head(backup.key)
    except DucklingError as error:
        return unread(backup, error)


def _unusable(
    earlier: SegmentRecord, uploaded: Uploaded, backup: ListedBackup, store: Store, snapshot: Snapshot
) -> str:
    """Why segments of a backup can't be copied; empty when they can."""
    if (uploaded.store, uploaded.key) != (store.url, backup.key):
        return f"{backup.key} was uploaded to another bucket"
    if uploaded.size != earlier.size:  # the plain file and nothing else is as long as the file
        return f"{backup.key} was encrypted before it was sent"
    mine, other = Origin.parse(snapshot.origin), Origin.parse(earlier.origin)
    if mine is None or other is None or not mine.owns(other, backup.created):
        return f"{backup.key} is of another replica"
    return ""


def _same(source: StoredObject, uploaded: Uploaded) -> bool:
    """Whether an object is the very one that an upload left."""
    return (
        bool(source.etag)
        and (source.etag.strip('"'), source.size) == (uploaded.etag, uploaded.size)
        and (not uploaded.version or source.version == uploaded.version)
    )


# ---- an upload that was interrupted ------------------------------------------------------------------------


def copies_binding(binding: dict[str, object], copies: Copies) -> dict[str, object]:
    """What an upload with copies is bound to: with the parts that it was cut into, so that it goes on with them."""
    source = {"key": copies.source.key, "etag": copies.source.etag, "version": copies.source.version}
    return binding | {"source": source, "stops": list(copies.cut.stops), "copied": sorted(copies.cut.copied)}


def _begun(store: Store, snapshot: Snapshot, binding: dict[str, object]) -> UploadPlan | None:
    """How the upload goes on that an earlier try has begun; None where there is none that can."""
    begun = _log_of(snapshot, binding)
    if begun is None:
        return None
    more, upload_id = begun
    if more["source"] is None:
        return UploadPlan(because="it was begun as a full upload")
    with contextlib.suppress(DucklingError, KeyError, TypeError, ValueError, IndexError):
        source, told = store.head(more["source"]["key"]), more["source"]
        cut = Cut(tuple(int(stop) for stop in more["stops"]), frozenset(int(part) for part in more["copied"]))
        if (source.etag, source.version) == (told["etag"], told["version"]) and cut.size == snapshot.plan.size:
            return UploadPlan(Copies(cut, source, set(cut.copied)))
    # Its parts are of a source that is another one by now.
    store.abort(str(binding["key"]), upload_id)
    snapshot.upload_log.unlink(missing_ok=True)
    return None


def _log_of(snapshot: Snapshot, binding: dict[str, object]) -> tuple[dict[str, Any], str] | None:
    """Source and cut of an upload that is bound to `binding`, and its id; None where none was begun."""
    owner = UploadLog.owner(snapshot.upload_log)
    if owner is None:
        return None
    found, upload_id = dict(owner[0]), owner[1]
    more: dict[str, Any] = {name: found.pop(name, None) for name in ("source", "stops", "copied")}
    return (more, upload_id) if found == binding else None


# ---- what is remembered ------------------------------------------------------------------------------------


def remember_upload(
    database: Database, store: Store, snapshot: Snapshot, stored: StoredObject, plan: UploadPlan
) -> Uploaded | None:
    """Note what became of a snapshot in the store; None where its segments were not recorded.

    :param plan: with the parts that were copied in the end.
    """
    record = record_of(database, snapshot.filename)
    if record is None or record.sha256 != snapshot.sha256:
        return None
    before = _last_upload(database, but=record.stamp)
    copies = plan.copies
    if copies is None:
        sent: list[tuple[int, int]] = [(0, stored.size)]
    else:
        sent = [copies.cut.bounds(part) for part in range(copies.cut.count) if part not in copies.parts]
    full = copies is None or not copies.parts or before is None
    uploaded = Uploaded(
        store=store.url,
        key=stored.key,
        etag=stored.etag.strip('"'),
        version=stored.version,
        size=stored.size,
        mode=store.mode,
        sent=tuple(_joined(sent)),
        because=plan.because or ("" if copies is not None and copies.parts else "no copy could be proven"),
        full_at=iso(datetime.now(timezone.utc)) if full or before is None else before.full_at,
        since_full=0 if full or before is None else before.since_full + 1,
        number=0 if before is None else before.number + 1,
    )
    record.with_upload(uploaded)
    return uploaded


def _last_upload(database: Database, *, but: str = "") -> Uploaded | None:
    """The newest upload of this machine, but for that of one stamp. What a wrong clock named after a moment to come
    would stay the newest for as long, and nothing would be counted any more.
    """
    latest = stamp_of(datetime.now(timezone.utc) + SKEW)
    known = (record for record in records(database) if but != record.stamp <= latest)
    return next((record.uploaded for record in known if record.uploaded is not None), None)


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Adjacent spans as one."""
    waiting: tuple[int, int] | None = None
    for start, stop in sorted(spans):
        if waiting is not None and waiting[1] == start:
            waiting = (waiting[0], stop)
            continue
        if waiting is not None:
            yield waiting
        waiting = (start, stop)
    if waiting is not None:
        yield waiting


# ---- the bytes ---------------------------------------------------------------------------------------------


class SegmentedBody(SnapshotBody):
    """A snapshot as the body of an object in parts of whole segments, each compared with its record before it is
    sent.
    """

    def __init__(self, path: Path, cut: Cut, record: SegmentRecord, **more: object) -> None:
        super().__init__(
            path,
            cut,
            checksums=record.checksums,
            checksum_key=bytes.fromhex(record.key),
            **more,  # type: ignore[arg-type]
        )
        self._record = record

    def _spans(self, index: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        # A part of what follows the file has no bytes of it.
        numbers = range(first // self._record.segment, -(-last // self._record.segment)) if first < last else ()
        for segment in numbers:
            yield segment, *self._record.bounds(segment)
