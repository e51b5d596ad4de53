"""What the two object formats cost without a network: sealing a file, and reading its object back, proven.

``python -m benchmarks --only formats``. The object is a file in the page cache, so what counts is the processor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import MIB, WORK
from benchmarks.cases import Case, Target
from benchmarks.measure import Row, Run, interleaved, run_job
from benchmarks.replicas import replica

_STAMP = "2025-03-01T14-32-11-482Z"
_NAMES = {1: "format 1", 2: "format 2"}


def formats(mib: int, *, runs: int) -> Iterator[Case]:
    """:param mib: of the replica."""
    path = replica(mib)
    size = path.stat().st_size
    folder = WORK / "formats"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for number in _NAMES:
            run_job("place_object", path=str(path), target=str(folder / str(number)), number=number)
        seal = {name: _job("seal", path=str(path), number=number) for number, name in _NAMES.items()}
        yield _case("Sealing for the upload, in memory", size, seal, runs=runs)
        read = {
            name: _job("read_back", target=str(folder / str(number)), size=size, number=number)
            for number, name in _NAMES.items()
        }
        yield _case("Verifying and decrypting, from memory", size, read, runs=runs)
    finally:
        shutil.rmtree(folder)


def _job(name: str, **arguments: Any) -> Callable[[], Run]:
    return lambda: run_job(name, **arguments)


def _case(title: str, size: int, contestants: dict[str, Callable[[], Run]], *, runs: int) -> Case:
    rows: list[Row] = interleaved(size, contestants, runs=runs, reference=_NAMES[1])
    second = next(row for row in rows if row.name == _NAMES[2])
    return Case(title, rows, [Target("format 2 / format 1", second.ratio or 0.0, 1.0)])


# -- the jobs, see benchmarks.jobs ----------------------------------------------------------------------------------


def _key() -> Any:
    from duckling_provider.config.keys import EncryptionKey

    return EncryptionKey(bytes(range(32)))


def _seal(size: int, number: int) -> Any:
    from duckling_provider.backup.making.seal import Seal
    from duckling_provider.formats.trailer import Footer

    footer = Footer("production", _STAMP, size, bytes(16), _key().fingerprint) if number == 2 else None
    return Seal(size, _key(), part_size=8 * MIB, max_parts=10_000, footer=footer)


def _pass(path: str, number: int) -> tuple[Any, dict[str, Any]]:
    from duckling_provider.base.cancellation import Control
    from duckling_provider.formats.pipeline import one_pass

    size = os.stat(path).st_size
    made = _seal(size, number)
    fd = os.open(path, os.O_RDONLY)
    try:
        one_pass(fd, size, [made.hash, made.encrypt], Control())
    finally:
        os.close(fd)
    return made, made.facts()


def seal(path: str, number: int) -> Callable[[], object]:
    """All that one pass over a file makes for an object of format `number`."""
    _seal(1, number)
    return lambda: _pass(path, number)


def place_object(path: str, target: str, number: int) -> Callable[[], object]:
    """The object of format `number` as the file `target`, and its ``.mac``."""
    from duckling_provider.formats.crypto import CtrCipher
    from duckling_provider.formats.segments import SegmentCipher, SegmentKeys
    from duckling_provider.formats.trailer import Footer, encode_trailer

    def work() -> None:
        size = os.stat(path).st_size
        _, facts = _pass(path, number)
        lead = bytes.fromhex(facts["iv"] or "")
        tail, cipher = b"", CtrCipher(_key(), lead).stream() if number == 1 else None
        if cipher is None:
            index, keys = bytes.fromhex(facts["index"]), SegmentKeys(_key())
            cipher = SegmentCipher(keys, index).stream()  # type: ignore[assignment]
            footer = Footer("production", _STAMP, size, bytes(16), _key().fingerprint)
            tail = encode_trailer(keys, footer, index)
        with open(path, "rb") as source, open(target, "wb") as file:
            file.write(lead)
            while block := bytearray(source.read(MIB)):
                cipher.update_into(block, block)  # type: ignore[union-attr]
                file.write(block)
            file.write(tail)
        Path(f"{target}.mac").write_text(facts["mac"])

    return work


class _Files:
    """A store of one file."""

    url = ""

    def __init__(self, path: str) -> None:
        self._path = path

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> Any:
        del key, stop, etag
        file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - the reader closes it
        file.seek(start)
        return file


def read_back(target: str, size: int, number: int) -> Callable[[], object]:
    """The object in `target`, proven and decrypted, its DuckDB blocks checked; nothing is written."""
    from duckling_provider.backup.inventory.backup_object import StoredBackup
    from duckling_provider.backup.reading.verified_read import read_verified
    from duckling_provider.formats.crypto import IV_BYTES
    from duckling_provider.formats.trailer import END_BYTES, read_trailer, trailer_start

    length = os.stat(target).st_size
    trailer, iv = None, None
    with open(target, "rb") as file:
        if number == 1:
            iv = file.read(IV_BYTES)
        else:
            file.seek(length - END_BYTES)
            start = trailer_start(file.read(), length) or 0
            file.seek(start)
            found = read_trailer(file.read(), length, [_key()])
            trailer = None if found is None else found[1]
    mac = Path(f"{target}.mac").read_text()
    backup = StoredBackup("object", "client-aes256", size, length, "", _key(), mac, None, trailer=trailer, iv=iv)
    store: Any = _Files(target)
    with contextlib.closing(store.open_range("object", 0, length)) as file:
        while file.read(MIB):
            pass  # into the page cache
    return lambda: read_verified(backup, store)
