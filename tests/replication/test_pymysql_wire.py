"""The private parts of pymysql that `pymysql_wire` uses are still what it takes them for.

A failure here after an update of pymysql means: read its ``connections.py`` and correct ``binlog/pymysql_wire.py``.
"""

import inspect
import socket
import struct

import pymysql
import pytest
from pymysql.connections import Connection

from duckling_provider.replication.binlog.pymysql_wire import hang_up, next_packet, send_command


@pytest.mark.parametrize(
    "name,parameters",
    [("_write_bytes", ["self", "data"]), ("_read_packet", ["self", "packet_type"]), ("_force_close", ["self"])],
)
def test_pymysql_still_has_the_method(name, parameters):
    method = getattr(Connection, name, None)
    assert method is not None, f"pymysql {pymysql.__version__} has no Connection.{name} any more"
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"Connection.{name} of pymysql {pymysql.__version__} takes {found}"


@pytest.fixture
def line():
    """A connection of pymysql that was never negotiated, and the server's end of its socket."""
    ours, theirs = socket.socketpair()
    connection = Connection(defer_connect=True)
    connection._sock, connection._rfile = ours, ours.makefile("rb")
    connection._current_timeout = None
    # As after the commands that came before.
    connection._next_seq_id = 7
    theirs.settimeout(10)
    yield connection, theirs
    hang_up(connection)
    theirs.close()


def packet(number, data):
    return struct.pack("<I", len(data))[:3] + bytes([number]) + data


def test_a_command_is_packet_0_and_its_answer_begins_with_packet_1(line):
    connection, server = line
    send_command(connection, b"\x12\x04\x00\x00\x00")
    assert server.recv(100) == packet(0, b"\x12\x04\x00\x00\x00")
    server.sendall(packet(1, b"\x00first") + packet(2, b"\x00second") + packet(3, b"\xfe\x00\x00\x02\x00"))
    assert [next_packet(connection) for _ in range(3)] == [b"\x00first", b"\x00second", None]


def test_an_error_packet_is_raised_with_its_number(line):
    connection, server = line
    send_command(connection, b"\x12")
    server.sendall(packet(1, b"\xff" + struct.pack("<H", 1236) + b"#HY000could not find it"))
    with pytest.raises(pymysql.err.Error) as caught:
        next_packet(connection)
    assert caught.value.args == (1236, "could not find it")


def test_hanging_up_sends_no_farewell(line):
    connection, server = line
    hang_up(connection)
    assert server.recv(100) == b""
    hang_up(connection)
