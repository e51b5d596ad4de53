"""Keep a replica up to date, and prove that it is equal to its source."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import BaseOperator

from duckling_provider.base.moments import iso
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.oversight.record import SyncSeen
from duckling_provider.tasks.results import Synced
from duckling_provider.tasks.run import CoreTask, run_owner

if TYPE_CHECKING:
    from airflow.sdk import Context


class DucklingSyncOperator(CoreTask, BaseOperator):
    """Bring a replica up to date from MySQL's binlog; the first time, copy everything.

    Skipped, with the reason, when a snapshot or a restore needs the replica. The next run goes on.

    :param database_id: the entry of databases.json. (templated)
    :param follow_seconds: follow the binlog for so long; None ends at where the server stood at the beginning.
    :param wait_seconds: how long to wait for a process that uses the replica.
    :return: ``changes``, ``copied`` (tables), ``position``, ``lag`` in seconds, ``recopy`` (table: reason),
        ``notes`` (what could not be mirrored exactly), ``yields`` (runs in a row that made way), ``validated`` (all
        tables were found equal to MySQL's since then, or None), ``differing`` (table: rows that this run found to
        differ), ``differences`` (how many ever were) and ``differedAt``, the last time; ``read_copy`` (when the copy
        for readers was equal to the replica; only where the entry wants one). A skipped run leaves it too.
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#e3f1e4"
    work = "sync"

    def __init__(
        self, *, database_id: str, follow_seconds: float | None = None, wait_seconds: float = 5.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.follow_seconds = follow_seconds
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> Synced:
        with self.core_call() as control:
            from duckling_provider.oversight.back_reach import note_reach
            from duckling_provider.replication.sync import sync

            database = DucklingHook(self.database_id).database
            done = sync(
                database,
                control=control,
                owner=run_owner(context),
                seconds=self.follow_seconds,
                wait=self.wait_seconds,
            )
            note_reach(database, done.began)
        for table, reason in done.recopy.items():
            self.log.warning("%s will be copied again by the next run: %s", table, reason)
        self.log.info("%d changes in %d batches, now at %s", done.changes, done.batches, done.position)
        for table, count in done.differing.items():
            self.log.warning("%s: %d rows differed from MySQL's and were or will be copied again", table, count)
        if done.compared:
            self.log.info("%d rows compared with MySQL's in %d pieces", done.compared, done.pieces)
        result: Synced = {
            "changes": done.changes,
            "copied": list(done.copied),
            "position": None if done.position is None else str(done.position),
            "lag": round(done.lag, 1),
            "recopy": done.recopy,
            "notes": list(done.notes),
            "yields": done.yields,
            "validated": None if done.validated is None else iso(done.validated),
            "differing": done.differing,
            "differences": done.differences,
            "differedAt": None if done.differed is None else iso(done.differed),
        }
        if done.read_copy is not None:
            result["read_copy"] = iso(done.read_copy)
        seen = SyncSeen(datetime.now(timezone.utc), done.lag, done.validated, done.differences, done.differed)
        self.note(lambda record: record.synced(seen))
        if done.outcome == "made way":
            # How far behind it is, is known all the same; a task that is skipped returns nothing.
            context["ti"].xcom_push(key="return_value", value=result)
            raise AirflowSkipException(f"made way after {done.changes} changes: {done.reason}")
        return self.publish(context, result)


class DucklingValidateOperator(CoreTask, BaseOperator):
    """Compare a replica with MySQL, table by table, at one position. Fails when they differ.

    :param database_id: the entry of databases.json. (templated)
    :param max_differences: rows that are named of each table at most.
    :param wait_seconds: how long to wait for a process that uses the replica.
    :return: the report, see `replication.validate.report.ValidationReport.as_json`.
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#e3f1e4"

    def __init__(
        self, *, database_id: str, max_differences: int = 20, wait_seconds: float = 300.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.max_differences = max_differences
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> dict[str, Any]:
        with self.core_call() as control:
            from duckling_provider.replication.sync import validate_replica

            report = validate_replica(
                DucklingHook(self.database_id).database,
                control=control,
                owner=run_owner(context),
                wait=self.wait_seconds,
                max_differences=self.max_differences,
            )
        for table in report.tables:
            self.log.info("%s", table)
        if not report.equal:
            differing = ", ".join(table.name for table in report.tables if not table.equal)
            raise AirflowFailException(f"{self.database_id}: the replica differs from MySQL: {differing}")
        return report.as_json()
