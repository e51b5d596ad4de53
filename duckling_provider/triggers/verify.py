"""Verification of a stored backup in the triggerer, so that hours of streaming take up no worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DucklingError, NotFoundError
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.tasks.progress_log import ProgressLog

log = logging.getLogger(__name__)


class HmacVerifyTrigger(BaseTrigger):
    """Wait until a backup is there, read it once, and say whether it is whole.

    Fires one event, a dict with ``status``: ``"verified"`` with ``result``, ``"missing"`` when the object did not
    appear in time, ``"error"`` with ``message`` and the fields of `base.errors.ErrorRecord`.
    The arguments are stored in Airflow's database: names only.

    :param database_id: the entry of databases.json, which must be readable for the triggerer too.
    :param key: the backup's key, or ``latest``.
    :param poke_interval: seconds between two looks for a missing object.
    :param give_up_at: seconds since the epoch after which a missing object is no longer waited for. A moment, not a
        span, so that a restarted triggerer does not begin anew; a verification under way is never cut short.
    """

    def __init__(self, *, database_id: str, key: str, poke_interval: float, give_up_at: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.database_id = database_id
        self.key = key
        self.poke_interval = poke_interval
        self.give_up_at = give_up_at
        self._control = Control()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "database_id": self.database_id,
                "key": self.key,
                "poke_interval": self.poke_interval,
                "give_up_at": self.give_up_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(await self._outcome())  # type: ignore[no-untyped-call]

    async def cleanup(self) -> None:
        self._control.cancel()

    async def on_kill(self) -> None:
        self._control.cancel()

    async def _outcome(self) -> dict[str, Any]:
        # Not asyncio.to_thread: Airflow 3.1 can read connections (s3.awsConnId) only from threads that asgiref made.
        verify = sync_to_async(self._verify, thread_sensitive=False)
        while True:
            try:
                result = await verify()
            except DucklingError as error:
                return {"status": "error", "message": str(error), **error.as_record()}
            except asyncio.CancelledError:
                self._control.cancel()  # the thread does not end with the coroutine
                raise
            if result is not None:
                return {"status": "verified", "result": result}
            if time.time() >= self.give_up_at:
                return {"status": "missing"}
            await asyncio.sleep(self.poke_interval)

    def _verify(self) -> dict[str, Any] | None:
        self._control = Control(ProgressLog(self.log))
        return verify_stored(self.database_id, self.key, control=self._control)


def verify_stored(database_id: str, key: str, *, control: Control) -> dict[str, Any] | None:
    """Compare a stored backup with its proof, as ``s3.verify`` says; what sensor and trigger have in common.

    :return: ``key``, ``size`` in bytes, ``duration`` in ms, ``mode``; None when the object is not there.
    :raises IntegrityError: when it is not what was uploaded.
    """
    from duckling_provider.backup.verify import verify_backup

    hook = DucklingHook(database_id)
    database, store = hook.database, hook.store()  # outside `try`: an unknown database is no missing object
    full = database.verifies_whole
    try:
        done = verify_backup(database, store, key, full=full, control=control)
    except NotFoundError as error:
        log.info("not there yet: %s", error)
        return None
    return {"key": done.key, "size": done.size, "duration": done.duration_ms, "mode": done.mode}
