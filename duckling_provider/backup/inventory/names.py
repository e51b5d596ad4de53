"""Names of backups: how a moment becomes a key, and which backup of a listing is meant.

The name is the contract's ``backup-{UTC ISO time, ':' and '.' as '-'}.db``, the same for the object and for the local
file. Everything here is pure: lists and clocks come in, names go out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from duckling_provider.base.errors import NotFoundError, RequestError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.base.strict_json import printable
from duckling_provider.base.units import span
from duckling_provider.stores.store import StoredObject

MAC_SUFFIX = ".mac"
#: Of what is known of a backup, and of the note that keeps it; see `inventory.states`.
STATE_SUFFIX = ".state"
PIN_SUFFIX = ".pin"
#: All that lies beside a backup under its name, and goes with it.
COMPANION_SUFFIXES = (MAC_SUFFIX, STATE_SUFFIX, PIN_SUFFIX)
#: How far clocks may be apart: a name that is later than the store's own time by more than that is not believed.
SKEW = timedelta(minutes=10)
#: A backup that was stored that much later than it was made is remarked on.
LATE = timedelta(days=1)
LATEST = "latest"
LATEST_TESTED = "latest-tested"
#: What is no key, but a rule by which one is chosen.
RULES = (LATEST, LATEST_TESTED)

log = logging.getLogger(__name__)

_NAME = re.compile(r"backup-(\d{4})-(\d{2})-(\d{2})T(\d{2})-(\d{2})-(\d{2})-(\d{3})Z\.db", re.ASCII)


def backup_name(stamp: str) -> str:
    return f"backup-{stamp}.db"


def parse_name(name: str) -> datetime | None:
    """The moment in a backup's file name, or None when `name` is not exactly such a name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    year, month, day, hour, minute, second, millis = map(int, match.groups())
    try:
        # Not strptime: a tenth of the time, and listings have thousands of names.
        return datetime(year, month, day, hour, minute, second, millis * 1000, tzinfo=timezone.utc)
    except ValueError:
        return None


def find_name(text: str) -> str | None:
    """The first backup's file name in a text: a key, a URL, a message."""
    match = _NAME.search(text)
    return match.group() if match else None


@dataclass(frozen=True)
class ListedBackup:
    """One backup of a listing.

    `key` is the object key or local file name, `size` in bytes, `modified` the store's own time (None where there is
    none), `created` the moment in the name, `has_mac` whether its ``.mac`` was listed too, as `has_state` and
    `is_pinned` say of the other companions.
    """

    key: str
    created: datetime
    size: int
    modified: datetime | None = None
    has_mac: bool = False
    etag: str = ""
    has_state: bool = False
    is_pinned: bool = False

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def misdated(self, now: datetime) -> str:
        """Why the moment in the name can't be true; empty when it can be.

        Such a backup is shown and can be restored by its key, but it is never ``latest``, never the one that retention
        keeps, and protects nothing: one wrong clock would hide every later backup behind it.

        :param now: aware.
        """
        if self.created - now > SKEW:
            return f"its name says {iso(self.created)}, which is in the future"
        if self.modified is not None and self.created - self.modified > SKEW:
            return f"its name says {iso(self.created)}, and it was stored at {iso(self.modified)} already"
        return ""

    def remark(self, now: datetime) -> str:
        """What is odd about its dates, for a list: it is `misdated`, or was stored long after it was made, which an
        upload that went on the next day does, and a copy.
        """
        late = timedelta(0) if self.modified is None else self.modified - self.created
        return self.misdated(now) or (f"stored {span(late.total_seconds())} later" if late > LATE else "")


def date_faults(backups: Iterable[ListedBackup], *, now: datetime, url: str = "") -> list[str]:
    """A sentence about each backup that is `misdated`.

    :param url: where they are, in front of their keys.
    """
    return [f"{url}{backup.key}: {backup.misdated(now)}" for backup in backups if backup.misdated(now)]


def assemble(prefix: str, listing: Iterable[StoredObject]) -> list[ListedBackup]:
    """Turn the objects under `prefix` into backups, newest first.

    Only exact names directly under the prefix count; other people's objects and companions are left out.
    """
    rows = list(listing)
    keys = {row.key for row in rows}
    found = []
    for row in rows:
        # The ending first: half of all objects are .mac, and listings have thousands.
        key = row.key
        created = parse_name(key[len(prefix) :]) if key.endswith(".db") and key.startswith(prefix) else None
        if created is not None:
            mac, state, pin = (key + suffix in keys for suffix in COMPANION_SUFFIXES)
            found.append(ListedBackup(key, created, row.size, row.modified, mac, row.etag, state, pin))
    return sorted(found, key=lambda b: (b.created, b.key), reverse=True)


def checked_key(prefix: str, key: str) -> str:
    """A key given by a person, as a full key under `prefix`.

    A bare backup name (``backup-….db``) is completed with the prefix.

    :raises RequestError: when it leaves the prefix, or does not look like a backup's key.
    """
    full = prefix + key if parse_name(key) is not None else key
    if key and not full.startswith(prefix) and not set(key) & set("/\\") and ".." not in key:
        # A file name, and not another place: the advice is about the name.
        raise RequestError(
            "this is no backup's file name",
            subject=printable(key),
            hint=f"{_name_advice(key)} duckling list shows all.",
        )
    inside = full.startswith(prefix) and ".." not in full and "//" not in "/" + full[len(prefix) :] and "\\" not in full
    if not inside or any(ord(c) < 32 or ord(c) == 127 for c in full):
        raise RequestError(
            f"the key lies outside this database's prefix {prefix!r}",
            subject=key,
            hint=f"Keys look like {prefix}backup-2025-03-01T14-32-11-482Z.db.",
        )
    if full == prefix or full.endswith((*COMPANION_SUFFIXES, "/")):
        raise RequestError("this is not a backup's key", subject=key, hint="Name the .db object itself.")
    return full


def wanted_before(key: str, text: str | None) -> datetime | None:
    """The time that "the newest backup before" is about, None where there is none.

    :param text: as a person writes it, see `parse_moment`; empty means none.
    :raises RequestError: it is no time, or a key is named as well.
    """
    if not (text or "").strip():
        return None
    moment = parse_moment(text or "")
    if key != LATEST:
        raise RequestError("a key and a time were given", subject=key, hint="Give one of them.")
    return moment


def _name_advice(key: str) -> str:
    """What a mistyped file name should have been."""
    if key.lower() in RULES:
        return f"For the newest backup, write {key.lower()}."
    stamp = key.removeprefix("backup-").partition(".")[0]
    meant = backup_name(stamp)
    return f"Perhaps {meant}?" if parse_name(meant) else "They look like backup-2025-03-01T14-32-11-482Z.db."


def choose(
    backups: Sequence[ListedBackup],
    *,
    now: datetime,
    subject: str,
    where: str = "",
    skipped: int = 0,
    before: datetime | None = None,
    quiet: bool = False,
) -> ListedBackup:
    """The newest backup, or the newest one made before `before`; never one that is `misdated`.

    :param now: aware.
    :param quiet: nothing is taken yet, so what is passed over is not logged.
    :param backups: newest first, as `assemble` returns them.
    :param where: what was searched, for the message.
    :param skipped: how many backups there are besides, which have no ``.mac`` although the mode demands one.
    :raises NotFoundError: when there is none.
    """
    misdated = [backup for backup in backups if backup.misdated(now)]
    for backup in misdated if not quiet else ():
        log.warning("%s is passed over: %s", backup.key, backup.misdated(now))
    backups = [backup for backup in backups if backup not in misdated]
    for backup in backups:
        if before is None or backup.created < before:
            return backup
    if misdated and not backups:
        raise NotFoundError(
            f"no backup has a date that can be true; {misdated[0].key}: {misdated[0].misdated(now)}",
            subject=subject,
            hint="A clock was wrong when it was made, or is wrong here. To restore it all the same, name its key.",
        )
    if backups and before is not None:
        oldest = backups[-1].created
        raise NotFoundError(
            f"no backup from before {before.isoformat(timespec='seconds')}",
            subject=subject,
            hint=f"The oldest is of {oldest.isoformat(timespec='seconds')}.",
        )
    cause = f"there is no backup in {where}" if where else "there is no backup"
    if skipped:
        raise NotFoundError(
            f"{cause} that s3.encryption client-aes256 allows; {skipped} without a .mac are skipped",
            subject=subject,
            hint="They were interrupted, or made without encryption: to restore such a one, set s3.encryption to none.",
        )
    raise NotFoundError(cause, subject=subject, hint="Check bucket and prefix, and that backups are made at all.")
