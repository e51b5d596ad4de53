"""Airflow's `on_kill` while the store is silent: the task ends by itself, and need not be killed for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

#: What Airflow's task runner does on SIGTERM, without the rest of it.
_TASK = """
import signal, sys, types
from duckling_provider.operators import backup, restore

kind = {"backup": backup.DucklingBackupOperator, "restore": restore.S3RestoreOperator}[sys.argv[1]]
operator = kind(task_id="task", database_id="production")
signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
print("ready", flush=True)
context = {"dag_run": types.SimpleNamespace(dag_id="dag", run_id="run"), "outlet_events": {}}
try:
    operator.execute(context)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize("task,operation", [pytest.param("backup", "part", marks=pytest.mark.full), ("restore", "get")])
def test_a_killed_task_cleans_up_although_the_store_is_silent(
    make_site, moto_server, contents, fault_proxy, tmp_path, task, operation
):
    site = make_site(moto_server)
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    proxy = fault_proxy(moto_server)
    site.write(proxy.server)
    proxy.fall_silent(operation)
    environ = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    process = subprocess.Popen(
        [sys.executable, "-c", _TASK, task], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    )
    try:
        assert process.stdout.readline() == "ready\n"
        assert proxy.stalled.wait(60)
        process.send_signal(signal.SIGTERM)
        # The HTTP client would wait for a minute, and try again then.
        said, _ = process.communicate(timeout=45)
    finally:
        process.kill()
        process.wait()
    assert "AirflowException" in said
    assert "stopped on request" in said
    assert site.replica.read_bytes() == contents.old
    assert {name for name in site.litter() if not name.endswith(".upload")} == set()
    site.write()
    assert site.duckling("backup", "production").code == 0
    site.assert_tidy()
