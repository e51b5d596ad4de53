"""The object that a new one of format 2 may share segments with, and under which lineage; or why none.

Footers tell lineage and generation, indexes tell which segments are the same, and the present key must vouch for the
footer: nothing on this machine is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.key_choice import find_trailer
from duckling_provider.backup.inventory.metadata import origin_of
from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.backup.inventory.states import BackupState, read_states
from duckling_provider.base.errors import AccessDeniedError, CancelledError, DucklingError
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats.segments import TAG_BYTES
from duckling_provider.formats.trailer import Lineage, Trailer
from duckling_provider.replica.origin import Origin
from duckling_provider.stores.store import Store, StoredObject

#: So many of the newest backups are looked at for what is known of them.
LOOKED_AT = 30


def full_by_turn(every: int) -> str:
    """Why all is sent, where `every` is ``s3.fullUploadEvery``."""
    which = "each" if every == 1 else f"one of {every}"
    return f"{which} is sent in full (s3.fullUploadEvery)"


def disproof_since(backups: list[ListedBackup], states: dict[str, BackupState], *, since: datetime) -> str:
    """Which backup was disproved after everything was sent the last time; empty where none was."""
    for backup in backups:
        decisive = states[backup.key].decisive
        if decisive is not None and decisive.state == "disproved" and decisive.at >= since:
            return f"{backup.key} was disproved at {iso(decisive.at)}"
    return ""


def unread(backup: ListedBackup, error: DucklingError) -> str:
    """Why a backup could not be looked at; raises what may pass: the others would have to wait for it, too."""
    if isinstance(error, CancelledError) or error.retryable:
        raise error
    if isinstance(error, AccessDeniedError):
        return f"{backup.key} may not be read: {error.cause}"
    return f"{backup.key} can't be looked at: {error.cause}"


def one_line(error: DucklingError | OSError) -> str:
    """What went wrong, without what to do: it is done without."""
    return error.what if isinstance(error, DucklingError) else str(error)


@dataclass(frozen=True)
class Basis:
    """An object in the store that a new one may share segments with, as its HEAD told before, and what its trailer
    says; `generation` is the new one's.
    """

    source: StoredObject
    trailer: Trailer
    generation: int

    @property
    def lineage(self) -> Lineage:
        """What the new object is to be sealed under."""
        return Lineage(self.trailer.footer.lineage, self.generation)

    def unchanged(self, snapshot: Snapshot) -> list[bool]:
        """Of each segment of a snapshot that was sealed under `lineage`, whether the object has the same bytes."""
        index, footer = bytes.fromhex(snapshot.index or ""), self.trailer.footer
        if snapshot.lineage != footer.lineage.hex():
            return [False] * (len(index) // TAG_BYTES)
        # A segment of another length has another V.
        return [index[at : at + TAG_BYTES] == self.trailer.index[at : at + TAG_BYTES] for at in _starts(index)]


def _starts(index: bytes) -> range:
    return range(0, len(index), TAG_BYTES)


def find_basis(database: Database, store: Store, snapshot: Snapshot) -> Basis | str:
    """What a snapshot's object may share segments with; or why all of it is to be sent.

    :raises CancelledError: the caller asked to stop. Whatever else goes wrong is a reason to send all.
    """
    try:
        return _newest_basis(database, store, snapshot)
    except CancelledError:
        raise
    except (DucklingError, OSError) as error:
        return f"no earlier backup could be looked at: {one_line(error)}"


def _newest_basis(database: Database, store: Store, snapshot: Snapshot) -> Basis | str:
    settings = database.s3
    key = None if settings is None else settings.encryption_key
    if settings is None or key is None:
        return "the entry has no key"
    now, made = datetime.now(timezone.utc), datetime.fromisoformat(snapshot.created_at)
    backups = [b for b in list_backups(store) if b.has_mac and b.created < made and not b.misdated(now)][:LOOKED_AT]
    states = read_states(database, store, backups)
    generation: int | None = None
    reasons = []
    for backup in backups:
        found = _trailer(database, store, backup, key)
        if isinstance(found, str):
            reasons.append(found)
            continue
        source, trailer = found
        # Of the newest one, whether or not anything is copied from it.
        generation = trailer.footer.generation + 1 if generation is None else generation
        if generation >= settings.full_upload_every:
            return full_by_turn(settings.full_upload_every)
        if not states[backup.key].is_whole:
            reasons.append(f"{backup.key} was not verified in full")
        elif not _is_ours(source, trailer, snapshot, backup):
            reasons.append(f"{backup.key} is of another replica")
        elif disproof := disproof_since(backups, states, since=backup.modified or backup.created):
            return disproof
        else:
            return Basis(source, trailer, generation)
    return reasons[0] if reasons else "there is no earlier backup"


def _trailer(
    database: Database, store: Store, backup: ListedBackup, key: EncryptionKey
) -> tuple[StoredObject, Trailer] | str:
    """The object and its proven trailer; or why segments of it can't be shared."""
    try:
        source = store.head(backup.key)
        found = find_trailer(store, source, [key])
    except DucklingError as error:
        return unread(backup, error)
    if found is None:
        return f"{backup.key} is of format 1"
    footer = found[1].footer
    if (footer.database, footer.stamp) != (database.id, stamp_of(backup.created)):
        return f"{backup.key} is a copy of another backup"
    return (source, found[1]) if source.etag else f"the store tells no ETag of {backup.key}"


def _is_ours(source: StoredObject, trailer: Trailer, snapshot: Snapshot, backup: ListedBackup) -> bool:
    """Whether an object is of the snapshot's replica, as its footer says and its metadata don't deny."""
    mine, other = Origin.parse(snapshot.origin), Origin.parse(trailer.footer.origin)
    told = origin_of(source)
    return (
        mine is not None
        and other is not None
        and mine.owns(other, backup.created)
        and (told is None or told.replica == other.replica)
    )
