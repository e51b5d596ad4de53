"""What follows the segments of an object of format 2: the index, and a footer that binds the whole together.

::

    segments  ciphertext, as long as the file (see `formats.segments`)
    index     V of every segment, 32 bytes each
    footer    JSON in UTF-8: what the object is
    u32       length of the footer in bytes, big-endian
    8 bytes   "duckling"
    u32       2, the format
    32 bytes  HMAC-SHA256(K_footer, everything from the index on)

The object's length and that of the footer determine all others, so that nothing else is read before the HMAC holds.
What the HMAC vouches for was made by a holder of the key. It is read strictly all the same: a later version of this
program may have made it.

The ``.mac`` of such an object is the HMAC at its end in hex.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from duckling_provider.base.errors import IntegrityError, ModeError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats import segments
from duckling_provider.formats.crypto import BytesLike
from duckling_provider.formats.segments import LINEAGE_BYTES, TAG_BYTES, SegmentKeys, Segments

FORMAT: Final = 2
#: Length, magic, format and HMAC: the last bytes of every object of format 2, and of any that follows it.
END_BYTES = 4 + 8 + 4 + 32
#: A footer has a few hundred bytes.
MOST_FOOTER_BYTES = 64 * 1024

_MAGIC: Final = b"duckling"
_END: Final = struct.Struct(">I8sI32s")
_HMAC_BYTES = 32
_HINT = "Use another backup."


@dataclass(frozen=True)
class Lineage:
    """What segments of several objects can be equal under: `value` of 16 bytes; `generation` counts the backups since
    the one that was sent whole: 0 for that one.
    """

    value: bytes
    generation: int = 0

    @classmethod
    def new(cls) -> Lineage:
        return cls(secrets.token_bytes(LINEAGE_BYTES))


@dataclass(frozen=True)
class Footer:
    """What an object is: `size` in bytes of the ``.db`` file, `stamp` as in backups' names, `origin` as in metadata,
    `lineage` and `generation` see `Lineage`.
    """

    database: str
    stamp: str
    size: int
    lineage: bytes
    key_fingerprint: str
    origin: str | None = None
    generation: int = 0
    segment_bytes: int = field(default_factory=lambda: segments.SEGMENT_BYTES)

    @property
    def segment_count(self) -> int:
        return -(-self.size // self.segment_bytes)

    def bounds(self, number: int) -> tuple[int, int]:
        """First byte and byte after the last of segment `number`: of the file, and of the object."""
        start = number * self.segment_bytes
        return start, min(start + self.segment_bytes, self.size)

    def segments(self, keys: SegmentKeys) -> Segments:
        return Segments(keys, lineage=self.lineage, database=self.database, segment_bytes=self.segment_bytes)

    def encode(self) -> bytes:
        facts = {
            "database": self.database,
            "stamp": self.stamp,
            "size": self.size,
            "segmentBytes": self.segment_bytes,
            "lineage": self.lineage.hex(),
            "generation": self.generation,
            "keyFingerprint": self.key_fingerprint,
            "origin": self.origin,
        }
        return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> Footer:
        """:raises ValueError, KeyError, TypeError: it is none."""
        facts: dict[str, Any] = json.loads(data)
        wanted = {"database": str, "stamp": str, "size": int, "segmentBytes": int, "lineage": str, "generation": int}
        wanted |= {"keyFingerprint": str}
        values = {name: facts[name] for name in wanted}
        origin = facts["origin"]
        right = all(type(values[name]) is kind for name, kind in wanted.items())
        if not right or not isinstance(origin, str | None):
            raise ValueError("a field has another type")
        lineage = bytes.fromhex(values["lineage"])
        if values["size"] < 0 or values["generation"] < 0 or len(lineage) != LINEAGE_BYTES:
            raise ValueError("a field is out of range")
        return cls(
            database=values["database"],
            stamp=values["stamp"],
            size=values["size"],
            lineage=lineage,
            key_fingerprint=values["keyFingerprint"],
            origin=origin,
            generation=values["generation"],
            segment_bytes=values["segmentBytes"],
        )


@dataclass(frozen=True)
class Trailer:
    """A footer that was proven, the index, and `mac`: 64 hex characters, what the ``.mac`` must hold."""

    footer: Footer
    index: bytes
    mac: str

    def tag(self, number: int) -> bytes:
        """V of segment `number`."""
        return self.index[number * TAG_BYTES : (number + 1) * TAG_BYTES]


def trailer_bytes(footer: Footer) -> int:
    """How many bytes follow the segments."""
    return footer.segment_count * TAG_BYTES + len(footer.encode()) + END_BYTES


def index_bytes(size: int) -> int:
    """Of the index of a file of `size` bytes."""
    return -(-size // segments.SEGMENT_BYTES) * TAG_BYTES


def encode_trailer(keys: SegmentKeys, footer: Footer, index: BytesLike) -> bytes:
    """:raises ValueError: the index is not of as many segments, or the footer is too long."""
    facts = footer.encode()
    if len(index) != footer.segment_count * TAG_BYTES or len(facts) > MOST_FOOTER_BYTES:
        raise ValueError("an index of another length, or a footer that is too long")
    content = b"".join([index, facts, struct.pack(">I8sI", len(facts), _MAGIC, FORMAT)])
    return content + hmac.digest(keys.footer, content, hashlib.sha256)


def mac_of(trailer: BytesLike) -> str:
    """The text of the ``.mac``."""
    return bytes(trailer[-_HMAC_BYTES:]).hex()


def trailer_start(end: bytes, object_size: int) -> int | None:
    """Where the index begins, which is the size of the file too, by the object's last bytes.

    :param end: the last `END_BYTES` of the object, or more.
    :returns: None for an object that is none of format 2.
    :raises ModeError: it is of a later format.
    :raises IntegrityError: the lengths contradict each other.
    """
    if len(end) < END_BYTES:
        return None
    footer_bytes, magic, number, _ = _END.unpack(end[-END_BYTES:])
    if magic != _MAGIC:
        return None
    if number != FORMAT:
        raise ModeError(f"its format {number} is newer than this program", hint="Upgrade.")
    rest = object_size - footer_bytes - END_BYTES
    segment = segments.SEGMENT_BYTES
    count = -(-rest // (segment + TAG_BYTES))
    size: int = rest - count * TAG_BYTES
    if footer_bytes > MOST_FOOTER_BYTES or rest < 0 or (count and size <= (count - 1) * segment):
        raise IntegrityError(f"its last bytes are damaged: no footer of {footer_bytes} bytes fits", hint=_HINT)
    return size


def read_trailer(data: bytes, object_size: int, keys: Iterable[EncryptionKey]) -> tuple[EncryptionKey, Trailer] | None:
    """The key that vouches for a trailer, and what it says.

    :param data: all bytes of the object from `trailer_start` on.
    :returns: None when none of `keys` does: it was made with another one, or is damaged.
    :raises IntegrityError: a key vouches for it, but what it says is not of this object.
    """
    content, code = data[:-_HMAC_BYTES], data[-_HMAC_BYTES:]
    for key in keys:
        if hmac.compare_digest(hmac.digest(SegmentKeys(key).footer, content, hashlib.sha256), code):
            break
    else:
        return None
    footer_bytes, _, _, _ = _END.unpack(data[-END_BYTES:])
    index_bytes = len(data) - END_BYTES - footer_bytes
    try:
        footer = Footer.parse(data[index_bytes : index_bytes + footer_bytes])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            f"its footer can't be read ({type(error).__name__}), though the key vouches for it",
            hint="A later version of this program may have made it: upgrade.",
        ) from error
    size = object_size - len(data)
    right = footer.segment_bytes == segments.SEGMENT_BYTES and footer.size == size
    if not right or footer.segment_count * TAG_BYTES != index_bytes or footer.key_fingerprint != key.fingerprint:
        raise IntegrityError("its footer is that of another object", hint=_HINT)
    return key, Trailer(footer, data[:index_bytes], code.hex())
