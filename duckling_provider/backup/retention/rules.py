"""Which backups stay: a pure function decides, with a reason for each.

Only exact names of this database's backups count. A backup goes when it is older than the retention, and none of these
holds:

- it is the newest complete one, the newest verified one or the newest that a drill restored, whatever its age, so that
  a month of failing backups never eats the last good one;
- it is pinned;
- ``s3.retention`` keeps it: the newest good one of each of so many days, weeks (ISO 8601), months and years, in UTC.

A disproved backup is none of these, unless there is no other.

Local backups also go for want of room, the oldest first: `trimmed`. The newest complete one and the pinned ones stay.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.backup.inventory.states import State
from duckling_provider.base.disk_space import MARGIN
from duckling_provider.base.units import human_bytes
from duckling_provider.config.databases import Database
from duckling_provider.config.s3 import Retention

#: Bytes that no backup has: less than one header page of a DuckDB file.
_EMPTY = 4096
#: Why a backup stays that no want of room takes.
NEWEST = "the newest complete one"


@dataclass(frozen=True)
class Decision:
    """Whether a backup stays, and why."""

    backup: ListedBackup
    keep: bool
    reason: str


@dataclass(frozen=True)
class RetentionPlan:
    """What becomes of each backup, the newest first."""

    decisions: tuple[Decision, ...]

    @property
    def delete(self) -> tuple[ListedBackup, ...]:
        return tuple(decision.backup for decision in self.decisions if not decision.keep)

    @property
    def keep(self) -> tuple[ListedBackup, ...]:
        return tuple(decision.backup for decision in self.decisions if decision.keep)


def plan_retention(
    backups: Sequence[ListedBackup],
    *,
    now: datetime,
    keep_days: float,
    needs_mac: bool = False,
    rule: Retention | None = None,
    state: Callable[[ListedBackup], State] = lambda _: "verified",
    whole: Callable[[ListedBackup], bool] | None = None,
) -> RetentionPlan:
    """Decide by age, evidence, pins and the rule.

    :param now: aware; a backup goes when it was made more than `keep_days` days before.
    :param needs_mac: a backup without its ``.mac`` is not complete, so it is not the one that always stays. Where none
        is complete (the mode was changed, say), the newest of all stays: it may be the only one there is.
    :param rule: what stays beyond `keep_days`.
    :param state: looks up the state of a backup. Asked only of those that may stay for what they are.
    :param whole: looks up whether all of a backup was read and found good: the newest one stays, since the next ones
        are copied from it.
    """
    ordered = sorted(backups, key=lambda b: (b.created, b.key), reverse=True)
    # A date that can't be true must not make a backup the newest. Where there is no other, it stays.
    dated = [b for b in ordered if not b.misdated(now)] or ordered
    complete = [b for b in dated if b.has_mac or not needs_mac] or dated
    reasons = _always(complete, state, whole)
    if rule is not None:
        for backup, period in _kept_by(rule, complete, state):
            reasons.setdefault(backup.key, period)
    limit = timedelta(days=keep_days)
    decisions = []
    for backup in ordered:
        old = now - backup.created > limit
        reason = "pinned" if backup.is_pinned else reasons.get(backup.key)
        if reason is None and backup.misdated(now):
            reason = "its date can't be true"
        if reason is None:
            days = "than what s3.retention keeps" if rule is not None and not keep_days else f"than {keep_days:g} days"
            reason = f"{'older' if old else 'not older'} {days}"
        decisions.append(Decision(backup, backup.is_pinned or backup.key in reasons or not old, reason))
    return RetentionPlan(tuple(decisions))


def _always(
    complete: Sequence[ListedBackup],
    state: Callable[[ListedBackup], State],
    whole: Callable[[ListedBackup], bool] | None,
) -> dict[str, str]:
    """Why a backup stays whatever its age, by key.

    :param complete: newest first.
    """
    reasons: dict[str, str] = {}
    wanted: dict[str, Callable[[ListedBackup], bool]] = {
        "the newest that a drill restored": lambda b: state(b) == "tested",
        "the newest verified one": lambda b: state(b) in ("verified", "tested"),
    }
    if whole is not None:
        wanted["the newest that was verified in full"] = whole
    good = (b for b in complete if state(b) != "disproved")
    newest = next(good, None) or next(iter(complete), None)
    if newest is None:
        return reasons
    reasons[newest.key] = NEWEST
    # An empty object is listed like a good one; then the newest that can be one stays beside it.
    if newest.size <= _EMPTY and (other := next((b for b in good if b.size > _EMPTY), None)) is not None:
        reasons[other.key] = "the newest complete one that is not empty"
    for backup in complete:
        for reason, is_it in list(wanted.items()):
            if is_it(backup):
                reasons.setdefault(backup.key, reason)
                del wanted[reason]
        if not wanted:
            break
    return reasons


#: How a day, a week, a month and a year are called, so that two moments in one have one name.
_PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "daily": lambda made: made.isoformat()[:10],
    "weekly": lambda made: "{:04}-W{:02}".format(*made.isocalendar()),
    "monthly": lambda made: made.isoformat()[:7],
    "yearly": lambda made: made.isoformat()[:4],
}


def _kept_by(
    rule: Retention, complete: Sequence[ListedBackup], state: Callable[[ListedBackup], State]
) -> Iterator[tuple[ListedBackup, str]]:
    """(backup, period) of those that `rule` keeps: of each of the newest so many periods in which there is one that is
    not disproved, the newest that is proven, or the newest.
    """
    for name, named in _PERIODS.items():
        periods: dict[str, list[ListedBackup]] = {}
        for backup in complete:
            periods.setdefault(named(backup.created.astimezone(timezone.utc)), []).append(backup)
        left = getattr(rule, name)
        for period, made in periods.items():  # newest first
            if not left:
                break
            found = next((b for b in made if state(b) in ("verified", "tested")), None)
            found = found or next((b for b in made if state(b) == "uploaded"), None)
            if found is not None:
                yield found, f"{name}: {period}"
                left -= 1


@dataclass(frozen=True)
class Room:
    """What bounds the local backups together. In bytes: `most` that they may have (0: any), `free` on the disk, and
    `needed` there for the next one.
    """

    most: int
    free: int
    needed: int

    @classmethod
    def of(cls, database: Database, *, coming: bool) -> Room:
        """:param coming: whether the next backup is about to be made, which counts towards `most`."""
        folder = database.backup_dir
        while not folder.exists():
            folder = folder.parent
        with contextlib.suppress(FileNotFoundError):
            needed = database.replica.stat().st_size
            most = database.local_backups_max_bytes
            if most and coming:
                most = max(1, most - needed)  # 0 is no bound
            return cls(most, shutil.disk_usage(folder).free, needed + MARGIN)
        return cls(database.local_backups_max_bytes, 0, 0)


def trimmed(plan: RetentionPlan, room: Room) -> RetentionPlan:
    """`plan` for local backups, with more of them deleted, the oldest first, until they fit: down to the newest
    complete one and those that are pinned.
    """
    total = sum(decision.backup.size for decision in plan.decisions if decision.keep)
    free = room.free + sum(decision.backup.size for decision in plan.decisions if not decision.keep)
    decisions = []
    for decision in reversed(plan.decisions):
        backup, reason = decision.backup, ""
        if room.most and total > room.most:
            reason = f"the local backups have more than localBackupsMaxBytes, {human_bytes(room.most)}"
        elif free < room.needed:
            reason = f"less than {human_bytes(room.needed)}, the room for one more, is free"
        if decision.keep and reason and not backup.is_pinned and decision.reason != NEWEST:
            decision = Decision(backup, keep=False, reason=reason)  # noqa: PLW2901 - what becomes of this one
            total, free = total - backup.size, free + backup.size
        decisions.append(decision)
    return RetentionPlan(tuple(reversed(decisions)))
