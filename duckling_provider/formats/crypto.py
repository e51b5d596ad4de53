"""The bytes of client-aes256: AES-256-CTR with random access, and HMAC-SHA256 over ``IV || ciphertext``.

Bytes in, bytes out: no files, no network, no threads. The stored object is::

    <key>       16 bytes of IV, then the ciphertext of the whole file (file length + 16 bytes in all)
    <key>.mac   64 lowercase hex characters: HMAC-SHA256(key, IV || ciphertext)

Sources: CTR mode and its 128-bit big-endian counter: NIST SP 800-38A, section 6.5 and appendix B.1; HMAC: RFC 2104
with SHA-256; the same bytes as ``createCipheriv('aes-256-ctr', key, iv)`` and ``createHmac('sha256', key)`` of Node's
crypto, and as ``openssl enc -aes-256-ctr -K … -iv …``. One key serves both AES and HMAC: that is the format's choice,
kept because existing objects depend on it.

CTR alone detects nothing: a wrong key or a flipped bit decrypts to garbage without an error. Plaintext may be used only
after `Mac.matches` said yes for the whole object.

Both ciphers release the GIL while they work on large chunks, so threads on different parts run in parallel.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from duckling_provider.base.errors import IntegrityError

if TYPE_CHECKING:
    from duckling_provider.config.keys import EncryptionKey

# A memoryview must be of single bytes and contiguous; a mapped file or an array goes in as a memoryview of it.
BytesLike: TypeAlias = bytes | bytearray | memoryview

IV_BYTES = 16
MAC_HEX = 64

_BLOCK_BYTES = 16
_COUNTER_MODULUS = 1 << 128
_ASCII_SPACE = " \t\r\n\v\f"
_NOT_HEX = re.compile(r"[^0-9a-fA-F]")


def new_iv() -> bytes:
    """16 fresh random bytes from the operating system.

    An IV stands for a whole range of counters, and no counter may ever serve two plaintexts under one key. For files of
    500 GB (2**35 blocks) and a million backups under one key, the chance that any two ranges overlap is about 2**-53.
    """
    return secrets.token_bytes(IV_BYTES)


class CtrStream:
    """Encrypts or decrypts what it is fed, in order, in chunks of any length. Made by `CtrCipher.stream`.

    For one thread at a time. Chunks are never copied on the way in.
    """

    __slots__ = ("_context",)

    def __init__(self, key: EncryptionKey, counter: int) -> None:
        block = counter.to_bytes(IV_BYTES, "big")
        # In CTR mode encryption and decryption are the same XOR, so one direction serves both.
        self._context = Cipher(algorithms.AES(key.raw), modes.CTR(block)).encryptor()

    def update(self, data: BytesLike) -> bytes:
        """The next ``len(data)`` bytes, transformed."""
        return self._context.update(data)

    def update_into(self, src: BytesLike, dst: BytesLike) -> int:
        """Transform `src` into the start of the writable `dst` without allocating; `dst` may be `src` itself.

        :returns: the number of bytes written, always the length of `src`.
        :raises ValueError: when `dst` is shorter than `src`; nothing is consumed then.
        """
        return self._context.update_into(src, dst)


class CtrCipher:
    """AES-256-CTR over one object: any range at any time, in any order, from any thread.

    Encrypting and decrypting are the same operation. Offsets count bytes of the plaintext (the IV at the front of the
    stored object is not part of it) and are multiples of 16, the block of AES; lengths are free.

    :param key: the 32-byte key.
    :param iv: the 16 bytes at the front of the object: the counter of block 0, big-endian. Counters wrap at 2**128.
    :raises ValueError: when `iv` is not 16 bytes long.
    """

    __slots__ = ("_first_counter", "_key")

    def __init__(self, key: EncryptionKey, iv: BytesLike) -> None:
        self._first_counter = int.from_bytes(_checked_iv(iv), "big")
        self._key = key

    def apply(self, data: BytesLike, offset: int) -> bytes:
        """Transform `data`, which starts `offset` bytes into the plaintext (or ciphertext after the IV).

        :raises ValueError: when `offset` is negative or not a multiple of 16.
        """
        return self.stream(offset).update(data)

    def stream(self, offset: int = 0) -> CtrStream:
        """A sequential transformer that starts `offset` bytes into the plaintext.

        :raises ValueError: when `offset` is negative or not a multiple of 16.
        """
        block, rest = divmod(offset, _BLOCK_BYTES)
        if rest or offset < 0:
            raise ValueError(f"offset must be a non-negative multiple of {_BLOCK_BYTES}, got {offset}")
        return CtrStream(self._key, (self._first_counter + block) % _COUNTER_MODULUS)


class Mac:
    """HMAC-SHA256 of one object, in order and in constant memory.

    The IV is fed on construction, so only the ciphertext follows.

    :param key: the 32-byte key.
    :param iv: the 16 bytes at the front of the object.
    :raises ValueError: when `iv` is not 16 bytes long.
    """

    __slots__ = ("_hmac",)

    def __init__(self, key: EncryptionKey, iv: BytesLike) -> None:
        self._hmac = hmac.new(key.raw, _checked_iv(iv), hashlib.sha256)

    def update(self, ciphertext: BytesLike) -> None:
        """Feed the next bytes of the ciphertext, in order, in chunks of any length."""
        self._hmac.update(ciphertext)

    def hexdigest(self) -> str:
        """64 lowercase hex characters over all that was fed so far; feeding may go on afterwards."""
        return self._hmac.hexdigest()

    def matches(self, expected_text: bytes | str) -> bool:
        """Whether `expected_text`, the content of a ``.mac`` object, is the code of all that was fed.

        White space around it and upper-case digits are accepted; a text that is no code at all matches nothing (use
        `parse_mac` to tell the two apart). The comparison takes the same time wherever the codes differ.
        """
        try:
            expected = parse_mac(expected_text)
        except IntegrityError:
            return False
        return hmac.compare_digest(self.hexdigest(), expected)


class PartMac:
    """Proof, at a tenth of the cost of SHA-256, that local bytes are the same as before: 32 hex characters.

    GMAC (NIST SP 800-38D): what AES-256-GCM authenticates without encrypting. Without the key nothing can make
    other bytes with the same code; by chance it happens with less than 2**-99 for the largest part that a store takes.

    :param key: 32 random bytes that serve nothing else.
    :param number: of this checksum under the key; no number serves two.
    """

    __slots__ = ("_context",)
    BYTES: ClassVar = 16

    def __init__(self, key: bytes, number: int) -> None:
        self._context = Cipher(algorithms.AES(key), modes.GCM(number.to_bytes(12, "big"))).encryptor()

    def update(self, data: BytesLike) -> None:
        """Feed the next bytes, in chunks of any length."""
        self._context.authenticate_additional_data(data)

    def hexdigest(self) -> str:
        """32 lowercase hex characters; nothing can be fed afterwards."""
        self._context.finalize()
        return self._context.tag.hex()


def parse_mac(text: bytes | str) -> str:
    """Read the content of a ``.mac`` object: 64 hex characters, upper or lower case, ASCII white space around.

    :returns: 64 lowercase hex characters.
    :raises IntegrityError: for anything else. The message does not repeat the text, which may be anything a store sent.
    """
    # latin-1 gives each byte one character, so that lengths and positions in the message are those of the bytes.
    code = (text if isinstance(text, str) else text.decode("latin-1")).strip(_ASCII_SPACE)
    foreign = _NOT_HEX.search(code)
    if len(code) != MAC_HEX:
        cause = f"the .mac is not {MAC_HEX} hex characters long but {len(code)}"
    elif foreign:
        cause = f"the .mac is not {MAC_HEX} hex characters: character {foreign.start() + 1} is not one"
    else:
        return code.lower()
    raise IntegrityError(cause, hint="The .mac object was damaged or belongs to something else; use another backup.")


def _checked_iv(iv: BytesLike) -> BytesLike:
    if len(iv) != IV_BYTES:
        raise ValueError(f"an IV has {IV_BYTES} bytes, got {len(iv)}")
    return iv
