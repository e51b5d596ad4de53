"""The segments of object format 2: pieces of a file that are sealed, and proven, each by itself, in any order.

With the keys K_tag, K_enc and K_footer, which are HKDF-SHA256 (RFC 5869) of the entry's key, extracted with the salt
``duckling backup format 2`` and expanded with one label each::

    V(i)           HMAC-SHA256(K_tag, lineage | u64 i | u32 segment size | u16 length of id | id | plain text)
    ciphertext(i)  AES-256-CTR of the plain text, first counter 0, key HMAC-SHA256(K_enc, V(i))

Numbers are big-endian; the id is the database's in UTF-8. V is tag and synthetic IV at once: equal plain text at the
same place of the same lineage gives equal bytes, so that a store can copy them from backup to backup; and nothing
depends on a random number that must not repeat. Whoever opens a segment decrypts it, makes V of what came out, and
compares.

Extracting first is what keeps the formats apart: expanded alone, K_footer would be HMAC-SHA256 under the entry's key of
some bytes, which is what a ``.mac`` of format 1 shows.

Bytes in, bytes out: no files, no network, no threads. All of it may be used by any number of threads at once.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from duckling_provider.config.keys import KEY_BYTES, EncryptionKey
from duckling_provider.formats.crypto import IV_BYTES, BytesLike, CtrCipher, CtrStream
from duckling_provider.stores.parts import MIB

#: Of every object; only tests have others.
SEGMENT_BYTES = 8 * MIB
TAG_BYTES = 32
LINEAGE_BYTES = 16

_SALT: Final = b"duckling backup format 2"
_LABELS: Final = (b"segment tag", b"segment key", b"footer")
#: Bytes decrypted and authenticated in turn: still in the processor's cache the second time.
_PIECE = MIB // 2
_COUNTER_0: Final = bytes(IV_BYTES)


class SegmentKeys:
    """What format 2 makes of an entry's key: one key for the tags, one for the keys of segments, one for footers."""

    __slots__ = ("enc", "fingerprint", "footer", "tag")

    def __init__(self, key: EncryptionKey) -> None:
        self.tag, self.enc, self.footer = (
            HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_SALT, info=label).derive(key.raw) for label in _LABELS
        )
        self.fingerprint = key.fingerprint

    def cipher(self, tag: BytesLike) -> CtrCipher:
        """Of the one segment whose V is `tag`."""
        return CtrCipher(EncryptionKey(hmac.digest(self.enc, bytes(tag), hashlib.sha256)), _COUNTER_0)


class Segments:
    """The segments of one object.

    :param lineage: 16 bytes, new for each object that was sent whole, and inherited by those that share segments.
    :param database: the id in the footer.
    :raises ValueError: the lineage has another length, or the id more bytes than 16 bits count.
    """

    __slots__ = ("_keys", "_prefix", "segment_bytes")

    def __init__(self, keys: SegmentKeys, *, lineage: bytes, database: str, segment_bytes: int | None = None) -> None:
        name = database.encode()
        if len(lineage) != LINEAGE_BYTES or len(name) >= 1 << 16:
            raise ValueError(f"expected a lineage of {LINEAGE_BYTES} bytes and an id of fewer than 65536")
        self.segment_bytes = SEGMENT_BYTES if segment_bytes is None else segment_bytes
        self._keys = keys
        bound = struct.pack(">IH", self.segment_bytes, len(name)) + name
        self._prefix = (lineage, bound)

    def tagger(self, number: int) -> hmac.HMAC:
        """Makes V of segment `number`: feed it the plain text by ``update``, then take its ``digest()``."""
        lineage, bound = self._prefix
        return hmac.new(self._keys.tag, lineage + number.to_bytes(8, "big") + bound, hashlib.sha256)

    def seal(self, number: int, data: memoryview) -> bytes:
        """Encrypt the plain text of segment `number` in place; returns V."""
        tagger = self.tagger(number)
        tagger.update(data)
        tag = tagger.digest()
        self._keys.cipher(tag).stream().update_into(data, data)
        return tag

    def open(self, number: int, data: memoryview, tag: BytesLike) -> bool:
        """Decrypt segment `number` in place; False when `data` is not the segment whose V is `tag`.

        What is in `data` then is of no use, and no byte of it may leave the process.
        """
        opener = self.opener(number, tag)
        for start in range(0, len(data), _PIECE):
            opener.update(data[start : start + _PIECE])
        return opener.is_proven()

    def opener(self, number: int, tag: BytesLike) -> SegmentOpener:
        """`open`, of a segment that comes in pieces."""
        return SegmentOpener(self._keys.cipher(tag).stream(), self.tagger(number), bytes(tag))


class SegmentOpener:
    """Decrypts one segment in place as its pieces come in order, and says in the end whether it is the one. Made by
    `Segments.opener`; for one thread at a time.
    """

    __slots__ = ("_stream", "_tag", "_tagger")

    def __init__(self, stream: CtrStream, tagger: hmac.HMAC, tag: bytes) -> None:
        self._stream, self._tagger, self._tag = stream, tagger, tag

    def update(self, piece: memoryview) -> None:
        self._stream.update_into(piece, piece)
        self._tagger.update(piece)

    def is_proven(self) -> bool:
        """Whether all pieces together are the segment; until then, no byte of them may leave the process."""
        return hmac.compare_digest(self._tagger.digest(), self._tag)


class SegmentTags:
    """V of every segment of a file that passes in order, in chunks of any length.

    :param segments: of the object to be.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._tags = bytearray()
        self._tagger, self._left = segments.tagger(0), segments.segment_bytes
        self._fed = 0

    def update(self, chunk: BytesLike) -> None:
        view = memoryview(chunk)
        self._fed += len(view)
        while len(view) >= self._left:
            self._tagger.update(view[: self._left])
            view = view[self._left :]
            self._tags += self._tagger.digest()
            self._tagger = self._segments.tagger(len(self._tags) // TAG_BYTES)
            self._left = self._segments.segment_bytes
        self._tagger.update(view)
        self._left -= len(view)

    def finish(self) -> bytes:
        """The index: all V in order, `TAG_BYTES` each. Nothing can be fed afterwards."""
        if self._left < self._segments.segment_bytes:
            self._tags += self._tagger.digest()
            self._left = self._segments.segment_bytes
        return bytes(self._tags)


class SegmentCipher:
    """The ciphertext of a whole file at random access, as `crypto.CtrCipher` gives that of format 1.

    It must be fed the very bytes that the index was made of: other ones would be encrypted with the same key stream.

    :param index: all V in order.
    """

    __slots__ = ("_index", "_keys", "_segment_bytes")

    def __init__(self, keys: SegmentKeys, index: bytes, *, segment_bytes: int | None = None) -> None:
        self._keys, self._index = keys, index
        self._segment_bytes = SEGMENT_BYTES if segment_bytes is None else segment_bytes

    def stream(self, offset: int = 0) -> SegmentStream:
        """Transforms what follows on byte `offset` of the file, a multiple of 16."""
        return SegmentStream(self, offset)

    def within(self, offset: int) -> tuple[CtrStream, int]:
        """The stream of the segment in which byte `offset` lies, from there on; and how many bytes it is good for."""
        number, inside = divmod(offset, self._segment_bytes)
        tag = self._index[number * TAG_BYTES : (number + 1) * TAG_BYTES]
        if len(tag) != TAG_BYTES:
            raise ValueError(f"byte {offset} is behind the last segment")
        return self._keys.cipher(tag).stream(inside), self._segment_bytes - inside


class SegmentStream:
    """Made by `SegmentCipher.stream`; for one thread at a time."""

    __slots__ = ("_cipher", "_left", "_position", "_stream")

    def __init__(self, cipher: SegmentCipher, offset: int) -> None:
        self._cipher, self._position = cipher, offset
        self._stream: CtrStream | None = None
        self._left = 0

    def update_into(self, src: BytesLike, dst: BytesLike) -> int:
        """As `CtrStream.update_into`."""
        source, target = memoryview(src), memoryview(dst)
        done = 0
        while done < len(source):
            if self._stream is None or not self._left:
                self._stream, self._left = self._cipher.within(self._position)
            stop = min(len(source), done + self._left)
            self._stream.update_into(source[done:stop], target[done:stop])
            self._left -= stop - done
            self._position += stop - done
            done = stop
        return done
