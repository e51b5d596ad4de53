from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from duckling_provider.base.errors import DucklingError
from duckling_provider.stores.parts import MAX_PART, MIB, MIN_PART, PartPlan, plan_parts

GIB = 1 << 30
TIB = 1 << 40

SIZES = st.one_of(
    st.integers(0, 64 * MIB),
    st.integers(0, 5 * TIB),
    # Around whole parts, where a plan may be one part off.
    st.builds(lambda parts, off: max(0, parts * 8 * MIB + off), st.integers(0, 20_000), st.integers(-17, 17)),
)


@given(SIZES, st.integers(MIN_PART, 64 * MIB), st.sampled_from([1000, 10_000]))
@example(0, 8 * MIB, 10_000)
@example(10_000 * 8 * MIB, 8 * MIB, 10_000)
@example(10_000 * 8 * MIB + 1, 8 * MIB, 10_000)
def test_parts_cover_the_object_exactly_and_are_few_large_and_equal(size: int, part_size: int, max_parts: int):
    try:
        plan = plan_parts(size, part_size=part_size, max_parts=max_parts)
    except DucklingError:
        assert size > max_parts * MAX_PART
        return
    assert plan.size == size
    assert 1 <= plan.count <= max_parts
    assert plan.part_size % MIB == 0
    assert max(part_size, MIN_PART) <= plan.part_size <= MAX_PART
    # The parts: each begins where the one before ends, all but the last of one length, the last one not empty.
    first, last = plan.bounds(0), plan.bounds(plan.count - 1)
    assert first[0] == 0
    assert last[1] == size
    for index in {0, 1, plan.count // 2, plan.count - 2} & set(range(plan.count - 1)):
        start, stop = plan.bounds(index)
        assert stop - start == plan.part_size
        assert plan.bounds(index + 1)[0] == stop
    assert 0 < last[1] - last[0] <= plan.part_size or size == 0


@given(SIZES, st.integers(MIN_PART, 64 * MIB))
def test_parts_are_no_larger_than_needed(size: int, part_size: int):
    plan = plan_parts(size, part_size=part_size, max_parts=10_000)
    smaller = plan.part_size - MIB
    assert smaller < part_size or smaller < MIN_PART or PartPlan(size, smaller).count > 10_000


@pytest.mark.parametrize("size", [500 * GIB, 500 * GIB + 16, TIB, 5 * TIB])
def test_half_a_terabyte_and_more_fits_into_ten_thousand_parts(size: int):
    assert plan_parts(size, part_size=8 * MIB, max_parts=10_000).count <= 10_000


def test_a_gigabyte_keeps_the_parts_that_were_asked_for():
    assert plan_parts(GIB, part_size=8 * MIB, max_parts=10_000).part_size == 8 * MIB


def test_an_empty_object_is_one_empty_part():
    plan = plan_parts(0, part_size=8 * MIB, max_parts=10_000)
    assert (plan.count, plan.bounds(0)) == (1, (0, 0))


def test_what_no_store_can_take_is_refused_with_the_setting_that_helps():
    with pytest.raises(DucklingError, match=r"s3\.maxParts"):
        plan_parts(1000 * MAX_PART + 1, part_size=8 * MIB, max_parts=1000)
