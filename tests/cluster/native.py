"""The services of docker-compose.yaml as processes of this machine. Loaded by `runpy`.

Commands, settings and health checks are those of that file; replaced are addresses, paths, and what a small machine
wants otherwise.
"""

from __future__ import annotations

import json
import os
import pwd
import runpy
import shutil
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import quiet_environment, tail
from demo.airflow import request_json
from demo.service import Service, undisturbed
from demo.serving import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPOSE = runpy.run_path(str(HERE / "compose_file.py"), run_name="compose_file")
PREPARE = runpy.run_path(str(ROOT / "compose" / "prepare.py"), run_name="prepare")
BIN = Path(sys.executable).parent

#: Names by which Airflow's components find each other: addresses of this machine in place of names of containers.
HOSTS = {"worker-host-a": "127.0.0.11", "worker-host-b": "127.0.0.12"}

#: Where Airflow asks for the name of the host.
_HOST_NAME = """
import os

def name():
    return os.environ["HOSTNAME"]
"""

#: A cluster policy: no test waits five minutes for a retry. The DAGs stay as they are.
_POLICY = """
from datetime import timedelta

def task_policy(task):
    task.retry_delay = timedelta(seconds=2)
    task.retry_exponential_backoff = False
"""

#: What the file leaves as Airflow has it, made small and quick. None of it says who runs what.
_SMALL = {
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "cluster_host_name.name",
    "AIRFLOW__CORE__PARALLELISM": "6",
    "AIRFLOW__API__HOST": "127.0.0.1",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
    # How soon a dead worker's task is missed: five minutes by default.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": "127.0.0.1",
    # Nothing runs but what a test triggers.
    "AUTO_BACKUP": "false",
    "AUTO_START_SYNC": "false",
    "SYNC_INTERVAL_MINUTES": "1440",
}


class ClusterError(Exception):
    """A service does not do what it should; with the end of its log."""


@dataclass
class Cluster:
    """Everything lies in `folder`: for each service a folder of its name.

    :param folder: must be empty but for what the script has made there, and every user must be able to reach it.
    :param values: the variables of .env.
    """

    folder: Path
    values: Mapping[str, str]
    ports: dict[str, int] = field(init=False)
    _token: str = ""

    def __post_init__(self) -> None:
        self.services = COMPOSE["services"](self.values)
        names = ("postgres", "redis", "api", "health", "worker-host-a", "worker-host-b", "triggerer")
        self.ports = {name: free_port() for name in names}
        shared = self.folder / "shared"
        shared.mkdir()
        (shared / "cluster_host_name.py").write_text(_HOST_NAME)
        (shared / "airflow_local_settings.py").write_text(_POLICY)

    # ---- what is in the file, for here ----------------------------------------------------------------------

    def here(self, text: str, name: str) -> str:
        """`text` of the file as it must be for the service `name` on this machine."""
        own = str(self.folder / name / "data")
        for container, native in (
            ("@postgres:5432", f"@127.0.0.1:{self.ports['postgres']}"),
            ("@redis:6379", f"@127.0.0.1:{self.ports['redis']}"),
            ("api-server:8080", f"127.0.0.1:{self.ports['api']}"),
            ("localhost:8080", f"127.0.0.1:{self.ports['api']}"),
            ("localhost:8974", f"127.0.0.1:{self.ports['health']}"),
            ("/duckling/data", own),
            ("/duckling/host", own),
        ):
            text = text.replace(container, native)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Of Airflow's component `name`."""
        home = self.folder / name
        told = {variable: self.here(value, name) for variable, value in self.services[name].environment.items()}
        return quiet_environment(
            **(told | _SMALL),
            PATH=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            PYTHONPATH=f"{self.folder / 'shared'}",
            HOME=str(home),
            HOSTNAME=HOSTS.get(name, "127.0.0.1"),
            AIRFLOW_HOME=str(home),
            AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
            AIRFLOW__API__PORT=str(self.ports["api"]),
            AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT=str(self.ports["health"]),
            # One port for all by default. The API server asks on that of the first worker: two can't have it here.
            AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(
                self.ports["worker-host-b" if name == "worker-host-b" else "worker-host-a"]
            ),
            AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(self.ports["triggerer"]),
        )

    def command(self, name: str) -> list[str]:
        """Of Airflow's component `name`, as the image's entrypoint runs it."""
        words = [self.here(word, name) for word in self.services[name].command]
        if words[0] == "bash":
            return words
        if words[:2] == ["celery", "worker"]:
            # By default the name of the host, which containers have and these processes share.
            words += ["--celery-hostname", f"celery@{HOSTS[name]}"]
        return [sys.executable, "-m", "airflow", *words]

    # ---- databases.json ------------------------------------------------------------------------------------

    def configure(self, mysql: str, endpoints: Mapping[str, Mapping[str, str]]) -> None:
        """Write the databases.json that the script makes, for `mysql` (``host:port``) and a store per encryption mode.

        Components that see it in the file see it here, each in its own data folder; to them it is one file.
        """
        entries = json.loads((self.folder / "compose" / "data" / "databases.json").read_text())
        for entry in entries:
            entry["mysqlConnectionString"] = entry["mysqlConnectionString"].replace("mysql:3306", mysql)
            # Relative to each worker's own folder: the same path leads to different files, as with containers.
            entry["duckdbPath"] = entry["duckdbPath"].replace("/duckling/host/", "data/")
            entry["s3"] |= endpoints[entry["s3"]["encryption"]]
        path = self.folder / "databases.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(entries))
        for name, service in self.services.items():
            if service.is_airflow:
                data = self.folder / name / "data"
                data.mkdir(parents=True)
                if "/duckling/data" in service.volumes:
                    (data / "databases.json").symlink_to(path)

    def data(self, name: str) -> Path:
        return self.folder / name / "data"

    # ---- start and stop -------------------------------------------------------------------------------------

    def service(self, name: str) -> Service:
        # A service is told by its working folder, and PostgreSQL's is that of its data.
        return Service(name, self.folder / name / "data" if name == "postgres" else self.folder / name)

    def start_postgres(self) -> None:
        """PostgreSQL refuses to run as root: then it runs as the user of its Debian package."""
        home = self.folder / "postgres"
        home.mkdir(mode=0o700)
        self.folder.chmod(0o711)
        demote: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(home, user.pw_uid, user.pw_gid)
            demote = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        secret = home / "password"
        secret.write_text(self.services["postgres"].environment["POSTGRES_PASSWORD"])
        secret.chmod(0o644)  # in a folder that only its user and root can enter
        environ = quiet_environment(LC_ALL="C.UTF-8", HOME=str(home))
        data = home / "data"
        init = [*demote, _postgres("initdb"), "--pgdata", str(data), "--username", "airflow", "--pwfile", str(secret)]
        init += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync"]
        done = subprocess.run(init, env=environ, cwd=home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"initdb: {done.stderr}")
        server = [*demote, _postgres("postgres"), "-D", str(data), "-p", str(self.ports["postgres"])]
        server += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        self.service("postgres").start(server, environ)
        port = str(self.ports["postgres"])
        ready = [_postgres("pg_isready"), "--host", "127.0.0.1", "--port", port]
        self._wait("postgres", lambda: not subprocess.run(ready, capture_output=True, check=False).returncode, 60)
        create = [_postgres("createdb"), "--host", "127.0.0.1", "--port", port, "--username", "airflow", "airflow"]
        with_password = environ | {"PGPASSWORD": self.services["postgres"].environment["POSTGRES_PASSWORD"]}
        subprocess.run(create, env=with_password, check=True, capture_output=True)

    def start_redis(self) -> None:
        home = self.folder / "redis"
        home.mkdir()
        redis = self.services["redis"]
        words = [
            word.replace("port 6379", f"port {self.ports['redis']}\nbind 127.0.0.1").replace("dir /data", f"dir {home}")
            for word in redis.command
        ]
        environ = quiet_environment(**redis.environment)
        self.service("redis").start(words, environ)
        # redis-cli has no variable for the port.
        check = [word.replace("redis-cli", f"redis-cli -p {self.ports['redis']}") for word in redis.health_check]
        ping = lambda: not subprocess.run(check, env=environ, capture_output=True, check=False).returncode  # noqa: E731
        self._wait("redis", ping, 30)

    def run(self, name: str) -> None:
        """Run a service that ends, such as `init`.

        :raises ClusterError: when it fails.
        """
        service = self.service(name)
        if service.run(self.command(name), self.environment(name)):
            raise ClusterError(f"{name} failed\n{tail(service.log, 40)}")

    def start(self, name: str) -> None:
        """Start a component of Airflow in a session of its own."""
        service = self.service(name)
        environ = self.environment(name)
        if service.log.exists():
            service.log.replace(service.log.with_suffix(f".{time.monotonic_ns()}.log"))
        service.start(self.command(name), environ)

    def stop(self) -> None:
        """End everything, Airflow before what it stands on; nothing here has work to bring to an end."""
        for name in sorted(self.services, key=lambda name: not self.services[name].is_airflow):
            self.service(name).stop(patience=2.0)

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the health check of a component once."""
        words = [self.here(word, name) for word in self.services[name].health_check]
        with undisturbed():
            return subprocess.run(
                words,
                env=self.environment(name),
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

    def wait_healthy(self, *names: str, patience: float = 180) -> None:
        """Wait until the health checks of these components succeed.

        :raises ClusterError: when one ended, or is not healthy after `patience` seconds.
        """
        for name in names:
            self._wait(name, lambda: not self.check(name).returncode, patience)  # noqa: B023 - called within the round

    def _wait(self, name: str, done: Callable[[], bool], patience: float) -> None:
        deadline = time.monotonic() + patience
        while not done():
            if not self.service(name).running() or time.monotonic() > deadline:
                raise ClusterError(f"{name} is not healthy\n{tail(self.service(name).log, 40)}")
            time.sleep(0.3)

    # ---- Airflow's API --------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    def token(self) -> str:
        login = {"username": "admin", "password": self.values["AIRFLOW_ADMIN_PASSWORD"]}
        return str(request_json(f"{self.url}/auth/token", login, timeout=60)["access_token"])

    def api(self, path: str, body: Mapping[str, Any] | None = None, *, method: str | None = None) -> Any:
        """A call of Airflow's REST API as the administrator."""
        self._token = self._token or self.token()
        return request_json(f"{self.url}/api/v2/{path}", body, token=self._token, method=method, timeout=60)

    def wait_for_dags(self, wanted: set[str], patience: float = 120) -> None:
        deadline = time.monotonic() + patience
        while missing := wanted - {dag["dag_id"] for dag in self.api("dags?limit=100")["dags"]}:
            if time.monotonic() > deadline:
                raise ClusterError(f"no DAGs {missing}\n{tail(self.service('dag-processor').log, 40)}")
            time.sleep(1)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Trigger a run and return its id."""
        self.api(f"dags/{dag_id}", {"is_paused": False}, method="PATCH")
        run = self.api(f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """The task instances of a run, by task id."""
        listed = self.api(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in listed}

    def finish(self, dag_id: str, run_id: str, patience: float = 240) -> dict[str, dict[str, Any]]:
        """Wait for a run's end; its task instances.

        :raises ClusterError: when it fails, with the task's log as the API server has it, or takes too long.
        """
        deadline = time.monotonic() + patience
        while (state := self.api(f"dags/{dag_id}/dagRuns/{run_id}")["state"]) not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise ClusterError(f"{dag_id} is {state} after {patience} s: {self._states(dag_id, run_id)}")
            time.sleep(0.5)
        tasks = self.tasks(dag_id, run_id)
        if state == "failed":
            bad = [task for task in tasks.values() if task["state"] != "success"]
            logs = "\n".join(self.task_log(task) for task in bad if task["start_date"])
            raise ClusterError(f"{dag_id} failed: {self._states(dag_id, run_id)}\n{logs}")
        return tasks

    def _states(self, dag_id: str, run_id: str) -> str:
        shown = ("task_id", "state", "try_number", "queue", "hostname")
        return "\n".join(str({name: task[name] for name in shown}) for task in self.tasks(dag_id, run_id).values())

    def task_log(self, task: Mapping[str, Any]) -> str:
        """The log of a task's last try, which the API server asks its worker for."""
        path = f"dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        try:
            lines = self.api(f"{path}/logs/{task['try_number']}")["content"]
        except (urllib.error.URLError, OSError) as error:
            return f"no log: {error}"
        return "\n".join(str(line.get("event")) for line in lines)


def _postgres(program: str) -> str:
    """Debian keeps the server's programs off PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which(program, path=os.pathsep.join(map(str, folders))) or shutil.which(program)
    if found is None:
        raise ClusterError(f"no {program}: .ci/setup cluster")
    return found
