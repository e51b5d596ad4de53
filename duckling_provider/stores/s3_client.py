"""The connection to a store: whose keys, which settings, and what of botocore's ways is not wanted.

botocore reads profiles, configuration files and a good forty variables of its own. They belong to whoever uses AWS's
tools on this machine, not to an entry of databases.json, and one of them in disorder would stop every backup. So a
client is made without them; only proxies, certificates (``AWS_CA_BUNDLE``) and, where an entry asks for it, credentials
come from there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import botocore.credentials
import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionError,  # noqa: A004 - its name
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.hooks import HierarchicalEmitter

from duckling_provider.base.errors import ConfigError, UnavailableError
from duckling_provider.config.databases import S3Settings
from duckling_provider.stores import concurrency, fetch
from duckling_provider.stores.s3_guard import refuse_strange_answers

if TYPE_CHECKING:
    import boto3
    from botocore.awsrequest import AWSPreparedRequest, AWSRequest
    from botocore.signers import RequestSigner
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
#: Tries of a request that the store, or a proxy before it, could not serve just then.
ATTEMPTS = 6
#: Of one that was not answered in time, which takes long; and of one to an address where no server listens, and none
#: has answered before: it may be wrong.
SILENT_ATTEMPTS, REFUSED_ATTEMPTS = 3, 3
#: Seconds that a store may ask for between two tries.
_LONGEST_WISH = 30
#: Answers after which a request is made again: by status, since a proxy knows no codes (from 500 on all but these), and
#: by code.
_PASSING_STATUS, _LASTING_STATUS = frozenset({408, 425, 429}), frozenset({501, 505, 507, 508, 511})
_PASSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)

_SIGNATURE = "s3v4"
#: In a request's context: whether it asks before it sends, see `ask_once`.
_ASKED = "duckling_asked"


@dataclass(frozen=True)
class Credentials:
    """Keys for a store; `repr` shows neither secret.

    :param session: where these came from, if it renews them: those of a role end within the hour, a transfer may not.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    session: boto3.session.Session | botocore.session.Session | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id}, ***)"

    def for_botocore(self) -> botocore.credentials.Credentials:
        """What requests are signed with."""
        if self.session is not None and (own := self.session.get_credentials()) is not None:
            # Not frozen: they renew themselves.
            return own
        return botocore.credentials.Credentials(self.access_key_id, self.secret_access_key, self.session_token)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What logs must not show."""
        return tuple(filter(None, (self.secret_access_key, self.session_token)))


def default_credentials(database_id: str) -> Credentials:
    """What boto3's own chain finds: environment, shared files, the role of a container, an instance or a web identity.

    :raises ConfigError: it finds nothing, or a profile or file of it is wrong.
    :raises UnavailableError: the service that hands out a role's credentials fails.
    """
    try:
        session = botocore.session.Session()
        found = session.get_credentials()
        keys = found.get_frozen_credentials() if found is not None else None
    except (ProfileNotFound, ConfigParseError, PartialCredentialsError, OSError) as error:
        raise ConfigError(
            f"the machine's own credentials can't be used: {error}", entry=database_id, field="s3.credentialSource"
        ) from error
    except (BotoCoreError, ClientError, RuntimeError) as error:
        # RuntimeError: of credentials that had ended when they were handed out.
        raise UnavailableError(
            f"the machine's own credentials can't be had now: {error}", subject=database_id
        ) from error
    if keys is None or not keys.access_key or not keys.secret_key:
        raise ConfigError(
            "this machine has no credentials of its own",
            entry=database_id,
            field="s3.credentialSource",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, write ~/.aws/credentials, or use a role.",
        )
    return Credentials(keys.access_key, keys.secret_key, keys.token, session)


def make_client(settings: S3Settings, credentials: Credentials, *, silent_attempts: int | None = None) -> S3Client:
    """A client for the store of `settings`; it may be used by several threads.

    :param silent_attempts: tries of a request that is not answered in time, in place of `SILENT_ATTEMPTS`.
    """
    made = _session_of_our_own(credentials).create_client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint or None,
        config=Config(
            signature_version=_SIGNATURE,
            s3={"addressing_style": "path" if settings.force_path_style else "virtual"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # missing in the stubs
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": 1},  # see `try_again`
            max_pool_connections=max(settings.max_concurrency, fetch.THREADS) + 4,
            tcp_keepalive=True,
        ),
    )
    client = cast("S3Client", made)  # its stubs are boto3's, which gives it no more than uploads of whole files
    sign_known_payloads(client, unsigned=not settings.signs_payloads)
    send_whole_blocks(client)
    ask_once(client)
    refuse_strange_answers(client, endpoint=settings.endpoint)
    try_again(client, silent_attempts=SILENT_ATTEMPTS if silent_attempts is None else silent_attempts)
    return client


def try_again(client: S3Client, *, silent_attempts: int) -> None:
    """Let `client` make requests again that failed in passing, see `concurrency.pause_after`.

    botocore's own retries are off: only for the codes of throttling do they wait at all, so a store behind a proxy that
    answers 503 while it restarts, or a connection that is reset, would be given up within a second.
    """
    answered = threading.Event()

    def pause(
        attempts: int,
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        request_dict: dict[str, Any],
        **_: object,
    ) -> float | None:
        if response is not None:
            answered.set()
        refused = ATTEMPTS if answered.is_set() else REFUSED_ATTEMPTS
        if isinstance(caught_exception, SSLError) and request_dict["context"].get(_ASKED) is False:
            # The store has ended the connection while a part was sent: TLS tells that so. The next try hears why.
            most = ATTEMPTS
        else:
            most = min(ATTEMPTS, _attempts(response, caught_exception, silent=silent_attempts, refused=refused))
        return max(concurrency.pause_after(attempts), _wish(response)) if attempts < most else None

    client.meta.events.register("needs-retry.s3", pause)  # type: ignore[arg-type]  # the stubs know no answers


def _wish(response: tuple[Any, dict[str, Any]] | None) -> float:
    """Seconds that the answer asks to wait (Retry-After, RFC 9110; as a date it is passed over)."""
    told = str(response[0].headers.get("Retry-After", "")) if response is not None else ""
    return float(min(int(told), _LONGEST_WISH)) if told.isdecimal() and len(told) < 10 else 0.0


def _attempts(
    response: tuple[Any, dict[str, Any]] | None, error: Exception | None, *, silent: int, refused: int
) -> int:
    """How often a request may be made in all that ended so."""
    if response is not None:
        status, code = response[0].status_code, response[1].get("Error", {}).get("Code")
        passes = status in _PASSING_STATUS or (status >= 500 and status not in _LASTING_STATUS)
        return ATTEMPTS if passes or code in _PASSING_CODES else 1
    if isinstance(error, (ReadTimeoutError, ConnectTimeoutError)):
        return silent
    if isinstance(error, (EndpointConnectionError, ProxyConnectionError)):
        return refused
    if isinstance(error, SSLError) or not isinstance(error, (ConnectionError, HTTPClientError)):
        return 1
    # An address that can't be parsed, such as a proxy's.
    return 1 if isinstance(error.kwargs.get("error"), ValueError) else ATTEMPTS


class _Given(botocore.credentials.CredentialProvider):
    """The only source of credentials that a session of our own has."""

    METHOD = CANONICAL_NAME = "duckling"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> botocore.credentials.Credentials:
        return self._credentials.for_botocore()


def _session_of_our_own(credentials: Credentials) -> botocore.session.Session:
    certificates = _certificates()
    session = botocore.session.Session(event_hooks=copy.copy(_handlers()), include_builtin_handlers=False)
    variables = session.get_component("config_store")
    for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        variables.set_config_provider(name, ConstantProvider(default))
    for name in ("s3", "proxies_config"):
        variables.set_config_provider(name, ConstantProvider(None))
    for name in ("config_file", "credentials_file"):
        variables.set_config_provider(name, ConstantProvider(os.devnull))
    variables.set_config_provider("ca_bundle", ConstantProvider(certificates))
    session.register_component("data_loader", _models())
    session.register_component("credential_provider", botocore.credentials.CredentialResolver([_Given(credentials)]))
    return session


@functools.cache
def _handlers() -> HierarchicalEmitter:
    """What botocore does to requests and answers: one for all sessions, to register it takes longer than all else."""
    handlers = HierarchicalEmitter()
    botocore.session.Session(event_hooks=handlers)
    return handlers


@functools.cache
def _models() -> botocore.loaders.Loader:
    """What botocore knows of S3's calls: one for all clients, since reading it is most of the cost of making one."""
    return botocore.loaders.create_loader()


def _certificates() -> str | None:
    """The file of certificates to trust besides the well-known ones, as AWS's tools take it."""
    named = os.environ.get("AWS_CA_BUNDLE")
    if not named:
        # A file in disorder is no reason to fail: the store's certificate may need none of it.
        with contextlib.suppress(BotoCoreError, OSError):
            named = botocore.session.Session(include_builtin_handlers=False).get_config_variable("ca_bundle")
    return named or None


class _KnownPayload(S3SigV4Auth):
    """Signs a body that knows its SHA-256 without reading it for that: a part was hashed when it was compared with the
    snapshot's record, and each further pass takes as long as the transfer. The signature is the usual one.
    """

    #: Whether a part that knows no SHA-256 is sent without one.
    unsigned = False

    def payload(self, request: AWSRequest) -> str:
        known = getattr(request.body, "sha256", None)
        if isinstance(known, str):
            return known
        if self.unsigned and hasattr(request.body, "blocks") and str(request.url).startswith("https://"):
            return "UNSIGNED-PAYLOAD"
        return str(super().payload(request))


def sign_known_payloads(client: S3Client, *, unsigned: bool = False) -> None:
    """Let `client` take a body's SHA-256 from its attribute ``sha256``, 64 hex characters, where it has one.

    :param unsigned: a part that has none goes without over TLS, which protects its bytes on the way.

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
        signer = _KnownPayload(usual.credentials, name, region)
        signer.unsigned = unsigned
        signer.add_auth(request)

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
    the transfer's CPU time, and the blocks are what a limited bandwidth counts.
    """

    def choose(request: AWSPreparedRequest, **_: object) -> None:
        if hasattr(request.body, "blocks"):
            # The stubs know no body that is only iterated over, which urllib3 takes.
            request.body = cast("IO[bytes]", _Blocks(cast("_BlockReader", request.body)))

    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-send.s3.{operation}", choose)


def ask_once(client: S3Client) -> None:
    """Let `client` send without asking first (Expect: 100-continue, RFC 9110), once the store has taken something.

    botocore asks before each part and object, and waits for the answer, or a second where none comes: a whole round
    trip, half of what a part takes over a long line. What the question is good for, to learn of a refusal before the
    bytes are sent, is wanted where one is likely: for the first part, and from any refusal or broken connection on
    until one that was asked for is taken. A refusal that comes while a part is sent may be lost with the connection;
    the next try asks and hears it.
    """
    welcome = threading.Event()

    def create(request: AWSRequest, **_: object) -> None:
        context = request.context
        context[_ASKED] = not welcome.is_set() or context.get("retries", {}).get("attempt", 1) > 1
        if not context[_ASKED]:
            del request.headers["Expect"]

    def look(response: tuple[Any, dict[str, Any]] | None, request_dict: dict[str, Any], **_: object) -> None:
        if response is None or response[0].status_code >= 300:
            welcome.clear()
        elif request_dict["context"].get(_ASKED):
            welcome.set()

    events = client.meta.events
    # Before it is signed, and before `try_again` judges.
    for operation in ("PutObject", "UploadPart"):
        events.register_first(f"request-created.s3.{operation}", create)
        events.register_first(f"needs-retry.s3.{operation}", look)
