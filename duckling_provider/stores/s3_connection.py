"""What fails on the way to a store or back: TLS, HTTP proxies, the network, bodies that break off, and credentials that
end and can't be renewed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
from collections.abc import Iterator
from typing import Any, Protocol, cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import StoreError
from duckling_provider.base.interruptible import interruptible

#: The code of a request that got no answer at all.
NO_ANSWER = "NoAnswer"
#: What botocore takes for an HTTP proxy: ``http(s)://user:password@host:port``, of which only the host is needed.
_PROXY = re.compile(r"((https?:)?//)?([^/]*@)?(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?/?", re.IGNORECASE)
#: Operations of services that hand out a role's credentials.
_GIVES_CREDENTIALS = frozenset(
    {"AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetRoleCredentials", "CreateToken"}
)
_CREDENTIAL_ERRORS = (
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
#: Words of the TLS library (OpenSSL 1.1 to 3), what they mean, what to do. The first row that fits counts.
_TLS_FAULTS = (
    (
        ("wrong_version_number", "http_request", "record layer failure", "unknown_protocol"),
        "{endpoint} does not speak TLS",
        "This port may speak plain http, or belong to another service: correct s3.endpoint.",
    ),
    (
        ("no such file", "no_certificate_or_crl", "pem lib", "permission denied", "is a directory"),
        "the file of certificates that AWS_CA_BUNDLE names can't be used",
        "Name a readable file of PEM certificates there (or in ca_bundle, REQUESTS_CA_BUNDLE).",
    ),
    (
        ("mismatch", "doesn't match", "not valid for"),
        "the TLS certificate at {endpoint} is for another host",
        "Write the certificate's name into s3.endpoint; if the bucket's name stands before it, set forcePathStyle.",
    ),
    (
        ("expired", "not yet valid"),
        "the TLS certificate of {endpoint} is out of date",
        "Renew it; if it is good, this machine's clock is wrong.",
    ),
    (
        ("certificate_verify_failed", "self-signed", "self signed"),
        "the TLS certificate of {endpoint} is not trusted",
        "For a certificate of your own set AWS_CA_BUNDLE to its CA file.",
    ),
)


#: What a proxy answers to a request for a tunnel, as the HTTP library has it: what that means, what to do, whether it
#: may pass.
_PROXY_FAULTS = (
    (" 407", "it wants a user name and a password", "Put them into {variable}, or name the store in NO_PROXY.", False),
    (" 403", "it does not let through to {endpoint}", "Have it allowed there, or name the store in NO_PROXY.", False),
    (" 50", "it does not reach {endpoint}", "Check s3.endpoint, or name the store in NO_PROXY.", True),
    ("", "it does not answer", "Check {variable}, or name the store in NO_PROXY.", True),
)


def is_about_credentials(error: Exception) -> bool:
    """Whether `error` is of botocore's renewal of credentials, in the middle of a request to the store."""
    if isinstance(error, ClientError):
        return error.operation_name in _GIVES_CREDENTIALS
    # So it says that what it got in place of credentials that ended had ended, too.
    return isinstance(error, _CREDENTIAL_ERRORS) or (
        type(error) is RuntimeError and "credentials" in str(error).lower()
    )


def credentials_fault(error: Exception, subject: str) -> StoreError:
    """The error of a request that had no valid credentials to be signed with. The store never saw it, so what it has
    of an upload stays for the next try.
    """
    return StoreError(
        f"the credentials can't be renewed: {str(error).rstrip('.')}",
        subject=subject,
        hint="Look at what gives them: the machine's role, ~/.aws/config, or the Airflow connection s3.awsConnId.",
    )


def connection_fault(error: Exception, endpoint: str | None, subject: str) -> StoreError:
    """The error of a request that got no answer."""
    if isinstance(error, SSLError):
        return _tls_fault(_innermost(error), endpoint, subject)
    variable = proxy_variable(endpoint)
    no_proxy = bool(variable) and not _PROXY.fullmatch(os.environ[variable])
    if no_proxy and type(error) in {ProxyConnectionError, HTTPClientError}:
        return StoreError(
            f"{variable} names no HTTP proxy",
            code=NO_ANSWER,
            subject=subject,
            hint="Write http://host:port there (other kinds of proxies can't be used), or name the store in NO_PROXY.",
            retryable=False,
        )
    if isinstance(error, ProxyConnectionError):
        return _proxy_fault(error, endpoint, subject)
    hint = "Check s3.endpoint and the network."
    if isinstance(error, ConnectionClosedError) and (endpoint or "").startswith("http://"):
        hint += " A port that speaks TLS wants https:// there."
    told = re.sub(r'\?[^"\s]*', "", str(error)).rstrip(".")  # the address without what was asked
    return StoreError(f"no answer from the store: {told}", code=NO_ANSWER, subject=subject, hint=hint)


def proxy_variable(endpoint: str | None) -> str:
    """The variable of the environment that names the HTTP proxy for requests to `endpoint`; empty where none does."""
    scheme = "http" if (endpoint or "").startswith("http://") else "https"
    # The order of urllib.request.getproxies.
    return next((name for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY") if os.environ.get(name)), "")


def _proxy_fault(error: BotoCoreError, endpoint: str | None, subject: str) -> StoreError:
    told, at = _innermost(error), endpoint or "AWS"
    # botocore hides its password.
    address = str(error.kwargs.get("proxy_url", ""))
    variable = proxy_variable(endpoint) or "HTTPS_PROXY"
    words, hint, passing = next(fault[1:] for fault in _PROXY_FAULTS if fault[0] in told)
    return StoreError(
        f"the HTTP proxy {address}: {words.format(endpoint=at)} ({told})",
        code=NO_ANSWER,
        subject=subject,
        hint=hint.format(variable=variable),
        retryable=passing,
    )


def _tls_fault(text: str, endpoint: str | None, subject: str) -> StoreError:
    for words, cause, hint in _TLS_FAULTS:
        if any(word in text.lower() for word in words):
            told = f"{cause.format(endpoint=endpoint or 'AWS')}: {text}"
            return StoreError(told, code=NO_ANSWER, subject=subject, hint=hint, retryable=False)
    cause = f"the TLS connection failed: {text}"
    return StoreError(cause, code=NO_ANSWER, subject=subject, hint="Check s3.endpoint and the network.")


class ResponseBody(Protocol):
    """What botocore answers a GET with."""

    def read(self, amt: int | None = None) -> bytes: ...
    def readinto(self, b: Any, /) -> int: ...
    def close(self) -> None: ...


class TranslatedStream:
    """A response body whose errors while reading are ours too."""

    def __init__(self, stream: ResponseBody, subject: str, control: Control | None) -> None:
        self._stream, self._subject, self._control = stream, subject, control

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, all for a negative one; fewer at a time where the host's bandwidth is limited."""
        if self._control is not None and size > 0:
            size = self._control.piece(size)
        with self._errors():
            read = interruptible(lambda: self._stream.read(None if size < 0 else size), self._control)
        self._count(len(read))
        return read

    def readinto(self, target: memoryview, /) -> int:
        """As `read`, into the beginning of `target`; returns how many bytes came."""
        if self._control is not None:
            target = target[: self._control.piece(len(target))]
        with self._errors():
            count = interruptible(lambda: self._stream.readinto(target), self._control)
        self._count(count)
        return count

    def _count(self, received: int) -> None:
        if self._control is not None:
            self._control.transfer(received)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, OSError, http.client.HTTPException) as error:
            raise StoreError(
                f"the transfer broke off: {_innermost(error)}",
                subject=self._subject,
                hint="The network, or a proxy before the store, ended it: try again.",
            ) from error

    def close(self) -> None:
        self._stream.close()


def _innermost(error: BaseException) -> str:
    """The words of what was raised first."""
    while error.__context__ is not None or error.__cause__ is not None:
        error = error.__cause__ or cast("BaseException", error.__context__)
    return str(error).strip()
