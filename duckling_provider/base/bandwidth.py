"""A limit of what all processes of one host send and receive together, which can be changed while they run.

They take turns by a small file in the data folder: under its lock each takes down up to when the line is taken, and
waits for its turn. The moment is of the clock that counts since the machine's start, which all processes share.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import threading
import time
from pathlib import Path

from duckling_provider.base.errors import StateFileError
from duckling_provider.base.state_files import open_state, read_state

#: In the data folder: a number of megabits per second that counts instead of DUCKLING_MAX_MBIT_PER_SECOND.
LIMIT_FILE = "max-mbit-per-second"
STATE_FILE = ".duckling-bandwidth"
#: Megabits per second that can be asked for, beside 0. With less, the line could be taken for longer than `_LONGEST`
#: by the parts of a few tasks, and then limits nothing.
LEAST_MBIT, MOST_MBIT = 1.0, 1_000_000.0

#: Seconds between two looks at `LIMIT_FILE`.
_LOOK_EVERY = 1.0
#: Seconds of the line that are taken at a time. Small: a store hangs up on a connection that waits long.
_TURN_SECONDS = 0.05
_LEAST, _MOST = 16 << 10, 1 << 20
#: Seconds for which the line can be taken; more is of before the machine's start.
_LONGEST = 60.0
_MOMENT = struct.Struct("<d")

log = logging.getLogger(__name__)


class Bandwidth:
    """The share of one process in the host's limit. Thread-safe.

    :param folder: the data folder.
    :param mbit: megabits per second unless `LIMIT_FILE` says otherwise; 0 for no limit.
    """

    def __init__(self, folder: Path, mbit: float) -> None:
        self._folder, self._default = folder, mbit
        self._lock = threading.Lock()
        self._rate, self._looked = _bytes_per_second(mbit), -_LOOK_EVERY
        self._told = ""
        self._free = 0.0  #: where the file can't be used

    @property
    def piece(self) -> int | None:
        """How many bytes to ask a turn for at most; None while there is no limit."""
        with self._lock:
            rate = self._present()
        return None if rate is None else int(min(max(rate * _TURN_SECONDS, _LEAST), _MOST))

    def turn(self, count: int) -> float:
        """Take the line for `count` bytes; returns the seconds to wait before they are sent or received."""
        with self._lock:
            rate = self._present()
            if rate is None:
                return 0.0
            seconds = count / rate
            try:
                return self._take(seconds)
            except (OSError, StateFileError) as error:
                self._tell(f"the limit holds for each process alone: {error}")
                start = max(time.monotonic(), self._free)
                self._free = start + seconds
                return start - time.monotonic()

    def _present(self) -> float | None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._rate = _bytes_per_second(self._wanted())
        return self._rate

    def _wanted(self) -> float:
        path = self._folder / LIMIT_FILE
        try:
            # People write it, and often their umask lets the group write, too: all that it holds is a limit.
            text = read_state(path, by_group=True).decode(errors="replace").strip()
        except FileNotFoundError:
            return self._default
        except StateFileError as error:
            self._tell(error.what)
            return self._default
        except OSError as error:
            self._tell(f"{path} is not used: {error.strerror}")
            return self._default
        if not re.fullmatch(r"\d{1,7}(\.\d+)?", text, re.ASCII) or not can_be_limit(float(text)):
            expected = f"0 or from {LEAST_MBIT:.0f} to {MOST_MBIT:.0f}"
            self._tell(f"{path} holds no number of megabits per second, {expected}: it is not used")
            return self._default
        return float(text)

    def _take(self, seconds: float) -> float:
        # Opened each time: a process that was forked would share the lock of an open one.
        fd = open_state(self._folder / STATE_FILE, os.O_RDWR, create=True)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            now, raw = time.monotonic(), os.pread(fd, _MOMENT.size, 0)
            taken = _MOMENT.unpack(raw)[0] if len(raw) == _MOMENT.size else 0.0
            start = max(now, taken) if taken < now + _LONGEST else now
            os.pwrite(fd, _MOMENT.pack(start + seconds), 0)
        finally:
            os.close(fd)
        return start - now

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            log.warning("%s", what)


def can_be_limit(mbit: float) -> bool:
    return mbit == 0 or LEAST_MBIT <= mbit <= MOST_MBIT


def _bytes_per_second(mbit: float) -> float | None:
    return mbit * 1e6 / 8 if mbit > 0 else None
