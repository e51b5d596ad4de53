"""A backup becomes the replica again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from duckling_provider.base.errors import RequestError
from duckling_provider.base.moments import iso
from duckling_provider.base.units import about
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.links.s3 import S3ObjectLink, object_url
from duckling_provider.oversight.audit import audited
from duckling_provider.oversight.record import Transfer, expected_seconds
from duckling_provider.tasks.results import BackupRestored
from duckling_provider.tasks.run import CoreTask, run_by, run_owner

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from duckling_provider.backup.reading.restore import RestoreResult
    from duckling_provider.base.cancellation import Control
    from duckling_provider.config.databases import Database


class S3RestoreOperator(CoreTask, BaseOperator):
    """Replace a replica by a backup that is verified first; any failure leaves the old file as it was.

    An entry without S3 is restored from its local backups.

    :param database_id: the entry of databases.json. (templated)
    :param key: the backup's key or file name, or ``latest``. (templated)
    :param before: ISO 8601 time, or as names of backups have it; with ``latest``: the newest backup made before it.
        (templated; empty means none)
    :param target_path: absolute path of a new ``.db`` file below ``DUCKLING_RESTORE_PATH``, to write to in place of the
        replica. (templated; empty means the replica)
    :param keep_old: keep the file that was there, under another name. (templated; ``"true"`` and ``"false"`` count too)
    :param any_origin: with ``latest``: take the newest also when it is, or may be, of another replica than this one.
        (templated; as `keep_old`)
    :param encryption: the mode of this one backup, in place of the entry's; a weaker one needs a `key`. (templated;
        empty means the entry's)
    :param fallback: where the backup is damaged, take the newest older one that is not. (templated; as `keep_old`)
    :param no_delta: fetch all of it, also what lies on this machine already. (templated; as `keep_old`)
    :param local: take the local backups although S3 is configured. (templated; text counts as for `keep_old`)
    :param until: ISO 8601 time: with `target_path`, the database as MySQL had it then. (templated; empty means none)
    :param until_position: the same, up to a transaction: a GTID, or file:offset. (templated; empty means none)
    :param wait_seconds: how long to wait for a process that has the replica open.
    :return: ``key``, ``size`` in bytes, ``duration`` in ms, ``path``, ``kept``, the path of the old file or None,
        ``bytes_lent`` (taken from this machine, not from the store) or ``full_because`` (why none were), and for an
        encrypted backup ``key_fingerprint``. With `until`, also ``position``, ``changes`` and ``left``, the
        tables that could not be followed.
    """

    template_fields: Sequence[str] = (
        "database_id",
        "key",
        "before",
        "target_path",
        "keep_old",
        "encryption",
        "fallback",
        "no_delta",
        "local",
        "any_origin",
        "until",
        "until_position",
    )
    operator_extra_links = (S3ObjectLink(),)
    ui_color = "#d9ecff"

    def __init__(
        self,
        *,
        database_id: str,
        key: str = "latest",
        before: str | None = None,
        target_path: str | None = None,
        keep_old: bool | str = False,
        any_origin: bool | str = False,
        encryption: str | None = None,
        fallback: bool | str = False,
        no_delta: bool | str = False,
        local: bool | str = False,
        until: str | None = None,
        until_position: str | None = None,
        wait_seconds: float = 300.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.key = key
        self.before = before
        self.target_path = target_path
        self.keep_old = keep_old
        self.any_origin = any_origin
        self.encryption = encryption
        self.fallback = fallback
        self.no_delta = no_delta
        self.local = local
        self.until = until
        self.until_position = until_position
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> BackupRestored:
        with self.core_call() as control, contextlib.ExitStack() as acting:
            from duckling_provider.backup.inventory.local_backups import LocalBackups
            from duckling_provider.backup.inventory.names import wanted_before
            from duckling_provider.backup.reading.restore import restore_backup
            from duckling_provider.base.durable_files import make_folder
            from duckling_provider.base.ownership import as_owner_of

            hook = DucklingHook(self.database_id)
            target = hook.target(self.target_path) if self.target_path else None
            key = self.key.strip()
            database = hook.read_as(key, self.encryption)
            if target is not None:
                acting.enter_context(as_owner_of(target))
                make_folder(target.parent)
            takes = expected_seconds(database, key)
            if takes is not None:
                self.log.info("by what transfers took on this host, it will take %s", about(takes))
            into = str(target or database.replica)
            with audited(database, "restore", by=run_by(context), key=key, detail=into) as told:
                if (until := self._until(context, control, database, target, key)) is not None:
                    told.key, told.detail = until["key"], f"by the binlog up to {until['position']}, into {into}"
                    return until
                done = restore_backup(
                    database,
                    LocalBackups(database) if _flag("local", self.local) else hook.backups(database),
                    key,
                    before=wanted_before(key, self.before),
                    to=target,
                    keep_old=_flag("keep_old", self.keep_old),
                    fallback=_flag("fallback", self.fallback),
                    no_delta=_flag("no_delta", self.no_delta),
                    any_origin=_flag("any_origin", self.any_origin),
                    control=control,
                    owner=run_owner(context),
                    wait=self.wait_seconds,
                )
                told.key = done.key
            if not done.bytes_lent:  # what was here already says nothing of the way
                transfer = Transfer(datetime.now(timezone.utc), done.size, done.duration_ms / 1000, "restore")
                self.note(lambda record: record.transferred(transfer))
            self.object_url = object_url(database, done.key)
            return self.publish(context, self._told(done))

    def _told(self, done: RestoreResult) -> BackupRestored:
        """What came of a restore, in the log and for the run."""
        kept = str(done.kept) if done.kept else None
        if done.origin is not None:
            self.log.info("it was made on %s", done.origin)
        self.log.info("%s now holds %s", done.replaced, done.key)
        if kept:
            self.log.info("the file that was there is now %s", kept)
        result: BackupRestored = {
            "key": done.key,
            "size": done.size,
            "duration": done.duration_ms,
            "path": str(done.replaced),
            "kept": kept,
        }
        if done.bytes_lent:
            result["bytes_lent"] = done.bytes_lent
        if done.full_because:
            result["full_because"] = done.full_because
        if done.key_fingerprint:
            result["key_fingerprint"] = done.key_fingerprint
            self.log.info("it was read with the key %s", done.key_fingerprint)
        return result

    def _until(
        self, context: Context, control: Control, database: Database, target: Path | None, key: str
    ) -> BackupRestored | None:
        """A restore to a moment; None where none is wanted."""
        from duckling_provider.backup.inventory.local_backups import LocalBackups
        from duckling_provider.replication.route import Goal
        from duckling_provider.replication.until import restore_until

        goal = Goal.of_restore(
            self.until, self.until_position, target_path=self.target_path, key=key, before=self.before
        )
        if goal is None or target is None:
            return None
        hook = DucklingHook(self.database_id)
        source = LocalBackups(database) if _flag("local", self.local) else hook.backups(database)
        done = restore_until(
            database,
            source,
            goal,
            to=target,
            any_origin=_flag("any_origin", self.any_origin),
            control=control,
        )
        restored = done.restored
        self.object_url = object_url(database, restored.key)
        self.log.info("%s is as it was at %s: %s and %d changes", target, goal, restored.key, done.changes)
        for left in done.left:
            self.log.warning("%s could not be followed: %s", left.name, left.reason)
        result: BackupRestored = {
            "key": restored.key,
            "size": restored.size,
            "duration": restored.duration_ms,
            "path": str(target),
            "kept": None,
            "position": str(done.route.end),
            "changes": done.changes,
            "left": [{"name": t.name, "reason": t.reason, "asOf": iso(t.at) if t.at else None} for t in done.left],
        }
        if restored.key_fingerprint:
            result["key_fingerprint"] = restored.key_fingerprint
        return self.publish(context, result)


def _flag(name: str, value: bool | str) -> bool:  # noqa: FBT001
    """Templates yield text."""
    if isinstance(value, bool):
        return value
    if value.strip().lower() not in ("true", "false"):
        raise RequestError(f"{name} must be true or false", subject=value)
    return value.strip().lower() == "true"
