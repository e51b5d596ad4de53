"""What one run of a sync knows and holds: the entry, its server, the replica's file and position, what was done."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, ConfigError, ReplicaError
from duckling_provider.base.moments import readable
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.read_copy import find_read_copy, renew_read_copy
from duckling_provider.replication.apply.foreign_keys import Reference
from duckling_provider.replication.binlog.stream import PositionLostError
from duckling_provider.replication.model.ledger import Ledger, Owner, owner_in, owner_of
from duckling_provider.replication.model.tables import Position, Table
from duckling_provider.replication.model.types import report
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.source import Source, connect, query, server_of
from duckling_provider.replication.replica_file import gone, opened

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from duckling_provider.config.databases import Database

#: Seconds between two tries to open a file that another process reads.
_POLL = 0.2
#: Seconds between two copies for readers while a sync follows the binlog.
_READ_COPY_SECONDS = 10.0

log = logging.getLogger(__name__)

Outcome = Literal["caught up", "out of time", "made way"]


@dataclass
class Synced:
    """What a run has done.

    :param outcome: "made way" when it ended before its time, for the `reason`.
    :param copied: tables that were copied, by name; all of them in a full copy.
    :param changes: row changes that were applied.
    :param timestamp: of the last applied transaction on the server, seconds since 1970.
    :param lag: age in seconds of the oldest change that is not applied, or a bound of it where the run could not look;
        0.0 when there is none.
    :param recopy: tables that can't be followed and wait for a new copy, with the reason.
    :param read_copy: when the copy for readers was last seen to be equal to the replica, None where there is none.
    :param notes: what could not be mirrored exactly, reported by the runs that copy; why the copy for readers is old.
    :param yields: runs in a row that made way, this one included.
    :param validated: all tables were found equal row by row at this time or later; None if that is not so or unknown.
    :param differing: by table, rows that this run found to differ from MySQL's and replaced.
    :param differences: how many were ever found, and when the last: `differed`.
    :param compared: rows that this run compared, in so many `pieces`.
    :param began: where the replica stood before, or after the full copy that this run made first.
    :param is_told: `validated` and `differences` are what the replica says.
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
    read_copy: datetime | None = None
    notes: tuple[str, ...] = ()
    yields: int = 0
    validated: datetime | None = None
    differing: dict[str, int] = field(default_factory=dict)
    differences: int = 0
    differed: datetime | None = None
    compared: int = 0
    pieces: int = 0
    is_told: bool = False
    began: Position | None = None


class MakeWayError(Exception):
    """It is another process's turn."""


def source_of(database: Database) -> Source:
    """The server that the entry names.

    :raises ConfigError: there is none, or another program writes the replica.
    """
    database.require_host()
    if database.writer != "duckling":
        raise ConfigError(
            f"is {database.writer!r}: that server writes the replica",
            entry=database.id,
            field="writer",
            hint='Stop that server for good and leave "writer" out; then duckling adopt takes its replica over.',
        )
    return Source.parse(database.mysql_connection_string, subject=database.id)


def as_named(database: Database, source: Source) -> tuple[Database, Source]:
    """Both with the names of database and tables as the server has them: in lower case, if it takes them so.

    :raises SourceError: when the server can't be reached.
    """
    with contextlib.closing(connect(source)) as connection:
        if not server_of(connection).folds_names:
            return database, source
    lists = {
        name: type(value)(table.lower() for table in value)
        for name in ("include_tables", "exclude_tables")
        if (value := getattr(database, name))
    }
    return database.model_copy(update=lists), replace(source, database=source.database.lower())


def mirrored(database: Database, tables: dict[str, Table]) -> dict[str, Table]:
    """Those of `tables` that the entry wants."""
    return {name: table for name, table in tables.items() if database.mirrors(name)}


class Run:
    """What the parts of one run share: the entry and its server, the replica's file, and what was done so far."""

    def __init__(self, database: Database, control: Control, owner: str, wait: float) -> None:
        self.database, self.control, self.owner, self.wait = database, control, owner, wait
        self.source = source_of(database)
        self.done = Synced()
        #: Where the replica stands, as far as this run has seen it.
        self.position: Position | None = None
        #: Foreign keys of the server by which rows change without a word in the binlog.
        self.references: list[Reference] = []
        #: Why tables can't be copied: the run does all else, then fails.
        self.refused: tuple[ReplicaError, ...] = ()
        #: Tables of kinds that are not mirrored: their rows would be taken for those of tables.
        self.unmirrored: frozenset[str] = frozenset()
        #: Binlog files that the server had when it lacked what follows the position.
        self._kept: list[str] = []
        #: Tables that are followed and that the configuration does not want.
        self._left_out: list[str] = []
        self._read_copy_due = 0.0

    def fold_names(self) -> None:
        """Know database and tables by the server's names, which need not be those of the entry."""
        self.database, self.source = as_named(self.database, self.source)

    def mirrors(self, name: str) -> bool:
        """Whether a table of that name is mirrored."""
        return name not in self.unmirrored and self.database.mirrors(name)

    def look_at_binlog(self) -> bool:
        """Take down which logs the server keeps; whether they reach back to the replica's position."""
        with contextlib.closing(connect(self.source)) as connection:
            if self.position is not None and is_available(connection, self.position):
                return True
            self._kept = [str(row[0]) for row in query(connection, "SHOW BINARY LOGS")]
            return False

    def lost(self) -> PositionLostError:
        return PositionLostError(
            "purged, or restarted by RESET MASTER",
            position=self.position or Position("", 0),
            kept=self._kept,
            subject=self.source.subject,
        )

    def leave_out(self) -> None:
        """Tables that the configuration no longer wants are not followed from here on: should it want them again, they
        need a new copy.
        """
        if self._left_out:
            with self.access("sync"), self.opened() as connection:
                connection.begin()
                for name in self._left_out:
                    Ledger.open(connection).mark_recopy(name, "left out by the configuration")
                connection.commit()

    def note_losses(self) -> None:
        with self.access("sync"), self.opened(read_only=True) as connection:
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
        self.done.notes += tuple(notes)
        for note in notes:
            log.info("%s", note)

    @contextlib.contextmanager
    def read_copy_behind(self) -> Iterator[None]:
        """Renews the copy for readers after the block, in which the replica was written under its lock: at once when
        it is another process's turn, else now and then.
        """
        try:
            yield
        except MakeWayError:
            self.renew_read_copy()
            raise
        if time.monotonic() >= self._read_copy_due:
            self.renew_read_copy()

    def renew_read_copy(self) -> None:
        """Make the copy for readers equal to the replica, whose lock is ours, and which is closed in DuckDB.

        :raises ConfigError, ReplicaError, NoSpaceError: as `read_copy.renew_read_copy`.
        """
        try:
            copy = renew_read_copy(self.database, wait=self.wait, control=self.control)
        except BusyError as error:
            copy = find_read_copy(self.database)
            old = f"is of {readable(copy.made)} UTC" if copy else "is not there yet"
            self.done.read_copy = self.done.read_copy or (copy.made if copy else None)
            note = f"the copy for readers {old}: {error}"
            self.done.notes = (*(n for n in self.done.notes if not n.startswith("the copy for readers")), note)
            log.warning("%s", note)
        else:
            self.done.read_copy = None if copy is None else datetime.now(timezone.utc)
        self._read_copy_due = time.monotonic() + _READ_COPY_SECONDS

    def require_ours(self) -> None:
        if not self.look_at_replica():
            raise ReplicaError(
                "there is no such file",
                subject=str(self.database.replica),
                hint=f"A sync makes it: duckling sync {self.database.id}",
            )
        if not self.look_at_binlog():
            raise self.lost()

    def look_at_replica(self) -> bool:
        """Take down the replica's position; whether there is a replica of ours."""
        replica = self.database.replica
        with self.access("sync"):
            if not os.path.lexists(replica):
                return False
            with self.opened(read_only=True) as connection:
                self._refuse_foreign(owner_in(connection))
                ledger = Ledger.open(connection)
                self.position, mirrored, tables = ledger.position(), ledger.source(), ledger.tables()
        self._left_out = [
            name for name, state in tables.items() if state.state == "ok" and not self.database.mirrors(name)
        ]
        if mirrored not in {"", self.source.database}:
            raise ReplicaError(
                f"it mirrors the MySQL database {mirrored!r}, and mysqlConnectionString names {self.source.database!r}",
                subject=str(replica),
                operation="sync",
                hint="Correct mysqlConnectionString; or move the replica away, and the next sync makes a new one.",
            )
        return True

    def require_consent(self) -> None:
        """A file that is there is ours.

        :raises ReplicaError: it is not.
        """
        owner = owner_of(self.database.replica)
        if owner != "absent":
            self._refuse_foreign(owner)

    def _refuse_foreign(self, owner: Owner) -> None:
        if owner == "ours":
            return
        whose = "by the Node server" if owner == "duckling-server" else "by another program"
        raise ReplicaError(
            f"the file was made {whose}; nothing is written to it without consent",
            subject=str(self.database.replica),
            operation="sync",
            hint=f"duckling adopt {self.database.id} takes it over."
            if owner == "duckling-server"
            else "Move it away, or name another file in duckdbPath: a full copy then makes a new one.",
        )

    def access(self, operation: str) -> contextlib.AbstractContextManager[None]:
        return replica_access(
            self.database.replica, operation=operation, owner=self.owner, wait=self.wait, control=self.control
        )

    @contextlib.contextmanager
    def opened(self, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
        """The replica, as soon as no other process has it open in DuckDB; there must be one: DuckDB would make it."""
        replica = self.database.replica
        deadline = time.monotonic() + self.wait
        with contextlib.ExitStack() as stack:
            while True:
                if not replica.exists():
                    raise gone(replica)
                try:
                    connection = stack.enter_context(opened(replica, read_only=read_only))
                    break
                except ReplicaError:
                    if not replica.exists():
                        raise gone(replica) from None
                    raise
                except BusyError as error:
                    if time.monotonic() >= deadline:
                        raise
                    self.control.wait_for(f"{replica} {error.cause}", _POLL)
            yield connection
