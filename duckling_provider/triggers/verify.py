"""Verification of a stored backup in the triggerer, so that hours of streaming take up no worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.host_load import lowered_priority
from duckling_provider.config.environment import bandwidth_of
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.tasks.progress_log import ProgressLog
from duckling_provider.tasks.results import BackupProven, VerifyEvent
from duckling_provider.tasks.verification import verify_stored


class HmacVerifyTrigger(BaseTrigger):
    """Wait until a backup is there, read it once, and say whether it is whole.

    Fires one event, a `VerifyEvent`. The arguments are stored in Airflow's database: names only.

    :param database_id: the entry of databases.json, which must be readable for the triggerer too.
    :param key: the backup's key, or ``latest``.
    :param poke_interval: seconds between two looks for a missing object.
    :param give_up_at: seconds since the epoch after which a missing object is no longer waited for. A moment, not a
        span, so that a restarted triggerer does not begin again; a verification under way is never cut short.
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

    async def _outcome(self) -> VerifyEvent:
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

    def _verify(self) -> BackupProven | None:
        settings = DucklingHook(self.database_id).settings
        self._control = control = Control(ProgressLog(self.log), bandwidth=bandwidth_of(settings))
        with lowered_priority(settings.nice, for_good=False):
            return verify_stored(self.database_id, self.key, control=control)
