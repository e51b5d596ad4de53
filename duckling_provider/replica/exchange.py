"""Putting a new file in the place of a replica, so that a crash at any point leaves the complete old or the complete
new one.

A DuckDB replica is more than its file: a write-ahead log left beside a new file is replayed into it (storage v1.0) or
makes it unopenable (later ones). So the old file's logs go aside before the new file gets the name, and an intent
journal says how to finish or undo what a crash interrupted:

1. the journal is written,  2. the logs are renamed aside,  3. the old file gets a second name aside (a hard link, so
that the replica's own
name is never vacant),  4. the new file is renamed over the replica: this decides,  5. what is aside is deleted, or
stays when it
is to be kept,  6. the journal is removed. Before 4, `recover` undoes; after it, `recover` completes. The folder is
synced between the steps.

Every function here expects its caller to hold the replica's lock.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from duckling_provider.base.durable_files import clear_leftovers, clear_torn, sync_folder, write_durably
from duckling_provider.base.errors import BusyError, DucklingError, ReplicaError, StateFileError
from duckling_provider.base.state_files import read_state, require_base_name
from duckling_provider.replica.duckdb_file import WAL_SUFFIXES, owner_of_wal, wal_files, wal_of, writer_of
from duckling_provider.replica.locks import state_path

JOURNAL_SUFFIX = ".duckling-journal"
NEW_SUFFIX = ".duckling-new"
OLD_SUFFIX = ".duckling-old"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Journal:
    """What a replacement is about to do. `new` and `aside` are names in the replica's folder.

    `old_identity` is (inode, size, mtime in ns) of the file to be replaced, None when there was none; `wals` are
    (path, path aside) pairs: a log may lie beside a symbolic link, in another folder.
    """

    new: str
    new_inode: int
    aside: str
    keep: bool
    old_identity: tuple[int, int, int] | None
    wals: tuple[tuple[str, str], ...]
    format: int = 1

    @classmethod
    def read(cls, path: Path, real: Path) -> Journal | None:
        """The journal at `path` of the replica `real`; None when there is none.

        :raises StateFileError: it can't be obeyed: it may have been written to move other files.
        """
        try:
            data = json.loads(read_state(path))
            old = tuple(data.pop("old_identity") or ()) or None
            wals = tuple((name, aside) for name, aside in data.pop("wals"))
            journal = cls(old_identity=old, wals=wals, **data)
            journal._require_sane(path, real)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateFileError(
                f"the restore journal can't be obeyed ({error})",
                subject=str(path),
                hint="Look at the files *.duckling-* beside the replica, keep the good one, delete this file.",
            ) from error
        return journal

    def _require_sane(self, path: Path, real: Path) -> None:
        """Types, and no name but those that `replace_replica` would give."""
        values: list[object] = [self.format, self.new_inode, *(self.old_identity or (0, 0, 0))]
        keep: object = self.keep
        if len(values) != 5 or not all(type(value) is int for value in values) or not isinstance(keep, bool):
            raise ValueError("a field of another type")
        if self.format != 1:
            raise ValueError(f"it has the unknown format {self.format}")
        require_base_name(self.new, path)
        require_base_name(self.aside, path)
        if not all(name.startswith(f"{real.name}.") for name in (self.new, self.aside)):
            raise ValueError("it names a file that is not the replica's")
        for wal, wal_aside in self.wals:
            log_file = Path(wal)
            # A link's log lies beside the link.
            if not log_file.is_absolute() or os.path.realpath(owner_of_wal(log_file)) != str(real):
                raise ValueError("it names a log that is not the replica's")
            if wal_aside != str(_wal_aside(log_file, real, self.aside)):
                raise ValueError("it moves a log to another place")


def identity(path: Path) -> tuple[int, int, int] | None:
    """(inode, size, mtime in ns) of `path`, None when it does not exist."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def replace_replica(new: Path, replica: Path, *, keep_as: str | None = None) -> Path | None:
    """Give `new` the name of `replica`.

    :param new: a complete file in the same folder as the real replica, already synced to disk.
    :param keep_as: a file name under which the old file stays, its logs beside it; None deletes it.
    :returns: where the old file is kept, or None.
    """
    real = Path(os.path.realpath(replica))
    folder = real.parent
    aside = keep_as or real.name + OLD_SUFFIX
    if odd := next((path for path in wal_files(replica) if path.is_dir() and not path.is_symlink()), None):
        # It could be moved, and not be deleted.
        raise ReplicaError(
            "a folder stands in the place of its write-ahead log", subject=str(odd), hint="Move it away first."
        )
    if keep_as and (folder / keep_as).exists():
        raise ReplicaError("a file of that name is already there", subject=str(folder / keep_as))
    old = identity(real)
    journal = Journal(
        new=new.name,
        new_inode=new.stat().st_ino,
        aside=aside,
        keep=keep_as is not None,
        old_identity=old,
        wals=tuple((str(wal), str(_wal_aside(wal, real, aside))) for wal in wal_files(replica)),
    )
    journal_path = state_path(real, JOURNAL_SUFFIX)
    write_durably(journal_path, json.dumps(asdict(journal)).encode())
    try:
        for wal, wal_aside in journal.wals:
            os.rename(wal, wal_aside)
            sync_folder(Path(wal).parent)
        if old is not None:
            _link(real, folder / aside)
        sync_folder(folder)
        os.rename(new, real)
        sync_folder(folder)
        _complete(folder, journal, journal_path)
    except OSError:
        # Not left to the next access: until then the replica would lack its log.
        with contextlib.suppress(OSError, DucklingError):
            recover(replica)
        raise
    return folder / aside if keep_as and old is not None else None


def _wal_aside(wal: Path, real: Path, aside: str) -> Path:
    """Where a log goes: to the name that DuckDB looks for beside the file that goes aside.

    :raises ValueError: `wal` is no log.
    """
    base = owner_of_wal(wal)
    suffix = next(suffix for suffix in WAL_SUFFIXES if wal_of(base, suffix) == wal)
    if base == real:
        return wal_of(real.with_name(aside), suffix)
    # A link's log keeps the link's name: in the replica's own folder it would overwrite the replica's log.
    return wal_of(base.with_name(base.name + aside.removeprefix(real.name)), suffix)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # File systems without hard links (some network and FUSE ones): the name is vacant for a moment; `recover`
        # knows.
        os.rename(source, target)


def _complete(folder: Path, journal: Journal, journal_path: Path) -> None:
    if not journal.keep:
        (folder / journal.aside).unlink(missing_ok=True)
        for _, wal_aside in journal.wals:
            Path(wal_aside).unlink(missing_ok=True)
    sync_folder(folder)
    journal_path.unlink()
    sync_folder(folder)


def require_journal(real: Path) -> None:
    """:raises StateFileError: the journal that is there, if there is one, is none that `recover` obeys."""
    Journal.read(state_path(real, JOURNAL_SUFFIX), real)


def recover(replica: Path) -> str | None:
    """Finish or undo an interrupted replacement, and remove an abandoned download.

    :returns: one sentence on what was done, None when there was nothing to do.
    """
    real = Path(os.path.realpath(replica))
    folder = real.parent
    journal_path = state_path(real, JOURNAL_SUFFIX)
    journal = Journal.read(journal_path, real)
    done = None
    if journal is not None:
        now = identity(real)
        if now is not None and now[0] == journal.new_inode:
            _complete(folder, journal, journal_path)
            done = "completed a restore that was interrupted after the new file was in place"
        else:
            _undo(folder, real, journal, journal_path, now)
            done = "undid a restore that was interrupted before the new file was in place"
    new = real.with_name(real.name + NEW_SUFFIX)
    was_there = os.path.lexists(new)
    # What is none of ours stands in the way of a restore, which says so, and of nothing else.
    for odd in (*clear_torn(folder, f"{glob.escape(real.name)}.duckling-*"), *clear_leftovers([new])):
        log.warning("%s", odd)
    if was_there and not os.path.lexists(new) and done is None:
        done = "removed the download of a restore that was interrupted"
    if done:
        log.warning("%s: %s", real, done)
    return done


def _undo(folder: Path, real: Path, journal: Journal, journal_path: Path, now: tuple[int, int, int] | None) -> None:
    aside = folder / journal.aside
    if now is None and journal.old_identity is not None:
        os.rename(aside, real)
        now = identity(real)
    stranded = [(wal, wal_aside) for wal, wal_aside in journal.wals if os.path.lexists(wal_aside)]
    written = now is not None and now != journal.old_identity
    if stranded and (written or any(os.path.lexists(wal) for wal, _ in stranded)):
        raise ReplicaError(
            "the replica was written after a restore was interrupted, while its write-ahead log was set aside",
            subject=str(real),
            hint=f"Its log is {[a for _, a in stranded]}; decide which to keep, then delete {journal_path.name}.",
        )
    if stranded and now is not None and (holder := writer_of(real)) is not None:
        # It has opened the file without its log, and would overwrite it.
        raise BusyError(
            f"held by {holder}",
            holder=holder,
            subject=str(real),
            hint="It lacks the last changes, set aside by a restore that was interrupted. Close it without writing.",
        )
    for wal, wal_aside in stranded:
        os.rename(wal_aside, wal)
        sync_folder(Path(wal).parent)
    aside.unlink(missing_ok=True)
    (folder / journal.new).unlink(missing_ok=True)
    sync_folder(folder)
    journal_path.unlink()
    sync_folder(folder)
