"""The file that a restore downloads into, until it is whole and gets its name; and how it is found when its restore was
killed.

It is plain text, so it must not stay. Beside a replica, `exchange.recover` finds it. Anywhere else, a note in the
folder of the local backups tells where it is: ``restoring-*.json``, ``{"download": "/path/copy.db.duckling-new"}``.
With ``"naming": true``, an empty ``/path/copy.db`` may be there too, see `give_name`. ``"of"`` tells which backup it
is, and ``"inode"`` which file: the next restore of that backup goes on with it, within a day; anything else removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from duckling_provider.base.durable_files import (
    clear_torn,
    make_folder,
    partial_file,
    remove_unless_locked,
    write_durably,
)
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
#: Seconds within which a restore goes on with what another one left.
GOES_ON_WITHIN = 86400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """A file while a restore writes it: its descriptor, and the path `received` for what is to be remembered of its
    bytes. With `goes_on`, it has bytes of the same backup from a restore that was killed; nothing proves them yet.
    """

    fd: int
    received: Path
    goes_on: bool = False

    @property
    def allocated(self) -> int:
        """Bytes of the disk that it takes already."""
        return os.fstat(self.fd).st_blocks * 512


@contextlib.contextmanager
def unfinished(new: Path, *, notes: Path, of: str = "", left: LeftDownload | None = None) -> Iterator[Download]:
    """The file `new`, which is gone after the block unless it was renamed.

    It is a new one, or the one that a killed restore of the same backup left there; any other is removed first. Nothing
    is ever written into a file that is there for another reason: it may be another user's.

    :param notes: the folder of the local backups.
    :param of: what tells the backup from all others; empty for one that no restore is to go on with.
    :param left: what `left_download` found at `new`.
    :raises BusyError: another restore is writing it.
    """
    with contextlib.ExitStack() as stack:
        if left is not None and left.is_of(of):
            yield stack.enter_context(left.taken())
            return
        if left is not None:
            left.remove()
        remove_unless_locked(new)
        note = stack.enter_context(_noted(new, notes))
        try:
            fd = stack.enter_context(partial_file(new))
        except FileExistsError:
            raise BusyError("another restore is writing it", holder="another restore", subject=str(new)) from None
        if of and note.exists():
            with contextlib.suppress(OSError):  # then no restore goes on with it
                _write_note(note, new, of=of, inode=os.fstat(fd).st_ino)
        yield Download(fd, _received(note))


class LeftDownload:
    """What a killed restore left, locked, so that nothing removes it until its backup is known; see `left_download`."""

    def __init__(self, fd: int, note: _Note) -> None:
        self._fd, self._note = fd, note

    def is_of(self, of: str) -> bool:
        """Whether a restore of the backup `of` may go on with it."""
        if self._fd < 0 or not of or of != self._note.of:
            return False
        found = os.fstat(self._fd)
        return found.st_nlink == 1 and abs(time.time() - found.st_mtime) < GOES_ON_WITHIN

    @contextlib.contextmanager
    def taken(self) -> Iterator[Download]:
        """As `unfinished` gives a new one."""
        fd, self._fd = self._fd, -1
        path = self._note.download
        try:
            os.fchmod(fd, stat.S_IRUSR | stat.S_IWUSR)  # it may have had those of the replica already
            for wal in wal_files(path):  # it was being brought up to a moment
                wal.unlink(missing_ok=True)
            yield Download(fd, _received(self._note.file), goes_on=True)
        finally:
            path.unlink(missing_ok=True)
            _forget(self._note.file)
            os.close(fd)

    def remove(self) -> None:
        if self._fd >= 0:
            self._note.download.unlink(missing_ok=True)
            _forget(self._note.file)
            log.warning("%s: removed what a restore that was interrupted had left", self._note.download)
            self.close()

    def close(self) -> None:
        """It stays, if no restore took it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def left_download(new: Path, *, notes: Path) -> Iterator[LeftDownload | None]:
    """What a restore to `new` left that was killed; None where there is nothing that another could go on with."""
    left = next((found for note in noted_downloads(notes) if (found := _left(note, new)) is not None), None)
    try:
        yield left
    finally:
        if left is not None:
            left.close()


def _left(note: _Note, new: Path) -> LeftDownload | None:
    if note.download != new.absolute() or note.naming or not note.of:
        return None
    try:
        fd = open_state(new, os.O_RDWR)
    except (OSError, StateFileError):
        return None  # what is none of ours is told where it is in the way
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)  # its restore is at work
        return None
    if os.fstat(fd).st_ino != note.inode:
        os.close(fd)
        return None
    return LeftDownload(fd, note)


@contextlib.contextmanager
def _noted(new: Path, notes: Path) -> Iterator[Path]:
    note = notes / f"{_NOTE_PREFIX}{secrets.token_hex(4)}.json"
    try:
        make_folder(notes)
        _write_note(note, new)
    except OSError as error:
        # A restore matters more than what is left of it when it is killed.
        log.warning("no note can be made of the download %s: %s", new, error)
    try:
        yield note
    finally:
        _forget(note)


def _forget(note: Path) -> None:
    _received(note).unlink(missing_ok=True)
    note.unlink(missing_ok=True)


def _received(note: Path) -> Path:
    return note.with_suffix(".received")


@dataclass(frozen=True)
class _Note:
    """The note `file` of a `download`; `naming`: its name may be taken by an empty file. Earlier versions wrote no more
    than the download.
    """

    file: Path
    download: Path
    naming: bool
    of: str
    inode: int

    @classmethod
    def read(cls, file: Path) -> _Note:
        """:raises ValueError: it is none.
        :raises OSError, StateFileError: it can't be read.
        """
        content = read_state(file)
        try:
            data = json.loads(content)
            path = Path(data["download"])
            if not path.is_absolute() or not path.name.removesuffix(NEW_SUFFIX) or not path.name.endswith(NEW_SUFFIX):
                raise ValueError
            of, inode = data.get("of"), data.get("inode")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("it is no note of a restore") from None
        known = isinstance(of, str) and type(inode) is int
        return cls(file, path, data.get("naming") is True, of if known else "", inode if known else -1)


def _write_note(note: Path, new: Path, *, naming: bool = False, of: str = "", inode: int = -1) -> None:
    told = {"download": str(new.absolute()), "naming": naming, "of": of, "inode": inode}
    write_durably(note, json.dumps(told).encode())


def noted_downloads(notes: Path) -> Iterator[_Note]:
    """Of the restores that are at work or were killed."""
    for file in sorted(notes.glob(f"{_NOTE_PREFIX}*.json")):
        try:
            yield _Note.read(file)
        except (OSError, ValueError, StateFileError) as error:
            log.warning("%s is left as it is: %s", file, error)


def clear_downloads(notes: Path, *, dry_run: bool = False) -> tuple[Path, ...]:
    """Remove the unfinished downloads of restores whose process is gone; returns their paths.

    :param dry_run: only name them.
    """
    removed = []
    for note in noted_downloads(notes):
        path = note.download
        try:
            gone = _gone(path, dry_run=dry_run)
            if gone is None:
                continue  # its restore is at work
            if note.naming and _is_empty(name := path.with_name(path.name.removesuffix(NEW_SUFFIX))):
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
            _forget(note.file)
    if not dry_run:
        for odd in clear_torn(notes, f"{_NOTE_PREFIX}*"):  # killed while it wrote a note
            log.warning("%s", odd)
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
    for note in noted_downloads(notes):
        if note.download == new.absolute():
            _write_note(note.file, new, naming=True)
    os.close(create_state(to))
    try:
        os.rename(new, to)
    except BaseException:
        to.unlink()
        raise
