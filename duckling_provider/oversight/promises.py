"""Could a database be brought back today, to when, and how long would it take? Pure, from what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from duckling_provider.base.moments import iso
from duckling_provider.base.units import exact_span, span
from duckling_provider.config.databases import Database
from duckling_provider.oversight.record import Record, Transfer, estimated_seconds

State = Literal["no backup", "overdue", "failing", "local only", "protected"]
"""``local only``: the backups are of the promised age, and on the replica's host alone, which takes them with it."""

#: By trouble: where there is nothing to restore, then what is older than it should be, then what will become so.
STATES: tuple[State, ...] = ("no backup", "overdue", "failing", "local only", "protected")

#: What a backup may be late by: its own duration, and a quarter of the interval for a scheduler that is busy or a store
#: that is down for a while; alerts that come too early are switched off.
_GRACE_SHARE = 0.25
_LEAST_GRACE = timedelta(minutes=15)
#: That MySQL's binlog reaches back to a backup is believed for so long after it was asked.
_REACH_LASTS = timedelta(hours=1)

LOCAL_ONLY = "its backups are on its own host only: what takes the replica takes them too"


@dataclass(frozen=True)
class Promise:
    """What a recovery would bring, and whether that is what was promised; None where it is not known, or nothing is.

    :param recoverable_to: the moment of the newest verified backup.
    :param by_binlog: MySQL's binlog brings back all that came after it.
    :param loss: seconds of changes that a recovery now would lose.
    :param seconds: how long it is estimated to take.
    :param verified: when that backup was last proven.
    :param tested: when a drill last restored a backup, which took so many `measured` seconds.
    :param rpo_kept: `loss` is within ``rpoHours``.
    :param rto_kept: `seconds` is within ``rtoMinutes``.
    """

    recoverable_to: datetime | None = None
    by_binlog: bool = False
    loss: float | None = None
    seconds: float | None = None
    verified: datetime | None = None
    tested: datetime | None = None
    measured: float | None = None
    rpo_kept: bool | None = None
    rto_kept: bool | None = None

    @property
    def is_broken(self) -> bool:
        return self.rpo_kept is False or self.rto_kept is False

    def broken(self, database: Database) -> list[str]:
        """A sentence about each promise that is broken."""
        found = []
        if self.rpo_kept is False:
            would = "nothing can be recovered" if self.loss is None else f"{span(self.loss)} would be lost"
            found.append(f"rpoHours is {database.rpo_hours:g}, and {would}")
        if self.rto_kept is False:
            found.append(
                f"rtoMinutes is {database.rto_minutes:g}, and a recovery takes about {exact_span(self.seconds or 0)}"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "recoverableTo": _iso(self.recoverable_to),
            "byBinlog": self.by_binlog,
            "lossSeconds": self.loss,
            "estimatedSeconds": None if self.seconds is None else round(self.seconds, 3),
            "lastVerifiedAt": _iso(self.verified),
            "lastTestedAt": _iso(self.tested),
            "testedSeconds": self.measured,
            "rpoKept": self.rpo_kept,
            "rtoKept": self.rto_kept,
        }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def promise_of(
    database: Database,
    *,
    now: datetime,
    created: datetime | None,
    size: int = 0,
    verified: datetime | None = None,
    record: Record | None = None,
    transfers: Sequence[Transfer] = (),
) -> Promise:
    """:param created: of the newest backup that counts, in whose name it is; None where there is none.
    :param size: of it, in bytes; `verified`: when it was proven.
    :param record: what this host knows beside that: drills, and how far MySQL's binlog reaches.
    :param transfers: the throughput that there was.
    """
    record = record or Record()
    tested = record.tested
    test, measured = (tested.tested, tested.seconds) if tested is not None else (None, None)
    reach = record.reach
    known = next((b for b in record.backups if b.created == created), None)
    by_binlog = (
        reach is not None and known is not None and reach.name == known.name and reach.reaches
        and now - reach.at <= _REACH_LASTS
    )  # fmt: skip
    loss = None if created is None else 0.0 if by_binlog else max(0.0, (now - created).total_seconds())
    seconds = None if created is None else estimated_seconds(size, transfers)
    rpo = rto = None
    if database.rpo_hours:
        rpo = loss is not None and loss <= database.rpo_hours * 3600
    if database.rto_minutes and seconds is not None:
        rto = seconds <= database.rto_minutes * 60
    return Promise(created, by_binlog, loss, seconds, verified, test, measured, rpo, rto)


def due_after(database: Database, took: float = 0.0) -> float | None:
    """Seconds after which the newest verified backup is too old; None where none is scheduled.

    :param took: the seconds that it took.
    """
    if not database.auto_backup:
        return None
    interval = timedelta(hours=database.interval_hours)
    return (interval + max(_LEAST_GRACE, interval * _GRACE_SHARE)).total_seconds() + took


def state_of(database: Database, *, age: float | None, due: float | None, failing: bool) -> State:
    """:param age: seconds since the newest backup that counts was made; None where there is none.
    :param due: see `due_after`.
    :param failing: the newest backup or verification failed.
    """
    if age is None:
        return "no backup"
    if due is not None and age > due:
        return "overdue"
    if failing:
        return "failing"
    return "protected" if database.s3 is not None else "local only"


@dataclass(frozen=True)
class Standing:
    """Where a database stands by its record: `reason` is a sentence, empty where all is well; `age` and `due` in
    seconds, see `state_of`.
    """

    database: Database
    record: Record
    state: State
    reason: str
    age: float | None
    due: float | None
    promise: Promise

    @property
    def recoverable(self) -> bool:
        """Whether there is a verified backup that is no older than the schedule promises."""
        return self.state in ("protected", "local only", "failing")

    def as_json(self) -> dict[str, Any]:
        newest = self.record.newest
        return {
            "id": self.database.id,
            "state": self.state,
            "reason": self.reason,
            "age": self.age,
            "due": self.due,
            "lastVerifiedKey": newest.key if newest else None,
            "lastVerifiedSize": newest.size if newest else None,
            **self.promise.as_json(),
        }


def standing_of(database: Database, record: Record, *, now: datetime, transfers: Sequence[Transfer] = ()) -> Standing:
    """:param transfers: where the record has none: those of the whole host."""
    newest = record.newest
    age = None if newest is None else max(0.0, (now - newest.created).total_seconds())
    due = due_after(database)
    failure = record.failures.get("backup") or record.failures.get("verify") or record.failures.get("drill")
    state = state_of(database, age=age, due=due, failing=failure is not None)
    promise = promise_of(
        database,
        now=now,
        created=newest.created if newest else None,
        size=newest.size if newest else 0,
        verified=newest.at if newest else None,
        record=record,
        transfers=record.transfers or transfers,
    )
    if failure is not None:
        reason = failure.what
    elif state == "no backup":
        reason = "no verified backup is known" if record.asked else "nothing is recorded of it on this host"
    elif state == "overdue":
        reason = "no backup since then"
    else:
        reason = LOCAL_ONLY if state == "local only" else ""
    return Standing(database, record, state, reason, age, due, promise)
