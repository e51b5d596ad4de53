"""What a killed upload left in the store: an unfinished upload that was not continued by the time a newer backup is
complete, and a ``.mac`` or ``.state`` whose object never came.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from duckling_provider.backup.inventory.names import COMPANION_SUFFIXES, SKEW, ListedBackup, parse_name
from duckling_provider.backup.inventory.sidecar import UPLOAD_LOCK_SUFFIX, UPLOAD_SUFFIX
from duckling_provider.base.errors import AccessDeniedError, BusyError, NotFoundError, StateFileError, StoreError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.stores.store import Store, StoredObject, Swept, UploadLog

#: Unfinished uploads of ours older than this are given up. A retry of an upload of 500 GB is well within it.
ABANDONED_AFTER = timedelta(days=3)


def abort_abandoned(
    database: Database, store: Store, backups: Sequence[ListedBackup], *, now: datetime, notes: list[str]
) -> Swept:
    """Abort the unfinished uploads that are old, and those of this installation that were interrupted before the newest
    complete backup was made.

    :param notes: receives a sentence about each file beside a local backup that is none of ours.
    """
    complete = (b for b in backups if b.has_mac or store.mode != CLIENT)
    newest = next((b.created for b in complete if not b.misdated(now)), None)
    stored = {backup.key for backup in backups}
    superseded, count, left = set(), 0, []

    def abandoned(key: str, begun: datetime) -> bool:
        taken = parse_name(key.removeprefix(store.prefix))
        if taken is None or key in superseded:
            return taken is not None
        # No upload is older than its snapshot, whatever the store's clock says of its beginning; a name of the future
        # says nothing.
        return now - (begun if taken - now > SKEW else max(begun, taken)) > ABANDONED_AFTER

    with contextlib.ExitStack() as locks:
        for path in sorted(database.backup_dir.glob("backup-*.db")):
            created, key = parse_name(path.name), store.prefix + path.name
            log_path = path.with_suffix(UPLOAD_SUFFIX)
            if newest is None or created is None or created >= newest or (key in stored and not log_path.exists()):
                continue
            with _noted_when_odd(notes), contextlib.suppress(BusyError):  # another process is uploading it
                locks.enter_context(FileLock(path.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0))
                superseded.add(key)
                found = UploadLog.owner(log_path)
                if found is not None and found[0].get("store") == store.url:
                    # By its id: some stores do not list what is unfinished.
                    try:
                        store.abort(str(found[0].get("key")), found[1])
                    except StoreError as error:
                        left.append(f"an unfinished upload could not be aborted: {error}")
                        continue
                    log_path.unlink(missing_ok=True)
                    count += 1
        swept = store.sweep(store.prefix, abandoned=abandoned)
        # What the store lists as well is told once.
        return Swept(count + swept.aborted, tuple(dict.fromkeys((*left, *swept.left))), swept.note)


@contextlib.contextmanager
def _noted_when_odd(notes: list[str]) -> Iterator[None]:
    """A file in the place of a state file that is none of ours is named, and the clean-up goes on with the others."""
    try:
        yield
    except StateFileError as error:
        notes.append(str(error))


def delete_lone_companions(
    database: Database, store: Store, rows: Sequence[StoredObject], *, now: datetime, notes: list[str]
) -> None:
    """A ``.mac`` is stored just before its object appears: killed in between, an upload leaves it alone. So does a
    deletion.

    :param notes: as of `abort_abandoned`.
    """
    keys = {row.key for row in rows}
    for row in rows:
        suffix = next((suffix for suffix in COMPANION_SUFFIXES if row.key.endswith(suffix)), None)
        if suffix is None or row.key.removesuffix(suffix) in keys:
            continue
        key, name = row.key.removesuffix(suffix), row.key.removeprefix(store.prefix).removesuffix(suffix)
        if parse_name(name) is None:
            continue
        local = database.backup_dir / name
        if local.exists():
            # Ours: the lock tells whether its upload lives.
            quiet: contextlib.AbstractContextManager[object] = FileLock(
                local.with_suffix(UPLOAD_LOCK_SUFFIX), operation="clean-up", wait=0
            )
        elif row.modified is not None and now - row.modified > ABANDONED_AFTER:
            quiet = contextlib.nullcontext()
        else:
            continue
        # Who may not delete keeps it; it does no harm.
        with _noted_when_odd(notes), contextlib.suppress(BusyError, AccessDeniedError), quiet:
            try:
                store.head(key)
            except NotFoundError:
                store.delete(row.key)
