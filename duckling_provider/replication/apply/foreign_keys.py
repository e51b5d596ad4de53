"""Foreign keys that change rows without a word in the binlog.

InnoDB itself deletes and changes the rows of a child when those of its parent go or change their keys (``CASCADE``,
``SET NULL``), and tells the binlog of the parent's rows only: a replica with the same foreign keys would do it again.
DuckDB doesn't, so it is done here. Where that can't be done exactly, the child needs a new copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duckling_provider.replication.apply.net_changes import KEYS, arrow_decoded, registered, value_of
from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import CHARACTERS, INTEGERS
from duckling_provider.replication.model.ledger import TableState
from duckling_provider.replication.model.names import quote, quote_mysql
from duckling_provider.replication.model.tables import Column
from duckling_provider.replication.mysql.source import query, server_of, variable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_NAME = r"`(?:[^`]|``)+`"
_NAMES = rf"\(({_NAME}(?:, {_NAME})*)\)"
_FOREIGN_KEY = re.compile(
    rf"FOREIGN KEY {_NAMES} REFERENCES (?:({_NAME})\.)?({_NAME}) {_NAMES}"
    r"(?: ON DELETE (CASCADE|SET NULL|NO ACTION|RESTRICT|SET DEFAULT))?"
    r"(?: ON UPDATE (CASCADE|SET NULL|NO ACTION|RESTRICT|SET DEFAULT))?"
)
_ACTIONS = ("CASCADE", "SET NULL")
_CHANGES = re.compile(r"\bREFERENCES\b|\bDROP\s+(?:FOREIGN\s+KEY|CONSTRAINT)\b", re.IGNORECASE)
_ANY_NAME = rf"(?:{_NAME}|\w+)"
_ALTERED = re.compile(
    rf"\bALTER\b.*?\bTABLE\s+(?:IF\s+EXISTS\s+)?(?:{_ANY_NAME}\s*\.\s*)?({_ANY_NAME})", re.IGNORECASE | re.DOTALL
)

#: Collations in which texts of printable ASCII are equal if and only if they are without regard to case.
_IGNORES_CASE = re.compile(
    r"\w+_(general_ci|general_nopad_ci|unicode_ci|unicode_520_ci|0900_ai_ci|0900_as_ci|uca1400_(nopad_)?a[is]_ci)"
    r"|latin1_swedish_ci"
)
#: Printable ASCII, with no space at the end.
_PLAIN = "([ -~]*[!-~])?"


@dataclass(frozen=True)
class Reference:
    """A foreign key whose `on_delete` or `on_update` is ``"CASCADE"`` or ``"SET NULL"``; empty where it does nothing.

    :param schema: the parent's database; empty when it is the child's.
    :param is_logged: what it does to rows is in the binlog as changes of rows, unless a statement itself is there.
    """

    child: str
    columns: tuple[str, ...]
    schema: str
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str
    on_update: str
    is_logged: bool = False


def read_references(connection: Any, database: str) -> list[Reference]:
    """All foreign keys of `database` that change rows by themselves.

    From ``SHOW CREATE TABLE``: ``information_schema`` has no constraints for a user who may only read. MySQL writes to
    its binlog what they do from 9.6 on, unless ``innodb_native_foreign_keys`` is on.
    """
    server = server_of(connection)
    is_logged = server.kind == "mysql" and server.version >= (9, 6)
    if is_logged:
        is_native = (variable(connection, "innodb_native_foreign_keys") or "OFF").upper()
        is_logged = is_native in {"OFF", "0"}
    query(connection, "SET SESSION sql_quote_show_create = 1")
    tables = query(
        connection,
        "SELECT TABLE_NAME FROM information_schema.TABLES "
        "WHERE TABLE_SCHEMA = %s AND TABLE_TYPE = 'BASE TABLE' AND ENGINE = 'InnoDB'",
        database,
    )
    found: list[Reference] = []
    for (name,) in tables:
        shown = query(connection, f"SHOW CREATE TABLE {quote_mysql(database)}.{quote_mysql(str(name))}")
        found += parse_references(str(name), str(shown[0][1]))
    return [replace(reference, is_logged=is_logged) for reference in found]


def parse_references(child: str, statement: str) -> list[Reference]:
    """The same of one table, from its ``CREATE TABLE``."""
    return [
        Reference(child, _names(columns), schema[1:-1].replace("``", "`") if schema else "", _names(parent)[0],
                  _names(parent_columns), on_delete if on_delete in _ACTIONS else "",
                  on_update if on_update in _ACTIONS else "")
        for line in statement.splitlines()
        if line.lstrip().startswith("CONSTRAINT ")
        for columns, schema, parent, parent_columns, on_delete, on_update in _FOREIGN_KEY.findall(line)
        if on_delete in _ACTIONS or on_update in _ACTIONS
    ]  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(name[1:-1].replace("``", "`") for name in re.findall(_NAME, text))


def changes_references(statement: str) -> bool:
    """Whether a foreign key may be there after the statement that was not before, or the other way round."""
    return _CHANGES.search(statement) is not None


def altered(statement: str) -> str | None:
    """The table of an ``ALTER TABLE``."""
    match = _ALTERED.search(statement)
    return None if match is None else match[1].strip("`").replace("``", "`")


class Children:
    """Does to the children's rows what MySQL does to them when those of their parents are deleted.

    :param prefix: SQL before a table's name: catalog and schema.
    """

    def __init__(self, connection: DuckDBPyConnection, prefix: str, references: Iterable[Reference]) -> None:
        self._connection, self._prefix = connection, prefix
        ours = [reference for reference in references if not reference.schema]
        #: Those that the binlog is silent about.
        self.by_parent = _by_parent(reference for reference in ours if not reference.is_logged)
        self._all = _by_parent(ours)

    def descendants(self, table: str) -> set[str]:
        """All tables whose rows may change when those of `table` do, and the binlog says nothing of it."""
        return _descendants(self.by_parent, table)

    def of_statements(self) -> dict[str, set[str]]:
        """Table -> all tables whose rows may change when a statement that the binlog has instead of rows changes it."""
        return {parent: _descendants(self._all, parent) for parent in self._all}

    def is_comparable(self, reference: Reference, state: TableState) -> bool:
        """Whether DuckDB can tell which of the child's rows belong to a parent's, as MySQL compares."""
        columns = self._columns(reference, state)
        return len(columns) == len(reference.columns) and all(
            column.data_type in INTEGERS or _is_text(column) for column in columns
        )

    def delete(self, reference: Reference, keys: Sequence[tuple[Any, ...]], states: dict[str, TableState]) -> set[str]:
        """The parent's rows with these `keys`, as the binlog has them, are gone.

        :returns: tables that need a new copy, because it is unknown what became of their rows.
        """
        columns = self._columns(reference, states[reference.child])
        decoders = [types.decode(column) for column in columns]
        decoded = {tuple(decode(value) for decode, value in zip(decoders, key, strict=True)) for key in keys}
        return self._delete(reference, decoded, states)

    def _delete(self, reference: Reference, keys: set[tuple[Any, ...]], states: dict[str, TableState]) -> set[str]:
        child, state = reference.child, states[reference.child]
        columns, table = self._columns(reference, state), self._prefix + quote(reference.child)
        texts = [place for place, column in enumerate(columns) if _is_text(column)]
        if texts and not self._are_plain(table, [columns[place] for place in texts], keys, texts):
            return {child, *self.descendants(child)}
        same = " AND ".join(_same(column, place) for place, column in enumerate(columns))
        with registered(self._connection, KEYS, arrow_decoded(child, columns, list(zip(*keys, strict=True)))):
            if not self._rows(f"SELECT 1 FROM {table} AS t JOIN {KEYS} AS c ON {same} LIMIT 1"):
                return set()
            if reference.on_delete != "CASCADE" or any(column.generated for column in state.table.columns):
                return {child, *self.descendants(child)}
            further: list[tuple[Reference, set[tuple[Any, ...]]]] = []
            for next_one in self.by_parent.get(child, ()):
                if not next_one.on_delete:
                    continue
                names = ", ".join(f"t.{quote(name)}" for name in next_one.parent_columns)
                rows = self._rows(f"SELECT DISTINCT {names} FROM {table} AS t JOIN {KEYS} AS c ON {same}")
                further.append((next_one, {row for row in rows if None not in row}))
            self._connection.execute(f"DELETE FROM {table} AS t USING {KEYS} AS c WHERE {same}")
        unclear: set[str] = set()
        for next_one, gone in further:
            grandchild = states.get(next_one.child)
            if not gone:
                continue
            is_here = grandchild is not None and grandchild.state == "ok" and grandchild.start is None
            if is_here and grandchild is not None and self.is_comparable(next_one, grandchild):
                unclear |= self._delete(next_one, gone, states)
            else:
                unclear |= {next_one.child, *self.descendants(next_one.child)}
        return unclear

    def _are_plain(self, table: str, columns: list[Column], keys: set[tuple[Any, ...]], places: list[int]) -> bool:
        """Whether collations leave no doubt: nothing but printable ASCII on both sides."""
        if not all(re.fullmatch(_PLAIN, key[place]) for key in keys for place in places):
            return False
        odd = " OR ".join(f"NOT regexp_full_match({quote(column.name)}, '{_PLAIN}')" for column in columns)
        return not self._rows(f"SELECT 1 FROM {table} WHERE {odd} LIMIT 1")

    def _columns(self, reference: Reference, state: TableState) -> list[Column]:
        known = {column.name.lower(): column for column in state.table.columns}
        return [known[name.lower()] for name in reference.columns if name.lower() in known]

    def _rows(self, statement: str) -> list[Any]:
        return self._connection.execute(statement).fetchall()


def _by_parent(references: Iterable[Reference]) -> dict[str, list[Reference]]:
    found: dict[str, list[Reference]] = {}
    for reference in references:
        found.setdefault(reference.parent, []).append(reference)
    return found


def _descendants(by_parent: Mapping[str, Sequence[Reference]], table: str) -> set[str]:
    found: set[str] = set()
    left = [table]
    while left:
        for reference in by_parent.get(left.pop(), ()):
            if reference.child not in found:
                found.add(reference.child)
                left.append(reference.child)
    return found


def _is_text(column: Column) -> bool:
    collation = column.collation or ""
    return column.data_type in CHARACTERS and (
        collation.endswith("_bin") or _IGNORES_CASE.fullmatch(collation) is not None
    )


def _same(column: Column, place: int) -> str:
    ours, theirs = f"t.{quote(column.name)}", value_of(column, place)
    if column.data_type in INTEGERS or (column.collation or "").endswith("_bin"):
        return f"{ours} = {theirs}"
    return f"lower({ours}) = lower({theirs})"
