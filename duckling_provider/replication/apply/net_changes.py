"""Changes that wait for one table, as their net effect, and how that is written to DuckDB."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from duckling_provider.replication.binlog.readers import ZERO_DATE
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
from duckling_provider.replication.model import types
from duckling_provider.replication.model.families import CHARACTERS, CHOICES, DATES, FLOATS, INTEGERS
from duckling_provider.replication.model.ledger import TableState
from duckling_provider.replication.model.names import quote
from duckling_provider.replication.model.tables import Column, RowChange, Table

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

#: Types whose values may be so large that a batch is cut by their size.
_LARGE = frozenset(
    {"text", "mediumtext", "longtext", "blob", "mediumblob", "longblob", "json", "varchar", "varbinary", "geometry"}
)

#: Names under which arrow tables are handed to DuckDB.
VIEWS = KEYS, _ROWS, _SERVER = "_duckling_keys", "_duckling_rows", "_duckling_server"

Reread: TypeAlias = "Callable[[Table, Sequence[tuple[Any, ...]]], pa.Table]"
"""(table, keys) -> the rows that the server has of these keys now, and maybe others, as `transport.Transport` has them.
"""


class Pending:
    """What waits for one table, as its net effect."""

    def __init__(self, state: TableState, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._table = state.table.columns
        self.changes = 0

    @staticmethod
    def of(state: TableState, columns: tuple[str, ...], reread: Reread | None = None) -> Pending:
        """
        :param reread: asked for generated columns that the binlog leaves out.
        :raises NotFollowedError: when the binlog's columns are not the replica's.
        """
        places = {name: place for place, name in enumerate(columns)}
        known = [column.name for column in state.table.columns]
        lacking = [column for column in state.table.columns if column.name not in places]
        can_be_asked = reread is not None and _is_askable(state.table)
        if lacking and set(columns) < set(known) and not (can_be_asked and all(c.generated for c in lacking)):
            raise NotFollowedError(
                state.name,
                "its changes lack columns: binlog_row_image is not FULL, or the server leaves generated columns out: "
                + ", ".join(column.name for column in lacking),
            )
        if (set(known) != set(columns) and not lacking) or set(columns) - set(known):
            other = ", ".join(sorted(set(known) ^ set(columns)))
            raise NotFollowedError(state.name, f"its columns in the binlog are not those of the replica: {other}")
        for column in state.table.columns:
            if column.data_type in CHOICES and column.charset == "binary":
                raise NotFollowedError(state.name, f"{column.name} is {column.data_type.upper()} of bytes, not of text")
        if lacking and reread is not None:
            return _Partial(state, columns, [places[name] for name in known if name in places], reread)
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


class _Keyed(Pending):
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
        self._dates = [place for place, column in zip(places, self._key, strict=True) if column.data_type in DATES]
        #: Rows whose key has a date that no calendar has: all such dates are NULL here, so these have no key.
        self._without_key = _Keyless(state, columns, where)

    def add(self, change: RowChange) -> int:
        before, after = change.before, change.after
        self.changes += 1
        if self._dates:
            before, after = self._keyed(before, -1), self._keyed(after, 1)
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

    def _keyed(self, row: tuple[Any, ...] | None, count: int) -> tuple[Any, ...] | None:
        """The row, unless it has no key here: then it is counted."""
        if row is None or all(row[place] is not ZERO_DATE for place in self._dates):
            return row
        self._without_key.count(row, count)
        return None

    def write(self, connection: DuckDBPyConnection, table: str) -> int:
        zeros = self._write_keyed(connection, table) if self._net else 0
        if self._without_key.changes:
            zeros += self._without_key.write(connection, table)
            self._without_key.clear()
        return zeros

    def _write_keyed(self, connection: DuckDBPyConnection, table: str) -> int:
        touched: Any = list(self._net)
        lanes = [touched] if self._single else list(zip(*touched, strict=True))
        keys, _ = arrow_of(table, self._key, lanes)
        rows = [row for row in self._net.values() if row is not None]
        same = " AND ".join(
            f"t.{quote(column.name)} = {value_of(column, place)}" for place, column in enumerate(self._key)
        )
        zeros = 0
        inserted = None
        if rows:
            values = list(zip(*rows, strict=True))
            inserted, zeros = arrow_of(table, self._table, [values[place] for place in self._where])
            self._check(connection, inserted, rows)
        with registered(connection, KEYS, keys):
            connection.execute(f"DELETE FROM {table} AS t USING {KEYS} AS c WHERE {same}")
        if inserted is not None:
            self._insert(connection, table, inserted)
        return zeros

    def _check(self, connection: DuckDBPyConnection, inserted: pa.Table, rows: list[tuple[Any, ...]]) -> None:
        """:raises NotFollowedError: these can't be written, and nothing has been."""

    def _insert(self, connection: DuckDBPyConnection, table: str, inserted: pa.Table) -> None:
        _insert(connection, table, self._table, inserted)

    def clear(self) -> None:
        super().clear()
        self._net = {}


class _Partial(_Keyed):
    """Of a table whose generated columns the binlog leaves out: they are asked of the server.

    A row that is there as it is here has the generated values that are wanted. One that has changed since then has not.
    """

    def __init__(self, state: TableState, columns: tuple[str, ...], where: list[int], reread: Reread) -> None:
        self._whole, self._reread = state.table, reread
        told = tuple(column for column in state.table.columns if column.name in columns)
        super().__init__(replace(state, table=replace(state.table, columns=told)), columns, where)
        self._server: pa.Table | None = None
        numbers = {column.name: number for number, column in enumerate(self._whole.columns)}
        self._same = " AND ".join(
            f"{_value_there(column, numbers[column.name])} IS NOT DISTINCT FROM {value_of(column, place)}"
            for place, column in enumerate(told)
        )

    def _check(self, connection: DuckDBPyConnection, inserted: pa.Table, rows: list[tuple[Any, ...]]) -> None:
        keys = [self._key_of(row) for row in rows]
        self._server = self._reread(self._whole, [(key,) for key in keys] if self._single else keys)
        with registered(connection, _ROWS, inserted), registered(connection, _SERVER, self._server):
            ((found,),) = connection.execute(
                f"SELECT count(*) FROM {_SERVER} AS s JOIN {_ROWS} AS c ON {self._same}"
            ).fetchall()
        if found != len(rows):
            raise NotFollowedError(
                self._whole.name, "the binlog leaves its generated columns out, and its rows have changed again since"
            )

    def _insert(self, connection: DuckDBPyConnection, table: str, inserted: pa.Table) -> None:
        names = ", ".join(quote(column.name) for column in self._whole.columns)
        values = ", ".join(_value_there(column, place) for place, column in enumerate(self._whole.columns))
        with registered(connection, _ROWS, inserted), registered(connection, _SERVER, self._server):
            connection.execute(
                f"INSERT INTO {table} ({names}) SELECT {values} FROM {_SERVER} AS s JOIN {_ROWS} AS c ON {self._same}"
            )


def _is_askable(table: Table) -> bool:
    """Whether rows can be asked for by their key, whatever it holds."""
    keys = [column for column in table.columns if column.name in table.primary_key]
    return bool(keys) and all(
        not column.generated and column.data_type in INTEGERS | CHARACTERS | {"decimal"} for column in keys
    )


def _value_there(column: Column, place: int) -> str:
    """DuckDB's expression for the value of a column of the server's rows."""
    return types.from_transport(column, f"c{place}").replace(quote(f"c{place}"), f"s.{quote(f'c{place}')}")


class _Keyless(Pending):
    def __init__(self, state: TableState, columns: tuple[str, ...], where: list[int]) -> None:
        super().__init__(state, columns)
        self._decoders = [
            (place, types.decode(column), column.data_type in DATES, column.data_type in FLOATS)
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

    def count(self, row: tuple[Any, ...], more: int) -> None:
        """As many more of such a row; a negative number for fewer."""
        self.changes += 1
        self._net[self._decoded(row, count=more > 0)] += more

    def _decoded(self, row: tuple[Any, ...], *, count: bool) -> tuple[Any, ...]:
        values = []
        for place, decode, dates, floats in self._decoders:
            value = row[place]
            if dates and value is ZERO_DATE:
                self._zeros += count
                value = None
            elif floats and value == 0 and math.copysign(1, value) < 0:
                values.append(_NEGATIVE_ZERO)
                continue
            values.append(decode(value))
        return tuple(values)

    def write(self, connection: DuckDBPyConnection, table: str) -> int:
        import pyarrow as pa

        names = [quote(column.name) for column in self._table]
        gone = {row: -count for row, count in self._net.items() if count < 0}
        come = [row for row, count in self._net.items() for _ in range(count)]
        if come:  # what can't be held is found before anything is written
            arrow_decoded(table, self._table, list(zip(*dict.fromkeys(come), strict=True)))
        if gone:
            old = arrow_decoded(table, self._table, list(zip(*gone, strict=True)))
            old = old.append_column("i", pa.array(range(len(gone)), pa.int64()))
            same = " AND ".join(
                _is_same(column, name, value_of(column, place))
                for place, (name, column) in enumerate(zip(names, self._table, strict=True))
            )
            with registered(connection, KEYS, old):
                # DuckDB can't delete some of equal rows only: all go, and those that are too many come again.
                there = connection.execute(
                    f"SELECT c.i, count(*) FROM {table} AS t JOIN {KEYS} AS c ON {same} GROUP BY c.i"
                ).fetchall()
                connection.execute(f"DELETE FROM {table} AS t USING {KEYS} AS c WHERE {same}")
            found = 0
            rows = list(gone)
            for place, count in there:
                row = rows[place]
                found += min(count, gone[row])
                come += [row] * (count - gone[row])
            missing = sum(gone.values()) - found
            if missing:
                # Not an error of this batch: whatever is wrong is put right by the copy.
                raise NotFollowedError(table, f"{missing} rows that MySQL deleted or changed were not in the replica")
        if come:
            new = arrow_decoded(table, self._table, list(zip(*come, strict=True)))
            _insert(connection, table, self._table, new)
        zeros, self._zeros = self._zeros, 0
        return zeros

    def clear(self) -> None:
        super().clear()
        self._net = Counter()


class _NegativeZero(float):
    """-0.0, which is equal to 0.0 and yet another value."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


_NEGATIVE_ZERO = _NegativeZero("-0.0")


def _is_same(column: Column, name: str, value: str) -> str:
    same = f"t.{name} IS NOT DISTINCT FROM {value}"
    return f"{same} AND signbit(t.{name}) IS NOT DISTINCT FROM signbit({value})" if column.data_type in FLOATS else same


def arrow_of(table: str, columns: Iterable[Column], lanes: list[Any]) -> tuple[pa.Table, int]:
    """Values as `rows` read them -> columns c0, c1, … for `types.from_change`; and how many dates no calendar has."""
    decoded, zeros = [], 0
    for column, values in zip(columns, lanes, strict=True):
        lane = values
        if column.data_type in DATES:
            count = sum(value is ZERO_DATE for value in lane)
            if count:
                zeros += count
                lane = [None if value is ZERO_DATE else value for value in lane]
        decode = types.decode(column)
        try:
            decoded.append([decode(value) for value in lane])
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise NotFollowedError(table, f"a value of {column.name} can't be read: {error}") from error
    return arrow_decoded(table, columns, decoded), zeros


def arrow_decoded(table: str, columns: Iterable[Column], lanes: list[Any]) -> pa.Table:
    import pyarrow as pa

    arrays = []
    for column, values in zip(columns, lanes, strict=True):
        try:
            arrays.append(pa.array(values, types.change_arrow(column)))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise NotFollowedError(table, f"a value of {column.name} does not fit its type: {error}") from error
    return pa.table(arrays, names=[f"c{place}" for place in range(len(arrays))])


def value_of(column: Column, place: int) -> str:
    # The alias keeps clear of the table's own columns, which may be called the same.
    return types.from_change(column, f"c{place}").replace(quote(f"c{place}"), f"c.{quote(f'c{place}')}")


def _insert(connection: DuckDBPyConnection, table: str, columns: tuple[Column, ...], rows: pa.Table) -> None:
    names = ", ".join(quote(column.name) for column in columns)
    values = ", ".join(value_of(column, place) for place, column in enumerate(columns))
    with registered(connection, _ROWS, rows):
        connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM {_ROWS} AS c")


class registered:  # noqa: N801 - reads as what it is in a with statement
    """An arrow table under a name that statements can use."""

    def __init__(self, connection: DuckDBPyConnection, name: str, table: pa.Table) -> None:
        self._connection, self._name, self._table = connection, name, table

    def __enter__(self) -> None:
        self._connection.register(self._name, self._table)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # In a transaction that has failed DuckDB does nothing; `abandon` makes up for it.
        if failed is None:
            self._connection.unregister(self._name)
