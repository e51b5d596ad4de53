"""The replica's file in DuckDB: opened for a sync, made durable, removed with its log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duckling_provider.base.errors import ReplicaError
from duckling_provider.replica.duckdb_file import open_error, wal_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: DuckDB's, for applying changes.
_MEMORY = "1GiB"


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[DuckDBPyConnection]:
    """The file at `path`; DuckDB makes it when it is to be written and there is none.

    :raises BusyError: another process has it open.
    :raises ReplicaError: DuckDB can't read it.
    """
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "autoinstall_known_extensions": "false",
    }
    try:
        connection = duckdb.connect(str(path), read_only=read_only, config=config)
    except duckdb.Error as error:
        raise open_error(path, error, operation="sync") from error
    with connection:
        connection.execute("SET enable_progress_bar = false")
        yield connection


def gone(replica: Path) -> ReplicaError:
    """The error for a replica that was there a moment ago, or that a link promises."""
    cause, hint = "it is gone", "Run the sync again."
    if replica.is_symlink():
        cause = f"it is a link to {replica.readlink()}, and nothing is there"
        hint = "Bring back what it leads to, a file system that is not mounted, maybe; or remove it: a sync makes anew."
    return ReplicaError(cause, subject=str(replica), operation="sync", hint=hint)


def sync_file(path: Path) -> None:
    """DuckDB has closed it, and its log is folded in; make that durable."""
    left = wal_files(path)
    if left:
        raise ReplicaError("DuckDB left a log behind", subject=str(left[0]), operation="full copy")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """The file and what DuckDB left beside it, as far as they are there."""
    for file in (path, *wal_files(path)):
        file.unlink(missing_ok=True)
