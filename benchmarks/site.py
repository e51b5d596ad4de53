"""An installation with one database, as the product wants it: environment, databases.json, a finished snapshot."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import BUCKET, CONCURRENCY, DATABASE, MIB, PART, REGION, WORK
from benchmarks.servers import ACCESS_KEY, SECRET_KEY, Server

ENCRYPTION_KEY = "5b" * 32


def s3_fields(endpoint: str, **fields: Any) -> dict[str, Any]:
    """The ``s3`` object of an entry that uses a server of ours."""
    return {
        "enabled": True,
        "bucket": BUCKET,
        "region": REGION,
        "accessKeyId": ACCESS_KEY,
        "secretAccessKey": SECRET_KEY,
        "endpoint": endpoint,
        "forcePathStyle": True,
        "partSizeMiB": PART // MIB,
        "maxConcurrency": CONCURRENCY,
        **fields,
    }


def entry(database_id: str, replica: Path, s3: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": database_id,
        "name": database_id,
        "mysqlConnectionString": "mysql://bench:bench@127.0.0.1:3306/bench",
        "duckdbPath": str(replica),
        **({"s3": s3} if s3 else {}),
    }


@dataclass(frozen=True)
class Site:
    """Where things are; everything in it goes when the benchmark ends."""

    folder: Path

    @property
    def replica(self) -> Path:
        return self.folder / "replica.db"

    @property
    def backups(self) -> Path:
        return self.folder / "backups" / DATABASE

    @property
    def environ(self) -> dict[str, str]:
        return {"DATA_PATH": str(self.folder), "BACKUP_PATH": str(self.folder / "backups")}

    def configure(self, server: Server, *, encryption: str = "client-aes256", **fields: Any) -> None:
        """Write databases.json for the server, and make the environment point there."""
        if encryption == "client-aes256":
            fields["encryptionKey"] = ENCRYPTION_KEY
        s3 = s3_fields(server.endpoint, encryption=encryption, **fields)
        self.write([entry(DATABASE, self.replica, s3)])
        if server.ca is not None:
            os.environ["AWS_CA_BUNDLE"] = str(server.ca)

    def write(self, entries: list[dict[str, Any]]) -> None:
        path = self.folder / "databases.json"
        path.write_text(json.dumps(entries))
        path.chmod(0o600)
        for name in [name for name in os.environ if name.startswith(("AWS_", "BACKUP_", "DATA_PATH"))]:
            del os.environ[name]
        os.environ.update(self.environ)


@contextlib.contextmanager
def site(replica: Path | None = None) -> Iterator[Site]:
    """An installation for the time of a `with` block, with `replica` linked into it."""
    folder = WORK / "site"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = Site(folder)
    try:
        if replica is not None:
            # A second name costs nothing, and a restore replaces the name, not the bytes.
            os.link(replica, made.replica)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
