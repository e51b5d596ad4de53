"""What runs recorded about each database, read from Airflow's metadata database in a handful of queries.

No store is asked: a backup counts as verified because the task that read it back left its result. So the page of 500
databases, health and metrics cost a few queries and no request to S3. Backups made by the command line are not in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, func, or_, select

from duckling_provider.backup.names import parse_name
from duckling_provider.base.errors import ErrorRecord, sentences
from duckling_provider.dags.ids import CLEANUP, KINDS, SNAPSHOT, SYNC, UPLOAD, VERIFY, Kind, dag_id, parse_dag_id
from duckling_provider.tasks.results import RunResults, Transferred
from duckling_provider.tasks.run import ERROR_KEY

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from duckling_provider.config.databases import Database

_RESULT = "return_value"
#: Of results whose backup was deleted by hand.
_DELETED = "deleted"
_ACTIVE = ("queued", "running")
#: Databases of one round of queries; a database has four DAGs, and drivers allow some ten thousand parameters.
_AT_ONCE = 2000


@dataclass(frozen=True)
class Run:
    """One run of one of our DAGs. `error` is what a task recorded when it failed: ``kind``, ``what``, ``hint``."""

    kind: Kind
    dag_id: str
    run_id: str
    state: str
    queued: datetime | None
    start: datetime | None
    end: datetime | None
    conf: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorRecord | None = None

    @property
    def active(self) -> bool:
        return self.state in _ACTIVE

    @property
    def duration_ms(self) -> int | None:
        """From the start of its first task to the end of its last."""
        return None if self.start is None or self.end is None else int((self.end - self.start).total_seconds() * 1000)

    @property
    def reason(self) -> str:
        """Why it failed, for people; empty when it did not."""
        if self.state != "failed":
            return ""
        if self.error is None:
            return "the run failed; its log says why"
        return sentences(self.error)


@dataclass(frozen=True)
class Backup:
    """One backup that a run made: sizes in bytes, `duration_ms` of the whole run; `verified` is when it was proven."""

    key: str
    created: datetime
    size: int
    mode: str
    verified: datetime | None
    duration_ms: int | None = None
    run_id: str = ""


@dataclass(frozen=True)
class Sync:
    """Where the last completed sync ended: `lag` in seconds at the time `at`."""

    at: datetime
    lag: float
    position: str | None
    recopy: tuple[str, ...] = ()

    def lag_now(self, now: datetime) -> float:
        """Seconds that the replica is behind at the most: what MySQL wrote since then was not seen yet."""
        return self.lag + max(0.0, (now - self.at).total_seconds())


@dataclass(frozen=True)
class Results:
    """What the tasks of one run left, and when each did."""

    values: RunResults = field(default_factory=RunResults)
    at: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """All about one database; what never was is None."""

    database_id: str
    verified: Backup | None = None
    backup: Run | None = None  #: the last finished run
    restore: Run | None = None
    verify: Run | None = None
    sync: Sync | None = None
    sync_run: Run | None = None
    active: tuple[Run, ...] = ()  #: queued or running; those of the sync are left out
    next_backup: datetime | None = None
    paused: frozenset[Kind] = frozenset()
    known: frozenset[Kind] = frozenset()  #: the DAGs that Airflow has


def read_records(session: Session, databases: Sequence[Database]) -> dict[str, Record]:
    """The records of `databases`, by id. Some six queries for any number of them."""
    found: dict[str, Record] = {}
    for start in range(0, len(databases), _AT_ONCE):
        found |= _read(session, databases[start : start + _AT_ONCE])
    return found


def _read(session: Session, databases: Sequence[Database]) -> dict[str, Record]:
    ids = {dag_id(kind, database.id): (kind, database.id) for database in databases for kind in KINDS}
    dags = _dags(session, ids)
    newest: dict[str, dict[str, int]] = {}
    for name, state, run in session.execute(
        select(DagRun.dag_id, DagRun.state, func.max(DagRun.id))
        .where(DagRun.dag_id.in_(dags))
        .group_by(DagRun.dag_id, DagRun.state)
    ):
        newest.setdefault(name, {})[str(state)] = run
    verified = _verified_runs(session, [d for d in databases if dag_id("backup", d.id) in dags])
    wanted = {run for states in newest.values() for run in states.values()} | set(verified.values())
    runs, results = _runs(session, wanted)

    records = {}
    for database in databases:
        names = {kind: dag_id(kind, database.id) for kind in KINDS}

        def last(kind: Kind, *states: str, names: Mapping[Kind, str] = names) -> Run | None:
            numbers = newest.get(names[kind], {})
            number = max((numbers[state] for state in states if state in numbers), default=None)
            return None if number is None else runs.get(number)

        active = (last(kind, state) for kind in KINDS if kind != "sync" for state in _ACTIVE)
        synced = newest.get(names["sync"], {}).get("success")
        records[database.id] = Record(
            database.id,
            verified=_newest_backup(
                _backup_of(runs[run], results.get(run, Results()), local=database.s3 is None)
                for kind in ("backup", "verify")
                if (run := verified.get(names[kind])) in runs and run is not None
            ),
            backup=last("backup", "success", "failed"),
            restore=last("restore", "success", "failed"),
            verify=last("verify", "success", "failed"),
            sync=_sync_of(results.get(synced, Results())) if synced is not None else None,
            sync_run=last("sync", "success", "failed"),
            active=tuple(run for run in active if run is not None),
            next_backup=dags[names["backup"]].next_dagrun_create_after if names["backup"] in dags else None,
            paused=frozenset(kind for kind, name in names.items() if name in dags and dags[name].is_paused),
            known=frozenset(kind for kind, name in names.items() if name in dags),
        )
    return records


def read_history(session: Session, database: Database, *, limit: int = 100) -> tuple[list[Run], list[Backup]]:
    """The newest runs of a database's backups, restores and verifications, and the backups that those made and did not
    clean up, each newest first.

    :param limit: of runs.
    """
    names = [dag_id(kind, database.id) for kind in KINDS if kind != "sync"]
    numbers = session.scalars(
        select(DagRun.id).where(DagRun.dag_id.in_(names)).order_by(DagRun.id.desc()).limit(limit)
    ).all()
    runs, results = _runs(session, set(numbers))
    backups: dict[str, Backup] = {}
    for number in sorted(runs):
        backup = _backup_of(runs[number], results.get(number, Results()), local=database.s3 is None)
        if backup is None:
            continue
        earlier = backups.get(backup.key)
        if earlier is None or runs[number].kind == "backup":
            backups[backup.key] = backup
        elif backup.verified is not None:
            backups[backup.key] = replace(earlier, verified=backup.verified)
    for result in results.values():
        deleted = result.values.get(CLEANUP)
        if deleted is not None:
            for key in deleted["local"] if database.s3 is None else deleted["s3"]:
                backups.pop(key, None)
    ordered = sorted(backups.values(), key=lambda b: b.created, reverse=True)
    return [runs[number] for number in sorted(runs, reverse=True)], ordered


def forget_backup(session: Session, database_id: str, key: str) -> None:
    """Let no run vouch any more for a backup that was deleted: the results that name it stay, under another key.

    :param key: in full.
    """
    names = [dag_id("backup", database_id), dag_id("verify", database_id)]
    rows = session.scalars(
        select(XComModel).where(
            XComModel.dag_id.in_(names), XComModel.task_id.in_((UPLOAD, VERIFY)), XComModel.key == _RESULT
        )
    )
    for row in rows.all():
        value = XComModel.deserialize_value(row)
        if isinstance(value, dict) and value.get("key") == key:
            row.key = _DELETED


def read_run(session: Session, dag: str, run_id: str) -> tuple[Run, RunResults, list[TaskInstance]] | None:
    """One run, the results of its tasks, and the tasks in the order in which they began; None when there is none."""
    number = session.scalar(select(DagRun.id).where(DagRun.dag_id == dag, DagRun.run_id == run_id))
    if number is None or parse_dag_id(dag) is None:
        return None
    # Before the run itself, for the same reason as in `_runs`.
    tasks = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == dag, TaskInstance.run_id == run_id)).all()
    runs, results = _runs(session, {number})
    ordered = sorted(tasks, key=lambda task: (task.start_date is None, task.start_date or task.task_id, task.task_id))
    return runs[number], results.get(number, Results()).values, ordered


def active_runs(session: Session, database_id: str, kinds: Iterable[Kind]) -> list[Run]:
    """The runs of these DAGs that are queued or running, the oldest first."""
    names = [dag_id(kind, database_id) for kind in kinds]
    numbers = session.scalars(select(DagRun.id).where(DagRun.dag_id.in_(names), DagRun.state.in_(_ACTIVE))).all()
    runs, _ = _runs(session, set(numbers))
    return [runs[number] for number in sorted(runs)]


# ---- rows into records -------------------------------------------------------------------------------------


def _dags(session: Session, ids: Iterable[str]) -> dict[str, Any]:
    query = select(DagModel.dag_id, DagModel.is_paused, DagModel.next_dagrun_create_after).where(
        DagModel.dag_id.in_(list(ids)), DagModel.is_stale.is_(False)
    )
    return {row.dag_id: row for row in session.execute(query)}


def _verified_runs(session: Session, databases: Sequence[Database]) -> dict[str, int]:
    """By DAG, the newest run whose verification succeeded; without S3 a snapshot is its own proof."""
    remote = [dag_id(kind, d.id) for d in databases if d.s3 is not None for kind in ("backup", "verify")]
    local = [dag_id("backup", d.id) for d in databases if d.s3 is None]
    query = (
        select(XComModel.dag_id, func.max(XComModel.dag_run_id))
        .where(
            XComModel.key == _RESULT,
            or_(
                and_(XComModel.task_id == VERIFY, XComModel.dag_id.in_(remote)),
                and_(XComModel.task_id == SNAPSHOT, XComModel.dag_id.in_(local)),
            ),
        )
        .group_by(XComModel.dag_id)
    )
    return {name: run for name, run in session.execute(query)}  # noqa: C416 - rows are no pairs for `dict`


def _runs(session: Session, numbers: set[int]) -> tuple[dict[int, Run], dict[int, Results]]:
    """Runs by number, and by number what their tasks left."""
    if not numbers:
        return {}, {}
    # What tasks leave is there before their run ends: read in the other order, a run that ends in between has ended
    # without a reason.
    rows = session.execute(
        select(
            DagRun.id,
            DagRun.dag_id,
            DagRun.run_id,
            DagRun.state,
            DagRun.queued_at,
            DagRun.start_date,
            DagRun.end_date,
            DagRun.conf,
        ).where(DagRun.id.in_(numbers))
    ).all()
    values: dict[int, dict[str, Any]] = {}
    times: dict[int, dict[str, datetime]] = {}
    errors: dict[int, ErrorRecord] = {}
    left = session.execute(
        select(XComModel.dag_run_id, XComModel.task_id, XComModel.key, XComModel.value, XComModel.timestamp)
        .where(XComModel.dag_run_id.in_(numbers), XComModel.key.in_((_RESULT, ERROR_KEY)))
        .order_by(XComModel.timestamp)
    )
    for row in left:
        value = XComModel.deserialize_value(row)
        if not isinstance(value, dict):
            continue
        if row.key == ERROR_KEY:
            errors[row.dag_run_id] = cast("ErrorRecord", value)
        else:
            values.setdefault(row.dag_run_id, {})[row.task_id] = value
            times.setdefault(row.dag_run_id, {})[row.task_id] = row.timestamp
    results = {run: Results(cast("RunResults", left), times[run]) for run, left in values.items()}
    runs = {}
    for run in rows:
        parsed = parse_dag_id(run.dag_id)
        if parsed is not None:
            runs[run.id] = Run(
                parsed[0],
                run.dag_id,
                run.run_id,
                str(run.state),
                run.queued_at,
                run.start_date,
                run.end_date,
                run.conf if isinstance(run.conf, dict) else {},
                errors.get(run.id),
            )
    return runs, results


def _backup_of(run: Run, results: Results, *, local: bool) -> Backup | None:
    """The backup that a run made or, of a verification, looked at.

    :param local: the database has no S3: its backup is the snapshot, which was proven while it was taken.
    """
    if run.kind not in ("backup", "verify"):
        return None
    values = results.values
    proof = SNAPSHOT if local else VERIFY
    verified: Transferred | None = values.get(SNAPSHOT) if local else values.get(VERIFY)
    made = verified if local or run.kind == "verify" else values.get(UPLOAD)
    key = "" if made is None else made.get("key", "")
    created = parse_name(key.rpartition("/")[2])
    if made is None or created is None:
        return None
    return Backup(
        key,
        created,
        made.get("size", 0),
        str(made.get("mode", "none")),
        results.at[proof] if verified is not None and verified.get("key") == key else None,
        run.duration_ms if run.kind == "backup" else None,
        run.run_id,
    )


def _newest_backup(backups: Iterator[Backup | None]) -> Backup | None:
    return max((b for b in backups if b is not None), key=lambda b: b.created, default=None)


def _sync_of(results: Results) -> Sync | None:
    result = results.values.get(SYNC)
    if result is None or "lag" not in result:
        return None
    return Sync(results.at[SYNC], result["lag"], result.get("position"), tuple(result.get("recopy", ())))
