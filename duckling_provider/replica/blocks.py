"""What a DuckDB file's own bytes say: its header, and whether each of its blocks still matches its checksum.

Layout, little-endian (DuckDB's ``storage_info.hpp`` and ``single_file_block_manager.cpp``, measured on files of every
storage version): three header pages of 4096 bytes (the main header and two database headers, of which the one with
the higher iteration is in force), then blocks of one fixed size. Each page and each block begins with the 64-bit
checksum of its rest.

DuckDB checks a block only when a query reads it; here every block is checked in one sequential pass, without opening
the file. What this can't see is a good block in the wrong place, so it stands beside a digest of the whole file, never
in its stead.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from duckling_provider.base.errors import DamagedError, ReplicaError

# numpy is imported where it is used: commands that look at no block start without it, in half of the time.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    _Words = npt.NDArray[np.uint64]

MAGIC = b"DUCK"
PAGE_BYTES = 4096
#: Bytes that `read_header` wants to see: all three header pages. The first block follows.
HEADER_BYTES = 3 * PAGE_BYTES

_DEFAULT_BLOCK = 262_144
#: DuckDB allows 16 KiB to 256 KiB today. The margin is for later versions, the upper end bounds our memory.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 4096, 16 * 1024 * 1024
_ENCRYPTED_FLAG = 1
_NO_BLOCK = 2**64 - 1

#: DuckDB's ``checksum.cpp``: 5381 XOR all 64-bit words, each multiplied by this (mod 2^64).
_SEED, _FACTOR = 5381, 0xBF58476D1CE4E5B9
_WORD = 8
#: Words multiplied at a time: 256 KiB stay in the processor's cache, which is twice as fast as whole chunks.
_SCRATCH_WORDS = 32_768
_REPORTED_BLOCKS = 100

#: The storage compatibility number in the database header -> the first release that wrote it.
_STORAGE_NAMES = {1: "v1.0", 2: "v1.0", 3: "v1.1", 4: "v1.2", 5: "v1.3", 6: "v1.4", 7: "v1.5", 69: "v2.0"}
#: Main headers of version 64 may carry a compatibility number that means nothing; DuckDB takes it for 1.
_VERSION_WITHOUT_STORAGE = 64


@dataclasses.dataclass(frozen=True)
class Header:
    """The header in force.

    The last four fields are None in a file encrypted by DuckDB, whose database headers can't be read.

    :param version: of the main header: 64 up to DuckDB 1.1, 68 for 1.5.
    :param storage: the storage compatibility number; it must never change under a replica, see `storage_name`.
    :param block_size: in bytes, checksum included.
    :param block_count: blocks in use or free. What lies behind them in the file means nothing, and the last ones need
        not be in the file when they are free.
    :param free_list: where the list of free blocks begins (DuckDB's packed pointer), None when there is none.
    """

    version: int
    encrypted: bool
    storage: int | None
    block_size: int | None
    block_count: int | None
    free_list: int | None = None

    @property
    def storage_name(self) -> str:
        """``"v1.5"``; ``"storage 12"`` for a number that is not known here, ``"encrypted"`` when it can't be read."""
        if self.storage is None:
            return "encrypted"
        return _STORAGE_NAMES.get(self.storage, f"storage {self.storage}")


def has_magic(data: bytes) -> bool:
    """Whether `data`, the first 12 bytes or more, are the beginning of a DuckDB file, encrypted or not."""
    return data[8:12] == MAGIC


def read_header(data: bytes) -> Header:
    """Parse and check the three header pages, the first `HEADER_BYTES` of the file; more is ignored.

    :raises ReplicaError: no DuckDB file, or one with a layout that is not known here.
    :raises DamagedError: cut off, or a page does not match its checksum. One bad page is enough: DuckDB reads all
        three on opening and refuses the file, also when the bad one is not in force.
    """
    import numpy as np

    if not has_magic(data):
        raise ReplicaError(
            "is not a DuckDB file" if data else "is empty, not a DuckDB file",
            hint="Check that duckdbPath names the replica.",
        )
    if len(data) < HEADER_BYTES:
        raise DamagedError(f"is cut off: {len(data)} bytes are less than the header's {HEADER_BYTES}")
    pages = np.frombuffer(data, dtype="<u8", count=HEADER_BYTES // 8).reshape(3, -1)
    intact = _intact(pages, np.empty(_SCRATCH_WORDS, dtype=np.uint64))
    if not intact[0]:
        raise DamagedError("the main header does not match its checksum")
    version, flags = struct.unpack_from("<2Q", data, 12)
    if flags & _ENCRYPTED_FLAG:
        return Header(version, encrypted=True, storage=None, block_size=None, block_count=None)
    if not (intact[1] and intact[2]):
        raise DamagedError(f"database header {1 if not intact[1] else 2} does not match its checksum")
    # As DuckDB decides: on a tie (a file without a single checkpoint) the second one is in force.
    first, second = (struct.unpack_from("<7Q", data, page * PAGE_BYTES + 8) for page in (1, 2))
    _, _, free_list, block_count, block_size, _, storage = first if first[0] > second[0] else second
    block_size = block_size or _DEFAULT_BLOCK
    if block_size & (block_size - 1) or not _SMALLEST_BLOCK <= block_size <= _LARGEST_BLOCK:
        raise ReplicaError(
            f"has blocks of {block_size} bytes, which is not known here",
            hint="It may come from a newer DuckDB.",
        )
    if block_count >= 2**62 // block_size:
        raise DamagedError(f"the header counts {block_count} blocks, more than a file can hold")
    return Header(
        version,
        encrypted=False,
        storage=1 if version == _VERSION_WITHOUT_STORAGE else storage,
        block_size=block_size,
        block_count=block_count,
        free_list=None if free_list == _NO_BLOCK else free_list,
    )


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """What a pass over all blocks has found.

    A checkpoint cuts free blocks off the file's end without a new header, so that a sound file may be shorter than its
    header says; and power loss may tear a free block that was being written. Only the free list tells both from damage,
    and finding it takes random access. When `BlockVerifier.finish` got the file, free blocks are in none of the fields.

    :param blocks: how many the header counts; 0 when `skipped`.
    :param bad: ids of the first 100 bad blocks, ascending: those that don't match their checksum and, with the file,
        those missing.
    :param bad_count: how many bad ones there are in all.
    :param skipped: nothing could be checked, because the file is encrypted by DuckDB.
    :param missing: how many blocks lie, wholly or in part, behind the end of the file. With the file this is damage and
        part of `bad_count`; without it that is unknown, and it is not.
    """

    blocks: int
    bad: tuple[int, ...]
    bad_count: int
    skipped: bool
    missing: int = 0


class BlockVerifier:
    """Checks a DuckDB file that passes by once, in order, in chunks of any size.

    Blocks behind the header's block count are not looked at: DuckDB never reads them, and a killed writer leaves such
    blocks.

    Memory: a scratch of ``max(256 KiB, block size)`` besides the caller's chunk, whatever the file's size: of a block
    that lies in two chunks, only the sum of its first part is kept. Nearly all the time is spent in numpy with the GIL
    released. Not thread-safe.
    """

    def __init__(self) -> None:
        import numpy as np

        self._start = bytearray()
        self._header: Header | None = None
        self._seen = 0
        #: Bytes of a word that the last chunk ended in.
        self._odd = bytearray()
        #: Of the block that the last chunk ended in: its first word, the sum so far, and how many bytes that is.
        self._stored = self._sum = self._begun = 0
        self._scratch: _Words = np.empty(_SCRATCH_WORDS, dtype=np.uint64)
        self._checked = 0
        self._bad: list[int] = []
        self._bad_count = 0

    @property
    def header(self) -> Header | None:
        """None until the first `HEADER_BYTES` have passed."""
        return self._header

    def update(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file.

        :raises ReplicaError: as `read_header`, once the header has passed.
        :raises DamagedError: same.
        """
        view = memoryview(chunk).cast("B")
        self._seen += len(view)
        if self._header is None:
            missing = HEADER_BYTES - len(self._start)
            self._start += view[:missing]
            view = view[missing:]
            if len(self._start) < HEADER_BYTES:
                return
            self._header = read_header(bytes(self._start))
        size = self._header.block_size
        if size is None:
            return
        if self._odd:
            missing = _WORD - len(self._odd)
            self._odd += view[:missing]
            view = view[missing:]
            if len(self._odd) < _WORD:
                return
            self._take(memoryview(bytes(self._odd)), size)
        whole = len(view) // _WORD * _WORD
        self._take(view[:whole], size)
        self._odd = bytearray(view[whole:])

    def _take(self, view: memoryview, size: int) -> None:
        """Whole words."""
        if self._begun:
            part = view[: size - self._begun]
            view = view[len(part) :]
            self._add(part)
            if self._begun < size:
                return
            self._begun = 0
            self._judge([_is_checksum(self._sum, self._stored)])
        whole = len(view) // size
        if whole:
            self._check(view, whole)
        self._add(view[whole * size :])

    def _add(self, part: memoryview) -> None:
        """Words of one block that is not whole yet."""
        import numpy as np

        if not part:
            return
        words = np.frombuffer(part, dtype="<u8")
        if not self._begun:
            self._stored, self._sum = int(words[0]), 0
        for start in range(0, len(words), len(self._scratch)):
            some = words[start : start + len(self._scratch)]
            products = np.multiply(some, np.uint64(_FACTOR), out=self._scratch[: len(some)])
            self._sum ^= int(np.bitwise_xor.reduce(products))
        self._begun += len(part)

    def _check(self, data: memoryview, count: int) -> None:
        """Check the `count` whole blocks that `data` begins with, as far as the header counts them."""
        import numpy as np

        header = self._header
        if header is None or header.block_size is None or header.block_count is None:
            return
        count = min(count, header.block_count - self._checked)
        if count <= 0:
            return
        words = header.block_size // _WORD
        if len(self._scratch) < words:
            self._scratch = np.empty(words, dtype=np.uint64)
        blocks = np.frombuffer(data, dtype="<u8", count=count * words).reshape(count, words)
        self._judge(_intact(blocks, self._scratch).tolist())

    def _judge(self, intact: list[bool]) -> None:
        """Note which of the next blocks are bad."""
        header = self._header
        if header is None or header.block_count is None:
            return
        intact = intact[: header.block_count - self._checked]
        bad = [self._checked + index for index, good in enumerate(intact) if not good]
        self._bad += bad[: _REPORTED_BLOCKS - len(self._bad)]
        self._bad_count += len(bad)
        self._checked += len(intact)

    def finish(self, size: int, *, file: BinaryIO | None = None) -> BlockReport:
        """The verdict on the whole file of `size` bytes, as the caller knows it.

        :param file: the same bytes for random access; its position changes. With it the verdict is exact, see
            `BlockReport`; it is read only when there is something to decide.
        :raises DamagedError: other than `size` bytes have passed, or the file ends within the header.
        :raises ReplicaError: nothing has passed, or no DuckDB file.
        """
        import numpy as np

        if self._seen != size:
            raise DamagedError(f"{self._seen} bytes were read of a file of {size}")
        header = self._header or read_header(bytes(self._start))
        if header.block_count is None:
            return BlockReport(blocks=0, bad=(), bad_count=0, skipped=True)
        missing = header.block_count - self._checked
        report = BlockReport(header.block_count, tuple(self._bad), self._bad_count, skipped=False, missing=missing)
        if file is None or not (self._bad or missing):
            return report
        free = _free_blocks(file, header)
        # Only the first ids are known one by one; with so many bad blocks some free ones among the rest don't matter.
        known = [block for block in self._bad if block not in free]
        free = free[free >= self._checked]
        lost = missing - len(free)
        # This far there are as many lost ones as we want to name; the header's count itself may be anything.
        end = min(header.block_count, self._checked + len(free) + _REPORTED_BLOCKS)
        named = np.setdiff1d(np.arange(self._checked, end, dtype=np.uint64), free)[: _REPORTED_BLOCKS - len(known)]
        return dataclasses.replace(
            report,
            bad=(*known, *(int(block) for block in named)),
            bad_count=self._bad_count - (len(self._bad) - len(known)) + lost,
            missing=lost,
        )


def _intact(blocks: _Words, scratch: _Words) -> npt.NDArray[np.bool_]:
    """Which rows of `blocks`, shape (n, words), begin with the checksum of their other words: bool, shape (n,).

    `scratch` has room for one row at least.
    """
    import numpy as np

    count, words = blocks.shape
    factor = np.uint64(_FACTOR)
    sums: _Words = np.empty(count, dtype=np.uint64)
    step = max(1, len(scratch) // words)
    for start in range(0, count, step):
        part = blocks[start : start + step]
        products = scratch[: part.size].reshape(part.shape)
        np.multiply(part, factor, out=products)
        np.bitwise_xor.reduce(products, axis=1, out=sums[start : start + step])
    # The first word was multiplied along with the rest, which is cheaper than leaving it out; XOR takes it back.
    stored = blocks[:, 0]
    intact: npt.NDArray[np.bool_] = (sums ^ (stored * factor) ^ np.uint64(_SEED)) == stored
    return intact


def _is_checksum(total: int, stored: int) -> bool:
    """Whether `stored`, a block's first word, is its checksum; `total` is the sum of all its words, see `_intact`."""
    return total ^ (stored * _FACTOR % 2**64) ^ _SEED == stored


def _free_blocks(file: BinaryIO, header: Header) -> _Words:
    """Ids in the free list; empty when there is none or any part of it is not plausible. 8 bytes of memory for each.

    A chain of metadata blocks, 64 to a block and each beginning with the pointer to the next, holds a count and that
    many ids (``SingleFileBlockManager::LoadFreeList``).
    """
    import numpy as np

    none: _Words = np.empty(0, dtype=np.uint64)
    if header.free_list is None or header.block_count is None:
        return none
    words = _metadata_words(file, header, header.free_list)
    count = next(words, 0)
    if count > header.block_count:
        return none
    ids = np.unique(np.fromiter(itertools.islice(words, count), dtype=np.uint64))
    return ids if len(ids) == count and (not count or ids[-1] < header.block_count) else none


def _metadata_words(file: BinaryIO, header: Header, pointer: int) -> Iterator[int]:
    """The 64-bit words of a metadata chain; ends early where a block is damaged or the chain can't be right."""
    import numpy as np

    size, count = header.block_size or 0, header.block_count or 0
    piece = (size - 8) // 64 // 8 * 8
    scratch: _Words = np.empty(max(1, size // 8), dtype=np.uint64)
    seen: set[int] = set()
    while pointer != _NO_BLOCK and pointer not in seen:
        seen.add(pointer)
        block, index = pointer & (2**56 - 1), pointer >> 56
        if block >= count or index >= 64:
            return
        file.seek(HEADER_BYTES + block * size)
        data = file.read(size)
        if len(data) < size or not _intact(np.frombuffer(data, dtype="<u8").reshape(1, -1), scratch)[0]:
            return
        pointer, *values = struct.unpack_from(f"<{piece // 8}Q", data, 8 + index * piece)
        yield from values
