"""Looks at all databases, tells what is wrong, and fails while something is."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import BaseOperator
from airflow.sdk.log import mask_secret

from duckling_provider import config
from duckling_provider.base.errors import ConfigError, DucklingError
from duckling_provider.config.environment import Settings
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.oversight.notices import notify
from duckling_provider.oversight.watch import Trouble, Watched, ask_stores, look_at_all
from duckling_provider.tasks.dag_facts import dag_facts
from duckling_provider.tasks.notify import heartbeat, send

if TYPE_CHECKING:
    from airflow.sdk import Context

    from duckling_provider.config.databases import Database, Installation
    from duckling_provider.stores.store import BackupSource


class DucklingWatchOperator(BaseOperator):
    """Look at every database by what is recorded on this host, tell the channels of ``DUCKLING_NOTIFY_CONN_IDS`` what
    is new and what is over, and fail while something is wrong; its log is the list. When all is well,
    ``DUCKLING_HEARTBEAT_URL`` is called.

    The store of a database is asked for what is not known here, as on a new host, and then every six hours. With
    ``DUCKLING_API_KEY`` Airflow's API server is asked, once, which backup DAGs are paused or missing.

    :param for_queue: only the databases of this queue: its worker has their records. None: those without one.
    :param all_queues: the databases of all queues.
    :return: ``databases``, how many were looked at, and ``troubles``, none.
    """

    ui_color = "#f3e8ff"

    def __init__(self, *, for_queue: str | None = None, all_queues: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.for_queue = for_queue
        self.all_queues = all_queues

    def execute(self, context: Context) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        settings = Settings.from_env(os.environ)
        for secret in (settings.heartbeat_url, settings.api_key):
            if secret is not None:
                mask_secret(secret.get_secret_value())
        if settings.heartbeat_url is not None:
            mask_secret(urlsplit(settings.heartbeat_url.get_secret_value()).path)
        try:
            found = self._look(config.load(), settings, now)
        except ConfigError as error:
            found = Watched((), (Trouble(error.entry, "misconfigured", error.cause, error.hint or ""),))
        for standing in found.standings:
            self.log.info("%s: %s", standing.database.id, standing.state)
        for trouble in found.troubles:
            self.log.error("%s", trouble)
        untold = self._tell(found, settings, now)
        if found.troubles:
            count = len(found.troubles)
            raise AirflowFailException(f"{count} trouble{'s' * (count != 1)}, the first: {found.troubles[0]}")
        if untold:
            raise AirflowFailException(f"not every channel could be told: {untold[0]}")
        if settings.heartbeat_url is not None and (why := heartbeat(settings.heartbeat_url)):
            self.log.warning("DUCKLING_HEARTBEAT_URL was called in vain: %s", why)
        return {"databases": len(found.standings), "troubles": []}

    def _is_meant(self, database: Database) -> bool:
        return self.all_queues or database.queue == self.for_queue

    def _look(self, installation: Installation, settings: Settings, now: datetime) -> Watched:
        meant = [database for database in installation.databases if self._is_meant(database)]
        asked = ask_stores(meant, _source, now=now)
        if asked:
            self.log.info("%d stores were asked what they have", asked)
        dags = None
        if settings.api_key is not None and meant:
            try:
                dags = dag_facts(settings.api_key.get_secret_value())
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.log.warning("Airflow's API server did not tell which DAGs are paused: %s", type(error).__name__)
        found = look_at_all(installation, now=now, dags=dags, chosen=self._is_meant)
        if self.all_queues or self.for_queue is None:
            return found
        # Mistakes in databases.json are told once, by the watch of no queue.
        return Watched(found.standings, tuple(t for t in found.troubles if t.kind != "misconfigured"))

    def _tell(self, found: Watched, settings: Settings, now: datetime) -> list[str]:
        scope = "" if self.all_queues else self.for_queue or "none"
        if not settings.notify_conn_ids:
            return []
        try:
            untold = notify(
                settings.backup_path,
                found.troubles,
                settings.notify_conn_ids,
                send,
                now=now,
                host=settings.host,
                scope=scope,
            )
        except (DucklingError, OSError) as error:
            untold = [str(error)]
        for failure in untold:
            self.log.error("could not tell %s", failure)
        return untold


def _source(database: Database) -> BackupSource | None:
    from duckling_provider.backup.inventory.local_backups import LocalBackups

    if database.s3 is None:
        return LocalBackups(database) if database.is_here else None
    return DucklingHook(database.id).store()
