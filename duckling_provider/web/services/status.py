"""Could this database be brought back now? One word for it, and why; pure, from what runs recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from duckling_provider.base.errors import DucklingError
from duckling_provider.config.databases import Database
from duckling_provider.oversight import record as host_record
from duckling_provider.oversight.promises import LOCAL_ONLY, STATES, Promise, State, due_after, promise_of, state_of
from duckling_provider.replica.locks import Hold, read_hold
from duckling_provider.web.services.records import Record, Run


@dataclass(frozen=True)
class Status:
    """:param state: see `STATES`.
    :param reason: a sentence for people; empty where all is well.
    :param age: seconds since the last verified backup was taken; None without one.
    :param due: seconds after which that backup is too old; None where nothing is scheduled.
    :param moment: when all this was found.
    :param promise: what a recovery would bring.
    """

    database: Database
    record: Record
    state: State
    reason: str
    age: float | None
    due: float | None
    moment: datetime
    promise: Promise
    hold: Hold | None = None
    hold_error: str = ""
    failed: Run | None = None  #: the newest failed backup or verification that no newer evidence outranks

    @property
    def recoverable(self) -> bool:
        """Whether there is a verified backup that is no older than the schedule promises."""
        return self.state in ("protected", "local only", "failing")


def status_of(database: Database, record: Record, *, now: datetime) -> Status:
    """:param now: aware."""
    hold, hold_error = _hold(database)
    backup = record.verified
    failed = _standing_failure(record)
    age = None if backup is None else max(0.0, (now - backup.created).total_seconds())
    due = due_after(database, (backup.duration_ms or 0) / 1000 if backup else 0.0)
    state = state_of(database, age=age, due=due, failing=failed is not None)
    if backup is None and record.disproved is not None:
        reason = record.disproved.reason
    elif backup is None and record.misdated is not None:
        reason = f"the newest backup, {record.misdated.key}, is dated in the future: a clock was wrong when it was made"
    elif state == "no backup":
        reason = failed.reason if failed else _why_none(record)
    elif state == "overdue":
        reason = failed.reason if failed else _why_late(record)
    elif failed is not None:
        reason = failed.reason
    else:
        unscheduled = "backups are not scheduled (AUTO_BACKUP is off)" if due is None else ""
        reason = "; ".join(text for text in (LOCAL_ONLY if state == "local only" else "", unscheduled) if text)
    promise = _promise(database, record, now)
    return Status(database, record, state, reason, age, due, now, promise, hold, hold_error, failed)


def _promise(database: Database, record: Record, now: datetime) -> Promise:
    """By what this host recorded, where the database is on it, and by what runs took."""
    known = host_record.read_record(database) if database.is_here else host_record.Record()
    backup, drill = record.verified, record.tested
    transfers = known.transfers
    if not transfers and backup is not None and backup.read_ms and backup.verified is not None:
        transfers = (host_record.Transfer(backup.verified, backup.size, backup.read_ms / 1000, "verify"),)
    promise = promise_of(
        database,
        now=now,
        created=backup.created if backup is not None else None,
        size=backup.size if backup is not None else 0,
        verified=backup.verified if backup is not None else None,
        record=known,
        transfers=transfers,
    )
    if drill is not None and (promise.tested is None or drill.at > promise.tested):
        promise = replace(promise, tested=drill.at, measured=drill.restore_ms / 1000)
    return promise


def by_trouble(statuses: Sequence[Status]) -> list[Status]:
    """The worst first; within a state, the oldest backup first."""
    return sorted(statuses, key=lambda s: (STATES.index(s.state), -(s.age or 0), s.database.id))


def _standing_failure(record: Record) -> Run | None:
    """The newest failed run that no newer evidence outranks: a verification is outranked by any newer proof, a drill
    by a newer drill, a backup only by a newer proof of what was made in it or after it.
    """
    proof = record.verified
    failed = []
    for run in (record.verify, record.drill, record.backup):
        at = run.failed_at if run is not None else None
        if run is None or run.state != "failed":
            continue
        proven_since = proof is not None and proof.verified is not None and at is not None and proof.verified > at
        since_begun = proof is not None and run.start is not None and proof.created >= run.start
        tested_since = record.tested is not None and at is not None and record.tested.at > at
        outranked = {"verify": proven_since, "drill": tested_since}.get(run.kind, proven_since and since_begun)
        if not outranked:
            failed.append((at.timestamp() if at is not None else 0.0, run))
    return max(failed, key=lambda item: item[0])[1] if failed else None


def _why_none(record: Record) -> str:
    if "backup" not in record.known:
        return "Airflow has not read its DAGs yet"
    return _kept_up_by(record, "the first backup") or "no backup has run yet"


def _why_late(record: Record) -> str:
    if "backup" not in record.known:
        return "Airflow no longer has its backup DAG"
    return _kept_up_by(record, "a backup") or "no backup since then; is Airflow's scheduler running?"


def _kept_up_by(record: Record, backup: str) -> str:
    """What keeps a backup from being there, in words; empty where Airflow's records don't say."""
    if "backup" in record.paused:
        return "its backup DAG is paused"
    for run in record.active:
        if run.kind == "backup":
            return run.wait.why if run.wait else f"{backup} is under way"
    return ""


def _hold(database: Database) -> tuple[Hold | None, str]:
    """The hold on the replica, where this machine has it."""
    if not database.is_here:
        return None, ""
    try:
        hold = read_hold(database.replica)
    except (DucklingError, OSError) as error:
        return None, str(error)
    return (None if hold is None or hold.is_stale else hold), ""
