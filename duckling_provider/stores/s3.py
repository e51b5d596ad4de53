"""A `Store` on S3 and whatever speaks its language.

Stores differ where the protocol is new or optional, so only its old, common core is used: no trailing checksums
(refused by R2, B2, older MinIO and others), equal parts, single deletes, no trust in a 200. What must hold is checked
with HEAD afterwards, by size and by the server-side encryption that was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, BinaryIO, TypedDict, cast

import boto3
from botocore.config import Config

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    ConfigError,
    DucklingError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
)
from duckling_provider.base.interruptible import interruptible
from duckling_provider.config.databases import Database, S3Settings
from duckling_provider.stores.clock import StoreClock
from duckling_provider.stores.s3_errors import Translator
from duckling_provider.stores.s3_multipart import (
    MultipartUpload,
    ObjectOptions,
    abort_upload,
    send_whole_blocks,
    sign_known_payloads,
)
from duckling_provider.stores.store import OCTETS, SSE_ALGORITHM, Body, BytesBody, ProbeStep, StoredObject, UploadLog

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import StorageClassType

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
ATTEMPTS = 5


@dataclass(frozen=True)
class Credentials:
    """Keys for a store; `repr` shows neither secret.

    :param session: where these came from, if it renews them: those of a role end within the hour, a transfer may not.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    session: boto3.session.Session | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id}, ***)"


def open_store(database: Database, *, credentials: Credentials | None = None) -> S3Store:
    """The store that an entry of databases.json names.

    :param credentials: in place of the entry's own, for entries with ``awsConnId``.
    :raises ConfigError: when the entry has no S3 section, or there are no credentials.
    """
    settings = database.s3
    if settings is None:
        raise ConfigError(
            "S3 is not configured", entry=database.id, field="s3", hint="Add an s3 section with enabled: true."
        )
    if credentials is None:
        if settings.access_key_id is None or settings.secret_access_key is None:
            raise ConfigError(
                f"the credentials are in the Airflow connection {settings.aws_conn_id!r}, which can't be read here",
                entry=database.id,
                field="s3.awsConnId",
            )
        credentials = Credentials(settings.access_key_id, settings.secret_access_key.get_secret_value())
    return S3Store(settings, credentials)


class _Condition(TypedDict, total=False):
    IfMatch: str


class S3Store:
    """One bucket, with the settings of one entry."""

    def __init__(self, settings: S3Settings, credentials: Credentials) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._control: Control | None = None
        self._translator = Translator(url=self.url, region=settings.region, endpoint=settings.endpoint)
        session = credentials.session or boto3.session.Session(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
        )
        self._client: S3Client = session.client(
            "s3",
            region_name=settings.region,
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
        self._clock = StoreClock()
        self._client.meta.events.register("after-call.s3", self._clock.observe)
        sign_known_payloads(self._client)
        send_whole_blocks(self._client)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/"

    @property
    def prefix(self) -> str:
        return self._settings.path_prefix

    @property
    def mode(self) -> str:
        return self._settings.encryption

    @property
    def clock_fault(self) -> str:
        return self._clock.fault

    def under(self, control: Control) -> S3Store:
        bound = copy.copy(self)
        bound._control = control  # noqa: SLF001 - of our own class
        return bound

    # -- reading ----------------------------------------------------------------------------------------------------

    def head(self, key: str) -> StoredObject:
        with self._translator.errors("s3:GetObject", key):
            answer = interruptible(lambda: self._client.head_object(Bucket=self._bucket, Key=key), self._control)
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
        condition: _Condition = {"IfMatch": etag} if etag else {}
        with self._translator.errors("s3:GetObject", key):
            answer = interruptible(
                lambda: self._client.get_object(
                    Bucket=self._bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
                ),
                self._control,
            )
        return cast("BinaryIO", self._translator.stream(answer["Body"], key, self._control))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix))
        with self._translator.errors("s3:ListBucket", prefix):
            while (page := interruptible(lambda: next(pages, None), self._control)) is not None:
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
            with self._translator.errors("s3:PutObject", key, control):
                interruptible(lambda: self._put_at_once(key, body, options), self._control)
            control.advance(body.size)
        else:
            MultipartUpload(
                self._client,
                self._translator,
                bucket=self._bucket,
                key=key,
                body=body,
                options=options,
                concurrency=self._settings.max_concurrency,
                upload_log=upload_log,
                control=control,
            ).run(before_visible)
        return self._confirmed(key, body.size)

    def _put_at_once(self, key: str, body: Body, options: ObjectOptions) -> None:
        with contextlib.closing(body.open(0)) as content:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=cast("IO[bytes]", content), **options)

    def _object_options(self, content_type: str, metadata: Mapping[str, str] | None) -> ObjectOptions:
        options: ObjectOptions = {"ContentType": content_type, "Metadata": dict(metadata or {})}
        algorithm = SSE_ALGORITHM.get(self._settings.encryption)
        if algorithm:
            options["ServerSideEncryption"] = algorithm
            if algorithm == "aws:kms" and self._settings.kms_key_id:
                options["SSEKMSKeyId"] = self._settings.kms_key_id
        if self._settings.storage_class:
            options["StorageClass"] = cast("StorageClassType", self._settings.storage_class)
        if self._settings.tags:
            options["Tagging"] = urllib.parse.urlencode(dict(self._settings.tags))
        return options

    def _confirmed(self, key: str, size: int) -> StoredObject:
        """HEAD after a PUT: stores have been seen to answer 200 and drop bytes or the encryption that was asked for."""
        stored = self.head(key)
        wanted = SSE_ALGORITHM.get(self._settings.encryption)
        problem = None
        if stored.size != size:
            problem = f"the store keeps {stored.size} bytes of the {size} that were sent"
        elif wanted and stored.sse != wanted:
            answer = f"says {stored.sse}" if stored.sse else "dropped it silently"
            problem = f"asked for {wanted} encryption, the store {answer}"
        elif (
            wanted == "aws:kms"
            and self._settings.kms_key_id
            and not _same_kms_key(stored.kms_key_id, self._settings.kms_key_id)
        ):
            problem = f"asked for KMS key {self._settings.kms_key_id}, the store used {stored.kms_key_id}"
        if problem is None:
            return stored
        try:
            self.delete(key)
            fate = "The object was removed again."
        except DucklingError as error:
            fate = f"The object is still there and could not be removed: {error.cause}."
        raise IntegrityError(
            problem, subject=self.url + key, hint=f"{fate} Use a store that supports this mode, or client-aes256."
        )

    def delete(self, key: str) -> None:
        with contextlib.suppress(NotFoundError), self._translator.errors("s3:DeleteObject", key):
            interruptible(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), self._control)

    def sweep(self, prefix: str, *, abandoned: Callable[[str, datetime], bool]) -> int:
        count = 0
        try:
            with self._translator.errors("s3:ListBucketMultipartUploads", prefix):
                paginator = self._client.get_paginator("list_multipart_uploads")
                pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=prefix))
                while (page := interruptible(lambda: next(pages, None), self._control)) is not None:
                    for row in page.get("Uploads", []):
                        if abandoned(row["Key"], row["Initiated"]):
                            self.abort(row["Key"], row["UploadId"])
                            count += 1
        except NotFoundError:
            pass  # what some stores answer when there are none
        except StoreError as error:
            # Some stores do not list uploads, and some credentials may not: the bucket's own lifecycle rule has to do
            # it then.
            if error.retryable:
                raise
        return count

    def abort(self, key: str, upload_id: str) -> None:
        interruptible(
            lambda: abort_upload(self._client, self._translator, bucket=self._bucket, key=key, upload_id=upload_id),
            self._control,
        )

    # -- connection test --------------------------------------------------------------------------------------------

    def probe(self, prefix: str) -> Iterator[ProbeStep]:
        key = f"{prefix}duckling-check-{time.time_ns()}"
        content = b"duckling check"
        body = BytesBody(content)
        options = self._object_options(OCTETS, {"duckling-check": "1"})

        def put() -> None:
            self.put(key, body)

        def multipart() -> None:
            with self._translator.errors("s3:PutObject", key):
                upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **options)["UploadId"]
                try:
                    part = self._client.upload_part(
                        Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=1, Body=content
                    )
                    self._client.complete_multipart_upload(
                        Bucket=self._bucket,
                        Key=key,
                        UploadId=upload,
                        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
                    )
                except BaseException:
                    self.abort(key, upload)
                    raise
            self._confirmed(key, len(content))

        def ranged_get() -> None:
            with contextlib.closing(self.open_range(key, 1, 5)) as stream:
                got = stream.read()
            if got != content[1:5]:
                raise StoreError(
                    "a ranged GET brought other bytes than were asked for", subject=self.url + key, retryable=False
                )

        def listing() -> None:
            if key not in [found.key for found in self.list(key)]:
                raise StoreError("the object that was just written is not listed", subject=self.url + key)

        steps: list[tuple[str, str, Callable[[], None]]] = [
            ("bucket", "s3:ListBucket", self.reach),
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
                if step == self.reach and not isinstance(error, AccessDeniedError):
                    return  # no bucket, or no answer at all: every further step would say the same
            else:
                yield ProbeStep(name, action)

    def reach(self) -> None:
        """HeadBucket: whether the bucket is there, for these credentials.

        :raises StoreError: with the store's own words for why not.
        """
        try:
            with self._translator.errors("s3:ListBucket", ""):
                self._client.head_bucket(Bucket=self._bucket)
        except NotFoundError:
            # The answer to a HEAD has no body and thus no error code: here 404 can only mean the bucket.
            raise NoSuchBucketError(
                "no such bucket", code="404", subject=self.url, hint="Check s3.bucket, s3.region and s3.endpoint."
            ) from None
        except AccessDeniedError:
            # Nor does a 403: a listing that is refused as well has one.
            next(self.list(self.prefix), None)
            raise


def _same_kms_key(stored: str | None, wanted: str) -> bool:
    # Stores answer with the full ARN where a bare key id was asked for; an alias can't be compared.
    return (
        stored is None
        or wanted.startswith("alias/")
        or ":alias/" in wanted
        or stored.endswith(wanted.rpartition("/")[2])
    )
