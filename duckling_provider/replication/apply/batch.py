"""What of the source's transactions is not committed in the replica yet: net changes of its tables, tables that need a
new copy, lines for the history. All of it is one DuckDB transaction, together with the position that it leads to.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.apply.foreign_keys import Children, Reference
from duckling_provider.replication.apply.net_changes import VIEWS, Pending, Reread
from duckling_provider.replication.ddl.apply_ddl import Follower, NotFollowedError
from duckling_provider.replication.model import types
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import quote
from duckling_provider.replication.model.tables import Commit, Position, RowChange

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

#: What the ledger's counter of dates that became NULL is called.
ZERO_DATES = "zero dates"


@dataclass
class Applied:
    """What was committed so far: `changes` as the binlog counts them, `position` and `timestamp` of the last commit.

    :param left_at: when the last transaction was committed that is whole in a table of `marked`; 0.0: before all that
        was applied.
    """

    changes: int = 0
    batches: int = 0
    schema_changes: int = 0
    position: Position | None = None
    timestamp: float = 0.0
    marked: dict[str, str] = field(default_factory=dict)
    left_at: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchLimits:
    """A batch is committed at the first end of a transaction after so many changes, seconds or bytes of values."""

    changes: int = 10_000
    seconds: float = 1.0
    bytes: int = 64 << 20


class Batch:
    """One transaction of DuckDB in the making, and the next one when it is committed.

    Memory: at most twice `limits.changes` changes, or about twice `limits.bytes` of long values, wait in Python. A
    larger transaction is written to DuckDB in parts of that size and committed once, at its end; DuckDB holds what is
    not committed within its ``memory_limit``, and writes new rows beyond that to the file ahead of the commit.

    :param connection: to the replica, in no transaction; no other code uses it meanwhile.
    :param prefix: SQL before a table's name: catalog and schema.
    :param wanted: whether a table of this name is mirrored.
    :param reread: asked for rows whose generated columns the binlog leaves out; when omitted, their tables are marked.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        ledger: Ledger,
        *,
        prefix: str,
        wanted: Callable[[str], bool],
        limits: BatchLimits,
        references: Iterable[Reference],
        reread: Reread | None,
    ) -> None:
        self._connection, self._ledger, self._prefix = connection, ledger, prefix
        self._wanted, self._limits, self._reread = wanted, limits, reread
        self.follower = Follower(connection, ledger, prefix=prefix, wanted=wanted)
        self.children = Children(connection, prefix, references)
        #: Keys of parents' rows that are gone, by foreign key, until that is done to the children's rows.
        self._gone: dict[Reference, list[tuple[Any, ...]]] = {}
        #: The tables as the ledger has them, and what was marked since.
        self.states = ledger.tables()
        self._starts = _starts(self.states)
        self._pending: dict[str, Pending | None] = {}
        self.to_mark: dict[str, str] = {}
        #: Tables that the source's current transaction has changed.
        self._touched: set[str] = set()
        #: Lines for the history, of statements that are not known.
        self.to_record: list[str] = []
        self._changes = self._size = 0
        #: Row changes that wait for their commit.
        self.uncommitted = 0
        self._begun = False
        #: Whether the source's current transaction has no end yet.
        self.is_open = False
        #: The table whose changes are being written.
        self._writing = ""
        #: The end of the last transaction that is whole in it, and of `time.monotonic` when the first one was.
        self.last: Commit | None = None
        self._since = 0.0
        #: Where the source's current transaction begins.
        self.begin: Position | None = None
        self.applied = Applied()

    # ---- taking ----

    def take(self, change: RowChange) -> None:
        """A row change of the source's current transaction.

        :raises DucklingError: when DuckDB can't write it; the batch is abandoned then.
        """
        self.is_open = True
        if self.children.by_parent and not self._is_of_parents(change):
            return
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
            self.mark(change.table, f"a change could not be taken: {type(error).__name__}: {error}")
            return
        self._touched.add(change.table)
        self._changes += 1
        self.uncommitted += 1
        # The ends of transactions are waited for with half of what may be kept.
        if self._changes >= 2 * self._limits.changes or self._size >= 2 * self._limits.bytes:
            self.write_part()

    def end(self, commit: Commit) -> None:
        """The source's current transaction ends."""
        self.is_open, self.begin = False, None
        self._touched.clear()
        if self.last is None:
            self._since = time.monotonic()
        self.last = commit

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._since >= self._limits.seconds

    @property
    def is_full(self) -> bool:
        """Whether it is to be committed at the end of a transaction."""
        limits = self._limits
        return self._changes >= limits.changes or self._begun or self._size >= limits.bytes or self.is_due

    def _is_of_parents(self, change: RowChange) -> bool:
        """Note what foreign keys make of `change` in other tables; whether the change itself is of interest."""
        if self._gone and change.after is not None and any(change.table == gone.child for gone in self._gone):
            # A row that comes later must not go with those before. Deletions need no order among themselves.
            self.write_part()
        if change.before is not None and not change.unchecked:
            for reference in self.children.by_parent.get(change.table, ()):
                self._follow_reference(reference, change)
        return self._wanted(change.table)

    def _follow_reference(self, reference: Reference, change: RowChange) -> None:
        if not (reference.on_delete if change.after is None else reference.on_update):
            return
        names = [name.lower() for name in change.columns]
        places = [names.index(name.lower()) for name in reference.parent_columns if name.lower() in names]
        key = None
        if len(places) == len(reference.parent_columns) and change.before is not None:
            key = tuple(change.before[place] for place in places)
            if None in key or (change.after is not None and key == tuple(change.after[place] for place in places)):
                return
        child = reference.child
        state = self.states.get(child)
        is_here = state is not None and state.state == "ok" and self._pending.get(child, state) is not None
        if is_here and state is not None and not (child in self._starts and self._is_before(self._starts[child])):
            if change.after is None and key is not None and self.children.is_comparable(reference, state):
                self._gone.setdefault(reference, []).append(key)
                self._changes += 1
                return
            self._mark_unseen({child})
        # Which of its rows went, and so which rows of its own children, can't be seen here.
        self._mark_unseen(self.children.descendants(child))

    def _mark_unseen(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            state = self.states.get(name)
            starts_later = name in self._starts and self._is_before(self._starts[name])
            if state is not None and state.state == "ok" and not starts_later:
                self.mark(name, "a foreign key changed rows of it, which the binlog does not tell")

    def _prepare(self, change: RowChange) -> Pending | None:
        name = change.table
        if name in self._pending and self._pending[name] is None:
            return None
        state = self.states.get(name)
        made: Pending | None = None
        old = self._pending.get(name)
        if old is not None:
            if tuple(old.columns) == tuple(change.columns):
                old.columns = change.columns
                return old
            # Other columns under the same name in one batch, without a DDL between them that was seen.
            self.write_part()
        if state is None:
            self.mark(name, "it was not in the replica when it changed")
        elif state.state == "ok":
            try:
                _require_same_choices(state, change)
                made = Pending.of(state, change.columns, self._reread)
            except NotFollowedError as error:
                self.mark(name, error.note)
        self._pending[name] = made
        return made

    def _is_before(self, start: Position) -> bool:
        begin = self.begin
        return begin is not None and begin.server == start.server and begin.order <= start.order

    # ---- tables that need a new copy ----

    def mark_new(self, names: Iterable[str], note: str) -> None:
        """Mark those that were not copied later than this."""
        for name in names:
            if name not in self._starts or not self._is_before(self._starts[name]):
                self.mark(name, note)

    def mark(self, name: str, note: str) -> None:
        """From here on its changes are skipped; the ledger learns of it with the batch."""
        if self.to_mark.get(name) is None and getattr(self.states.get(name), "state", "ok") == "ok":
            log.warning("%s needs a new copy: %s", name, note)
            self._leave(name)
            self.to_mark[name] = note
        self._pending[name] = None

    def _leave(self, name: str) -> None:
        """Its changes of whole transactions are written, so that it stays as it was after the last of them."""
        pending = self._pending.get(name)
        whole = name not in self._touched and not self._writing
        if whole and pending is not None and pending.changes:
            self.write_part()
        last = self.last if whole else None
        self.applied.left_at[name] = last.timestamp if last is not None else self.applied.timestamp

    # ---- writing ----

    def commit(self) -> None:
        """Commit what is whole in it, up to the last end of a transaction; none may be open."""
        if self.last is None:
            return
        try:
            self._write()
            self.ensure_begun()
            for name, note in self.to_mark.items():
                self.follower.mark(name, note, self.states)
            for line in self.to_record:
                self._ledger.record("statement", line)
            self._forget_starts(self.last.position)
            self._ledger.save_position(self.last.position)
            self._connection.commit()
        except Exception as error:
            raise self._failed(error) from error
        except BaseException:
            self.abandon()
            raise
        self._count_committed(self.last)

    def abandon(self) -> None:
        """Drop everything that is not committed; a new stream from the ledger's position brings it again."""
        import duckdb

        if self._begun:
            # A commit that failed has ended the transaction itself.
            with contextlib.suppress(duckdb.TransactionException):
                self._connection.rollback()
            for name in VIEWS:
                self._connection.unregister(name)
        self.states = self._ledger.tables()
        self.reset()

    def write_part(self) -> None:
        """Too much to keep: write it, uncommitted."""
        try:
            self._write()
        except Exception as error:
            raise self._failed(error) from error

    def ensure_begun(self) -> None:
        """Have DuckDB's transaction begun."""
        if not self._begun:
            self._connection.begin()
            self._begun = True

    def _write(self) -> None:
        """The pending changes into DuckDB's open transaction."""
        for name, pending in list(self._pending.items()):
            if pending is None or not pending.changes:
                continue
            self.ensure_begun()
            self._writing = name
            try:
                zeros = pending.write(self._connection, self._prefix + quote(name))
            except NotFollowedError as error:
                # The rest of the transaction is good: what was tried has failed before DuckDB saw it.
                self.mark(name, error.note)
                continue
            if zeros:
                self._ledger.count({(name, ZERO_DATES): zeros})
            pending.clear()
        for reference, keys in self._gone.items():
            if self._pending.get(reference.child, keys) is not None:
                self.ensure_begun()
                self._writing = reference.child
                self._mark_unseen(self.children.delete(reference, keys, self.states))
        self._gone.clear()
        self._writing = ""
        self._changes = self._size = 0

    def _failed(self, error: Exception) -> Exception:
        """Give the batch up. A table that DuckDB refuses changes of is marked, so that the others can go on."""
        import duckdb

        name, self._writing = self._writing, ""
        self.abandon()
        if not isinstance(error, duckdb.Error):
            return error
        cause = str(error).splitlines()[0]
        if not name or not isinstance(error, (duckdb.DataError, duckdb.IntegrityError, duckdb.ProgrammingError)):
            return ReplicationError(
                f"DuckDB could not write: {cause}",
                operation="apply changes",
                hint="Nothing of the batch is in the replica; the next run begins at the position before it.",
            )
        note = f"DuckDB refused its changes: {cause}"
        self._connection.begin()
        self.follower.mark(name, note, self.states)
        self._connection.commit()
        self.applied.marked[name] = note
        return ReplicationError(
            f"{name} needs a new copy: {note}",
            operation="apply changes",
            hint="The next run goes on with the other tables.",
            retryable=True,
        )

    def _forget_starts(self, position: Position) -> None:
        for name, start in list(self._starts.items()):
            if start.server == position.server and position.order >= start.order:
                self.states[name] = replace(self.states[name], start=None)
                self._ledger.save_table(self.states[name])
                del self._starts[name]

    def _count_committed(self, commit: Commit) -> None:
        applied = self.applied
        applied.changes += self.uncommitted
        applied.batches += 1
        applied.position, applied.timestamp = commit.position, commit.timestamp
        applied.marked |= self.to_mark
        self._begun, self.last, self.uncommitted = False, None, 0
        self.to_mark.clear()
        self.to_record.clear()

    def reset(self) -> None:
        """All of it was committed or dropped."""
        self._pending.clear()
        self._gone.clear()
        self._touched.clear()
        self.to_mark.clear()
        self.to_record.clear()
        self._changes = self.uncommitted = self._size = 0
        self._begun = self.is_open = False
        self.last, self.begin = None, None
        self._starts = _starts(self.states)


def _require_same_choices(state: TableState, change: RowChange) -> None:
    """:raises NotFollowedError: the binlog's choices may be in another character set than it says."""
    for column in state.table.columns:
        told = change.choices.get(column.name)
        if told is not None and list(told) != list(types.enum_values(column)):
            raise NotFollowedError(state.name, f"{column.name} has other choices in the binlog than in the replica")


def _starts(states: dict[str, TableState]) -> dict[str, Position]:
    return {name: state.start for name, state in states.items() if state.start is not None and state.state == "ok"}
