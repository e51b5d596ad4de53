"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id in databases.json.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="[KEY|latest]", help="A key, a file name, or latest.")]
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
