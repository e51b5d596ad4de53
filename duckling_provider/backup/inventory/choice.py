"""Which backups a store has, and which of them is meant: by ``latest``, by a time, by a name.

``latest`` is the newest whose evidence is good, of this replica, and for which a key is here. What is passed over is
told; what could be another replica's, or lets an older backup pass for a newer one, is refused.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime, timezone

from duckling_provider.backup.inventory.key_choice import choose_key, is_format_2
from duckling_provider.backup.inventory.metadata import origin_of
from duckling_provider.backup.inventory.names import (
    LATEST,
    LATEST_TESTED,
    RULES,
    SKEW,
    ListedBackup,
    assemble,
    checked_key,
    choose,
)
from duckling_provider.backup.inventory.states import Evidence, read_state
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import DamagedError, NotFoundError, RequestError
from duckling_provider.base.moments import iso
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import CLIENT
from duckling_provider.formats.trailer import FORMAT
from duckling_provider.replica.origin import Origin, conflict, read_origin
from duckling_provider.stores.store import BackupSource

log = logging.getLogger(__name__)

#: So many of the newest backups must be of one replica.
_COMPARED = 3


def is_complete(backup: ListedBackup, mode: str) -> bool:
    """False for a listed backup that lacks the ``.mac`` which the mode demands: it can't be restored.

    :param mode: the store's.
    """
    return backup.has_mac or mode != CLIENT


def list_backups(store: BackupSource) -> list[ListedBackup]:
    """Every backup of the store's database, newest first, all pages of the listing read."""
    return assemble(store.prefix, store.list(store.prefix))


def resolve(
    database: Database,
    store: BackupSource,
    key: str = LATEST,
    *,
    before: datetime | None = None,
    any_origin: bool = False,
    proven: bool = True,
    quiet: bool = False,
) -> str:
    """The key that ``latest`` means, or "newest before that time", by a bare file name or by a full key.

    Incomplete uploads (client-aes256 without a ``.mac``) are never the latest, neither are those that were disproved,
    nor those of format 1 where the entry has format 2. ``latest`` is the newest that is recorded as verified,
    ``latest-tested`` the newest that a drill restored. Where nothing is recorded, ``latest`` is the newest complete
    one, with a warning in the log.

    :param proven: False: the newest complete one is wanted, to be looked at.
    :param quiet: nothing is taken yet: what is passed over is not logged.
    :param any_origin: the newest is wanted whatever replica it is of; the files of this machine don't matter.
    :raises NotFoundError: when there is no such backup.
    :raises RequestError: when the key lies outside the database's prefix, or is given together with `before`; when the
        newest backup may be of another replica than the one that is here.
    :raises WrongKeyError: a newer backup was encrypted with a key that the entry lacks, so that nothing recorded of it
        can be believed either.
    """
    if key not in RULES:
        if before is not None:
            raise RequestError("a key and a time were given", subject=key, hint="Give one of them.")
        # As this program prints it, with the store in front, a key is right too.
        return checked_key(store.prefix, key.removeprefix(store.url))
    backups = list_backups(store)
    complete = [found for found in backups if found.has_mac or store.mode != CLIENT]
    skipped = len(backups) - len(complete)
    where = store.url + store.prefix
    now = datetime.now(timezone.utc)
    _require_clock(database, store, complete, now=now)
    while True:
        found = choose(complete, now=now, subject=database.id, where=where, skipped=skipped, before=before, quiet=quiet)
        candidates = [b for b in complete if b.created <= found.created and not b.misdated(now)]
        told: list[str] = []
        if proven or key == LATEST_TESTED:
            found, told = choose_by_state(database, store, candidates, tested=key == LATEST_TESTED)
        if not _is_downgrade(database, store, found, quiet=quiet):
            break
        complete.remove(found)
    if proven or key == LATEST_TESTED:
        _require_keys(database, store, [b for b in candidates if b.created > found.created][:_COMPARED])
        candidates = [b for b in candidates if b.created <= found.created]
    if not any_origin:
        told += _require_own(database, store, candidates)
    # Not before: what is refused was not taken.
    for line in told if not quiet else ():
        log.warning("%s", line)
    return found.key


def _is_downgrade(database: Database, store: BackupSource, backup: ListedBackup, *, quiet: bool) -> bool:
    """Whether a backup is of format 1 where the entry has 2: nothing binds such an object to its name.

    One whose metadata tell of format 2 has lost its end: it is damaged, and no older one is taken in silence.
    """
    s3 = database.s3
    if s3 is None or s3.object_format != FORMAT or store.mode != CLIENT or is_format_2(store, backup.key, backup.size):
        return False
    if store.head(backup.key).metadata.get("duckling-format") == str(FORMAT):
        return False
    if not quiet:
        log.warning(
            "%s%s is passed over: it is of format 1, and s3.objectFormat is %d; it can be restored by its key",
            store.url,
            backup.key,
            FORMAT,
        )
    return True


def _require_clock(database: Database, store: BackupSource, backups: Sequence[ListedBackup], *, now: datetime) -> None:
    """:raises RequestError: this host's clock is behind the store's by so much that a backup seems to be of the future.
    Passed over for that, it would lose its place to an older one.
    """
    fault: str = getattr(store, "clock_fault", "")
    for backup in backups if fault else ():
        if backup.modified is not None and backup.modified - now > SKEW:
            raise RequestError(
                f"{store.url}{backup.key} was stored at {iso(backup.modified)}, which is in the future here",
                subject=database.id,
                hint=f"{fault[0].upper()}{fault[1:]}, or name the key of the backup that is meant.",
            )


def _require_keys(database: Database, store: BackupSource, passed_over: Sequence[ListedBackup]) -> None:
    """:raises WrongKeyError: the entry lacks the key of one of the backups that are newer than the one that is meant:
    an older one in its place would lose what came since, and with the key it would not be taken.
    """
    keys = database.s3.reading_keys if database.s3 is not None else ()
    for backup in passed_over if keys and store.mode == CLIENT else ():
        with contextlib.suppress(NotFoundError, DamagedError):
            fingerprint = store.head(backup.key).metadata.get("duckling-key-fingerprint")
            if fingerprint is not None:
                choose_key(keys, None, fingerprint=fingerprint, subject=store.url + backup.key)


def _require_own(database: Database, store: BackupSource, newest: Sequence[ListedBackup]) -> list[str]:
    """What is to be logged of the origins of the newest backups.

    :raises RequestError: they are of several replicas, or of another one than is here.
    """
    fault, certain = origin_fault(database, store, newest)
    if fault and certain:
        raise RequestError(
            fault,
            subject=database.id,
            hint="Another machine may back up under this prefix; give it one of its own. Name the key of the backup "
            "that is meant, or take the newest with --any-origin (conf: any_origin).",
        )
    return [f"the newest backup is taken, although {fault}"] if fault else []


def origin_fault(database: Database, store: BackupSource, backups: Sequence[ListedBackup]) -> tuple[str, bool]:
    """Whether the newest backups are of one replica, the one that is here.

    :param backups: complete ones, the newest first; only the first few are asked for.
    :returns: a sentence with the origin of each, empty where all is well; and whether there is a replica here which
        they can be compared with.
    :raises StoreError: the store refuses or fails.
    """
    newest = backups[:_COMPARED]
    seen: list[tuple[ListedBackup, Origin | None]] = []
    for backup in newest:
        with contextlib.suppress(NotFoundError, DamagedError):  # gone meanwhile, or reported when it is read
            seen.append((backup, origin_of(store.head(backup.key))))
    # On another machine than the replica's, only what the backups say of each other can be compared.
    mine = seen[0][1] if seen else None
    if database.is_here:
        with disk_errors(database.replica.parent, subject=database.id):
            mine = read_origin(database.replica, host=database.here)
    fault = conflict([(backup.created, origin) for backup, origin in seen], mine or (seen[0][1] if seen else None))
    told = "; ".join(f"{store.url}{backup.key} of {origin or 'a replica that is not known'}" for backup, origin in seen)
    return f"{fault}: {told}" if fault else "", mine is not None


def choose_by_state(
    database: Database,
    source: BackupSource,
    candidates: Sequence[ListedBackup],
    *,
    tested: bool = False,
) -> tuple[ListedBackup, list[str]]:
    """The newest of `candidates` that is proven; where nothing is recorded of any, the newest. With it, what is to be
    logged should it be taken: what was passed over, and why.

    One request for each backup that is newer than the one that is chosen and has a state file, and one for that.

    :param candidates: complete ones, newest first, at least one.
    :param tested: only what a drill restored will do.
    :raises NotFoundError: every one was disproved; or none was tested.
    """
    passed: list[ListedBackup] = []
    disproved: list[tuple[ListedBackup, Evidence]] = []
    for backup in candidates:
        state = read_state(database, source, backup)
        if state.name == "disproved" and state.decisive is not None:
            disproved.append((backup, state.decisive))
        elif state.name == "tested" or (state.is_proven and not tested):
            break
        else:
            passed.append(backup)
            # With `s3.verify: head` nothing is ever recorded, and the user decided that this is enough.
            if source.presumed == "uploaded" and not database.verifies_bytes and not tested:
                break
    else:
        backup = _unproven(database, passed, disproved, tested=tested)
    told = [
        f"{source.url}{other.key} is passed over: {_disproof(evidence)}"
        for other, evidence in disproved
        if other.created > backup.created
    ]
    newer = ", ".join(other.key for other in passed if other.created > backup.created)
    if newer:
        told.append(f"{source.url}{backup.key} is taken; newer, but not {'tested' if tested else 'verified'}: {newer}")
    if passed and backup is passed[0] and database.verifies_bytes:
        told.append(f"{source.url}{backup.key} is taken, though nothing says that it was verified")
    return backup, told


def _unproven(
    database: Database,
    unknown: Sequence[ListedBackup],
    disproved: Sequence[tuple[ListedBackup, Evidence]],
    *,
    tested: bool,
) -> ListedBackup:
    """What is to be done where no backup is proven."""
    if tested:
        raise NotFoundError(
            "no backup was tested by a drill", subject=database.id, hint="latest takes the newest verified one."
        )
    if not unknown:
        newest, evidence = disproved[0]
        raise NotFoundError(
            f"every backup was disproved, the newest, {newest.key}: {_disproof(evidence)}",
            subject=database.id,
            hint="Make a new backup. To restore one of these all the same, name its key.",
        )
    return unknown[0]


def _disproof(evidence: Evidence) -> str:
    return f"disproved at {iso(evidence.at)} on {evidence.host}: {evidence.reason}"
