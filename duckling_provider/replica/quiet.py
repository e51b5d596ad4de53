"""A replica that stands still: no process writes it, and its file alone has all of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import SnapshotError
from duckling_provider.replica.duckdb_file import ReadLock, checkpoint, pending_wal
from duckling_provider.replica.exchange import identity

_CHECKPOINT_TRIES = 3


@contextlib.contextmanager
def quiet(replica: Path, *, wait: float, control: Control) -> Iterator[int]:
    """A descriptor of the replica while no process can write it and its write-ahead log is folded in.

    The caller has the replica's own lock (`access.replica_access`), which keeps those out who honour it.

    :param wait: seconds to wait for other programs to close it.
    :raises BusyError: one still has it open for writing.
    :raises ReplicaError, DamagedError: see `duckdb_file.checkpoint` and `duckdb_file.ReadLock`.
    :raises SnapshotError: the log fills again as soon as it is folded in.
    """
    deadline = time.monotonic() + wait
    for _ in range(_CHECKPOINT_TRIES):
        if pending_wal(replica):
            checkpoint(replica, wait=max(0.0, deadline - time.monotonic()), control=control)
        with ReadLock(replica, wait=max(0.0, deadline - time.monotonic()), control=control) as lock:
            # A writer may have come and gone between the checkpoint and the lock.
            if not pending_wal(replica):
                yield lock.fileno()
                return
    raise SnapshotError(
        "its write-ahead log fills again as soon as it is folded in",
        subject=str(replica),
        hint="A writer that does not honour the replica's lock is at work; stop it.",
    )


def require_unchanged(replica: Path, before: tuple[int, int, int] | None) -> None:
    """:param before: the replica's `exchange.identity` before its bytes were taken.

    :raises SnapshotError: it is another one now.
    """
    if identity(replica) != before or pending_wal(replica):
        raise SnapshotError(
            "it changed while it was copied",
            subject=str(replica),
            hint="Something writes it without DuckDB's lock; the copy was discarded.",
        )
