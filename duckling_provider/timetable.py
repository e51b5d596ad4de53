"""The schedule "every so many hours", staggered by database.

Airflow's own timetable of a `timedelta` knows no such moment: without catchup, the first run is due when the DAG is
first seen, whatever its `start_date`, and all later ones at that distance. A thousand entries of one file would be
backed up in the same second, every day, and again after each outage.

Here the moments are counted from 1970, with an offset made of the database's id, so they are the same in every process,
after every restart, and for any interval.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.timetables.base import DagRunInfo, DataInterval, Timetable
from pendulum import DateTime, instance

from duckling_provider.base.units import interval_words

if TYPE_CHECKING:
    from airflow.timetables.base import TimeRestriction

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DAY = timedelta(days=1)

#: Over this long those are spread that are due already: new entries, and after an outage the ones that were missed.
SPREAD = timedelta(minutes=15)
#: A moment counts as present for so long: Airflow asks again at each parse, also between the moment and its run.
_GRACE = timedelta(minutes=1)


class StaggeredTimetable(Timetable):
    """One run each `interval`, at moments that depend on the key; a new or overdue one within `SPREAD`.

    :param interval: more than zero.
    :param share: where in the interval, from 0 to 1; see `for_key`.
    """

    def __init__(self, interval: timedelta, share: float) -> None:
        self.interval = interval
        self.share = share
        self.description = self._describe()

    @classmethod
    def for_key(cls, interval: timedelta, key: str) -> StaggeredTimetable:
        """:param key: the database's id; equal keys have equal moments, different ones lie apart."""
        digest = hashlib.sha256(key.encode()).digest()
        return cls(interval, int.from_bytes(digest[:4], "big") / 2**32)

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Timetable:
        return cls(timedelta(seconds=data["interval"]), data["share"])

    def serialize(self) -> dict[str, Any]:
        return {"interval": self.interval.total_seconds(), "share": self.share}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaggeredTimetable) and other.serialize() == self.serialize()

    def __hash__(self) -> int:
        return hash((self.interval, self.share))

    @property
    def summary(self) -> str:
        return f"every {interval_words(self.interval)}"

    def _describe(self) -> str:
        """What the UI shows of it: the times of day, where they are the same every day."""
        text = self.summary.capitalize()
        if self.interval > _DAY or _DAY % self.interval or self.interval < timedelta(hours=1):
            return f"{text}, each database at its own time"
        first = _EPOCH + self._phase(self.interval)
        at = "at" if self.interval == _DAY else "beginning at"
        return f"{text}, {at} {first:%H:%M} UTC"

    def infer_manual_data_interval(self, *, run_after: DateTime) -> DataInterval:
        return DataInterval.exact(run_after)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        now = datetime.now(timezone.utc)
        width = min(self.interval, SPREAD)
        soon = self._first(width, now - min(_GRACE, width / 3))
        if restriction.catchup:
            return self._regular(last_automated_data_interval, restriction)
        if last_automated_data_interval is None:
            moment = soon
        else:
            moment = self._first(self.interval, last_automated_data_interval.end + timedelta(microseconds=1))
            # What was missed is made up for once; a regular moment that comes before that does as well.
            if moment < now - min(_GRACE, width / 3):
                moment = soon
        if restriction.earliest is not None:
            moment = max(moment, self._first(self.interval, restriction.earliest))
        return _run_at(moment, restriction)

    def _regular(self, last: DataInterval | None, restriction: TimeRestriction) -> DagRunInfo | None:
        """Every moment of the past, one after the other: a backfill asks for them. Our DAGs have no catchup."""
        starts = [last.end + timedelta(microseconds=1)] if last is not None else []
        starts += [restriction.earliest] if restriction.earliest is not None else []
        return _run_at(self._first(self.interval, max(starts)), restriction) if starts else None

    def _phase(self, interval: timedelta) -> timedelta:
        return timedelta(milliseconds=int(interval.total_seconds() * 1000 * self.share))

    def _first(self, interval: timedelta, start: datetime) -> datetime:
        """The first moment at or after `start`."""
        origin = _EPOCH + self._phase(interval)
        start = datetime.fromisoformat(start.isoformat())  # pendulum's can't be divided
        return origin + -((origin - start) // interval) * interval


def _run_at(moment: datetime, restriction: TimeRestriction) -> DagRunInfo | None:
    if restriction.latest is not None and moment > restriction.latest:
        return None
    return DagRunInfo.exact(instance(moment))
