"""A `Store` on S3 and whatever speaks its language.

Stores differ where the protocol is new or optional, so only its old, common core is used: no trailing checksums
(refused by R2, B2, older MinIO and others), equal parts, single deletes, no trust in a 200. What must hold is checked
with HEAD afterwards, by size and by the server-side encryption that was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import IO, TYPE_CHECKING, Final, TypedDict, TypeVar, cast

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    ConfigError,
    DucklingError,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from duckling_provider.base.interruptible import interruptible
from duckling_provider.config.databases import Database, S3Settings
from duckling_provider.stores.clock import StoreClock
from duckling_provider.stores.s3_client import Credentials, default_credentials, make_client
from duckling_provider.stores.s3_errors import UNEXPLAINED, UNKNOWN_TO_THE_STORE, Translator
from duckling_provider.stores.s3_multipart import (
    Digests,
    MultipartUpload,
    ObjectOptions,
    abort_upload,
    content_md5,
)
from duckling_provider.stores.s3_probe import Probe
from duckling_provider.stores.s3_receive import DirectReceiver
from duckling_provider.stores.store import (
    BAD_CREDENTIALS,
    OCTETS,
    SSE_ALGORITHM,
    Body,
    BytesBody,
    Copies,
    ProbeStep,
    RangeStream,
    StoredObject,
    Swept,
    UploadLog,
    unheard,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import StorageClassType
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

T = TypeVar("T")

#: Where all parts but the last must be of one size (Cloudflare R2, "Multipart upload").
_EQUAL_PARTS = ".r2.cloudflarestorage.com"
#: Seconds between the looks for an object that was just stored: some stores show it a little later.
_SHOWN_AFTER = (0.2, 0.5, 1.0, 2.0)


def open_store(database: Database, *, credentials: Credentials | None = None) -> S3Store:
    """The store that an entry of databases.json names.

    :param credentials: in place of the entry's own, for entries with ``awsConnId``.
    :raises ConfigError: when the entry has no S3 section, or there are no credentials.
    :raises UnavailableError: when the service that gives a role's credentials fails.
    """
    settings = database.s3
    if settings is None:
        raise ConfigError(
            "S3 is not configured", entry=database.id, field="s3", hint="Add an s3 section with enabled: true."
        )
    if credentials is None and settings.credential_source == "default":
        credentials = default_credentials(database.id)
    if credentials is None:
        if settings.access_key_id is None or settings.secret_access_key is None:
            raise ConfigError(
                f"the credentials are in the Airflow connection {settings.aws_conn_id!r}, which can't be read here",
                entry=database.id,
                field="s3.awsConnId",
            )
        token = settings.session_token
        credentials = Credentials(
            settings.access_key_id,
            settings.secret_access_key.get_secret_value(),
            token.get_secret_value() if token is not None else None,
        )
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
        self._digests = Digests()
        self._credentials = credentials
        self._clock = StoreClock()
        self._connect()

    def _connect(self, *, silent_attempts: int | None = None) -> None:
        self._client: S3Client = make_client(self._settings, self._credentials, silent_attempts=silent_attempts)
        self._receiver = None
        if self._settings.receive == "direct":
            self._receiver = DirectReceiver(self._client, self._credentials.for_botocore(), bucket=self._bucket)
        self._client.meta.events.register("after-call.s3", self._clock.observe)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/"

    @property
    def prefix(self) -> str:
        return self._settings.path_prefix

    @property
    def mode(self) -> str:
        return self._settings.encryption

    presumed: Final = "uploaded"

    @property
    def signs_payloads(self) -> bool:
        return self._settings.signs_payloads

    @property
    def clock_fault(self) -> str:
        return self._clock.fault

    @property
    def equal_parts(self) -> bool:
        host = urllib.parse.urlsplit(self._settings.endpoint or "").hostname or ""
        return host.endswith(_EQUAL_PARTS)

    def under(self, control: Control) -> S3Store:
        bound = copy.copy(self)
        bound._control = control  # noqa: SLF001 - of our own class
        return bound

    def afresh(self, *, silent_attempts: int | None = None) -> S3Store:
        again = copy.copy(self)
        again._connect(silent_attempts=silent_attempts)  # noqa: SLF001 - of our own class
        return again

    def impatient(self) -> S3Store:
        """For tests of the connection: whoever makes one is told of the first request that gets no answer."""
        return self.afresh(silent_attempts=1)

    # -- reading ----------------------------------------------------------------------------------------------------

    def head(self, key: str) -> StoredObject:
        try:
            with self._translator.errors("s3:GetObject", key):
                answer = interruptible(lambda: self._client.head_object(Bucket=self._bucket, Key=key), self._control)
                return _stored(key, answer["ContentLength"], answer)
        except StoreError as error:
            if error.code not in UNEXPLAINED:
                raise
        return self._unknown(key)

    def _unknown(self, key: str) -> StoredObject:
        """What there is under `key`, after a HEAD was refused: many stores answer so for a missing object, too, and the
        reason is only in the body that other answers have.
        """
        try:
            there = any(found.key == key for found in self.list(key))
        except AccessDeniedError as error:
            if error.code in BAD_CREDENTIALS:
                raise
            there = True  # a GET may tell
        if not there:
            raise NotFoundError("no such object", subject=self.url + key)
        try:
            with self._translator.errors("s3:GetObject", key):
                answer = interruptible(
                    lambda: self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0"), self._control
                )
        except StoreError as error:
            if error.code in {"InvalidRange", "416"}:
                return StoredObject(key, 0)
            raise
        answer["Body"].close()
        _, _, size = answer.get("ContentRange", "").rpartition("/")
        return _stored(key, int(size) if size.isdigit() else answer["ContentLength"], answer)

    def open_range(self, key: str, start: int, stop: int, *, etag: str = "") -> RangeStream:
        receiver = self._receiver
        if receiver is not None:
            body = interruptible(lambda: receiver.open(key, start, stop, etag=etag), self._control)
            if body is not None:
                return self._translator.stream(body, key, self._control)
        condition: _Condition = {"IfMatch": etag} if etag else {}

        def ask() -> GetObjectOutputTypeDef:
            with self._translator.errors("s3:GetObject", key):
                return interruptible(
                    lambda: self._client.get_object(
                        Bucket=self._bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition
                    ),
                    self._control,
                )

        # An object whose ETag is known was there a moment ago.
        answer = self._shown(ask) if etag else ask()
        if start and answer["ContentLength"] > stop - start and not answer.get("ContentRange"):
            answer["Body"].close()
            raise StoreError(
                "the store sends whole objects where a range of them was asked for",
                subject=self.url + key,
                hint="A proxy before it may take the header Range away.",
                retryable=False,
            )
        return self._translator.stream(answer["Body"], key, self._control)

    def read_small(self, key: str, limit: int) -> bytes | None:
        try:
            with contextlib.closing(self.open_range(key, 0, limit)) as stream:
                return stream.read(limit)
        except NotFoundError:
            return None
        except StoreError as error:
            if error.code in {"InvalidRange", "416"}:
                return b""  # it is empty
            raise

    def write_small(self, key: str, data: bytes) -> None:
        self.put(key, BytesBody(data), content_type="application/json")

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
        copies: Copies | None = None,
        control: Control | None = None,
    ) -> StoredObject:
        control = control or Control()
        options = self.object_options(content_type, metadata)
        if body.count == 1 and copies is None:
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
                digests=self._digests,
                upload_log=upload_log,
                copies=copies,
                control=control,
            ).run(before_visible)
        return self.confirmed(key, body.size)

    def _put_at_once(self, key: str, body: Body, options: ObjectOptions) -> None:
        with contextlib.closing(body.open(0)) as content:
            # Buckets with an object lock demand it, and for bytes of one request it costs next to nothing.
            digest = content_md5(content)
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=cast("IO[bytes]", content), ContentMD5=digest, **options
            )

    def object_options(self, content_type: str, metadata: Mapping[str, str] | None) -> ObjectOptions:
        """What a request that makes an object asks for."""
        options: ObjectOptions = {"ContentType": content_type, "Metadata": dict(metadata or {})}
        algorithm = SSE_ALGORITHM.get(self._settings.encryption)
        if algorithm:
            options["ServerSideEncryption"] = algorithm
            if algorithm == "aws:kms" and self._settings.kms_key_id:
                options["SSEKMSKeyId"] = self._settings.kms_key_id
        # What is not a backup itself (a `.mac`) is small, and needed to tell what the backup is.
        if self._settings.storage_class and content_type == OCTETS:
            options["StorageClass"] = cast("StorageClassType", self._settings.storage_class)
        if self._settings.tags:
            options["Tagging"] = urllib.parse.urlencode(dict(self._settings.tags))
        return options

    def confirmed(self, key: str, size: int) -> StoredObject:
        """HEAD after a PUT: stores have been seen to answer 200 and drop bytes or the encryption that was asked for."""
        try:
            stored = self._shown(lambda: self.head(key))
        except NotFoundError as error:
            raise StoreError(
                "the store took it, but says that there is no such object",
                subject=self.url + key,
                hint="Try again. If it stays, s3.endpoint leads to another place for reading than for writing, or the "
                "store loses what it takes.",
            ) from error
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

    def _shown(self, ask: Callable[[], T]) -> T:
        """What `ask` returns of an object that is there, though some servers of a store may not know of it yet."""
        for pause in _SHOWN_AFTER:
            try:
                return ask()
            except NotFoundError:
                (self._control or Control()).sleep(pause)
        return ask()

    def delete(self, key: str) -> bool:
        try:
            with self._translator.errors("s3:DeleteObject", key):
                answer = interruptible(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), self._control)
        except NotFoundError:
            return False
        return bool(answer.get("DeleteMarker", False))

    def sweep(self, prefix: str, *, abandoned: Callable[[str, datetime], bool]) -> Swept:
        count, left, note = 0, [], ""
        try:
            with self._translator.errors("s3:ListBucketMultipartUploads", prefix):
                paginator = self._client.get_paginator("list_multipart_uploads")
                pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=prefix))
                while (page := interruptible(lambda: next(pages, None), self._control)) is not None:
                    for row in page.get("Uploads", []):
                        if abandoned(row["Key"], row["Initiated"]):
                            try:
                                self.abort(row["Key"], row["UploadId"])
                                count += 1
                            except StoreError as error:
                                left.append(f"an unfinished upload could not be aborted: {error}")
        except NotFoundError:
            pass  # what some stores answer when there are none
        except StoreError as error:
            if error.code in UNKNOWN_TO_THE_STORE:
                note = f"{self.url} lists no unfinished uploads: a lifecycle rule of the bucket must remove them"
            else:
                left.append(f"unfinished uploads could not be listed: {error}")
        return Swept(count, tuple(left), note)

    def abort(self, key: str, upload_id: str) -> None:
        interruptible(
            lambda: abort_upload(self._client, self._translator, bucket=self._bucket, key=key, upload_id=upload_id),
            self._control,
        )

    # -- connection test --------------------------------------------------------------------------------------------

    def probe(self, prefix: str, *, begin: Callable[[str], object] = unheard) -> Iterator[ProbeStep]:
        store = self.impatient()
        return Probe(store, store._client, self._translator, self._settings, begin).steps(prefix)  # noqa: SLF001 - ours

    def reach(self) -> None:
        """HeadBucket: whether the bucket is there, for these credentials.

        :raises StoreError: with the store's own words for why not.
        """
        try:
            with self._translator.errors("s3:ListBucket", ""):
                interruptible(lambda: self._client.head_bucket(Bucket=self._bucket), self._control)
        except StoreError as error:
            # Who may use one prefix only is refused as well: a listing there decides, or says why.
            if error.code not in UNEXPLAINED:
                raise
            next(self.list(self.prefix), None)


def _stored(key: str, size: int, answer: HeadObjectOutputTypeDef | GetObjectOutputTypeDef) -> StoredObject:
    return StoredObject(
        key,
        size,
        answer.get("ETag", ""),
        answer.get("LastModified"),
        # Some stores answer in Title-Case.
        {name.lower(): value for name, value in answer.get("Metadata", {}).items()},
        answer.get("ServerSideEncryption"),
        answer.get("SSEKMSKeyId"),
        _version(answer),
    )


def _version(answer: HeadObjectOutputTypeDef | GetObjectOutputTypeDef) -> str:
    # What was stored before the bucket kept versions has one called null.
    version = answer.get("VersionId", "")
    return "" if version == "null" else version


def _same_kms_key(stored: str | None, wanted: str) -> bool:
    # Stores answer with the full ARN where a bare key id was asked for; an alias can't be compared.
    return (
        stored is None
        or wanted.startswith("alias/")
        or ":alias/" in wanted
        or stored.endswith(wanted.rpartition("/")[2])
    )
