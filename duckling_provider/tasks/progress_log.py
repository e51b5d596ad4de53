"""Progress as lines in a task's log: how far it is, how fast it goes, how long it will take."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Protocol

from duckling_provider.base.units import human_bytes, human_seconds


class _Logger(Protocol):
    def info(self, event: str, /) -> object: ...


class ProgressLog:
    """A `base.cancellation.ProgressCallback` that writes a line every `seconds` and one at each step's end.

    Rate and remaining time come from what happened since the line before, so that a resumed upload, which starts with
    the parts that are already there, promises nothing wrong for long.

    :param logger: whose ``info`` gets the lines.
    :param seconds: between two lines of one step.
    :param clock: seconds that only grow.
    """

    def __init__(self, logger: _Logger, *, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._seconds, self._clock = logger, seconds, clock
        self._lock = threading.Lock()
        # In a triggerer, context variables say which task's log a line belongs to; the core's own threads lack them.
        self._context = contextvars.copy_context()
        self._step: str | None = None
        self._started = self._line_at = 0.0
        self._line_done = self._done = 0
        self._ended = True

    def __call__(self, step: str, done: int, total: int) -> None:
        with self._lock:
            now = self._clock()
            if step != self._step or (self._ended and done == 0):
                self._begin(step, now)
            if self._ended:
                return
            self._done = done
            if done >= total > 0:
                self._end(now)
            elif now > self._line_at and now - self._line_at >= self._seconds:
                self._line(done, total, now)

    def _begin(self, step: str, now: float) -> None:
        if not self._ended and self._done:
            self._end(now)  # it took less than it had announced
        self._step, self._started, self._line_at = step, now, now
        self._line_done = self._done = 0
        self._ended = False

    def _line(self, done: int, total: int, now: float) -> None:
        rate = max(0, done - self._line_done) / (now - self._line_at)
        text = f"{self._step}: {human_bytes(done)}"
        if total:
            text += f" of {human_bytes(total)} ({100 * done / total:.1f}%)"
        text += f", {human_bytes(rate)}/s"
        if total and rate:
            text += f", {human_seconds((total - done) / rate)} left"
        self._line_at, self._line_done = now, done
        self._log(text)

    def _end(self, now: float) -> None:
        self._ended = True
        took = now - self._started
        rate = f", {human_bytes(self._done / took)}/s" if took >= 1 else ""
        self._log(f"{self._step}: {human_bytes(self._done)} in {human_seconds(took)}{rate}")

    def _log(self, text: str) -> None:
        self._context.run(self._logger.info, text)
