"""An S3-compatible store on this machine: rclone's server, which keeps objects as files in a folder."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import DemoError, quiet_environment, tail
from demo.databases import write_text
from demo.service import Service

REGION = "us-east-1"
BUCKET = "duckling-demo"


@dataclass(frozen=True)
class Store:
    """The store of one folder: ``objects/`` holds the buckets, ``store.json`` the port and the credentials."""

    folder: Path

    @property
    def service(self) -> Service:
        return Service("store", self.folder)

    def start(self) -> dict[str, Any]:
        """Start it, on the port of the last time if that is free, and wait until it answers.

        :return: the fields of an entry's ``s3`` object that say where it is, credentials included.
        :raises DemoError: when it does not come up.
        """
        (self.folder / "objects" / BUCKET).mkdir(parents=True, exist_ok=True)
        self.service.stop()
        known = self._known()
        port, access_key, secret_key = free_port(known["port"]), known["accessKey"], known["secretKey"]
        endpoint = f"http://127.0.0.1:{port}"
        self._remember({**known, "port": port})
        rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
        if rclone is None:
            raise DemoError("no rclone: the `demo` extra brings it (`make setup`)")
        environ = quiet_environment(
            HOME=str(self.folder),
            RCLONE_CONFIG=str(self.folder / "rclone.conf"),
            # Not among the arguments: every user of the machine can read those. The quotes are CSV's.
            RCLONE_AUTH_KEY=f'"{access_key},{secret_key}"',
        )
        command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", str(self.folder / "objects")]
        self.service.start(command, environ)
        self._wait(endpoint)
        return {
            "enabled": True,
            "bucket": BUCKET,
            "region": REGION,
            "accessKeyId": access_key,
            "secretAccessKey": secret_key,
            "endpoint": endpoint,
            "forcePathStyle": True,
        }

    def _wait(self, endpoint: str) -> None:
        deadline = time.monotonic() + 60
        while not answers(endpoint):
            if not self.service.running() or time.monotonic() > deadline:
                raise DemoError(f"the S3-compatible store did not start:\n{tail(self.service.log)}")
            time.sleep(0.05)

    def _known(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = {"port": 0, "accessKey": "demo-access-key", "secretKey": secrets.token_urlsafe(30)}
        return known

    def _remember(self, known: dict[str, Any]) -> None:
        write_text(self.folder / "store.json", json.dumps(known))


def free_port(wanted: int = 0) -> int:
    """`wanted` when it is free, else any free port of the loopback address."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As servers do: a port that only waits for late packets is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise DemoError("no free port on 127.0.0.1")


def answers(url: str) -> bool:
    """Whether something speaks HTTP at `url`, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own loopback address
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
