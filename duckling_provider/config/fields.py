"""What the shapes of `entry` and `s3` have in common: how fields are named, checked and complained about.

A rule is a pure function that says what is wrong, or None. Rules describe a value by its kind and never quote it: a
secret pasted into the wrong field must not reach a log.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import KeysView, Mapping, Sequence
from dataclasses import FrozenInstanceError
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, SecretStr, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from duckling_provider.base.errors import ConfigError
from duckling_provider.base.strict_json import kind, printable
from duckling_provider.config.keys import EncryptionKey

MAX_HOURS, MAX_DAYS = 876_000.0, 36_500.0  # a century: far from where timedelta overflows
MIN_HOURS = 1 / 3600


def any_string(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not a string")
    return value


def any_object(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "not an object")
    return value


#: For a `Literal`: `check_choices` checks it together with the other rules, so that all mistakes are reported at once.
ANY_STRING = PlainValidator(any_string)
#: An empty text counts as absent.
Text = Annotated[str | None, AfterValidator(lambda text: text or None)]


class Shape(BaseModel):
    """Fields as they stand in the file, camelCase there. Null means absent: `validate` drops it."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", alias_generator=to_camel, hide_input_in_errors=True
    )

    if not TYPE_CHECKING:  # there, pydantic's plugin forbids assignments

        def __setattr__(self, name: str, value: Any) -> None:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")


class FieldProblems:
    """Collects what is found in one entry; `subject` is how messages call it."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.errors: list[ConfigError] = []
        self.warnings: list[str] = []

    def error(self, name: str | None, cause: str, *, hint: str | None = None) -> None:
        self.errors.append(ConfigError(cause, entry=self.subject, field=name, hint=hint))

    def fault(self, name: str, cause: str | None) -> None:
        """An error, unless the rule found nothing."""
        if cause:
            self.error(name, cause)

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
            report.error(path, _cause(shape, detail["type"], detail["loc"], detail["input"]))
        return None
    for name in fields_of(shape):
        text = raw.get(name)
        if not isinstance(text, str) or name == "name":
            continue
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


def _cause(shape: type[Shape], type_: str, place: Sequence[str | int], value: Any) -> str:
    """What is wrong, in our words; `type_` is pydantic's."""
    if type_ == "missing":
        return "required"
    if type_ == "extra_forbidden":
        *known, last = field_names(_inner(shape, place[:-1]) or shape)
        return f"unknown field; expected {', '.join(known)} or {last}"
    wanted = {
        "bool_type": "true or false",
        "string_type": "a string",
        "float_type": "a number",
        "int_type": "a whole number",
        "dict_type": "an object",
        "model_type": "an object",
        "tuple_type": "a list",
    }.get(type_)
    if wanted and kind(value) == "a number" and "number" in wanted:
        return f"expected {wanted}, got one {'with a fraction' if isinstance(value, float) else 'that is too large'}"
    if wanted:
        return f"expected {wanted}, got {kind(value)}"
    inner = _inner(shape, place[:-1])
    field = fields_of(inner).get(str(place[-1])) if inner is not None else None
    metadata = field.metadata if field is not None else []
    limits = {key: getattr(m, key) for m in metadata for key in ("ge", "le") if hasattr(m, key)}
    number = "a whole number" if field is not None and field.annotation is int else "a number"
    if len(limits) == 2:
        return f"expected {number} from {limits['ge']:.0f} to {limits['le']:.0f}"
    return f"expected {number} from {limits['ge']:.0f} on" if "ge" in limits else "not a value that it can have"


def _inner(shape: type[Shape], place: Sequence[str | int]) -> type[Shape] | None:
    """The shape of the object at `place` of a `shape`; None where no shape says what is there."""
    for name in place:
        field = fields_of(shape).get(str(name))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Shape)), None)
        if found is None:
            return None
        shape = found
    return shape


@lru_cache
def fields_of(shape: type[Shape]) -> dict[str, FieldInfo]:
    """The fields by their names in the file."""
    return {info.alias or name: info for name, info in shape.model_fields.items()}


def field_names(shape: type[Shape]) -> KeysView[str]:
    """The names as they stand in the file."""
    return fields_of(shape).keys()


@lru_cache
def secret_names(shape: type[Shape]) -> frozenset[str]:
    """The names, in the file, of the fields whose type says that they are secret."""
    return frozenset(name for name, info in fields_of(shape).items() if _is_secret(info.annotation))


def _is_secret(annotation: Any) -> bool:
    return annotation in (SecretStr, EncryptionKey) or any(_is_secret(part) for part in get_args(annotation))


@lru_cache(maxsize=256)
def _nearest_field(shape: type[Shape], name: str, elsewhere: Elsewhere) -> str | None:
    candidates = {known.lower(): known for known in field_names(shape)}
    prefix, other = elsewhere
    plain = name.replace("_", "").replace("-", "").lower()
    if plain not in candidates and plain in {known.lower() for known in field_names(other)}:
        return prefix + next(known for known in field_names(other) if known.lower() == plain)
    near = difflib.get_close_matches(plain, sorted(candidates), n=1)
    return candidates[near[0]] if near else None


@lru_cache
def _choices(shape: type[Shape]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(attribute, name in the file, choices) of each field that is a `Literal`, or one that may be absent."""
    return tuple(
        (name, info.alias or name, get_args(kind))
        for name, info in shape.model_fields.items()
        for kind in (info.annotation, *get_args(info.annotation))
        if get_origin(kind) is Literal
    )


def check_choices(given: Shape, prefix: str, report: FieldProblems) -> None:
    """An error for each value that is none of its choices: it lists them, and names the nearest."""
    for attribute, name, choices in _choices(type(given)):
        value = getattr(given, attribute)
        if value is None or value in choices:
            continue
        listed = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
        near = difflib.get_close_matches(value[:100].lower(), choices, n=1)
        if near:  # only what resembles a choice is surely no secret
            report.error(prefix + name, f'{listed}, got "{printable(value)}"', hint=f"Did you mean {near[0]}?")
        else:
            report.error(prefix + name, f"{listed}, got a string of {len(value)} characters")


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
