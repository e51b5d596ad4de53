"""docker-compose.yaml, Dockerfile and the script that prepares them; no container engine is needed for this."""

from __future__ import annotations

import base64
import collections
import importlib.util
import json
import os
import re
import runpy
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPOSE = runpy.run_path(str(HERE / "compose_file.py"), run_name="compose_file")
PREPARE = runpy.run_path(str(ROOT / "compose" / "prepare.py"), run_name="prepare")
DOCUMENT = COMPOSE["document"]()
SECRET = re.compile(r"PASSWORD|SECRET|KEY|TOKEN", re.IGNORECASE)


@pytest.fixture
def prepared(tmp_path) -> dict[str, str]:
    return PREPARE["prepare"](tmp_path, lambda _: None)


@pytest.fixture
def services(prepared):
    return COMPOSE["services"](prepared)


def long_running(services):
    return [service for service in services.values() if not service.is_one_shot]


# ---- the file ----------------------------------------------------------------------------------------------


def test_the_file_follows_the_compose_specification():
    # Its JSON schema of check-jsonschema 0.39, which has it from https://github.com/compose-spec/compose-go.
    schema = json.loads((HERE / "compose-spec" / "compose-spec.json").read_text())
    jsonschema.validators.validator_for(schema).check_schema(schema)
    jsonschema.validate(DOCUMENT, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(DOCUMENT | {"services": {"a": {"imagee": "x"}}}, schema)


def test_the_script_writes_every_variable_and_no_other_and_none_may_be_missing(prepared):
    """A variable written without ``:?`` would be taken for empty, and would be named here with its braces."""
    assert set(COMPOSE["variables"](DOCUMENT)) == set(prepared) == set(PREPARE["VARIABLES"])


def test_no_secret_is_written_in_the_file(services):
    """What is called a secret comes from a variable, all of it."""
    for name, service in DOCUMENT["services"].items():
        for variable, value in service.get("environment", {}).items():
            left = re.sub(r"\$\{\w+:\?\}", "", str(value))
            if "@" in left:
                assert re.search(r"://[\w-]*:@", left), f"{name}: {variable}"
            elif SECRET.search(variable):
                assert left == "", f"{name}: {variable}"
    values = [value for service in services.values() for value in service.environment.values()]
    assert any("redis://:" in value for value in values)


def test_secrets_are_in_environments_only_never_among_arguments(services, prepared):
    """Arguments are shown to every user of the host."""
    secrets = {value for name, value in prepared.items() if SECRET.search(name)}
    for service in services.values():
        shown = [*COMPOSE["texts"]({**service.raw, "environment": {}})]
        assert not [name for name in secrets if any(name in text for text in shown)], service.name


def test_what_services_refer_to_exists(services):
    for service in services.values():
        for other, how in service.raw.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if services[other].is_one_shot else "service_healthy"
            assert how == {"condition": wanted}, f"{service.name} on {other}"
        for path, source in service.volumes.items():
            assert path.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists() or source == "./compose/data", source
            else:
                assert source in DOCUMENT["volumes"], source
    used = {source for service in services.values() for source in service.volumes.values()}
    assert set(DOCUMENT["volumes"]) <= used


def test_no_two_services_wait_for_each_other(services):
    def before(name, path=()):
        assert name not in path, " -> ".join([*path, name])
        for other in services[name].raw.get("depends_on", {}):
            before(other, (*path, name))

    for name in services:
        before(name)


def test_ports_are_published_once_and_only_those_of_the_api_server(services):
    published = {name: service.raw["ports"] for name, service in services.items() if "ports" in service.raw}
    assert published == {"api-server": ["127.0.0.1:8080:8080", "127.0.0.1:3001:8080"]}
    counts = collections.Counter(port.split(":")[1] for ports in published.values() for port in ports)
    assert set(counts) == {"8080", "3001"}
    assert max(counts.values()) == 1


def test_images_are_pinned_to_one_release(services):
    for service in services.values():
        image, _, tag = service.raw["image"].rpartition(":")
        assert image
        assert re.search(r"\d+\.\d+\.\d+|\d+\.\d+-|RELEASE\.\d{4}-\d\d-\d\dT", tag), service.raw["image"]
    (airflow,) = {service.raw["image"] for service in services.values() if service.is_airflow}
    base = re.search(r"ARG AIRFLOW=apache/airflow:slim-([\d.]+)-python3\.\d+\n", (ROOT / "Dockerfile").read_text())[1]
    pinned = re.search(r"^apache-airflow==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert airflow.rpartition(":")[2] == base == pinned


def test_long_running_services_have_a_health_check_and_are_restarted(services):
    assert {service.name for service in long_running(services)} >= {
        "api-server", "scheduler", "dag-processor", "triggerer", "worker-host-a", "worker-host-b",
        "postgres", "redis", "minio", "mysql",
    }  # fmt: skip
    for service in long_running(services):
        assert service.raw["restart"] == "unless-stopped"
        assert set(service.raw["healthcheck"]) >= {"test", "interval", "timeout", "retries", "start_period"}


def test_nothing_of_ours_runs_as_root(services):
    """PostgreSQL's and MySQL's images give up root by themselves; one service prepares a volume for MinIO."""
    roots = {name for name, service in services.items() if service.raw.get("user", "0:0").startswith("0:")}
    by_their_image = {"postgres", "mysql"}
    assert (roots - by_their_image) <= {"minio-volume"} | (
        {name for name, service in services.items() if service.is_airflow} if os.geteuid() == 0 else set()
    )
    for name, service in services.items():
        if service.is_airflow:
            assert DOCUMENT["services"][name]["user"] == "${AIRFLOW_UID:?run python3 compose/prepare.py first}:0"
            assert service.raw["user"] != "0:0"
            assert service.raw["cap_drop"] == ["ALL"]


# ---- Airflow's components ----------------------------------------------------------------------------------


def test_all_of_airflow_shares_one_configuration(services):
    airflow = [service for service in services.values() if service.is_airflow]
    assert len(airflow) == 7
    common = set.intersection(*(set(service.environment.items()) for service in airflow))
    for service in airflow:
        own = dict(set(service.environment.items()) - common)
        allowed = {"AIRFLOW_ADMIN_PASSWORD", "DUCKLING_API_KEY", "DUCKLING_HOST", "DUMB_INIT_SETSID"}
        assert set(own) <= allowed, service.name
    names = {name for name, _ in common}
    assert names >= {
        "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND", "DATA_PATH", "BACKUP_PATH",
    }  # fmt: skip
    # The API server alone knows the key of the REST API.
    assert [service.name for service in airflow if "DUCKLING_API_KEY" in service.environment] == ["api-server"]


def test_every_option_of_airflow_exists(services):
    """A mistyped name would be ignored without a word."""
    from airflow.configuration import conf

    for name in services["scheduler"].environment:
        if name.startswith("AIRFLOW__"):
            section, option = name.removeprefix("AIRFLOW__").lower().split("__")
            # The section of the broker's client takes any option. Those of Celery are known once its provider is there.
            if section == "celery" and importlib.util.find_spec("celery") is None:
                continue
            if section != "celery_broker_transport_options":
                assert conf.configuration_description.get(section, {}).get("options", {}).get(option), name


def test_databases_json_is_seen_by_those_who_read_it_and_replicas_by_their_worker_alone(services):
    see = {name for name, service in services.items() if "/duckling/data" in service.volumes}
    assert see == {"api-server", "dag-processor", "triggerer", "worker-host-a", "worker-host-b"}
    raw = {name: service.raw.get("volumes", []) for name, service in services.items()}
    writable = {name for name in see if "./compose/data:/duckling/data" in raw[name]}
    assert writable == {"api-server"}
    replicas = {name: service.volumes["/duckling/host"] for name, service in services.items()
                if "/duckling/host" in service.volumes}  # fmt: skip
    assert replicas == {"worker-host-a": "host-a", "worker-host-b": "host-b"}


def test_each_host_has_a_worker_on_its_own_queue_that_is_found_by_its_name(services, prepared):
    workers = {name: service for name, service in services.items() if service.command[:2] == ["celery", "worker"]}
    queues = {}
    for name, worker in workers.items():
        assert worker.raw["hostname"] == name
        (queue,) = [worker.command[at + 1] for at, word in enumerate(worker.command) if word == "--queues"]
        queues[queue] = worker.environment["DUCKLING_HOST"]
    assert queues == {"host-a": "host-a", "host-b": "host-b"}
    assert {(entry["queue"], entry["host"]) for entry in PREPARE["entries"](prepared)} == set(queues.items())


def test_mysql_is_set_as_replication_demands(services):
    options = dict(word[2:].split("=", 1) for word in services["mysql"].command if word.startswith("--"))
    documented = re.findall(
        r"^\| `(binlog_\w+)` \| `(\w+)` \|", (ROOT / "docs" / "internals" / "replication.md").read_text(), re.MULTILINE
    )
    assert len(documented) == 3
    for name, value in documented:
        assert options[name.replace("_", "-")] == value
    assert options["log-bin"]
    assert int(options["server-id"]) > 0
    assert int(options["binlog-expire-logs-seconds"]) > 86400
    grants = (ROOT / "compose" / "mysql" / "10-user.sh").read_text()
    assert "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'duckling'@'%'" in grants
    assert set(re.findall(r"GRANT SELECT, LOCK TABLES ON \\`(\w+)\\`", grants)) == {"shop", "crm", "inventory"}


@pytest.mark.slow
def test_scripts_in_the_file_are_valid_shell(services):
    for service in services.values():
        for field in ("command", "entrypoint"):
            words = service.raw.get(field)
            if isinstance(words, list) and words[0] in ("sh", "bash"):
                done = subprocess.run([words[0], "-n"], input=words[2], text=True, capture_output=True, check=False)
                assert (done.returncode, done.stderr) == (0, ""), service.name


# ---- the script --------------------------------------------------------------------------------------------


def run_script(folder: Path) -> str:
    command = [sys.executable, "-I", str(ROOT / "compose" / "prepare.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_script_makes_fresh_secrets_for_their_owner_alone_and_prints_none(tmp_path):
    output = run_script(tmp_path / "one") + run_script(tmp_path / "two")
    made = [dict(line.split("=", 1) for line in (tmp_path / name / ".env").read_text().splitlines() if "=" in line)
            for name in ("one", "two")]  # fmt: skip
    same = {name for name in made[0] if made[0][name] == made[1][name]}
    assert same == {"AIRFLOW_UID", "BIND_ADDRESS"}
    keys = [json.loads((tmp_path / name / "compose/data/databases.json").read_text()) for name in ("one", "two")]
    assert keys[0][2]["s3"]["encryptionKey"] != keys[1][2]["s3"]["encryptionKey"]
    secrets = [value for values in made for name, value in values.items() if name not in same]
    secrets += [entry["s3"].get("encryptionKey", "none of all") for entries in keys for entry in entries]
    assert not [secret for secret in secrets if secret in output]
    for path in ("one/.env", "one/compose/data/databases.json"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "one/compose/data").stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_second_run_keeps_everything_and_adds_what_is_missing(tmp_path):
    run_script(tmp_path)
    env, databases = tmp_path / ".env", tmp_path / "compose/data/databases.json"
    before = env.read_text(), databases.read_text()
    run_script(tmp_path)
    assert (env.read_text(), databases.read_text()) == before
    lines = before[0].splitlines(keepends=True)
    env.write_text("".join(line for line in lines if not line.startswith("REDIS_")).rstrip("\n"))
    env.chmod(0o644)
    run_script(tmp_path)
    names = [{line.split("=")[0].strip() for line in text.splitlines()} for text in (before[0], env.read_text())]
    assert names[0] == names[1]
    assert {line for line in lines if "REDIS_" not in line} <= set(env.read_text().splitlines(keepends=True))
    assert stat.S_IMODE(env.stat().st_mode) == 0o600


def test_values_mean_nothing_to_compose_shells_and_urls(prepared):
    for name, value in prepared.items():
        assert re.fullmatch(r"[\w.:=+/-]+", value), name
    urls = [name for name in COMPOSE["variables"](DOCUMENT["x-airflow-environment"]) if "PASSWORD" in name]
    assert urls
    assert all(prepared[name].isalnum() for name in urls)


def test_keys_have_the_form_that_their_readers_want(prepared):
    from cryptography.fernet import Fernet

    Fernet(prepared["AIRFLOW_FERNET_KEY"])
    name, _, key = prepared["MINIO_KMS_SECRET_KEY"].partition(":")
    assert name
    assert len(base64.b64decode(key, validate=True)) == 32


def test_databases_json_is_valid_and_has_an_entry_of_each_kind(tmp_path, prepared, monkeypatch):
    from duckling_provider import config

    monkeypatch.setenv("DATA_PATH", str(tmp_path / "compose" / "data"))
    found = config.load()
    assert not found.problems
    assert [database.s3.encryption for database in found.databases] == ["none", "sse-s3", "client-aes256"]
    assert {database.queue for database in found.databases} == {"host-a", "host-b"}


@pytest.mark.slow
def test_nothing_that_the_script_makes_gets_into_git_or_an_image():
    for path in (".env", "compose/data/databases.json"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0, path
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {word for line in copied for word in line.split()} == set(allowed)


def test_the_chart_values_in_the_docs_are_yaml():
    text = (ROOT / "docs" / "operate" / "several-hosts.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert yaml.safe_load(block)
