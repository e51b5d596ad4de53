"""Disk space: asked for before the first byte is written, and named clearly when it runs out all the same."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from duckling_provider.base.errors import FileSystemError, NoSpaceError
from duckling_provider.base.ownership import acting_user
from duckling_provider.base.units import human_bytes

#: Kept free beyond the bytes that are needed, for journals, sidecars and other programs.
MARGIN = 16 << 20


def require_space(folder: Path, needed: int, *, subject: str, purpose: str) -> None:
    """Check that `needed` bytes fit into the file system of `folder`.

    :raises NoSpaceError: with the needed and the free bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        raise NoSpaceError(
            f"no space left for {purpose} in {folder}: {room(needed, free)}",
            needed=needed,
            free=free,
            subject=subject,
            hint=f"Make room for {human_bytes(needed + MARGIN - free)} there; nothing was written.",
        )


def room(needed: int, free: int) -> str:
    """``"24.0 MiB needed (8.0 MiB for the file + 16.0 MiB margin), 12.0 MiB free"``; both in bytes."""
    return (
        f"{human_bytes(needed + MARGIN)} needed ({human_bytes(needed)} for the file + {human_bytes(MARGIN)} margin), "
        f"{human_bytes(free)} free"
    )


@contextlib.contextmanager
def disk_errors(folder: Path, *, subject: str, needed: int = 0) -> Iterator[None]:
    """Turn the system's errors while files in `folder` are read or written into ours.

    :param needed: bytes that are to be written; 0 when that is not known.
    :raises NoSpaceError, FileSystemError: in place of each OSError.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # of a network
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(folder).free
            raise NoSpaceError(
                f"the disk filled up while writing to {folder} ({error.strerror}): "
                + (f"{human_bytes(needed)} are needed, " if needed else "")
                + f"{human_bytes(free)} are free now",
                needed=needed,
                free=free,
                subject=subject,
                hint="What had been written was removed again. Make room or raise the quota.",
            ) from error
        acting = acting_user()
        raise FileSystemError(
            f"{error.strerror or error}: {error.filename or folder}",
            errno=error.errno or 0,
            subject=subject,
            hint="Check that the folder exists and that this user may read and write in it; the disk may be failing."
            if acting is None or error.errno not in (errno.EACCES, errno.EPERM)
            else f"Root acts as UID {acting[0]} here, whose folders those of the database are: name a place where that "
            "user may write.",
        ) from error
