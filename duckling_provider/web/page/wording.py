"""How moments, spans, sizes and states are written for people; pure. The templates' filters come from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from duckling_provider.base import units
from duckling_provider.base.moments import readable
from duckling_provider.config.databases import Database
from duckling_provider.web.services.records import Sync
from duckling_provider.web.services.status import Status

#: What a state of an overview row means, for its badge's tooltip and for the legend.
MEANING: Mapping[str, str] = {
    "misconfigured": "The entry in databases.json has a mistake, so it has no DAGs and gets no backups.",
    "no backup": "There is no verified backup to restore.",
    "overdue": "The last verified backup is older than the schedule promises.",
    "failing": "There is a verified backup of the promised age, but the newest backup or verification failed.",
    "local only": "There is a backup of the promised age, but on the replica's own host only, which takes it along.",
    "protected": "There is a verified backup of the promised age.",
}


def span(seconds: float | None) -> str:
    """As `units.span`; empty for None, which a template may have."""
    return "" if seconds is None else units.span(seconds)


def took(seconds: float | None) -> str:
    """As `units.exact_span`; empty for None."""
    return "" if seconds is None else units.exact_span(seconds)


def milliseconds(count: float | None) -> str:
    return "" if count is None else took(count / 1000)


def size(count: float | None) -> str:
    return "" if count is None else units.human_bytes(count)


def utc(moment: datetime) -> str:
    """``2025-03-01 14:32:11 UTC``; the page's script puts it into the time zone that Airflow shows."""
    return f"{readable(moment)} UTC"


def machine(moment: datetime) -> str:
    """For ``<time datetime>``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def until(moment: datetime, now: datetime) -> str:
    """``in 3 h 10 min``, or ``due now``."""
    seconds = (moment - now).total_seconds()
    return f"in {units.span(seconds)}" if seconds >= 1 else "due now"


def schedule(database: Database) -> str:
    if not database.auto_backup:
        return "none (AUTO_BACKUP is off)"
    hours = database.interval_hours
    return "every hour" if hours == 1 else f"every {hours:g} h"


def target(database: Database) -> str:
    s3 = database.s3
    return f"s3://{s3.bucket}/{s3.path_prefix}" if s3 is not None else "local backups only"


def store_place(database: Database) -> str:
    """Where that bucket is."""
    s3 = database.s3
    if s3 is None:
        return ""
    return s3.endpoint.partition("://")[2] if s3.endpoint else s3.region


def mode(name: str) -> str:
    """An encryption mode in a table."""
    return "not encrypted" if name == "none" else name


def standing(status: Status) -> str:
    """One sentence on whether the database could be brought back now."""
    if status.state == "no backup":
        return f"Nothing could be restored: {status.reason.rstrip('.') or 'there is no verified backup'}."
    age, due = span(status.age), span(status.due)
    if status.state == "overdue":
        return f"The last verified backup is {age} old, and should be no older than {due}: {status.reason.rstrip('.')}."
    if status.state == "failing":
        return (
            f"The last verified backup is {age} old and could be restored, but the newest run failed: {status.reason}"
        )
    promise = f", and the schedule promises one no older than {due}" if status.due is not None else ""
    reason = f" {status.reason[:1].upper()}{status.reason[1:]}." if status.reason else ""
    return f"It could be brought back now: the last verified backup is {age} old{promise}.{reason}"


def recoverable(status: Status) -> str:
    """To when it could be recovered, and how long that would take."""
    promise = status.promise
    if promise.recoverable_to is None:
        return "to nothing"
    takes = f", in {units.about(promise.seconds)}" if promise.seconds is not None else ""
    to = "until now, by MySQL's binlog" if promise.by_binlog else f"to {utc(promise.recoverable_to)}"
    return f"{to}{takes}"


def promises(status: Status) -> str:
    """Which promises are kept, and which are broken, and by how much; empty where none were made."""
    database, promise = status.database, status.promise
    told = promise.broken(database)
    if promise.rpo_kept:
        told.append(f"to lose at most {database.rpo_hours:g} h: kept")
    if promise.rto_kept:
        told.append(f"to take at most {database.rto_minutes:g} min: kept")
    return "; ".join(told)


def differences(sync: Sync) -> str:
    """What was ever found to differ between replica and MySQL."""
    count = sync.differences
    if not count:
        return ""
    last = f", the last on {utc(sync.differed)}" if sync.differed is not None else ""
    rows = "1 row of the replica was" if count == 1 else f"{count} rows of the replica were"
    return f"{rows} found to differ from MySQL and copied again{last}. _duckling.history in the replica has the tables."


def summary(*, total: int, lost: int, broken: int = 0) -> str:
    """The sentences on top of the overview.

    :param lost: of `total`, those that could not be recovered as scheduled.
    :param broken: those of which ``rpoHours`` or ``rtoMinutes`` is broken.
    """
    found = _summary(total, lost)
    return found if not broken else f"{found} {broken} {'breaks' if broken == 1 else 'break'} a promise."


def _summary(total: int, lost: int) -> str:
    if total == 0:
        return "databases.json has no entries yet."
    if lost == 0:
        which = {1: "The one database", 2: "Both databases"}.get(total, f"All {total} databases")
        return f"{which} {'has' if total == 1 else 'have'} a sufficiently recent verified backup."
    if total == 1:
        return "The one database has no sufficiently recent verified backup."
    return f"{lost} of {total} databases {'has' if lost == 1 else 'have'} no sufficiently recent verified backup."


def filters() -> dict[str, Callable[..., str]]:
    return {
        "span": span,
        "took": took,
        "about": units.about,
        "ago": units.ago,
        "milliseconds": milliseconds,
        "size": size,
        "utc": utc,
        "machine": machine,
        "mode": mode,
        "until": until,
        "days": units.human_days,
        "target": target,
        "store_place": store_place,
        "schedule": schedule,
        "standing": standing,
        "differences": differences,
        "recoverable": recoverable,
        "promises": promises,
    }
