"""Steps of a DDL statement, done to the replica: in DuckDB and in the ledger, within the caller's transaction.

A step that would leave other values than MySQL has is refused (`NotFollowedError`): the table needs a new copy then.
MySQL in a lax ``sql_mode`` truncates and bends values into a new type, so a change of type is followed only where each
value that is there fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from duckling_provider.replication.ddl import steps
from duckling_provider.replication.ddl.conversions import condition
from duckling_provider.replication.ddl.defaults import UNKNOWN, default_of
from duckling_provider.replication.model import types
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import fold, quote, twin
from duckling_provider.replication.model.tables import Column, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)


class NotFollowedError(Exception):
    """The replica can't do what MySQL did; `note` says why, for the ledger."""

    def __init__(self, table: str, note: str) -> None:
        super().__init__(note)
        self.table, self.note = table, note


class Follower:
    """Does steps to one replica.

    :param prefix: SQL before a table's name: catalog and schema.
    :param wanted: whether a table of this name is mirrored.
    """

    def __init__(
        self, connection: DuckDBPyConnection, ledger: Ledger, *, prefix: str, wanted: Callable[[str], bool]
    ) -> None:
        self._connection, self._ledger, self._prefix, self._wanted = connection, ledger, prefix, wanted

    def do(self, step: steps.Step, states: dict[str, TableState], *, replaced: Collection[str] = ()) -> None:
        """Do one step; `states`, the tables as the ledger has them, is kept up to date.

        :param replaced: names that later steps of the same statement give to other tables.
        :raises NotFollowedError: when that can't be done exactly. The transaction must be rolled back then.
        """
        state = states.get(step.name)
        if isinstance(step, steps.CreateTable):
            self._create(step, states)
        elif isinstance(step, steps.RenameTable):
            self._rename(step, states, replaced)
        elif isinstance(step, steps.DropTable):
            self._drop(step.name, states)
        elif isinstance(step, steps.Unclear):
            if state is not None or self._wanted(step.name):
                self.mark(step.name, step.note, states)
        elif state is None:
            if self._wanted(step.name) and not isinstance(step, steps.TruncateTable):
                self.mark(step.name, "changed before it was copied", states)
        elif state.state != "ok":
            pass  # the copy to come will see it all
        elif isinstance(step, steps.TruncateTable):
            self._run(f"DELETE FROM {self._name(step.name)}")
        else:
            self._save(replace(state, table=self._altered(step, state.table)), states)

    def mark(self, name: str, note: str, states: dict[str, TableState]) -> None:
        """The table needs a new copy."""
        self._ledger.mark_recopy(name, note)
        known = states.get(name, TableState(Table(name, ())))
        states[name] = replace(known, state="recopy", note=note)

    # ---- tables ----

    def _create(self, step: steps.CreateTable, states: dict[str, TableState]) -> None:
        if not self._wanted(step.name) or (step.if_not_exists and step.name in states):
            return
        table = step.table
        if step.like is not None:
            like = states.get(step.like)
            if like is None or not like.table.columns or like.state != "ok":
                raise NotFollowedError(step.name, f"made like {step.like}, whose shape is not known here")
            table = replace(like.table, name=step.name)
        columns = ", ".join(f"{quote(column.name)} {types.duck_type(column)}" for column in table.columns)
        if self._has_twin(table.name, states):
            return
        # What is there is from before: MySQL had no table of that name.
        self._run(f"CREATE OR REPLACE TABLE {self._name(table.name)} ({columns})")
        self._ledger.validations.forget(table.name)
        self._save(TableState(table, rows=0), states)

    def _drop(self, name: str, states: dict[str, TableState]) -> None:
        if states.pop(name, None) is not None:
            if twin(name, states) is None:
                self._run(f"DROP TABLE IF EXISTS {self._name(name)}")
            self._ledger.forget_table(name)

    def _rename(self, step: steps.RenameTable, states: dict[str, TableState], replaced: Collection[str]) -> None:
        if not self._wanted(step.new):
            if step.name in replaced and step.name in states:
                # By an online change of its schema, most likely: until the new one is copied, its old rows stay.
                self.mark(step.name, f"replaced by another table, and now called {step.new}", states)
            else:
                self._drop(step.name, states)
            return
        state = states.get(step.name)
        if state is None or state.state != "ok":
            self._drop(step.name, states)
            self.mark(step.new, f"renamed from {step.name}, which was not mirrored", states)
            return
        if self._has_twin(step.new, {name: known for name, known in states.items() if name != step.name}):
            self._drop(step.name, states)
            return
        between = step.name
        if fold(step.name) == fold(step.new):
            # DuckDB takes both for the same name.
            between = f"_duckling_renamed {step.name}"
            self._run(f"ALTER TABLE {self._name(step.name)} RENAME TO {quote(between)}")
        self._run(f"DROP TABLE IF EXISTS {self._name(step.new)}")
        self._run(f"ALTER TABLE {self._name(between)} RENAME TO {quote(step.new)}")
        self._ledger.forget_table(step.name)
        self._ledger.validations.forget(step.new)
        del states[step.name]
        self._save(replace(state, table=replace(state.table, name=step.new)), states)

    def _has_twin(self, name: str, states: dict[str, TableState]) -> bool:
        """Whether its place is taken. Nothing is noted of it: it is copied when the other one is gone."""
        other = twin(name, states)
        if other is not None:
            log.warning("%s is left out: DuckDB takes %s and %s for the same name", name, other, name)
        return other is not None

    # ---- columns ----

    def _altered(self, step: steps.Step, table: Table) -> Table:
        if isinstance(step, steps.AddColumn):
            return self._add(step, table)
        if isinstance(step, steps.DropColumn):
            column = _column(table, step.column)
            if column is None:
                if step.if_exists:
                    return table
                raise NotFollowedError(table.name, f"it has no column {step.column} to drop")
            self._run(f"ALTER TABLE {self._name(table.name)} DROP COLUMN {quote(column.name)}")
            columns = tuple(other for other in table.columns if other != column)
            key = tuple(name for name in table.primary_key if name != column.name)
            return replace(table, columns=columns, primary_key=key)
        if isinstance(step, steps.RenameColumn):
            old = _column(table, step.old)
            return self._become(table, step.old, replace(old, name=step.new) if old else None)
        if isinstance(step, steps.ChangeColumn):
            return self._change(step, table)
        if isinstance(step, steps.Rewrite):
            self._recompute(table, "its rows were written again", but=())
            return table
        if isinstance(step, steps.SetPrimaryKey):
            found = [_column(table, name) for name in step.columns]
            if None in found:
                raise NotFollowedError(table.name, "its new primary key has columns that are not known here")
            key = tuple(column.name for column in found if column is not None)
            nullable = [quote(column.name) for column in found if column is not None and column.nullable]
            nulls = " OR ".join(f"{name} IS NULL" for name in nullable)
            if nulls and self._value(f"SELECT count(*) FROM {self._name(table.name)} WHERE {nulls}"):
                raise NotFollowedError(table.name, "its new primary key has columns with NULLs, which became something")
            columns = tuple(replace(c, nullable=c.nullable and c.name not in key) for c in table.columns)
            return replace(table, columns=columns, primary_key=key)
        raise NotFollowedError(table.name, f"no way to follow {type(step).__name__}")

    def _add(self, step: steps.AddColumn, table: Table) -> Table:
        column = step.column
        if _column(table, column.name) is not None:
            if step.if_not_exists:
                return table
            raise NotFollowedError(table.name, f"it has a column {column.name} already")
        kind = types.duck_type(column)
        if self._has_rows(table):
            value = default_of(step)
            if value is UNKNOWN:
                raise NotFollowedError(table.name, f"the value that existing rows got in the new column {column.name}")
            default = "" if value is None else f" DEFAULT {value}"
        else:
            default = ""
        self._run(f"ALTER TABLE {self._name(table.name)} ADD COLUMN {quote(column.name)} {kind}{default}")
        if default:
            self._run(f"ALTER TABLE {self._name(table.name)} ALTER COLUMN {quote(column.name)} DROP DEFAULT")
        return replace(table, columns=(*table.columns, column))

    def _change(self, step: steps.ChangeColumn, table: Table) -> Table:
        old = _column(table, step.old)
        if old is None:
            if step.if_exists:
                return table
            raise NotFollowedError(table.name, f"it has no column {step.old} to change")
        new = step.column
        if not step.explicit_charset and old.charset and new.charset:
            # The table's default is not known; the values come in Unicode whatever it is.
            new = replace(new, charset=old.charset, collation=old.collation)
        if self._has_rows(table):
            if old.column_type != new.column_type or old.charset or new.charset:
                self._recompute(table, f"{old.name} became {new.column_type}", but=(old,))
            fits = condition(old, new, is_charset_known=step.explicit_charset)
            if fits is None:
                raise NotFollowedError(table.name, f"{old.name}: {old.column_type} became {new.column_type}")
            name = quote(old.name)
            conditions = [fits.replace("{}", name)] if fits else []
            # A TIMESTAMP may be NOT NULL although nothing says so.
            if old.nullable and (not new.nullable or new.data_type == "timestamp"):
                conditions.append(f"{name} IS NOT NULL")
            if step.auto_increment:
                conditions.append(f"{name} <> 0")
            checks = " AND ".join(f"({text}) IS NOT FALSE" for text in conditions) or "true"
            if self._value(f"SELECT count(*) FROM {self._name(table.name)} WHERE NOT ({checks})"):
                raise NotFollowedError(
                    table.name, f"{old.name} became {new.column_type}, and values there do not fit that as they are"
                )
        table = self._become(table, old.name, new)
        if types.duck_type(old) != types.duck_type(new):
            self._run(
                f"ALTER TABLE {self._name(table.name)} ALTER COLUMN {quote(new.name)} TYPE {types.duck_type(new)}"
            )
        return table

    def _recompute(self, table: Table, cause: str, *, but: Collection[Column]) -> None:
        """:raises NotFollowedError: generated columns, other than those of `but`, may have got other values."""
        generated = [column.name for column in table.columns if column.generated and column not in but]
        if generated and self._has_rows(table):
            names = ", ".join(generated)
            raise NotFollowedError(table.name, f"{cause}, and {names} may have been computed again")

    def _become(self, table: Table, old: str, new: Column | None) -> Table:
        before = _column(table, old)
        if before is None or new is None:
            raise NotFollowedError(table.name, f"it has no column {old} to rename")
        between = before.name
        if before.name != new.name and fold(before.name) == fold(new.name):
            between = f"_duckling_renamed {before.name}"
            self._run(f"ALTER TABLE {self._name(table.name)} RENAME COLUMN {quote(before.name)} TO {quote(between)}")
        if between != new.name:
            self._run(f"ALTER TABLE {self._name(table.name)} RENAME COLUMN {quote(between)} TO {quote(new.name)}")
        return replace(
            table,
            columns=tuple(new if column is before else column for column in table.columns),
            primary_key=tuple(new.name if name == before.name else name for name in table.primary_key),
        )

    # ---- words with DuckDB ----

    def _save(self, state: TableState, states: dict[str, TableState]) -> None:
        states[state.name] = state
        self._ledger.save_table(state)

    def _has_rows(self, table: Table) -> bool:
        return bool(self._value(f"SELECT count(*) FROM (SELECT 1 FROM {self._name(table.name)} LIMIT 1)"))

    def _name(self, table: str) -> str:
        return self._prefix + quote(table)

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)

    def _value(self, statement: str) -> object:
        row = self._connection.execute(statement).fetchone()
        return row[0] if row else None


def _column(table: Table, name: str) -> Column | None:
    """MySQL knows columns by their names without case."""
    return next((column for column in table.columns if column.name.lower() == name.lower()), None)
