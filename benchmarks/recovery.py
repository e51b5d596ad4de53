"""Why this software exists: a backup that is restored and catches up, against a full copy of the same data.

And what its users feel meanwhile: how far a replica is behind under load, how long a snapshot keeps a sync waiting.
``python -m benchmarks --only recovery``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import DATABASE, MIB
from benchmarks.cases import Case, Target
from benchmarks.copying import filled
from benchmarks.measure import Row
from benchmarks.servers import rclone
from benchmarks.site import ENCRYPTION_KEY, Site, entry, s3_fields, site

#: Row changes a second.
_LOAD = 1000


def recovery(rows: int, *, seconds: int) -> Iterator[Case]:
    """:param rows: of the table in MySQL; 36 million make a replica of 1 GiB.
    :param seconds: how long MySQL changes after the backup, and how long the lag is watched each time.
    """
    with filled(rows) as (url, _), site() as place, rclone(place.folder / "objects") as server:
        if server is None:
            yield Case("Recovery", missing=("rclone",))
            return
        s3 = s3_fields(server.endpoint, encryption="client-aes256", encryptionKey=ENCRYPTION_KEY)
        place.write([entry(DATABASE, place.replica, s3) | {"mysqlConnectionString": url}])
        copied = _timed("sync", DATABASE)
        size = place.replica.stat().st_size
        backed_up = _timed("backup", DATABASE)
        with _load(url):
            time.sleep(seconds)
        place.replica.unlink()
        restored = _timed("restore", DATABASE)
        caught_up = _timed("sync", DATABASE)
        walls = {
            "full copy": copied,
            "backup": backed_up,
            "restore": restored,
            f"catching up with {_LOAD * seconds:,} changes": caught_up,
        }
        yield Case(
            f"A lost replica of {size / MIB:,.0f} MiB, {rows:,} rows; commands as they are, starts included",
            [Row(name, size, wall, 0.0, 0, wall / copied, 1, (wall,)) for name, wall in walls.items()],
            [Target("full copy / (restore + catching up)", copied / (restored + caught_up), 1.0, at_least=True)],
        )
        yield _lag(url, seconds)
        yield _held_up(place)


def _lag(url: str, seconds: int) -> Case:
    with _load(url):
        lags = [
            json.loads(_duckling("sync", DATABASE, "--for", str(seconds), "--json"))["lagSeconds"] for _ in range(3)
        ]
    return Case(
        f"Lag while MySQL writes {_LOAD:,} rows a second; worst of 3 runs",
        targets=[Target("seconds behind", max(lags), 5.0)],
    )


def _held_up(place: Site) -> Case:
    """How long a snapshot has the replica's lock, next to a plain copy of the same file."""
    lock = place.replica.with_name(place.replica.name + ".duckling-lock")
    held, done = [0.0], threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not done.is_set():
            time.sleep(0.002)
            now = time.monotonic()
            held[0] += (now - last) * _is_taken(lock)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    _duckling("backup", DATABASE)
    done.set()
    watcher.join()
    copy = place.folder / "copy.db"
    started = time.monotonic()
    subprocess.run(["cp", str(place.replica), str(copy)], check=True)
    subprocess.run(["sync", str(copy)], check=True)
    copied = time.monotonic() - started
    return Case(
        "How long a snapshot holds a sync up",
        targets=[Target("seconds that the lock was taken / seconds of cp, fsync", held[0] / copied, 2.0)],
    )


def _is_taken(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _load(url: str) -> Iterator[None]:
    """Write `_LOAD` rows a second, in transactions of ten."""
    from duckling_provider.replication.mysql.source import Source, connect

    stop = threading.Event()

    def write() -> None:
        connection: Any = connect(Source.parse(url, subject="bench"))
        began, number = time.monotonic(), 0
        with connection.cursor() as cursor:
            while not stop.is_set():
                first = number * 10 % 100_000 + 1
                cursor.execute("UPDATE data SET price = price + 1 WHERE id BETWEEN %s AND %s", (first, first + 9))
                number += 1
                time.sleep(max(0.0, began + number * 10 / _LOAD - time.monotonic()))
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def _timed(*arguments: str) -> float:
    started = time.monotonic()
    _duckling(*arguments)
    return time.monotonic() - started


def _duckling(*arguments: str) -> str:
    command = [sys.executable, "-m", "duckling_provider.cli.app", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"duckling {arguments[0]} failed: {done.stderr[-2000:]}")
    return done.stdout
