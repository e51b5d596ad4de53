"""Steps of a DDL statement, done to the replica: in DuckDB and in the ledger, within the caller's transaction.

A step that would leave other values than MySQL has is refused (`NotFollowedError`): the table needs a new copy then.
MySQL in a lax ``sql_mode`` truncates and bends values into a new type, so a change of type is followed only where each
value that is there fits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from duckling_provider.replication.apply import steps
from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import (
    BINARIES,
    BLOB_BYTES,
    CHARACTERS,
    DATES,
    FLOATS,
    INTEGER_BITS,
    INTEGERS,
    TEXT_BYTES,
    TEXTS,
    TIMES,
)
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import quote, twin
from duckling_provider.replication.model.tables import Column, Table

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

_UNICODE = frozenset({"utf8mb4", "utf8mb3", "utf8", "utf16", "utf16le", "utf32", "ucs2"})


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

    def do(self, step: steps.Step, states: dict[str, TableState]) -> None:
        """Do one step; `states`, the tables as the ledger has them, is kept up to date.

        :raises NotFollowedError: when that can't be done exactly. The transaction must be rolled back then.
        """
        state = states.get(step.name)
        if isinstance(step, steps.CreateTable):
            self._create(step, states)
        elif isinstance(step, steps.RenameTable):
            self._rename(step, states)
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
        self._save(TableState(table, rows=0), states)

    def _drop(self, name: str, states: dict[str, TableState]) -> None:
        if states.pop(name, None) is not None:
            if twin(name, states) is None:
                self._run(f"DROP TABLE IF EXISTS {self._name(name)}")
            self._ledger.forget_table(name)

    def _rename(self, step: steps.RenameTable, states: dict[str, TableState]) -> None:
        if not self._wanted(step.new):
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
        self._run(f"DROP TABLE IF EXISTS {self._name(step.new)}")
        self._run(f"ALTER TABLE {self._name(step.name)} RENAME TO {quote(step.new)}")
        self._ledger.forget_table(step.name)
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
        if isinstance(step, steps.SetPrimaryKey):
            found = [_column(table, name) for name in step.columns]
            if None in found:
                raise NotFollowedError(table.name, "its new primary key has columns that are not known here")
            return replace(table, primary_key=tuple(column.name for column in found if column is not None))
        raise NotFollowedError(table.name, f"no way to follow {type(step).__name__}")

    def _add(self, step: steps.AddColumn, table: Table) -> Table:
        column = step.column
        if _column(table, column.name) is not None:
            if step.if_not_exists:
                return table
            raise NotFollowedError(table.name, f"it has a column {column.name} already")
        kind = types.duck_type(column)
        if self._has_rows(table):
            value = self._default(step, table.name)
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
            fits = _condition(old, new)
            if fits is None:
                raise NotFollowedError(table.name, f"{old.name}: {old.column_type} became {new.column_type}")
            name = quote(old.name)
            conditions = [fits.replace("{}", name)] if fits else []
            if old.nullable and not new.nullable and new.data_type not in DATES:
                conditions.append(f"{name} IS NOT NULL")
            checks = " AND ".join(f"({condition}) IS NOT FALSE" for condition in conditions) or "true"
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

    def _become(self, table: Table, old: str, new: Column | None) -> Table:
        before = _column(table, old)
        if before is None or new is None:
            raise NotFollowedError(table.name, f"it has no column {old} to rename")
        if before.name != new.name:
            self._run(f"ALTER TABLE {self._name(table.name)} RENAME COLUMN {quote(before.name)} TO {quote(new.name)}")
        return replace(
            table,
            columns=tuple(new if column is before else column for column in table.columns),
            primary_key=tuple(new.name if name == before.name else name for name in table.primary_key),
        )

    def _default(self, step: steps.AddColumn, table: str) -> str | None:
        """What existing rows get, as SQL; None for NULL."""
        column, default = step.column, step.default
        cannot = NotFollowedError(table, f"the value that existing rows got in the new column {column.name}")
        if default.kind == "expression":
            raise cannot
        kind, value = column.data_type, default.value
        number = kind in INTEGERS or kind in FLOATS or kind == "decimal"
        if default.kind == "none":
            if column.nullable:
                return None
            if not (number or kind in CHARACTERS or kind in TEXT_BYTES):
                raise cannot
            value = "0" if number else ""
        if value is None:
            return None
        if isinstance(value, bytes):
            if kind != "bit":
                raise cannot
            return str(int.from_bytes(value, "big"))
        if kind in {"date", "datetime"} and re.fullmatch(r"0000-00-00( 00:00:00(\.0*)?)?", value):
            return None
        if kind == "char":
            value = value.rstrip(" ")
        if not (number or kind in {*CHARACTERS, *TEXT_BYTES, "enum", "date", "datetime"}):
            raise cannot
        text = "'" + value.replace("'", "''") + "'"
        expression = f"CAST({text} AS {types.duck_type(column)})"
        # As a constant that DuckDB stores with the table, and an error here rather than there.
        return expression if self._value(f"SELECT {expression}") is not None else None

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


#: What the families are called in `_CONDITIONS`; other types are their own family.
_FAMILIES: dict[str, str] = (
    dict.fromkeys(INTEGERS, "integer")
    | dict.fromkeys(TEXTS, "text")
    | dict.fromkeys(BINARIES | BLOB_BYTES.keys(), "bytes")
)


def _condition(old: Column, new: Column) -> str | None:
    """What has to hold for each value `{}` so that MySQL kept it: "" for nothing, None when there is no telling."""
    if old.generated or new.generated:
        return "" if (old.generated, old.column_type) == (new.generated, new.column_type) else None
    same = "" if old.column_type == new.column_type else None
    if "zerofill" in old.column_type or "zerofill" in new.column_type:
        return same
    families = (_FAMILIES.get(old.data_type, old.data_type), _FAMILIES.get(new.data_type, new.data_type))
    known = _CONDITIONS.get(families)
    found = known(old, new) if known is not None else _SAME
    return same if found == _SAME else found


#: "Only when the type is the same to the letter."
_SAME = "same"


def _integers(_: Column, new: Column) -> str:
    bits = INTEGER_BITS[new.data_type]
    low, high = (0, 2**bits - 1) if new.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return f"{{}}::HUGEINT BETWEEN {low} AND {high}"


def _integer_to_decimal(_: Column, new: Column) -> str:
    if types.duck_type(new) == "VARCHAR":
        return _SAME
    return f"TRY_CAST({{}} AS {types.duck_type(new)}) IS NOT NULL" + " AND {} >= 0" * new.unsigned


def _decimals(old: Column, new: Column) -> str:
    wide = "VARCHAR" in {types.duck_type(old), types.duck_type(new)}
    if wide or (old.scale or 0) > (new.scale or 0) or new.unsigned != old.unsigned:
        return _SAME
    return f"TRY_CAST({{}} AS {types.duck_type(new)}) IS NOT NULL"


def _float_to_double(old: Column, new: Column) -> str | None:
    return "" if "(" not in old.column_type + new.column_type else None


def _texts(old: Column, new: Column) -> str | None:
    return _SAME if old.json or new.json else _text_condition(old, new)


def _bytes(old: Column, new: Column) -> str | None:
    if new.data_type == "binary":
        return _SAME
    longest = _length(new) if new.data_type == "varbinary" else BLOB_BYTES[new.data_type]
    return f"octet_length({{}}) <= {longest}" if old.data_type != "binary" else None


def _enums(_: Column, new: Column) -> str:
    values = ", ".join("'" + value.replace("'", "''") + "'" for value in sorted(set(types.enum_values(new))))
    return f"{{}} IN ({values}, '')"


def _sets(old: Column, new: Column) -> str | None:
    kept = types.enum_values(old)
    return "" if types.enum_values(new)[: len(kept)] == kept else None


def _precisions(old: Column, new: Column) -> str | None:
    return "" if (new.precision or 0) >= (old.precision or 0) else None


def _integer_to_text(_: Column, new: Column) -> str:
    if new.data_type == "char":
        return _SAME
    return f"length({{}}::VARCHAR) <= {_length(new)}" if new.data_type == "varchar" else ""


_CONDITIONS: dict[tuple[str, str], Callable[[Column, Column], str | None]] = {
    ("integer", "integer"): _integers,
    ("integer", "decimal"): _integer_to_decimal,
    ("integer", "text"): _integer_to_text,
    ("decimal", "decimal"): _decimals,
    ("float", "double"): _float_to_double,
    ("text", "text"): _texts,
    ("bytes", "bytes"): _bytes,
    ("enum", "enum"): _enums,
    ("set", "set"): _sets,
    ("date", "datetime"): _precisions,
    **{(kind, kind): _precisions for kind in TIMES},
}


def _text_condition(old: Column, new: Column) -> str | None:
    if new.charset != old.charset and new.charset not in _UNICODE:
        return None
    if "char" in {old.data_type, new.data_type} and old.data_type != new.data_type:
        # CHAR loses spaces at its end.
        return f"length({{}}) <= {_length(new)} AND {{}} = rtrim({{}}, ' ')" if _length(new) else None
    if new.data_type in TEXT_BYTES:
        return f"strlen({{}}) <= {TEXT_BYTES[new.data_type]}"
    return f"length({{}}) <= {_length(new)}"


def _length(column: Column) -> int:
    match = re.search(r"\((\d+)\)", column.column_type)
    return int(match[1]) if match else TEXT_BYTES.get(column.data_type, 0)
