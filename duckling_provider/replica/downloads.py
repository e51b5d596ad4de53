"""The file that a restore downloads into, until it is whole and gets its name; and how it is found when its restore was
killed.

It is plain text, so it must not stay. Beside a replica, `exchange.recover` finds it. Anywhere else, a note in the
folder of the local backups tells where it is: ``restoring-*.json``, ``{"download": "/path/copy.db.duckling-new"}``.
With ``"naming": true``, an empty ``/path/copy.db`` may be there too, see `give_name`.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from duckling_provider.base.state_files import create_state, open_state, read_state
from duckling_provider.replica.duckdb_file import wal_files
from duckling_provider.replica.exchange import NEW_SUFFIX

#: What link(2) says on file systems without hard links (SMB, some FUSE ones).
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)

#: Of renameat2(2).
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1

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
        _write_note(note, new)
    except OSError as error:
        # A restore matters more than what is left of it when it is killed.
        log.warning("no note can be made of the download %s: %s", new, error)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _write_note(note: Path, new: Path, *, naming: bool = False) -> None:
    write_durably(note, json.dumps({"download": str(new.absolute()), "naming": naming}).encode())


def noted_downloads(notes: Path) -> Iterator[tuple[Path, Path, bool]]:
    """(note, download, whether its name may be taken by an empty file) of the restores that are at work or were killed.

    Notes of earlier versions have no ``naming``.
    """
    for note in sorted(notes.glob(f"{_NOTE_PREFIX}*.json")):
        try:
            path, naming = _parse_note(read_state(note))
        except (OSError, ValueError, StateFileError) as error:
            log.warning("%s is left as it is: %s", note, error)
        else:
            yield note, path, naming


def _parse_note(content: bytes) -> tuple[Path, bool]:
    """:raises ValueError: it is none."""
    try:
        data = json.loads(content)
        path = Path(data["download"])
        if not path.is_absolute() or not path.name.removesuffix(NEW_SUFFIX) or not path.name.endswith(NEW_SUFFIX):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is no note of a restore") from None
    return path, data.get("naming") is True


def clear_downloads(notes: Path, *, dry_run: bool = False) -> tuple[Path, ...]:
    """Remove the unfinished downloads of restores whose process is gone; returns their paths.

    :param dry_run: only name them.
    """
    removed = []
    for note, path, naming in noted_downloads(notes):
        try:
            gone = _gone(path, dry_run=dry_run)
            if gone is None:
                continue  # its restore is at work
            if naming and _is_empty(name := path.with_name(path.name.removesuffix(NEW_SUFFIX))):
                gone.append(name)
                if not dry_run:
                    name.unlink(missing_ok=True)
        except (OSError, StateFileError) as error:
            log.warning("%s could not be removed: %s", path, error)
            continue
        removed += gone
        if not dry_run:
            for left in wal_files(path):  # it was being brought up to a moment
                left.unlink(missing_ok=True)
            for left in gone:
                log.warning("%s: removed what a restore that was interrupted had left", left)
            note.unlink(missing_ok=True)
    return tuple(removed)


def _gone(path: Path, *, dry_run: bool) -> list[Path] | None:
    """The download, removed when it was there; None while its restore is at work."""
    if not os.path.lexists(path):
        return []
    there = holder_of_lock(path) is not None if dry_run else not remove_unless_locked(path)
    return None if there else [path]


def _is_empty(path: Path) -> bool:
    """Whether a restore took the name and was killed before the download got it.

    :raises StateFileError: what is there is none of ours.
    """
    try:
        fd = open_state(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(fd).st_size == 0
    finally:
        os.close(fd)


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


def give_name(new: Path, to: Path, *, notes: Path) -> None:
    """Give a finished file the name `to`, which must be free.

    :param notes: the folder with the note of the download.
    :raises RequestError: it is taken.
    """
    try:
        try:
            os.link(new, to)  # unlike a rename, this fails when the name is taken
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if not _rename_alone(new, to):
                _rename_over_empty(new, to, notes)
    except FileExistsError:
        raise RequestError("there is a file of that name by now", subject=str(to)) from None


def _rename_alone(new: Path, to: Path) -> bool:
    """Rename `new` where `to` is free, in one step; False where the system or the file system can't: see renameat2(2).

    :raises FileExistsError: it is not free.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(to), _RENAME_NOREPLACE) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(to))
    return False


def _rename_over_empty(new: Path, to: Path, notes: Path) -> None:
    """Take the name by an empty file of ours, and rename `new` over it. The note says so before: a restore that is
    killed between the two leaves that file.

    :raises FileExistsError: the name is not free.
    """
    for note, path, _ in noted_downloads(notes):
        if path == new.absolute():
            _write_note(note, new, naming=True)
    os.close(create_state(to))
    try:
        os.rename(new, to)
    except BaseException:
        to.unlink()
        raise
