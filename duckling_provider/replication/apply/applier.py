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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.apply.foreign_keys import Children, Reference, altered, changes_references
from duckling_provider.replication.apply.net_changes import VIEWS, Pending, Reread
from duckling_provider.replication.apply.reach import Reach
from duckling_provider.replication.binlog.stream import Begin, ForeignSchemaChange, StreamEvent, Unfollowed
from duckling_provider.replication.ddl.apply_ddl import Follower, NotFollowedError
from duckling_provider.replication.ddl.parse import moved_here
from duckling_provider.replication.ddl.sql_tokens import Tokens, tokenize
from duckling_provider.replication.ddl.statements import Followed, Wrote, read_statement
from duckling_provider.replication.ddl.steps import DropTable, RenameTable, Rewrite, Step, Unclear
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import fold, quote
from duckling_provider.replication.model.tables import Commit, Position, RowChange, SchemaChange
from duckling_provider.replication.mysql.merge_tables import MergeTables

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


class Applier:
    """Takes what `BinlogStream` tells and brings it into the replica.

    Memory: at most twice `limits.changes` changes, or about twice `limits.bytes` of long values, wait in Python. A
    larger transaction is written to DuckDB in parts of that size and committed once, at its end; DuckDB holds what is
    not committed within its ``memory_limit``, and writes new rows beyond that to the file ahead of the commit.

    :param connection: to the replica, in no transaction; no other code uses it meanwhile.
    :param database: the mirrored database, for names in DDL.
    :param wanted: whether a table of this name is mirrored, for those that come into being.
    :param limits: when a batch is committed.
    :param references: the foreign keys that MySQL has.
    :param read_references: asked for those that it has now when they have changed.
    :param reach: asked for what statements write besides the tables that they name; when omitted, that is everything.
    :param merged: asked for the tables that are emptied through others.
    :param reread: asked for rows whose generated columns the binlog leaves out; when omitted, their tables are marked.
    :param catalog: the name under which the replica is attached; the connection's own database when omitted.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        ledger: Ledger,
        *,
        database: str,
        wanted: Callable[[str], bool] | None = None,
        limits: BatchLimits | None = None,
        catalog: str | None = None,
        references: Iterable[Reference] = (),
        read_references: Callable[[], Iterable[Reference]] | None = None,
        reach: Callable[[], Reach] = Reach,
        merged: Callable[[], MergeTables] = MergeTables,
        reread: Reread | None = None,
    ) -> None:
        self._connection, self._ledger, self._database = connection, ledger, database
        self._prefix = (f"{quote(catalog)}." if catalog else "") + "main."
        self._wanted = wanted or (lambda _: True)
        self._follower = Follower(connection, ledger, prefix=self._prefix, wanted=self._wanted)
        self._read_references = read_references or (lambda: references)
        self._reach, self._merged, self._reread = reach, merged, reread
        #: As last seen, until another statement may have changed it or the batch ends.
        self._seen_reach: Reach | None = None
        self._children = Children(connection, self._prefix, references)
        #: Keys of parents' rows that are gone, by foreign key, until that is done to the children's rows.
        self._gone: dict[Reference, list[tuple[Any, ...]]] = {}
        self._limits = limits or BatchLimits()
        self._states = ledger.tables()
        self._starts = _starts(self._states)
        self._pending: dict[str, Pending | None] = {}
        self._to_mark: dict[str, str] = {}
        #: Tables that the source's current transaction has changed.
        self._touched: set[str] = set()
        #: Lines for the history, of statements that are not known.
        self._to_record: list[str] = []
        #: What wrote rows as a statement, and may be redefined before it is asked for.
        self._has_reached = False
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
            return self._statement(event)
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
            raise ReplicationError("a transaction of the source is not complete", operation="apply")
        if self._last is None:
            return
        try:
            self._write()
            self._ensure_begun()
            for name, note in self._to_mark.items():
                self._follower.mark(name, note, self._states)
            for line in self._to_record:
                self._ledger.record("statement", line)
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
            for name in VIEWS:
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
        if self._children.by_parent and not self._is_of_parents(change):
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
            self._mark(change.table, f"a change could not be taken: {type(error).__name__}: {error}")
            return
        self._touched.add(change.table)
        self._changes += 1
        self._uncommitted += 1
        # The ends of transactions are waited for with half of what may be kept.
        if self._changes >= 2 * self._limits.changes or self._size >= 2 * self._limits.bytes:
            self._part()

    def _is_of_parents(self, change: RowChange) -> bool:
        """Note what foreign keys make of `change` in other tables; whether the change itself is of interest."""
        if self._gone and change.after is not None and any(change.table == gone.child for gone in self._gone):
            # A row that comes later must not go with those before. Deletions need no order among themselves.
            self._part()
        if change.before is not None and not change.unchecked:
            for reference in self._children.by_parent.get(change.table, ()):
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
        state = self._states.get(child)
        is_here = state is not None and state.state == "ok" and self._pending.get(child, state) is not None
        if is_here and state is not None and not (child in self._starts and self._is_before(self._starts[child])):
            if change.after is None and key is not None and self._children.is_comparable(reference, state):
                self._gone.setdefault(reference, []).append(key)
                self._changes += 1
                return
            self._mark_unseen({child})
        # Which of its rows went, and so which rows of its own children, can't be seen here.
        self._mark_unseen(self._children.descendants(child))

    def _mark_unseen(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            state = self._states.get(name)
            starts_later = name in self._starts and self._is_before(self._starts[name])
            if state is not None and state.state == "ok" and not starts_later:
                self._mark(name, "a foreign key changed rows of it, which the binlog does not tell")

    def _part(self) -> None:
        """Too much to keep: write it, uncommitted."""
        try:
            self._write()
        except Exception as error:
            raise self._failed(error) from error

    def _prepare(self, change: RowChange) -> Pending | None:
        name = change.table
        if name in self._pending and self._pending[name] is None:
            return None
        state = self._states.get(name)
        made: Pending | None = None
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
                made = Pending.of(state, change.columns, self._reread)
            except NotFollowedError as error:
                self._mark(name, error.note)
        self._pending[name] = made
        return made

    def _is_before(self, start: Position) -> bool:
        begin = self._begin
        return begin is not None and begin.server == start.server and begin.order <= start.order

    def _commit(self, commit: Commit) -> bool:
        self._open, self._begin = False, None
        self._touched.clear()
        if self._last is None:
            self._since = time.monotonic()
        self._last = commit
        if self._changes >= self._limits.changes or self._begun or self._size >= self._limits.bytes or self._is_due():
            self.flush()
            return True
        return False

    def _is_due(self) -> bool:
        return time.monotonic() - self._since >= self._limits.seconds

    def _unfollowed(self, event: Unfollowed) -> None:
        # Its transaction has not ended: until then nothing can be committed.
        self._open = True
        self._mark_new(event.tables, event.note)

    def _mark_new(self, names: Iterable[str], note: str) -> None:
        """Mark those that were not copied later than this."""
        for name in names:
            if name not in self._starts or not self._is_before(self._starts[name]):
                self._mark(name, note)

    def _mark(self, name: str, note: str) -> None:
        """From here on its changes are skipped; the ledger learns of it with the batch."""
        if self._to_mark.get(name) is None and getattr(self._states.get(name), "state", "ok") == "ok":
            log.warning("%s needs a new copy: %s", name, note)
            self._leave(name)
            self._to_mark[name] = note
        self._pending[name] = None

    def _leave(self, name: str) -> None:
        """Its changes of whole transactions are written, so that it stays as it was after the last of them."""
        pending = self._pending.get(name)
        whole = name not in self._touched and not self._writing
        if whole and pending is not None and pending.changes:
            self._part()
        last = self._last if whole else None
        self.applied.left_at[name] = last.timestamp if last is not None else self.applied.timestamp

    # ---- statements ----

    def _statement(self, change: SchemaChange) -> bool:
        schema = change.schema if isinstance(change, ForeignSchemaChange) else self._database
        meaning = read_statement(
            change.statement,
            self._database,
            schema,
            folds=change.folds,
            sql_mode=change.sql_mode,
            of_session=change.of_session,
            mariadb=change.mariadb,
        )
        if isinstance(meaning, Wrote):
            self._wrote(meaning)
        else:
            self._seen_reach = None
            self._redefined(redefines=meaning.redefines)
            for database, name in meaning.truncated:
                if database != self._database or name not in self._states:
                    emptied = self._merged().written_through(database, name)
                    self._mark_new(emptied, f"it may have been emptied through {database}.{name}")
            steps = self._spread(meaning, change)
            if steps or not change.inside:
                self._schema_change(change, steps)
                return True
        if change.inside:
            # Its transaction has not ended: until then nothing can be committed.
            self._open = True
            return False
        return self._commit(Commit(change.position, change.timestamp))

    def _wrote(self, wrote: Wrote) -> None:
        if self._seen_reach is None:
            self._seen_reach = self._reach()
        tables = self._seen_reach.written_by(wrote, self._states, self._children.of_statements())
        self._has_reached = self._has_reached or (wrote.fires and bool(tables))
        self._mark_new(sorted(tables), wrote.note)
        if not wrote.known:
            self._to_record.append(wrote.note)

    def _redefined(self, *, redefines: bool) -> None:
        if redefines and self._has_reached:
            self._has_reached = False
            note = "a statement wrote rows, by what is not there any more as it was"
            self._mark_new([name for name, state in self._states.items() if state.state == "ok"], note)

    def _spread(self, meaning: Followed, change: SchemaChange) -> list[Step]:
        """The steps of a statement; doubts about an ALTER TABLE are about every table that it names."""
        if meaning.drops_all:
            return [DropTable(name) for name in self._states]
        unclear = next((step for step in meaning.steps if isinstance(step, Unclear)), None)
        if unclear is None:
            # Before it gets another name, and after the columns are gone that it loses.
            place = next((n for n, step in enumerate(meaning.steps) if isinstance(step, RenameTable)), None)
            rewritten = (Rewrite(name) for name in meaning.rebuilt if self._has_generated(name))
            return [*meaning.steps[:place], *rewritten, *(() if place is None else meaning.steps[place:])]
        tokens = tokenize(change.statement)
        is_alter = Tokens(tokens).is_word("ALTER")
        said = {fold(text) for kind, text in tokens if kind in {"word", "name", "string"}} if is_alter else set()
        others = [name for name in self._states if fold(name) in said and name != unclear.name]
        return [*(Unclear(name, unclear.note) for name in others), *meaning.steps]

    def _has_generated(self, name: str) -> bool:
        state = self._states.get(name)
        return state is not None and any(column.generated for column in state.table.columns)

    # ---- DDL ----

    def _schema_change(self, change: SchemaChange, steps: list[Step]) -> None:
        if self._last is not None and not self._open:
            self.flush()
        elif self._open:
            # Rows and DDL in one transaction of the source: only MySQL knows their order.
            self._part()
        has_other_keys = changes_references(change.statement)
        before = self.applied.timestamp
        # What was marked, and not written yet, goes with this position.
        unwritten, lines = dict(self._to_mark), list(self._to_record)
        notes = unwritten | (dict(self._notes_of_references(change)) if has_other_keys else {})
        marked = {name for name, state in self._states.items() if state.state == "recopy"}
        while True:
            failed = self._try_steps(steps, change.position, notes, lines)
            if failed is None:
                break
            if failed[0] in notes:
                raise ReplicationError(f"{failed[0]}: {failed[1]}", operation="follow a change of its schema")
            notes[failed[0]] = failed[1]
        if has_other_keys or any(self._moves_keys(step) for step in steps):
            self._children = Children(self._connection, self._prefix, self._read_references())
        self.applied.schema_changes += bool(steps)
        new = {
            name: state.note for name, state in self._states.items() if state.state == "recopy" and name not in marked
        }
        self.applied.marked |= new
        self.applied.left_at |= dict.fromkeys(new.keys() - unwritten.keys(), before)
        self.applied.position, self.applied.timestamp = change.position, change.timestamp

    def _notes_of_references(self, change: SchemaChange) -> Iterable[tuple[str, str]]:
        """A table that gets or loses a foreign key: what that key did before, or did not do yet, is not known here."""
        name = altered(change.statement)
        state = self._states.get(name) if name else None
        if name is None or state is None or state.state != "ok":
            return
        if state.start is None or not _is_up_to(change.position, state.start):
            yield name, "its foreign keys changed"

    def _try_steps(
        self, steps: list[Step], position: Position, notes: dict[str, str], lines: Iterable[str]
    ) -> tuple[str, str] | None:
        """Follow all steps and commit; or roll back and say which table failed and why.

        :param notes: tables that failed before: they are marked.
        :param lines: for the history.
        """
        import duckdb

        current = ""
        later = [step.new if isinstance(step, RenameTable) else "" for step in steps]
        self._ensure_begun()
        try:
            for name, note in notes.items():
                self._follower.mark(name, note, self._states)
            for place, step in enumerate(steps):
                current = step.name
                state = self._states.get(current)
                start = state.start if state else None
                if current in notes and not isinstance(step, DropTable):
                    continue
                if start is not None and _is_up_to(position, start):
                    continue
                self._follower.do(step, self._states, replaced=later[place + 1 :])
                if isinstance(step, RenameTable):
                    self._renamed(step)
                elif isinstance(step, DropTable):
                    self._gone_elsewhere(step.name)
                if isinstance(step, Unclear):
                    log.warning("%s needs a new copy: %s", step.name, step.note)
            for line in lines:
                self._ledger.record("statement", line)
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

    def _renamed(self, step: RenameTable) -> None:
        """Foreign keys are known by the names that tables have now, and there were changes under the old ones."""
        names = {step.name, step.new}
        known = {child for parent in names for child in self._children.descendants(parent)}
        known |= names & {reference.child for group in self._children.by_parent.values() for reference in group}
        for name in known:
            if name in self._states and self._states[name].state == "ok":
                self._follower.mark(name, f"{step.name}, of its foreign keys, was renamed", self._states)

    def _gone_elsewhere(self, name: str) -> None:
        """Where a parent was moved to another database, the stream may have passed over changes of it already."""
        for child in self._children.descendants(name):
            if child in self._states and self._states[child].state == "ok":
                self._follower.mark(child, f"{name}, of its foreign keys, is in this database no more", self._states)

    def _moves_keys(self, step: Step) -> bool:
        """Whether foreign keys may lead to another table after it."""
        is_parent = isinstance(step, DropTable) and step.name in self._children.by_parent
        return is_parent or isinstance(step, RenameTable) or step == moved_here(step.name)

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
            return ReplicationError(
                f"DuckDB could not write: {cause}",
                operation="apply changes",
                hint="Nothing of the batch is in the replica; the next run begins at the position before it.",
            )
        note = f"DuckDB refused its changes: {cause}"
        self._connection.begin()
        self._follower.mark(name, note, self._states)
        self._connection.commit()
        self.applied.marked[name] = note
        return ReplicationError(
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
        for reference, keys in self._gone.items():
            if self._pending.get(reference.child, keys) is not None:
                self._ensure_begun()
                self._writing = reference.child
                self._mark_unseen(self._children.delete(reference, keys, self._states))
        self._gone.clear()
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
        self._to_record.clear()
        self._seen_reach = None

    def _reset(self) -> None:
        self._pending.clear()
        self._gone.clear()
        self._touched.clear()
        self._to_mark.clear()
        self._to_record.clear()
        self._changes = self._uncommitted = self._size = 0
        self._begun = self._open = False
        self._last, self._begin = None, None
        self._starts = _starts(self._states)


def _starts(states: dict[str, TableState]) -> dict[str, Position]:
    return {name: state.start for name, state in states.items() if state.start is not None and state.state == "ok"}


def _is_up_to(position: Position, start: Position) -> bool:
    return start.server == position.server and position.order <= start.order


def _described(step: Step) -> str:
    return f"{type(step).__name__} {step.name}"
