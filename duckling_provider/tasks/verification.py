"""What the verifying sensor and its trigger have in common."""

from __future__ import annotations

import logging

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import NotFoundError
from duckling_provider.hooks.duckling import DucklingHook
from duckling_provider.tasks.results import BackupProven

log = logging.getLogger(__name__)


def verify_stored(database_id: str, key: str, *, control: Control) -> BackupProven | None:
    """Compare a stored backup with its proof, as ``s3.verify`` says.

    :return: None when the object is not there.
    :raises IntegrityError: when it is not what was uploaded.
    """
    from duckling_provider.backup.reading.verify import verify_upload

    hook = DucklingHook(database_id)
    database, store = hook.database, hook.store()  # outside `try`: an unknown database is no missing object
    try:
        done = verify_upload(database, store, key, control=control)
    except NotFoundError as error:
        log.info("not there yet: %s", error)
        return None
    result: BackupProven = {
        "key": done.key,
        "size": done.size,
        "duration": done.duration_ms,
        "mode": done.mode,
        "whole": done.is_whole,
    }
    if done.key_fingerprint is not None:
        result["key_fingerprint"] = done.key_fingerprint
    return result
