"""docker-compose.yaml as its reader sees it: variables filled in, one service at a time. Loaded by `runpy`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

#: An escaped dollar, or a variable whose absence is an error, or any other way to write one.
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+):\?[^}]*\}|(\w+|\{[^}]*\}))")


class UnknownVariableError(Exception):
    """Compose would take an empty string for it."""


@dataclass(frozen=True)
class Service:
    """One service; `raw` is all of it, as the file says it once variables are filled in."""

    name: str
    raw: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.raw.get("environment", {}))

    @property
    def command(self) -> list[str]:
        """Its command as a list, without the image's entrypoint."""
        return _words(self.raw.get("command", []))

    @property
    def health_check(self) -> list[str]:
        """As a list for `execve`."""
        kind, *words = self.raw["healthcheck"]["test"]
        return ["/bin/sh", "-c", words[0]] if kind == "CMD-SHELL" else words

    @property
    def volumes(self) -> dict[str, str]:
        """What is mounted, by its path in the container: a volume's name, or a path of the host."""
        return {volume.split(":")[1]: volume.split(":")[0] for volume in self.raw.get("volumes", [])}

    @property
    def is_airflow(self) -> bool:
        return "build" in self.raw

    @property
    def is_one_shot(self) -> bool:
        return self.raw["restart"] == "on-failure"


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else list(value)


def document() -> dict[str, Any]:
    """The file, variables not filled in."""
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))


def variables(value: Any) -> Iterator[str]:
    """The names of all variables that Compose would fill in, wherever they are."""
    for text in texts(value):
        for match in _VARIABLE.finditer(text):
            if not match[1]:
                yield match[2] or match[3]


def texts(value: Any) -> Iterator[str]:
    """All strings within, names of fields left out."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """`value` with its variables filled in, as Compose does it.

    :raises UnknownVariableError: for one that `values` lacks.
    """

    def one(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        try:
            return values[match[2] or match[3]]
        except KeyError as error:
            raise UnknownVariableError(match[0]) from error

    if isinstance(value, Mapping):
        return {name: filled(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, values) for item in value]
    return _VARIABLE.sub(one, value) if isinstance(value, str) else value


def services(values: Mapping[str, str]) -> dict[str, Service]:
    """All services, with `values` for what .env has."""
    return {name: Service(name, raw) for name, raw in filled(document()["services"], values).items()}
