"""Root in another user's folders can do no more than that user: whatever link the owner puts there, and whenever."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from duckling_provider.backup.snapshot import take_snapshot
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
    """As if this Python could be run by everybody; what is not imported yet still can't be where it is root's alone."""
    monkeypatch.setattr("sys.executable", "/bin/sh")


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
    home: Path, installation: Any, make_replica: Callable[..., Path], tmp_path: Path
):
    try:
        with as_owner_of(home):
            pass
    except FileSystemError as error:
        pytest.skip(str(error))
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
