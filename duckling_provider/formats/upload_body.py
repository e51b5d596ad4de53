"""The bytes of the object to be, at random access, made on the fly from a snapshot file.

Part *i* of the object is read from the snapshot at its own offset, checked against the checksum that the snapshot
recorded, and encrypted with the key stream that belongs to that offset. So parts can be sent in any order, by any
thread, again after a failure or by a later process, and are the same bytes each time. The check comes before the first
encrypted byte leaves: a key stream never serves other bytes than those it was meant for, even if another program
changed the snapshot file.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import DamagedError
from duckling_provider.base.host_load import forget, page_memory
from duckling_provider.formats.crypto import IV_BYTES, BytesLike, CtrCipher, CtrStream, PartMac
from duckling_provider.formats.segments import SegmentCipher, SegmentStream
from duckling_provider.stores.parts import Cut, PartPlan

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Bytes made at once: few enough to stay in the processor's cache from the file to the socket, enough for threads to
#: meet at Python's lock rarely.
_READ = 1 << 20


def lead_bytes(*, encrypted: bool) -> int:
    """How many bytes of an object of format 1 precede the file's own: the IV, or nothing."""
    return IV_BYTES if encrypted else 0


class PartChecksums:
    """`PartMac` of the file's bytes in each part, fed in order with chunks of any length.

    :param plan: the cut of the *object*.
    :param lead: bytes of the object before the file's first one.
    :param key: of the checksums, whose numbers are those of the parts.
    """

    def __init__(self, plan: PartPlan, *, lead: int, key: bytes) -> None:
        self._plan, self._lead, self._key = plan, lead, key
        self._codes: list[str] = []
        self._checksum = PartMac(key, 0)
        self._left = self._capacity(0)

    @property
    def complete(self) -> Sequence[str]:
        """Those of the parts that have passed so far."""
        return self._codes

    def _capacity(self, index: int) -> int:
        return self._plan.part_size - (self._lead if index == 0 else 0)

    def update(self, chunk: BytesLike) -> None:
        view = memoryview(chunk)
        while len(view) >= self._left:
            self._checksum.update(view[: self._left])
            view = view[self._left :]
            self._next()
        self._checksum.update(view)
        self._left -= len(view)

    def _next(self) -> None:
        self._codes.append(self._checksum.hexdigest())
        self._checksum = PartMac(self._key, len(self._codes))
        self._left = self._capacity(len(self._codes))

    def finish(self) -> tuple[str, ...]:
        """32 hex characters per part of the plan."""
        # Beyond the file's end there may be parts of nothing but what follows it.
        while len(self._codes) < self._plan.count:
            self._next()
        return tuple(self._codes[: self._plan.count])


class SnapshotBody:
    """A snapshot file as the body of an object; a context manager.

    While it is open it holds a shared `flock` on the snapshot, which keeps retention from deleting it.

    Memory: one MiB for each part that was ever open at once with others, whatever the part size. It is the system's,
    not the C library's, which would keep what a thread has freed for that thread.

    :param checksums: one per part, from `PartChecksums`, made with `checksum_key`.
    :param cipher: what encrypts the file's bytes; None for the modes without client encryption.
    :param lead, tail: what the object has before and after them.
    :param digests: whether parts are to know their SHA-256, which takes as long as sending them.
    """

    def __init__(
        self,
        path: Path,
        plan: PartPlan | Cut,
        *,
        checksums: Sequence[str],
        checksum_key: bytes,
        cipher: CtrCipher | SegmentCipher | None = None,
        lead: bytes = b"",
        tail: bytes = b"",
        digests: bool = True,
        control: Control | None = None,
    ) -> None:
        self.path, self.plan, self._digests = path, plan, digests
        self._checksums, self._checksum_key = checksums, checksum_key
        self._cipher, self._lead, self._tail = cipher, lead, tail
        self._file_size = plan.size - len(lead) - len(tail)
        self._control = control or Control()
        self._fd = -1
        self._spare: list[memoryview] = []

    @property
    def size(self) -> int:
        return self.plan.size

    @property
    def part_size(self) -> int:
        return self.plan.part_size

    @property
    def count(self) -> int:
        return self.plan.count

    def __enter__(self) -> SnapshotBody:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._spare.clear()

    def open(self, index: int) -> PartReader:
        """Part `index` (from 0) as a binary file.

        :raises DamagedError: when the snapshot's bytes are no longer those that its checksum was made of.
        """
        start, stop = (at - len(self._lead) for at in self.plan.bounds(index))
        first, last = (min(max(0, at), self._file_size) for at in (start, stop))
        prefix = self._lead if index == 0 else b""
        suffix = self._tail[max(0, start - self._file_size) : max(0, stop - self._file_size)]
        try:
            block = self._spare.pop()
        except IndexError:
            block = page_memory(_READ)
        sha256 = self._checked(index, first, last, block)
        if sha256 is not None:
            sha256.update(suffix)
        return PartReader(
            os.dup(self._fd),
            first,
            last,
            self._cipher,
            prefix=prefix,
            suffix=suffix,
            sha256=None if sha256 is None else sha256.hexdigest(),
            block=block,
            spare=self._spare,
            control=self._control,
        )

    def _checked(self, index: int, first: int, last: int, block: memoryview) -> hashlib._Hash | None:
        """Compare the snapshot's bytes with the record; returns the SHA-256 of what precedes the tail in the part that
        they make, if wanted.
        """
        sha256 = hashlib.sha256(self._lead if index == 0 else b"") if self._digests else None
        stream = self._cipher.stream(first) if self._cipher is not None else None
        for number, start, stop in self._spans(index, first, last):
            checksum = PartMac(self._checksum_key, number)
            for position in range(start, stop, len(block)):
                self._control.check()
                piece = block[: stop - position]
                piece = piece[: os.preadv(self._fd, [piece], position)]
                checksum.update(piece)
                if sha256 is not None:
                    # While it is in the processor's cache: the signature would have to make and hash it once more.
                    if stream is not None:
                        stream.update_into(piece, piece)
                    sha256.update(piece)
            if checksum.hexdigest() != self._checksums[number]:
                raise DamagedError(
                    f"the snapshot's bytes {start}-{stop} changed since it was made",
                    subject=str(self.path),
                    hint="The disk or another program altered it. It is not uploaded; make a new backup.",
                )
        return sha256

    def _spans(self, index: int, first: int, last: int) -> Iterable[tuple[int, int, int]]:
        """(number of the checksum, first byte, byte after the last) of what the bytes of a part are compared with."""
        return [(index, first, last)]


class PartReader(io.RawIOBase):
    """One part as a seekable binary file of known length, encrypted while it is read. For one thread at a time.

    It has a descriptor of its own (`fd`, closed with it): a thread that was abandoned with it must never read another
    file that got the number.

    :param sha256: of the part's bytes in hex, for a signature; None where none covers them.
    :param block: writable memory that the bytes are made in; it goes to `spare` when this is closed.
    """

    def __init__(
        self,
        fd: int,
        first: int,
        last: int,
        cipher: CtrCipher | SegmentCipher | None,
        *,
        prefix: bytes,
        suffix: bytes,
        sha256: str | None,
        block: memoryview,
        spare: list[memoryview],
        control: Control,
    ) -> None:
        super().__init__()
        self.sha256 = sha256
        self._fd, self._first, self._last = fd, first, last
        self._prefix, self._suffix, self._cipher, self._control = prefix, suffix, cipher, control
        self._length = len(prefix) + last - first + len(suffix)
        # Fresh memory for every piece would be mapped, cleared and given back each time.
        self._block, self._spare = block, spare
        self._seek_to(0)

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        if not self.closed:
            # It has been read for the last time, but for a retry.
            forget(self._fd, self._first, self._last - self._first)
            os.close(self._fd)
            self._spare.append(self._block)
            # What a request that is over may still refer to keeps none of it.
            self._block = self._buffer = memoryview(b"")
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._seek_to(min(max(0, base + offset), self._length))
        return self._position

    def _seek_to(self, position: int) -> None:
        self._position = position
        self._buffer = memoryview(self._prefix)[position:]
        inside = max(0, position - len(self._prefix))
        file_position = min(self._first + inside, self._last)
        self._rest = memoryview(self._suffix)[max(0, inside - (self._last - self._first)) :]
        # The cipher starts on a block of 16 bytes: begin there and drop what lies before the wanted byte.
        at_end = file_position == self._last
        self._skip = 0 if self._cipher is None or at_end else file_position % 16
        self._file_position = file_position - self._skip
        self._stream: CtrStream | SegmentStream | None = None
        if self._cipher is not None and not at_end:
            self._stream = self._cipher.stream(self._file_position)

    def _fill(self) -> None:
        self._control.check()
        if self._file_position >= self._last:
            self._buffer, self._rest = self._rest, self._rest[:0]
            return
        block = self._block[: self._last - self._file_position]
        block = block[: os.preadv(self._fd, [block], self._file_position)]
        self._file_position += len(block)
        if self._stream is not None:
            self._stream.update_into(block, block)
        self._buffer = block[self._skip :]
        self._skip = 0

    def blocks(self) -> Iterator[memoryview]:
        """The rest of the part, to be sent, without copying; each block is good until the next one is taken."""
        while True:
            if not self._buffer:
                self._fill()
            step = self._control.piece(len(self._buffer))
            block, self._buffer = self._buffer[:step], self._buffer[step:]
            if not block:
                return
            self._position += len(block)
            self._control.transfer(len(block), sent=True)
            yield block

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._length - self._position
        if size is not None and size >= 0:
            wanted = min(size, wanted)
        pieces = []
        while wanted > 0:
            if not self._buffer:
                self._fill()
                if not self._buffer:
                    break
            piece = self._buffer[:wanted]
            self._buffer = self._buffer[len(piece) :]
            self._position += len(piece)
            wanted -= len(piece)
            pieces.append(bytes(piece))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, target: Buffer) -> int:
        view = memoryview(target).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
