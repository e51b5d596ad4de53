"""The records of runs, read from Airflow's metadata database in a handful of queries.

No store is asked: so the page of 500 databases, health and metrics cost a few queries and no request to S3. Backups
made by the command line are not in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, func, or_, select

from duckling_provider.base.errors import ErrorRecord, sentences
from duckling_provider.dags.ids import CLEANUP, DRILL, KINDS, SNAPSHOT, UPLOAD, VERIFY, Kind, dag_id, parse_dag_id
from duckling_provider.tasks.results import RunResults
from duckling_provider.tasks.run import ERROR_KEY
from duckling_provider.web.services.records import (
    ACTIVE,
    READING,
    Backup,
    Record,
    Results,
    Run,
    Wait,
    backup_of,
    counting,
    failures_of,
    notes_of,
    sync_of,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from duckling_provider.config.databases import Database

_RESULT = "return_value"
#: Of results whose backup was deleted by hand.
_DELETED = "deleted"
#: Databases of one round of queries; a database has five DAGs, and drivers allow some ten thousand parameters.
_AT_ONCE = 2000
#: The badge of a run whose task will be tried again.
RETRY = "waits for a retry"
#: Proofs of one DAG that are looked at: more than somebody makes by hand between two scheduled backups.
_PROOFS = 5
#: For so long a run or a task may be queued without a word about it.
_PATIENCE = timedelta(minutes=5)


def read_records(session: Session, databases: Sequence[Database]) -> dict[str, Record]:
    """The records of `databases`, by id. Some six queries for any number of them."""
    found: dict[str, Record] = {}
    for start in range(0, len(databases), _AT_ONCE):
        found |= _read(session, databases[start : start + _AT_ONCE])
    return found


def _read(session: Session, databases: Sequence[Database]) -> dict[str, Record]:
    ids = {dag_id(kind, database.id): (kind, database.id) for database in databases for kind in KINDS}
    dags = _dags(session, ids)
    newest = _newest_by_state(session, dags)
    proofs, uploads = _result_runs(session, [d for d in databases if dag_id("backup", d.id) in dags])
    since = min((proof.at for found in proofs.values() for proof in found), default=None)
    verifying = [name for name, (kind, _) in ids.items() if kind in READING]
    suspects = set() if since is None else _failed_verifications(session, verifying, since)
    wanted = {run for states in newest.values() for run in states.values()} | suspects
    wanted |= {proof.run for found in proofs.values() for proof in found} | set(uploads.values())
    runs, results = _runs(session, wanted)

    records = {}
    for database in databases:
        names = {kind: dag_id(kind, database.id) for kind in KINDS}

        def last(kind: Kind, *states: str, names: Mapping[Kind, str] = names) -> Run | None:
            numbers = newest.get(names[kind], {})
            found = [(runs[numbers[state]].end, numbers[state]) for state in states if numbers.get(state) in runs]
            # By time: a run that was cleared and ran again is newer than its number.
            return runs[max(found, key=_by_time)[1]] if found else None

        active = [run for kind in KINDS for state in ACTIVE if (run := last(kind, state)) is not None]
        synced = newest.get(names["sync"], {}).get("success")
        made = [
            backup
            for kind in ("backup", *READING)
            for run in [proof.run for proof in proofs.get(names[kind], []) if proof.run in runs]
            if (backup := backup_of(runs[run], results.get(run, Results()), local=database.s3 is None)) is not None
        ]
        reading = {names[kind] for kind in READING}
        own = [run for number, run in runs.items() if number in suspects and run.dag_id in reading]
        failures = failures_of((run, Results()) for run in own)
        verified, disproved = counting([backup.judged(failures) for backup in made])
        upload = uploads.get(names["backup"])
        records[database.id] = Record(
            database.id,
            verified=verified,
            disproved=disproved,
            misdated=max((b for b in made if b.is_misdated), key=lambda b: b.created, default=None),
            uploaded=results[upload].at.get(UPLOAD) if upload in results and upload is not None else None,
            backup=last("backup", "success", "failed"),
            restore=last("restore", "success", "failed"),
            verify=last("verify", "success", "failed"),
            drill=last("drill", "success", "failed"),
            tested=max((b.tested for b in made if b.tested is not None), key=lambda t: t.at, default=None),
            sync=sync_of(results.get(synced, Results())) if synced is not None else None,
            sync_run=last("sync", "success", "failed"),
            active=tuple(run for run in active if run.kind != "sync" or run.wait is not None),
            next_backup=dags[names["backup"]].next_dagrun_create_after if names["backup"] in dags else None,
            notes=notes_of(results.get(newest.get(names["backup"], {}).get("success", -1), Results())),
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
        backup = backup_of(runs[number], results.get(number, Results()), local=database.s3 is None)
        if backup is None:
            continue
        earlier = backups.get(backup.key)
        proven = [at for at in (backup.verified, earlier.verified if earlier else None) if at is not None]
        kept = backup if earlier is None or runs[number].kind == "backup" else earlier
        tested = backup.tested or (earlier.tested if earlier else None)
        backups[backup.key] = replace(kept, verified=max(proven, default=None), tested=tested)
    failures = failures_of((run, results.get(number, Results())) for number, run in runs.items())
    backups = {key: backup.judged(failures) for key, backup in backups.items()}
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
    names = [dag_id(kind, database_id) for kind in ("backup", *READING)]
    rows = session.scalars(
        select(XComModel).where(
            XComModel.dag_id.in_(names), XComModel.task_id.in_((UPLOAD, VERIFY, DRILL)), XComModel.key == _RESULT
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
    numbers = session.scalars(select(DagRun.id).where(DagRun.dag_id.in_(names), DagRun.state.in_(ACTIVE))).all()
    runs, _ = _runs(session, set(numbers))
    return [runs[number] for number in sorted(runs)]


# ---- rows into records -------------------------------------------------------------------------------------


def _dags(session: Session, ids: Iterable[str]) -> dict[str, Any]:
    query = select(DagModel.dag_id, DagModel.is_paused, DagModel.next_dagrun_create_after).where(
        DagModel.dag_id.in_(list(ids)), DagModel.is_stale.is_(False)
    )
    return {row.dag_id: row for row in session.execute(query)}


def _newest_by_state(session: Session, dags: Iterable[str]) -> dict[str, dict[str, int]]:
    """By DAG and state, the run that came into it last: one that was cleared and ran again is newer than its number."""
    at = func.coalesce(DagRun.end_date, DagRun.queued_at)
    place = func.row_number().over(partition_by=(DagRun.dag_id, DagRun.state), order_by=(at.desc(), DagRun.id.desc()))
    ranked = select(DagRun.dag_id, DagRun.state, DagRun.id, place.label("place")).where(DagRun.dag_id.in_(list(dags)))
    rows = ranked.subquery()
    newest: dict[str, dict[str, int]] = {}
    for row in session.execute(select(rows).where(rows.c.place == 1)):
        newest.setdefault(row.dag_id, {})[str(row.state)] = row.id
    return newest


@dataclass(frozen=True)
class _Proof:
    """A run that left a proof, and when."""

    run: int
    at: datetime


def _result_runs(session: Session, databases: Sequence[Database]) -> tuple[dict[str, list[_Proof]], dict[str, int]]:
    """By DAG, the last runs whose verification succeeded (without S3 a snapshot is its own proof), and the last whose
    upload did. Several, since the last one may have looked at an old backup.
    """
    remote = [dag_id(kind, d.id) for d in databases if d.s3 is not None for kind in ("backup", *READING)]
    local = [dag_id("backup", d.id) for d in databases if d.s3 is None]
    place = func.row_number().over(
        partition_by=(XComModel.dag_id, XComModel.task_id), order_by=XComModel.timestamp.desc()
    )
    rows = (
        select(XComModel.dag_id, XComModel.task_id, XComModel.dag_run_id, XComModel.timestamp, place.label("place"))
        .where(
            XComModel.key == _RESULT,
            or_(
                and_(XComModel.task_id.in_((VERIFY, DRILL, UPLOAD)), XComModel.dag_id.in_(remote)),
                and_(XComModel.task_id == SNAPSHOT, XComModel.dag_id.in_(local)),
            ),
        )
        .subquery()
    )
    proofs: dict[str, list[_Proof]] = {}
    uploads: dict[str, int] = {}
    for row in session.execute(select(rows).where(rows.c.place <= _PROOFS)):
        if row.task_id != UPLOAD:
            proofs.setdefault(row.dag_id, []).append(_Proof(row.dag_run_id, row.timestamp))
        elif row.place == 1:
            uploads[row.dag_id] = row.dag_run_id
    return proofs, uploads


def _failed_verifications(session: Session, names: Sequence[str], since: datetime) -> set[int]:
    """The failed runs of verifications that may say something about a backup that counts."""
    query = select(DagRun.id).where(DagRun.dag_id.in_(names), DagRun.state == "failed", DagRun.end_date >= since)
    return set(session.scalars(query).all())


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
    errors: dict[int, tuple[ErrorRecord, datetime]] = {}
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
            errors[row.dag_run_id] = cast("ErrorRecord", value), row.timestamp
        else:
            values.setdefault(row.dag_run_id, {})[row.task_id] = value
            times.setdefault(row.dag_run_id, {})[row.task_id] = row.timestamp
    results = {run: Results(cast("RunResults", left), times[run]) for run, left in values.items()}
    waits = _waits(session, [run.id for run in rows if str(run.state) in ACTIVE], errors)
    runs = {}
    for run in rows:
        parsed = parse_dag_id(run.dag_id)
        error, error_at = errors.get(run.id, (None, None))
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
                error,
                error_at,
                waits.get(run.id),
            )
    return runs, results


def _waits(
    session: Session, active: Sequence[int], errors: Mapping[int, tuple[ErrorRecord, datetime]]
) -> dict[int, Wait]:
    """Of active runs, by number, why they stand still: a task waits for its retry, for a pool that lets none in, or for
    a worker; the DAG is paused; or Airflow's scheduler does not get to it.
    """
    if not active:
        return {}
    late = datetime.now(timezone.utc) - _PATIENCE
    waits = _waits_of_runs(session, active, late)
    query = (
        select(
            DagRun.id,
            TaskInstance.task_id,
            TaskInstance.state,
            TaskInstance.pool,
            TaskInstance.queue,
            TaskInstance.queued_dttm,
            Pool.slots,
        )
        .join(TaskInstance, and_(TaskInstance.dag_id == DagRun.dag_id, TaskInstance.run_id == DagRun.run_id))
        .outerjoin(Pool, Pool.pool == TaskInstance.pool)
        .where(
            DagRun.id.in_(active),
            or_(TaskInstance.state.is_(None), TaskInstance.state.in_(("scheduled", "queued", "up_for_retry"))),
        )
        .order_by(TaskInstance.task_id)
    )
    for run, task, state, pool, queue, queued, slots in session.execute(query):
        if not slots:
            waits[run] = Wait("waits for a pool", f"{task} can't start: {no_pool(pool, exists=slots is not None)}")
        elif str(state) == "up_for_retry" and run not in waits:
            why = f": {sentences(errors[run][0])}" if run in errors else "; its log says why"
            waits[run] = Wait(RETRY, f"{task} failed, and Airflow will try it again{why}")
        elif str(state) == "queued" and queued is not None and queued < late and run not in waits:
            why = f'no worker has taken {task} since {queued:%H:%M} UTC: is one running for the queue "{queue}"?'
            waits[run] = Wait("waits for a worker", why)
    return waits


def _waits_of_runs(session: Session, active: Sequence[int], late: datetime) -> dict[int, Wait]:
    """Of active runs, by number, those whose DAG is paused, and those that were not begun by `late`."""
    query = (
        select(DagRun.id, DagRun.dag_id, DagRun.state, DagRun.queued_at, DagModel.is_paused)
        .join(DagModel, DagModel.dag_id == DagRun.dag_id)
        .where(DagRun.id.in_(active))
    )
    waits = {}
    for run, dag, state, queued, paused in session.execute(query):
        if paused:
            waits[run] = Wait("waits: DAG paused", f"{dag} is paused in Airflow, so the run does not go on; unpause it")
        elif str(state) == "queued" and queued is not None and queued < late:
            why = (
                f"Airflow has not begun it since {queued:%H:%M} UTC: is its scheduler running, or another run of {dag}?"
            )
            waits[run] = Wait("waits for Airflow", why)
    return waits


def no_pool(pool: str, *, exists: bool) -> str:
    """Why tasks of this pool never start, and what to do."""
    if exists:
        return f'the Airflow pool "{pool}" has no slots. Give it some: airflow pools set {pool} 16 "transfers"'
    return (
        f'Airflow has no pool "{pool}". Restart a service of Airflow, which makes it, or make it yourself: '
        f'airflow pools set {pool} 16 "transfers"'
    )


def _by_time(item: tuple[datetime | None, int]) -> tuple[bool, float, int]:
    at, number = item
    return at is not None, at.timestamp() if at is not None else 0.0, number
