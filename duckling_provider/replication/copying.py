"""Copies of a whole database or of single tables, made beside the replica and put in its place or into it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.file_lock import FileLock
from duckling_provider.replica.exchange import replace_replica
from duckling_provider.replica.locks import state_path
from duckling_provider.replication.again import mark_misshapen, read_present, within_bounds
from duckling_provider.replication.copy.table_copy import Copy, copy_tables, require_all
from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import literal, quote, twin
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, current_position
from duckling_provider.replication.replica_file import opened, remove, sync_file
from duckling_provider.replication.run import Run, mirrored

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: A full copy in the making, beside the replica; a run that is stopped leaves it for the next one.
COPY_SUFFIX = ".duckling-copy"
#: New copies of single tables, on their way into the replica.
TABLES_SUFFIX = ".duckling-tables"
COPY_LOCK_SUFFIX = ".duckling-copy-lock"

log = logging.getLogger(__name__)


def copy_all(run: Run) -> None:
    """Make the replica of a full copy, unless another run has made it while this one waited."""
    replica = run.database.replica
    target = state_path(replica, COPY_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _copy_lock(run), disk_errors(target.parent, subject=run.database.id, needed=0):
        if run.look_at_replica() and run.look_at_binlog():
            return  # another run has made it while this one waited
        copy = _copy(run, target)
        # What is complete stays for the next run; without the others it would be no replica.
        require_all(copy.refused)
        with opened(target) as connection:
            # Each table knows what it has already; from here on nothing is missing in any.
            ledger = Ledger.open(connection)
            ledger.save_position(copy.position)
            ledger.set_source(run.source.database)
        Following(run).apply_until(target, copy.end)
        sync_file(target)
        with run.access("full copy"):
            # It took hours, maybe: another program may have put a file there.
            run.require_consent()
            replace_replica(target, replica)
    run.done.copied = tuple(copy.tables)
    log.info("%s: %d tables copied", replica, len(copy.tables))
    run.look_at_replica()


def renew_tables(run: Run, following: Following) -> bool:
    """Copy the tables again that could not be followed, and those that came into sight by the configuration.

    What can't be copied stays as it is, marked, and in `run.refused`.

    :returns: whether there were any.
    """
    replica = run.database.replica
    present, known = mark_misshapen(run, following, read_present(run))
    _warn_of_unknown(run, present.keys() | known.keys())
    stale = {name for name, state in known.items() if state.state != "ok"}
    names = sorted(name for name in mirrored(run.database, present) if name in stale or name not in known)
    # What is only left out by the configuration stays as it is.
    gone = sorted(stale - present.keys())
    if not names and not gone:
        return False
    target = state_path(replica, TABLES_SUFFIX)
    with _copy_lock(run), disk_errors(target.parent, subject=run.database.id, needed=0):
        # What a killed run left is older than the replica is by now: changes in between would be missing.
        remove(target)
        if names:
            names = within_bounds(
                run, names, target.parent, {name: known[name].note for name in names if name in known}
            )
            log.info("copying again: %s", ", ".join(names))
            copy = _copy(run, target, names)
            names, run.refused = list(copy.tables), copy.refused
        with run.access("sync"), run.opened() as connection:
            names = _exchange(connection, target, names, gone)
        remove(target)
    run.done.copied += tuple(names)
    for name in (*names, *gone):
        run.done.recopy.pop(name, None)
    return True


def _warn_of_unknown(run: Run, known: Collection[str]) -> None:
    for name in run.database.include_tables:
        if name not in known:
            log.warning("%s: includeTables: there is no table %r", run.database.id, name)


def _copy_lock(run: Run) -> FileLock:
    path = state_path(run.database.replica, COPY_LOCK_SUFFIX)
    return FileLock(path, operation="copy", owner=run.owner, wait=run.wait, control=run.control)


def _copy(run: Run, target: Path, names: Collection[str] | None = None) -> Copy:
    with contextlib.closing(connect(run.source)) as connection:
        # Before anybody looks which tables there are: a later one comes from the binlog.
        position = current_position(connection)
        existing = mirrored(run.database, read_tables(connection, run.source.database))
    return copy_tables(
        run.source,
        target,
        [name for name in existing if names is None or name in names],
        position=position,
        control=run.control,
        storage_version=run.database.storage_version,
        database_id=run.database.id,
    )


def _exchange(connection: DuckDBPyConnection, fresh: Path, names: list[str], gone: Collection[str]) -> list[str]:
    """Put the tables of the file `fresh` in the place of the replica's, in one transaction; `gone` are dropped.

    :returns: those that were exchanged. A table that was copied before another run brought the replica further is not:
        the changes in between would be missing.
    """
    ledger = Ledger.open(connection)
    position = ledger.position()
    states: dict[str, TableState] = {}
    if names:
        connection.execute(f"ATTACH {literal(str(fresh))} AS fresh (READ_ONLY)")
        states = Ledger.open(connection, catalog="fresh").tables()
        names = [name for name in names if _is_not_behind(states[name].start, position)]
    connection.begin()
    known = ledger.tables().keys() - gone
    for name in (*names, *gone):
        if twin(name, known) is None:
            connection.execute(f"DROP TABLE IF EXISTS main.{quote(name)}")
        ledger.forget_table(name)
    for name in names:
        connection.execute(f"CREATE TABLE main.{quote(name)} AS FROM fresh.main.{quote(name)}")
        ledger.save_table(states[name])
        ledger.record("copied", name)
    connection.commit()
    if states:
        connection.execute("DETACH fresh")
    return names


def _is_not_behind(start: Position | None, position: Position | None) -> bool:
    return (
        start is not None and position is not None and start.server == position.server and start.order >= position.order
    )
