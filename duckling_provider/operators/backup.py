"""The steps of a backup: snapshot, upload, cleanup."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.links.s3 import S3ObjectLink, object_url
from duckling_provider.oversight.audit import audit
from duckling_provider.tasks.results import BackupUploaded, CleanedUp, SnapshotTaken
from duckling_provider.tasks.run import CoreTask, run_by, run_owner

if TYPE_CHECKING:
    from airflow.sdk import Context


class DucklingSnapshotOperator(CoreTask, BaseOperator):
    """Make a consistent local copy of a replica, with the digests that upload and restore are checked against.

    :param database_id: the entry of databases.json. (templated)
    :param wait_seconds: how long to wait for a process that has the replica open.
    :return: ``key`` (the snapshot's file name), ``size`` in bytes, ``duration`` in ms, ``sha256``, ``validated`` (all
        tables were found equal to MySQL's at this time or later, or None), ``held`` (ms for which no process could
        write the replica), and what the task used (`tasks.results.Used`).
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#fff4d6"
    work = "backup"

    def __init__(self, *, database_id: str, wait_seconds: float = 300.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> SnapshotTaken:
        with self.core_call() as control:
            from duckling_provider.backup.making.snapshot import take_snapshot
            from duckling_provider.backup.retention.clean_up import trim_local

            database = DucklingHook(self.database_id).database
            if gone := trim_local(database, control=control):
                audit(database, "retention", by=run_by(context), detail=", ".join(gone))
            taken = take_snapshot(database, control=control, owner=run_owner(context), wait=self.wait_seconds)
            result: SnapshotTaken = {
                "key": taken.filename,
                "size": taken.size,
                "duration": taken.duration_ms,
                "sha256": taken.sha256,
                "validated": taken.validated,
            }
            if taken.held_ms is not None:
                result["held"] = taken.held_ms
            if database.s3 is None:
                now = datetime.now(timezone.utc)
                self.note(lambda record: record.proven(taken.filename, taken.size, at=now).went_well("backup"))
            return self.publish(context, result)


class DucklingBackupOperator(CoreTask, BaseOperator):
    """Upload a snapshot to S3, encrypted as the entry says. A retry goes on where the try before it stopped.

    :param database_id: the entry of databases.json. (templated)
    :param snapshot: file name of a snapshot of this database; without one, a snapshot is taken first. (templated)
    :param wait_seconds: how long to wait for a process that has the replica open, when a snapshot is taken.
    :return: ``key``, ``size`` of the replica in bytes, ``duration`` in ms, ``mode``; ``sha256`` unless encrypted here;
        ``bytes_copied`` of the object by the store, and ``full_because`` where all of it was sent.
    """

    template_fields: Sequence[str] = ("database_id", "snapshot")
    operator_extra_links = (S3ObjectLink(),)
    ui_color = "#fff4d6"
    work = "backup"

    def __init__(
        self, *, database_id: str, snapshot: str | None = None, wait_seconds: float = 300.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.snapshot = snapshot
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> BackupUploaded:
        with self.core_call() as control:
            from duckling_provider.backup.inventory.sidecar import find_snapshot
            from duckling_provider.backup.making.snapshot import take_snapshot
            from duckling_provider.backup.making.upload import upload_snapshot

            hook = DucklingHook(self.database_id)
            store = hook.store()
            if self.snapshot:
                snapshot = find_snapshot(hook.database, self.snapshot)
            else:
                owner = run_owner(context)
                snapshot = take_snapshot(hook.database, control=control, owner=owner, wait=self.wait_seconds)
            done = upload_snapshot(hook.database, store, snapshot, control=control)
            self.object_url = object_url(hook.database, done.key)
            result: BackupUploaded = {
                "key": done.key,
                "size": done.size,
                "duration": done.duration_ms,
                "mode": done.mode,
            }
            if done.sha256:
                result["sha256"] = done.sha256
            if done.bytes_copied is not None:
                result["bytes_copied"] = done.bytes_copied
            if done.because:
                result["full_because"] = done.because
            self.note(lambda record: record.went_well("backup"))
            return self.publish(context, result)


class DucklingCleanupOperator(CoreTask, BaseOperator):
    """Delete the backups that are older than the retention, local and in S3; the newest complete one always stays.

    :param database_id: the entry of databases.json. (templated)
    :param dry_run: only log what would go.
    :return: ``local`` and ``s3``, the names and keys that went (or would go); ``notes``, what a person should know of
        the backups' dates, this host's clock and unfinished uploads that stay.
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#fff4d6"
    work = "cleanup"

    def __init__(self, *, database_id: str, dry_run: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self._dry_run = dry_run  # BaseOperator has a method `dry_run`

    def execute(self, context: Context) -> CleanedUp:
        with self.core_call() as control:
            from duckling_provider.backup.retention.clean_up import clean_up

            hook = DucklingHook(self.database_id)
            store = hook.store_or_none()
            done = clean_up(hook.database, store, dry_run=self._dry_run, control=control)
            verb = "would delete" if self._dry_run else "deleted"
            for name in (*done.local_deleted, *done.s3_deleted):
                self.log.info("%s %s", verb, name)
            for name in done.busy:
                self.log.info("left for the next time, it is in use: %s", name)
            if not (done.local_deleted or done.s3_deleted or done.busy):
                self.log.info("nothing is older than its retention")
            # Uploads that stay cost room, not backups: no reason for the task to fail.
            notes = [*done.notes, *done.uploads_left]
            for note in notes:
                self.log.warning("%s", note)
            if not self._dry_run:
                self.note(lambda record: record.cleaned(done.notes))
                if gone := (*done.local_deleted, *done.s3_deleted):
                    audit(hook.database, "retention", by=run_by(context), detail=", ".join(gone))
            for error in done.s3_refused.values():
                raise error
            return {"local": list(done.local_deleted), "s3": list(done.s3_deleted), "notes": notes}
