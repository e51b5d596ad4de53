"""A state file counts only when it is what this program makes; anything else is refused and left as it is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from duckling_provider.base.durable_files import remove_unless_locked, write_durably
from duckling_provider.base.errors import StateFileError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.state_files import create_state, open_state, read_state, require_base_name
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, recover
from duckling_provider.replica.locks import HOLD_SUFFIX, LOCK_SUFFIX, WANTED_SUFFIX, is_wanted, read_hold, replica_lock

#: Any user but the one that runs the tests.
STRANGER = 54321

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def state_of(folder: Path) -> dict[str, tuple[bytes | str, int, int]]:
    """Content or link target, owner and mode of everything in `folder`."""
    found = {}
    for path in sorted(folder.iterdir()):
        facts = path.lstat()
        content: bytes | str = os.readlink(path) if path.is_symlink() else b""
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
        found[path.name] = (content, facts.st_uid, stat.S_IMODE(facts.st_mode))
    return found


def a_link(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("of root alone")
    path.symlink_to(precious)


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("not-there-yet"))


def a_hard_link(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("of root alone")
    os.link(precious, path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def writable_by_all(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o666)


def a_strangers(path: Path) -> None:
    path.write_text("{}")
    os.chown(path, STRANGER, STRANGER)


TRAPS = [
    a_link,
    a_dangling_link,
    a_hard_link,
    a_pipe,
    a_folder,
    writable_by_all,
    pytest.param(a_strangers, marks=as_root),
]


@pytest.mark.parametrize("trap", TRAPS)
def test_what_this_program_did_not_make_is_refused_and_left_as_it_is(tmp_path, trap):
    path = tmp_path / "state"
    trap(path)
    before = state_of(tmp_path)
    for flags, create in ((os.O_RDONLY, False), (os.O_RDWR, False), (os.O_RDWR, True)):
        with pytest.raises(StateFileError) as caught:
            os.close(open_state(path, flags, create=create))
        assert caught.value.subject == str(path)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("trap", TRAPS)
def test_no_lock_is_taken_through_a_trap(tmp_path, trap):
    replica = tmp_path / "production.db"
    trap(replica.with_name(replica.name + LOCK_SUFFIX))
    before = state_of(tmp_path)
    with pytest.raises(StateFileError), replica_lock(replica, operation="backup"):
        pytest.fail("the lock was taken")
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("trap", TRAPS)
def test_no_hold_journal_or_leftover_is_obeyed_through_a_trap(tmp_path, trap):
    replica = tmp_path / "production.db"
    replica.write_bytes(b"replica")
    trap(replica.with_name(replica.name + HOLD_SUFFIX))
    with pytest.raises(StateFileError):
        read_hold(replica)
    replica.with_name(replica.name + HOLD_SUFFIX).rename(replica.with_name(replica.name + JOURNAL_SUFFIX))
    before = state_of(tmp_path)
    with pytest.raises(StateFileError):
        recover(replica)
    assert state_of(tmp_path) == before
    replica.with_name(replica.name + JOURNAL_SUFFIX).rename(tmp_path / "leftover")
    with pytest.raises(StateFileError):
        remove_unless_locked(tmp_path / "leftover")
    assert os.path.lexists(tmp_path / "leftover")


def test_a_trap_in_the_place_of_a_courtesy_is_passed_over(tmp_path):
    replica = tmp_path / "production.db"
    a_link(replica.with_name(replica.name + WANTED_SUFFIX))
    before = state_of(tmp_path)
    assert is_wanted(replica) is False
    assert state_of(tmp_path) == before


@as_root
def test_what_root_makes_in_a_users_folder_is_that_users(tmp_path):
    folder = tmp_path / "users"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    write_durably(folder / "hold", b"{}")
    with FileLock(folder / "lock", operation="backup"):
        pass
    os.close(create_state(folder / "new"))
    assert {path.stat().st_uid for path in folder.iterdir()} == {STRANGER}
    # And the user's own files are no traps to root.
    assert read_state(folder / "hold") == b"{}"


def test_a_new_file_is_never_one_that_is_there(tmp_path):
    a_dangling_link(tmp_path / "new")
    with pytest.raises(FileExistsError):
        create_state(tmp_path / "new")
    assert not (tmp_path / "not-there-yet").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", 7, None, ["x"]])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(StateFileError):
        require_base_name(name, tmp_path / "journal")


def test_a_full_disk_leaks_no_lock(tmp_path, monkeypatch):
    """The tag could not be emptied: the next taker must not find the lock held by this very process."""
    lock = FileLock(tmp_path / "lock", operation="backup", wait=0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with lock:
        monkeypatch.setattr(os, "ftruncate", full)
    monkeypatch.undo()
    with lock:
        pass


class _Killed(BaseException):
    """As a signal raises it, at any moment."""


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_signal_while_the_tag_is_written_leaks_no_lock(tmp_path, monkeypatch, call):
    def killed(*_: object) -> None:
        raise _Killed

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, killed)
    with pytest.raises(_Killed), FileLock(tmp_path / "lock", operation="backup", wait=0):
        pytest.fail("it was entered")
    monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) == before
    with FileLock(tmp_path / "lock", operation="backup", wait=0):
        pass


def forged(tmp_path: Path, **changes: object) -> Path:
    """A replica and a journal such as a restore leaves, but for `changes`."""
    replica = tmp_path / "production.db"
    replica.write_bytes(b"replica")
    (tmp_path / "victim").write_bytes(b"victim")
    journal = {
        "new": "production.db.duckling-new",
        "new_inode": replica.stat().st_ino,
        "aside": "production.db.duckling-old",
        "keep": False,
        "old_identity": [1, 2, 3],
        "wals": [],
        "format": 1,
    }
    write_durably(tmp_path / f"production.db{JOURNAL_SUFFIX}", json.dumps(journal | changes).encode())
    return replica


@pytest.mark.parametrize(
    "changes",
    [
        {"aside": "../victim"},
        {"aside": "/etc/passwd"},
        {"aside": "production.db"},
        {"new": "sub/x"},
        {"new": "production.db"},
        {"wals": [["/etc/passwd", "/etc/passwd.old"]]},
        {"wals": [["VICTIM", "VICTIM.aside"]]},
        {"wals": [["production.db.wal", "../../x"]]},
        {"keep": "no"},
        {"keep": 0},
        {"new_inode": "7"},
        {"new_inode": True},
        {"old_identity": [1, 2]},
        {"old_identity": [1, 2, "3"]},
        {"format": 2},
        {"format": "1"},
    ],
)
def test_a_forged_journal_moves_and_deletes_nothing(tmp_path, changes):
    if "wals" in changes:
        changes = {"wals": [[p.replace("VICTIM", str(tmp_path / "victim")) for p in pair] for pair in changes["wals"]]}
    replica = forged(tmp_path, **changes)
    before = state_of(tmp_path)
    with pytest.raises(StateFileError):
        recover(replica)
    assert state_of(tmp_path) == before


def test_the_journal_that_the_forgeries_are_made_of_is_obeyed(tmp_path):
    replica = forged(tmp_path)
    (tmp_path / "production.db.duckling-old").write_bytes(b"old")
    assert recover(replica) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["production.db", "victim"]
