"""Arguments and options that several commands have, and how their help and the shell's completion show them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


def _plain_flags(params: list[Any]) -> list[Any]:
    """A flag takes no value, so the help shows no type behind it."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose help shows no types of flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    """A group of them."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_flags(super().get_params(ctx))


Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]


def _data_path(context: typer.Context) -> Path:
    return Path(context.find_root().params.get("data_path") or os.environ.get("DATA_PATH") or "data")


def _ids(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the ids of databases.json, read as plainly as can be, since it waits for each Tab."""
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads((_data_path(context) / "databases.json").read_bytes())
        found = [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        return [name for name in found if name.startswith(incomplete)]
    return []


def _keys(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: ``latest`` and the names of the local backups, which those in S3 share; no store is asked."""
    backups = Path(os.environ.get("BACKUP_PATH") or _data_path(context) / "backups")
    folder = backups / str(context.params.get("id") or "")
    names = sorted((path.name for path in folder.glob("backup-*.db")), reverse=True)
    return [name for name in ("latest", "latest-tested", *names) if name.startswith(incomplete)]


_ID_HELP = "The entry's id in databases.json"
Id = Annotated[str, typer.Argument(metavar="ID", help=f"{_ID_HELP}.", show_default=False, autocompletion=_ids)]
AnyId = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help=f"{_ID_HELP}; all when omitted.", show_default=False, autocompletion=_ids),
]
Key = Annotated[
    str, typer.Argument(metavar="[KEY|latest]", help="A key, a file name, or latest.", autocompletion=_keys)
]
Local = Annotated[bool, typer.Option("--local", help="Use the local backups although S3 is configured.")]
EncryptionMode = Annotated[
    str | None, typer.Option("--encryption", metavar="MODE", help="The mode of this backup, in place of the entry's.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--encryption-key-file", metavar="FILE", help="Read it with the key in this file, and no other."),
]
Wait = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a process that uses the replica.")
]
