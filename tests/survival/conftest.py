"""What the survival tests share: commands that die at a chosen step, a store that misbehaves, and what must be left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KEY = "5a" * 32
PART = 5 << 20
#: Everything that may lie around when nothing is under way.
_TIDY = re.compile(
    r"production\.db(\.duckling-(lock|wanted|origin))?|databases\.json|backups|backup-[\dTZ-]+\.(db|json|lock)|production"
    r"|segments|record\.json|\.record\.lock|audit\.jsonl|\.audit\.lock"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.survival)


@pytest.fixture(scope="session")
def seed() -> int:
    """Random moments are the same in each run, unless DUCKLING_SURVIVAL_SEED says otherwise."""
    return int(os.environ.get("DUCKLING_SURVIVAL_SEED", "1"))


# ---- commands ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Done:
    """How a command ended: `code` as `subprocess` has it, `steps` that were counted, and all it said."""

    code: int
    steps: int = 0
    said: str = ""
    names: Sequence[str] = ()


class Zygote:
    """Runs commands of the command line in forks of one process; see harness.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "harness.py"), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, action: str = "count", at: int | str = 0) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environ = {name: os.environ[name] for name in ("DATA_PATH", "BACKUP_PATH")}
        order = {"arguments": arguments, "action": action, "at": at, "environ": environ}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def duckling() -> Iterator[Zygote]:
    """``duckling(*arguments, action="count", at=0) -> Done``."""
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(*arguments, action="count", at=0)``: a command in a process of its own, not waited for."""
    processes = []

    def start(*arguments: str, action: str = "count", at: int | str = 0) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "harness.py"), "once", action, str(at), *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# ---- stores ------------------------------------------------------------------------------------------------


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[Any], Any]]:
    """``fault_proxy(server) -> FaultProxy`` in front of a server; `proxy.server` is the server as seen through it."""
    module = runpy.run_path(str(HERE / "fault_proxy.py"), run_name="fault_proxy")
    proxies = []

    def make(server: Any) -> Any:
        proxy = module["FaultProxy"](server.endpoint)
        proxy.server = dataclasses.replace(server, endpoint=proxy.endpoint)
        proxy.Fault = module["Fault"]
        proxies.append(proxy)
        return proxy

    yield make
    for proxy in proxies:
        proxy.close()


# ---- replicas and what must be left of them ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contents:
    """Bytes of replicas: two of three parts each, with different rows, one small one, and the log of a crashed writer
    that belongs to `old`.
    """

    old: bytes
    new: bytes
    small: bytes


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory, make_replica: Callable[..., Path]) -> Contents:
    folder = tmp_path_factory.mktemp("contents")
    old = make_replica(folder / "old.db", rows=240_000, seed=1).read_bytes()
    new = make_replica(folder / "new.db", rows=250_000, seed=2).read_bytes()
    assert 2 * PART < len(old) < 3 * PART - 16
    assert 2 * PART < len(new) < 3 * PART - 16
    return Contents(old, new, make_replica(folder / "small.db", rows=200, seed=3).read_bytes())


_OPENER = """
import json, sys
import duckdb

for line in sys.stdin:
    try:
        connection = duckdb.connect(json.loads(line), read_only=True)
        rows = connection.execute("SELECT count(*), bit_xor(hash(id)), bit_xor(hash(name)) FROM customers").fetchall()
        connection.close()
        print(json.dumps(str(rows)), flush=True)
    except Exception as error:
        print(json.dumps("error: " + str(error)), flush=True)
"""


@pytest.fixture(scope="session")
def opened() -> Iterator[Callable[[Path], str]]:
    """``opened(path) -> str``: what DuckDB finds in a replica, in a process of its own; fails when it can't open it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def opened(path: Path) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        found: str = json.loads(process.stdout.readline())
        assert not found.startswith("error"), found
        return found

    yield opened
    process.communicate()


@dataclasses.dataclass
class Site:
    """One database "production" and its bucket, looked at from outside the product."""

    installation: Any
    server: Any
    bucket: str
    mode: str
    duckling: Zygote
    client: Any

    @property
    def replica(self) -> Path:
        return self.installation.replica()

    @property
    def backups(self) -> Path:
        return self.installation.backup_path / "production"

    def write(self, server: Any = None, **fields: Any) -> None:
        """databases.json, with the bucket seen through `server`."""
        settings = {"encryption": self.mode, "partSizeMiB": 5, **fields}
        if self.mode == "client-aes256":
            settings["encryptionKey"] = KEY
        entry = self.installation.entry(s3=(server or self.server).s3(self.bucket, **settings))
        self.installation.write(entry)

    def objects(self) -> dict[str, int]:
        """Sizes by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {row["Key"]: row["Size"] for page in pages for row in page.get("Contents", [])}

    def unfinished(self) -> list[str]:
        """Keys of multipart uploads that are under way, where the store tells them."""
        try:
            answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        except self.client.exceptions.NoSuchUpload:  # rclone's word for none
            return []
        return [row["Key"] for row in answer.get("Uploads", [])]

    def litter(self) -> set[str]:
        """Names of files that should not be there when nothing is under way."""
        found = [path for path in self.installation.data_path.rglob("*") if not _TIDY.fullmatch(path.name)]
        copies = {path.stem for path in self.backups.glob("backup-*.db")}
        found += [path for path in self.backups.glob("backup-*") if path.stem not in copies]
        return {path.name for path in found}

    def assert_only_complete_backups(self, known: set[str]) -> None:
        """Every listed backup has its ``.mac`` and verifies; `known` are keys that have been verified before."""
        objects = self.objects()
        for key in objects:
            if key.endswith(".db") and key not in known:
                assert self.mode != "client-aes256" or key + ".mac" in objects
                done = self.duckling("verify", "production", key)
                assert done.code == 0, done.said
                known.add(key)

    def assert_tidy(self) -> None:
        assert self.litter() == set()
        assert self.unfinished() == []
        objects = self.objects()
        assert [key for key in objects if key.endswith(".mac") and key.removesuffix(".mac") not in objects] == []

    def clear(self) -> None:
        """No backups, no state files: as on the first day."""
        for key in self.objects():
            self.client.delete_object(Bucket=self.bucket, Key=key)
        shutil.rmtree(self.backups, ignore_errors=True)
        for path in self.replica.parent.glob(f"*{self.replica.name}*"):
            path.unlink()


@pytest.fixture
def make_site(installation: Any, duckling: Zygote) -> Callable[..., Site]:
    """``make_site(server, mode="client-aes256") -> Site``."""

    def make(server: Any, mode: str = "client-aes256") -> Site:
        site = Site(installation, server, server.new_bucket(), mode, duckling, server.client())
        site.write()
        return site

    return make


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], str]:
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def pick(full) -> Callable[[int, int], list[int]]:
    """``pick(total, few) -> points``: all of 1..total, or `few` of them, spread evenly and with both ends."""

    def pick(total: int, few: int) -> list[int]:
        if full or total <= few:
            return list(range(1, total + 1))
        return sorted({1 + round(index * (total - 1) / (few - 1)) for index in range(few)})

    return pick
