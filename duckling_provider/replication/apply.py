"""Changes from the binlog into the replica, in micro-batches: each is one DuckDB transaction, together with its
position.

So after a crash at any moment the replica is exactly at the position that it names. Of a batch only the net effect on
each table is applied: for tables with a primary key the last state of each key, by a keyed DELETE and an INSERT, which
makes changes that are in the replica already harmless; for the others, how many equal rows came and went.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from duckling_provider.core.errors import DucklingError
from duckling_provider.replication import ddl, types
from duckling_provider.replication.follow import Follower, NotFollowedError
from duckling_provider.replication.ledger import Ledger, TableState
from duckling_provider.replication.model import Column, Commit, Position, RowChange, SchemaChange
from duckling_provider.replication.names import fold, quote
from duckling_provider.replication.rows import ZERO_DATE
from duckling_provider.replication.stream import Begin, ForeignSchemaChange, StreamEvent, Unfollowed

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

#: What the ledger's counter of dates that became NULL is called.
ZERO_DATES = "zero dates"

_DATES = frozenset({"date", "datetime", "timestamp"})
#: Types whose values may be so large that a batch is cut by their size.
_LARGE = frozenset(
    {"text", "mediumtext", "longtext", "blob", "mediumblob", "longblob", "json", "varchar", "varbinary", "geometry"}
)
_KEYS, _ROWS = "_duckling_keys", "_duckling_rows"


@dataclass
class Applied:
    """What was committed so far: `changes` as the binlog counts them, `position` and `timestamp` of the last commit."""

    changes: int = 0
    batches: int = 0
    schema_changes: int = 0
    position: Position | None = None
    timestamp: float = 0.0
    marked: dict[str, str] = field(default_factory=dict)


class Applier:
    """Takes what `BinlogStream` tells and brings it into the replica.

    Memory: at most twice `max_changes` changes, or about twice `max_bytes` of long values, wait in Python. A larger
    transaction is written to DuckDB in parts of that size and committed once, at its end; DuckDB holds what is not
    committed within its ``memory_limit``, and writes new rows beyond that to the file ahead of the commit.

    :param connection: to the replica, in no transaction; nobody else uses it meanwhile.
    :param database: the mirrored database, for names in DDL.
    :param wanted: whether a table of this name is mirrored, for those that come into being.
    :param max_seconds: a batch is committed at the first end of a transaction after that long.
    :param catalog: the name under which the replica is attached; the connection's own database when omitted.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        ledger: Ledger,
        *,
        database: str,
        wanted: Callable[[str], bool] | None = None,
        max_changes: int = 10_000,
        max_seconds: float = 1.0,
        max_bytes: int = 64 << 20,
        catalog: str | None = None,
    ) -> None:
        self._connection, self._ledger, self._database = connection, ledger, database
        self._prefix = (f"{quote(catalog)}." if catalog else "") + "main."
        self._follower = Follower(connection, ledger, prefix=self._prefix, wanted=wanted or (lambda _: True))
        self._max_changes, self._max_seconds, self._max_bytes = max_changes, max_seconds, max_bytes
        self._states = ledger.tables()
        self._starts = _starts(self._states)
        self._pending: dict[str, _Pending | None] = {}
        self._to_mark: dict[str, str] = {}
        self._changes = self._uncommitted = self._size = 0
        self._begun = self._open = False
        #: The table whose changes are being written.
        self._writing = ""
        self._last: Commit | None = None
        self._since = 0.0
        self._begin: Position | None = None
        self.applied = Applied()

    def take(self, event: StreamEvent | None) -> bool:
        """Take the next event; None says that there is none at the moment. Whether a batch was committed.

        :raises DucklingError: when DuckDB can't write; nothing of the current batch is in the replica then.
        """
        if isinstance(event, RowChange):
            self._change(event)
            return False
        if isinstance(event, Commit):
            return self._commit(event)
        if isinstance(event, SchemaChange):
            self._schema_change(event)
            return True
        if isinstance(event, Begin):
            self._begin = event.position
        elif isinstance(event, Unfollowed):
            self._unfollowed(event)
        elif self._last is not None and not self._open and self._is_due():
            self.flush()
            return True
        return False

    def flush(self) -> None:
        """Commit what has been taken, up to the last end of a transaction.

        In the middle of a transaction there is no committing: call `abandon` instead.
        """
        if self._open:
            raise DucklingError("a transaction of the source is not complete", operation="apply")
        if self._last is None:
            return
        try:
            self._write()
            self._ensure_begun()
            for name, note in self._to_mark.items():
                self._follower.mark(name, note, self._states)
            self._forget_starts(self._last.position)
            self._ledger.save_position(self._last.position)
            self._connection.commit()
        except Exception as error:
            raise self._failed(error) from error
        except BaseException:
            self.abandon()
            raise
        self._count_committed(self._last)

    def abandon(self) -> None:
        """Drop everything that is not committed; a new stream from the ledger's position brings it again."""
        import duckdb

        if self._begun:
            # A commit that failed has ended the transaction itself.
            with contextlib.suppress(duckdb.TransactionException):
                self._connection.rollback()
            for name in (_KEYS, _ROWS):
                self._connection.unregister(name)
        self._states = self._ledger.tables()
        self._reset()

    @property
    def pending(self) -> int:
        """How many row changes wait for their commit."""
        return self._uncommitted

    @property
    def in_transaction(self) -> bool:
        """Whether the source's current transaction has no end yet, so that `flush` has to wait."""
        return self._open

    # ---- taking ----

    def _change(self, change: RowChange) -> None:
        self._open = True
        if self._starts and change.table in self._starts and self._is_before(self._starts[change.table]):
            return
        pending = self._pending.get(change.table)
        if pending is None or pending.columns is not change.columns:
            pending = self._prepare(change)
            if pending is None:
                return
        try:
            self._size += pending.add(change)
        except (KeyError, ValueError, TypeError, ArithmeticError, LookupError) as error:
            self._mark(change.table, f"a change could not be taken: {type(error).__name__}: {error}")
            return
        self._changes += 1
        self._uncommitted += 1
        # The ends of transactions are waited for with half of what may be kept.
        if self._changes >= 2 * self._max_changes or self._size >= 2 * self._max_bytes:
            self._part()

    def _part(self) -> None:
        """Too much to keep: write it, uncommitted."""
        try:
            self._write()
        except Exception as error:
            raise self._failed(error) from error

    def _prepare(self, change: RowChange) -> _Pending | None:
        name = change.table
        if name in self._pending and self._pending[name] is None:
            return None
        state = self._states.get(name)
        made: _Pending | None = None
        old = self._pending.get(name)
        if old is not None:
            if tuple(old.columns) == tuple(change.columns):
                old.columns = change.columns
                return old
            # Other columns under the same name in one batch, without a DDL between them that was seen.
            self._part()
        if state is None:
            self._mark(name, "it was not in the replica when it changed")
        elif state.state == "ok":
            try:
                made = _Pending.of(state, change.columns)
            except NotFollowedError as error:
                self._mark(name, error.note)
        self._pending[name] = made
        return made

    def _is_before(self, start: Position) -> bool:
        begin = self._begin
        return begin is not None and begin.server == start.server and begin.order <= start.order

    def _commit(self, commit: Commit) -> bool:
        self._open, self._begin = False, None
        if self._last is None:
            self._since = time.monotonic()
        self._last = commit
        if self._changes >= self._max_changes or self._begun or self._size >= self._max_bytes or self._is_due():
            self.flush()
            return True
        return False

    def _is_due(self) -> bool:
        return time.monotonic() - self._since >= self._max_seconds

    def _unfollowed(self, event: Unfollowed) -> None:
        names = event.tables
        if names is None:
            said = {fold(name) for name in ddl.mentioned(event.statement)}
            names = tuple(name for name in self._states if fold(name) in said)
        for name in names:
            if name not in self._starts or not self._is_before(self._starts[name]):
                self._mark(name, event.note)

    def _mark(self, name: str, note: str) -> None:
        """From here on its changes are skipped; the ledger learns of it with the batch."""
        if self._to_mark.get(name) is None and getattr(self._states.get(name), "state", "ok") == "ok":
            log.warning("%s needs a new copy: %s", name, note)
            self._to_mark[name] = note
        self._pending[name] = None

    # ---- DDL ----

    def _schema_change(self, change: SchemaChange) -> None:
        if self._last is not None and not self._open:
            self.flush()
        elif self._open:
            # Rows and DDL in one transaction of the source: nobody's order is known but MySQL's.
            self._part()
        schema = change.schema if isinstance(change, ForeignSchemaChange) else None
        try:
            steps = ddl.parse(change.statement, self._database, schema=schema)
        except ddl.NotUnderstoodError as error:
            self._unfollowed(Unfollowed(f"a statement is not understood at “{error}”", None, change.statement))
            self._commit(Commit(change.position, change.timestamp))
            self.flush()
            return
        notes: dict[str, str] = {}
        marked = {name for name, state in self._states.items() if state.state == "recopy"}
        while True:
            failed = self._try_steps(steps, change.position, notes)
            if failed is None:
                break
            if failed[0] in notes:
                raise DucklingError(f"{failed[0]}: {failed[1]}", operation="follow a change of its schema")
            notes[failed[0]] = failed[1]
        self.applied.schema_changes += bool(steps)
        self.applied.marked |= {
            name: state.note for name, state in self._states.items() if state.state == "recopy" and name not in marked
        }
        self.applied.position, self.applied.timestamp = change.position, change.timestamp

    def _try_steps(self, steps: list[ddl.Step], position: Position, notes: dict[str, str]) -> tuple[str, str] | None:
        """Follow all steps and commit; or roll back and say which table failed and why.

        :param notes: tables that failed before: they are marked.
        """
        import duckdb

        current = ""
        self._ensure_begun()
        try:
            for name, note in notes.items():
                self._follower.mark(name, note, self._states)
            for step in steps:
                current = step.name
                state = self._states.get(current)
                start = state.start if state else None
                if current in notes and not isinstance(step, ddl.DropTable):
                    continue
                if start is not None and start.server == position.server and position.order <= start.order:
                    continue
                self._follower.do(step, self._states)
                if isinstance(step, ddl.Unclear):
                    log.warning("%s needs a new copy: %s", step.name, step.note)
            if steps:
                self._ledger.record("schema", "; ".join(_described(step) for step in steps))
            self._ledger.save_position(position)
            self._connection.commit()
        except NotFollowedError as error:
            self.abandon()
            log.warning("%s needs a new copy: %s", error.table, error.note)
            return error.table, error.note
        except duckdb.Error as error:
            self.abandon()
            log.warning("%s needs a new copy: %s", current, error)
            return current, f"DuckDB could not follow: {str(error).splitlines()[0]}"
        self._reset()
        return None

    # ---- writing ----

    def _ensure_begun(self) -> None:
        if not self._begun:
            self._connection.begin()
            self._begun = True

    def _failed(self, error: Exception) -> Exception:
        """Give the batch up. A table that DuckDB refuses changes of is marked, so that the others can go on."""
        import duckdb

        name, self._writing = self._writing, ""
        self.abandon()
        if not isinstance(error, duckdb.Error):
            return error
        cause = str(error).splitlines()[0]
        if not name or not isinstance(error, (duckdb.DataError, duckdb.IntegrityError, duckdb.ProgrammingError)):
            return DucklingError(
                f"DuckDB could not write: {cause}",
                operation="apply changes",
                hint="Nothing of the batch is in the replica; the next run begins at the position before it.",
            )
        note = f"DuckDB refused its changes: {cause}"
        self._connection.begin()
        self._follower.mark(name, note, self._states)
        self._connection.commit()
        self.applied.marked[name] = note
        return DucklingError(
            f"{name} needs a new copy: {note}",
            operation="apply changes",
            hint="The next run goes on with the other tables.",
            retryable=True,
        )

    def _write(self) -> None:
        """The pending changes into DuckDB's open transaction."""
        for name, pending in list(self._pending.items()):
            if pending is None or not pending.changes:
                continue
            self._ensure_begun()
            self._writing = name
            try:
                zeros = pending.write(self._connection, self._prefix + quote(name))
            except NotFollowedError as error:
                # The rest of the transaction is good: what was tried has failed before DuckDB saw it.
                self._mark(name, error.note)
                continue
            if zeros:
                self._ledger.count({(name, ZERO_DATES): zeros})
            pending.clear()
        self._writing = ""
        self._changes = self._size = 0

    def _forget_starts(self, position: Position) -> None:
        for name, start in list(self._starts.items()):
            if start.server == position.server and position.order >= start.order:
                self._states[name] = replace(self._states[name], start=None)
                self._ledger.save_table(self._states[name])
                del self._starts[name]

    def _count_committed(self, commit: Commit) -> None:
        applied = self.applied
        applied.changes += self._uncommitted
        applied.batches += 1
        applied.position, applied.timestamp = commit.position, commit.timestamp
        applied.marked |= self._to_mark
        self._begun, self._last, self._uncommitted = False, None, 0
        self._to_mark.clear()

    def _reset(self) -> None:
        self._pending.clear()
        self._to_mark.clear()
        self._changes = self._uncommitted = self._size = 0
        self._begun = self._open = False
        self._last, self._begin = None, None
        self._starts = _starts(self._states)


class _Pending:
    """What waits for one table, as its net effect."""

    def __init__(self, state: TableState, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._table = state.table.columns
        self.changes = 0

    @staticmethod
    def of(state: TableState, columns: tuple[str, ...]) -> _Pending:
        """:raises NotFollowedError: when the binlog's columns are not the replica's."""
        places = {name: place for place, name in enumerate(columns)}
        known = [column.name for column in state.table.columns]
        if set(known) != set(columns):
            other = ", ".join(sorted(set(known) ^ set(columns)))
            raise NotFollowedError(state.name, f"its columns in the binlog are not those of the replica: {other}")
        where = [places[name] for name in known]
        if state.table.primary_key:
            return _Keyed(state, columns, where)
        return _Keyless(state, columns, where)

    def add(self, change: RowChange) -> int:
        """Count the change in; the size in bytes of its long values."""
        raise NotImplementedError

    def write(self, connection: DuckDBPyConnection, table: str) -> int:
        """Into DuckDB's open transaction; how many dates became NULL.

        :raises NotFollowedError: for values that the replica's columns can't hold, before anything is written.
        """
        raise NotImplementedError

    def clear(self) -> None:
        self.changes = 0


class _Keyed(_Pending):
    def __init__(self, state: TableState, columns: tuple[str, ...], where: list[int]) -> None:
        super().__init__(state, columns)
        self._where = where
        by_name = {column.name: column for column in state.table.columns}
        self._key = [by_name[name] for name in state.table.primary_key]
        places = [columns.index(name) for name in state.table.primary_key]
        self._single = len(places) == 1
        self._key_of: Callable[[tuple[Any, ...]], Any] = itemgetter(*places)
        self._large = [columns.index(c.name) for c in state.table.columns if c.data_type in _LARGE]
        #: Key -> the row as it is now, None when it is gone.
        self._net: dict[Any, tuple[Any, ...] | None] = {}

    def add(self, change: RowChange) -> int:
        before, after = change.before, change.after
        self.changes += 1
        if before is not None:
            self._net[self._key_of(before)] = None
        if after is None:
            return 0
        self._net[self._key_of(after)] = after
        size = 0
        for place in self._large:
            value = after[place]
            if value is not None:
                size += len(value)
        return size

    def write(self, connection: DuckDBPyConnection, table: str) -> int:
        touched: Any = list(self._net)
        lanes = [touched] if self._single else list(zip(*touched, strict=True))
        keys, _ = _arrow(table, self._key, lanes)
        rows = [row for row in self._net.values() if row is not None]
        # Zero dates are NULL here, and NULL equals nothing.
        same = " AND ".join(
            f"t.{quote(column.name)} {'IS NOT DISTINCT FROM' if column.data_type in _DATES else '='} "
            f"{_value(column, place)}"
            for place, column in enumerate(self._key)
        )
        zeros = 0
        inserted = None
        if rows:
            values = list(zip(*rows, strict=True))
            inserted, zeros = _arrow(table, self._table, [values[place] for place in self._where])
        with _registered(connection, _KEYS, keys):
            connection.execute(f"DELETE FROM {table} AS t USING {_KEYS} AS c WHERE {same}")
        if inserted is not None:
            _insert(connection, table, self._table, inserted)
        return zeros

    def clear(self) -> None:
        super().clear()
        self._net = {}


class _Keyless(_Pending):
    def __init__(self, state: TableState, columns: tuple[str, ...], where: list[int]) -> None:
        super().__init__(state, columns)
        self._decoders = [
            (place, types.decode(column), column.data_type in _DATES)
            for place, column in zip(where, state.table.columns, strict=True)
        ]
        #: Row -> how many more (or fewer) of them there are.
        self._net: Counter[tuple[Any, ...]] = Counter()
        self._zeros = 0

    def add(self, change: RowChange) -> int:
        self.changes += 1
        size = 0
        if change.before is not None:
            self._net[self._decoded(change.before, count=False)] -= 1
        if change.after is not None:
            row = self._decoded(change.after, count=True)
            self._net[row] += 1
            size = sum(len(value) for value in row if isinstance(value, (str, bytes)))
        return size

    def _decoded(self, row: tuple[Any, ...], *, count: bool) -> tuple[Any, ...]:
        values = []
        for place, decode, dates in self._decoders:
            value = row[place]
            if dates and value is ZERO_DATE:
                self._zeros += count
                value = None
            values.append(decode(value))
        return tuple(values)

    def write(self, connection: DuckDBPyConnection, table: str) -> int:
        import pyarrow as pa

        names = [quote(column.name) for column in self._table]
        gone = {row: -count for row, count in self._net.items() if count < 0}
        come = [row for row, count in self._net.items() for _ in range(count)]
        new = _arrow_decoded(table, self._table, list(zip(*come, strict=True))) if come else None
        if gone:
            old = _arrow_decoded(table, self._table, list(zip(*gone, strict=True)))
            old = old.append_column("n", pa.array(gone.values(), pa.int64()))
            old = old.append_column("i", pa.array(range(len(gone)), pa.int64()))
            same = " AND ".join(
                f"t.{name} IS NOT DISTINCT FROM {_value(column, place)}"
                for place, (name, column) in enumerate(zip(names, self._table, strict=True))
            )
            with _registered(connection, _KEYS, old):
                # Of equal rows exactly as many as are gone.
                found = connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN (SELECT r FROM (SELECT t.rowid AS r, c.n AS n, "
                    f"row_number() OVER (PARTITION BY c.i) AS k FROM {table} AS t JOIN {_KEYS} AS c ON {same}) "
                    "WHERE k <= n)"
                ).fetchone()
            missing = sum(gone.values()) - int(found[0] if found else 0)
            if missing:
                # Not an error of this batch: whatever is wrong is put right by the copy.
                raise NotFollowedError(table, f"{missing} rows that MySQL deleted or changed were not in the replica")
        if new is not None:
            _insert(connection, table, self._table, new)
        zeros, self._zeros = self._zeros, 0
        return zeros

    def clear(self) -> None:
        super().clear()
        self._net = Counter()


def _arrow(table: str, columns: Iterable[Column], lanes: list[Any]) -> tuple[pa.Table, int]:
    """Values as `rows` read them -> columns c0, c1, … for `types.from_change`; and how many dates no calendar has."""
    decoded, zeros = [], 0
    for column, values in zip(columns, lanes, strict=True):
        lane = values
        if column.data_type in _DATES:
            count = sum(value is ZERO_DATE for value in lane)
            if count:
                zeros += count
                lane = [None if value is ZERO_DATE else value for value in lane]
        decode = types.decode(column)
        try:
            decoded.append([decode(value) for value in lane])
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise NotFollowedError(table, f"a value of {column.name} can't be read: {error}") from error
    return _arrow_decoded(table, columns, decoded), zeros


def _arrow_decoded(table: str, columns: Iterable[Column], lanes: list[Any]) -> pa.Table:
    import pyarrow as pa

    arrays = []
    for column, values in zip(columns, lanes, strict=True):
        try:
            arrays.append(pa.array(values, types.change_arrow(column)))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise NotFollowedError(table, f"a value of {column.name} does not fit its type: {error}") from error
    return pa.table(arrays, names=[f"c{place}" for place in range(len(arrays))])


def _value(column: Column, place: int) -> str:
    # The alias keeps clear of the table's own columns, which may be called the same.
    return types.from_change(column, f"c{place}").replace(quote(f"c{place}"), f"c.{quote(f'c{place}')}")


def _insert(connection: DuckDBPyConnection, table: str, columns: tuple[Column, ...], rows: pa.Table) -> None:
    names = ", ".join(quote(column.name) for column in columns)
    values = ", ".join(_value(column, place) for place, column in enumerate(columns))
    with _registered(connection, _ROWS, rows):
        connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM {_ROWS} AS c")


class _registered:  # noqa: N801 - reads as what it is in a with statement
    """An arrow table under a name that statements can use."""

    def __init__(self, connection: DuckDBPyConnection, name: str, table: pa.Table) -> None:
        self._connection, self._name, self._table = connection, name, table

    def __enter__(self) -> None:
        self._connection.register(self._name, self._table)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # In a transaction that has failed DuckDB does nothing; `abandon` makes up for it.
        if failed is None:
            self._connection.unregister(self._name)


def _starts(states: dict[str, TableState]) -> dict[str, Position]:
    return {name: state.start for name, state in states.items() if state.start is not None and state.state == "ok"}


def _described(step: ddl.Step) -> str:
    return f"{type(step).__name__} {step.name}"
