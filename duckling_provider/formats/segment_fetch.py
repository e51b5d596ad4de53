"""Reading the segments of a stored object of format 2: several requests at once, each segment proven before it is
handed on.

A segment is received into one buffer, decrypted and proven there, all in the thread that received it, so the proof
runs on as many cores as there are. One that arrives damaged is asked for again: a bad line is more likely than a bad
object, and where it is the object, each try says the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import IntegrityError
from duckling_provider.base.host_load import page_memory
from duckling_provider.base.interruptible import Workers
from duckling_provider.formats.segments import SegmentKeys, Segments
from duckling_provider.formats.trailer import Trailer
from duckling_provider.stores.fetch import receive_range
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)

#: Buffers, and so requests, at once: of one segment each, whatever ``maxConcurrency`` says.
BUFFERS = 4
#: So often a segment that arrives damaged is asked for again.
REFETCHES = 2


def fetch_segments(
    store: BackupSource,
    key: str,
    trailer: Trailer,
    keys: SegmentKeys,
    *,
    numbers: Iterable[int] | None = None,
    etag: str = "",
    control: Control | None = None,
) -> Generator[tuple[int, memoryview], None, None]:
    """The plain text of segments, in the order of `numbers`, each with its number.

    What is handed on is proven, and good until the next one is asked for.

    Memory: `BUFFERS` segments.

    :param keys: of the key that vouched for `trailer`.
    :param numbers: which segments; all of them by default.
    :param etag: read only this version of the object.
    :raises StoreError: when the store fails for good.
    :raises IntegrityError: a segment is not what the index says, however often it is fetched; the object is shorter, or
        was replaced meanwhile.
    """
    footer = trailer.footer
    control = control or Control()
    waiting = iter(range(footer.segment_count) if numbers is None else numbers)
    free = [page_memory(min(footer.segment_bytes, footer.size)) for _ in range(BUFFERS)]
    reading = _Reading(store, key, trailer, footer.segments(keys), etag, control)
    under_way: deque[tuple[int, memoryview, Future[None]]] = deque()
    with Workers(BUFFERS, name="duckling-fetch", control=control) as pool:
        while True:
            while free and (number := next(waiting, None)) is not None:
                start, stop = footer.bounds(number)
                buffer = free.pop()
                under_way.append((number, buffer, pool.submit(reading.receive, number, buffer[: stop - start])))
            if not under_way:
                return
            number, buffer, future = under_way.popleft()
            pool.result(future)
            start, stop = footer.bounds(number)
            yield number, buffer[: stop - start]
            free.append(buffer)


class _Reading:
    def __init__(
        self, store: BackupSource, key: str, trailer: Trailer, segments: Segments, etag: str, control: Control
    ) -> None:
        self._store, self._key, self._etag, self._control = store, key, etag, control
        self._trailer, self._segments = trailer, segments

    def receive(self, number: int, room: memoryview) -> None:
        """Segment `number` as plain text into `room`, which it fills."""
        start, stop = self._trailer.footer.bounds(number)
        subject = self._store.url + self._key
        for attempt in range(REFETCHES + 1):
            opener = self._segments.opener(number, self._trailer.tag(number))
            # Each piece is looked at as it comes, while it is in the processor's cache.
            receive_range(
                self._store, self._key, start, stop, room, seen=opener.update, etag=self._etag, control=self._control
            )
            if opener.is_proven():
                return
            if attempt < REFETCHES:
                log.warning("%s: bytes %d to %d arrived damaged and are fetched again", subject, start, stop - 1)
        failed = IntegrityError(
            f"HMAC verification failed: bytes {start} to {stop - 1} are not those that were sealed",
            subject=subject,
            hint="The object is damaged; use another backup.",
        )
        failed.found = hashlib.sha256(room).hexdigest()
        raise failed
