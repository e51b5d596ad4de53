"""Reading one object by several ranged requests at once, handed on in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import IntegrityError, StoreError
from duckling_provider.base.interruptible import Workers
from duckling_provider.stores.parts import MIB
from duckling_provider.stores.store import BackupSource

#: Bytes of one request. Memory: ``threads + 1`` of these, and one for each that the consumer keeps a piece of.
RANGE = 4 * MIB
#: Bytes handed on at once.
PIECE = MIB // 2
THREADS = 4
ATTEMPTS = 5
_READ = MIB // 4


def fetch(
    store: BackupSource, key: str, *, size: int, etag: str = "", control: Control | None = None, threads: int = THREADS
) -> Generator[memoryview, None, None]:
    """The object's bytes from 0 to `size`, in order, in pieces of `PIECE`, the last of each request shorter.

    A request that breaks off goes on where it was, up to `ATTEMPTS` times.

    :param etag: read only this version of the object.
    :raises StoreError: when the store fails for good.
    :raises IntegrityError: when the object is shorter than `size` or was replaced meanwhile.
    """
    control = control or Control()
    with Workers(threads, name="duckling-fetch", control=control) as pool:
        window: deque[Future[memoryview]] = deque()
        for start in range(0, size, RANGE):
            # Of full size at once: a growing buffer would be copied again and again, and be larger than needed. Made in
            # this thread: the C library keeps what others freed apart for each of them, which adds up to 16 MiB.
            data = bytearray(min(RANGE, size - start))
            window.append(pool.submit(_fetch_range, store, key, start, data, etag, control))
            del data
            if len(window) >= threads:
                yield from _pieces(pool.result(window.popleft()))
        while window:
            yield from _pieces(pool.result(window.popleft()))


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def _fetch_range(store: BackupSource, key: str, start: int, data: bytearray, etag: str, control: Control) -> memoryview:
    got, stop = 0, start + len(data)
    for attempt in range(ATTEMPTS):
        try:
            with contextlib.closing(store.open_range(key, start + got, stop, etag=etag)) as stream:
                while got < len(data):
                    control.check()
                    read = stream.read(min(_READ, len(data) - got))
                    if not read:
                        raise StoreError(f"the store sent {start + got} bytes of {stop}", subject=store.url + key)
                    data[got : got + len(read)] = read
                    got += len(read)
            return memoryview(data).toreadonly()
        except StoreError as error:
            if not error.retryable or attempt == ATTEMPTS - 1:
                if not got and error.code in {"InvalidRange", "416"}:
                    raise IntegrityError(
                        f"the object ends before byte {start}", subject=store.url + key, hint="It was truncated."
                    ) from error
                raise
            control.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")
