from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from duckling_provider.stores.concurrency import FIRST, Concurrency, Load, after_round

pytestmark = pytest.mark.quick


def rounds(rate, *, most=16, count=40, refused=()):
    """The counts of so many rounds; `rate(count)` is what a round of that many requests moves a second."""
    load, counts = Load(min(FIRST, most)), []
    for number in range(count):
        counts.append(load.count)
        load = after_round(load, rate(load.count), refused=number in refused, most=most)
    return counts


def test_requests_double_while_that_makes_it_faster_up_to_the_bound():
    assert rounds(lambda count: count, count=4) == [4, 8, 16, 16]
    assert max(rounds(lambda count: count, most=6)) == 6
    assert rounds(lambda count: count, most=1) == [1] * 40


def test_more_requests_that_are_of_no_use_are_given_back_and_tried_seldom():
    counts = rounds(lambda _: 100.0)
    assert counts[:3] == [4, 8, 4]
    assert counts.count(8) <= 5
    assert set(counts) == {4, 8}


def test_a_refusal_halves_and_from_then_on_one_more_is_tried_at_a_time():
    counts = rounds(lambda count: count, refused={2})
    assert counts[2:4] == [16, 8]
    assert max(after - before for before, after in itertools.pairwise(counts[3:])) == 1
    assert rounds(lambda count: count, refused=range(40))[-1] == 1


def test_what_became_slower_by_itself_is_no_reason_for_fewer():
    load = Load(4, best=4, rate=100.0)
    assert after_round(load, 50.0, refused=False, most=16).count >= 4


def test_a_round_is_as_many_requests_as_are_under_way():
    now = [0.0]
    load = Concurrency(16, clock=lambda: now[0])
    for wanted in (4, 8, 16):
        assert load.count == wanted
        now[0] += 1.0
        for _ in range(wanted):
            load.finished(1000)
    load.refused()
    for _ in range(16):
        load.finished(1000)
    assert load.count == 8


# ---- on a line -----------------------------------------------------------------------------------------------------

MBIT = 1e6 / 8
PART = 8 << 20


@dataclass
class Connection:
    """`window`: bytes that TCP sends in one round trip, ten segments at first and then twice as many each time."""

    window: float = 14_600.0
    state: str = "waits"
    until: float = 0.0
    left: float = PART
    begun: float = 0.0


def sent_over(line, *, trip, most=16, parts=132, fixed=0, throttled_above=1000):
    """(seconds in all, the counts as they follow each other, seconds of the slowest part) of an upload over a line of
    `line` bytes a second with a round trip of `trip` seconds, by a clock that this moves.

    :param fixed: so many at once, in place of the rule's.
    """
    now = [0.0]
    load = Concurrency(most, leaps=True, clock=lambda: now[0])
    step = min(trip / 4, 0.02)
    idle, busy, counts, slowest = [], [], [], 0.0
    while parts or busy:
        while parts and len(busy) < (fixed or load.count):
            parts -= 1
            # A new connection is two round trips away, and the store says first that it wants the part.
            used = idle.pop() if idle else Connection(until=now[0] + 3 * trip)
            used.state, used.left, used.begun = "waits", PART, now[0]
            busy.append(used)
        counts.append(load.count)
        now[0] += step
        room = line * step
        sending = sorted((one for one in busy if one.state == "sends"), key=lambda one: one.window)
        for number, one in enumerate(sending):
            share, wish = room / (len(sending) - number), one.window * step / trip
            sent = min(share, wish, one.left)
            one.left, room = one.left - sent, room - sent
            one.window *= 2 ** (step / trip) if wish <= share else 1
        for one in [one for one in busy if now[0] >= one.until]:
            if one.state == "waits":
                one.state = "sends"
            elif one.state == "sends" and one.left < 1:
                one.state, one.until = "is answered", now[0] + trip
            elif one.state == "is answered":
                busy.remove(one)
                idle.append(one)
                slowest = max(slowest, now[0] - one.begun)
                if len(busy) >= throttled_above:
                    load.refused()
                load.finished(PART)
    return now[0], [count for count, _ in itertools.groupby(counts)], slowest


@pytest.mark.parametrize("trip", [0.02, 0.1])
def test_a_long_line_gets_all_requests_after_the_first_round(trip):
    seconds, counts, _ = sent_over(10_000 * MBIT, trip=trip)
    assert counts == [4, 16]
    assert seconds < 0.7 * sent_over(10_000 * MBIT, trip=trip, fixed=4)[0]
    assert seconds < 1.25 * sent_over(10_000 * MBIT, trip=trip, fixed=16)[0]


@pytest.mark.parametrize("trip", [0.03, 0.3])
def test_on_a_narrow_line_no_part_waits_for_many_others(trip):
    seconds, counts, slowest = sent_over(10 * MBIT, trip=trip, parts=40)
    assert set(counts) == {4, 8}
    assert slowest < 60
    assert seconds < 1.01 * sent_over(10 * MBIT, trip=trip, parts=40, fixed=4)[0]


def test_a_long_line_to_a_store_that_throttles_ends_with_as_many_as_it_bears():
    _, counts, _ = sent_over(10_000 * MBIT, trip=0.1, parts=1000, throttled_above=7)
    assert counts[:4] == [4, 16, 8, 4]
    assert set(counts[4:]) <= {4, 5, 6, 7}
