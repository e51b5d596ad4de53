"""The contract's calls about backups: make, list, restore, verify, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from airflow.utils.session import create_session
from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from duckling_provider.backup.backup_object import list_backups, resolve
from duckling_provider.backup.local_backups import listed_here
from duckling_provider.backup.names import LATEST, ListedBackup, checked_key, parse_name
from duckling_provider.backup.retention import delete_backup
from duckling_provider.base.moments import iso
from duckling_provider.config.databases import Database
from duckling_provider.stores.store import Store
from duckling_provider.web.dependencies import CallerDep, Shape, database_for, problems, remote_store, statuses
from duckling_provider.web.errors import ApiError
from duckling_provider.web.state import runs
from duckling_provider.web.state.access import Caller
from duckling_provider.web.state.records import forget_backup

_KEY = "production/backup-2025-03-01T14-32-11-482Z.db"
_DONE: dict[str, Any] = {"success": True, "key": _KEY, "size": 214748364800, "duration": 92384}

router = APIRouter(tags=["backups"])

Db = Annotated[
    str, Query(min_length=1, max_length=200, description="The entry's id in databases.json.", examples=["production"])
]
Wait = Annotated[
    bool,
    Query(
        description="false: answer at once with 202 and the run. Otherwise the answer comes when the run has ended; a "
        "caller that goes away before cancels nothing."
    ),
]
Key = Annotated[str, Query(min_length=1, max_length=1024, examples=[_KEY], description="The key, or a bare file name.")]


class Done(Shape):
    """A finished backup, restore or verification."""

    model_config = ConfigDict(json_schema_extra={"example": _DONE})

    success: bool = True
    key: str
    size: int = Field(description="Bytes of the .db file.")
    duration: int = Field(description="Milliseconds.")


class Accepted(Shape):
    """A run that was begun and not waited for."""

    success: bool = True
    run_id: str = Field(examples=["manual__2025-03-01T14:32:11.482000+00:00"])
    url: str = Field(description="Its page in Airflow.")


class LocalBackup(Shape):
    filename: str
    size: int
    created_at: str


class S3Backup(Shape):
    key: str
    size: int
    last_modified: str


class Listing(Shape):
    """Newest first."""

    local: list[LocalBackup]
    s3: list[S3Backup]


class KeyBody(BaseModel):
    """Which backup. Unknown fields are refused: a mistyped one must not be taken for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"key": _KEY}})

    key: str = Field(min_length=1, max_length=1024, description="A key, a bare file name, or latest.")


class Deleted(Shape):
    success: bool = True
    key: str
    size: int


_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": Accepted, "description": "The run was begun"}}


@router.post("/api/backups/s3", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def back_up(caller: CallerDep, db: Db, wait: Wait = True) -> Any:  # noqa: FBT002 - a query parameter
    """Back up now: snapshot, upload, verification, clean-up, by the database's backup DAG."""

    def begin() -> runs.Begun:
        database = database_for(caller, "backup", db)
        if database.s3 is None:
            raise ApiError(400, f'S3 is not configured for "{db}"; its local backups are made by schedule')
        return runs.begin("backup", db, caller=caller)

    return await _answer(await run_in_threadpool(begin), "upload", wait=wait, whole=True)


@router.get("/api/backups", response_model=Listing, responses=problems(502))
def backups(caller: CallerDep, db: Db) -> Any:
    """All backups of a database: local ones on this host, and those in S3, every page of the listing read."""
    database = database_for(caller, "read", db)
    local = listed_here(database)
    remote = list_backups(remote_store(database)) if database.s3 is not None else []
    # As plain JSON: the models of ten thousand rows would cost more than the listing.
    return JSONResponse(
        {
            "local": [{"filename": b.name, "size": b.size, "createdAt": iso(b.created)} for b in local],
            "s3": [{"key": b.key, "size": b.size, "lastModified": iso(b.modified or b.created)} for b in remote],
        }
    )


@router.post("/api/backups/s3/restore", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def restore(caller: CallerDep, db: Db, body: KeyBody, wait: Wait = True) -> Any:  # noqa: FBT002
    """Replace the replica by a backup, by the database's restore DAG: writers are paused meanwhile."""
    return await _with_key("restore", caller, db, body.key, wait=wait)


@router.post("/api/backups/s3/verify", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def verify(caller: CallerDep, db: Db, body: KeyBody, wait: Wait = True) -> Any:  # noqa: FBT002
    """Prove that a backup can be restored: it is read whole, by the database's verify DAG."""
    return await _with_key("verify", caller, db, body.key, wait=wait)


@router.delete("/api/backups/s3", response_model=Deleted, responses=problems(409, 429, 502))
def delete(caller: CallerDep, db: Db, key: Key) -> Any:
    """Delete one backup in S3, with its .mac, for good. The newest complete one may be deleted, too."""
    found = delete_now(caller, db, key)
    return Deleted(key=found.key, size=found.size)


# ---- what the page does as well ----------------------------------------------------------------------------


def delete_now(caller: CallerDep, db: str, key: str) -> ListedBackup:
    """Delete a backup from S3.

    :raises ApiError: 409 while a restore or a verification may be reading it.
    """
    database = database_for(caller, "delete", db)
    store = remote_store(database)
    full, created = _backup_key(store, key)
    busy = next((run for run in statuses([database])[0].record.active if run.kind != "backup"), None)
    if busy is not None:
        raise ApiError(409, f'a {busy.kind} of "{db}" is under way: run {busy.run_id}', more={"runId": busy.run_id})
    size = store.head(full).size
    # First: a backup that is told as missing although it is there does less harm than the reverse.
    with create_session() as session:
        forget_backup(session, db, full)
    delete_backup(store, full)
    return ListedBackup(full, created, size)


def existing(database: Database, store: Store, key: str) -> str:
    """`key` in full, once the store was asked whether it is there; ``latest`` becomes the key that it means.

    :raises DucklingError: it lies outside the prefix.
    :raises NotFoundError: there is no such backup.
    """
    if key == LATEST:
        return resolve(database, store, key)
    full, _ = _backup_key(store, key)
    store.head(full)
    return full


def _backup_key(store: Store, key: str) -> tuple[str, datetime]:
    """`key` in full, and the moment in it. Nothing but a backup directly under the prefix: below it may be another
    database's.
    """
    full = checked_key(store.prefix, key)
    created = parse_name(full[len(store.prefix) :])
    if created is None:
        raise ApiError(400, f"this is not a backup's key: {key}")
    return full, created


async def _with_key(kind: Literal["restore", "verify"], caller: Caller, db: str, key: str, *, wait: bool) -> Any:
    """Begin a run on a backup that is there and, with `wait`, answer with its result."""

    def begin() -> runs.Begun:
        database = database_for(caller, kind, db)
        full = existing(database, remote_store(database), key)
        return runs.begin(kind, db, caller=caller, conf={"key": full})

    return await _answer(await run_in_threadpool(begin), kind, wait=wait)


async def _answer(begun: runs.Begun, task: str, *, wait: bool, whole: bool = False) -> Any:
    """:param whole: the duration is that of the run, not of the task alone."""
    headers = {"X-Duckling-Run": begun.run_id}
    if not wait:
        body = Accepted(run_id=begun.run_id, url=begun.url).model_dump(by_alias=True)
        return JSONResponse(body, status_code=202, headers=headers | {"Location": begun.url})
    outcome = await runs.finished(begun)
    result = outcome.results.get(task) if outcome else None
    if outcome is None or result is None:
        raise ApiError(500, f"run {begun.run_id} succeeded and left no result", more={"runId": begun.run_id})
    duration = outcome.run.duration_ms if whole else None
    done = {
        "key": result["key"],
        "size": result["size"],
        "duration": result["duration"] if duration is None else duration,
    }
    return JSONResponse({"success": True, **done}, headers=headers)
