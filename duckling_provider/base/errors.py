"""The one exception family of the project.

Every error says what failed (`operation`), on what (`subject`), why (`cause`) and what to do (`hint`), and whether
trying again can help (`retryable`). The base class itself is never raised. The Airflow adapters turn `retryable` into a
retry or a final failure, the command line into an exit code, the API the class into a status of HTTP.
"""

from __future__ import annotations

from typing import TypedDict


class ErrorRecord(TypedDict):
    """An error as JSON: `kind` is the name of its class, the rest as in `DucklingError`."""

    kind: str
    what: str
    hint: str | None
    retryable: bool


def sentences(record: ErrorRecord) -> str:
    """What failed and what to do, from an `ErrorRecord` that was read back; whole sentences, for people."""
    return " ".join(part for part in (f"{record.get('what')}.", record.get("hint")) if part)


class DucklingError(Exception):
    """Base of all errors raised on purpose.

    :param cause: why it failed, in plain words, without a final full stop and without secrets.
    :param operation: what was being done, e.g. ``"upload"``; filled in by the outermost layer that knows.
    :param subject: on what: a database id, a key, a path.
    :param hint: what the reader can do about it.
    :param retryable: whether the same call may succeed later; the class's default when omitted.
    """

    retryable: bool = False

    def __init__(
        self,
        cause: str,
        *,
        operation: str | None = None,
        subject: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.operation = operation
        self.subject = subject
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable

    @property
    def what(self) -> str:
        """What failed, on what and why, without the hint."""
        return ": ".join(part for part in (self.subject, self.operation, self.cause) if part)

    def __str__(self) -> str:
        return f"{self.what}. {self.hint}" if self.hint else self.what

    def as_record(self) -> ErrorRecord:
        """The error as JSON, for results that outlive the process."""
        return {"kind": type(self).__name__, "what": self.what, "hint": self.hint, "retryable": self.retryable}


class ConfigError(DucklingError):
    """databases.json or the environment breaks a rule; `subject` is the entry, `field` the dotted field name."""

    def __init__(self, cause: str, *, entry: str, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{field}: {cause}" if field else cause, subject=entry, hint=hint)
        self.entry = entry
        self.field = field


class RequestError(DucklingError):
    """What was asked for can't be done as it was asked: a key outside the prefix, a path that is taken, a field that
    there is not.
    """


class NotFoundError(DucklingError):
    """An unknown database, or a backup that does not exist."""


class WrongHostError(DucklingError):
    """The replica and its local backups are on another machine than this; `host` and `here` name the two."""

    def __init__(self, cause: str, *, host: str, here: str, subject: str, hint: str | None = None) -> None:
        super().__init__(cause, subject=subject, hint=hint)
        self.host = host
        self.here = here


class BusyError(DucklingError):
    """Another process holds the database, the replica or a backup; `holder` names it."""

    retryable = True

    def __init__(self, cause: str, *, holder: str, subject: str | None = None, hint: str | None = None) -> None:
        super().__init__(cause, subject=subject, hint=hint)
        self.holder = holder


class CancelledError(DucklingError):
    """The caller asked to stop (SIGTERM, `on_kill`, Ctrl-C)."""

    retryable = True


class ReplicaError(DucklingError):
    """The replica file can't be used: missing, empty, no DuckDB file, in an unexpected state."""


class DamagedError(DucklingError):
    """Data is proven to be damaged: block checksums, digests or DuckDB itself say so."""


class SnapshotError(DucklingError):
    """A consistent copy could not be made or proven."""

    retryable = True


class NoSpaceError(DucklingError):
    """Not enough free space; `needed` and `free` in bytes."""

    def __init__(
        self, cause: str, *, needed: int, free: int, subject: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(cause, subject=subject, hint=hint)
        self.needed = needed
        self.free = free


class StoreError(DucklingError):
    """The object store refused or failed; `code` is the store's own error code, e.g. ``"SlowDown"``."""

    retryable = True

    def __init__(
        self,
        cause: str,
        *,
        code: str = "",
        subject: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(cause, subject=subject, hint=hint, retryable=retryable)
        self.code = code


class AccessDeniedError(StoreError):
    """The credentials lack a permission; `action` is the IAM action, e.g. ``"s3:PutObject"``."""

    retryable = False

    def __init__(self, cause: str, *, action: str, code: str, subject: str, hint: str | None = None) -> None:
        super().__init__(cause, code=code, subject=subject, hint=hint)
        self.action = action


class NoSuchBucketError(StoreError):
    """The bucket does not exist, or lives in another region."""

    retryable = False


class FileSystemError(DucklingError):
    """The operating system refused or failed a file operation; `errno` is its number, 0 when it is not known."""

    def __init__(self, cause: str, *, errno: int = 0, subject: str | None = None, hint: str | None = None) -> None:
        super().__init__(cause, subject=subject, hint=hint)
        self.errno = errno


class StateFileError(DucklingError):
    """A file in which this program keeps its own state (hold, journal, note) can't be used."""


class UnavailableError(DucklingError):
    """Something beside the store and the replica that was needed does not answer: Airflow's database, a connection."""

    retryable = True


class ReplicationError(DucklingError):
    """Changes of the source can't be read or applied."""


class IntegrityError(DucklingError):
    """A stored backup is not what was uploaded: wrong HMAC, wrong length, wrong digest, missing ``.mac``.

    `found` is a digest of all that was read, where one was made: two readings that have the same one brought the same
    bytes.
    """

    found: str = ""


class ReplacedError(IntegrityError):
    """The object was replaced while it was being read: nothing is known of the one, nor of the other."""


class WrongKeyError(IntegrityError):
    """The object was encrypted with another key than the configured one.

    `proven`: its fingerprint says so. Otherwise damage to its first bytes would look the same.
    """

    proven: bool = True


class ModeError(DucklingError):
    """The object's encryption mode contradicts the configuration."""
