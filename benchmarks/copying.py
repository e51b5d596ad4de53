"""The full copy of a MySQL table into a new DuckDB file: ``python -m benchmarks.copying``.

Against what one would write first: pymysql's rows, collected into arrow batches or handed to ``executemany``. Server,
reader and writer share this machine's cores, as they do for everybody in the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import MIB, ROOT, WORK
from benchmarks.cases import Case, Target
from benchmarks.databases import MARIADB, MYSQL, database_server, missing
from benchmarks.measure import Row, Run, interleaved, measured
from benchmarks.report import show

_OURS = "duckling, 4 ranges at once"
_ARROW = "pymysql rows -> arrow, 50,000 at a time"
_EACH = "pymysql rows -> executemany"
#: Of the rows, for a contestant that takes a millisecond for each.
_FEW = 20_000

_COLUMNS = """
    id BIGINT NOT NULL PRIMARY KEY, customer INT NOT NULL, number BIGINT, price DECIMAL(12, 2), weight DOUBLE,
    state TINYINT, name VARCHAR(40), note VARCHAR(80), ordered DATETIME, changed TIMESTAMP(6)
"""
_VALUES = """
    seq, seq % 9973, seq * 1000003 % 4294967291, seq % 100000 / 100, SQRT(seq), seq % 7,
    CONCAT('customer ', seq % 9973), IF(seq % 10, MD5(seq), NULL), '2024-01-01' + INTERVAL seq SECOND,
    '2024-01-01' + INTERVAL seq * 7 MICROSECOND
"""

# -- the server -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def filled(rows: int, kind: str = MARIADB) -> Iterator[tuple[str, int]]:
    """A private server with table `data` of `rows` rows and 10 columns, in its memory; URL and bytes of the table."""
    with database_server(kind, "--innodb-buffer-pool-size=1G", folder=WORK) as server:
        found = server.execute(
            [
                "CREATE DATABASE bench",
                "USE bench",
                # Not in the binlog: a gigabyte that no replica reads would be written for nothing.
                "SET sql_log_bin = 0",
                f"CREATE TABLE data ({_COLUMNS})",
                f"INSERT INTO data SELECT {_VALUES} FROM seq_1_to_{rows}",  # noqa: S608
                "ANALYZE TABLE data",
                # The load of other cases is written by the user whom the product connects as.
                f"GRANT UPDATE ON bench.* TO {server.user}",
                "SELECT DATA_LENGTH FROM information_schema.TABLES WHERE TABLE_NAME = 'data'",
            ]
        )
        yield server.url("bench"), int(found[0][0])


# -- the contestants, each in a process of its own ------------------------------------------------------------------


def ours(url: str, target: str) -> Callable[[], object]:
    """`copy_tables`, with everything that makes it right: positions, schemas, ledger, checkpoint."""
    import connectorx  # noqa: F401
    import duckdb  # noqa: F401
    import pyarrow as pa  # noqa: F401

    from duckling_provider.base.cancellation import Control
    from duckling_provider.replication.copy.table_copy import copy_tables
    from duckling_provider.replication.mysql.source import Source, connect, current_position

    source = Source.parse(url, subject="bench")
    with contextlib.closing(connect(source)) as connection:
        position = current_position(connection)
    return lambda: copy_tables(source, Path(target), ["data"], position=position, control=Control(), workers=4)


def rows_to_arrow(url: str, target: str) -> Callable[[], object]:
    """One cursor, one writer: rows as pymysql makes them, columns as arrow makes them of those."""
    import pyarrow as pa

    connection, replica = _ends(url, target)
    names = [column.split()[0] for column in _COLUMNS.replace("(12, 2)", "").split(",")]

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM data")
            while rows := cursor.fetchmany(50_000):
                columns = zip(*rows, strict=True)
                batch = pa.table({name: pa.array(values) for name, values in zip(names, columns, strict=True)})
                replica.register("batch", batch)
                replica.execute("INSERT INTO data SELECT * FROM batch")
                replica.unregister("batch")
        replica.close()

    return work


def rows_to_executemany(url: str, target: str) -> Callable[[], object]:
    """The same loop without arrow, over the first `_FEW` rows."""
    connection, replica = _ends(url, target)

    def work() -> None:
        replica.begin()
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM data LIMIT {_FEW}")  # noqa: S608
            while rows := cursor.fetchmany(1000):
                replica.executemany("INSERT INTO data VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        replica.commit()
        replica.close()

    return work


def _ends(url: str, target: str) -> tuple[Any, Any]:
    import duckdb

    from duckling_provider.replication.mysql.source import Source, connect

    replica = duckdb.connect()
    replica.execute(f"ATTACH '{target}' AS r (STORAGE_VERSION 'v1.5.0')")
    replica.execute("USE r")
    replica.execute(f"CREATE TABLE data ({_COLUMNS.replace('NOT NULL', '').replace('PRIMARY KEY', '')})")
    return connect(Source.parse(url, subject="bench"), cursor="stream"), replica


_JOBS = {job.__name__: job for job in (ours, rows_to_arrow, rows_to_executemany)}


def _run(job: str, url: str) -> Run:
    target = WORK / "copying.db"
    for path in WORK.glob("copying.db*"):
        path.unlink()
    # The URL has a password, if only that of a private server: not on a command line.
    environ = {**os.environ, "BENCH_ARGUMENTS": json.dumps({"url": url, "target": str(target)})}
    command = [sys.executable, "-m", "benchmarks.copying", "--job", job]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job} failed:\n{done.stderr[-3000:]}")
    target.unlink()
    return Run(**json.loads(done.stdout.splitlines()[-1]))


# -- the cases ------------------------------------------------------------------------------------------------------


def copying(rows: int, *, runs: int) -> Iterator[Case]:
    """Speed against plain loops on each server, and memory of ours against the size of the table."""
    WORK.mkdir(exist_ok=True)
    for kind in (MARIADB, MYSQL):
        title = f"Full copy of {rows:,} rows x 10 columns of {kind} into a DuckDB file; MB are the table's in InnoDB"
        lacking = missing(kind)
        yield Case(title, missing=(lacking,)) if lacking else _speed(title, kind, rows, runs=runs)
    yield _memory([rows // 10, rows, rows * 12, rows * 36])


def _speed(title: str, kind: str, rows: int, *, runs: int) -> Case:
    few = min(rows, _FEW)
    with filled(rows, kind) as (url, size):
        names = {_OURS: ours, _ARROW: rows_to_arrow}
        contestants = {name: partial(_run, job.__name__, url) for name, job in names.items()}
        found = interleaved(size, contestants, runs=runs, reference=_OURS)
        each = interleaved(
            size * few // rows, {f"{_EACH}, {few:,} rows": lambda: _run(rows_to_executemany.__name__, url)}, runs=1
        )
    mine, arrow = found
    slower = (each[0].wall / few) / (mine.wall / rows)
    return Case(
        title,
        [*found, *each],
        [
            Target("pymysql rows to DuckDB through arrow / full copy", arrow.ratio or 0.0, 3.0, at_least=True),
            Target("pymysql rows to DuckDB by executemany / full copy, per row", slower, 3.0, at_least=True),
        ],
        notes=(f"rows/s: {rows / mine.wall:,.0f}, {rows / arrow.wall:,.0f}, {few / each[0].wall:,.0f}",),
    )


def _memory(sizes: list[int]) -> Case:
    grown: list[Row] = []
    for rows in sizes:
        with filled(rows) as (url, size):
            grown += interleaved(size, {f"duckling, {rows:,} rows": partial(_run, "ours", url)}, runs=1)
    # DuckDB keeps what it wrote in its buffers until they are full: growth ends at 256 MiB and what is under way. Of a
    # million rows and more, the last two sizes are beyond that.
    return Case(
        "Memory of a full copy",
        grown,
        [
            Target("peak growth in MiB at the most rows", grown[-1].growth / MIB, 448),
            Target("that against a third of the rows", grown[-1].growth / grown[-2].growth, 1.2),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copying", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--job", choices=_JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work = _JOBS[options.job](**json.loads(os.environ["BENCH_ARGUMENTS"]))
        print(json.dumps(asdict(measured(work))))
        return
    console = Console()
    for case in copying(options.rows, runs=options.runs):
        show(case, console)


if __name__ == "__main__":
    main()
