"""`duckling list`, help and completion, in this process: what they print, against a real store."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from fixtures.command_line import Outcome

from duckling_provider.backup.retention import leftovers
from duckling_provider.base.moments import iso
from duckling_provider.cli import terminal
from duckling_provider.cli.app import run
from duckling_provider.cli.terminal import Terminal

KEY = "0123456789abcdef" * 4
OLD = "backup-2025-03-01T14-32-11-482Z.db"


@pytest.fixture
def duckling(installation, capsys, monkeypatch):
    """``duckling("list", …) -> Outcome``; what a command line changes in its process is put back afterwards."""
    monkeypatch.setenv("COLUMNS", "120")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    loggers = {name: logging.getLogger(name) for name in (None, "duckling_provider")}
    before = {name: (list(logger.handlers), logger.propagate) for name, logger in loggers.items()}

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        try:
            code = run(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Outcome(code, *capsys.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, logger in loggers.items():
        logger.handlers[:], logger.propagate = before[name]


@pytest.fixture
def two(installation, s3_server, make_replica):
    """Two databases in one bucket, each with a backup; returns their S3 settings."""
    from duckling_provider.backup.flow import back_up
    from duckling_provider.stores.s3 import open_store

    s3 = s3_server.s3(s3_server.new_bucket())
    secret = {**s3, "encryption": "client-aes256", "encryptionKey": KEY}
    installation.write(installation.entry("shop", s3=secret), installation.entry("crm", s3=s3))
    for name in ("shop", "crm"):
        make_replica(installation.replica(name), rows=50)
        database = installation.database(name)
        back_up(database, open_store(database))
    return s3


def fingerprint() -> str:
    from duckling_provider.config.keys import EncryptionKey

    return EncryptionKey.parse(KEY).fingerprint


def test_a_list_tells_time_state_mode_and_key_of_each_backup(duckling, two):
    shown = duckling("list", "shop")
    assert shown.code == 0
    header, local, remote = shown.out.splitlines()
    assert re.split(r"\s{2,}", header.strip()) == [
        "WHERE", "KEY", "SIZE", "TAKEN (UTC)", "AGE", "STATE", "MODE", "FINGERPRINT"
    ]  # fmt: skip
    taken = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(rf"^local .*{taken} .* verified +none +-", local)
    assert re.search(rf"^s3 .*{taken} .* verified +client-aes256 +{fingerprint()}", remote)
    found = duckling("list", "shop", "--json").json
    (row,) = found["s3"]
    assert datetime.fromisoformat(row["createdAt"]).tzinfo is not None
    facts = {"complete": True, "state": "verified", "mode": "client-aes256", "keyFingerprint": fingerprint()}
    assert facts.items() <= row.items()
    (here,) = found["local"]
    assert (here["complete"], here["state"], here["mode"]) == (True, "verified", "none")


def test_without_an_id_the_backups_of_all_are_listed(duckling, two):
    shown = duckling("list")
    assert (shown.code, [line.split()[:2] for line in shown.out.splitlines()]) == (
        0,
        [["DATABASE", "WHERE"], ["shop", "local"], ["shop", "s3"], ["crm", "local"], ["crm", "s3"]],
    )
    found = duckling("list", "--json").json
    assert [(one["id"], len(one["local"]), len(one["s3"])) for one in found["databases"]] == [
        ("shop", 1, 1),
        ("crm", 1, 1),
    ]


def test_a_backup_that_can_not_be_restored_is_incomplete(duckling, two, s3_server):
    client = s3_server.client()
    (row,) = duckling("list", "shop", "--json").json["s3"]
    client.delete_object(Bucket=two["bucket"], Key=row["key"] + ".mac")
    (row,) = duckling("list", "shop", "--json").json["s3"]
    assert (row["complete"], row["state"], row["remark"]) == (False, "incomplete", "no .mac")
    (row,) = duckling("list", "crm", "--json").json["s3"]
    head = client.head_object(Bucket=two["bucket"], Key=row["key"])
    client.put_object(Bucket=two["bucket"], Key=row["key"], Body=b"half of it", Metadata=head["Metadata"])
    (row,) = duckling("list", "crm", "--json").json["s3"]
    assert (row["complete"], row["state"]) == (False, "incomplete")
    assert row["remark"].startswith("it holds 10 bytes of a file that had")


def test_a_local_backup_whose_sidecar_is_none_of_ours_is_not_called_verified(duckling, two, installation):
    (sidecar,) = (installation.backup_path / "shop").glob("backup-*.json")
    sidecar.rename(sidecar.with_name("elsewhere"))
    sidecar.symlink_to("elsewhere")
    (row,) = duckling("list", "shop", "--json").json["local"]
    assert (row["state"], row["complete"], "symbolic link" in row["remark"]) == ("incomplete", False, True)


def test_an_object_of_another_program_has_no_mode_that_is_made_up(duckling, two, s3_server):
    s3_server.client().put_object(Bucket=two["bucket"], Key=f"crm/{OLD}", Body=b"x" * 99)
    row = duckling("list", "crm", "--json").json["s3"][-1]
    assert (row["key"], row["mode"], row["keyFingerprint"], row["complete"]) == (f"crm/{OLD}", None, None, True)


def test_one_store_that_is_gone_hides_no_other_database(duckling, two, installation):
    entries = json.loads((installation.data_path / "databases.json").read_text())
    entries[0]["s3"]["bucket"] = "there-is-no-such-bucket"
    installation.write(*entries)
    shown = duckling("list", "--json")
    assert (shown.code, shown.json["success"]) == (1, False)
    shop, crm = shown.json["databases"]
    assert (len(shop["local"]), shop["s3"], "bucket" in shop["error"]) == (1, [], True)
    assert len(crm["s3"]) == 1
    assert "error" not in crm


# ---- help and completion -----------------------------------------------------------------------------------------


def test_help_shows_every_command_in_its_group_and_no_types_of_flags(duckling):
    from duckling_provider.cli.app import _COMMANDS

    shown = duckling("--help")
    assert (shown.code, shown.err) == (0, "")
    place = 0
    for panel, commands in _COMMANDS.items():
        place = shown.out.index(panel, place)
        for name in commands:
            place = shown.out.index(f" {name} ", place)
            assert "<bool>" not in duckling(name, "--help").out, name
    assert "<bool>" not in shown.out
    assert "--install-completion" in shown.out


@pytest.mark.parametrize(
    "words,offered",
    [
        ("duckling li", ["list"]),
        ("duckling list s", ["shop"]),
        ("duckling check ", ["crm", "shop"]),
        ("duckling verify shop ", [OLD, "latest", "latest-tested"]),
        ("duckling restore shop lat", ["latest", "latest-tested"]),
        ("duckling --data-path /nowhere list ", []),
    ],
)
def test_the_shell_completes_commands_ids_and_keys(duckling, installation, monkeypatch, words, offered):
    installation.write(installation.entry("shop"), installation.entry("crm"))
    folder = installation.backup_path / "shop"
    folder.mkdir(parents=True)
    (folder / OLD).touch()
    monkeypatch.setenv("_DUCKLING_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert sorted(duckling().out.split()) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_and_answers(duckling, installation, monkeypatch, shell):
    installation.write(installation.entry("shop"), installation.entry("crm"))
    if shell != "bash":  # which is started, to be asked for its version
        monkeypatch.setenv("_DUCKLING_COMPLETE", f"source_{shell}")
        assert f"_DUCKLING_COMPLETE=complete_{shell}" in duckling().out
    monkeypatch.setenv("_DUCKLING_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for words, offered, not_offered in [
        ("duckling li", "list", "restore"),
        ("duckling list ", "crm", "latest"),
        ("duckling restore shop ", "latest", "crm"),
        ("duckling restore shop latest --any", "--any-origin", "--local"),
        ("duckling keys ro", "rotate", "show"),
    ]:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        shown = duckling().out
        assert (offered in shown, not_offered in shown) == (True, False), words


@pytest.mark.parametrize("content", [None, "no JSON", '{"id": "shop"}', '[{"id": 7}, null, {"name": "x"}]', "[" * 9999])
def test_a_completion_never_ends_in_a_traceback(duckling, installation, monkeypatch, content):
    installation.data_path.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (installation.data_path / "databases.json").write_text(content)
    monkeypatch.setenv("_DUCKLING_COMPLETE", "complete_bash")
    for words in ("duckling list ", "duckling restore ../.. ", "duckling keys show "):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        shown = duckling()
        assert shown.err == "", words
        assert set(shown.out.split()) <= {"latest", "latest-tested"}, words


@pytest.mark.parametrize(
    ("words", "cause", "hint"),
    [
        ("lsit", "Did you mean 'list'?", "duckling --help"),
        ("keys sho shop", "Did you mean 'show'?", "duckling keys --help"),
        ("restore", "Missing argument 'ID'", "duckling restore --help"),
        ("list shop extra", "extra", "duckling list --help"),
        ("list --jsno", "--json", "duckling list --help"),
        ("--json list", "--json", "Options of a command go behind it"),
        ("backup shop --wait soon", "--wait", "duckling backup --help"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_a_hint(duckling, words, cause, hint):
    shown = duckling(*words.split())
    told = shown.json if "--json" in words.split() else None
    lines = [told["error"], told["hint"]] if told else shown.err.splitlines()
    assert (shown.code, len(lines)) == (2, 2)
    assert cause in lines[0]
    assert hint in lines[1]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 50, 80, 120])
def test_a_key_is_never_broken_on_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    key = f"production/{OLD}"
    with contextlib.redirect_stdout(_Screen()) as screen:
        Terminal().table(["WHERE", "KEY", "SIZE>"], [["local", OLD, "1 MiB"], ["s3", key, "2 MiB"]], whole="KEY")
    lines = [line.rstrip() for line in re.sub(r"\x1b\[\d*m", "", screen.getvalue()).splitlines()]
    assert any(key in line for line in lines)
    if columns < 60:
        assert lines == [OLD, "  local  1 MiB", key, "  s3  2 MiB"]
    else:
        assert lines[0].split() == ["WHERE", "KEY", "SIZE"]


def test_a_line_is_seen_when_it_is_said_in_a_pipe_too():
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(writer, "w", encoding="utf-8") as pipe, contextlib.redirect_stdout(pipe):
        Terminal().say("production")
        assert os.read(reader, 100) == b"production\n"
    os.close(reader)


def test_a_check_says_what_it_waits_for(duckling, installation, s3_server, two, make_proxy, monkeypatch):
    told, proxy = threading.Event(), make_proxy(s3_server)
    said = Terminal.note

    def note(self: Terminal, line: str) -> None:
        said(self, line)
        if "waiting for" in line:
            told.set()

    monkeypatch.setattr(Terminal, "note", note)
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    proxy.before = lambda _: told.wait(60) and None
    installation.write(installation.entry("crm", s3={**two, "endpoint": proxy.server.endpoint}))
    done = duckling("check", "crm")
    assert f"waiting for s3://{two['bucket']}/, which does not answer (bucket)" in done.err
    assert "ok      store: bucket" in done.out


def test_a_missing_backup_is_answered_with_the_command_that_lists_this_entry(duckling, two):
    done = duckling("verify", "crm", OLD)
    assert done.code == 1
    assert "duckling list crm" in done.err


# ---- what is left of uploads -------------------------------------------------------------------------------


def test_a_cleanup_names_each_upload_that_stays_and_ends_with_an_error(
    duckling, installation, moto_server, make_proxy, small_replica, monkeypatch
):
    bucket, proxy = moto_server.new_bucket(), make_proxy(moto_server)
    small_replica(installation.replica())
    installation.write(installation.entry(s3=proxy.server.s3(bucket)))
    assert duckling("backup", "production").code == 0
    stamps = ("2025-03-01T14-32-11-482Z", "2025-03-02T14-32-11-482Z", "2025-03-03T14-32-11-482Z")
    names = [f"production/backup-{stamp}.db" for stamp in stamps]
    for key in names:
        moto_server.client().create_multipart_upload(Bucket=bucket, Key=key)
    refused = {"AbortMultipartUpload": (403, "AccessDenied")}
    proxy.before = lambda seen: refused.get(seen.operation) if seen.key != names[1] else None
    monkeypatch.setattr(leftovers, "ABANDONED_AFTER", timedelta(0))
    done = duckling("cleanup", "production", "--json")
    assert done.code == 1
    assert (done.json["success"], done.json["uploadsAborted"]) == (False, 1)
    for name, left in zip((names[0], names[2]), done.json["uploadsLeft"], strict=True):
        assert name in left
    assert done.json["error"] == done.json["uploadsLeft"][0]


def test_a_locked_backup_keeps_none_of_the_others_and_is_named(
    duckling, installation, moto_server, make_proxy, small_replica
):
    bucket, proxy = moto_server.new_bucket(), make_proxy(moto_server)
    small_replica(installation.replica())
    installation.write(installation.entry(s3=proxy.server.s3(bucket, s3BackupRetentionDays=7)))
    done = duckling("backup", "production", "--json").json
    client, old = moto_server.client(), []
    for year in (2020, 2021, 2022):
        old.append(done["key"].replace("backup-2", f"backup-{year}-01-02T03-04-05-678Z.db#").partition("#")[0])
        client.copy_object(Bucket=bucket, Key=old[-1], CopySource={"Bucket": bucket, "Key": done["key"]})
    proxy.before = lambda seen: (
        (403, "ObjectLocked") if seen.operation == "DeleteObject" and seen.key in {old[0], old[2]} else None
    )
    cleaned = duckling("cleanup", "production", "--json")
    assert cleaned.code == 1
    assert (cleaned.json["success"], cleaned.json["s3"]["deleted"]) == (False, [old[1]])
    assert sorted(cleaned.json["s3"]["refused"]) == [old[0], old[2]]
    shown = duckling("cleanup", "production")
    assert (shown.code, shown.err.count("the object is locked")) == (1, 2)
    assert "deleted" not in shown.out
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == "DeleteObject" else None
    assert duckling("cleanup", "production").err.count("s3:DeleteObject is not allowed") == 1


def test_an_upload_whose_token_ends_is_gone_on_with(duckling, installation, moto_server, make_proxy, medium_replica):
    bucket, proxy = moto_server.new_bucket(), make_proxy(moto_server)
    medium_replica(installation.replica())
    fields = {"encryption": "client-aes256", "encryptionKey": KEY, "partSizeMiB": 5, "maxConcurrency": 1}
    installation.write(installation.entry(s3=proxy.server.s3(bucket, **fields)))
    ended: list[str] = []

    def answer(seen: Any) -> tuple[int, str] | None:
        if seen.part == 2:
            ended.append("the token")
        return (400, "ExpiredToken") if ended else None

    proxy.before = answer
    done = duckling("backup", "production")
    assert done.code == 1
    assert "duckling backup production --resume" in done.err
    assert (done.out + done.err).count("The session token has ended") == 1
    ended.clear()
    proxy.before = lambda _: None
    proxy.seen.clear()
    again = duckling("backup", "production", "--resume", "--json")
    assert again.json["resumed"] is True
    assert proxy.count("UploadPart") == 3


def test_a_store_that_hangs_hides_no_local_backup(duckling, installation, s3_server, two, make_proxy, monkeypatch):
    proxy, told = make_proxy(s3_server), threading.Event()
    tell = Terminal.note

    def note(self: Terminal, line: str) -> None:
        tell(self, line)
        if "waiting for" in line:
            told.set()

    def hang(_: object) -> None:
        assert told.wait(60)

    monkeypatch.setattr(Terminal, "note", note)
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    proxy.before = hang
    installation.write(installation.entry("crm", s3={**two, "endpoint": proxy.server.endpoint}))
    done = duckling("list", "crm")
    assert done.code == 0
    assert f"waiting for s3://{two['bucket']}/" in done.err
    shown, _, rest = done.out.partition("s3 ")
    assert (shown.count("local"), rest.count("local")) == (1, 0), "at once, and only once"
    assert "crm/backup-" in rest


def test_a_list_tells_how_old_the_copy_for_readers_is(duckling, installation, make_replica, xfs):
    from duckling_provider.replica.read_copy import renew_read_copy

    files = {"duckdbPath": str(xfs / "live.db"), "readCopyPath": str(xfs / "read.db")}
    installation.write(installation.entry(**files))
    path = str(xfs / "read.db")
    absent = {"path": path, "madeAt": None, "current": None}
    assert duckling("list", "production", "--json").json["readCopy"] == absent
    make_replica(xfs / "live.db")
    copy = renew_read_copy(installation.database())
    assert f"{path}, of {iso(copy.made)}, equal to the replica" in duckling("list", "production").err
    make_replica(xfs / "live.db", rows=10)
    (shown,) = duckling("databases", "--json").json["databases"]
    assert shown["readCopy"] == {"path": path, "madeAt": iso(copy.made), "current": False}
    assert "older than the replica" in duckling("list").err
    assert duckling("list", "production", "--json").json["local"] == []
