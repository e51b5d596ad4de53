"""The path that a restore writes: whether a new file may have that name, and its name until it is proven."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import ReplicaError, RequestError
from duckling_provider.config.databases import Database
from duckling_provider.replica.duckdb_file import owner_of_wal, wal_files
from duckling_provider.replica.exchange import NEW_SUFFIX

#: Of a file, in bytes; NAME_MAX of Linux.
_LONGEST_NAME = 255


def new_beside(target: Path) -> Path:
    return target.with_name(target.name + NEW_SUFFIX)


def require_new_path(database: Database, to: Path) -> None:
    """:raises RequestError: a restore to elsewhere can't make a new file at `to`."""
    with disk_errors(to.parent, subject=database.id):
        _require_free(database, to)


def _require_free(database: Database, to: Path) -> None:
    _require_usable_name(to)
    if Path(os.path.realpath(to)) == Path(os.path.realpath(database.replica_path)):
        raise RequestError("this is the replica itself", subject=str(to), hint="To replace it, name no other path.")
    if to.exists() or to.is_symlink():
        raise RequestError(
            "there is a file of that name already", subject=str(to), hint="Name a path that does not exist."
        )
    try:
        logs = wal_files(to)
    except ReplicaError as error:
        raise RequestError(error.cause, subject=str(to), hint="Name another.") from None
    if logs:
        raise RequestError(
            f"a write-ahead log of another file lies there: {logs[0].name}", subject=str(to), hint="Move it away first."
        )
    if not to.parent.is_dir():
        raise RequestError("its folder does not exist", subject=str(to), hint=f"Create {to.parent} first.")


def _require_usable_name(to: Path) -> None:
    """Before all of it is downloaded: what DuckDB or the file system would not take then."""
    try:
        longest = len((to.name + NEW_SUFFIX).encode())
    except UnicodeEncodeError:
        raise RequestError(
            "DuckDB opens no file whose name is not UTF-8", subject=str(to), hint="Name another."
        ) from None
    if longest > _LONGEST_NAME:
        most = _LONGEST_NAME - len(NEW_SUFFIX)
        raise RequestError(f"its name is longer than {most} bytes", subject=to.name[:40] + "…", hint="Name another.")
    with contextlib.suppress(ValueError):
        owner = owner_of_wal(to)
        raise RequestError(
            f"DuckDB would take it for the write-ahead log of {owner.name}", subject=str(to), hint="Name another."
        )
