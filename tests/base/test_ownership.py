"""Root in another user's folders can do no more than that user: whatever link the owner puts there, and whenever."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from fixtures.command_line import run_here

import duckling_provider
from duckling_provider import config
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.base.durable_files import make_folder, write_durably
from duckling_provider.base.errors import DucklingError, FileSystemError
from duckling_provider.base.ownership import as_owner_of
from duckling_provider.replica.locks import replica_lock

OWNER, OTHER = 54321, 54322

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of `OWNER`, in one that everybody may pass through: pytest's own are root's alone."""
    around = Path(tempfile.mkdtemp(prefix="duckling-owner-"))
    around.chmod(0o755)
    folder = around / "home"
    folder.mkdir()
    os.chown(folder, OWNER, OWNER)
    yield folder
    shutil.rmtree(around)


@pytest.fixture
def shared_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this Python and the package could be used by everybody; what is not imported yet still can't be where it is
    root's alone.
    """
    monkeypatch.setattr("sys.executable", "/bin/sh")
    monkeypatch.setattr(duckling_provider, "__file__", "/bin/sh")


@pytest.fixture
def usable_program(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python, DuckDB and the package where every user can use them: where they are root's alone, a copy."""
    try:
        with as_owner_of(home):
            return
    except FileSystemError:
        pass
    installed = Path(duckdb.__file__).parents[1]
    if not all(folder.stat().st_mode & 0o001 for folder in (installed, *installed.parents)):
        pytest.skip(f"the environment is root's alone, as no other user may enter a folder around {installed}")
    importlib.import_module("numpy")  # by this process, which is later a user that can't
    copy, python = home.parent / "python", Path(sys.base_prefix)
    library = Path(os.__file__).parent.relative_to(python)
    leave_out = shutil.ignore_patterns("site-packages", "test", "__pycache__", "config-*", "*.a", "idlelib", "tkinter")
    shutil.copytree(python / library, copy / library, ignore=leave_out, copy_function=_linked)
    for name in python.glob("lib/libpython*.so*"):
        _linked(str(name), str(copy / "lib" / name.name))
    (copy / "bin").mkdir()
    _linked(sys.executable, str(copy / "bin" / "python"))
    packages = home.parent / "packages"
    about = Path(duckdb.__file__).parents[1].glob("duckdb-*.dist-info")
    for package in (Path(duckdb.__file__).parent, Path(duckling_provider.__file__).parent, *about):
        shutil.copytree(package, packages / package.name, ignore=leave_out, copy_function=_linked)
    for extension in Path(duckdb.__file__).parents[1].glob("_duckdb*.so"):
        _linked(str(extension), str(packages / extension.name))
    monkeypatch.setattr("sys.executable", str(copy / "bin" / "python"))
    monkeypatch.setattr(duckling_provider, "__file__", str(packages / "duckling_provider" / "__init__.py"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(copy / "lib"))
    monkeypatch.setenv("PYTHONHOME", str(copy))
    monkeypatch.setenv("PYTHONPATH", str(packages))


def _linked(source: str, target: str) -> None:
    """A second name where that serves: a copy of DuckDB would be 70 MB."""
    source, mode = os.path.realpath(source), os.stat(source).st_mode
    try:
        if mode & 0o004:
            os.link(source, target)
            return
    except OSError:
        pass  # another file system
    shutil.copyfile(source, target)
    os.chmod(target, mode | 0o444)


@pytest.mark.usefixtures("shared_program")
def test_root_is_the_owner_within_the_block_in_all_threads_and_root_again_after_it(home: Path):
    seen = []
    with as_owner_of(home / "not-there-yet" / "production.db") as uid:
        thread = threading.Thread(target=lambda: seen.append(os.geteuid()))
        thread.start()
        thread.join()
        make_folder(home / "backups")
        write_durably(home / "backups" / "note", b"{}")
        with replica_lock(home / "production.db", operation="backup"):
            pass
    assert (uid, seen, os.geteuid(), os.getegid()) == (OWNER, [OWNER], 0, os.getgid())
    assert {path.stat().st_uid for path in home.rglob("*")} == {OWNER}


def test_what_is_root_s_stays_root_s(tmp_path: Path):
    with as_owner_of(tmp_path / "production.db") as uid:
        assert (uid, os.geteuid()) == (None, 0)


@pytest.mark.usefixtures("shared_program")
def test_a_folder_around_it_counts_and_so_do_both_ends_of_a_link(home: Path, tmp_path: Path):
    (home / "data").mkdir()  # root's own, and its owner may rename it all the same
    with as_owner_of(home / "data" / "production.db") as uid:
        assert uid == OWNER
    (tmp_path / "link.db").symlink_to(home / "production.db")
    with as_owner_of(tmp_path / "link.db") as uid:
        assert uid == OWNER


def test_folders_of_several_users_are_refused(home: Path):
    other = home.parent / "other"
    other.mkdir()
    os.chown(other, OTHER, OTHER)
    with pytest.raises(FileSystemError, match=f"UID {OWNER}.*UID {OTHER}"), as_owner_of(home, other):
        pytest.fail("acted as one of them")
    assert os.geteuid() == 0


def test_an_owner_who_can_not_run_this_program_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "python"  # in a folder of root alone
    program.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(FileSystemError, match="can't use"), as_owner_of(home):
        pytest.fail("acted as it")
    assert os.geteuid() == 0


@pytest.mark.parametrize("trap", ["replica", "log"])
def test_a_link_gives_root_s_files_neither_away_nor_up(
    home: Path,
    tmp_path: Path,
    installation: Any,
    make_replica: Callable[..., Path],
    request: pytest.FixtureRequest,
    trap: str,
):
    precious = make_replica(tmp_path / "precious.db", rows=5)
    request.getfixturevalue("shared_program")
    content = precious.read_bytes()
    replica = home / "production.db"
    if trap == "replica":
        replica.symlink_to(precious)
    else:
        shutil.copyfile(precious, replica)
        os.chown(replica, OWNER, OWNER)
        replica.with_name("production.db.wal").symlink_to(precious)
    installation.write(installation.entry(duckdbPath=str(replica)))
    database = installation.database().model_copy(update={"backup_path": home / "backups"})
    with as_owner_of(*database.places), pytest.raises(DucklingError):
        take_snapshot(database, wait=0)
    assert precious.read_bytes() == content
    assert list(home.rglob("backup-*")) == []


def test_duckdb_works_as_the_owner_too(
    home: Path, usable_program: None, installation: Any, make_replica: Callable[..., Path], tmp_path: Path
):
    made = make_replica(tmp_path / "made.db", rows=5, wal=True)
    for name in ("", ".wal"):
        shutil.copyfile(f"{made}{name}", f"{home / 'production.db'}{name}")
        os.chown(f"{home / 'production.db'}{name}", OWNER, OWNER)
    installation.write(installation.entry(duckdbPath=str(home / "production.db")))
    database = installation.database().model_copy(update={"backup_path": home / "backups"})
    with as_owner_of(*database.places):
        snapshot = take_snapshot(database, wait=0)
    assert not (home / "production.db.wal").exists()
    assert snapshot.path.read_bytes() == (home / "production.db").read_bytes()
    assert {path.stat().st_uid for path in home.rglob("*")} == {OWNER}


# ---- secrets of the caller ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_program")
def test_what_root_keeps_for_itself_is_read_as_root_whenever_the_configuration_is_loaded(
    home: Path, tmp_path: Path, installation: Any
):
    """A task reads it again while it acts as the owner."""
    tmp_path.chmod(0o700)
    secret = tmp_path / "key"
    secret.write_text("ab" * 32)
    secret.chmod(0o600)
    place = {"enabled": True, "bucket": "backups", "region": "eu-west-1", "accessKeyId": "a", "secretAccessKey": "b"}
    s3 = {**place, "encryption": "client-aes256", "encryptionKey": {"file": str(secret)}}
    installation.write(installation.entry(duckdbPath=str(home / "production.db"), s3=s3))
    with as_owner_of(home):
        database = config.load().database("production")
        assert os.geteuid() == OWNER
        with pytest.raises(PermissionError):
            secret.read_bytes()
    assert database.s3.encryption_key.hex() == "ab" * 32


def test_a_restore_as_the_owner_reads_the_key_that_is_root_s_alone(
    home: Path,
    usable_program: None,
    installation: Any,
    make_replica: Callable[..., Path],
    tmp_path: Path,
    s3_server: Any,
):
    tmp_path.chmod(0o700)
    key = tmp_path / "key"
    key.write_text("cd" * 32)
    key.chmod(0o600)
    replica = home / "production.db"
    shutil.copyfile(make_replica(tmp_path / "made.db", rows=5), replica)
    os.chown(replica, OWNER, OWNER)
    content = replica.read_bytes()
    s3 = s3_server.s3(s3_server.new_bucket(), encryption="client-aes256")
    installation.write(installation.entry(duckdbPath=str(replica), s3={**s3, "encryptionKey": {"file": str(key)}}))
    environ = {"BACKUP_PATH": str(home / "backups")}
    assert run_here("backup", "production", environ=environ).code == 0
    replica.unlink()
    installation.write(installation.entry(duckdbPath=str(replica), s3={**s3, "encryptionKey": "ef" * 32}))
    done = run_here("restore", "production", "--encryption-key-file", key, environ=environ)
    assert done.code == 0, done.err
    assert replica.read_bytes() == content
    elsewhere = run_here("restore", "production", "--to", tmp_path / "copy.db", environ=environ)
    assert (elsewhere.code, f"Root acts as UID {OWNER} here" in elsewhere.err) == (1, True), elsewhere.err
    kit = run_here("recovery-kit", "production", "--to", tmp_path, environ=environ)
    assert kit.code == 0, kit.err
    assert {path.stat().st_uid for path in home.rglob("*")} == {OWNER}


@pytest.mark.usefixtures("shared_program")
def test_no_restore_writes_into_the_folder_of_a_third_user(home: Path, installation: Any):
    other = home.parent / "other"
    other.mkdir()
    os.chown(other, OTHER, OTHER)
    installation.write(installation.entry(duckdbPath=str(home / "production.db")))
    done = run_here("restore", "production", "--to", other / "copy.db", "--local")
    assert (done.code, f"UID {OTHER}" in done.err) == (1, True), done.err


@pytest.mark.usefixtures("shared_program")
def test_a_changed_key_leaves_databases_json_to_its_owner(home: Path, installation: Any):
    """It may be root's, where the replica is another user's."""
    place = {"enabled": True, "bucket": "backups", "region": "eu-west-1", "accessKeyId": "a", "secretAccessKey": "b"}
    s3 = {**place, "encryption": "client-aes256", "encryptionKey": "ab" * 32}
    installation.write(installation.entry(duckdbPath=str(home / "production.db"), s3=s3))
    done = run_here("keys", "rotate", "production")
    assert done.code == 0, done.err
    assert (installation.data_path / "databases.json").stat().st_uid == 0


# ---- a user of their own, who never was root -------------------------------------------------------------

#: Runs the commands of a JSON list; prints [exit code, stdout, stderr] of each, and the user's id.
_COMMANDS = """
import contextlib, io, json, os, sys
from duckling_provider.cli.app import run

done = []
for arguments, environ in json.loads(sys.argv[1]):
    os.environ.update(environ)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([done, os.getresuid(), os.getgroups()]))
"""


def test_another_user_does_all_of_it_in_their_own_folder_and_is_refused_in_another_s(
    home: Path, usable_program: None, make_replica: Callable[..., Path], tmp_path: Path
):
    other = home.parent / "other"
    for folder, user in ((home, OWNER), (other, OTHER)):
        (folder / "data").mkdir(parents=True)
        shutil.copyfile(make_replica(tmp_path / "made.db", rows=5), folder / "data" / "production.db")
        (folder / "data" / "backups").mkdir()
        entries = [
            {"id": "production", "name": "P", "duckdbPath": "data/production.db"},
            {"id": "elsewhere", "name": "E", "duckdbPath": str(other / "data" / "production.db")},
        ]
        (folder / "data" / "databases.json").write_text(json.dumps(entries[: 2 if user == OWNER else 1]))
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)
            path.chmod(0o755 if path.is_dir() else 0o644)
    replica, theirs = home / "data" / "production.db", other / "data" / "production.db"
    content, before = replica.read_bytes(), {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    mine, foreign = {"DATA_PATH": str(home / "data")}, {"DATA_PATH": str(other / "data")}
    planted = home / "planted"
    planted.mkdir()
    (planted / "databases.json").write_text("[]")
    os.chown(planted / "databases.json", OTHER, OTHER)
    commands = [
        (["backup", "production", "--json"], mine),
        (["restore", "production", "--yes", "--json"], mine),
        (["restore", "production", "--to", str(home / "copy.db"), "--json"], mine),
        (["cleanup", "production", "--json"], mine),
        (["backup", "elsewhere", "--wait", "0"], mine),
        (["restore", "elsewhere", "--yes", "--wait", "0"], mine),
        (["restore", "production", "--to", str(other / "copy.db")], mine),
        (["backup", "production", "--wait", "0"], foreign),
        (["databases"], {"DATA_PATH": str(planted)}),
    ]
    environ = {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *sys.path]), "HOME": str(home)}
    child = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        cwd="/",
        env={**os.environ, **environ},
        user=OWNER,
        group=OWNER,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    done, users, groups = json.loads(child.stdout)
    assert (users, groups) == ([OWNER] * 3, [])
    assert [code for code, _, _ in done[:4]] == [0, 0, 0, 0], done[:4]
    assert replica.read_bytes() == content == (home / "copy.db").read_bytes()
    made = [path for path in home.rglob("*") if path != planted and planted not in path.parents]
    assert {path.stat().st_uid for path in made} == {OWNER}
    # What is another user's is refused by name, and stays as it is.
    for (code, _, told), name in zip(done[4:8], (theirs, theirs, other, other), strict=True):
        assert code == 1, told
        assert str(name) in told, told
        assert "unexpected" not in told
    assert "databases.json belongs to UID" in done[7][2]  # a warning: that user owns the folder as well
    assert (done[8][0], f"belongs to UID {OTHER}" in done[8][2], "not used" in done[8][2]) == (2, True, True), done[8]
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == before
