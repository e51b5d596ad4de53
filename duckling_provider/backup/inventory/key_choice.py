"""Which key reads a backup: an entry's own ones, told apart by an object's metadata, its first bytes or its trailer, or
another mode or key for one run.

An object of client-aes256 tells its format by its last bytes, by nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from duckling_provider.backup.inventory.names import RULES
from duckling_provider.base.errors import DucklingError, IntegrityError, RequestError, StoreError, WrongKeyError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, MODES, Encryption, is_weaker
from duckling_provider.formats.crypto import IV_BYTES, CtrCipher
from duckling_provider.formats.trailer import END_BYTES, Trailer, read_trailer, trailer_start
from duckling_provider.replica.blocks import has_magic
from duckling_provider.stores.store import IN_ARCHIVE, BackupSource, StoredObject

#: The IV and the beginning of DuckDB's header.
_HEAD_BYTES = IV_BYTES + 64

_HINT = (
    "Put the key it was made with into s3.previousEncryptionKeys (s3.encryptionKey is the one for new backups), or "
    "name it for this one command: --encryption-key-file FILE."
)


def choose_key(
    keys: Sequence[EncryptionKey], head: bytes | None, *, fingerprint: str | None, subject: str
) -> EncryptionKey:
    """The key among `keys` that decrypts an object.

    :param keys: at least one.
    :param head: the first bytes of the object, its IV first; 12 more at least. None when they can't be read: then the
        fingerprint decides, or the present key.
    :param fingerprint: of the object's key, where its metadata names one.
    :raises WrongKeyError: it was encrypted with none of them.
    :raises IntegrityError: it was with one of them, and its first bytes are damaged.
    """
    if fingerprint is not None:
        key = next((key for key in keys if key.fingerprint == fingerprint), None)
        if key is None:
            known = ", ".join(key.fingerprint for key in keys)
            raise WrongKeyError(
                f"wrong key: it was encrypted with the key of fingerprint {fingerprint}, and what is there to read "
                f"it with is {known}",
                subject=subject,
                hint=_HINT,
            )
        if head is not None and not _opens(key, head):
            raise IntegrityError("its first bytes are damaged", subject=subject, hint="Use another backup.")
        return key
    for key in keys:
        if head is None or _opens(key, head):
            return key
    which = "s3.encryptionKey" if len(keys) == 1 else f"any of the {len(keys)} keys"
    error = WrongKeyError(
        f"HMAC verification would fail: decrypted with {which}, it is no DuckDB file, so the key is wrong (or its "
        "first bytes are damaged)",
        subject=subject,
        hint=_HINT,
    )
    error.proven = False
    raise error


def is_format_2(store: BackupSource, key: str, size: int) -> bool:
    """By one request for a few bytes. An end that is damaged in itself is one of format 2.

    :param size: of the object in bytes.
    """
    try:
        return size > 0 and trailer_start(_range(store, key, max(0, size - END_BYTES), size), size) is not None
    except IntegrityError:
        return True


def find_trailer(
    store: BackupSource, stored: StoredObject, keys: Sequence[EncryptionKey], *, archived: bool = False
) -> tuple[EncryptionKey, Trailer] | None:
    """The proven trailer of an object, and the key that vouches for it; None where the object is none of format 2.

    :param keys: at least one.
    :param archived: None as well for an object that must be thawed before it can be read.
    :raises WrongKeyError: none of `keys` vouches for it.
    :raises IntegrityError: it is damaged.
    :raises ModeError: it is of a later format.
    """
    subject = store.url + stored.key
    first = max(0, stored.size - END_BYTES)
    try:
        end = _range(store, stored.key, first, stored.size, etag=stored.etag) if stored.size else b""
        start = trailer_start(end, stored.size)
        if start is None:
            return None
        found = read_trailer(_range(store, stored.key, start, first, etag=stored.etag) + end, stored.size, keys)
    except StoreError as error:
        if archived and error.code == IN_ARCHIVE:
            return None
        raise
    except DucklingError as error:
        error.subject = error.subject or subject
        raise
    if found is not None:
        return found
    fingerprint = stored.metadata.get("duckling-key-fingerprint")
    if fingerprint is not None:
        choose_key(keys, None, fingerprint=fingerprint, subject=subject)
        raise IntegrityError(
            "HMAC verification failed: its index or footer is damaged", subject=subject, hint="Use another backup."
        )
    which = "s3.encryptionKey does not vouch" if len(keys) == 1 else f"none of the {len(keys)} keys vouches"
    unproven = WrongKeyError(
        f"HMAC verification failed: {which} for its footer, so the key is wrong (or the footer is damaged)",
        subject=subject,
        hint=_HINT,
    )
    unproven.proven = False
    raise unproven


def _range(store: BackupSource, key: str, start: int, stop: int, *, etag: str = "") -> bytes:
    with contextlib.closing(store.open_range(key, start, stop, etag=etag)) as stream:
        data = stream.read(stop - start)
    if len(data) != stop - start:
        raise StoreError(f"the store sent {len(data)} bytes of {stop - start}", subject=store.url + key)
    return data


def key_of(store: BackupSource, key: str, keys: Sequence[EncryptionKey]) -> str | None:
    """The fingerprint of the key that an object was encrypted with, as far as its metadata or `keys` tell it.

    :returns: ``""`` for an object that is not encrypted here, None for one whose key is not known.
    """
    stored = store.head(key)
    told = stored.metadata.get("duckling-key-fingerprint")
    if told is not None:
        return told
    if stored.size < _HEAD_BYTES:
        return None
    head = _range(store, key, 0, _HEAD_BYTES, etag=stored.etag)
    if has_magic(head):
        return ""
    if is_format_2(store, key, stored.size):
        try:
            found = find_trailer(store, stored, keys) if keys else None
        except IntegrityError:
            return None
        return None if found is None else found[0].fingerprint
    return next((key.fingerprint for key in keys if _opens(key, head)), None)


def _opens(key: EncryptionKey, head: bytes) -> bool:
    return has_magic(CtrCipher(key, head[:IV_BYTES]).apply(head[IV_BYTES:], 0))


def read_as(
    database: Database,
    key: str,
    *,
    encryption: str | None = None,
    encryption_key: EncryptionKey | None = None,
    least: Encryption = "none",
) -> Database:
    """The entry with another mode or key, to read one backup: the configuration that backups are made by stays.

    :param key: which backup is to be read. What is weaker than the entry's mode has to be named: as ``latest``, anyone
        who can write to the bucket could bring in a file of theirs.
    :param encryption: a mode in place of the entry's; client-aes256 when only a key is given.
    :param encryption_key: the only key to try.
    :param least: the weakest mode that the caller may ask for.
    :raises RequestError: the two contradict each other or the entry.
    """
    if encryption is None and encryption_key is None:
        return database
    s3 = database.s3
    if s3 is None:
        raise RequestError(
            "its backups are local, and local ones are not encrypted",
            subject=database.id,
            hint="Leave encryption and key out.",
        )
    mode = next((mode for mode in MODES if mode == (encryption or CLIENT)), None)
    if mode is None:
        raise RequestError(
            f"encryption: expected {', '.join(MODES[:-1])} or {MODES[-1]}",
            subject=printable(encryption or ""),
            hint="Correct it.",
        )
    if encryption_key is not None and mode != CLIENT:
        raise RequestError(
            f"a key is given, and encryption is {mode!r}", subject=database.id, hint=f"Only {CLIENT} has a key."
        )
    if is_weaker(mode, least):
        raise RequestError(
            f"{mode!r} is weaker than DUCKLING_MIN_ENCRYPTION ({least})",
            subject=database.id,
            hint="Only the command line may read a weaker backup: duckling restore … --encryption.",
        )
    if key in RULES and s3.encryption == CLIENT and mode != CLIENT:
        raise RequestError(
            f"the entry's backups are encrypted ({CLIENT}), so one that is not has to be named",
            subject=database.id,
            hint=f"Name the key of a backup that you trust: duckling list {database.id}",
        )
    keys = {} if encryption_key is None else {"encryption_key": encryption_key, "previous_encryption_keys": ()}
    return database.model_copy(update={"s3": s3.model_copy(update={"encryption": mode, **keys})})
