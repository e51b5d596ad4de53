"""Runs of our DAGs: begun once, waited for without holding them up, and reported as the contract's results."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.api.common.trigger_dag import trigger_dag
from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.models.dag import DagModel
from airflow.models.pool import Pool
from airflow.models.serialized_dag import SerializedDagModel
from airflow.providers.common.compat.sdk import AirflowException
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from duckling_provider.dags.ids import Kind, dag_id
from duckling_provider.tasks.results import RunResults
from duckling_provider.web.services.errors import ApiError, of_record
from duckling_provider.web.services.queries import active_runs, no_pool, read_run
from duckling_provider.web.services.records import Run

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from duckling_provider.web.services.access import Caller

log = logging.getLogger(__name__)

#: Of two that can't be under way at the same time, the later is refused.
_RIVALS: dict[Kind, tuple[Kind, ...]] = {
    "backup": ("backup", "restore"),
    "restore": ("backup", "restore"),
    "verify": ("verify",),
    "drill": ("drill",),
    "sync": ("sync",),
}
# Seconds between two looks at a run: a second for short ones, ever longer for the hours of a long one.
_FIRST_LOOK, _LAST_LOOK, _LOOK_GROWTH = 0.5, 5.0, 1.1

# SQLite has no row locks: two requests to one process at least must not both find nothing under way.
_begin_lock = threading.Lock()


@dataclass(frozen=True)
class Begun:
    """A run that was triggered: `url` is its page in Airflow."""

    dag_id: str
    run_id: str

    @property
    def url(self) -> str:
        return run_url(self.dag_id, self.run_id)


def run_url(dag: str, run_id: str) -> str:
    """The path of a run's page, under Airflow's base path."""
    return f"{API_ROOT_PATH.rstrip('/')}/dags/{quote(dag)}/runs/{quote(run_id, safe='')}"


def begin(kind: Kind, database_id: str, *, caller: Caller, conf: Mapping[str, object] | None = None) -> Begun:
    """Trigger a run.

    :raises ApiError: 409 when the database is busy with another run, or its DAG can't run now.
    """
    name = dag_id(kind, database_id)
    with _begin_lock, create_session() as session:
        # The row of the backup DAG is the database's lock, for all API servers.
        locked = dag_id("backup", database_id)
        session.scalars(select(DagModel).where(DagModel.dag_id == locked).with_for_update()).one_or_none()
        dag = session.get(DagModel, name)
        if dag is None or dag.is_stale:
            raise ApiError(409, f"Airflow has no DAG {name} yet; it reads databases.json again within a minute or so")
        for run in active_runs(session, database_id, _RIVALS[kind]):
            raise ApiError(
                409,
                f'a {run.kind} of "{database_id}" is under way: run {run.run_id}',
                more={"runId": run.run_id, "url": run_url(run.dag_id, run.run_id)},
            )
        if dag.is_paused:
            raise ApiError(409, f"the DAG {name} is paused in Airflow, so its runs would never start; unpause it first")
        _require_pools(session, name)
        try:
            run_row = trigger_dag(
                dag_id=name,
                triggered_by=DagRunTriggeredByType.REST_API,
                triggering_user_name=caller.name,
                conf=dict(conf or {}),
                session=session,
            )
        except (AirflowException, ValueError) as error:
            raise ApiError(400, f"{name}: {error}") from error
        if run_row is None:
            raise ApiError(500, f"Airflow began no run of {name}")
        begun = Begun(name, run_row.run_id)
    log.info("%s began run %s of %s", caller.name, begun.run_id, name)
    return begun


def _require_pools(session: Session, dag: str) -> None:
    """:raises ApiError: 409 when a task of the DAG would wait for ever: for a restore, with the replica held."""
    serialized = SerializedDagModel.get_dag(dag, session=session)
    wanted = {task.pool: task.task_id for task in serialized.tasks} if serialized is not None else {}
    rows = session.execute(select(Pool.pool, Pool.slots).where(Pool.pool.in_(list(wanted))))
    slots = {row.pool: row.slots for row in rows}
    for pool, task in wanted.items():
        if not slots.get(pool):
            raise ApiError(
                409, f"{task} would never start, so nothing was begun: {no_pool(pool, exists=pool in slots)}"
            )


@dataclass(frozen=True)
class Outcome:
    """What became of a run: `results` of its tasks by name."""

    run: Run
    results: RunResults


async def finished(begun: Begun) -> Outcome:
    """Wait until the run has ended well; the caller may go away, the run goes on.

    :raises ApiError: it failed, or waits for a retry.
    """
    pause = _FIRST_LOOK
    while True:
        outcome = await run_in_threadpool(_look, begun)
        if outcome is not None:
            return outcome
        await asyncio.sleep(pause)
        pause = min(_LAST_LOOK, pause * _LOOK_GROWTH)


def _look(begun: Begun) -> Outcome | None:
    """None while the run is under way."""
    more = {"runId": begun.run_id, "url": begun.url}
    with create_session() as session:
        found = read_run(session, begun.dag_id, begun.run_id)
        if found is None:
            raise ApiError(500, f"run {begun.run_id} was deleted while it was waited for", more=more)
        run, results, tasks = found
        if run.state == "success":
            return Outcome(run, results)
        if run.state == "failed":
            raise of_record(run.error, more=more)
        for task in tasks:
            if str(task.state) == "up_for_retry":
                problem = of_record(run.error, more={**more, "retrying": True})
                problem.error += f" Airflow tries {task.task_id} again by itself; the run goes on."
                raise problem
    return None
