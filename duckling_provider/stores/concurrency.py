"""How many requests to a store are under way at once: more while that makes a transfer faster, fewer when the store
asks for that. The rule that TCP has for its window: quickly up at first, then by one, and by half down.

And how long a request waits before it is made again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

FIRST = 4
#: So much faster must a round with more requests be, or they are of no use.
_GAIN = 1.1
#: Rounds without a trial after one that was of no use.
_REST = 8
#: Seconds that a request may take in the first leap, should more at once be of no use.
_LEAP = 10.0
#: Seconds between two tries of a request, at most.
_LONGEST_PAUSE = 16.0


def pause_after(attempt: int) -> float:
    """Seconds to wait after the try of that number, from 1, failed: after five, a store or a proxy that restarts has
    had 15 to 31 seconds. Chance spreads the requests that failed at the same moment.
    """
    return min(2.0 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311 - no secret


@dataclass(frozen=True)
class Load:
    """`count` requests at once in this round; the fastest round so far had `best` and moved `rate` bytes a second.

    :param careful: the store has refused something: from then on one more at a time.
    :param rest: rounds until the next trial of more.
    """

    count: int
    best: int = 0
    rate: float = 0.0
    careful: bool = False
    rest: int = 0


def after_round(load: Load, rate: float, *, refused: bool, most: int, took: float = _LEAP) -> Load:
    """What to do next, after a round of `load` moved `rate` bytes a second.

    :param refused: the store throttled or broke off a request of the round.
    :param most: requests at once, never more.
    :param took: seconds of the round. The first one tells a long line from a narrow one, on which requests share what
        there is: where they are over soon, many at once do no harm, so all that may be are tried; else twice as many.
    """
    if refused:
        return Load(max(1, load.count // 2), careful=True, rest=_REST)
    times = 2 if load.best else max(2, int(_LEAP / took))
    more = min(most, load.count + 1 if load.careful else load.count * times)
    if load.count > load.best > 0 and rate < load.rate * _GAIN:  # a trial that was of no use
        return replace(load, count=load.best, rest=_REST)
    if load.rest > 0:
        return replace(load, best=load.count, rate=rate, rest=load.rest - 1)
    return replace(load, count=more, best=load.count, rate=rate)


class Concurrency:
    """The count for one transfer. Thread-safe.

    :param most: requests at once, never more.
    :param leaps: whether the first trial may be of more than twice as many, see `after_round`.
    """

    def __init__(self, most: int, *, leaps: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._leaps, self._clock = most, leaps, clock
        self._lock = threading.Lock()
        self._load = Load(min(FIRST, most))
        self._begin()

    @property
    def count(self) -> int:
        return self._load.count

    def _begin(self) -> None:
        self._begun, self._size, self._requests, self._refused = self._clock(), 0, 0, False

    def finished(self, size: int) -> None:
        """A request has moved `size` bytes. A round is as many requests as are under way at once."""
        with self._lock:
            self._size += size
            self._requests += 1
            if self._requests >= self._load.count:
                took = max(self._clock() - self._begun, 1e-6)
                told = took if self._leaps else _LEAP
                self._load = after_round(
                    self._load, self._size / took, refused=self._refused, most=self._most, took=told
                )
                self._begin()

    def refused(self) -> None:
        """The store throttled or broke off a request."""
        with self._lock:
            self._refused = True
