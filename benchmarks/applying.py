# ruff: noqa: S608 - the statements are its own
"""How fast changes from the binlog get into a replica: ``python -m benchmarks.applying [row events]``.

A private server writes them first, then one process reads and applies them, with the server on the same cores. Several
mixes, each a run of its own; the figures are row
events per second from the start of the stream to the last commit.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Target
from benchmarks.databases import MARIADB, MYSQL, database_server, missing
from benchmarks.measure import Run, measured

#: Row events per second that are wanted of the mixed load.
WANTED = 15_000

TABLE = (
    "CREATE TABLE orders (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, customer INT NOT NULL, state "
    "ENUM('new','paid'), name VARCHAR(60), note TEXT, price DECIMAL(12,2), weight DOUBLE, day DATE, made DATETIME(6), "
    "changed TIMESTAMP NULL)"
)
_ROW = (
    "{id}, seq % 5000, IF(seq % 2, 'new', 'paid'), concat('customer ', seq), repeat('n', seq % 80), seq / 7, seq / 3, "
    "'2024-02-29' + INTERVAL seq % 900 DAY, '2024-02-29 12:00:00.123456' + INTERVAL seq SECOND, now()"
)


@dataclass(frozen=True)
class Mix:
    """`write` makes about `events` row events by a function that runs statements.

    :param share: of the events that are asked for; writing transactions of one row takes longer than applying them.
    """

    name: str
    write: Callable[[Callable[..., None], int], None]
    share: float = 1.0


def fill(run: Callable[..., None], rows: int) -> None:
    for first in range(1, rows, 1000):
        run(f"INSERT INTO orders SELECT {_ROW.format(id='NULL')} FROM seq_{first}_to_{first + 999}")


def _inserts(run: Callable[..., None], events: int) -> None:
    fill(run, events)


def _mixed(run: Callable[..., None], events: int) -> None:
    """Transactions of 100 row events: half inserts, 2 in 5 updates, 1 in 10 deletions."""
    for number in range(events // 100):
        first = number * 100 + 1
        run(
            "START TRANSACTION",
            f"INSERT INTO orders SELECT {_ROW.format(id='NULL')} FROM seq_{first}_to_{first + 49}",
            f"UPDATE orders SET price = price + 1, state = 'paid' WHERE id > {number * 45} LIMIT 40",
            f"DELETE FROM orders WHERE id > {number * 45} LIMIT 10",
            "COMMIT",
        )


def _single(run: Callable[..., None], events: int) -> None:
    """Transactions of one row event each, as applications in autocommit write them."""
    fill(run, 1000)
    for number in range(events):
        run(f"UPDATE orders SET weight = weight + 1 WHERE id = {number % 1000 + 1}")


MIXES = (
    Mix("inserts, 1000 a transaction", _inserts),
    Mix("mixed, 100 a transaction", _mixed),
    Mix("updates, 1 a transaction", _single, 0.2),
)


def apply_all(url: str, start: Any, path: str) -> Any:
    """Read and apply everything after `start`."""
    import duckdb

    from duckling_provider.replication.apply.applier import Applier
    from duckling_provider.replication.binlog.stream import BinlogStream
    from duckling_provider.replication.model.ledger import Ledger
    from duckling_provider.replication.mysql.source import Source

    source = Source.parse(url, subject="benchmark")
    with duckdb.connect(path) as connection:
        ledger = Ledger.create(connection)
        ledger.save_position(start)
        applier = Applier(connection, ledger, database=source.database)
        with BinlogStream(source, start) as stream:
            take = applier.take
            for event in stream.read():
                take(event)
        applier.flush()
        return applier.applied


def _prepared(mariadb: Any, mix: Mix, events: int) -> tuple[str, Any]:
    """(url of a database with the changes written, position before them)."""
    from duckling_provider.replication.mysql.source import Source, connect, current_position

    database = mariadb.create_database()
    url = mariadb.url(database)
    start = current_position(connect(Source.parse(url, subject="benchmark")))
    with mariadb.connect(database) as connection, connection.cursor() as cursor:

        def run(*statements: str) -> None:
            for statement in statements:
                cursor.execute(mariadb.says(statement))

        run(TABLE)
        mix.write(run, int(events * mix.share))
    return url, start


def measure(events: int, *, runs: int, kind: str = MARIADB) -> Iterator[dict[str, Any]]:
    with database_server(kind) as mariadb, tempfile.TemporaryDirectory() as folder:
        for mix in MIXES:
            url, start = _prepared(mariadb, mix, events)
            seen: list[tuple[int, Run]] = []
            for number in range(runs):
                done: list[Any] = []
                path = str(Path(folder) / f"{mix.name}-{number}.db")
                run = measured(lambda: done.append(apply_all(url, start, path)))  # noqa: B023 - called at once
                seen.append((done[0].changes, run))
            yield {
                "name": mix.name,
                "row_events": seen[0][0],
                "row_events_per_s": round(statistics.median(count / run.wall for count, run in seen)),
                "cpu_us_per_event": round(statistics.median(run.cpu / count * 1e6 for count, run in seen), 1),
                "peak_growth_mib": round(max(run.growth for _, run in seen) / 2**20),
            }


def lag(seconds: float, *, rate: int = 1000) -> dict[str, Any]:
    """While `rate` rows a second are written: how old the oldest row of each batch is when it is committed here.

    The writer inserts ten rows at a time, each with the moment of its writing.
    """
    import duckdb

    from duckling_provider.replication.apply.applier import Applier
    from duckling_provider.replication.binlog.stream import BinlogStream
    from duckling_provider.replication.model.ledger import Ledger
    from duckling_provider.replication.model.tables import RowChange
    from duckling_provider.replication.mysql.source import Source, connect, current_position

    written, lags, oldest = 0, [], None
    stop = threading.Event()

    def write(mariadb: Any, database: str) -> None:
        nonlocal written
        begun = time.time()
        with mariadb.connect(database) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                values = ", ".join(f"({time.time()!r}, 'some text', {n})" for n in range(10))
                cursor.execute(f"INSERT INTO t (written, a, b) VALUES {values}")
                written += 10
                time.sleep(max(0.0, begun + written / rate - time.time()))

    with database_server(MARIADB) as mariadb, tempfile.TemporaryDirectory() as folder:
        database = mariadb.create_database()
        source = Source.parse(mariadb.url(database), subject="benchmark")
        start = current_position(connect(source))
        mariadb.execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, written DOUBLE, a TEXT, b INT)", database)
        writer = threading.Thread(target=write, args=(mariadb, database))
        with duckdb.connect(str(Path(folder) / "lag.db")) as connection:
            ledger = Ledger.create(connection)
            ledger.save_position(start)
            applier = Applier(connection, ledger, database=database)
            writer.start()
            until = time.monotonic() + seconds
            with BinlogStream(source, start, follow=True) as stream:
                for event in stream.read():
                    if oldest is None and isinstance(event, RowChange) and event.after is not None:
                        oldest = event.after[1]
                    if applier.take(event):
                        if oldest is not None:
                            lags.append(time.time() - oldest)
                        oldest = None
                        if time.monotonic() > until:
                            break
            stop.set()
            writer.join()
            done = applier.applied.changes
    return {
        "name": f"lag at {rate} rows/s, {seconds:.0f} s",
        "row_events": done,
        "batches": len(lags),
        "median_lag_s": round(statistics.median(lags), 2),
        "worst_lag_s": round(max(lags), 2),
    }


def applying(events: int, *, runs: int, seconds: float) -> Iterator[Case]:
    """Rates of the mixes on each server, and the lag under a steady load of `seconds`."""
    for kind in (MARIADB, MYSQL):
        title = f"Changes from the binlog of {kind} into a replica, {events:,} row events of 10 columns"
        lacking = missing(kind)
        if lacking:
            yield Case(title, missing=(lacking,))
            continue
        found = list(measure(events, runs=runs, kind=kind))
        told = [f"{row['name']}: {row['row_events_per_s']:,}/s, +{row['peak_growth_mib']} MiB" for row in found]
        (mixed,) = [row for row in found if row["name"].startswith("mixed")]
        targets = [Target("row events/s, mixed load", mixed["row_events_per_s"], WANTED, at_least=True)]
        if kind == MARIADB:
            waited = lag(seconds)
            name = f"seconds behind, worst, {waited['name'].removeprefix('lag at ')}"
            targets.append(Target(name, waited["worst_lag_s"], 5.0))
        yield Case(title, targets=targets, notes=("; ".join(told),))


def profile(events: int, mix: Mix, kind: str) -> None:
    with database_server(kind) as mariadb, tempfile.TemporaryDirectory() as folder:
        url, start = _prepared(mariadb, mix, events)
        profiler = cProfile.Profile()
        profiler.runcall(apply_all, url, start, str(Path(folder) / "profiled.db"))
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int, nargs="?", default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--server", choices=(MARIADB, MYSQL), default=MARIADB)
    parser.add_argument("--lag", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--profile", type=int, metavar="MIX", help="profile one mix by its number instead")
    given = parser.parse_args()
    if given.profile is not None:
        profile(given.events, MIXES[given.profile], given.server)
        return 0
    missed = False
    for row in measure(given.events, runs=given.runs, kind=given.server):
        print(json.dumps(row), flush=True)
        if row["name"].startswith("mixed"):
            missed |= _told(f"at least {WANTED} row events/s of the mixed load", row["row_events_per_s"] >= WANTED)
    row = lag(given.lag)
    print(json.dumps(row))
    missed |= _told("a lag of less than 5 s", row["worst_lag_s"] < 5)
    return 1 if missed else 0


def _told(wanted: str, holds: bool) -> bool:  # noqa: FBT001 - it is what is told
    print(f"wanted: {wanted}: {'holds' if holds else 'missed'}")
    return not holds


if __name__ == "__main__":
    sys.exit(main())
