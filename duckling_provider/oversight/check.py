"""Would a backup and a restore work right now? Each step is tried for real and says what is missing.

And are the backups that are listed still as large as they were made?
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.inventory.choice import is_complete, list_backups, origin_fault
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.metadata import origin_of, size_fault
from duckling_provider.backup.inventory.names import ListedBackup, date_faults
from duckling_provider.backup.making.copy_refusals import remember_refusal
from duckling_provider.base.disk_space import require_space
from duckling_provider.base.errors import (
    DamagedError,
    DucklingError,
    FileSystemError,
    NotFoundError,
    ReplicaError,
    StateFileError,
    WrongHostError,
)
from duckling_provider.base.moments import readable
from duckling_provider.base.state_files import open_state
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.replica.duckdb_file import header_of, pending_wal, writer_of
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, NEW_SUFFIX
from duckling_provider.replica.locks import LOCK_SUFFIX, read_hold, state_path
from duckling_provider.replica.origin import ORIGIN_SUFFIX, Origin
from duckling_provider.replica.read_copy import readers_of, require_read_copy
from duckling_provider.stores.s3_probe import COPY_STEP
from duckling_provider.stores.store import BackupSource, Store, unheard

#: Objects that are asked for at the same time.
_AT_ONCE = 8


@dataclass(frozen=True)
class CheckStep:
    """`error` is None when the step went well; `detail` says what was found."""

    name: str
    detail: str = ""
    error: str | None = None


def check_database(
    database: Database, store: Store | None, *, begin: Callable[[str], object] = unheard
) -> Iterator[CheckStep]:
    """Look at the replica, the local backup folder and the store; yields each step as it is done.

    :param begin: called with the name of each step that asks the store, before it does.
    """
    try:
        database.require_host()
    except WrongHostError as error:
        yield CheckStep("host", error=str(error))
    else:
        if database.host is not None:
            yield CheckStep("host", f"this is {database.host}")
        yield _step("replica", lambda: _replica(database.replica))
        yield _step("hold", lambda: _hold(database.replica))
        yield _step("local backups", lambda: _folder(database))
        if database.read_copy is not None:
            yield _step("copy for readers", lambda: _read_copy(database))
        yield from _dates(LocalBackups(database))
    if store is None:
        yield CheckStep("store", "S3 is not configured for this database: local backups only")
        return
    answers = True
    for probe in store.probe(store.prefix, begin=begin):
        answers = not probe.last
        works = f"{probe.action} works" + (f"; {probe.note}" if probe.note else "")
        if probe.name == COPY_STEP and probe.error is None:
            remember_refusal(database, store, probe.note)
        yield CheckStep(f"store: {probe.name}", "" if probe.error else works, probe.error)
    if store.clock_fault:
        yield CheckStep("clock", error=store.clock_fault)
    if answers:
        begin("dates")
        yield from _dates(store)
        yield from _origins(database, store)


def _dates(source: BackupSource) -> Iterator[CheckStep]:
    """A step about backups whose date can't be true; where all is well, or they can't be listed, none."""
    # What makes a listing fail is told by the steps about the folder and the store.
    with contextlib.suppress(DucklingError, OSError):
        faults = date_faults(list_backups(source), now=datetime.now(timezone.utc), url=source.url)
        if faults:
            hint = "They are never latest. Delete them once they are of no use: duckling delete."
            yield CheckStep("dates", error=f"{'; '.join(faults)}. {hint}")


def _origins(database: Database, store: Store) -> Iterator[CheckStep]:
    """A step where the newest backups in the store are of several replicas, or of another one than is here."""
    # What makes a listing fail is told by the steps about the store.
    with contextlib.suppress(DucklingError, OSError):
        now = datetime.now(timezone.utc)
        whole = [b for b in list_backups(store) if is_complete(b, store.mode) and not b.misdated(now)]
        fault, _ = origin_fault(database, store, whole)
        if fault:
            yield CheckStep(
                "origin",
                error=f"{fault}. The right one is the machine whose replica the sync keeps up to date: see on which it "
                f"runs, or look into each: duckling restore {database.id} KEY --to FILE. Give the other machine a "
                "pathPrefix of its own.",
            )


def _step(name: str, look: Callable[[], str]) -> CheckStep:
    try:
        return CheckStep(name, look())
    except DucklingError as error:
        return CheckStep(name, error=str(error))
    except OSError as error:
        return CheckStep(name, error=f"{error.filename}: {error.strerror}")


def _replica(replica: Path) -> str:
    header = header_of(replica)
    found = f"{human_bytes(replica.stat().st_size)}, storage {header.storage_name}"
    if pending_wal(replica):
        found += ", with a write-ahead log"
    writer = writer_of(replica)
    return f"{found}, being written by {writer}" if writer else found


def _hold(replica: Path) -> str:
    # What stands in their place and is none of ours makes a backup or a restore fail.
    for suffix in (LOCK_SUFFIX, JOURNAL_SUFFIX, NEW_SUFFIX, ORIGIN_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.close(open_state(state_path(replica, suffix), os.O_RDONLY))
    if state_path(replica, JOURNAL_SUFFIX).exists():
        raise ReplicaError(
            "a restore was interrupted; until it is undone or completed, no program should open the replica",
            subject=str(replica),
            hint="The next backup or restore does it, and so does: duckling release, with the database's id.",
        )
    hold = read_hold(replica)
    if hold is None:
        return "none"
    return f"{'stale: ' if hold.is_stale else ''}held for {hold}"


def _read_copy(database: Database) -> str:
    if not database.replica.parent.is_dir():
        return "not tried: there is no folder for the replica yet"
    copy = require_read_copy(database)
    if copy is None:
        return f"can be made as {database.read_copy}; the next sync makes it"
    state = "equal to the replica" if copy.is_current(database) else "older than the replica: the next sync renews it"
    return f"of {readable(copy.made)} UTC, {state}; readable by its {readers_of(copy)}"


def _folder(database: Database) -> str:
    folder = database.backup_dir
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise FileSystemError("is no folder", errno=errno.ENOTDIR, subject=str(existing), hint="Move it away.")
    if not os.access(existing, os.W_OK):
        raise FileSystemError("not writable for this user", errno=errno.EACCES, subject=str(existing))
    needed = database.replica.stat().st_size if database.replica.exists() else 0
    for place, purpose in ((existing, "the next local backup"), (database.replica.parent, "a restore")):
        if place.exists():
            require_space(place, needed, subject=database.id, purpose=purpose)
    return f"{folder}, {human_bytes(shutil.disk_usage(existing).free)} free"


@dataclass(frozen=True)
class Look:
    """What one request tells of a stored backup: why it can't be whole (empty: nothing says so), its mode, the
    fingerprint of its key and the replica that it is of, None where its metadata say nothing.
    """

    fault: str = ""
    mode: str | None = None
    fingerprint: str | None = None
    origin: Origin | None = None


def looks(store: BackupSource, backups: Sequence[ListedBackup]) -> tuple[dict[str, Look], DucklingError | None]:
    """A look at each of the listed backups, by key.

    :returns: the looks; and why some could not be looked at, and are not among them; None when all could be.
    """

    def look(backup: ListedBackup) -> tuple[Look | None, DucklingError | None]:
        try:
            stored = store.head(backup.key)
        except NotFoundError:
            return Look(), None  # deleted since it was listed
        except (DamagedError, StateFileError) as error:
            return Look(error.cause), None
        except DucklingError as error:
            return None, error
        mode = stored.metadata.get("duckling-mode")
        object_format = stored.metadata.get("duckling-format", "1")
        fault = size_fault(stored, mode or store.mode, object_format=object_format)
        return Look(fault, mode, stored.metadata.get("duckling-key-fingerprint"), origin_of(stored)), None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(look, backups))
    by_key = {backup.key: look for backup, (look, _) in zip(backups, found, strict=True) if look is not None}
    return by_key, next((error for _, error in found if error is not None), None)
