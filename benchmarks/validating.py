"""What the rolling validation costs a sync that has much to apply: ``python -m benchmarks --only validating``.

The same changes are applied to copies of the same replica by whole syncs, in turn without and with validation, which
has more to do than it is allowed: as much as is due after the shortest pause between two of its goes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from benchmarks.applying import MIXES, TABLE, fill
from benchmarks.cases import Case, Target
from benchmarks.databases import MARIADB, MYSQL, database_server, missing
from benchmarks.site import entry
from duckling_provider.replication.validate.schedule import PAUSE

#: Of the time, and so of the throughput, that validation may take.
WANTED = 0.05
_ID = "bench"


def validating(events: int, *, rows: int, runs: int) -> Iterator[Case]:
    """On each server.

    :param events: row changes that each sync applies, of the mixed load.
    :param rows: of the table before that, which is compared.
    """
    for kind in (MARIADB, MYSQL):
        title = f"Rolling validation beside {events:,} row events of {kind}, of a table of {rows:,} rows"
        lacking = missing(kind)
        yield Case(title, missing=(lacking,)) if lacking else _case(title, kind, events, rows=rows, runs=runs)


def _case(title: str, kind: str, events: int, *, rows: int, runs: int) -> Case:
    with database_server(kind) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DATA_PATH"] = str(folder)
        replica = folder / "replica.db"
        given = entry(_ID, replica, None) | {"mysqlConnectionString": server.url(server.create_database())}
        _fill(server, given, rows)
        _sync(given, 0)
        before = folder / "before.db"
        shutil.copyfile(replica, before)
        _write(server, given, events)
        walls: dict[bool, list[float]] = {False: [], True: []}
        compared = []
        for _ in range(runs):
            for validates in (False, True):
                shutil.copyfile(before, replica)
                if validates:
                    _was_at_work(replica, PAUSE)
                # Each table is always due: only the bounds hold it back.
                done, seconds = _sync(given, 1e-6 if validates else 0)
                walls[validates].append(seconds)
                if validates:
                    compared.append(done.compared)
        plain, proven = (statistics.median(walls[validates]) for validates in (False, True))
    # In a sync that goes on, one go follows another after the pause, and the sync applies meanwhile.
    passed = PAUSE + plain
    note = f"a sync takes {plain:.2f} s without a go, {proven:.2f} s with one that compares "
    return Case(
        title,
        targets=[Target("share of the time that a go of the validation takes", (proven - plain) / passed, WANTED)],
        notes=(f"{note}{statistics.median(compared):,.0f} rows, {passed:.0f} s after the last",),
    )


def _sync(given: dict[str, Any], days: float) -> tuple[Any, float]:
    import json

    from duckling_provider import config
    from duckling_provider.replication.sync import sync

    folder = Path(os.environ["DATA_PATH"])
    (folder / "databases.json").write_text(json.dumps([given | {"validateIntervalDays": days}]))
    (folder / "databases.json").chmod(0o600)
    started = time.monotonic()
    return sync(config.load().database(_ID)), time.monotonic() - started


def _was_at_work(replica: Path, seconds: float) -> None:
    """The validation was last at work so long ago."""
    import duckdb

    from duckling_provider.replication.model.ledger import Ledger
    from duckling_provider.replication.model.validated import TableValidation

    with duckdb.connect(str(replica)) as connection:
        looked = datetime.now(timezone.utc) - timedelta(seconds=seconds)
        Ledger.open(connection).validations.save(TableValidation("orders", looked_at=looked))


def _connected(server: Any, given: dict[str, Any]) -> Any:
    return server.connect(given["mysqlConnectionString"].rpartition("/")[2])


def _fill(server: Any, given: dict[str, Any], rows: int) -> None:
    with _connected(server, given) as connection, connection.cursor() as cursor:
        cursor.execute(TABLE)
        fill(lambda statement: cursor.execute(server.says(statement)), rows)


def _write(server: Any, given: dict[str, Any], events: int) -> None:
    (mixed,) = [mix for mix in MIXES if mix.name.startswith("mixed")]
    with _connected(server, given) as connection, connection.cursor() as cursor:

        def run(*statements: str) -> None:
            for statement in statements:
                cursor.execute(server.says(statement))

        mixed.write(run, events)
