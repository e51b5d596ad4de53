"""Airflow with a home of its own: its environment, ``airflow dags test``, and a standalone one in the background."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import ROOT, DemoError, quiet_environment, tail
from demo.service import Service
from demo.serving import free_port

PASSWORDS = "simple_auth_manager_passwords.json.generated"
_AIRFLOW = (sys.executable, "-m", "airflow")
_SILENT = "the API server does not answer"


@dataclass(frozen=True)
class Task:
    """What became of one task of a DAG run."""

    name: str
    state: str
    seconds: float


@dataclass(frozen=True)
class Airflow:
    """Airflow that has everything in `home` and reads ``databases.json`` in `data`."""

    home: Path
    data: Path

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of all its commands."""
        binaries = Path(sys.executable).parent
        return quiet_environment(
            # `airflow standalone` looks its own command up there.
            PATH=f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            DATA_PATH=str(self.data),
            AIRFLOW_HOME=str(self.home),
            AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            # The default of 32 is a worker process each.
            AIRFLOW__CORE__PARALLELISM="4",
            AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{self._database}",
            AIRFLOW__LOGGING__LOGGING_LEVEL="INFO",
            **more,
        )

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    # ---- one command -------------------------------------------------------------------------------------------

    def begin_migration(self) -> subprocess.Popen[bytes]:
        """Begin to create the metadata database, in the background."""
        return Service("migrate", self.home).start([*_AIRFLOW, "db", "migrate"], self.environment())

    def finish_migration(self, migration: subprocess.Popen[bytes]) -> None:
        """Wait until the metadata database is there.

        :raises DemoError: with the end of the log.
        """
        self._finished(Service("migrate", self.home), "airflow db migrate", migration.wait())

    def test(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> list[Task]:
        """Run a DAG once, without a scheduler, and return its tasks in the order they ran.

        :raises DemoError: when the run failed; with the end of the log.
        """
        arguments = ["dags", "test", dag_id, *(["--conf", json.dumps(conf)] if conf else [])]
        self._run(dag_id, *arguments)
        tasks = self._tasks(dag_id)
        if not tasks or any(task.state != "success" for task in tasks):
            raise DemoError(f"{dag_id}: {tasks or 'no task ran'}\n{tail(self.home / f'{dag_id}.log')}")
        return tasks

    def _run(self, name: str, *arguments: str) -> None:
        # `python -m` puts the working folder on the path, and that is the home: nothing there shadows a module.
        service = Service(name, self.home)
        status = service.run([*_AIRFLOW, *arguments], self.environment())
        self._finished(service, f"airflow {' '.join(arguments)}", status)

    @staticmethod
    def _finished(service: Service, command: str, status: int) -> None:
        service.stop()
        if status:
            raise DemoError(f"{command} ended with {status}; the end of its log:\n{tail(service.log)}")

    def _tasks(self, dag_id: str) -> list[Task]:
        """From the metadata database: no command prints durations."""
        query = """SELECT task_id, state, coalesce(duration, 0) FROM task_instance
            WHERE dag_id = ? AND run_id = (SELECT run_id FROM dag_run WHERE dag_id = ? ORDER BY id DESC LIMIT 1)
            ORDER BY start_date"""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            return [Task(*row) for row in connection.execute(query, (dag_id, dag_id)).fetchall()]

    # ---- standalone --------------------------------------------------------------------------------------------

    @property
    def service(self) -> Service:
        return Service("airflow", self.home)

    def start(self, *, port: int | None = None, **more: str) -> str:
        """Start a standalone Airflow in the background.

        :param port: 8080 if that is free, else any, when omitted.
        :param more: further variables of its environment.

        :return: its URL, before it answers there; see `wait`.
        """
        self.service.stop()
        port = port or free_port(8080)
        url = f"http://localhost:{port}"
        settings = {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            # Another Airflow on this machine has the default ports of these.
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port(8794)),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port(8793)),
            # The scheduler begins before the API server answers: the first tasks wait for it, not for their retry.
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "20",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "5",
            # A change of databases.json shows after seconds.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        }
        environ = self.environment(**(settings | more))
        self.service.start([*_AIRFLOW, "standalone"], environ)
        return url

    def wait(self, url: str, dag_ids: set[str], *, patience: float = 1800.0) -> None:
        """Wait until every component is healthy and the DAGs are listed.

        A busy machine may take many minutes; an Airflow that can't start ends by itself.

        :raises DemoError: when it ended, or is not there after `patience` seconds; with the end of the log.
        """
        deadline = time.monotonic() + patience
        while True:
            missing = self._missing(url, dag_ids)
            if not missing:
                return
            if not self.service.running():
                raise DemoError(f"airflow standalone ended\n{tail(self.service.log)}")
            if time.monotonic() > deadline:
                lines = tail(self.service.log, of="api-server" if missing.startswith(_SILENT) else "")
                raise DemoError(f"still missing after {patience:.0f} s: {missing}\n{lines}")
            time.sleep(1)

    def login(self) -> tuple[str, str]:
        """User and password of the administrator."""
        passwords = json.loads((self.home / PASSWORDS).read_text(encoding="utf-8"))
        user, password = next(iter(passwords.items()))
        return str(user), str(password)

    def _missing(self, url: str, dag_ids: set[str]) -> str:
        """What is not there yet, in words; empty when everything is."""
        try:
            health = request_json(f"{url}/api/v2/monitor/health")
            parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            ill = [part for part in parts if (health.get(part) or {}).get("status") != "healthy"]
            if ill:
                return f"not healthy: {', '.join(ill)}"
            user, password = self.login()
            token = request_json(f"{url}/auth/token", {"username": user, "password": password})["access_token"]
            listed = request_json(f"{url}/api/v2/dags?limit=100", token=token)["dags"]
            return ", ".join(sorted(dag_ids - {dag["dag_id"] for dag in listed}))
        except (OSError, ValueError, KeyError) as error:
            return f"{_SILENT} ({error})"


def request_json(
    url: str,
    body: Mapping[str, Any] | None = None,
    *,
    token: str | None = None,
    method: str | None = None,
    timeout: float = 10.0,
) -> Any:
    """JSON from our own Airflow; a POST when there is a body and no other `method`."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - http, our own loopback address
    with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310 - same
        return json.load(response)
