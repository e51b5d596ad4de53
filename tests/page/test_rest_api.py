"""The contract's calls, by curl, against a live Airflow that really backs up and restores."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.server]

COUNT = "SELECT count(*), bit_xor(hash(name)) FROM customers"


@pytest.fixture
def curl(live):
    """``curl(method, path, body=None, seconds=120) -> (status, answer)``; status 28 when curl was gone before."""

    def curl(method, path, body=None, *, seconds=120):
        command = ["curl", "--silent", "--max-time", str(seconds), "--write-out", "\n%{http_code}"]
        command += ["--request", method, "--header", f"Authorization: Bearer {live.api_key}"]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        done = subprocess.run([*command, f"{live.url}{path}"], capture_output=True, text=True, check=False)
        if done.returncode:
            return done.returncode, None
        text, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(text)

    return curl


def quiet(curl, database_id="shop"):
    """Wait until no run of the database is under way."""
    deadline = time.monotonic() + 90
    while True:
        status, answer = curl("POST", f"/api/backups/s3/verify?db={database_id}", {"key": "latest"})
        if status != 409:
            return status, answer
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_backup_comes_back_by_the_contracts_calls(live, curl, query_replica):
    before = query_replica(live.replica(), COUNT)
    status, made = curl("POST", "/api/backups/s3?db=shop")
    assert status == 200, made
    assert set(made) == {"success", "key", "size", "duration"}
    assert made["size"] == live.replica().stat().st_size
    name = made["key"].removeprefix("shop/")
    assert {name, f"{name}.mac"} <= live.stored()

    status, listed = curl("GET", "/api/backups?db=shop")
    assert (listed["s3"][0]["key"], listed["local"][0]["filename"]) == (made["key"], name)
    status, found = curl("GET", "/api/automation/status?db=shop")
    assert found["backup"]["s3LastUploadAt"] == listed["local"][0]["createdAt"]
    assert curl("POST", "/api/backups/s3/verify?db=shop", {"key": made["key"]})[1]["size"] == made["size"]

    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('DELETE FROM customers WHERE id > 10')"
    subprocess.run([sys.executable, "-c", program, str(live.replica())], check=True, timeout=60)
    assert query_replica(live.replica(), COUNT) != before
    status, restored = curl("POST", "/api/backups/s3/restore?db=shop", {"key": made["key"]})
    assert (status, restored["success"], restored["key"], restored["size"]) == (200, True, made["key"], made["size"])
    assert query_replica(live.replica(), COUNT) == before

    status, health = curl("GET", "/health?db=shop")
    assert (status, health["details"][0]["state"]) == (200, "protected")


def test_a_caller_that_goes_away_cancels_nothing_and_the_next_one_is_told(live, curl):
    before = live.stored()
    assert curl("POST", "/api/backups/s3?db=shop", seconds=1.5) == (28, None)
    status, refused = curl("POST", "/api/backups/s3?db=shop")
    assert status == 409
    assert refused["runId"] in refused["error"]
    deadline = time.monotonic() + 90
    while len(live.stored()) < len(before) + 2:
        assert time.monotonic() < deadline, "the run was lost with its caller"
        time.sleep(1)
    assert quiet(curl)[0] == 200


def test_a_store_that_is_down_is_a_502_and_the_run_goes_on(curl):
    status, answer = curl("POST", "/api/backups/s3?db=crm")
    assert (status, answer["success"], answer["retrying"]) == (502, False, True)
    assert "Airflow tries upload again" in answer["error"]
    status, answer = curl("POST", "/api/backups/s3/restore?db=crm", {"key": "latest"})
    assert (status, answer["success"]) == (502, False)
