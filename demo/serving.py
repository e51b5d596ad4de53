"""Servers as processes of this machine: the program is found, gets a free port, is waited for, and ends with the block.

The demo, the tests and the benchmarks start theirs by it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path


def program(name: str) -> str | None:
    """The executable that a package of this environment brought, or the one on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def free_port(wanted: int = 0) -> int:
    """`wanted` when it is free, else any free port of the loopback address.

    :raises OSError: there is none.
    """
    with socket.socket() as probe:
        # As servers do: a port that only waits for late packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            if not wanted:
                raise
            return free_port()
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Whether something speaks HTTP at `url`, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own loopback address
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Whether something takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    *,
    environ: Mapping[str, str] | None = None,
    seconds: float = 60.0,
    patience: float = 10.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from when it is `ready` until the block ends.

    :param log: where its output goes.
    :param environ: all of its environment; that of this process when omitted.
    :param seconds: how long it may take to be ready.
    :param patience: see `ended`.
    :raises RuntimeError: it ended or took longer; with its output.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ)
    with ended(process, patience=patience):
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{Path(command[0]).name} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        yield process


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], *, patience: float = 10.0) -> Iterator[None]:
    """End a process with the block: by SIGTERM, and by SIGKILL when it is there `patience` seconds later; with none, by
    SIGKILL at once.
    """
    try:
        yield
    finally:
        (process.terminate if patience else process.kill)()
        try:
            process.wait(patience or None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
