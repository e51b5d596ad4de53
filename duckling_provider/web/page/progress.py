"""A run as its view shows it: what it is about, where it stands, each task, and why one failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

from duckling_provider.base.errors import sentences
from duckling_provider.base.units import human_bytes
from duckling_provider.dags.ids import DRILL, RESTORE, SNAPSHOT, TASKS, UPLOAD, VERIFY, Kind
from duckling_provider.tasks.results import BackupTested, ReachedByBinlog, RunResults, Transferred
from duckling_provider.web.services.privacy import Hide, hidden_run
from duckling_provider.web.services.queries import RETRY, read_run
from duckling_provider.web.services.records import Run
from duckling_provider.web.services.runs import run_url

#: How a state of Airflow's is shown; what is not named here shows as it is called.
_WORDS = {"None": "waiting", "up_for_retry": "waits for a retry", "up_for_reschedule": "waiting", "deferred": "running"}
_DOING: Mapping[Kind, str] = {
    "backup": "Backup",
    "restore": "Restore",
    "verify": "Verification",
    "drill": "Test",
    "sync": "Sync",
}


@dataclass(frozen=True)
class Task:
    """One task of a run; `seconds` until now while it runs, None before."""

    name: str
    state: str
    word: str
    start: datetime | None
    seconds: float | None
    attempt: int
    attempts: int


@dataclass(frozen=True)
class Travelled:
    """Bytes of a backup that were sent, or of a restore that were fetched (`crossed`), and those that were there
    already: copied by the store, or lent by the machine. `because` says why none were.
    """

    sent: bool
    crossed: int
    there: int
    because: str


@dataclass(frozen=True)
class Progress:
    """A run and its tasks. `error` is what a task recorded, for people; `result` the backup that the run made or read;
    `restored_to` the file that now holds it, `moment` how it was brought to a moment; `report` what a drill found.
    `travelled` is what crossed the network, and what need not: None where the run did not tell.
    """

    run: Run
    database_id: str
    tasks: tuple[Task, ...]
    error: str
    result: Transferred | None
    seconds: float | None
    restored_to: str = ""
    moment: ReachedByBinlog | None = None
    report: BackupTested | None = None
    travelled: Travelled | None = None

    @property
    def title(self) -> str:
        return f"{_DOING[self.run.kind]} of {self.database_id}"

    @property
    def airflow_url(self) -> str:
        return run_url(self.run.dag_id, self.run.run_id)

    @property
    def key(self) -> str:
        """Of the backup that it is about."""
        key = self.result.get("key") if self.result else None
        return str(key or self.run.conf.get("key") or "")

    @property
    def current(self) -> Task | None:
        """The task that runs, or waits to run again."""
        return next((task for task in self.tasks if task.state in ("running", "deferred", "up_for_retry")), None)

    @property
    def airflow_api(self) -> str:
        """Where Airflow's own API has the tasks of this run."""
        base = API_ROOT_PATH.rstrip("/")
        return f"{base}/api/v2/dags/{quote(self.run.dag_id)}/dagRuns/{quote(self.run.run_id, safe='')}/taskInstances"

    @property
    def log_task(self) -> Task | None:
        """The task whose log tells most now: that which runs, or failed, or ran last."""
        begun = [task for task in self.tasks if task.seconds is not None and task.attempt]
        failed = next((task for task in begun if task.state == "failed"), None)
        return self.current or failed or (begun[-1] if begun else None)

    @property
    def sentence(self) -> str:
        """Where it stands; free of numbers that change with every look, since it is read out loud."""
        kind, state = _DOING[self.run.kind], self.run.state
        if state == "success":
            return f"{kind} done{self._done()}."
        if state == "failed":
            return f"{kind} failed."
        wait = self.run.wait
        if wait is not None and wait.word != RETRY:
            return f"{kind}: {wait.why.removesuffix('.')}{'' if wait.why.endswith('?') else '.'}"
        if state == "queued":
            return f"{kind} waits for Airflow to start it."
        task = self.current
        if task is None:
            return f"{kind} is under way."
        if task.state == "up_for_retry":
            return f"{kind}: {task.name} failed, and Airflow will try it again."
        return f"{kind}: {task.name} is running."

    def _done(self) -> str:
        made = self.result
        if made is None:
            return ""
        backup = f"{made['key']} ({human_bytes(made['size'])})"
        if self.moment is not None:
            goal = self.run.conf.get("until") or self.run.conf.get("until_position")
            left = len(self.moment.get("left", ()))
            told = f"; {left} table{'s' * (left != 1)} could not be followed so far" if left else ""
            return (
                f": {self.restored_to} is as MySQL had it at {goal}, from {made['key']} and the binlog after it{told}"
            )
        if self.restored_to:
            return f": {self.restored_to} now holds {backup}"
        outcome = {"verify": " is whole", "drill": " was restored on trial and read whole"}.get(self.run.kind, "")
        return f": {backup}{outcome}"


def read_progress(dag_id: str, run_id: str, database_id: str, hide: Hide, *, now: datetime) -> Progress | None:
    """None when there is no such run.

    :param hide: leaves texts as the caller may read them.
    """
    with create_session() as session:
        found = read_run(session, dag_id, run_id)
        if found is None:
            return None
        run, results, rows = hidden_run(found[0], hide), *found[1:]
        tasks = tuple(_task(row, now) for row in rows)
    tried_again = any(task.state in ("up_for_retry", "failed") or task.attempt > 1 for task in tasks)
    error = ""
    if run.state != "success" and run.error is not None and tried_again:
        error = sentences(run.error)
    elif run.state == "failed":
        error = run.reason
    restored = results.get(RESTORE) if run.kind == "restore" else None
    end = run.end or now
    seconds = None if run.start is None else (end - run.start).total_seconds()
    return Progress(
        run,
        database_id,
        tasks,
        error,
        _made(run.kind, results),
        seconds,
        restored["path"] if restored else "",
        restored if restored and "position" in restored else None,
        results.get(DRILL),
        _travelled(run.kind, results, hide),
    )


def in_order(tasks: tuple[Task, ...], kind: Kind) -> tuple[Task, ...]:
    """As the DAG has them; Airflow's rows know no order before they began."""
    order = TASKS[kind]
    return tuple(sorted(tasks, key=lambda task: order.index(task.name) if task.name in order else len(order)))


def _made(kind: Kind, results: RunResults) -> Transferred | None:
    if kind == "restore":
        return results.get(RESTORE)
    if kind == "verify":
        return results.get(VERIFY)
    if kind == "drill":
        return results.get(DRILL)
    return results.get(UPLOAD) or results.get(SNAPSHOT)


def _travelled(kind: Kind, results: RunResults, hide: Hide) -> Travelled | None:
    if kind == "backup" and (made := results.get(UPLOAD)) is not None and "bytes_copied" in made:
        sent = made.get("bytes_sent", 0)
        return Travelled(True, sent, made["bytes_copied"], hide(made.get("full_because", "")))
    if kind == "restore" and (done := results.get(RESTORE)) is not None and "bytes_received" in done:
        lent, because = done.get("bytes_lent", 0), hide(done.get("full_because", ""))
        return Travelled(False, done["bytes_received"], lent, because)
    return None


def _task(row: TaskInstance, now: datetime) -> Task:
    state = str(row.state)
    seconds = None
    if row.start_date is not None and state not in ("None", "scheduled", "queued"):
        seconds = ((row.end_date or now) - row.start_date).total_seconds()
    attempt, attempts = int(row.try_number or 0), int(row.max_tries or 0) + 1
    return Task(
        row.task_id, state, _WORDS.get(state, state.replace("_", " ")), row.start_date, seconds, attempt, attempts
    )
