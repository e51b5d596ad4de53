"""Strict reading of a JSON file made by hand: what Python's `json` lets through silently is found here.

Python takes ``NaN``, keeps the last of two equal names and accepts half surrogate pairs; none of them survives a round
trip through another JSON implementation (RFC 8259, sections 4, 6 and 8.2).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from duckling_provider.base.errors import ConfigError

MAX_DEPTH = 20


class _Repeated(dict[str, object]):
    """A JSON object in which names occur twice."""

    names: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    repeated = _Repeated(plain)
    repeated.names = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


@contextlib.contextmanager
def opened(path: Path, *, hint: str | None = None) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    :param hint: what to do when the file is not there.
    :raises ConfigError: missing, unreadable; ``entry`` is the file's name. So is what the block meets in reading.
    """
    try:
        # Whoever waits for a pipe's other end waits for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"cannot read {path}: it is no regular file", entry=path.name)
            yield file
    except FileNotFoundError:
        raise ConfigError(f"not found: looked for {path}", entry=path.name, hint=hint) from None
    except OSError as error:
        cause = f"cannot read {path}: {error.strerror or type(error).__name__}"
        raise ConfigError(cause, entry=path.name) from None


def parse_json(content: bytes, path: Path) -> Any:
    """Read UTF-8 JSON (a byte order mark is allowed).

    :param path: where it comes from, for messages.
    :returns: the value, not yet looked at by `faults`.
    :raises ConfigError: not UTF-8, not JSON (with line and column); ``entry`` is the file's name.
    """
    hint: str | None = None
    # Raised after the handlers, not in them: the decoders' exceptions carry the whole text, secrets and all.
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        cause = f"not UTF-8: byte {error.start + 1} of {path}"
    except json.JSONDecodeError as error:
        message = error.msg if text.strip() else "the file is empty"
        cause, hint = f"not JSON: line {error.lineno}, column {error.colno}: {message}", f"Edit {path}."
    except RecursionError:
        cause = "nested too deeply"
    except ValueError:
        cause = "holds a number of thousands of digits"
    raise ConfigError(cause, entry=path.name, hint=hint)


def kind(value: object) -> str:
    """What a JSON value is, in words; never the value itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def printable(text: str, limit: int = 60) -> str:
    """`text` on one line, escaped and cut, so that no terminal or log chokes on it."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
    return shown + "…" if len(text) > limit else shown


def faults(value: object) -> Iterator[tuple[str, str]]:
    """Walk a value of `parse_json`; yields (dotted path, cause) for everything that is no portable JSON."""
    stack: list[tuple[str, object, int]] = [("", value, 0)]
    while stack:
        path, item, depth = stack.pop()
        if depth > MAX_DEPTH:
            yield path, "nested too deeply"
        elif isinstance(item, float) and not math.isfinite(item):
            yield path, "expected a finite number"
        elif isinstance(item, str) and _is_torn(item):
            yield path, "holds half a surrogate pair (\\ud800 to \\udfff), which is no character"
        elif isinstance(item, list):
            stack += [(f"{path}[{n}]", inner, depth + 1) for n, inner in enumerate(item, start=1)]
        elif isinstance(item, dict):
            dot = f"{path}." if path else ""
            for name in item.names if isinstance(item, _Repeated) else ():
                yield dot + printable(name), "appears twice in the same object"
            for name, inner in item.items():
                if _is_torn(name):
                    yield dot + printable(name), "a name that holds half a surrogate pair, which is no character"
                stack.append((dot + printable(name), inner, depth + 1))


def _is_torn(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
