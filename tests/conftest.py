"""What all tests share: real S3 servers on loopback ports, small replicas, and an installation in a temporary folder.

Helpers are fixtures that return functions or small objects, because test folders are no packages.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

#: DUCKLING_TESTS=full: the long forms, each step and many random moments; otherwise a few of each stand for the rest.
FULL = os.environ.get("DUCKLING_TESTS") == "full"

# A slow machine is no failure.
settings.register_profile("short", deadline=None, max_examples=30)
settings.register_profile("full", deadline=None)
settings.load_profile("full" if FULL else "short")

# A script's background job ignores Ctrl-C, and what it starts does too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "fixtures.airflow_database",
    "fixtures.certificates",
    "fixtures.cpu_seconds",
    "fixtures.file_systems",
    "fixtures.mysql_servers",
    "fixtures.s3_servers",
    "fixtures.stores",
    "fixtures.store_double",  # imports the one before, of which pytest wants to read the assertions first
]

_OTHER_SETTINGS = frozenset(
    {
        "AUTO_BACKUP",
        "AUTO_START_SYNC",
        "CDC_ENABLED",
        "DUCKLING_API_KEY",
        "DUCKLING_DRILL_PATH",
        "DUCKLING_HOST",
        "DUCKLING_MAX_MBIT_PER_SECOND",
        "DUCKLING_MIN_ENCRYPTION",
        "DUCKLING_NICE",
        "DUCKLING_POOL",
        "DUCKLING_POOL_SLOTS",
        "DUCKLING_RESTORE_PATH",
        "EXCLUDED_TABLES",
        "SYNC_INTERVAL_MINUTES",
    }
)


#: What takes longest, to come first where several processes share the tests: the one that begins with such a file last
#: keeps all others waiting.
_LONGEST = (
    "airflow/",
    "page/test_live.py",
    "survival/test_kills.py",
    "survival/test_replication.py",
    "replication/",
    "test_demo.py",
    "cli/test_cli.py",
    "test_benchmarks.py",
    "test_bench_differential.py",
    "survival/test_stores.py",
)
_HERE = Path(__file__).parent
#: What makes a test slow: it starts a server, an Airflow or a child process, or talks to one.
_SLOW_MARKERS = ("airflow", "browser", "cluster", "demo", "mysql", "server", "survival")
_SLOW_FIXTURES = frozenset(
    {
        "airflow",
        "airflow_db",
        "dist",
        "launch",
        "make_replica",
        "mariadb",
        "moto_auth_server",
        "moto_server",
        "new_server",
        "nginx",
        "node",
        "query_replica",
        "reflinks",
        "run_dag",
        "s3_server",
        "seaweed_server",
        "xfs",
    }
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests are collected and then stay: looking for garbage among them takes half of the time."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [] if FULL else [item for item in items if item.get_closest_marker("full")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=_rank)
    for item in items:
        slow = _SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        if not slow and not any(item.get_closest_marker(name) for name in (*_SLOW_MARKERS, "slow")):
            item.add_marker("quick")


def _rank(item: pytest.Item) -> int:
    name = str(item.path.relative_to(_HERE))
    return next((rank for rank, prefix in enumerate(_LONGEST) if name.startswith(prefix)), len(_LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, but all of tests/airflow in one process: each further one would import Airflow and make its application,
    which takes as long as most of the files.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndAirflow(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/airflow" if nodeid.startswith("tests/airflow/") else super()._split_scope(nodeid)

    return ByFileAndAirflow(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long forms are wanted."""
    return FULL


@pytest.fixture(autouse=True)
def _quick_tests_start_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that counts as quick, and starts a program or talks to one all the same, fails and says so."""
    if request.node.get_closest_marker("quick") is None:
        return

    def refuse(*arguments: object, **_: object) -> None:
        pytest.fail(f"mark this test `slow`, or use a fixture that does: it started or called {arguments[1:2]}")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# ---- replicas ----------------------------------------------------------------------------------------------

_MAKE = """
import sys
import duckdb

path, rows, seed, storage, wal = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
connection = duckdb.connect()
connection.execute(f"ATTACH '{path}' AS replica (STORAGE_VERSION '{storage}')")
connection.execute("USE replica")
connection.execute(f'''
    CREATE TABLE customers AS SELECT i AS id, 'customer ' || i AS name, hash(i + {seed}) % 1000 AS region,
        TIMESTAMP '2024-01-01' + to_seconds(i) AS created_at FROM range({rows}) t(i)''')
connection.execute(f'''
    CREATE TABLE orders AS SELECT i AS id, i % {max(rows, 1)} AS customer_id,
        (hash(i + {seed}) % 100000 / 100.0)::DECIMAL(10, 2) AS amount, md5((i + {seed})::VARCHAR) AS note
        FROM range({rows * 2}) t(i)''')
connection.execute("CHECKPOINT")
if wal:
    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    connection.execute("INSERT INTO customers SELECT -i, 'only in the WAL', 0, now() FROM range(1, 11) t(i)")
connection.close()
"""

_QUERY = """
import json, sys
import duckdb

for line in sys.stdin:
    path, sql = json.loads(line)
    try:
        with duckdb.connect(path, read_only=True) as connection:
            answer = {"rows": connection.execute(sql).fetchall()}
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer, default=str), flush=True)
"""


def _python(program: str, *arguments: object) -> str:
    """Run a program in a child process: DuckDB's locks belong to a process, and ours must stay free of them."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.fail(done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``make_once(name, make) -> folder``: what `make` put there, once for all processes that share the tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, ready = shared / f"made-{name}", shared / f"made-{name}.ready"
        if not ready.exists():
            with (shared / f"made-{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not ready.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    make(folder)
                    ready.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def make_replica(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Path]:
    """``make_replica(path, rows=2000, seed=0, storage="v1.5.0", wal=False) -> path``: a DuckDB file that is not open.

    `rows` customers and twice as many orders; another `seed` makes other contents; with `wal` ten more customers are
    committed, but only in a ``.wal`` beside it.
    """

    def make(path: Path, *, rows: int = 2000, seed: int = 0, storage: str = "v1.5.0", wal: bool = False) -> Path:
        # Each kind is made once: a process that imports DuckDB costs more than most tests.
        program = lambda folder: _python(_MAKE, folder / "replica.db", rows, seed, storage, int(wal))  # noqa: E731
        template = make_once(f"replica-{rows}-{seed}-{storage}-{wal}", program) / "replica.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, path)
        if wal:
            shutil.copyfile(f"{template}.wal", f"{path}.wal")
        return path

    return make


@pytest.fixture(scope="session")
def query_replica() -> Iterator[Callable[[Path, str], list[list[Any]]]]:
    """``query_replica(path, sql) -> rows``: a read-only query in a child process, which closes the file before it
    answers; values as JSON has them."""
    command = [sys.executable, "-c", _QUERY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def query(path: Path, sql: str) -> list[list[Any]]:
            print(json.dumps([str(path), sql]), file=child.stdin, flush=True)
            answer = json.loads(child.stdout.readline())
            if "error" in answer:
                pytest.fail(answer["error"])
            rows: list[list[Any]] = answer["rows"]
            return rows

        yield query


# ---- an installation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstallationFolder:
    """DATA_PATH, BACKUP_PATH and databases.json of one test, with the environment pointing there."""

    data_path: Path
    backup_path: Path

    def replica(self, database_id: str = "production") -> Path:
        return self.data_path / f"{database_id}.db"

    def entry(
        self, database_id: str = "production", *, s3: Mapping[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """An entry of databases.json for the replica ``DATA_PATH/<id>.db``; None as a value leaves the field out."""
        entry = {
            "id": database_id,
            "name": database_id.title(),
            "mysqlConnectionString": f"mysql://duckling:mysql-password-{database_id}@127.0.0.1:3306/{database_id}",
            "duckdbPath": str(self.replica(database_id)),
            "s3": None if s3 is None else dict(s3),
            **fields,
        }
        return {name: value for name, value in entry.items() if value is not None}

    def write(self, *entries: Any) -> Path:
        """Write databases.json as the real one is: for its owner only."""
        return self.write_text(json.dumps(entries, indent=2))

    def write_text(self, text: str) -> Path:
        path = self.data_path / "databases.json"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    def database(self, database_id: str = "production") -> Any:
        """The entry as the product sees it."""
        from duckling_provider import config

        return config.load().database(database_id)


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstallationFolder:
    """An installation without entries; ``installation.write(installation.entry(...))`` adds some."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BACKUP_")) or name in _OTHER_SETTINGS:
            monkeypatch.delenv(name)
    folder = InstallationFolder(tmp_path / "data", tmp_path / "data" / "backups")
    folder.data_path.mkdir()
    monkeypatch.setenv("DATA_PATH", str(folder.data_path))
    monkeypatch.setenv("BACKUP_PATH", str(folder.backup_path))
    folder.write()
    return folder
