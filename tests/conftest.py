"""What all tests share: real S3 servers on loopback ports, small replicas, and an installation in a temporary folder.

Helpers are fixtures that return functions or small objects, because test folders are no packages.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
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
    "fixtures.store_double",
    "fixtures.stores",
]

START_SECONDS = 60.0
_OTHER_SETTINGS = frozenset(
    {
        "AUTO_BACKUP",
        "AUTO_START_SYNC",
        "CDC_ENABLED",
        "DUCKLING_API_KEY",
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
        "node",
        "query_replica",
        "reflinks",
        "run_dag",
        "s3_server",
        "xfs",
    }
)


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


# ---- S3 servers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server; `folder` is where rclone keeps the buckets, None for moto."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"
    folder: Path | None = None

    def client(self) -> Any:
        """A boto3 client of the test's own, to look at and to spoil what the product stored."""
        return _client(self.endpoint, self.region, self.access_key_id, self.secret_access_key)

    def new_bucket(self) -> str:
        """The name of a fresh, empty bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def s3(self, bucket: str, **fields: Any) -> dict[str, Any]:
        """The `s3` object of a databases.json entry that uses `bucket` here."""
        return {
            "enabled": True,
            "bucket": bucket,
            "region": self.region,
            "accessKeyId": self.access_key_id,
            "secretAccessKey": self.secret_access_key,
            "endpoint": self.endpoint,
            "forcePathStyle": True,
            **fields,
        }


@functools.cache
def _client(endpoint: str, region: str, access_key_id: str, secret_access_key: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _serving(command: list[str], endpoint: str, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the block ends; it counts as started as soon as it answers HTTP, whatever it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environ))
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(endpoint):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{Path(command[0]).name} did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own loopback address
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _executable(name: str) -> str:
    """The executable that a package installed beside this Python, or the one on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: the `test` extra brings it")
    return found


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """`rclone serve s3`: checks signatures, keeps its data in plain folders; one for the session, a bucket per test."""
    home = tmp_path_factory.mktemp("rclone")
    folder = home / "buckets"
    folder.mkdir()
    server = S3Server(
        f"http://127.0.0.1:{_free_port()}", "test-access-key", f"secret-{secrets.token_hex(16)}", folder=folder
    )
    command = [_executable("rclone"), "serve", "s3", "--addr", server.endpoint.removeprefix("http://")]
    command += ["--auth-key", f"{server.access_key_id},{server.secret_access_key}", str(folder)]
    environ = {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "RCLONE_CONFIG": str(home / "rclone.conf")}
    with _serving(command, server.endpoint, home / "log", environ):
        yield server


@contextlib.contextmanager
def _moto(home: Path) -> Iterator[S3Server]:
    server = S3Server(f"http://127.0.0.1:{_free_port()}", "moto-access-key", f"secret-{secrets.token_hex(16)}")
    port = server.endpoint.rpartition(":")[2]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    environ = {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "MOTO_S3_CUSTOM_ENDPOINTS": server.endpoint}
    with _serving(command, f"{server.endpoint}/moto-api/", home / "log", environ):
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto: knows server-side encryption, storage classes and tags; accepts any credentials."""
    with _moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@dataclass(frozen=True)
class GuardedS3Server(S3Server):
    """moto with authentication on: the server's own credentials may do anything."""

    def user(self, *actions: str) -> S3Server:
        """The server as a new user sees it who may only do `actions`, e.g. ``"s3:GetObject"``."""
        iam, name = _iam(self), f"user-{secrets.token_hex(4)}"
        iam.create_user(UserName=name)
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": list(actions) or ["sts:GetCallerIdentity"], "Resource": "*"}],
        }
        iam.put_user_policy(UserName=name, PolicyName="test", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return S3Server(self.endpoint, key["AccessKeyId"], key["SecretAccessKey"], self.region)


def _iam(server: S3Server) -> Any:
    import boto3

    return boto3.client(
        "iam",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )


@pytest.fixture(scope="session")
def moto_auth_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedS3Server]:
    """moto that checks signatures and IAM policies; `moto_auth_server.user(...)` makes users with few rights."""
    with _moto(tmp_path_factory.mktemp("moto-auth")) as server:
        open_server = GuardedS3Server(server.endpoint, server.access_key_id, server.secret_access_key)
        admin = open_server.user("*")
        request = urllib.request.Request(  # noqa: S310 - our own loopback address
            f"{server.endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        yield GuardedS3Server(server.endpoint, admin.access_key_id, admin.secret_access_key)


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

rows = duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2]).fetchall()
print(json.dumps(rows, default=str))
"""


def _python(program: str, *arguments: object) -> str:
    """Run a program in a child process: DuckDB's locks belong to a process, and ours must stay free of them."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.fail(done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def make_replica(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_replica(path, rows=2000, seed=0, storage="v1.5.0", wal=False) -> path``: a DuckDB file that is not open.

    `rows` customers and twice as many orders; another `seed` makes other contents; with `wal` ten more customers are
    committed, but only in a ``.wal`` beside it.
    """

    templates = tmp_path_factory.mktemp("replicas")

    def make(path: Path, *, rows: int = 2000, seed: int = 0, storage: str = "v1.5.0", wal: bool = False) -> Path:
        # Each kind is made once: a process that imports DuckDB costs more than most tests.
        template = templates / f"{rows}-{seed}-{storage}-{wal}.db"
        if not template.exists():
            _python(_MAKE, template, rows, seed, storage, int(wal))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, path)
        if wal:
            shutil.copyfile(f"{template}.wal", f"{path}.wal")
        return path

    return make


@pytest.fixture(scope="session")
def query_replica() -> Callable[[Path, str], list[list[Any]]]:
    """``query_replica(path, sql) -> rows``: a read-only query in a child process; values as JSON has them."""

    def query(path: Path, sql: str) -> list[list[Any]]:
        rows: list[list[Any]] = json.loads(_python(_QUERY, path, sql))
        return rows

    return query


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
