"""What the binlog says about one database: row changes, DDL statements and the ends of transactions, in order."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.binlog import dump
from duckling_provider.replication.binlog.charsets import UndecodableError
from duckling_provider.replication.binlog.dump import BinlogDump, PositionLostError, RawEvent
from duckling_provider.replication.binlog.gtids import GtidState, gtid_list
from duckling_provider.replication.binlog.queries import EXECUTE_LOAD_QUERY, Query, first_word, read_query
from duckling_provider.replication.binlog.row_events import INSERTS, ROWS, RowDecoder, Unfollowed
from duckling_provider.replication.binlog.rows import TableMap, column_kinds, parse_table_map, table_name
from duckling_provider.replication.binlog.xa import XA_BEGINNINGS, XaTransactions, xid_of_event
from duckling_provider.replication.model.names import fold
from duckling_provider.replication.model.tables import BinlogEvent, Commit, Position, RowChange, SchemaChange
from duckling_provider.replication.mysql.merge_tables import MergeTables
from duckling_provider.replication.mysql.source import Source

__all__ = ["Begin", "BinlogStream", "ForeignSchemaChange", "PositionLostError", "StreamEvent", "Unfollowed"]

_PARTIAL_UPDATE = 39
_HEARTBEAT_V2, _ANONYMOUS_GTID = 41, 34
#: Of MySQL's GTID event: where the time of the commit stands, in microseconds, in 7 bytes of which the last bit tells
#: something else. MySQL 8: ``libbinlogevents``, ``Gtid_event``.
_COMMITTED, _LAST_BIT = slice(42, 49), 1 << 55
#: What says nothing of rows, DDL or transactions. MySQL: STOP, INTVAR, APPEND_BLOCK, DELETE_FILE, RAND, USER_VAR,
#: FORMAT_DESCRIPTION, BEGIN_LOAD_QUERY, IGNORABLE, ROWS_QUERY, PREVIOUS_GTIDS, TRANSACTION_CONTEXT,
#: VIEW_CHANGE. MariaDB: ANNOTATE_ROWS, BINLOG_CHECKPOINT, START_ENCRYPTION.
_SAYS_NOTHING = frozenset({3, 5, 9, 11, 13, 14, 15, 17, 28, 29, 35, 36, 37, 160, 161, 164})

# Flags of MariaDB's GTID event: no COMMIT follows; a number of the group commit is in it; an XA transaction's name is.
_STANDALONE, _GROUP_COMMIT, _XA_PREPARED, _XA = 1, 2, 64, 64 | 128
# And more of them: with binlog_alter_two_phase an ALTER TABLE is logged when it starts, and again when it is done.
_START_ALTER, _ROLLBACK_ALTER = 2, 8
_DDL = frozenset({"CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE"})
#: What writes no rows anywhere, by the first word.
_WRITES_NOTHING = frozenset({"GRANT", "REVOKE", "FLUSH"})

#: The first column of a sequence, which MariaDB writes to the binlog as if it were a table.
_SEQUENCE = "next_not_cached_value"

_REPORT = "Is this a MySQL server, and no proxy that alters its answers in between? The replica stays as it was."

#: Events between two looks at the caller while nothing of them is for him.
_SKIPS_BETWEEN_PAUSES = 5000


@dataclass(frozen=True)
class ForeignSchemaChange(SchemaChange):
    """A statement given while `schema` was the current database: names without one mean that."""

    schema: str = ""


@dataclass(frozen=True)
class Begin:
    """The changes that follow are of a transaction that begins before `position` and ends after it."""

    position: Position


StreamEvent: TypeAlias = BinlogEvent | Begin | Unfollowed


class BinlogStream:
    """The changes of `source`'s database after `position`.

    A context manager, as it holds a connection; the generators that it hands out end with it.

    :param wanted: whether a table of this name is mirrored.
    :param follow: wait for more at the end of the binlog instead of ending. ``None`` is yielded twice a second while
        nothing happens, and now and then among events that are not for the caller, so that he can look around.
    :param elsewhere: tables of other databases by (database, name), and mirrored ones whose rows go or change with
        theirs by foreign keys, of which the binlog is silent.
    :param merged: the tables that are written through others.
    :param prepared: tell of the XA transaction that begins at `position` as of any other.
    :raises SourceError: when the server can't be reached.
    """

    def __init__(
        self,
        source: Source,
        position: Position,
        *,
        wanted: Callable[[str], bool] | None = None,
        follow: bool = False,
        elsewhere: Callable[[], Mapping[tuple[str, str], Sequence[str]]] = dict,
        merged: Callable[[], MergeTables] = MergeTables,
        prepared: bool = False,
    ) -> None:
        self._elsewhere, self._merged = elsewhere, merged
        self._dump = BinlogDump(source, position, follow=follow)
        self._source, self._tells_prepared = source, prepared
        self._xa = XaTransactions(source, self._dump.server.identity)
        self._folds = self._dump.server.folds_names
        self._database = source.database.lower() if self._folds else source.database
        self._wanted = wanted or (lambda _: True)
        self._mariadb = self._dump.server.kind == "mariadb"
        self._gtids = GtidState(self._dump.gtid, mariadb=self._mariadb)
        self._file, self._offset = position.file, position.offset
        #: The end of the last transaction that was handed out.
        self.position = position
        self._descriptions: dict[bytes, TableMap | Unfollowed] = {}
        self._by_id: dict[int, TableMap | Unfollowed | None] = {}
        self._decoder = RowDecoder()
        self._touched: set[str] = set()
        self._open = False
        #: When the current transaction was committed, where the server tells; 0.0 elsewhere.
        self._stamp = 0.0
        #: Whether the statement that comes next has not been done, or not yet.
        self._announced = False
        #: Where the current transaction begins.
        self._begun = position
        #: Whether the current transaction's `Begin` has been handed out.
        self._told = False

    def __enter__(self) -> BinlogStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._dump.close()

    def read_until(self, end: Position) -> Iterator[StreamEvent | None]:
        """All events of transactions up to `end`, a position of the server that is connected to."""
        if not self._has(end):
            yield from self.read(until=end)

    def read(self, *, until: Position | None = None) -> Iterator[StreamEvent | None]:
        """All events up to the end of the binlog, or for ever.

        :raises PositionLostError: when the server no longer has what follows the position.
        :raises SourceError: when the connection breaks.
        """
        skipped = 0
        for raw in self._dump.events():
            kind = raw.kind
            if kind in ROWS:
                table = self._by_id.get(int.from_bytes(raw.body[:6], "little"))
                if (
                    table is not None
                    and not self._xa.is_open
                    and not (isinstance(table, Unfollowed) and kind in INSERTS)
                ):
                    if not self._told:
                        yield self._begin()
                    if isinstance(table, Unfollowed):
                        self._touched.update(table.tables)
                        yield table
                    else:
                        yield from self._decoder.changes(raw, table)
                    continue
            elif kind == dump.TABLE_MAP:
                lost = self._describe(raw.body)
                if lost is not None and not self._xa.is_open:
                    yield self._begin()
                    yield lost
                continue
            elif kind in {dump.HEARTBEAT, _HEARTBEAT_V2}:
                yield None
                continue
            elif kind == dump.ROTATE:
                rotated = self._rotated(raw)
                if rotated is not None:
                    yield rotated
                if self._is_past(until):
                    return
                continue
            else:
                yield from self._statement(raw)
                self._offset = raw.end or self._offset
                if self._is_past(until):
                    return
            skipped += 1
            if skipped % _SKIPS_BETWEEN_PAUSES == 0:
                yield None

    def _is_past(self, end: Position | None) -> bool:
        return end is not None and not self._open and self._has(end)

    def _has(self, end: Position) -> bool:
        """Whether everything up to `end` has been told."""
        if self.position.server and self.position.server != end.server:
            # After a failover files and offsets mean nothing until a transaction of this server has been met.
            return self._gtids.covers(end.gtid)
        return Position(self._file, self._offset).order >= end.order

    def _begin(self) -> Begin:
        self._told = True
        return Begin(Position(self._file, self._offset, server=self._dump.server.identity))

    # ---- rows ----

    def _describe(self, body: bytes) -> Unfollowed | None:
        number, key = int.from_bytes(body[:6], "little"), body[8:]
        known = self._descriptions.get(key)
        if known is None:
            schema, name = (self._folded(text) for text in table_name(key))
            if schema != self._database or not self._wanted(name):
                reached = self._merged().written_through(schema, name, column_kinds(key))
                if reached:
                    self._by_id[number] = None
                    note = f"rows of it may have been written through {schema}.{name}"
                    hidden = "" if (schema, name) in self._merged().members else ", which the user may not see"
                    return Unfollowed(note + hidden, reached)
            if schema != self._database:
                children = tuple(self._elsewhere().get((schema, name), ()))
                note = f"its rows may have gone or changed with those of {schema}.{name}, by a foreign key"
                self._by_id[number] = Unfollowed(note, children) if children else None
                return None
            if not self._wanted(name):
                self._by_id[number] = None
                return None
            try:
                known = parse_table_map(key, self._dump.charsets, mariadb=self._mariadb)
            except UndecodableError as error:
                known = Unfollowed(str(error), (name,))
            except (IndexError, KeyError, ValueError, OverflowError, struct.error) as error:
                raise self._refused(
                    f"the description of table {name} is malformed ({type(error).__name__}: {error})", _REPORT
                ) from error
            if len(self._descriptions) > 1000:
                self._descriptions.clear()
            self._descriptions[key] = known
        if isinstance(known, Unfollowed):
            self._by_id[number] = None
            return known
        if known.columns[0] == _SEQUENCE and self._mariadb:
            self._by_id[number] = None
            return None
        self._by_id[number] = known
        self._touched.add(known.name)
        return None

    def _folded(self, text: str) -> str:
        """A name as the server understands it."""
        return text.lower() if self._folds else text

    # ---- everything else ----

    def _statement(self, raw: RawEvent) -> Iterator[StreamEvent | None]:
        kind, body = raw.kind, raw.body
        if kind in XA_BEGINNINGS:
            self._begun = Position(self._file, raw.start, server=self._dump.server.identity)
        if kind == dump.MARIADB_GTID:
            domain = int.from_bytes(body[8:12], "little")
            self._gtids.begin(str(domain), f"{raw.server_id}-{int.from_bytes(body[:8], 'little')}")
            self._open = not body[12] & _STANDALONE
            extra = 21 if body[12] & _GROUP_COMMIT else 13
            more = 0 if body[12] & _XA or extra >= len(body) else body[extra]
            self._announced = bool(more & (_START_ALTER | _ROLLBACK_ALTER))
            self._xa.is_open = bool(body[12] & _XA_PREPARED) and not self._tells_prepared
        elif kind == dump.GTID:
            sid = body[1:17].hex()
            text = "-".join((sid[:8], sid[8:12], sid[12:16], sid[16:20], sid[20:]))
            self._gtids.begin(text, str(int.from_bytes(body[17:25], "little")))
            self._stamp = _commit_time(body)
        elif kind == _ANONYMOUS_GTID:
            self._stamp = _commit_time(body)
        elif kind == dump.MARIADB_GTID_LIST:
            # At the head of each file. The file of the position may be purged, although nothing here is for us yet.
            if (
                raw.end
                and self.position.file != self._file
                and set(gtid_list(body)) == set(self._gtids.text().split(","))
            ):
                yield self._commit(raw)
        elif kind == dump.GTID_TAGGED:
            self._gtids.give_up()
            self._stamp = 0.0
        elif kind == dump.XID:
            yield self._commit(raw)
        elif kind in {dump.QUERY, dump.QUERY_COMPRESSED, EXECUTE_LOAD_QUERY}:
            yield from self._query(raw)
        elif kind == dump.XA_PREPARE:
            # Its rows count from its commit on, which may come much later or never.
            if self._xa.is_open and self._touched:
                if body[0]:
                    yield from self._told_again(self._begun)
                else:
                    self._xa.prepared[xid_of_event(body)] = self._begun
            elif self._xa.is_open:
                self._xa.prepared[xid_of_event(body)] = None
            yield self._commit(raw)
        elif kind == _PARTIAL_UPDATE:
            table = self._by_id.get(int.from_bytes(body[:6], "little"))
            if isinstance(table, Unfollowed):
                yield table
            elif table is not None:
                yield Unfollowed("its changes hold parts of JSON: binlog_row_value_options is set", (table.name,))
        elif kind == dump.INCIDENT:
            raise self._refused("the server recorded an incident: changes are missing in its binlog", "Copy it again.")
        elif kind not in _SAYS_NOTHING and not raw.ignorable:
            raise self._refused(
                f"it holds an event of the type {kind}, which is unknown here, at offset {raw.start}",
                "The replica stays as it was before it. Update duckling; or turn off on the server what writes such "
                "events, and copy the replica again.",
            )

    def _query(self, raw: RawEvent) -> Iterator[StreamEvent | None]:
        query = read_query(raw)
        statement = query.decoded(self._dump.charsets)
        word = first_word(statement, mariadb=self._mariadb)
        if word == "BEGIN":
            self._open = True
        elif word == "COMMIT":
            yield self._commit(raw)
        elif word == "ROLLBACK":
            if self._touched:
                yield Unfollowed("a transaction was rolled back in part", tuple(sorted(self._touched)))
            if not re.search(r"\bTO\b", statement, re.IGNORECASE):
                yield self._commit(raw)
        elif word == "XA":
            yield from self._xa_statement(raw, statement)
        elif word in {"SAVEPOINT", "RELEASE"}:
            pass
        else:
            if not self._announced and self._concerns(query, statement, word):
                if word not in _DDL:
                    yield self._begin()
                yield self._as_statement(query, statement, raw)
                if not self._open:
                    self._touched.clear()
                    self._told = False
                return
            if not self._open:
                yield self._commit(raw)

    def _concerns(self, query: Query, statement: str, word: str) -> bool:
        """Whether the statement may have changed tables of ours."""
        schema, said = self._folded(query.schema), fold(self._folded(statement).replace("``", "`"))
        if schema == self._database or fold(self._database) in said:
            return True
        merged = self._merged()
        if any(schema == other or fold(other) in said for other, _ in (*self._elsewhere(), *merged.members)):
            return True
        if merged.suspects and (word == "TRUNCATE" or word not in _DDL | _WRITES_NOTHING):
            return True
        # By triggers, views and routines a statement writes into databases that it does not name.
        written = None if query.databases is None else set(map(self._folded, query.databases))
        return word not in _DDL | _WRITES_NOTHING and (written is None or self._database in written)

    def _as_statement(self, query: Query, statement: str, raw: RawEvent) -> SchemaChange:
        # Inside a transaction (CREATE TABLE … SELECT) only its end is a place to go on from.
        position = self.position if self._open else self._advance(raw)
        schema = self._folded(query.schema)
        told = statement, position, self._time(raw), self._open, self._folds
        session = query.sql_mode, raw.of_session, self._mariadb
        if schema == self._database:
            return SchemaChange(*told, *session)
        return ForeignSchemaChange(*told, *session, schema=schema)

    def _time(self, raw: RawEvent) -> float:
        """When the transaction that `raw` belongs to was committed; from a server that does not tell, when its last
        statement began, in whole seconds.
        """
        return self._stamp or raw.timestamp

    def _xa_statement(self, raw: RawEvent, statement: str) -> Iterator[StreamEvent | None]:
        verb = statement.split()[1].upper()
        if verb in {"START", "BEGIN"}:
            self._open, self._xa.is_open = True, not self._tells_prepared
        elif verb == "COMMIT":
            start = self._xa.start_of(statement, before=Position(self._file, raw.start))
            if start is not None:
                yield from self._told_again(start)
            yield self._commit(raw)
        elif verb == "ROLLBACK":
            self._xa.forget(statement)
            yield self._commit(raw)

    def _told_again(self, start: Position) -> Iterator[StreamEvent | None]:
        """The rows of the XA transaction that begins at `start`, as part of the current transaction."""
        with BinlogStream(
            self._source, start, wanted=self._wanted, elsewhere=self._elsewhere, merged=self._merged, prepared=True
        ) as again:
            for event in again.read():
                if isinstance(event, Commit):
                    return
                if isinstance(event, RowChange | Unfollowed) and not self._told:
                    yield self._begin()
                if event is None or isinstance(event, RowChange | Unfollowed):
                    yield event

    def _commit(self, raw: RawEvent) -> Commit:
        self._open = self._told = self._xa.is_open = False
        self._touched.clear()
        return Commit(self._advance(raw), self._time(raw))

    def _advance(self, raw: RawEvent) -> Position:
        self._offset = raw.end or self._offset
        self.position = Position(self._file, self._offset, self._gtids.end(), self._dump.server.identity)
        return self.position

    def _rotated(self, raw: RawEvent) -> Commit | None:
        offset, file = int.from_bytes(raw.body[:8], "little"), raw.body[8:].decode()
        # Table ids are the server's own and begin again when it restarts, which begins a file.
        self._by_id.clear()
        moved = file != self._file
        self._file, self._offset = file, offset
        if not moved or self._open or not raw.timestamp:
            return None
        # The old file may be purged, although nothing in the new one is for us yet.
        self.position = Position(file, offset, self._gtids.text(), self._dump.server.identity)
        return Commit(self.position, raw.timestamp)

    def _refused(self, cause: str, hint: str) -> ReplicationError:
        return ReplicationError(cause, subject=f"{self._file}:{self._offset}", operation="read the binlog", hint=hint)


def _commit_time(body: bytes) -> float:
    """Seconds since 1970, from a GTID event; 0.0 where it does not tell, as before MySQL 8."""
    stamp = body[_COMMITTED]
    return (int.from_bytes(stamp, "little") & (_LAST_BIT - 1)) / 1e6 if len(stamp) == 7 else 0.0
