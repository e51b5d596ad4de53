"""One run of a sync: make the replica if there is none, bring it up to date, yield to backups, restores and readers.

While a process has a DuckDB file open for writing, no other can read or write it. So changes are gathered from the
binlog while the file is closed, and the replica's lock and the file are taken for one stretch of writing only. In it,
between two batches, a sync looks whether a process waits for the lock (`locks.is_wanted`); a hold, from a restore's
"pause" to its "resume", is found by the next attempt to take the lock. Either ends the run at the position that it
has reached, and the next run goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.exchange import identity
from duckling_provider.replica.freshness import Freshness, read_freshness, require_turn, write_freshness
from duckling_provider.replica.read_copy import require_read_copy
from duckling_provider.replication.copy.table_copy import require_all
from duckling_provider.replication.copying import copy_all, renew_tables
from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger, TableState, adopt
from duckling_provider.replication.mysql.preflight import preflight
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, server_of
from duckling_provider.replication.replica_file import opened
from duckling_provider.replication.rolling import Rolling
from duckling_provider.replication.run import MakeWayError, Run, Synced, as_named, mirrored, source_of
from duckling_provider.replication.validate.report import ValidationReport
from duckling_provider.replication.validate.validation import validate

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database

__all__ = ["Synced", "adopt_replica", "sync", "validate_replica"]

#: Seconds between two goes of the rolling validation in one run.
_COMPARE_EVERY = 60.0

log = logging.getLogger(__name__)


def sync(
    database: Database,
    *,
    control: Control | None = None,
    owner: str = "",
    seconds: float | None = None,
    wait: float = 5.0,
) -> Synced:
    """Bring the replica of `database` up to date; the first time, make it.

    :param owner: the run it belongs to, for those who wait.
    :param seconds: follow the binlog for so long; None ends at where the server stands at the beginning.
    :param wait: seconds to wait for a process that uses the replica, before yielding.
    :raises ConfigError: the entry names no MySQL server, or a copy for readers that can't be made there.
    :raises SourceError: the server can't be reached or lacks what replication needs.
    :raises PositionLostError: the server has purged what comes next, and ``onPositionLost`` is ``"fail"``.
    :raises ReplicaError: the file at ``duckdbPath`` is not ours, or a table can't be copied; the others are then up to
        date.
    :raises ReplicationError: it made way, as ``maxSyncYields`` runs in a row have.
    """
    control = control or Control()
    run = Run(database, control, owner, wait)
    following = Following(run)
    before = read_freshness(database.replica)
    is_known = before.file is not None and before.file == identity(database.replica)
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        _prepare(run)
        run.done.began = run.position
        # First what the binlog has: it may hold the very tables that would seem to be missing.
        following.follow(None)
        if renew_tables(run, following) and deadline is None:
            following.follow(None)
        if run.done.copied:
            run.note_losses()
        rolling = Rolling(run, following)
        if deadline is None:
            rolling.work()
        else:
            # Where nothing is compared, the binlog is followed in one go.
            every = _COMPARE_EVERY if database.validate_interval_days else seconds or 0.0
            _follow_and_compare(following, rolling, deadline, every)
        if database.read_copy is not None:
            with run.access("sync"):
                run.renew_read_copy()
    except MakeWayError as way:
        run.done.outcome, run.done.reason = "made way", str(way)
    except BusyError as error:
        run.done.outcome, run.done.reason = "made way", str(error)
    run.done.position = run.position
    _note_freshness(run, following, before, is_known=is_known)
    # Only now: the tables beside them are up to date, and their readers have them.
    require_all(run.refused)
    return run.done


def _follow_and_compare(following: Following, rolling: Rolling, deadline: float, every: float) -> None:
    """Follow the binlog until `deadline`, and compare a little every so many seconds."""
    while True:
        following.follow(min(deadline, time.monotonic() + every))
        rolling.work()
        if time.monotonic() >= deadline:
            return


def _note_freshness(run: Run, following: Following, before: Freshness, *, is_known: bool) -> None:
    """The result's lag, and what the next runs and backups have to know.

    :param before: what was noted before this run.
    :param is_known: it was about the file that this run found.

    :raises ReplicationError: too many runs in a row made way.
    """
    replica, now, done = run.database.replica, time.time(), run.done
    made_way = done.outcome == "made way"
    waiting, current = following.waiting_since, following.current_at
    if made_way and waiting is None and current is None:
        # It did not even learn what the binlog has: what waited still waits.
        waiting, current = before.waiting_since, before.current_at
    if made_way and not done.is_told and is_known:
        # It did not get to look, and whatever it applied came from MySQL.
        done.validated = None if done.recopy else _utc(before.validated)
        done.differences, done.differed = before.differences, _utc(before.differed)
    current = current if current is not None else before.current_at
    done.yields = before.yields + 1 if made_way else 0
    validated, differed = _seconds(done.validated), _seconds(done.differed)
    file = identity(replica) if done.is_told or is_known else None
    freshness = Freshness(done.yields, waiting, current, validated, done.differences, differed, file)
    if made_way or waiting is not None:
        done.lag = freshness.lag(now)
    if replica.parent.is_dir():
        write_freshness(replica, freshness)
    if made_way:
        most = run.database.max_sync_yields
        require_turn(freshness, most, reason=done.reason, lag=done.lag, subject=run.database.id)


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def adopt_replica(
    database: Database, *, owner: str = "duckling adopt", wait: float = 60.0, control: Control | None = None
) -> list[TableState]:
    """Take over the replica that the Node server has made, with its position.

    :returns: all tables; those in state ``"recopy"`` differ from MySQL's and are copied by the next sync.
    :raises ReplicaError: the file is not the Node server's.
    """
    database, source = as_named(database, source_of(database))
    preflight(source, wanted=database.mirrors)
    with contextlib.closing(connect(source)) as connection:
        tables = mirrored(database, read_tables(connection, source.database))
        server = server_of(connection).identity
    with replica_access(database.replica, operation="adopt", owner=owner, wait=wait, control=control):
        states = adopt(database.replica, database.id, tables, server=server)
        with opened(database.replica) as replica:
            Ledger.open(replica).set_source(source.database)
        return states


def validate_replica(
    database: Database,
    *,
    control: Control | None = None,
    owner: str = "duckling validate",
    wait: float = 60.0,
    max_differences: int = 20,
) -> ValidationReport:
    """Compare every mirrored table with MySQL at one position, to which the replica is brought first.

    :raises BusyError: another process uses the replica for longer than `wait` seconds.
    """
    control = control or Control()
    run = Run(database, control, owner, wait)
    run.fold_names()
    run.require_ours()
    with contextlib.closing(connect(run.source)) as connection:
        names = mirrored(run.database, read_tables(connection, run.source.database))
    with replica_access(database.replica, operation="validate", owner=owner, wait=wait, control=control):
        return validate(
            run.source,
            database.replica,
            names,
            control=control,
            catch_up=lambda position: Following(run).apply_until(database.replica, position),
            max_differences=max_differences,
        )


def _prepare(run: Run) -> None:
    """Make sure that there is a replica of ours whose position the server can go on from."""
    run.database.replica.parent.mkdir(parents=True, exist_ok=True)
    require_read_copy(run.database)
    run.fold_names()
    for finding in preflight(run.source, wanted=run.database.mirrors):
        log.warning("%s", finding)
    if run.look_at_replica():
        if run.look_at_binlog():
            run.leave_out()
            return
        if run.database.on_position_lost == "fail":
            raise run.lost()
        log.warning("the server no longer has what follows %s: the replica is copied again", run.position)
    copy_all(run)
