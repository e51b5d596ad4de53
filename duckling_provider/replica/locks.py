"""Who may touch a replica: the lock for the moment, the hold for longer.

Three files beside the replica (beside its target, where it is a symbolic link) make up the protocol. A program that
writes the replica must honour the first two:

``<replica>.duckling-lock``
    An exclusive `flock` on it is held while a process reads or writes the replica: a snapshot, a replacement, one
    micro-batch of a sync. The kernel releases it when the process dies. Its content, JSON, says who holds it; it is
    for messages only.

``<replica>.duckling-hold``
    Present while a restore is under way, from "pause" to "resume", possibly over several processes. Only its
    owner may take the lock for work meanwhile. A hold names its owner and its end, and the process where it belongs to
    one: when that process is gone (other boot, or no process of that PID and start time on this host), or its time has
    passed, it no longer counts.

``<replica>.duckling-wanted``
    Who waits for the lock keeps a shared `flock` on it meanwhile. A sync, which would take the lock again at once for
    its next micro-batch, looks there in between and yields.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import BusyError, ReplicaError, StateFileError
from duckling_provider.base.file_lock import POLL_SECONDS, FileLock, holder_of_lock
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.replica.duckdb_file import writer_of

LOCK_SUFFIX = ".duckling-lock"
HOLD_SUFFIX = ".duckling-hold"
WANTED_SUFFIX = ".duckling-wanted"


def state_path(replica: Path, suffix: str) -> Path:
    """Where a state file of `replica` lies: beside the real file, so that links to one file share one lock."""
    real = Path(os.path.realpath(replica))
    return real.with_name(real.name + suffix)


@dataclass(frozen=True)
class ProcessId:
    """A process that can be told from a later one with the same PID: `started` is in clock ticks since boot.

    `namespace` is that of the PID: containers of one host may share its name and boot, and not its PIDs.
    """

    host: str
    boot_id: str
    pid: int
    started: int
    namespace: str = ""

    @classmethod
    def current(cls) -> ProcessId:
        return cls(socket.gethostname(), _boot_id(), os.getpid(), _start_ticks(os.getpid()) or 0, _pid_namespace())

    def is_gone(self) -> bool:
        """Whether the process is proven dead; one on another host or in another container never is."""
        if self.host != socket.gethostname():
            return False
        if self.boot_id != _boot_id():
            return True
        return self.namespace in {"", _pid_namespace()} and _start_ticks(self.pid) != self.started


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _start_ticks(pid: int) -> int | None:
    # Field 22 of proc(5) stat; the command in field 2 may hold spaces and parentheses, so count from its last ')'.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _now() -> datetime:
    return datetime.now(timezone.utc)


def is_wanted(replica: Path) -> bool:
    """Whether a process waits for the lock of `replica`; for its holder, which may give it up for a while."""
    try:
        fd = open_state(state_path(replica, WANTED_SUFFIX), os.O_RDWR)
    except (OSError, StateFileError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def replica_lock(
    replica: Path, *, operation: str, owner: str = "", wait: float = 60.0, control: Control | None = None
) -> FileLock:
    """The lock of `replica` itself. `access.replica_access` is what most callers want: it honours the hold as well."""
    return FileLock(
        state_path(replica, LOCK_SUFFIX),
        operation=operation,
        owner=owner,
        wait=wait,
        control=control,
        wanted=state_path(replica, WANTED_SUFFIX),
        name=Path(os.path.realpath(replica)).name,
    )


@dataclass(frozen=True)
class Hold:
    """A replica is reserved for `owner` until `expires`; `process` is set when the hold lives and dies with one
    process.
    """

    owner: str
    reason: str
    since: datetime
    expires: datetime
    process: ProcessId | None = None

    @property
    def is_stale(self) -> bool:
        return _now() >= self.expires or (self.process is not None and self.process.is_gone())

    def __str__(self) -> str:
        where = f", PID {self.process.pid} on {self.process.host}" if self.process else ""
        return f"{self.reason} ({self.owner}{where}) since {self.since.isoformat(timespec='seconds')}"

    def to_json(self) -> str:
        times = {"since": self.since.isoformat(), "expires": self.expires.isoformat()}
        return json.dumps(asdict(self) | times, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Hold:
        data = json.loads(text)
        process = ProcessId(**data["process"]) if data["process"] else None
        texts = [
            data["owner"],
            data["reason"],
            *([process.host, process.boot_id, process.namespace] if process else []),
        ]
        numbers = [process.pid, process.started] if process else []
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise ValueError("a field of another type")
        since, expires = datetime.fromisoformat(data["since"]), datetime.fromisoformat(data["expires"])
        if since.tzinfo is None or expires.tzinfo is None:
            raise ValueError("its times have no offset from UTC")
        return cls(data["owner"], data["reason"], since, expires, process)


def read_hold(replica: Path) -> Hold | None:
    """The hold on `replica`, stale or not; None when there is none."""
    path = state_path(replica, HOLD_SUFFIX)
    try:
        return Hold.from_json(read_state(path).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateFileError(
            f"the hold file can't be read: {error}",
            subject=str(path),
            hint="If no restore is under way, delete that file.",
        ) from error


def place_hold(
    replica: Path,
    *,
    owner: str,
    reason: str,
    seconds: float,
    wait: float = 60.0,
    process_bound: bool = False,
    control: Control | None = None,
) -> Hold:
    """Reserve `replica` for `owner`; once it returns, no program that honours the protocol is writing.

    Taking one's own hold again renews it. A stale hold is taken over.

    :param seconds: after this long the hold no longer counts, in case its owner never comes back.
    :param wait: seconds to wait for another holder.
    :param process_bound: the hold ends with the current process at the latest.
    :raises BusyError: when another process's hold or lock outlasts the wait.
    """
    process = ProcessId.current() if process_bound else None
    with unheld_lock(replica, operation="pause", owner=owner, wait=wait, control=control):
        now = _now()
        hold = Hold(owner, reason, now, now + timedelta(seconds=seconds), process)
        mine = read_hold(replica)
        if mine is not None:
            hold = replace(hold, since=mine.since)
        write_durably(state_path(replica, HOLD_SUFFIX), hold.to_json().encode())
    return hold


def release_hold(replica: Path, *, owner: str | None) -> bool:
    """Give up the hold of `owner`; False when there was none. ``owner=None`` releases anybody's: for a person who
    knows.

    :raises BusyError: when the hold has another owner.
    """
    hold = read_hold(replica)
    if hold is None:
        return False
    if owner is not None and hold.owner != owner:
        raise BusyError(f"held for {hold}", holder=str(hold), subject=str(replica))
    state_path(replica, HOLD_SUFFIX).unlink(missing_ok=True)
    return True


def holder_of(replica: Path) -> str | None:
    """Who keeps `replica` from being replaced now: a hold, the lock's holder, or who has it open for writing in DuckDB;
    None when no process does. Nothing is taken or written.
    """
    hold = read_hold(replica)
    if hold is not None and not hold.is_stale:
        return str(hold)
    if (holder := holder_of_lock(state_path(replica, LOCK_SUFFIX))) is not None:
        return holder
    # What is no DuckDB file, or not there, has no writer either.
    with contextlib.suppress(ReplicaError):
        return writer_of(replica)
    return None


@contextlib.contextmanager
def unheld_lock(
    replica: Path,
    *,
    operation: str,
    owner: str,
    wait: float,
    control: Control | None = None,
    on_stale: Callable[[Hold], None] | None = None,
) -> Iterator[None]:
    """The replica's lock, taken when no hold but `owner`'s own stands against it.

    :param on_stale: called with each stale hold that is cleared away.
    :raises BusyError: after `wait` seconds, naming the hold or the lock's holder.
    """
    control = control or Control()
    deadline = time.monotonic() + wait
    while True:
        remaining = max(0.0, deadline - time.monotonic())
        with replica_lock(replica, operation=operation, owner=owner, wait=remaining, control=control):
            hold = read_hold(replica)
            if hold is not None and hold.owner != owner and hold.is_stale:
                state_path(replica, HOLD_SUFFIX).unlink(missing_ok=True)
                if on_stale is not None:
                    on_stale(hold)
                hold = None
            if hold is None or hold.owner == owner:
                yield
                return
        if time.monotonic() >= deadline:
            raise BusyError(
                f"held for {hold}",
                holder=str(hold),
                subject=str(replica),
                hint=f"It ends by itself, at {hold.expires.isoformat(timespec='seconds')} at the latest; "
                "if its owner is gone for good: duckling release, with the database's id.",
            )
        control.wait_for(f"{replica} is held for {hold}", POLL_SECONDS)
