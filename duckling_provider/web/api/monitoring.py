"""For monitors: one status code that says whether everything could be recovered, and numbers for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from pydantic import Field

from duckling_provider.base.errors import ConfigError
from duckling_provider.web.api.shapes import DatabaseStatus, Shape, problems, status_json
from duckling_provider.web.services.dependencies import (
    NO_CREDENTIALS,
    CallerDep,
    GuestDep,
    database_for,
    installation,
    statuses,
)
from duckling_provider.web.services.errors import ApiError
from duckling_provider.web.services.privacy import hidden_mistake, sees_places
from duckling_provider.web.services.records import Sync
from duckling_provider.web.services.status import Status

router = APIRouter(tags=["monitoring"])


class NamedStatus(DatabaseStatus):
    id: str


class Health(Shape):
    """Without credentials only the counts."""

    success: bool
    status: str = Field(
        description="ok; overdue when a database has no verified backup of the age it should have; broken when only a "
        "promise (rpoHours, rtoMinutes) is; misconfigured when databases.json can't be read at all."
    )
    databases: int
    overdue: int
    broken: int = Field(0, description="Databases of which a recovery would lose more, or take longer, than promised.")
    details: list[NamedStatus] | None = None
    error: str | None = Field(None, description="With credentials: why databases.json can't be read.")


@router.get(
    "/health",
    response_model=Health,
    responses={**problems(), 503: {"model": Health, "description": "Overdue"}},
    openapi_extra={"security": [{}]},  # credentials are welcome, and not needed
)
def health(
    caller: GuestDep,
    db: Annotated[str | None, Query(min_length=1, max_length=200, description="Only this database.")] = None,
) -> JSONResponse:
    """200 when each database has a verified backup no older than its schedule promises, 503 otherwise. Without
    credentials it tells counts, with them which.
    """
    try:
        found = installation()
    except ConfigError as error:
        why = str(error if sees_places(caller) else hidden_mistake(error)) if caller else None
        return _told(Health(success=False, status="misconfigured", databases=0, overdue=0, error=why))
    broken = len({problem.entry for problem in found.problems})
    if db is not None:
        if caller is None:
            raise ApiError(401, NO_CREDENTIALS, headers={"WWW-Authenticate": "Bearer"})
        chosen, broken = [database_for(caller, "read", db)], 0
    else:
        chosen = list(found.databases) if caller is None else caller.visible(found.databases)
    current = statuses(chosen, caller)
    # An entry with a mistake gets no backups.
    overdue = sum(not status.recoverable for status in current) + broken
    broken_promises = sum(status.promise.is_broken for status in current)
    details = None
    if caller is not None:
        details = [NamedStatus(id=s.database.id, **status_json(s).model_dump()) for s in current]
    return _told(
        Health(
            success=not overdue and not broken_promises,
            status="overdue" if overdue else "broken" if broken_promises else "ok",
            databases=len(chosen) + broken,
            overdue=overdue,
            broken=broken_promises,
            details=details,
        )
    )


def _told(body: Health) -> JSONResponse:
    """`details` and `error` only where there are any: callers without credentials don't see them. `broken` only where a
    promise is: the answer's other fields are the contract's.
    """
    left_out = {name for name in ("details", "error") if getattr(body, name) is None}
    left_out |= set() if body.broken else {"broken"}
    return JSONResponse(body.model_dump(by_alias=True, exclude=left_out), 200 if body.success else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**problems(), 200: {"content": {"text/plain": {}}, "description": "Prometheus text format"}},
)
def metrics(caller: CallerDep) -> Response:
    """Ages, sizes, durations, lags and holds in the Prometheus text format."""
    found = installation()
    registry = CollectorRegistry()
    registry.register(_Statuses(statuses(caller.visible(found.databases), caller), broken=len(found.problems)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Statuses(Collector):
    """What is known at the moment of the scrape; nothing is kept between two of them."""

    def __init__(self, found: Iterable[Status], *, broken: int) -> None:
        self._statuses = list(found)
        self._broken = broken

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "duckling_databases_misconfigured", "Mistakes in databases.json that keep entries out.", self._broken
        )
        rows: list[tuple[str, str, Callable[[Status], float | None]]] = [
            ("backup_last_success_timestamp_seconds", "When the last verified backup was taken.", _taken),
            ("backup_verified_timestamp_seconds", "When that backup was last read back and proven.", _verified),
            ("backup_age_seconds", "Age of the last verified backup.", lambda s: s.age),
            ("backup_due_seconds", "From this age on the backup is overdue.", lambda s: s.due),
            ("backup_size_bytes", "Size of the last verified backup.", _size),
            ("backup_duration_seconds", "Duration of the run that made it.", _duration),
            ("backup_cpu_seconds", "CPU time of the tasks that made it.", _cpu),
            ("backup_sent_bytes", "What they sent to the store.", _sent),
            ("backup_copied_bytes", "What the store copied of an earlier backup.", _copied),
            ("backup_recoverable", "1 when it is no older than it should be.", lambda s: int(s.recoverable)),
            ("backup_failing", "1 when the newest backup or verification failed.", lambda s: int(s.failed is not None)),
            ("recovery_seconds", "That a recovery is estimated to take.", lambda s: s.promise.seconds),
            ("recovery_loss_seconds", "Changes that a recovery now would lose.", lambda s: s.promise.loss),
            (
                "tested_timestamp_seconds",
                "When a drill last restored a backup.",
                lambda s: s.promise.tested.timestamp() if s.promise.tested else None,
            ),
            ("tested_seconds", "That this took.", lambda s: s.promise.measured),
            ("rpo_kept", "1 while no more would be lost than rpoHours; where it is set.", lambda s: s.promise.rpo_kept),
            ("rto_kept", "1 while it would take no longer than rtoMinutes; same.", lambda s: s.promise.rto_kept),
            ("sync_lag_seconds", "Upper bound of how far the replica is behind MySQL.", _lag),
            ("sync_yields", "Syncs in a row that made way to other programs.", _of_sync(lambda sync: sync.yields)),
            (
                "replica_validated_timestamp_seconds",
                "Since when all tables are known to equal MySQL's.",
                _of_sync(lambda sync: sync.validated.timestamp() if sync.validated else None),
            ),
            (
                "replica_differences",
                "Rows ever found to differ from MySQL's, and repaired.",
                _of_sync(lambda sync: sync.differences),
            ),
            (
                "read_copy_timestamp_seconds",
                "When the copy for readers was last seen to be equal to the replica.",
                _of_sync(lambda sync: sync.read_copy.timestamp() if sync.read_copy else None),
            ),
            (
                "replica_held",
                "1 while writers are kept away, where this host has the replica.",
                lambda s: int(bool(s.hold)),
            ),
        ]
        for name, text, value_of in rows:
            family = GaugeMetricFamily(f"duckling_{name}", text, labels=["database"])
            for status in self._statuses:
                value = value_of(status)
                if value is not None:
                    family.add_metric([status.database.id], value)
            yield family


def _taken(status: Status) -> float | None:
    return status.record.verified.created.timestamp() if status.record.verified else None


def _verified(status: Status) -> float | None:
    verified = status.record.verified.verified if status.record.verified else None
    return verified.timestamp() if verified else None


def _size(status: Status) -> int | None:
    return status.record.verified.size if status.record.verified else None


def _duration(status: Status) -> float | None:
    duration = status.record.verified.duration_ms if status.record.verified else None
    return None if duration is None else duration / 1000


def _lag(status: Status) -> float | None:
    return status.record.sync.lag_now(status.moment) if status.record.sync else None


def _of_sync(value_of: Callable[[Sync], float | None]) -> Callable[[Status], float | None]:
    return lambda status: value_of(status.record.sync) if status.record.sync else None


def _cpu(status: Status) -> float | None:
    return status.record.verified.cpu_seconds if status.record.verified else None


def _copied(status: Status) -> int | None:
    return status.record.verified.bytes_copied if status.record.verified else None


def _sent(status: Status) -> int | None:
    return status.record.verified.bytes_sent if status.record.verified else None
