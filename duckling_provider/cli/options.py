"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id in databases.json.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="[KEY|latest]", help="A key, a file name, or latest.")]
Local = Annotated[bool, typer.Option("--local", help="Use the local backups although S3 is configured.")]
Wait = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a process that uses the replica.")
]
