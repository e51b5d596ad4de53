"""What a machine that only pretends to be the MySQL server gets: not the password, and no file."""

import contextlib
import socket
import struct
import threading

import pytest

from duckling_provider.replication.mysql.source import Source, SourceError, connect

pytestmark = pytest.mark.slow

PASSWORD = "s3cret-Passw0rd"
#: LONG_PASSWORD, CONNECT_WITH_DB, PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH; no TLS.
ABLE = 0x1 | 0x8 | 0x200 | 0x8000 | 0x80000
OK = b"\x00\x00\x00\x02\x00\x00\x00"


def handshake(plugin=b"mysql_native_password"):
    return b"\x0a8.4.0\x00" + struct.pack("<I", 7) + b"saltsalt\x00" + struct.pack("<H", ABLE & 0xFFFF) + b"\x2d" + (
        struct.pack("<HH", 2, ABLE >> 16) + b"\x15" + bytes(10) + b"saltsaltsalt\x00" + plugin + b"\x00"
    )  # fmt: skip


class Rogue:
    """Answers the first packet with the first of `answers`, and so on; keeps what it was sent."""

    def __init__(self, *answers):
        self.answers, self.heard = answers, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            line, _ = self.listener.accept()
            line.settimeout(20)
            with line:
                line.sendall(self.packet(0, handshake()))
                for answer in self.answers:
                    number = self.hear(line)
                    if number is None:
                        return
                    line.sendall(self.packet(number + 1, answer))
                while self.hear(line) is not None:
                    pass

    def packet(self, number, data):
        return struct.pack("<I", len(data))[:3] + bytes([number]) + data

    def hear(self, line):
        head = line.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        self.heard += line.recv(int.from_bytes(head[:3], "little"), socket.MSG_WAITALL)
        return head[3]

    def refusal(self, **options):
        query = "&".join(f"{name}={value}" for name, value in options.items())
        url = f"mysql://duckling:{PASSWORD}@127.0.0.1:{self.port}/shop" + (f"?{query}" if query else "")
        with pytest.raises(SourceError) as caught:
            connect(Source.parse(url, subject="production"))
        self.listener.close()
        self.thread.join(20)
        return caught.value


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog"])
def test_a_server_that_asks_for_the_password_in_clear_text_does_not_get_it(plugin):
    rogue = Rogue(b"\xfe" + plugin + b"\x00" + b"Password: ", OK)
    error = rogue.refusal()
    assert "asked for the password in clear text" in str(error)
    assert "ssl-mode=VERIFY_IDENTITY" in error.hint
    assert not error.retryable
    assert b"duckling" in rogue.heard
    assert PASSWORD.encode() not in rogue.heard


def test_a_server_that_asks_for_a_file_of_ours_gets_none_and_is_told_of(tmp_path):
    (tmp_path / "secret").write_text("private-key")
    rogue = Rogue(OK, OK, b"\xfb" + str(tmp_path / "secret").encode(), OK, OK)
    error = rogue.refusal()
    assert "LOAD DATA LOCAL INFILE" in str(error)
    assert "what answers at that address" in error.hint
    assert not error.retryable
    assert b"private-key" not in rogue.heard
