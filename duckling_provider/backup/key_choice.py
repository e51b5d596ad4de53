"""Which key reads a backup: an entry's own ones, told apart by an object's metadata or first bytes, or another mode or
key for one run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from duckling_provider.backup.names import RULES
from duckling_provider.base.errors import IntegrityError, RequestError, WrongKeyError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.s3 import CLIENT, MODES, Encryption, is_weaker
from duckling_provider.formats.crypto import IV_BYTES, CtrCipher
from duckling_provider.replica.blocks import has_magic
from duckling_provider.stores.store import BackupSource

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
    with contextlib.closing(store.open_range(key, 0, _HEAD_BYTES, etag=stored.etag)) as stream:
        head = stream.read()
    if has_magic(head):
        return ""
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
