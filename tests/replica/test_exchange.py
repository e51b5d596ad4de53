"""Killed anywhere in an exchange, the next access finds the complete old or the complete new replica, and no debris.

A harness process does the exchange again and again in forked children, and SIGKILLs the n-th child at its n-th call
that changes anything on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from duckling_provider.base.errors import BusyError, DucklingError, ReplicaError, StateFileError
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.duckdb_file import WAL_SUFFIXES
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, NEW_SUFFIX, OLD_SUFFIX, recover, replace_replica

NAME = "replica.db"
LOCK = f"{NAME}.duckling-lock"
KEPT = f"{NAME}.old-2025-03-01T14-32-11-482Z"

_HARNESS = """
import fcntl, json, logging, os, shutil, signal, sys
from pathlib import Path

from duckling_provider.replica import exchange as replace
from duckling_provider.replica.access import replica_access

logging.disable(logging.CRITICAL)
template, out, plan = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
NAME = "replica.db"
state = {"calls": 0, "last": 0}


def point():
    state["calls"] += 1
    if state["calls"] == state["last"]:
        os.kill(os.getpid(), signal.SIGKILL)


def fatal(real):
    # After one call is before the next one; the last one of all is a sync.
    def call(*args, **kwargs):
        point()
        return real(*args, **kwargs)
    return call


def fatal_open(real):
    # Opening changes something only where it creates or truncates.
    def call(path, flags, *args, **kwargs):
        changes = flags & (os.O_CREAT | os.O_TRUNC)
        if changes:
            point()
        result = real(path, flags, *args, **kwargs)
        if changes:
            point()
        return result
    return call


def unlink(self, missing_ok=False):
    try:
        os.unlink(self)
    except FileNotFoundError:
        if not missing_ok:
            raise


for name in ("rename", "replace", "link", "unlink", "ftruncate", "write", "pwrite"):
    setattr(os, name, fatal(getattr(os, name)))
os.open = fatal_open(os.open)
# A killed process loses nothing that it wrote, synced or not; what counts here is the moment between the calls.
os.fsync = fatal(lambda fd: None)
# pathlib of Python 3.10 keeps its own reference.
Path.unlink = unlink


def exchange(folder):
    new = open(folder / (NAME + ".duckling-new"))
    fcntl.flock(new, fcntl.LOCK_EX)
    with replica_access(folder / NAME, operation="restore"):
        replace.replace_replica(folder / (NAME + ".duckling-new"), folder / NAME, keep_as=plan["keep_as"])


def access(folder):
    with replica_access(folder / NAME, operation="recovery"):
        pass


def killed_at(n, action, folder):
    # Whether `action` was killed at its n-th point; False when it ended before.
    pid = os.fork()
    if pid == 0:
        state.update(calls=0, last=n)
        try:
            action(folder)
        except BaseException as error:
            print(json.dumps({"folder": folder.name, "error": repr(error)}), flush=True)
            os._exit(1)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def fresh(name):
    shutil.copytree(template, out / name)
    return out / name


n = 0
killed = True
while killed:
    n += 1
    if not plan["recovery_too"]:
        killed = killed_at(n, exchange, fresh(f"{n:03d}"))
        continue
    m = 0
    again = True
    while again:
        m += 1
        folder = fresh(f"{n:03d}-{m:03d}")
        killed = killed_at(n, exchange, folder)
        again = killed_at(m, access, folder)
        killed_at(0, access, folder)
print(json.dumps({"points": n}), flush=True)
"""

_COUNT = """
import json, sys
import duckdb

for path in json.loads(sys.stdin.read()):
    connection = duckdb.connect(path, read_only=True)
    print(connection.execute("SELECT count(*), count(*) FILTER (id < 0) FROM customers").fetchone())
    connection.close()
"""


@dataclass(frozen=True)
class Templates:
    """Folders with a replica and a new file to replace it, and what either side consists of."""

    home: Path
    old: bytes
    wal: bytes
    new: bytes

    def folder(self, *, wal: bool, missing: bool) -> Path:
        name = f"{'wal' if wal else 'plain'}-{'missing' if missing else 'there'}"
        folder = self.home / name
        if not folder.exists():
            folder.mkdir()
            (folder / (NAME + NEW_SUFFIX)).write_bytes(self.new)
            if not missing:
                (folder / NAME).write_bytes(self.old)
            if wal:
                (folder / f"{NAME}.wal").write_bytes(self.wal)
        return folder


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, make_replica: Callable[..., Path]) -> Templates:
    """Storage v1.0, where DuckDB replays a foreign log without a word."""
    home = tmp_path_factory.mktemp("exchange")
    old = make_replica(home / "made" / "old.db", rows=20, seed=1, storage="v1.0.0", wal=True)
    new = make_replica(home / "made" / "new.db", rows=30, seed=2, storage="v1.0.0")
    return Templates(home, old.read_bytes(), old.with_name("old.db.wal").read_bytes(), new.read_bytes())


@pytest.fixture(scope="module")
def small_templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """The exchange does not look into the files; small ones allow for hundreds of runs."""
    return Templates(tmp_path_factory.mktemp("small"), b"old replica", b"old log", b"new replica")


def crash_everywhere(template: Path, out: Path, *, keep_as: str | None, recovery_too: bool = False) -> list[Path]:
    """One folder per crash, as the killed processes left it; the last ones come from a run that was not killed."""
    out.mkdir()
    plan = json.dumps({"keep_as": keep_as, "recovery_too": recovery_too})
    command = [sys.executable, "-c", _HARNESS, str(template), str(out), plan]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *errors, summary = done.stdout.splitlines()
    assert errors == []
    # Journal, link, rename, removal: an exchange of fewer steps would not be the one that is meant.
    assert json.loads(summary)["points"] > 12
    return sorted(out.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def sides(templates: Templates, *, wal: bool, missing: bool, keep_as: str | None) -> dict[str, dict[str, bytes]]:
    """What a folder may hold after recovery: all of the old side, or all of the new one."""
    old: dict[str, bytes] = {} if missing else {NAME: templates.old}
    new = {NAME: templates.new}
    if wal:
        old[f"{NAME}.wal"] = templates.wal
    if keep_as:
        new |= {name.replace(NAME, keep_as): content for name, content in old.items()}
    return {"old": old, "new": new}


@pytest.mark.parametrize("keep_as", [None, KEPT], ids=["delete", "keep"])
@pytest.mark.parametrize("missing", [False, True], ids=["replica", "no-replica"])
@pytest.mark.parametrize("wal", [True, False], ids=["wal", "no-wal"])
def test_killed_anywhere_the_next_access_finds_all_of_the_old_or_all_of_the_new(
    templates: Templates, tmp_path: Path, *, wal: bool, missing: bool, keep_as: str | None
):
    folders = crash_everywhere(templates.folder(wal=wal, missing=missing), tmp_path / "out", keep_as=keep_as)
    allowed = sides(templates, wal=wal, missing=missing, keep_as=keep_as)
    found = []
    for folder in folders:
        with replica_access(folder / NAME, operation="test"):
            left = contents(folder)
        side = next((side for side, expected in allowed.items() if left == expected), None)
        # An exchange that was killed before its journal existed has left the download where it was.
        assert side is not None, f"{folder.name}: {sorted(left)}"
        found.append(side)
    assert found == sorted(found, reverse=True)  # one step decides: never back to the old side after the new one
    assert set(found) == {"old", "new"}

    # Folders of one side hold the same bytes: DuckDB reads one of each.
    there = {side: folder / NAME for folder, side in zip(folders, found, strict=True) if (folder / NAME).exists()}
    command, files = [sys.executable, "-c", _COUNT], json.dumps([str(path) for path in there.values()])
    done = subprocess.run(command, input=files, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    expected = {"old": "(30, 10)" if wal else "(20, 0)", "new": "(30, 0)"}
    assert set(there) == ({"new"} if missing else {"old", "new"})
    assert done.stdout.splitlines() == [expected[side] for side in there]


@pytest.mark.slow
# To delete the old file takes the steps that to keep it takes, and more.
@pytest.mark.parametrize("keep_as", [None, pytest.param(KEPT, marks=pytest.mark.full)], ids=["delete", "keep"])
def test_recovery_may_be_killed_anywhere_too(small_templates: Templates, tmp_path: Path, keep_as: str | None):
    template = small_templates.folder(wal=True, missing=False)
    folders = crash_everywhere(template, tmp_path / "out", keep_as=keep_as, recovery_too=True)
    allowed = sides(small_templates, wal=True, missing=False, keep_as=keep_as)
    found = set()
    for folder in folders:
        left = contents(folder)
        assert left in allowed.values(), f"{folder.name}: {sorted(left)}"
        found |= {side for side, expected in allowed.items() if left == expected}
    assert found == {"old", "new"}


def test_recovery_of_nothing_changes_nothing(small_templates: Templates, tmp_path: Path):
    folder = Path(shutil.copytree(small_templates.folder(wal=True, missing=False), tmp_path / "x"))
    (folder / (NAME + NEW_SUFFIX)).unlink()
    before = contents(folder)
    assert recover(folder / NAME) is None
    assert contents(folder) == before


@pytest.mark.slow
def test_a_download_under_way_is_not_taken_for_an_abandoned_one(
    small_templates: Templates, tmp_path: Path, start_child: Callable[..., Any]
):
    folder = Path(shutil.copytree(small_templates.folder(wal=False, missing=False), tmp_path / "x"))
    child = start_child(
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('locked'); sys.stdin.read()",
        folder / (NAME + NEW_SUFFIX),
    )
    assert child.line() == "locked"
    assert recover(folder / NAME) is None
    assert (folder / (NAME + NEW_SUFFIX)).exists()
    child.end()
    assert recover(folder / NAME) is not None
    assert not (folder / (NAME + NEW_SUFFIX)).exists()


@pytest.mark.parametrize("keep_as", [None, KEPT], ids=["delete", "keep"])
def test_every_kind_of_log_goes_with_the_old_file(tmp_path: Path, keep_as: str | None):
    (tmp_path / NAME).write_bytes(b"old")
    (tmp_path / (NAME + NEW_SUFFIX)).write_bytes(b"new")
    for suffix in WAL_SUFFIXES:
        (tmp_path / (NAME + suffix)).write_bytes(suffix.encode())
    kept = replace_replica(tmp_path / (NAME + NEW_SUFFIX), tmp_path / NAME, keep_as=keep_as)
    expected = {NAME: b"new"}
    if keep_as:
        expected |= {keep_as: b"old"} | {keep_as + suffix: suffix.encode() for suffix in WAL_SUFFIXES}
    assert contents(tmp_path) == expected
    assert kept == (tmp_path / keep_as if keep_as else None)


def test_a_link_and_its_target_in_one_folder_keep_their_logs_apart(tmp_path: Path):
    """DuckDB's versions differ in where the log of a link lies, so there may be two."""
    link = tmp_path / "link.db"
    link.symlink_to(NAME)
    (tmp_path / NAME).write_bytes(b"old")
    (tmp_path / f"{NAME}.wal").write_bytes(b"log of the target")
    (tmp_path / "link.db.wal").write_bytes(b"log of the link")
    (tmp_path / (NAME + NEW_SUFFIX)).write_bytes(b"new")
    replace_replica(tmp_path / (NAME + NEW_SUFFIX), link, keep_as=KEPT)
    left = contents(tmp_path)
    assert left.pop(NAME) == left.pop("link.db") == b"new"
    assert left.pop(KEPT) == b"old"
    assert left.pop(f"{KEPT}.wal") == b"log of the target"
    ((name, content),) = left.items()
    assert content == b"log of the link"
    assert name not in {"link.db.wal", f"{NAME}.wal"}
    assert link.is_symlink()


def test_a_log_is_found_once_where_the_folder_is_reached_by_a_link(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for name, content in {NAME: b"old", f"{NAME}.wal": b"log", NAME + NEW_SUFFIX: b"new"}.items():
        (folder / name).write_bytes(content)
    replace_replica(folder / (NAME + NEW_SUFFIX), tmp_path / "link" / NAME, keep_as=KEPT)
    assert contents(folder) == {NAME: b"new", KEPT: b"old", f"{KEPT}.wal": b"log"}


def test_a_name_to_keep_it_under_that_is_taken_is_refused(tmp_path: Path):
    for name in (NAME, NAME + NEW_SUFFIX, KEPT, f"{NAME}.wal"):
        (tmp_path / name).write_bytes(name.encode())
    before = contents(tmp_path)
    with pytest.raises(ReplicaError, match="already there"):
        replace_replica(tmp_path / (NAME + NEW_SUFFIX), tmp_path / NAME, keep_as=KEPT)
    assert contents(tmp_path) == before


def test_a_folder_in_the_place_of_a_log_is_refused_before_anything_moves(tmp_path: Path):
    """It could be moved aside and never be deleted: no later access would get past it."""
    for name in (NAME, NAME + NEW_SUFFIX):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / f"{NAME}.wal").mkdir()
    with pytest.raises(ReplicaError, match="a folder stands in the place"):
        replace_replica(tmp_path / (NAME + NEW_SUFFIX), tmp_path / NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, NAME + NEW_SUFFIX, f"{NAME}.wal"]
    assert (tmp_path / NAME).read_bytes() == NAME.encode()


def test_an_exchange_that_fails_half_way_is_undone_at_once(tmp_path: Path):
    """No user has to wait for the next restore to get the log back."""
    name = "r" * 222  # as long as allowed: the old file's name aside just fits, that of its log does not
    keep_as = name + ".old-2025-03-01T14-32-11-482Z"
    for each in (name, f"{name}.wal", f"{name}{NEW_SUFFIX}", f"{name}.wal.recovery"):
        (tmp_path / each).write_bytes(each.encode())
    before = contents(tmp_path)
    with pytest.raises(OSError, match="name too long"):
        replace_replica(tmp_path / f"{name}{NEW_SUFFIX}", tmp_path / name, keep_as=keep_as)
    after = contents(tmp_path)
    after.setdefault(f"{name}{NEW_SUFFIX}", before[f"{name}{NEW_SUFFIX}"])  # the download may be gone, it failed
    assert after == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"journal"', '{"wals": 1}', '{"wals": [], "colour": "red"}'])
def test_a_journal_that_can_not_be_read_stops_everything_with_a_clear_error(tmp_path: Path, text: str):
    (tmp_path / NAME).write_bytes(b"old")
    (tmp_path / (NAME + JOURNAL_SUFFIX)).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(StateFileError, match="journal can't be obeyed"):
        recover(tmp_path / NAME)
    assert contents(tmp_path) == before


# ---- a program writes between the crash and the recovery ----------------------------------------------------


def interrupted(folder: Path, *, missing: bool = False) -> None:
    """As a process leaves it that is killed right before the new file gets the name."""
    old = folder / NAME
    identity = None
    if not missing:
        stat = old.stat()
        identity = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        os.link(old, folder / (NAME + OLD_SUFFIX))
    wal, aside = folder / f"{NAME}.wal", folder / f"{NAME}{OLD_SUFFIX}.wal"
    wal.rename(aside)
    journal = {
        "new": NAME + NEW_SUFFIX,
        "new_inode": (folder / (NAME + NEW_SUFFIX)).stat().st_ino,
        "aside": NAME + OLD_SUFFIX,
        "keep": False,
        "old_identity": identity,
        "wals": [[str(wal), str(aside)]],
        "format": 1,
    }
    (folder / (NAME + JOURNAL_SUFFIX)).write_text(json.dumps(journal))


def test_the_crash_made_by_hand_is_one_that_is_undone(small_templates: Templates, tmp_path: Path):
    folder = Path(shutil.copytree(small_templates.folder(wal=True, missing=False), tmp_path / "x"))
    before = contents(folder)
    interrupted(folder)
    assert recover(folder / NAME) is not None
    del before[NAME + NEW_SUFFIX]
    assert contents(folder) == before


@pytest.mark.parametrize(
    "written",
    [{NAME: b"written since"}, {f"{NAME}.wal": b"a newer log"}],
    ids=["the file", "a new log"],
)
def test_a_log_never_comes_back_over_what_was_written_since(
    small_templates: Templates, tmp_path: Path, written: dict[str, bytes]
):
    folder = Path(shutil.copytree(small_templates.folder(wal=True, missing=False), tmp_path / "x"))
    interrupted(folder)
    for name, content in written.items():
        (folder / name).write_bytes(content)
    before = contents(folder)
    with pytest.raises(DucklingError, match="was written after a restore was interrupted") as caught:
        recover(folder / NAME)
    assert f"{NAME}{OLD_SUFFIX}.wal" in str(caught.value)
    assert contents(folder) == before


def test_a_log_does_not_come_back_under_a_writer_that_never_saw_it(
    templates: Templates, tmp_path: Path, start_child: Callable[..., Any]
):
    folder = Path(shutil.copytree(templates.folder(wal=True, missing=False), tmp_path / "x"))
    interrupted(folder)
    before = contents(folder)
    writer = start_child(
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open'); sys.stdin.read(); c.close()", folder / NAME
    )
    assert writer.line() == "open"
    with pytest.raises(BusyError, match=f"PID {writer.pid}"):
        recover(folder / NAME)
    assert contents(folder) == before
    writer.end()
    assert recover(folder / NAME) is not None
    assert contents(folder) == {NAME: templates.old, f"{NAME}.wal": templates.wal}


def test_a_lone_log_never_comes_back_beside_a_file_made_since(small_templates: Templates, tmp_path: Path):
    folder = Path(shutil.copytree(small_templates.folder(wal=True, missing=True), tmp_path / "x"))
    interrupted(folder, missing=True)
    (folder / NAME).write_bytes(b"made since")
    before = contents(folder)
    with pytest.raises(DucklingError, match="was written after a restore was interrupted"):
        recover(folder / NAME)
    assert contents(folder) == before


def test_a_replica_written_since_is_no_obstacle_when_no_log_is_aside(small_templates: Templates, tmp_path: Path):
    folder = Path(shutil.copytree(small_templates.folder(wal=True, missing=False), tmp_path / "x"))
    interrupted(folder)
    (folder / f"{NAME}{OLD_SUFFIX}.wal").unlink()
    (folder / NAME).write_bytes(b"written since")
    assert recover(folder / NAME) is not None
    assert contents(folder) == {NAME: b"written since"}
