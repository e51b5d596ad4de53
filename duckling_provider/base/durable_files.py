"""Files that survive a crash: written whole or not at all, and told apart from what a killed process left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from duckling_provider.base.errors import StateFileError
from duckling_provider.base.state_files import create_state, give_to_owner_of, open_state

#: How names of `write_durably`'s temporary files end.
_TORN_SUFFIX = ".tmp"


def write_durably(path: Path, content: bytes | Callable[[int], bytes]) -> None:
    """Replace `path` by `content` so that a crash leaves the old or the new file: temporary file, fsync, rename,
    fsync of the folder.

    :param content: the bytes, or what makes them from a descriptor of the new file.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TORN_SUFFIX}")
        fd = create_state(temporary, os.O_WRONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the two calls `clear_torn` of another process may have taken it for a dead one's.
        if os.fstat(fd).st_nlink:
            break
        os.close(fd)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content if isinstance(content, bytes) else content(fd))
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_torn(folder: Path, name: str) -> list[str]:
    """Remove the temporary files that `write_durably` left in `folder` where it was killed.

    :param name: a glob pattern for the name of the file that was to be.
    :returns: as `clear_leftovers`.
    """
    return clear_leftovers(sorted(folder.glob(f".{name}.*{_TORN_SUFFIX}")))


def clear_leftovers(paths: Iterable[Path]) -> list[str]:
    """`remove_unless_locked` each; returns a sentence about each that can't be removed, because it is none of ours or
    the system refuses. Such a one is left as it is and holds nothing else up.
    """
    odd = []
    for path in paths:
        try:
            remove_unless_locked(path)
        except StateFileError as error:
            odd.append(str(error))
        except OSError as error:
            odd.append(f"{path}: cannot be removed: {error.strerror}")
    return odd


def remove_unless_locked(path: Path) -> bool:
    """Delete a file whose process is gone; a living one holds an flock on it. Whether there was one to delete.

    :raises StateFileError: it is none of ours.
    """
    try:
        fd = open_state(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    return True


def sync_folder(folder: Path) -> None:
    """Make renames, links and removals in `folder` survive a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_FICLONE = 0x40049409  # ioctl_ficlone(2)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, each for its owner's eyes only, where they are missing."""
    if not folder.parent.exists():
        make_folder(folder.parent)
    if not folder.exists():
        folder.mkdir(exist_ok=True, mode=0o700)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_to_owner_of(folder.parent, fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[int]:
    """A new, empty file at `path`, open for reading and writing, that is gone after the block unless it was renamed.

    An flock marks it as a living process's: `remove_unless_locked` removes what a killed one left.

    :raises FileExistsError: there is a file already, another process's or a dead one's.
    """
    while True:
        fd = create_state(path)
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the two calls `remove_unless_locked` of another process may have taken it for a dead one's.
        if os.fstat(fd).st_nlink:
            break
        os.close(fd)
    try:
        yield fd
    finally:
        # After success the file has its final name and there is nothing to remove.
        path.unlink(missing_ok=True)
        os.close(fd)


def clone(source: int, target: int) -> bool:
    """`share_blocks`, or False where the file system can't."""
    try:
        share_blocks(source, target)
    except OSError:
        return False
    return True


def share_blocks(source: int, target: int) -> None:
    """Make `target` a reflink of `source` (both descriptors): the same bytes in the same blocks, until one is written.

    Format: ioctl_ficlone(2).

    :raises OSError: the file system can't, or the two are not on one.
    """
    fcntl.ioctl(target, _FICLONE, source)
