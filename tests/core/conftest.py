"""What the tests of the core share: a proxy in front of a store that watches and disturbs, a replica of several parts,
and child processes that do not outlive their test.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import shutil
import socketserver
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PART = 5 << 20
_BIG_ROWS, _SMALL_ROWS = 600_000, 2000

# ---- a proxy -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Exchange:
    """One request as it passed by: `operation` as in the S3 API, `part` from 1; `status` is what the client got."""

    operation: str
    key: str
    part: int = 0
    size: int = 0
    status: int = 0
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class Proxy:
    """A reverse proxy in front of an `S3Server`.

    `server` is that server as it is seen through the proxy. `before`, when set, is called with each `Exchange` before
    it is passed on, in that request's own thread: it may wait, and what it returns is answered in the store's stead,
    ``(status, error code)`` or `HANG_UP`. `after` may replace an answer that the store gave. Request headers named in
    `drop` (lower case) do not get through to the store, headers of its answers named in `hide` not to the client, and
    `show` takes the place of what the store said in headers that it names.
    """

    HANG_UP = (0, "")

    def __init__(self, upstream: Any) -> None:
        self.seen: list[Exchange] = []
        self.before: Callable[[Exchange], tuple[int, str] | None] = lambda _: None
        self.after: Callable[[Exchange], tuple[int, str] | None] = lambda _: None
        self.drop: set[str] = set()
        self.hide: set[str] = set()
        self.show: dict[str, str] = {}
        self._upstream = urllib.parse.urlsplit(upstream.endpoint)
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server = dataclasses.replace(upstream, endpoint=f"http://127.0.0.1:{self._http.server_address[1]}")
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, operation: str, key_end: str = "") -> int:
        return sum(seen.operation == operation and seen.key.endswith(key_end) for seen in self.seen)

    def operations(self) -> list[str]:
        return [seen.operation for seen in self.seen]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def forward(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> tuple[Any, bytes]:
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            # The Host header is signed, so it goes through as it came.
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in {"expect", "connection", *self.drop}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    server_bind = socketserver.TCPServer.server_bind  # the original asks DNS for our name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = _exchange(self.command, self.path, len(body))
        seen.headers = {name.lower(): value for name, value in self.headers.items()}
        self.proxy.seen.append(seen)
        refusal = self.proxy.before(seen)
        if refusal is None:
            answer, content = self.proxy.forward(self.command, self.path, self.headers.items(), body)
            refusal = self.proxy.after(seen)
        if refusal is not None:
            self._refuse(seen, *refusal)
            return
        seen.status = answer.status
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length", *self.proxy.hide}:
                self.send_header(name, self.proxy.show.get(name.lower(), value))
        # The answer to HEAD has a length, but no body.
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names are the interface's

    def _refuse(self, seen: Exchange, status: int, code: str) -> None:
        seen.status = status
        if (status, code) == Proxy.HANG_UP:
            self.close_connection = True
            return
        content = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the interface's
        pass


def _exchange(method: str, target: str, size: int) -> Exchange:
    url = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
    _, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
    if "uploads" in query:
        operation = "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    elif "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        operation = names.get(method, "ListParts")
    elif not key:
        operation = {"HEAD": "HeadBucket", "GET": "ListObjects"}.get(method, method)
    else:
        names = {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}
        operation = names.get(method, method)
    return Exchange(operation, key, int(query.get("partNumber", ["0"])[0]), size)


@pytest.fixture
def make_proxy() -> Iterator[Callable[[Any], Proxy]]:
    """``make_proxy(server) -> Proxy`` in front of any of the servers."""
    proxies: list[Proxy] = []

    def make(upstream: Any) -> Proxy:
        proxies.append(Proxy(upstream))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


# ---- replicas ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _files(tmp_path_factory: pytest.TempPathFactory, make_replica: Callable[..., Path]) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("replicas")

    def file(rows: int) -> Path:
        path = folder / f"{rows}.db"
        return path if path.exists() else make_replica(path, rows=rows)

    return file


@pytest.fixture
def big_replica(_files: Callable[[int], Path]) -> Callable[[Path], Path]:
    """``big_replica(path) -> path``: a sound replica, closed, of six parts of 5 MiB."""
    assert 5 * PART < _files(_BIG_ROWS).stat().st_size < 6 * PART - 16
    return lambda path: Path(shutil.copyfile(_files(_BIG_ROWS), path))


@pytest.fixture
def small_replica(_files: Callable[[int], Path]) -> Callable[[Path], Path]:
    """``small_replica(path) -> path``: one that fits into a single part, made faster than by `make_replica`."""
    return lambda path: Path(shutil.copyfile(_files(_SMALL_ROWS), path))


# ---- child processes ---------------------------------------------------------------------------------------


class Child:
    """A Python program in a process of its own, which talks by lines: its output to us, our `tell` to it."""

    def __init__(self, program: str, arguments: tuple[object, ...]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        self.pid = self._process.pid

    def line(self) -> str:
        """The next line it prints; empty when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, line: str = "go on") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> tuple[int, list[str]]:
        """Close its input, let it end; its exit code and the rest of its lines."""
        rest, _ = self._process.communicate(timeout=60)
        return self._process.returncode, rest.splitlines()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    """``start_child(program, *arguments) -> Child``."""
    children: list[Child] = []

    def start(program: str, *arguments: object) -> Child:
        children.append(Child(program, arguments))
        return children[-1]

    yield start
    for child in children:
        child.kill()
