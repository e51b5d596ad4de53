"""What DuckDB itself does to a replica, as a program of its own: ``python -m duckling_provider.replica.checkpoint``.

DuckDB's lock on a file belongs to the process: when any other descriptor of that file is closed there, the lock is
gone. A process that reads replicas by hand must therefore never open one in DuckDB. `replica` starts this module in its
stead.

Arguments: ACTION (``checkpoint``, ``open`` or ``scan``), PATH, and a folder for DuckDB's temporary files. Standard
output: one line of JSON, ``{"kind": "ok"}`` or ``{"kind": …, "message": …}`` with a kind of `KINDS`. Standard input: a
pipe that the parent holds open; its end means that the parent is gone, and this program stops at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import duckdb

from duckling_provider.replica.child_process import is_lock_conflict

#: ``busy``: another process has it open. ``damaged``: DuckDB can't make sense of the bytes. ``unsupported``: this
#: DuckDB can't open it, another may. ``failed``: the machine's fault (permissions, memory, disk).
KINDS = ("ok", "busy", "damaged", "unsupported", "failed")

#: For looking, not for working: a scan streams, and the host has other work. A checkpoint keeps DuckDB's defaults,
#: since replaying a large WAL may need what the writer had.
_READER = {"access_mode": "READ_ONLY", "memory_limit": "1GiB", "threads": str(min(4, os.cpu_count() or 1))}
_COLUMNS_AT_A_TIME = 32
_LONGEST_MESSAGE = 1000

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
    duckdb.connect(path, config=_config(temp, **_READER)).close()


def scan(path: str, temp: str) -> None:
    """Read every stored column of every table; hashing is what makes DuckDB fetch the data and not just statistics."""
    with duckdb.connect(path, config=_config(temp, **_READER)) as connection:
        # Generated columns hold no data, and computing them may fail for reasons of their own. DuckDB 1.5 can't tell.
        known = {row[0] for row in connection.execute("DESCRIBE SELECT * FROM duckdb_columns()").fetchall()}
        stored = "NOT is_generated" if "is_generated" in known else "true"
        columns = connection.execute(
            "SELECT schema_name, table_name, column_name FROM duckdb_columns() "  # noqa: S608 - no input
            "JOIN (SELECT table_oid, schema_oid FROM duckdb_tables() WHERE database_name = current_database()) "
            "USING (table_oid, schema_oid) "
            f"WHERE database_name = current_database() AND NOT internal AND {stored} "
            "ORDER BY schema_name, table_name, column_index"
        ).fetchall()
        tables: dict[tuple[str, str], list[str]] = {}
        for schema, table, column in columns:
            tables.setdefault((schema, table), []).append(column)
        for (schema, table), names in tables.items():
            for start in range(0, len(names), _COLUMNS_AT_A_TIME):
                hashes = ", ".join(f"bit_xor(hash({_quoted(n)}))" for n in names[start : start + _COLUMNS_AT_A_TIME])
                connection.execute(f"SELECT {hashes} FROM {_quoted(schema)}.{_quoted(table)}").fetchall()  # noqa: S608


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


ACTIONS: dict[str, Callable[[str, str], None]] = {"checkpoint": checkpoint, "open": open_only, "scan": scan}


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


def _stop_with_parent(temp: str) -> NoReturn:
    # os.read, not sys.stdin: a thread inside a buffered read would make the interpreter's normal end fail.
    while os.read(0, 1):
        pass
    # Killed in the middle of a checkpoint, DuckDB leaves the old state and the WAL; nothing needs to be waited for.
    shutil.rmtree(temp, ignore_errors=True)
    os._exit(1)


def main(action: str, path: str, temp: str) -> None:
    """Do it and print the one line."""
    threading.Thread(target=_stop_with_parent, args=(temp,), daemon=True).start()
    try:
        ACTIONS[action](path, temp)
    except Exception as error:
        answer = {"kind": _kind(error), "message": str(error)[:_LONGEST_MESSAGE]}
    else:
        answer = {"kind": "ok"}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
