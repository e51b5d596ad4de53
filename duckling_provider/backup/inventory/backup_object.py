"""What a stored backup is, decided by the object itself.

The object tells its mode by its metadata, its ``.mac``, its first and its last bytes; the configuration tells what is
expected. Where they contradict each other, or the object contradicts itself, that is an error before anything is
downloaded: ciphertext must never become a replica, and no plain file may pass for an encrypted one.
Metadata is a help, never a need: other implementations write none, and some stores forget it.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from duckling_provider.backup.inventory.key_choice import choose_key, find_trailer
from duckling_provider.backup.inventory.metadata import FORMATS, origin_of, size_fault
from duckling_provider.backup.inventory.names import MAC_SUFFIX, parse_name
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.base.errors import (
    AccessDeniedError,
    DucklingError,
    IntegrityError,
    ModeError,
    NotFoundError,
    StoreError,
)
from duckling_provider.base.moments import stamp_of
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, MODES
from duckling_provider.formats.crypto import IV_BYTES, parse_mac
from duckling_provider.formats.trailer import FORMAT, Trailer
from duckling_provider.replica.blocks import has_magic
from duckling_provider.replica.origin import Origin
from duckling_provider.stores.store import IN_ARCHIVE, BackupSource, StoredObject

log = logging.getLogger(__name__)

_HEAD_BYTES = 64
#: A `.mac` is 64 characters and perhaps a line end; more is something else.
_MAC_LIMIT = 1024


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
    claimed = _known_mode(metadata, subject=subject)
    mac = _read_mac(store, key)
    keys = database.s3.reading_keys if expected == CLIENT and database.s3 is not None else ()
    found = find_trailer(store, stored, keys, archived=archived) if keys else None
    if found is not None:
        backup = _of_format_2(database, stored, mac, *found, chosen=chosen, subject=subject)
    else:
        head = _read_head(store, stored, archived=archived)
        # Of one that lies in an archive, only metadata and its `.mac` can tell.
        plain = has_magic(head) if head is not None else mac is None and claimed != CLIENT
        if expected == CLIENT:
            backup = _encrypted(database, stored, mac, head, claimed=claimed, plain=plain, subject=subject)
        else:
            backup = _not_encrypted(stored, mac, expected, claimed=claimed, plain=plain, subject=subject)
    return _compared(database, backup, subject=subject) if compare else backup


def _known_mode(metadata: Mapping[str, str], *, subject: str) -> str | None:
    """The mode that metadata claim, None where there is none.

    :raises ModeError: they are of another version or program.
    """
    if metadata.get("duckling-format", FORMATS[0]) not in FORMATS:
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
    return claimed


def _not_encrypted(
    stored: StoredObject, mac: bytes | None, expected: str, *, claimed: str | None, plain: bool, subject: str
) -> StoredBackup:
    """A plain file, as the entry expects it, in mode `expected`."""
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
    sha256, rows = stored.metadata.get("duckling-sha256"), stored.metadata.get("duckling-rows")
    return StoredBackup(
        stored.key, expected, size, stored.size, stored.etag, None, None, sha256, origin_of(stored), rows
    )


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


def _claimed_size(stored: StoredObject, mode: str, *, subject: str, archived: bool = False) -> int:
    """The file's size, from the object's; metadata, where there is any, must agree.

    :param archived: only metadata tell its format.
    """
    object_format = stored.metadata.get("duckling-format", FORMATS[0]) if archived else FORMATS[0]
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
