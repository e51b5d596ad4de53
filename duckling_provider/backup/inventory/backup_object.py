"""What a stored backup is, decided by the object itself, and which one ``latest`` means.

The object tells its mode by its metadata, its ``.mac``, its first and its last bytes; the configuration tells what is
expected. Where they contradict each other, or the object contradicts itself, that is an error before anything is
downloaded: ciphertext must never become a replica, and no plain file may pass for an encrypted one.
Metadata is a help, never a need: other implementations write none, and some stores forget it.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from duckling_provider.backup.inventory.key_choice import choose_key, find_trailer, is_format_2
from duckling_provider.backup.inventory.names import (
    LATEST,
    LATEST_TESTED,
    MAC_SUFFIX,
    RULES,
    SKEW,
    ListedBackup,
    assemble,
    checked_key,
    choose,
    parse_name,
)
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.inventory.states import choose_by_state
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import (
    AccessDeniedError,
    DamagedError,
    DucklingError,
    IntegrityError,
    ModeError,
    NotFoundError,
    RequestError,
    StoreError,
)
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, MODES
from duckling_provider.formats.crypto import IV_BYTES, parse_mac
from duckling_provider.formats.trailer import FORMAT, MOST_FOOTER_BYTES, Trailer, index_bytes
from duckling_provider.replica.blocks import has_magic
from duckling_provider.replica.origin import Origin, conflict, read_origin
from duckling_provider.stores.store import IN_ARCHIVE, BackupSource, StoredObject

log = logging.getLogger(__name__)

_FORMATS = ("1", str(FORMAT))
_HEAD_BYTES = 64
#: So many of the newest backups must be of one replica.
_COMPARED = 3
#: A `.mac` is 64 characters and perhaps a line end; more is something else.
_MAC_LIMIT = 1024


def describe(
    *,
    mode: str,
    size: int,
    database: str,
    fingerprint: str | None = None,
    sha256: str | None = None,
    origin: str | None = None,
    identity: str | None = None,
    rows: str | None = None,
    object_format: int = 1,
) -> dict[str, str]:
    """The metadata of an object.

    :param size: bytes of the ``.db`` file.
    :param fingerprint: of the key, for client-aes256.
    :param sha256: of the ``.db`` file in hex; only for modes without client encryption, since it would tell
        ciphertexts of equal files apart.
    :param origin: of the replica, see `replica.origin`.
    :param identity: for client-aes256 in format 1, see `EncryptionKey.identity`.
    :param rows: of the numbers of rows in all tables, see `replica.reading.rows_digest`.
    :param object_format: all but client-aes256 know 1 only.
    """
    metadata = {
        "duckling-format": str(object_format),
        "duckling-mode": mode,
        "duckling-size": str(size),
        "duckling-database": database,
    }
    if fingerprint is not None:
        metadata["duckling-key-fingerprint"] = fingerprint
    if sha256 is not None:
        metadata["duckling-sha256"] = sha256
    if origin is not None:
        metadata["duckling-origin"] = origin
    if identity is not None:
        metadata["duckling-identity"] = identity
    if rows is not None:
        metadata["duckling-rows"] = rows
    return metadata


def is_complete(backup: ListedBackup, mode: str) -> bool:
    """False for a listed backup that lacks the ``.mac`` which the mode demands: it can't be restored.

    :param mode: the store's.
    """
    return backup.has_mac or mode != CLIENT


@dataclass(frozen=True)
class StoredBackup:
    """A backup that was looked at and may be read: `size` is the ``.db`` file's, `object_size` the object's, in bytes.

    `mac` is the expected HMAC in hex for client-aes256; `sha256` the expected digest of the file where metadata has
    one; `origin` is the replica that it is of, None where that is not known; `rows` is what
    `replica.reading.rows_digest` made of the rows of its tables, None where the metadata doesn't tell; `trailer` is the
    proven one of an object of format 2; `iv` are the object's first bytes where they are one.
    """

    key: str
    mode: str
    size: int
    object_size: int
    etag: str
    encryption_key: EncryptionKey | None
    mac: str | None
    sha256: str | None
    origin: Origin | None = None
    rows: str | None = None
    trailer: Trailer | None = None
    iv: bytes | None = None

    @property
    def key_fingerprint(self) -> str | None:
        """Of the key that reads it; None for an object that is not encrypted here."""
        return None if self.encryption_key is None else self.encryption_key.fingerprint


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


def origin_of(stored: StoredObject) -> Origin | None:
    """Which replica an object is a backup of, None where its metadata doesn't tell."""
    return Origin.parse(stored.metadata.get("duckling-origin"))


def identify_backup(
    database: Database,
    store: BackupSource,
    key: str,
    *,
    chosen: bool = False,
    compare: bool = True,
    archived: bool = False,
) -> StoredBackup:
    """Look at an object: head, ``.mac``, first bytes; decide what it is and whether it may be read.

    Where this machine still has the local backup of the same name, the object must be of the same bytes.

    :param chosen: the caller named this key, so a backup made under another database id is wanted too (the entry was
        renamed).
    :param compare: False: it need not be what the local backup of its name is.
    :param archived: an object that must be thawed before it can be read is judged by what can be known of it.
    :raises NotFoundError: when there is no such object.
    :raises ModeError: when object and configuration contradict each other.
    :raises WrongKeyError: when none of the entry's keys is the one it was encrypted with.
    :raises IntegrityError: when the object can't be whole.
    """
    expected = store.mode
    subject = store.url + key
    try:
        stored = store.head(key)
    except NotFoundError as error:
        error.hint = error.hint or f"See what there is: duckling list {database.id}"
        raise
    metadata = stored.metadata
    owner = metadata.get("duckling-database")
    if owner is not None and owner != database.id and not chosen:
        raise _of_another(owner, database, subject=subject)
    if owner is not None and owner != database.id:
        log.warning("%s is a backup of the database %r, not of %r", subject, owner, database.id)
    if metadata.get("duckling-format", _FORMATS[0]) not in _FORMATS:
        raise ModeError(
            f"its format {metadata['duckling-format']} is newer than this program", subject=subject, hint="Upgrade."
        )
    claimed = metadata.get("duckling-mode")
    if claimed is not None and claimed not in MODES:
        raise ModeError(
            f"its duckling-mode {printable(claimed)!r} is none that this program knows",
            subject=subject,
            hint="A newer version or another program made it, or its metadata was changed. Upgrade, or use another "
            "backup.",
        )
    mac = _read_mac(store, key)
    keys = database.s3.reading_keys if expected == CLIENT and database.s3 is not None else ()
    found = find_trailer(store, stored, keys, archived=archived) if keys else None
    if found is not None:
        backup = _of_format_2(database, stored, mac, *found, chosen=chosen, subject=subject)
        return _compared(database, backup, subject=subject) if compare else backup
    head = _read_head(store, stored, archived=archived)
    # Of one that lies in an archive, only metadata and its `.mac` can tell.
    plain = has_magic(head) if head is not None else mac is None and claimed != CLIENT
    if expected == CLIENT:
        backup = _encrypted(database, stored, mac, head, claimed=claimed, plain=plain, subject=subject)
        return _compared(database, backup, subject=subject) if compare else backup
    if claimed == CLIENT or (mac is not None and not plain):
        raise ModeError(
            f"the object is encrypted (client-aes256), but s3.encryption is {expected!r}",
            subject=subject,
            hint="To read this one, add --encryption client-aes256, and --encryption-key-file FILE where its key is in "
            "neither s3.encryptionKey nor s3.previousEncryptionKeys.",
        )
    if mac is not None:
        raise ModeError(
            "the object is a plain DuckDB file and has a .mac: it contradicts itself",
            subject=subject,
            hint="Use another backup.",
        )
    if not plain:
        raise IntegrityError(
            "the object is no DuckDB file",
            subject=subject,
            hint="It may be encrypted without its .mac, under another s3.encryption; otherwise use another backup.",
        )
    size = _claimed_size(stored, expected, subject=subject)
    sha256, rows = metadata.get("duckling-sha256"), metadata.get("duckling-rows")
    backup = StoredBackup(key, expected, size, stored.size, stored.etag, None, None, sha256, origin_of(stored), rows)
    return _compared(database, backup, subject=subject) if compare else backup


def _compared(database: Database, backup: StoredBackup, *, subject: str) -> StoredBackup:
    """The backup, with what the sidecar of the local backup of its name proves of it.

    :raises IntegrityError: it is another one.
    """
    if not database.is_here or parse_name(name := backup.key.rpartition("/")[2]) is None:
        return backup
    try:
        local = find_snapshot(database, name)
    except (DucklingError, OSError):
        return backup  # none is there, or none that tells anything
    key = backup.encryption_key
    if key is not None:
        same = local.mac is None or local.key_fingerprint != key.fingerprint or local.mac == backup.mac
    else:
        same = backup.sha256 in (None, local.sha256)
    if not same:
        raise IntegrityError(
            "it is another backup than the local one of the same name",
            subject=subject,
            hint="It was stored in the place of the one that was made here. Use the local one (--local), or another.",
        )
    return replace(backup, sha256=local.sha256) if key is None else backup


def _of_format_2(
    database: Database,
    stored: StoredObject,
    mac: bytes | None,
    key: EncryptionKey,
    trailer: Trailer,
    *,
    chosen: bool,
    subject: str,
) -> StoredBackup:
    """What the footer says is proven; it must be what the object's name and its ``.mac`` say."""
    footer = trailer.footer
    if not hmac.compare_digest(_code_of(mac, subject=subject).encode(), trailer.mac.encode()):
        raise IntegrityError(
            "HMAC verification failed: the .mac belongs to another object", subject=subject, hint="Use another backup."
        )
    if footer.database != database.id:
        if not chosen:
            raise _of_another(footer.database, database, subject=subject)
        log.warning("%s is a backup of the database %r, not of %r", subject, footer.database, database.id)
    created = parse_name(stored.key.rpartition("/")[2])
    if created is None:
        log.warning("%s is the backup of %s: its name does not tell", subject, footer.stamp)
    elif stamp_of(created) != footer.stamp:
        raise IntegrityError(
            f"it is a copy of the backup of {footer.stamp}: its footer has not the stamp of its name",
            subject=subject,
            hint="Use another backup, or give it back its own name.",
        )
    return StoredBackup(
        stored.key,
        CLIENT,
        footer.size,
        stored.size,
        stored.etag,
        key,
        trailer.mac,
        None,
        Origin.parse(footer.origin),
        stored.metadata.get("duckling-rows"),
        trailer,
    )


def _of_another(owner: str, database: Database, *, subject: str) -> ModeError:
    return ModeError(
        f"the newest backup here is of the database {owner!r}, not of {database.id!r}",
        subject=subject,
        hint="Two databases may share this prefix. If the entry was renamed, name the key.",
    )


def _encrypted(
    database: Database,
    stored: StoredObject,
    mac: bytes | None,
    head: bytes | None,
    *,
    claimed: str | None,
    plain: bool,
    subject: str,
) -> StoredBackup:
    keys = database.s3.reading_keys if database.s3 else ()
    if not keys:
        raise ModeError("there is no s3.encryptionKey to read it with", subject=subject)
    if (claimed is not None and claimed != CLIENT) or (plain and mac is None):
        raise ModeError(
            "the object is not encrypted, but s3.encryption is 'client-aes256'",
            subject=subject,
            hint="If you trust it (it may date from before encryption), restore it by its key with --encryption none.",
        )
    code = _code_of(mac, subject=subject)
    fingerprint, rows = stored.metadata.get("duckling-key-fingerprint"), stored.metadata.get("duckling-rows")
    if stored.size < IV_BYTES + _HEAD_BYTES:
        raise IntegrityError(f"it has {stored.size} bytes only: truncated", subject=subject, hint="Use another backup.")
    size = _claimed_size(stored, CLIENT, subject=subject, archived=head is None)
    encryption_key = choose_key(keys, head, fingerprint=fingerprint, subject=subject)
    _require_identity(database, stored, encryption_key, code, subject=subject)
    return StoredBackup(
        stored.key,
        CLIENT,
        size,
        stored.size,
        stored.etag,
        encryption_key,
        code,
        None,
        origin_of(stored),
        rows,
        iv=None if head is None else head[:IV_BYTES],
    )


def _code_of(mac: bytes | None, *, subject: str) -> str:
    """The code in a ``.mac``."""
    if mac is None:
        raise IntegrityError(
            "its .mac is missing, so it can't be verified",
            subject=subject,
            hint="The upload was interrupted or the .mac was deleted; use another backup.",
        )
    try:
        return parse_mac(mac)
    except IntegrityError as error:
        error.subject = subject + MAC_SUFFIX
        raise


def _require_identity(database: Database, stored: StoredObject, key: EncryptionKey, mac: str, *, subject: str) -> None:
    """:raises IntegrityError: the object is provably another backup than its name says, or must prove that it is none
    and does not.
    """
    claimed = stored.metadata.get("duckling-identity")
    name = stored.key.rpartition("/")[2]
    if claimed is None:
        if database.s3 is not None and database.s3.require_identity:
            raise IntegrityError(
                "it has no duckling-identity, which s3.requireIdentity demands",
                subject=subject,
                hint="An older version or another program made it, or its metadata was removed. If you trust it, set "
                "s3.requireIdentity to false to restore it.",
            )
        return
    created = parse_name(name)
    owner = stored.metadata.get("duckling-database", database.id)
    expected = None if created is None else key.identity(owner, stamp_of(created), mac)
    if expected is None or not hmac.compare_digest(expected.encode(), claimed.encode()):
        raise IntegrityError(
            "its identity is not that of its name: it is a copy of another backup",
            subject=subject,
            hint="An object that was copied must keep its name, its .mac and its database. Use another backup, or give "
            "it back its own name.",
        )


def size_fault(stored: StoredObject, mode: str, *, object_format: str = _FORMATS[0]) -> str:
    """How the object's size contradicts its metadata; empty where it does not, or there is nothing to compare.

    :param mode, object_format: the object's.
    """
    claimed = stored.metadata.get("duckling-size")
    if claimed is None:
        return ""
    if mode == CLIENT and object_format == str(FORMAT):
        # How long its footer is, the object alone tells.
        fits = claimed.isdecimal() and 0 < stored.size - int(claimed) - index_bytes(int(claimed)) <= MOST_FOOTER_BYTES
        return "" if fits else f"its {stored.size} bytes are not those of a file that had {claimed}"
    size = stored.size - (IV_BYTES if mode == CLIENT else 0)
    return "" if claimed == str(size) else f"it holds {size} bytes of a file that had {claimed}"


def _claimed_size(stored: StoredObject, mode: str, *, subject: str, archived: bool = False) -> int:
    """The file's size, from the object's; metadata, where there is any, must agree.

    :param archived: only metadata tell its format.
    """
    object_format = stored.metadata.get("duckling-format", _FORMATS[0]) if archived else _FORMATS[0]
    if fault := size_fault(stored, mode, object_format=object_format):
        raise IntegrityError(
            fault, subject=subject, hint="It was truncated or extended after the upload; use another backup."
        )
    if object_format == str(FORMAT) and "duckling-size" in stored.metadata:
        return int(stored.metadata["duckling-size"])
    return stored.size - (IV_BYTES if mode == CLIENT else 0)


def _read_mac(store: BackupSource, key: str) -> bytes | None:
    try:
        stored = store.head(key + MAC_SUFFIX)
    except NotFoundError:
        return None
    except AccessDeniedError:
        # Without s3:ListBucket a store tells nobody that an object is missing. Plain objects need no `.mac`.
        if store.mode == CLIENT:
            raise
        return None
    if not stored.size:
        return b""  # there is no range of nothing that could be asked for
    with contextlib.closing(store.open_range(key + MAC_SUFFIX, 0, min(stored.size, _MAC_LIMIT))) as stream:
        return stream.read()


def _read_head(store: BackupSource, stored: StoredObject, *, archived: bool) -> bytes | None:
    """The first bytes; None when they lie in an archive, and `archived` allows that."""
    wanted = min(stored.size, IV_BYTES + _HEAD_BYTES)
    if wanted == 0:
        return b""
    try:
        with contextlib.closing(store.open_range(stored.key, 0, wanted, etag=stored.etag)) as stream:
            return stream.read(wanted)
    except StoreError as error:
        if archived and error.code == IN_ARCHIVE:
            return None
        raise
