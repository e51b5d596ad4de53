"""The way of a replica through Airflow: copied, followed, backed up, lost, restored, and equal to MySQL in the end."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from duckling_provider.replica.locks import place_hold

pytestmark = [pytest.mark.airflow, pytest.mark.mysql]

# The fixtures of tests/replication; test folders are no packages.

KEY = "0123456789abcdef" * 4

_VALIDATION = """
from datetime import datetime

from airflow.sdk import DAG

from duckling_provider.operators.sync import DucklingValidateOperator

with DAG("validation", schedule=None, start_date=datetime(2024, 1, 1)):
    DucklingValidateOperator(task_id="validate", database_id="shop")
"""


@pytest.fixture
def shop(installation, mariadb, database, s3_server):
    """The entry `shop`, whose MySQL database has two tables."""
    s3 = s3_server.s3(s3_server.new_bucket(), encryption="client-aes256", encryptionKey=KEY)
    installation.write(installation.entry("shop", s3=s3, mysqlConnectionString=mariadb.url(database)))
    mariadb.execute(
        [
            "CREATE TABLE orders (id INT PRIMARY KEY AUTO_INCREMENT, total DECIMAL(10,2), made DATETIME(6))",
            "CREATE TABLE log (line TEXT)",
            "INSERT INTO orders SELECT seq, seq / 7, NOW(6) FROM seq_1_to_5000",
            "INSERT INTO log VALUES ('one'), ('two'), ('two')",
        ],
        database,
    )
    return installation.database("shop")


@pytest.fixture
def validation(tmp_path):
    folder = tmp_path / "validation"
    folder.mkdir()
    (folder / "validation.py").write_text(_VALIDATION)
    return folder


def test_a_lost_replica_is_restored_and_catches_up_without_a_new_copy(shop, mariadb, database, run_dag, validation):
    copied = run_dag("duckling_sync__shop")
    assert (copied.state, sorted(copied.xcom("sync")["copied"])) == ("success", ["log", "orders"])
    assert (copied.xcom("sync")["differences"], copied.xcom("sync")["yields"]) == (0, 0)
    stop = threading.Event()

    def write():
        with mariadb.connect(database) as connection:
            cursor = connection.cursor()
            while not stop.wait(0.002):
                cursor.execute("INSERT INTO orders (total, made) VALUES (1, NOW(6))")
                cursor.execute("UPDATE orders SET total = total + 1 WHERE id = 17")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert run_dag("duckling_sync__shop").xcom("sync")["changes"] > 0
        assert run_dag("duckling_backup__shop").state == "success"
    finally:
        stop.set()
        writer.join()
    mariadb.execute("DELETE FROM log WHERE line = 'two' LIMIT 1", database)
    shop.replica.unlink()
    assert run_dag("duckling_restore__shop").state == "success"
    synced = run_dag("duckling_sync__shop").xcom("sync")
    assert (synced["copied"], synced["changes"] > 0) == ([], True)
    report = run_dag("validation", folder=validation).xcom("validate")
    assert report["equal"]
    assert {table["name"]: table["rows"]["mysql"] for table in report["tables"]}["log"] == 2


def test_a_replica_that_differs_fails_the_validation(shop, run_dag, validation):
    import duckdb

    run_dag("duckling_sync__shop")
    with duckdb.connect(str(shop.replica)) as connection:
        connection.execute("DELETE FROM orders WHERE id = 3")
    assert run_dag("validation", folder=validation).state == "failed"


def test_a_held_replica_makes_the_run_skip_and_the_next_one_goes_on(shop, mariadb, database, run_dag):
    run_dag("duckling_sync__shop")
    mariadb.execute("UPDATE orders SET total = -1", database)
    hold = place_hold(shop.replica, owner="restore of a colleague", reason="restore", seconds=600)
    skipped = run_dag("duckling_sync__shop")
    assert skipped.tasks == {"sync": "skipped"}
    left = skipped.xcom("sync")
    assert (left["yields"], left["changes"]) == (1, 0)
    assert left["lag"] > 0
    place_hold(shop.replica, owner=hold.owner, reason="restore", seconds=0)
    assert run_dag("duckling_sync__shop").xcom("sync")["changes"] == 5000


@pytest.mark.parametrize(
    "environ,schedule,paused,seconds",
    [
        ({}, timedelta(minutes=15), True, None),
        ({"SYNC_INTERVAL_MINUTES": "5", "AUTO_START_SYNC": "true"}, timedelta(minutes=5), False, None),
        ({"CDC_ENABLED": "true"}, "@continuous", False, 600),
    ],
)
def test_the_environment_says_when_a_sync_runs(
    installation, parse_dags, monkeypatch, environ, schedule, paused, seconds
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    installation.write(installation.entry("shop"))
    dag = parse_dags().dags["duckling_sync__shop"]
    assert (getattr(dag.schedule, "interval", dag.schedule), dag.is_paused_upon_creation, dag.max_active_runs) == (
        schedule,
        paused,
        1,
    )
    # Continuous runs end by themselves, too.
    assert dag.get_task("sync").follow_seconds == seconds


def test_who_has_another_writer_or_no_mysql_gets_no_sync(installation, parse_dags):
    installation.write(
        installation.entry("theirs", writer="duckling-server"), installation.entry("none", mysqlConnectionString="")
    )
    assert not [name for name in parse_dags().dags if name.startswith("duckling_sync__")]
