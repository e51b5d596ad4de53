"""SIGKILL and SIGTERM at every step of `duckling backup` and `duckling restore`, and at random moments."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

full_only = pytest.mark.full
MODES = ["client-aes256", pytest.param("none", marks=full_only)]


def old_replica(site, contents):
    site.replica.write_bytes(contents.old)


def backup_of_new(site, contents):
    """A bucket with a backup of the new content, and the old one in place."""
    site.replica.write_bytes(contents.new)
    done = site.duckling("backup", "production")
    assert done.code == 0, done.said
    site.replica.write_bytes(contents.old)


def bytes_copied(done):
    """What a backup with ``--json`` says of it, among its log."""
    return json.loads(done.said[done.said.index("{") : done.said.rindex("}") + 1])["bytesCopied"]


# ---- backup ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("store", ["rclone", pytest.param("moto", marks=full_only)])
def test_a_backup_killed_at_any_step_leaves_complete_backups_only(
    make_site, s3_server, moto_server, contents, opened, pick, store, mode
):
    site = make_site(s3_server if store == "rclone" else moto_server, mode)
    old_replica(site, contents)
    total = site.duckling("backup", "production").steps
    assert total > 40
    kills = 0
    for at in pick(total, 3):
        site.clear()
        old_replica(site, contents)
        killed = site.duckling("backup", "production", action="kill", at=at)
        kills += killed.code == -signal.SIGKILL
        assert killed.code in {0, -signal.SIGKILL}, killed.said
        assert site.replica.read_bytes() == contents.old
        assert opened(site.replica)
        known: set[str] = set()
        site.assert_only_complete_backups(known)
        following = site.duckling("backup", "production")
        assert following.code == 0, (at, following.said)
        assert "failed" not in following.said, (at, following.said)
        site.assert_only_complete_backups(known)
        site.assert_tidy()
        assert site.replica.read_bytes() == contents.old
    assert kills >= 2


@pytest.mark.parametrize("mode", MODES)
def test_a_small_backup_killed_at_any_step_leaves_complete_backups_only(make_site, moto_server, contents, pick, mode):
    site = make_site(moto_server, mode)
    site.replica.write_bytes(contents.small)
    total = site.duckling("backup", "production").steps
    for at in pick(total, 3):
        site.clear()
        site.replica.write_bytes(contents.small)
        site.duckling("backup", "production", action="kill", at=at)
        assert site.replica.read_bytes() == contents.small
        known: set[str] = set()
        site.assert_only_complete_backups(known)
        following = site.duckling("backup", "production")
        assert following.code == 0, (at, following.said)
        site.assert_only_complete_backups(known)
        site.assert_tidy()


@pytest.mark.parametrize("mode", ["format 2", pytest.param("none", marks=full_only)])
def test_a_differential_upload_killed_at_any_step_leaves_complete_backups_only(
    make_site, moto_server, make_replica, pick, tmp_path, mode
):
    site = make_site(moto_server, "none" if mode == "none" else "client-aes256")
    site.write(**({} if mode == "none" else {"objectFormat": 2}))
    first = make_replica(tmp_path / "first.db", rows=600_000, seed=4)
    second = tmp_path / "second.db"
    second.write_bytes(first.read_bytes())
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE TABLE one_more AS SELECT 42 AS a')"
    subprocess.run([sys.executable, "-c", program, str(second)], check=True)
    contents = first.read_bytes(), second.read_bytes()

    def back_up(number, **kill):
        # In the same file, as a sync writes it: another one would be another replica.
        site.replica.write_bytes(contents[number % 2])
        return site.duckling("backup", "production", "--json", **kill)

    assert back_up(0).code == 0
    done = back_up(1)
    assert bytes_copied(done) > 8 << 20
    kills, copied, known = 0, 0, set()
    for number, at in enumerate(pick(done.steps, 3)):
        killed = back_up(number, action="kill", at=at)
        kills += killed.code == -signal.SIGKILL
        assert killed.code in {0, -signal.SIGKILL}, killed.said
        site.assert_only_complete_backups(known)
        following = back_up(number + 1)
        assert following.code == 0, (at, following.said)
        copied += bytes_copied(following) > 0
        site.assert_only_complete_backups(known)
        site.assert_tidy()
    assert kills >= 2
    assert copied >= 1


# ---- restore -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", [[], pytest.param(["--no-delta"], marks=full_only)], ids=["by delta", "whole"])
def test_a_restore_killed_at_any_step_leaves_the_old_replica_or_the_new_one(
    make_site, s3_server, contents, opened, pick, mode, way
):
    site = make_site(s3_server, mode)
    backup_of_new(site, contents)
    total = site.duckling("restore", "production", *way).steps
    assert total > 40
    seen = set()
    for at in pick(total, 4):
        old_replica(site, contents)
        killed = site.duckling("restore", "production", *way, action="kill", at=at)
        assert killed.code in {0, -signal.SIGKILL}, killed.said
        found = site.replica.read_bytes()
        assert found in {contents.old, contents.new}
        seen.add(found == contents.new)
        assert opened(site.replica)
        following = site.duckling("restore", "production", *way)
        assert following.code == 0, (at, following.said)
        assert site.replica.read_bytes() == contents.new
        site.assert_tidy()
    assert seen == {False, True}


def test_a_log_of_the_old_replica_survives_a_killed_restore_with_it(
    make_site, s3_server, contents, pick, tmp_path, make_replica
):
    site = make_site(s3_server)
    backup_of_new(site, contents)
    with_log = make_replica(tmp_path / "with-log" / "production.db", rows=300, storage="v1.0.0", wal=True)
    log = with_log.with_name("production.db.wal")
    beside = site.replica.with_name(log.name)

    def reset():
        site.replica.write_bytes(with_log.read_bytes())
        beside.write_bytes(log.read_bytes())

    reset()
    total = site.duckling("restore", "production").steps
    # The download comes first; logs are touched in the last steps.
    for at in pick(40, 3):
        reset()
        site.duckling("restore", "production", action="kill", at=total - 40 + at)
        # The next program at the replica finds all of the old one, or all of the new one.
        next_backup = site.duckling("backup", "production", "--json")
        assert next_backup.code == 0, next_backup.said
        if site.replica.read_bytes() != contents.new:
            assert site.duckling("backup", "production").code == 0
            done = site.duckling("restore", "production", "--local")
            assert done.code == 0, done.said
        assert not beside.exists()
        site.assert_tidy()
        for path in site.backups.glob("backup-*"):
            path.unlink()
        # The newest in the bucket has to be that of the new content again.
        for key in sorted(key for key in site.objects() if key.endswith(".db"))[1:]:
            site.client.delete_object(Bucket=site.bucket, Key=key)
            site.client.delete_object(Bucket=site.bucket, Key=key + ".mac")


# ---- random moments ----------------------------------------------------------------------------------------


def killed_at_random_moments(start, command, prepare, seed, *, full):
    """A command that is killed while it works, once in each turn of the loop; `prepare` comes before."""
    began = time.monotonic()
    assert start(command, "production").wait(60) == 0
    took = time.monotonic() - began
    moments = random.Random(seed)
    for _ in range(30 if full else 2):
        prepare()
        process = start(command, "production")
        time.sleep(moments.uniform(0.3, 1.0) * took)
        process.kill()
        process.wait()
        yield


def test_a_backup_killed_at_random_moments_leaves_complete_backups_only(
    make_site, moto_server, contents, opened, full, seed, start
):
    site = make_site(moto_server)
    old_replica(site, contents)

    def prepare():
        site.clear()
        old_replica(site, contents)

    for _ in killed_at_random_moments(start, "backup", prepare, seed, full=full):
        assert site.replica.read_bytes() == contents.old
        assert opened(site.replica)
        known: set[str] = set()
        site.assert_only_complete_backups(known)
        following = site.duckling("backup", "production")
        assert following.code == 0, following.said
        site.assert_only_complete_backups(known)
        site.assert_tidy()


def test_a_restore_killed_at_random_moments_leaves_the_old_replica_or_the_new_one(
    make_site, s3_server, contents, opened, full, seed, start
):
    site = make_site(s3_server)
    backup_of_new(site, contents)
    for _ in killed_at_random_moments(start, "restore", lambda: old_replica(site, contents), seed, full=full):
        assert site.replica.read_bytes() in {contents.old, contents.new}
        assert opened(site.replica)
        following = site.duckling("restore", "production")
        assert following.code == 0, following.said
        assert site.replica.read_bytes() == contents.new
        site.assert_tidy()


# ---- SIGTERM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_command_stopped_at_any_step_cleans_up_by_itself(make_site, moto_server, contents, opened, pick, command):
    site = make_site(moto_server)
    backup_of_new(site, contents)
    total = site.duckling(command, "production").steps
    for at in pick(total, 3):
        old_replica(site, contents)
        stopped = site.duckling(command, "production", action="term", at=at)
        # Where nothing was left to stop, it is done.
        assert stopped.code in {0, 128 + signal.SIGTERM}, (at, stopped.said)
        assert site.replica.read_bytes() in ({contents.old, contents.new} if command == "restore" else {contents.old})
        assert opened(site.replica)
        site.assert_only_complete_backups(set())
        site.assert_tidy()


@pytest.mark.parametrize(
    "command,operation",
    [
        ("backup", "part"),
        ("restore", "get"),
        *(pytest.param("backup", name, marks=full_only) for name in ("head", "create", "complete", "get", "list")),
        *(pytest.param("restore", name, marks=full_only) for name in ("head", "list")),
    ],
)
def test_a_store_that_falls_silent_does_not_keep_a_stopped_command(
    make_site, moto_server, contents, fault_proxy, start, command, operation
):
    site = make_site(moto_server)
    backup_of_new(site, contents)
    proxy = fault_proxy(moto_server)
    site.write(proxy.server)
    proxy.fall_silent(operation)
    process = start(command, "production")
    assert proxy.stalled.wait(60)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    # The HTTP client would wait for a minute, and try again then.
    said, _ = process.communicate(timeout=45)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith("duckling: stopped by SIGTERM")
    assert site.replica.read_bytes() == contents.old
    assert {name for name in site.litter() if not name.endswith(".upload")} == set()

    proxy.choose = lambda _: None
    assert site.duckling("backup", "production").code == 0
    site.assert_only_complete_backups(set())
    site.assert_tidy()


def test_files_that_a_killed_restore_elsewhere_left_are_no_obstacle(make_site, s3_server, contents, tmp_path):
    site = make_site(s3_server)
    backup_of_new(site, contents)
    target = tmp_path / "elsewhere.db"
    total = site.duckling("restore", "production", "--to", str(target)).steps
    target.unlink()
    site.duckling("restore", "production", "--to", str(target), action="kill", at=total // 2)
    assert not target.exists()
    assert site.duckling("restore", "production", "--to", str(target)).code == 0
    assert target.read_bytes() == contents.new
    assert [path.name for path in Path(tmp_path).glob("elsewhere*")] == ["elsewhere.db"]
    assert site.replica.read_bytes() == contents.old
