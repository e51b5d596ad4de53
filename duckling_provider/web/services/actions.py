"""What the REST API and the page do alike to backups and stores."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TypedDict

from airflow.models.log import Log
from airflow.utils.session import create_session
from sqlalchemy.exc import SQLAlchemyError

from duckling_provider.backup.inventory import states
from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.backup.inventory.names import LATEST, RULES, ListedBackup, checked_key, parse_name
from duckling_provider.backup.inventory.states import BackupState
from duckling_provider.backup.retention.clean_up import delete_backup
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, DucklingError, StoreError
from duckling_provider.config.databases import Database
from duckling_provider.dags.ids import dag_id
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.oversight import audit
from duckling_provider.oversight.check import Look, check_database, looks
from duckling_provider.oversight.record import note
from duckling_provider.stores.store import BackupSource
from duckling_provider.web.services.access import Caller
from duckling_provider.web.services.dependencies import database_for, remote_store, statuses
from duckling_provider.web.services.errors import ApiError
from duckling_provider.web.services.privacy import hiding
from duckling_provider.web.services.queries import forget_backup

#: Seconds that a request of ours waits for a store: less than proxies wait for us.
STORE_SECONDS = 45.0

log = logging.getLogger(__name__)


class ShownStep(TypedDict):
    """A step of a connection test; `error` is None where it went well."""

    name: str
    detail: str
    error: str | None


@contextmanager
def patiently(source: BackupSource) -> Iterator[BackupSource]:
    """`source` for as long as a request may wait for it.

    :raises StoreError: it did not answer in time.
    """
    control = Control()
    timer = threading.Timer(STORE_SECONDS, control.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield source.under(control)
    except CancelledError as error:
        raise StoreError(
            f"the store did not answer within {STORE_SECONDS:g} s", subject=source.url, hint="Try again later."
        ) from error
    finally:
        timer.cancel()


def listed_in(source: BackupSource) -> list[ListedBackup]:
    """The backups that a store has, newest first.

    :raises DucklingError: it refused, failed, or did not answer in time.
    """
    with patiently(source) as bound:
        return list_backups(bound)


#: Of so many of the newest backups a listing tells what only a request for each can: a first one takes seconds.
LOOKED_AT = 200
#: Objects don't change, so what was seen of one is kept: by store, key, size and time.
_seen: OrderedDict[tuple[str, str, int, datetime | None], Look] = OrderedDict()
_MOST_SEEN = 20_000


def looked_at(source: BackupSource, backups: Sequence[ListedBackup]) -> dict[str, Look]:
    """A look at each of the backups, by key; without those that could not be looked at, or not in time."""
    wanted = {(source.url, b.key, b.size, b.modified): b for b in backups}
    missing = [backup for place, backup in wanted.items() if place not in _seen]
    found: dict[str, Look] = {}
    try:
        with patiently(source) as bound:
            found, unknown = looks(bound, missing)
            if unknown is not None:
                log.warning("not all backups could be looked at: %s", unknown)
    except StoreError as error:
        log.warning("the backups could not be looked at: %s", error)
    for place, backup in wanted.items():
        if backup.key in found:
            _seen[place] = found[backup.key]
    while len(_seen) > _MOST_SEEN:
        _seen.popitem(last=False)
    return {backup.key: look for place, backup in wanted.items() if (look := _seen.get(place)) is not None}


@contextmanager
def audited(caller: Caller, database: Database, what: audit.Deed, *, key: str = "", detail: str = "") -> Iterator[None]:
    """Add a line about the block to this host's audit, and to Airflow's own log, which its page shows."""
    with audit.audited(database, what, by=caller.name, key=key, detail=detail):
        yield
    with suppress(SQLAlchemyError), create_session() as session:
        facts = {name: text for name, text in (("key", key), ("detail", detail)) if text}
        dag = dag_id("backup", database.id)
        session.add(Log(f"duckling_{what}", dag_id=dag, owner=caller.name, extra=json.dumps(facts)))


def states_of(database: Database, source: BackupSource, backups: Sequence[ListedBackup]) -> dict[str, BackupState]:
    """What is known of each of the backups, by key; of none where the store does not answer in time."""
    try:
        with patiently(source) as bound:
            return states.read_states(database, bound, backups)
    except DucklingError as error:
        log.warning("the states of the backups could not be read: %s", error)
        return {}


def set_pin(caller: Caller, db: str, key: str, *, pinned: bool) -> str:
    """Pin a backup in S3, or let the retention decide about it again; its full key.

    :raises NotFoundError: there is no such backup.
    """
    # What keeps a backup from being deleted, and what lets it go, is for those who may delete it.
    database = database_for(caller, "delete", db)
    store = remote_store(database)
    full, _ = _backup_key(store, key)
    with audited(caller, database, "pin" if pinned else "unpin", key=full), patiently(store) as bound:
        if pinned:
            states.pin(database, bound, full, by=caller.name)
        else:
            states.unpin(bound, full)
    return full


def delete_backup_now(caller: Caller, db: str, key: str) -> tuple[ListedBackup, bool]:
    """Delete a backup from S3; with it comes whether the store keeps it as a noncurrent version.

    :raises ApiError: 409 while a restore or a verification may be reading it.
    """
    database = database_for(caller, "delete", db)
    store = remote_store(database)
    full, created = _backup_key(store, key)
    active = statuses([database], caller)[0].record.active
    busy = next((run for run in active if run.kind in ("restore", "verify", "drill")), None)
    if busy is not None:
        raise ApiError(409, f'a {busy.kind} of "{db}" is under way: run {busy.run_id}', more={"runId": busy.run_id})
    size = store.head(full).size
    # First: to report a backup as missing although it is there does less harm than the reverse.
    with create_session() as session:
        forget_backup(session, db, full)
    with audited(caller, database, "delete", key=full):
        kept = delete_backup(store, full)
    note(database, lambda record: record.without(full))
    return ListedBackup(full, created, size), kept


def existing_key(database: Database, store: BackupSource, key: str, *, proven: bool = True) -> str:
    """`key` in full, once the store was asked whether it is there; ``latest`` becomes the key that it means.

    :param proven: False: ``latest`` is the newest complete one, which is to be verified.
    :raises DucklingError: it lies outside the prefix.
    :raises NotFoundError: there is no such backup.
    """
    with patiently(store) as bound:
        if key in RULES:
            return resolve(database, bound, key, any_origin=True, proven=proven)
        full, _ = _backup_key(bound, key)
        bound.head(full)
        return full


def restore_conf(database: Database, store: BackupSource, key: str, *, any_origin: bool) -> dict[str, str | bool]:
    """The conf of a restore of a backup that is there. ``latest`` stays what it is: the worker, which has the replica,
    compares the origins.
    """
    full = existing_key(database, store, key)
    conf: dict[str, str | bool] = {"key": key if key in RULES else full}
    return {**conf, "any_origin": True} if any_origin else conf


def moment_conf(database: Database, *, until: str, until_position: str = "", target_path: str) -> dict[str, str]:
    """The conf of a restore to a moment.

    :raises RequestError: it asks for what makes no sense, or a run may not write there.
    """
    from duckling_provider.replication.route import Goal

    if Goal.of_restore(until, until_position, target_path=target_path, key=LATEST) is None:
        raise ApiError(400, "a restore to a moment needs until or until_position")
    target = DucklingHook(database.id).target(target_path.strip())
    wanted = {"until": until.strip(), "until_position": until_position.strip()}
    return {name: text for name, text in wanted.items() if text} | {"target_path": str(target)}


def _backup_key(store: BackupSource, key: str) -> tuple[str, datetime]:
    """`key` in full, and the moment in it. Nothing but a backup directly under the prefix: below it may be another
    database's.
    """
    full = checked_key(store.prefix, key)
    created = parse_name(full[len(store.prefix) :])
    if created is None:
        raise ApiError(400, f"this is not a backup's key: {key}")
    return full, created


def connection_steps(caller: Caller, database: Database) -> list[ShownStep]:
    """The steps of a connection test that were reached, as `caller` may read them."""
    hide = hiding(caller, [database])
    try:
        store = remote_store(database)
    except DucklingError as error:
        return [{"name": "store", "detail": "", "error": hide(str(error))}]
    return [
        {
            "name": step.name.removeprefix("store: "),
            "detail": hide(step.detail),
            "error": step.error and hide(step.error),
        }
        for step in check_database(database, store)
        # Replica and folders are the worker's business, whose host this need not be.
        if step.name.startswith("store")
    ]
