"""The pool of the transfers: made by Airflow's services (a real one: tests/page), missed by `duckling check`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fixtures.command_line import run_here

from duckling_provider.config.environment import Settings
from duckling_provider.tasks.transfer_pool import create_missing, find_slots

pytestmark = pytest.mark.airflow


@pytest.fixture
def pools(airflow_db):
    """``pools() -> {name: (slots, include_deferred)}`` of Airflow's database, which afterwards has none of ours."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import delete, select

    def read():
        with create_session() as session:
            return {pool.pool: (pool.slots, pool.include_deferred) for pool in session.scalars(select(Pool))}

    def clear():
        with create_session() as session:
            session.execute(delete(Pool).where(Pool.pool != "default_pool"))

    clear()
    yield read
    clear()


def test_one_that_is_there_stays_as_it_is(pools):
    assert create_missing(Settings.from_env({"DUCKLING_POOL_SLOTS": "5"}))
    assert not create_missing(Settings.from_env({"DUCKLING_POOL_SLOTS": "9"}))
    assert pools()["duckling_transfers"] == (5, True)


def test_an_empty_name_makes_none(pools):
    assert not create_missing(Settings.from_env({"DUCKLING_POOL": ""}))
    assert set(pools()) == {"default_pool"}


def test_processes_of_tasks_do_not_touch_the_database(pools, monkeypatch):
    from duckling_provider.plugins.pool_listener import on_starting

    monkeypatch.setenv("DUCKLING_POOL", "ours")
    on_starting(component=object())
    assert set(pools()) == {"default_pool"}


@pytest.mark.usefixtures("installation")
def test_a_service_starts_whatever_becomes_of_it(pools, monkeypatch, caplog):
    from duckling_provider.plugins.pool_listener import on_starting

    class Job:
        pass

    monkeypatch.setenv("DUCKLING_POOL_SLOTS", "many")
    on_starting(component=Job())
    assert set(pools()) == {"default_pool"}
    assert "DUCKLING_POOL_SLOTS" in caplog.text


@pytest.mark.usefixtures("pools")
def test_a_check_tells_whether_it_is_there(installation, make_replica):
    make_replica(installation.replica())
    installation.write(installation.entry())

    def check(**environment):
        """In a process of its own: importing Airflow says things on stdout."""
        command = [sys.executable, "-m", "duckling_provider.cli.app", "check", "--json"]
        environ = os.environ | environment
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, json.loads(done.stdout)

    missing = run_here("check", "--json")
    document = json.loads(missing.out)
    assert missing.code == 1
    assert "duckling_transfers" in document["error"]
    assert "airflow pools set duckling_transfers 16" in document["pool"]["error"]
    create_missing(Settings.from_env({}))
    assert find_slots("duckling_transfers") == 16
    code, document = check()
    assert (code, document["pool"]) == (0, {"name": "duckling_transfers", "detail": "16 slots", "error": None})
    # Where the environment is not one of Airflow, nothing is known.
    code, document = check(AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="", AIRFLOW_HOME=str(installation.data_path))
    assert (code, document["pool"]) == (0, None)
    assert not (installation.data_path / "airflow.cfg").exists()
