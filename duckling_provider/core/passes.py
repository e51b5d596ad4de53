"""Several looks at the same bytes in one read: each stage runs in a thread of its own and sees every chunk in order.

Hashing, encryption, numpy and file writes release the GIL, so a pass takes about as long as its slowest stage.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from duckling_provider.core.crypto import BytesLike

#: Gets each chunk in order; may keep it only until it returns.
Stage: TypeAlias = Callable[[BytesLike], object]


class Fanout:
    """Feed chunks to several stages at once.

    Memory: at most ``DEPTH + 2`` chunks are alive (queued, being worked on, being made by the caller), whatever the
    number of stages, since they share them.

    Used as a context manager: leaving it waits for all stages; the first error of a stage is raised by `put` or on
    leaving.
    """

    DEPTH = 1

    def __init__(self, *stages: Stage) -> None:
        self._error: BaseException | None = None
        self._queues: list[queue.Queue[BytesLike | None]] = [queue.Queue(self.DEPTH) for _ in stages]
        self._threads = [
            threading.Thread(target=self._run, args=(stage, inbox), daemon=True)
            for stage, inbox in zip(stages, self._queues, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, chunk: BytesLike) -> None:
        """Hand `chunk` to every stage; it must not change afterwards. Blocks while the slowest stage is behind."""
        if self._error is not None:
            raise self._error
        for inbox in self._queues:
            inbox.put(chunk)

    def _run(self, stage: Stage, inbox: queue.Queue[BytesLike | None]) -> None:
        while (chunk := inbox.get()) is not None:
            if self._error is None:
                try:
                    stage(chunk)
                except BaseException as error:  # handed to the caller's thread by put() or __exit__()
                    self._error = error
            # Let go before waiting for the next one, or a chunk more stays alive.
            del chunk

    def __enter__(self) -> Fanout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inbox in self._queues:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        if self._error is not None and error is None:
            raise self._error
