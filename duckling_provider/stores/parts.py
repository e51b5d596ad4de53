"""How an object is cut into parts, few enough and large enough for the store: into equal ones, or into those that the
store copies from an earlier object and those that are sent.

S3 takes at most 10,000 parts of 5 MiB to 5 GiB (Amazon S3 User Guide, "Multipart upload limits"); some stores take
1,000 parts only, and some demand that all but the last are of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from duckling_provider.base.errors import RequestError, StoreError
from duckling_provider.base.units import human_bytes

MIB = 1 << 20
MIN_PART = 5 * MIB
MAX_PART = 5 << 30
#: What every store takes; an upload of more finds out at its beginning whether its store does, too.
SAFE_PARTS = 1000


class TooManyPartsError(StoreError):
    """The store takes fewer parts than the upload has: cut it into `SAFE_PARTS`."""

    retryable = False


@dataclass(frozen=True)
class PartPlan:
    """An object of `size` bytes in `count` parts of `part_size` bytes, the last one shorter."""

    size: int
    part_size: int

    @property
    def count(self) -> int:
        return max(1, -(-self.size // self.part_size))

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte and byte after the last of part `index` (from 0)."""
        start = index * self.part_size
        return start, min(start + self.part_size, self.size)


def plan_parts(size: int, *, part_size: int, max_parts: int) -> PartPlan:
    """Cut `size` bytes into parts of `part_size`, or of the next whole MiB that needs no more than `max_parts`.

    Parts are whole MiB, so that every part of a ciphertext starts on a block of the cipher.

    :raises RequestError: when even the largest allowed parts are too many.
    """
    wanted = max(part_size, MIN_PART, -(-size // max_parts))
    rounded = -(-wanted // MIB) * MIB
    if rounded > MAX_PART:
        raise RequestError(
            f"{human_bytes(size)} in {max_parts} parts needs parts above the {human_bytes(MAX_PART)} that stores allow",
            hint="Raise s3.maxParts.",
        )
    return PartPlan(size, rounded)


#: Bytes of one copied part, at most: a store copies it within one request's patience.
MAX_COPY = 1 << 30


@dataclass(frozen=True)
class Cut:
    """An object in parts of any length: `stops` are the bytes after the last of each, `copied` the numbers (from 0) of
    those that are the same bytes, at the same place, of another object.
    """

    stops: tuple[int, ...]
    copied: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        return self.stops[-1]

    @property
    def count(self) -> int:
        return len(self.stops)

    def bounds(self, index: int) -> tuple[int, int]:
        """First byte and byte after the last of part `index` (from 0)."""
        return self.stops[index - 1] if index else 0, self.stops[index]

    @property
    def part_size(self) -> int:
        """Bytes of the largest part."""
        return max(stop - start for start, stop in map(self.bounds, range(self.count)))

    @property
    def copied_bytes(self) -> int:
        return sum(stop - start for start, stop in map(self.bounds, self.copied))


@dataclass(frozen=True)
class Limits:
    """What a store takes: at most `max_parts` parts, those that are sent of `part_size` bytes where that is enough,
    none but the last below `least`, none that is copied above `most_copied`; `equal` where all but the last must be of
    one size.
    """

    part_size: int
    max_parts: int
    equal: bool = False
    least: int = MIN_PART
    most_copied: int = MAX_COPY


#: Of `Limits.max_parts`: with more parts than that, copies of small gaps are given up.
_CROWDED = 0.95


def plan_copies(
    unchanged: Sequence[bool], size: int, *, segment: int, limits: Limits, covered: int | None = None
) -> Cut:
    """Cut an object of `size` bytes into parts that another object has already and parts that are sent.

    Each run of unchanged segments is one part that is copied, each run of others one that is sent, in pieces where they
    are long. Where that makes too many parts, the shortest runs of unchanged segments are sent with what lies around
    them. Pure: it knows nothing of the object but these numbers.

    :param unchanged: of each segment whether the other object has the same bytes at the same place.
    :param segment: bytes of each but the last; at least `limits.least`.
    :param covered: bytes of the object that the segments cover, all when omitted. The others, at its end, are sent.
    :raises RequestError: even the largest parts are too many.
    """
    covered = size if covered is None else covered
    whole = plan_parts(size, part_size=limits.part_size, max_parts=limits.max_parts)
    step = max(1, -(-whole.part_size // segment)) * segment
    if limits.equal:
        return _equal_parts(unchanged, size, covered, segment, step, limits)
    most_copied = limits.most_copied // segment * segment
    runs = _runs(unchanged, size, covered, segment, limits.least, joins=most_copied > segment)
    crowded = max(1, int(limits.max_parts * _CROWDED))
    gaps = sorted((run for run in runs if run.copied), key=lambda run: (run.length, run.start))
    largest = max(step, most_copied)
    given_up = _least(len(gaps), lambda count: _count(_without(runs, gaps[:count]), largest, most_copied) <= crowded)
    runs = _without(runs, gaps[:given_up])
    limit = crowded if given_up < len(gaps) else limits.max_parts
    pieces = _least(
        MAX_PART // segment,
        lambda count: count * segment >= step and _count(runs, count * segment, most_copied) <= limit,
    )
    return _cut(runs, max(1, pieces) * segment, most_copied, segment, limits.least)


@dataclass(frozen=True)
class _Run:
    """Bytes `start` to before `stop`, all copied or all sent."""

    start: int
    stop: int
    copied: bool

    @property
    def length(self) -> int:
        return self.stop - self.start


def _runs(unchanged: Sequence[bool], size: int, covered: int, segment: int, least: int, *, joins: bool) -> list[_Run]:
    """:param joins: whether a segment may be copied in one part with the one before it."""
    runs: list[_Run] = []
    for index, same in enumerate(unchanged):
        start, stop = index * segment, min((index + 1) * segment, covered)
        # No part but the last may be as small as the last segment can be: it goes with the one before it.
        alone = not (joins and runs and runs[-1].copied)
        _append(runs, _Run(start, stop, same and not (alone and stop == covered < size and stop - start < least)))
    if covered < size:
        _append(runs, _Run(covered, size, copied=False))
    return runs


def _append(runs: list[_Run], run: _Run) -> None:
    """Add a run to those before it, as one with the last where they are of a kind."""
    if runs and runs[-1].copied == run.copied:
        run = _Run(runs.pop().start, run.stop, run.copied)
    runs.append(run)


def _without(runs: Sequence[_Run], given_up: Sequence[_Run]) -> list[_Run]:
    """The runs, with the copied ones of `given_up` sent."""
    gone = {run.start for run in given_up}
    left: list[_Run] = []
    for run in runs:
        _append(left, _Run(run.start, run.stop, run.copied and run.start not in gone))
    return left


def _count(runs: Iterable[_Run], most_sent: int, most_copied: int) -> int:
    return sum(-(-run.length // (most_copied if run.copied else most_sent)) for run in runs)


def _cut(runs: Iterable[_Run], most_sent: int, most_copied: int, segment: int, least: int) -> Cut:
    stops: list[int] = []
    copied: set[int] = set()
    for run in runs:
        for length in _lengths(run, most_copied if run.copied else most_sent, segment, least):
            if run.copied:
                copied.add(len(stops))
            stops.append((stops[-1] if stops else 0) + length)
    return Cut(tuple(stops), frozenset(copied))


def _lengths(run: _Run, step: int, segment: int, least: int) -> list[int]:
    """Of a run's parts: `step` each, and what is left; where that is too little for a part, a segment more of it."""
    count, rest = divmod(run.length, step)
    lengths = [step] * count + ([rest] if rest else [])
    if run.copied and count and 0 < rest < least and step > segment:
        lengths[-2:] = [step - segment, rest + segment]
    return lengths


def _least(most: int, fits: Callable[[int], bool]) -> int:
    """The smallest number from 0 to `most` that fits, by bisection; `most` where none before it does."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _equal_parts(unchanged: Sequence[bool], size: int, covered: int, segment: int, step: int, limits: Limits) -> Cut:
    plan = PartPlan(size, step)
    copied = set()
    for part in range(plan.count):
        start, stop = plan.bounds(part)
        inside = unchanged[start // segment : -(-stop // segment)]
        if stop <= covered and stop - start <= limits.most_copied and inside and all(inside):
            copied.add(part)
    return Cut(tuple(plan.bounds(part)[1] for part in range(plan.count)), frozenset(copied))
