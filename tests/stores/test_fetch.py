from __future__ import annotations

import io
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import BinaryIO

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, IntegrityError, NotFoundError, StoreError
from duckling_provider.stores.fetch import ATTEMPTS, KEPT, PIECE, RANGE, THREADS, fetch
from duckling_provider.stores.store import BytesBody

KEY = "production/object"
DATA = random.Random(5).randbytes(5 * RANGE + PIECE + 5)


class Impatient(Control):
    """Does not wait between attempts."""

    def sleep(self, seconds: float) -> None:
        self.check()


class Stream(io.BytesIO):
    """A response that breaks off after `limit` bytes, if any."""

    def __init__(self, data: bytes, *, limit: int | None = None) -> None:
        super().__init__(data)
        self._limit = limit

    def read(self, size: int | None = -1) -> bytes:
        if self._limit is not None and self.tell() >= self._limit:
            raise StoreError("the transfer broke off", subject=KEY)
        if self._limit is not None and size is not None:
            size = min(size, self._limit - self.tell())
        return super().read(size)

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)


class Watched(MemoryStore):
    """Counts the requests; `answer`, when set, replaces the stream of one."""

    def __init__(self, data: bytes = DATA) -> None:
        super().__init__(prefix="production/")
        self.put(KEY, BytesBody(data))
        self.requests: list[tuple[int, int]] = []
        self.answer: Callable[[int, bytes], BinaryIO] | None = None

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> BinaryIO:
        self.requests.append((start, stop))
        if self.answer is not None:
            return self.answer(start, self._get(key)[1][start:stop])
        return super().open_range(key, start, stop, etag=etag)


def refuse(error: StoreError) -> Callable[[int, bytes], BinaryIO]:
    def answer(*_: object) -> BinaryIO:
        raise error

    return answer


def fetched(store: Watched, size: int | None = None, **options: object) -> bytes:
    size = len(store.objects[KEY][1]) if size is None else size
    return b"".join(fetch(store, KEY, size=size, control=Impatient(), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 1, PIECE, RANGE - 1, RANGE, RANGE + 1, 2 * RANGE + 500])
@pytest.mark.parametrize("threads", [1, THREADS])
def test_the_object_arrives_whole_and_every_byte_once(length: int, threads: int):
    store = Watched(DATA[:length])
    assert fetched(store, threads=threads) == DATA[:length]
    assert sum(stop - start for start, stop in store.requests) == length


def test_pieces_are_small_and_come_in_order_however_the_requests_are_answered():
    store = Watched()
    second_asked = threading.Event()

    def answer(start: int, data: bytes) -> BinaryIO:
        if start == 0:
            second_asked.wait(30)
        else:
            second_asked.set()
        return Stream(data)

    store.answer = answer
    pieces = list(fetch(store, KEY, size=len(DATA), control=Impatient()))
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) == PIECE
    assert second_asked.is_set()


def test_a_request_that_breaks_off_goes_on_where_it_was():
    store = Watched()
    broken: Counter[int] = Counter()

    def answer(start: int, data: bytes) -> BinaryIO:
        index = start // RANGE
        broken[index] += 1
        return Stream(data, limit=PIECE + 3 if broken[index] < ATTEMPTS - 1 else None)

    store.answer = answer
    assert fetched(store) == DATA
    assert sorted(store.requests)[:4] == [
        (0, RANGE),
        (PIECE + 3, RANGE),
        (2 * (PIECE + 3), RANGE),
        (3 * (PIECE + 3), RANGE),
    ]


def test_a_connection_that_breaks_off_all_the_time_brings_all_in_the_end():
    store = Watched(DATA[:RANGE])
    store.answer = lambda _, data: Stream(data, limit=PIECE)
    assert fetched(store) == DATA[:RANGE]
    assert len(store.requests) == RANGE // PIECE > ATTEMPTS


def test_a_store_that_never_answers_is_asked_a_bounded_number_of_times():
    store = Watched(DATA[:RANGE])

    store.answer = refuse(StoreError("no answer", subject=KEY))
    with pytest.raises(StoreError, match="no answer"):
        fetched(store)
    assert store.requests == [(0, RANGE)] * ATTEMPTS


def test_what_a_retry_can_not_cure_is_not_tried_again():
    store = Watched(DATA[:RANGE])

    store.answer = refuse(StoreError("refused", subject=KEY, retryable=False))
    with pytest.raises(StoreError, match="refused"):
        fetched(store)
    assert len(store.requests) == 1

    del store.objects[KEY]
    store.answer = None
    with pytest.raises(NotFoundError):
        fetched(store, size=RANGE)
    assert len(store.requests) == 2


def test_a_store_that_sends_too_little_is_an_error_and_never_a_short_object():
    store = Watched(DATA[: RANGE + 5])
    got: list[bytes] = []
    with pytest.raises(StoreError, match=f"{RANGE + 5} bytes of {RANGE + 6}"):
        got.extend(map(bytes, fetch(store, KEY, size=RANGE + 6, control=Impatient())))
    assert len(b"".join(got)) <= RANGE


def test_an_object_that_ends_before_a_range_is_called_truncated():
    store = Watched(DATA[:RANGE])

    def answer(_: int, data: bytes) -> BinaryIO:
        if not data:
            raise StoreError("no such range", code="InvalidRange", subject=KEY, retryable=False)
        return Stream(data)

    store.answer = answer
    with pytest.raises(IntegrityError, match=f"ends before byte {RANGE}"):
        fetched(store, size=2 * RANGE)


@pytest.mark.parametrize("code", ["broken", "cancelled", "left"])
def test_however_it_ends_early_no_thread_is_left_and_little_more_is_asked_for(code: str):
    data = DATA * 2
    store = Watched(data)
    control = Impatient()

    def answer(start: int, data: bytes) -> BinaryIO:
        if code == "broken" and start == RANGE:
            raise StoreError("refused", subject=KEY, retryable=False)
        if code == "cancelled" and start == RANGE:
            control.cancel()
        return Stream(data)

    store.answer = answer
    chunks = fetch(store, KEY, size=len(data), control=control, threads=2)
    if code == "left":
        next(chunks)
        chunks.close()
    else:
        with pytest.raises(StoreError if code == "broken" else CancelledError):
            b"".join(chunks)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("duckling-fetch")]
    # Asked for at RANGE, 2 * RANGE and 4 * RANGE, when the range before them was handed on; never at 6 or 8 * RANGE.
    assert max(start for start, _ in store.requests) <= 4 * RANGE


def test_only_the_version_that_was_looked_at_is_asked_for():
    tags = []

    class Tagged(Watched):
        def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> BinaryIO:
            tags.append(etag)
            return super().open_range(key, start, stop, etag=etag)

    assert fetched(Tagged(), etag='"abc"') == DATA
    assert set(tags) == {'"abc"'}


def test_an_object_larger_than_the_window_passes_through_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("duckling_provider.stores.fetch.WINDOW", 2 * RANGE)
    store, position, kept = Watched(), 0, []
    for piece in fetch(store, KEY, size=len(DATA), control=Impatient()):
        # Those before it are still as they were: stages in other threads may look at them.
        kept = [*kept, (position, piece)][-1 - KEPT :]
        for start, earlier in kept:
            assert earlier == DATA[start : start + len(earlier)]
        position += len(piece)
    assert position == len(DATA)


def test_no_byte_is_received_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("duckling_provider.stores.fetch.WINDOW", 2 * RANGE)
    store, received = Watched(), [0]

    class Counted(io.BytesIO):
        def readinto(self, target: memoryview) -> int:  # type: ignore[override]
            count = super().readinto(target)
            received[0] += count
            return count

    store.answer = lambda _, data: Counted(data)
    taken = 0
    for piece in fetch(store, KEY, size=len(DATA), control=Impatient()):
        assert received[0] <= taken + 2 * RANGE
        taken += len(piece)
    assert taken == received[0] == len(DATA)


def test_a_bandwidth_is_asked_for_every_byte_before_it_is_received():
    store, asked = Watched(), []
    assert fetched(store, pace=asked.append) == DATA
    assert sum(asked) == len(DATA)
