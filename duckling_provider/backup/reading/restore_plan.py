"""What a restore would do, told before it: which backup it takes, in the place of what, with which room on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.backup.inventory.backup_object import StoredBackup
from duckling_provider.backup.inventory.names import LATEST, parse_name
from duckling_provider.backup.reading.fallback import Wanted
from duckling_provider.backup.reading.target import new_beside, require_new_path
from duckling_provider.base.disk_space import MARGIN
from duckling_provider.base.state_files import open_state
from duckling_provider.config.databases import Database
from duckling_provider.replica.duckdb_file import wal_files
from duckling_provider.replica.exchange import require_journal
from duckling_provider.replica.locks import holder_of
from duckling_provider.stores.store import BackupSource


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. Sizes in bytes, moments aware.

    `created` is the moment in the backup's name, None where it has none; `needed` (the file and the margin) is asked
    of the file system that has `free`. `holder` is who keeps the replica from being replaced now, None: no process.
    `old_size` and `old_written` are of the file that would be replaced, None where there is none.
    """

    backup: StoredBackup
    target: Path
    created: datetime | None
    needed: int
    free: int
    holder: str | None
    old_size: int | None = None
    old_written: datetime | None = None

    @property
    def margin(self) -> int:
        return self.needed - self.backup.size

    @property
    def newer_by(self) -> float:
        """Seconds for which the replica was written after the backup was made; 0 when it was not, as far as one can
        tell.
        """
        if self.old_written is None or self.created is None:
            return 0.0
        return max(0.0, (self.old_written - self.created).total_seconds())


def plan_restore(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    before: datetime | None = None,
    to: Path | None = None,
    fallback: bool = False,
    any_origin: bool = False,
) -> RestorePlan:
    """What `restore_backup` with the same arguments would do; nothing is written. Raises as it does.

    The backup's head, ``.mac`` and first bytes are looked at; whether all of it is sound shows in the download.
    """
    if to is None:
        target = Path(os.path.realpath(database.replica))
        require_journal(target)
    else:
        require_new_path(database, to)
        target = to
    with contextlib.suppress(FileNotFoundError):
        # A download that was interrupted is removed; what is none of ours is in the way.
        os.close(open_state(new_beside(target), os.O_RDONLY))
    wanted = Wanted(database, store, key, before, fallback, any_origin)
    backup = wanted.first_sound(lambda found: found)
    existing = target.parent
    while not existing.exists():
        existing = existing.parent
    old = target.stat() if to is None and target.exists() else None
    written = None
    if old is not None:
        last = max([old.st_mtime, *(path.lstat().st_mtime for path in wal_files(database.replica))])
        written = datetime.fromtimestamp(last, timezone.utc)
    return RestorePlan(
        backup=backup,
        target=target,
        created=parse_name(backup.key.rpartition("/")[2]),
        needed=backup.size + MARGIN,
        free=shutil.disk_usage(existing).free,
        holder=holder_of(target) if to is None else None,
        old_size=old.st_size if old is not None else None,
        old_written=written,
    )
