"""Two at once: one proceeds, the other waits up to its deadline and then says who is in its way."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from duckling_provider.replica.locks import place_hold

full_only = pytest.mark.full
_COMMANDS = ["backup", pytest.param("restore", marks=full_only)]
_SINCE = r"since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d"

_SYNC = """
import sys
from pathlib import Path
from duckling_provider.replica.locks import place_hold

place_hold(Path(sys.argv[1]), owner="duckling_sync run 7", reason="initial load", seconds=3600, process_bound=True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stop_at(start):
    """``stop_at(*arguments, at) -> process``: a command that stands still at a step."""

    def stop_at(*arguments, at):
        process = start(*arguments, action="stop", at=at)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    return stop_at


def go_on(process):
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.fixture
def site(make_site, moto_server, contents):
    site = make_site(moto_server)
    site.replica.write_bytes(contents.new)
    return site


@pytest.fixture
def copying(stop_at, site):
    """A `duckling backup` that stands still in the middle of the copy."""
    return lambda: stop_at("backup", "production", at="write:2")


@pytest.fixture
def downloading(site, stop_at, contents):
    """A `duckling restore` that stands still in the middle of the download."""
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    return lambda: stop_at("restore", "production", "--no-delta", at="write:4")


@pytest.mark.parametrize("command", _COMMANDS)
def test_who_meets_a_backup_in_its_copy_waits_and_then_names_it(site, copying, contents, command):
    first = copying()
    refused = site.duckling(command, "production", "--wait", "0.5")
    assert refused.code == 1
    assert re.search(rf"held by PID {first.pid}, snapshot \(duckling backup\), {_SINCE}", refused.said)
    assert "Waited 0.5 s" in refused.said
    go_on(first)
    assert site.replica.read_bytes() == contents.new
    site.assert_only_complete_backups(set())


def test_two_backups_at_once_both_become_complete_backups(site, copying, start, contents):
    first = copying()
    second = start("backup", "production", "--wait", "60")
    go_on(first)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert len([key for key in site.objects() if key.endswith(".db")]) == 2
    site.assert_only_complete_backups(set())
    site.assert_tidy()
    assert site.replica.read_bytes() == contents.new


def test_a_clean_up_leaves_the_upload_of_a_living_backup_alone(site, stop_at):
    # The first request looks whether the object is there; then come the upload's beginning and its parts.
    uploading = stop_at("backup", "production", at="request answered:3")
    assert len(site.unfinished()) == 1
    second = site.duckling("backup", "production")
    assert second.code == 0, second.said
    assert len(site.unfinished()) == 1
    go_on(uploading)
    assert len([key for key in site.objects() if key.endswith(".db")]) == 2
    site.assert_only_complete_backups(set())
    site.assert_tidy()


@pytest.mark.parametrize("command", _COMMANDS)
def test_who_meets_a_restore_waits_and_then_names_it(site, downloading, contents, command):
    first = downloading()
    before = site.replica.read_bytes()
    refused = site.duckling(command, "production", "--wait", "0.5")
    assert refused.code == 1
    assert re.search(
        rf"held for restore \(restore by PID {first.pid}, PID {first.pid} on {socket.gethostname()}\) {_SINCE}",
        refused.said,
    )
    assert site.replica.read_bytes() == before == contents.old
    go_on(first)
    assert site.replica.read_bytes() == contents.new
    assert site.duckling(command, "production").code == 0
    site.assert_tidy()


@full_only
def test_who_waits_for_a_restore_gets_on_when_it_ends(site, downloading, start, contents):
    first = downloading()
    second = start("backup", "production", "--wait", "60")
    time.sleep(0.5)
    go_on(first)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    newest = max(site.backups.glob("backup-*.db"))
    assert newest.read_bytes() == contents.new
    site.assert_tidy()


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_sync_s_hold_is_respected_and_ends_with_its_process(site, contents, command):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    sync = subprocess.Popen(
        [sys.executable, "-c", _SYNC, str(site.replica)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert sync.stdout.readline() == "held\n"
    refused = site.duckling(command, "production", "--wait", "0.5")
    assert refused.code == 1
    assert re.search(rf"held for initial load \(duckling_sync run 7, PID {sync.pid} on \S+\) {_SINCE}", refused.said)
    assert site.replica.read_bytes() == contents.old
    sync.kill()
    sync.communicate()
    done = site.duckling(command, "production", "--wait", "0.5")
    assert done.code == 0, done.said
    assert "cleared a hold whose owner is gone" in done.said or command == "restore"
    site.assert_tidy()


def test_the_hold_of_an_airflow_run_names_the_run(site, contents):
    place_hold(site.replica, owner="duckling_restore_production manual__1", reason="restore", seconds=3600)
    refused = site.duckling("backup", "production", "--wait", "0")
    assert refused.code == 1
    assert re.search(rf"held for restore \(duckling_restore_production manual__1\) {_SINCE}", refused.said)
    assert "duckling release" in refused.said
    assert site.duckling("release", "production").code == 0
    assert site.duckling("backup", "production").code == 0
    assert site.replica.read_bytes() == contents.new


def test_a_stopped_wait_leaves_no_claim(site, downloading, start):
    first = downloading()
    waiting = start("backup", "production", "--wait", "600")
    assert "waiting" in waiting.stdout.readline()
    waiting.send_signal(signal.SIGTERM)
    said, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 128 + signal.SIGTERM, said
    go_on(first)
    assert os.path.lexists(site.replica)
    site.assert_tidy()
