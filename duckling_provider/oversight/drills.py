"""Drills: a backup is restored as on a machine that has nothing else, read to its end, and thrown away.

It comes whole from the store, is verified on the way as by any restore, and lies in a scratch file that no other
program sees. DuckDB, in a process of its own, reads every table; the rows are compared with those that were counted
when the backup was made, the entry's ``drillQueries`` must each yield true, and MySQL is asked whether the replica
could catch up from there. What is found is recorded beside the backup (`states`): it is ``tested``, or disproved
where a second try from the beginning failed as well. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from duckling_provider.backup.inventory.backup_object import StoredBackup, identify_backup
from duckling_provider.backup.inventory.choice import resolve
from duckling_provider.backup.inventory.names import LATEST, RULES
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.backup.reading.verified_read import read_verified
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors, require_space
from duckling_provider.base.durable_files import make_folder, partial_file
from duckling_provider.base.errors import CancelledError, DamagedError, DucklingError, IntegrityError, WrongKeyError
from duckling_provider.base.moments import iso
from duckling_provider.base.units import human_bytes, human_seconds
from duckling_provider.config.databases import Database
from duckling_provider.formats.pipeline import DurableWriter
from duckling_provider.oversight.drill_reading import Reading
from duckling_provider.oversight.record import Transfer, note
from duckling_provider.replica.child_process import raise_for, run_duckdb
from duckling_provider.replica.downloads import SCRATCH_PREFIX, clear_scratch
from duckling_provider.replica.duckdb_file import header_of
from duckling_provider.replica.reading import Rows, differences, rows_digest
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.source import Source, connect, translated
from duckling_provider.stores.store import BackupSource, StoredObject

#: Seconds that each of the entry's queries may take.
QUERY_SECONDS = 300.0
_READING = "duckling_provider.oversight.drill_reading"
#: What may be the backup's own fault.
_DAMAGE = (IntegrityError, DamagedError)

CatchUp: TypeAlias = Literal["yes", "no", "unknown"]

log = logging.getLogger(__name__)


class DrillError(DucklingError):
    """A drill went wrong by no proven fault of the backup."""


@dataclass(frozen=True)
class DrillResult:
    """A backup that a drill restored. Sizes in bytes.

    :param restore_ms: from the first byte asked of the store until DuckDB had the file open: what a restore takes.
    :param read_ms: what reading every table took.
    :param duration_ms: of all of it.
    :param tables, rows: that were read to the end.
    :param compared: whether the rows were those that were counted when it was made; False where it does not say.
    :param queries: of the entry, which all yielded true.
    :param catch_up: whether MySQL's binlog still has all that came after it; `catch_up_note` says why not, or why that
        is unknown.
    :param notes: what a person should know.
    :param tested: when it was done, aware.
    """

    key: str
    mode: str
    size: int
    restore_ms: int
    read_ms: int
    duration_ms: int
    tables: int
    rows: int
    compared: bool
    queries: int
    catch_up: CatchUp
    catch_up_note: str
    notes: tuple[str, ...]
    tested: datetime
    key_fingerprint: str | None = None

    @property
    def sentence(self) -> str:
        """What was proven, for people."""
        tables = f"{self.tables} table{'s' * (self.tables != 1)}"
        compared = "as many as when it was made" if self.compared else "and it does not say how many there should be"
        asked = f"; {self.queries} quer{'y' if self.queries == 1 else 'ies'} yielded true" if self.queries else ""
        return (
            f"{self.key}: restored on trial in {human_seconds(self.restore_ms / 1000)}, {human_bytes(self.size)}; "
            f"{tables} read whole in {human_seconds(self.read_ms / 1000)}, {self.rows:,} rows, {compared}"
            f"{asked}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it should be."""
        return (*self.notes, self.catch_up_note) if self.catch_up == "no" else self.notes

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "size": self.size,
            "duration": self.duration_ms,
            "encryption": self.mode,
            "keyFingerprint": self.key_fingerprint,
            "state": "tested",
            "stateAt": iso(self.tested),
            "restoreDuration": self.restore_ms,
            "readDuration": self.read_ms,
            "tables": self.tables,
            "rows": self.rows,
            "rowsCompared": self.compared,
            "queries": self.queries,
            "catchUp": self.catch_up,
            "catchUpNote": self.catch_up_note,
            "warnings": list(self.warnings),
        }


def drill(database: Database, store: BackupSource, key: str = LATEST, *, control: Control | None = None) -> DrillResult:
    """Restore a backup on trial.

    Disk: the backup's size in `Database.drill_path`, until it is done or fails. Memory: as a restore, and DuckDB's
    1 GiB at the most in a process of its own.

    :param key: a key, a bare file name, ``latest`` (the newest complete one, verified or not) or ``latest-tested``.
    :raises IntegrityError, DamagedError: the backup can't be restored; it is recorded as disproved.
    :raises NoSpaceError: it is too large for the disk, and nothing was tested.
    :raises DrillError: a query did not yield true, or the drill could not read the file.
    :raises NotFoundError, ModeError, WrongKeyError, StoreError: as a restore.
    """
    control = control or Control()
    done = _drilled(database, store.under(control), key, control)
    transfer = Transfer(done.tested, done.size, done.restore_ms / 1000, "drill")
    note(
        database,
        lambda record: record.went_well("drill", "verify").transferred(transfer),
        lambda record: record.proven(done.key, done.size, at=done.tested, seconds=transfer.seconds, tested=True),
    )
    return done


def _drilled(database: Database, store: BackupSource, key: str, control: Control) -> DrillResult:
    started = time.monotonic()
    with _step("choose"):
        found = resolve(database, store, key, any_origin=True, proven=False)
    with _Trial(database, store, found, key not in RULES, control) as trial:
        try:
            backup, reading, restore_ms = trial.restored()
        except _DAMAGE as first:
            if isinstance(first, WrongKeyError):
                raise
            log.warning("once more from the beginning, since line, memory or disk may be at fault: %s", first)
            try:
                backup, reading, restore_ms = trial.restored()
            except _DAMAGE as second:
                trial.disprove(second)
                raise
            trial.notes.append(f"a first try failed, and a second did not: {first.what}")
        compared = backup.rows is not None or trial.recorded is not None
    with _step("queries"):
        _require_true(database, reading)
    catch_up, why = _catch_up(database, reading.position)
    seen = StoredObject(backup.key, backup.object_size, backup.etag)
    now = datetime.now(timezone.utc)
    # A drill is a whole verification too.
    record_state(database, store, seen, "verified", means="full", at=now)
    if record_state(database, store, seen, "tested", means="drill", at=now) is None:
        trial.notes.append("the store took no note of it")
    return DrillResult(
        key=backup.key,
        mode=backup.mode,
        size=backup.size,
        restore_ms=restore_ms,
        read_ms=reading.read_ms,
        duration_ms=int((time.monotonic() - started) * 1000),
        tables=len(reading.rows),
        rows=sum(count for _, _, count in reading.rows),
        compared=compared,
        queries=len(database.drill_queries),
        catch_up=catch_up,
        catch_up_note=why,
        notes=tuple(trial.notes),
        tested=now,
        key_fingerprint=backup.key_fingerprint,
    )


class _Trial:
    """One backup, and the scratch file that it is restored into, which is gone after the block."""

    def __init__(self, database: Database, store: BackupSource, key: str, chosen: bool, control: Control) -> None:  # noqa: FBT001
        self._database, self._store, self._key, self._chosen, self._control = database, store, key, chosen, control
        self._stack = contextlib.ExitStack()
        self.notes: list[str] = []
        #: What was counted when the backup was made, where this host knows it.
        self.recorded: Rows | None = None

    def __enter__(self) -> _Trial:
        folder = self._database.drill_path
        with _step("scratch"), disk_errors(folder, subject=self._database.id):
            make_folder(folder)
            clear_scratch(folder)
            self._path = folder / f"{SCRATCH_PREFIX}{secrets.token_hex(8)}.db"
            self._fd = self._stack.enter_context(partial_file(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def restored(self) -> tuple[StoredBackup, Reading, int]:
        """The backup, what DuckDB read in it, and in how many ms it was there."""
        folder = self._path.parent
        with _step("download"), disk_errors(folder, subject=self._database.id):
            began = time.monotonic()
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            backup = identify_backup(self._database, self._store, self._key, chosen=self._chosen)
            require_space(folder, backup.size, subject=self._database.id, purpose="a drill")
            with DurableWriter(self._fd) as writer:
                read_verified(backup, self._store, sink=writer.write, control=self._control)
            received = time.monotonic()
        with _step("read"):
            reading = self._read()
        with _step("rows"):
            self._compare(backup, reading.rows)
        return backup, reading, int((received - began) * 1000) + reading.open_ms

    def _read(self) -> Reading:
        if header_of(self._path).encrypted:
            raise DrillError(
                "DuckDB encrypted the file, and only the owner of that key can open it",
                subject=self._store.url + self._key,
                hint="It arrived as it was stored; whether it can be read, a drill can't tell.",
            )
        self._control.begin("read", 0)
        job = {"queries": list(self._database.drill_queries), "seconds": QUERY_SECONDS}
        answer = run_duckdb("read", self._path, self._control, module=_READING, job=job)
        raise_for(replace(answer, message=answer.message.replace(str(self._path), self._key)), self._path, "read")
        return Reading.of_json(answer.result)

    def _compare(self, backup: StoredBackup, found: Rows) -> None:
        """:raises IntegrityError: these are not the rows that were counted when the backup was made."""
        with contextlib.suppress(DucklingError, OSError):
            if self._database.is_here:
                self.recorded = find_snapshot(self._database, self._key.rpartition("/")[2]).rows
        if self.recorded is not None and self.recorded != found:
            told = "; ".join(differences(found, self.recorded)[:10])
        elif self.recorded is None and backup.rows not in (None, rows_digest(found, backup.encryption_key)):
            told = f"{len(found)} tables with {sum(count for _, _, count in found):,} rows, and others were recorded"
        else:
            return
        raise IntegrityError(
            f"its tables have not the rows that were counted when it was made: {told}",
            subject=self._store.url + backup.key,
            hint="Use another backup; and look into what damages files here, disk or memory.",
        )

    def disprove(self, error: DucklingError) -> None:
        """Note that it can't be restored, beside the object as it is now."""
        stored = None
        with contextlib.suppress(DucklingError, OSError):
            stored = self._store.head(self._key)
        if stored is not None:
            record_state(self._database, self._store, stored, "disproved", means="drill", reason=error.cause)
            note(self._database, lambda record: record.without(self._key))


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Errors of the block say in which step of the drill they came."""
    try:
        yield
    except CancelledError:
        raise
    except DucklingError as error:
        error.operation = f"drill, step {name}"
        raise


def _require_true(database: Database, reading: Reading) -> None:
    """:raises DrillError: a query did not yield true."""
    for number, (query, fault) in enumerate(zip(database.drill_queries, reading.faults, strict=True), start=1):
        if fault:
            raise DrillError(
                f"drillQueries {number} is not passed: {fault}",
                subject=database.id,
                hint=f"It is: {query}. The backup was restored and read whole, so it is its content or the query that "
                "is not as expected.",
            )


def _catch_up(database: Database, position: Position | None) -> tuple[CatchUp, str]:
    """Whether a sync could go on from `position`, and why not or why that is unknown."""
    address = database.mysql_connection_string
    if not address.get_secret_value():
        return "unknown", "the entry names no MySQL server"
    if position is None:
        return "unknown", "the backup holds no position of MySQL's binlog"
    try:
        source = Source.parse(address, subject=database.id)
        with contextlib.closing(connect(source)) as connection, translated(source, "ask for the binlog"):
            there = is_available(connection, position)
    except DucklingError as error:
        return "unknown", error.what
    if there:
        return "yes", ""
    return "no", f"MySQL no longer has the binlog after {position}: a sync would need a full copy"
