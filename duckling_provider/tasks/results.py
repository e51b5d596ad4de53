"""What our tasks leave as XComs, for the page and the API to read, and what a trigger hands to its sensor.

A run of an earlier version may have left less than is declared here.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from duckling_provider.base.errors import ErrorRecord


class Used(TypedDict, total=False):
    """What the task used: seconds of CPU time, and bytes of backups sent to the store and received from it."""

    cpu_seconds: float
    bytes_sent: int
    bytes_received: int


class Transferred(Used):
    """A backup that a task made, read or restored: `key`, `size` of the ``.db`` file in bytes, `duration` in ms."""

    key: str
    size: int
    duration: int


class Proven(TypedDict, total=False):
    """All tables of the replica were known to equal MySQL's at the time `validated`, if any."""

    validated: str | None


class SnapshotHeld(TypedDict, total=False):
    """`held` is for how many ms no process could write the replica."""

    held: int


class SnapshotTaken(Transferred, Proven, SnapshotHeld):
    """`key` is the snapshot's file name."""

    sha256: str


class ReadWith(TypedDict, total=False):
    """`key_fingerprint` tells which key read the backup; absent where it was not encrypted here."""

    key_fingerprint: str


class BackupVerified(Transferred, ReadWith):
    mode: str


class BackupProven(BackupVerified):
    """:param whole: every byte was read back."""

    whole: bool


class BackupUploaded(BackupVerified, total=False):
    """`sha256` unless the backup is encrypted here. Of the object, the store copied `bytes_copied` of an earlier one;
    `full_because` says why it copied none.
    """

    sha256: str
    bytes_copied: int
    full_because: str


class BackupTested(BackupVerified):
    """A backup that a drill restored: durations in ms, `tested` as `base.moments.iso`; see
    `operators.drill.DucklingDrillOperator`.
    """

    restore_duration: int
    read_duration: int
    tables: int
    rows: int
    rows_compared: bool
    queries: int
    catch_up: str
    catch_up_note: str
    tested: str
    notes: list[str]


class Left(TypedDict):
    """A table that could not be followed to the moment that was wanted, and since when; None: since the backup."""

    name: str
    reason: str
    asOf: str | None


class ReachedByBinlog(TypedDict, total=False):
    """Of a restore to a moment: the position that was reached, the changes of rows that led there."""

    position: str
    changes: int
    left: list[Left]


class Delta(TypedDict, total=False):
    """Of the file, `bytes_lent` were on this machine already; `full_because` says why none were."""

    bytes_lent: int
    full_because: str


class BackupRestored(Transferred, ReadWith, ReachedByBinlog, Delta):
    """`path` is the file that now holds the backup, `kept` the file that was there before, or None."""

    path: str
    kept: str | None


class Noted(TypedDict, total=False):
    """`notes` are sentences that a person should read: of backups whose date can't be true, and of a wrong clock."""

    notes: list[str]


class CleanedUp(Noted):
    """Names and keys that were deleted, or would be."""

    local: list[str]
    s3: list[str]


class ReadCopied(TypedDict, total=False):
    """`read_copy` is when the copy for readers was last seen to be equal to the replica, ISO 8601; absent without."""

    read_copy: str


class Compared(TypedDict, total=False):
    """`yields` counts runs in a row that made way; `validated` is the time since which all tables are known to be
    equal; `differing` maps tables to rows that differed in this run, `differences` counts all ever, the last at
    `differedAt`. Times as `base.moments.iso`.
    """

    yields: int
    validated: str | None
    differing: dict[str, int]
    differences: int
    differedAt: str | None


class Synced(ReadCopied, Compared):
    """`copied` are tables, `lag` is in seconds, `recopy` maps tables to reasons, `notes` is what could not be mirrored
    exactly, and why the copy for readers is old.
    """

    changes: int
    copied: list[str]
    position: str | None
    lag: float
    recopy: dict[str, str]
    notes: list[str]


class RunResults(TypedDict, total=False):
    """The results of one run, by the names of its tasks (`dags.ids`)."""

    snapshot: SnapshotTaken
    upload: BackupUploaded
    verify: BackupProven
    cleanup: CleanedUp
    restore: BackupRestored
    sync: Synced
    drill: BackupTested


class VerifiedEvent(TypedDict):
    """The trigger's event when the backup is whole."""

    status: Literal["verified"]
    result: BackupProven


class MissingEvent(TypedDict):
    """The object did not appear in time."""

    status: Literal["missing"]


class FailedEvent(ErrorRecord):
    """The verification failed; `message` is the whole sentence."""

    status: Literal["error"]
    message: str


VerifyEvent = VerifiedEvent | MissingEvent | FailedEvent
