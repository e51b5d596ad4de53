"""What is known of a stored backup: that it was verified, that a drill restored it, that it is not what it should be.

The evidence lies beside the backup, in ``<key>.state``, so that it outlives Airflow and the host. It is JSON::

    {"format": 1, "database": "shop", "backup": "backup-….db", "size": 214748364800, "etag": "…",
     "evidence": [{"state": "verified", "at": "2025-03-01T15:02:11.482Z", "means": "full", "host": "etl-1"}],
     "mac": "64 hexadecimal characters"}

Only the newest evidence of each state is kept (of ``verified`` by ``sent`` beside that by other means), and the newest
of all decides. `size` and `etag` bind it to the bytes
that were looked at. `mac` is `EncryptionKey.vouch` of the other fields, where the entry has a key: without it, a
stranger with write access to the bucket could make a damaged backup look sound. What is forged, damaged, of another
object or of a moment to come is passed over with a warning, never believed.

A pin is an object of its own, ``<key>.pin``. That it is there is all that counts, so a listing shows it, and whoever
forges one only keeps a backup.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from duckling_provider.backup.inventory.names import PIN_SUFFIX, SKEW, STATE_SUFFIX, ListedBackup
from duckling_provider.base.errors import (
    CancelledError,
    DamagedError,
    DucklingError,
    IntegrityError,
    StateFileError,
    WrongKeyError,
)
from duckling_provider.base.moments import iso
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.stores.store import BackupSource, StoredObject

#: ``uploaded`` is what is there without any evidence; ``tested``: a drill restored it.
State = Literal["uploaded", "verified", "tested", "disproved"]
#: Of what was read: ``full`` all of it, ``sent`` what was sent and a sample of what the store copied, ``taken`` the
#: local copy while it was made, ``drill`` all of it, and DuckDB read every table.
Means = Literal["full", "sent", "taken", "drill"]

_STATES: tuple[State, ...] = get_args(State)
#: A state file has four pieces of evidence; more than this is none of ours.
_LIMIT = 64 * 1024
_AT_ONCE = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """`state` was seen at the aware moment `at`, by `means`, on `host`; `reason` says why it was disproved."""

    state: State
    at: datetime
    means: str
    host: str
    reason: str = ""

    def as_json(self) -> dict[str, str]:
        facts = {"state": self.state, "at": iso(self.at), "means": self.means, "host": self.host}
        return facts | ({"reason": self.reason} if self.reason else {})

    @classmethod
    def parse(cls, data: Any) -> Evidence:
        """:raises ValueError, KeyError, TypeError: it is none."""
        texts = [data[name] for name in ("state", "at", "means", "host")]
        reason = data.get("reason", "")
        if not all(isinstance(text, str) for text in (*texts, reason)) or texts[0] not in _STATES:
            raise ValueError("evidence of another kind")
        at = datetime.fromisoformat(texts[1].replace("Z", "+00:00"))
        if at.tzinfo is None:
            raise ValueError("a time without its offset from UTC")
        return cls(texts[0], at, texts[2], texts[3], reason)


@dataclass(frozen=True)
class BackupState:
    """The evidence about one backup, at most one piece of each state."""

    evidence: tuple[Evidence, ...] = ()
    #: What it is without any.
    presumed: State = "uploaded"

    @property
    def decisive(self) -> Evidence | None:
        """The evidence that decides, None where there is none. The newest does; but a test outranks the verifications
        after it, which prove less.
        """
        newest: dict[State, Evidence] = {}
        for piece in sorted(self.evidence, key=lambda piece: piece.at):
            newest[piece.state] = piece
        disproof = newest.get("disproved")
        for state in ("tested", "verified"):
            found = newest.get(state)
            if found is not None and (disproof is None or found.at > disproof.at):
                return found
        return disproof

    @property
    def name(self) -> State:
        return self.presumed if self.decisive is None else self.decisive.state

    @property
    def since(self) -> datetime | None:
        """The moment of the evidence that decides."""
        return None if self.decisive is None else self.decisive.at

    @property
    def is_proven(self) -> bool:
        return self.name in ("verified", "tested")

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read and found good, and nothing bad was found since."""
        disproof = self.last("disproved")
        if self.whole_at is None:
            return self.presumed == "verified" and disproof is None
        return disproof is None or self.whole_at > disproof

    @property
    def whole_at(self) -> datetime | None:
        """When all of it was last read and found good."""
        good = (piece for piece in self.evidence if piece.state in ("verified", "tested") and piece.means != "sent")
        return max((piece.at for piece in good), default=None)

    def last(self, state: State) -> datetime | None:
        """When it was last seen in that state."""
        return max((piece.at for piece in self.evidence if piece.state == state), default=None)

    def with_(self, new: Evidence) -> BackupState:
        """With `new` in place of the older evidence of the same state."""

        def of_its_kind(piece: Evidence) -> bool:
            # What proves less does not take the place of what proves all.
            return (piece.state, piece.means == "sent") == (new.state, new.means == "sent")

        if any(of_its_kind(piece) and piece.at > new.at for piece in self.evidence):
            return self
        return replace(self, evidence=(*(piece for piece in self.evidence if not of_its_kind(piece)), new))


def read_state(database: Database, source: BackupSource, backup: ListedBackup, *, strict: bool = False) -> BackupState:
    """What is known of a listed backup. One request where its state file was listed, none elsewhere.

    :param strict: nothing is known where the store refuses or fails, which is not the same as no evidence: then raise,
        for a deletion. Otherwise a warning must do, since a note must not stand between a backup and its restore.
    :raises StoreError: the store refuses or fails, and `strict`.
    """
    nothing = BackupState(presumed=source.presumed)
    if not backup.has_state:
        return nothing
    key = backup.key + STATE_SUFFIX
    try:
        data = source.read_small(key, _LIMIT)
    except StateFileError as error:
        # What stands in a local file's place must not hide the backup.
        log.warning("%s is not believed: %s", error.subject, error.cause)
        return nothing
    except CancelledError:
        raise
    except DucklingError as error:
        if strict:
            raise
        log.warning("%s%s can't be read, so nothing is known of that backup: %s", source.url, key, error.cause)
        return nothing
    if data is None:
        return nothing  # deleted since it was listed
    try:
        found = _parse(database, backup, data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"the field {error} is missing" if isinstance(error, KeyError) else error
        log.warning("%s%s is not believed: %s", source.url, key, cause)
        return nothing
    return replace(nothing, evidence=found)


def read_states(database: Database, source: BackupSource, backups: Sequence[ListedBackup]) -> dict[str, BackupState]:
    """`read_state` of each, by key."""
    if not any(backup.has_state for backup in backups):
        return {backup.key: BackupState(presumed=source.presumed) for backup in backups}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda backup: read_state(database, source, backup), backups)
        return {backup.key: state for backup, state in zip(backups, found, strict=True)}


def record_state(
    database: Database,
    source: BackupSource,
    stored: StoredObject,
    state: State,
    *,
    means: str,
    reason: str = "",
    at: datetime | None = None,
) -> BackupState | None:
    """Add evidence about an object to what is known of it.

    Raises nothing but a cancellation: a backup is as good as it is, whether its store takes a note of that or not.

    :param stored: the object as it was when it was looked at.
    :param at: aware; now, when omitted.
    :returns: what is known now; None where the store keeps no note, with a warning in the log.
    """
    key = stored.key + STATE_SUFFIX
    name = stored.key[len(source.prefix) :]
    new = Evidence(state, at or datetime.now(timezone.utc), means, database.here, reason)
    listed = ListedBackup(stored.key, new.at, stored.size, etag=stored.etag, has_state=True)
    try:
        known = read_state(database, source, listed).with_(new)
        facts: dict[str, Any] = {
            "format": 1,
            "database": database.id,
            "backup": name,
            "size": stored.size,
            "etag": stored.etag.strip('"'),
            "evidence": [piece.as_json() for piece in known.evidence],
        }
        keys = _keys(database)
        if keys:
            facts["mac"] = keys[0].vouch(_signed(facts))
        source.write_small(key, json.dumps(facts, indent=1).encode())
    except CancelledError:
        raise
    except (DucklingError, OSError) as error:
        log.warning("%s%s: that it is %s could not be noted beside it: %s", source.url, stored.key, state, error)
        return None
    return known


def pin(database: Database, source: BackupSource, key: str, *, by: str) -> None:
    """Keep a backup whatever its age. `key` is a full key; `by` says who pinned it.

    :raises NotFoundError: there is no such backup.
    :raises StoreError: the store refuses or fails.
    """
    source.head(key)
    facts = {"format": 1, "at": iso(datetime.now(timezone.utc)), "by": by, "host": database.here}
    source.write_small(key + PIN_SUFFIX, json.dumps(facts, indent=1).encode())


def unpin(source: BackupSource, key: str) -> None:
    """Let the retention decide about a backup again; one that is not pinned stays as it is."""
    source.head(key)
    source.delete(key + PIN_SUFFIX)


def _keys(database: Database) -> Sequence[EncryptionKey]:
    return database.s3.reading_keys if database.s3 is not None else ()


def _signed(facts: dict[str, Any]) -> bytes:
    """The bytes that `mac` vouches for: all other fields, as JSON without blanks, names sorted, ASCII."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def _parse(database: Database, backup: ListedBackup, data: bytes) -> tuple[Evidence, ...]:
    """:raises ValueError, KeyError, TypeError: it must not be believed."""
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise TypeError("it is no JSON object")
    mac = facts.pop("mac", None)
    keys = _keys(database)
    if keys and not any(key.vouches(mac, _signed(facts)) for key in keys):
        raise ValueError("no key of this entry vouches for it" if mac else "it has no mac, and this entry has a key")
    if facts["format"] != 1:
        raise ValueError(f"its format is {facts['format']!r}; a newer version wrote it")
    if (facts["database"], facts["backup"]) != (database.id, backup.name):
        raise ValueError("it is of another backup")
    if facts["size"] != backup.size or (backup.etag and facts["etag"] and facts["etag"] != backup.etag.strip('"')):
        raise ValueError("the object was replaced since")
    evidence = tuple(Evidence.parse(piece) for piece in facts["evidence"])
    limit = datetime.now(timezone.utc) + SKEW
    if late := [piece for piece in evidence if piece.at > limit]:
        raise ValueError(f"it is of {iso(late[0].at)}, which is in the future")
    return evidence


def note_damage(database: Database, source: BackupSource, key: str, error: IntegrityError | DamagedError) -> None:
    """Record that a backup is disproved, by `error`. Raises nothing but a cancellation.

    That a key does not fit disproves nothing: with the right one, the backup may be good.
    """
    if isinstance(error, WrongKeyError):
        return
    try:
        stored = source.head(key)
    except CancelledError:
        raise
    except (DucklingError, OSError):
        return  # where the store can't tell what is there, there is nothing to bind a note to
    record_state(database, source, stored, "disproved", means="full", reason=error.cause)
