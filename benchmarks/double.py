"""A store double: speaks enough S3 for the clients that are measured, and costs them as little as it can.

It is no store. Uploads are discarded inside the kernel (`MSG_TRUNC` of tcp(7) drops bytes without copying them) and
only their sizes kept, small objects such as a ``.mac`` whole; downloads come by sendfile(2) from files made once.
Nothing is verified, no signature, no checksum. Run as ``python -m benchmarks.double FOLDER``: objects are the files
``FOLDER/<bucket>/<key>``; it prints its port and serves until its standard input ends. ``GET /-/cpu`` answers the CPU
seconds it has used so far, ``DELETE /-/uploads`` forgets what was uploaded.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import socket
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

#: Objects up to this size are kept as they are.
_SMALL = 1 << 16
_WINDOW = 1 << 24
#: Not like an MD5 sum, or clients would compare it with theirs.
_ETAG = '"double-1"'
_DATE = "Sat, 01 Mar 2025 14:32:11 GMT"

# Never touched, thus never real memory: MSG_TRUNC wants the address of a buffer and does not write there.
_NOWHERE = memoryview(mmap.mmap(-1, _WINDOW))


@dataclass
class _Uploaded:
    size: int
    content: bytes | None
    headers: dict[str, str] = field(default_factory=dict)


class _State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[str, _Uploaded] = {}
        self.parts: dict[str, dict[int, int]] = {}
        self.metadata: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")}


class _Connection:
    def __init__(self, sock: socket.socket, state: _State) -> None:
        self._sock, self._state = sock, state
        self._pending = b""

    def serve(self) -> None:
        with self._sock:
            try:
                while (request := self._request()) is not None:
                    self._answer(request)
            except (ConnectionError, ValueError):
                pass  # a client that was stopped

    def _request(self) -> _Request | None:
        while b"\r\n\r\n" not in self._pending:
            data = self._sock.recv(65536)
            if not data:
                return None
            self._pending += data
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        url = urllib.parse.urlsplit(target)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return _Request(method, urllib.parse.unquote(url.path).strip("/"), query, headers)

    def _body(self, request: _Request) -> bytes | None:
        """Take the body off the line; None when it is a large one, which is gone then."""
        if request.headers.get("expect") == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = request.length
        small = left <= _SMALL
        kept, self._pending = self._pending[:left], self._pending[left:]
        left -= len(kept)
        while left:
            if small:
                data = self._sock.recv(left)
                kept += data
                got = len(data)
            else:
                got = self._sock.recv_into(_NOWHERE, min(left, _WINDOW), socket.MSG_TRUNC | socket.MSG_WAITALL)
            if not got:
                raise ConnectionError("the client hung up")
            left -= got
        return kept if small else None

    def _send(self, status: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        lines = {"Content-Length": str(len(body)), "x-amz-request-id": "0", "Date": _DATE, **(headers or {})}
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._sock.sendall(head.encode("latin-1") + b"\r\n" + body)

    def _error(self, request: _Request, status: str, code: str) -> None:
        body = b"" if request.method == "HEAD" else f"<Error><Code>{code}</Code><Message></Message></Error>".encode()
        self._send(status, body)

    def _answer(self, request: _Request) -> None:
        if request.path.startswith("-/"):
            self._own(request)
        elif request.method == "PUT":
            self._put(request)
        elif request.method == "POST":
            self._post(request)
        elif request.method == "DELETE":
            self._state.objects.pop(request.path, None)
            self._send("204 No Content")
        elif request.method in {"GET", "HEAD"} and "/" in request.path:
            self._get(request)
        else:
            self._list(request)

    def _own(self, request: _Request) -> None:
        if request.path == "-/uploads":
            self._state.objects.clear()
            self._state.parts.clear()
            self._send("204 No Content")
        else:
            self._send("200 OK", str(time.process_time()).encode())

    def _put(self, request: _Request) -> None:
        content = self._body(request)
        size = int(request.headers.get("x-amz-decoded-content-length", request.length))
        if "partNumber" in request.query:
            self._state.parts[request.query["uploadId"]][int(request.query["partNumber"])] = size
        elif "/" in request.path:
            self._state.objects[request.path] = _Uploaded(size, content, request.metadata)
        self._send("200 OK", headers={"ETag": _ETAG})

    def _post(self, request: _Request) -> None:
        self._body(request)
        bucket, _, key = request.path.partition("/")
        if "uploads" in request.query:
            upload = secrets.token_hex(8)
            self._state.parts[upload] = {}
            self._state.metadata[upload] = request.metadata
            name, inner = "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"
        else:
            upload = request.query["uploadId"]
            size = sum(self._state.parts.pop(upload).values())
            self._state.objects[request.path] = _Uploaded(size, None, self._state.metadata.pop(upload, {}))
            name, inner = "CompleteMultipartUploadResult", f"<ETag>{_ETAG}</ETag>"
        body = f"<{name}><Bucket>{bucket}</Bucket><Key>{key}</Key>{inner}</{name}>"
        self._send("200 OK", body.encode(), {"Content-Type": "application/xml"})

    def _get(self, request: _Request) -> None:
        uploaded = self._state.objects.get(request.path)
        path = self._state.folder / request.path
        if uploaded is not None:
            size, extra = uploaded.size, uploaded.headers
        elif path.is_file():
            size, extra = path.stat().st_size, {}
        else:
            self._error(request, "404 Not Found", "NoSuchKey")
            return
        start, stop, status = 0, size, "200 OK"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted:
            start, status = int(wanted[1]), "206 Partial Content"
            stop = min(size, int(wanted[2]) + 1) if wanted[2] else size
            extra = {**extra, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        headers = {"Content-Length": str(stop - start), "ETag": _ETAG, "Last-Modified": _DATE, **extra}
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if request.method == "HEAD":
            self._send(status, headers=headers)
        elif uploaded is not None:
            self._send(status, (uploaded.content or b"")[start:stop], headers)
        else:
            self._send(status, headers=headers)
            with path.open("rb") as file:
                while start < stop:
                    start += os.sendfile(self._sock.fileno(), file.fileno(), start, stop - start)

    def _list(self, request: _Request) -> None:
        """A listing, all in one page. That is enough for one benchmark's objects."""
        if request.method == "HEAD" or "location" in request.query:
            self._send("200 OK", b"" if request.method == "HEAD" else b"<LocationConstraint/>")
            return
        prefix, bucket = request.query.get("prefix", ""), request.path
        folder = self._state.folder / bucket
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()} | {
            key.partition("/")[2]: found.size for key, found in self._state.objects.items()
        }
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{_ETAG}</ETag>"
            "<LastModified>2025-03-01T14:32:11.000Z</LastModified></Contents>"
            for key, size in sorted(sizes.items())
            if key.startswith(prefix)
        )
        kind = "ListMultipartUploadsResult" if "uploads" in request.query else "ListBucketResult"
        body = f"<{kind}><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{rows}</{kind}>"
        self._send("200 OK", body.encode(), {"Content-Type": "application/xml"})


def main() -> None:
    state = _State(Path(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=_accept, args=(server, state), daemon=True).start()
        sys.stdin.read()
    os._exit(0)


def _accept(server: socket.socket, state: _State) -> None:
    while True:
        sock, _ = server.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_Connection(sock, state).serve, daemon=True).start()


if __name__ == "__main__":
    main()
