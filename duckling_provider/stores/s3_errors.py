"""botocore's many errors, told as ours: what was not allowed, what does not exist, what may pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    DucklingError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
)
from duckling_provider.base.interruptible import interruptible

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
_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "OperationAborted",
    "Throttling",
    "ThrottlingException",
}


class ResponseBody(Protocol):
    """What botocore answers a GET with."""

    def read(self, amt: int | None = None) -> bytes: ...
    def close(self) -> None: ...


class Translator:
    """Errors of one bucket.

    :param url: of the bucket, ending in a slash.
    :param region: the configured one, for the message about another.
    :param endpoint: the configured one; None is AWS.
    """

    def __init__(self, *, url: str, region: str, endpoint: str | None) -> None:
        self._url, self._region, self._endpoint = url, region, endpoint

    @contextlib.contextmanager
    def errors(self, action: str, key: str, control: Control | None = None) -> Iterator[None]:
        """Turn botocore's errors into ours. `action` is the IAM action that the calls inside need."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            if control is not None:
                # A body that raises because of a cancellation comes back wrapped by the HTTP client.
                control.check()
            raise self.translated(error, action, key) from error

    def translated(self, error: ClientError | BotoCoreError, action: str, key: str) -> DucklingError:
        subject = self._url + key
        if isinstance(error, SSLError):
            return StoreError(
                f"the TLS certificate of {self._endpoint} is not trusted: {_innermost(error)}",
                subject=subject,
                hint="For a certificate of your own set AWS_CA_BUNDLE to its CA file.",
                retryable=False,
            )
        if isinstance(error, (NoCredentialsError, ParamValidationError)):
            return StoreError(str(error), subject=subject, retryable=False)
        if not isinstance(error, ClientError):
            return StoreError(
                f"no answer from the store: {error}", subject=subject, hint="Check s3.endpoint and the network."
            )
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
                f"{text} (the bucket lives in another region than {self._region!r})",
                code=code,
                subject=subject,
                hint="Set s3.region to the bucket's region.",
            )
        if code in _BAD_CREDENTIALS:
            return AccessDeniedError(
                text, action=action, code=code, subject=subject, hint="Check s3.accessKeyId and s3.secretAccessKey."
            )
        if code in _DENIED or status == 403:
            # S3 tells "not there" from "not allowed" only to those who may list.
            listing = " (and s3:ListBucket, or a missing object looks the same)" if action == "s3:GetObject" else ""
            # The answer to a HEAD has no body, so it does not tell wrong credentials from a missing permission.
            first = (
                "Check s3.accessKeyId and s3.secretAccessKey; if they are right, allow" if code == "403" else "Allow"
            )
            return AccessDeniedError(
                f"{text}; {action} is not allowed" + (", or the keys are wrong" if code == "403" else ""),
                action=action,
                code=code,
                subject=subject,
                hint=f"{first} {action}{listing} to these credentials for this bucket and prefix.",
            )
        if code in _MISSING or code == "NoSuchUpload":
            return NotFoundError("no such object" if code != "NoSuchUpload" else "no such upload", subject=subject)
        if code in {"PreconditionFailed", "412"}:
            return IntegrityError("the object was replaced while it was being read", subject=subject, hint="Try again.")
        return StoreError(
            text or "the store failed", code=code, subject=subject, retryable=status >= 500 or code in _PASSING
        )

    def stream(self, stream: ResponseBody, key: str, control: Control | None) -> TranslatedStream:
        return TranslatedStream(stream, self._url + key, control)


class TranslatedStream:
    """A response body whose errors while reading are ours too."""

    def __init__(self, stream: ResponseBody, subject: str, control: Control | None) -> None:
        self._stream, self._subject, self._control = stream, subject, control

    def read(self, size: int = -1) -> bytes:
        try:
            return interruptible(lambda: self._stream.read(None if size < 0 else size), self._control)
        except (ReadTimeoutError, ResponseStreamingError, BotoCoreError) as error:
            raise StoreError(f"the transfer broke off: {_innermost(error)}", subject=self._subject) from error

    def close(self) -> None:
        self._stream.close()


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None or error.__cause__ is not None:
        error = error.__cause__ or cast("BaseException", error.__context__)
    return str(error).strip()
