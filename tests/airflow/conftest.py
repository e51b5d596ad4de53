"""A real Airflow for the session: a home and a database of its own, set up before anything imports airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"


def _prepare_environment() -> Path:
    home = Path(tempfile.mkdtemp(prefix="duckling-airflow-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    os.environ.update(
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL="0",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
        # Connections of the tests come from here: the metadata database would remember them for the next test.
        AIRFLOW__SECRETS__USE_CACHE="False",
    )
    return home


if "airflow" in sys.modules:
    pytest.exit("airflow was imported before its home for the tests was set", returncode=3)
_prepare_environment()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """The metadata database, with the dags folder known to it."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    DagBundlesManager().sync_bundles_to_db()


def _bag(folder: Path | None = None) -> Any:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    path = folder or DAGS
    return DagBag(path, bundle_path=path, bundle_name="dags-folder")


@pytest.fixture
def parse_dags() -> Callable[[], Any]:
    """``parse_dags() -> DagBag``: what Airflow makes of the dags folder and the databases.json of this test."""
    return _bag


@dataclass(frozen=True)
class FinishedRun:
    """What became of a DAG run."""

    state: str
    tasks: dict[str, str]
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
def save_dags(airflow_db: None) -> Callable[[Any], None]:  # noqa: ARG001
    """``save_dags(bag)``: put what was parsed into the metadata database, as the DAG processor does."""
    return _save


@pytest.fixture
def run_dag(airflow_db: None) -> Callable[..., FinishedRun]:  # noqa: ARG001
    """``run_dag(dag_id, conf=None) -> FinishedRun``: parse, save and run a generated DAG as `airflow dags test`."""

    def run(dag_id: str, conf: dict[str, Any] | None = None) -> FinishedRun:
        bag = _bag()
        _save(bag)  # DAGs that the database does not know fail as "not serialized"
        row = bag.dags[dag_id].test(run_conf=conf)
        tasks = {ti.task_id: str(ti.state) for ti in row.get_task_instances()}
        return FinishedRun(str(row.state), tasks, row)

    return run
