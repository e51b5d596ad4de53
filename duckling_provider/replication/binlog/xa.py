"""XA transactions: prepared at one place of the binlog, with their rows, and committed or rolled back at another.

A run of the sync may begin between the two. So nothing of a prepared transaction is kept from run to run: at its commit
its rows are read again from where they stand, and where that is not known, the binlog is searched backwards for it.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import TypeAlias

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.binlog import dump
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.source import Source, connect, query

Xid: TypeAlias = tuple[int, bytes, bytes]
"""Format, global and branch part."""

#: With these a transaction begins: GTID, ANONYMOUS_GTID, GTID_TAGGED, and MariaDB's.
XA_BEGINNINGS = frozenset({dump.GTID, 34, dump.GTID_TAGGED, dump.MARIADB_GTID})
#: The servers write it so, whatever the client wrote.
_XID = re.compile(r"X'([0-9a-f]*)'\s*,\s*X'([0-9a-f]*)'\s*,\s*(\d+)", re.IGNORECASE)


def xid_of_event(body: bytes) -> Xid:
    """Of an event XA_PREPARE: whether in one phase, format, two lengths, the two parts."""
    form, first, second = struct.unpack_from("<III", body, 1)
    return form, body[13 : 13 + first], body[13 + first : 13 + first + second]


def _xid_of_statement(statement: str) -> Xid:
    found = _XID.search(statement)
    if not found:
        raise ReplicationError(
            f"an XA transaction has no name that is understood: {statement[:200]}", operation="read the binlog"
        )
    return int(found[3]), bytes.fromhex(found[1]), bytes.fromhex(found[2])


class XaTransactions:
    """Those of one server.

    :param server: its identity, for positions.
    """

    def __init__(self, source: Source, server: str) -> None:
        self._source, self._server = source, server
        #: Whether what is read now belongs to one.
        self.is_open = False
        #: Prepared and not yet ended: where it begins, None when it has nothing for us.
        self.prepared: dict[Xid, Position | None] = {}

    def start_of(self, statement: str, *, before: Position) -> Position | None:
        """Where the transaction begins that is committed by `statement` at `before`; None if it has nothing for us.

        :raises ReplicationError: it was prepared in a file that the server no longer has.
        """
        xid = _xid_of_statement(statement)
        if xid in self.prepared:
            return self.prepared.pop(xid)
        with contextlib.closing(connect(self._source)) as connection:
            files = [str(row[0]) for row in query(connection, "SHOW BINARY LOGS")]
        for file in reversed([file for file in files if Position(file, 0).order <= before.order]):
            found = self._find(xid, file, before)
            if found is not None:
                return found
        raise ReplicationError(
            "an XA transaction was committed whose changes are in binlog files that the server no longer has",
            operation="read the binlog",
            subject=f"{before.file}:{before.offset}",
            hint="Copy the replica again: onPositionLost does not cover this, so move the file away and sync.",
        )

    def forget(self, statement: str) -> None:
        self.prepared.pop(_xid_of_statement(statement), None)

    def _find(self, xid: Xid, file: str, before: Position) -> Position | None:
        """Where the last transaction of that name in `file` begins, if it has one before that position."""
        last, begin = None, 0
        reading = dump.BinlogDump(self._source, Position(file, 4, server=self._server), follow=False)
        with contextlib.closing(reading):
            for raw in reading.events():
                if raw.kind in XA_BEGINNINGS:
                    begin = raw.start
                elif raw.kind == dump.XA_PREPARE and not raw.body[0] and xid_of_event(raw.body) == xid:
                    last = Position(file, begin, server=self._server)
                elif raw.kind == dump.ROTATE and raw.timestamp:
                    break  # the end of the file
                if file == before.file and raw.end >= before.offset:
                    break
        return last
