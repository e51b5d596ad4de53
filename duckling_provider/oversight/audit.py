"""Who restored, deleted, changed or pinned what, and when.

``BACKUP_PATH/<id>/audit.jsonl`` of the host on which it was done, mode 0600: one JSON object a line, the oldest first.
A full file becomes ``audit.jsonl.1``, in place of the one before, so the two hold the last one to two MiB. No secret of
the entry gets in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from duckling_provider.base.durable_files import make_folder
from duckling_provider.base.errors import CancelledError, DucklingError, WrongHostError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.moments import iso
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.config.masking import MASK

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database

AUDIT = "audit.jsonl"
_OLDER = f"{AUDIT}.1"
_LOCK = ".audit.lock"
#: Bytes after which a file is full.
_FULL = 1 << 20
#: Characters of a detail: a clean-up may have deleted thousands of backups.
_MOST = 2000

Deed = Literal["restore", "delete", "pin", "unpin", "retention", "change", "release"]
"""``retention``: backups were deleted by it; ``change``: of the entry in databases.json."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditLine:
    """`what` was done `by` whom on `host`, to the backup `key` where it is about one; `detail` is for people, and so is
    `error`, which says why it failed, empty where it did not.
    """

    at: str
    what: str
    by: str
    host: str
    key: str = ""
    detail: str = ""
    error: str = ""

    def as_json(self) -> dict[str, str]:
        return {name: text for name, text in asdict(self).items() if text or name in ("at", "what", "by", "host")}


def audit(database: Database, what: Deed, *, by: str, key: str = "", detail: str = "", error: str = "") -> None:
    """Add a line.

    Raises nothing but a cancellation: the deed is done, whether there is a line about it or not; but the log says then
    that there is none.
    """
    secrets = database.secrets()

    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text if len(text) <= _MOST else f"{text[:_MOST]}…"

    now = iso(datetime.now(timezone.utc))
    line = AuditLine(now, what, clean(by), database.here, clean(key), clean(detail), clean(error))
    folder = database.backup_path
    log.info("%s: %s by %s%s", database.id, what, line.by, f": {line.error}" if error else "")
    try:
        make_folder(folder)
        with FileLock(folder / _LOCK, operation="audit", wait=10):
            _append(folder, json.dumps(line.as_json()).encode() + b"\n")
    except CancelledError:
        raise
    except (DucklingError, OSError) as failure:
        log.warning("%s: no line could be written of: %s by %s: %s", folder / AUDIT, what, line.by, failure)


def _append(folder: Path, line: bytes) -> None:
    path = folder / AUDIT
    fd = open_state(path, os.O_WRONLY | os.O_APPEND, create=True)
    try:
        if os.fstat(fd).st_size + len(line) > _FULL:
            os.close(fd)
            os.replace(path, folder / _OLDER)
            fd = open_state(path, os.O_WRONLY | os.O_APPEND, create=True)
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass
class Told:
    """What the line is going to say; the block may know better in the end, such as which backup was the latest."""

    key: str
    detail: str


@contextlib.contextmanager
def audited(database: Database, what: Deed, *, by: str, key: str = "", detail: str = "") -> Iterator[Told]:
    """Add a line when the block ends, well or not."""
    told = Told(key, detail)
    try:
        yield told
    except WrongHostError:
        raise  # nothing was touched
    except BaseException as error:
        why = error.what if isinstance(error, DucklingError) else f"stopped: {type(error).__name__}"
        audit(database, what, by=by, key=told.key, detail=told.detail, error=why)
        raise
    audit(database, what, by=by, key=told.key, detail=told.detail)


def read_audit(folder: Path) -> list[AuditLine]:
    """The lines of one database, the newest first; what is no line is left out.

    :param folder: of its local backups.
    :raises StateFileError: a file is none of ours.
    """
    found = []
    names = {name.name for name in fields(AuditLine)}
    for name in (_OLDER, AUDIT):
        try:
            content = read_state(folder / name)
        except FileNotFoundError:
            continue
        for line in content.splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                facts = json.loads(line)
                found.append(AuditLine(**{key: str(value) for key, value in facts.items() if key in names}))
    return found[::-1]
