"""A `Store` on S3 and whatever speaks its language.

Stores differ where the protocol is new or optional, so only its old, common core is used: no trailing checksums (refused by R2, B2, older MinIO and
others), equal parts, single deletes, no trust in a 200. What must hold is checked with HEAD afterwards, by size and by the
server-side encryption that was asked for.

Memory of an upload: ``max_concurrency`` open parts, each with the buffers of its reader (see `body.SnapshotBody`); parts are never held whole.
"""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from duckling_provider.core.config import Database, S3Settings
from duckling_provider.core.control import Control
from duckling_provider.core.errors import (
    AccessDeniedError,
    ConfigError,
    DucklingError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
)
from duckling_provider.core.store import OCTETS, Body, BytesBody, ProbeStep, StoredObject, UploadLog

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
ATTEMPTS = 5

_SSE_ALGORITHM = {"sse-s3": "AES256", "sse-kms": "aws:kms"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "UnauthorizedAccess"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "401",
    "Unauthorized",
}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_WRONG_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_PASSING = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted", "Throttling", "ThrottlingException"}


@dataclass(frozen=True)
class Credentials:
    """Keys for a store; `repr` shows neither secret."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id}, ***)"


def open_store(database: Database, *, credentials: Credentials | None = None) -> S3Store:
    """The store that an entry of databases.json names.

    :param credentials: in place of the entry's own, for entries with ``awsConnId``.
    :raises ConfigError: when the entry has no S3 section, or there are no credentials.
    """
    settings = database.s3
    if settings is None:
        raise ConfigError("S3 is not configured", entry=database.id, field="s3", hint="Add an s3 section with enabled: true.")
    if credentials is None:
        if settings.access_key_id is None or settings.secret_access_key is None:
            raise ConfigError(
                f"the credentials are in the Airflow connection {settings.aws_conn_id!r}, which can't be read here",
                entry=database.id,
                field="s3.awsConnId",
            )
        credentials = Credentials(settings.access_key_id, settings.secret_access_key.get_secret_value())
    return S3Store(settings, credentials)


class S3Store:
    """One bucket, with the settings of one entry."""

    def __init__(self, settings: S3Settings, credentials: Credentials) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        session = boto3.session.Session(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
            region_name=settings.region,
        )
        self._client: S3Client = session.client(
            "s3",
            endpoint_url=settings.endpoint or None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if settings.force_path_style else "virtual"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # missing in the stubs
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=settings.max_concurrency + 4,
                tcp_keepalive=True,
            ),
        )

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/"

    @property
    def prefix(self) -> str:
        return self._settings.path_prefix

    @property
    def mode(self) -> str:
        return self._settings.encryption

    # -- reading ----------------------------------------------------------------------------------------------------

    def head(self, key: str) -> StoredObject:
        with self._errors("s3:GetObject", key):
            answer = self._client.head_object(Bucket=self._bucket, Key=key)
        return StoredObject(
            key,
            answer["ContentLength"],
            answer.get("ETag", ""),
            answer.get("LastModified"),
            # Some stores answer in Title-Case.
            {name.lower(): value for name, value in answer.get("Metadata", {}).items()},
            answer.get("ServerSideEncryption"),
            answer.get("SSEKMSKeyId"),
        )

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> BinaryIO:
        condition: dict[str, Any] = {"IfMatch": etag} if etag else {}
        with self._errors("s3:GetObject", key):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
            )
        return cast("BinaryIO", _TranslatedStream(answer["Body"], self, key))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        with self._errors("s3:ListBucket", prefix):
            for page in pages:
                for row in page.get("Contents", []):
                    yield StoredObject(row["Key"], row["Size"], row.get("ETag", ""), row.get("LastModified"))

    # -- writing ----------------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = OCTETS,
        metadata: Mapping[str, str] | None = None,
        before_visible: Callable[[], None] | None = None,
        upload_log: UploadLog | None = None,
        control: Control | None = None,
    ) -> StoredObject:
        control = control or Control()
        options = self._object_options(content_type, metadata)
        if body.count == 1:
            if before_visible is not None:
                before_visible()
            with self._errors("s3:PutObject", key, control):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=cast("Any", body.open(0)), **options)
            control.advance(body.size)
        else:
            _Multipart(self, key, body, options, upload_log, control).run(before_visible)
        return self._confirmed(key, body.size)

    def _object_options(self, content_type: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
        options: dict[str, Any] = {"ContentType": content_type, "Metadata": dict(metadata or {})}
        algorithm = _SSE_ALGORITHM.get(self._settings.encryption)
        if algorithm:
            options["ServerSideEncryption"] = algorithm
            if algorithm == "aws:kms" and self._settings.kms_key_id:
                options["SSEKMSKeyId"] = self._settings.kms_key_id
        if self._settings.storage_class:
            options["StorageClass"] = self._settings.storage_class
        if self._settings.tags:
            options["Tagging"] = urllib.parse.urlencode(dict(self._settings.tags))
        return options

    def _confirmed(self, key: str, size: int) -> StoredObject:
        """HEAD after a PUT: stores have been seen to answer 200 and drop bytes or the encryption that was asked for."""
        stored = self.head(key)
        wanted = _SSE_ALGORITHM.get(self._settings.encryption)
        problem = None
        if stored.size != size:
            problem = f"the store keeps {stored.size} bytes of the {size} that were sent"
        elif wanted and stored.sse != wanted:
            problem = f"asked for {wanted} encryption, the store {'says ' + stored.sse if stored.sse else 'dropped it silently'}"
        elif wanted == "aws:kms" and self._settings.kms_key_id and not _same_kms_key(stored.kms_key_id, self._settings.kms_key_id):
            problem = f"asked for KMS key {self._settings.kms_key_id}, the store used {stored.kms_key_id}"
        if problem is None:
            return stored
        self.delete(key)
        raise IntegrityError(
            problem,
            subject=self.url + key,
            hint="The object was removed again. Use a store that supports this mode, or client-aes256.",
        )

    def delete(self, key: str) -> None:
        with self._errors("s3:DeleteObject", key), contextlib.suppress(NotFoundError):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def sweep(self, prefix: str, *, abandoned: Callable[[str, datetime], bool]) -> int:
        count = 0
        try:
            with self._errors("s3:ListBucketMultipartUploads", prefix):
                pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
                for page in pages:
                    for row in page.get("Uploads", []):
                        if abandoned(row["Key"], row["Initiated"]):
                            self.abort(row["Key"], row["UploadId"])
                            count += 1
        except StoreError as error:
            # Some stores do not list uploads, and some credentials may not: the bucket's own lifecycle rule has to do it then.
            if error.retryable:
                raise
        return count

    def abort(self, key: str, upload_id: str) -> None:
        """Give up an unfinished upload; one that is already gone is fine."""
        with contextlib.suppress(NotFoundError), self._errors("s3:AbortMultipartUpload", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    # -- connection test --------------------------------------------------------------------------------------------

    def probe(self, prefix: str) -> Iterator[ProbeStep]:
        key = f"{prefix}duckling-check-{time.time_ns()}"
        content = b"duckling check"
        body = BytesBody(content)
        options = self._object_options(OCTETS, {"duckling-check": "1"})

        def put() -> None:
            self.put(key, body)

        def multipart() -> None:
            with self._errors("s3:PutObject", key):
                upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **options)["UploadId"]
                try:
                    part = self._client.upload_part(
                        Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=1, Body=content
                    )
                    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                    self._client.complete_multipart_upload(
                        Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload=cast("Any", parts)
                    )
                except BaseException:
                    self.abort(key, upload)
                    raise
            self._confirmed(key, len(content))

        def ranged_get() -> None:
            with contextlib.closing(self.open_range(key, 1, 5)) as stream:
                got = stream.read()
            if got != content[1:5]:
                raise StoreError("a ranged GET brought other bytes than were asked for", subject=self.url + key, retryable=False)

        def listing() -> None:
            if key not in [found.key for found in self.list(key)]:
                raise StoreError("the object that was just written is not listed", subject=self.url + key)

        steps: list[tuple[str, str, Callable[[], None]]] = [
            ("bucket", "s3:ListBucket", self._head_bucket),
            ("put, and head with encryption", "s3:PutObject", put),
            ("ranged get", "s3:GetObject", ranged_get),
            ("list", "s3:ListBucket", listing),
            ("multipart upload", "s3:PutObject", multipart),
            ("delete", "s3:DeleteObject", lambda: self.delete(key)),
        ]
        for name, action, step in steps:
            try:
                step()
            except DucklingError as error:
                yield ProbeStep(name, action, str(error))
            else:
                yield ProbeStep(name, action)

    def _head_bucket(self) -> None:
        with self._errors("s3:ListBucket", ""):
            self._client.head_bucket(Bucket=self._bucket)

    # -- errors -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, action: str, key: str, control: Control | None = None) -> Iterator[None]:
        """Turn botocore's errors into ours. `action` is the IAM action that the calls inside need."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            if control is not None:
                # A body that raises because of a cancellation comes back wrapped by the HTTP client.
                control.check()
            raise self._translated(error, action, key) from error

    def _translated(self, error: ClientError | BotoCoreError, action: str, key: str) -> DucklingError:
        subject = self.url + key
        if isinstance(error, SSLError):
            return StoreError(
                f"the TLS certificate of {self._settings.endpoint} is not trusted: {_innermost(error)}",
                subject=subject,
                hint="For a certificate of your own set AWS_CA_BUNDLE to its CA file.",
                retryable=False,
            )
        if isinstance(error, (NoCredentialsError, ParamValidationError)):
            return StoreError(str(error), subject=subject, retryable=False)
        if not isinstance(error, ClientError):
            return StoreError(f"no answer from the store: {error}", subject=subject, hint="Check s3.endpoint and the network.")
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = f"{code}: {message}" if message and message != code else code
        if code == "NoSuchBucket":
            return NoSuchBucketError(
                text, code=code, subject=subject, hint="Check s3.bucket, s3.region and s3.endpoint."
            )
        if code in _WRONG_REGION:
            return NoSuchBucketError(
                f"{text} (the bucket lives in another region than {self._settings.region!r})",
                code=code,
                subject=subject,
                hint="Set s3.region to the bucket's region.",
            )
        if code in _BAD_CREDENTIALS:
            return AccessDeniedError(
                text, action=action, code=code, subject=subject, hint="Check s3.accessKeyId and s3.secretAccessKey."
            )
        if code in _DENIED or status == 403:
            return AccessDeniedError(
                f"{text}; {action} is not allowed",
                action=action,
                code=code,
                subject=subject,
                hint=f"Allow {action} to these credentials for this bucket and prefix.",
            )
        if code in _MISSING or code == "NoSuchUpload":
            return NotFoundError("no such object" if code != "NoSuchUpload" else "no such upload", subject=subject)
        if code in {"PreconditionFailed", "412"}:
            return IntegrityError("the object was replaced while it was being read", subject=subject, hint="Try again.")
        return StoreError(text or "the store failed", code=code, subject=subject, retryable=status >= 500 or code in _PASSING)


class _TranslatedStream:
    """A response body whose errors while reading are ours too."""

    def __init__(self, stream: Any, store: S3Store, key: str) -> None:
        self._stream, self._store, self._key = stream, store, key

    def read(self, size: int = -1) -> bytes:
        try:
            return cast("bytes", self._stream.read(None if size < 0 else size))
        except (ReadTimeoutError, ResponseStreamingError, BotoCoreError) as error:
            raise StoreError(f"the transfer broke off: {_innermost(error)}", subject=self._store.url + self._key) from error

    def close(self) -> None:
        self._stream.close()


class _Multipart:
    """One multipart upload: parts in parallel, remembered as they arrive, completed or aborted."""

    def __init__(
        self,
        store: S3Store,
        key: str,
        body: Body,
        options: dict[str, Any],
        upload_log: UploadLog | None,
        control: Control,
    ) -> None:
        self._store, self._key, self._body, self._options = store, key, body, options
        self._log, self._control = upload_log, control
        self._client, self._bucket = store._client, store._bucket
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
            if not passing:
                with contextlib.suppress(DucklingError):
                    self._store.abort(self._key, self._upload_id)
                if self._log is not None:
                    self._log.clear()
            raise
        if self._log is not None:
            self._log.clear()

    def _resume_or_begin(self) -> None:
        remembered = self._log.load() if self._log is not None else None
        if remembered is not None:
            self._upload_id, logged = remembered
            try:
                present = self._present_parts()
            except NotFoundError:
                remembered = None
            else:
                self._etags = {part: etag for part, etag in logged.items() if present.get(part) == (etag, self._length(part))}
                self._control.advance(sum(self._length(part) for part in self._etags))
        if remembered is None:
            with self._store._errors("s3:PutObject", self._key):
                answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key, **self._options)
            self._upload_id = answer["UploadId"]
            if self._log is not None:
                self._log.begin(self._upload_id)

    def _length(self, part: int) -> int:
        return min(self._body.part_size, self._body.size - part * self._body.part_size)

    def _present_parts(self) -> dict[int, tuple[str, int]]:
        present = {}
        with self._store._errors("s3:ListMultipartUploadParts", self._key):
            for page in self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
            ):
                for row in page.get("Parts", []):
                    present[row["PartNumber"] - 1] = (row["ETag"], row["Size"])
        return present

    def _send_missing_parts(self) -> None:
        missing = iter([part for part in range(self._body.count) if part not in self._etags])
        with ThreadPoolExecutor(self._store._settings.max_concurrency, thread_name_prefix="duckling-upload") as pool:
            running: set[Future[None]] = set()
            try:
                # Only as many parts as threads are ever under way, so a failure stops the rest at once.
                for part in missing:
                    running.add(pool.submit(self._send, part))
                    if len(running) >= self._store._settings.max_concurrency:
                        running = _settle(running, wait_for_all=False)
                _settle(running, wait_for_all=True)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _send(self, part: int) -> None:
        with contextlib.closing(self._body.open(part)) as reader:
            with self._store._errors("s3:PutObject", self._key, self._control):
                answer = self._client.upload_part(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    PartNumber=part + 1,
                    ContentLength=self._length(part),
                    Body=cast("Any", reader),
                )
        self._etags[part] = answer["ETag"]
        if self._log is not None:
            self._log.record(part, answer["ETag"])
        self._control.advance(self._length(part))

    def _complete(self) -> None:
        parts = [{"PartNumber": part + 1, "ETag": self._etags[part]} for part in range(self._body.count)]
        try:
            with self._store._errors("s3:PutObject", self._key):
                self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    MultipartUpload=cast("Any", {"Parts": parts}),
                )
        except NotFoundError:
            # The answer to a first try may have been lost after it had done its work: then the object is there.
            if self._store.head(self._key).size != self._body.size:
                raise


def _settle(running: set[Future[None]], *, wait_for_all: bool) -> set[Future[None]]:
    """Wait for one future (or all) and raise the first error; returns those still running."""
    while running:
        done, running = wait(running, return_when=FIRST_EXCEPTION if wait_for_all else "FIRST_COMPLETED")
        for future in done:
            future.result()
        if not wait_for_all:
            break
    return running


def _same_kms_key(stored: str | None, wanted: str) -> bool:
    # Stores answer with the full ARN where a bare key id was asked for; an alias can't be compared.
    return stored is None or wanted.startswith("alias/") or ":alias/" in wanted or stored.endswith(wanted.rpartition("/")[2])


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None or error.__cause__ is not None:
        error = error.__cause__ or cast("BaseException", error.__context__)
    return str(error).strip()
