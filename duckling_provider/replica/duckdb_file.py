"""The replica's file as seen from outside DuckDB: its WAL, who has it open, keeping writers out, and DuckDB in a child.

A trap that shapes this module: DuckDB's POSIX lock belongs to the process and is dropped when that process closes *any*
descriptor of the file, also one opened by hand for reading. Nothing in this package opens a replica by DuckDB in its
own process (`duckdb_program` is a child), and no code may call this module on a file that the same process has open in
DuckDB.

The locks taken here are open-file-description locks (Linux >= 3.15, glibc or musl, 64-bit): they conflict with DuckDB's
locks as one would wish, but belong to the descriptor, so that nothing else in the process can drop them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, DucklingError, ReplicaError
from duckling_provider.replica.blocks import HEADER_BYTES, Header, has_magic, read_header
from duckling_provider.replica.child_process import is_lock_conflict, lock_holder, raise_for, run_duckdb
from duckling_provider.replica.reading import Rows, rows_of_json

#: The last two appear while DuckDB >= 1.5 checkpoints or recovers, and stay when it is killed meanwhile.
WAL_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery")

#: Seconds between two looks at a lock that another process has.
_POLL = 0.2
#: ``struct flock`` of 64-bit Linux: type, whence, start, length (0: to the end, wherever that is), PID.
_FLOCK = "hhqqi4x"
_LONGEST_COMMAND = 60


def wal_of(file: Path, suffix: str = WAL_SUFFIXES[0]) -> Path:
    """The name that DuckDB gives the log of `file`: ``shop.db.wal``, and of ``what?.db`` ``what.wal?.db``, since it
    takes a question mark for the beginning of a URL's parameters.
    """
    head, mark, tail = file.name.partition("?")
    return file.with_name(head + suffix + mark + tail)


def owner_of_wal(wal: Path) -> Path:
    """The file that `wal` is the log of.

    :raises ValueError: it is no log.
    """
    head, mark, tail = wal.name.partition("?")
    for suffix in sorted(WAL_SUFFIXES, key=len, reverse=True):
        if head.endswith(suffix):
            return wal.with_name(head.removesuffix(suffix) + mark + tail)
    raise ValueError(f"{wal.name} is no write-ahead log")


def wal_files(replica: Path) -> list[Path]:
    """The write-ahead logs that exist for `replica`, empty ones too.

    DuckDB 2.0 puts them beside the target of a symbolic link; both places are looked at.

    :raises ReplicaError: DuckDB would look for them in another folder, or opens another file.
    """
    # With links in its folder's path resolved, so that no file is found twice.
    named = Path(os.path.realpath(replica.parent), replica.name)
    real = Path(os.path.realpath(replica))
    for path in (replica, named, real):
        if "?" in str(path.parent) or "\\" in str(path):
            raise ReplicaError(
                "DuckDB can't be trusted with this path: it takes \\ for / and ? in a folder's name for parameters",
                subject=str(path),
                hint="Rename the folder or the file, and correct duckdbPath.",
            )
    found = dict.fromkeys(wal_of(base, suffix) for base in (real, named) for suffix in WAL_SUFFIXES)
    return [path for path in found if os.path.lexists(path)]


def pending_wal(replica: Path) -> list[Path]:
    """Those of `wal_files` with something in them: the file alone lacks committed rows."""
    return [path for path in wal_files(replica) if _size(path) > 0]


def _identities(replica: Path) -> set[tuple[str, int, int, int]]:
    found = set()
    for path in pending_wal(replica):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.add((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # folded in and deleted a moment ago
        return 0


def header_of(path: Path) -> Header:
    """The header of the file at `path`, read without a lock: a live writer may be just changing it.

    :raises ReplicaError: missing, no regular file, empty, not readable, not DuckDB.
    :raises DamagedError: as `read_header`.
    """
    with os.fdopen(_open(path), "rb", buffering=0) as file:
        try:
            return read_header(os.pread(file.fileno(), HEADER_BYTES, 0))
        except DucklingError as error:
            error.subject = str(path)
            raise


def writer_of(path: Path) -> str | None:
    """Who has `path` open for writing, as ``"PID 123 (python3 sync.py)"``; None when it is not.

    :raises ReplicaError: as `header_of`, but the content is not looked at.
    """
    descriptor = _open(path)
    try:
        return _holder(descriptor, fcntl.F_RDLCK)
    finally:
        os.close(descriptor)


class ReadLock:
    """Keeps DuckDB writers out of a file, in whatever process, and lets readers in. A context manager.

    While it is held the bytes can't change by DuckDB, and `file` reads them. It fails while any process has the file
    open for writing. The descriptor is the locked one: a process that inherits it keeps the lock. So it is neither
    passed to programs started meanwhile nor kept by a fork.

    :param path: symbolic links are followed.
    :param wait: seconds to wait for a writer to close the file; 0 tries once.
    :raises BusyError: (on entering) a writer still has it after `wait` seconds; `holder` says who.
    :raises ReplicaError: (same) missing, no regular file, empty, not readable, not DuckDB.
    """

    def __init__(self, path: Path, *, wait: float = 0.0, control: Control | None = None) -> None:
        self._path = path
        self._wait = wait
        self._control = control or Control()
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO:
        """Unbuffered, positioned at 0 on entering; open as long as the lock is held."""
        if self._file is None:
            raise ReplicaError("is not locked", subject=str(self._path))
        return self._file

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> ReadLock:
        deadline = time.monotonic() + self._wait
        while True:
            file = os.fdopen(_open(self._path), "rb", buffering=0)
            try:
                if _try_lock(file.fileno()):
                    if _is_at(file.fileno(), self._path):
                        _check_magic(file.fileno(), self._path)
                        self._file = file
                        _held.add(self)
                        return self
                    # Replaced between opening and locking: this is a lock on nothing.
                    holder = "a process that replaces the file"
                else:
                    holder = _holder(file.fileno(), fcntl.F_RDLCK) or "a process that has just gone"
            finally:
                if self._file is not file:
                    file.close()
            _wait_or_give_up(self._path, holder, deadline, self._control)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back, as leaving does; nothing when it is not held."""
        _held.discard(self)
        file, self._file = self._file, None
        if file is not None:
            file.close()


_held: weakref.WeakSet[ReadLock] = weakref.WeakSet()


def _drop_inherited() -> None:
    # A forked child shares the description, and the lock would live as long as the child. Closing does not unlock ours.
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_drop_inherited)


def checkpoint(replica: Path, *, wait: float = 0.0, control: Control | None = None) -> None:
    """Fold the WAL into the file, in a child process. A file without a WAL stays byte-identical.

    :param wait: seconds to wait for others to close the file.
    :raises BusyError: another process, writer or reader, still has it open after `wait` seconds.
    :raises ReplicaError: the file can't be used, is encrypted by DuckDB and has a WAL (only its writer has the key),
        its storage version changed, or DuckDB could replay nothing of the WAL and left it as it was.
    :raises DamagedError: DuckDB can't read the file or its WAL.
    :raises CancelledError: `control` said so; DuckDB was killed and the WAL is still there.
    """
    control = control or Control()
    deadline = time.monotonic() + wait
    while True:
        _wait_until_closed(replica, deadline, control)
        before = header_of(replica)
        if before.encrypted:
            _refuse_pending_wal(replica)
            return
        wals = _identities(replica)
        answer = run_duckdb("checkpoint", replica, control)
        if answer.kind != "busy":
            break
        _wait_or_give_up(replica, _holder_in(answer.message), deadline, control)
    raise_for(answer, replica, "checkpoint")
    after = header_of(replica)
    if (before.version, before.storage) != (after.version, after.storage):
        raise ReplicaError(
            f"the storage version changed from {before.storage_name} ({before.version}) "
            f"to {after.storage_name} ({after.version})",
            subject=str(replica),
            operation="checkpoint",
            hint="Look for a program that attaches the replica with STORAGE_VERSION.",
        )
    if left := wals & _identities(replica):
        # DuckDB takes an incomplete transaction, and damage that looks like one, for the end of the WAL. When that
        # comes first it succeeds and touches nothing; the next writer would drop the WAL silently.
        names = ", ".join(sorted(Path(name).name for name, *_ in left))
        raise ReplicaError(
            f"has changes in {names} of which DuckDB can replay nothing",
            subject=str(replica),
            operation="checkpoint",
            hint="They belong to a transaction that a killed writer had not finished, or are damaged. DuckDB ignores "
            "them and drops them at the next write; to go on without, move them away.",
            retryable=True,
        )


def open_check(path: Path, *, control: Control | None = None) -> None:
    """Let DuckDB open `path` read-only, in a child process. A file encrypted by DuckDB passes unopened.

    :raises DamagedError: DuckDB can't; with the first line of its message.
    :raises ReplicaError: it could not be tried: the file is missing or newer than this DuckDB, or permissions or
        memory are lacking.
    :raises BusyError: another process has it open for writing.
    """
    _look("open", path, control)


def full_scan(path: Path, *, control: Control | None = None) -> None:
    """Let DuckDB read every column of every table of `path`, in a child process. Raises as `open_check`.

    Indexes are not read, so a pass does not refute what `BlockVerifier.finish` has found with the file at hand. A file
    encrypted by DuckDB passes unopened.
    """
    _look("scan", path, control)


def rows_of(path: Path, *, control: Control | None = None) -> Rows | None:
    """How many rows each table of `path` has, counted in a child process; None where DuckDB encrypted the file. Raises
    as `open_check`.
    """
    counted = _look("count", path, control)
    return None if counted is None else rows_of_json(counted)


def _look(action: str, path: Path, control: Control | None) -> Any:
    if header_of(path).encrypted:
        return None
    answer = run_duckdb(action, path, control or Control())
    if answer.kind == "busy":
        raise _busy(path, writer_of(path) or _holder_in(answer.message))
    raise_for(answer, path, action)
    return answer.result


def _refuse_pending_wal(replica: Path) -> None:
    if pending := pending_wal(replica):
        raise ReplicaError(
            f"is encrypted by DuckDB and has changes in {pending[0].name} that only its writer can fold in",
            subject=str(replica),
            operation="checkpoint",
            hint="Open it with its key, run CHECKPOINT and close it cleanly.",
        )


def open_error(
    path: Path, error: Exception, *, cause: str = "DuckDB can't open it", operation: str | None = None, hint: str = ""
) -> BusyError | ReplicaError:
    """What a `duckdb.Error` at opening `path` in this process means; to be raised from it.

    :param cause: of the `ReplicaError`; DuckDB's message follows it.
    :param hint: what to do unless another process has the file open.
    """
    if is_lock_conflict(error):
        holder = lock_holder(error)
        return BusyError(f"is open in {holder}", holder=holder, subject=str(path))
    # The lines after the first are DuckDB's advice to its own users.
    message = str(error).splitlines()[0]
    return ReplicaError(f"{cause}: {message}", subject=str(path), operation=operation, hint=hint or None)


# --- files and locks


def _open(path: Path) -> int:
    """A read-only descriptor of the regular file at `path`; never blocks, also on a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _cannot_open(path, error) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    raise ReplicaError(f"is {kind}", subject=str(path), hint="Check that duckdbPath names the replica.")


def _cannot_open(path: Path, error: OSError) -> ReplicaError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            cause = f"is a symbolic link to {path.readlink()}, which does not exist"
        else:
            cause = "does not exist"
        return ReplicaError(cause, subject=str(path), hint="Check duckdbPath and DATA_PATH, or restore a backup.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ReplicaError(
            "permission denied", subject=str(path), hint=f"The user with id {os.geteuid()} must be allowed to read it."
        )
    return ReplicaError(f"can't be opened: {error.strerror}", subject=str(path))


def _check_magic(descriptor: int, path: Path) -> None:
    start = os.pread(descriptor, 16, 0)
    if not has_magic(start):
        cause = "is not a DuckDB file" if start else "is empty, not a DuckDB file"
        raise ReplicaError(cause, subject=str(path), hint="Check that duckdbPath names the replica.")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise ReplicaError(
            f"can't be locked: {error.strerror}",
            hint="The file system must support open-file-description locks, as every local one on Linux does.",
        ) from error
    return True


def _holder(descriptor: int, kind: int) -> str | None:
    """Who prevents a lock of `kind` (F_RDLCK: looks for writers, F_WRLCK: for readers too)."""
    request = struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
    found, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request))
    return None if found == fcntl.F_UNLCK else _describe(pid)


def _describe(pid: int) -> str:
    """``"PID 123 (python3 sync.py)"``: program and first argument, never more, since arguments may hold passwords."""
    if pid <= 0:
        # -1: an open-file-description lock, which belongs to no process. 0: a process in another PID namespace.
        return "a snapshot or another copy" if pid < 0 else "a process in another container"
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"PID {pid}"
    # Programs that set their own title have one string with blanks in place of a list.
    words = [word for argument in arguments for word in (argument.split(" ") if len(arguments) <= 2 else [argument])]
    shown = [Path(words[0]).name]
    if len(words) > 1 and words[1].isprintable() and "://" not in words[1]:
        shown += words[1:3] if words[1] == "-m" else words[1:2]
    command = " ".join(shown).strip()[:_LONGEST_COMMAND]
    return f"PID {pid} ({command})" if command else f"PID {pid}"


def _holder_in(message: str) -> str:
    match = re.search(r"\(PID (\d+)", message)
    return _describe(int(match[1])) if match else "another process"


def _wait_until_closed(path: Path, deadline: float, control: Control) -> None:
    while True:
        control.check()
        descriptor = _open(path)
        try:
            holder = _holder(descriptor, fcntl.F_WRLCK)
        finally:
            os.close(descriptor)
        if holder is None:
            return
        _wait_or_give_up(path, holder, deadline, control)


def _wait_or_give_up(path: Path, holder: str, deadline: float, control: Control) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _busy(path, holder)
    control.wait_for(f"{path} is held by {holder}", min(_POLL, left))


def _busy(path: Path, holder: str) -> BusyError:
    return BusyError(
        f"held by {holder}",
        holder=holder,
        subject=str(path),
        hint="Close it there, or try again when it is done.",
    )
