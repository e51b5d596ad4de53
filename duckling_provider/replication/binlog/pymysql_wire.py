"""pymysql's private parts that a binlog dump needs, all of them: pymysql has no public way to send a command of one's
own and to read its packets. ``tests/replication/test_pymysql_wire.py`` fails when a release of pymysql changes them.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any


def send_command(connection: Any, command: bytes) -> None:
    """Send one command packet, below 16 MiB; its first byte is the command's number (``COM_…`` of the protocol)."""
    connection._write_bytes(struct.pack("<I", len(command)) + command)  # noqa: SLF001
    # The command was packet 0, and the answer's first one is checked for its number.
    connection._next_seq_id = 1  # noqa: SLF001


def next_packet(connection: Any) -> bytes | None:
    """The next packet of the answer, however large; None for the end of the answer.

    :raises pymysql.err.Error: the server answers with an error, or the connection breaks.
    """
    packet = connection._read_packet()  # noqa: SLF001
    return None if packet.is_eof_packet() else packet.get_all_data()


def hang_up(connection: Any) -> None:
    """Close without the farewell, which a server in the middle of a command would not read; never raises."""
    with contextlib.suppress(Exception):
        connection._force_close()  # noqa: SLF001
