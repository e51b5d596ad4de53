"""Where backups live, as narrow as the rest of the core needs it.

A `Store` speaks of objects and bytes; `inventory.backup_object` knows what they mean. `stores.s3` implements it on S3,
`inventory.local_backups` a `BackupSource` on the folder of local backups.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import StoreError
from duckling_provider.base.state_files import open_state, read_state
from duckling_provider.stores.parts import Cut

OCTETS = "application/octet-stream"

#: The codes of wrong keys, or keys that have ended: no permission would help.
BAD_CREDENTIALS = frozenset(
    {
        "AuthenticationRequired",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "Unauthorized",
        "401",
    }
)
#: The code of "not readable before it is thawed".
IN_ARCHIVE = "InvalidObjectState"
#: What a deletion in a bucket with versions means; "deleted" alone would be wrong.
KEPT_VERSIONS = (
    "the bucket keeps versions: what is deleted stays as a noncurrent version until a lifecycle rule removes it"
)

#: What the S3 API calls the server-side encryption of each mode that asks for one.
SSE_ALGORITHM: Mapping[str, Literal["AES256", "aws:kms"]] = {"sse-s3": "AES256", "sse-kms": "aws:kms"}


@dataclass(frozen=True)
class StoredObject:
    """What a store says of an object: `size` in bytes, metadata names in lower case, `sse` as in the S3 API
    (``"aws:kms"``).
    """

    key: str
    size: int
    etag: str = ""
    modified: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    sse: str | None = None
    kms_key_id: str | None = None
    #: Of the bucket's versions of it, empty where it keeps none.
    version: str = ""


class Body(Protocol):
    """The bytes of an object to be: `count` parts of `part_size` bytes, the last one shorter, each readable at any
    time.
    """

    @property
    def size(self) -> int: ...
    @property
    def part_size(self) -> int: ...
    @property
    def count(self) -> int: ...
    def open(self, index: int) -> BinaryIO | io.RawIOBase: ...


class CopyRefusedError(StoreError):
    """The store copies no parts, or not from this object: send all of them. `retryable` where it may copy from another
    object, or in another hour.
    """

    retryable = False


@dataclass
class Copies:
    """An object of which the store has parts already.

    :param cut: its parts, in place of those that its body names.
    :param source: what they are copied from, as its HEAD told before.
    :param parts: the numbers of those that are copied. What had to be sent in place of a copy is taken out meanwhile.
    """

    cut: Cut
    source: StoredObject
    parts: set[int]


@dataclass(frozen=True)
class BytesBody:
    """A small object from memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def part_size(self) -> int:
        return max(1, len(self.data))

    @property
    def count(self) -> int:
        return 1

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.data)


def unheard(_: str) -> None:
    """For callers that want no notice of each step."""


@dataclass(frozen=True)
class ProbeStep:
    """One step of a connection test: what was tried, the IAM action it needs, what went wrong (None: nothing), what
    else was found, and whether the test ends here, since all that follows would fail as well.
    """

    name: str
    action: str
    error: str | None = None
    note: str = ""
    last: bool = False


@dataclass(frozen=True)
class Swept:
    """What became of unfinished uploads: how many were aborted, and of each that could not be, or of all where they
    could not be listed, why. `note` says that the store knows no such listing, which is no fault.
    """

    aborted: int = 0
    left: tuple[str, ...] = ()
    note: str = ""


class RangeStream(Protocol):
    """Some bytes of an object, once and in order."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, fewer only at the end."""

    def readinto(self, target: memoryview, /) -> int | None:
        """Fill `target` from its beginning; returns how many bytes came, 0 at the end."""

    def close(self) -> None: ...


class BackupSource(Protocol):
    """Where complete backups are read, and deleted: an object store, or the folder of local backups.

    Errors are of the `StoreError` family, a missing object is `NotFoundError`.
    """

    @property
    def url(self) -> str:
        """Where this is, for messages, e.g. ``"s3://bucket/"``; a key is appended."""

    @property
    def prefix(self) -> str:
        """What the keys of this database's backups begin with."""

    @property
    def mode(self) -> str:
        """The encryption mode that its objects are to have, as in databases.json."""

    @property
    def presumed(self) -> Literal["uploaded", "verified"]:
        """The state of a complete backup of which no evidence is recorded."""

    def under(self, control: Control) -> BackupSource:
        """The same store; a cancellation of `control` ends the wait for its answers within a second."""

    def afresh(self) -> BackupSource:
        """The same store over new connections, where it has any."""

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> RangeStream:
        """Bytes `start` to before `stop` as a stream; with `etag`, only of that very version of the object."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object under `prefix`, all pages, without metadata."""

    def read_small(self, key: str, limit: int) -> bytes | None:
        """All of a small object, at most `limit` bytes of it; None where there is none."""

    def write_small(self, key: str, data: bytes) -> None:
        """Store a small object, in place of the one of that key, whole or not at all."""

    def delete(self, key: str) -> bool:
        """Remove an object; one that is not there is fine. Returns whether a noncurrent version of it stays."""

    def head(self, key: str) -> StoredObject:
        """What the store says of one object."""


class Store(BackupSource, Protocol):
    """An object store: what can be read there can be written, too."""

    @property
    def signs_payloads(self) -> bool:
        """Whether the signature of a part covers its bytes, by their SHA-256; else TLS alone guards them on the way."""

    @property
    def clock_fault(self) -> str:
        """How far this host's clock is from the store's, as a sentence; empty where it is right or not known yet."""

    @property
    def equal_parts(self) -> bool:
        """Whether all parts of an object but the last must be of one size."""

    def under(self, control: Control) -> Store: ...
    def afresh(self) -> Store: ...

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = OCTETS,
        metadata: Mapping[str, str] | None = None,
        before_visible: Callable[[], None] | None = None,
        upload_log: UploadLog | None = None,
        copies: Copies | None = None,
        control: Control | None = None,
    ) -> StoredObject:
        """Store an object whole or not at all.

        :param before_visible: called when all bytes have arrived and the object is about to appear.
        :param upload_log: where an interrupted upload is remembered, to be continued by a later call with the same
            body.
        :param copies: parts that the store is to copy; `body.open` must know the others, and these, too: one whose
            copy is refused or can't be proven is sent.
        :returns: what the store now says of the object.
        :raises CopyRefusedError: the store refuses the first copy, before anything was sent.
        """

    def probe(self, prefix: str, *, begin: Callable[[str], object] = unheard) -> Iterator[ProbeStep]:
        """Try under `prefix` what backups need, for real, and clean up. `begin` is called with each step's name."""

    def sweep(self, prefix: str, *, abandoned: Callable[[str, datetime], bool]) -> Swept:
        """Abort unfinished uploads for which ``abandoned(key, begun)`` holds. One that can't be aborted keeps none of
        the others; raises nothing but a cancellation.
        """

    def abort(self, key: str, upload_id: str) -> None:
        """Abort one unfinished upload; one that is gone is fine."""


class UploadLog:
    """What is known of an unfinished upload, in a file beside the snapshot: one JSON line of who, then one per part
    that arrived.

    :param path: the file.
    :param binding: what the upload is of. An upload is continued only under the same binding: another snapshot, key,
        IV, part size or bucket starts from the beginning.
    """

    def __init__(self, path: Path, binding: Mapping[str, object]) -> None:
        self.path = path
        self._binding = json.loads(json.dumps(dict(binding)))

    @property
    def binding(self) -> Mapping[str, object]:
        return dict(self._binding)

    def load(self) -> tuple[str, dict[int, str]] | None:
        """The upload's id and the ETags of the parts (from 0) that arrived, or None when there is nothing to
        continue.
        """
        owner = self.owner(self.path)
        if owner is None or owner[0] != self._binding:
            return None
        return owner[1], {part: etag for part, etag, _ in self._rows()}

    def copied(self) -> frozenset[int]:
        """The parts that the store copied, as far as is remembered; what was sent later in place of one is not."""
        last = {part: copied for part, _, copied in self._rows()}
        return frozenset(part for part, copied in last.items() if copied)

    def _rows(self) -> Iterator[tuple[int, str, bool]]:
        for line in read_state(self.path).decode(errors="replace").splitlines()[1:]:
            try:
                row = json.loads(line)
                part, etag = row["part"], row["etag"]
            except (ValueError, KeyError, TypeError):
                return  # a line torn by a crash; the part is sent again
            if type(part) is not int or part < 0 or not isinstance(etag, str):
                return
            yield part, etag, row.get("copied") is True

    @staticmethod
    def owner(path: Path) -> tuple[Mapping[str, object], str] | None:
        """The binding and the id of whatever upload the file at `path` remembers; None when it remembers none."""
        try:
            head = json.loads(read_state(path).decode(errors="replace").partition("\n")[0])
            return dict(head["binding"]), str(head["upload_id"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def begin(self, upload_id: str) -> None:
        line = json.dumps({"upload_id": upload_id, "binding": self._binding})
        write_durably(self.path, line.encode() + b"\n")

    def record(self, part: int, etag: str, *, copied: bool = False) -> None:
        # One write in append mode: lines of several threads never mix. Not synced: a lost line costs one part sent
        # again.
        fd = open_state(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            row = {"part": part, "etag": etag} | ({"copied": True} if copied else {})
            os.write(fd, json.dumps(row).encode() + b"\n")
        finally:
            os.close(fd)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
