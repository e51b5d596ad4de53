"""State files: locks, holds, journals, sidecars and logs, in which one process leaves notes for the next.

They lie in folders that may belong to another user, and root may run a command there. So a state file counts only when
it is what this program makes: a regular file, no link, owned by the folder's owner, by this user or by root, and not
writable by others. Everything else is refused with its name; nothing is truncated, changed or obeyed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from duckling_provider.base.errors import StateFileError

#: More than the sidecar of a backup with 10,000 parts needs.
MOST_BYTES = 16 << 20

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def open_state(path: Path, flags: int, *, create: bool = False, by_group: bool = False) -> int:
    """A descriptor of the state file at `path`.

    :param flags: of open(2): ``os.O_RDONLY``, ``os.O_RDWR``, ``os.O_APPEND``…; never ``os.O_TRUNC``.
    :param create: make the file, mode 0600, when there is none; where root makes it, it is the folder owner's.
    :param by_group: whether its group may write it.
    :raises FileNotFoundError: there is none, and `create` is False.
    :raises OSError: the operating system refuses.
    :raises StateFileError: what is there is none of ours.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return _checked(path, flags, stat.S_IWOTH if by_group else stat.S_IWGRP | stat.S_IWOTH)
        if not create:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        with contextlib.suppress(FileExistsError):
            return create_state(path, flags)


def create_state(path: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of a new file, mode 0600; where root makes it, it is the folder owner's.

    :raises FileExistsError: there is something of that name, a link included.
    """
    fd = os.open(path, flags | _SAFE | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        give_to_owner_of(path.parent, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_state(path: Path, *, by_group: bool = False) -> bytes:
    """The content of a state file, at most `MOST_BYTES`.

    :param by_group: whether its group may write it.
    :raises FileNotFoundError: there is none.
    :raises StateFileError: it is none of ours, or too large.
    """
    fd = open_state(path, os.O_RDONLY, by_group=by_group)
    with os.fdopen(fd, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise _refused(path, f"is larger than {MOST_BYTES >> 20} MiB")
    return content


def give_to_owner_of(folder: Path, fd: int) -> None:
    """What root makes in a user's folder is that user's: a command run by root must not lock Airflow's user out."""
    if os.geteuid() == 0:
        owner = folder.stat()
        if owner.st_uid != 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def require_base_name(name: object, path: Path) -> str:
    """`name` when it names a file in the folder of the state file `path` that it stands in.

    :raises StateFileError: it is no text, or leads to another folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise _refused(path, f"names {name!r}, which is no file name")
    return name


def _checked(path: Path, flags: int, forbidden: int) -> int:
    try:
        fd = os.open(path, flags | _SAFE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(path, "is a symbolic link") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _refused(path, "is no regular file") from None
        raise
    try:
        found, folder = os.fstat(fd), path.parent.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "is no regular file")
        if found.st_nlink > 1:
            raise _refused(path, "has other names too (hard links)")
        if found.st_uid not in {os.geteuid(), folder.st_uid, 0}:
            raise _refused(path, f"belongs to another user (UID {found.st_uid})")
        if found.st_mode & forbidden:
            raise _refused(path, f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refused(path: Path, cause: str) -> StateFileError:
    return StateFileError(
        f"{cause}: it is not used",
        subject=str(path),
        hint="This program did not make it like that. Find out who did; then remove it.",
    )
