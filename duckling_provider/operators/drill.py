"""A backup is restored on trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from duckling_provider.base.moments import iso
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.links.s3 import S3ObjectLink, object_url
from duckling_provider.tasks.results import BackupTested
from duckling_provider.tasks.run import CoreTask

if TYPE_CHECKING:
    from airflow.sdk import Context


class DucklingDrillOperator(CoreTask, BaseOperator):
    """Restore a backup into a scratch file, let DuckDB read all of it, and throw it away. Fails when it can't be
    restored, and says in which step and why.

    :param database_id: the entry of databases.json. (templated)
    :param key: the backup's key or file name, ``latest`` or ``latest-tested``. (templated)
    :return: ``key``, ``size`` in bytes, ``duration``, ``restore_duration`` and ``read_duration`` in ms, ``tables`` and
        ``rows`` that were read, ``rows_compared``, ``queries`` that yielded true, ``catch_up`` (``yes``, ``no`` or
        ``unknown``) with ``catch_up_note``, ``tested`` (when) and ``notes``.
    """

    work = "drill"
    template_fields: Sequence[str] = ("database_id", "key")
    operator_extra_links = (S3ObjectLink(),)
    ui_color = "#e0f5e0"

    def __init__(self, *, database_id: str, key: str = "latest", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.key = key

    def execute(self, context: Context) -> BackupTested:
        with self.core_call() as control:
            from duckling_provider.oversight.drills import drill

            hook = DucklingHook(self.database_id)
            done = drill(hook.database, hook.store(), self.key.strip(), control=control)
            self.object_url = object_url(hook.database, done.key)
            self.log.info("%s", done.sentence)
            for note in done.warnings:
                self.log.warning("%s", note)
        result: BackupTested = {
            "key": done.key,
            "size": done.size,
            "duration": done.duration_ms,
            "mode": done.mode,
            "restore_duration": done.restore_ms,
            "read_duration": done.read_ms,
            "tables": done.tables,
            "rows": done.rows,
            "rows_compared": done.compared,
            "queries": done.queries,
            "catch_up": done.catch_up,
            "catch_up_note": done.catch_up_note,
            "tested": iso(done.tested),
            "notes": list(done.notes),
        }
        if done.key_fingerprint is not None:
            result["key_fingerprint"] = done.key_fingerprint
        return self.publish(context, result)
