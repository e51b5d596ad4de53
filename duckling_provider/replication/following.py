"""The binlog into the replica, in stretches: gathered while the file is closed, applied while it is open."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from duckling_provider.base.errors import ReplicaError
from duckling_provider.replica.locks import is_wanted
from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.batch import Applied
from duckling_provider.replication.apply.foreign_keys import Reference, from_elsewhere, read_references
from duckling_provider.replication.apply.generated import read_by_keys
from duckling_provider.replication.apply.reach import Reach, read_reach
from duckling_provider.replication.binlog.stream import BinlogStream, StreamEvent
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.tables import Commit, Position, SchemaChange
from duckling_provider.replication.mysql.merge_tables import MergeTables, read_merge_tables
from duckling_provider.replication.mysql.schema import unmirrored
from duckling_provider.replication.mysql.source import connect, current_position
from duckling_provider.replication.replica_file import opened
from duckling_provider.replication.run import MakeWayError, Run
from duckling_provider.replication.validate.touched import Touched

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: Changes and seconds that are gathered before the file is opened.
_GATHERED_CHANGES, _GATHERED_SECONDS = 10_000, 1.0
#: Seconds after which the file is closed for a moment although more is at hand: others want to read it.
_STRETCH_SECONDS = 10.0
#: Events of one transaction between two looks at who waits.
_LOOK_EVERY = 2000
#: Seconds between two notes of the position while only other databases change.
_IDLE_SAVE_SECONDS = 60.0

log = logging.getLogger(__name__)


class _MovedError(Exception):
    """The replica is not the one that the stream belongs to."""


class Following:
    """Applies the binlog to the replica of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        #: Parents in other databases, and our tables whose rows go or change with theirs.
        self._elsewhere: dict[tuple[str, str], tuple[str, ...]] = {}
        self._merged = MergeTables()
        #: When the oldest change was made that this run has met and not applied, seconds since 1970.
        self.waiting_since: float | None = None
        #: When the replica had all that the server had, as far as this run knows.
        self.current_at: float | None = None

    def apply_until(self, path: Path, end: Position, *, as_it_was: bool = False) -> Applied:
        """Apply the binlog to the file at `path`, from its own position to `end`; its lock is the caller's matter.

        :param as_it_was: ask the server for no rows: it has only those of today.
        """
        with opened(path) as connection:
            ledger = Ledger.open(connection)
            position = ledger.position()
            if position is None:
                raise ReplicaError("no full copy of it was ever finished", subject=str(path))
            applier = self._applier(connection, ledger, rereads=not as_it_was)
            with self._stream(position, follow=False) as stream:
                for event in stream.read_until(end):
                    self._run.control.check()
                    applier.take(event)
            applier.flush()
            self._count(applier)
            return applier.applied

    def follow(self, deadline: float | None) -> None:
        """Apply the binlog up to where the server stands now, or until `deadline` (of `time.monotonic`)."""
        end = None
        if deadline is None:
            with contextlib.closing(connect(self._run.source)) as connection:
                end = current_position(connection)
        self._follow_until(end, deadline)

    def follow_to(self, end: Position, touched: Touched) -> None:
        """Apply the binlog up to `end`, a position of the server's, and show `touched` what is applied."""
        position = self._run.position
        if position is not None and (position.server, position.order) == (end.server, end.order):
            return
        self._follow_until(end, None, touched)

    def _follow_until(self, end: Position | None, deadline: float | None, touched: Touched | None = None) -> None:
        asked = time.time()
        while True:
            if self._run.position is None:
                raise ReplicaError("no full copy of it was ever finished", subject=str(self._run.database.replica))
            with self._stream(self._run.position, follow=end is None) as stream:
                events = stream.read() if end is None else stream.read_until(end)
                try:
                    self._follow(events if touched is None else _shown(events, touched), deadline)
                except _MovedError:
                    # Restored, most likely: what was gathered belongs to another past.
                    log.info("the replica was replaced meanwhile")
                    if touched is not None:
                        touched.cloud()
                    self._run.look_at_replica()
                    continue
            if end is not None:
                self.current_at = asked
            return

    def _follow(self, events: Iterator[StreamEvent | None], deadline: float | None) -> None:
        saved, last = time.monotonic(), None
        self.waiting_since = None
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
                self.waiting_since = _oldest(gathered)
                is_end = self._stretch(gathered, events, deadline) or is_end
                self.waiting_since = None
                saved, last = time.monotonic(), None
            if is_end:
                break
        if deadline is not None:
            self._run.done.outcome = "out of time"
            if gathered:
                # Events came until the end: there may be more.
                self.waiting_since = self._run.done.timestamp or None

    def _gather(
        self, events: Iterator[StreamEvent | None], deadline: float | None
    ) -> tuple[list[StreamEvent | None], bool]:
        """Events up to the end of a transaction, while the file is closed; and whether these were the last."""
        gathered: list[StreamEvent | None] = []
        started = time.monotonic()
        for event in events:
            self._run.control.check()
            now = time.monotonic()
            is_late = deadline is not None and now >= deadline
            if event is None:
                if not gathered:
                    self.current_at = time.time()
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
        replica = self._run.database.replica
        until = time.monotonic() + _STRETCH_SECONDS
        if deadline is not None:
            until = min(until, max(deadline, time.monotonic()))
        with self._run.access("sync"), self._run.read_copy_behind(), self._run.opened() as connection:
            ledger = Ledger.open(connection)
            if ledger.position() != self._run.position:
                raise _MovedError
            applier = self._applier(connection, ledger)
            try:
                for count, event in enumerate(itertools.chain(gathered, events), start=1):
                    committed = applier.take(event)
                    if not committed and event is not None and count % _LOOK_EVERY:
                        continue
                    self._run.control.check()
                    if is_wanted(replica):
                        if not applier.in_transaction:
                            applier.flush()
                        raise MakeWayError(f"another process waits for {replica}")
                    enough = event is None or time.monotonic() >= until
                    if enough and count >= len(gathered) and not applier.in_transaction:
                        applier.flush()
                        return False
                applier.flush()
                return True
            finally:
                self._count(applier)
                if applier.applied.timestamp:
                    # What follows is as old at most.
                    self.waiting_since = applier.applied.timestamp

    def _applier(self, connection: DuckDBPyConnection, ledger: Ledger, *, rereads: bool = True) -> Applier:
        return Applier(
            connection,
            ledger,
            database=self._run.source.database,
            wanted=self._run.mirrors,
            references=self._run.references,
            read_references=self._read_references,
            reach=self._read_reach,
            merged=lambda: self._merged,
            reread=partial(read_by_keys, self._run.source) if rereads else None,
        )

    def _stream(self, position: Position, *, follow: bool) -> BinlogStream:
        self._read_references()
        return BinlogStream(
            self._run.source,
            position,
            wanted=self._is_of_interest,
            follow=follow,
            elsewhere=lambda: self._elsewhere,
            merged=lambda: self._merged,
        )

    def _is_of_interest(self, name: str) -> bool:
        """Whether a change of that table may change a mirrored one."""
        return self._run.mirrors(name) or any(
            name == reference.parent and not reference.is_logged for reference in self._run.references
        )

    def _read_references(self) -> list[Reference]:
        with contextlib.closing(connect(self._run.source)) as connection:
            references = read_references(connection, self._run.source.database)
            database = self._run.source.database
            self._run.unmirrored = frozenset(unmirrored(connection, database))
            self._merged = read_merge_tables(connection, database)
        self._elsewhere = {
            parent: tuple(filter(self._run.mirrors, children))
            for parent, children in from_elsewhere(references).items()
        }
        self._run.references = references
        return references

    def _read_reach(self) -> Reach:
        with contextlib.closing(connect(self._run.source)) as connection:
            return read_reach(connection, self._run.source.database)

    def _count(self, applier: Applier) -> None:
        applied, done = applier.applied, self._run.done
        done.changes += applied.changes
        done.batches += applied.batches
        done.recopy |= applied.marked
        if applied.position is not None:
            self._run.position = applied.position
            done.timestamp = applied.timestamp


def _shown(events: Iterator[StreamEvent | None], touched: Touched) -> Iterator[StreamEvent | None]:
    for event in events:
        touched.see(event)
        yield event


def _oldest(events: list[StreamEvent | None]) -> float:
    """When the first transaction among `events` ended, or now where none of them is an end."""
    ends = (event.timestamp for event in events if isinstance(event, Commit | SchemaChange))
    return next(ends, time.time())
