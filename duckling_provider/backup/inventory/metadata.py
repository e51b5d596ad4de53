"""What the metadata of a backup's object says, as it is written and as it is read.

Metadata is a help, never a need: other implementations write none, and some stores forget it.
"""

from __future__ import annotations

from duckling_provider.config.s3 import CLIENT
from duckling_provider.formats.crypto import IV_BYTES
from duckling_provider.formats.trailer import FORMAT, MOST_FOOTER_BYTES, index_bytes
from duckling_provider.replica.origin import Origin
from duckling_provider.stores.store import StoredObject

FORMATS = ("1", str(FORMAT))


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


def origin_of(stored: StoredObject) -> Origin | None:
    """Which replica an object is a backup of, None where its metadata doesn't tell."""
    return Origin.parse(stored.metadata.get("duckling-origin"))


def size_fault(stored: StoredObject, mode: str, *, object_format: str = FORMATS[0]) -> str:
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
