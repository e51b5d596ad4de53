from __future__ import annotations

import itertools

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
