"""A host with three databases is lost in the middle of a sync and of an upload. What is left is the package,
databases.json and the bucket, and the list of commands in the runbook, which is followed here to the letter.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.command_line import run_here

pytestmark = [pytest.mark.survival, pytest.mark.mysql]

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "operate" / "runbook.md"
#: Of each database, how its backups are encrypted.
MODES = {"shop": "client-aes256", "stock": "none", "crm": "client-aes256"}

#: A command that dies like a host without power: in the middle of what a sync writes, or when a backup's bytes are on
#: their way for the first time.
_DYING = """
import os, signal, sys
from botocore.httpsession import URLLib3Session
from duckling_provider.cli.app import run
from duckling_provider.replication.apply.batch import Batch

write, send = Batch._write, URLLib3Session.send

def written(batch):
    write(batch)
    os.kill(os.getpid(), signal.SIGKILL)

def sent(session, request):
    if request.method == "PUT" and ".db" in request.url and ".db." not in request.url:
        os.kill(os.getpid(), signal.SIGKILL)
    return send(session, request)

Batch._write, URLLib3Session.send = written, sent
run(sys.argv[1:])
"""


class Host:
    """A machine with a DATA_PATH of its own."""

    def __init__(self, folder: Path, entries: list[dict[str, object]]) -> None:
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True)
        path = self.data / "databases.json"
        path.write_text(json.dumps(entries))
        path.chmod(0o600)

    @property
    def environ(self) -> dict[str, str]:
        return {"DATA_PATH": str(self.data), "BACKUP_PATH": str(self.data / "backups")}

    def __call__(self, *arguments: str):
        answer = run_here(*arguments, environ=self.environ)
        assert answer.code == 0, answer
        return answer

    def dies_in(self, *arguments: str) -> None:
        environ = {**os.environ, **self.environ, "PYTHONPATH": str(ROOT)}
        died = subprocess.run([sys.executable, "-c", _DYING, *arguments], env=environ, check=False, capture_output=True)
        assert died.returncode == -9, died

    def steps_that_fail(self) -> set[str]:
        """What ``duckling check`` finds, in a process of its own: it would look into the Airflow of other tests."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environ = {**inherited, **self.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "duckling_provider.cli.app", "check", "--json"]
        found = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        answer = json.loads(found.stdout)
        return {step["name"] for database in answer["databases"] for step in database["steps"] if step["error"]}


def commands() -> list[list[str]]:
    """Those of the runbook's section, in order."""
    section = RUNBOOK.read_text().partition("\n## A new machine\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\$ duckling (.*)$", section, re.MULTILINE)
    return [line.partition("#")[0].split() for line in lines]


@pytest.fixture
def entries(mariadb, s3_server):
    """Three databases with tables, and their entries."""
    bucket, found = s3_server.new_bucket(), []
    for name, mode in MODES.items():
        database = mariadb.create_database()
        key = {"encryptionKey": secrets.token_hex(32)} if mode == "client-aes256" else {}
        s3 = s3_server.s3(bucket, encryption=mode, pathPrefix=f"{name}/", **key)
        url = mariadb.url(database)
        found.append(
            {"id": name, "name": name, "duckdbPath": f"data/{name}.db", "mysqlConnectionString": url, "s3": s3}
        )
    yield found
    for entry in found:
        mariadb.execute(f"DROP DATABASE `{entry['mysqlConnectionString'].rpartition('/')[2]}`")


def test_a_lost_host_comes_back_by_the_commands_of_the_runbook(entries, mariadb, tmp_path, full, capsys):
    rows = 100_000 if full else 200
    databases = {entry["id"]: entry["mysqlConnectionString"].rpartition("/")[2] for entry in entries}
    for database in databases.values():
        mariadb.execute(
            [
                "CREATE TABLE orders (id INT PRIMARY KEY, total DECIMAL(10,2), note VARCHAR(64))",
                f"INSERT INTO orders SELECT seq, seq / 7, SHA2(seq, 256) FROM seq_1_to_{rows}",
                "CREATE TABLE log (line VARCHAR(40))",
            ],
            database,
        )
    lost = Host(tmp_path / "lost", entries)
    for name in MODES:
        lost("sync", name)
        lost("backup", name)
    for database in databases.values():
        mariadb.execute(
            ["UPDATE orders SET total = total + 1 WHERE id % 5 = 0", "INSERT INTO log VALUES ('after the backup')"],
            database,
        )
    lost.dies_in("sync", "shop")
    lost.dies_in("backup", "stock")
    lost.dies_in("backup", "crm")
    shutil.rmtree(lost.folder)

    began = time.monotonic()
    new = Host(tmp_path / "new", entries)
    synced, validated, listed = [], [], []
    for words in commands():
        if words == ["check"]:
            assert new.steps_that_fail() == {"replica"}  # there is none yet
            continue
        for name in MODES:
            answer = new(*[name if word == "<id>" else word for word in words], "--json").json
            {"sync": synced, "validate": validated, "list": listed}.get(words[0], []).append(answer)
    took = time.monotonic() - began

    assert [answer["copied"] for answer in synced] == [[], [], []]
    assert [answer["changes"] for answer in synced] == [rows // 5 + 1] * 3
    assert [answer["equal"] for answer in validated] == [True, True, True]
    states = [row["state"] for answer in listed for row in answer["s3"] if row["complete"]]
    assert states == ["verified"] * 3
    with capsys.disabled():
        print(f"\nthree databases of {rows:,} orders were back, caught up and validated in {took:.1f} s")
