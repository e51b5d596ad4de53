"""One run of a sync: make the replica if there is none, bring it up to date, yield to backups, restores and readers.

While a process has a DuckDB file open for writing, no other can read or write it. So changes are gathered from the
binlog while the file is closed, and the replica's lock and the file are taken for one stretch of writing only. In it,
between two batches, a sync looks whether a process waits for the lock (`locks.is_wanted`); a hold, from a restore's
"pause" to its "resume", is found by the next attempt to take the lock. Either ends the run at the position that it
has reached, and the next run goes on from there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import BusyError, ConfigError, ReplicaError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.duckdb_file import open_error, wal_files
from duckling_provider.replica.exchange import replace_replica
from duckling_provider.replica.locks import is_wanted, state_path
from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.foreign_keys import Reference, read_references
from duckling_provider.replication.binlog.stream import BinlogStream, PositionLostError, StreamEvent
from duckling_provider.replication.copy.table_copy import Copy, copy_tables
from duckling_provider.replication.model.ledger import Ledger, TableState, adopt, owner_of
from duckling_provider.replication.model.names import literal, quote, twin
from duckling_provider.replication.model.tables import Commit, Position, SchemaChange, Table
from duckling_provider.replication.model.types import report
from duckling_provider.replication.mysql.preflight import preflight
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import Source, connect, current_position, is_available, query, server_of
from duckling_provider.replication.validate.report import ValidationReport
from duckling_provider.replication.validate.validation import validate

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from duckling_provider.config.databases import Database

#: A full copy in the making, beside the replica; a run that is stopped leaves it for the next one.
COPY_SUFFIX = ".duckling-copy"
#: New copies of single tables, on their way into the replica.
TABLES_SUFFIX = ".duckling-tables"
COPY_LOCK_SUFFIX = ".duckling-copy-lock"

#: Changes and seconds that are gathered before the file is opened.
_GATHERED_CHANGES, _GATHERED_SECONDS = 10_000, 1.0
#: Seconds after which the file is closed for a moment although more is at hand: others want to read it.
_STRETCH_SECONDS = 10.0
#: Events of one transaction between two looks at who waits.
_LOOK_EVERY = 2000
#: Seconds between two notes of the position while only other databases change.
_IDLE_SAVE_SECONDS = 60.0
#: Seconds between two tries to open a file that another process reads.
_POLL = 0.2
#: DuckDB's, for applying changes.
_MEMORY = "1GiB"

log = logging.getLogger(__name__)

Outcome = Literal["caught up", "out of time", "made way"]


@dataclass
class Synced:
    """What a run has done.

    :param outcome: "made way" when it ended before its time, for the `reason`.
    :param copied: tables that were copied, by name; all of them in a full copy.
    :param changes: row changes that were applied.
    :param timestamp: of the last applied transaction on the server, seconds since 1970.
    :param lag: seconds between that and the end of the run; 0.0 when nothing was left to apply.
    :param recopy: tables that can't be followed and wait for a new copy, with the reason.
    :param notes: what could not be mirrored exactly, told by the runs that copy.
    """

    outcome: Outcome = "caught up"
    reason: str = ""
    copied: tuple[str, ...] = ()
    changes: int = 0
    batches: int = 0
    position: Position | None = None
    timestamp: float = 0.0
    lag: float = 0.0
    recopy: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _MakeWayError(Exception):
    """It is another process's turn."""


class _MovedError(Exception):
    """The replica is not the one that the stream belongs to."""


def sync(
    database: Database,
    *,
    control: Control | None = None,
    owner: str = "",
    seconds: float | None = None,
    wait: float = 5.0,
) -> Synced:
    """Bring the replica of `database` up to date; the first time, make it.

    :param owner: the run it belongs to, for those who wait.
    :param seconds: follow the binlog for so long; None ends at where the server stands at the beginning.
    :param wait: seconds to wait for a process that uses the replica, before yielding.
    :raises ConfigError: the entry names no MySQL server.
    :raises SourceError: the server can't be reached or lacks what replication needs.
    :raises PositionLostError: the server has purged what comes next, and ``onPositionLost`` is ``"fail"``.
    :raises ReplicaError: the file at ``duckdbPath`` is not ours.
    """
    control = control or Control()
    run = _Run(database, control, owner, wait)
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        run.prepare()
        # First what the binlog has: it may hold the very tables that would seem to be missing.
        run.follow(None)
        if run.renew_tables() and deadline is None:
            run.follow(None)
        if run.done.copied:
            run.note_losses()
        if deadline is not None:
            run.follow(deadline)
    except _MakeWayError as way:
        run.done.outcome, run.done.reason = "made way", str(way)
    except BusyError as error:
        run.done.outcome, run.done.reason = "made way", str(error)
    run.done.position = run.position
    if run.done.outcome != "caught up" and run.done.timestamp:
        run.done.lag = max(0.0, time.time() - run.done.timestamp)
    return run.done


def adopt_replica(
    database: Database, *, owner: str = "duckling adopt", wait: float = 60.0, control: Control | None = None
) -> list[TableState]:
    """Take over the replica that the Node server has made, with its position.

    :returns: all tables; those in state ``"recopy"`` differ from MySQL's and are copied by the next sync.
    :raises ReplicaError: the file is not the Node server's.
    """
    source = _source_of(database)
    preflight(source, wanted=database.mirrors)
    with contextlib.closing(connect(source)) as connection:
        tables = _mirrored(database, read_tables(connection, source.database))
        server = server_of(connection).identity
    with replica_access(database.replica, operation="adopt", owner=owner, wait=wait, control=control):
        states = adopt(database.replica, database.id, tables, server=server)
        with _opened(database.replica) as replica:
            Ledger.open(replica).set_source(source.database)
        return states


def validate_replica(
    database: Database,
    *,
    control: Control | None = None,
    owner: str = "duckling validate",
    wait: float = 60.0,
    max_differences: int = 20,
) -> ValidationReport:
    """Compare every mirrored table with MySQL at one position, to which the replica is brought first.

    :raises BusyError: another process uses the replica for longer than `wait` seconds.
    """
    control = control or Control()
    run = _Run(database, control, owner, wait)
    run.require_ours()
    with contextlib.closing(connect(run.source)) as connection:
        names = _mirrored(database, read_tables(connection, run.source.database))
    with replica_access(database.replica, operation="validate", owner=owner, wait=wait, control=control):
        return validate(
            run.source,
            database.replica,
            names,
            control=control,
            catch_up=lambda position: run.apply_until(database.replica, position),
            max_differences=max_differences,
        )


def _source_of(database: Database) -> Source:
    database.require_host()
    if database.writer != "duckling":
        raise ConfigError(
            f"is {database.writer!r}: that server writes the replica",
            entry=database.id,
            field="writer",
            hint='Stop that server for good and leave "writer" out; then duckling adopt takes its replica over.',
        )
    return Source.parse(database.mysql_connection_string, subject=database.id)


def _mirrored(database: Database, tables: dict[str, Table]) -> dict[str, Table]:
    return {name: table for name, table in tables.items() if database.mirrors(name)}


class _Run:
    def __init__(self, database: Database, control: Control, owner: str, wait: float) -> None:
        self.database, self.control, self.owner, self.wait = database, control, owner, wait
        self.source = _source_of(database)
        self.done = Synced()
        self._position: Position | None = None
        self._references: list[Reference] = []
        #: Binlog files that the server had when it lacked what follows the position.
        self._kept: list[str] = []

    # ---- a file to write ----

    def prepare(self) -> None:
        """Make sure that there is a replica of ours whose position the server can go on from."""
        for finding in preflight(self.source, wanted=self.database.mirrors):
            log.warning("%s", finding)
        if self._look_at_replica():
            if self._look_at_binlog():
                self._leave_out()
                return
            if self.database.on_position_lost == "fail":
                raise self._lost()
            log.warning("the server no longer has what follows %s: the replica is copied again", self._position)
        self._copy_all()

    def _look_at_binlog(self) -> bool:
        """Take down which logs the server keeps; whether they reach back to the replica's position."""
        with contextlib.closing(connect(self.source)) as connection:
            if self._position is not None and is_available(connection, self._position):
                return True
            self._kept = [str(row[0]) for row in query(connection, "SHOW BINARY LOGS")]
            return False

    def _lost(self) -> PositionLostError:
        return PositionLostError(
            "purged, or restarted by RESET MASTER",
            position=self._position or Position("", 0),
            kept=self._kept,
            subject=self.source.subject,
        )

    def _leave_out(self) -> None:
        """Tables that the configuration no longer wants are not followed from here on: should it want them again, they
        need a new copy.
        """
        with self._access("sync"), self._opened(read_only=True) as connection:
            states = Ledger.open(connection).tables().values()
        names = [state.name for state in states if state.state == "ok" and not self.database.mirrors(state.name)]
        if names:
            with self._access("sync"), self._opened() as connection:
                connection.begin()
                for name in names:
                    Ledger.open(connection).mark_recopy(name, "left out by the configuration")
                connection.commit()

    @property
    def position(self) -> Position | None:
        """Where the replica stands, as far as this run has seen it."""
        return self._position

    def note_losses(self) -> None:
        with self._access("sync"), self._opened(read_only=True) as connection:
            ledger = Ledger.open(connection)
            tables, counters = ledger.tables(), ledger.counters()
        notes = [
            f"{name}.{told}"
            for name in self.done.copied
            if name in tables
            for column in tables[name].table.columns
            if (told := report(column))
        ]
        notes += [f"{table}: {count} {what} became NULL" for (table, what), count in sorted(counters.items()) if count]
        self.done.notes = tuple(notes)
        for note in notes:
            log.info("%s", note)

    def require_ours(self) -> None:
        if not self._look_at_replica():
            raise ReplicaError(
                "there is no such file",
                subject=str(self.database.replica),
                hint=f"A sync makes it: duckling sync {self.database.id}",
            )
        if not self._look_at_binlog():
            raise self._lost()

    def _look_at_replica(self) -> bool:
        """Take down the replica's position; whether there is a replica of ours."""
        replica = self.database.replica
        with self._access("sync"):
            if not self._require_consent():
                return False
            with self._opened(read_only=True) as connection:
                ledger = Ledger.open(connection)
                self._position, mirrored = ledger.position(), ledger.source()
        if mirrored not in {"", self.source.database}:
            raise ReplicaError(
                f"it mirrors the MySQL database {mirrored!r}, and mysqlConnectionString names {self.source.database!r}",
                subject=str(replica),
                operation="sync",
                hint="Correct mysqlConnectionString; or move the replica away, and the next sync makes a new one.",
            )
        return True

    def _require_consent(self) -> bool:
        """Whether there is a file, which is ours then.

        :raises ReplicaError: it is not ours.
        """
        owner = owner_of(self.database.replica)
        if owner in {"absent", "ours"}:
            return owner == "ours"
        whose = "by the Node server" if owner == "duckling-server" else "by another program"
        raise ReplicaError(
            f"the file was made {whose}; nothing is written to it without consent",
            subject=str(self.database.replica),
            operation="sync",
            hint=f"duckling adopt {self.database.id} takes it over."
            if owner == "duckling-server"
            else "Move it away, or name another file in duckdbPath: a full copy then makes a new one.",
        )

    def _access(self, operation: str) -> contextlib.AbstractContextManager[None]:
        return replica_access(
            self.database.replica, operation=operation, owner=self.owner, wait=self.wait, control=self.control
        )

    @contextlib.contextmanager
    def _opened(self, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
        """The replica, as soon as no other process has it open in DuckDB; there must be one: DuckDB would make it."""
        replica = self.database.replica
        deadline = time.monotonic() + self.wait
        with contextlib.ExitStack() as stack:
            while True:
                if not replica.exists():
                    raise _gone(replica)
                try:
                    connection = stack.enter_context(_opened(replica, read_only=read_only))
                    break
                except ReplicaError:
                    if not replica.exists():
                        raise _gone(replica) from None
                    raise
                except BusyError as error:
                    if time.monotonic() >= deadline:
                        raise
                    self.control.wait_for(f"{replica} {error.cause}", _POLL)
            yield connection

    # ---- copies ----

    def _copy_all(self) -> None:
        replica = self.database.replica
        target = state_path(replica, COPY_SUFFIX)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._copy_lock(), disk_errors(target.parent, subject=self.database.id, needed=0):
            if self._look_at_replica() and self._look_at_binlog():
                return  # another run has made it while this one waited
            copy = self._copy(target)
            with _opened(target) as connection:
                # Each table knows what it has already; from here on nothing is missing in any.
                ledger = Ledger.open(connection)
                ledger.save_position(copy.position)
                ledger.set_source(self.source.database)
            self.apply_until(target, copy.end)
            _sync_file(target)
            with self._access("full copy"):
                # It took hours, maybe: another program may have put a file there.
                self._require_consent()
                replace_replica(target, replica)
        self.done.copied = tuple(copy.tables)
        log.info("%s: %d tables copied", replica, len(copy.tables))
        self._look_at_replica()

    def renew_tables(self) -> bool:
        """Copy the tables again that could not be followed, and those that came into sight by the configuration.

        :returns: whether there were any.
        """
        replica = self.database.replica
        with contextlib.closing(connect(self.source)) as connection:
            present = read_tables(connection, self.source.database)
        with self._access("sync"), self._opened(read_only=True) as connection:
            known = Ledger.open(connection).tables()
        self._warn_of_unknown(present.keys() | known.keys())
        stale = {name for name, state in known.items() if state.state != "ok"}
        names = sorted(name for name in _mirrored(self.database, present) if name in stale or name not in known)
        # What is only left out by the configuration stays as it is.
        gone = sorted(stale - present.keys())
        if not names and not gone:
            return False
        target = state_path(replica, TABLES_SUFFIX)
        with self._copy_lock(), disk_errors(target.parent, subject=self.database.id, needed=0):
            # What a killed run left is older than the replica is by now: changes in between would be missing.
            _remove(target)
            if names:
                log.info("copying again: %s", ", ".join(names))
                names = list(self._copy(target, names).tables)
            with self._access("sync"), self._opened() as connection:
                names = _exchange(connection, target, names, gone)
            _remove(target)
        self.done.copied += tuple(names)
        for name in (*names, *gone):
            self.done.recopy.pop(name, None)
        return True

    def _warn_of_unknown(self, known: Collection[str]) -> None:
        for name in self.database.include_tables:
            if name not in known:
                log.warning("%s: includeTables: there is no table %r", self.database.id, name)

    def _copy_lock(self) -> FileLock:
        path = state_path(self.database.replica, COPY_LOCK_SUFFIX)
        return FileLock(path, operation="copy", owner=self.owner, wait=self.wait, control=self.control)

    def _copy(self, target: Path, names: Collection[str] | None = None) -> Copy:
        with contextlib.closing(connect(self.source)) as connection:
            # Before anybody looks which tables there are: a later one comes from the binlog.
            position = current_position(connection)
            existing = _mirrored(self.database, read_tables(connection, self.source.database))
        return copy_tables(
            self.source,
            target,
            [name for name in existing if names is None or name in names],
            position=position,
            control=self.control,
            storage_version=self.database.storage_version,
            database_id=self.database.id,
        )

    # ---- changes ----

    def apply_until(self, path: Path, end: Position) -> None:
        """Apply the binlog to the file at `path`, from its own position to `end`; its lock is the caller's matter."""
        with _opened(path) as connection:
            ledger = Ledger.open(connection)
            position = ledger.position()
            if position is None:
                raise ReplicaError("no full copy of it was ever finished", subject=str(path))
            applier = self._applier(connection, ledger)
            with self._stream(position, follow=False) as stream:
                for event in stream.read_until(end):
                    self.control.check()
                    applier.take(event)
            applier.flush()
            self._count(applier)

    def follow(self, deadline: float | None) -> None:
        """Apply the binlog up to where the server stands now, or until `deadline` (of `time.monotonic`)."""
        end = None
        if deadline is None:
            with contextlib.closing(connect(self.source)) as connection:
                end = current_position(connection)
        while True:
            if self._position is None:
                raise ReplicaError("no full copy of it was ever finished", subject=str(self.database.replica))
            with self._stream(self._position, follow=end is None) as stream:
                events = stream.read() if end is None else stream.read_until(end)
                try:
                    self._follow(events, deadline)
                except _MovedError:
                    # Restored, most likely: what was gathered belongs to another past.
                    log.info("the replica was replaced meanwhile")
                    self._look_at_replica()
                    continue
            return

    def _follow(self, events: Iterator[StreamEvent | None], deadline: float | None) -> None:
        saved, last = time.monotonic(), None
        while True:
            gathered, is_end = self._gather(events, deadline)
            if gathered and all(isinstance(event, Commit) for event in gathered):
                # Other databases' transactions: to note the position once in a while is enough.
                last = gathered[-1]
                if not is_end and time.monotonic() - saved < _IDLE_SAVE_SECONDS:
                    continue
                gathered = [last]
            elif is_end and not gathered and last is not None:
                gathered = [last]
            if gathered:
                is_end = self._stretch(gathered, events, deadline) or is_end
                saved, last = time.monotonic(), None
            if is_end:
                break
        if deadline is not None:
            self.done.outcome = "out of time"

    def _gather(
        self, events: Iterator[StreamEvent | None], deadline: float | None
    ) -> tuple[list[StreamEvent | None], bool]:
        """Events up to the end of a transaction, while the file is closed; and whether these were the last."""
        gathered: list[StreamEvent | None] = []
        started = time.monotonic()
        for event in events:
            self.control.check()
            now = time.monotonic()
            is_late = deadline is not None and now >= deadline
            if event is None:
                if gathered or is_late:
                    return gathered, is_late
                continue
            gathered.append(event)
            if len(gathered) >= _GATHERED_CHANGES:
                return gathered, is_late
            ends = isinstance(event, Commit | SchemaChange)
            if ends and (is_late or now - started >= _GATHERED_SECONDS):
                return gathered, is_late
        return gathered, True

    def _stretch(
        self, gathered: list[StreamEvent | None], events: Iterator[StreamEvent | None], deadline: float | None
    ) -> bool:
        """Apply what was gathered, and what comes right behind it; whether `events` have ended."""
        replica = self.database.replica
        until = time.monotonic() + _STRETCH_SECONDS
        if deadline is not None:
            until = min(until, max(deadline, time.monotonic()))
        with self._access("sync"), self._opened() as connection:
            ledger = Ledger.open(connection)
            if ledger.position() != self._position:
                raise _MovedError
            applier = self._applier(connection, ledger)
            try:
                for count, event in enumerate(itertools.chain(gathered, events), start=1):
                    committed = applier.take(event)
                    if not committed and event is not None and count % _LOOK_EVERY:
                        continue
                    self.control.check()
                    if is_wanted(replica):
                        if not applier.in_transaction:
                            applier.flush()
                        raise _MakeWayError(f"another process waits for {replica}")
                    enough = event is None or time.monotonic() >= until
                    if enough and count >= len(gathered) and not applier.in_transaction:
                        applier.flush()
                        return False
                applier.flush()
                return True
            finally:
                self._count(applier)

    def _applier(self, connection: DuckDBPyConnection, ledger: Ledger) -> Applier:
        return Applier(
            connection,
            ledger,
            database=self.source.database,
            wanted=self.database.mirrors,
            references=self._references,
            read_references=self._read_references,
        )

    def _stream(self, position: Position, *, follow: bool) -> BinlogStream:
        self._read_references()
        return BinlogStream(self.source, position, wanted=self._is_of_interest, follow=follow)

    def _is_of_interest(self, name: str) -> bool:
        """Whether a change of that table may change a mirrored one."""
        return self.database.mirrors(name) or any(name == reference.parent for reference in self._references)

    def _read_references(self) -> list[Reference]:
        with contextlib.closing(connect(self.source)) as connection:
            references = read_references(connection, self.source.database)
        for reference in references:
            if reference.schema and reference not in self._references and self.database.mirrors(reference.child):
                log.warning(
                    "%s: rows of %s go or change with those of %s.%s, which is not followed; validate now and then",
                    self.database.id,
                    reference.child,
                    reference.schema,
                    reference.parent,
                )
        self._references = references
        return references

    def _count(self, applier: Applier) -> None:
        applied, done = applier.applied, self.done
        done.changes += applied.changes
        done.batches += applied.batches
        done.recopy |= applied.marked
        if applied.position is not None:
            self._position = applied.position
            done.timestamp = applied.timestamp


def _exchange(connection: DuckDBPyConnection, fresh: Path, names: list[str], gone: Collection[str]) -> list[str]:
    """Put the tables of the file `fresh` in the place of the replica's, in one transaction; `gone` are dropped.

    :returns: those that were exchanged. A table that was copied before another run brought the replica further is not:
        the changes in between would be missing.
    """
    ledger = Ledger.open(connection)
    position = ledger.position()
    states: dict[str, TableState] = {}
    if names:
        connection.execute(f"ATTACH {literal(str(fresh))} AS fresh (READ_ONLY)")
        states = Ledger.open(connection, catalog="fresh").tables()
        names = [name for name in names if _is_not_behind(states[name].start, position)]
    connection.begin()
    known = ledger.tables().keys() - gone
    for name in (*names, *gone):
        if twin(name, known) is None:
            connection.execute(f"DROP TABLE IF EXISTS main.{quote(name)}")
        ledger.forget_table(name)
    for name in names:
        connection.execute(f"CREATE TABLE main.{quote(name)} AS FROM fresh.main.{quote(name)}")
        ledger.save_table(states[name])
        ledger.record("copied", name)
    connection.commit()
    if states:
        connection.execute("DETACH fresh")
    return names


def _is_not_behind(start: Position | None, position: Position | None) -> bool:
    return (
        start is not None and position is not None and start.server == position.server and start.order >= position.order
    )


@contextlib.contextmanager
def _opened(path: Path, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "autoinstall_known_extensions": "false",
    }
    try:
        connection = duckdb.connect(str(path), read_only=read_only, config=config)
    except duckdb.Error as error:
        raise open_error(path, error, operation="sync") from error
    with connection:
        connection.execute("SET enable_progress_bar = false")
        yield connection


def _gone(replica: Path) -> ReplicaError:
    return ReplicaError("it is gone", subject=str(replica), operation="sync", hint="Run the sync again.")


def _sync_file(path: Path) -> None:
    """DuckDB has closed it, and its log is folded in; make that durable."""
    left = wal_files(path)
    if left:
        raise ReplicaError("DuckDB left a log behind", subject=str(left[0]), operation="full copy")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    for file in (path, *wal_files(path)):
        file.unlink(missing_ok=True)
