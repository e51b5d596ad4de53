"""No secret leaves databases.json: a supervised Airflow (not `dag.test()`) backs up, restores and fails to restore, and
then everything that it wrote is searched.

Only in the long forms: the page's tests do the same in an Airflow that `make test` has anyway.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.secret_search import leaks, replace_key, secrets_of

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.survival,
    pytest.mark.airflow,
    pytest.mark.server,
    pytest.mark.full,
]


def _demo(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "DEMO_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Api:
    """Airflow's own REST API, as an administrator."""

    def __init__(self, told: str) -> None:
        said = dict(line.split(None, 1) for line in told.splitlines() if line.startswith(("URL", "Login", "Password")))
        self._url, self._token = said["URL"], ""
        self._token = self.call("/auth/token", {"username": said["Login"], "password": said["Password"]})[
            "access_token"
        ]

    def call(self, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)  # noqa: S310 - our own loopback address
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - same
            return json.load(answer)

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        run_id: str = self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]
        return run_id

    def ended(self, dag_id: str, run_id: str | None = None) -> str:
        """The state in which that run, or the newest one, ends."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            runs = self.call(f"/api/v2/dags/{dag_id}/dagRuns?order_by=-id&limit=5")["dag_runs"]
            for run in runs:
                if run_id in {None, run["dag_run_id"]} and run["state"] in {"success", "failed"}:
                    state: str = run["state"]
                    return state
            time.sleep(1)
        pytest.fail(f"no run of {dag_id} ended")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """The folder of an Airflow that has worked, and every secret that was in its databases.json at any time."""
    folder = tmp_path_factory.mktemp("supervised")
    try:
        told = _demo("airflow", folder=folder)
        databases = folder / "airflow" / "data" / "databases.json"
        secrets = secrets_of(databases)
        api = Api(told)
        # The schedule would begin one as well, within a quarter of an hour.
        backed_up = api.trigger("duckling_backup__shop", {})
        assert api.ended("duckling_backup__shop", backed_up) == "success"
        restored = api.trigger("duckling_restore__shop", {"key": "latest"})
        assert api.ended("duckling_restore__shop", restored) == "success"
        replace_key(databases, "shop")
        secrets += secrets_of(databases)
        refused = api.trigger("duckling_restore__shop", {"key": "latest"})
        assert api.ended("duckling_restore__shop", refused) == "failed"
        yield folder / "airflow", sorted(set(secrets))
    finally:
        _demo("airflow-stop", folder=folder)


def test_what_a_supervised_airflow_writes_holds_no_secret(searched):
    folder, secrets = searched
    # Where secrets belong: the configuration, and the store's own account.
    own = {folder / "data" / "databases.json", folder / "store" / "store.json"}
    looked_at = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in looked_at if path.name == "airflow.db"]
    assert [path for path in looked_at if "duckling_restore__shop" in str(path) and path.suffix == ".log"]
    assert leaks(folder, secrets, own) == []


def test_the_metadata_database_holds_the_results_and_no_secret(searched):
    folder, secrets = searched
    with sqlite3.connect(f"file:{folder / 'home' / 'airflow.db'}?mode=ro", uri=True) as connection:
        dump = "\n".join(connection.iterdump())
    assert "duckling_restore__shop" in dump
    assert "shop/backup-" in dump  # keys are in XCom and asset events: what was written was looked at
    assert [secret[:4] for secret in secrets if secret in dump] == []


def test_the_log_of_the_refused_restore_says_why_and_what_to_do(searched):
    folder, _ = searched
    logs = [path.read_text() for path in folder.rglob("*.log") if "task_id=restore" in str(path)]
    assert any("wrong key" in log and "What to do: " in log for log in logs)
