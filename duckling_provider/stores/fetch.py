"""Reading one object by several ranged requests at once, handed on in order.

The bytes of each request go from the connection straight to their place in one piece of memory, a ring of `WINDOW`
bytes, and are looked at there: nothing is copied on the way, and no memory is taken or given back while an object
passes. Requests are sent ahead of the room for their answers, so that a store that is far away is asked in time; what
has no room yet waits in the connection.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import IntegrityError, StoreError
from duckling_provider.base.host_load import page_memory
from duckling_provider.base.interruptible import Workers
from duckling_provider.stores import concurrency
from duckling_provider.stores.concurrency import Concurrency
from duckling_provider.stores.parts import MIB
from duckling_provider.stores.store import BackupSource

#: Bytes of the first two requests; the others ask for twice as many.
RANGE = 4 * MIB
#: Bytes handed on at once.
PIECE = MIB // 2
#: Memory of a whole object's reading: what has arrived and is not handed on yet.
WINDOW = 32 * MIB
#: So many pieces stay as they are after the next one was taken: stages in other threads may still look at them. A stage
#: has one waiting and works on one (`pipeline.Fanout`), and a second may come after it.
KEPT = 4
#: Requests at once, at most.
THREADS = 16
ATTEMPTS = 6


def fetch(
    store: BackupSource,
    key: str,
    *,
    size: int = 0,
    spans: Sequence[tuple[int, int]] | None = None,
    etag: str = "",
    control: Control | None = None,
    threads: int = THREADS,
    pace: Callable[[int], None] | None = None,
) -> Generator[memoryview, None, None]:
    """The object's bytes from 0 to `size`, in order, in pieces of `PIECE`, the last one shorter.

    :param spans: in place of `size`: only the bytes of these, (first, byte after the last), in order; all but the last
        are multiples of `PIECE` long.

    A piece begins on a page of memory, may be changed, and is good until `KEPT` more and one after them are asked for;
    then its memory takes other bytes.
    A request that breaks off goes on where it was, until it has brought nothing for `ATTEMPTS` times.

    Memory: `WINDOW`, or the object's size where that is less.

    :param etag: read only this version of the object.
    :param threads: requests at once, at most; as many are made as make it faster.
    :param pace: called with the bytes of each piece before they are received; may wait, to keep to a bandwidth.
    :raises StoreError: when the store fails for good.
    :raises IntegrityError: when the object is shorter than `size` or was replaced meanwhile.
    """
    reading = _Reading(store, key, [(0, size)] if spans is None else spans, etag, control or Control(), threads, pace)
    with Workers(threads, name="duckling-fetch", control=reading.control) as pool:
        try:
            yield from reading.pieces(pool)
        finally:
            reading.leave()


def receive_range(
    store: BackupSource,
    key: str,
    start: int,
    stop: int,
    room: memoryview,
    *,
    seen: Callable[[memoryview], object],
    etag: str = "",
    control: Control,
) -> None:
    """Bytes `start` to before `stop` of an object into `room`, by one request at a time; one that breaks off goes on
    where it was, up to `ATTEMPTS` times.

    :param seen: gets all bytes in order, piece by piece, once each.
    :raises StoreError: when the store fails for good.
    :raises IntegrityError: when the object ends before `start` or was replaced meanwhile.
    """
    arrived = 0
    for attempt in range(ATTEMPTS):
        try:
            with contextlib.closing(store.open_range(key, start + arrived, stop, etag=etag)) as stream:
                while arrived < stop - start:
                    control.check()
                    read = stream.readinto(room[arrived : min(arrived + PIECE, stop - start)])
                    if not read:
                        raise _cut_off(store, key, start + arrived, stop)
                    seen(room[arrived : arrived + read])
                    arrived += read
            return
        except StoreError as error:
            # What has a code was refused as often as the store's client asks.
            if not error.retryable or error.code or attempt == ATTEMPTS - 1:
                if not arrived and _is_behind(error):
                    raise _truncated(store, key, start) from error
                raise
            control.sleep(concurrency.pause_after(attempt + 1))


def _cut_off(store: BackupSource, key: str, arrived: int, stop: int) -> StoreError:
    return StoreError(f"the store sent {arrived} bytes of {stop}", subject=store.url + key)


def _is_behind(error: StoreError) -> bool:
    """Whether the range that was asked for lies behind the object's end."""
    return error.code in {"InvalidRange", "416"}


def _truncated(store: BackupSource, key: str, start: int) -> IntegrityError:
    return IntegrityError(f"the object ends before byte {start}", subject=store.url + key, hint="It was truncated.")


class _Range:
    """Bytes `start` to before `stop` of all that is read, one request; in the object they lie `ahead` bytes further on.
    Those before `arrived` are there.
    """

    def __init__(self, start: int, stop: int, ahead: int) -> None:
        self.start, self.stop, self.arrived, self.ahead = start, stop, start, ahead
        self.error: BaseException | None = None


def _ranges(spans: Sequence[tuple[int, int]]) -> Iterator[_Range]:
    start = 0
    for first, last in spans:
        ahead, end = first - start, last - first + start
        while start < end:
            # Small ones at first, so that an object of a few MiB comes by several connections as well.
            stop = min(end, start + (RANGE if start < 2 * RANGE else 2 * RANGE))
            yield _Range(start, stop, ahead)
            start = stop


class _LeftError(Exception):
    """The reader has gone; what is under way is of no use any more."""


class _Reading:
    """One object on its way through the ring: byte n of what is read lies at n modulo the ring's size.

    The threads of the pool each take the next range, ask for it and receive it piece by piece, as far as there is room
    (`_room`). The caller's thread hands pieces on (`pieces`), which makes room.
    """

    def __init__(
        self,
        store: BackupSource,
        key: str,
        spans: Sequence[tuple[int, int]],
        etag: str,
        control: Control,
        threads: int,
        pace: Callable[[int], None] | None,
    ) -> None:
        self.control = control
        self._store, self._key, self._etag, self._pace = store, key, etag, pace
        self._memory = page_memory(min(sum(stop - start for start, stop in spans), WINDOW))
        self._concurrency = Concurrency(threads, leaps=True)
        self._lock = threading.Lock()
        self._arrived, self._freed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting = _ranges(spans)
        self._begun: deque[_Range] = deque()
        self._running = 0
        self._free_until = len(self._memory)  # the object's byte for which there is no room yet
        self._all_begun = self._left = False

    # -- the caller's thread ----------------------------------------------------------------------------------------

    def pieces(self, pool: Workers) -> Iterator[memoryview]:
        kept: deque[int] = deque()
        freed = 0
        while True:
            with self._lock:
                self._start_threads(pool)
                pool.wait_for(self._arrived, lambda: bool(self._begun) or not self._running)
                if not self._begun:
                    return
                current = self._begun[0]
            for start in range(current.start, current.stop, PIECE):
                stop = min(start + PIECE, current.stop)
                with self._lock:
                    if len(kept) > KEPT:
                        freed += kept.popleft()
                    if freed >= RANGE:
                        # Not for each piece: it would wake every thread that waits for room.
                        self._free_until, freed = self._free_until + freed, 0
                        self._freed.notify_all()
                    self._start_threads(pool)
                    pool.wait_for(
                        self._arrived,
                        lambda: current.arrived >= stop or current.error is not None,  # noqa: B023
                    )
                    if current.arrived < stop and current.error is not None:
                        raise current.error
                kept.append(stop - start)
                yield self._place(start, stop)
            with self._lock:
                self._begun.popleft()
                self._freed.notify_all()

    def _start_threads(self, pool: Workers) -> None:
        """As many as are wanted now. The lock is held."""
        while self._running < self._concurrency.count and not (self._all_begun or self._left):
            self._running += 1
            pool.submit(self._receive_ranges)

    def leave(self) -> None:
        """Nothing more is wanted: the threads end with what they are at."""
        with self._lock:
            self._left = True
            self._freed.notify_all()

    # -- the pool's threads -----------------------------------------------------------------------------------------

    def _receive_ranges(self) -> None:
        try:
            while (wanted := self._next()) is not None:
                try:
                    self._receive(wanted)
                except BaseException as error:  # raised by the caller's thread when the range's turn has come
                    wanted.error = error
                    return
                self._concurrency.finished(wanted.stop - wanted.start)
        finally:
            with self._lock:
                self._running -= 1
                self._arrived.notify_all()

    def _next(self) -> _Range | None:
        with self._lock:
            # Not too far ahead of what is handed on: what is asked for is to be received before the store loses
            # patience, and for nothing as seldom as can be.
            self._freed.wait_for(lambda: self._left or len(self._begun) <= self._concurrency.count)
            if self._left or self._running > self._concurrency.count:
                return None
            wanted = next(self._waiting, None)
            if wanted is None:
                self._all_begun = True
            else:
                self._begun.append(wanted)
                self._arrived.notify_all()
            return wanted

    def _receive(self, wanted: _Range) -> None:
        attempt = 0
        while True:
            begun = wanted.arrived
            try:
                self._receive_from(wanted, begun)
                return
            except StoreError as error:
                self._concurrency.refused()
                # A connection that breaks off again and again may still bring all.
                attempt = 1 if wanted.arrived - begun >= PIECE else attempt + 1
                # What has a code was refused as often as the store's client asks: once more, by fewer at a time.
                if not error.retryable or attempt >= (2 if error.code else ATTEMPTS):
                    if wanted.arrived == wanted.start and _is_behind(error):
                        raise _truncated(self._store, self._key, wanted.start + wanted.ahead) from error
                    raise
                self.control.sleep(concurrency.pause_after(attempt))

    def _receive_from(self, wanted: _Range, start: int) -> None:
        stream = self._store.open_range(self._key, start + wanted.ahead, wanted.stop + wanted.ahead, etag=self._etag)
        with contextlib.closing(stream):
            while wanted.arrived < wanted.stop:
                room = self._room(wanted.arrived, wanted.stop)
                while room:
                    self.control.check()
                    read = stream.readinto(room)
                    if not read:
                        raise _cut_off(
                            self._store, self._key, wanted.arrived + wanted.ahead, wanted.stop + wanted.ahead
                        )
                    room = room[read:]
                    with self._lock:
                        wanted.arrived += read
                        if not room and wanted is self._begun[0]:
                            self._arrived.notify_all()

    def _room(self, start: int, stop: int) -> memoryview:
        """Where the bytes from `start` to the end of their piece go; waits until what lies there was handed on."""
        stop = min(stop, (start // PIECE + 1) * PIECE)
        if self._pace is not None:
            self._pace(stop - start)
        with self._lock:
            self._freed.wait_for(lambda: self._left or stop <= self._free_until)
            if self._left:
                raise _LeftError
        return self._place(start, stop)

    def _place(self, start: int, stop: int) -> memoryview:
        """The bytes from `start` to `stop`, which lie within one piece."""
        at = start % len(self._memory)
        return self._memory[at : at + stop - start]
