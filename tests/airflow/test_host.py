"""Tasks of an entry that names its host, on another machine."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.airflow

DAG_FILE = """
from airflow.sdk import DAG
from duckling_provider.operators.backup import *
from duckling_provider.operators.hold import *
from duckling_provider.operators.restore import *
from duckling_provider.operators.sync import *
from duckling_provider.sensors.verify import *

with DAG("stray", schedule=None, default_args={"retries": 5, "trigger_rule": "all_done"}):
    names = {"database_id": "shop"}
    DucklingSnapshotOperator(task_id="snapshot", **names)
    DucklingBackupOperator(task_id="backup", **names)
    DucklingCleanupOperator(task_id="cleanup", **names)
    DucklingHoldOperator(task_id="hold", **names)
    S3RestoreOperator(task_id="restore", target_path="/tmp/never", **names)
    DucklingReleaseOperator(task_id="release", **names)
    DucklingSyncOperator(task_id="sync", **names)
    DucklingValidateOperator(task_id="validate", **names)
    HmacVerifySensor(task_id="poked", key="latest", deferrable=False, **names)
    HmacVerifySensor(task_id="deferred", key="latest", deferrable=True, **names)
"""


def test_every_task_fails_at_once_and_for_good_and_names_both_hosts(
    installation, make_replica, run_dag, tmp_path, monkeypatch, capfd
):
    replica = make_replica(installation.replica("shop"))
    installation.write(installation.entry("shop", host="db-1", queue="db-1"))
    monkeypatch.setenv("DUCKLING_HOST", "worker-7")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "stray.py").write_text(DAG_FILE)
    before = {path: path.stat().st_mtime_ns for path in replica.parent.rglob("*")}
    run = run_dag("stray", folder=tmp_path / "dags")
    assert set(run.tasks.values()) == {"failed"}
    assert set(run.tries.values()) == {1}
    assert {path: path.stat().st_mtime_ns for path in replica.parent.rglob("*")} == before
    told = "".join(capfd.readouterr()).replace('\\"', '"')
    assert told.count('on host "db-1", and this is "worker-7"') >= len(run.tasks)
    assert 'the queue "db-1"' in told
