"""Pause and resume whatever writes a replica, by the hold file beside it (see `core.locks`)."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from duckling_provider.core.errors import BusyError, DucklingError
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.task_run import CoreTask, run_owner

if TYPE_CHECKING:
    from airflow.sdk import Context

_DAY = 24 * 3600.0


class DucklingHoldOperator(CoreTask, BaseOperator):
    """Reserve a replica for this DAG run: once the task succeeds, nobody who honours the hold writes any more.

    :param database_id: the entry of databases.json. (templated)
    :param target_path: when a restore goes elsewhere, the live replica is not touched and nobody is paused. (templated)
    :param known_conf: the fields that the run's conf may have; any when omitted.
    :param hold_seconds: after this long the hold ends by itself, should nobody release it.
    :param wait_seconds: how long to wait for the one who writes just now.
    """

    template_fields: Sequence[str] = ("database_id", "target_path")
    ui_color = "#eeeeee"

    def __init__(
        self,
        *,
        database_id: str,
        target_path: str | None = None,
        known_conf: Collection[str] | None = None,
        hold_seconds: float = _DAY,
        wait_seconds: float = 300.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.target_path = target_path
        self.known_conf = known_conf
        self.hold_seconds = hold_seconds
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> None:
        with self.core_call() as control:
            from duckling_provider.core.locks import HOLD_SUFFIX, place_hold, state_path

            self._refuse_unknown_conf(context["dag_run"].conf or {})
            replica = DucklingHook(self.database_id).database.replica
            if self.target_path:
                self.log.info("%s is not touched: no need to pause anybody", replica)
                return
            # After the loss of a machine there may be no folder yet.
            state_path(replica, HOLD_SUFFIX).parent.mkdir(parents=True, exist_ok=True)
            hold = place_hold(
                replica,
                owner=run_owner(context),
                reason="restore",
                seconds=self.hold_seconds,
                wait=self.wait_seconds,
                control=control,
            )
            self.log.info(
                "%s is held for this run, until %s at the latest", replica, hold.expires.isoformat(timespec="seconds")
            )

    def _refuse_unknown_conf(self, conf: Mapping[str, Any]) -> None:
        """Airflow lets any field of a conf pass: a mistyped `target_path` would replace the live replica."""
        for name in conf:
            if self.known_conf is not None and name not in self.known_conf:
                near = difflib.get_close_matches(name, self.known_conf, n=1)
                known = ", ".join(self.known_conf)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {known}."
                raise DucklingError(
                    f"conf: unknown field {name!r}; nothing was done", subject=self.database_id, hint=hint
                )


class DucklingReleaseOperator(CoreTask, BaseOperator):
    """End the hold of this DAG run; without one there is nothing to do.

    :param database_id: the entry of databases.json. (templated)
    """

    template_fields: Sequence[str] = ("database_id",)
    ui_color = "#eeeeee"

    def __init__(self, *, database_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id

    def execute(self, context: Context) -> None:
        with self.core_call():
            from duckling_provider.core.locks import release_hold

            replica = DucklingHook(self.database_id).database.replica
            try:
                released = release_hold(replica, owner=run_owner(context))
            except BusyError as error:
                # Ours has ended by its time, or there was none; somebody else's is not ours to end.
                self.log.info("%s", error)
                return
            self.log.info("%s is free again" if released else "%s was not held by this run", replica)
