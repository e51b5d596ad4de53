"""Calls about the entries of databases.json: what is configured, how it stands, whether the store can be reached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from duckling_provider.backup.inventory.local_backups import listed_here
from duckling_provider.base.errors import DucklingError, StoreError
from duckling_provider.base.moments import iso
from duckling_provider.config.editing import change_s3
from duckling_provider.config.environment import Settings
from duckling_provider.stores.s3 import S3Store
from duckling_provider.web.api.shapes import Db, Shape, plain, problems, status_json
from duckling_provider.web.services.access import Caller
from duckling_provider.web.services.actions import audited, connection_steps
from duckling_provider.web.services.dependencies import (
    CallerDep,
    database_for,
    installation,
    mistakes,
    remote_store,
    statuses,
)
from duckling_provider.web.services.errors import ApiError
from duckling_provider.web.services.privacy import sees_places

router = APIRouter(tags=["databases"])

Id = Annotated[
    str, Path(min_length=1, max_length=200, description="The entry's id in databases.json.", examples=["production"])
]

_S3: dict[str, Any] = {
    "enabled": True,
    "bucket": "my-backups",
    "region": "eu-central-1",
    "accessKeyId": "AKIAEXAMPLE",
    "secretAccessKey": "***",
    "encryption": "client-aes256",
    "encryptionKey": "***",
}


#: Fields of an entry that tell where its data lies.
_PLACES = ("s3", "mysqlConnectionString")


class Listed(Shape):
    success: bool = True
    databases: list[dict[str, Any]] = Field(
        description="Entries as they stand in the file, secrets as ***, and status."
    )
    problems: list[str] = Field(description="Entries with mistakes; they have no DAGs.")


class Settings_(Shape):  # noqa: N801 - the core's Settings are another thing
    success: bool = True
    s3: dict[str, Any] | None = Field(examples=[_S3])
    warnings: list[str] = Field(default_factory=list)


class S3Body(BaseModel):
    """The whole s3 object, by the rules of databases.json. A secret sent as *** stays what it is."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": _S3})

    enabled: bool
    bucket: str | None = None
    region: str | None = None


class Tested(Shape):
    """A connection test; `steps` only when they were asked for."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"success": True, "message": "S3 connection successful (HeadBucket)"}}
    )

    success: bool = True
    message: str
    steps: list[dict[str, Any]] | None = None


class BackupAutomation(Shape):
    enabled: bool
    interval_hours: float
    retention_days: float
    last_backup_at: str | None
    s3_enabled: bool = Field(alias="s3Enabled")
    s3_last_upload_at: str | None = Field(alias="s3LastUploadAt")


class Automation(Shape):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "backup": {
                    "enabled": True,
                    "intervalHours": 24,
                    "retentionDays": 7,
                    "lastBackupAt": "2025-03-01T14:32:11.482Z",
                    "s3Enabled": True,
                    "s3LastUploadAt": "2025-03-01T14:32:11.482Z",
                }
            }
        }
    )

    backup: BackupAutomation


@router.get("/api/databases", response_model=Listed, responses=problems())
def databases(caller: CallerDep) -> Listed:
    """Every database that the caller may see, secrets masked, and how it stands by what runs recorded. Where it lies in
    S3 and in MySQL is for those who may edit connections.
    """
    found = installation()
    visible = caller.visible(found.databases)
    left_out = () if sees_places(caller) else _PLACES
    return Listed(
        databases=[
            {
                **{name: value for name, value in database.masked().items() if name not in left_out},
                "status": status_json(status).model_dump(by_alias=True),
            }
            for database, status in zip(visible, statuses(visible, caller), strict=True)
        ],
        problems=[str(problem) for problem in mistakes(caller, found, visible)],
    )


@router.get("/api/databases/{database_id}/s3", response_model=Settings_, responses=problems())
def get_s3(caller: CallerDep, database_id: Id) -> Settings_:
    """The s3 object of an entry, secrets as ***; null where there is none."""
    database = database_for(caller, "configure", database_id)
    return Settings_(s3=database.masked().get("s3"))


@router.put("/api/databases/{database_id}/s3", response_model=Settings_, responses=problems(409, 413, 429))
def put_s3(caller: CallerDep, database_id: Id, body: S3Body) -> Settings_:
    """Set the s3 object of an entry: checked by the rules of databases.json, then written in one step, mode 0600."""
    return _change(caller, database_id, body.model_dump(exclude_unset=True))


@router.delete("/api/databases/{database_id}/s3", response_model=Settings_, responses=problems(409, 429))
def delete_s3(caller: CallerDep, database_id: Id) -> Settings_:
    """Remove the s3 object of an entry. Backups that are in S3 stay there; from now on there are local ones only."""
    return _change(caller, database_id, None)


@router.post(
    "/api/databases/{database_id}/s3/test",
    response_model=Tested,
    response_model_exclude_unset=True,
    responses=problems(429, 502),
)
def try_s3(
    caller: CallerDep,
    database_id: Id,
    steps: Annotated[  # noqa: FBT002 - a query parameter
        bool, Query(description="Try everything that backups need under the prefix, not the bucket alone.")
    ] = False,
) -> Tested:
    """HeadBucket with the entry's credentials; with `steps`, put, ranged get, list, multipart upload and delete too."""
    database = database_for(caller, "backup", database_id)
    store = remote_store(database)
    if not steps:
        if isinstance(store, S3Store):
            try:
                store.impatient().reach()
            except StoreError as error:
                raise ApiError(502, " ".join(p for p in (f"{error.cause}.", error.hint) if p)) from error
        return Tested(success=True, message="S3 connection successful (HeadBucket)")
    tried = connection_steps(caller, database)
    failed = next((step for step in tried if step["error"]), None)
    if failed is not None:
        raise ApiError(502, str(failed["error"]), more={"steps": tried})
    return Tested(success=True, message="S3 connection successful", steps=[dict(step) for step in tried])


@router.get("/api/automation/status", response_model=Automation, responses=problems())
def automation(caller: CallerDep, db: Db) -> JSONResponse:
    """The schedule of a database's backups and when the last were made."""
    database = database_for(caller, "read", db)
    record = statuses([database], caller)[0].record
    backup = record.verified
    local = next(iter(listed_here(database)), None)
    made = [found.created for found in (backup, local) if found is not None]
    # As plain JSON, in which 24 hours are 24 and not 24.0.
    status = {
        "backup": {
            "enabled": database.auto_backup,
            "intervalHours": plain(database.interval_hours),
            "retentionDays": plain(database.local_retention_days),
            "lastBackupAt": iso(max(made)) if made else None,
            "s3Enabled": database.s3 is not None,
            "s3LastUploadAt": iso(record.uploaded) if record.uploaded and database.s3 is not None else None,
        }
    }
    return JSONResponse(status)


def _change(caller: Caller, database_id: str, s3: dict[str, Any] | None) -> Settings_:
    """Write an entry's s3 object, and answer with what is there now."""
    caller.demand("configure", database_id)
    before: Mapping[str, Any] = {}
    with contextlib.suppress(DucklingError):  # an entry with a mistake may be corrected
        before = installation().database(database_id).entry.get("s3") or {}
    database, warnings = change_s3(Settings.from_env(os.environ), database_id, s3)
    after = database.entry.get("s3") or {}
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    with audited(caller, database, "change", detail=", ".join(f"s3.{name}" for name in names)):
        pass
    return Settings_(s3=database.masked().get("s3"), warnings=list(warnings))
