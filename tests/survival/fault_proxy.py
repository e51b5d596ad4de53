"""A proxy in front of an S3 server that spoils what passes by, one fault at a time.

It speaks HTTP/1.1 on plain sockets and hands bodies on in pieces while they come, so that a connection can break, stall
or trickle in the middle of one. It keeps every body byte that a client sent in a PUT and counts what went each way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 16384


@dataclasses.dataclass
class Fault:
    """What happens to a request or its answer.

    :param reset_sent: break the connection (RST) after so many bytes of the client's body.
    :param reset_answer: the same after so many bytes of the store's body.
    :param cut_answer: end the connection in order after so many bytes of the store's body.
    :param stall_sent, stall_answer: pass no byte on after so many, for as long as the client likes to wait.
    :param flip: turn one bit of the store's body over, at this byte.
    :param pause: seconds of rest after each piece of the store's body.
    :param status, body: answer this in the store's stead; `reached` says whether the store gets the request.
    """

    reset_sent: int | None = None
    reset_answer: int | None = None
    cut_answer: int | None = None
    stall_sent: int | None = None
    stall_answer: int | None = None
    flip: int | None = None
    pause: float = 0.0
    status: int | None = None
    body: bytes = b""
    reached: bool = False


@dataclasses.dataclass
class Request:
    """`part` from 1, 0 where there is none; `sent` are the body bytes that the client has sent so far."""

    method: str
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    sent: bytearray
    part: int

    @property
    def operation(self) -> str:
        if "uploadId" in self.query:
            return {"PUT": "part", "POST": "complete", "DELETE": "abort"}.get(self.method, "parts")
        if "uploads" in self.query:
            return "create" if self.method == "POST" else "uploads"
        if not self.key:
            return "list" if self.method == "GET" else "bucket"
        return self.method.lower()


class FaultProxy:
    """`choose` is asked once per request for its fault, None for none. `requests` are all that came."""

    def __init__(self, endpoint: str) -> None:
        upstream = urlsplit(endpoint)
        self._upstream = (upstream.hostname or "", upstream.port or 80)
        self.choose: Callable[[Request], Fault | None] = lambda _: None
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def count(self, operation: str) -> int:
        return sum(request.operation == operation for request in self.requests)

    def sent(self) -> int:
        """Body bytes that clients have sent in PUTs."""
        return sum(len(request.sent) for request in self.requests if request.method == "PUT")

    def fall_silent(self, operation: str) -> None:
        """From the first such request on, nothing is answered any more, not even an abort."""
        dead = []

        def choose(request: Request) -> Fault | None:
            if request.operation == operation:
                dead.append(request)
            return Fault(stall_sent=0) if dead else None

        self.choose = choose

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as reader, contextlib.suppress(OSError, ValueError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._exchange(client, reader):
                pass

    def _exchange(self, client, reader) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = _head(reader)
        if not head:
            return False
        method, target, _ = head[0].decode().split(" ", 2)
        headers = _headers(head)
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        part = int(query.get("partNumber", ["0"])[0])
        request = Request(method, key, query, headers, bytearray(), part)
        self.requests.append(request)
        fault = self.choose(request) or Fault()
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server = None
        if fault.status is None or fault.reached:
            server = socket.create_connection(self._upstream)
            lines = [line for line in head if not line.lower().startswith((b"expect:", b"connection:"))]
            server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        try:
            left = int(headers.get("content-length", 0))
            while left:
                if fault.stall_sent is not None and len(request.sent) >= fault.stall_sent:
                    return self._stall()
                if fault.reset_sent is not None and len(request.sent) >= fault.reset_sent:
                    return _reset(client)
                data = reader.read1(min(PIECE, left))
                if not data:
                    return False
                left -= len(data)
                request.sent += data
                if server is not None:
                    server.sendall(data)
            if fault.stall_sent is not None:
                return self._stall()
            if fault.reset_sent is not None:
                return _reset(client)
            if fault.status is not None:
                if server is not None:
                    while server.recv(PIECE):
                        pass
                _answer(client, method, fault.status, fault.body)
                return True
            return self._pass_back(client, server, method, fault)
        finally:
            if server is not None:
                server.close()

    def _pass_back(self, client, server, method: str, fault: Fault) -> bool:
        with server.makefile("rb") as answer:
            head = _head(answer)
            if not head:
                return False
            headers = _headers(head)
            client.sendall(b"\r\n".join([*head, b"", b""]))
            if method == "HEAD" or b" 204 " in head[0] or b" 304 " in head[0]:
                return False
            left = int(headers["content-length"]) if "content-length" in headers else None
            passed = 0
            while left is None or left > 0:
                if fault.stall_answer is not None and passed >= fault.stall_answer:
                    return self._stall()
                if fault.reset_answer is not None and passed >= fault.reset_answer:
                    return _reset(client)
                if fault.cut_answer is not None and passed >= fault.cut_answer:
                    return False
                data = answer.read1(PIECE if left is None else min(PIECE, left))
                if not data:
                    break
                if fault.flip is not None and passed <= fault.flip < passed + len(data):
                    data = bytearray(data)
                    data[fault.flip - passed] ^= 1
                client.sendall(data)
                passed += len(data)
                left = None if left is None else left - len(data)
                if fault.pause:
                    time.sleep(fault.pause)
        return False  # the store was told to close, and its answer says so

    def _stall(self) -> bool:
        self.stalled.set()
        self._closed.wait(600)
        return False


def _head(reader) -> list[bytes]:
    lines = []
    while (line := reader.readline(65536).rstrip(b"\r\n")) or not lines:
        if not line:
            return []
        lines.append(line)
    return lines


def _headers(head: list[bytes]) -> dict[str, str]:
    pairs = (re.split(r":\s*", line.decode("latin-1"), maxsplit=1) for line in head[1:])
    return {pair[0].lower(): pair[1] for pair in pairs if len(pair) == 2}


def _answer(client: socket.socket, method: str, status: int, body: bytes) -> None:
    content = b"" if method == "HEAD" else body
    client.sendall(f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)


def _reset(client: socket.socket) -> bool:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    return False
