"""What runs recorded about each database, read from Airflow's metadata database in a handful of queries.

No store is asked: a backup counts as verified because the task that read it back left its result. So the page of 500
databases, health and metrics cost a few queries and no request to S3. Backups made by the command line are not in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, func, or_, select

from duckling_provider.backup.names import SKEW, find_name, parse_name
from duckling_provider.base.errors import ErrorRecord, sentences
from duckling_provider.base.moments import parse_moment
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
#: The badge of a run whose task will be tried again.
RETRY = "waits for a retry"
#: Proofs of one DAG that are looked at: more than somebody makes by hand between two scheduled backups.
_PROOFS = 5
#: For so long a run or a task may be queued without a word about it.
_PATIENCE = timedelta(minutes=5)
#: Kinds of errors, as tasks record them, after which a backup can't be restored as things are.
_DISPROVING = frozenset({"IntegrityError", "WrongKeyError", "DamagedError", "NotFoundError", "ModeError"})


@dataclass(frozen=True)
class Wait:
    """Why an active run does not get on: `word` for its badge, `why` as a sentence for people."""

    word: str
    why: str


@dataclass(frozen=True)
class Run:
    """One run of one of our DAGs. `error` is what a task recorded when it failed, ``kind``, ``what`` and ``hint``, and
    `error_at` when it did; `wait` is set while an active run stands still.
    """

    kind: Kind
    dag_id: str
    run_id: str
    state: str
    queued: datetime | None
    start: datetime | None
    end: datetime | None
    conf: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorRecord | None = None
    error_at: datetime | None = None
    wait: Wait | None = None

    @property
    def active(self) -> bool:
        return self.state in _ACTIVE

    @property
    def failed_at(self) -> datetime | None:
        """When it was known to have failed; None when it did not fail."""
        return (self.error_at or self.end) if self.state == "failed" else None

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
    """One backup that a run made: sizes in bytes, `duration_ms` of the whole run.

    :param verified: when it was last proven; None when it never was.
    :param failure: its newest verification, where that one failed: it outranks every earlier proof.
    :param cpu_seconds, bytes_sent: of all tasks of the run that made it; None where they did not tell.
    """

    key: str
    created: datetime
    size: int
    mode: str
    verified: datetime | None
    duration_ms: int | None = None
    run_id: str = ""
    failure: Run | None = None
    cpu_seconds: float | None = None
    bytes_sent: int | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def is_disproved(self) -> bool:
        """Whether it is not what it should be: damaged, gone, or of another key. A store that did not answer disproves
        nothing.
        """
        error = self.failure.error if self.failure is not None else None
        return error is not None and error.get("kind") in _DISPROVING

    @property
    def is_misdated(self) -> bool:
        """Whether its name is later than the moment at which it was proven: a clock was wrong when it was made."""
        return self.verified is not None and self.created - self.verified > SKEW

    def judged(self, failures: Mapping[str, Run]) -> Backup:
        """With its newest failure, where no proof is newer.

        :param failures: by backup name.
        """
        failure = failures.get(self.name)
        return (
            self if failure is None or _is_newer(self.verified, failure.failed_at) else replace(self, failure=failure)
        )


@dataclass(frozen=True)
class Sync:
    """Where the last sync ended that did not fail: `lag` in seconds at the time `at`.

    :param yields: runs in a row that made way to other programs; the last of them if it is not 0.
    :param validated: all tables are known to have been equal to MySQL's then; None if one was not compared yet.
    :param differences: rows that were ever found to differ, and were repaired; the last at `differed`.
    """

    at: datetime
    lag: float
    position: str | None
    recopy: tuple[str, ...] = ()
    read_copy: datetime | None = None  #: when the copy for readers was last seen to be equal to the replica
    yields: int = 0
    validated: datetime | None = None
    differences: int = 0
    differed: datetime | None = None

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
    """All about one database; what never was is None.

    :param verified: the newest backup that counts: proven, and not disproved since.
    :param disproved: of a newer backup than any that counts, the verification that disproved it.
    :param misdated: the newest one whose date can't be true: it counts for nothing.
    :param uploaded: when an upload last ended well.
    """

    database_id: str
    verified: Backup | None = None
    disproved: Run | None = None
    misdated: Backup | None = None
    uploaded: datetime | None = None
    backup: Run | None = None  #: the last finished run
    restore: Run | None = None
    verify: Run | None = None
    sync: Sync | None = None
    sync_run: Run | None = None
    active: tuple[Run, ...] = ()  #: queued or running; of the sync only one that stands still
    next_backup: datetime | None = None
    notes: tuple[str, ...] = ()  #: what the clean-up of the last good backup run found odd about dates and clock
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
    newest = _newest_by_state(session, dags)
    proofs, uploads = _result_runs(session, [d for d in databases if dag_id("backup", d.id) in dags])
    since = min((proof.at for found in proofs.values() for proof in found), default=None)
    verifying = [name for name, (kind, _) in ids.items() if kind == "verify"]
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

        active = [run for kind in KINDS for state in _ACTIVE if (run := last(kind, state)) is not None]
        synced = newest.get(names["sync"], {}).get("success")
        made = [
            backup
            for kind in ("backup", "verify")
            for run in [proof.run for proof in proofs.get(names[kind], []) if proof.run in runs]
            if (backup := _backup_of(runs[run], results.get(run, Results()), local=database.s3 is None)) is not None
        ]
        own = [run for number, run in runs.items() if number in suspects and run.dag_id == names["verify"]]
        failures = _failures((run, Results()) for run in own)
        verified, disproved = _counting([backup.judged(failures) for backup in made])
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
            sync=_sync_of(results.get(synced, Results())) if synced is not None else None,
            sync_run=last("sync", "success", "failed"),
            active=tuple(run for run in active if run.kind != "sync" or run.wait is not None),
            next_backup=dags[names["backup"]].next_dagrun_create_after if names["backup"] in dags else None,
            notes=_notes_of(results.get(newest.get(names["backup"], {}).get("success", -1), Results())),
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
        proven = [at for at in (backup.verified, earlier.verified if earlier else None) if at is not None]
        kept = backup if earlier is None or runs[number].kind == "backup" else earlier
        backups[backup.key] = replace(kept, verified=max(proven, default=None))
    failures = _failures((run, results.get(number, Results())) for number, run in runs.items())
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
    remote = [dag_id(kind, d.id) for d in databases if d.s3 is not None for kind in ("backup", "verify")]
    local = [dag_id("backup", d.id) for d in databases if d.s3 is None]
    place = func.row_number().over(
        partition_by=(XComModel.dag_id, XComModel.task_id), order_by=XComModel.timestamp.desc()
    )
    rows = (
        select(XComModel.dag_id, XComModel.task_id, XComModel.dag_run_id, XComModel.timestamp, place.label("place"))
        .where(
            XComModel.key == _RESULT,
            or_(
                and_(XComModel.task_id.in_((VERIFY, UPLOAD)), XComModel.dag_id.in_(remote)),
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
    waits = _waits(session, [run.id for run in rows if str(run.state) in _ACTIVE], errors)
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
    tasks = (values.get(SNAPSHOT), values.get(UPLOAD), values.get(VERIFY)) if run.kind == "backup" else ()
    used = [task for task in tasks if task is not None and "cpu_seconds" in task]
    return Backup(
        key,
        created,
        made.get("size", 0),
        str(made.get("mode", "none")),
        results.at[proof] if verified is not None and verified.get("key") == key else None,
        run.duration_ms if run.kind == "backup" else None,
        run.run_id,
        cpu_seconds=sum(task["cpu_seconds"] for task in used) if used else None,
        bytes_sent=sum(task.get("bytes_sent", 0) for task in used) if used else None,
    )


def _counting(backups: Sequence[Backup]) -> tuple[Backup | None, Run | None]:
    """The newest backup that counts, which none does whose date can't be true, and what disproved a newer one.

    A backup counts beside a newer one that was disproved only when it was proven after that: what spoiled the one may
    have spoiled the other.
    """
    counting: Backup | None = None
    disproof: Run | None = None
    dated = [backup for backup in backups if not backup.is_misdated]
    for backup in sorted(dated, key=lambda b: b.created, reverse=True):
        if backup.is_disproved:
            disproof = disproof or backup.failure
        elif disproof is None or _is_newer(backup.verified, disproof.failed_at):
            counting = counting or backup
    return counting, disproof


def _failures(runs: Iterable[tuple[Run, Results]]) -> dict[str, Run]:
    """By backup name, the newest failed verification of each: a run of the verify DAG, or a backup that was uploaded
    and then not what it should be.
    """
    found: dict[str, Run] = {}
    for run, results in runs:
        if run.state != "failed" or run.kind not in ("backup", "verify"):
            continue
        left, what = results.values, run.error.get("what", "") if run.error else ""
        if run.kind == "verify":
            # ``latest`` was made a key by the task: its error names it.
            name = find_name(str(run.conf.get("key") or "")) or find_name(what)
        else:
            name = find_name(left[UPLOAD]["key"]) if UPLOAD in left and VERIFY not in left else None
        if name is not None and (name not in found or _is_newer(run.failed_at, found[name].failed_at)):
            found[name] = run
    return found


def _is_newer(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)


def _by_time(item: tuple[datetime | None, int]) -> tuple[bool, float, int]:
    at, number = item
    return at is not None, at.timestamp() if at is not None else 0.0, number


def _notes_of(results: Results) -> tuple[str, ...]:
    cleaned = results.values.get(CLEANUP)
    return () if cleaned is None else tuple(cleaned.get("notes", ()))


def _sync_of(results: Results) -> Sync | None:
    result = results.values.get(SYNC)
    if result is None or "lag" not in result:
        return None
    return Sync(
        results.at[SYNC],
        result["lag"],
        result.get("position"),
        tuple(result.get("recopy", ())),
        _moment(result.get("read_copy")),
        result.get("yields", 0),
        _moment(result.get("validated")),
        result.get("differences", 0),
        _moment(result.get("differedAt")),
    )


def _moment(text: str | None) -> datetime | None:
    return parse_moment(text) if text else None
