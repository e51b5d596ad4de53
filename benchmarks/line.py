"""A line of so many Mbit/s each way, and a count of what passes: bytes up, bytes down, requests.

Run as ``python -m benchmarks.line PORT MBIT``: it prints its own port and passes everything on to PORT of this machine
and back, no faster than that in sum over all connections, 0 as fast as it can. For each line on its standard input it
prints ``up down requests`` since the last one; it ends with that input.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

_READ = 1 << 18
_REQUEST = b" HTTP/1.1\r\n"


class _Way:
    """One direction of all connections: its bytes, and when the line is free again."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free, self._lock = rate, 0.0, threading.Lock()
        self.bytes = self.requests = 0

    def pass_on(self, length: int, requests: int) -> None:
        """Count them, and wait until the line has carried them."""
        with self._lock:
            self.bytes += length
            self.requests += requests
            if not self._rate:
                return
            now = time.monotonic()
            self._free = max(self._free, now) + length / self._rate
            due = self._free
        time.sleep(max(0.0, due - now))

    def told(self) -> tuple[int, int]:
        """(bytes, requests) since this was asked the last time."""
        with self._lock:
            told = self.bytes, self.requests
            self.bytes = self.requests = 0
        return told


def _carry(source: socket.socket, target: socket.socket, way: _Way) -> None:
    end = b""
    with contextlib.suppress(OSError):
        while data := source.recv(_READ):
            way.pass_on(len(data), (end + data).count(_REQUEST))
            end = data[1 - len(_REQUEST) :]
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main() -> None:
    port, rate = int(sys.argv[1]), int(sys.argv[2]) * 1e6 / 8
    up, down = _Way(rate), _Way(rate)

    def accept(server: socket.socket) -> None:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for one, other, way in ((near, far, up), (far, near, down)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_carry, args=(one, other, way), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        for _ in sys.stdin:
            (sent, requests), (received, _none) = up.told(), down.told()
            print(sent, received, requests, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
