"""A line of some length: a proxy that passes bytes on after a while, as many at once as come.

Run as ``python -m benchmarks.delay PORT MILLISECONDS``: it prints its own port and passes everything on to PORT of this
machine and back, each way in half of that time, until its standard input ends.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import sys
import threading
import time

_READ = 1 << 20
#: Bytes on the line at once, each way: enough for 500 MB/s over 100 ms.
_MOST = 64 << 20


def _carry(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Read and note when it is due; another thread sends."""
    line: collections.deque[tuple[float, bytes]] = collections.deque()
    changed, held = threading.Condition(), [0]

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                with changed:
                    changed.wait_for(lambda: line)
                    due, data = line.popleft()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
                with changed:
                    held[0] -= len(data)
                    changed.notify_all()

    threading.Thread(target=send, daemon=True).start()
    data = b"-"
    while data:
        try:
            data = source.recv(_READ)
        except OSError:
            data = b""
        with changed:
            changed.wait_for(lambda: held[0] < _MOST)
            held[0] += len(data)
            line.append((time.monotonic() + seconds, data))
            changed.notify_all()


def main() -> None:
    port, seconds = int(sys.argv[1]), int(sys.argv[2]) / 2000

    def accept(server: socket.socket) -> None:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_carry, args=(one, other, seconds), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
