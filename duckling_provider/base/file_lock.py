"""An exclusive lock on a file, with a bounded wait, a name tag for those who wait, and a sign that a process waits."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import BusyError, ReplicaError, StateFileError
from duckling_provider.base.state_files import open_state

#: Seconds between two looks at a lock that another process has.
POLL_SECONDS = 0.2


class FileLock:
    """An exclusive `flock` with a bounded wait and a name tag.

    :param path: the lock file; created with mode 0600, never deleted (deleting a lock file races with its next taker).
    :param operation: what the lock is taken for, shown to those who wait, e.g. ``"snapshot"``.
    :param owner: the run or command it belongs to; may be empty.
    :param wait: seconds to wait for another holder.
    :param wanted: the file on which to show that another process waits.
    :param name: what is locked, for messages; the file's name when omitted.
    :raises BusyError: naming the holder, after `wait` seconds.
    :raises StateFileError: the file is none of ours, see `state_files`.
    """

    def __init__(
        self,
        path: Path,
        *,
        operation: str,
        owner: str = "",
        wait: float = 60.0,
        control: Control | None = None,
        wanted: Path | None = None,
        name: str | None = None,
    ) -> None:
        self.path = path
        self._wanted = wanted
        self._name = name or path.name
        self._operation, self._owner, self._wait = operation, owner, wait
        self._control = control or Control()
        self._fd = -1

    def __enter__(self) -> FileLock:
        try:
            fd = open_state(self.path, os.O_RDWR, create=True)
        except OSError as error:
            raise ReplicaError(
                f"cannot open the lock file: {error.strerror}",
                subject=str(self.path),
                hint="The folder must exist and be writable for this user, and the file, if there is one, its own: "
                "run everything as the user that Airflow runs as.",
            ) from error
        try:
            with _Wish(self._wanted) as wish:
                self._take(fd, wish)
            self._tag(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def _tag(self, fd: int) -> None:
        tag = {
            "operation": self._operation,
            "owner": self._owner,
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        # It is for messages only: a full disk must not keep users from making room.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(tag).encode(), 0)

    def _take(self, fd: int, wish: _Wish) -> None:
        deadline = time.monotonic() + self._wait
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _describe_tag(os.pread(fd, 4096, 0))
            else:
                return
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"held by {holder}",
                    holder=holder,
                    subject=self._name,
                    hint=f"Waited {round(self._wait, 1):g} s for it to finish; try again later.",
                )
            wish.show()
            self._control.wait_for(f"{self._name} is held by {holder}", POLL_SECONDS)

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, -1
        try:
            # The tag is for messages only: on a disk that is full it may stay.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
        finally:
            _close(fd)


def _close(fd: int) -> None:
    """Linux gives the descriptor, and with it the lock, back in any case. What the file system says of the tag, which a
    network's may do only now, is no failure of the work that is done.
    """
    with contextlib.suppress(OSError):
        os.close(fd)


def holder_of_lock(path: Path) -> str | None:
    """Who has the lock of the file at `path`, None when no process has; nothing is made, and no process waits for it.

    :raises StateFileError: the file is none of ours.
    """
    try:
        fd = open_state(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe_tag(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)
    return None


class _Wish:
    """Shows on the file `path` that a process waits, from `show` to the end of the block; None shows nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._fd = path, -1

    def show(self) -> None:
        # It is a courtesy: where the file can't be made, the wait is as it was without it.
        if self._path is None:
            return
        with contextlib.suppress(OSError, StateFileError):
            if self._fd < 0:
                self._fd = open_state(self._path, os.O_RDWR, create=True)
            # Fails in the moment in which `is_wanted` looks; the next poll shows it.
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __enter__(self) -> _Wish:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            _close(self._fd)


def _describe_tag(raw: bytes) -> str:
    try:
        tag = json.loads(raw)
        owner = f" ({tag['owner']})" if tag["owner"] else ""
        return f"PID {tag['pid']}, {tag['operation']}{owner}, since {tag['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
