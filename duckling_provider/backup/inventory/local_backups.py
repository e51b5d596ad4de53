"""The folder of local backups, read like a store, so that a local backup is verified and restored by the same code as
one in S3.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.metadata import describe
from duckling_provider.backup.inventory.names import PIN_SUFFIX, STATE_SUFFIX, ListedBackup, parse_name
from duckling_provider.backup.inventory.sidecar import Snapshot, companions, find_snapshot, sidecar_of
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import BusyError, FileSystemError, NotFoundError
from duckling_provider.base.state_files import read_state
from duckling_provider.config.databases import Database
from duckling_provider.stores.store import BackupSource, RangeStream, Store, StoredObject


def listed_here(database: Database) -> list[ListedBackup]:
    """The local backups, newest first, for those who only show them; on another machine than theirs there are none."""
    return list_backups(LocalBackups(database)) if database.is_here else []


def backups_of(database: Database, store: Store | None) -> BackupSource:
    """Where the backups of a database are that are verified, restored and deleted: its store, where it has one, else
    the folder of local backups.
    """
    return LocalBackups(database) if store is None else store


def _backup_of(name: str) -> str | None:
    """The backup that a file of that name is, or goes with; None for a file of ours that is neither, and for others."""
    for suffix in ("", STATE_SUFFIX, PIN_SUFFIX):
        backup = name.removesuffix(suffix)
        if backup + suffix == name and parse_name(backup) is not None:
            return backup
    return None


class LocalBackups:
    """The complete local backups of one database; keys are file names, and the prefix is empty.

    A `stores.store.BackupSource`; `snapshot.take_snapshot` makes them.
    """

    prefix = ""
    mode = "none"
    #: A local backup is proven while it is made.
    presumed: Final = "verified"

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def url(self) -> str:
        return f"{self._database.backup_path}/"

    def _snapshot(self, key: str) -> Snapshot:
        with self._errors():
            return find_snapshot(self._database, key)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._database.backup_path, subject=self._database.id)

    def under(self, control: Control) -> LocalBackups:
        return self

    def afresh(self) -> LocalBackups:
        return self

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> RangeStream:
        # A reader's buffering would read ahead of what the caller asks for; ranges are read once and whole.
        path = self._snapshot(key).path
        with self._errors():
            file = path.open("rb", buffering=0)
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(start)
        return file

    def list(self, prefix: str) -> Iterator[StoredObject]:
        folder = self._database.backup_dir
        with self._errors():
            try:
                names = sorted(os.listdir(folder))
            except FileNotFoundError:
                return
        for name in names:
            path = folder / name
            backup = _backup_of(name)
            if name.startswith(prefix) and backup is not None and sidecar_of(folder / backup).exists():
                try:
                    with self._errors():
                        stat = path.stat()
                except FileSystemError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP):
                        continue  # deleted meanwhile, or a link that leads nowhere
                    raise
                yield StoredObject(name, stat.st_size, modified=datetime.fromtimestamp(stat.st_mtime, timezone.utc))

    def read_small(self, key: str, limit: int) -> bytes | None:
        with self._errors():
            try:
                return read_state(self._companion(key))[:limit]
            except FileNotFoundError:
                return None

    def write_small(self, key: str, data: bytes) -> None:
        with self._errors():
            write_durably(self._companion(key), data)

    def _companion(self, key: str) -> Path:
        """:raises NotFoundError: no file of that name goes with a backup."""
        backup = _backup_of(key)
        if backup in (None, key):
            raise NotFoundError("this is not the name of a backup's companion", subject=key)
        return self._database.backup_dir / key

    def delete(self, key: str) -> bool:
        """:raises BusyError: while it is being uploaded or restored."""
        backup = _backup_of(key)
        if backup is None:
            return False  # no file of another name is a backup's
        with self._errors():
            if backup == key:
                self._delete(self._database.backup_dir / key)
            else:
                (self._database.backup_dir / key).unlink(missing_ok=True)
        return False

    @staticmethod
    def _delete(path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1
        try:
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The copy goes first: what a crash leaves is a sidecar without one, which is no backup.
            path.unlink(missing_ok=True)
            for companion in companions(path):
                companion.unlink(missing_ok=True)
        except BlockingIOError:
            raise BusyError("it is being uploaded or restored", holder="another task", subject=str(path)) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def head(self, key: str) -> StoredObject:
        snapshot = self._snapshot(key)
        metadata = describe(
            mode="none",
            size=snapshot.size,
            database=snapshot.database,
            sha256=snapshot.sha256,
            origin=snapshot.origin,
        )
        return StoredObject(key, snapshot.size, metadata=metadata)
