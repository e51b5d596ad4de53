"""The page that asks before a restore or a deletion: what it would be of, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping

from airflow.utils.session import create_session
from fastapi import Request
from fastapi.responses import Response

from duckling_provider.backup.inventory.choice import resolve
from duckling_provider.backup.inventory.local_backups import listed_here
from duckling_provider.backup.inventory.metadata import origin_of
from duckling_provider.backup.inventory.names import LATEST, MAC_SUFFIX, RULES, parse_name
from duckling_provider.base.errors import NotFoundError, RequestError
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.stores.store import BackupSource
from duckling_provider.web.page.listing import Item, merge, recorded_items
from duckling_provider.web.page.render import page
from duckling_provider.web.services.access import Caller
from duckling_provider.web.services.actions import existing_key, patiently
from duckling_provider.web.services.dependencies import now, statuses
from duckling_provider.web.services.privacy import Hide, hidden_backup, hidden_run, hiding, sees_places
from duckling_provider.web.services.queries import read_history
from duckling_provider.web.services.records import Backup, Run


def history_of(database: Database, hide: Hide) -> tuple[list[Run], list[Backup]]:
    """What Airflow's records tell of a database: its runs and its backups, without what the caller may not see."""
    with create_session() as session:
        runs, backups = read_history(session, database)
    return [hidden_run(found, hide) for found in runs], [hidden_backup(found, hide) for found in backups]


def restorable(database: Database) -> BackupSource:
    """Where the backups are that a restore may take.

    :raises WrongHostError: on another host, where only Airflow's workers get to them.
    """
    if database.s3 is None:
        database.require_host()
    return DucklingHook(database.id).backups()


def origin_problem(database: Database, store: BackupSource, key: str) -> str:
    """Why the newest backup may be of another replica than the one that is meant, where just the newest is asked for;
    empty where nothing speaks against it.
    """
    if key in RULES:
        try:
            resolve(database, store, key)
        except RequestError as error:
            return error.what
    return ""


def confirm(
    request: Request,
    caller: Caller,
    database: Database,
    action: str,
    key: str,
    *,
    typed: str | None = None,
    moment: Mapping[str, str] | None = None,
) -> Response:
    """The question before a restore or a deletion.

    :param typed: the wrong name that was typed; None when nothing was asked yet.
    :param moment: what was asked of a restore to a moment, and the ``error`` for which it was refused.
    """
    store = restorable(database)
    full = existing_key(database, store, key)
    complete = True
    with patiently(store) as bound:
        stored = bound.head(full)
        if store.mode == CLIENT:
            try:
                bound.head(full + MAC_SUFFIX)
            except NotFoundError:
                complete = False
    hide = hiding(caller, [database])
    _, recorded = history_of(database, hide)
    known = next((backup for backup in recorded if backup.key == full), None)
    (status,) = statuses([database], caller)
    newest = status.record.verified
    created = parse_name(full.rpartition("/")[2])
    return page(
        request,
        f"{action}.html",
        status=200 if typed is None and moment is None else 422,
        moment=moment,
        database=database,
        record=status.record,
        key=full,
        origin=origin_of(stored),
        origin_problem=hide(origin_problem(database, store, key)) if action == "restore" else "",
        shows_place=sees_places(caller),
        newest_asked=key == LATEST,
        created=created,
        age=None if created is None else (now() - created).total_seconds(),
        size=known.size if known is not None and known.size else stored.size,
        # What is known is of the newest backup.
        takes=None
        if status.promise.seconds is None or not (newest and newest.size)
        else status.promise.seconds * stored.size / newest.size,
        replica_size=_size_here(database),
        mode=known.mode if known else "",
        verified=known.verified if known else None,
        failure=known.failure.reason if known and known.failure else "",
        choices=_choices(database, recorded_items(recorded), full),
        complete=complete,
        needs_mac=store.mode == CLIENT,
        oldest=min((b.created for b in recorded if b.verified is not None and b.failure is None), default=None),
        has_binlog=database.writer == "duckling" and bool(database.mysql_connection_string.get_secret_value()),
        # Of the newest verified backup it is known, of the older ones it is not.
        reach=status.promise.recoverable_to if status.promise.by_binlog else None,
        is_newest=newest is not None and newest.key == full,
        others=sum(1 for b in recorded if b.key != full and b.verified is not None and b.failure is None),
        typed=typed,
        now=now(),
    )


def _choices(database: Database, recorded: list[Item], shown: str) -> list[Item]:
    """The backups that are known without asking the store, and the one that is shown, newest first."""
    known = {item.key: item for item in recorded}
    if database.s3 is None:
        known = {item.key: item for item in merge(recorded, None, listed_here(database), now=now()) if item.here}
    created = parse_name(shown.rpartition("/")[2])
    if shown not in known and created is not None:
        known[shown] = Item(shown, created, 0)
    return sorted(known.values(), key=lambda item: item.created, reverse=True)


def _size_here(database: Database) -> int | None:
    """The replica's size, where this host has it."""
    if not database.is_here:
        return None
    try:
        return database.replica.stat().st_size
    except OSError:
        return None
