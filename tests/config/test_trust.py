"""databases.json and the secrets that it points to count only when they belong to a user who may decide that much."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.command_line import run_here

from duckling_provider import config
from duckling_provider.base.errors import ConfigError
from duckling_provider.config.databases import Settings
from duckling_provider.config.editing import add_entries, change_s3
from duckling_provider.config.trust import Trust

STRANGER, OWNER = 1234, 54321
KEY = "ab" * 32
S3 = {
    "enabled": True,
    "bucket": "backups",
    "region": "eu-west-1",
    "accessKeyId": "AKIDEXAMPLE",
    "secretAccessKey": "very-secret-0815",
    "encryption": "client-aes256",
}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def given_to(path: Path, uid: int) -> Path:
    os.chown(path, uid, uid)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


@as_root
def test_a_configuration_of_another_user_is_refused_by_root_and_left_as_it_is(installation: Any):
    path = given_to(installation.write(installation.entry(s3={**S3, "encryptionKey": KEY})), STRANGER)
    before = path.read_bytes()
    for use in (
        config.load,
        lambda: change_s3(Settings.from_env(os.environ), "production", None),
        lambda: add_entries(path, []),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        told = str(caught.value)
        assert all(part in told for part in (str(path), f"UID {STRANGER}", "not used", f"chown 0 {path}")), told
    done = run_here("list", "production")
    assert (done.code, f"UID {STRANGER}" in done.err) == (2, True), done.err
    assert path.read_bytes() == before


@as_root
@pytest.mark.parametrize("place", ["encryptionKey", "previousEncryptionKeys", "secretAccessKey"])
def test_a_secret_of_another_user_is_refused_by_root(installation: Any, key: Path, place: str):
    given_to(key, STRANGER)
    value = {"file": str(key)}
    s3 = {**S3, "encryptionKey": KEY, place: [value] if place.startswith("previous") else value}
    installation.write(installation.entry(s3=s3))
    (problem,) = config.load().problems
    told = str(problem)
    assert all(part in told for part in (place, str(key), f"UID {STRANGER}", f"chown 0 {key}")), told
    assert KEY not in told


@as_root
def test_a_key_of_another_user_is_refused_by_root_on_the_command_line_too(installation: Any, key: Path):
    given_to(key, STRANGER)
    installation.write(installation.entry(s3={**S3, "encryptionKey": "cd" * 32}))
    done = run_here("restore", "production", "--encryption-key-file", key, "--yes")
    assert done.code == 2
    assert all(part in done.err for part in (str(key), f"UID {STRANGER}", f"chown 0 {key}")), done.err


@as_root
def test_the_owner_of_the_data_folder_may_own_the_configuration_and_its_secrets(installation: Any, key: Path):
    """Root acts as that user."""
    given_to(installation.data_path, OWNER)
    s3 = {**S3, "encryptionKey": {"file": str(given_to(key, OWNER))}}
    for author in (0, OWNER):
        given_to(installation.write(installation.entry(s3=s3)), author)
        assert installation.database().s3.encryption_key.hex() == KEY
        assert config.load().warnings == ()


@as_root
def test_no_file_of_root_s_is_read_because_another_user_s_configuration_says_so(installation: Any, key: Path):
    """It would go to the store of that user's choice."""
    given_to(installation.data_path, OWNER)
    s3 = {**S3, "encryptionKey": KEY, "accessKeyId": {"file": str(key)}}
    given_to(installation.write(installation.entry(s3=s3)), OWNER)
    (problem,) = config.load().problems
    told = str(problem)
    assert all(part in told for part in (str(key), "belongs to UID 0", f"databases.json to UID {OWNER}")), told
    assert KEY not in told
    given_to(installation.data_path / "databases.json", 0)
    assert config.load().problems == ()


@as_root
def test_a_changed_file_is_judged_anew_although_its_content_is_the_same(installation: Any):
    path = installation.write(installation.entry())
    assert config.load().problems == ()
    given_to(path, STRANGER)
    with pytest.raises(ConfigError, match=f"UID {STRANGER}"):
        config.load()


@as_root
@pytest.mark.parametrize("author", [0, OWNER])
def test_an_edit_by_root_leaves_the_file_to_its_owner(installation: Any, key: Path, author: int):
    """It may be root's in another user's folder: that user need not know what is in it."""
    given_to(installation.data_path, OWNER)
    path = given_to(installation.write(installation.entry(s3={**S3, "encryptionKey": KEY})), author)
    change_s3(Settings.from_env(os.environ), "production", None)
    kept = add_entries(path, [])
    assert kept is not None
    assert [file.stat().st_uid for file in (path, kept)] == [author, author]
    assert path.stat().st_mode & 0o777 == 0o600


# ---- another user than root, whose containers show files of the host -------------------------------------


def looked_at(path: Path, trust: Trust) -> tuple[bool, bool]:
    """(doubtful, fatal)."""
    with path.open("rb") as file:
        look = trust.look(file.fileno())
    return bool(look.doubt), look.fatal


@as_root
@pytest.mark.parametrize(
    ("owner", "verdict"),
    [
        pytest.param(0, (False, False), id="root"),
        pytest.param(50000, (False, False), id="the caller"),
        pytest.param(1000, (True, False), id="the owner of a folder of the host"),
        pytest.param(STRANGER, (True, True), id="a stranger"),
    ],
)
def test_what_another_user_than_root_makes_of_an_owner(key: Path, owner: int, verdict: tuple[bool, bool]):
    given_to(key, owner)
    assert looked_at(key, Trust(caller=50000, data_owner=1000)) == verdict


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """A file of a stranger, mounted where another one was, as `docker run --volume FILE:FILE` does."""
    source, target = tmp_path / "of the host", tmp_path / "in the container"
    source.write_text("[]")
    os.chown(source, STRANGER, STRANGER)
    target.touch()
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr}")
    yield target
    subprocess.run(["umount", "--lazy", target], check=True)


@as_root
@pytest.mark.slow
def test_a_mounted_file_of_the_host_is_used_with_a_warning_and_by_root_not_at_all(bound: Path):
    assert looked_at(bound, Trust(caller=50000, data_owner=50000)) == (True, False)
    assert looked_at(bound, Trust(caller=0)) == (True, True)
    subprocess.run(["mount", "-o", "remount,bind,ro", bound], check=True)
    assert looked_at(bound, Trust(caller=50000)) == (True, False)
    assert looked_at(bound.with_name("of the host"), Trust(caller=50000)) == (True, True)
