"""What work here costs the host's other programs: its priority, and the page cache.

The kernel derives the priority of disk accesses from the nice value (ioprio_set(2)), so one number lowers both.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import threading
from collections.abc import Iterator

#: Pages are looked at, and given back, in pieces of so many bytes.
_PIECE = 1 << 20
_PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def lowered_priority(steps: int, *, for_good: bool) -> Iterator[None]:
    """Within the block this thread, and the threads and programs that it starts, have a priority lower by `steps`.

    Raising it again afterwards takes a right that most users lack. So a process that lives on, such as a worker, is
    left as it is where it lacks the right.

    :param steps: 0 to 19, see nice(2).
    :param for_good: whether the process ends with the work.
    """
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    if not steps or not (for_good or _may_raise_to(before)):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, thread, min(19, before + steps))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, before)


def _may_raise_to(nice: int) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    return os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= 20 - nice


#: Ids of programs that were started here and go on: what they use counts before they have ended.
counted_programs: set[int] = set()


def cpu_seconds() -> float:
    """Of this process, of the programs that it has waited for, and of `counted_programs`, so far."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + sum(map(_seconds_of, tuple(counted_programs)))


def _seconds_of(program: int) -> float:
    try:
        with open(f"/proc/{program}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in brackets, may have blanks; utime and stime are fields 14 and 15, see proc_pid_stat(5).
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def page_memory(size: int) -> memoryview:
    """Memory of its own that begins on a page, as writing past the page cache demands (open(2), O_DIRECT)."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if size else b"")


def forget(fd: int, start: int = 0, length: int = 0) -> None:
    """Give back what the page cache has of a file, from `start` on, all for a `length` of 0; it is on the disk."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


class Passing:
    """Bytes of a file that are read or written once: what was not in the page cache before does not stay there.

    A cache that fills with a backup's bytes has thrown out what other programs need. Where the system does not tell
    what is cached (mincore(2): files of other users), nothing is given back.

    :param fd: the file.
    :param size: of the file, in bytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._cached = _cached_pieces(fd, size)

    def done(self, start: int, stop: int) -> None:
        """The bytes from `start` to `stop` are no longer needed here; written ones are on the disk."""
        if self._cached is None:
            return
        # A page that lies in two ranges goes with the second.
        piece = start // _PIECE
        while piece * _PIECE < stop:
            if piece < len(self._cached) and not self._cached[piece]:
                first, last = max(start, piece * _PIECE), min(stop, (piece + 1) * _PIECE)
                forget(self._fd, first, last - first)
            piece += 1


def _cached_pieces(fd: int, size: int) -> list[bool] | None:
    """Of each piece of the file, whether any of it is in the page cache; None where the system does not tell."""
    if not size:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        found = []
        pages = (ctypes.c_ubyte * (_PIECE // _PAGE))()
        for start in range(0, size, _PIECE):
            length = min(_PIECE, size - start)
            if libc.mincore(address + start, length, pages):
                return None
            found.append(1 in bytes(pages)[: -(-length // _PAGE)])
        return found
    finally:
        libc.munmap(address, size)
