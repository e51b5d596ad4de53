"""Full disks, read-only folders, links, other file systems, and files in the replica's place that are no replica."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from duckling_provider.replica.origin import ORIGIN_SUFFIX


@pytest.fixture
def mount():
    """``mount(folder, "size=40m")``: a tmpfs there; the limit of file sizes is tested where that is not allowed."""
    mounted = []

    def mount(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system here")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(folder):
    with contextlib.suppress(FileNotFoundError):
        (folder / "filler").unlink()


def assert_clear_failure(done, words):
    assert "Traceback" not in done.said
    assert any(word in done.said for word in words), done.said


full_only = pytest.mark.full
FULL = ["filled up", "No space left", "no space left"]


@pytest.mark.parametrize("what", ["backup", "restore"])
def test_a_disk_that_fills_up_at_any_step_leaves_the_old_replica_or_the_new_one(
    make_site, s3_server, contents, opened, pick, mount, what
):
    site = make_site(s3_server)
    mount(site.installation.data_path, "size=80m")
    folder = site.installation.data_path
    site.write()
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    total = site.duckling(what, "production").steps
    ends = set()
    for at in pick(total, 3):
        for path in [*site.backups.glob("backup-*"), *folder.glob("production.db*")]:
            # Without its origin it would be another replica, and `latest` one of a stranger.
            if path.suffix != ORIGIN_SUFFIX:
                path.unlink()
        site.replica.write_bytes(contents.old)
        known = set(site.objects())
        done = site.duckling(what, "production", action=f"fill:{folder}", at=at)
        ends.add(done.code)
        if done.code:
            assert done.code == 1, (at, done.said)
            assert_clear_failure(done, FULL)
        found = site.replica.read_bytes()
        assert found in ({contents.old} if what == "backup" else {contents.old, contents.new}), at
        assert opened(site.replica)
        make_room(folder)
        site.assert_only_complete_backups(known)
        again = site.duckling(what, "production")
        assert again.code == 0, (at, again.said)
        assert site.replica.read_bytes() == (contents.old if what == "backup" else contents.new)
        site.assert_tidy()
        for key in sorted(key for key in site.objects() if key.endswith(".db"))[1:]:
            for name in (key, key + ".mac"):
                site.client.delete_object(Bucket=site.bucket, Key=name)
    assert 1 in ends


def test_a_disk_too_small_is_told_before_anything_is_written(make_site, s3_server, contents, mount, tmp_path):
    site = make_site(s3_server)
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    mount(tmp_path / "small", "size=20m")
    (tmp_path / "small" / "taken").write_bytes(b"x" * (10 << 20))
    done = site.duckling("restore", "production", "--to", str(tmp_path / "small" / "out.db"))
    assert done.code == 1
    assert "(11.8 MiB for the file + 16.0 MiB margin), 10.0 MiB free" in done.said
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["taken"]


_LIMITED = """
import resource, sys
from duckling_provider.cli import app as cli
resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, resource.RLIM_INFINITY))
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", [pytest.param("backup", marks=full_only), "restore"])
def test_a_limit_of_file_sizes_is_told_and_leaves_nothing(make_site, s3_server, contents, what):
    site = make_site(s3_server)
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    before = site.objects()
    command = [sys.executable, "-c", _LIMITED, what, "production"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.replica.read_bytes() == contents.old
    assert site.objects() == before
    site.assert_tidy()


@pytest.mark.parametrize("what", [pytest.param("backup", marks=full_only), "restore"])
def test_a_read_only_folder_of_the_replica_is_told_and_left(make_site, s3_server, contents, mount, what):
    site = make_site(s3_server)
    mount(site.installation.data_path, "size=80m")
    site.write()
    site.replica.write_bytes(contents.new)
    assert site.duckling("backup", "production").code == 0
    before = {path.name: path.read_bytes() for path in site.replica.parent.glob("*.db")}
    known = site.objects()
    subprocess.run(["mount", "-o", "remount,ro", str(site.installation.data_path)], check=True)
    done = site.duckling(what, "production")
    assert done.code == 1
    assert_clear_failure(done, ["Read-only file system"])
    assert {path.name: path.read_bytes() for path in site.replica.parent.glob("*.db")} == before
    assert site.objects() == known
    # What only reads still works there.
    assert site.duckling("verify", "production").code == 0
    assert site.duckling("list", "production").code == 0


def test_a_read_only_backup_folder_is_told_and_the_replica_left(make_site, s3_server, contents, mount):
    site = make_site(s3_server)
    site.replica.write_bytes(contents.new)
    mount(site.installation.backup_path, "size=80m")
    subprocess.run(["mount", "-o", "remount,ro", str(site.installation.backup_path)], check=True)
    done = site.duckling("backup", "production")
    assert done.code == 1
    assert_clear_failure(done, ["Read-only file system"])
    assert site.objects() == {}
    assert site.replica.read_bytes() == contents.new


def test_a_linked_replica_on_another_file_system_survives_kills(
    make_site, s3_server, contents, opened, mount, pick, tmp_path
):
    site = make_site(s3_server)
    mount(tmp_path / "elsewhere", "size=120m")
    target = tmp_path / "elsewhere" / "target.db"
    target.write_bytes(contents.new)
    site.replica.symlink_to(target)
    assert site.duckling("backup", "production").code == 0
    total = site.duckling("restore", "production").steps
    # Its last third is the exchange.
    for at in pick(total // 3, 3):
        target.write_bytes(contents.old)
        site.duckling("restore", "production", action="kill", at=total - total // 3 + at)
        assert target.read_bytes() in {contents.old, contents.new}
        assert opened(site.replica)
        assert site.duckling("restore", "production", "--local").code == 0
        assert target.read_bytes() == contents.new
        assert site.replica.readlink() == target
        assert {path.name for path in target.parent.iterdir()} == {
            "target.db",
            "target.db.duckling-lock",
            "target.db.duckling-origin",
        }
    site.assert_tidy()


_ENCRYPTED = """
import sys
import duckdb

connection = duckdb.connect()
connection.execute("SET force_mbedtls_unsafe = 'true'")
connection.execute(f"ATTACH '{sys.argv[1]}' AS secret (ENCRYPTION_KEY 'key of the test')")
connection.execute("CREATE TABLE secret.customers AS SELECT i AS id, 'c' AS name FROM range(1000) t(i)")
connection.close()
"""


def test_a_replica_that_is_encrypted_by_duckdb_goes_and_comes_back(make_site, s3_server):
    site = make_site(s3_server)
    subprocess.run([sys.executable, "-c", _ENCRYPTED, str(site.replica)], check=True)
    content = site.replica.read_bytes()
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(b"gone")
    done = site.duckling("restore", "production")
    assert done.code == 0, done.said
    assert site.replica.read_bytes() == content
    site.assert_tidy()


@pytest.mark.parametrize(
    "content,words",
    [(None, "does not exist"), (b"", "is empty"), (b"no database at all" * 1000, "is not a DuckDB file")],
    ids=["missing", "empty", "foreign"],
)
def test_what_is_no_replica_is_not_backed_up_but_replaced(make_site, s3_server, contents, content, words):
    site = make_site(s3_server)
    site.replica.write_bytes(contents.small)
    assert site.duckling("backup", "production").code == 0
    site.replica.unlink()
    if content is not None:
        site.replica.write_bytes(content)
    known = site.objects()
    refused = site.duckling("backup", "production")
    assert refused.code == 1
    assert_clear_failure(refused, [words])
    assert str(site.replica) in refused.said
    assert site.objects() == known
    assert (site.replica.read_bytes() if site.replica.exists() else None) == content
    assert site.duckling("restore", "production").code == 0
    assert site.replica.read_bytes() == contents.small
    site.assert_tidy()
