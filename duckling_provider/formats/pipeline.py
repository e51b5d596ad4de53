"""Several looks at the same bytes in one read: each stage runs in a thread of its own and sees every chunk in order.
And a file writer to be one of the stages.

Hashing, encryption, numpy and file writes release the GIL, so a pass takes about as long as its slowest stage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import SnapshotError
from duckling_provider.base.host_load import Passing, forget, page_memory
from duckling_provider.formats.crypto import BytesLike
from duckling_provider.stores.parts import MIB

#: Gets each chunk in order; may keep it only until it returns.
Stage: TypeAlias = Callable[[BytesLike], object]


def in_turn(*stages: Stage) -> Stage:
    """One stage of several: what the first has just read is still in the core's cache for the next, while threads on
    different cores would each fetch it from memory.
    """

    def both(chunk: BytesLike) -> None:
        for stage in stages:
            stage(chunk)

    return both


class Fanout:
    """Feed chunks to several stages at once.

    Memory: at most ``DEPTH + 2`` chunks are alive (queued, being worked on, being made by the caller), whatever the
    number of stages, since they share them.

    Used as a context manager: leaving it waits for all stages; the first error of a stage is raised by `put` or on
    leaving.
    """

    DEPTH = 1

    def __init__(self, *stages: Stage) -> None:
        self._error: BaseException | None = None
        self._spares: deque[memoryview] = deque()
        self._queues: list[queue.Queue[BytesLike | None]] = [queue.Queue(self.DEPTH) for _ in stages]
        self._threads = [
            threading.Thread(target=self._run, args=(stage, inbox), daemon=True)
            for stage, inbox in zip(stages, self._queues, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def spare(self, size: int) -> memoryview:
        """`size` writable bytes, from a page on, to make the next chunk in; the same size each time.

        They are those of a chunk that no stage looks at any more: fresh memory would be mapped, cleared and given back
        for each one, which takes as long as a digest. Put what was made before taking the next.
        """
        # While one is made, each stage has one queued and works on one.
        if len(self._spares) < self.DEPTH + 2:
            self._spares.append(page_memory(size))
        else:
            self._spares.rotate(-1)
        return self._spares[-1]

    def put(self, chunk: BytesLike) -> None:
        """Hand `chunk` to every stage; it must not change afterwards. Blocks while the slowest stage is behind."""
        if self._error is not None:
            raise self._error
        for inbox in self._queues:
            inbox.put(chunk)

    def _run(self, stage: Stage, inbox: queue.Queue[BytesLike | None]) -> None:
        while (chunk := inbox.get()) is not None:
            if self._error is None:
                try:
                    stage(chunk)
                except BaseException as error:  # handed to the caller's thread by put() or __exit__()
                    self._error = error
            # Let go before waiting for the next one, or a chunk more stays alive.
            del chunk

    def __enter__(self) -> Fanout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inbox in self._queues:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        if self._error is not None and error is None:
            raise self._error


class DurableWriter:
    """Writes chunks to a file so that they need no second way to the disk: past the page cache (open(2), O_DIRECT),
    which costs a third of the processor's time, waits for no memory, and leaves the cache to those who use it.

    Where the file system can't, or a chunk does not begin on a page (`host_load.page_memory`), it is written as usual,
    carried to the disk meanwhile, so that the last fsync finds little to do, and given back.

    Used as a context manager: when it is left without an error, everything is on the disk.

    :param fd: a descriptor open for writing, at the place to begin; it stays there.
    """

    #: Bytes between two requests to the disk, of what goes through the page cache.
    STEP = 32 << 20
    #: Bytes of one write into it. For larger ones the kernel looks for larger pages, and under a hypervisor those are
    #: the ones that the host most often has to bring first.
    PIECE = 1 << 18
    #: What places and lengths on the disk are multiples of.
    _SECTOR = 4096

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begin = self._position = os.lseek(fd, 0, os.SEEK_CUR)
        self._direct: int | None = None
        self._unsynced = 0
        self._error: OSError | None = None
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._sync, daemon=True)

    def write(self, chunk: BytesLike) -> None:
        """:raises OSError: this write failed, or an earlier one did on its way to the disk."""
        view = memoryview(chunk)
        while view:
            written = self._write_past(view) or self._write_through(view)
            view = view[written:]
            self._position += written

    def skip_to(self, position: int) -> None:
        """Leave the bytes up to there as they are."""
        self._position = position

    def _write_past(self, view: memoryview) -> int:
        """How many bytes went to the disk; 0: they can't."""
        whole = len(view) // self._SECTOR * self._SECTOR
        if self._direct is None or not whole or self._position % self._SECTOR:
            return 0
        try:
            os.lseek(self._direct, self._position, os.SEEK_SET)
            return os.write(self._direct, view[:whole])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._close_direct()
            return 0

    def _write_through(self, view: memoryview) -> int:
        os.lseek(self._fd, self._position, os.SEEK_SET)
        written = os.write(self._fd, view[: self.PIECE])
        self._unsynced += written
        if self._unsynced >= self.STEP:
            self._unsynced = 0
            self._raise()
            self._orders.put(True)
        return written

    def _sync(self) -> None:
        while self._orders.get():
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                # The kernel tells of a failed write once; the last fsync would know nothing of it.
                self._error = error
                return
            forget(self._fd)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _close_direct(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def __enter__(self) -> DurableWriter:
        with contextlib.suppress(OSError):
            # Another opening of the same file, whatever its name is by now: the caller's reads as usual.
            self._direct = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orders.put(False)
        self._thread.join()
        self._close_direct()
        os.lseek(self._fd, self._begin, os.SEEK_SET)
        if error is None:
            self._raise()
            os.fsync(self._fd)
            forget(self._fd)


#: Bytes read at once. A pass keeps `Fanout.DEPTH` + 2 of these in memory, and one of ciphertext. Small enough for what
#: one stage has read to be in the processor's cache for the next.
CHUNK = MIB


def one_pass(fd: int, size: int, stages: list[Stage], control: Control) -> None:
    """Show all bytes of the file to each of `stages`. Of those, the page cache keeps what it had before.

    :raises SnapshotError: it is shorter than `size`.
    """
    passing = Passing(fd, size)
    with Fanout(*stages) as fanout:
        position = 0
        while position < size:
            chunk = fanout.spare(CHUNK)[: size - position]
            chunk = chunk[: os.preadv(fd, [chunk], position)]
            if not chunk:
                raise SnapshotError(
                    f"the file ended at byte {position} of {size}", hint="It was truncated while it was read."
                )
            fanout.put(chunk)
            passing.done(position, position + len(chunk))
            position += len(chunk)
            control.advance(len(chunk))
