"""The ``s3`` object of an entry: its fields, their rules, and the frozen settings that come of them.

A new field is one line in `S3Settings`, and where it has a rule of its own, one in `_check_place` or `_check_objects`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, SecretStr
from pydantic_core import PydanticCustomError

from duckling_provider.base.strict_json import printable
from duckling_provider.config.fields import (
    ANY_STRING,
    MAX_DAYS,
    MAX_HOURS,
    MIN_HOURS,
    Elsewhere,
    FieldProblems,
    Shape,
    Text,
    any_string,
    check_choices,
    validate,
    warn_unknown,
)
from duckling_provider.config.keys import EncryptionKey

MIB = 1024 * 1024

Encryption = Literal["none", "sse-s3", "sse-kms", "client-aes256"]
Verify = Literal["full", "sent", "head"]
Receive = Literal["direct", "boto3"]

#: From the weakest to the strongest.
MODES: tuple[Encryption, ...] = get_args(Encryption)
CLIENT: Encryption = "client-aes256"

_MAX_PREFIX = 900  # bytes; an S3 key has at most 1,024, and the backup's own name with ".mac" follows
_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 10, 128, 256  # S3's limits for object tags
_PROVIDERS = (
    ".amazonaws.com",
    ".backblazeb2.com",
    ".cloudflarestorage.com",
    ".digitaloceanspaces.com",
    ".googleapis.com",
    ".linodeobjects.com",
    ".ovh.net",
    ".scw.cloud",
    ".wasabisys.com",
    ".your-objectstorage.com",
)


def _key(value: Any) -> EncryptionKey | None:
    try:
        return EncryptionKey.parse(any_string(value))
    except ValueError as error:
        if isinstance(error, PydanticCustomError):
            raise
        return None  # `_check_keys` says what is wrong, where the mode needs a key


_Key = Annotated[EncryptionKey | None, PlainValidator(_key)]
_Secret = Annotated[
    SecretStr | None, AfterValidator(lambda secret: secret if secret and secret.get_secret_value() else None)
]
_Hours = Annotated[float, Field(ge=0, le=MAX_HOURS, allow_inf_nan=False)]
_Days = Annotated[float, Field(ge=0, le=MAX_DAYS, allow_inf_nan=False)]


class Retention(Shape):
    """Of how many days, weeks, months and years the newest good backup stays, beyond ``s3BackupRetentionDays``.

    A misspelled name is an error: what it was to keep would be deleted.
    """

    model_config = ConfigDict(extra="forbid")

    daily: int = Field(default=0, ge=0, le=36_500)
    weekly: int = Field(default=0, ge=0, le=5_200)
    monthly: int = Field(default=0, ge=0, le=1_200)
    yearly: int = Field(default=0, ge=0, le=100)


class S3Settings(Shape):
    """Where and how the backups of one database are stored.

    What `read_s3` returns has every default filled in and obeys all rules; `endpoint` never ends in ``/``.
    """

    enabled: bool
    bucket: str = ""
    region: str = ""
    access_key_id: Text = None
    secret_access_key: _Secret = None
    endpoint: Text = None  #: None = AWS
    force_path_style: bool = False
    path_prefix: str = ""  #: in front of ``backup-<stamp>.db``
    encryption: Annotated[Encryption, ANY_STRING] = "none"
    kms_key_id: Text = None
    encryption_key: _Key = None
    #: Those that older backups were made with; only for reading.
    previous_encryption_keys: Annotated[tuple[_Key, ...], Field(strict=False)] = ()
    backup_interval_hours: _Hours = Field(default=0.0, alias="s3BackupIntervalHours")  #: 0 = inherit
    backup_retention_days: _Days = Field(default=0.0, alias="s3BackupRetentionDays")  #: 0 = for ever
    session_token: _Secret = None
    aws_conn_id: Text = None
    credential_source: Text = None  #: "default" = boto3's own chain
    storage_class: Text = None
    tags: dict[str, str] = Field(default_factory=dict)
    verify: Annotated[Verify | None, ANY_STRING] = None  #: None: "sent" after a differential upload, else "full"
    verify_full_interval_days: _Days = 7.0  #: between two verifications of all bytes
    full_upload_every: int = Field(default=10, ge=1, le=10_000)  #: of so many backups, one is sent whole
    part_size_mib: int = Field(default=8, ge=5, le=5120, alias="partSizeMiB")
    max_parts: int = Field(default=10_000, ge=1, le=10_000)
    max_concurrency: int = Field(default=16, ge=1, le=32)
    retention: Retention | None = None  #: with it, 0 days of retention means: nothing stays for its age
    sign_payload: bool = False  #: over TLS too
    receive: Annotated[Receive, ANY_STRING] = "direct"  #: how downloads leave the connection, see `stores.s3_receive`
    require_identity: bool = False  #: refuse objects without ``duckling-identity``
    object_format: int = Field(default=1, ge=1, le=2)  #: of new objects of client-aes256

    @property
    def part_size(self) -> int:
        """In bytes."""
        return self.part_size_mib * MIB

    @property
    def signs_payloads(self) -> bool:
        """Whether the signature of an upload covers its bytes: without TLS nothing else does on the way."""
        return self.sign_payload or (self.endpoint or "https:").lower().startswith("http:")

    @property
    def reading_keys(self) -> tuple[EncryptionKey, ...]:
        """Every key that a backup here may have been encrypted with, the present one first."""
        return tuple(dict.fromkeys(key for key in (self.encryption_key, *self.previous_encryption_keys) if key))

    def __hash__(self) -> int:
        # Tags are a dict; what is equal has an equal place.
        return hash((self.endpoint, self.bucket, self.path_prefix))


def read_s3(
    raw: Mapping[str, Any],
    default_prefix: str,
    report: FieldProblems,
    *,
    elsewhere: Elsewhere,
    least: Encryption = "none",
) -> S3Settings | None:
    """The ``s3`` object, or None when it is switched off or `report` got errors.

    :param least: the weakest mode that this installation allows.
    :param elsewhere: the entry's own fields, for those that stand here by mistake.
    """
    if raw.get("enabled") is False:
        # Nothing of it is used, so nothing is demanded of it; a misspelled name is still reported.
        warn_unknown(S3Settings, raw, "s3.", report, elsewhere=elsewhere)
        return None
    given = validate(S3Settings, raw, "s3.", report, elsewhere=elsewhere)
    if given is None:
        return None
    prefix = given.path_prefix or default_prefix
    _check_place(given, prefix, report)
    check_choices(given, "s3.", report)
    if given.encryption in MODES and is_weaker(given.encryption, least):
        weak = f"{given.encryption!r} is weaker than DUCKLING_MIN_ENCRYPTION ({least})"
        report.error("s3.encryption", weak, hint=f"Set it to {' or '.join(MODES[MODES.index(least) :])}.")
    _check_keys(given, raw, report)
    _check_objects(given, report)
    if report.errors:
        return None
    return given.model_copy(update={"path_prefix": prefix, "endpoint": (given.endpoint or "").rstrip("/") or None})


def _check_place(given: S3Settings, prefix: str, report: FieldProblems) -> None:
    """Where backups go, and with which credentials."""
    region_wrong = region_fault(given.region, has_endpoint=bool(given.endpoint)) if given.region else "required"
    report.fault("s3.bucket", bucket_fault(given.bucket) if given.bucket else "required")
    report.fault("s3.region", region_wrong)
    inline = {"accessKeyId": given.access_key_id, "secretAccessKey": given.secret_access_key}
    others = {"awsConnId": given.aws_conn_id, "credentialSource": given.credential_source}
    if given.credential_source not in (None, "default"):
        report.error("s3.credentialSource", 'expected "default": what boto3 finds on the machine')
    source = next((name for name, value in others.items() if value), None)
    if source is not None:
        more = {**inline, "sessionToken": given.session_token, **others}
        both = " and ".join(name for name, value in more.items() if value and name != source)
        one = f"given together with {both}: credentials come from one or the other"
        report.fault(f"s3.{source}", one if both else None)
    else:
        for name, value in inline.items():
            report.fault(f"s3.{name}", None if value else "required, unless awsConnId or credentialSource is given")
    report.fault("s3.pathPrefix", prefix_fault(prefix))
    report.fault("s3.endpoint", endpoint_fault(given.endpoint) if given.endpoint else None)
    if not report.errors:
        for text in prefix_warnings(prefix):
            report.warn("s3.pathPrefix", text)
        for text in endpoint_warnings(given.endpoint, given.bucket) if given.endpoint else ():
            report.warn("s3.endpoint", text)


def _check_objects(given: S3Settings, report: FieldProblems) -> None:
    """How often objects are stored, and as what."""
    if given.kms_key_id and given.encryption in MODES and given.encryption != "sse-kms":
        report.warn("s3.kmsKeyId", f'not used: encryption is "{given.encryption}", not "sse-kms"')
    if 0 < given.backup_interval_hours < MIN_HOURS:
        report.error("s3.s3BackupIntervalHours", "expected 0 (BACKUP_INTERVAL_HOURS) or at least a second")
    if given.retention is not None and not any(given.retention.model_dump().values()):
        report.error("s3.retention", "keeps nothing: expected daily, weekly, monthly or yearly, above 0")
    if given.require_identity and given.encryption in MODES and given.encryption != "client-aes256":
        report.error("s3.requireIdentity", 'only "client-aes256" has a key that can prove an identity')
    if given.object_format != 1 and given.encryption in MODES and given.encryption != CLIENT:
        report.error("s3.objectFormat", f'{given.object_format} is a format of "{CLIENT}" only')
    report.fault("s3.storageClass", storage_class_fault(given.storage_class) if given.storage_class else None)
    if (given.storage_class or "").upper() in ("GLACIER", "DEEP_ARCHIVE"):
        report.warn("s3.storageClass", "archived objects can't be read at once: verify and restore fail until then")
    for name, fault in tags_faults(given.tags):
        report.error(f"s3.{name}", fault)


def _check_keys(given: S3Settings, raw: Mapping[str, Any], report: FieldProblems) -> None:
    """Only client-aes256 demands a key, and a good one; earlier keys must be good wherever there are any."""
    text = raw.get("encryptionKey")
    if given.encryption == CLIENT:
        if not text:
            report.error("s3.encryptionKey", "required for client-aes256", hint="`duckling keygen` makes one.")
        elif given.encryption_key is None:
            report.fault("s3.encryptionKey", key_fault(text))
    elif text and given.encryption in MODES:
        # Kept when it is a key, but no reason to stop: files like that exist and work.
        report.warn("s3.encryptionKey", f'not used: encryption is "{given.encryption}", not "client-aes256"')
    for number, earlier in enumerate(raw.get("previousEncryptionKeys") or ()):
        report.fault(f"s3.previousEncryptionKeys.{number}", key_fault(earlier))


def is_weaker(mode: Encryption, least: Encryption) -> bool:
    return MODES.index(mode) < MODES.index(least)


def key_fault(text: str) -> str | None:
    try:
        EncryptionKey.parse(text)
    except ValueError as error:
        return str(error)
    return None


def bucket_fault(text: str) -> str | None:
    if re.fullmatch(r"[A-Za-z0-9._-]{1,255}|arn:[\w.:/-]{1,255}", text):
        return None
    return "expected the bucket's bare name: letters, digits, '.', '-' and '_'"


def region_fault(text: str, *, has_endpoint: bool) -> str | None:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", text):
        return "expected a region's name such as eu-west-1"
    if text == "auto" and not has_endpoint:
        return '"auto" needs an endpoint; AWS wants a region such as eu-west-1'
    return None


def endpoint_fault(text: str) -> str | None:
    """``http(s)://host[:port][/…]`` without credentials."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        return "expected http(s)://host or http(s)://host:port, got a wrong host or port"
    if "@" in text:
        return "must not hold credentials; they belong into accessKeyId and secretAccessKey"
    if url.scheme not in ("http", "https") or not host or port == 0 or re.search(r"\s", text):
        return "expected http(s)://host or http(s)://host:port, beginning with https://"
    return "must not hold '?' or '#'" if "?" in text or "#" in text else None


def endpoint_warnings(text: str, bucket: str) -> Iterator[str]:
    """What is odd about an endpoint that has no fault."""
    url = urlsplit(text)
    host = url.hostname or ""
    if url.scheme == "http" and not _is_loopback(host):
        yield "plain http: backups travel unencrypted, and anybody on the way can change them"
    in_host = bucket != "s3" and host.startswith(f"{bucket}.") and host.endswith(_PROVIDERS)
    if in_host or url.path.strip("/").rpartition("/")[2] == bucket:
        yield "holds the bucket's name; the provider's bare endpoint is wanted, the bucket is added to it"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def target(endpoint: str | None, bucket: str, prefix: str) -> tuple[str, str, str]:
    """Equal for two settings that store at the same place, however the endpoint is spelled."""
    url = urlsplit(endpoint or "https://s3.amazonaws.com")
    host = url.hostname or ""
    if host.endswith(".amazonaws.com"):
        return "aws", bucket, prefix
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{host}:{port}{url.path.rstrip('/')}", bucket, prefix


def prefix_fault(text: str) -> str | None:
    if text.startswith("/"):
        return "must not begin with '/'"
    if ".." in text or "\\" in text:
        return "must not hold '..' or a backslash"
    size = len(text.encode())
    return f"expected at most {_MAX_PREFIX} bytes, got {size}" if size > _MAX_PREFIX else None


def prefix_warnings(text: str) -> Iterator[str]:
    """What is odd about a prefix that has no fault."""
    if not text.endswith("/"):
        yield f"does not end with '/': keys will look like \"{printable(text)}backup-2025-03-01T14-32-11-482Z.db\""
    if "{" in text:
        yield f'"{printable(text)}" is taken literally, nothing is filled in'


def tags_faults(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(dotted field, cause) by S3's rules for object tags."""
    if len(tags) > _MAX_TAGS:
        yield "tags", f"expected at most {_MAX_TAGS} tags, got {len(tags)}"
    for name, value in tags.items():
        path = f"tags.{printable(name)}"
        if not 1 <= len(name) <= _MAX_TAG_NAME or len(value) > _MAX_TAG_VALUE:
            yield path, f"expected a name of 1 to {_MAX_TAG_NAME} characters and a value of at most {_MAX_TAG_VALUE}"
        elif not re.fullmatch(r"[\w +=.:/@-]*", name) or not re.fullmatch(r"[\w +=.:/@-]*", value):
            yield path, "expected letters, digits, blanks and + - = . _ : / @"
        elif name.lower().startswith("aws:"):
            yield path, 'names that begin with "aws:" are reserved'


def storage_class_fault(text: str) -> str | None:
    return None if re.fullmatch("[A-Za-z0-9_-]{1,64}", text) else "expected a storage class such as STANDARD_IA"
