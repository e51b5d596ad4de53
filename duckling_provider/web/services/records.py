"""What runs left, as records: of runs, of the backups that they made or looked at, of syncs; and which backup counts.

Pure: the rows come from `queries`. A backup counts as verified because the task that read it back left its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from duckling_provider.backup.inventory.names import SKEW, find_name, parse_name
from duckling_provider.base.errors import ErrorRecord, sentences
from duckling_provider.base.moments import parse_moment
from duckling_provider.dags.ids import CLEANUP, DRILL, SNAPSHOT, SYNC, UPLOAD, VERIFY, Kind
from duckling_provider.oversight.record import DISPROVING
from duckling_provider.tasks.results import BackupTested, RunResults, Transferred

#: States of a run that did not end yet.
ACTIVE = ("queued", "running")
#: DAGs whose runs read a backup whole.
READING: tuple[Kind, ...] = ("verify", "drill")


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
        return self.state in ACTIVE

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
class Tested:
    """A drill that went well: the backup of `key` was restored at the time `at`, within `restore_ms`."""

    key: str
    at: datetime
    restore_ms: int
    dag_id: str
    run_id: str


@dataclass(frozen=True)
class Backup:
    """One backup that a run made: sizes in bytes, `duration_ms` of the whole run.

    :param verified: when it was last proven; None when it never was.
    :param failure: its newest verification, where that one failed: it outranks every earlier proof.
    :param tested: the newest drill that restored it.
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
    tested: Tested | None = None
    read_ms: int | None = None  #: that its last verification took
    bytes_copied: int | None = None  #: by the store, of an earlier object
    full_because: str = ""  #: why it copied none

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def is_disproved(self) -> bool:
        """Whether it is not what it should be: damaged, gone, or of another key. A store that did not answer disproves
        nothing.
        """
        error = self.failure.error if self.failure is not None else None
        return error is not None and error.get("kind") in DISPROVING

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
    drill: Run | None = None
    tested: Tested | None = None  #: the newest drill that went well
    sync: Sync | None = None
    sync_run: Run | None = None
    active: tuple[Run, ...] = ()  #: queued or running; of the sync only one that stands still
    next_backup: datetime | None = None
    notes: tuple[str, ...] = ()  #: what the clean-up of the last good backup run found odd about dates and clock
    paused: frozenset[Kind] = frozenset()
    known: frozenset[Kind] = frozenset()  #: the DAGs that Airflow has


def backup_of(run: Run, results: Results, *, local: bool) -> Backup | None:
    """The backup that a run made or, of a verification or a drill, looked at.

    :param local: the database has no S3: its backup is the snapshot, which was proven while it was taken.
    """
    if run.kind not in ("backup", *READING):
        return None
    values = results.values
    drill = values.get(DRILL)
    proof = SNAPSHOT if local else DRILL if run.kind == "drill" else VERIFY
    verified: Transferred | None = values.get(SNAPSHOT) if local else drill or values.get(VERIFY)
    made = verified if local or run.kind in READING else values.get(UPLOAD)
    key = "" if made is None else made.get("key", "")
    created = parse_name(key.rpartition("/")[2])
    if made is None or created is None:
        return None
    tasks = (values.get(SNAPSHOT), values.get(UPLOAD), values.get(VERIFY)) if run.kind == "backup" else ()
    upload = values.get(UPLOAD) if run.kind == "backup" else None
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
        tested=None if drill is None else _tested(run, drill, results.at[DRILL]),
        read_ms=_read_ms(values),
        bytes_copied=upload.get("bytes_copied") if upload is not None else None,
        full_because=upload.get("full_because", "") if upload is not None else "",
    )


def _read_ms(values: RunResults) -> int | None:
    """What its verification took, where that read all of it; one by an earlier version always did."""
    verified = values.get(VERIFY)
    return verified["duration"] if verified is not None and verified.get("whole", True) else None


def _tested(run: Run, drill: BackupTested, at: datetime) -> Tested:
    return Tested(drill["key"], at, drill["restore_duration"], run.dag_id, run.run_id)


def counting(backups: Sequence[Backup]) -> tuple[Backup | None, Run | None]:
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


def failures_of(runs: Iterable[tuple[Run, Results]]) -> dict[str, Run]:
    """By backup name, the newest failed verification of each: a run of the verify DAG, a drill that disproved it, or a
    backup that was uploaded and then not what it should be.
    """
    found: dict[str, Run] = {}
    for run, results in runs:
        if run.state != "failed" or run.kind not in ("backup", *READING):
            continue
        if run.kind == "drill" and (run.error is None or run.error.get("kind") not in DISPROVING):
            continue  # a query, the disk: the backup is as good as before
        left, what = results.values, run.error.get("what", "") if run.error else ""
        if run.kind in READING:
            # ``latest`` was made a key by the task: its error names it.
            name = find_name(str(run.conf.get("key") or "")) or find_name(what)
        else:
            name = find_name(left[UPLOAD]["key"]) if UPLOAD in left and VERIFY not in left else None
        if name is not None and (name not in found or _is_newer(run.failed_at, found[name].failed_at)):
            found[name] = run
    return found


def _is_newer(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)


def notes_of(results: Results) -> tuple[str, ...]:
    cleaned = results.values.get(CLEANUP)
    return () if cleaned is None else tuple(cleaned.get("notes", ()))


def sync_of(results: Results) -> Sync | None:
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
