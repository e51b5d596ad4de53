"""The full copy: every table of a MySQL database into a new DuckDB file, while the database is being written.

No table is copied at one moment, nor are two tables copied at the same. What makes the file right in the end is the
binlog: each table is recorded with its *start*, an exact position from before its first row was read, and the code that
applies the binlog from the copy's position (the earliest start) skips what a table has already:

- A table with a primary key is read in key ranges by several connections. A row may be newer than the start, and then
  its change is applied once more: deleted by key and inserted again, which ends in the same row. A row that changed its
  key meanwhile may be there twice or be missing; its change puts that right as well.
- A table without a key has nothing by which a change could be applied twice. It is read in one snapshot, whose position
  is its start. Where the engine knows no snapshots, writers of that table wait.

The start has to be exact in one direction: every transaction up to it must be visible to what is read afterwards.
``SHOW MASTER STATUS`` alone does not guarantee that, `consistent_snapshot` does.

Each table is one DuckDB transaction, which also writes the ledger's line, so after a kill the file has whole tables
only and the next run goes on with the others. The rows go to the file as they come and only once: at the commit the
log refers to them. Rows so large that a row group of them does not fit into memory are committed in between; such a
table is in state "copying" until it is whole, and is begun again.

Tables get no PRIMARY KEY and no other constraint. An index (ART) is made in memory, so a copy's memory would grow with
the table; and it refuses the insertion of a key that the same transaction has deleted, which is how changes are
applied. NOT NULL would contradict zero dates, which are NULL here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, DucklingError, ReplicaError
from duckling_provider.base.interruptible import Workers, interruptible
from duckling_provider.replication.copy.copy_file import REPLICA, Writer, drop_copied, opened_copy, place_of
from duckling_provider.replication.copy.ranges import KeyRange, Pace, Statistics, is_rangeable, key_ranges
from duckling_provider.replication.copy.transport import Transport, can_be_fast, holders
from duckling_provider.replication.model.families import CHOICES
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import collisions, quote, quote_mysql
from duckling_provider.replication.model.tables import Position, Table
from duckling_provider.replication.model.types import duck_type
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.mysql_snapshot import LOCK_WAIT, consistent_snapshot, without_snapshot
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import Source, SourceError, connect, query, source_error, translated

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

#: How often a table is begun again because its columns changed while it was being copied.
TRIES = 5
#: Seconds before it is.
_PAUSE = 1.0

#: By the number nothing is lost; an ENUM that is modified to an ENUM loses what the server has no text for.
_LOST_CHOICES = (
    "ALTER TABLE … CONVERT TO CHARACTER SET left the list of the ENUM or SET as it was: MODIFY the column to BIGINT "
    "UNSIGNED first and then to the ENUM or SET with its list, or exclude the table."
)
_LOST_TEXT = "Correct the values there, or exclude the table."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copy:
    """A finished copy.

    :param position: apply the binlog from here; what a table has already, its own start says.
    :param end: the latest start: when the binlog was applied up to here, the file is consistent.
    :param tables: all that are in the file.
    :param copied: names of those that this run copied; the others were there from a run that was interrupted.
    :param vanished: were asked for and do not exist any more.
    :param refused: were asked for and can't be copied, with the reason; the others are complete.
    """

    position: Position
    end: Position
    tables: dict[str, TableState]
    copied: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    refused: tuple[ReplicaError, ...] = ()


def require_all(refused: Sequence[ReplicaError]) -> None:
    """:raises ReplicaError: a table can't be copied; it names every one."""
    if not refused:
        return
    first = refused[0]
    if len(refused) == 1:
        raise first
    raise ReplicaError(
        f"{len(refused)} tables can't be copied: {'; '.join(error.what for error in refused)}",
        operation="copy",
        hint=first.hint,
        retryable=all(error.retryable for error in refused),
    ) from first


def copy_tables(
    source: Source,
    target: Path,
    tables: Iterable[str],
    *,
    position: Position,
    control: Control,
    workers: int = 4,
    storage_version: str = "v1.5.0",
    database_id: str = "",
    memory_limit: str = "256MiB",
) -> Copy:
    """Fill the new DuckDB file `target`; one that an interrupted run left is completed.

    :param tables: names of base tables; a mapping by name will do.
    :param position: where the source stood before anybody looked which tables it has: a table that is created later
        comes from the binlog.
    :param workers: ranges that are read at once, each over a connection of its own.
    :param database_id: for the file's ledger.
    :param memory_limit: DuckDB's, while it writes.
    :raises SourceError: MySQL can't be read.
    :raises BusyError: another process has `target` open.
    :raises ReplicaError: `target` can't be written. That a table can't be copied is in the result, see `refused`.
    :raises CancelledError: `control` was cancelled; what is complete stays for the next run.
    """
    names = sorted(set(tables))
    for group in collisions(names):
        raise ReplicaError(
            f"a DuckDB file can't hold both {' and '.join(group)}: it does not tell upper from lower case",
            operation="copy",
            hint="Exclude all but one of them.",
        )
    with opened_copy(target, storage_version, memory_limit) as replica:
        ledger = Ledger.create(replica, database=database_id, catalog=REPLICA)
        with contextlib.closing(connect(source)) as connection, translated(source, "copy"):
            present = _keep_usable(replica, ledger, connection, source, names)
        vanished: list[str] = []
        copied: list[str] = []
        refused: list[ReplicaError] = []
        with Workers(workers, name="duckling-copy", control=control) as pool:
            with contextlib.closing(_Job(source, replica, ledger, pool, control, workers)) as job:
                for name in names:
                    if name in present:
                        continue
                    try:
                        (copied if job.copy(name) else vanished).append(name)
                    except ReplicaError as error:
                        if not _is_of_the_table(error, name):
                            raise
                        # The tables after it can do without it, and whoever repairs it wants to know them all at once.
                        log.error("%s; the other tables are copied meanwhile", error)
                        refused.append(error)
        replica.execute(f"CHECKPOINT {REPLICA}")
        states = ledger.tables()
    starts = [position, *(state.start for state in states.values() if state.start is not None)]
    return Copy(
        min(starts, key=lambda start: start.order),
        max(starts, key=lambda start: start.order),
        states,
        tuple(copied),
        tuple(vanished),
        tuple(refused),
    )


def _is_of_the_table(error: ReplicaError, name: str) -> bool:
    """Whether it is the rows or columns of this table that can't be copied, not the file that can't be written."""
    import duckdb

    return error.subject == name and not isinstance(error.__cause__, (duckdb.IOException, duckdb.OutOfMemoryException))


class _Job:
    """What the copies of all tables share: one writer, one connection for questions, many that read."""

    def __init__(
        self,
        source: Source,
        replica: DuckDBPyConnection,
        ledger: Ledger,
        pool: Workers,
        control: Control,
        workers: int,
    ) -> None:
        self._source, self._replica, self._ledger = source, replica, ledger
        self._pool, self._control, self._workers = pool, control, workers
        self._connection = connect(source)
        self._fast = can_be_fast(source, self._connection)

    def close(self) -> None:
        self._connection.close()

    def copy(self, name: str) -> bool:
        """Copy one table, in one transaction; False when there is no such table any more."""
        fast = self._fast
        for attempt in range(TRIES):
            if attempt:
                self._control.sleep(_PAUSE)
            before = self._table(name)
            if before is None:
                return False
            started = time.monotonic()
            self._replica.begin()
            try:
                start, rows = self._fill(before, fast=fast)
                if self._table(name) == before:
                    self._ledger.save_table(TableState(before, start=start, rows=rows))
                    self._replica.commit()
                    seconds = time.monotonic() - started
                    log.info("%s: copied, %d rows in %.1f s, start %s", name, rows, seconds, start)
                    return True
            except CancelledError:
                self._undo(name)
                raise
            except Exception as error:
                self._undo(name)
                # Whatever a change of its columns does to a table that is being read, the change is what counts.
                if self._table(name) == before:
                    if not fast or not self._is_conversion(error):
                        explained = self._explained(before, error)
                        if explained is error:
                            raise
                        raise explained from error
                    log.warning("%s: read again by pymysql: %s", name, str(error).splitlines()[0])
                    fast = False
                    continue
            except BaseException:
                self._undo(name)
                raise
            else:
                self._undo(name)
            log.warning("%s: its columns changed while it was copied; it is begun again", name)
        raise ReplicaError(
            f"its columns changed during each of {TRIES} attempts to copy it",
            subject=name,
            operation="copy",
            hint="Run it again when the migration is over, or exclude the table.",
        )

    def _fill(self, table: Table, *, fast: bool) -> tuple[Position, int]:
        columns = ", ".join(f"{quote(column.name)} {duck_type(column)}" for column in table.columns)
        self._replica.execute(f"CREATE TABLE {place_of(table.name)} ({columns})")
        statistics = Statistics.read(self._connection, table.name)
        pace = Pace(statistics.row_bytes)
        transport = Transport(self._source, table, pace, fast=fast)
        writer = Writer(self._replica, self._ledger, table)
        row_bytes = max(1, statistics.row_bytes)
        total = max(1, statistics.rows * row_bytes)
        self._control.begin(f"copy {table.name}", total)
        with self._reading(table) as (start, connection):
            if connection is not None:
                pieces = self._one_ahead(transport.stream(connection))
            else:
                pieces = self._ranges(transport, key_ranges(self._connection, table, statistics, pace))
            shown = 0
            for piece in pieces:
                writer.write(piece)
                # The total is an estimate; the step is done when the table is.
                more = max(0, min(writer.rows * row_bytes, total - 1) - shown)
                self._control.advance(more)
                shown += more
        writer.finish()
        self._control.advance(total - shown)
        self._fast = self._fast and not transport.refused
        return start, writer.rows

    @contextlib.contextmanager
    def _reading(self, table: Table) -> Iterator[tuple[Position, Any]]:
        """The table's start, and a connection to read it in one piece unless it can be read by ranges."""
        if table.primary_key:
            with consistent_snapshot(self._source, [table.name]) as (_, start):
                pass
            if is_rangeable(table):
                yield start, None
                return
            with contextlib.closing(connect(self._source, cursor="stream")) as connection:
                yield start, connection
            return
        with contextlib.ExitStack() as stack:
            if table.name in without_snapshot(self._connection):
                lock = stack.enter_context(contextlib.closing(connect(self._source)))
                with lock.cursor() as cursor:
                    cursor.execute(f"SET SESSION lock_wait_timeout = {LOCK_WAIT}")
                    cursor.execute(f"LOCK TABLES {quote_mysql(table.name)} READ")
            snapshot = consistent_snapshot(self._source, [table.name], cursor="stream")
            connection, start = stack.enter_context(snapshot)
            yield start, connection

    def _ranges(self, transport: Transport, ranges: Iterator[KeyRange]) -> Iterator[pa.Table]:
        """The ranges' rows in key order, which later lets DuckDB skip row groups when it looks for a key."""
        pending: deque[Future[pa.Table]] = deque()
        rest: KeyRange | None = None
        more = True
        while True:
            while more and len(pending) <= self._workers:
                found = interruptible(lambda: next(ranges, None), self._control)
                if found is None or not found.bounded:
                    rest, more = found, False
                else:
                    pending.append(self._pool.submit(transport.read, found))
            if not pending:
                break
            yield self._pool.result(pending.popleft())
        if rest is not None:
            with contextlib.closing(connect(self._source, cursor="stream")) as connection:
                yield from self._one_ahead(transport.stream(connection, rest.where))

    def _one_ahead(self, pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """`pieces`, the next of which is read while the last is being written."""
        coming = self._pool.submit(next, pieces, None)
        while (piece := self._pool.result(coming)) is not None:
            coming = self._pool.submit(next, pieces, None)
            yield piece

    def _table(self, name: str) -> Table | None:
        import pymysql.err

        try:
            query(self._connection, "SELECT 1")
        except pymysql.err.Error:
            # It may have been asked nothing for the hours that the last table took.
            self._connection.close()
            self._connection = connect(self._source)
        with translated(self._source, f"copy {name}"):
            return read_tables(self._connection, self._source.database).get(name)

    def _undo(self, name: str) -> None:
        import duckdb

        # After an error of its own DuckDB may have ended the transaction already.
        with contextlib.suppress(duckdb.TransactionException):
            self._replica.rollback()
        if name in self._ledger.tables():
            drop_copied(self._replica, self._ledger, name)

    @staticmethod
    def _is_conversion(error: Exception) -> bool:
        import duckdb

        return isinstance(error, (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException))

    def _explained(self, table: Table, error: Exception) -> Exception:
        import duckdb
        import pymysql.err

        name = table.name
        if isinstance(error, UnicodeDecodeError):
            return self._not_text(table, error)
        if isinstance(error, duckdb.Error):
            message = str(error).splitlines()[0]
            return ReplicaError(f"DuckDB refused its rows: {message}", subject=name, operation="copy")
        if isinstance(error, pymysql.err.Error):
            return source_error(error, self._source, f"copy {name}")
        if isinstance(error, (OSError, EOFError)):
            cause = f"{type(error).__name__}: {error}"
            return SourceError(cause, operation=f"copy {name}", subject=self._source.subject, retryable=True)
        if isinstance(error, DucklingError):
            error.operation = error.operation or f"copy {name}"
        return error

    def _not_text(self, table: Table, error: UnicodeDecodeError) -> ReplicaError:
        """Which column the server could not send as text: it keeps no record of what the bytes once meant."""
        with translated(self._source, f"copy {table.name}"):
            columns = holders(self._connection, table, error.object)
        names = " and ".join(column.name for column in columns) or "a column"
        return ReplicaError(
            f"{names} holds the bytes {error.object[:40].hex(' ')}, which are no text of its character set",
            subject=table.name,
            operation="copy",
            hint=_LOST_CHOICES if any(column.data_type in CHOICES for column in columns) else _LOST_TEXT,
        )


def _keep_usable(
    replica: DuckDBPyConnection, ledger: Ledger, connection: Any, source: Source, names: list[str]
) -> set[str]:
    """What an interrupted run has finished, less what the binlog no longer leads on from or is no longer wanted."""
    current = read_tables(connection, source.database)
    applied = ledger.position()
    kept = set()
    for name, state in ledger.tables().items():
        # A table without a start has been brought up to the file's position since, before that was interrupted too.
        start = state.start or applied
        wanted = name in names and state.state == "ok" and state.table == current.get(name)
        if wanted and start is not None and is_available(connection, start):
            ledger.save_table(replace(state, start=start))
            kept.add(name)
            continue
        drop_copied(replica, ledger, name)
    if kept:
        log.info("going on with an interrupted copy: %d tables are there already", len(kept))
    return kept
