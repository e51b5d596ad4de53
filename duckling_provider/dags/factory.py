"""DAGs made from databases.json: per entry one that backs up on a schedule and one that restores when triggered.

Airflow parses DAG files all the time: nothing here touches the network or imports anything heavy, and no secret gets
into a DAG.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, get_parsing_context

from duckling_provider import config
from duckling_provider.base.errors import ConfigError
from duckling_provider.dags.docs import backup_doc, drill_doc, restore_doc, sync_doc, verify_doc, watch_doc
from duckling_provider.dags.ids import (
    CLEANUP,
    DRILL,
    PAUSE,
    RESTORE,
    RESUME,
    SNAPSHOT,
    SYNC,
    UPLOAD,
    VERIFY,
    WATCH,
    WATCH_DAG,
    Kind,
    dag_id,
    parse_dag_id,
)
from duckling_provider.dags.params import key_param, restore_params
from duckling_provider.operators.backup import DucklingBackupOperator, DucklingCleanupOperator, DucklingSnapshotOperator
from duckling_provider.operators.drill import DucklingDrillOperator
from duckling_provider.operators.hold import DucklingHoldOperator, DucklingReleaseOperator
from duckling_provider.operators.restore import S3RestoreOperator
from duckling_provider.operators.sync import DucklingSyncOperator
from duckling_provider.operators.watch import DucklingWatchOperator
from duckling_provider.sensors.verify import HmacVerifySensor
from duckling_provider.timetable import StaggeredTimetable

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Installation, Settings

#: Any fixed moment long past: schedules start when Airflow first sees the DAG. Of a run with an earlier logical date,
#: Airflow starts no task, and calls it a success.
_START = datetime(1971, 1, 1, tzinfo=timezone.utc)

# Delays double from try to try: a store that is down, or a replica held by a long restore, has some hours to come back.
_BACKUP_RETRY_DELAY = timedelta(minutes=5)
# A person is waiting for a restore.
_RESTORE_RETRY_DELAY = timedelta(minutes=1)
# Of continuous runs: long enough for their start not to matter, short enough for a log that one can read.
_CDC_RUN = timedelta(minutes=10)


# Before the transfers of backups, which can wait.
_RESTORE_PRIORITY = 100
# Behind everything else.
_DRILL_PRIORITY = 0


def build_dags(installation: Installation) -> dict[str, DAG]:
    """The DAGs of all good entries, by DAG id: ``duckling_backup__<id>``, ``duckling_restore__<id>``, with S3
    ``duckling_verify__<id>`` and ``duckling_drill__<id>``, and where the replica is ours to write,
    ``duckling_sync__<id>``.

    In a process that is about to run a task of one of them, only the DAGs of that entry.
    """
    dags: dict[str, DAG] = {}
    wanted = _wanted(get_parsing_context().dag_id)
    for database in installation.databases:
        if wanted is not None and database.id != wanted:
            continue
        # Each DAG in a call of its own: with everything in one loop, late-bound names give one DAG the other's assets.
        warnings = tuple(w for w in installation.warnings if w.startswith(f"{database.id}: "))
        pool = installation.settings.pool
        made = [backup_dag(database, pool=pool, warnings=warnings), restore_dag(database, pool=pool)]
        if database.s3 is not None:
            made += [verify_dag(database, pool=pool), drill_dag(database, pool=pool)]
        dags |= {dag.dag_id: dag for dag in made}
        if database.writer == "duckling" and database.mysql_connection_string.get_secret_value():
            dag = sync_dag(database, installation.settings)
            dags[dag.dag_id] = dag
    return dags


def _wanted(parsed_dag: str | None) -> str | None:
    """The id of the one database that is needed; None for all, also when `parsed_dag` is no DAG of ours."""
    ours = parse_dag_id(parsed_dag or "")
    return None if ours is None else ours[1]


def bad_entries(installation: Installation) -> ConfigError | None:
    """One error that lists what is wrong with the entries that got no DAGs; None when all is well."""
    if not installation.problems:
        return None
    lines = "".join(f"\n- {problem}" for problem in installation.problems)
    return ConfigError(
        f"entries with mistakes have no DAGs until they are corrected:{lines}",
        entry=str(installation.settings.databases_file),
    )


def backup_dag(database: Database, *, pool: str | None = None, warnings: tuple[str, ...] = ()) -> DAG:
    """``snapshot >> upload >> verify >> cleanup``, or without S3 ``snapshot >> cleanup``.

    :param pool: of the tasks that transfer.
    """
    transfer = _transfer(pool)
    schedule = _every(timedelta(hours=database.interval_hours), database) if database.auto_backup else None
    asset = _asset("backup", database)
    with _dag(
        "backup",
        database,
        description=f"Backups of {database.name}",
        schedule=schedule,
        retry_delay=_BACKUP_RETRY_DELAY,
        doc_md=backup_doc(database, schedule=schedule.description if schedule else "", warnings=warnings),
    ) as dag:
        cleanup = DucklingCleanupOperator(
            task_id=CLEANUP,
            database_id=database.id,
            doc_md="Deletes the backups that are older than the retention; the newest complete one always stays.",
        )
        snapshot = DucklingSnapshotOperator(
            task_id=SNAPSHOT,
            database_id=database.id,
            outlets=[] if database.s3 else [asset],
            doc_md="Copies the quiet replica to the backup folder and proves the copy consistent.",
        )
        if database.s3 is None:
            snapshot >> cleanup
            return dag
        upload = DucklingBackupOperator(
            task_id=UPLOAD,
            database_id=database.id,
            snapshot=_key_of(SNAPSHOT),
            outlets=[asset],
            doc_md="Streams the snapshot to S3; a retry goes on where the try before it stopped.",
            **transfer,
        )
        verify = HmacVerifySensor(
            task_id=VERIFY,
            database_id=database.id,
            key=_key_of(UPLOAD),
            poke_interval=15,
            timeout=600,
            doc_md="Reads the object back and compares it with what was uploaded. No cleanup before this succeeds.",
            **transfer,
        )
        snapshot >> upload >> verify >> cleanup
    return dag


def restore_dag(database: Database, *, pool: str | None = None) -> DAG:
    """``pause >> restore >> resume``, run by hand; `resume` runs after a failure too, and the run stays failed.

    :param pool: of the task that transfers, and of `pause`: where the pool is missing, no task of it ever starts, and a
        replica that was held before would stay held.
    """
    with _dag(
        "restore",
        database,
        description=f"Puts a backup of {database.name} in place of the replica",
        task_defaults={"priority_weight": _RESTORE_PRIORITY},
        doc_md=restore_doc(database),
    ) as dag:
        params = restore_params(database)
        key, target, encryption = "{{ params.key }}", "{{ params.target_path or '' }}", "{{ params.encryption or '' }}"
        before = "{{ params.before or '' }}"
        until, until_position = "{{ params.until or '' }}", "{{ params.until_position or '' }}"
        pause = DucklingHoldOperator(
            task_id=PAUSE,
            database_id=database.id,
            target_path=target,
            key=key,
            before=before,
            encryption=encryption,
            until=until,
            until_position=until_position,
            known_conf=list(params),
            doc_md="Keeps writers away from the replica until `resume`.",
            **_transfer(pool),
        )
        restore = S3RestoreOperator(
            task_id=RESTORE,
            database_id=database.id,
            key=key,
            before=before,
            target_path=target,
            keep_old="{{ params.keep_old }}",
            any_origin="{{ params.any_origin }}",
            encryption=encryption,
            fallback="{{ params.fallback }}",
            no_delta="{{ params.no_delta }}",
            local="{{ params.local }}",
            until=until,
            until_position=until_position,
            outlets=[_asset("restore", database)],
            doc_md="Verifies and decrypts beside the replica, then renames. A failure leaves the replica as it was.",
            **_transfer(pool),
        )
        resume = DucklingReleaseOperator(
            task_id=RESUME, database_id=database.id, doc_md="Lets the writers go on, whatever became of `restore`."
        )
        pause >> restore >> resume
        resume.as_teardown(setups=pause)
    # Only now: each task would get a copy of its own, and serializing checks every one. With 1,000 entries that is half
    # of all the time. A run hands them to its tasks all the same.
    dag.params.update(params)
    return dag


def verify_dag(database: Database, *, pool: str | None = None) -> DAG:
    """One task that proves a stored backup whole, run by hand.

    :param pool: of that task.
    """
    with _dag(
        "verify",
        database,
        description=f"Proves that a backup of {database.name} can be restored",
        doc_md=verify_doc(database),
    ) as dag:
        HmacVerifySensor(
            task_id=VERIFY,
            database_id=database.id,
            key="{{ params.key }}",
            poke_interval=15,
            timeout=60,
            doc_md="Reads the object whole: HMAC or SHA-256, length, and every DuckDB block.",
            **_transfer(pool),
        )
    dag.params["key"] = key_param(database)
    return dag


def drill_dag(database: Database, *, pool: str | None = None) -> DAG:
    """One task that restores a backup on trial: every few days, and by hand.

    :param pool: of that task.
    """
    days = database.drill_interval_days
    # A key of its own: the backup that is tested should not just be under way.
    schedule = StaggeredTimetable.for_key(timedelta(days=days), f"drill of {database.id}") if days else None
    with _dag(
        "drill",
        database,
        description=f"Restores a backup of {database.name} on trial",
        schedule=schedule,
        retry_delay=_BACKUP_RETRY_DELAY,
        task_defaults={"priority_weight": _DRILL_PRIORITY},
        doc_md=drill_doc(database, schedule=schedule.description if schedule else ""),
    ) as dag:
        DucklingDrillOperator(
            task_id=DRILL,
            database_id=database.id,
            key="{{ params.key }}",
            doc_md="Restores it into a scratch file, lets DuckDB read every table, and removes the file.",
            **_transfer(pool),
        )
    dag.params["key"] = key_param(database)
    return dag


def sync_dag(database: Database, settings: Settings) -> DAG:
    """One task that brings the replica up to date: every few minutes, or with ``CDC_ENABLED`` one run after the other.

    It begins paused, because it writes the replica, unless the environment says that it may.
    """
    every = timedelta(minutes=settings.sync_interval_minutes)
    with _dag(
        "sync",
        database,
        description=f"Keeps the replica of {database.name} up to date",
        schedule="@continuous" if settings.cdc_enabled else _every(every, database),
        paused=not (settings.auto_start_sync or settings.cdc_enabled),
        doc_md=sync_doc(database, settings),
    ) as dag:
        DucklingSyncOperator(
            task_id=SYNC,
            database_id=database.id,
            follow_seconds=_CDC_RUN.total_seconds() if settings.cdc_enabled else None,
            doc_md="Applies MySQL's binlog; skipped when a backup or a restore needs the replica.",
        )
    return dag


#: Between two looks at all databases.
_WATCH_EVERY = timedelta(minutes=15)


def watch_dag() -> DAG:
    """``duckling_watch``: a task for each queue that entries name, since its worker has their records, and one for the
    entries without; where there is one queue only, or none, a single task ``watch``.
    """
    queues: list[str | None] = [None]
    with contextlib.suppress(ConfigError):  # which the task tells
        found = {database.queue for database in config.load().databases}
        queues = sorted(found, key=lambda queue: queue or "") or [None]
    with DAG(
        WATCH_DAG,
        description="Looks at all databases and tells what is wrong",
        schedule=StaggeredTimetable.for_key(_WATCH_EVERY, WATCH_DAG),
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        default_args={"owner": "duckling", "retries": 0},
        tags=["duckling", "watch"],
        doc_md=watch_doc(),
    ) as dag:
        for queue in queues:
            DucklingWatchOperator(
                task_id=WATCH if len(queues) == 1 else f"{WATCH}_{re.sub(r'[^A-Za-z0-9_.-]', '_', queue or 'none')}",
                for_queue=queue,
                all_queues=len(queues) == 1,
                doc_md="Its log is the list of what is wrong.",
                **({"queue": queue} if queue else {}),
            )
    return dag


def _dag(
    kind: Kind,
    database: Database,
    *,
    description: str,
    doc_md: str,
    schedule: StaggeredTimetable | str | None = None,
    retry_delay: timedelta = _RESTORE_RETRY_DELAY,
    task_defaults: Mapping[str, Any] | None = None,
    paused: bool = False,
) -> DAG:
    """A DAG of an entry. None but a sync begins paused: the runs of a paused DAG never start, and a restore is needed
    on a bad day.

    :param schedule: None: by hand only.
    :param task_defaults: beside those of all our tasks.
    """
    return DAG(
        dag_id(kind, database.id),
        description=description,
        schedule=schedule,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=paused,
        default_args={**_task_defaults(database, retry_delay), **(task_defaults or {})},
        tags=["duckling", kind],
        doc_md=doc_md,
    )


def _every(interval: timedelta, database: Database) -> StaggeredTimetable:
    return StaggeredTimetable.for_key(interval, database.id)


def _transfer(pool: str | None) -> dict[str, Any]:
    return {} if pool is None else {"pool": pool}


def _key_of(task: str) -> str:
    """The template for the key that `task` of the same run left as its result."""
    return f"{{{{ ti.xcom_pull(task_ids='{task}')['key'] }}}}"


def _asset(kind: Kind, database: Database) -> Asset:
    return Asset(name=dag_id(kind, database.id), uri=f"x-duckling://{kind}/{database.id}", group="duckling")


def _task_defaults(database: Database, retry_delay: timedelta) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "owner": "duckling",
        "retries": 5,
        "retry_delay": retry_delay,
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
    }
    if database.queue:
        # Every task gets it: the replica and its local backups exist on one host only.
        defaults["queue"] = database.queue
    return defaults
