"""`duckling status` and `duckling audit`, in this process, against a real store."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
from typing import Any

import pytest
from fixtures.command_line import run_here

from duckling_provider.backup.inventory.states import record_state
from duckling_provider.cli.session import who
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server

KEY = "0123456789abcdef" * 4


@pytest.fixture
def shop(installation: Any, s3_server: Any, make_replica: Any) -> Any:
    """An entry with S3 and a replica, and one with local backups only."""
    s3 = s3_server.s3(s3_server.new_bucket(), encryption="client-aes256", encryptionKey=KEY)
    installation.write(installation.entry("shop", s3=s3, rpoHours=24, rtoMinutes=60), installation.entry("crm"))
    for name in ("shop", "crm"):
        make_replica(installation.replica(name), rows=50)
    return installation


def status(*arguments: str) -> Any:
    return run_here("status", *arguments, "--json").json


def test_status_tells_what_a_recovery_would_bring_and_fails_while_something_is_wrong(shop: Any):
    assert run_here("status", "crm").code == 1
    assert run_here("backup", "shop").code == 0
    found = run_here("status", "shop", "--json")
    told = found.json
    assert (found.code, told["state"], told["rpoKept"], told["rtoKept"]) == (0, "protected", True, True)
    assert told["estimatedSeconds"] > 0
    assert told["lastTestedAt"] is None
    every = run_here("status", "--all")
    assert every.code == 1
    assert "crm: nothing could be restored" in every.out
    assert run_here("backup", "crm").code == 0
    told = status()
    assert (told["success"], told["troubles"]) == (True, [])
    assert {one["id"]: one["state"] for one in told["databases"]} == {"shop": "protected", "crm": "local only"}
    assert run_here("status", "shop", "--all").code == 2


def test_after_the_loss_of_the_host_the_states_are_known_from_the_bucket(shop: Any):
    assert run_here("backup", "shop").code == 0
    database = shop.database("shop")
    store = open_store(database)
    key = status("shop")["lastVerifiedKey"]
    record_state(database, store, store.head(key), "tested", means="drill")
    shutil.rmtree(shop.backup_path)
    shop.replica("shop").unlink()
    lost = status()
    assert {one["id"]: one["state"] for one in lost["databases"]} == {"shop": "no backup", "crm": "no backup"}
    told = status("shop") if run_here("status", "shop").code == 0 else {}
    assert (told["state"], told["lastVerifiedKey"], bool(told["lastTestedAt"])) == ("protected", key, True)
    # From now on this host knows it, too.
    assert {one["id"]: one["state"] for one in status()["databases"]}["shop"] == "protected"


def test_a_key_that_does_not_exist_gets_no_database_into_trouble(shop: Any):
    assert run_here("backup", "shop").code == 0
    for command in ("verify", "drill"):
        refused = run_here(command, "shop", "backup-2025-03-01T14-32-11-482Z.db")
        assert (refused.code, "no such object" in refused.err) == (1, True)
    assert status("shop")["state"] == "protected"


def test_a_restore_tells_what_it_will_take_before_it_begins(shop: Any):
    assert run_here("backup", "shop").code == 0
    assert "takes     less than a second" in run_here("restore", "shop", "--dry-run").out
    assert run_here("restore", "shop", "--dry-run", "--json").json["estimatedSeconds"] > 0
    assert "it will take less than a second" in run_here("restore", "shop").err


def test_what_went_to_make_room_is_in_the_audit(shop: Any):
    for _ in range(2):
        assert run_here("backup", "shop").code == 0
    size = shop.replica("shop").stat().st_size
    shop.write(shop.entry("shop", localBackupsMaxBytes=2 * size + 1, s3=shop.database("shop").entry["s3"]))
    assert "deleted by the retention: backup-" in run_here("backup", "shop").out
    (line,) = run_here("audit", "shop", "--json").json["audit"]
    assert (line["what"], line["detail"].count("backup-")) == ("retention", 1)


def test_the_audit_tells_who_did_what_and_what_failed_without_a_secret(shop: Any, monkeypatch: Any):
    monkeypatch.setenv("USER", "mallory")
    monkeypatch.setenv("LOGNAME", "mallory")
    for line in ("backup shop", "restore shop", "restore shop shop/backup-2025-03-01T14-32-11-482Z.db"):
        run_here(*line.split())
    key = status("shop")["lastVerifiedKey"]
    for line in (f"pin shop {key}", f"unpin shop {key}", f"delete shop {key} --yes", "keys rotate shop"):
        assert run_here(*line.split()).code == 0
    lines = run_here("audit", "shop", "--json").json["audit"][::-1]
    assert [line["what"] for line in lines] == ["restore", "restore", "pin", "unpin", "delete", "change"]
    assert [bool(line.get("error")) for line in lines] == [False, True, False, False, False, False]
    # Not "latest": which one that was.
    assert {line["key"] for line in (lines[0], *lines[2:5])} == {key}
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {line["by"] for line in lines} == {f"{user} on the command line"}
    monkeypatch.setenv("SUDO_USER", "alice")
    assert who() == f"{user}, by sudo from alice, on the command line"
    path = shop.backup_path / "shop" / "audit.jsonl"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    secrets = [*shop.database("shop").secrets(), KEY]
    assert not [secret for secret in secrets if secret in path.read_text()]
    assert json.loads(path.read_text().splitlines()[0])["host"] == shop.database("shop").here
    shop.write()
    assert "delete" in run_here("audit").out
    assert run_here("audit", "nothing").code == 2
