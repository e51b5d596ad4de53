"""What several calls have in common: the shapes of answers and errors, and the query parameter ``db``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from duckling_provider.base.moments import iso
from duckling_provider.web.services.status import Status

Db = Annotated[
    str, Query(min_length=1, max_length=200, description="The entry's id in databases.json.", examples=["production"])
]


def lower_camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class Shape(BaseModel):
    """Of an answer: camelCase outside, nothing beyond what is declared."""

    model_config = ConfigDict(alias_generator=lower_camel, populate_by_name=True, extra="forbid")


class Problem(BaseModel):
    """The shape of every error."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"success": False, "error": 'no database "prodution"'}}
    )

    success: bool = False
    error: str


class DatabaseStatus(Shape):
    """Whether the database could be brought back now; ages in seconds."""

    state: str = Field(description="no backup, overdue, failing, local only or protected.")
    reason: str
    age: float | None = Field(description="Since the last verified backup was taken.")
    due: float | None = Field(description="From that age on the state is overdue; null where nothing is scheduled.")
    last_verified_key: str | None
    last_verified_size: int | None
    recoverable_to: str | None = Field(description="The moment of the newest verified backup.")
    by_binlog: bool = Field(description="MySQL's binlog was found to have all that came after that backup.")
    loss_seconds: float | None = Field(description="Changes that a recovery now would lose.")
    estimated_seconds: float | None = Field(description="That a recovery would take, by what transfers took.")
    last_verified_at: str | None
    last_tested_at: str | None = Field(description="When a drill last restored a backup.")
    tested_seconds: float | None = Field(description="That this took.")
    rpo_kept: bool | None = Field(description="Whether lossSeconds is within rpoHours; null where none is promised.")
    rto_kept: bool | None = Field(description="Whether estimatedSeconds is within rtoMinutes; null as before.")
    dags: list[str] = Field(description="Its DAGs that Airflow has: backup, restore, verify, sync.")
    paused: list[str] = Field(description="Those that are paused.")
    next_backup_at: str | None
    tested_at: str | None = Field(description="When a drill last restored a backup on trial; null where none did.")
    tested_key: str | None
    test_duration: int | None = Field(description="Milliseconds that this restore took.")
    test_error: str | None = Field(description="Why the newest drill failed; null where it did not.")
    sync_lag: float | None = Field(description="At most so far behind MySQL.")
    read_copy_at: str | None = Field(
        description="When the copy for readers was last seen to be equal to the replica; null where there is none."
    )
    sync_yields: int | None = Field(description="Syncs in a row that made way to other programs.")
    validated: str | None = Field(
        description="All tables of the replica were found equal to MySQL's, row by row, at this time or later."
    )
    differences: int | None = Field(description="Rows of the replica ever found to differ from MySQL's; repaired.")
    differed_at: str | None = Field(description="When the last of them were found.")
    warnings: list[str] = Field(description="Backups whose date can't be true, by name, and a clock that is wrong.")
    hold: str | None = Field(description="Who keeps writers away just now, where this host has the replica.")


def status_json(status: Status) -> DatabaseStatus:
    """A status as the API shows it."""
    record = status.record
    verified, sync = record.verified, record.sync
    return DatabaseStatus(
        state=status.state,
        reason=status.reason,
        age=status.age,
        due=status.due,
        last_verified_key=verified.key if verified else None,
        last_verified_size=verified.size if verified else None,
        **status.promise.as_json(),
        dags=sorted(record.known),
        paused=sorted(record.paused),
        next_backup_at=iso(record.next_backup) if record.next_backup and "backup" not in record.paused else None,
        tested_at=iso(record.tested.at) if record.tested else None,
        tested_key=record.tested.key if record.tested else None,
        test_duration=record.tested.restore_ms if record.tested else None,
        test_error=record.drill.reason or None if record.drill else None,
        sync_lag=sync.lag_now(status.moment) if sync else None,
        read_copy_at=iso(sync.read_copy) if sync and sync.read_copy else None,
        sync_yields=sync.yields if sync else None,
        validated=iso(sync.validated) if sync and sync.validated else None,
        differences=sync.differences if sync else None,
        differed_at=iso(sync.differed) if sync and sync.differed else None,
        warnings=list(record.notes),
        hold=str(status.hold) if status.hold else None,
    )


_TEXTS: dict[int | str, str] = {
    400: "Bad request, or S3 is not configured",
    401: "No or wrong token",
    403: "The Airflow user may not do this",
    404: "Unknown database or key",
    405: "The path has no such method",
    409: "A backup or restore of that database is under way",
    413: "The body is too large",
    429: "Too many requests",
    500: "The run failed on this side; see its log",
    502: "The store refused or failed",
    503: "Overdue",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route answers with, for its documentation."""
    return {
        status: {"model": Problem, "description": _TEXTS[status]} for status in sorted({400, 401, 403, 404, *statuses})
    }


def plain(number: float) -> float:
    """24.0 as 24, which is how JSON's other writers put it."""
    return int(number) if number == int(number) else number
