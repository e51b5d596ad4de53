"""A database as it was at a moment: the newest backup from before it, and MySQL's binlog from there up to the last
transaction that was committed before it.

It goes to a file of its own, never over the replica: the next sync would apply the mistake again that is to be undone.
Nothing has that file's name before it is complete. What only the server of today could tell (rows whose generated
columns the binlog leaves out, a new copy of a table that can't be followed) is not asked for: such a table stays as it
was at its last exact moment, and the result names it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duckling_provider.backup.reading.restore import RestoreResult, restore_backup
from duckling_provider.backup.reading.restore_plan import RestorePlan, plan_restore
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import RequestError
from duckling_provider.base.moments import iso
from duckling_provider.replica.duckdb_file import wal_files
from duckling_provider.replication.apply.batch import Applied
from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.mysql.preflight import preflight
from duckling_provider.replication.replica_file import opened, sync_file
from duckling_provider.replication.route import WITHOUT, Binlog, Goal, Route, utc
from duckling_provider.replication.run import Run

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.stores.store import BackupSource


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Left:
    """A table that stays as it was at the time `at`, None: as it was in the backup; and why."""

    name: str
    reason: str
    at: datetime | None

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason, "asOf": None if self.at is None else iso(self.at)}


@dataclass(frozen=True)
class UntilResult:
    """:param restored: of the backup that it began with; its duration is that of everything.
    :param changes: of rows that were applied.
    :param left: tables that could not be followed.
    """

    restored: RestoreResult
    route: Route
    changes: int
    left: tuple[Left, ...]

    def as_json(self) -> dict[str, Any]:
        return {**self.route.as_json(), "changes": self.changes, "tables": [left.as_json() for left in self.left]}


class _NewerBackupError(RequestError):
    """The backup holds more than is wanted: the replica's host and the server have different clocks."""


def plan_until(
    database: Database,
    store: BackupSource,
    goal: Goal,
    *,
    to: Path,
    any_origin: bool = False,
    control: Control | None = None,
) -> tuple[RestorePlan, Route]:
    """What `restore_until` would do; nothing is written, and no backup is downloaded. Raises as it does, as far as that
    can be told before.
    """
    run = _run(database, control or Control())
    route = Binlog(run).route(store, goal, any_origin=any_origin)
    return plan_restore(database, store, route.key, to=to), route


def restore_until(
    database: Database,
    store: BackupSource,
    goal: Goal,
    *,
    to: Path,
    any_origin: bool = False,
    control: Control | None = None,
) -> UntilResult:
    """Make the file `to` of a backup and the binlog.

    :param to: a path that does not exist yet.
    :raises PositionLostError: MySQL no longer has the binlog after the backup's position.
    :raises ReplicationError: the server's clock stepped back around that time, so that it was twice.
    :raises NotFoundError: no backup is from before it.
    :raises RequestError: the position is not in the binlog.
    """
    control = control or Control()
    started = time.monotonic()
    run = _run(database, control)
    binlog = Binlog(run)
    before: datetime | None = None
    while True:
        route = binlog.route(store, goal, any_origin=any_origin, before=before)
        log.info("%s: from %s by the binlog up to %s", goal, route.key, route.end)
        found: list[tuple[Applied, tuple[Left, ...]]] = []

        def apply(new: Path, route: Route = route, found: list[tuple[Applied, tuple[Left, ...]]] = found) -> None:
            try:
                found.append(_apply(run, new, route))
            except BaseException:
                for left in wal_files(new):
                    left.unlink(missing_ok=True)
                raise

        try:
            restored = restore_backup(database, store, route.key, to=to, control=control, finish=apply)
        except _NewerBackupError as error:
            log.warning("%s; an older one is taken", error.what)
            before = route.created
            continue
        ((applied, left),) = found
        took = int((time.monotonic() - started) * 1000)
        whole = RestoreResult(
            restored.key, to.stat().st_size, took, to, None, restored.key_fingerprint, restored.origin
        )
        return UntilResult(whole, route, applied.changes, left)


def _run(database: Database, control: Control) -> Run:
    run = Run(database, control, "duckling restore", 0.0)
    run.fold_names()
    preflight(run.source, wanted=run.database.mirrors)
    return run


def _apply(run: Run, new: Path, route: Route) -> tuple[Applied, tuple[Left, ...]]:
    """Bring the file `new`, which no other program knows, up to the end of `route`."""
    run.control.begin("apply", 0)
    with opened(new, read_only=True) as connection:
        ledger = Ledger.open(connection)
        position, source = ledger.position(), ledger.source()
    if position is None:
        raise RequestError("the backup holds no position of MySQL's binlog", subject=route.key, hint=WITHOUT)
    if source not in {"", run.source.database}:
        raise RequestError(
            f"the backup mirrors the MySQL database {source!r}, and mysqlConnectionString names "
            f"{run.source.database!r}",
            subject=route.key,
            hint=WITHOUT,
        )
    run.position = position
    if not run.look_at_binlog():
        lost = run.lost()
        lost.hint = f"Moments after the beginning of its binlog can be reached from a later backup. {WITHOUT}"
        raise lost
    if position.server == route.end.server and position.order > route.end.order:
        raise _NewerBackupError(
            f"the backup stands at {position}, and {route.end} is wanted",
            subject=route.key,
            hint="The clocks of the replica's host and of MySQL differ.",
        )
    applied = Following(run).apply_until(new, route.end, as_it_was=True)
    with opened(new, read_only=True) as connection:
        states = Ledger.open(connection).tables().values()
    sync_file(new)
    left = []
    for state in states:
        if state.state != "ok":
            at = applied.left_at.get(state.name, 0.0)
            left.append(Left(state.name, state.note, utc(at) if at else None))
    return applied, tuple(left)
