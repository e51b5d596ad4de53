"""All databases at once: what is wrong with any of them, from what is recorded, without a store.

A trouble has an id, by which the notifications know it again: it is the same trouble until it is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from duckling_provider.base.errors import CancelledError, DucklingError
from duckling_provider.base.units import human_days, span
from duckling_provider.oversight.promises import STATES, Standing, standing_of
from duckling_provider.oversight.record import Record, Work, note, read_record, renewed_from

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Installation
    from duckling_provider.stores.store import BackupSource

Kind = Literal[
    "misconfigured",
    "dag",
    "overdue",
    "backup",
    "verify",
    "drill",
    "sync",
    "retention",
    "promise",
    "differs",
    "clock",
]

_FAILED: Mapping[Work, tuple[Kind, str]] = {
    "backup": ("backup", "a backup failed"),
    "verify": ("verify", "a verification failed"),
    "drill": ("drill", "a drill failed"),
    "sync": ("sync", "a sync failed"),
    "cleanup": ("retention", "old backups could not be deleted"),
}
#: That rows of a replica differed, and were repaired, is told for so long.
_DIFFERED = timedelta(days=1)
#: A store is asked again after so long, and at once where nothing recent is known.
_ASK_EVERY = timedelta(hours=6)
_ASK_AGAIN = timedelta(hours=1)
#: At most so many are asked at a time, or the second number as a share of all.
_ASKED_AT_ONCE, _ASKED_SHARE = 20, 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """`text` is a sentence without a full stop, `hint` another one on what to do."""

    database_id: str
    kind: Kind
    text: str
    hint: str = ""

    @property
    def id(self) -> str:
        return f"{self.database_id} {self.kind}"

    def __str__(self) -> str:
        return f"{self.database_id}: {self.text}" + (f". {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Watched:
    """What a look at all databases found: where each stands, the worst first, and all that is wrong."""

    standings: tuple[Standing, ...]
    troubles: tuple[Trouble, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "databases": [standing.as_json() for standing in self.standings],
            "troubles": [
                {"database": t.database_id, "kind": t.kind, "text": t.text, "hint": t.hint or None}
                for t in self.troubles
            ],
        }


@dataclass(frozen=True)
class DagFacts:
    """What Airflow knows of the DAGs of a database: whether that of its backups is there, whether it is paused, and
    whether that of its drills is.
    """

    known: bool = True
    paused: bool = False
    drill_paused: bool = False


def look_at_all(
    installation: Installation,
    *,
    now: datetime,
    dags: Mapping[str, DagFacts] | None = None,
    chosen: Callable[[Database], bool] = lambda _: True,
) -> Watched:
    """Look at every entry, those with mistakes too. One small file is read for each; nothing else is asked.

    :param dags: of the backup DAGs, by database, where Airflow could be asked.
    :param chosen: which of the good entries are meant.
    """
    databases = [database for database in installation.databases if chosen(database)]
    records = {database.id: read_record(database) for database in databases}
    transfers = sorted((t for record in records.values() for t in record.transfers), key=lambda t: t.at)[-10:]
    standings = [standing_of(d, records[d.id], now=now, transfers=transfers) for d in databases]
    standings.sort(key=lambda s: (STATES.index(s.state), -(s.age or 0), s.database.id))
    troubles = [Trouble(p.entry, "misconfigured", p.cause, p.hint or "") for p in installation.problems]
    for standing in standings:
        unknown = DagFacts(known=dags is None)
        troubles += troubles_of(standing, now=now, dag=(dags or {}).get(standing.database.id, unknown))
    return Watched(tuple(standings), tuple(_once(troubles)))


def _once(troubles: Sequence[Trouble]) -> Iterator[Trouble]:
    """One trouble of each id: an entry may have several mistakes."""
    seen: dict[str, Trouble] = {}
    for trouble in troubles:
        known = seen.get(trouble.id)
        seen[trouble.id] = trouble if known is None else replace(known, text=f"{known.text}; {trouble.text}")
    yield from seen.values()


def troubles_of(standing: Standing, *, now: datetime, dag: DagFacts = DagFacts()) -> Iterator[Trouble]:
    """All that is wrong with one database."""
    database, record = standing.database, standing.record
    name = database.id
    if not dag.known:
        yield Trouble(name, "dag", "Airflow has no backup DAG of it", "See Airflow's import errors.")
    elif dag.paused and database.auto_backup:
        yield Trouble(name, "dag", "its backup DAG is paused in Airflow", "Unpause it.")
    if dag.drill_paused and _drills(database):
        yield Trouble(name, "dag", "its drill DAG is paused in Airflow", "Unpause it, or set drillIntervalDays to 0.")
    if standing.state == "no backup":
        hint = "" if record.asked or record.failures else f"duckling status {name} asks the store."
        yield Trouble(name, "overdue", f"nothing could be restored: {standing.reason}", hint)
    elif standing.state == "overdue":
        yield Trouble(
            name,
            "overdue",
            f"the last verified backup is {span(standing.age or 0)} old, and should be no older than "
            f"{span(standing.due or 0)}",
        )
    for work, (kind, what) in _FAILED.items():
        failure = record.failures.get(work)
        if failure is not None:
            yield Trouble(name, kind, f"{what}: {failure.what}", failure.hint or "")
    if "drill" not in record.failures and (late := _late_drill(database, record, now)):
        yield Trouble(name, "drill", late, f"duckling drill {name} makes one; see why duckling_drill__{name} did not.")
    broken = standing.promise.broken(database)
    if broken:
        yield Trouble(name, "promise", "; ".join(broken))
    sync = record.sync
    if sync is not None and sync.differed is not None and now - sync.differed < _DIFFERED:
        yield Trouble(
            name,
            "differs",
            f"the replica differed from MySQL; {sync.differences} rows ever did, and were copied again",
            f"duckling validate {name} --status shows the tables.",
        )
    if record.notes:
        yield Trouble(name, "clock", "; ".join(record.notes))


def _drills(database: Database) -> bool:
    """Whether drills of it are scheduled."""
    return database.s3 is not None and database.drill_interval_days > 0


def _late_drill(database: Database, record: Record, now: datetime) -> str:
    """Since when a drill is due; empty where none is."""
    if not _drills(database):
        return ""
    every = timedelta(days=database.drill_interval_days)
    # As backups, late by a quarter at most; and by a day, since Airflow begins one that it missed within minutes, but
    # a large backup takes its time.
    due = every * 1.25 + timedelta(days=1)
    tested = record.tested.tested if record.tested is not None else None
    since = tested or min((backup.created for backup in record.backups), default=now)
    if now - since <= due:
        return ""
    told = "no backup was ever restored on trial" if tested is None else "the last drill that went well was"
    ago = "" if tested is None else f" {span((now - tested).total_seconds())} ago"
    return f"{told}{ago}, and one is due every {human_days(database.drill_interval_days, zero='')}"


def ask_stores(
    databases: Sequence[Database], open_source: Callable[[Database], BackupSource | None], *, now: datetime
) -> int:
    """Ask some stores what they have, and record it: those first of whose backups nothing recent is known here, as on a
    new host, and the others every six hours. Never all of them at once; how many were asked.

    :param open_source: the store of a database, or None where it has none that can be asked.
    """

    def urgency(item: tuple[Database, Record]) -> tuple[bool, datetime]:
        database, record = item
        never = datetime.min.replace(tzinfo=now.tzinfo)
        return standing_of(database, record, now=now).recoverable, record.asked or never

    waiting = []
    for database in databases:
        record = read_record(database)
        wait = _ASK_EVERY if standing_of(database, record, now=now).recoverable else _ASK_AGAIN
        if record.asked is None or now - record.asked >= wait:
            waiting.append((database, record))
    most = max(_ASKED_AT_ONCE, int(len(databases) * _ASKED_SHARE))
    asked = 0
    for database, _ in sorted(waiting, key=urgency)[:most]:
        try:
            source = open_source(database)
            if source is not None:
                note(database, renewed_from(database, source, now=now))
                asked += 1
        except CancelledError:
            raise
        except DucklingError as error:
            log.warning("%s: its store could not be asked what it has: %s", database.id, error)
    return asked
