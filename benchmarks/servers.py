"""What the clients talk to: the store double, and rclone's S3 server on disk. Each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import BUCKET, ROOT

ACCESS_KEY, SECRET_KEY = "bench-access-key", "bench-secret-key"

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A running server; `folder` holds the buckets as folders, `pid` is its process."""

    name: str
    endpoint: str
    folder: Path
    pid: int

    @property
    def is_double(self) -> bool:
        """No store: it is never in the way, so it shows what the client can do."""
        return self.name == "double"

    def cpu(self) -> float:
        """CPU seconds it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget(self) -> None:
        """Drop what was uploaded, so that the next client finds nothing there."""
        if self.is_double:
            request = urllib.request.Request(f"{self.endpoint}/-/uploads", method="DELETE")  # noqa: S310 - our own
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        else:
            for path in (self.folder / BUCKET).glob("**/*"):
                if path.is_file() and not path.is_relative_to(self.folder / BUCKET / "kept"):
                    path.unlink()


def tool(name: str) -> str | None:
    """The executable that came with a package of this environment, or the one on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@contextlib.contextmanager
def double(folder: Path) -> Iterator[Server]:
    """The store double, serving the objects in `folder`."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.double", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        try:
            port = int(process.stdout.readline())
            yield Server("double", f"http://127.0.0.1:{port}", folder, process.pid)
        finally:
            process.stdin.close()


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server | None]:
    """``rclone serve s3`` with its objects in `folder`; None when there is no rclone."""
    executable = tool("rclone")
    if executable is None:
        yield None
        return
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # Objects are removed behind its back between runs: it must look again each time. Its ETag is the MD5 of the whole
    # object, read again for every ranged request, which would measure nothing else.
    options = ["--addr", f"127.0.0.1:{port}", "--dir-cache-time", "1ms", "--etag-hash", ""]
    command = [executable, "serve", "s3", *options, str(folder)]
    # An empty file of its own: the user's remotes are none of our business.
    environ = {**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            endpoint = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(endpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("rclone serve s3 did not start")
                time.sleep(0.05)
            yield Server("rclone on disk", endpoint, folder, process.pid)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own loopback address
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
