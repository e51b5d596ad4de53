"""Runs `checkpoint` as a program of its own and tells what came of it.

See there for why DuckDB needs a process to itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckling_provider
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DamagedError, ReplicaError
from duckling_provider.base.ownership import acting_user

_PROGRAM = "duckling_provider.replica.checkpoint"
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
    """:param kind: one of `checkpoint.KINDS`, or ``"crashed"``.
    :param message: DuckDB's own words; empty when all is well.
    :param result: what the program found, as JSON has it.
    """

    kind: str
    message: str = ""
    result: Any = None


def run_duckdb(action: str, path: Path, control: Control, *, program: str = _PROGRAM, job: Any = None) -> Answer:
    """Do `action` of `checkpoint.ACTIONS` on `path` in a child process.

    :param program: another module of ours that takes the same arguments and answers alike, see `checkpoint.serve`.
    :param job: what that program finds as JSON in the file `JOB` of its folder.

    The child never outlives this call: it is killed when the call ends early for whatever reason, and stops by itself
    when this process dies. Its temporary files go to a folder that is removed.

    :raises CancelledError: `control` said so.
    """
    with tempfile.TemporaryDirectory(prefix="duckling-", ignore_cleanup_errors=True) as temp:
        complaints = Path(temp, "stderr")
        user, group = acting_user() or (None, None)
        if job is not None:
            Path(temp, JOB).write_text(json.dumps(job), encoding="utf-8")
        with complaints.open("wb") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", program, action, str(path.absolute()), temp],
                stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd="/",  # `-m` would import a duckdb.py from wherever we stand
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us to handle
                user=user,
                group=group,
            )
        with _ended(child):
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL)
                    break
                control.check()
            # One short line, which fits into the pipe's buffer: the child never waited for us to read it.
            output = child.stdout.read() if child.stdout else b""
        return _answer(output, child.returncode, complaints, Path(temp, RESULT))


def _environment() -> dict[str, str]:
    root = str(Path(duckling_provider.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _answer(output: bytes, code: int, complaints: Path, result: Path) -> Answer:
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        answer = json.loads(output.splitlines()[-1])
        found = json.loads(result.read_text(encoding="utf-8")) if answer["kind"] == "ok" and result.exists() else None
        return Answer(answer["kind"], answer.get("message", ""), found)
    if code < 0 and -code in _CRASHES:
        return Answer("crashed", f"DuckDB crashed ({signal.Signals(-code).name})")
    if code < 0:
        return Answer("failed", f"DuckDB's process was killed (signal {-code}), perhaps for lack of memory")
    lines = complaints.read_text(errors="replace").strip().splitlines()
    return Answer("failed", lines[-1] if lines else f"DuckDB's process ended with code {code}")


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
