"""Calls that may block for minutes, in threads that the caller need not wait for.

A store that falls silent keeps a request until its timeout, and nothing interrupts a thread in a system call. So the
thread that a signal reaches makes no such calls: it looks after the threads that do, wakes several times a second, and
leaves soon after `control` was cancelled. A thread that is still blocked then is abandoned. It is a daemon, so it keeps
no process alive, and it finds the cancellation as soon as it comes back.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds between two looks at `control` while a call is under way.
_POLL = 0.1


class AbandonedError(CancelledError):
    """Cancelled while a call was under way that did not come back: whether it took effect is unknown."""


class Workers:
    """A pool of threads; a context manager.

    Leaving it drops what has not begun and waits for what is under way. Once `control` is cancelled, or the block ends
    by a signal's exception, that wait lasts `GRACE` seconds at most.

    :param count: threads; each is started when there is work for it.
    """

    #: Seconds that calls under way get to end by themselves after a cancellation.
    GRACE = 1.0
    #: Seconds between two log lines of one wait: the log of a task that stands still must say why.
    TOLD_EVERY = 30.0

    def __init__(self, count: int, *, name: str, control: Control) -> None:
        self._count, self._name, self._control = count, name, control
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[_Worker] = []

    def submit(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Have `call` made by the next free thread."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                result = call(*arguments, **named)
            except BaseException as error:  # raised again by the thread that asks the future
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        if len(self._threads) < self._count:
            self._threads.append(_Worker(self._jobs, f"{self._name}-{len(self._threads)}"))
            self._threads[-1].start()
        return future

    def result(self, future: Future[T]) -> T:
        """What the call returned or raised.

        :raises AbandonedError: it did not come back within `GRACE` seconds after a cancellation.
        """
        self._first((future,), FIRST_COMPLETED)
        return future.result()

    def settle(self, running: Collection[Future[T]], *, everyone: bool) -> set[Future[T]]:
        """Wait for one of the calls (or all) and raise the first error; returns those still running."""
        rest = set(running)
        while rest:
            done, rest = self._first(rest, FIRST_EXCEPTION if everyone else FIRST_COMPLETED)
            for future in done:
                future.result()
            if not everyone:
                break
        return rest

    def _first(self, futures: Collection[Future[T]], condition: str) -> tuple[set[Future[T]], set[Future[T]]]:
        watch = _Watch(self._control, self.GRACE, self.TOLD_EVERY)
        while True:
            done, running = wait(futures, timeout=_POLL, return_when=condition)
            if done:
                return done, running
            watch.look()

    def wait_for(self, condition: threading.Condition, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, which is asked whenever `condition`, held by the caller, is notified.

        :raises AbandonedError: it did not come true within `GRACE` seconds after a cancellation.
        """
        if ready():
            return
        watch = _Watch(self._control, self.GRACE, self.TOLD_EVERY)
        while not condition.wait_for(ready, _POLL):
            watch.look()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        # Ctrl-C and the like are no `Exception`: the user wants out.
        urgent = error is not None and not isinstance(error, Exception)
        patience = _Patience(self._control, 0 if isinstance(error, AbandonedError) else self.GRACE, urgent=urgent)
        for thread in self._threads:
            while thread.is_alive() and not patience.is_over():
                thread.join(_POLL)


class _Watch:
    """One wait for the store: told to the log, and given up after a cancellation."""

    def __init__(self, control: Control, grace: float, told_every: float) -> None:
        self._patience, self._told_every = _Patience(control, grace), told_every
        self._begun = self._told = time.monotonic()

    def look(self) -> None:
        """:raises AbandonedError: the wait has lasted `grace` seconds after a cancellation."""
        now = time.monotonic()
        if now - self._told >= self._told_every:
            self._told = now
            log.warning("waiting: the store has answered nothing for %.0f s", now - self._begun)
        if self._patience.is_over():
            raise AbandonedError("stopped on request while the store did not answer")


class _Patience:
    """Is over some seconds after the cancellation was seen first."""

    def __init__(self, control: Control, seconds: float, *, urgent: bool = False) -> None:
        self._control, self._seconds, self._urgent = control, seconds, urgent
        self._deadline: float | None = None

    def is_over(self) -> bool:
        if self._deadline is None:
            if not (self._urgent or self._control.cancelled):
                return False
            self._deadline = time.monotonic() + self._seconds
        return time.monotonic() >= self._deadline


class _Worker(threading.Thread):
    def __init__(self, jobs: SimpleQueue[Callable[[], None] | None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._jobs = jobs

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or its results would live until the next one comes


def interruptible(call: Callable[[], T], control: Control | None) -> T:
    """Make one call that may block, so that a cancellation ends the wait for it within `Workers.GRACE` seconds.

    A call that is begun after the cancellation gets as long: that is what cleaning up needs.

    :param control: None makes the call as it is, as does a caller that is one of the `Workers` itself.
    :raises AbandonedError: it did not come back.
    """
    if control is None or isinstance(threading.current_thread(), _Worker):
        return call()
    with Workers(1, name="duckling-call", control=control) as workers:
        return workers.result(workers.submit(call))
