"""The wire of replication: asking a server for its binlog from a position on, and cutting what comes into events.

mysql-replication's reader parses every event with everything that hangs on it before it says whose it is; here the
header and the filter come first. Its GTID sets are used. Protocol: MySQL's ``sql/rpl_binlog_sender.cc``, MariaDB's
knowledge base, "Replica registration" and "COM_BINLOG_DUMP".
"""

from __future__ import annotations

import contextlib
import re
import secrets
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from duckling_provider.base.errors import DucklingError, ReplicationError
from duckling_provider.replication.binlog.charsets import Charsets
from duckling_provider.replication.binlog.pymysql_wire import hang_up, next_packet, send_command
from duckling_provider.replication.binlog.rows import packed
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.availability import mariadb_written
from duckling_provider.replication.mysql.source import MySqlServer, Source, connect, query, server_of, translated

QUERY, ROTATE, FORMAT_DESCRIPTION, XID, TABLE_MAP, HEARTBEAT, XA_PREPARE = 2, 4, 15, 16, 19, 27, 38
INCIDENT, GTID, TRANSACTION_PAYLOAD, GTID_TAGGED = 26, 33, 40, 42
MARIADB_GTID, MARIADB_GTID_LIST, QUERY_COMPRESSED = 162, 163, 165

#: Of a transaction's payload: the field that names the compression, and what it may be.
_COMPRESSION, _ZSTD, _PLAIN = 2, 0, 255
_COM_BINLOG_DUMP, _COM_BINLOG_DUMP_GTID = 0x12, 0x1E
_NON_BLOCKING, _THROUGH_GTID = 1, 4
#: Of the first event in each file, behind four bytes by which it is known.
FIRST_OFFSET = 4
_HEADER = struct.Struct("<IBIIIH")
_OF_SESSION, _IGNORABLE = 0x04, 0x80
_FATAL_ERROR_READING_BINLOG = 1236
#: What servers say under that number when the position is the trouble, rather than the network, a setting or a disk.
_LOST = re.compile(
    "could not find|purged|not in the master's binlog|file size|impossible position|has been? (missing|deleted)|"
    "more (gtids|transactions) than|errant|different history",
    re.IGNORECASE,
)

#: Seconds between two signs of life of a server that has nothing to tell.
HEARTBEAT_SECONDS = 0.5


class PositionLostError(DucklingError):
    """The server no longer has the changes after the replica's position, or never had that position.

    :param kept: what it still has: its binlog files, oldest first.
    """

    def __init__(self, cause: str, *, position: Position, kept: list[str], subject: str) -> None:
        has = f"the server has {kept[0]} to {kept[-1]}" if kept else "the server lists no binlog files"
        super().__init__(
            f"the binlog after {position} is gone: {cause}; {has}",
            subject=subject,
            operation="read the binlog",
            hint="Only a full copy brings the replica up to date again: onPositionLost = resync allows the sync to "
            "make one. Let the server keep its binlog for longer than the replica may be down.",
        )
        self.position = position
        self.kept = kept


class RawEvent(NamedTuple):
    """One event: `end` is where the next one begins in its file, 0 for what is in no file; `body` has no checksum.

    :param start: where it begins itself; 0 likewise.
    :param ignorable: who does not know its type may ignore it.
    :param of_session: its statement depends on the session that gave it, whose temporary tables it may be about.
    """

    timestamp: int
    kind: int
    server_id: int
    end: int
    body: bytes
    start: int = 0
    ignorable: bool = False
    of_session: bool = False


#: What `_charsets` found on a server: thousands of rows, the same as long as it has the same version.
_CHARSETS: dict[tuple[str, int, MySqlServer], tuple[dict[int, str], dict[str, int]]] = {}


class BinlogDump:
    """A connection that a server sends its binlog through.

    By GTID where the position has one and the server understands it, else from file and offset.

    :param follow: go on at the end and wait for more; with `HEARTBEAT` events meanwhile.
    :raises SourceError: when the server can't be reached.
    """

    def __init__(self, source: Source, position: Position, *, follow: bool) -> None:
        self._source, self._position, self._follow = source, position, follow
        self._connection = connect(source, read_timeout=60.0)
        self._asking: Any = None
        try:
            with translated(source, "read the binlog"):
                self.server = server_of(self._connection)
                server = (source.host, source.port, self.server)
                if server not in _CHARSETS:
                    _CHARSETS[server] = _charsets(self._connection)
                self.charsets = Charsets(*_CHARSETS[server], self._ask)
                #: By GTID; offsets of the position given don't count then.
                self.by_gtid = bool(position.gtid) and self.server.has_gtid and not _tagged(position.gtid)
                self._refuse_other_binlog()
                self.gtid = self._gtid_at_start()
                self._checksums = self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        hang_up(self._connection)
        if self._asking is not None:
            hang_up(self._asking)

    def events(self) -> Iterator[RawEvent]:
        """Until the end of the binlog, or for ever.

        :raises PositionLostError: when the server can't go on from the position.
        :raises SourceError: when the connection breaks.
        """
        import pymysql.err

        connection, checksums = self._connection, self._checksums
        try:
            with translated(self._source, "read the binlog"):
                self._request()
                while True:
                    # An event may begin like an end-of-file packet only behind the byte 0.
                    data = next_packet(connection)
                    if data is None:
                        return
                    timestamp, kind, server_id, size, end, flags = _HEADER.unpack_from(data, 1)
                    if kind == FORMAT_DESCRIPTION:
                        # Its last but four bytes say how the rest of the file is checked; it always has a checksum.
                        checksums = data[-5] not in {0, 255}
                    body = data[20:-4] if checksums or kind == FORMAT_DESCRIPTION else data[20:]
                    start, ignorable, own = max(0, end - size), bool(flags & _IGNORABLE), bool(flags & _OF_SESSION)
                    raw = RawEvent(timestamp, kind, server_id, end, body, start, ignorable, own)
                    if kind == TRANSACTION_PAYLOAD:
                        yield from unpacked(raw)
                    else:
                        yield raw
        except DucklingError as error:
            cause = error.__cause__
            if isinstance(cause, pymysql.err.Error) and cause.args[:1] == (_FATAL_ERROR_READING_BINLOG,):
                if not _LOST.search(str(cause.args[1])):
                    raise
                raise self._lost(str(cause.args[1])) from error
            raise

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        # The other connection is busy with the binlog.
        if self._asking is None:
            self._asking = connect(self._source)
        with translated(self._source, "ask for a character set"):
            return query(self._asking, sql)

    def _refuse_other_binlog(self) -> None:
        known = self._position.server
        if known and known != self.server.identity and not self.by_gtid:
            raise self._lost(f"it is of the server {known}, and this is {self.server.identity}")
        if self.by_gtid and self.server.kind == "mariadb":
            written = mariadb_written(self._connection)
            for part in re.split(r"[\s,]+", self._position.gtid):
                origin, _, number = part.rpartition("-")
                # For a domain that it knows nothing of, the server would begin at the first transaction it has.
                if written.get(origin, -1) < int(number):
                    raise self._lost(f"transaction {part} is not in it, so it was restarted after that")

    def _lost(self, cause: str) -> PositionLostError:
        kept: list[str] = []
        with contextlib.suppress(Exception):
            other = connect(self._source)
            with contextlib.closing(other):
                kept = [str(row[0]) for row in query(other, "SHOW BINARY LOGS")]
        return PositionLostError(cause, position=self._position, kept=kept, subject=self._source.subject)

    def _gtid_at_start(self) -> str | None:
        """The transactions up to the position; None where that can't be known, so that none is invented."""
        if self._position.gtid:
            return self._position.gtid if self.by_gtid else None
        if self.server.kind == "mariadb":
            place = query(
                self._connection, "SELECT BINLOG_GTID_POS(%s, %s)", self._position.file, self._position.offset
            )
            return None if place[0][0] is None else str(place[0][0])
        is_head = self._position.offset == FIRST_OFFSET
        return previous_gtids(self._connection, self._position.file) if self.server.has_gtid and is_head else None

    def _prepare(self) -> bool:
        """Session settings of a replica; whether events carry checksums until a file says otherwise."""
        period = int(HEARTBEAT_SECONDS * 1e9)
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SET @master_binlog_checksum = @@global.binlog_checksum, "
                "@source_binlog_checksum = @@global.binlog_checksum, "
                f"@master_heartbeat_period = {period}, @source_heartbeat_period = {period}, "
                # GTID events as they are; with less, MariaDB's stand-ins for them are malformed.
                "@mariadb_slave_capability = 4"
            )
            if self.by_gtid and self.server.kind == "mariadb":
                cursor.execute(
                    "SET @slave_connect_state = %s, @slave_gtid_strict_mode = 0, @slave_gtid_ignore_duplicates = 0",
                    (self._position.gtid,),
                )
        return str(query(self._connection, "SELECT @@global.binlog_checksum")[0][0]).upper() != "NONE"

    def _request(self) -> None:
        flags = 0 if self._follow else _NON_BLOCKING
        # High, so that it meets no server's own: two replicas of one id throw each other out.
        replica = 0xC0000000 | secrets.randbits(30)
        file, offset = self._position.file.encode(), self._position.offset
        if self.by_gtid and self.server.kind == "mysql":
            from pymysqlreplication.gtid import GtidSet

            known = GtidSet(self._position.gtid).encoded()
            command = struct.pack("<BHIIQI", _COM_BINLOG_DUMP_GTID, flags | _THROUGH_GTID, replica, 0, 4, len(known))
            command += known
        else:
            if self.by_gtid:
                file, offset = b"", 4
            command = struct.pack("<BIHI", _COM_BINLOG_DUMP, offset, flags, replica) + file
        send_command(self._connection, command)


def previous_gtids(connection: Any, file: str) -> str | None:
    """The transactions that a server had when it began `file`; None where it does not say so."""
    import pymysql.err

    # Read with a privilege that the user may lack.
    with contextlib.suppress(pymysql.err.Error):
        for _, _, kind, _, _, info in query(connection, "SHOW BINLOG EVENTS IN %s LIMIT 3", file):
            if kind == "Previous_gtids":
                return re.sub(r"\s", "", str(info))
            if kind == "Gtid_list":
                return re.sub(r"[\s\[\]]", "", str(info))
    return None


def unpacked(event: RawEvent) -> Iterator[RawEvent]:
    """The events of a whole transaction that MySQL has compressed into `event`; they all end where it does.

    Fields of number, length and value, up to number 0; then the stream: MySQL's ``Transaction_payload_event``.

    :raises ReplicationError: it is compressed by what is unknown here.
    """
    import pyarrow as pa

    body, at, compression = event.body, 0, None
    while True:
        field, at = packed(body, at)
        if not field:
            break
        length, at = packed(body, at)
        if field == _COMPRESSION:
            compression = packed(body, at)[0]
        at += length
    if compression not in {_ZSTD, _PLAIN}:
        raise ReplicationError(
            f"a transaction is compressed by the unknown algorithm {compression}",
            operation="read the binlog",
            hint="Set binlog_transaction_compression = OFF, and copy the replica again.",
        )
    packet: Any = pa.BufferReader(memoryview(body)[at:])
    stream = pa.CompressedInputStream(packet, "zstd") if compression == _ZSTD else packet
    while header := stream.read(_HEADER.size):
        timestamp, kind, server_id, size, _, flags = _HEADER.unpack(header)
        inner = stream.read(size - _HEADER.size)
        if len(inner) != size - _HEADER.size:
            raise ReplicationError("a compressed transaction breaks off", operation="read the binlog")
        ignorable, own = bool(flags & _IGNORABLE), bool(flags & _OF_SESSION)
        yield RawEvent(timestamp, kind, server_id, event.end, inner, event.start, ignorable, own)


def uncompress(data: bytes, at: int) -> bytes:
    """What MariaDB's ``log_bin_compress`` made of the rest of an event from `at` on.

    A byte with the algorithm (zlib is 0) and the size of the length that follows, then the stream.
    """
    if data[at] >> 4 & 7:
        raise ReplicationError(f"the binlog is compressed by the unknown algorithm {data[at] >> 4 & 7}")
    return zlib.decompress(data[at + 1 + (data[at] & 7) :])


def _tagged(gtid: str) -> bool:
    # uuid:tag:1-5 of MySQL 8.3 and later; MariaDB's have no colon at all.
    return any(not part[:1].isdigit() for text in gtid.split(",") for part in text.split(":")[1:])


def _charsets(connection: Any) -> tuple[dict[int, str], dict[str, int]]:
    """Id of a collation -> name of its character set; the name -> most bytes of a character."""
    known = dict(query(connection, "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS"))
    if server_of(connection).kind == "mariadb":
        with contextlib.suppress(Exception):  # the column ID is there since 10.10, with collations that have no own
            known |= dict(
                query(
                    connection,
                    "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY",
                )
            )
    widths = query(connection, "SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS")
    names = {int(number): str(name).lower() for number, name in known.items() if number is not None and name}
    return names, {str(name).lower(): int(width) for name, width in widths}
