"""DAGs made from databases.json: per entry one that backs up on a schedule and one that restores when triggered.

Airflow parses DAG files all the time: nothing here touches the network or imports anything heavy, and no secret gets
into a DAG.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, Param, get_parsing_context

from duckling_provider.base.errors import DucklingError
from duckling_provider.dags.ids import parse_dag_id
from duckling_provider.operators.backup import (
    DucklingBackupOperator,
    DucklingCleanupOperator,
    DucklingSnapshotOperator,
)
from duckling_provider.operators.hold import DucklingHoldOperator, DucklingReleaseOperator
from duckling_provider.operators.restore import S3RestoreOperator
from duckling_provider.operators.sync import DucklingSyncOperator
from duckling_provider.sensors.verify import HmacVerifySensor
from duckling_provider.timetable import StaggeredTimetable

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Installation, Settings

#: Any fixed moment in the past: schedules start when Airflow first sees the DAG.
_START = datetime(2024, 1, 1, tzinfo=timezone.utc)

# Delays double from try to try: a store that is down, or a replica held by a long restore, has some hours to come back.
_BACKUP_RETRY_DELAY = timedelta(minutes=5)
# Whoever restores is waiting.
_RESTORE_RETRY_DELAY = timedelta(minutes=1)
# Of continuous runs: long enough for their start not to matter, short enough for a log that one can read.
_CDC_RUN = timedelta(minutes=10)


# Before the transfers of backups, which can wait.
_RESTORE_PRIORITY = 100


def build_dags(installation: Installation) -> dict[str, DAG]:
    """The DAGs of all good entries, by DAG id: ``duckling_backup__<id>``, ``duckling_restore__<id>``, with S3
    ``duckling_verify__<id>`` and, where the replica is ours to write, ``duckling_sync__<id>``.

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
            made.append(verify_dag(database, pool=pool))
        dags |= {dag.dag_id: dag for dag in made}
        if database.writer == "duckling" and database.mysql_connection_string.get_secret_value():
            dag = sync_dag(database, installation.settings)
            dags[dag.dag_id] = dag
    return dags


def _wanted(dag_id: str | None) -> str | None:
    """The id of the one database that is needed; None for all, also when `dag_id` is no DAG of ours."""
    ours = parse_dag_id(dag_id or "")
    return None if ours is None else ours[1]


def bad_entries(installation: Installation) -> DucklingError | None:
    """One error that lists what is wrong with the entries that got no DAGs; None when all is well."""
    if not installation.problems:
        return None
    lines = "".join(f"\n- {problem}" for problem in installation.problems)
    return DucklingError(
        f"entries with mistakes have no DAGs until they are corrected:{lines}",
        subject=str(installation.settings.databases_file),
    )


def backup_dag(database: Database, *, pool: str | None = None, warnings: tuple[str, ...] = ()) -> DAG:
    """``snapshot >> upload >> verify >> cleanup``, or without S3 ``snapshot >> cleanup``.

    :param pool: of the tasks that transfer.
    """
    transfer = _transfer(pool)
    dag_id = f"duckling_backup__{database.id}"
    asset = _asset(dag_id, database)
    with DAG(
        dag_id,
        description=f"Backups of {database.name}",
        schedule=_every(timedelta(hours=database.interval_hours), database) if database.auto_backup else None,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        default_args=_task_defaults(database, _BACKUP_RETRY_DELAY),
        tags=["duckling", "backup"],
        doc_md=_backup_doc(database, warnings),
    ) as dag:
        cleanup = DucklingCleanupOperator(
            task_id="cleanup",
            database_id=database.id,
            doc_md="Deletes the backups that are older than the retention; the newest complete one always stays.",
        )
        snapshot = DucklingSnapshotOperator(
            task_id="snapshot",
            database_id=database.id,
            outlets=[] if database.s3 else [asset],
            doc_md="Copies the quiet replica to the backup folder and proves the copy consistent.",
        )
        if database.s3 is None:
            snapshot >> cleanup
            return dag
        upload = DucklingBackupOperator(
            task_id="upload",
            database_id=database.id,
            snapshot="{{ ti.xcom_pull(task_ids='snapshot')['key'] }}",
            outlets=[asset],
            doc_md="Streams the snapshot to S3; a retry goes on where the try before it stopped.",
            **transfer,
        )
        verify = HmacVerifySensor(
            task_id="verify",
            database_id=database.id,
            key="{{ ti.xcom_pull(task_ids='upload')['key'] }}",
            poke_interval=15,
            timeout=600,
            doc_md="Reads the object back and compares it with what was uploaded. No cleanup before this succeeds.",
            **transfer,
        )
        snapshot >> upload >> verify >> cleanup
    return dag


def restore_dag(database: Database, *, pool: str | None = None) -> DAG:
    """``pause >> restore >> resume``, run by hand; `resume` runs after a failure too, and the run stays failed.

    :param pool: of the task that transfers.
    """
    dag_id = f"duckling_restore__{database.id}"
    with DAG(
        dag_id,
        description=f"Puts a backup of {database.name} in place of the replica",
        schedule=None,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        # The runs of a paused DAG never start, and this is needed on a bad day.
        is_paused_upon_creation=False,
        default_args=_task_defaults(database, _RESTORE_RETRY_DELAY) | {"priority_weight": _RESTORE_PRIORITY},
        tags=["duckling", "restore"],
        doc_md=_restore_doc(database),
    ) as dag:
        params = _restore_params(database)
        target = "{{ params.target_path or '' }}"
        pause = DucklingHoldOperator(
            task_id="pause",
            database_id=database.id,
            target_path=target,
            known_conf=list(params),
            doc_md="Keeps away whoever writes the replica, until `resume`.",
        )
        restore = S3RestoreOperator(
            task_id="restore",
            database_id=database.id,
            key="{{ params.key }}",
            before="{{ params.before or '' }}",
            target_path=target,
            keep_old="{{ params.keep_old }}",
            outlets=[_asset(dag_id, database)],
            doc_md="Verifies and decrypts beside the replica, then renames. A failure leaves the replica as it was.",
            **_transfer(pool),
        )
        resume = DucklingReleaseOperator(
            task_id="resume", database_id=database.id, doc_md="Lets the writers go on, whatever became of `restore`."
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
    with DAG(
        f"duckling_verify__{database.id}",
        description=f"Proves that a backup of {database.name} can be restored",
        schedule=None,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        default_args=_task_defaults(database, _RESTORE_RETRY_DELAY),
        tags=["duckling", "verify"],
        doc_md=_verify_doc(database),
    ) as dag:
        HmacVerifySensor(
            task_id="verify",
            database_id=database.id,
            key="{{ params.key }}",
            poke_interval=15,
            timeout=60,
            doc_md="Reads the object whole: HMAC or SHA-256, length, and every DuckDB block.",
            **_transfer(pool),
        )
    dag.params["key"] = _key_param(database)
    return dag


def sync_dag(database: Database, settings: Settings) -> DAG:
    """One task that brings the replica up to date: every few minutes, or with ``CDC_ENABLED`` one run after the other.

    It begins paused, because it writes the replica, unless the environment says that it may.
    """
    every = timedelta(minutes=settings.sync_interval_minutes)
    with DAG(
        f"duckling_sync__{database.id}",
        description=f"Keeps the replica of {database.name} up to date",
        schedule="@continuous" if settings.cdc_enabled else _every(every, database),
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=not (settings.auto_start_sync or settings.cdc_enabled),
        default_args=_task_defaults(database, _RESTORE_RETRY_DELAY),
        tags=["duckling", "sync"],
        doc_md=_sync_doc(database, settings),
    ) as dag:
        DucklingSyncOperator(
            task_id="sync",
            database_id=database.id,
            follow_seconds=_CDC_RUN.total_seconds() if settings.cdc_enabled else None,
            doc_md="Applies MySQL's binlog; skipped when a backup or a restore needs the replica.",
        )
    return dag


def _every(interval: timedelta, database: Database) -> StaggeredTimetable:
    return StaggeredTimetable.for_key(interval, database.id)


def _transfer(pool: str | None) -> dict[str, Any]:
    return {} if pool is None else {"pool": pool}


def _asset(dag_id: str, database: Database) -> Asset:
    kind = dag_id.removeprefix("duckling_").partition("__")[0]
    return Asset(name=dag_id, uri=f"x-duckling://{kind}/{database.id}", group="duckling")


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


def _key_param(database: Database) -> Param:
    prefix = database.s3.path_prefix if database.s3 else ""
    example = f"{prefix}backup-2025-03-01T14-32-11-482Z.db"
    return Param(
        "latest",
        type="string",
        minLength=1,
        title="Backup",
        description=f"latest, or the key of a backup, like {example}. To see them all: duckling list {database.id}",
        # No list of keys: made while parsing, it would be stale, and parsing must not ask S3.
        examples=["latest"],
    )


def _restore_params(database: Database) -> dict[str, Param]:
    return {
        "key": _key_param(database),
        "before": Param(
            None,
            type=["null", "string"],
            format="date-time",
            title="Made before",
            description="With latest: the newest backup that was made before this time.",
        ),
        "target_path": Param(
            None,
            type=["null", "string"],
            title="Restore to",
            description="Absolute path of another file to write, on the replica's host. Empty: replace the replica.",
        ),
        "keep_old": Param(
            False,
            type="boolean",
            title="Keep the old file",
            description="Keep the file that is replaced, under another name beside it.",
        ),
    }


# ---- what people read in the UI ----------------------------------------------------------------------------


def _backup_doc(database: Database, warnings: tuple[str, ...]) -> str:
    every = _every(timedelta(hours=database.interval_hours), database).description
    schedule = every[0].lower() + every[1:] if database.auto_backup else "none (AUTO_BACKUP is off)"
    rows = [
        ("Replica", f"`{database.replica_path}`"),
        ("Schedule", schedule),
        (
            "Local backups",
            f"`{database.backup_path}`, kept {_days(database.local_retention_days, zero='until the next')}",
        ),
    ]
    if database.s3 is not None:
        rows += [
            ("S3 backups", f"{_target(database)}, kept {_days(database.s3.backup_retention_days, zero='for ever')}"),
            ("Encryption", database.s3.encryption),
        ]
    if database.queue:
        rows.append(("Queue", f"`{database.queue}`"))
    if database.host:
        rows.append(("Host", f"`{database.host}`"))
    text = f"## Backups of {_plain(database.name)}\n\n{_table(rows)}\n"
    text += f"To get the replica back, trigger **duckling_restore__{database.id}**, "
    text += f"or without Airflow: `duckling restore {database.id}`.\n"
    if warnings:
        text += "\n**databases.json:**\n\n" + "".join(f"- {_plain(warning)}\n" for warning in warnings)
    return text


def _verify_doc(database: Database) -> str:
    return (
        f"## Verification of a backup of {_plain(database.name)}\n\n"
        + _table([("From", _target(database))])
        + f"""
Reads a backup whole and compares it with its proof, as a restore would; nothing is written. Each scheduled backup does
this by itself; this is for older ones. Without Airflow: `duckling verify {database.id} KEY`.
"""
    )


def _sync_doc(database: Database, settings: Settings) -> str:
    when = "all the time" if settings.cdc_enabled else f"every {settings.sync_interval_minutes:g} minutes"
    rows = [("Replica", f"`{database.replica_path}`"), ("Runs", when)]
    if database.include_tables:
        rows.append(("Only", ", ".join(f"`{_plain(table)}`" for table in database.include_tables)))
    if database.exclude_tables:
        rows.append(("Without", ", ".join(f"`{_plain(table)}`" for table in database.exclude_tables)))
    return (
        f"## Sync of {_plain(database.name)}\n\n{_table(rows)}"
        f"""
Applies the changes in MySQL's binlog to the replica; the first run copies all tables. It makes way for backups and
restores: such a run is *skipped*, and the next one goes on. To prove that both sides are equal:
`duckling validate {database.id}`.
"""
    )


def _restore_doc(database: Database) -> str:
    source = _target(database) if database.s3 is not None else f"`{database.backup_path}`"
    return (
        f"## Restore of {_plain(database.name)}\n\n"
        + _table([("From", source), ("To", f"`{database.replica_path}`, or the file that you name")])
        + f"""
Trigger it as it is to go back to the newest backup, or choose a key or a time.

1. **pause** keeps writers away from the replica.
2. **restore** downloads and verifies the backup beside the replica and only then replaces it, in one rename.
   Whatever fails, the replica stays as it was.
3. **resume** lets the writers go on, also after a failure.

Free disk space needed: the size of the backup. Without Airflow: `duckling restore {database.id}`.
"""
        + (_SERVER_DOC if database.writer == "duckling-server" else "")
    )


_SERVER_DOC = """
The Duckling server writes this replica. **pause** stops its sync and CDC, **resume** starts what ran. It never closes
the replica's file, so its process must be down while the file is replaced: shut it down once **pause** is done, start
it when **restore** is done. Until it is down, **restore** waits and replaces nothing; until it is up, **resume** tries
again.
"""


def _table(rows: list[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _target(database: Database) -> str:
    s3 = database.s3
    if s3 is None:
        return "none"
    where = f"at `{s3.endpoint}`" if s3.endpoint else f"in {s3.region}"
    return f"`s3://{s3.bucket}/{s3.path_prefix}` {where}"


def _plain(text: str) -> str:
    """Names are free text; keep them from breaking a table or a heading."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _days(days: float, *, zero: str) -> str:
    if days == 0:
        return zero
    return "1 day" if days == 1 else f"{days:g} days"
