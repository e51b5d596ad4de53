from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.base.errors import DamagedError, DucklingError, ReplicaError
from duckling_provider.replica.blocks import HEADER_BYTES, PAGE_BYTES, BlockReport, BlockVerifier, read_header

pytestmark = pytest.mark.slow

# argv: path, ATTACH options, statements separated by ";". With "crash" as the last one the process ends unclosed.
MAKE = """
import os, sys
import duckdb
path, options, script = sys.argv[1:]
connection = duckdb.connect()
connection.execute("SET force_mbedtls_unsafe = 'true'") if "ENCRYPTION" in options else None
connection.execute(f"ATTACH '{path}' AS replica ({options})")
connection.execute("USE replica")
for statement in script.split(";"):
    os._exit(0) if statement.strip() == "crash" else connection.execute(statement)
connection.close()
"""
ROWS = "SELECT i, hash(i) AS h, md5(i::VARCHAR) AS s, i % 7 AS m FROM range({}) r(i)"
# Leaves free blocks in the middle, an index, updated and deleted rows.
CHURN = f"""
    CREATE TABLE t AS {ROWS.format(60_000)}; CREATE TABLE u AS {ROWS.format(60_000)}; CHECKPOINT;
    DELETE FROM t WHERE m IN (1, 2); CHECKPOINT; DROP TABLE u; CHECKPOINT;
    INSERT INTO t {ROWS.format(20_000)}; UPDATE t SET s = 'changed' WHERE m = 3; CREATE INDEX ix ON t(i); CHECKPOINT
"""
# The last checkpoint cuts the dropped table's blocks off the file, but its header still counts them.
CUT = f"""
    CREATE TABLE t AS {ROWS.format(40_000)}; CHECKPOINT; CREATE TABLE u AS {ROWS.format(200_000)}; CHECKPOINT;
    DROP TABLE u; CHECKPOINT
"""
# A bulk insert writes its blocks before it commits; the header never hears of them.
CRASHED = f"CREATE TABLE t AS {ROWS.format(40_000)}; CHECKPOINT; BEGIN; INSERT INTO t {ROWS.format(1_500_000)}; crash"
ONE_ROW = "CREATE TABLE t AS SELECT 1 AS i"
NOTHING = "SELECT 1"

FILES = {
    "v1.0.0": ("STORAGE_VERSION 'v1.0.0'", CHURN),
    "v1.2.0": ("STORAGE_VERSION 'v1.2.0'", CHURN),
    "v1.5.0": ("STORAGE_VERSION 'v1.5.0'", CHURN),
    "default": ("TYPE duckdb", CHURN),
    "small blocks": ("STORAGE_VERSION 'v1.5.0', BLOCK_SIZE 16384", CHURN),
    "cut v1.0.0": ("STORAGE_VERSION 'v1.0.0'", CUT),
    "cut v1.5.0": ("STORAGE_VERSION 'v1.5.0'", CUT),
    "cut default": ("TYPE duckdb", CUT),
    "crashed": ("STORAGE_VERSION 'v1.5.0'", CRASHED),
    "one row": ("STORAGE_VERSION 'v1.5.0'", ONE_ROW),
    "no tables": ("STORAGE_VERSION 'v1.5.0'", NOTHING),
    "encrypted": ("ENCRYPTION_KEY 'correct horse'", CHURN),
}
Files = Callable[[str], bytes]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, made = tmp_path_factory.mktemp("blocks"), dict[str, bytes]()

    def get(name: str) -> bytes:
        if name not in made:
            path = folder / f"{name}.db"
            subprocess.run([sys.executable, "-c", MAKE, str(path), *FILES[name]], check=True, timeout=120)
            made[name] = path.read_bytes()
        return made[name]

    return get


def report_of(data: bytes, *, exact: bool = True, chunks: Iterator[int] | None = None) -> BlockReport:
    verifier, view = BlockVerifier(), memoryview(data)
    while view:
        size = next(chunks) if chunks else len(view)
        verifier.update(view[:size])
        view = view[size:]
    return verifier.finish(len(data), file=io.BytesIO(data) if exact else None)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def page(fields: bytes) -> bytes:
    """A header page with a good checksum, made here by the formula in plain Python."""
    body = fields.ljust(PAGE_BYTES - 8, b"\0")
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", body):
        checksum ^= word * 0xBF58476D1CE4E5B9 % 2**64
    return struct.pack("<Q", checksum) + body


def header_pages(main: tuple[int, int], *databases: tuple[int, ...]) -> bytes:
    return page(b"DUCK" + struct.pack("<2Q", *main)) + b"".join(page(struct.pack("<7Q", *d)) for d in databases)


@pytest.mark.parametrize(
    ("name", "version", "storage", "storage_name"),
    [("v1.0.0", 64, 1, "v1.0"), ("v1.2.0", 65, 4, "v1.2"), ("v1.5.0", 68, 7, "v1.5")],
)
def test_the_header_tells_the_storage_version(
    files: Files, name: str, version: int, storage: int, storage_name: str
) -> None:
    header = read_header(files(name)[:HEADER_BYTES])
    assert (header.version, header.storage, header.storage_name) == (version, storage, storage_name)
    assert (header.encrypted, header.block_size) == (False, 262_144)


def test_the_header_tells_the_block_size_of_a_file_with_small_blocks(files: Files) -> None:
    header = read_header(files("small blocks"))
    assert header.block_size == 16_384
    assert header.block_count == (len(files("small blocks")) - HEADER_BYTES) // 16_384


def test_an_encrypted_file_shows_no_more_than_that(files: Files) -> None:
    header = read_header(files("encrypted"))
    assert header.encrypted
    assert (header.storage, header.block_size, header.block_count) == (None, None, None)
    assert header.storage_name == "encrypted"


def test_the_database_header_with_the_higher_iteration_is_in_force() -> None:
    old, new = (4, 0, 0, 10, 262_144, 2048, 7), (5, 0, 0, 20, 262_144, 2048, 7)
    assert read_header(header_pages((68, 0), old, new)).block_count == 20
    assert read_header(header_pages((68, 0), new, old)).block_count == 20


def test_version_64_is_storage_1_whatever_the_field_says_and_block_size_0_is_the_default() -> None:
    ancient = (1, 0, 0, 3, 0, 0, 0)
    header = read_header(header_pages((64, 0), ancient, ancient))
    assert (header.storage, header.block_size) == (1, 262_144)


def test_an_unknown_storage_number_has_a_name_too() -> None:
    future = (1, 0, 0, 3, 262_144, 2048, 12)
    assert read_header(header_pages((68, 0), future, future)).storage_name == "storage 12"


@pytest.mark.parametrize("name", ["v1.0.0", "default"])
def test_every_flipped_bit_in_the_header_is_found(files: Files, name: str) -> None:
    header = files(name)[:HEADER_BYTES]
    bits = [8 * 8, 20 * 8, 4096 * 8, 8192 * 8, *random.Random(1).sample(range(HEADER_BYTES * 8), 150)]
    for bit in bits:
        with pytest.raises((DamagedError, ReplicaError)):
            read_header(flipped(header, bit))


def test_each_header_page_is_named_when_it_is_damaged(files: Files) -> None:
    for offset, name in ((100, "main header"), (4096 + 100, "database header 1"), (8192 + 100, "database header 2")):
        with pytest.raises(DamagedError) as caught:
            read_header(flipped(files("v1.5.0"), offset * 8))
        assert name in caught.value.cause


@pytest.mark.parametrize("length", [12, 4096, HEADER_BYTES - 1])
def test_a_file_that_ends_within_the_header_is_cut_off(files: Files, length: int) -> None:
    with pytest.raises(DamagedError, match="cut off"):
        read_header(files("v1.5.0")[:length])


@given(st.binary(max_size=200) | st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_arbitrary_bytes_are_refused_with_an_error_of_the_family(data: bytes) -> None:
    for attempt in (data, data[:8] + b"DUCK" + data[12:]):
        with pytest.raises(DucklingError):
            read_header(attempt)


u64 = st.integers(0, 2**64 - 1) | st.integers(0, 2**20)


@given(st.tuples(u64, u64), st.tuples(*[u64] * 7), st.tuples(*[u64] * 7), st.binary(max_size=300_000))
def test_headers_with_good_checksums_and_arbitrary_fields_end_in_a_header_or_an_error_of_the_family(
    main: tuple[int, int], first: tuple[int, ...], second: tuple[int, ...], rest: bytes
) -> None:
    data = header_pages(main, first, second) + rest
    try:
        header = read_header(data)
    except DucklingError:
        return
    assert header.version == main[0]
    assert len(report_of(data).bad) <= 100


@pytest.mark.parametrize("name", [name for name in FILES if name != "encrypted"])
def test_a_sound_file_has_no_bad_blocks(files: Files, name: str) -> None:
    report = report_of(files(name))
    assert (report.bad, report.bad_count, report.missing, report.skipped) == ((), 0, 0, False)
    assert report.blocks == read_header(files(name)).block_count


@pytest.mark.parametrize("name", ["cut v1.0.0", "cut v1.5.0", "cut default"])
def test_free_blocks_that_a_checkpoint_cut_off_are_no_damage(files: Files, name: str) -> None:
    data, header = files(name), read_header(files(name))
    assert HEADER_BYTES + (header.block_count or 0) * (header.block_size or 0) > len(data)  # or the claim is empty
    blind = report_of(data, exact=False)
    assert (blind.bad_count, blind.missing > 0) == (0, True)
    assert report_of(data).missing == 0


def test_blocks_that_a_killed_writer_left_behind_the_count_are_not_looked_at(files: Files) -> None:
    data, header = files("crashed"), read_header(files("crashed"))
    end = HEADER_BYTES + (header.block_count or 0) * (header.block_size or 0)
    assert end < len(data)  # or the claim is empty
    assert report_of(data[:end] + bytes(len(data) - end)).bad_count == 0


def test_an_encrypted_file_is_skipped(files: Files) -> None:
    assert report_of(files("encrypted")) == BlockReport(blocks=0, bad=(), bad_count=0, skipped=True)


@pytest.mark.parametrize("name", ["v1.0.0", "v1.5.0", "default", "small blocks"])
def test_every_flipped_bit_in_a_block_is_found_and_the_block_named(files: Files, name: str) -> None:
    data, size = files(name), read_header(files(name)).block_size or 0
    for bit in random.Random(2).sample(range(HEADER_BYTES * 8, len(data) * 8), 60):
        report = report_of(flipped(data, bit), exact=False)
        assert (report.bad, report.bad_count) == (((bit // 8 - HEADER_BYTES) // size,), 1)


def test_a_torn_free_block_does_not_count_when_the_file_is_at_hand(files: Files) -> None:
    data, header = files("default"), read_header(files("default"))
    size, count = header.block_size or 0, header.block_count or 0
    spoiled = bytearray(data)
    for block in range(count):
        spoiled[HEADER_BYTES + block * size + 1000] ^= 1
    # With the free list's own block spoiled nothing can be trusted: all of them count.
    assert report_of(bytes(spoiled)).bad_count == count
    exact = 0
    for block in range(count):
        start = HEADER_BYTES + block * size
        report = report_of(data[:start] + bytes(size) + data[start + size :])
        assert report.bad in ((), (block,))
        exact += report.bad_count
    # Free ones were let off, the others not.
    assert 0 < exact < count


@pytest.mark.parametrize("lost", [1, 5000, 262_144, 300_000])
def test_a_file_that_is_cut_off_is_reported(files: Files, lost: int) -> None:
    data = files("v1.5.0")
    blocks, gone = read_header(data).block_count or 0, -(-lost // 262_144)
    blind, exact = report_of(data[:-lost], exact=False), report_of(data[:-lost])
    assert (blind.bad_count, blind.missing) == (0, gone)
    # The last block of a file that a checkpoint has just shortened is in use.
    assert exact.bad[-1] == blocks - 1
    assert exact.bad_count == exact.missing == len(exact.bad) <= gone


def test_a_file_without_any_of_its_blocks_is_all_bad_and_the_list_stays_short(files: Files) -> None:
    data = files("small blocks")
    report = report_of(data[:HEADER_BYTES])
    assert report.bad_count == report.missing == report.blocks > 100
    assert report.bad == tuple(range(100))


def test_more_than_a_hundred_bad_blocks_are_counted_and_the_first_named(files: Files) -> None:
    data = files("small blocks")
    spoiled = bytearray(data)
    for start in range(HEADER_BYTES, len(data), 16_384):
        spoiled[start] ^= 1
    report = report_of(bytes(spoiled))
    assert report.bad == tuple(range(100))
    assert report.bad_count == report.blocks > 100


@pytest.mark.parametrize("garbage", [1, 4096, 262_144, 1_000_000])
def test_garbage_behind_the_last_block_is_ignored_as_duckdb_does(files: Files, garbage: int) -> None:
    data = files("v1.5.0")
    assert report_of(data + random.Random(3).randbytes(garbage)) == report_of(data)


CHUNKS = [1, 7, 8, 4095, 12_287, 12_288, 12_289, 262_143, 262_144, 262_145, 4 << 20]


@given(st.lists(st.sampled_from(CHUNKS), min_size=1))
def test_chunk_boundaries_do_not_change_the_report(files: Files, sizes: list[int]) -> None:
    data = bytearray(files("v1.5.0"))
    for start in range(HEADER_BYTES + 1000, len(data), 3 * 262_144):
        data[start] ^= 1
    # Small sizes are tried at the start, where the header and the first blocks are; the rest goes by in one piece.
    chunks = iter([*sizes, *[len(data)] * 2])
    assert report_of(bytes(data), chunks=chunks) == report_of(bytes(data))


@pytest.mark.parametrize("size", [4093, 65_536, 262_144, 1_000_003, 4 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_chunk_size_and_buffer_gives_the_same_report(
    files: Files, size: int, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    data = flipped(files("default"), (HEADER_BYTES + 5 * 262_144 + 77) * 8)
    verifier = BlockVerifier()
    for start in range(0, len(data), size):
        verifier.update(kind(data[start : start + size]))
    assert verifier.finish(len(data)) == report_of(data, exact=False)


def test_a_read_that_stopped_early_or_went_on_too_long_is_an_error(files: Files) -> None:
    data = files("one row")
    for size in (len(data) - 1, len(data) + 1):
        verifier = BlockVerifier()
        verifier.update(data)
        with pytest.raises(DamagedError):
            verifier.finish(size)


def test_nothing_at_all_is_no_duckdb_file() -> None:
    with pytest.raises(ReplicaError, match="empty"):
        BlockVerifier().finish(0)


def test_the_verifier_stops_as_soon_as_it_sees_that_it_is_no_duckdb_file() -> None:
    verifier = BlockVerifier()
    with pytest.raises(ReplicaError, match="not a DuckDB file"):
        verifier.update(bytes(20_000))
