"""The contract's calls about backups: make, list, restore, verify, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from duckling_provider.backup.inventory.choice import is_complete
from duckling_provider.backup.inventory.local_backups import LocalBackups, listed_here
from duckling_provider.backup.inventory.names import LATEST, ListedBackup
from duckling_provider.backup.inventory.segment_records import bytes_sent
from duckling_provider.backup.inventory.states import BackupState
from duckling_provider.base.errors import DucklingError
from duckling_provider.base.moments import iso
from duckling_provider.config.databases import Database
from duckling_provider.dags.ids import DRILL, RESTORE, SNAPSHOT, UPLOAD, VERIFY
from duckling_provider.oversight.check import Look, looks
from duckling_provider.stores.store import KEPT_VERSIONS
from duckling_provider.web.api.shapes import Db, Shape, problems
from duckling_provider.web.services import runs
from duckling_provider.web.services.actions import (
    LOOKED_AT,
    delete_backup_now,
    existing_key,
    listed_in,
    looked_at,
    moment_conf,
    restore_conf,
    set_pin,
    states_of,
)
from duckling_provider.web.services.dependencies import CallerDep, database_for, now, remote_store
from duckling_provider.web.services.errors import ApiError, of_core

_KEY = "production/backup-2025-03-01T14-32-11-482Z.db"
_DONE: dict[str, Any] = {"success": True, "key": _KEY, "size": 214748364800, "duration": 92384}

router = APIRouter(tags=["backups"])

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
    duration: int = Field(description="Milliseconds that the run took, from its first task to its last.")


class Accepted(Shape):
    """A run that was begun and not waited for."""

    success: bool = True
    run_id: str = Field(examples=["manual__2025-03-01T14:32:11.482000+00:00"])
    url: str = Field(description="Its page in Airflow.")


_Misdated = Field("", description="Why its date can't be true, where it can't: such a backup is never latest.")


_State = Field(
    description="uploaded, verified, tested (a drill restored it) or disproved; null where it was not looked at: "
    "beyond the newest 200, or the store did not tell."
)
_StateAt = Field(description="The moment of the evidence for it.")
_Pinned = Field(description="It stays whatever its age.")


class Source(Shape):
    """Which replica a backup is of."""

    host: str
    replica: str = Field(description="Its identity, 16 hex digits.")


_Origin = Field(None, description="Which replica it is of, where the backup says so.")


class LocalBackup(Shape):
    filename: str
    size: int
    created_at: str
    complete: bool = Field(description="false: it is not what was recorded of it, and can't be restored.")
    state: str | None = _State
    state_at: str | None = _StateAt
    pinned: bool = _Pinned
    misdated: str = _Misdated
    origin: Source | None = _Origin


class S3Backup(Shape):
    key: str
    size: int
    last_modified: str
    complete: bool = Field(
        description="false: it can't be restored: an encrypted one without its .mac, or of another size than recorded."
    )
    state: str | None = _State
    state_at: str | None = _StateAt
    pinned: bool = _Pinned
    misdated: str = _Misdated
    bytes_sent: int | None = Field(
        None, description="What was sent of it, where this host uploaded it; the store copied the rest."
    )
    key_fingerprint: str | None = Field(
        None, description="Of the key that it is encrypted with here, where it says so; of the newest 200."
    )
    origin: Source | None = _Origin


class Listing(Shape):
    """Newest first."""

    local: list[LocalBackup]
    s3: list[S3Backup]


class Local(Shape):
    """A local backup that was made or restored."""

    success: bool = True
    message: str
    path: str = Field(description="The backup's file, on the replica's host.")


class NamedBody(BaseModel):
    """Which backup. Unknown fields are refused: a mistyped one must not be taken for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"key": _KEY}})

    key: str = Field(min_length=1, max_length=1024, description="A key, or a bare file name.")


class KeyBody(NamedBody):
    """Which backup, or by which rule."""

    key: str = Field(min_length=1, max_length=1024, description="A key, a bare file name, or latest.")


class RestoreBody(KeyBody):
    """Which backup to restore."""

    any_origin: bool = Field(
        default=False,
        validation_alias=AliasChoices("any_origin", "anyOrigin"),
        description="With latest: take the newest also when it is, or may be, of another replica than the present one.",
    )
    until: str = Field(default="", max_length=64, description="ISO 8601: with target_path, as MySQL had it then.")
    until_position: str = Field(
        default="",
        max_length=4096,
        validation_alias=AliasChoices("until_position", "untilPosition"),
        description="In place of until: a GTID, or FILE:OFFSET of MySQL's binlog.",
    )
    target_path: str = Field(
        default="",
        max_length=4096,
        validation_alias=AliasChoices("target_path", "targetPath"),
        description="With until: a new .db file below DUCKLING_RESTORE_PATH, on the replica's host.",
    )


class Deleted(Shape):
    success: bool = True
    key: str
    size: int
    warnings: list[str] = Field(
        default_factory=list, description="Where the bucket keeps versions, as with object lock: what stays there."
    )


_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": Accepted, "description": "The run was begun"}}


@router.post("/api/backups/s3", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def back_up(caller: CallerDep, db: Db, wait: Wait = True) -> JSONResponse:  # noqa: FBT002 - a query parameter
    """Back up now: snapshot, upload, verification, clean-up, by the database's backup DAG."""

    def begin() -> runs.Begun:
        database = database_for(caller, "backup", db)
        if database.s3 is None:
            raise ApiError(400, f'S3 is not configured for "{db}"; its local backups are made by schedule')
        return runs.begin("backup", db, caller=caller)

    return await _answer(await run_in_threadpool(begin), UPLOAD, wait=wait)


@router.get("/api/backups", response_model=Listing, responses=problems(502))
def backups(caller: CallerDep, db: Db) -> JSONResponse:
    """All backups of a database: local ones on this host, and those in S3, every page of the listing read. What the
    listing does not tell, the newest 200 are asked for. Where the store does not answer, the error has the local ones
    beside it.
    """
    database = database_for(caller, "read", db)
    moment = now()
    here = listed_here(database)
    source = LocalBackups(database)
    seen_here, _ = looks(source, here[:LOOKED_AT]) if here else ({}, None)
    known = states_of(database, source, here[:LOOKED_AT]) if here else {}
    # As plain JSON: the models of ten thousand rows would cost more than the listing.
    local = [
        {
            "filename": b.name,
            "size": b.size,
            "createdAt": iso(b.created),
            **_facts(b, seen_here.get(b.key), known.get(b.key), moment, complete=True),
        }
        for b in here
    ]
    if database.s3 is None:
        return JSONResponse({"local": local, "s3": []})
    try:
        store = remote_store(database)
        remote = listed_in(store)
        seen = looked_at(store, remote[:LOOKED_AT])
        known = states_of(database, store, remote[:LOOKED_AT])
    except DucklingError as error:
        problem = of_core(error)
        problem.more |= {"local": local, "s3": []}
        raise problem from error
    return JSONResponse(
        {
            "local": local,
            "s3": [
                {
                    "key": b.key,
                    "size": b.size,
                    "lastModified": iso(b.modified or b.created),
                    **_sent(database, b),
                    **_facts(b, seen.get(b.key), known.get(b.key), moment, complete=is_complete(b, store.mode)),
                    **({"keyFingerprint": seen[b.key].fingerprint} if b.key in seen else {}),
                }
                for b in remote
            ],
        }
    )


def _sent(database: Database, backup: ListedBackup) -> dict[str, int]:
    sent = bytes_sent(database, backup.name)
    return {} if sent is None else {"bytesSent": sent}


def _facts(
    backup: ListedBackup, look: Look | None, state: BackupState | None, moment: datetime, *, complete: bool
) -> dict[str, Any]:
    """What local backups and those in S3 have alike.

    :param look, state: None where it was not looked at.
    """
    facts: dict[str, Any] = {
        "complete": complete and not (look and look.fault),
        "state": state and state.name,
        "stateAt": iso(state.since) if state and state.since else None,
        "pinned": backup.is_pinned,
    }
    if reason := backup.misdated(moment):
        facts["misdated"] = reason
    if look is not None and look.origin is not None:
        facts["origin"] = look.origin.as_json()
    return facts


@router.post("/api/backups/s3/restore", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def restore(caller: CallerDep, db: Db, body: RestoreBody, wait: Wait = True) -> JSONResponse:  # noqa: FBT002
    """Replace the replica by a backup, by the database's restore DAG: writers are paused meanwhile."""

    def begin() -> runs.Begun:
        database = database_for(caller, "restore", db)
        if body.until or body.until_position or body.target_path:
            if body.key != LATEST or body.any_origin:
                raise ApiError(400, "until chooses the backup: key must be latest, and any_origin absent")
            moment = moment_conf(
                database, until=body.until, until_position=body.until_position, target_path=body.target_path
            )
            return runs.begin("restore", db, caller=caller, conf=moment)
        conf = restore_conf(database, remote_store(database), body.key, any_origin=body.any_origin)
        return runs.begin("restore", db, caller=caller, conf=conf)

    return await _answer(await run_in_threadpool(begin), RESTORE, wait=wait)


@router.post("/api/backups/s3/verify", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def verify(caller: CallerDep, db: Db, body: KeyBody, wait: Wait = True) -> JSONResponse:  # noqa: FBT002
    """Prove that a backup can be restored: it is read whole, by the database's verify DAG."""

    def begin() -> runs.Begun:
        database = database_for(caller, "verify", db)
        full = existing_key(database, remote_store(database), body.key)
        return runs.begin("verify", db, caller=caller, conf={"key": full})

    return await _answer(await run_in_threadpool(begin), VERIFY, wait=wait)


@router.post("/api/backups/s3/drill", response_model=Done, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def drill(caller: CallerDep, db: Db, body: KeyBody, wait: Wait = True) -> JSONResponse:  # noqa: FBT002
    """Restore a backup on trial, by the database's drill DAG: DuckDB reads all of it, and the replica is left alone."""

    def begin() -> runs.Begun:
        database = database_for(caller, "drill", db)
        full = existing_key(database, remote_store(database), body.key, proven=False)
        return runs.begin("drill", db, caller=caller, conf={"key": full})

    return await _answer(await run_in_threadpool(begin), DRILL, wait=wait)


@router.delete(
    "/api/backups/s3",
    response_model=Deleted,
    response_model_exclude_unset=True,
    responses=problems(409, 429, 502),
)
def delete(caller: CallerDep, db: Db, key: Key) -> Deleted:
    """Delete one backup in S3, with its .mac. The newest complete one may be deleted, too. A bucket with versioning or
    object lock keeps it as a noncurrent version; `warnings` then says so.
    """
    found, kept = delete_backup_now(caller, db, key)
    deleted = Deleted(success=True, key=found.key, size=found.size)
    if kept:
        deleted.warnings = [KEPT_VERSIONS]
    return deleted


class Pinned(Shape):
    success: bool = True
    key: str
    pinned: bool


@router.post("/api/backups/s3/pin", response_model=Pinned, responses=problems(429, 502))
def pin(caller: CallerDep, db: Db, body: NamedBody) -> Pinned:
    """Keep a backup in S3 whatever its age, until it is unpinned."""
    return Pinned(key=set_pin(caller, db, body.key, pinned=True), pinned=True)


@router.delete("/api/backups/s3/pin", response_model=Pinned, responses=problems(429, 502))
def unpin(caller: CallerDep, db: Db, key: Key) -> Pinned:
    """Let the retention decide about a pinned backup again."""
    return Pinned(key=set_pin(caller, db, key, pinned=False), pinned=False)


async def _answer(
    begun: runs.Begun, task: Literal["upload", "restore", "verify", "drill"], *, wait: bool
) -> JSONResponse:
    """:param task: whose result is the answer; the duration is the whole run's, which is what the caller waited for."""
    if not wait:
        return _accepted(begun)
    outcome = await runs.finished(begun)
    result = outcome.results.get(task)
    if result is None:
        raise ApiError(500, f"run {begun.run_id} succeeded and left no result", more={"runId": begun.run_id})
    duration = outcome.run.duration_ms
    done = {
        "key": result["key"],
        "size": result["size"],
        "duration": result["duration"] if duration is None else duration,
    }
    return JSONResponse({"success": True, **done}, headers=_named(begun))


def _accepted(begun: runs.Begun) -> JSONResponse:
    body = Accepted(run_id=begun.run_id, url=begun.url).model_dump(by_alias=True)
    return JSONResponse(body, status_code=202, headers=_named(begun) | {"Location": begun.url})


def _named(begun: runs.Begun) -> dict[str, str]:
    return {"X-Duckling-Run": begun.run_id}


@router.post("/api/automation/backup", response_model=Local, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def back_up_locally(caller: CallerDep, db: Db, wait: Wait = True) -> JSONResponse:  # noqa: FBT002
    """Back up now, as the Node.js server's call does: the answer names the local copy. With S3 it is uploaded too."""

    def begin() -> tuple[runs.Begun, Database]:
        database = database_for(caller, "backup", db)
        return runs.begin("backup", db, caller=caller), database

    begun, database = await run_in_threadpool(begin)
    return await _answer_locally(begun, database, SNAPSHOT, "Backup created", wait=wait)


@router.post("/api/automation/restore", response_model=Local, responses={**problems(409, 429, 500, 502), **_ACCEPTED})
async def restore_locally(caller: CallerDep, db: Db, wait: Wait = True) -> JSONResponse:  # noqa: FBT002
    """Restore the newest local backup, as the Node.js server's call does; the answer names it."""

    def begin() -> tuple[runs.Begun, Database]:
        database = database_for(caller, "restore", db)
        if database.is_here and not listed_here(database):
            raise ApiError(404, f'there is no local backup of "{db}" in {database.backup_path}')
        return runs.begin("restore", db, caller=caller, conf={"key": LATEST, "local": True}), database

    begun, database = await run_in_threadpool(begin)
    return await _answer_locally(begun, database, RESTORE, "Restored from the newest local backup", wait=wait)


async def _answer_locally(
    begun: runs.Begun, database: Database, task: Literal["snapshot", "restore"], message: str, *, wait: bool
) -> JSONResponse:
    if not wait:
        return _accepted(begun)
    result = (await runs.finished(begun)).results.get(task)
    if result is None:
        raise ApiError(500, f"run {begun.run_id} succeeded and left no result", more={"runId": begun.run_id})
    path = database.backup_path / result["key"]
    return JSONResponse({"success": True, "message": message, "path": str(path)}, headers=_named(begun))
