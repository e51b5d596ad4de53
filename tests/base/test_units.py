"""Spans of time, as the log, the command line and the page show them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from duckling_provider.base.units import ago, human_days, interval_words, short_about, short_ago, short_span

NOW = datetime(2025, 3, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "seconds,text",
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d"), (9e6, "104 d")],
)
def test_a_short_span_has_one_unit(seconds, text):
    assert short_span(seconds) == text


def test_no_estimate_is_shown_as_nothing():
    assert [short_about(seconds) for seconds in (0, 0.84, 1, 130)] == ["< 1 s", "< 1 s", "1 s", "2 min"]


def test_a_moment_ahead_of_the_clock_is_no_age():
    later = NOW + timedelta(minutes=5)
    assert (short_ago(later, NOW), ago(later, NOW)) == ("in the future", "just now")


def test_an_age_is_told_briefly_in_a_table_and_in_two_units_elsewhere():
    earlier = NOW - timedelta(hours=3, minutes=10)
    assert (short_ago(earlier, NOW), ago(earlier, NOW)) == ("3 h ago", "3 h 10 min ago")


@pytest.mark.parametrize(
    "interval,words",
    [
        (timedelta(hours=1), "hour"),
        (timedelta(hours=6), "6 hours"),
        (timedelta(minutes=90), "1.5 hours"),
        (timedelta(minutes=1), "minute"),
        (timedelta(seconds=1.5), "1.5 seconds"),
        (timedelta(milliseconds=250), "0.25 seconds"),
    ],
)
def test_an_interval_reads_well_after_every(interval, words):
    assert interval_words(interval) == words


@pytest.mark.parametrize("count,text", [(0, "for ever"), (1.0, "1 day"), (7.0, "7 days"), (0.5, "0.5 days")])
def test_days_are_counted_and_none_has_a_meaning(count, text):
    assert human_days(count, zero="for ever") == text
