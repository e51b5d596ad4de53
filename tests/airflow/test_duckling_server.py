"""Restores of a replica that the Node.js server writes: what becomes of that server, and its Airflow connection."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys

import pytest
from fixtures.node_server import NodeServer

from duckling_provider.base.errors import ConfigError

pytestmark = pytest.mark.airflow

KEY = "node-api-key-4711"
RESTORED = {"pause": "success", "restore": "success", "resume": "success"}
ON, OFF = {"automation": True, "cdc": True}, {"automation": False, "cdc": False}

DAG_FILE = """
from airflow.sdk import DAG
from duckling_provider.operators.hold import DucklingHoldOperator, DucklingReleaseOperator
from duckling_provider.operators.restore import S3RestoreOperator

with DAG("quick_restore", schedule=None):
    pause = DucklingHoldOperator(task_id="pause", database_id="shop", wait_seconds={wait})
    restore = S3RestoreOperator(task_id="restore", database_id="shop", wait_seconds={wait})
    resume = DucklingReleaseOperator(task_id="resume", database_id="shop")
    pause >> restore >> resume
    resume.as_teardown(setups=pause)
"""

HOLD_OPEN = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def node():
    with NodeServer() as node:
        yield node


@pytest.fixture
def connect(monkeypatch):
    def connect(node, *, key=KEY, **fields):
        given = {"conn_type": "duckling", "host": "127.0.0.1", "port": node.port, "password": key, **fields}
        monkeypatch.setenv("AIRFLOW_CONN_DUCKLING_DEFAULT", json.dumps(given))

    return connect


@pytest.fixture
def replica(installation, make_replica):
    """A replica of "shop" with a local backup of another content."""
    from duckling_provider.backup.making.snapshot import take_snapshot

    installation.write(installation.entry("shop", writer="duckling-server"))
    replica = make_replica(installation.replica("shop"))
    take_snapshot(installation.database("shop"))
    replica.unlink()
    return make_replica(replica, seed=1)


@pytest.fixture
def quick_restore(run_dag, tmp_path):
    """A restore whose tasks wait for a second only, and are not tried again."""
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "quick_restore.py").write_text(DAG_FILE.format(wait=1))
    return lambda: run_dag("quick_restore", folder=folder)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_files(installation):
    return sorted(
        p.name for p in installation.data_path.glob("*.duckling-*") if not p.name.endswith(("-lock", "-origin"))
    )


@contextlib.contextmanager
def held_open(path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD_OPEN, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "open\n"
        yield child
    finally:
        child.communicate("")


def test_a_restore_stops_the_server_and_starts_it_again(replica, node, connect, run_dag, installation):
    connect(node)
    was = digest(replica)
    run = run_dag("duckling_restore__shop")
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert digest(replica) != was
    assert node.posts == ["/automation/stop", "/cdc/stop", "/cdc/start", "/automation/start"]
    assert (node.queries, node.running) == ({"db=shop"}, ON)
    assert state_files(installation) == []


def test_a_server_that_has_the_file_open_makes_the_restore_fail_by_name_and_goes_on(
    replica, node, connect, quick_restore, installation, capsys
):
    connect(node)
    was = digest(replica)
    with held_open(replica) as child:
        run = quick_restore()
    assert (run.state, run.tasks) == ("failed", RESTORED | {"restore": "failed"})
    out = capsys.readouterr().out
    assert f"held by PID {child.pid}" in out
    assert "shut the process of the Duckling server down; the restore waits for that" in out
    assert 'The Duckling server writes it ("writer": "duckling-server") and keeps it open' in out
    assert digest(replica) == was
    assert node.running == ON
    assert state_files(installation) == []
    assert KEY not in out


def test_a_server_that_is_down_does_not_keep_a_restore_from_its_work(replica, connect, quick_restore, installation):
    with NodeServer() as gone:
        connect(gone)
    was = digest(replica)
    run = quick_restore()
    assert (run.state, run.tasks) == ("success", RESTORED)
    assert digest(replica) != was
    assert state_files(installation) == []


@pytest.mark.parametrize("fault", ["busy", "wrong key", "no such database"])
def test_a_pause_that_fails_leaves_no_hold_and_no_stopped_server(
    replica, node, connect, quick_restore, installation, capsys, fault
):
    connect(node, key="wrong-key-0815" if fault == "wrong key" else KEY)
    if fault == "busy":
        node.busy_seconds = 60
    elif fault == "no such database":
        node.databases = ()
    was = digest(replica)
    run = quick_restore()
    assert run.state == "failed"
    assert (run.tasks["pause"], run.tasks["restore"]) == ("failed", "upstream_failed")
    assert digest(replica) == was
    assert node.running["automation"]
    assert state_files(installation) == []
    assert "wrong-key-0815" not in capsys.readouterr().out


def test_a_server_that_is_not_back_fails_the_resume_and_frees_the_replica(
    replica, node, connect, run_dag, tmp_path, installation
):
    from duckling_provider.node_server.client import read_note
    from duckling_provider.replica.locks import read_hold

    connect(node)
    folder = tmp_path / "dags"
    folder.mkdir()
    text = DAG_FILE.format(wait=1).replace(
        'S3RestoreOperator(task_id="restore", database_id="shop", wait_seconds=1)',
        'PythonOperator(task_id="restore", python_callable=shut_down)',
    )
    with NodeServer() as gone:
        elsewhere = json.dumps({"conn_type": "duckling", "host": "127.0.0.1", "port": gone.port})
    script = f"""
import os
from airflow.providers.standard.operators.python import PythonOperator
def shut_down():
    os.environ["AIRFLOW_CONN_DUCKLING_DEFAULT"] = {elsewhere!r}
"""
    (folder / "quick_restore.py").write_text(script + text)
    run = run_dag("quick_restore", folder=folder)
    assert run.tasks == RESTORED | {"resume": "failed"}
    assert read_hold(replica) is None
    assert read_note(replica).services == ("automation", "cdc")
    assert node.running == OFF
    connect(node)
    assert run_dag("duckling_restore__shop").state == "success"
    assert node.running == ON
    assert state_files(installation) == []


@pytest.mark.usefixtures("replica")
def test_a_restore_elsewhere_leaves_the_server_alone(node, connect, run_dag, tmp_path, monkeypatch):
    connect(node)
    monkeypatch.setenv("DUCKLING_RESTORE_PATH", str(tmp_path))
    assert run_dag("duckling_restore__shop", {"target_path": str(tmp_path / "elsewhere.db")}).state == "success"
    assert node.requests == []


@pytest.mark.usefixtures("replica")
def test_an_entry_of_our_own_sync_asks_no_server(node, connect, run_dag, installation):
    connect(node)
    installation.write(installation.entry("shop"))
    assert run_dag("duckling_restore__shop").state == "success"
    assert node.requests == []


def test_the_restore_dag_says_what_to_do_with_the_server(installation, parse_dags):
    installation.write(installation.entry("shop", writer="duckling-server"), installation.entry("own"))
    dags = parse_dags().dags
    assert "its process must be down" in dags["duckling_restore__shop"].doc_md
    assert "its process must be down" not in dags["duckling_restore__own"].doc_md


# ---- the connection


def test_the_button_test_says_whether_the_server_takes_the_key(node, connect):
    from duckling_provider.hooks.duckling_server import DucklingServerHook

    connect(node, schema="http")
    assert DucklingServerHook().test_connection() == (
        True,
        f"http://127.0.0.1:{node.port} is there and takes the API key",
    )
    connect(node, key="wrong-key-0815")
    good, message = DucklingServerHook().test_connection()
    assert (good, "refuses the API key" in message, "wrong-key-0815" in message) == (False, True, False)
    connect(node, host="")
    assert (
        DucklingServerHook()
        .test_connection()[1]
        .startswith("Airflow connection 'duckling_default': the host is missing")
    )


def test_a_missing_connection_names_the_field_of_the_entry():
    from duckling_provider.hooks.duckling_server import DucklingServerHook

    with pytest.raises(ConfigError, match=r"shop: writerConnId: the Airflow connection 'nowhere' does not exist"):
        DucklingServerHook("nowhere", database_id="shop").server()


def test_the_key_is_masked_in_logs_as_soon_as_the_connection_is_read(node, connect):
    from airflow.sdk._shared.secrets_masker import redact

    from duckling_provider.hooks.duckling_server import DucklingServerHook

    connect(node, key="a-key-to-be-masked")
    server = DucklingServerHook().server()
    assert redact("<a-key-to-be-masked>") == "<***>"
    assert "a-key-to-be-masked" not in repr(server) + str(server)


def test_airflow_knows_the_connection_type():
    from duckling_provider.hooks.duckling_server import DucklingServerHook

    # In a process of its own, which asks as the API server does: in 3.1 the form is known only if that is the first
    # question, where Flask-AppBuilder is not installed.
    program = """
import json
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.providers_manager import ProvidersManager
(form,) = [found for found in HookMetaService.hook_meta_data() if found.connection_type == "duckling"]
hook = ProvidersManager().hooks["duckling"]
print(json.dumps([form.model_dump(mode="json"), hook.hook_name, hook.package_name, hook.connection_testable]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    form, *hook = json.loads(done.stdout.splitlines()[-1])
    assert hook == ["Duckling server", "duckling-provider", True]
    behaviour = DucklingServerHook.get_ui_field_behaviour()
    fields = form["standard_fields"]
    assert fields["password"]["title"] == behaviour["relabeling"]["password"] == "API key"
    assert fields["host"]["placeholder"] == behaviour["placeholders"]["host"]
    assert fields["login"]["hidden"]
