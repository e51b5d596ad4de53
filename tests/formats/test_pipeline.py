from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from duckling_provider.base.host_load import page_memory
from duckling_provider.formats.pipeline import DurableWriter, Fanout, Stage

CHUNKS = [bytes([number]) * 10 for number in range(50)]


class Broken(Exception):  # noqa: N818 - a stage's own error, whatever it is called
    pass


def fail(_: bytes) -> None:
    raise Broken


def feed(*stages: Stage, chunks: Iterable[bytes] = CHUNKS) -> None:
    with Fanout(*stages) as fanout:
        for chunk in chunks:
            fanout.put(chunk)


def test_every_stage_sees_every_chunk_in_order():
    seen: list[list[bytes]] = [[], [], []]
    feed(*(each.append for each in seen))
    assert seen == [CHUNKS] * 3


def test_leaving_waits_for_the_slowest_stage():
    seen: list[bytes] = []
    go_on = threading.Event()

    def slow(chunk: bytes) -> None:
        go_on.wait(30)
        seen.append(chunk)

    with Fanout(slow, lambda _: None) as fanout:
        fanout.put(CHUNKS[0])
        fanout.put(CHUNKS[1])
        assert seen == []
        go_on.set()
    assert seen == CHUNKS[:2]


def test_the_caller_never_runs_far_ahead_of_the_slowest_stage():
    alive = 0
    most = 0
    lock = threading.Lock()

    class Chunk(bytes):
        def __new__(cls) -> Chunk:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().__new__(cls, b"chunk")

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    with Fanout(lambda _: threading.Event().wait(0.001), lambda _: None) as fanout:
        for _ in range(50):
            fanout.put(Chunk())
    assert most <= Fanout.DEPTH + 2


def test_the_error_of_a_stage_reaches_the_caller_who_goes_on_putting():
    others: list[bytes] = []
    with pytest.raises(Broken):
        feed(others.append, fail, chunks=itertools.repeat(CHUNKS[0]))


def test_the_error_of_a_stage_reaches_the_caller_who_is_done():
    def fail_late(chunk: bytes) -> None:
        if chunk == CHUNKS[-1]:
            raise Broken

    with pytest.raises(Broken):
        feed(fail_late)


def test_after_its_error_a_stage_sees_no_more():
    seen = []

    def fail_second(chunk: bytes) -> None:
        seen.append(chunk)
        if len(seen) == 2:
            raise Broken

    with pytest.raises(Broken):
        feed(fail_second)
    assert seen == CHUNKS[:2]


def test_the_caller_s_own_error_comes_first_and_no_thread_is_left():
    def chunks() -> Iterable[bytes]:
        yield CHUNKS[0]
        raise KeyError

    before = set(threading.enumerate())
    with pytest.raises(KeyError):
        feed(fail, lambda _: None, chunks=chunks())
    assert set(threading.enumerate()) == before


def test_a_pass_without_chunks_or_stages_is_fine():
    seen: list[bytes] = []
    with Fanout(seen.append):
        pass
    with Fanout() as fanout:
        fanout.put(CHUNKS[0])
    assert seen == []


DATA = random.Random(7).randbytes(3 * (1 << 20) + 4096 + 5)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def on_a_page(data: bytes) -> memoryview:
    memory = page_memory(len(data))
    memory[:] = data
    return memory


def written(fd: int, sizes: Iterable[int], made: Callable[[bytes], bytes | memoryview]) -> bytes:
    position = 0
    with DurableWriter(fd) as writer:
        for size in sizes:
            writer.write(made(DATA[position : position + size]))
            position += size
    return os.pread(fd, len(DATA) + 1, 0)


@pytest.mark.parametrize("made", [bytes, on_a_page])
@pytest.mark.parametrize("sizes", [[1 << 19] * 7, [1 << 20, 4096, 100, 4096, 1 << 21], [7, 1 << 22], [1 << 22]])
def test_what_is_written_arrives_whatever_the_chunks(
    fd: int, sizes: list[int], made: Callable[[bytes], bytes | memoryview]
):
    assert written(fd, sizes, made) == DATA[: sum(sizes)]


def test_a_file_system_without_direct_writes_gets_usual_ones(fd: int, monkeypatch: pytest.MonkeyPatch):
    usual = os.open

    def refuse(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "this file system does not")
        return usual(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(DurableWriter, "STEP", 1 << 20)
    assert written(fd, [1 << 19] * 7, on_a_page) == DATA


def test_what_is_skipped_stays(fd: int):
    os.write(fd, b"a" * 8192)
    os.lseek(fd, 0, os.SEEK_SET)
    with DurableWriter(fd) as writer:
        writer.skip_to(4096)
        writer.write(on_a_page(b"b" * 4096))
        writer.skip_to(12288)
        writer.write(on_a_page(b"c" * 10))
    assert os.pread(fd, 20_000, 0) == b"a" * 4096 + b"b" * 4096 + bytes(4096) + b"c" * 10


def test_what_was_written_does_not_fill_the_page_cache(
    fd: int, tmp_path: Path, cached: Callable[[Path], float], monkeypatch: pytest.MonkeyPatch
):
    assert written(fd, [1 << 19] * 6, on_a_page) == DATA[: 3 << 20]
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(tmp_path / "file") > 0:
        pytest.skip(f"the file system of {tmp_path} is memory itself")
    os.ftruncate(fd, 0)
    # Nothing is given back: there must be nothing to give.
    monkeypatch.setattr("duckling_provider.formats.pipeline.forget", lambda _: None)
    with DurableWriter(fd) as writer:
        for start in range(0, 3 << 20, 1 << 19):
            writer.write(on_a_page(DATA[start : start + (1 << 19)]))
    assert cached(tmp_path / "file") == 0
