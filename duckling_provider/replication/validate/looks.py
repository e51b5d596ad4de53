"""What the server says of some rows: their keys with a checksum of each, which keys there are, or their values.

Each is one statement, so it sees one moment; nothing is locked, and no transaction stays open. Which moment it was is
known only as "between two positions": `touched` has what changed in between.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError
from duckling_provider.base.interruptible import AbandonedError, interruptible
from duckling_provider.replication.copy.ranges import Pace, Statistics
from duckling_provider.replication.copy.transport import Transport
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Position, Table
from duckling_provider.replication.mysql.mysql_snapshot import open_with_position
from duckling_provider.replication.mysql.source import Source, connect, current_position, query, server_of, translated
from duckling_provider.replication.validate.checksum import Bucket, TableChecksum, mysql_row_hash
from duckling_provider.replication.validate.keys import Key, KeyTexts

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

#: Seconds without a byte from the server: for a table that is looked at as a whole.
_PATIENCE = 6 * 3600.0
#: Seconds in which a server that does not say so makes visible what is in its binlog.
_UNSEEN = 1.0
#: Bytes of values that are read at once.
_VALUE_BYTES = 8 << 20


class Asker:
    """Puts the questions of a validation to the server, over one connection; a context manager."""

    def __init__(self, source: Source, control: Control) -> None:
        self._source, self._control = source, control
        self._connection = connect(source, read_timeout=_PATIENCE)
        with translated(source, "validate"):
            # Of a statement alone, a view of one moment; never of what is not committed.
            query(self._connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            lift_time_limit(self._connection)
            self._server = server_of(self._connection)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def position(self) -> Position:
        return self._ask(lambda: current_position(self._connection))

    def shows(self, position: Position) -> bool:
        """Whether all transactions up to `position`, which the replica has, are visible to what is asked from here on.

        A transaction is in the binlog, and may have been applied here, before others on the server see its rows: with
        semi-synchronous replication it waits there for an acknowledgement.
        """
        return self._ask(lambda: self._shows(position))

    def _shows(self, position: Position) -> bool:
        waiting = query(self._connection, "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync%wait_sessions'")
        if any(str(count) != "0" for _, count in waiting):
            return False
        if self._server.kind == "mysql" and position.gtid and self._server.has_gtid:
            # The server adds a transaction to this set once it is visible.
            rows = query(self._connection, "SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed)", position.gtid)
            return bool(rows[0][0])
        snapshot = open_with_position(self._connection)
        if snapshot is not None:
            query(self._connection, "ROLLBACK")
            return snapshot.server == position.server and snapshot.order >= position.order
        # Only time is left: between the two lie the milliseconds of writing to the disk.
        self._control.sleep(_UNSEEN)
        return True

    def statistics(self, table: Table) -> Statistics:
        return self._ask(lambda: Statistics.read(self._connection, table.name))

    def next_rows(self, table: Table, key: Key, after: KeyTexts | None, count: int) -> list[tuple[str | None, ...]]:
        """The `count` rows that follow `after` in the order of the key: texts of the key and the row's checksum, which
        is None where the row is too long for one. Fewer only at the end of the table.
        """
        where = f"WHERE {key.mysql_beyond(after)} " if after is not None else ""
        return self._rows(
            f"SELECT {', '.join(key.mysql_texts)}, {mysql_row_hash(table)} FROM {quote_mysql(table.name)} "
            f"FORCE INDEX (PRIMARY) {where}ORDER BY {', '.join(key.mysql_names)} LIMIT {count}"
        )

    def present(self, table: Table, key: Key, keys: Sequence[KeyTexts]) -> list[tuple[str | None, ...]]:
        """The texts of those of `keys` that there are, and maybe of keys that a collation takes for them."""
        if not keys:
            return []
        return self._rows(
            f"SELECT {', '.join(key.mysql_texts)} FROM {quote_mysql(table.name)} WHERE {key.mysql_any(keys)}"
        )

    def values(self, table: Table, key: Key, keys: Sequence[KeyTexts]) -> list[pa.Table]:
        """The rows with `keys`, as a copy reads them, in pieces."""
        size = self.statistics(table).row_bytes
        at_once = max(1, min(200, _VALUE_BYTES // max(1, size)))
        pieces: list[pa.Table] = []
        for first in range(0, len(keys), at_once):
            pieces += self.where(table, key.mysql_any(keys[first : first + at_once]))
        return pieces

    def where(self, table: Table, condition: str) -> list[pa.Table]:
        """The rows that `condition` holds for, as a copy reads them, in pieces."""
        transport = Transport(self._source, table, Pace(), fast=False)
        return self._ask(lambda: list(transport.stream(self._connection, condition)), f"validate {table.name}")

    def buckets(self, checksum: TableChecksum) -> dict[str | None, Bucket]:
        return self._ask(lambda: checksum.of_mysql(self._connection))

    def _rows(self, sql: str) -> list[tuple[str | None, ...]]:
        return [tuple(map(_text, row)) for row in self._ask(lambda: query(self._connection, sql))]

    def _ask(self, question: Callable[[], T], operation: str = "validate") -> T:
        """A cancellation ends the question at the server too, which would go on scanning for nothing.

        :raises SourceError: the server can't be asked.
        """

        def asked() -> T:
            with translated(self._source, operation):
                return question()

        try:
            return interruptible(asked, self._control)
        except AbandonedError as error:
            end = threading.Thread(target=end_query, args=(self._source, self._connection), daemon=True)
            end.start()
            end.join(1.0)
            raise CancelledError("stopped on request", hint="The next run goes on from there.") from error


def lift_time_limit(connection: Any) -> None:
    """Lift the limit that a server may set on all queries."""
    mariadb = server_of(connection).kind == "mariadb"
    query(connection, f"SET SESSION {'max_statement_time' if mariadb else 'max_execution_time'} = 0")


def end_query(source: Source, connection: Any) -> None:
    """End what `connection` is waiting for, at the server."""
    with contextlib.suppress(Exception), contextlib.closing(connect(source)) as other:
        query(other, f"KILL QUERY {int(connection.thread_id())}")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
