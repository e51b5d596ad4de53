"""A real Airflow for the session: a home and a database of its own, set up before anything imports airflow."""

from __future__ import annotations

import atexit
import functools
import gc
import http.client
import http.server
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

DAGS = Path(__file__).parents[2] / "dags"


def _prepare_environment() -> Path:
    home = Path(tempfile.mkdtemp(prefix="duckling-airflow-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / "dags").mkdir()
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        # Empty: from Airflow 3.3 on DAG.test() parses and saves all that is there, each time. Tests name their folder.
        AIRFLOW__CORE__DAGS_FOLDER=str(home / "dags"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL="0",
        # The command `airflow` makes one; before 3.3 the API server's application does not start without.
        AIRFLOW__API_AUTH__JWT_SECRET=secrets.token_hex(32),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
        # Connections of the tests come from here: the metadata database would remember them for the next test.
        AIRFLOW__SECRETS__USE_CACHE="False",
    )
    return home


if "airflow" in sys.modules:
    pytest.exit("airflow was imported before its home for the tests was set", returncode=3)
_prepare_environment()


@pytest.fixture(scope="session")
def airflow_db(copy_airflow_database: Callable[[Path], None]) -> None:
    """The metadata database, with the dags folder known to it."""
    copy_airflow_database(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    DagBundlesManager().sync_bundles_to_db()


@pytest.fixture(scope="session")
def airflow_app(airflow_db: None) -> Iterator[Any]:
    """Airflow's real application: seconds to make, so there is one for all tests."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    purge_cached_app()
    gc.disable()
    app = create_app()
    gc.freeze()  # it stays: looking for garbage among it takes a tenth of all tests here
    gc.enable()
    yield app
    purge_cached_app()


def _bag(folder: Path | None = None) -> Any:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    path = folder or DAGS
    return DagBag(path, bundle_path=path)


@pytest.fixture
def parse_dags() -> Callable[[], Any]:
    """``parse_dags() -> DagBag``: what Airflow makes of the dags folder and the databases.json of this test."""
    return _bag


@dataclass(frozen=True)
class FinishedRun:
    """What became of a DAG run."""

    state: str
    tasks: dict[str, str]
    tries: dict[str, int]
    row: Any

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            query = select(XComModel).filter_by(
                run_id=self.row.run_id, dag_id=self.row.dag_id, task_id=task_id, key=key
            )
            found = session.scalars(query).one_or_none()
            return None if found is None else XComModel.deserialize_value(found)

    def asset_extras(self) -> dict[str, dict[str, Any]]:
        """The extra of each asset event, by asset name."""
        from airflow.models.asset import AssetEvent
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            events = session.scalars(select(AssetEvent).filter_by(source_run_id=self.row.run_id)).all()
            return {event.asset.name: dict(event.extra) for event in events}


def _save(bag: Any) -> None:
    try:
        from airflow.dag_processing.dagbag import sync_bag_to_db
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import sync_bag_to_db

    sync_bag_to_db(bag, "dags-folder", None)


@pytest.fixture
def save_dags(airflow_db: None) -> Callable[[Any], None]:
    """``save_dags(bag)``: put what was parsed into the metadata database, as the DAG processor does."""
    return _save


@pytest.fixture(scope="module")
def saved_dags() -> dict[Any, list[str]]:
    """The DAGs that this module has put into the metadata database last, by the kind of the entries: to save them takes
    longer than most requests."""
    return {}


@pytest.fixture(scope="session")
def execution_api() -> None:
    """One application for all tasks that dag.test() runs, as it is from Airflow 3.3 on.

    Before 3.3 each task makes one, with the routes of all its API versions: seconds, and threads that stay. Nothing
    holds it, so svcs from 26.2 on takes its services away before the task ends: "no attribute svcs_registry".
    """
    from airflow.sdk.execution_time import supervisor

    if not hasattr(supervisor.in_process_api_server, "cache_info"):
        supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)


@pytest.fixture
def run_dag(airflow_db: None, execution_api: None) -> Iterator[Callable[..., FinishedRun]]:
    """``run_dag(dag_id, conf=None, folder=None) -> FinishedRun``: parse, save and run a DAG as `airflow dags test`.

    Without `folder`, a generated DAG. More options are those of `DAG.test`.
    """

    def run(dag_id: str, conf: dict[str, Any] | None = None, folder: Path | None = None, **options: Any) -> FinishedRun:
        bag = _bag(folder)
        assert bag.import_errors == {}
        bag.dags = {dag_id: bag.dags[dag_id]}
        _save(bag)  # DAGs that the database does not know fail as "not serialized"
        row = bag.dags[dag_id].test(run_conf=conf, **options)
        rows = row.get_task_instances()
        tasks = {ti.task_id: str(ti.state) for ti in rows}
        return FinishedRun(str(row.state), tasks, {ti.task_id: ti.try_number for ti in rows}, row)

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)  # tasks leave theirs behind, and pytest could not be ended any more


@dataclass(frozen=True)
class Intercepted:
    """A request on its way to the S3 server."""

    method: str
    path: str
    headers: http.client.HTTPMessage

    @property
    def part(self) -> int | None:
        """The part number when this uploads one."""
        query = parse_qs(urlsplit(self.path).query)
        return int(query["partNumber"][0]) if self.method == "PUT" and "partNumber" in query else None

    @property
    def is_data(self) -> bool:
        """Whether this reads a backup's bytes, more than a look at its first ones."""
        start, _, stop = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        return self.method == "GET" and stop != "" and int(stop) - int(start) > 64 * 1024


@pytest.fixture
def interceptor() -> Iterator[Callable[[str, Callable[[Intercepted], None]], str]]:
    """``interceptor(endpoint, callback) -> endpoint``: a proxy that calls back before it passes a request on."""
    servers = []

    def start(endpoint: str, callback: Callable[[Intercepted], None]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                callback(Intercepted(self.command, self.path, self.headers))
                upstream = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=60)
                # With the Host of the client: it is part of what the client signed.
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.read())
                upstream.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
