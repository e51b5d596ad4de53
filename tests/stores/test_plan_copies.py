"""Which parts of an object the store copies: the plan is a pure function, held by its properties and by numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duckling_provider.base.errors import DucklingError
from duckling_provider.stores.parts import MAX_PART, MIB, MIN_PART, Cut, Limits, plan_copies

GIB = 1 << 30
SEGMENT = 8 * MIB
HUGE = 500 * GIB


def scattered(count: int, share: float) -> list[bool]:
    """Segments of which `share` changed, at random places."""
    draw = random.Random(18)
    return [draw.random() >= share for _ in range(count)]


def sent(cut: Cut) -> float:
    return 1 - cut.copied_bytes / cut.size


@st.composite
def objects(draw: st.DrawFn) -> tuple[list[bool], int, int]:
    """(unchanged, size, covered), with a last segment of any length and a tail or none."""
    unchanged = draw(st.lists(st.booleans(), min_size=1, max_size=80))
    covered = (len(unchanged) - 1) * SEGMENT + draw(st.integers(1, SEGMENT))
    return unchanged, covered + draw(st.sampled_from([0, 0, 1, 40, 3 * MIB])), covered


@settings(max_examples=200)
@given(objects(), st.integers(MIN_PART, 40 * MIB), st.sampled_from([4, 12, 40, 1000, 10_000]), st.booleans())
@example(([True], 3 * MIB + 100, 3 * MIB), 8 * MIB, 10_000, False)
@example(([True, True], SEGMENT + 1, SEGMENT + 1), 8 * MIB, 10_000, False)
def test_parts_cover_the_object_and_only_unchanged_segments_are_copied(
    what: tuple[list[bool], int, int],
    part_size: int,
    max_parts: int,
    equal: bool,  # noqa: FBT001 - hypothesis hands it over
):
    unchanged, size, covered = what
    most_copied = 3 * SEGMENT
    limits = Limits(part_size, max_parts, equal=equal, most_copied=most_copied)
    cut = plan_copies(unchanged, size, segment=SEGMENT, limits=limits, covered=covered)
    assert cut.size == size
    assert 1 <= cut.count <= max_parts
    lengths = [stop - start for start, stop in map(cut.bounds, range(cut.count))]
    assert all(length >= MIN_PART for length in lengths[:-1])
    assert all(0 < length <= MAX_PART for length in lengths)
    assert not equal or len(set(lengths[:-1])) <= 1
    for part in cut.copied:
        start, stop = cut.bounds(part)
        assert stop - start <= most_copied
        assert stop <= covered
        assert all(unchanged[start // SEGMENT : -(-stop // SEGMENT)])


def test_where_nothing_changed_nothing_but_the_tail_is_sent():
    limits = Limits(8 * MIB, 10_000)
    assert sent(plan_copies([True] * 64_000, HUGE, segment=SEGMENT, limits=limits)) == 0
    cut = plan_copies([True] * 64_000, HUGE + 2_048_300, segment=SEGMENT, limits=limits, covered=HUGE)
    assert (cut.count, cut.size - cut.copied_bytes) == (501, 2_048_300)


@pytest.mark.parametrize("segments", [2, 127, 128, 129, 300])
def test_a_last_segment_too_short_for_a_part_is_copied_with_the_one_before_it(segments: int):
    covered = (segments - 1) * SEGMENT + 17
    cut = plan_copies([True] * segments, covered + 99, segment=SEGMENT, limits=Limits(8 * MIB, 10_000), covered=covered)
    assert cut.size - cut.copied_bytes == 99


def test_where_everything_changed_the_parts_are_those_of_a_full_upload():
    cut = plan_copies([False] * 128, GIB, segment=SEGMENT, limits=Limits(8 * MIB, 10_000))
    assert (cut.count, cut.copied) == (128, frozenset())


def test_half_a_terabyte_with_scattered_changes_needs_as_many_parts_as_there_are_runs():
    cut = plan_copies(scattered(64_000, 0.062), HUGE, segment=SEGMENT, limits=Limits(8 * MIB, 10_000))
    assert cut.count == pytest.approx(7_444, rel=0.02)
    assert sent(cut) == pytest.approx(0.062, rel=0.03)


def test_too_many_runs_cost_the_shortest_copies_only():
    unchanged = scattered(64_000, 0.25)  # in 24,000 runs
    cut = plan_copies(unchanged, HUGE, segment=SEGMENT, limits=Limits(8 * MIB, 10_000))
    assert 9_000 < cut.count <= 9_500
    assert sent(cut) < 0.5
    shortest = min(stop - start for start, stop in map(cut.bounds, cut.copied) if stop < HUGE)
    # What was given up is no longer than what is left.
    runs, given_up, part = [], 0, 0
    for index, same in enumerate([*unchanged, False]):
        if same:
            runs.append(index)
        elif runs:
            while cut.stops[part] <= runs[0] * SEGMENT:
                part += 1
            given_up = max(given_up, len(runs) * SEGMENT) if part not in cut.copied else given_up
            runs = []
    assert 0 < given_up <= shortest


def test_a_store_that_wants_equal_parts_copies_those_without_any_change():
    cut = plan_copies(scattered(64_000, 0.062), HUGE, segment=SEGMENT, limits=Limits(8 * MIB, 10_000, equal=True))
    assert cut.bounds(0) == (0, 56 * MIB)
    assert sent(cut) == pytest.approx(0.36, abs=0.02)


def test_a_store_of_a_thousand_parts_gets_most_of_it():
    cut = plan_copies(scattered(64_000, 0.062), HUGE, segment=SEGMENT, limits=Limits(8 * MIB, 1000))
    assert cut.count <= 1000
    assert 0.6 < sent(cut) < 1


def test_a_long_run_is_sent_in_pieces_as_large_as_a_full_upload_s():
    cut = plan_copies([True] * 32_000 + [False] * 32_000, HUGE, segment=SEGMENT, limits=Limits(8 * MIB, 10_000))
    assert len(cut.copied) == 250
    assert {stop - start for start, stop in map(cut.bounds, range(250, cut.count - 1))} == {56 * MIB}


def test_what_no_store_can_take_is_refused_with_the_setting_that_helps():
    with pytest.raises(DucklingError, match=r"s3\.maxParts"):
        plan_copies([True], 11 * MAX_PART, segment=SEGMENT, limits=Limits(8 * MIB, 10), covered=SEGMENT)
