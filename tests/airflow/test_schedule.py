"""When scheduled DAGs run: at a moment of each database's own."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest
from pendulum import instance

pytestmark = pytest.mark.airflow

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
IDS = [f"shop-{number}" for number in range(1000)]


def staggered(interval, key):
    """Not imported above: each process that collects this file would import Airflow."""
    from duckling_provider.timetable import StaggeredTimetable

    return StaggeredTimetable.for_key(interval, key)


@pytest.fixture
def clock(monkeypatch):
    """``clock(moment)`` sets the time that timetables see, NOW unless it is called."""

    def at(moment):
        plain = datetime.fromisoformat(moment.isoformat())

        class Clock(datetime):
            @classmethod
            def now(cls, _tz):
                return plain

        monkeypatch.setattr("duckling_provider.timetable.datetime", Clock)

    at(NOW)
    return at


def due(schedule, last=None, earliest=datetime(2024, 1, 1, tzinfo=timezone.utc)):
    """The next run after one at `last`."""
    from airflow.timetables.base import DataInterval, TimeRestriction

    before = None if last is None else DataInterval.exact(instance(last))
    found = schedule.next_dagrun_info(
        last_automated_data_interval=before,
        restriction=TimeRestriction(earliest=instance(earliest), latest=None, catchup=False),
    )
    return found.run_after


@pytest.mark.parametrize("hours", [0.25, 1, 5, 7, 24, 36, 100])
def test_runs_are_exactly_one_interval_apart_whatever_it_is(clock, hours):
    interval = timedelta(hours=hours)
    schedule = staggered(interval, "shop")
    moment = due(schedule, last=NOW)
    for _ in range(200):
        assert moment > NOW - timedelta(minutes=1)
        clock(moment + timedelta(seconds=3))
        following = due(schedule, last=moment)
        assert following - moment == interval
        moment = following


@pytest.mark.usefixtures("clock")
def test_a_thousand_databases_are_spread_over_the_interval():
    moments = [due(staggered(timedelta(hours=24), name), last=NOW) for name in IDS]
    assert all(NOW < moment <= NOW + timedelta(hours=24) for moment in moments)
    assert max(Counter(moment.replace(microsecond=0) for moment in moments).values()) <= 3
    assert max(Counter(moment.hour for moment in moments).values()) < 80


@pytest.mark.usefixtures("clock")
def test_a_thousand_new_entries_begin_within_a_quarter_of_an_hour_but_not_at_once():
    from duckling_provider.timetable import SPREAD

    moments = [due(staggered(timedelta(hours=24), name)) for name in IDS]
    assert max(moments) <= NOW + SPREAD
    assert sum(moment <= NOW for moment in moments) < 100
    assert max(Counter(moment.replace(microsecond=0) for moment in moments if moment > NOW).values()) <= 8


def test_after_an_outage_what_was_missed_is_made_up_for_soon_and_spread(clock):
    from duckling_provider.timetable import SPREAD

    day = timedelta(hours=24)
    schedules = [staggered(day, name) for name in IDS]
    clock(NOW - 3 * day)
    last = [due(schedule, last=NOW - 3 * day) for schedule in schedules]
    clock(NOW)
    moments = [due(schedule, last=moment) for schedule, moment in zip(schedules, last, strict=True)]
    assert all(NOW - timedelta(minutes=1) <= moment <= NOW + SPREAD for moment in moments)
    assert sum(moment <= NOW for moment in moments) < 100
    # And once only: the next is a regular one.
    clock(NOW + SPREAD)
    again = [due(schedule, last=moment) for schedule, moment in zip(schedules, moments, strict=True)]
    assert all(moment > NOW + SPREAD - timedelta(minutes=1) for moment in again)


def test_a_moment_that_has_just_passed_is_still_the_one(clock):
    """Airflow asks again at each parse; a parse between the moment and its run must not put it off."""
    schedule = staggered(timedelta(hours=24), "shop")
    for last in (None, NOW - timedelta(hours=24)):
        moment = due(schedule, last=last)
        clock(moment + timedelta(seconds=50))
        assert due(schedule, last=last) == moment
        clock(NOW)


def test_a_backfill_has_every_moment_of_its_range_and_no_other(clock):
    from airflow.timetables.base import TimeRestriction

    schedule = staggered(timedelta(hours=24), "shop")
    start, stop = datetime(2019, 5, 1, tzinfo=timezone.utc), datetime(2019, 5, 4, tzinfo=timezone.utc)
    restriction = TimeRestriction(earliest=instance(start), latest=instance(stop), catchup=True)
    found, last = [], None
    while info := schedule.next_dagrun_info(last_automated_data_interval=last, restriction=restriction):
        found.append(info.run_after)
        last = info.data_interval
    assert [start <= moment <= stop for moment in found] == [True] * 3
    assert len({moment.time() for moment in found}) == 1
    nowhere = TimeRestriction(earliest=None, latest=None, catchup=True)
    assert schedule.next_dagrun_info(last_automated_data_interval=None, restriction=nowhere) is None


def test_a_changed_interval_counts_from_the_last_run(clock):
    last = due(staggered(timedelta(hours=24), "shop"), last=NOW)
    clock(last + timedelta(seconds=5))
    assert last < due(staggered(timedelta(hours=2), "shop"), last=last) <= last + timedelta(hours=2)


def test_moments_are_the_same_in_every_process():
    # Python's own hash() is another number in each.
    assert staggered(timedelta(hours=7), "shop").share == 0.5529786243569106


@pytest.mark.parametrize(
    "interval, summary, description",
    [
        (timedelta(hours=24), "every 24 hours", "Every 24 hours, at 13:16 UTC"),
        (timedelta(hours=6), "every 6 hours", "Every 6 hours, beginning at 03:19 UTC"),
        (timedelta(hours=1), "every hour", "Every hour, beginning at 00:33 UTC"),
        (timedelta(hours=7), "every 7 hours", "Every 7 hours, each database at its own time"),
        (timedelta(minutes=15), "every 15 minutes", "Every 15 minutes, each database at its own time"),
        (timedelta(hours=1.5), "every 1.5 hours", "Every 1.5 hours, beginning at 00:49 UTC"),
        (timedelta(seconds=1), "every second", "Every second, each database at its own time"),
    ],
)
def test_people_can_read_it(interval, summary, description):
    schedule = staggered(interval, "shop")
    assert (schedule.summary, schedule.description) == (summary, description)


def test_it_survives_airflows_database(installation, parse_dags):
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # Airflow 3.1
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    installation.write(installation.entry("a"))
    for dag in parse_dags().dags.values():
        stored = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
        if dag.dag_id.startswith("duckling_restore"):
            assert not stored.timetable.can_be_scheduled
        else:
            assert stored.timetable == dag.schedule
            assert stored.timetable.summary in {"every 24 hours", "every 15 minutes"}
