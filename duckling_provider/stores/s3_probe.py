"""The connection test: everything that backups, their continuation and the clean-up ask of a store, tried for real.

One cause is reported once. What can't be tried, since a step before it failed, is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from duckling_provider.base.errors import AccessDeniedError, DucklingError, NotFoundError, StoreError
from duckling_provider.config.databases import S3Settings
from duckling_provider.stores.parts import SAFE_PARTS, TooManyPartsError
from duckling_provider.stores.s3_connection import NO_ANSWER
from duckling_provider.stores.s3_errors import UNKNOWN_TO_THE_STORE, Translator
from duckling_provider.stores.s3_multipart import ObjectOptions, bytes_md5
from duckling_provider.stores.store import (
    BAD_CREDENTIALS,
    IN_ARCHIVE,
    KEPT_VERSIONS,
    OCTETS,
    BytesBody,
    ProbeStep,
    Store,
    StoredObject,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONTENT = b"duckling check"
#: The step that tries a copy, and how its note begins where there is none.
COPY_STEP = "copy a part"
NO_COPIES = "the store copies no parts, so each upload is a full one"


class ProbedStore(Store, Protocol):
    """What the test needs of a store beyond its everyday use."""

    def reach(self) -> None: ...
    def confirmed(self, key: str, size: int) -> StoredObject: ...
    def object_options(self, content_type: str, metadata: dict[str, str] | None) -> ObjectOptions: ...


class Probe:
    """One connection test, by one client."""

    def __init__(
        self,
        store: ProbedStore,
        client: S3Client,
        translator: Translator,
        settings: S3Settings,
        begin: Callable[[str], object],
    ) -> None:
        self._begun = begin
        #: Why the store can't be asked any more: the first request that got no answer.
        self._dead: DucklingError | None = None
        self._store, self._client, self._errors, self._settings = store, client, translator.errors, settings
        self._bucket = settings.bucket
        self._key, self._upload_id = "", ""
        self._note, self._clean = "", True
        self._told: set[tuple[str, ...]] = set()

    def steps(self, prefix: str) -> Iterator[ProbeStep]:
        """Each step as it is done, under keys that begin with ``{prefix}duckling-check-``; removes what it made."""
        self._key = f"{prefix}duckling-check-{time.time_ns()}"
        try:
            yield from self._steps()
            if self._dead is not None and not self._clean:
                yield from self._try_to_tidy_up()
        finally:
            self._tidy_up()

    def _steps(self) -> Generator[ProbeStep, None, None]:
        yield from self._try("bucket", "s3:ListBucket", self._store.reach, decides=True)
        if self._dead is not None:
            return
        self._clean = False
        put = "put, and head with encryption"
        error = yield from self._try(put, "s3:PutObject", lambda: self._store.put(self._key, BytesBody(_CONTENT)))
        if error is None:
            yield from self._try("ranged get", "s3:GetObject", self._ranged_get)
            yield from self._try("list", "s3:ListBucket", self._list)
        yield from self._try("multipart upload", "s3:PutObject", self._multipart)
        error = yield from self._try("begin an upload", "s3:PutObject", self._begin, silent=True)
        if error is None:
            yield from self._try(f"part {self._settings.max_parts}", "s3:PutObject", self._last_part)
            yield from self._try(COPY_STEP, "s3:GetObject", self._copy)
            yield from self._try("list parts", "s3:ListMultipartUploadParts", self._list_parts)
            yield from self._try("list uploads", "s3:ListBucketMultipartUploads", self._list_uploads)
            yield from self._try("abort an upload", "s3:AbortMultipartUpload", self._abort)
        yield from self._try("delete", "s3:DeleteObject", self._delete)

    def _try(
        self, name: str, action: str, step: Callable[[], object], *, silent: bool = False, decides: bool = False
    ) -> Generator[ProbeStep, None, DucklingError | None]:
        """:param decides: no bucket, no answer or wrong keys: every further step would say the same.
        :returns: why it failed, also when that was reported before.
        """
        if self._dead is not None:
            return self._dead
        self._begun(name)
        self._note = ""
        try:
            step()
        except DucklingError as error:
            cause = ("denied", error.action) if isinstance(error, AccessDeniedError) else (error.cause,)
            if (isinstance(error, StoreError) and error.code == NO_ANSWER) or (
                decides and (not isinstance(error, AccessDeniedError) or error.code in BAD_CREDENTIALS)
            ):
                self._dead = error
            if cause not in self._told:
                self._told.add(cause)
                yield ProbeStep(name, action, str(error), last=self._dead is not None)
            return error
        if not silent:
            yield ProbeStep(name, action, note=self._note)
        return None

    def _ranged_get(self) -> None:
        try:
            with contextlib.closing(self._store.open_range(self._key, 1, 5)) as stream:
                got = stream.read()
        except StoreError as error:
            if error.code != IN_ARCHIVE:
                raise
            self._note = "objects go to an archive at once: each must be thawed before it can be restored"
            return
        if got != _CONTENT[1:5]:
            raise StoreError(
                "a ranged GET brought other bytes than were asked for",
                subject=self._store.url + self._key,
                retryable=False,
            )

    def _list(self) -> None:
        if self._key not in [found.key for found in self._store.list(self._key)]:
            raise StoreError("the object that was just written is not listed", subject=self._store.url + self._key)

    def _multipart(self) -> None:
        self._begin()
        with self._errors("s3:PutObject", self._key):
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": self._part(1)}]},
            )
        self._upload_id = ""
        self._store.confirmed(self._key, len(_CONTENT))

    def _begin(self) -> None:
        if self._upload_id:  # of a step that failed
            with contextlib.suppress(DucklingError):
                self._abort()
        options = self._store.object_options(OCTETS, {"duckling-check": "1"})
        with self._errors("s3:PutObject", self._key):
            answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key, **options)
            self._upload_id = answer["UploadId"]

    def _part(self, number: int) -> str:
        with self._errors("s3:PutObject", self._key):
            return self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=number,
                Body=_CONTENT,
                ContentMD5=bytes_md5(_CONTENT),
            )["ETag"]

    def _last_part(self) -> None:
        most = self._settings.max_parts
        try:
            self._part(most)
        except StoreError as error:
            if error.retryable or isinstance(error, AccessDeniedError) or most <= SAFE_PARTS:
                raise
            try:
                self._part(SAFE_PARTS)
            except StoreError:
                raise error from None
            raise TooManyPartsError(
                f"the store takes no part of number {most}",
                subject=self._store.url + self._key,
                hint=f"It takes one of number {SAFE_PARTS}: set s3.maxParts to {SAFE_PARTS}.",
            ) from error

    def _copy(self) -> None:
        """Whether the store can copy what did not change since the last backup. One that can't is none the worse."""
        part = 2
        try:
            with self._errors("s3:GetObject", self._key):
                answer = self._client.upload_part_copy(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    PartNumber=part,
                    CopySource={"Bucket": self._bucket, "Key": self._key},
                )
                etag = answer.get("CopyPartResult", {}).get("ETag", "")
                rows = self._client.list_parts(Bucket=self._bucket, Key=self._key, UploadId=self._upload_id)
        except DucklingError as error:
            self._note = f"{NO_COPIES}: {error.cause}"
            return
        sizes = [row["Size"] for row in rows.get("Parts", []) if row["PartNumber"] == part]
        if not etag or sizes != [len(_CONTENT)]:
            self._note = (
                f"{NO_COPIES}: it answered {etag or 'without an ETag'}, and has a part of {sizes or 'no'} bytes"
            )

    def _list_parts(self) -> None:
        try:
            with self._errors("s3:ListMultipartUploadParts", self._key):
                self._client.list_parts(Bucket=self._bucket, Key=self._key, UploadId=self._upload_id)
        except StoreError as error:
            self._excuse(error, "the store does not list parts: an interrupted upload starts from its beginning")

    def _list_uploads(self) -> None:
        try:
            with self._errors("s3:ListBucketMultipartUploads", self._key):
                self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._key)
        except NotFoundError:
            pass  # what some stores answer when there are none
        except StoreError as error:
            self._excuse(error, "the store does not list uploads: its own lifecycle rule must remove what is left")

    def _excuse(self, error: StoreError, note: str) -> None:
        if error.code not in UNKNOWN_TO_THE_STORE:
            raise error
        self._note = note

    def _abort(self) -> None:
        self._store.abort(self._key, self._upload_id)
        self._upload_id = ""

    def _delete(self) -> None:
        if self._store.delete(self._key):
            self._note = KEPT_VERSIONS
        self._clean = not self._told

    def _try_to_tidy_up(self) -> Iterator[ProbeStep]:
        """One request that gets no answer is enough: then say what may be left."""
        self._begun("tidy up")
        self._clean = True
        try:
            if self._upload_id:
                self._store.abort(self._key, self._upload_id)
            self._store.delete(self._key)
        except DucklingError:
            left = f"{self._store.url}{self._key} may still be there, as an object or as an unfinished upload"
            yield ProbeStep("tidy up", "s3:DeleteObject", left, last=True)

    def _tidy_up(self) -> None:
        """Remove what a failed step may have left. What can't be removed was reported by its step."""
        if self._clean:
            return
        with contextlib.suppress(DucklingError):
            if self._upload_id:
                self._store.abort(self._key, self._upload_id)
        with contextlib.suppress(DucklingError):
            # Where the answer to its beginning was lost, the upload is known to the store only.
            self._store.sweep(self._key, abandoned=lambda key, _: key == self._key)
        with contextlib.suppress(DucklingError):
            self._store.delete(self._key)
