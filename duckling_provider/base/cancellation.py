"""What a caller can do to a long operation: watch it, slow it and stop it.

One `Control` is made at the edge (a task, a command) and handed inward. It knows no terminal and no log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from duckling_provider.base.bandwidth import Bandwidth
from duckling_provider.base.errors import CancelledError

log = logging.getLogger(__name__)

#: Called with the step's name, bytes done and bytes in all. May come from any thread; must be quick.
ProgressCallback = Callable[[str, int, int], None]


class Control:
    """Progress out, cancellation in. Thread-safe.

    :param progress: receives ``(step, done_bytes, total_bytes)``, at most about ten times a second and once at each
        step's end.
    :param bandwidth: the limit that `transfer` keeps to.
    """

    #: Seconds between two progress calls of one step.
    INTERVAL = 0.1
    #: Seconds between two log lines of one wait.
    TOLD_EVERY = 10.0

    def __init__(self, progress: ProgressCallback | None = None, *, bandwidth: Bandwidth | None = None) -> None:
        self._progress, self.bandwidth = progress, bandwidth
        self.sent = self.received = 0  #: bytes of backups that crossed the network
        self.copied = 0  #: bytes of backups that the store copied by itself
        # A plain flag: to set an Event takes a lock, which the main thread may hold when a signal handler cancels.
        self._cancelled = False
        self._lock = threading.Lock()
        self._step, self._done, self._total = "", 0, 0
        self._reported = 0.0
        self._told_of, self._told_at = "", 0.0

    def cancel(self) -> None:
        """Ask the operation to stop at its next safe point; safe to call from a signal handler."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """:raises CancelledError: when `cancel` was called."""
        if self._cancelled:
            raise CancelledError("stopped on request", hint="Nothing is left half done; run it again when you like.")

    def wait_for(self, what: str, seconds: float) -> None:
        """`sleep`, and tell the log every `TOLD_EVERY` seconds of one wait that it is for `what`."""
        now = time.monotonic()
        if what != self._told_of or now - self._told_at >= self.TOLD_EVERY:
            log.warning("waiting: %s", what)
            self._told_of, self._told_at = what, now
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        """Wait, but wake soon and raise when cancelled."""
        deadline = time.monotonic() + seconds
        self.check()
        while (remaining := deadline - time.monotonic()) > 0:
            time.sleep(min(remaining, self.INTERVAL))
            self.check()

    def begin(self, step: str, total: int) -> None:
        """Start a step of `total` bytes."""
        self.check()
        with self._lock:
            self._step, self._done, self._total, self._reported = step, 0, total, 0.0
        self._report(force=True)

    def advance(self, count: int) -> None:
        """`count` more bytes are done (negative when a retry takes some back); raises when cancelled."""
        self.check()
        with self._lock:
            self._done += count
        self._report(force=self._done >= self._total)

    def piece(self, most: int) -> int:
        """How many bytes to `transfer` at once, `most` or less."""
        limit = self.bandwidth.piece if self.bandwidth is not None else None
        return most if limit is None else min(most, limit)

    def transfer(self, count: int, *, sent: bool = False) -> None:
        """`count` bytes cross the network: waits until it is their turn; raises when cancelled."""
        with self._lock:
            self.sent, self.received = self.sent + count * sent, self.received + count * (not sent)
        if self.bandwidth is not None and (wait := self.bandwidth.turn(count)) > 0:
            self.sleep(wait)

    def copy(self, count: int) -> None:
        """The store has copied `count` more bytes, which are done; raises when cancelled."""
        with self._lock:
            self.copied += count
        self.advance(count)

    def _report(self, *, force: bool) -> None:
        if self._progress is None:
            return
        with self._lock:
            now = time.monotonic()
            if not force and now - self._reported < self.INTERVAL:
                return
            self._reported = now
            step, done, total = self._step, self._done, self._total
        self._progress(step, done, total)
