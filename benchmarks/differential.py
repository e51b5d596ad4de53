"""What travels when little changed: whole backups and restores, the bytes counted between client and store.

``python -m benchmarks --only differential``. The store is SeaweedFS, which copies parts; before it is a proxy that
counts, and for the last table carries 100 Mbit/s each way. Bytes are those of the connections, headers and all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks import DATABASE, MIB, ROOT
from benchmarks.cases import Case, Target
from benchmarks.measure import Row, Run, run_job
from benchmarks.replicas import sparse, wide
from benchmarks.site import ENCRYPTION_KEY, entry, site
from demo.store import BUCKET, SeaweedStore

_MBIT = 100
_CHANGES = {
    "identical": "",
    "1% appended": "INSERT INTO noise SELECT * FROM noise LIMIT (SELECT count(*) // 100 FROM noise)",
    "1% of rows updated at random": "UPDATE noise SET c0 = c0 + 1 WHERE hash(id) % 100 = 0",
}
#: Of the object's bytes, at most so many are sent.
_SENT = {"identical": 0.002, "1% appended": 0.05, "1% of rows updated at random": 0.09}
_FETCHED = 0.09
#: Bytes of a tag in the index of format 2, and about those of what follows the index.
_TAG, _FOOTER = 32, 400
#: Seconds until SeaweedFS has given up the pieces of an object that was deleted.
_FORGOTTEN_AFTER = 3
_MODES: dict[str, dict[str, Any]] = {
    "none": {"encryption": "none"},
    "client-aes256, format 2": {
        "encryption": "client-aes256",
        "encryptionKey": ENCRYPTION_KEY,
        "objectFormat": 2,
    },
}


@dataclass(frozen=True)
class _Passed:
    """What a command sent, received and asked for."""

    run: Run
    up: int
    down: int
    requests: int

    def row(self, name: str, size: int, before: _Passed | None = None) -> Row:
        ratio = None if before is None else self.run.wall / before.run.wall
        return Row(name, size, self.run.wall, self.run.cpu, self.run.growth, ratio, 1, (self.run.wall,))

    def note(self, name: str, size: int) -> str:
        shares = f"{self.up / size:.2%} up, {self.down / size:.2%} down"
        return f"{name}: {self.up:,} bytes up, {self.down:,} down ({shares}), {self.requests} requests"


def differential(mib: int, *, line: bool = True) -> Iterator[Case]:
    """:param mib: of the replica.
    :param line: also over a line of 100 Mbit/s, which takes minutes.
    """
    yield _plan()
    if shutil.which("weed", path=str(Path(sys.executable).parent)) is None:
        yield Case("Backups of what changed", missing=("SeaweedFS",))
        return
    base = wide(mib)
    for mode, fields in _MODES.items():
        with _Bench(base, fields, mbit=0) as bench:
            yield from _Tables(bench, mode).all()
    if line:
        mode, fields = list(_MODES.items())[-1]
        with _Bench(base, fields, mbit=_MBIT) as bench:
            yield from _Tables(bench, f"{mode}, over {_MBIT} Mbit/s").over_a_line()


class _Tables:
    def __init__(self, bench: _Bench, mode: str) -> None:
        self._bench, self._mode, self._size = bench, mode, bench.size

    def all(self) -> Iterator[Case]:
        full = self._backup("identical")
        first = self._bench.newest()
        later = {name: self._later(first, name) for name in _CHANGES}
        targets = [Target(f"{name}: sent / size", done.up / self._size, _SENT[name]) for name, done in later.items()]
        yield self._case("Backups of what changed", {"all of it": full, **later}, full, targets)
        whole = self._restore(first, "identical", "--no-delta")
        names = [name for name in _CHANGES if name != "identical"]
        parts = {f"by a replica with {name}": self._restore(first, name) for name in names}
        targets = [Target(f"{name}: fetched / size", done.down / self._size, _FETCHED) for name, done in parts.items()]
        yield self._case("Restores of what differs", {"all of it": whole, **parts}, whole, targets)

    def over_a_line(self) -> Iterator[Case]:
        full = self._backup("identical")
        first = self._bench.newest()
        later = {name: self._later(first, name) for name in _CHANGES if name != "identical"}
        targets = [self._shorter(name, full, done) for name, done in later.items()]
        yield self._case("Backups of what changed", {"all of it": full, **later}, full, targets)
        whole = self._restore(first, "identical", "--no-delta")
        name = "1% of rows updated at random"
        part = self._restore(first, name)
        rows = {"all of it": whole, f"by a replica with {name}": part}
        yield self._case("Restores of what differs", rows, whole, [self._shorter(name, whole, part)])

    @staticmethod
    def _shorter(name: str, full: _Passed, part: _Passed) -> Target:
        return Target(f"{name}: all of it / what changed, wall", full.run.wall / part.run.wall, 8.0, at_least=True)

    def _case(self, title: str, done: Mapping[str, _Passed], full: _Passed, targets: list[Target]) -> Case:
        growth = Target("peak growth, MiB", max(each.run.growth for each in done.values()) / MIB, 50.0)
        rows = [each.row(name, self._size, full) for name, each in done.items()]
        notes = tuple(each.note(name, self._size) for name, each in done.items())
        return Case(f"{title}; {self._mode}; store: SeaweedFS", rows, [*targets, growth], notes=notes)

    def _later(self, first: str, name: str) -> _Passed:
        done = self._backup(name)
        self._bench.forget_objects(but=first)
        return done

    def _backup(self, name: str) -> _Passed:
        self._bench.put(name)
        done = self._bench.duckling("backup", DATABASE)
        self._bench.forget_copies()
        return done

    def _restore(self, key: str, name: str, *options: str) -> _Passed:
        self._bench.put(name)
        return self._bench.duckling("restore", DATABASE, key, "--yes", *options)


class _Store(SeaweedStore):
    """With a way to its master, which gives room back when it is asked."""

    def _command(self, port: int, access_key: str, secret_key: str) -> tuple[Sequence[str], Mapping[str, str]]:
        command, environ = super()._command(port, access_key, secret_key)
        (master,) = (part.partition("=")[2] for part in command if part.startswith("-master.port="))
        (self.folder / "master").write_text(master)
        return command, environ

    def empty(self, where: Mapping[str, Any], *, but: str) -> None:
        client = self.client(where)
        for found in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
            if but not in found["Key"]:
                client.delete_object(Bucket=BUCKET, Key=found["Key"])
        time.sleep(_FORGOTTEN_AFTER)
        url = f"http://127.0.0.1:{(self.folder / 'master').read_text()}/vol/vacuum?garbageThreshold=0.01"
        urllib.request.urlopen(url, timeout=600).close()


class _Bench:
    """A site whose store is SeaweedFS behind the line, and a replica that begins as `base`; a context manager."""

    def __init__(self, base: Path, fields: Mapping[str, Any], *, mbit: int) -> None:
        self._base, self._fields, self._mbit = base, fields, mbit
        self.size = base.stat().st_size

    @contextmanager
    def _entered(self) -> Iterator[_Bench]:
        with site() as self._place:
            self._store = store = _Store(self._place.folder / "store")
            try:
                where = self._where = store.start()
                with _line(int(where["endpoint"].rpartition(":")[2]), self._mbit) as (port, self._told):
                    s3 = {**where, "endpoint": f"http://127.0.0.1:{port}", **self._fields}
                    self._place.write([entry(DATABASE, self._place.replica, s3)])
                    yield self
            finally:
                store.service.stop(patience=0)  # its folder goes, too

    def __enter__(self) -> _Bench:
        self._context = self._entered()
        return self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)  # type: ignore[arg-type]

    def put(self, name: str) -> None:
        """One of `_CHANGES`, of `base`, as the replica."""
        _put(self._base, self._place.replica, name)

    def forget_copies(self) -> None:
        """The local backups go, what is recorded of them stays."""
        for path in self._place.backups.glob("backup-*"):
            path.unlink()

    def forget_objects(self, *, but: str) -> None:
        """All backups but one go from the store, and what they took from the disk, which need not hold them all."""
        self._store.empty(self._where, but=but)

    def newest(self) -> str:
        """The file name of the newest backup that was made here."""
        return max(path.stem for path in (self._place.backups / "segments").glob("backup-*.json")) + ".db"

    def duckling(self, *arguments: str) -> _Passed:
        self._told()
        run = run_job("command", arguments=list(arguments))
        return _Passed(run, *self._told())


@contextmanager
def _line(port: int, mbit: int) -> Iterator[tuple[int, Callable[[], tuple[int, int, int]]]]:
    """(port of the line's near end, what passed since the last call)."""
    command = [sys.executable, "-m", "benchmarks.line", str(port), str(mbit)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        pipes = process.stdin, process.stdout
        if pipes[0] is None or pipes[1] is None:
            raise RuntimeError("pipes were asked for")
        ask, answer = pipes

        def told() -> tuple[int, int, int]:
            ask.write("\n")
            ask.flush()
            up, down, requests = map(int, answer.readline().split())
            return up, down, requests

        try:
            yield int(answer.readline()), told
        finally:
            ask.close()


def counted(mib: int) -> Iterator[Case]:
    """What backups and restores of a changed replica have to carry, by the records and the plan of the product, without
    a store: for sizes that a disk does not hold five times.

    :param mib: of the replica.
    """
    from duckling_provider.formats.segments import SEGMENT_BYTES
    from duckling_provider.stores.parts import Limits, plan_copies

    base, targets, notes = wide(mib), [], []
    size, before = base.stat().st_size, _checksums(base)
    with site() as place:
        for name, most in _SENT.items():
            _put(base, place.replica, name)
            length, now = place.replica.stat().st_size, _checksums(place.replica)
            unchanged = [code == other for code, other in zip_longest(now, before[: len(now)])]
            whole = length + _TAG * len(now) + _FOOTER
            cut = plan_copies(unchanged, whole, segment=SEGMENT_BYTES, limits=Limits(8 * MIB, 10_000), covered=length)
            sent = whole - cut.copied_bytes
            lacking = sum(code != other for code, other in zip_longest(before, now[: len(before)]))
            targets.append(Target(f"{name}: sent / size", sent / size, most))
            targets.append(Target(f"back from {name}: fetched / size", lacking * SEGMENT_BYTES / size, _FETCHED))
            changed = f"{unchanged.count(False)} of {len(now)} segments changed"
            notes.append(f"{name}: {changed}, {sent:,} bytes sent ({sent / size:.2%}) in {cut.count} parts with copies")
    yield Case(f"What changed in {size:,} bytes, counted without a store", targets=targets, notes=tuple(notes))


def _checksums(path: Path) -> Sequence[str]:
    """Of each segment, as the product records them."""
    from duckling_provider.backup.inventory.segment_records import SegmentChecksums

    made = SegmentChecksums(path.stat().st_size, bytes(32).hex())
    with path.open("rb", buffering=0) as file:
        while block := file.read(4 * MIB):
            made.update(block)
    return made.record(path.parent, database=DATABASE, stamp="", sha256="").checksums


def _put(base: Path, replica: Path, name: str) -> None:
    """One of `_CHANGES`, of `base`, as `replica`: in the same file, as a sync would write it."""
    with base.open("rb") as old, replica.open("r+b" if replica.exists() else "wb") as new:
        shutil.copyfileobj(old, new, 16 * MIB)
        new.truncate()
        os.fsync(new.fileno())
    if _CHANGES[name]:
        subprocess.run([sys.executable, "-c", _CHANGE, str(replica), _CHANGES[name]], check=True)


_CHANGE = """
import sys
import duckdb

connection = duckdb.connect(sys.argv[1], config={"memory_limit": "2GiB"})
connection.execute("SET enable_progress_bar = false")
connection.execute(sys.argv[2])
connection.execute("CHECKPOINT")
"""


def _plan() -> Case:
    """Which parts of 500 GiB are copied, where 6.2% of the segments changed at random places."""
    import random

    from duckling_provider.formats.segments import SEGMENT_BYTES
    from duckling_provider.stores.parts import Limits, plan_copies

    path = sparse(500)
    size = path.stat().st_size
    path.unlink()
    draw = random.Random(18)  # noqa: S311 - the same places each time
    unchanged = [draw.random() >= 0.062 for _ in range(-(-size // SEGMENT_BYTES))]
    began = time.monotonic()
    cut = plan_copies(unchanged, size, segment=SEGMENT_BYTES, limits=Limits(8 * MIB, 10_000))
    took = time.monotonic() - began
    share = 1 - cut.copied_bytes / cut.size
    targets = [Target("parts", cut.count, 10_000.0), Target("sent / size", share, 0.09), Target("seconds", took, 5.0)]
    return Case("Plan of 500 GiB of which 6.2% changed", targets=targets)
