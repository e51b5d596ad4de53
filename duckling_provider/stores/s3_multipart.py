"""One multipart upload: parts in parallel, remembered as they arrive, completed or aborted.

Memory: ``concurrency`` open parts, each with the buffers of its reader (see `upload_body.SnapshotBody`); parts are
never held whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import IO, TYPE_CHECKING, Protocol, TypedDict, cast

from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import AccessDeniedError, DucklingError, NotFoundError, StoreError
from duckling_provider.base.interruptible import Workers, interruptible
from duckling_provider.stores.s3_errors import Translator
from duckling_provider.stores.store import Body, UploadLog

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSRequest
    from botocore.signers import RequestSigner
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import ServerSideEncryptionType, StorageClassType
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_SIGNATURE = "s3v4"


class ObjectOptions(TypedDict, total=False):
    """What a store is to be told of an object, by the S3 API's names."""

    ContentType: str
    Metadata: dict[str, str]
    ServerSideEncryption: ServerSideEncryptionType
    SSEKMSKeyId: str
    StorageClass: StorageClassType
    Tagging: str


class _KnownPayload(S3SigV4Auth):
    """Signs a body that knows its SHA-256 without reading it for that: a part was hashed when it was compared with the
    snapshot's record, and each further pass takes as long as the transfer. The signature is the usual one.
    """

    def payload(self, request: AWSRequest) -> str:
        known = getattr(request.body, "sha256", None)
        return known if isinstance(known, str) else str(super().payload(request))


def sign_known_payloads(client: S3Client) -> None:
    """Let `client` take a body's SHA-256 from its attribute ``sha256``, 64 hex characters, where it has one.

    botocore offers no way to add a kind of signature, but two events: the first tells it not to sign, the second lets
    us sign instead, with what it would have signed with.
    """

    def choose(signature_version: object, **_: object) -> object:
        return UNSIGNED if signature_version == _SIGNATURE else None

    def sign(
        request: AWSRequest,
        request_signer: RequestSigner,
        signature_version: object,
        signing_name: str,
        region_name: str,
        **_: object,
    ) -> None:
        if signature_version is not UNSIGNED:  # a presigned URL
            return
        # The rules for the endpoint may say otherwise than the client.
        scope = request.context.get("signing", {})
        name, region = scope.get("signing_name") or signing_name, scope.get("region") or region_name
        usual = request_signer.get_auth_instance(name, region, _SIGNATURE)
        _KnownPayload(usual.credentials, name, region).add_auth(request)

    events = client.meta.events
    for operation in ("PutObject", "UploadPart"):
        events.register_first(
            f"choose-signer.s3.{operation}",
            choose,  # type: ignore[arg-type]  # the stubs know handlers without an answer only
        )
        # Last: what other handlers change in the request is signed, too.
        events.register_last(f"before-sign.s3.{operation}", sign)


class _BlockReader(Protocol):
    """A body that gives itself in blocks (`upload_body.PartReader`)."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...
    def blocks(self) -> Iterator[memoryview]: ...


class _Blocks:
    """A part for the connection, which sends a file in pieces of 16 KiB, but whatever it iterates over as it comes."""

    def __init__(self, reader: _BlockReader) -> None:
        self._reader = reader
        self.seek, self.tell = reader.seek, reader.tell

    def __iter__(self) -> Iterator[memoryview]:
        return self._reader.blocks()


def send_whole_blocks(client: S3Client) -> None:
    """Let `client` send a body by its method ``blocks``, where it has one: 64,000 small writes per GiB take a third of
    the transfer's CPU time.
    """

    def choose(request: AWSPreparedRequest, **_: object) -> None:
        if hasattr(request.body, "blocks"):
            # The stubs know no body that is only iterated over, which urllib3 takes.
            request.body = cast("IO[bytes]", _Blocks(cast("_BlockReader", request.body)))

    client.meta.events.register("before-send.s3.UploadPart", choose)


def abort_upload(client: S3Client, translator: Translator, *, bucket: str, key: str, upload_id: str) -> None:
    """Give up an unfinished upload; one that is already gone is fine."""
    with contextlib.suppress(NotFoundError), translator.errors("s3:AbortMultipartUpload", key):
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


class MultipartUpload:
    """The upload of one body to one key.

    :param concurrency: parts under way at once.
    :param upload_log: where the upload is remembered; None forgets it.
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
        upload_log: UploadLog | None,
        control: Control,
    ) -> None:
        self._client, self._errors = client, translator.errors
        self._translator = translator
        self._bucket, self._key, self._body, self._options = bucket, key, body, options
        self._concurrency, self._log, self._control = concurrency, upload_log, control
        self._etags: dict[int, str] = {}
        self._upload_id = ""

    def run(self, before_visible: Callable[[], None] | None) -> None:
        self._resume_or_begin()
        try:
            self._send_missing_parts()
            if before_visible is not None:
                before_visible()
            self._complete()
        except BaseException as error:
            # A passing failure leaves the parts for the next try; everything else leaves nothing behind in the store.
            passing = isinstance(error, StoreError) and error.retryable and self._log is not None
            if not passing and self._abort() and self._log is not None:
                self._log.clear()
            raise
        if self._log is not None:
            self._log.clear()

    def _abort(self) -> bool:
        """Whether the upload is gone. The log of one that could not be reached stays, for the next try or clean-up."""

        def abort() -> None:
            abort_upload(self._client, self._translator, bucket=self._bucket, key=self._key, upload_id=self._upload_id)

        try:
            interruptible(abort, self._control)
        except DucklingError:
            return False
        return True

    def _resume_or_begin(self) -> None:
        remembered = self._log.load() if self._log is not None else None
        if remembered is not None:
            self._upload_id, logged = remembered
            try:
                present = interruptible(self._present_parts, self._control)
            except (NotFoundError, AccessDeniedError):
                # The store has forgotten it, or we may not ask (s3:ListMultipartUploadParts): start again.
                self._abort()
                remembered = None
            else:
                self._etags = {
                    part: etag for part, etag in logged.items() if present.get(part) == (etag, self._length(part))
                }
                self._control.advance(sum(self._length(part) for part in self._etags))
        if remembered is None:
            self._upload_id = interruptible(self._create, self._control)
            if self._log is not None:
                self._log.begin(self._upload_id)

    def _create(self) -> str:
        with self._errors("s3:PutObject", self._key):
            answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key, **self._options)
        return answer["UploadId"]

    def _length(self, part: int) -> int:
        return min(self._body.part_size, self._body.size - part * self._body.part_size)

    def _present_parts(self) -> dict[int, tuple[str, int]]:
        present = {}
        with self._errors("s3:ListMultipartUploadParts", self._key):
            for page in self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
            ):
                for row in page.get("Parts", []):
                    present[row["PartNumber"] - 1] = (row["ETag"], row["Size"])
        return present

    def _send_missing_parts(self) -> None:
        missing = iter([part for part in range(self._body.count) if part not in self._etags])
        with (
            self._no_retries_once_cancelled(),
            Workers(self._concurrency, name="duckling-upload", control=self._control) as pool,
        ):
            running: set[Future[None]] = set()
            # Only as many parts as threads are ever under way, so a failure stops the rest at once.
            for part in missing:
                running.add(pool.submit(self._send, part))
                if len(running) >= self._concurrency:
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
                answer = self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    PartNumber=part + 1,
                    ContentLength=self._length(part),
                    Body=cast("IO[bytes]", reader),
                )
        self._control.check()  # the caller is gone, and the log may be another upload's
        self._etags[part] = answer["ETag"]
        if self._log is not None:
            self._log.record(part, answer["ETag"])
        self._control.advance(self._length(part))

    def _complete(self) -> None:
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": part + 1, "ETag": self._etags[part]} for part in range(self._body.count)
        ]

        def complete() -> None:
            try:
                with self._errors("s3:PutObject", self._key):
                    self._client.complete_multipart_upload(
                        Bucket=self._bucket,
                        Key=self._key,
                        UploadId=self._upload_id,
                        MultipartUpload={"Parts": parts},
                    )
            except NotFoundError:
                # The answer to a first try may have been lost after it had done its work: then the object is there.
                with self._errors("s3:GetObject", self._key):
                    there = self._client.head_object(Bucket=self._bucket, Key=self._key)
                if there["ContentLength"] != self._body.size:
                    raise

        interruptible(complete, self._control)
