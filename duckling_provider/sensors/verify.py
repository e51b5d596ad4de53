"""Wait for a backup and prove it whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSensorTimeout
from airflow.sdk.bases.sensor import BaseSensorOperator, PokeReturnValue

from duckling_provider.base.errors import NotFoundError
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.links.s3 import S3ObjectLink, object_url
from duckling_provider.tasks.results import BackupProven, VerifyEvent
from duckling_provider.tasks.run import CoreTask
from duckling_provider.tasks.verification import verify_stored
from duckling_provider.triggers.verify import HmacVerifyTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class HmacVerifySensor(CoreTask, BaseSensorOperator):
    """Succeeds when the object is in S3 and is what was uploaded; writes no plain text anywhere.

    For client-aes256 the object streams through its HMAC; for the other modes size and SHA-256 are compared. An object
    that is not there is waited for; one that is damaged fails the task at once, without retries.

    :param database_id: the entry of databases.json. (templated)
    :param key: the backup's key, or ``latest``. (templated)
    :param deferrable: verify in the triggerer; Airflow's ``[operators] default_deferrable`` when omitted.
    :return: ``key``, ``size`` in bytes, ``duration`` in ms, ``mode``.
    """

    template_fields: Sequence[str] = ("database_id", "key")
    operator_extra_links = (S3ObjectLink(),)
    ui_color = "#e0f5e0"
    work = "verify"

    def __init__(self, *, database_id: str, key: str, deferrable: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.database_id = database_id
        self.key = key
        self.deferrable = (
            conf.getboolean("operators", "default_deferrable", fallback=False) if deferrable is None else deferrable
        )

    def execute(self, context: Context) -> Any:
        if self.deferrable:
            # The triggerer may be anywhere: it reads the store alone.
            with self.core_call():
                pass
            self.defer(
                trigger=HmacVerifyTrigger(
                    database_id=self.database_id,
                    key=self.key,
                    poke_interval=self.poke_interval,
                    give_up_at=time.time() + self.timeout,
                ),
                method_name="execute_complete",
            )
        return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        with self.core_call() as control:
            result = verify_stored(self.database_id, self.key, control=control)
        if result is None:
            self.record(self._missing().as_record(), final=False)  # counts only if the task ends like that
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._verified(context, result))

    def execute_complete(self, context: Context, event: VerifyEvent) -> BackupProven:
        if event["status"] == "missing":
            self.record(self._missing().as_record())
            raise AirflowSensorTimeout(f"{self.key} did not appear within {self.timeout:g} s")
        if event["status"] == "error":
            self.record(
                {
                    "kind": event["kind"],
                    "what": event["what"],
                    "hint": event["hint"],
                    "retryable": event["retryable"],
                }
            )
            raise (AirflowException if event["retryable"] else AirflowFailException)(event["message"])
        return self._verified(context, event["result"])

    def _missing(self) -> NotFoundError:
        return NotFoundError("the backup is not in the store", subject=self.key, hint="Use another backup.")

    def _verified(self, context: Context, result: BackupProven) -> BackupProven:
        self.object_url = object_url(DucklingHook(self.database_id).database, result["key"])
        fingerprint = result.get("key_fingerprint")
        found = "is whole" if result["whole"] else "is as it was sent, by what was looked at"
        self.log.info("%s %s%s", result["key"], found, f", read with the key {fingerprint}" if fingerprint else "")
        seconds, now = result["duration"] / 1000 if result["whole"] else None, datetime.now(timezone.utc)
        self.note(
            lambda record: record.verified(result["key"], result["size"], seconds=seconds, at=now).went_well("verify")
        )
        return self.publish(context, result)
