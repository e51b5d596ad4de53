"""One multipart upload: parts in parallel, remembered as they arrive, completed or aborted.

Parts that an earlier object has already are copied by the store (UploadPartCopy). No answer to a copy is trusted: a
copied part counts when it has an ETag, when ListParts tells its length, and when the source is the same before and
after (stores ignore conditions on it). Whatever the store does not copy, or can't prove, is sent.

Memory: ``concurrency`` open parts, each with the buffers of its reader (see `upload_body.SnapshotBody`); parts are
never held whole.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, BinaryIO, TypedDict, cast

from botocore.exceptions import ClientError

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    CancelledError,
    DucklingError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
)
from duckling_provider.base.interruptible import Workers, interruptible
from duckling_provider.stores import parts
from duckling_provider.stores.concurrency import Concurrency
from duckling_provider.stores.parts import PartPlan
from duckling_provider.stores.s3_errors import (
    UNKNOWN_TO_THE_STORE,
    Translator,
    demands_digest,
    refuses_part_number,
)
from duckling_provider.stores.store import BAD_CREDENTIALS, IN_ARCHIVE, Body, Copies, CopyRefusedError, UploadLog

if TYPE_CHECKING:
    import io

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import ServerSideEncryptionType, StorageClassType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef, UploadPartOutputTypeDef

log = logging.getLogger(__name__)

_READ = 1 << 20
_PRECONDITION = frozenset({"PreconditionFailed", "412"})
#: What stores answer to a completion when they want parts of other sizes than an upload with copies has.
_UNEQUAL = frozenset({"InvalidPart", "InvalidPartOrder", "InvalidRequest", "InvalidArgument", "EntityTooSmall"})


class ObjectOptions(TypedDict, total=False):
    """What a store records of an object, by the S3 API's names."""

    ContentType: str
    Metadata: dict[str, str]
    ServerSideEncryption: ServerSideEncryptionType
    SSEKMSKeyId: str
    StorageClass: StorageClassType
    Tagging: str


class _Digest(TypedDict, total=False):
    ContentMD5: str


class _SourceCondition(TypedDict, total=False):
    CopySourceIfMatch: str


class _Version(TypedDict, total=False):
    VersionId: str


@dataclass(frozen=True)
class _Refusal:
    """Why a part is not copied; `passes` where that says nothing of the store, but of this source or this hour."""

    cause: str
    passes: bool


class Digests:
    """Whether a store wants a Content-MD5 with each part. Most don't, and it takes as long as the encryption: so it is
    sent to those that refuse a part without.
    """

    wanted = False


def content_md5(body: BinaryIO | io.RawIOBase) -> str:
    """The header's value for a body that can be read again: base64 of the MD5 (RFC 1864)."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := body.read(_READ):
        digest.update(block)
    body.seek(0)
    return base64.b64encode(digest.digest()).decode()


def bytes_md5(data: bytes) -> str:
    """`content_md5` of bytes in memory."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def abort_upload(client: S3Client, translator: Translator, *, bucket: str, key: str, upload_id: str) -> None:
    """Give up an unfinished upload; one that is already gone is fine, and so is a store that aborts none."""
    try:
        with translator.errors("s3:AbortMultipartUpload", key):
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except NotFoundError:
        pass
    except StoreError as error:
        if error.code not in UNKNOWN_TO_THE_STORE:
            raise


class MultipartUpload:
    """The upload of one body to one key.

    :param concurrency: parts under way at once, at most; as many are as make it faster (`stores.concurrency`).
    :param digests: what is known of the store; learns of a refusal.
    :param upload_log: where the upload is remembered; None forgets it.
    :param copies: what the store has of the object already. Copying and sending are two steps of `control` then, "copy"
        and "upload"; without, the caller has begun one of the body's size.
    """

    def __init__(
        self,
        client: S3Client,
        translator: Translator,
        *,
        bucket: str,
        key: str,
        body: Body,
        options: ObjectOptions,
        concurrency: int,
        digests: Digests,
        upload_log: UploadLog | None,
        copies: Copies | None = None,
        control: Control,
    ) -> None:
        self._copies = copies
        self._cut = copies.cut if copies is not None else PartPlan(body.size, body.part_size)
        self._condition = True  # whether the store is told which version of the source is meant
        self._digests = digests
        self._client, self._errors = client, translator.errors
        self._translator = translator
        self._bucket, self._key, self._body, self._options = bucket, key, body, options
        self._concurrency, self._log, self._control = concurrency, upload_log, control
        self._load, self._copy_load = Concurrency(concurrency), Concurrency(concurrency)
        self._etags: dict[int, str] = {}
        self._upload_id = ""

    def run(self, before_visible: Callable[[], None] | None) -> None:
        self._resume_or_begin()
        try:
            if self._copies is not None:
                self._copy_missing_parts(self._copies)
            self._send_missing_parts()
            if self._copies is not None:
                self._prove_copies(self._copies)
            if before_visible is not None:
                before_visible()
            self._complete()
        except BaseException as error:
            # A passing failure leaves the parts for the next try, and so do keys that have ended, which could remove
            # nothing. Everything else leaves nothing behind in the store.
            goes_on = isinstance(error, StoreError) and (error.retryable or error.code in BAD_CREDENTIALS)
            passing = goes_on and self._log is not None and not isinstance(error, CopyRefusedError)
            if not passing:
                self._give_up()
            raise
        if self._log is not None:
            self._log.clear()

    def _give_up(self) -> None:
        """Abort the upload and forget it. Raises nothing: another error is on its way to the caller.

        The log of an upload that could not be reached stays, for the next try or clean-up.
        """

        def abort() -> None:
            abort_upload(self._client, self._translator, bucket=self._bucket, key=self._key, upload_id=self._upload_id)

        try:
            interruptible(abort, self._control)
            if self._log is not None:
                self._log.clear()
        except (DucklingError, OSError) as error:
            log.warning("the unfinished upload of %s stays: %s", self._key, error)

    def _resume_or_begin(self) -> None:
        remembered = self._log.load() if self._log is not None else None
        if remembered is not None:
            self._upload_id, logged = remembered
            try:
                present = interruptible(self._present_parts, self._control)
            except (NotFoundError, StoreError) as error:
                if error.retryable and isinstance(error, StoreError):
                    raise
                log.info("the upload of %s starts again: %s", self._key, error)
            else:
                self._etags = {
                    part: etag
                    for part, etag in logged.items()
                    if present.get(part) == (_bare(etag), self._length(part))
                }
                if self._copies is None:
                    self._control.advance(sum(self._length(part) for part in self._etags))
                elif self._log is not None:
                    # What was sent in place of a copy is to be verified as what was sent.
                    self._copies.parts -= self._etags.keys() - self._log.copied()
                return
        begun = interruptible(self._create, self._control)
        if remembered is not None:
            # Not before: what made its parts unknown (wrong keys, a proxy) may have refused the new one as well.
            self._give_up()
        self._upload_id = begun
        if self._log is not None:
            self._log.begin(self._upload_id)

    def _create(self) -> str:
        with self._errors("s3:PutObject", self._key):
            answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key, **self._options)
            return answer["UploadId"]

    def _length(self, part: int) -> int:
        start, stop = self._cut.bounds(part)
        return stop - start

    def _present_parts(self) -> dict[int, tuple[str, int]]:
        present = {}
        with self._errors("s3:ListMultipartUploadParts", self._key):
            for page in self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
            ):
                for row in page.get("Parts", []):
                    present[row["PartNumber"] - 1] = (_bare(row["ETag"]), row["Size"])
        return present

    # -- parts that the store copies ----------------------------------------------------------------------------------

    def _copy_missing_parts(self, copies: Copies) -> None:
        """Copy what can be copied. Whatever is refused is taken out of `copies.parts`, to be sent.

        :raises CopyRefusedError: the store refuses the first one, and nothing has arrived yet.
        """
        self._control.begin("copy", sum(self._length(part) for part in copies.parts))
        self._control.advance(sum(self._length(part) for part in copies.parts & self._etags.keys()))
        missing = sorted(copies.parts - self._etags.keys())
        if missing:
            refusal = self._unprovable() or self._copy(missing[0])
            if refusal is not None and not self._etags:
                raise CopyRefusedError(refusal.cause, subject=self._key, retryable=refusal.passes)
            if refusal is not None:
                told = "%s: the other parts are sent, since the store does not copy them: %s"
                log.warning(told, self._key, refusal.cause)
                copies.parts -= set(missing)
            else:
                self._in_parallel(missing[1:], self._copy_or_leave, self._copy_load)
        sent = set(range(self._cut.count)) - copies.parts
        self._control.begin("upload", sum(self._length(part) for part in sent))
        self._control.advance(sum(self._length(part) for part in sent & self._etags.keys()))

    def _unprovable(self) -> _Refusal | None:
        """Why no copy could be proven by this store; None when one can."""
        try:
            interruptible(self._present_parts, self._control)
        except CancelledError:
            raise
        except DucklingError as error:
            return _Refusal(f"its copies can't be proven: {error.cause}", passes=error.retryable)
        return None

    def _copy_or_leave(self, part: int) -> None:
        if refusal := self._copy(part):
            told = "%s: part %d is sent, since the store does not copy it: %s"
            log.warning(told, self._key, part + 1, refusal.cause)
            if self._copies is not None:
                self._copies.parts.discard(part)

    def _copy(self, part: int) -> _Refusal | None:
        """Have the store copy a part; returns why it does not, None when it does."""
        if self._copies is None:
            return None
        source = self._copies.source
        start, stop = self._cut.bounds(part)
        version: _Version = {"VersionId": source.version} if source.version else {}
        place: CopySourceTypeDef = {"Bucket": self._bucket, "Key": source.key, **version}

        def copy() -> str:
            condition: _SourceCondition = {"CopySourceIfMatch": source.etag} if self._condition else {}
            with self._errors("s3:GetObjectVersion" if version else "s3:GetObject", source.key, self._control):
                answer = self._client.upload_part_copy(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    PartNumber=part + 1,
                    CopySource=place,
                    CopySourceRange=f"bytes={start}-{stop - 1}",
                    **condition,
                )
            if answer["ResponseMetadata"].get("RetryAttempts"):
                self._copy_load.refused()
            return answer.get("CopyPartResult", {}).get("ETag", "")

        try:
            try:
                etag = interruptible(copy, self._control)
            except DucklingError as error:
                # Swift refuses right conditions, too; the source is looked at before and after anyway.
                if not self._condition or not _is_precondition(error) or self._source_changed():
                    raise
                self._condition = False
                etag = interruptible(copy, self._control)
        except CancelledError:
            raise
        except DucklingError as error:
            self._copy_load.refused()
            return _Refusal(error.cause, passes=_passes(error))
        if not etag:
            return _Refusal("it answers to a copy without an ETag", passes=False)
        self._control.check()
        self._copy_load.finished(stop - start)
        self._etags[part] = etag
        if self._log is not None:
            self._log.record(part, etag, copied=True)
        self._control.copy(stop - start)
        return None

    def _source_changed(self) -> str:
        """How the source is another object than it was; empty when it is the same."""
        if self._copies is None:
            return ""
        source = self._copies.source
        version: _Version = {"VersionId": source.version} if source.version else {}

        def look() -> tuple[str, int]:
            with self._errors("s3:GetObjectVersion" if version else "s3:GetObject", source.key):
                answer = self._client.head_object(Bucket=self._bucket, Key=source.key, **version)
                return answer.get("ETag", ""), answer["ContentLength"]

        try:
            found = interruptible(look, self._control)
        except CancelledError:
            raise
        except DucklingError as error:
            return f"{source.key} can't be looked at any more: {error.cause}"
        return "" if found == (source.etag, source.size) else f"{source.key} was replaced meanwhile"

    def _prove_copies(self, copies: Copies) -> None:
        """Send each part that the store says it copied and does not have, or may have of other bytes."""
        if not copies.parts:
            return
        changed, present = self._source_changed(), {}
        if not changed:
            try:
                present = interruptible(self._present_parts, self._control)
            except CancelledError:
                raise
            except DucklingError as error:
                changed = f"its copies can't be proven: {error.cause}"
        wrong = {p for p in copies.parts if changed or present.get(p) != (_bare(self._etags[p]), self._length(p))}
        if wrong:
            log.warning(
                "%s: %d copied parts are sent: %s",
                self._key,
                len(wrong),
                changed or "their lengths or ETags are others",
            )
            copies.parts -= wrong
            for part in wrong:
                del self._etags[part]
            self._control.begin("upload", sum(self._length(part) for part in wrong))
            self._send_missing_parts()

    # -- parts that are sent ------------------------------------------------------------------------------------------

    def _send_missing_parts(self) -> None:
        order = list(range(self._cut.count))
        if len(order) > parts.SAFE_PARTS:
            # The last one first: a store that takes fewer refuses it before the others are sent for nothing.
            order.insert(0, order.pop())
        # Its first round begins now.
        self._load = Concurrency(self._concurrency, leaps=True)
        self._in_parallel([part for part in order if part not in self._etags], self._send, self._load)

    def _in_parallel(self, missing: list[int], transfer: Callable[[int], None], load: Concurrency) -> None:
        with (
            self._no_retries_once_cancelled(),
            Workers(self._concurrency, name="duckling-upload", control=self._control) as pool,
        ):
            running: set[Future[None]] = set()
            # Only as many parts as threads are ever under way, so a failure stops the rest at once.
            for part in missing:
                running.add(pool.submit(transfer, part))
                while len(running) >= load.count:
                    running = pool.settle(running, everyone=False)
            pool.settle(running, everyone=True)

    @contextlib.contextmanager
    def _no_retries_once_cancelled(self) -> Iterator[None]:
        # To botocore a body that refuses to be read is a broken connection: it would wait and try again.
        def stop(**_: object) -> None:
            self._control.check()

        events = self._client.meta.events
        events.register_first("needs-retry.s3", stop)
        try:
            yield
        finally:
            events.unregister("needs-retry.s3", stop)

    def _send(self, part: int) -> None:
        with contextlib.closing(self._body.open(part)) as reader:
            with self._errors("s3:PutObject", self._key, self._control):
                try:
                    answer = self._upload_part(part, reader)
                except ClientError as error:
                    if part >= parts.SAFE_PARTS and refuses_part_number(error):
                        raise parts.TooManyPartsError(
                            f"the store takes no part of number {part + 1}",
                            subject=self._key,
                            hint=f"Set s3.maxParts to what it takes; most that take fewer take {parts.SAFE_PARTS}.",
                        ) from error
                    if self._digests.wanted or not demands_digest(error):
                        raise
                    self._digests.wanted = True
                    reader.seek(0)
                    answer = self._upload_part(part, reader)
        self._control.check()  # the caller is gone, and the log may be another upload's
        if answer["ResponseMetadata"].get("RetryAttempts"):
            self._load.refused()
        self._load.finished(self._length(part))
        self._etags[part] = answer["ETag"]
        if self._log is not None:
            self._log.record(part, answer["ETag"])
        self._control.advance(self._length(part))

    def _upload_part(self, part: int, reader: BinaryIO | io.RawIOBase) -> UploadPartOutputTypeDef:
        digest: _Digest = {"ContentMD5": content_md5(reader)} if self._digests.wanted else {}
        return self._client.upload_part(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload_id,
            PartNumber=part + 1,
            ContentLength=self._length(part),
            Body=cast("IO[bytes]", reader),
            **digest,
        )

    def _complete(self) -> None:
        completed: list[CompletedPartTypeDef] = [
            {"PartNumber": part + 1, "ETag": self._etags[part]} for part in range(self._cut.count)
        ]

        def complete() -> None:
            try:
                with self._errors("s3:PutObject", self._key):
                    self._client.complete_multipart_upload(
                        Bucket=self._bucket,
                        Key=self._key,
                        UploadId=self._upload_id,
                        MultipartUpload={"Parts": completed},
                    )
            except (NotFoundError, NoSuchBucketError):
                # The answer to a first try may have been lost after it had done its work: then the object is there.
                if self._stored_size() != self._cut.size:
                    raise
            except StoreError as error:
                if self._copies is None or error.code not in _UNEQUAL:
                    raise
                # On a store that wants equal parts, say, a retry would be refused as well.
                raise CopyRefusedError(
                    f"it completes no upload with copied parts: {error.cause}", subject=self._key
                ) from error

        interruptible(complete, self._control)

    def _stored_size(self) -> int | None:
        """Bytes of the object; None when that can't be learnt."""
        try:
            with self._errors("s3:GetObject", self._key):
                return self._client.head_object(Bucket=self._bucket, Key=self._key)["ContentLength"]
        except DucklingError:
            return None


def _bare(etag: str) -> str:
    """Without the quotes, which some stores leave out in some answers."""
    return etag.strip('"')


def _passes(error: DucklingError) -> bool:
    """Whether a refused copy is no sign that the store copies nothing: its source is gone, replaced or in an archive,
    or the store has too much to do.
    """
    of_the_source = isinstance(error, NotFoundError) or getattr(error, "code", "") == IN_ARCHIVE
    return error.retryable or of_the_source or _is_precondition(error)


def _is_precondition(error: DucklingError) -> bool:
    return isinstance(error, IntegrityError) or (isinstance(error, StoreError) and error.code in _PRECONDITION)
