"""Secrets that databases.json only points to: ``{"file": "/run/secrets/key"}`` or ``{"env": "NAME"}`` in their place.

They are looked up each time the file is loaded, so that a secret that changed is taken up without a restart.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from duckling_provider.base.strict_json import kind, printable
from duckling_provider.config.fields import FieldProblems
from duckling_provider.config.trust import Trust, look_at_secret

#: The fields, of an entry and of its ``s3``, whose values may stand elsewhere.
REFERABLE = frozenset(
    {
        "mysqlConnectionString",
        "accessKeyId",
        "secretAccessKey",
        "sessionToken",
        "encryptionKey",
        "previousEncryptionKeys",
    }
)
#: More than any secret has; what is larger is another file.
_MOST_BYTES = 64 * 1024
_SAFE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a pipe or a terminal must not keep us waiting


class Reference(NamedTuple):
    """`source` is ``"file"`` or ``"env"``, `name` the path or the variable."""

    source: str
    name: str

    @property
    def kind(self) -> str:
        return "file" if self.source == "file" else "environment variable"

    @property
    def place(self) -> str:
        return f"the {self.kind} {printable(self.name, limit=200)}"


@dataclass(frozen=True)
class Answer:
    """What a reference leads to: the text without white space around it, or why there is none."""

    value: str | None = field(default=None, repr=False)
    fault: str | None = None
    hint: str | None = None
    warnings: tuple[str, ...] = ()


def reference(value: Any) -> Reference | None:
    """`value` as a reference, None when it is none."""
    if isinstance(value, dict) and len(value) == 1:
        source, name = next(iter(value.items()))
        if source in ("file", "env") and isinstance(name, str):
            return Reference(source, name)
    return None


def references_in(entries: Any) -> Iterator[Reference]:
    """Every reference in the content of a databases.json."""
    for entry in entries if isinstance(entries, list) else ():
        s3 = entry.get("s3") if isinstance(entry, dict) else None
        for level in (entry, s3):
            if not isinstance(level, dict):
                continue
            for name in REFERABLE & level.keys():
                value = level[name]
                for item in value if isinstance(value, list) else (value,):
                    if found := reference(item):
                        yield found


def look_up(wanted: Reference, environ: Mapping[str, str], trust: Trust) -> Answer:
    """What the reference leads to now.

    :param trust: whose files may be read.
    """
    if wanted.source == "file":
        if not os.path.isabs(wanted.name):
            return Answer(fault='"file": expected an absolute path')
        return read_secret_file(Path(wanted.name), trust)
    # The secret itself may have been pasted here: nothing that could be one is quoted.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", wanted.name) or re.fullmatch(r"[0-9A-Fa-f]{32,}", wanted.name):
        return Answer(fault='"env": expected the name of an environment variable')
    value = environ.get(wanted.name, "").strip()
    if not value:
        state = "empty" if wanted.name in environ else "not set"
        hint = "Each process that reads databases.json needs it: Airflow's, and the command line."
        return Answer(fault=f"the environment variable {printable(wanted.name)} is {state}", hint=hint)
    return Answer(value)


def read_secret_file(path: Path, trust: Trust) -> Answer:
    """The text of a file that holds one secret."""
    shown = printable(str(path), limit=200)
    hint = "It must be readable for the user that this process runs as."
    try:
        fd = os.open(path, _SAFE)  # links are followed: Kubernetes mounts secrets as links
    except FileNotFoundError:
        return Answer(fault=f"the file {shown} does not exist", hint=hint)
    except (OSError, ValueError) as error:
        return Answer(fault=f"cannot read the file {shown}: {getattr(error, 'strerror', None) or 'no path'}", hint=hint)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Answer(fault=f"the file {shown} is no regular file")
        fault, advice, warnings = look_at_secret(fd, shown, trust)
        if fault is not None:
            return Answer(fault=fault, hint=advice)
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(_MOST_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > _MOST_BYTES:
        return Answer(fault=f"the file {shown} is larger than {_MOST_BYTES // 1024} KiB: it holds more than a secret")
    try:
        value = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return Answer(fault=f"the file {shown} is not UTF-8")
    if not value:
        return Answer(fault=f"the file {shown} is empty")
    return Answer(value, warnings=warnings)


def filled_in(
    raw: Mapping[str, Any], prefix: str, trust: Trust, answers: Mapping[Reference, Answer], report: FieldProblems
) -> tuple[dict[str, Any], list[str]]:
    """One level of an entry with the secrets in place of its references, and these secrets.

    :param answers: what is known already; the rest is looked up.
    """
    filled, secrets = dict(raw), []

    def text_of(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return value
        wanted = reference(value)
        if wanted is None:
            report.error(place, f'expected a string, {{"file": "/path"}} or {{"env": "NAME"}}, got {kind(value)}')
            return None
        answer = answers.get(wanted) or look_up(wanted, os.environ, trust)
        if answer.fault is not None:
            report.error(place, answer.fault, hint=answer.hint)
        for warning in answer.warnings:
            report.warn(place, warning)
        if answer.value is not None:
            secrets.append(answer.value)
        return answer.value

    for name in sorted(REFERABLE & raw.keys()):
        value, place = raw[name], prefix + name
        if name == "previousEncryptionKeys" and isinstance(value, dict):
            continue  # each of them may be a reference, and not all of them one; its type is checked later
        if isinstance(value, list):
            filled[name] = [text_of(item, f"{place}.{number}") for number, item in enumerate(value)]
        else:
            filled[name] = text_of(value, place)
    return filled, secrets
