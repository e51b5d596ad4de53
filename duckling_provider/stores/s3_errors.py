"""What a store's answers mean: one table, from error codes to what happened, whether a retry can help, and what to do.

Codes are those of the S3 API ("Error responses", Amazon S3 API Reference), of MinIO, Ceph RGW, OpenStack Swift, R2 and
B2 where they have their own, and bare numbers of HTTP: an answer to HEAD has no body, and a proxy knows no codes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    PaginationError,
    ParamValidationError,
)
from botocore.parsers import ResponseParserError

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    DucklingError,
    NoSuchBucketError,
    NotFoundError,
    ReplacedError,
    StoreError,
)
from duckling_provider.stores.s3_connection import (
    ResponseBody,
    TranslatedStream,
    connection_fault,
    credentials_fault,
    is_about_credentials,
    proxy_variable,
)
from duckling_provider.stores.s3_guard import StrangeAnswerError
from duckling_provider.stores.store import IN_ARCHIVE

#: An upload must be made with a digest of its bytes: object locks demand it.
DIGEST_WANTED = "MissingUploadObjectWithObjectLockHeaders"
#: The codes of "this store can't do that": no fault of the request, and none that passes.
UNKNOWN_TO_THE_STORE = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405"})
#: The codes of a refusal of HEAD, whose answer has no body to say why.
UNEXPLAINED = frozenset({"400", "401", "403"})
#: What botocore raises where an answer lacks what it must have, or has it in another form.
UNREADABLE = (ValueError, LookupError, ArithmeticError)
_CHECK_BUCKET = "Check s3.bucket, s3.region and s3.endpoint."
#: Codes with which stores refuse a part's number.
_PART_REFUSED = frozenset({"InvalidArgument", "InvalidPartNumber", "InvalidPart", "InvalidRequest", "TooManyParts"})
#: What a refusal says that names the action it misses.
_NAMED_ACTION = re.compile(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)")


@dataclass(frozen=True)
class _Meaning:
    """A row: `codes` as the store sends them, `says` a pattern that its message must have (None: any).

    `cause` and `hint` may name ``{bucket}``, ``{key}``, ``{region}``, ``{found}`` (the region that the store tells),
    ``{variable}`` (of the environment, that names the HTTP proxy). `of` are the operations that it is about, all by
    default.
    """

    codes: frozenset[str]
    cause: str
    hint: str
    retryable: bool = False
    error: type[StoreError] = StoreError
    says: str | None = None
    of: str = ""
    names_region: bool = False


def _row(codes: str, cause: str, hint: str, **more: Any) -> _Meaning:
    return _Meaning(frozenset(codes.split()), cause, hint, **more)


_KMS = (
    "the store can't use the KMS key",
    "Check s3.kmsKeyId, and that the key is enabled, in the bucket's region, and may be used by these credentials.",
)
_LOCKED = (
    "the object is locked: the bucket keeps it until its retention ends",
    "Nothing is wrong with the backup. Leave s3BackupRetentionDays at 0 and let a rule of the bucket delete.",
)
_DIGEST = (
    "the bucket takes uploads only with a digest of their bytes",
    "A proxy before the store may take the header Content-MD5 away.",
)
_OTHER_REGION = (
    "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException InvalidRegion "
    "InvalidLocationConstraint 301 302 307"
)
#: The first row that fits counts. Rows that read the message come before those that know the code alone.
_MEANINGS = (
    _row(
        IN_ARCHIVE,
        "the object lies in an archive and can't be read before it is thawed",
        "Thaw it, wait until that is done (hours), then try again: aws s3api restore-object --bucket {bucket} "
        "--key {key} --restore-request Days=3",
    ),
    _row(
        "RequestTimeTooSkewed RequestExpired",
        "this machine's clock and the store's differ too much",
        "Set this machine's clock: timedatectl shows whether it is synchronized.",
        retryable=True,
    ),
    _row(
        "SignatureDoesNotMatch InvalidSignatureException AccessDenied",
        "this machine's clock and the store's differ too much",
        "Set this machine's clock: timedatectl shows whether it is synchronized.",
        retryable=True,
        says=r"(?i)not yet current|signature expired|request has expired|clock|time.{0,20}skew",
    ),
    # Ceph RGW answers so for a key that its key service does not know.
    _row(
        "InvalidAccessKeyId InvalidArgument InvalidRequest AccessDenied KMSKeyNotFound",
        *_KMS,
        says=r"(?i)actual key|kms(?!:)|key service|key-id|keyid .*(not exist|invalid|disabled)",
    ),
    _row(
        "AccessDenied InvalidRequest",
        *_LOCKED,
        says=r"(?i)object.?lock(?!.*(md5|checksum))|worm|legal hold|retention",
    ),
    # Of R2 and Google beside those of S3 and WebDAV.
    _row("ObjectLocked ObjectLockedByBucketPolicy RetentionPolicyNotMet ObjectUnderActiveHold 423", *_LOCKED),
    _row("InvalidRequest InvalidDigest InvalidArgument", *_DIGEST, says=r"(?i)md5|checksum|object lock"),
    _row(DIGEST_WANTED, *_DIGEST),
    _row(
        "QuotaExceeded StorageLimitExceeded StorageQuotaExceeded BucketQuotaExceeded XMinioAdminBucketQuotaExceeded "
        "XMinioStorageFull InsufficientStorage InsufficientCapacity 507",
        "the store has no room left, or the bucket's quota is used up",
        "Delete old backups or raise the quota, then back up again.",
    ),
    _row(
        "AccessDenied QuotaExceeded 403",
        "the account's limit at the store is reached",
        "Raise the limit at the provider, or delete old backups.",
        says=r"(?i)\bcap\b.*exceeded|quota|storage.{0,20}limit",
    ),
    _row(
        "AccountProblem AllAccessDisabled NotSignedUp InvalidPayer UserSuspended AccountSuspended OptInRequired "
        "InactiveAccount PaymentRequired 402",
        "the store has closed the account, or not opened it yet",
        "The provider's console says why: a bill, a suspension, a service that is not signed up for.",
    ),
    _row(
        "KMS.NotFoundException KMS.DisabledException KMS.KMSInvalidStateException KMS.InvalidKeyUsageException "
        "KMS.InvalidStateException KMSKeyNotFound KMSNotConfigured XMinioKMSKeyNotFound XMinioKMSNotConfigured "
        "XMinioKMSDefaultKeyAlreadyConfigured XKMSInternalError",
        *_KMS,
    ),
    _row(
        "SlowDown Throttling ThrottlingException ThrottledException RequestLimitExceeded TooManyRequests "
        "BandwidthLimitExceeded RequestThrottled RequestThrottledException PriorRequestNotComplete "
        "KMS.ThrottlingException 429",
        "the store asks for fewer requests",
        "A retry waits and goes on; if it happens often, lower s3.maxConcurrency or raise s3.partSizeMiB.",
        retryable=True,
    ),
    _row(
        "RequestTimeout OperationAborted ConditionalRequestConflict 408 409 425",
        "the store gave up on the request",
        "A retry goes on where it was.",
        retryable=True,
    ),
    _row(
        "BadDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch IncompleteBody ContentSHA256Mismatch",
        "the bytes that arrived are not those that were sent",
        "A retry sends them again; if it stays, something between here and the store alters requests.",
        retryable=True,
    ),
    _row(
        "413 RequestEntityTooLarge EntityTooLarge MaxMessageLengthExceeded",
        "the request is too large for the store, or for a proxy before it",
        "Raise the proxy's limit for request bodies (nginx: client_max_body_size), or lower s3.partSizeMiB.",
    ),
    _row("EntityTooSmall", "the store takes no parts as small as these", "Raise s3.partSizeMiB."),
    # A retry asks which parts are there, and sends the others.
    _row(
        "InvalidPart InvalidPartOrder",
        "the store no longer has parts that it took",
        "The next try sends them again.",
        retryable=True,
    ),
    _row(
        "MissingContentLength 411",
        "the store does not learn how long the body is",
        "A proxy before it may take the header Content-Length away.",
    ),
    _row("InvalidTag", "the store does not take these tags", "Correct s3.tags."),
    _row(
        "407",
        "the HTTP proxy wants a user name and a password",
        "Put them into {variable}, or name the store in NO_PROXY.",
    ),
    _row(
        "NotImplemented 501 MethodNotAllowed 405",
        "the store can't do that",
        "If s3.tags, s3.storageClass and a server-side s3.encryption are left out and it stays, this store takes no "
        "uploads in parts: use another one, or raise s3.partSizeMiB (5120 at most) above the size of the backup.",
        of="CreateMultipartUpload UploadPart CompleteMultipartUpload",
    ),
    _row(
        "NotImplemented 501 MethodNotAllowed 405",
        "the store can't do that",
        "Leave out what it does not know: s3.tags, s3.storageClass, a server-side s3.encryption. "
        "duckling check tries each.",
    ),
    _row(
        "InvalidStorageClass",
        "the store does not have this storage class",
        "Correct s3.storageClass, or leave it out.",
    ),
    _row("NoSuchBucket", "", _CHECK_BUCKET, error=NoSuchBucketError),
    _row(
        _OTHER_REGION,
        "the bucket lives in the region {found!r}, not in {region!r}",
        "Set s3.region to {found}, and s3.endpoint, where there is one, to that region's.",
        error=NoSuchBucketError,
        names_region=True,
    ),
    _row(
        _OTHER_REGION,
        "the bucket lives in another region than {region!r}",
        "Set s3.region to the bucket's region, and s3.endpoint, where there is one, to that region's.",
        error=NoSuchBucketError,
    ),
    _row(
        "InvalidBucketName",
        "",
        "Check s3.bucket; without forcePathStyle it must be a valid part of a host's name.",
        error=NoSuchBucketError,
    ),
    _row(
        "ExpiredToken ExpiredTokenException TokenRefreshRequired",
        "",
        "The session token has ended: put new keys into s3.accessKeyId, s3.secretAccessKey and s3.sessionToken, "
        'or use credentialSource "default" or awsConnId, which renew them.',
        error=AccessDeniedError,
    ),
    _row(
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidSecurity 401 Unauthorized AuthenticationRequired",
        "",
        "Check s3.accessKeyId and s3.secretAccessKey.",
        error=AccessDeniedError,
    ),
)
_DENIED = {"AccessDenied", "403", "Forbidden", "UnauthorizedAccess"}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
#: Actions on no object that is there already: what they miss is the bucket.
_OF_THE_BUCKET = {"s3:PutObject", "s3:ListBucket"}


class Translator:
    """Errors of one bucket.

    :param url: of the bucket, ending in a slash.
    :param region: the configured one, for the message about another.
    :param endpoint: the configured one; None is AWS.
    """

    def __init__(self, *, url: str, region: str, endpoint: str | None) -> None:
        self._url, self._region, self._endpoint = url, region, endpoint
        self._bucket = url.removeprefix("s3://").rstrip("/")

    @contextlib.contextmanager
    def errors(self, action: str, key: str, control: Control | None = None) -> Iterator[None]:
        """Turn botocore's errors into ours. `action` is the IAM action that the calls inside need."""
        try:
            yield
        except (ClientError, BotoCoreError, StrangeAnswerError, ResponseParserError, *UNREADABLE) as error:
            if control is not None:
                # A body that raises because of a cancellation comes back wrapped by the HTTP client.
                control.check()
            raise self.translated(error, action, key) from error
        except RuntimeError as error:
            if not is_about_credentials(error):
                raise
            raise self.translated(error, action, key) from error

    def translated(self, error: Exception, action: str, key: str) -> DucklingError:
        subject = self._url + key
        if is_about_credentials(error):
            return credentials_fault(error, subject)
        if isinstance(error, ClientError):
            return self._refusal(error, action, key)
        if isinstance(error, StrangeAnswerError):
            return StoreError(error.cause, subject=subject, hint=error.hint, retryable=error.retryable)
        if isinstance(error, (ResponseParserError, PaginationError, *UNREADABLE)):
            return StoreError(
                "the store's answer can't be read: it is cut off, or not what S3 answers",
                subject=subject,
                hint="Try again.",
            )
        if isinstance(error, ParamValidationError):
            return StoreError(str(error), subject=subject, retryable=False)
        return connection_fault(error, self._endpoint, subject)

    def _refusal(self, error: ClientError, action: str, key: str) -> DucklingError:
        code, message = _told(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = f"{code}: {message}" if message and message != code else code
        subject = self._url + key
        if code == "NoSuchUpload":
            return NotFoundError(
                "no such upload: the store, or another program, has removed it",
                subject=subject,
                hint="The next try starts it again.",
                retryable=True,
            )
        if code in _MISSING:
            if action in _OF_THE_BUCKET:
                return NoSuchBucketError("no such bucket", code=code, subject=subject, hint=self._check_bucket())
            return NotFoundError("no such object", subject=subject)
        if code in {"PreconditionFailed", "412"} and action == "s3:GetObject":
            return ReplacedError("the object was replaced while it was being read", subject=subject, hint="Try again.")
        named = _NAMED_ACTION.search(message)
        if named:
            return self._denied(text, code, named[1], key, explicit="explicit deny" in message)
        found = _told_region(error)
        meaning = _meaning(code, message, error.operation_name, region=found)
        if meaning is None and (code in _DENIED or status == 403):
            return self._denied(text, code, action, key)
        if meaning is None:
            return StoreError(
                text or "the store failed",
                code=code,
                subject=subject,
                hint=self._unknown_hint(code, status, bodiless=error.operation_name.startswith("Head")),
                retryable=status >= 500,
            )
        names = {
            "bucket": self._bucket,
            "key": key,
            "region": self._region,
            "found": found,
            "variable": proxy_variable(self._endpoint) or "HTTPS_PROXY",
        }
        cause, hint = meaning.cause.format(**names), meaning.hint.format(**names)
        if hint == _CHECK_BUCKET:
            hint = self._check_bucket()
        cause = f"{text} ({cause})" if cause else text
        if meaning.error is AccessDeniedError:
            return AccessDeniedError(cause, action=action, code=code, subject=subject, hint=hint)
        return meaning.error(cause, code=code, subject=subject, hint=hint, retryable=meaning.retryable)

    def _check_bucket(self) -> str:
        """What to do about a bucket that is not found."""
        at = urlsplit(self._endpoint or "")
        in_host = f"{at.hostname}".startswith(f"{self._bucket}.")
        if not in_host and at.path.strip("/").rpartition("/")[2] != self._bucket:
            return _CHECK_BUCKET
        return (
            "s3.endpoint holds the bucket's name, and it is added once more: leave it out there, unless the host "
            "itself is called so."
        )

    def _denied(self, text: str, code: str, action: str, key: str, *, explicit: bool = False) -> AccessDeniedError:
        # S3 tells "not there" from "not allowed" only to those who may list.
        listing = " (and s3:ListBucket, or a missing object looks the same)" if action == "s3:GetObject" else ""
        # The answer to a HEAD has no body, so it does not tell wrong credentials from a missing permission.
        first = "Check s3.accessKeyId and s3.secretAccessKey; if they are right, allow" if code == "403" else "Allow"
        place = "on the key (s3.kmsKeyId)" if action.startswith("kms:") else "for this bucket and prefix"
        hint = f"{first} {action}{listing} to these credentials {place}."
        if explicit:
            hint = f"A policy denies it explicitly, and no permission outweighs that: take {action} out of that policy."
        elif code == "403" and (self._endpoint or "").startswith("http://") and proxy_variable(self._endpoint):
            hint += f" Or the HTTP proxy of {proxy_variable(self._endpoint)} refuses: name the store in NO_PROXY."
        return AccessDeniedError(
            f"{text}; {action} is not allowed" + (", or the keys are wrong" if code == "403" else ""),
            action=action,
            code=code,
            subject=self._url + key,
            hint=hint,
        )

    def _unknown_hint(self, code: str, status: int, *, bodiless: bool) -> str:
        """What to do about a code that no row knows."""
        if code == "400" and (self._endpoint or "").startswith("http://"):
            return "If s3.endpoint should begin with https://, write it so."
        if code.isdigit() and not bodiless and status >= 500:
            return "A proxy before the store answers so while it can't reach it: try again later; its log says why."
        if code.isdigit() and not bodiless:
            return "No store answers so, but a proxy or a firewall before it: its log says why."
        if status >= 500:
            return "The store failed: try again later, and look at its own state."
        return "duckling check tries each kind of request and says which are refused."

    def stream(self, stream: ResponseBody, key: str, control: Control | None) -> TranslatedStream:
        return TranslatedStream(stream, self._url + key, control)


def demands_digest(error: ClientError) -> bool:
    """Whether the store refused an upload because no digest of its bytes came with it."""
    meaning = _meaning(*_told(error))
    return meaning is not None and meaning.cause == _DIGEST[0]


def refuses_part_number(error: ClientError) -> bool:
    """Whether the store refused a part that may have too high a number."""
    code, message = _told(error)
    return code in _PART_REFUSED and (code != "InvalidRequest" or "part" in message.lower())


def _told(error: ClientError) -> tuple[str, str]:
    """Code and message; Ceph sends empty elements, a proxy none."""
    told = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(told.get("Code") or status), str(told.get("Message") or "").strip().rstrip(".")


def _told_region(error: ClientError) -> str:
    """The bucket's region, where the answer tells it."""
    told: dict[str, Any] = {**error.response.get("Error", {})}
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = str(headers.get("x-amz-bucket-region") or told.get("Region") or "")
    return region if re.fullmatch(r"[A-Za-z0-9-]{1,63}", region) else ""


def _meaning(code: str, message: str, operation: str = "", *, region: str = "") -> _Meaning | None:
    for row in _MEANINGS:
        if (
            code in row.codes
            and (row.says is None or re.search(row.says, message))
            and (not row.of or operation in row.of.split())
            and (not row.names_region or region)
        ):
            return row
    return None
