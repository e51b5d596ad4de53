"""The file that a restore downloads into, until it is whole and gets its name; and how it is found when its restore was
killed.

It is plain text, so it must not stay. Beside a replica, `exchange.recover` finds it. Anywhere else, a note in the
folder of the local backups tells where it is: ``restoring-*.json``, ``{"download": "/path/copy.db.duckling-new"}``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from duckling_provider.base.durable_files import make_folder, partial_file, remove_unless_locked, write_durably
from duckling_provider.base.errors import BusyError, RequestError, StateFileError
from duckling_provider.base.file_lock import holder_of_lock
from duckling_provider.base.state_files import create_state, read_state
from duckling_provider.replica.exchange import NEW_SUFFIX

#: What link(2) says on file systems without hard links (SMB, some FUSE ones).
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)

#: How names of files begin that a drill restores.
SCRATCH_PREFIX = "drill-"
#: How names of the notes of downloads begin.
_NOTE_PREFIX = "restoring-"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def unfinished(new: Path, *, notes: Path) -> Iterator[int]:
    """A descriptor of the new file `new`, which is gone after the block unless it was renamed.

    What a killed restore left there is removed first. Nothing is ever written into a file that is there: it may be
    another user's.

    :param notes: the folder of the local backups.
    :raises BusyError: another restore is writing it.
    """
    remove_unless_locked(new)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_noted(new, notes))
        try:
            fd = stack.enter_context(partial_file(new))
        except FileExistsError:
            raise BusyError("another restore is writing it", holder="another restore", subject=str(new)) from None
        yield fd


@contextlib.contextmanager
def _noted(new: Path, notes: Path) -> Iterator[None]:
    note = notes / f"{_NOTE_PREFIX}{secrets.token_hex(4)}.json"
    try:
        make_folder(notes)
        write_durably(note, json.dumps({"download": str(new.absolute())}).encode())
    except OSError as error:
        # A restore matters more than what is left of it when it is killed.
        log.warning("no note can be made of the download %s: %s", new, error)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def noted_downloads(notes: Path) -> Iterator[tuple[Path, Path]]:
    """(note, download) of the restores that are at work or were killed."""
    for note in sorted(notes.glob(f"{_NOTE_PREFIX}*.json")):
        try:
            path = Path(json.loads(read_state(note))["download"])
        except (OSError, ValueError, KeyError, TypeError, StateFileError) as error:
            log.warning("%s is left as it is: %s", note, error)
            continue
        if path.is_absolute() and path.name.endswith(NEW_SUFFIX):
            yield note, path


def clear_downloads(notes: Path, *, dry_run: bool = False) -> tuple[Path, ...]:
    """Remove the unfinished downloads of restores whose process is gone; returns their paths.

    :param dry_run: only name them.
    """
    removed = []
    for note, path in noted_downloads(notes):
        if dry_run:
            if os.path.lexists(path) and holder_of_lock(path) is None:
                removed.append(path)
            continue
        if os.path.lexists(path):
            try:
                if not remove_unless_locked(path):
                    continue  # its restore is at work
            except (OSError, StateFileError) as error:
                log.warning("%s could not be removed: %s", path, error)
                continue
            log.warning("%s: removed the download of a restore that was interrupted", path)
            removed.append(path)
        note.unlink(missing_ok=True)
    return tuple(removed)


def clear_scratch(folder: Path, *, dry_run: bool = False) -> tuple[Path, ...]:
    """Remove what killed drills left in the folder of theirs; returns the paths.

    :param dry_run: only name them.
    """
    removed = []
    for path in sorted(folder.glob(f"{SCRATCH_PREFIX}*")):
        try:
            gone = holder_of_lock(path) is None if dry_run else remove_unless_locked(path)
        except (OSError, StateFileError) as error:
            log.warning("%s could not be removed: %s", path, error)
            continue
        if gone:
            removed.append(path)
            if not dry_run:
                log.warning("%s: removed what a drill that was interrupted had restored", path)
    return tuple(removed)


def inherit_permissions(replica: Path, new: Path) -> None:
    """Users who could read and write the old file can read and write the new one."""
    try:
        old = replica.stat()
    except FileNotFoundError:
        return  # `new` is the folder owner's already
    fd = os.open(new, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, old.st_mode & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
    finally:
        os.close(fd)


def give_name(new: Path, to: Path) -> None:
    """Give a finished file the name `to`, which must be free.

    :raises RequestError: it is taken.
    """
    try:
        try:
            os.link(new, to)  # unlike a rename, this fails when the name is taken
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # The name is taken by an empty file of ours first, which the rename then replaces.
            os.close(create_state(to))
            os.rename(new, to)
    except FileExistsError:
        raise RequestError("there is a file of that name by now", subject=str(to)) from None
