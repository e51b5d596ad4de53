"""Pause and resume whatever writes a replica, by the hold file beside it (see `replica.locks`), and the Node.js server,
which knows nothing of holds, over HTTP (see `node_server.client`).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from duckling_provider.base.errors import BusyError, ReplicaError, RequestError
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.hooks.duckling_server import DucklingServerHook
from duckling_provider.tasks.run import CoreTask, run_owner

if TYPE_CHECKING:
    from airflow.sdk import Context

    from duckling_provider.base.cancellation import Control
    from duckling_provider.config.databases import Database

_DAY = 24 * 3600.0


class DucklingHoldOperator(CoreTask, BaseOperator):
    """Reserve a replica for this DAG run: once the task succeeds, no program that honours the hold writes to it.

    Where the Node.js server writes it (``"writer": "duckling-server"``), that one's sync and CDC are stopped as well. A
    task that fails leaves neither a hold nor a stopped server: without a success of this one, no release follows.

    :param database_id: the entry of databases.json. (templated)
    :param target_path: a restore to elsewhere does not touch the live replica, and nothing is paused. (templated)
    :param key: what the restore is to read. (templated)
    :param before: and from before which time; where it is none, or there is a key too, nothing is paused. (templated;
        empty means none)
    :param encryption: and as what; where a run may not read it so, nothing is paused. (templated; empty means the
        entry's)
    :param until, until_position: and to which moment; where it can't be reached so, nothing is paused. (templated;
        empty means none)
    :param known_conf: the fields that the run's conf may have; any when omitted.
    :param hold_seconds: after this long the hold ends by itself, if it is not released.
    :param wait_seconds: how long to wait for the one who writes just now, and then for the server to become idle.
    """

    template_fields: Sequence[str] = (
        "database_id",
        "target_path",
        "key",
        "before",
        "encryption",
        "until",
        "until_position",
    )
    ui_color = "#eeeeee"

    def __init__(
        self,
        *,
        database_id: str,
        target_path: str | None = None,
        key: str = "latest",
        before: str | None = None,
        encryption: str | None = None,
        until: str | None = None,
        until_position: str | None = None,
        known_conf: Collection[str] | None = None,
        hold_seconds: float = _DAY,
        wait_seconds: float = 300.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.target_path = target_path
        self.key = key
        self.before = before
        self.encryption = encryption
        self.until = until
        self.until_position = until_position
        self.known_conf = known_conf
        self.hold_seconds = hold_seconds
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> None:
        with self.core_call() as control:
            from duckling_provider.backup.inventory.names import wanted_before
            from duckling_provider.replica.locks import HOLD_SUFFIX, place_hold, release_hold, state_path

            self._refuse_unknown_conf(context["dag_run"].conf or {})
            hook = DucklingHook(self.database_id)
            database = hook.database
            replica = database.replica
            hook.read_as(self.key.strip(), self.encryption)
            wanted_before(self.key.strip(), self.before)
            self._refuse_other_moments()
            if self.target_path:
                hook.target(self.target_path)
                self.log.info("%s is not touched: nothing needs to be paused", replica)
                return
            # After the loss of a machine there may be no folder yet.
            state_path(replica, HOLD_SUFFIX).parent.mkdir(parents=True, exist_ok=True)
            owner = run_owner(context)
            hold = place_hold(
                replica,
                owner=owner,
                reason="restore",
                seconds=self.hold_seconds,
                wait=self.wait_seconds,
                control=control,
            )
            self.log.info(
                "%s is held for this run, until %s at the latest", replica, hold.expires.isoformat(timespec="seconds")
            )
            if database.writer == "duckling-server":
                try:
                    self._pause_server(database, owner, control)
                except BaseException:
                    release_hold(replica, owner=owner)
                    raise

    def _pause_server(self, database: Database, owner: str, control: Control) -> None:
        from duckling_provider.node_server.client import pause
        from duckling_provider.replica.duckdb_file import writer_of

        server = DucklingServerHook(database.writer_conn_id, database_id=database.id).server()
        stopped = pause(server, database, owner=owner, wait=self.wait_seconds, control=control)
        self.log.info("%s is idle; to be started again: %s", server, ", ".join(stopped) or "nothing")
        holder = None
        with contextlib.suppress(ReplicaError):  # there is none yet, or it is no file: the restore will say so
            holder = writer_of(database.replica)
        if holder is not None:
            self.log.warning("%s is still open in %s: the server never closes it", database.replica, holder)
            self.log.warning("What to do: shut the process of the Duckling server down; the restore waits for that.")

    def _refuse_other_moments(self) -> None:
        if not self.until and not self.until_position:
            return
        from duckling_provider.replication.route import Goal

        Goal.of_restore(
            self.until, self.until_position, target_path=self.target_path, key=self.key.strip(), before=self.before
        )

    def _refuse_unknown_conf(self, conf: Mapping[str, Any]) -> None:
        """Airflow lets any field of a conf pass: a mistyped `target_path` would replace the live replica."""
        for name in conf:
            if self.known_conf is not None and name not in self.known_conf:
                near = difflib.get_close_matches(name, self.known_conf, n=1)
                known = ", ".join(self.known_conf)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {known}."
                raise RequestError(
                    f"conf: unknown field {name!r}; nothing was done", subject=self.database_id, hint=hint
                )


class DucklingReleaseOperator(CoreTask, BaseOperator):
    """End the hold of this DAG run, and start again what it stopped of a Node.js server; else there is nothing to do.

    :param database_id: the entry of databases.json. (templated)
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#eeeeee"

    def __init__(self, *, database_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id

    def execute(self, context: Context) -> None:
        with self.core_call():
            database = DucklingHook(self.database_id).database
            owner = run_owner(context)
            try:
                self._resume_server(database, owner)
            finally:
                # A server that can't be started keeps no other writer away.
                self._release(database, owner)

    def _resume_server(self, database: Database, owner: str) -> None:
        from duckling_provider.node_server.client import read_note, resume

        # By what was noted when it was stopped, not by the entry, which may have been edited since.
        note = read_note(database.replica)
        if note is None or note.owner != owner:
            if database.writer == "duckling-server":
                self.log.info("nothing of the Duckling server was stopped by this run; if it is down, start it now")
            return
        server = DucklingServerHook(database.writer_conn_id, database_id=database.id).server()
        started = resume(server, database, owner=owner)
        self.log.info("%s: started again: %s", server, ", ".join(started) or "nothing, all of it ran already")

    def _release(self, database: Database, owner: str) -> None:
        from duckling_provider.replica.locks import release_hold

        try:
            released = release_hold(database.replica, owner=owner)
        except BusyError as error:
            # Ours has ended by its time, or there was none; another run's is not ours to end.
            self.log.info("%s", error)
            return
        self.log.info("%s is free again" if released else "%s was not held by this run", database.replica)
