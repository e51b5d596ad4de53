"""How long the page with all databases takes, beside the list of DAGs of the same Airflow with the same rows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from benchmarks import ROOT
from benchmarks.cases import Case, Target
from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.moments import stamp_of

#: Runs of backups that each database has.
RUNS = 10
S3 = {"enabled": True, "bucket": "bench", "region": "eu-central-1", "accessKeyId": "bench", "secretAccessKey": "bench"}


def page(databases: int, *, runs: int) -> Case:
    """The overview of so many databases, of which each has `RUNS` runs; medians of `runs` rounds, in turns."""
    with tempfile.TemporaryDirectory(prefix="duckling-bench-airflow-") as home:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "DATA_PATH": home,
            "DUCKLING_API_KEY": "bench",
        }
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        subprocess.run(command, env=environ, cwd=home, check=True, capture_output=True)
        command = [sys.executable, "-m", "benchmarks.page", str(databases), str(runs)]
        done = subprocess.run(command, env=environ, cwd=ROOT, check=True, capture_output=True, text=True)
    measured: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = (statistics.median(measured[name]) for name in ("page", "dags"))
    return Case(
        f"The page with {databases:,} databases and {databases * RUNS:,} runs, beside GET /api/v2/dags?limit=50",
        targets=[Target("s", ours, 1.0)],
        notes=(
            f"medians: the page {ours * 1000:.0f} ms, Airflow's 50 DAGs {theirs * 1000:.0f} ms: {ours / theirs:.2f}x",
        ),
    )


def multiply(first: str, others: Sequence[str]) -> None:
    """Give databases the rows in the metadata database that `first` has. Tasks would write them one by one."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select

    with create_session() as session:
        for model in (DagModel, DagRun, TaskInstance, XComModel):
            table: Any = model.__table__  # type: ignore[attr-defined, unused-ignore]
            found = session.execute(select(table).where(table.c.dag_id.like(f"%\\_\\_{first}", escape="\\"))).mappings()
            rows = [dict(row) for row in found]
            made = []
            for number, name in enumerate(others, start=1):
                for row in rows:
                    new = {**row, "dag_id": row["dag_id"].replace(first, name)}
                    if model is DagRun:
                        new["id"] = row["id"] + 10_000 * number
                    elif model is TaskInstance:
                        new["id"] = type(row["id"])(str(uuid.uuid4()))  # text, on Airflow 3.1
                    elif model is XComModel:
                        new["dag_run_id"] = row["dag_run_id"] + 10_000 * number
                        new["value"] = json.loads(json.dumps(row["value"]).replace(first, name))
                    made.append(new)
            session.execute(insert(table), made)


def _entries(ids: Sequence[str], folder: str) -> None:
    entries = [
        {
            "id": name,
            "name": name,
            "mysqlConnectionString": f"mysql://u:p@127.0.0.1/{name}",
            "duckdbPath": f"{folder}/{name}.db",
            "s3": S3,
        }
        for name in ids
    ]
    path = os.path.join(folder, "databases.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(entries, file)
    os.chmod(path, 0o600)


def _first(name: str) -> None:
    """The DAGs of one database, and what its runs leave."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(ROOT / "dags", bundle_path=ROOT / "dags")
    sync_bag_to_db(bag, "dags-folder", None)
    now = datetime.now(timezone.utc)
    with create_session() as session:
        for number in range(RUNS):
            taken = now - timedelta(hours=24 * (RUNS - number - 1) + 1)
            key = f"{name}/{backup_name(stamp_of(taken))}"
            done = {"key": key, "size": 10**9, "duration": 9000, "mode": "client-aes256"}
            dag_id, run_id = f"duckling_backup__{name}", f"bench__{number}"
            run: Any = trigger_dag(
                dag_id=dag_id, run_id=run_id, triggered_by=DagRunTriggeredByType.TEST, session=session
            )
            run.state = "success"
            run.start_date, run.end_date = taken, taken + timedelta(seconds=30)
            session.flush()
            for task in ("snapshot", "upload", "verify"):
                session.add(
                    XComModel(
                        dag_run_id=run.id, dag_id=dag_id, run_id=run_id, task_id=task, key="return_value", value=done
                    )
                )


def _measure(databases: int, runs: int) -> dict[str, list[float]]:
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    folder = os.environ["DATA_PATH"]
    ids = [f"bench-{number:04}" for number in range(databases)]
    _entries(ids[:1], folder)
    _first(ids[0])
    _entries(ids, folder)
    multiply(ids[0], ids[1:])
    client = TestClient(create_app())
    # An Airflow user and not the API key: his rights are looked up as well.
    admin = SimpleAuthManagerUser(username="bench", role="ADMIN")
    headers = {"Authorization": f"Bearer {get_auth_manager().generate_jwt(admin)}"}
    walls: dict[str, list[float]] = {"page": [], "dags": []}
    for number in range(runs + 1):
        started = time.perf_counter()
        shown = client.get("/duckling/", headers=headers | {"Accept": "text/html"})
        middle = time.perf_counter()
        listed = client.get("/api/v2/dags", params={"limit": 50}, headers=headers)
        ended = time.perf_counter()
        listed.raise_for_status()
        if f"All {databases} databases could be recovered" not in shown.text or len(listed.json()["dags"]) != 50:
            raise RuntimeError(shown.text)
        if number:  # the first of each pays for imports and connections
            walls["page"].append(middle - started)
            walls["dags"].append(ended - middle)
    return walls


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]))))
