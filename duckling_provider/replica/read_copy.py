"""The copy of a replica for people who query: the newest state, in a file that no sync ever opens.

It shares the replica's blocks (a reflink), so that making it takes a moment and no space, and takes the place of the
one before by a rename: who has that open keeps it. Where blocks can't be shared there is no such copy: one that is
written in full would take the replica's space, and minutes after each sync.

The file is of this program alone: its mark, an extended attribute, names the database and the state of the replica
that it is. What has no mark is never replaced. The copy is for its owner and its group, which is that of its folder,
and nobody's to write.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.durable_files import partial_file, share_blocks, sync_folder
from duckling_provider.base.errors import BusyError, ConfigError, ReplicaError, RequestError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.config.databases import Database
from duckling_provider.replica.duckdb_file import wal_files, writer_of
from duckling_provider.replica.exchange import NEW_SUFFIX, identity
from duckling_provider.replica.quiet import quiet, require_unchanged

#: The attribute's value is JSON: ``{"database": id, "made": time, "replica": [inode, size, mtime in ns]}``.
MARK = "user.duckling.read-copy"
_MODE = 0o440
#: More than some file systems keep beside a file's other facts instead of in blocks.
_TRIED_BYTES = 64 << 10


@dataclass(frozen=True)
class ReadCopy:
    """:param made: when it was made.
    :param replica: which state of the replica it is, see `exchange.identity`.
    """

    path: Path
    made: datetime
    replica: tuple[int, int, int]

    def is_current(self, database: Database) -> bool:
        """Whether the replica has not been written since."""
        return identity(database.replica) == self.replica and not wal_files(database.replica)


def find_read_copy(database: Database) -> ReadCopy | None:
    """The copy that is there; None without one, or where the entry wants none.

    :raises ConfigError: what lies there is another file, which may not be replaced.
    :raises OSError: the system refuses to look.
    """
    path = database.read_copy
    if path is None:
        return None
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(database, f"{path} is {'a symbolic link' if path.is_symlink() else 'no regular file'}")
    try:
        data = json.loads(os.getxattr(path, MARK, follow_symlinks=False))
        owner, made, state = data["database"], parse_moment(data["made"]), data["replica"]
        copy = ReadCopy(path, made, (int(state[0]), int(state[1]), int(state[2])))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        owner = None
    except (ValueError, KeyError, TypeError, IndexError, RequestError):
        owner = None
    if owner != database.id:
        cause = f"the file {path} was not made by a sync"
        if isinstance(owner, str):
            cause = f'the file {path} is the copy for readers of "{owner}"'
        hint = "Move it away, or name another file: only copies that a sync has made are replaced."
        raise _refusal(database, cause, hint)
    return copy


def require_read_copy(database: Database) -> ReadCopy | None:
    """Try whether the copy that the entry wants can be made; what is there now.

    :raises ConfigError: it can't, and why.
    :raises FileSystemError: the system refuses for another reason.
    """
    path = database.read_copy
    if path is None:
        return None
    with disk_errors(path.parent, subject=database.id):
        if not path.parent.is_dir():
            hint = "Make it, give it to the group of the readers, and let that group enter it (chmod 750)."
            raise _refusal(database, f"there is no folder {path.parent}", hint)
        found = find_read_copy(database)
        with _unnamed(_real(database.replica).parent) as source, _unnamed(path.parent) as target:
            os.write(source, bytes(_TRIED_BYTES))
            _share(database, path, source, target)
            _mark(database, path, target, b"")
    return found


def renew_read_copy(database: Database, *, wait: float = 0.0, control: Control | None = None) -> ReadCopy | None:
    """Make the copy equal to the replica, whose lock the caller holds, and which this process has closed in DuckDB.

    :param wait: seconds to wait for other programs that write the replica.
    :returns: the copy; None where the entry wants none.
    :raises ConfigError: it can't be made, and why.
    :raises BusyError: a program has the replica, or the copy, open for writing.
    :raises ReplicaError: a write-ahead log lies beside the copy; the replica can't be used.
    """
    path, replica = database.read_copy, database.replica
    if path is None:
        return None
    with disk_errors(path.parent, subject=database.id), quiet(replica, wait=wait, control=control or Control()) as file:
        found, state = find_read_copy(database), identity(replica)
        if state is None:
            raise ReplicaError("it is gone", subject=str(replica))
        if found is not None and found.replica == state:
            return found
        _require_unwritten(path)
        copy = ReadCopy(path, parse_moment(iso(datetime.now(timezone.utc))), state)
        new = path.with_name(path.name + NEW_SUFFIX)
        # Of a killed process, as the replica's lock is the caller's.
        new.unlink(missing_ok=True)
        with partial_file(new) as out:
            _share(database, path, file, out)
            require_unchanged(replica, state)
            mark = {"database": database.id, "made": iso(copy.made), "replica": state}
            _mark(database, path, out, json.dumps(mark).encode())
            with contextlib.suppress(PermissionError):  # not in that group: where the folder has setgid, it is so
                os.fchown(out, -1, path.parent.stat().st_gid)
            os.fchmod(out, _MODE)
            os.fsync(out)
            os.rename(new, path)
        sync_folder(path.parent)
    return copy


def readers_of(copy: ReadCopy) -> str:
    """Who may read it, e.g. ``"group analysts"``."""
    gid = copy.path.stat().st_gid
    try:
        return f"group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"group {gid}"


def _require_unwritten(path: Path) -> None:
    """A log beside the copy would be replayed into the next one."""
    if path.exists() and (writer := writer_of(path)) is not None:
        raise BusyError(
            f"it is open for writing in {writer}",
            holder=writer,
            subject=str(path),
            hint="Copies for readers are to be opened read-only.",
        )
    if logs := wal_files(path):
        raise ReplicaError(
            f"a write-ahead log lies beside it: {logs[0].name}",
            subject=str(path),
            hint="A program has written the copy. Move the log away.",
        )


def _share(database: Database, path: Path, source: int, target: int) -> None:
    try:
        share_blocks(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        if error.errno == errno.EXDEV:
            cause = f"{path.parent} is on another file system than the replica {_real(database.replica)}"
        else:
            cause = f"the file system of {path.parent} can't share blocks between files ({error.strerror})"
        hint = "XFS and Btrfs can, within one file system. Put both files there, or leave readCopyPath out."
        raise _refusal(database, cause, hint) from error


def _mark(database: Database, path: Path, file: int, mark: bytes) -> None:
    try:
        os.setxattr(file, MARK, mark)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        cause = f"the file system of {path.parent} keeps no extended attributes of users"
        raise _refusal(database, cause, "XFS and Btrfs do. Put both files there, or leave readCopyPath out.") from error


@contextlib.contextmanager
def _unnamed(folder: Path) -> Iterator[int]:
    """A file in `folder` without a name, which is gone after the block, and with its process."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _refusal(database: Database, cause: str, hint: str | None = None) -> ConfigError:
    return ConfigError(cause, entry=database.id, field="readCopyPath", hint=hint)
