"""Statements of the binlog, done to the replica: DDL step by step, and what others wrote without showing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.apply.batch import Batch
from duckling_provider.replication.apply.foreign_keys import Children, Reference, altered, changes_references
from duckling_provider.replication.apply.reach import Reach
from duckling_provider.replication.binlog.stream import ForeignSchemaChange
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
from duckling_provider.replication.ddl.parse import moved_here
from duckling_provider.replication.ddl.sql_tokens import Tokens, tokenize
from duckling_provider.replication.ddl.statements import Followed, Wrote, read_statement
from duckling_provider.replication.ddl.steps import DropTable, RenameTable, Rewrite, Step, Unclear
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.names import fold
from duckling_provider.replication.model.tables import Position, SchemaChange
from duckling_provider.replication.mysql.merge_tables import MergeTables

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)


class SchemaChanges:
    """Does statements to the replica, each after what is in `batch`.

    :param database: the mirrored database, for names in DDL.
    :param prefix: SQL before a table's name: catalog and schema.
    :param read_references: asked for the foreign keys that MySQL has now when they have changed.
    :param reach: asked for what statements write besides the tables that they name.
    :param merged: asked for the tables that are emptied through others.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        ledger: Ledger,
        batch: Batch,
        *,
        database: str,
        prefix: str,
        read_references: Callable[[], Iterable[Reference]],
        reach: Callable[[], Reach],
        merged: Callable[[], MergeTables],
    ) -> None:
        self._connection, self._ledger, self._batch = connection, ledger, batch
        self._database, self._prefix = database, prefix
        self._read_references, self._reach, self._merged = read_references, reach, merged
        #: As last seen in a batch of that number, until another statement may have changed it.
        self._seen_reach: tuple[int, Reach] | None = None
        #: What wrote rows as a statement, and may be redefined before it is asked for.
        self._has_reached = False

    def take(self, change: SchemaChange) -> bool:
        """Whether it was committed, with all before it; else it waits for the end of a transaction."""
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
                if database != self._database or name not in self._batch.states:
                    emptied = self._merged().written_through(database, name)
                    self._batch.mark_new(emptied, f"it may have been emptied through {database}.{name}")
            steps = self._spread(meaning, change)
            if steps or not change.inside:
                self._schema_change(change, steps)
                return True
        return False

    def _wrote(self, wrote: Wrote) -> None:
        batch = self._batch
        number = batch.applied.batches
        if self._seen_reach is None or self._seen_reach[0] != number:
            self._seen_reach = number, self._reach()
        tables = self._seen_reach[1].written_by(wrote, batch.states, batch.children.of_statements())
        self._has_reached = self._has_reached or (wrote.fires and bool(tables))
        batch.mark_new(sorted(tables), wrote.note)
        if not wrote.known:
            batch.to_record.append(wrote.note)

    def _redefined(self, *, redefines: bool) -> None:
        if redefines and self._has_reached:
            self._has_reached = False
            note = "a statement wrote rows, by what is not there any more as it was"
            self._batch.mark_new([name for name, state in self._batch.states.items() if state.state == "ok"], note)

    def _spread(self, meaning: Followed, change: SchemaChange) -> list[Step]:
        """The steps of a statement; doubts about an ALTER TABLE are about every table that it names."""
        if meaning.drops_all:
            return [DropTable(name) for name in self._batch.states]
        unclear = next((step for step in meaning.steps if isinstance(step, Unclear)), None)
        if unclear is None:
            # Before it gets another name, and after the columns are gone that it loses.
            place = next((n for n, step in enumerate(meaning.steps) if isinstance(step, RenameTable)), None)
            rewritten = (Rewrite(name) for name in meaning.rebuilt if self._has_generated(name))
            return [*meaning.steps[:place], *rewritten, *(() if place is None else meaning.steps[place:])]
        tokens = tokenize(change.statement)
        is_alter = Tokens(tokens).is_word("ALTER")
        said = {fold(text) for kind, text in tokens if kind in {"word", "name", "string"}} if is_alter else set()
        others = [name for name in self._batch.states if fold(name) in said and name != unclear.name]
        return [*(Unclear(name, unclear.note) for name in others), *meaning.steps]

    def _has_generated(self, name: str) -> bool:
        state = self._batch.states.get(name)
        return state is not None and any(column.generated for column in state.table.columns)

    # ---- DDL ----

    def _schema_change(self, change: SchemaChange, steps: list[Step]) -> None:
        batch = self._batch
        if batch.last is not None and not batch.is_open:
            batch.commit()
        elif batch.is_open:
            # Rows and DDL in one transaction of the source: only MySQL knows their order.
            batch.write_part()
        has_other_keys = changes_references(change.statement)
        before = batch.applied.timestamp
        # What was marked, and not written yet, goes with this position.
        unwritten, lines = dict(batch.to_mark), list(batch.to_record)
        notes = unwritten | (dict(self._notes_of_references(change)) if has_other_keys else {})
        marked = {name for name, state in batch.states.items() if state.state == "recopy"}
        while True:
            failed = self._try_steps(steps, change.position, notes, lines)
            if failed is None:
                break
            if failed[0] in notes:
                raise ReplicationError(f"{failed[0]}: {failed[1]}", operation="follow a change of its schema")
            notes[failed[0]] = failed[1]
        if has_other_keys or any(self._moves_keys(step) for step in steps):
            batch.children = Children(self._connection, self._prefix, self._read_references())
        batch.applied.schema_changes += bool(steps)
        new = {
            name: state.note for name, state in batch.states.items() if state.state == "recopy" and name not in marked
        }
        batch.applied.marked |= new
        batch.applied.left_at |= dict.fromkeys(new.keys() - unwritten.keys(), before)
        batch.applied.position, batch.applied.timestamp = change.position, change.timestamp

    def _notes_of_references(self, change: SchemaChange) -> Iterable[tuple[str, str]]:
        """A table that gets or loses a foreign key: what that key did before, or did not do yet, is not known here."""
        name = altered(change.statement)
        state = self._batch.states.get(name) if name else None
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

        batch = self._batch
        current = ""
        later = [step.new if isinstance(step, RenameTable) else "" for step in steps]
        batch.ensure_begun()
        try:
            for name, note in notes.items():
                batch.follower.mark(name, note, batch.states)
            for place, step in enumerate(steps):
                current = step.name
                state = batch.states.get(current)
                start = state.start if state else None
                if current in notes and not isinstance(step, DropTable):
                    continue
                if start is not None and _is_up_to(position, start):
                    continue
                batch.follower.do(step, batch.states, replaced=later[place + 1 :])
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
            batch.abandon()
            log.warning("%s needs a new copy: %s", error.table, error.note)
            return error.table, error.note
        except duckdb.Error as error:
            batch.abandon()
            log.warning("%s needs a new copy: %s", current, error)
            return current, f"DuckDB could not follow: {str(error).splitlines()[0]}"
        batch.reset()
        return None

    def _renamed(self, step: RenameTable) -> None:
        """Foreign keys are known by the names that tables have now, and there were changes under the old ones."""
        batch = self._batch
        names = {step.name, step.new}
        known = {child for parent in names for child in batch.children.descendants(parent)}
        known |= names & {reference.child for group in batch.children.by_parent.values() for reference in group}
        for name in known:
            if name in batch.states and batch.states[name].state == "ok":
                batch.follower.mark(name, f"{step.name}, of its foreign keys, was renamed", batch.states)

    def _gone_elsewhere(self, name: str) -> None:
        """Where a parent was moved to another database, the stream may have passed over changes of it already."""
        batch = self._batch
        for child in batch.children.descendants(name):
            if child in batch.states and batch.states[child].state == "ok":
                batch.follower.mark(child, f"{name}, of its foreign keys, is in this database no more", batch.states)

    def _moves_keys(self, step: Step) -> bool:
        """Whether foreign keys may lead to another table after it."""
        is_parent = isinstance(step, DropTable) and step.name in self._batch.children.by_parent
        return is_parent or isinstance(step, RenameTable) or step == moved_here(step.name)


def _is_up_to(position: Position, start: Position) -> bool:
    return start.server == position.server and position.order <= start.order


def _described(step: Step) -> str:
    return f"{type(step).__name__} {step.name}"
