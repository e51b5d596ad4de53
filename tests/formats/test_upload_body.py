"""The object to be, part by part: the same bytes for each reader and in which order and steps, or none at all."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import CancelledError, DamagedError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats.crypto import CtrCipher
from duckling_provider.formats.upload_body import PartChecksums, PartReader, SnapshotBody, lead_bytes
from duckling_provider.stores.parts import PartPlan

KEY = EncryptionKey(bytes(range(32)))
IV = b"\xff" * 16  # the counter wraps at once

PART = 64  # a multiple of the cipher's block, as every real part size is
CHECKSUM_KEY = bytes(range(100, 132))
LENGTHS = (0, 1, 15, 16, 17, PART - 1, PART, PART + 1, 2 * PART + 500)
#: Parts longer than one read of the file.
LARGE_PART = (2 << 20) + 16
LARGE_LENGTHS = (LARGE_PART - 16, 2 * LARGE_PART + 500)

MATRIX = [(length, PART) for length in LENGTHS] + [(length, LARGE_PART) for length in LARGE_LENGTHS]


@dataclasses.dataclass(frozen=True)
class Made:
    """A snapshot, and the object that it is to become, made in one piece by the cryptography library itself."""

    path: Path
    plan: PartPlan
    checksums: tuple[str, ...]
    expected: bytes
    encrypted: bool

    def body(self, control: Control | None = None, *, digests: bool = True) -> SnapshotBody:
        return SnapshotBody(
            self.path,
            self.plan,
            checksums=self.checksums,
            checksum_key=CHECKSUM_KEY,
            cipher=CtrCipher(KEY, IV) if self.encrypted else None,
            lead=IV if self.encrypted else b"",
            digests=digests,
            control=control,
        )


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder = tmp_path_factory.mktemp("snapshots")

    def make(length: int, part: int, *, encrypted: bool, step: int = 1 << 20) -> Made:
        path = folder / f"{length}.db"
        plain = random.Random(length).randbytes(length)
        path.write_bytes(plain)
        lead = lead_bytes(encrypted=encrypted)
        plan = PartPlan(length + lead, part)
        checksums = PartChecksums(plan, lead=lead, key=CHECKSUM_KEY)
        for at in range(0, length, step):
            checksums.update(plain[at : at + step])
        expected = plain
        if encrypted:
            expected = IV + Cipher(algorithms.AES(KEY.raw), modes.CTR(IV)).encryptor().update(plain)
        return Made(path, plan, checksums.finish(), expected, encrypted)

    return make


@pytest.mark.parametrize("encrypted", [True, False], ids=["client-aes256", "plain"])
@pytest.mark.parametrize("length,part", MATRIX)
def test_the_parts_together_are_the_object(make: Callable[..., Made], length: int, part: int, *, encrypted: bool):
    made = make(length, part, encrypted=encrypted)
    with made.body() as body:
        parts = [body.open(index) for index in range(body.count)]
        assert [len(each) for each in parts[:-1]] == [part] * (body.count - 1)
        data = [each.read() for each in parts]
    assert [len(each) for each in data] == [len(each) for each in parts]
    assert b"".join(data) == made.expected
    assert body.size == len(made.expected)


@pytest.mark.parametrize("step", [1, 7, 16, 63, 64, 65, 1000])
@pytest.mark.parametrize("length", LENGTHS)
def test_part_checksums_do_not_depend_on_how_the_file_is_fed(make: Callable[..., Made], length: int, step: int):
    for lead in (0, 16):
        data = make(length, PART, encrypted=bool(lead)).path.read_bytes()
        whole = b"\0" * lead + data
        parts = (whole[max(at, lead) : at + PART] for at in range(0, max(len(whole), 1), PART))
        # GCM encrypts nothing here, so all that it returns is the tag.
        gcm = AESGCM(CHECKSUM_KEY)
        expected = tuple(gcm.encrypt(number.to_bytes(12, "big"), b"", part).hex() for number, part in enumerate(parts))
        assert make(length, PART, encrypted=bool(lead), step=step).checksums == expected


@pytest.mark.parametrize("encrypted", [True, False], ids=["client-aes256", "plain"])
def test_parts_are_the_same_in_any_order_from_any_thread_and_again(make: Callable[..., Made], *, encrypted: bool):
    made = make(2 * PART + 500, PART, encrypted=encrypted)
    order = [*range(made.plan.count), *range(made.plan.count)]
    random.Random(7).shuffle(order)
    with made.body() as body, ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda index: (index, body.open(index).read()), order))
    for index, data in read:
        start, stop = made.plan.bounds(index)
        assert data == made.expected[start:stop]


ACTIONS = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 3 * PART)),
    st.tuples(st.just("readinto"), st.integers(0, 3 * PART)),
    st.tuples(st.just("seek"), st.integers(0, 3 * PART)),
    st.tuples(st.just("skip"), st.integers(-PART, PART)),
    st.tuples(st.just("from end"), st.integers(-2 * PART, 0)),
)


@given(encrypted=st.booleans(), index=st.integers(0, 9), actions=st.lists(ACTIONS, max_size=12))
def test_any_pattern_of_seeks_and_reads_gives_slices_of_the_part(
    make: Callable[..., Made], index: int, actions: list[tuple[str, int]], *, encrypted: bool
):
    made = make(2 * PART + 500, PART, encrypted=encrypted)
    index %= made.plan.count
    start, stop = made.plan.bounds(index)
    model = io.BytesIO(made.expected[start:stop])
    with made.body() as body:
        part = body.open(index)
        for action, number in actions:
            if action == "read":
                assert part.read(number) == model.read(number)
            elif action == "readinto":
                ours, theirs = bytearray(number), bytearray(number)
                assert part.readinto(ours) == model.readinto(theirs)
                assert ours == theirs
            else:
                whence = {"seek": os.SEEK_SET, "skip": os.SEEK_CUR, "from end": os.SEEK_END}[action]
                # Before the beginning and behind the end the part stops; files differ there.
                base = {"seek": 0, "skip": model.tell(), "from end": stop - start}[action]
                model.seek(min(max(0, base + number), stop - start))
                assert part.seek(number, whence) == model.tell()
            assert part.tell() == model.tell()


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 17, (1 << 20) - 17, (1 << 20) - 16, (1 << 20) - 1, 1 << 20])
def test_a_part_of_many_reads_goes_on_from_anywhere(make: Callable[..., Made], offset: int):
    made = make(LARGE_LENGTHS[-1], LARGE_PART, encrypted=True)
    with made.body() as body:
        for index in range(body.count - 1):
            part = body.open(index)
            part.seek(offset)
            start, stop = made.plan.bounds(index)
            assert part.read() == made.expected[start + offset : stop]


# ---- a snapshot that is not what it was --------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [True, False], ids=["client-aes256", "plain"])
@pytest.mark.parametrize("where", [0, PART - 17, PART - 16, 2 * PART, 2 * PART + 499])
def test_a_changed_byte_stops_its_part_before_a_byte_is_read(
    make: Callable[..., Made], tmp_path: Path, where: int, *, encrypted: bool
):
    made = make(2 * PART + 500, PART, encrypted=encrypted)
    altered = bytearray(made.path.read_bytes())
    altered[where] ^= 1
    path = tmp_path / "altered.db"
    path.write_bytes(altered)
    spoiled = (where + lead_bytes(encrypted=encrypted)) // PART
    with dataclasses.replace(made, path=path).body() as body:
        for index in range(body.count):
            start, stop = made.plan.bounds(index)
            if index == spoiled:
                with pytest.raises(DamagedError, match="changed since it was made"):
                    body.open(index)
            else:
                assert body.open(index).read() == made.expected[start:stop]


def test_a_cut_off_snapshot_gives_no_part_that_is_too_short(make: Callable[..., Made], tmp_path: Path):
    made = make(2 * PART + 500, PART, encrypted=True)
    path = tmp_path / "short.db"
    path.write_bytes(made.path.read_bytes()[:-1])
    with dataclasses.replace(made, path=path).body() as body, pytest.raises(DamagedError):
        body.open(body.count - 1)


def test_retention_can_tell_that_a_snapshot_is_in_use(make: Callable[..., Made]):
    made = make(PART, PART, encrypted=False)
    with made.path.open("rb") as other:
        with made.body(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_cancelled_upload_reads_no_further(make: Callable[..., Made]):
    control = Control()
    with make(2 * PART, PART, encrypted=True).body(control) as body:
        part = body.open(0)
        assert part.read(16) == IV
        control.cancel()
        with pytest.raises(CancelledError):
            part.read()
        with pytest.raises(CancelledError):
            body.open(1)


@pytest.mark.parametrize("encrypted", [True, False], ids=["client-aes256", "plain"])
@pytest.mark.parametrize("length,part", MATRIX)
def test_blocks_are_the_rest_of_the_part(make: Callable[..., Made], length: int, part: int, *, encrypted: bool):
    made = make(length, part, encrypted=encrypted)
    with made.body() as body:
        for index in range(body.count):
            start, stop = made.plan.bounds(index)
            for before in sorted({0, 5, 16, (stop - start) // 2, stop - start}):
                reader = body.open(index)
                reader.read(before)
                # Copied one by one: the memory of a block is used again for the next.
                rest = b"".join([bytes(block) for block in reader.blocks()])
                assert rest == made.expected[start + before : stop]
                assert reader.tell() == len(reader)


@pytest.mark.parametrize("mode", ["client-aes256", "none"])
def test_parts_without_digests_are_the_same_and_compared_as_well(make: Callable[..., Made], mode: str):
    made = make(2 * PART + 500, PART, encrypted=mode != "none")
    with made.body() as known, made.body(digests=False) as body:
        for index in range(body.count):
            with body.open(index) as part, known.open(index) as other:
                assert part.sha256 is None
                assert part.read() == other.read()
        data = bytearray(made.path.read_bytes())
        data[PART + 5] ^= 1
        made.path.write_bytes(data)
        with pytest.raises(DamagedError):
            body.open((PART + 5 + lead_bytes(encrypted=made.encrypted)) // PART)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_threads_that_have_ended_keep_nothing_of_what_they_sent(make: Callable[..., Made]):
    made = make(64 << 20, 4 << 20, encrypted=True)
    least = 8 << 20
    with made.body() as body, ThreadPoolExecutor(16) as pool:
        together = threading.Barrier(16)

        def send(index: int) -> PartReader:
            reader = body.open(index)
            for _ in reader.blocks():
                pass
            together.wait(30)
            reader.close()
            return reader

        before = _resident()
        # What still refers to a part that was sent keeps none of it either.
        readers = list(pool.map(send, range(16)))
        assert _resident() - before > least
    assert _resident() - before < least
    assert all(reader.closed for reader in readers)
