"""Has `duckdb_program` work with DuckDB, and tells what came of it.

See there for why DuckDB needs a process to itself. Its start takes a tenth of a second, half of it for importing
DuckDB. So one that has done its job waits for the next for a while, and a snapshot needs one start for the checkpoint,
the counting and what follows.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckling_provider
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DamagedError, ReplicaError
from duckling_provider.base.host_load import counted_programs
from duckling_provider.base.ownership import acting_user

_PROGRAM = "duckling_provider.replica.duckdb_program"
#: Files in the child's folder: what it is to do in detail, and what came of it. Both JSON.
JOB, RESULT = "job.json", "result.json"
#: Seconds between two looks at the child and at the caller's wishes.
_POLL = 0.05
#: How a program ends that was led astray by what it read.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def is_lock_conflict(error: BaseException) -> bool:
    """Whether DuckDB could not open a file because another process has it open.

    Only the message says so: DuckDB raises the same class for many causes.
    """
    return "could not set lock" in str(error).lower()


def lock_holder(error: BaseException) -> str:
    """Who has the file open, in the words of DuckDB's message: a program and its process id."""
    return str(error).splitlines()[0].partition("held in ")[2].partition(". ")[0] or "another process"


@dataclass(frozen=True)
class Answer:
    """:param kind: one of `duckdb_program.KINDS`, or ``"crashed"``.
    :param message: DuckDB's own words; empty when all is well.
    :param result: what the program found, as JSON has it.
    """

    kind: str
    message: str = ""
    result: Any = None


def run_duckdb(action: str, path: Path, control: Control, *, module: str = _PROGRAM, job: Any = None) -> Answer:
    """Do `action` on `path` in a child process.

    :param module: of ours, with the action in its ``ACTIONS``, see `duckdb_program`.
    :param job: what the action finds as JSON in the file `JOB` of its folder.

    The child never works on after this call: it is killed when the call ends early for whatever reason, and stops by
    itself when this process dies. One that found nothing wrong may serve the next call; what met a damaged file is
    trusted with no other. Its temporary files go to a folder that is removed.

    :raises CancelledError: `control` said so.
    """
    with tempfile.TemporaryDirectory(prefix="duckling-", ignore_cleanup_errors=True) as temp:
        if job is not None:
            Path(temp, JOB).write_text(json.dumps(job), encoding="utf-8")
        order = [module, action, str(path.absolute()), temp]
        answer = None
        while answer is None:
            child = _taken()
            try:
                answer = child.answer(order, control)
            except BaseException:
                child.end()
                raise
            if answer is not None and answer.kind in ("ok", "busy"):
                _keep(child)
            else:
                child.end()
        return answer


def warm_up() -> None:
    """Start a child that will soon be wanted, unless one waits already; returns before it is ready."""
    _keep(_taken())


def end_idle() -> None:
    """End the child that waits for its next job, if there is one."""
    global _idle
    with _lock:
        child, _idle = _idle, None
    if child is not None:
        child.end()


class _Child:
    """`duckdb_program`, which does one job after another. It belongs to one thread at a time."""

    def __init__(self) -> None:
        self.fit = _fit()
        # Without a name, so that nothing is left where this process is killed.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        user, group = acting_user() or (None, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd="/",  # `-m` would import a duckdb.py from wherever we stand
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us to handle
            user=user,
            group=group,
        )
        counted_programs.add(self._process.pid)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, order: list[str], control: Control) -> Answer | None:
        """What came of a job; None where the child had left for lack of work before it got it."""
        if self._process.stdin is None or self._process.stdout is None:
            return None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        ready = select.poll()
        ready.register(self._process.stdout, select.POLLIN)
        control.check()
        while not ready.poll(_POLL * 1000):
            control.check()
        line = self._process.stdout.readline()
        with contextlib.suppress(ValueError, KeyError, TypeError):
            answer = json.loads(line)
            result = Path(order[-1], RESULT)
            found = (
                json.loads(result.read_text(encoding="utf-8")) if answer["kind"] == "ok" and result.exists() else None
            )
            return Answer(answer["kind"], answer.get("message", ""), found)
        return self._death()

    def _death(self) -> Answer | None:
        code = self._process.wait()
        if code == 0:
            return None
        if code < 0 and -code in _CRASHES:
            return Answer("crashed", f"DuckDB crashed ({signal.Signals(-code).name})")
        if code < 0:
            return Answer("failed", f"DuckDB's process was killed (signal {-code}), perhaps for lack of memory")
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return Answer("failed", lines[-1] if lines else f"DuckDB's process ended with code {code}")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        counted_programs.discard(self._process.pid)
        self._close()

    def forget(self) -> None:
        """In a fork: it is another process's child."""
        self._process.returncode = 0  # or this process would complain of not having waited for it
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


#: The child that waits for its next job.
_idle: _Child | None = None
_lock = threading.Lock()
atexit.register(end_idle)


def _fit() -> tuple[object, ...]:
    """What a child has from the moment of its start; one that has other things is of no use."""
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    return sys.executable, acting_user(), priority, os.environ.get("PYTHONPATH")


def _taken() -> _Child:
    global _idle
    with _lock:
        child, _idle = _idle, None
    if child is not None and child.is_alive and child.fit == _fit():
        return child
    if child is not None:
        child.end()
    return _Child()


def _keep(child: _Child) -> None:
    global _idle
    with _lock:
        other, _idle = _idle, child
    if other is not None:
        other.end()


def _forget_parents() -> None:
    # A forked process must not keep its parent's child alive, nor talk to it.
    global _idle, _lock
    child, _idle, _lock = _idle, None, threading.Lock()
    counted_programs.clear()
    if child is not None:
        child.forget()


os.register_at_fork(after_in_child=_forget_parents)


def _environment() -> dict[str, str]:
    root = str(Path(duckling_provider.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def raise_for(answer: Answer, path: Path, operation: str) -> None:
    """Nothing when all is well.

    :raises DamagedError: DuckDB could not make sense of the file, or crashed over it.
    :raises ReplicaError: it could not be tried; a retry may help unless another DuckDB is needed.
    """
    if answer.kind == "ok":
        return
    message = answer.message.strip().splitlines()[0].rstrip(".") if answer.message.strip() else "no reason given"
    if answer.kind in ("damaged", "crashed"):
        raise DamagedError(message, subject=str(path), operation=operation)
    if answer.kind == "unsupported":
        raise ReplicaError(
            message,
            subject=str(path),
            operation=operation,
            hint="This DuckDB can't read it; a newer one, or one with the same extensions as the writer's, may.",
        )
    raise ReplicaError(message, subject=str(path), operation=operation, retryable=True)
