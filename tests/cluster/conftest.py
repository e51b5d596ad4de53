"""The topology of docker-compose.yaml as processes, which `make cluster` alone runs."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.mysql_servers import private_server

from demo.service import stop_all

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_NATIVE = runpy.run_path(str(HERE / "native.py"), run_name="native")
# The fixtures of tests/replication; test folders are no packages.
_FaultProxy = runpy.run_path(str(HERE.parent / "survival" / "fault_proxy.py"), run_name="fault_proxy")["FaultProxy"]

#: What MariaDB, which stands in for MySQL here, knows under other names or not at all.
_ONLY_MYSQL = ("--gtid-mode", "--enforce-gtid-consistency")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("cluster")]
    if left_out and not os.environ.get("DUCKLING_CLUSTER"):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A short path that PostgreSQL's user can reach, which pytest's own folders are not."""
    path = Path(tempfile.mkdtemp(prefix="duckling-cluster-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        stop_all(path)
    if request.session.testsfailed:
        print(f"The logs of all services are in {path}")
    else:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def values(folder: Path) -> dict[str, str]:
    """The variables of a fresh .env."""
    prepared: dict[str, str] = _NATIVE["PREPARE"]["prepare"](folder, lambda _: None)
    return prepared


@pytest.fixture(scope="session")
def mysql(values: dict[str, str]) -> Iterator[Any]:
    """MariaDB with the options, the user and the sample data of the service `mysql`."""
    service = _NATIVE["COMPOSE"]["services"](values)["mysql"]
    options = [word for word in service.command[1:] if not word.startswith(_ONLY_MYSQL)]
    with private_server(*options) as server:
        server.execute(f"DROP USER '{server.user}'@'%'")  # the file's own has the same name and other rights
        script = (ROOT / "compose" / "mysql" / "10-user.sh").read_text()
        grants = re.search(r"<<SQL\n(.*?)^SQL$", script, re.MULTILINE | re.DOTALL)[1].replace("\\`", "`")
        grants = grants.replace("${MYSQL_DUCKLING_PASSWORD}", values["MYSQL_DUCKLING_PASSWORD"])
        sample = (ROOT / "compose" / "mysql" / "20-sample.sql").read_text()
        for text in (sample, grants):
            server.execute([statement for statement in re.split(r";\s*\n", text) if statement.strip()])
        yield server


@pytest.fixture(scope="session")
def proxy(s3_server: Any) -> Iterator[Any]:
    """Between the workers and rclone, which has MinIO's place for all but server-side encryption."""
    made = _FaultProxy(s3_server.endpoint)
    yield made
    made.close()


@pytest.fixture(scope="session")
def cluster(
    folder: Path, values: dict[str, str], mysql: Any, proxy: Any, s3_server: Any, moto_server: Any
) -> Iterator[Any]:
    """All of the topology, healthy by the file's own health checks."""
    made = _NATIVE["Cluster"](folder, values)
    plain = s3_server.s3(s3_server.new_bucket(), endpoint=proxy.endpoint)
    # Small parts, one after the other: a kill in the middle leaves some that are done and some that are not.
    client = plain | {"partSizeMiB": 5, "maxConcurrency": 1}
    made.configure(
        f"127.0.0.1:{mysql.port}",
        {"none": plain, "client-aes256": client, "sse-s3": moto_server.s3(moto_server.new_bucket())},
    )
    try:
        made.start_postgres()
        made.start_redis()
        made.run("init")
        made.start("api-server")
        made.wait_healthy("api-server")
        rest = ("dag-processor", "scheduler", "triggerer", "worker-host-a", "worker-host-b")
        for name in rest:
            made.start(name)
        made.wait_healthy(*rest)
        ids = ("shop", "crm", "inventory")
        made.wait_for_dags({f"duckling_{kind}__{name}" for kind in ("sync", "backup", "restore") for name in ids})
        yield made
    finally:
        made.stop()
