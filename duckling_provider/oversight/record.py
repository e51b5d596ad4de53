"""What this host found out about a database, kept beside its local backups: `promises` and the watch read it, and ask
neither a store nor Airflow.

``BACKUP_PATH/<id>/record.json``, mode 0600, is a `Record` as JSON. Backups, verifications, drills, restores, clean-ups
and syncs change it, under a lock. Losing it loses no knowledge that matters: `renewed_from` reads it from the store.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from duckling_provider.backup.inventory.names import date_faults, find_name, parse_name
from duckling_provider.base.durable_files import clear_torn, make_folder, write_durably
from duckling_provider.base.errors import CancelledError, DucklingError, ErrorRecord, RequestError, WrongHostError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.state_files import read_state

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.stores.store import BackupSource

RECORD = "record.json"
_LOCK = ".record.lock"
#: Of the newest backups that are known to be good, and of the last transfers.
_MOST_BACKUPS, _MOST_TRANSFERS = 10, 10
#: A transfer of less than this share of a backup says little about how long that one takes.
_TELLING = 0.1

Work = Literal["backup", "verify", "drill", "cleanup", "sync"]
"""What can fail; ``backup`` is snapshot and upload."""

#: Kinds of errors after which a backup can't be restored as things are.
DISPROVING = frozenset({"IntegrityError", "WrongKeyError", "DamagedError", "NotFoundError", "ModeError"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownBackup:
    """A backup that was proven good: `size` of the ``.db`` file in bytes, `at` the moment of its last proof, `tested`
    that of the last drill that restored it, which took so many `seconds`.
    """

    key: str
    created: AwareDatetime
    size: int
    at: AwareDatetime
    tested: AwareDatetime | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class Failure:
    """Why something failed last, and since when it has failed each time."""

    since: AwareDatetime
    at: AwareDatetime
    kind: str
    what: str
    hint: str | None = None


@dataclass(frozen=True)
class Transfer:
    """So many bytes of a backup were read and proven, or restored, in so many seconds."""

    at: AwareDatetime
    size: int
    seconds: float
    means: Literal["restore", "drill", "verify"]


@dataclass(frozen=True)
class SyncSeen:
    """The last sync that ended well: `lag` in seconds at the time `at`; see `replica.freshness` for the others."""

    at: AwareDatetime
    lag: float
    validated: AwareDatetime | None = None
    differences: int = 0
    differed: AwareDatetime | None = None


@dataclass(frozen=True)
class Reach:
    """Whether MySQL's binlog had all that follows the position of a backup, when it was asked `at`."""

    name: str
    reaches: bool
    at: AwareDatetime


@dataclass(frozen=True)
class Record:
    """All that is recorded of one database.

    :param backups: the newest that are known to be good, newest first.
    :param failures: what has failed since it last went well.
    :param notes: what the last clean-up found odd about dates and clock.
    :param asked: when the store was last asked what it has.
    """

    backups: tuple[KnownBackup, ...] = ()
    failures: Mapping[Work, Failure] = field(default_factory=dict)
    transfers: tuple[Transfer, ...] = ()
    notes: tuple[str, ...] = ()
    sync: SyncSeen | None = None
    reach: Reach | None = None
    asked: AwareDatetime | None = None

    @property
    def newest(self) -> KnownBackup | None:
        return self.backups[0] if self.backups else None

    @property
    def tested(self) -> KnownBackup | None:
        """The one that a drill restored last."""
        return max((b for b in self.backups if b.tested), key=lambda b: b.tested or b.at, default=None)

    def proven(
        self, key: str, size: int, *, at: datetime, seconds: float | None = None, tested: bool = False
    ) -> Record:
        """With a backup that was found good; of an object whose name is no backup's, as it was.

        :param seconds: that the drill took, which `tested` says that it was.
        """
        created = parse_name(key.rpartition("/")[2])
        if created is None:
            return self
        known = next((b for b in self.backups if b.key == key), None) or KnownBackup(key, created, size, at)
        known = replace(known, size=size, at=max(at, known.at))
        if tested:
            known = replace(known, tested=at, seconds=seconds)
        others = [b for b in self.backups if b.key != key]
        return replace(self, backups=_newest((known, *others)))

    def without(self, key: str) -> Record:
        """After a backup was deleted, or found damaged."""
        return replace(self, backups=tuple(b for b in self.backups if b.key != key))

    def verified(self, key: str, size: int, *, seconds: float | None, at: datetime) -> Record:
        """With a backup that was found good.

        :param seconds: that it took to read all of it; None where it was only asked for.
        """
        proven = self.proven(key, size, at=at)
        return proven if seconds is None else proven.transferred(Transfer(at, size, seconds, "verify"))

    def cleaned(self, notes: Sequence[str]) -> Record:
        """After a clean-up that found this odd about dates and clock."""
        return replace(self.went_well("cleanup"), notes=tuple(notes))

    def synced(self, sync: SyncSeen) -> Record:
        return replace(self.went_well("sync"), sync=sync)

    def transferred(self, transfer: Transfer) -> Record:
        return replace(self, transfers=(*self.transfers, transfer)[-_MOST_TRANSFERS:])

    def failed(self, work: Work, error: ErrorRecord, *, at: datetime) -> Record:
        since = self.failures[work].since if work in self.failures else at
        failure = Failure(since, at, error["kind"], error["what"], error["hint"])
        # The error names the backup that it is about.
        bad = find_name(error["what"]) if work in ("verify", "drill") and error["kind"] in DISPROVING else None
        backups = tuple(b for b in self.backups if b.name != bad)
        return replace(self, backups=backups, failures={**self.failures, work: failure})

    def went_well(self, *works: Work) -> Record:
        return replace(self, failures={work: failure for work, failure in self.failures.items() if work not in works})


Change: TypeAlias = Callable[[Record], Record]


def _newest(backups: Sequence[KnownBackup]) -> tuple[KnownBackup, ...]:
    """The newest, and the one that was tested last whatever its age."""
    ordered = sorted(backups, key=lambda b: b.created, reverse=True)
    kept = ordered[:_MOST_BACKUPS]
    tested = max((b for b in ordered if b.tested), key=lambda b: b.tested or b.at, default=None)
    return tuple(kept if tested is None or tested in kept else [*kept, tested])


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def read_record(database: Database) -> Record:
    """What is recorded on this host; nothing where there is no record, or none that can be believed: then with a
    warning.
    """
    return _read(database.backup_path / RECORD)


def _read(path: Path) -> Record:
    try:
        return _adapter().validate_json(read_state(path))
    except FileNotFoundError:
        return Record()
    except (DucklingError, OSError, ValidationError) as error:
        cause = "it is damaged" if isinstance(error, ValidationError) else error
        log.warning("%s is not believed: %s", path, cause)
        return Record()


def note(database: Database, *changes: Change) -> None:
    """Change the record of a database.

    Raises nothing but a cancellation: what was done is done, whether it is noted or not.
    """
    folder = database.backup_path
    try:
        make_folder(folder)
        with FileLock(folder / _LOCK, operation="record", wait=10):
            for odd in clear_torn(folder, RECORD):  # killed while it noted something
                log.warning("%s", odd)
            record = _read(folder / RECORD)
            for change in changes:
                record = change(record)
            write_durably(folder / RECORD, _adapter().dump_json(record, indent=1))
    except CancelledError:
        raise
    except (DucklingError, OSError) as error:
        log.warning("%s: what was done could not be recorded: %s", folder / RECORD, error)


@contextlib.contextmanager
def noted(database: Database, *works: Work) -> Iterator[list[Change]]:
    """Note whether the block went well. The first of `works` is what fails with it; all went well when it ends.

    :param works: none of them: nothing is noted, of a block that is not about the entry as it is.
    :returns: a list for more changes, made when it ends well.
    """
    changes: list[Change] = []
    try:
        yield changes
    except (CancelledError, RequestError, WrongHostError):
        raise  # of what was asked, and no trouble of the database
    except DucklingError as error:
        failure = error.as_record()
        if not works:
            raise
        note(database, lambda record: record.failed(works[0], failure, at=datetime.now(timezone.utc)))
        raise
    if works:
        note(database, lambda record: record.went_well(*works), *changes)


def transfers_of(database: Database) -> tuple[Transfer, ...]:
    """The last transfers of a database's backups on this host; where there were none, those of all databases."""
    own = read_record(database).transfers
    if own:
        return own
    found: list[Transfer] = []
    with contextlib.suppress(OSError):
        for path in database.backup_path.parent.glob(f"*/{RECORD}"):
            found += _read(path).transfers
    return tuple(sorted(found, key=lambda transfer: transfer.at)[-_MOST_TRANSFERS:])


def estimated_seconds(size: int, transfers: Sequence[Transfer]) -> float | None:
    """How long it takes to restore a backup of so many bytes, by the throughput that there was; None where there was
    none.

    What restores had counts before what verifications had, and large transfers before small ones.
    """
    telling = [t for t in transfers if t.size >= size * _TELLING] or list(transfers)
    restores = [t for t in telling if t.means != "verify"]
    rates = [t.size / t.seconds for t in restores or telling if t.seconds > 0 and t.size > 0]
    return size / statistics.median(rates) if rates else None


def expected_seconds(database: Database, key: str) -> float | None:
    """How long a restore of a backup is likely to take; None where this host knows too little of it.

    :param key: or the rule by which it is chosen, which is taken for the newest.
    """
    record = read_record(database)
    known = next((b for b in record.backups if key in (b.key, b.name)), None)
    if known is None and parse_name(key.rpartition("/")[2]) is None:
        known = record.newest
    return None if known is None else estimated_seconds(known.size, transfers_of(database))


def renewed_from(database: Database, source: BackupSource, *, now: datetime) -> Change:
    """Ask a store what it has; the change that this makes to a record. A listing, and a request for each of the newest
    backups.

    :raises DucklingError: the store refuses or fails.
    """
    # Here: this module is loaded whenever Airflow parses DAG files, and these load ciphers.
    from duckling_provider.backup.inventory.choice import is_complete, list_backups
    from duckling_provider.backup.inventory.states import read_states

    listed = list_backups(source)
    good = [b for b in listed if is_complete(b, source.mode) and not b.misdated(now)]
    # The newest, and those that a drill may have looked at: it looks at the newest of its day.
    looked_at = good[: 3 * _MOST_BACKUPS]
    states = read_states(database, source, looked_at)
    unseen = {b.key for b in good} - {b.key for b in looked_at}
    found = []
    for backup in good:
        state = states.get(backup.key)
        if state is None:
            break
        at = max((piece.at for piece in state.evidence if piece.state != "disproved"), default=None)
        # With `s3.verify: head` nothing is ever recorded, and the user decided that this is enough.
        unproven = state.name == "uploaded" and not database.verifies_bytes
        if state.is_proven or unproven:
            at = at or backup.modified or backup.created
            found.append(KnownBackup(backup.key, backup.created, backup.size, at, state.last("tested")))
    faults = tuple(date_faults(listed, now=now, url=source.url))

    def change(record: Record) -> Record:
        seconds = {b.key: b.seconds for b in record.backups}
        backups = [replace(b, seconds=seconds.get(b.key)) for b in found]
        # Of hourly backups, what the last drill restored is older than all that were looked at.
        backups += [b for b in record.backups if b.tested and b.key in unseen]
        return replace(record, backups=_newest(backups), asked=now, notes=faults or record.notes)

    return change
