"""The backups of one database as one list: what runs recorded, what the store has, what this host has; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.backup.inventory.states import BackupState
from duckling_provider.oversight.check import Look
from duckling_provider.replica.origin import Origin
from duckling_provider.web.services.records import Backup, Tested


@dataclass(frozen=True)
class Item:
    """One backup.

    :param key: as restore, verify and delete take it.
    :param verified: when it was proven, by a run; None when no run did.
    :param failure: why its newest verification failed; empty when it did not.
    :param stored: whether the store was asked and has it; None when it was not asked.
    :param complete: False for an encrypted one whose ``.mac`` is missing: an upload that was interrupted.
    :param here: this host has it as a local backup.
    :param recorded: a run made it or looked at it.
    :param misdated: why the moment in its name can't be true; empty when it can be.
    :param origin: the replica that it is of; None where that is not known.
    :param is_foreign: that is another one than the one that is meant.
    :param tested: the newest drill that restored it; None when none did.
    :param listed: as the store lists it, or where it is only here, this host.
    :param state: see `states`; empty where that was not looked up. `state_at` is the moment of its evidence, and
        `state_reason` says of a disproved one why it is.
    :param pinned: it stays whatever its age; None where that was not looked up.
    :param fault: why it can't be whole, by its size; empty when nothing says so.
    """

    key: str
    created: datetime
    size: int
    mode: str = ""
    verified: datetime | None = None
    duration_ms: int | None = None
    run_id: str = ""
    stored: bool | None = None
    complete: bool = True
    here: bool = False
    recorded: bool = False
    failure: str = ""
    misdated: str = ""
    origin: Origin | None = None
    is_foreign: bool = False
    fault: str = ""
    listed: ListedBackup | None = None
    state: str = ""
    state_at: datetime | None = None
    state_reason: str = ""
    pinned: bool | None = None
    tested: Tested | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


def recorded_items(backups: Iterable[Backup]) -> list[Item]:
    """What runs recorded, newest first."""
    items = [
        Item(
            b.key,
            b.created,
            b.size,
            b.mode,
            b.verified,
            b.duration_ms,
            run_id=b.run_id,
            recorded=True,
            failure=b.failure.reason if b.failure is not None else "",
            tested=b.tested,
        )
        for b in backups
    ]
    return sorted(items, key=lambda item: (item.created, item.key), reverse=True)


def merge(
    recorded: Sequence[Item],
    remote: Iterable[ListedBackup] | None,
    local: Iterable[ListedBackup],
    *,
    now: datetime,
    needs_mac: bool = False,
) -> list[Item]:
    """What is really there, newest first, with what runs recorded about it. What is nowhere any more is left out.

    :param remote: of S3; None when the database has none, or it did not answer.
    :param needs_mac: backups of this database are complete with a ``.mac`` only.
    """
    known = {item.name: item for item in recorded}
    found: dict[str, Item] = {}
    for backup in remote or ():
        item = known.get(backup.name) or Item(backup.key, backup.created, backup.size)
        found[backup.name] = replace(
            item,
            key=backup.key,
            size=item.size or backup.size,
            stored=True,
            complete=backup.has_mac or not needs_mac,
            misdated=backup.misdated(now),
            listed=backup,
            pinned=backup.is_pinned,
        )
    for backup in local:
        item = found.get(backup.name) or known.get(backup.name) or Item(backup.key, backup.created, backup.size)
        found[backup.name] = replace(
            item,
            size=item.size or backup.size,
            here=True,
            misdated=item.misdated or backup.misdated(now),
            listed=item.listed or backup,
            pinned=backup.is_pinned or item.pinned,
        )
    return sorted(found.values(), key=lambda item: (item.created, item.key), reverse=True)


def with_states(items: Iterable[Item], states: Mapping[str, BackupState]) -> list[Item]:
    """The items with what is known of each.

    :param states: by the name of the backup.
    """
    found = []
    for item in items:
        state = states.get(item.name)
        if state is None:
            found.append(item)
        else:
            reason = state.decisive.reason if state.decisive is not None else ""
            found.append(replace(item, state=state.name, state_at=state.since, state_reason=reason))
    return found


def with_looks(items: Iterable[Item], looks: Mapping[str, Look], *, mine: Origin | None) -> list[Item]:
    """The items with what a look at each told.

    :param looks: by the name of the backup.
    :param mine: the replica that is here; where there is none, the one that the newest item is of.
    """
    found = []
    for item in items:
        look = looks.get(item.name, Look())
        mine = mine or look.origin
        foreign = look.origin is not None and mine is not None and not mine.owns(look.origin, item.created)
        found.append(
            replace(
                item,
                mode=item.mode or look.mode or "",
                complete=item.complete and not look.fault,
                origin=look.origin,
                is_foreign=foreign,
                fault=look.fault,
            )
        )
    return found
