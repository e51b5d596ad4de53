# ruff: noqa: S608 - the statements are its own
"""What the rolling validation costs a sync that has much to apply: ``python -m benchmarks --only validating``.

The same backlog is applied to copies of the same replica by whole syncs, without and with validation, which has more to
do than it is allowed: as much as is due after a sync of that length.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.applying import TABLE, fill
from benchmarks.cases import Case, Target
from benchmarks.databases import MARIADB, MYSQL, database_server, missing
from benchmarks.site import entry
from duckling_provider.replication.validate import schedule

#: Of the row events per second without validation, with it.
WANTED = 0.95
_ID = "bench"
#: Row events of one transaction.
_AT_ONCE = 1000


def validating(events: int, *, rows: int) -> Iterator[Case]:
    """On each server.

    :param events: row changes that each sync applies: a sync without validation is to take half a minute.
    :param rows: of the table that is changed, and compared.
    """
    for kind in (MARIADB, MYSQL):
        title = f"Rolling validation beside {events:,} row events of {kind}, of a table of {rows:,} rows"
        lacking = missing(kind)
        yield Case(title, missing=(lacking,)) if lacking else _case(title, kind, events, rows=rows)


def _case(title: str, kind: str, events: int, *, rows: int) -> Case:
    with database_server(kind) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DATA_PATH"] = str(folder)
        replica = folder / "replica.db"
        given = entry(_ID, replica, None) | {"mysqlConnectionString": server.url(server.create_database())}
        _fill(server, given, rows)
        _sync(given, 0)
        before = folder / "before.db"
        shutil.copyfile(replica, before)
        _write(server, given, events, rows)
        # What is measured first reads the binlog from the disk: once without before, and once after.
        plain, first = _sync(given, 0)
        shutil.copyfile(before, replica)
        # Where there is always more to apply, one sync follows the other, and each compares at its end.
        _was_at_work(replica)
        # Each table is always due: only the bounds hold it back, of which the pause is for longer syncs than this.
        with mock.patch.object(schedule, "PAUSE", min(schedule.PAUSE, first / 2)):
            proven, seconds = _sync(given, 1e-6)
        shutil.copyfile(before, replica)
        _, second = _sync(given, 0)
    without, with_it = plain.changes / min(first, second), proven.changes / seconds
    note = f"{without:,.0f} row events/s without, {with_it:,.0f} with it; {proven.compared:,} rows compared"
    return Case(
        title,
        targets=[Target("row events/s with rolling validation / without", with_it / without, WANTED, at_least=True)],
        notes=(f"{note}; syncs of {first:.1f} and {second:.1f} s without, {seconds:.1f} s with it",),
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


def _was_at_work(replica: Path) -> None:
    """The validation has compared something a moment ago."""
    import duckdb

    from duckling_provider.replication.model.ledger import Ledger
    from duckling_provider.replication.model.validated import TableValidation

    with duckdb.connect(str(replica)) as connection:
        Ledger.open(connection).validations.save(TableValidation("orders", looked_at=datetime.now(timezone.utc)))


def _connected(server: Any, given: dict[str, Any]) -> Any:
    return server.connect(given["mysqlConnectionString"].rpartition("/")[2])


def _fill(server: Any, given: dict[str, Any], rows: int) -> None:
    with _connected(server, given) as connection, connection.cursor() as cursor:
        cursor.execute(TABLE)
        fill(lambda statement: cursor.execute(server.says(statement)), rows)


def _write(server: Any, given: dict[str, Any], events: int, rows: int) -> None:
    """Updates, since they are written the fastest: the rest of the run is for what is measured."""
    with _connected(server, given) as connection, connection.cursor() as cursor:
        for done in range(0, events, _AT_ONCE):
            first = done % rows + 1
            cursor.execute(f"UPDATE orders SET price = price + 1 WHERE id BETWEEN {first} AND {first + _AT_ONCE - 1}")
