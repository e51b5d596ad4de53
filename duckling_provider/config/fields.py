"""The fields of a databases.json entry: their names, types and ranges, and the rules for single values.

Each rule is a pure function that says what is wrong, or None. Rules describe a value by its kind and never quote it: a
secret pasted into the wrong field must not reach a log.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SecretStr, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from duckling_provider.base.errors import ConfigError
from duckling_provider.base.strict_json import kind, printable

MAX_HOURS, MAX_DAYS = 876_000.0, 36_500.0  # a century: far from where timedelta overflows
MIN_HOURS = 1 / 3600

_MAX_ID = 200  # Airflow allows 250 characters of DAG id, a folder's name 255 bytes


Writer = Literal["duckling", "duckling-server"]
OnPositionLost = Literal["resync", "fail"]


def any_string(value: Any) -> str:
    """A validator that takes every string; for choices, which `one_of` checks together with all other rules."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not a string")
    return value


class Shape(BaseModel):
    """Fields as they stand in the file, camelCase there. Null means absent: `validate` drops it."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", alias_generator=to_camel, hide_input_in_errors=True
    )


class EntryShape(Shape):
    """One entry as it stands in the file; whether a field may be empty is not decided here."""

    id: str = ""
    name: str = ""
    mysql_connection_string: SecretStr = SecretStr("")
    duckdb_path: str = ""
    created_at: str = ""
    updated_at: str = ""
    queue: str = ""
    host: str = ""
    writer: Annotated[Writer, PlainValidator(any_string)] = "duckling"
    writer_conn_id: str = ""
    include_tables: list[str] = Field(default_factory=list)
    exclude_tables: list[str] = Field(default_factory=list)
    on_position_lost: Annotated[OnPositionLost, PlainValidator(any_string)] = "fail"
    storage_version: str = "v1.5.0"
    s3: dict[str, Any] | None = None


class FieldProblems:
    """Collects what is found in one entry; `subject` is how messages call it."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.errors: list[ConfigError] = []
        self.warnings: list[str] = []

    def error(self, name: str | None, cause: str, *, hint: str | None = None) -> None:
        self.errors.append(ConfigError(cause, entry=self.subject, field=name, hint=hint))

    def warn(self, name: str, text: str) -> None:
        self.warnings.append(f"{self.subject}: {name}: {text}")


ShapeT = TypeVar("ShapeT", bound=Shape)
#: A prefix of field names and the shape that they belong to.
Elsewhere: TypeAlias = tuple[str, type[Shape]]


def validate(
    shape: type[ShapeT], raw: Mapping[str, Any], prefix: str, report: FieldProblems, *, elsewhere: Elsewhere
) -> ShapeT | None:
    """Check types and ranges, warn of unknown fields; None when `report` got errors.

    :param prefix: goes in front of field names, ``"s3."`` or ``""``.
    :param elsewhere: the other level of the entry, for fields that stand on the wrong one.
    """
    warn_unknown(shape, raw, prefix, report, elsewhere=elsewhere)
    try:
        given = shape.model_validate({name: value for name, value in raw.items() if value is not None})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            path = prefix + ".".join(printable(str(part)) for part in detail["loc"])
            report.error(path, _cause(shape, detail["type"], detail["loc"][0], detail["input"]))
        return None
    for name, text in _texts(shape, raw):
        # A line end or blank that came along with copy and paste breaks signatures in ways that are hard to find.
        if text != text.strip():
            report.error(prefix + name, "white space at its ends")
        elif not text.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
            report.error(prefix + name, "holds a control character")
    return None if report.errors else given


def warn_unknown(
    shape: type[Shape], raw: Mapping[str, Any], prefix: str, report: FieldProblems, *, elsewhere: Elsewhere
) -> None:
    """Unknown fields are kept, and reported with the nearest known name."""
    for name in raw:
        if name not in field_names(shape):
            near = _nearest_field(shape, name[:100], elsewhere)
            report.warn(prefix + printable(name), f"unknown field, did you mean {near}?" if near else "unknown field")


def _cause(shape: type[Shape], type_: str, name: str | int, value: Any) -> str:
    if type_ == "missing":
        return "required"
    wanted = {
        "bool_type": "true or false",
        "string_type": "a string",
        "float_type": "a number",
        "int_type": "a whole number",
        "dict_type": "an object",
        "list_type": "a list",
    }.get(type_)
    if wanted and kind(value) == "a number" and "number" in wanted:
        return f"expected {wanted}, got one {'with a fraction' if isinstance(value, float) else 'that is too large'}"
    if wanted:
        return f"expected {wanted}, got {kind(value)}"
    field = next((f for n, f in shape.model_fields.items() if (f.alias or n) == name), None)
    metadata = field.metadata if field is not None else []
    limits = {key: getattr(m, key) for m in metadata for key in ("ge", "le") if hasattr(m, key)}
    number = "a whole number" if field is not None and field.annotation is int else "a number"
    return f"expected {number} from {limits['ge']:.0f} to {limits['le']:.0f}" if limits else f"not valid ({type_})"


def _texts(shape: type[Shape], raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, info in shape.model_fields.items():
        text = raw.get(info.alias or name)
        if isinstance(text, str) and name != "name":
            yield info.alias or name, text


@lru_cache
def field_names(shape: type[Shape]) -> frozenset[str]:
    """The names as they stand in the file."""
    return frozenset(info.alias or name for name, info in shape.model_fields.items())


@lru_cache(maxsize=256)
def _nearest_field(shape: type[Shape], name: str, elsewhere: Elsewhere) -> str | None:
    candidates = {known.lower(): known for known in field_names(shape)}
    prefix, other = elsewhere
    plain = name.replace("_", "").replace("-", "").lower()
    if plain not in candidates and plain in {known.lower() for known in field_names(other)}:
        return prefix + next(known for known in field_names(other) if known.lower() == plain)
    near = difflib.get_close_matches(plain, sorted(candidates), n=1)
    return candidates[near[0]] if near else None


ChoiceT = TypeVar("ChoiceT", bound=str)


def one_of(choices: Sequence[ChoiceT], value: str, name: str, report: FieldProblems) -> ChoiceT | None:
    """`value` as one of `choices`; otherwise an error that lists them and names the nearest."""
    for choice in choices:
        if value == choice:
            return choice
    listed = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
    near = difflib.get_close_matches(value[:100].lower(), choices, n=1)
    if near:  # only what resembles a choice is surely no secret
        report.error(name, f'{listed}, got "{printable(value)}"', hint=f"Did you mean {near[0]}?")
    else:
        report.error(name, f"{listed}, got a string of {len(value)} characters")
    return None


def id_fault(text: str) -> str | None:
    """An id becomes part of DAG ids, a folder's name and the default key prefix."""
    if len(text) > _MAX_ID:
        return f"expected at most {_MAX_ID} characters, got {len(text)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        return "expected letters (A-Z, a-z), digits, '_', '.' and '-', a letter or digit first"
    return None


def host_fault(text: str) -> str | None:
    """The name of a machine, as `hostname` tells it; empty is none."""
    if not text or re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", text):
        return None
    return "expected the name that `hostname` prints on that machine: letters, digits, '.', '-' and '_'"


def is_same_host(one: str, other: str) -> bool:
    """Whether two names mean one machine: case does not count, nor does a domain that only one of them has."""
    one, other = one.lower().rstrip("."), other.lower().rstrip(".")
    if ("." in one) == ("." in other):
        return one == other
    return one.partition(".")[0] == other.partition(".")[0]


def mysql_fault(text: str) -> str | None:
    """``mysql://user:password@host:port/database?option=…``."""
    encode = "special characters of the password must be percent-encoded: # is %23, / is %2F, ? is %3F, @ is %40"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:  # its message quotes the password, should that hold a '/' or a '['
        return f"has a wrong port, or {encode}"
    if url.scheme != "mysql" or not text[6:].startswith("//"):
        return "expected mysql://user:password@host:port/database"
    if url.fragment or ("@" not in url.netloc and "@" in text):
        return encode
    if not host:
        return "names no host; expected mysql://user:password@host:port/database"
    return "expected a port from 1 to 65535" if port == 0 else None


def table_fault(name: str) -> str | None:
    """A MySQL table's name may hold nearly everything; a wrong one would silently match no table."""
    if not name:
        return "is empty"
    return "white space at its ends" if name != name.strip() else None


def storage_version_fault(text: str) -> str | None:
    """What DuckDB's ``ATTACH … (STORAGE_VERSION …)`` takes; whether this DuckDB can write it shows when it is used."""
    return None if re.fullmatch(r"v\d+\.\d+\.\d+", text, re.ASCII) else "expected a DuckDB version such as v1.5.0"
