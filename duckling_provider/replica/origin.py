"""Which replica a backup is of: an identity in a small file beside the replica, and in each backup's metadata.

Names of databases and prefixes don't tell: two machines with the same databases.json, one of them a clone, back up two
files under one prefix. What tells them apart is ``<replica>.duckling-origin``, JSON: a random identity, the identities
that it took over from, and the place that it holds for, which is the file's own inode and, where the system has one,
its machine id. So a file that was copied with its folder is a new identity that takes over from the old one, while a
host that is renamed, and a container whose host name is another one each time, keep theirs. The host's name is for
people only.

An identity takes over from another when its folder was copied, and when a backup of the other one was restored over it:
the other's backups up to that moment are its own past, and later ones are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import RequestError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.base.state_files import open_state
from duckling_provider.replica.locks import state_path

ORIGIN_SUFFIX = ".duckling-origin"
#: Identities that are remembered; metadata has room for 2 KB, and far fewer backups are compared.
_MOST_BEFORE = 8
_MOST_BYTES = 4096
_IDENTITY = re.compile("[0-9a-f]{16}", re.ASCII)
_MACHINE_ID = Path("/etc/machine-id")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a backup is of: `replica` is 16 hex digits, empty for a replica that has no identity yet; `after` are the
    identities that it took over from, the last first, each with the moment.
    """

    replica: str
    host: str
    after: tuple[tuple[str, datetime], ...] = ()

    def __str__(self) -> str:
        return f"{self.host} (replica {self.replica or 'without an identity yet'})"

    def as_json(self) -> dict[str, str]:
        """As results and lists show it."""
        return {"host": self.host, "replica": self.replica}

    def encode(self) -> str:
        """For metadata: ``replica=…; host=…; after=…@<time>,…``."""
        parts = [f"replica={self.replica}", f"host={self.host}"]
        line = ",".join(f"{name}@{iso(moment)}" for name, moment in self.after)
        return "; ".join([*parts, f"after={line}"] if line else parts)

    @classmethod
    def parse(cls, text: str | None) -> Origin | None:
        """None for what `encode` does not make."""
        fields = dict(part.partition("=")[::2] for part in (text or "").split("; "))
        replica, host = fields.get("replica", ""), fields.get("host", "")
        if not _IDENTITY.fullmatch(replica):
            return None
        after = []
        for part in fields.get("after", "").split(","):
            name, _, moment = part.partition("@")
            with contextlib.suppress(RequestError):
                if _IDENTITY.fullmatch(name):
                    after.append((name, parse_moment(moment)))
        return cls(replica, plain_host(host), tuple(after[:_MOST_BEFORE]))

    def owns(self, other: Origin, made: datetime) -> bool:
        """Whether a backup of `other` that was made then is of this replica or of its past."""
        return other.replica == self.replica or any(name == other.replica and made <= end for name, end in self.after)

    def after_taking(self, other: Origin, moment: datetime) -> Origin:
        """This identity, once it has taken over from `other`."""
        line: dict[str, datetime] = {}
        for name, end in ((other.replica, moment), *other.after, *self.after):
            if name != self.replica:
                line[name] = max(end, line.get(name, end))
        return replace(self, after=tuple(line.items())[:_MOST_BEFORE])


def conflict(newest: Sequence[tuple[datetime, Origin | None]], mine: Origin | None) -> str:
    """Why the newest backup may be of another replica than the one that is meant; empty when all is well.

    Backups without an origin are of another program or an older version: they count as before.

    :param newest: when the newest backups were made and of what, the newest first.
    :param mine: the replica that is here; None where there is none, and so nothing to compare.
    """
    made, first = newest[0] if newest else (None, None)
    if first is None or mine is None or made is None:
        return ""
    if any(o is not None and not first.owns(o, at) and not mine.owns(o, at) for at, o in newest):
        return "the newest backups are of several replicas"
    return "" if mine.owns(first, made) else f"the newest backup is of another replica than the one here, {mine}"


def read_origin(replica: Path, *, host: str) -> Origin | None:
    """The identity of the replica, None where there is no replica. One without an identity, or whose file was copied
    from another place, has an empty one.

    :raises StateFileError: the file is none of ours.
    :raises OSError: this user can't see whether there is a replica.
    """
    try:
        os.lstat(replica)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _present(replica, host, identity="")[0]


def ensure_origin(replica: Path, *, host: str, taken: Origin | None = None) -> Origin:
    """The identity of the replica, made where it has none. The caller holds the replica's lock.

    :param taken: the origin of a backup that takes the replica's place.
    :raises StateFileError: the file is none of ours.
    """
    origin, saved = _present(replica, host, identity=secrets.token_hex(8))
    if taken is not None and taken.replica != origin.replica:
        origin = origin.after_taking(taken, datetime.now(timezone.utc))
    if origin != saved:
        _save(state_path(replica, ORIGIN_SUFFIX), origin)
    return origin


def _present(replica: Path, host: str, *, identity: str) -> tuple[Origin, Origin | None]:
    """What the replica is now, under `host`, and what its file says of this place, None where it says nothing.

    :param identity: for a replica that has none.
    """
    path = state_path(replica, ORIGIN_SUFFIX)
    new = Origin(identity, plain_host(host))
    try:
        fd = open_state(path, os.O_RDONLY)
    except FileNotFoundError:
        return new, None
    with os.fdopen(fd, "rb") as file:
        stat = os.fstat(file.fileno())
        try:
            data = json.loads(file.read(_MOST_BYTES))
            found, inode, machine = Origin.parse(data["origin"]), data["inode"], data["machine"]
        except (ValueError, KeyError, TypeError, AttributeError):
            found, inode, machine = None, 0, ""
    if found is None:
        log.warning("%s can't be used: the replica gets a new identity", path)
        return new, None
    if (inode, machine) == (stat.st_ino, _machine()):
        return replace(found, host=new.host), found
    # The other place may go on. Where the file was copied, that was when its inode was made.
    moment = datetime.now(timezone.utc) if inode == stat.st_ino else datetime.fromtimestamp(stat.st_ctime, timezone.utc)
    log.info("%s was made in another place: its replica is another one from then on", path)
    return new.after_taking(found, moment), None


def _save(path: Path, origin: Origin) -> None:
    def content(fd: int) -> bytes:
        data = {"origin": origin.encode(), "inode": os.fstat(fd).st_ino, "machine": _machine()}
        return json.dumps(data).encode()

    write_durably(path, content)


def _machine() -> str:
    """What a clone of the whole disk has otherwise; empty where there is none, as in most containers. Hashed, since the
    id itself is not to leave its file (machine-id(5)).
    """
    with contextlib.suppress(OSError):
        text = _MACHINE_ID.read_bytes().strip()
        if text:
            return hashlib.sha256(b"duckling origin v1:" + text).hexdigest()[:16]
    return ""


def plain_host(host: str) -> str:
    """A host's name as metadata may hold it."""
    return re.sub("[^A-Za-z0-9._-]", "-", host)[:255] or "unknown"
