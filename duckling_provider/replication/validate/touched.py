"""Which rows the binlog changed while the server was being asked: what was seen of them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from duckling_provider.replication.apply.foreign_keys import Reference
from duckling_provider.replication.apply.net_changes import arrow_of, value_of
from duckling_provider.replication.binlog.stream import StreamEvent, Unfollowed
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
from duckling_provider.replication.model.names import fold
from duckling_provider.replication.model.tables import Column, RowChange, SchemaChange, Table

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

#: Rows that are kept of one table; of a table that changes faster, nothing can be said.
_MOST = 200_000

_VIEW = "duckling_changed"


class Touched:
    """The rows of some tables that events changed.

    :param columns: by table, those that name a row: its key, or all.
    :param references: asked for the foreign keys by which rows change without an event.
    """

    def __init__(self, columns: dict[str, tuple[Column, ...]], references: Callable[[], Iterable[Reference]]) -> None:
        self._columns, self._references = columns, references
        self._rows: dict[str, set[tuple[object, ...]]] = {name: set() for name in columns}
        self._places: dict[str, tuple[tuple[str, ...], list[int]]] = {}
        self._children: dict[str, set[str]] = {}
        #: Tables of which any row may have changed.
        self._clouded: set[str] = set()

    def see(self, event: StreamEvent | None) -> None:
        if isinstance(event, RowChange):
            self._change(event)
        elif isinstance(event, SchemaChange):
            said = fold(event.statement)
            self._clouded |= {name for name in self._columns if fold(name) in said}
            self._children.clear()  # it may have made foreign keys
        elif isinstance(event, Unfollowed):
            self._clouded |= set(event.tables)

    def cloud(self) -> None:
        """What was applied is not what was seen."""
        self._clouded |= self._columns.keys()

    def is_clouded(self, table: str) -> bool:
        return table in self._clouded

    def count(self, table: str) -> int:
        """Rows of `table` that changed, before and after the change."""
        return len(self._rows[table])

    def registered(self, connection: DuckDBPyConnection, table: Table) -> str | None:
        """SQL of a relation of the rows of `table` that changed, with columns ``k0``, ``k1``, … in the order in which
        they were asked for; None where any row may have changed.

        It lasts until the next call.
        """
        columns = self._columns[table.name]
        if table.name in self._clouded:
            return None
        try:
            found = self._arrow(table.name, columns)
        except NotFollowedError:
            self._clouded.add(table.name)
            return None
        connection.register(_VIEW, found)
        values = ", ".join(f"{value_of(column, place)} AS k{place}" for place, column in enumerate(columns))
        return f"(SELECT {values} FROM {_VIEW} AS c)"

    def _arrow(self, name: str, columns: tuple[Column, ...]) -> pa.Table:
        rows = list(self._rows[name])
        lanes = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
        found, _ = arrow_of(name, columns, lanes)
        return found

    def _change(self, change: RowChange) -> None:
        if change.before is not None and not change.unchecked:
            self._clouded |= self._descendants(change.table)
        columns = self._columns.get(change.table)
        if columns is None or change.table in self._clouded:
            return
        known = self._places.get(change.table)
        rows = self._rows[change.table]
        try:
            if known is None or known[0] is not change.columns:
                places = [change.columns.index(column.name) for column in columns]
                known = self._places[change.table] = change.columns, places
            for row in (change.before, change.after):
                if row is not None:
                    rows.add(tuple(map(_hashable, (row[place] for place in known[1]))))
        except (ValueError, TypeError):
            # Another shape than was asked for, or values that can't be kept.
            self._clouded.add(change.table)
        if len(rows) > _MOST:
            self._clouded.add(change.table)

    def _descendants(self, parent: str) -> set[str]:
        """Tables whose rows may have gone or changed with one of `parent`, and theirs in turn."""
        found = self._children.get(parent)
        if found is None:
            waiting, seen = [parent], {parent}
            while waiting:
                name = waiting.pop()
                children = {reference.child for reference in self._references() if reference.parent == name} - seen
                waiting += children
                seen |= children
            found = self._children[parent] = (seen - {parent}) & self._columns.keys()
        return found


def _hashable(value: object) -> object:
    return frozenset(value) if isinstance(value, set) else value
