"""Masking of secrets inside JSON values, and collecting them so that logs can be masked too."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from urllib.parse import quote, unquote

from duckling_provider.config.references import REFERABLE, reference

MASK = "***"
#: Shorter secrets are not searched for in logs: masking them would blot out ordinary text.
SHORTEST_SECRET = 5

_SECRET_NAME = re.compile(r"secret|passw|token|(encryption|private|api)[_-]?key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^:/?#@\s]*:)([^/?#\s]*)(?=@)")
#: A password with a '/' in it that should have been %2F; nothing else in such a text can be trusted to be the host.
_LOOSE_URL_PASSWORD = re.compile(r"(?<=://)([^:/?#@\s]*:)(\S*)(?=@)")
_QUERY_PASSWORD = re.compile(r"([?&][^=&#]*(?:secret|passw|token)[^=&#]*=)([^&#]+)", re.IGNORECASE)


def mask(value: Any, name: str, found: list[str], *, secret: Collection[str] = (), plain: object = None) -> Any:
    """A copy of a JSON value of at most some dozen levels, with its secrets as ``***``.

    Secret is everything under a name that says so (secretAccessKey, encryptionKey, any password, token or the like) and
    the password inside a URL; so is where a secret stands that is only pointed to. Null, empty strings, true and false
    stay: they give nothing away.

    :param found: receives the secret strings.
    :param secret: more names of what is secret.
    :param plain: an object inside `value`, by identity, whose names are free and mean nothing (tags).
    """
    if value is None or value == "" or isinstance(value, bool):
        return value
    if name in REFERABLE and reference(value):
        return MASK  # a path or a name, which messages may show
    if name in secret or _SECRET_NAME.search(name):
        found += _strings(value)
        return MASK
    if isinstance(value, str):
        return mask_urls(value, found)
    if isinstance(value, dict):
        if value is plain:
            return dict(value)
        return {inner: mask(item, inner, found, secret=secret, plain=plain) for inner, item in value.items()}
    if isinstance(value, list):
        return [mask(item, name, found, secret=secret, plain=plain) for item in value]
    return value


def mask_urls(text: str, found: list[str]) -> str:
    """`text` with the password of a URL as ``***``; `found` receives it as written, decoded and encoded."""

    def replace(match: re.Match[str]) -> str:
        before, password = match[1], match[2]
        if password:
            plain = unquote(password)
            found.extend([password, plain, quote(plain, safe=""), quote(plain)])
        return before + MASK if password else match[0]

    pattern = _URL_PASSWORD if _URL_PASSWORD.search(text) else _LOOSE_URL_PASSWORD
    shown = pattern.sub(replace, text)
    return _QUERY_PASSWORD.sub(replace, shown) if "://" in text else shown


def spellings(found: Iterable[str]) -> tuple[str, ...]:
    """The distinct secrets worth searching for, hexadecimal keys in both letter cases, the longest first."""
    all_of_them: set[str] = set()
    for text in found:
        all_of_them.add(text)
        if re.fullmatch("[0-9A-Fa-f]{64}", text):
            all_of_them |= {text.lower(), text.upper()}
    return tuple(sorted((s for s in all_of_them if len(s) >= SHORTEST_SECRET), key=lambda s: (-len(s), s)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in () if reference(value) else value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)
