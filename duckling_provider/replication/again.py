"""Which tables one run copies again: those that could not be followed, and those that DDL left in another shape."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from duckling_provider.base.disk_space import MARGIN, require_space
from duckling_provider.base.units import human_bytes
from duckling_provider.replication.following import Following
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.shapes import difference
from duckling_provider.replication.model.tables import Table
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, query
from duckling_provider.replication.run import Run, mirrored

#: More than this is copied again by later runs, so that one run neither lasts for days nor fills the disk.
_MOST_TABLES, _MOST_BYTES = 100, 64 << 30

_SIZES = "SELECT TABLE_NAME, DATA_LENGTH FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s"

log = logging.getLogger(__name__)


def read_present(run: Run) -> dict[str, Table]:
    """The tables that the server has now."""
    with contextlib.closing(connect(run.source)) as connection:
        return read_tables(connection, run.source.database)


def known_tables(run: Run) -> dict[str, TableState]:
    """The tables as the replica's bookkeeping has them."""
    with run.access("sync"), run.opened(read_only=True) as connection:
        return Ledger.open(connection).tables()


def mark_misshapen(
    run: Run, following: Following, present: dict[str, Table]
) -> tuple[dict[str, Table], dict[str, TableState]]:
    """Mark the tables whose shape is not what the server says, although all DDL has been applied.

    :param present: the tables that the server had a moment ago.
    :returns: those that it has now, and all as the replica's bookkeeping has them then.
    """
    known = known_tables(run)
    suspects = _differing(run, present, known)
    if not suspects:
        return present, known
    # After this the replica is further than the server was when it was asked. So what is the same before and after,
    # and differs here, is no matter of time.
    following.follow(None)
    later = read_present(run)
    known = known_tables(run)
    notes = {name: note for name, note in _differing(run, later, known).items() if present.get(name) == later.get(name)}
    if notes:
        with run.access("sync"), run.opened() as connection:
            connection.begin()
            for name, note in notes.items():
                log.warning("%s needs a new copy: %s", name, note)
                Ledger.open(connection).mark_recopy(name, note)
            connection.commit()
            known = Ledger.open(connection).tables()
        run.done.recopy |= notes
    return later, known


def _differing(run: Run, present: Mapping[str, Table], known: Mapping[str, TableState]) -> dict[str, str]:
    return {
        name: note
        for name, table in mirrored(run.database, dict(present)).items()
        if name in known and known[name].state == "ok" and (note := difference(known[name].table, table))
    }


def within_bounds(run: Run, names: list[str], folder: Path, reasons: Mapping[str, str]) -> list[str]:
    """Those of `names` that this run copies, the smallest first; the others wait, and the result says so.

    :param reasons: why each is copied again.
    :raises NoSpaceError: when `folder` has no room for any of them.
    """
    sizes = _sizes(run, names)
    free = shutil.disk_usage(folder).free - MARGIN
    taken: list[str] = []
    total = 0
    for name in sorted(names, key=lambda name: (sizes[name], name)):
        total += sizes[name]
        if taken and (len(taken) == _MOST_TABLES or total > min(_MOST_BYTES, free)):
            break
        taken.append(name)
    if taken:
        needed = sum(sizes[name] for name in taken)
        require_space(folder, needed, subject=run.database.id, purpose=f"new copies of {', '.join(taken[:3])}")
    waiting = sorted(set(names) - set(taken))
    for name in waiting:
        run.done.recopy[name] = f"{reasons.get(name) or 'not copied yet'}; waits for a later run"
    if waiting:
        log.warning(
            "%d tables (%s) wait for a later run: one copies %d tables or %s again, and not more than the disk holds",
            len(waiting), human_bytes(sum(sizes[name] for name in waiting)), _MOST_TABLES, human_bytes(_MOST_BYTES),
        )  # fmt: skip
    return sorted(taken)


def _sizes(run: Run, names: Collection[str]) -> dict[str, int]:
    with contextlib.closing(connect(run.source)) as connection:
        rows = query(connection, _SIZES, run.source.database)
    found = {str(name): int(size or 0) for name, size in rows}
    return {name: found.get(name, 0) for name in names}
