"""Proof that a replica equals MySQL, or where it doesn't: both sides read at one position of the binlog.

MySQL moves on while it is read, so it is read in one snapshot whose position is known (`mysql_snapshot`), and the
replica is brought to just that position before it is compared. Then for each table, one after the other:

1. Both sides compute the checksum of `checksum` where the rows are, at the same time. It costs MySQL one scan of the
   table and next to nothing of the network, and equal buckets are equal rows.
2. The rows of the buckets that differ are read from MySQL exactly as a full copy reads them, converted by the same SQL,
   and compared with the replica's by DuckDB (`row_diff`). That is right for every type by construction, and it is the
   only step that calls a row different: a checksum that differs without cause costs time and nothing else.

To read all rows always (only 2) would need no agreement between two dialects of SQL. But it moves every table over the
network and through Python; the checksum costs one core of the server about as long as reading would on one machine, and
sends a few kilobytes.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, ReplicaError
from duckling_provider.base.interruptible import AbandonedError, Workers, interruptible
from duckling_provider.replica.duckdb_file import open_error
from duckling_provider.replication.copy.ranges import Pace, Statistics
from duckling_provider.replication.copy.transport import Transport
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import fold, literal, quote, quote_mysql
from duckling_provider.replication.model.tables import Position, Table
from duckling_provider.replication.model.types import duck_type
from duckling_provider.replication.mysql.mysql_snapshot import consistent_snapshot, without_snapshot
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import Source, SourceError, connect, query, translated
from duckling_provider.replication.validate.checksum import Bucket, TableChecksum
from duckling_provider.replication.validate.looks import end_query, lift_time_limit
from duckling_provider.replication.validate.report import TableReport, ValidationReport
from duckling_provider.replication.validate.row_diff import Contrast

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

T = TypeVar("T")

#: Seconds that the server may take for the checksum of one table.
_PATIENCE = 6 * 3600.0

_REPLICA = "replica"

#: The table's definition changed after the snapshot; it does not exist (any more).
_ALTERED, _GONE = 1412, frozenset({1146, 1051})
#: Refused for lack of a right: other SQL would not help.
_DENIED = frozenset({1044, 1142, 1143, 1227})

log = logging.getLogger(__name__)


def validate(
    source: Source,
    replica: Path,
    tables: Collection[str] | None = None,
    *,
    control: Control,
    catch_up: Callable[[Position], object] | None = None,
    max_differences: int = 20,
    memory_limit: str = "512MiB",
) -> ValidationReport:
    """Compare `replica` with `source`, table by table.

    Expects its caller to hold the replica's lock. The replica is opened after `catch_up`, read-only, so nothing can
    write it until the comparison is over. An ALTER TABLE of a table that was compared waits for the end as well, and
    everybody else for the ALTER TABLE: MySQL keeps a table's definition as long as the snapshot lasts.

    :param tables: names of the mirrored tables; None means every base table of the source.
    :param catch_up: applies the binlog to the replica up to exactly the given position, and closes the file. Without it
        the replica must stand there already, which on a server that is being written it doesn't.
    :param max_differences: rows that are listed of each table at most.
    :param memory_limit: DuckDB's.
    :raises SourceError: MySQL can't be read.
    :raises ReplicaError: the replica can't be read, is not ours, or stands at another position (retryable).
    :raises BusyError: another process has the replica open.
    :raises CancelledError: `control` was cancelled; the server's query was ended.
    """
    started = time.monotonic()
    with consistent_snapshot(source, tables, cursor="stream", read_timeout=_PATIENCE) as (connection, position):
        with translated(source, "validate"):
            lift_time_limit(connection)
            existing = read_tables(connection, source.database)
        if catch_up is not None:
            catch_up(position)
        with _opened(replica, memory_limit) as duck:
            ledger = Ledger.open(duck, catalog=_REPLICA)
            stands_at = _require_position(ledger, position, replica, caught_up=catch_up is not None)
            job = _Job(source, connection, duck, control, max_differences)
            wanted = set(existing) if tables is None else set(tables)
            reports = tuple(job.compare_all(existing, wanted, ledger.tables()))
    return ValidationReport(position, stands_at, reports, time.monotonic() - started)


@contextlib.contextmanager
def _opened(replica: Path, memory_limit: str) -> Iterator[DuckDBPyConnection]:
    """A DuckDB in memory with `replica` attached, read-only; its temporary files are removed."""
    import duckdb

    if not replica.exists():
        raise ReplicaError("there is no such file", subject=str(replica), hint="A sync makes it.")
    with tempfile.TemporaryDirectory(prefix="duckling-", ignore_cleanup_errors=True) as folder:
        with duckdb.connect(config={"memory_limit": memory_limit, "temp_directory": folder}) as connection:
            connection.execute("SET enable_progress_bar = false")
            # Pieces of a file that was begun elsewhere have no order that matters here.
            connection.execute("SET preserve_insertion_order = false")
            try:
                connection.execute(f"ATTACH {literal(str(replica))} AS {_REPLICA} (READ_ONLY)")
            except duckdb.Error as error:
                raise open_error(replica, error) from error
            yield connection


def _require_position(ledger: Ledger, position: Position, replica: Path, *, caught_up: bool) -> Position:
    """The replica's own position, if it is one at which it may be compared with MySQL at `position`."""
    found = ledger.position()
    if found is None:
        raise ReplicaError("no full copy of it was ever finished", subject=str(replica), hint="Run a sync first.")
    same_server = not found.server or not position.server or found.server == position.server
    same_gtid = bool(position.gtid) and set(found.gtid.split(",")) == set(position.gtid.split(","))
    if same_gtid or (same_server and found.order == position.order):
        return found
    # What lies between concerns other tables: the caller has read it.
    if caught_up and same_server and found.order < position.order:
        return found
    raise ReplicaError(
        f"the replica stands at {found}, and MySQL at {position}",
        subject=str(replica),
        operation="validate",
        hint="Run a sync and try again.",
        retryable=True,
    )


class _Job:
    """What the comparisons of all tables share."""

    def __init__(
        self,
        source: Source,
        connection: Any,
        duck: DuckDBPyConnection,
        control: Control,
        max_differences: int,
    ) -> None:
        self._source, self._connection, self._duck, self._control = source, connection, duck, control
        self._max_differences = max_differences

    def compare_all(
        self, existing: dict[str, Table], wanted: set[str], known: dict[str, TableState]
    ) -> Iterator[TableReport]:
        with translated(self._source, "validate"):
            unprotected = without_snapshot(self._connection)
        for name in sorted(wanted | known.keys()):
            table, state = existing.get(name), known.get(name)
            if table is None:
                if state is not None:
                    rows = self._replica_rows(name)
                    yield TableReport(name, "extra", None, rows, notes=("MySQL has no such table",))
                continue
            if name not in wanted:
                continue  # excluded since it was copied
            report = self._compare(table, state, unprotected.get(name))
            log.info("validated %s", report)
            yield report

    def _compare(self, table: Table, state: TableState | None, engine: str | None) -> TableReport:
        notes = [] if engine is None else [f"a table of {engine} has no snapshots: it is compared as it is now"]
        if state is not None and state.state != "ok":
            return TableReport(table.name, "recopy", notes=(*notes, state.note or "waits for a new copy"))
        try:
            return self._compare_rows(table, notes)
        except SourceError as error:
            if error.code != _ALTERED and error.code not in _GONE:
                raise
            return TableReport(table.name, "altered", notes=(*notes, "altered or dropped while it was being read"))

    def _compare_rows(self, table: Table, notes: list[str]) -> TableReport:
        columns = self._replica_columns(table.name)
        if not columns:
            return TableReport(table.name, "missing", self._mysql_rows(table), notes=tuple(notes))
        ours = {fold(column.name) for column in table.columns}
        if ours != columns.keys():
            lacking = [column.name for column in table.columns if fold(column.name) not in columns]
            beyond = [name for key, (name, _) in columns.items() if key not in ours]
            notes += [f"not in the replica: {', '.join(lacking)}"] * bool(lacking)
            notes += [f"not in MySQL: {', '.join(beyond)}"] * bool(beyond)
            return TableReport(table.name, "columns", notes=tuple(notes))
        relation, other_types = self._relation(table, columns)
        notes += other_types

        replica_rows = self._replica_rows(table.name)
        self._control.begin(f"validate {table.name}", max(1, replica_rows))
        checksum = TableChecksum(table, replica_rows)
        buckets, mysql_rows = self._differing_buckets(table, checksum, relation)
        if buckets is not None and not buckets:
            return TableReport(table.name, "equal", mysql_rows, replica_rows, notes=tuple(notes))
        where, here = ("", "") if buckets is None else (checksum.mysql_where(buckets), checksum.replica_where(buckets))
        contrast = self._read_rows(table, where)
        missing, extra, different = self._interruptible(
            lambda: contrast.against(f"{relation}{here and ' WHERE '}{here}")
        )
        return TableReport(
            table.name,
            "different" if missing or extra or different else "equal",
            contrast.rows if mysql_rows is None else mysql_rows,
            replica_rows,
            missing,
            extra,
            different,
            contrast.first(self._max_differences),
            contrast.rows,
            tuple(notes),
        )

    # ---- the replica's tables ------------------------------------------------------------------------------

    def _replica_columns(self, table: str) -> dict[str, tuple[str, str]]:
        """Folded name -> (name, type); empty when there is no such table."""
        rows = self._duck.execute(
            "SELECT column_name, data_type FROM duckdb_columns() "
            f"WHERE database_name = '{_REPLICA}' AND schema_name = 'main' AND lower(table_name) = lower(?)",
            [table],
        ).fetchall()
        return {fold(name): (name, kind) for name, kind in rows}

    def _replica_rows(self, table: str) -> int:
        import duckdb

        try:
            return int(self._duck.execute(f"SELECT count(*) FROM {_name(table)}").fetchall()[0][0])
        except duckdb.CatalogException:
            return 0

    def _relation(self, table: Table, columns: dict[str, tuple[str, str]]) -> tuple[str, list[str]]:
        """SQL of the replica's table with columns ``c0``, ``c1``, … in the types that a copy would give them; and which
        have others.
        """
        values, notes = [], []
        for number, column in enumerate(table.columns):
            name, found = columns[fold(column.name)]
            wanted = self._duck.execute(f"SELECT typeof(CAST(NULL AS {duck_type(column)}))").fetchall()[0][0]
            value = quote(name)
            if found != wanted:
                notes.append(f"{column.name} is {found} in the replica, a new copy would make it {wanted}")
                value = f"TRY_CAST({value} AS {wanted})"
            values.append(f"{value} AS c{number}")
        return f"(SELECT {', '.join(values)} FROM {_name(table.name)})", notes

    # ---- checksums -----------------------------------------------------------------------------------------

    def _differing_buckets(
        self, table: Table, checksum: TableChecksum, relation: str
    ) -> tuple[set[str | None] | None, int | None]:
        """(buckets that are not the same on both sides, MySQL's rows); (None, None) where there is no checksum."""

        def on_mysql() -> dict[str | None, Bucket]:
            with translated(self._source, "validate"):
                return checksum.of_mysql(self._connection)

        def on_replica() -> dict[str | None, Bucket]:
            rows = self._duck.execute(checksum.replica_query(relation)).fetchall()
            return {name: Bucket(int(count), int(total)) for name, count, total in rows}

        try:
            with self._stoppable(), Workers(2, name="duckling-validate", control=self._control) as pool:
                theirs, ours = pool.submit(on_mysql), pool.submit(on_replica)
                mysql, replica = pool.result(theirs), pool.result(ours)
        except SourceError as error:
            if error.retryable or error.code == _ALTERED or error.code in _GONE | _DENIED:
                raise
            # Such as a server whose SHA2 is switched off.
            log.warning("%s: the server can't compute its checksum, so all rows are read: %s", table.name, error)
            return None, None
        differing = {name for name in mysql.keys() | replica.keys() if mysql.get(name) != replica.get(name)}
        return differing, sum(bucket.rows for bucket in mysql.values())

    def _mysql_rows(self, table: Table) -> int:
        def count() -> int:
            with translated(self._source, "validate"):
                return int(query(self._connection, f"SELECT COUNT(*) FROM {quote_mysql(table.name)}")[0][0])

        return self._interruptible(count)

    # ---- rows ----------------------------------------------------------------------------------------------

    def _read_rows(self, table: Table, where: str) -> Contrast:
        with contextlib.closing(connect(self._source)) as questions, translated(self._source, "validate"):
            pace = Pace(Statistics.read(questions, table.name).row_bytes)
        pieces = Transport(self._source, table, pace, fast=False).stream(self._connection, where)

        def next_piece() -> Any:
            with translated(self._source, "validate"):
                return next(pieces, None)

        contrast = Contrast(self._duck, table)
        while (piece := self._interruptible(next_piece)) is not None:
            contrast.add(piece)
            self._control.advance(0)
        return contrast

    # ---- stopping ------------------------------------------------------------------------------------------

    def _interruptible(self, call: Callable[[], T]) -> T:
        with self._stoppable():
            return interruptible(call, self._control)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """A cancellation inside ends what both sides are doing: the server would go on scanning for nothing."""
        try:
            yield
        except AbandonedError as error:
            self._duck.interrupt()
            end = threading.Thread(target=end_query, args=(self._source, self._connection), daemon=True)
            end.start()
            end.join(1.0)
            raise CancelledError(
                "stopped on request", hint="It has changed nothing; run it again when you like."
            ) from error


def _name(table: str) -> str:
    return f"{_REPLICA}.main.{quote(table)}"
