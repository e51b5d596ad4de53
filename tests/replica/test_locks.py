"""One process at a time works on a replica, the others learn which, and none waits for a dead one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import BusyError, CancelledError, DucklingError, ReplicaError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.replica.access import replica_access
from duckling_provider.replica.locks import (
    HOLD_SUFFIX,
    LOCK_SUFFIX,
    Hold,
    ProcessId,
    is_wanted,
    place_hold,
    read_hold,
    release_hold,
    replica_lock,
)

_LOCKER = """
import sys
from pathlib import Path
from duckling_provider.replica.locks import replica_lock

with replica_lock(Path(sys.argv[1]), operation="snapshot", owner="run 7", wait=0):
    print("locked", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""

_HOLDER = """
import sys
from pathlib import Path
from duckling_provider.replica.locks import place_hold

place_hold(Path(sys.argv[1]), owner=sys.argv[2], reason="restore", seconds=600, wait=0, process_bound=True)
print("held", flush=True)
sys.stdin.readline()
"""

_GONE = "import os; print(os.getpid())"


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    path = tmp_path / "replica.db"
    path.write_bytes(b"replica")
    return path


@pytest.fixture
def locker(replica: Path, start_child: Callable[..., Any]) -> Any:
    """A process that has the replica's lock until it is told to let go."""
    child = start_child(_LOCKER, replica)
    assert child.line() == "locked"
    return child


def dead_process() -> ProcessId:
    done = subprocess.run([sys.executable, "-c", _GONE], capture_output=True, text=True, timeout=60, check=True)
    return dataclasses.replace(ProcessId.current(), pid=int(done.stdout))


def write_hold(replica: Path, *, process: ProcessId | None, seconds: float = 600.0, owner: str = "run 7") -> Hold:
    now = datetime.now(timezone.utc)
    hold = Hold(owner, "restore", now, now + timedelta(seconds=seconds), process)
    replica.with_name(replica.name + HOLD_SUFFIX).write_text(hold.to_json())
    return hold


# ---- the lock ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_has_the_lock_is_named(replica: Path, locker: Any):
    with pytest.raises(BusyError) as caught, replica_lock(replica, operation="restore", wait=0):
        pass
    assert f"PID {locker.pid}, snapshot (run 7), since 20" in str(caught.value)
    assert f"PID {locker.pid}" in caught.value.holder
    assert caught.value.retryable
    since = re.search(r"since (\S+)", caught.value.holder)
    assert since is not None
    assert datetime.fromisoformat(since[1]) <= datetime.now(timezone.utc)


@pytest.mark.slow
def test_a_wait_ends_when_the_lock_is_released(replica: Path, locker: Any):
    waiting = threading.Event()

    class Watched(Control):
        def sleep(self, seconds: float) -> None:
            waiting.set()
            super().sleep(seconds)

    def let_go() -> None:
        waiting.wait(30)
        locker.tell()

    thread = threading.Thread(target=let_go)
    thread.start()
    with replica_lock(replica, operation="restore", wait=30, control=Watched()):
        assert locker.line() == "released"
    thread.join()
    assert waiting.is_set()


@pytest.mark.slow
def test_a_wait_can_be_cancelled_and_leaves_no_claim(replica: Path, locker: Any):
    control = Control()

    class Watched(Control):
        def sleep(self, seconds: float) -> None:
            self.cancel()
            super().sleep(seconds)

    control = Watched()
    with pytest.raises(CancelledError), replica_lock(replica, operation="restore", wait=600, control=control):
        pass
    locker.tell()
    assert locker.line() == "released"
    with replica_lock(replica, operation="restore", wait=0):
        pass


@pytest.mark.slow
def test_a_dead_process_has_no_lock(replica: Path, locker: Any):
    locker.kill()
    with replica_lock(replica, operation="restore", wait=0):
        pass


def test_a_released_lock_names_nobody_and_its_file_stays(replica: Path):
    with replica_lock(replica, operation="restore", wait=0) as lock:
        assert json.loads(lock.path.read_bytes())["pid"] == os.getpid()
    assert lock.path.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.usefixtures("locker")
def test_a_lock_without_a_readable_tag_is_a_lock(replica: Path):
    replica.with_name(replica.name + LOCK_SUFFIX).write_text("{")
    with pytest.raises(BusyError, match="held by another process"), replica_lock(replica, operation="x", wait=0):
        pass


def test_two_threads_of_one_process_exclude_each_other(replica: Path):
    with replica_lock(replica, operation="sync", wait=0):
        with pytest.raises(BusyError, match=f"PID {os.getpid()}, sync"), replica_lock(replica, operation="x", wait=0):
            pass


@pytest.mark.slow
def test_a_link_and_its_target_share_one_lock_and_one_hold(replica: Path, tmp_path: Path, locker: Any):
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(replica)
    with pytest.raises(BusyError, match=f"PID {locker.pid}"), replica_lock(link, operation="restore", wait=0):
        pass
    locker.tell()
    assert locker.line() == "released"
    place_hold(link, owner="me", reason="restore", seconds=60, wait=0)
    assert read_hold(replica) == read_hold(link) is not None
    assert os.listdir(link.parent) == ["link.db"]


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ReplicaError, match="lock file"), replica_lock(tmp_path / "no" / "r.db", operation="x", wait=0):
        pass


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from duckling_provider.replica.locks import FileLock

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for _ in range(2):  # the second time finds out whether the first one let go
    with FileLock(Path(sys.argv[1]), operation="cleanup", wait=0):
        pass
print("done")
"""


@pytest.mark.slow
def test_a_full_disk_prevents_no_lock(tmp_path: Path):
    """The tag in the file is for messages only, and making room may take the lock."""
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr


# ---- the hold ----------------------------------------------------------------------------------------------


def test_a_hold_keeps_all_but_its_owner_out(replica: Path):
    place_hold(replica, owner="restore run 3", reason="restore", seconds=600, wait=0)
    with pytest.raises(BusyError) as caught, replica_access(replica, operation="sync", owner="run 8", wait=0):
        pass
    assert "held for restore (restore run 3) since 20" in str(caught.value)
    with replica_access(replica, operation="restore", owner="restore run 3", wait=0):
        pass
    assert read_hold(replica) is not None


@pytest.mark.slow
def test_a_hold_waits_for_whoever_is_at_work(replica: Path, locker: Any):
    with pytest.raises(BusyError, match=f"PID {locker.pid}"):
        place_hold(replica, owner="me", reason="restore", seconds=600, wait=0)
    assert read_hold(replica) is None
    locker.tell()
    assert locker.line() == "released"
    place_hold(replica, owner="me", reason="restore", seconds=600, wait=0)
    assert read_hold(replica) is not None


def test_a_second_hold_is_refused_and_the_first_one_stays(replica: Path):
    first = place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)
    with pytest.raises(BusyError, match="run 1"):
        place_hold(replica, owner="run 2", reason="restore", seconds=600, wait=0)
    assert read_hold(replica) == first


def test_its_owner_renews_a_hold_without_losing_its_beginning(replica: Path):
    first = place_hold(replica, owner="run 1", reason="restore", seconds=60, wait=0)
    second = place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)
    assert second.since == first.since
    assert second.expires > first.expires
    assert read_hold(replica) == second


def test_only_its_owner_or_a_person_releases_a_hold(replica: Path):
    hold = place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)
    with pytest.raises(BusyError, match="run 1"):
        release_hold(replica, owner="run 2")
    assert read_hold(replica) == hold
    assert release_hold(replica, owner="run 1") is True
    assert release_hold(replica, owner="run 1") is False
    place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)
    assert release_hold(replica, owner=None) is True
    assert read_hold(replica) is None


@pytest.mark.slow
def test_the_hold_of_a_living_process_counts_and_ends_with_it(replica: Path, start_child: Callable[..., Any]):
    child = start_child(_HOLDER, replica, "run 1")
    assert child.line() == "held"
    with pytest.raises(BusyError, match=rf"run 1, PID {child.pid} on "):
        place_hold(replica, owner="run 2", reason="restore", seconds=600, wait=0)
    child.kill()
    assert place_hold(replica, owner="run 2", reason="restore", seconds=600, wait=0).owner == "run 2"


@pytest.mark.slow
def test_a_stale_hold_is_taken_over(replica: Path):
    here = ProcessId.current()
    stale = {
        "dead": (dead_process(), 600.0),
        "before the last boot": (dataclasses.replace(here, boot_id="00000000-0000-0000-0000-000000000000"), 600.0),
        "a later process of the same PID": (dataclasses.replace(here, started=here.started - 1), 600.0),
        "expired": (None, -1.0),
        "expired though alive": (here, -1.0),
        "expired on another host": (dataclasses.replace(here, host="elsewhere"), -1.0),
    }
    for why, (process, seconds) in stale.items():
        assert write_hold(replica, process=process, seconds=seconds).is_stale, why
        with replica_access(replica, operation="sync", owner="run 8", wait=0):
            assert read_hold(replica) is None, why


@pytest.mark.slow
def test_a_hold_that_may_be_alive_is_not_taken_over(replica: Path):
    here = ProcessId.current()
    alive = {
        "this process": here,
        "no process": None,
        "a process that can't be asked": dataclasses.replace(dead_process(), host="elsewhere"),
    }
    for why, process in alive.items():
        hold = write_hold(replica, process=process)
        assert not hold.is_stale, why
        with pytest.raises(BusyError), replica_access(replica, operation="sync", owner="run 8", wait=0):
            pass
        assert read_hold(replica) == hold, why


def test_a_wait_for_a_hold_ends_when_it_is_released(replica: Path):
    place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)

    class Releasing(Control):
        def sleep(self, seconds: float) -> None:
            release_hold(replica, owner="run 1")

    with replica_access(replica, operation="sync", owner="run 2", wait=60, control=Releasing()):
        assert read_hold(replica) is None


def test_a_wait_for_a_hold_can_be_cancelled(replica: Path):
    hold = place_hold(replica, owner="run 1", reason="restore", seconds=600, wait=0)

    class Cancelling(Control):
        def sleep(self, seconds: float) -> None:
            self.cancel()
            super().sleep(seconds)

    with (
        pytest.raises(CancelledError),
        replica_access(replica, operation="sync", owner="run 2", wait=600, control=Cancelling()),
    ):
        pass
    assert read_hold(replica) == hold
    with replica_lock(replica, operation="x", wait=0):  # not even the lock is left behind
        pass


def test_a_hold_survives_its_file(replica: Path):
    written = write_hold(replica, process=ProcessId.current())
    assert read_hold(replica) == written
    assert Hold.from_json(written.to_json()) == written


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"owner": "x"}', "null"])
def test_a_hold_that_can_not_be_read_lets_nobody_in(replica: Path, text: str):
    path = replica.with_name(replica.name + HOLD_SUFFIX)
    path.write_text(text)
    with (
        pytest.raises(DucklingError, match="hold file can't be read"),
        replica_access(replica, operation="sync", owner="run 2", wait=0),
    ):
        pass
    assert path.read_text() == text


def test_a_hold_whose_times_lack_an_offset_lets_nobody_in(replica: Path):
    """Each writer of the replica makes holds, other programs too."""
    hold = json.loads(write_hold(replica, process=None).to_json())
    hold["expires"] = "2999-01-01T00:00:00"
    replica.with_name(replica.name + HOLD_SUFFIX).write_text(json.dumps(hold))
    with pytest.raises(DucklingError), replica_access(replica, operation="sync", owner="run 2", wait=0):
        pass


# ---- writing state files -----------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    target = tmp_path / "state"
    target.mkdir()  # can't be replaced by a file
    with pytest.raises(OSError):
        write_durably(target, b"new")
    assert os.listdir(tmp_path) == ["state"]


def test_state_files_are_for_their_owner_only(tmp_path: Path):
    write_durably(tmp_path / "state", b"x")
    with FileLock(tmp_path / "lock", operation="x", wait=0):
        pass
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("state", "lock")} == {0o600}


def test_a_process_in_another_container_is_never_proven_dead():
    me = ProcessId.current()
    gone = dataclasses.replace(me, pid=2**22 + 1)

    assert gone.is_gone()
    assert not dataclasses.replace(gone, namespace="pid:[1]").is_gone()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_beside_a_replica_belongs_to_the_owner_of_the_folder(tmp_path):
    os.chown(tmp_path, 65534, 65534)
    replica = tmp_path / "replica.db"
    place_hold(replica, owner="run", reason="restore", seconds=60)

    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert {(file.stat().st_uid, file.stat().st_gid) for file in files} == {(65534, 65534)}


@pytest.mark.slow
def test_a_holder_learns_that_somebody_waits_and_that_nobody_does_any_more(replica: Path):
    assert not is_wanted(replica)
    with replica_lock(replica, operation="sync", wait=0):
        assert not is_wanted(replica)
        waiting = subprocess.Popen(
            [sys.executable, "-c", _LOCKER.replace("wait=0", "wait=60"), str(replica)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not is_wanted(replica) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_wanted(replica)
    # The one that waited has it now and wants nothing more.
    assert waiting.stdout.readline() == "locked\n"
    assert not is_wanted(replica)
    waiting.communicate("\n", timeout=30)


@pytest.mark.slow
def test_a_dead_waiter_wants_nothing(replica: Path):
    with replica_lock(replica, operation="sync", wait=0):
        waiting = subprocess.Popen([sys.executable, "-c", _LOCKER.replace("wait=0", "wait=60"), str(replica)])
        deadline = time.monotonic() + 30
        while not is_wanted(replica) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_wanted(replica)
        waiting.kill()
        waiting.wait()
        assert not is_wanted(replica)
