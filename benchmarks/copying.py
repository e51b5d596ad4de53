"""The full copy of a MySQL table into a new DuckDB file: ``python -m benchmarks.copying``.

Against what one would write first: pymysql's rows, collected into arrow batches or handed to ``executemany``. Server,
reader and writer share this machine's cores, as they do for everybody in the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import MIB, ROOT, WORK
from benchmarks.cases import Case, Target
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
def mariadb(rows: int) -> Iterator[tuple[str, int]]:
    """A private server with table `data` of `rows` rows and 10 columns, in its memory; URL and bytes of the table."""
    import pymysql

    with (
        tempfile.TemporaryDirectory(prefix="duckling-mariadb-", dir=WORK) as folder,
        tempfile.TemporaryDirectory() as run,
    ):
        data, sock, port, password = Path(folder) / "data", Path(run) / "sock", _free_port(), secrets.token_hex(8)
        install = [
            _program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={data}",
            "--user=root",
            "--skip-test-db",
        ]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, capture_output=True)
        command = [_program("mariadbd"), "--no-defaults", f"--datadir={data}", "--user=root", f"--socket={sock}"]
        command += [f"--port={port}", "--bind-address=127.0.0.1", "--innodb-buffer-pool-size=1G", "--server-id=1"]
        command += ["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve", "--log-bin", "--binlog-format=ROW"]
        command += ["--binlog-row-metadata=FULL"]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                connection = _root(sock, server)
                with contextlib.closing(connection), connection.cursor() as cursor:
                    cursor.execute("CREATE USER bench@'127.0.0.1' IDENTIFIED BY %s", (password,))
                    cursor.execute("GRANT ALL ON *.* TO bench@'127.0.0.1'")
                    cursor.execute("CREATE DATABASE bench")
                    cursor.execute("USE bench")
                    # Not in the binlog: a gigabyte that no replica reads would be written for nothing.
                    cursor.execute("SET sql_log_bin = 0")
                    cursor.execute(f"CREATE TABLE data ({_COLUMNS})")
                    cursor.execute(f"INSERT INTO data SELECT {_VALUES} FROM seq_1_to_{rows}")  # noqa: S608
                    cursor.execute("ANALYZE TABLE data")
                    cursor.fetchall()
                    cursor.execute("SELECT DATA_LENGTH FROM information_schema.TABLES WHERE TABLE_NAME = 'data'")
                    size = int((cursor.fetchone() or (0,))[0])
                yield f"mysql://bench:{password}@127.0.0.1:{port}/bench", size
            except pymysql.err.Error as error:
                raise RuntimeError(f"the server did not do: {error}") from error
            finally:
                server.terminate()
                server.wait()


def _root(sock: Path, server: subprocess.Popen[bytes]) -> Any:
    import pymysql

    for _ in range(600):
        with contextlib.suppress(pymysql.err.OperationalError):
            return pymysql.connect(unix_socket=str(sock), user="root", autocommit=True, charset="utf8mb4")
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("mariadbd did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(name)
    return found


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
    """Speed against plain loops, and memory of ours against the size of the table."""
    WORK.mkdir(exist_ok=True)
    few = min(rows, _FEW)
    with mariadb(rows) as (url, size):
        names = {_OURS: ours, _ARROW: rows_to_arrow}
        contestants = {name: partial(_run, job.__name__, url) for name, job in names.items()}
        found = interleaved(size, contestants, runs=runs, reference=_OURS)
        each = interleaved(
            size * few // rows, {f"{_EACH}, {few:,} rows": lambda: _run(rows_to_executemany.__name__, url)}, runs=1
        )
    mine, arrow = found
    slower = (each[0].wall / few) / (mine.wall / rows)
    yield Case(
        f"Full copy of {rows:,} rows x 10 columns into a new DuckDB file; MB are the table's in InnoDB",
        [*found, *each],
        [
            Target("pymysql rows to DuckDB through arrow / full copy", arrow.ratio or 0.0, 3.0, at_least=True),
            Target("pymysql rows to DuckDB by executemany / full copy, per row", slower, 3.0, at_least=True),
        ],
        notes=(f"rows/s: {rows / mine.wall:,.0f}, {rows / arrow.wall:,.0f}, {few / each[0].wall:,.0f}",),
    )
    yield _memory([rows // 10, rows, rows * 12, rows * 36])


def _memory(sizes: list[int]) -> Case:
    grown: list[Row] = []
    for rows in sizes:
        with mariadb(rows) as (url, size):
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
