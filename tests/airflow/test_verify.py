"""The sensor, in a worker and in the triggerer, against a real S3 server."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.server]

KEY = "0123456789abcdef" * 4

DAG_FILE = """
from airflow.sdk import DAG
from duckling_provider.sensors.verify import HmacVerifySensor

with DAG("verify_only", schedule=None):
    HmacVerifySensor(
        task_id="verify", database_id="shop", key={key!r}, deferrable={deferrable}, timeout={timeout},
        poke_interval=0.2, retries=3,
    )
"""


@pytest.fixture
def stored(installation, s3_server, make_replica):
    """A client-aes256 backup in a bucket, made without Airflow."""
    from duckling_provider.backup.making.snapshot import take_snapshot
    from duckling_provider.backup.making.upload import upload_snapshot
    from duckling_provider.stores.s3 import open_store

    class Stored:
        bucket = s3_server.new_bucket()
        client = s3_server.client()
        replica = make_replica(installation.replica("shop"))

        def configure(self, **fields):
            s3 = s3_server.s3(self.bucket, **{"encryption": "client-aes256", "encryptionKey": KEY, **fields})
            installation.write(installation.entry("shop", s3=s3))

        def back_up(self):
            database = installation.database("shop")
            return upload_snapshot(database, open_store(database), take_snapshot(database)).key

        def read(self, key):
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

        def write(self, key, content):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    stored = Stored()
    stored.configure()
    stored.key = stored.back_up()
    return stored


@pytest.fixture(params=[False, True], ids=["worker", "triggerer"])
def verify(request, run_dag, tmp_path):
    """``verify(key, timeout=60)``: a run of the sensor alone."""

    def run(key, timeout=60):
        (tmp_path / "dags").mkdir()
        text = DAG_FILE.format(key=key, deferrable=request.param, timeout=timeout)
        (tmp_path / "dags" / "verify.py").write_text(text)
        return run_dag("verify_only", folder=tmp_path / "dags")

    return run


def test_a_whole_backup_is_verified(stored, verify, s3_server):
    run = verify(stored.key)
    assert run.state == "success"
    result = run.xcom("verify")
    assert (result["key"], result["size"], result["mode"]) == (
        stored.key,
        stored.replica.stat().st_size,
        "client-aes256",
    )
    assert run.xcom("verify", "_link_S3ObjectLink") == f"{s3_server.endpoint}/{stored.bucket}/{stored.key}"


def test_latest_means_the_newest_backup(stored, verify):
    newest = stored.back_up()
    assert verify("latest").xcom("verify")["key"] == newest


def flip(content):
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: stored.write(stored.key, flip(stored.read(stored.key))),
        lambda stored: stored.write(stored.key, stored.read(stored.key)[:-1]),
        lambda stored: stored.write(f"{stored.key}.mac", b"0" * 64),
        lambda stored: stored.client.delete_object(Bucket=stored.bucket, Key=f"{stored.key}.mac"),
        lambda stored: stored.configure(encryptionKey="f" * 64),
    ],
    ids=["one bit", "one byte short", "another mac", "no mac", "another key"],
)
def test_a_spoiled_backup_fails_at_once_without_retries(stored, verify, spoil):
    spoil(stored)
    run = verify(stored.key)
    assert (run.state, run.tasks) == ("failed", {"verify": "failed"})
    assert run.tries == {"verify": 1}


@pytest.mark.usefixtures("stored")
def test_a_backup_that_does_not_appear_in_time_fails_without_retries(verify):
    run = verify("shop/backup-2001-01-01T00-00-00-000Z.db", timeout=0.3)
    assert (run.state, run.tasks, run.tries) == ("failed", {"verify": "failed"}, {"verify": 1})


def test_a_backup_that_appears_later_is_waited_for(stored, verify):
    content, mac = stored.read(stored.key), stored.read(f"{stored.key}.mac")
    stored.client.delete_object(Bucket=stored.bucket, Key=stored.key)

    def appear():
        time.sleep(1)
        stored.write(f"{stored.key}.mac", mac)
        stored.write(stored.key, content)

    thread = threading.Thread(target=appear)
    thread.start()
    run = verify(stored.key)
    thread.join()
    assert run.state == "success"


def test_the_credentials_of_a_connection_reach_the_worker_and_the_triggerer(
    stored, verify, installation, s3_server, monkeypatch
):
    s3 = s3_server.s3(stored.bucket, encryption="client-aes256", encryptionKey=KEY, awsConnId="backup_store")
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_STORE", f"aws://{s3.pop('accessKeyId')}:{s3.pop('secretAccessKey')}@")
    installation.write(installation.entry("shop", s3=s3))
    assert verify(stored.key).state == "success"


def test_an_unknown_database_is_no_missing_object(stored, verify, installation):
    installation.write()
    assert verify(stored.key).tries == {"verify": 1}


def test_the_trigger_survives_the_way_through_airflows_database(stored):
    from duckling_provider.triggers.verify import HmacVerifyTrigger

    trigger = HmacVerifyTrigger(database_id="shop", key=stored.key, poke_interval=0.2, give_up_at=time.time())
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    revived = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert revived.serialize() == (path, arguments)
    assert KEY not in json.dumps(arguments)


def test_the_triggerer_verifies_on_any_machine(stored, installation, s3_server, monkeypatch):
    """It reads the store alone, and there is one triggerer for all hosts."""
    from duckling_provider.triggers.verify import HmacVerifyTrigger

    s3 = s3_server.s3(stored.bucket, encryption="client-aes256", encryptionKey=KEY)
    installation.write(installation.entry("shop", s3=s3, host="db-1"))
    monkeypatch.setenv("DUCKLING_HOST", "triggerer")
    trigger = HmacVerifyTrigger(database_id="shop", key=stored.key, poke_interval=0.2, give_up_at=time.time())

    async def outcome():
        return (await anext(trigger.run())).payload

    assert asyncio.run(outcome())["status"] == "verified"


def test_a_cancelled_trigger_stops_its_thread(stored, s3_server, interceptor):
    """Otherwise a triggerer that is shut down would go on reading for hours."""
    from duckling_provider.triggers.verify import HmacVerifyTrigger

    reading, released = threading.Event(), threading.Event()

    def hold_back(request):
        if request.is_data:
            reading.set()
            released.wait(30)

    endpoint = interceptor(s3_server.endpoint, hold_back)
    stored.configure(endpoint=endpoint)
    trigger = HmacVerifyTrigger(database_id="shop", key=stored.key, poke_interval=0.2, give_up_at=time.time())

    async def cancel_while_reading():
        task = asyncio.create_task(anext(trigger.run()))
        await asyncio.to_thread(reading.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()

    asyncio.run(cancel_while_reading())  # waits for its threads
    assert trigger._control.cancelled


def test_the_sensor_follows_airflows_default_for_deferrable_operators(monkeypatch):
    from duckling_provider.sensors.verify import HmacVerifySensor

    assert HmacVerifySensor(task_id="a", database_id="shop", key="latest").deferrable is False
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "true")
    assert HmacVerifySensor(task_id="b", database_id="shop", key="latest").deferrable is True
    assert HmacVerifySensor(task_id="c", database_id="shop", key="latest", deferrable=False).deferrable is False


def test_the_drill_dag_restores_the_newest_backup_on_trial_and_leaves_its_report(stored, run_dag, installation):
    run = run_dag("duckling_drill__shop")
    assert (run.state, run.tasks) == ("success", {"drill": "success"})
    report = run.xcom("drill")
    assert (report["key"], report["tables"], report["rows"]) == (stored.key, 2, 6000)
    assert (report["rows_compared"], report["catch_up"]) == (True, "unknown")
    assert report["restore_duration"] > 0
    assert json.loads(stored.read(f"{stored.key}.state"))["evidence"][-1]["state"] == "tested"


def test_a_drill_of_a_damaged_backup_fails_at_once_and_disproves_it(stored, run_dag):
    content = bytearray(stored.read(stored.key))
    content[300_000] ^= 1
    stored.write(stored.key, bytes(content))
    run = run_dag("duckling_drill__shop", conf={"key": stored.key})
    assert (run.state, run.tries) == ("failed", {"drill": 1})
    assert "drill, step download: HMAC verification failed" in run.xcom("drill", "error")["what"]
    assert json.loads(stored.read(f"{stored.key}.state"))["evidence"][-1]["state"] == "disproved"
