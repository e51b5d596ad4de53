"""Object format 2: what it is made of, byte for byte, and that nothing but the very object passes for it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import random
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.base.errors import IntegrityError, ModeError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats import segments
from duckling_provider.formats.crypto import IV_BYTES, Mac
from duckling_provider.formats.segments import TAG_BYTES, SegmentCipher, SegmentKeys, SegmentTags
from duckling_provider.formats.trailer import (
    END_BYTES,
    Footer,
    encode_trailer,
    mac_of,
    read_trailer,
    trailer_bytes,
    trailer_start,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "format-2" / "vectors.json"
SEGMENT = 64  # real ones have 8 MiB
KEY = EncryptionKey(bytes(range(32)))
OTHER_KEY = EncryptionKey(bytes(range(31)) + b"\x20")
LINEAGE = bytes(range(16, 32))
STAMP = "2025-03-01T14-32-11-482Z"
LENGTHS = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 17)
PLAIN = random.Random(20250301).randbytes(3 * SEGMENT + 17)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SEGMENT)


def footer_of(plain: bytes, *, lineage: bytes = LINEAGE, database: str = "shop", key: EncryptionKey = KEY) -> Footer:
    return Footer(database, STAMP, len(plain), lineage, key.fingerprint, "replica=00; host=etl")


def index_of(plain: bytes, footer: Footer, key: EncryptionKey = KEY, *, step: int = 23) -> bytes:
    tags = SegmentTags(footer.segments(SegmentKeys(key)))
    for at in range(0, len(plain), step):
        tags.update(memoryview(plain)[at : at + step])
    return tags.finish()


def sealed(plain: bytes, footer: Footer | None = None, key: EncryptionKey = KEY) -> bytes:
    footer = footer or footer_of(plain)
    keys = SegmentKeys(key)
    index = index_of(plain, footer, key)
    ciphertext = bytearray(len(plain))
    SegmentCipher(keys, index).stream().update_into(plain, ciphertext)
    return bytes(ciphertext) + encode_trailer(keys, footer, index)


def opened(stored: bytes, keys: Sequence[EncryptionKey] = (KEY,)) -> bytes | None:
    """The plain text, None where it is refused; as any reader has to go about it."""
    try:
        start = trailer_start(stored[-END_BYTES:], len(stored))
        found = None if start is None else read_trailer(stored[start:], len(stored), keys)
    except (IntegrityError, ModeError):
        return None
    if found is None:
        return None
    key, trailer = found
    footer, data = trailer.footer, bytearray(stored[:start])
    opener = footer.segments(SegmentKeys(key))
    for number in range(footer.segment_count):
        first, last = footer.bounds(number)
        if not opener.open(number, memoryview(data)[first:last], trailer.tag(number)):
            return None
    return bytes(data)


# --- the bytes ---------------------------------------------------------------------------------------------------


def hkdf(key: bytes, label: bytes) -> bytes:
    """RFC 5869, sections 2.2 and 2.3, for one block."""
    extracted = hmac.digest(b"duckling backup format 2", key, "sha256")
    return hmac.digest(extracted, label + b"\x01", "sha256")


def test_the_object_is_what_the_design_says_byte_for_byte() -> None:
    tag_key, enc_key, footer_key = (hkdf(KEY.raw, label) for label in (b"segment tag", b"segment key", b"footer"))
    pieces, index = [], []
    for number, at in enumerate(range(0, len(PLAIN), SEGMENT)):
        plain = PLAIN[at : at + SEGMENT]
        bound = struct.pack(">QIH", number, SEGMENT, 4) + b"shop"
        index.append(hmac.digest(tag_key, LINEAGE + bound + plain, "sha256"))
        cipher = Cipher(algorithms.AES(hmac.digest(enc_key, index[-1], "sha256")), modes.CTR(bytes(16)))
        pieces.append(cipher.encryptor().update(plain))
    facts = {"database": "shop", "stamp": STAMP, "size": len(PLAIN), "segmentBytes": SEGMENT, "lineage": LINEAGE.hex()}
    facts |= {"generation": 0, "keyFingerprint": KEY.fingerprint, "origin": "replica=00; host=etl"}
    footer = json.dumps(facts, separators=(",", ":")).encode()
    content = b"".join(index) + footer + struct.pack(">I", len(footer)) + b"duckling" + struct.pack(">I", 2)
    stored = sealed(PLAIN)
    assert stored == b"".join(pieces) + content + hmac.digest(footer_key, content, "sha256")
    assert mac_of(stored) == stored[-32:].hex()
    assert len(stored) == len(PLAIN) + trailer_bytes(footer_of(PLAIN))


@pytest.mark.parametrize("length", LENGTHS)
def test_what_was_sealed_opens(length: int) -> None:
    plain = PLAIN[:length]
    stored = sealed(plain)
    assert opened(stored) == plain
    assert opened(stored, [OTHER_KEY, KEY]) == plain
    assert opened(stored, [OTHER_KEY]) is None
    assert trailer_start(stored, len(stored)) == length


def test_the_committed_vectors_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with segments of the real size. `plain` is repeated until it is `size` bytes long."""
    for vector in json.loads(VECTORS.read_text()):
        monkeypatch.setattr(segments, "SEGMENT_BYTES", vector["footer"]["segmentBytes"])
        footer = Footer.parse(json.dumps(vector["footer"]).encode())
        seed = bytes.fromhex(vector["plain"])
        plain = (seed * (footer.size // len(seed) + 1))[: footer.size]
        key = EncryptionKey.parse(vector["encryptionKey"])
        stored = sealed(plain, footer, key)
        assert index_of(plain, footer, key, step=1 << 20).hex() == vector["index"]
        assert mac_of(stored) == vector["mac"]
        assert hashlib.sha256(stored).hexdigest() == vector["objectSha256"]
        assert opened(stored, [key]) == plain


@given(st.data())
def test_any_chunks_make_the_same_index_and_any_range_the_same_ciphertext(data: st.DataObject) -> None:
    footer = footer_of(PLAIN)
    index = index_of(PLAIN, footer, step=data.draw(st.integers(1, len(PLAIN))))
    assert index == index_of(PLAIN, footer)
    start = 16 * data.draw(st.integers(0, len(PLAIN) // 16))
    stop = data.draw(st.integers(start, len(PLAIN)))
    piece = bytearray(PLAIN[start:stop])
    SegmentCipher(SegmentKeys(KEY), index).stream(start).update_into(piece, piece)
    assert bytes(piece) == sealed(PLAIN)[start:stop]


def test_segments_are_sealed_in_any_order_on_any_thread() -> None:
    footer = footer_of(PLAIN)
    maker = footer.segments(SegmentKeys(KEY))

    def seal(number: int) -> tuple[int, bytes, bytes]:
        first, last = footer.bounds(number)
        data = bytearray(PLAIN[first:last])
        return number, maker.seal(number, memoryview(data)), bytes(data)

    with ThreadPoolExecutor(4) as pool:
        made = sorted(pool.map(seal, reversed(range(footer.segment_count))))
    stored = b"".join(data for _, _, data in made)
    assert stored + encode_trailer(SegmentKeys(KEY), footer, b"".join(tag for _, tag, _ in made)) == sealed(PLAIN)


# --- equal and unequal -------------------------------------------------------------------------------------------


def test_a_segment_that_did_not_change_is_the_same_bytes_in_the_next_object_of_its_lineage() -> None:
    changed = bytearray(PLAIN)
    changed[SEGMENT] ^= 1
    before, after = sealed(PLAIN), sealed(bytes(changed))
    same = [before[at : at + SEGMENT] == after[at : at + SEGMENT] for at in range(0, 3 * SEGMENT, SEGMENT)]
    assert same == [True, False, True]


@pytest.mark.parametrize("other", [{"lineage": bytes(16)}, {"database": "shoq"}, {"key": OTHER_KEY}])
def test_equal_plain_text_is_other_bytes_in_another_lineage_database_and_key(other: dict[str, object]) -> None:
    key = EncryptionKey(KEY.raw) if "key" not in other else OTHER_KEY
    theirs = sealed(PLAIN, footer_of(PLAIN, **other), key)  # type: ignore[arg-type]
    assert all(sealed(PLAIN)[at : at + 16] != theirs[at : at + 16] for at in range(0, len(PLAIN), SEGMENT))


def test_equal_segments_of_one_file_are_other_bytes_at_each_place() -> None:
    stored = sealed(bytes(3 * SEGMENT))
    assert len({stored[at : at + SEGMENT] for at in range(0, 3 * SEGMENT, SEGMENT)}) == 3


def test_no_code_of_format_1_vouches_for_an_object_of_format_2() -> None:
    stored = sealed(PLAIN)
    mac = Mac(KEY, stored[:IV_BYTES])
    mac.update(stored[IV_BYTES:])
    assert not mac.matches(mac_of(stored))
    # Expanded without being extracted, the keys would be codes of format 1 of a few bytes that a bucket may show.
    keys = SegmentKeys(KEY)
    for label in (b"segment tag", b"segment key", b"footer"):
        for text in (label, label + b"\x01", b"duckling backup format 2" + label + b"\x01"):
            assert hmac.digest(KEY.raw, text, "sha256") not in (keys.tag, keys.enc, keys.footer, KEY.raw)


# --- refused -----------------------------------------------------------------------------------------------------


def test_an_object_with_any_bit_flipped_is_refused() -> None:
    stored = sealed(PLAIN)
    for bit in range(8 * len(stored)):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        assert opened(bytes(damaged)) is None, f"bit {bit}"


def test_an_object_that_was_cut_or_extended_at_either_end_is_refused() -> None:
    stored = sealed(PLAIN)
    for count in range(1, len(stored) + 1):
        assert opened(stored[count:]) is None, f"without its first {count} bytes"
        assert opened(stored[:-count]) is None, f"without its last {count} bytes"
    for more in (b"\0", bytes(SEGMENT), bytes(TAG_BYTES), bytes(SEGMENT + TAG_BYTES), stored[-END_BYTES:], stored):
        assert opened(more + stored) is None
        assert opened(stored + more) is None or more == stored
        assert opened(stored[:SEGMENT] + more + stored[SEGMENT:]) is None


def test_a_whole_object_behind_other_bytes_is_not_taken_for_those_before_it() -> None:
    """Its end is sound; its length is not the one that its footer tells."""
    assert opened(sealed(PLAIN) + sealed(PLAIN)) is None


@given(st.data())
def test_a_mixture_of_objects_is_refused(data: st.DataObject) -> None:
    """Every object is of the same key; segments, indexes and footers change places."""
    changed = bytes(byte ^ 1 for byte in PLAIN)
    made = [
        sealed(PLAIN),
        sealed(changed),
        sealed(PLAIN, footer_of(PLAIN, lineage=bytes(16))),
        sealed(PLAIN, footer_of(PLAIN, database="shoq")),
    ]
    cuts = [0, SEGMENT, 2 * SEGMENT, 3 * SEGMENT, len(PLAIN)]
    cuts += [len(PLAIN) + TAG_BYTES * n for n in range(1, 5)] + [len(made[0])]
    places = list(itertools.pairwise(cuts))
    takes = [data.draw(st.integers(0, len(made) - 1)) for _ in places]
    sources = [data.draw(st.sampled_from([p for p in places if p[1] - p[0] == q[1] - q[0]])) for q in places]
    mixture = b"".join(made[take][first:last] for take, (first, last) in zip(takes, sources, strict=True))
    found = opened(mixture)
    assert found is None or mixture in made


def test_a_length_that_fits_no_object_is_refused_before_anything_else_is_read() -> None:
    stored = sealed(PLAIN)
    for length in (0, 1, 64 * 1024, 64 * 1024 + 1, len(stored), 2**31, 2**32 - 1):
        end = struct.pack(">I", length) + stored[-END_BYTES + 4 :]
        found: int | None = -1
        try:
            found = trailer_start(end, len(stored))
        except IntegrityError as error:
            assert "no footer" in error.cause
        assert found is not None
        assert found < len(stored)
    # What no number of segments adds up to.
    with pytest.raises(IntegrityError, match="no footer"):
        trailer_start(stored, len(stored) - 17 - TAG_BYTES + 1)


def test_what_has_no_end_of_format_2_is_none_and_a_later_format_is_named() -> None:
    stored = sealed(PLAIN)
    assert trailer_start(b"", 0) is None
    assert trailer_start(PLAIN, len(PLAIN)) is None
    later = stored[:-36] + struct.pack(">I", 3) + stored[-32:]
    with pytest.raises(ModeError, match="format 3"):
        trailer_start(later, len(later))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", len(PLAIN) + 1),
        ("size", "213"),
        ("size", True),
        ("segmentBytes", 2 * SEGMENT),
        ("lineage", "00"),
        ("lineage", None),
        ("generation", -1),
        ("keyFingerprint", "0" * 16),
        ("origin", 7),
        ("stamp", None),
    ],
)
def test_a_footer_that_the_key_vouches_for_must_still_be_of_its_object(field: str, value: object) -> None:
    stored, keys = sealed(PLAIN), SegmentKeys(KEY)
    index = stored[len(PLAIN) : len(PLAIN) + 4 * TAG_BYTES]
    facts = json.dumps(json.loads(footer_of(PLAIN).encode()) | {field: value}).encode()
    content = index + facts + struct.pack(">I8sI", len(facts), b"duckling", 2)
    forged = stored[: len(PLAIN)] + content + hmac.digest(keys.footer, content, "sha256")
    start = trailer_start(forged, len(forged))
    assert start == len(PLAIN)
    with pytest.raises(IntegrityError, match="footer"):
        read_trailer(forged[start:], len(forged), [KEY])


def test_what_a_later_version_adds_to_the_footer_does_no_harm() -> None:
    facts = json.loads(footer_of(PLAIN).encode()) | {"more": [1]}
    assert Footer.parse(json.dumps(facts).encode()) == footer_of(PLAIN)
