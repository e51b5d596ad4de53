"""A process that works with DuckDB: ``python -m duckling_provider.replica.duckdb_program``, started by `child_process`.

DuckDB's lock on a file belongs to the process: when any other descriptor of that file is closed there, the lock is
gone. A process that reads replicas by hand must therefore never open one in DuckDB, and has this one do it.

Standard input: a job a line, as JSON: MODULE, whose ``ACTIONS`` has a function for ACTION, PATH, and a folder for
DuckDB's temporary files and for the result, `child_process.RESULT`. Its end means that the parent is gone: this program
removes the folder and stops at once. Standard output: a line for each job, ``{"kind": "ok"}`` or ``{"kind": …,
"message": …}`` with a kind of `KINDS`. Without further work for `PATIENCE` seconds it ends with code 0.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeAlias

from duckling_provider.replica.child_process import RESULT, is_lock_conflict
from duckling_provider.replica.reading import Rows, count_rows, read_rows

# The engine alone: the package around it, which builds queries in Python, takes twice as long to import, and each
# command that looks at a replica would wait for it.
try:
    import _duckdb as duckdb
except ImportError:
    import duckdb  # type: ignore[no-redef]

#: ``busy``: another process has it open. ``damaged``: DuckDB can't make sense of the bytes. ``unsupported``: this
#: DuckDB can't open it, another may. ``failed``: the machine's fault (permissions, memory, disk).
KINDS = ("ok", "busy", "damaged", "unsupported", "failed")

#: A host has better use for the memory of a program that waits for long.
PATIENCE = 30.0
_LONGEST_MESSAGE = 1000
#: Module, action, path and folder.
Job: TypeAlias = tuple[str, str, str, str]

# DuckDB raises one class for many causes (mostly IOException or plain Error), so that only the text tells them apart.
_UNSUPPORTED = (
    "we can only read",
    "storage version greater",
    "newer version of duckdb",
    "without a key",
    "required extension",
    "not loaded",
    "missing extension",
)
_FAILED = ("permission denied", "read-only file system", "no space left", "disk quota", "too many open files")


def _kind(error: Exception) -> str:
    if is_lock_conflict(error):
        return "busy"
    text = str(error).lower()
    if not isinstance(error, duckdb.Error) or isinstance(error, duckdb.OutOfMemoryException):
        return "failed"
    if any(words in text for words in _FAILED):
        return "failed"
    # A query of ours that this DuckDB does not understand says nothing about the data.
    if isinstance(error, (duckdb.BinderException, duckdb.ParserException, duckdb.NotSupportedError)):
        return "unsupported"
    return "unsupported" if any(words in text for words in _UNSUPPORTED) else "damaged"


#: For looking, not for working: a scan streams, and the host has other work. A checkpoint keeps DuckDB's defaults,
#: since replaying a large WAL may need what the writer had.
READER = {"access_mode": "READ_ONLY", "memory_limit": "1GiB", "threads": str(min(4, os.cpu_count() or 1))}


def _config(temp: str, **more: str) -> dict[str, str | bool | int | float | list[str]]:
    # Nothing may come over the network just because a file asks for it, and no `.tmp` folder appear beside the replica.
    return {"temp_directory": temp, "autoinstall_known_extensions": "false", **more}


def checkpoint(path: str, temp: str) -> None:
    """Fold the WAL in. STORAGE_VERSION is never passed: for an existing file it would be an upgrade for ever."""
    if not Path(path).is_file():
        # A read-write open would make an empty database here and delete the WAL of the missing one.
        raise FileNotFoundError(f"{path} does not exist")
    with duckdb.connect(path, config=_config(temp)) as connection:
        connection.execute("CHECKPOINT")


def open_only(path: str, temp: str) -> None:
    """Open read-only: header, catalog and free list are read."""
    duckdb.connect(path, config=_config(temp, **READER)).close()


def scan(path: str, temp: str) -> None:
    """Read every stored column of every table."""
    with duckdb.connect(path, config=_config(temp, **READER)) as connection:
        read_rows(connection)


def count(path: str, temp: str) -> Rows:
    """How many rows each table has."""
    with duckdb.connect(path, config=_config(temp, **READER)) as connection:
        return count_rows(connection)


ACTIONS: dict[str, Callable[[str, str], Any]] = {
    "checkpoint": checkpoint,
    "open": open_only,
    "scan": scan,
    "count": count,
}


def _receive(jobs: SimpleQueue[Job]) -> NoReturn:
    folder = None
    # Unbuffered: a thread inside a buffered read would make the interpreter's normal end fail.
    with open(0, "rb", buffering=0, closefd=False) as lines:
        while line := lines.readline():
            module, action, path, folder = json.loads(line)
            jobs.put((module, action, path, folder))
    # Killed in the middle of a checkpoint, DuckDB leaves the old state and the WAL; nothing needs to be waited for.
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _answer(job: Job) -> dict[str, str]:
    module, action, path, folder = job
    try:
        result = importlib.import_module(module).ACTIONS[action](path, folder)
        if result is not None:
            Path(folder, RESULT).write_text(json.dumps(result), encoding="utf-8")
    except Exception as error:
        return {"kind": _kind(error), "message": str(error)[:_LONGEST_MESSAGE]}
    return {"kind": "ok"}


def main() -> None:
    """Do jobs until there are no more."""
    # What a library prints is no answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    # Started ahead, it gets its first job when a file has been copied or received.
    patience = None
    while True:
        try:
            job = jobs.get(timeout=patience)
        except Empty:
            os._exit(0)
        os.write(answers, json.dumps(_answer(job)).encode() + b"\n")
        patience = PATIENCE


if __name__ == "__main__":
    # That of the module which jobs name: `-m` makes another one of it.
    importlib.import_module("duckling_provider.replica.duckdb_program").main()
