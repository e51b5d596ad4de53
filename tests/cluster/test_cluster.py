"""Two workers with a queue and a data folder each: tasks run where their replica is, also when a worker has died."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.error
from pathlib import Path

import pytest

from demo.airflow import request_json

pytestmark = [pytest.mark.cluster, pytest.mark.airflow, pytest.mark.mysql, pytest.mark.server]

HOST_OF = {"shop": "host-a", "crm": "host-b", "inventory": "host-a"}
ADDRESS_OF = {"host-a": "127.0.0.11", "host-b": "127.0.0.12"}
TABLES = {"shop": ["products", "orders"], "crm": ["customers"], "inventory": ["stock"]}


def run_all(cluster, kind, ids=tuple(HOST_OF)):
    """Run one kind of DAG of several databases at once; checks of each task that it ran on its database's host."""
    runs = {name: cluster.trigger(f"duckling_{kind}__{name}") for name in ids}
    done = {name: cluster.finish(f"duckling_{kind}__{name}", run) for name, run in runs.items()}
    for name, tasks in done.items():
        for task in tasks.values():
            where = (task["state"], task["queue"], task["hostname"])
            assert where == ("success", HOST_OF[name], ADDRESS_OF[HOST_OF[name]]), f"{name}: {task['task_id']}"
    return done


def replica(cluster, name) -> Path:
    return cluster.data(f"worker-{HOST_OF[name]}") / f"{name}.db"


def elsewhere(cluster) -> list[Path]:
    """Files that carry a database's name and lie in another folder than that of its own worker."""
    found = []
    for service in cluster.services:
        data = cluster.data(service)
        for path in data.rglob("*") if service != "postgres" else []:
            for name, host in HOST_OF.items():
                if name in str(path.relative_to(data)) and service != f"worker-{host}":
                    found.append(path)
    return found


def assert_like_mysql(cluster, mysql, query_replica, name):
    for table in TABLES[name]:
        ((rows,),) = mysql.execute(f"SELECT COUNT(*) FROM {name}.{table}")
        assert query_replica(replica(cluster, name), f"SELECT count(*) FROM {table}") == [[rows]]


def test_replicas_are_made_backed_up_lost_and_restored_each_on_its_own_host(cluster, mysql, query_replica):
    run_all(cluster, "sync")
    assert elsewhere(cluster) == []
    for name in HOST_OF:
        assert_like_mysql(cluster, mysql, query_replica, name)

    backups = run_all(cluster, "backup")
    assert {name: set(tasks) for name, tasks in backups.items()} == {
        name: {"snapshot", "upload", "verify", "cleanup"} for name in HOST_OF
    }
    before = {name: replica(cluster, name).read_bytes() for name in HOST_OF}
    for name in HOST_OF:
        replica(cluster, name).unlink()

    restores = run_all(cluster, "restore")
    assert {name: set(tasks) for name, tasks in restores.items()} == {
        name: {"pause", "restore", "resume"} for name in HOST_OF
    }
    changed = [name for name, content in before.items() if replica(cluster, name).read_bytes() != content]
    assert changed == []
    assert elsewhere(cluster) == []

    mysql.execute("INSERT INTO crm.customers VALUES (100001, 'New', 'new@example.com', '2025-03-01')")
    run_all(cluster, "sync", ["crm"])
    assert_like_mysql(cluster, mysql, query_replica, "crm")


def test_the_api_server_shows_the_log_that_lies_on_the_worker(cluster):
    (task,) = run_all(cluster, "sync", ["shop"])["shop"].values()
    log = cluster.task_log(task)
    assert "Could not read served logs" not in log
    assert "shop" in log
    assert ADDRESS_OF["host-a"] in log, "it names the address that it was read from"
    assert not list((cluster.folder / "api-server").rglob("dag_id=*")), "the API server has no log of its own"


def test_the_rest_api_has_the_worker_make_a_backup_and_knows_the_users_of_airflow(cluster, values):
    key, url = values["DUCKLING_API_KEY"], f"{cluster.url}/api/backups?db=crm"
    made = request_json(f"{cluster.url}/api/backups/s3?db=crm", {}, token=key, timeout=180)
    assert made["success"], made
    assert made["size"] == replica(cluster, "crm").stat().st_size
    for token in (key, cluster.token()):
        assert made["key"] in [backup["key"] for backup in request_json(url, token=token, timeout=60)["s3"]]
    with pytest.raises(urllib.error.HTTPError) as refused:
        request_json(url, token="wrong", timeout=60)
    assert refused.value.code == 401


def test_a_worker_killed_in_the_middle_of_an_upload_is_waited_for_and_the_upload_goes_on(cluster, mysql, proxy):
    megabytes = 32
    mysql.execute(
        [
            "CREATE TABLE inventory.photos (id INT PRIMARY KEY, photo BLOB NOT NULL)",
            f"INSERT INTO inventory.photos SELECT seq, RANDOM_BYTES(1024) FROM seq_1_to_{megabytes * 1024}",
        ],
        "inventory",
    )
    run_all(cluster, "sync", ["inventory"])
    size = replica(cluster, "inventory").stat().st_size
    assert size > megabytes << 20

    dag_id = "duckling_backup__inventory"
    proxy.requests.clear()
    reached, released = threading.Event(), threading.Event()

    def hold_back(request):
        """The fourth part, before the store hears of it: a store that has heard waits for the rest."""
        if request.operation == "part" and request.part == 4:
            reached.set()
            released.wait(300)

    proxy.choose = hold_back
    run_id = cluster.trigger(dag_id)
    assert reached.wait(120), cluster.tasks(dag_id, run_id)
    before = [request for request in proxy.requests if request.operation == "part"]
    assert [request.part for request in before] == [1, 2, 3, 4]
    killed = cluster.tasks(dag_id, run_id)["upload"]
    assert (killed["state"], killed["try_number"]) == ("running", 1)

    worker = cluster.service("worker-host-a")
    processes = worker.processes()
    assert len(processes) > 2, "the worker, its pool, the task"
    for process in processes:
        os.kill(process, signal.SIGKILL)
    proxy.choose = lambda _: None
    released.set()
    sofar = len(proxy.requests)
    deadline = time.monotonic() + 120
    while (task := cluster.tasks(dag_id, run_id)["upload"])["state"] != "queued":
        assert time.monotonic() < deadline, task
        time.sleep(0.5)
    # The other worker is idle, and must leave it alone.
    time.sleep(10)
    waiting = cluster.tasks(dag_id, run_id)["upload"]
    assert (waiting["state"], waiting["queue"], waiting["try_number"]) == ("queued", "host-a", 2)
    assert len(proxy.requests) == sofar

    cluster.start("worker-host-a")
    tasks = cluster.finish(dag_id, run_id)
    assert {(task["queue"], task["hostname"]) for task in tasks.values()} == {("host-a", ADDRESS_OF["host-a"])}
    assert {name: task["try_number"] for name, task in tasks.items()} == {
        "snapshot": 1, "upload": 2, "verify": 1, "cleanup": 1,
    }  # fmt: skip
    after = [request for request in proxy.requests[sofar:] if request.operation == "part"]
    assert min(request.part for request in after) == 4, "what the store has is not sent again"
    whole = sum(len(request.sent) for request in [*before[:3], *after])
    assert whole == size + 16, "the whole ciphertext, each byte once"

    content = replica(cluster, "inventory").read_bytes()
    replica(cluster, "inventory").unlink()
    run_all(cluster, "restore", ["inventory"])
    assert replica(cluster, "inventory").read_bytes() == content
    assert elsewhere(cluster) == []
