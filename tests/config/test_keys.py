from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass

import pytest
from fixtures.any_text import any_text
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.config.keys import KEY_BYTES, EncryptionKey

TEXT = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210"
RAW = bytes.fromhex(TEXT)
HEX = "0123456789abcdefABCDEF"

# All that a refusal may say: figures only, nothing that was in the text.
REFUSAL = re.compile(r"expected 64 hex characters, (got \d+|character \d+ is not one)")


@dataclass(frozen=True)
class Holder:
    key: EncryptionKey


@pytest.mark.parametrize("text", [TEXT, TEXT.upper(), TEXT[:32] + TEXT[32:].upper()])
def test_64_hex_characters_in_either_case_are_32_bytes(text: str) -> None:
    key = EncryptionKey.parse(text)
    assert key.raw == RAW
    assert key.hex() == TEXT


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_every_key_survives_the_round_trip_through_its_text(raw: bytes) -> None:
    key = EncryptionKey(raw)
    assert key.raw == raw
    assert EncryptionKey.parse(key.hex()) == EncryptionKey.parse(key.hex().upper()) == key


@pytest.mark.parametrize("length", [0, 1, 32, 62, 63, 65, 66, 128])
def test_a_text_of_another_length_is_refused_by_its_length(length: int) -> None:
    with pytest.raises(ValueError, match=f"^expected 64 hex characters, got {length}$"):
        EncryptionKey.parse("a" * length)


@pytest.mark.parametrize("foreign", ["g", "G", "-", "_", " ", "\n", "\0", "é", "\uff11", "\u0661"])
@pytest.mark.parametrize("index", [0, 1, 31, 62, 63])
def test_a_foreign_character_is_named_by_its_position(index: int, foreign: str) -> None:
    text = TEXT[:index] + foreign + TEXT[index + 1 :]
    with pytest.raises(ValueError, match=f"^expected 64 hex characters, character {index + 1} is not one$"):
        EncryptionKey.parse(text)


@pytest.mark.parametrize("text", [f"{TEXT}\n", f" {TEXT}", f"0x{TEXT}", f"{TEXT[:32]} {TEXT[32:]}"])
def test_decoration_around_the_digits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^expected 64 hex characters, got {len(text)}$"):
        EncryptionKey.parse(text)


@given(
    any_text(max_size=130)
    | any_text(min_size=64, max_size=64)
    | st.text(alphabet=HEX, max_size=130)
    | st.text(alphabet=HEX + "xyz _-\n", min_size=64, max_size=64)
)
def test_a_refusal_says_figures_only_and_never_a_piece_of_the_text(text: str) -> None:
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        assert EncryptionKey.parse(text).hex() == text.lower()
        return
    with pytest.raises(ValueError, match=REFUSAL) as refused:
        EncryptionKey.parse(text)
    assert REFUSAL.fullmatch(str(refused.value))
    assert refused.value.args == (str(refused.value),)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_raw_bytes_of_another_length_are_refused_without_being_shown(length: int) -> None:
    with pytest.raises(ValueError, match=f"^expected 32 bytes, got {length}$"):
        EncryptionKey(b"s" * length)


def test_a_key_does_not_change_with_the_buffer_it_came_from() -> None:
    buffer = bytearray(RAW)
    key = EncryptionKey(buffer)  # type: ignore[arg-type]
    buffer[:] = bytes(KEY_BYTES)
    assert key.raw == RAW


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_no_way_of_printing_shows_the_key(raw: bytes) -> None:
    key = EncryptionKey(raw)
    shown = [repr(key), str(key), f"{key}", f"{key!r}", f"{key!a}", "%s %r" % (key, key)]  # noqa: UP031
    assert shown == ["EncryptionKey(***)"] * 5 + ["EncryptionKey(***) EncryptionKey(***)"]
    assert repr({"key": [key]}) == "{'key': [EncryptionKey(***)]}"
    assert repr(Holder(key)) == "Holder(key=EncryptionKey(***))"


def test_a_log_line_with_a_key_shows_stars(caplog: pytest.LogCaptureFixture) -> None:
    key = EncryptionKey(RAW)
    with caplog.at_level(logging.INFO):
        logging.getLogger("duckling").info("key %s %r %s", key, key, Holder(key))
    assert TEXT not in caplog.text
    assert repr(RAW)[2:-1] not in caplog.text
    assert caplog.text.count("***") == 3


def test_a_key_cannot_slip_into_json_or_a_dictionary_of_attributes() -> None:
    key = EncryptionKey(RAW)
    with pytest.raises(TypeError) as refused:
        json.dumps({"key": key})
    assert TEXT not in str(refused.value)
    with pytest.raises(TypeError):
        vars(key)


def test_generated_keys_are_32_bytes_and_differ() -> None:
    keys = {EncryptionKey.generate().raw for _ in range(100)}
    assert len(keys) == 100
    assert {len(raw) for raw in keys} == {KEY_BYTES}


def test_the_fingerprint_is_the_one_that_stored_objects_carry() -> None:
    """Fixed, because objects in buckets were written with it; checked against `openssl dgst -mac HMAC`."""
    assert EncryptionKey(RAW).fingerprint == "434422b84c773360"


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.integers(0, 8 * KEY_BYTES - 1))
def test_the_fingerprint_tells_keys_apart_that_differ_in_one_bit(raw: bytes, bit: int) -> None:
    other = (int.from_bytes(raw, "big") ^ 1 << bit).to_bytes(KEY_BYTES, "big")
    assert EncryptionKey(raw).fingerprint != EncryptionKey(other).fingerprint


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_the_fingerprint_is_neither_part_nor_plain_hash_of_the_key(raw: bytes) -> None:
    key = EncryptionKey(raw)
    assert re.fullmatch("[0-9a-f]{16}", key.fingerprint)
    assert key.fingerprint not in key.hex()
    assert key.fingerprint not in hashlib.sha256(raw).hexdigest()
    assert key.fingerprint not in hashlib.sha256(key.hex().encode()).hexdigest()


def test_equal_keys_are_equal_and_hash_alike_and_others_are_not() -> None:
    key = EncryptionKey(RAW)
    assert key == EncryptionKey.parse(TEXT.upper())
    assert hash(key) == hash(EncryptionKey.parse(TEXT))
    assert key != EncryptionKey(RAW[::-1])
    assert key != RAW
    assert key != TEXT
