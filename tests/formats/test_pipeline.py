from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

import pytest

from duckling_provider.formats.pipeline import Fanout, Stage

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
