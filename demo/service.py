"""Services in the background that can be ended for certain, and only they: sessions of processes, noted in pid files.

A process group is not enough: Airflow gives every running task a group of its own. All of them stay in the session that
the service was started in, so the session is what is ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import DemoError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Process:
    pid: int
    group: int
    session: int
    started: int  #: clock ticks after the boot; with the PID it names one process for ever
    alive: bool  #: False for zombies


@dataclass(frozen=True)
class Service:
    """One service of a folder: ``<folder>/<name>.pid`` says which processes it is, ``<name>.log`` has its output.

    The service's working folder is `folder`: that is how its processes are told from those of a stranger who got the
    same number later.
    """

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run `command` to its end and return its exit status; all of it is ended when we are interrupted."""
        try:
            return self.start(command, environ).wait()
        finally:
            self.stop()

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start `command` in a session of its own; whatever is left of an earlier one is ended first."""
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output, undisturbed():
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # No process has waited for it, so even if it has ended, its number is still its own.
            note = {"pid": child.pid, "started": _process(child.pid).started, "boot": _boot()}
            self._pid_file.write_text(json.dumps(note), encoding="utf-8")
        return child

    def processes(self) -> list[int]:
        """The PIDs of all that is alive of the service."""
        return [process.pid for process in self._alive()]

    def running(self) -> bool:
        """Whether the process that was started is alive; its children may outlive it."""
        leader = self._noted()[0]
        return any(process.pid == leader for process in self._alive())

    def stop(self, *, patience: float = 15.0) -> bool:
        """End the service: SIGTERM to all of it, after `patience` seconds SIGKILL.

        :return: whether there was anything to end.
        :raises DemoError: when even that left something alive.
        """
        had = self._signal(signal.SIGTERM)
        if had and not self._ended(patience):
            self._signal(signal.SIGKILL)
            if not self._ended(10.0):
                raise DemoError(f"{self.name} does not end; its processes: {self.processes()}")
        self._pid_file.unlink(missing_ok=True)
        return had

    def _signal(self, number: signal.Signals) -> bool:
        alive = self._alive()
        for group in {process.group for process in alive}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        return bool(alive)

    def _ended(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while alive := self._alive():
            if time.monotonic() > deadline:
                return False
            # Looking among all processes takes a while: only when those that were found have ended.
            while any(map(_lives, alive)) and time.monotonic() <= deadline:
                time.sleep(0.05)
        return True

    def _noted(self) -> tuple[int, int]:
        """PID and start of the process that was started; (0, 0) when there is none of this boot."""
        try:
            note = json.loads(self._pid_file.read_text(encoding="utf-8"))
            pid, started, boot = int(note["pid"]), int(note["started"]), note["boot"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0
        return (pid, started) if boot == _boot() else (0, 0)

    def _alive(self) -> list[_Process]:
        leader, started = self._noted()
        if not leader:
            return []
        found = [process for process in _processes() if process.session == leader and process.started >= started]
        if any(process.pid == leader and process.started != started for process in found):
            return []  # another process has that number by now
        return [process for process in found if process.alive and self._works_here(process.pid)]

    def _works_here(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == self.folder.resolve()
        except OSError:
            return False


def stop_all(folder: Path) -> bool:
    """End every service that was started anywhere below `folder`; returns whether there was one."""
    found = [Service(path.stem, path.parent).stop() for path in sorted(folder.rglob("*.pid"))]
    return any(found)


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Keep a second one away from `folder` while the block runs; the system drops the lock of a process that dies.

    :raises DemoError: at once, when there is one.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # keys and passwords are in there
    with (folder / f"{what}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another `make {what}` is at work in {folder}") from None
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off signals until the block is done: a program that is told to stop must know what it has started.

    Handlers and not the signal mask, because the mask would be inherited by what is started.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def ignore_stop_signals() -> None:
    """For the last moments: impatience must not leave anything running."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _process(pid: int) -> _Process:
    """See proc(5) for the fields of ``stat``; they are counted from behind the name, which may hold anything."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return _Process(pid, int(fields[2]), int(fields[3]), int(fields[19]), alive=fields[0] not in "ZX")


def _lives(process: _Process) -> bool:
    try:
        now = _process(process.pid)
    except OSError:
        return False
    return now.alive and now.started == process.started


def _processes() -> Iterator[_Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # ended meanwhile
                yield _process(int(folder.name))
