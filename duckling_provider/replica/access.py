"""The one way to touch a replica: lock, hold, and whatever a crash left behind are dealt with before the caller gets
on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from duckling_provider.base.cancellation import Control
from duckling_provider.replica.exchange import recover
from duckling_provider.replica.locks import unheld_lock

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replica_access(
    replica: Path, *, operation: str, owner: str = "", wait: float = 60.0, control: Control | None = None
) -> Iterator[None]:
    """Exclusive access to `replica` among all who honour the protocol of `locks`.

    An interrupted restore is undone or completed first, so that no caller ever sees its half-way state.

    :param operation: for the messages of those who have to wait, e.g. ``"snapshot"``.
    :param owner: the run this belongs to; it may pass its own hold.
    :param wait: seconds to wait for a lock or hold of another process.
    :raises BusyError: after `wait` seconds.
    """
    with unheld_lock(
        replica,
        operation=operation,
        owner=owner,
        wait=wait,
        control=control,
        on_stale=lambda hold: log.warning("%s: cleared a hold whose owner is gone: %s", replica, hold),
    ):
        recover(replica)
        yield
