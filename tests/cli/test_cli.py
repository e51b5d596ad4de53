"""The command line as users and scripts meet it: real processes, a real S3 server, real replicas."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fixtures.command_line import Outcome, run_here, run_on_terminal

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
KEY = secrets.token_hex(32)
NAME = re.compile(r"backup-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z\.db")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
PATIENCE = 60.0


@dataclass
class CommandLine:
    """Runs ``duckling …`` in child processes; whatever they say may hold neither a traceback nor a secret."""

    secrets: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        # Not the Airflow that other tests have set up in this process: `check` would look into it.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environ = {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "TERM": "xterm", **self.environ}
        environ.pop("DUCKLING_DEBUG", None)
        command = [sys.executable, "-m", "duckling_provider.cli.app", *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, env=environ, cwd="/", **streams)

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        out, err = process.communicate(timeout=PATIENCE)
        return self.judged(Outcome(process.returncode, out.decode(), err.decode()))

    def judged(self, outcome: Outcome) -> Outcome:
        print(outcome)  # pytest shows it when a test fails
        for text in (outcome.out, outcome.err):
            assert "Traceback" not in text
            for secret in self.secrets:
                assert secret not in text
        return outcome

    def __call__(self, *arguments: object) -> Outcome:
        """In this process, which has imported what a command needs."""
        return self.judged(run_here(*arguments, environ=self._environ()))

    def _environ(self) -> dict[str, str | None]:
        # Not the Airflow that other tests have begun here: `check` would look into it.
        elsewhere: dict[str, str | None] = {name: None for name in os.environ if name.startswith("AIRFLOW_")}
        return {**elsewhere, "COLUMNS": "160", "TERM": "xterm", **self.environ}

    def apart(self, *arguments: object) -> Outcome:
        return self.finish(self.start(*arguments))

    def on_terminal(self, *arguments: object, answer: str = "") -> Outcome:
        """With stdin and stderr on a terminal, where `answer` is typed as soon as a question appears."""
        return self.judged(run_on_terminal(*arguments, environ=self._environ(), answer=answer, patience=PATIENCE))


@pytest.fixture
def duckling(installation) -> CommandLine:
    return CommandLine(secrets=["mysql-password"])


@dataclass(frozen=True)
class Site:
    """One database "production" with a replica, and its bucket."""

    server: Any
    bucket: str
    replica: Path
    backups: Path
    write: Callable[..., None]

    def objects(self) -> list[str]:
        listing = self.server.client().list_objects_v2(Bucket=self.bucket)
        return sorted(row["Key"] for row in listing.get("Contents", []))

    def beside_the_replica(self) -> set[str]:
        """What lies beside the replica but the lock file, which stays on purpose."""
        names = {path.name for path in self.replica.parent.glob(f"{self.replica.name}*")}
        return names - {f"{self.replica.name}{suffix}" for suffix in ("", ".duckling-lock", ".duckling-origin")}


@pytest.fixture(scope="module")
def content(make_replica, tmp_path_factory) -> bytes:
    """A small replica, made once: DuckDB needs a process of its own for each."""
    made: bytes = make_replica(tmp_path_factory.mktemp("replica") / "small.db", rows=500).read_bytes()
    return made


@pytest.fixture
def site(duckling, installation, s3_server, content) -> Site:
    replica = installation.replica()
    replica.write_bytes(content)
    bucket = s3_server.new_bucket()
    duckling.secrets += [s3_server.secret_access_key, KEY]

    def write(**fields: Any) -> None:
        settings = {"encryption": "client-aes256", "encryptionKey": KEY, **fields}
        installation.write(installation.entry(s3=s3_server.s3(bucket, **settings)))

    write()
    return Site(s3_server, bucket, replica, installation.backup_path / "production", write)


# ---- the main job ------------------------------------------------------------------------------------------


def test_a_replica_goes_to_s3_and_comes_back(duckling, site, query_replica):
    before = query_replica(site.replica, "SELECT count(*), bit_xor(hash(note)) FROM orders")

    backup = duckling.apart("backup", "production", "--json").json
    assert set(backup) == {
        *("success", "key", "filename", "size", "duration"),
        *("bytesSent", "bytesReceived", "bytesCopied", "fullBecause", "cpuSeconds", "held"),
    }
    assert backup["success"] is True
    assert backup["key"] == f"production/{backup['filename']}"
    assert NAME.fullmatch(backup["filename"])
    assert backup["size"] == site.replica.stat().st_size
    assert site.objects() == [backup["key"] + suffix for suffix in ("", ".mac", ".state")]

    listed = duckling("list", "production", "--json").json
    assert [row["filename"] for row in listed["local"]] == [backup["filename"]]
    assert [row["key"] for row in listed["s3"]] == [backup["key"]]
    more = {"complete", "state", "stateAt", "pinned", "mode", "keyFingerprint", "createdAt", "origin"}
    assert set(listed["local"][0]) == {"filename", "size", *more}
    assert set(listed["s3"][0]) == {"key", "size", "lastModified", "bytesSent", *more}
    assert listed["s3"][0]["size"] == backup["size"] + 16
    assert ISO.fullmatch(listed["local"][0]["createdAt"])
    assert ISO.fullmatch(listed["s3"][0]["lastModified"])

    verified = duckling("verify", "production", "--json").json
    assert (verified["success"], verified["key"], verified["evidence"]) == (True, backup["key"], "HMAC-SHA256")

    site.replica.write_bytes(b"damaged")
    restored = duckling.apart("restore", "production", backup["key"], "--json").json
    assert {name: restored[name] for name in ("success", "key", "size")} == {
        "success": True,
        "key": backup["key"],
        "size": backup["size"],
    }
    assert isinstance(restored["duration"], int)
    assert query_replica(site.replica, "SELECT count(*), bit_xor(hash(note)) FROM orders") == before
    assert site.beside_the_replica() == set()


def test_people_get_sentences(duckling, site):
    backup = duckling("backup", "production")
    assert backup.code == 0
    key = re.search(rf"production/{NAME.pattern}", backup.out)[0]
    assert backup.out.startswith(f"s3://{site.bucket}/{key}: ")
    assert "verified (HMAC-SHA256)" in backup.out

    listing = duckling("list", "production")
    assert listing.code == 0
    assert [line.split()[0] for line in listing.out.splitlines()] == ["WHERE", "local", "s3"]
    assert key in listing.out

    assert "sound" in duckling("verify", "production").out
    restored = duckling("restore", "production", "--keep-old")
    assert restored.code == 0
    assert str(site.replica) in restored.out
    assert [name for name in site.beside_the_replica() if ".old-" in name] != []


def test_a_restore_takes_the_newest_backup_before_a_time_and_can_go_elsewhere(
    duckling, site, tmp_path, make_replica, content
):
    first = duckling("backup", "production", "--json").json["key"]
    boundary = duckling("list", "production", "--json").json["local"][0]["createdAt"]
    make_replica(site.replica.with_name("other.db"), rows=700, seed=1).replace(site.replica)
    second = duckling("backup", "production", "--json").json["key"]
    newer = site.replica.read_bytes()

    latest = duckling("restore", "production", "--to", tmp_path / "latest.db", "--json").json
    assert (latest["key"], latest["path"]) == (second, str(tmp_path / "latest.db"))
    second_made = duckling("list", "production", "--json").json["local"][0]["createdAt"]
    older = duckling("restore", "production", "--before", second_made, "--to", tmp_path / "old.db", "--json").json
    assert older["key"] == first
    assert (tmp_path / "latest.db").read_bytes() == newer
    assert (tmp_path / "old.db").read_bytes() == content
    assert site.replica.read_bytes() == newer

    none = duckling("restore", "production", "--before", boundary)
    assert none.code == 1
    assert "no backup from before" in none.err
    taken = duckling("restore", "production", "--to", tmp_path / "old.db")
    assert taken.code == 1
    assert "a file of that name already" in taken.err


def test_a_database_without_s3_is_backed_up_and_restored_locally(duckling, installation, content):
    replica = installation.replica()
    replica.write_bytes(content)
    installation.write(installation.entry())
    backup = duckling("backup", "production", "--json").json
    assert "key" not in backup
    assert duckling("list", "production", "--json").json["s3"] == []
    replica.unlink()
    restored = duckling("restore", "production", "--json").json
    assert restored["key"] == backup["filename"]
    assert replica.read_bytes() == content
    assert duckling("verify", "production", "--json").json["evidence"] == "SHA-256"


def test_local_restores_from_the_local_backup_although_s3_is_configured(duckling, site):
    backup = duckling("backup", "production", "--json").json
    site.server.client().delete_object(Bucket=site.bucket, Key=backup["key"])
    assert duckling("restore", "production").code == 1
    assert duckling("restore", "production", "--local", "--json").json["key"] == backup["filename"]


# ---- looking -----------------------------------------------------------------------------------------------


def test_databases_shows_good_and_bad_entries(duckling, site, installation, s3_server):
    bad = installation.entry("bad", s3=s3_server.s3(site.bucket, encryption="client-aes256", encryptionKey=KEY[1:]))
    installation.write(installation.entry(s3=s3_server.s3(site.bucket)), bad)
    found = duckling("databases", "--json")
    assert found.code == 0
    assert [entry["id"] for entry in found.json["databases"]] == ["production"]
    entry = found.json["databases"][0]
    assert entry["replicaSize"] == site.replica.stat().st_size
    assert (entry["s3"], entry["encryption"], entry["lastLocalBackup"]) == (
        f"s3://{site.bucket}/production/",
        "none",
        None,
    )
    assert found.json["problems"] == ["bad: s3.encryptionKey: expected 64 hex characters, got 63"]
    shown = duckling("databases")
    assert shown.code == 0
    assert "BAD  bad: s3.encryptionKey: expected 64 hex characters, got 63" in shown.out
    assert "every 24 h" in shown.out

    installation.write(bad)
    assert duckling("databases").code == 2
    assert duckling("backup", "bad").code == 2


def test_warnings_go_to_stderr_but_are_part_of_the_document_of_databases_and_check(duckling, site):
    site.write(bukket="x")
    shown = duckling("databases")
    assert (shown.code, "bukket" in shown.out, "bukket" in shown.err) == (0, False, True)
    assert "bukket" in duckling("databases", "--json").json["warnings"][0]
    assert "bukket" in duckling("check", "production", "--json").json["warnings"][0]
    assert duckling("list", "production", "--json").json == {"local": [], "s3": []}
    assert "bukket" in duckling("list", "production").err


def test_check_tries_every_step_and_leaves_nothing_behind(duckling, site):
    checked = duckling.apart("check", "--json")
    assert checked.code == 0
    document = checked.json
    assert document["success"] is True
    steps = {step["name"]: step for step in document["databases"][0]["steps"]}
    assert {"replica", "hold", "local backups", "store: list"} <= set(steps)
    assert all(step["error"] is None for step in steps.values())
    assert site.objects() == []
    assert "ok" in duckling("check", "production").out


def test_check_fails_when_the_store_refuses(duckling, site):
    site.write(secretAccessKey="wrong-secret-wrong-secret")
    duckling.secrets.append("wrong-secret-wrong-secret")
    checked = duckling("check", "production")
    assert checked.code == 1
    assert "FAILED  store: " in checked.out
    document = duckling("check", "production", "--json").json
    assert document["success"] is False
    assert document["error"].startswith("production: store: ")


def test_list_shows_local_backups_when_the_store_is_gone(duckling, site):
    made = duckling("backup", "production", "--json").json["filename"]
    site.write(endpoint=f"http://127.0.0.1:{_closed_port()}")
    shown = duckling("list", "production")
    assert shown.code == 1
    assert made in shown.out
    assert "hint: Check s3.endpoint" in shown.err
    listed = duckling("list", "production", "--json")
    assert listed.code == 1
    assert listed.json["success"] is False
    assert [row["filename"] for row in listed.json["local"]] == [made]


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_an_interrupted_backup_is_offered_to_be_gone_on_with(duckling, site):
    first = duckling("backup", "production", "--json").json
    site.server.client().delete_object(Bucket=site.bucket, Key=first["key"])
    log = (site.backups / first["filename"]).with_suffix(".upload")
    log.touch(mode=0o600)
    resumed = duckling("backup", "production", "--resume", "--json").json
    assert (resumed["resumed"], resumed["key"]) == (True, first["key"])
    log.touch(mode=0o600)
    offered = duckling("backup", "production")
    assert (offered.code, "go on where it stopped: duckling backup production --resume" in offered.err) == (0, True)


# ---- restoring by hand -------------------------------------------------------------------------------------


def test_restore_asks_on_a_terminal_before_it_replaces_a_replica(duckling, site):
    """Without a terminal, and with --yes, it does as it is told; what does not exist needs no question."""
    key = duckling("backup", "production", "--json").json["key"]
    good = site.replica.read_bytes()
    site.replica.write_bytes(b"precious")
    refused = duckling.on_terminal("restore", "production", answer="n\n")
    assert (refused.code, site.replica.read_bytes()) == (1, b"precious")
    for fact in (
        key,
        f"Replace {site.replica} by this backup? [y/N]",
        "MiB margin)",
        "a file of 8 B",
        "after the backup",
    ):
        assert fact in refused.err
    agreed = duckling.on_terminal("restore", "production", answer="y\n")
    assert (agreed.code, site.replica.read_bytes()) == (0, good)
    for arguments, there in (["--yes"], True), ([], False):
        site.replica.unlink() if not there else site.replica.write_bytes(b"precious")
        silent = duckling.on_terminal("restore", "production", *arguments)
        assert (silent.code, "[y/N]" in silent.err, site.replica.read_bytes()) == (0, False, good)


def test_a_dry_run_of_a_restore_tells_everything_and_does_nothing(duckling, site):
    site.write(encryption="client-aes256", encryptionKey=KEY)
    duckling.secrets.append(KEY)
    done = duckling("backup", "production", "--json").json
    before, inode = site.replica.read_bytes(), site.replica.stat().st_ino
    os.utime(site.replica, (time.time() + 630, time.time() + 630))
    plan = duckling("restore", "production", "--dry-run", "--json").json
    assert (plan["success"], plan["dryRun"], plan["key"], plan["size"]) == (True, True, done["key"], done["size"])
    assert (plan["path"], plan["holder"], plan["replacedSize"]) == (str(site.replica), None, len(before))
    assert (plan["needed"], plan["free"] > 0) == (done["size"] + plan["margin"], True)
    assert plan["newerSeconds"] > 500
    assert re.fullmatch("[0-9a-f]{16}", plan["keyFingerprint"])
    shown = duckling("restore", "production", "--dry-run")
    assert shown.code == 0
    for fact in (done["key"], plan["keyFingerprint"], "holder    none", "10 min after"):
        assert fact in shown.out
    assert (site.replica.read_bytes(), site.replica.stat().st_ino) == (before, inode)


def test_list_marks_what_has_another_size_than_it_was_made_with(duckling, site):
    older, newest = (duckling("backup", "production", "--json").json for _ in range(2))
    client = site.server.client()
    whole = client.get_object(Bucket=site.bucket, Key=newest["key"])
    cut = whole["Body"].read()[:-4096]
    client.put_object(Bucket=site.bucket, Key=newest["key"], Body=cut, Metadata=whole["Metadata"])
    shown = duckling("list", "production")
    marked = [line for line in shown.out.splitlines() if "bytes of a file that had" in line]
    assert (shown.code, len(marked), newest["key"] in marked[0]) == (0, 1, True)
    listed = duckling("list", "production", "--json").json
    assert [row["complete"] for row in listed["s3"]] == [False, True]
    # What was verified is no longer there: the newest verified one is the latest, and the newer one is named.
    taken = duckling("restore", "production")
    assert (taken.code, older["key"] in taken.out, newest["key"] in taken.err) == (0, True, True)
    for key in (older["key"], newest["key"]):
        client.delete_object(Bucket=site.bucket, Key=key + ".state")
    refused = duckling("restore", "production")
    assert (refused.code, Path(older["key"]).name in refused.err, "--fallback" in refused.err) == (1, True, True)
    taken = duckling("restore", "production", "--fallback")
    assert (taken.code, older["key"] in taken.out, "passed over" in taken.err) == (0, True, True)
    # What a verification finds is noted beside it, so the next command knows.
    assert duckling("verify", "production", newest["key"]).code == 1
    taken = duckling("restore", "production")
    assert (taken.code, older["key"] in taken.out, "disproved" in taken.err) == (0, True, True)


# ---- deleting ----------------------------------------------------------------------------------------------


def test_delete_asks_on_a_terminal_and_refuses_elsewhere(duckling, site):
    key = duckling("backup", "production", "--json").json["key"]
    refused = duckling("delete", "production", key)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert duckling("delete", "production", key, "--json").json["success"] is False
    assert duckling.on_terminal("delete", "production", key, answer="n\n").code == 1
    assert site.objects() == [key + suffix for suffix in ("", ".mac", ".state")]
    deleted = duckling.on_terminal("delete", "production", key, answer="y\n")
    assert (deleted.code, key in deleted.out) == (0, True)
    assert site.objects() == []
    missing = duckling("delete", "production", key, "--yes")
    assert missing.code == 1
    assert "no such object" in missing.err


@pytest.mark.parametrize("key", ["../other/x.db", "other/backup-2025-03-01T14-32-11-482Z.db", "production/notes.txt"])
def test_delete_refuses_what_is_no_backup_of_this_database(duckling, site, key):
    site.server.client().put_object(Bucket=site.bucket, Key="production/notes.txt", Body=b"mine")
    assert duckling("delete", "production", key, "--yes").code == 2
    assert site.objects() == ["production/notes.txt"]


def test_delete_local_leaves_the_object_alone(duckling, site):
    done = duckling("backup", "production", "--json").json
    deleted = duckling("delete", "production", done["filename"], "--local", "--yes", "--json").json
    assert deleted == {"success": True, "key": done["filename"], "size": done["size"]}
    assert list(site.backups.glob("backup-*.db")) == []
    assert done["key"] in site.objects()


@pytest.mark.parametrize("damage", ["cut", "sidecar"])
def test_a_damaged_local_backup_can_be_deleted(duckling, site, damage):
    name = duckling("backup", "production", "--json").json["filename"]
    path = site.backups / name
    if damage == "cut":
        os.truncate(path, 5000)
    else:
        path.with_suffix(".json").chmod(0o666)
    assert duckling("delete", "production", name, "--local", "--yes").code == 0
    assert list(site.backups.glob("backup-*.db")) == []


def test_a_key_may_have_its_store_in_front_as_results_show_it(duckling, site):
    key = duckling("backup", "production", "--json").json["key"]
    assert duckling("restore", "production", f"s3://{site.bucket}/{key}", "--dry-run", "--json").json["key"] == key
    assert duckling("pin", "production", f"s3://{site.bucket}/{key}", "--json").json["key"] == key
    other = duckling("restore", "production", f"s3://another/{key}", "--dry-run")
    assert (other.code, "outside this database's prefix" in other.err) == (2, True)


def test_cleanup_shows_its_plan_before_it_deletes(duckling, site):
    kept = duckling("backup", "production", "--json").json["filename"]
    old = f"backup-2020{kept[len('backup-2020') :]}"
    for suffix in (".db", ".json"):
        new = site.backups / Path(old).with_suffix(suffix)
        new.write_bytes((site.backups / kept).with_suffix(suffix).read_bytes())
    plan = duckling("cleanup", "production", "--dry-run", "--json").json
    assert plan["dryRun"] is True
    decisions = [(row["key"], row["keep"], row["reason"]) for row in plan["local"].pop("decisions")]
    assert decisions == [(kept, True, "the newest complete one"), (old, False, "older than 7 days")]
    assert plan["local"] == {"deleted": [old], "kept": 1, "busy": []}
    assert plan["s3"] == {"deleted": [], "kept": 1, "decisions": []}
    assert (site.backups / old).exists()
    assert f"would delete {site.backups / old}" in duckling("cleanup", "production", "--dry-run").out
    assert f"deleted {site.backups / old}" in duckling("cleanup", "production").out
    assert [path.name for path in site.backups.glob("backup-*.db")] == [kept]


# ---- holds -------------------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from duckling_provider.replica.locks import place_hold

place_hold(Path(sys.argv[1]), owner="restore-run", reason="restore", seconds=3600, process_bound=sys.argv[2] == "bound")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _holder(replica: Path, kind: str) -> Iterator[None]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(replica), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.communicate(timeout=PATIENCE)


def test_release_removes_a_hold_and_says_whose_it_was(duckling, site):
    with _holder(site.replica, "free"):
        pass
    busy = duckling("restore", "production", "--wait", "0")
    assert (busy.code, "restore-run" in busy.err) == (1, True)
    released = duckling("release", "production")
    assert (released.code, "restore-run" in released.out) == (0, True)
    assert duckling("release", "production", "--json").json == {"success": True, "released": None}


def test_release_leaves_the_hold_of_a_living_process(duckling, site):
    with _holder(site.replica, "bound"):
        refused = duckling("release", "production")
        assert (refused.code, "that process is alive" in refused.err) == (1, True)
        assert site.replica.with_name(site.replica.name + ".duckling-hold").exists()


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["frob"],
        ["verify"],
        ["list", "production", "--frob"],
        ["backup", "production", "--wait", "soon"],
        ["restore", "production", "latest", "--before", "yesterday"],
        ["restore", "production", "backup-2025-03-01T14-32-11-482Z.db", "--before", "2025-03-01"],
        ["restore", "production", "../../etc/passwd"],
        ["restore", "production", "--to", "/tmp/x.db", "--keep-old"],
        ["restore", "production", "--to", ""],
        ["restore", "production", "--to", " "],
        ["restore", "production", "--to", "-"],
        ["restore", "production", "--to", "/tmp"],
        ["restore", "production", "--to", "/tmp/new/"],
        ["list", "productoin"],
        ["--data-path", "/nowhere", "databases"],
    ],
)
@pytest.mark.usefixtures("site")
def test_bad_usage_is_one_line_and_a_hint_and_exit_code_2(duckling, arguments):
    plain = duckling(*arguments)
    assert (plain.code, plain.out) == (2, "")
    cause, hint = plain.err.splitlines()
    assert cause.startswith("duckling: ")
    assert hint.startswith("hint: ")
    machine = duckling(*arguments, "--json")
    assert machine.code == 2
    assert machine.json["success"] is False
    assert cause == f"duckling: {machine.json['error']}"


@pytest.mark.usefixtures("site")
def test_an_unknown_database_brings_the_nearest_one(duckling):
    assert 'Did you mean "production"?' in duckling("list", "productoin").err


def test_a_malformed_file_and_a_wrong_environment_are_exit_code_2(duckling, installation):
    installation.write_text('[{"id": "a",]')
    assert duckling("databases").code == 2
    duckling.environ["BACKUP_RETENTION_DAYS"] = "week"
    wrong = duckling("databases", "--json")
    assert (wrong.code, "BACKUP_RETENTION_DAYS" in wrong.json["error"]) == (2, True)


def test_data_path_comes_before_the_environment(duckling, site, installation):
    duckling.environ["DATA_PATH"] = "/nowhere"
    found = duckling("--data-path", installation.data_path, "databases", "--json").json
    assert found["databases"][0]["replica"] == str(site.replica)


def test_a_wrong_key_is_named_and_the_replica_stays(duckling, site):
    assert duckling("backup", "production").code == 0
    other = secrets.token_hex(32)
    duckling.secrets.append(other)
    site.write(encryptionKey=other)
    before = site.replica.read_bytes()
    for command in ("verify", "restore"):
        failed = duckling(command, "production")
        assert failed.code == 1
        # Before: that no key here vouches for what is noted beside the backup.
        cause, hint = failed.err.splitlines()[-2:]
        assert "wrong key" in cause
        assert "s3.encryptionKey" in hint
    assert site.replica.read_bytes() == before
    assert site.beside_the_replica() == set()


@pytest.mark.usefixtures("site")
def test_a_missing_backup_is_exit_code_1(duckling):
    for arguments in (["restore", "production"], ["verify", "production", "backup-2025-03-01T14-32-11-482Z.db"]):
        failed = duckling(*arguments)
        assert (failed.code, len(failed.err.splitlines()) <= 2) == (1, True)
    assert duckling("restore", "production", "--json").json["success"] is False


def test_an_airflow_connection_can_be_replaced_by_the_environment(duckling, site, tmp_path):
    # Without Airflow's database the connection can't be read, which is the day this is for.
    site.write(accessKeyId=None, secretAccessKey=None, awsConnId="aws_backups")
    duckling.environ |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__UNIT_TEST_MODE": "False"}
    failed = duckling("list", "production", "--json")
    assert failed.code == 2
    assert "aws_backups" in failed.json["error"]
    duckling.environ |= {
        "AWS_ACCESS_KEY_ID": site.server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": site.server.secret_access_key,
    }
    assert duckling("list", "production", "--json").json == {"local": [], "s3": []}


# ---- terminals and signals ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_a_terminal_gets_progress_bars_and_a_pipe_gets_the_result_only(duckling):
    shown = duckling.on_terminal("backup", "production", "--json")
    assert shown.code == 0
    assert json.loads(shown.out)["success"] is True
    for step in ("snapshot", "upload", "verify"):
        assert step in shown.err
    assert "100%" in shown.err


def test_keygen_makes_a_key_that_is_accepted(duckling, site):
    key = duckling("keygen").out.strip()
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert duckling("keygen", "--json").json["encryptionKey"] != key
    site.write(encryptionKey=key)
    assert duckling("databases").code == 0


def test_the_version_is_the_packages(duckling):
    import duckling_provider

    assert duckling("--version").out == f"duckling {duckling_provider.__version__}\n"


def test_a_closed_pipe_is_no_traceback(duckling):
    reader, writer = os.pipe()
    os.close(reader)
    process = duckling.start("keygen", "--json", stdout=writer)
    os.close(writer)
    assert duckling.judged(Outcome(process.wait(PATIENCE), "", process.stderr.read().decode())).err == ""


@pytest.fixture
def slow_endpoint(s3_server) -> Iterator[str]:
    """The server behind a thin line: every connection gets about 256 KiB a second back."""
    host = urlsplit(s3_server.endpoint)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def pump(source: socket.socket, target: socket.socket, pause: float) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(16384):
                    target.sendall(data)
                    time.sleep(pause)
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = stack.enter_context(listener.accept()[0])
                    server = stack.enter_context(socket.create_connection((host.hostname, host.port)))
                    threading.Thread(target=pump, args=(client, server, 0), daemon=True).start()
                    threading.Thread(target=pump, args=(server, client, 1 / 16), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_of_a_restore_leaves_the_replica_and_no_temporary_file(
    duckling, site, make_replica, slow_endpoint, number, code
):
    make_replica(site.replica.with_name("big.db"), rows=100_000).replace(site.replica)
    assert duckling("backup", "production").code == 0
    site.write(endpoint=slow_endpoint)
    site.replica.write_bytes(b"whatever was there" * 1000)
    process = duckling.start("restore", "production")
    temporary = site.replica.with_name(site.replica.name + ".duckling-new")
    deadline = time.monotonic() + PATIENCE
    while not temporary.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert temporary.exists()
    process.send_signal(number)
    stopped = duckling.finish(process)
    assert stopped.code == code
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    *_, last = stopped.err.splitlines()
    assert last == f"duckling: stopped by {name}. Nothing is left half done; run it again when you like."
    assert site.replica.read_bytes() == b"whatever was there" * 1000
    assert site.beside_the_replica() == set()


def test_a_store_that_never_answers_cannot_keep_a_stopped_command(duckling, site):
    before = site.replica.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site.write(endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}")
        process = duckling.start("restore", "production", "--json")
        listener.settimeout(PATIENCE)
        with listener.accept()[0] as connection:
            connection.recv(1)
            process.send_signal(signal.SIGTERM)
            stopped = duckling.finish(process)
    assert (stopped.code, stopped.json) == (143, {"success": False, "error": "stopped by SIGTERM"})
    assert site.replica.read_bytes() == before
    assert site.beside_the_replica() == set()


# ---- another machine ---------------------------------------------------------------------------------------


def test_on_another_machine_commands_name_both_hosts_and_touch_nothing(duckling, site, installation, monkeypatch):
    entry = installation.entry(s3=site.server.s3(site.bucket), host="db-1")
    installation.write(entry)
    monkeypatch.setenv("DUCKLING_HOST", "db-1")
    assert duckling("backup", "production").code == 0
    monkeypatch.setenv("DUCKLING_HOST", "laptop")
    before = {path: path.stat().st_mtime_ns for path in installation.data_path.rglob("*")}
    for command in (
        ["backup", "production"],
        ["restore", "production"],
        ["verify", "production", "--local"],
        ["cleanup", "production"],
        ["release", "production"],
        ["sync", "production"],
        ["adopt", "production"],
        ["validate", "production"],
        ["check", "production"],
    ):
        refused = duckling(*command)
        assert refused.code == 1, command
        assert 'on host "db-1", and this is "laptop"' in refused.err + refused.out, command
        assert "DUCKLING_HOST=db-1" in refused.err + refused.out, command
    assert {path: path.stat().st_mtime_ns for path in installation.data_path.rglob("*")} == before


def test_on_another_machine_the_store_can_be_looked_at_and_copied_from(
    duckling, site, installation, monkeypatch, tmp_path
):
    installation.write(installation.entry(s3=site.server.s3(site.bucket), host="db-1"))
    monkeypatch.setenv("DUCKLING_HOST", "db-1")
    assert duckling("backup", "production").code == 0
    monkeypatch.setenv("DUCKLING_HOST", "laptop")
    listed = duckling("list", "production", "--json")
    assert listed.code == 1
    assert (len(listed.json["s3"]), listed.json["local"]) == (1, [])
    assert '"db-1"' in listed.json["error"]
    assert duckling("verify", "production").code == 0
    assert duckling("restore", "production", "--to", tmp_path / "copy.db").code == 0
    shown = duckling("databases")
    assert shown.code == 0
    assert "on db-1" in shown.out
    # Asked for all, it is no failure that some are elsewhere.
    checked = duckling("check")
    assert checked.code == 0
    assert "replica and local backups are on db-1: not looked at" in checked.out
    assert "store: list" in checked.out


def test_a_list_of_local_backups_loads_no_more_than_it_needs(duckling, installation, make_replica):
    installation.write(installation.entry())
    make_replica(installation.replica())
    assert duckling("backup", "production").code == 0
    program = """
import contextlib, io, json, sys
from duckling_provider.cli.app import run
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = run(["list", "production", "--json"])
heavy = ("airflow", "boto3", "connectorx", "duckdb", "fastapi", "jinja2", "numpy", "pyarrow", "pymysql", "sqlalchemy")
found = [name for name in heavy if name in sys.modules]
print(json.dumps([code, len(json.loads(out.getvalue())["local"]), found, len(sys.modules)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    code, backups, heavy, modules = json.loads(done.stdout)
    assert (code, backups, heavy) == (0, 1, [])
    # Some 520, most of them of typer, pydantic and the standard library.
    assert modules < 650


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--no-such-option"]])
def test_help_and_mistakes_load_neither_configuration_nor_core(arguments):
    program = """
import contextlib, io, sys
from duckling_provider.cli.app import run
with contextlib.redirect_stdout(io.StringIO()):
    run(sys.argv[1:])
heavy = ("numpy", "duckdb", "boto3", "cryptography", "duckling_provider.config", "duckling_provider.replica")
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
