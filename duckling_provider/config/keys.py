"""The key of client-aes256: 64 hexadecimal characters in databases.json, 32 bytes in memory, never printed."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

KEY_BYTES = 32
_FINGERPRINT_LABEL = b"duckling key fingerprint v1"
_IDENTITY_LABEL = b"duckling identity v1"
_STATE_LABEL = b"duckling state v1"


class EncryptionKey:
    """32 secret bytes. `repr` and `str` show ``***``, so that no log, traceback or template can leak them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"expected {KEY_BYTES} bytes, got {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> EncryptionKey:
        """Read 64 hexadecimal characters, upper or lower case.

        :raises ValueError: with a message that never contains the text itself.
        """
        if len(text) != 2 * KEY_BYTES:
            raise ValueError(f"expected {2 * KEY_BYTES} hex characters, got {len(text)}")
        if wrong := re.search("[^0-9A-Fa-f]", text):
            raise ValueError(f"expected {2 * KEY_BYTES} hex characters, character {wrong.end()} is not one")
        return cls(bytes.fromhex(text))

    @classmethod
    def generate(cls) -> EncryptionKey:
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def raw(self) -> bytes:
        return self._raw

    def hex(self) -> str:
        return self._raw.hex()

    @property
    def fingerprint(self) -> str:
        """16 hex characters that tell two keys apart.

        A truncated HMAC-SHA256 under the key itself: computing it needs the key, and inverting it means guessing 256
        bits.
        """
        return hmac.new(self._raw, _FINGERPRINT_LABEL, hashlib.sha256).hexdigest()[:16]

    def identity(self, database: str, stamp: str, mac: str) -> str:
        """64 hex characters that only the holder of this key can make: they bind the ``.mac`` of a backup to its name.

        HMAC-SHA256 of database id, stamp and mac, each followed by a zero byte, under a key of its own, which is
        HMAC-SHA256 of a label under this one.
        """
        own = hmac.new(self._raw, _IDENTITY_LABEL, hashlib.sha256).digest()
        content = "".join(f"{part}\0" for part in (database, stamp, mac))
        return hmac.new(own, content.encode(), hashlib.sha256).hexdigest()

    def vouch(self, content: bytes) -> str:
        """64 hex characters that only the holder of this key can make of `content`, a state file's.

        HMAC-SHA256 under a key of its own, which is HMAC-SHA256 of a label under this one.
        """
        own = hmac.new(self._raw, _STATE_LABEL, hashlib.sha256).digest()
        return hmac.new(own, content, hashlib.sha256).hexdigest()

    def vouches(self, mac: object, content: bytes) -> bool:
        """Whether `mac` is what `vouch` makes of `content`; in constant time."""
        return isinstance(mac, str) and hmac.compare_digest(mac.encode(), self.vouch(content).encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncryptionKey) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return "EncryptionKey(***)"

    __str__ = __repr__
