"""The command about keys."""

from __future__ import annotations

import typer

from duckling_provider.cli.options import Json
from duckling_provider.cli.session import session_of


def keygen(context: typer.Context, as_json: Json = False) -> None:
    """Make a key for client-aes256."""
    from duckling_provider.config.keys import EncryptionKey

    session = session_of(context, as_json)
    key = EncryptionKey.generate()
    if session.terminal.json:
        session.terminal.document({"success": True, "encryptionKey": key.hex(), "fingerprint": key.fingerprint})
        return
    print(key.hex())
    session.terminal.note("Put it into s3.encryptionKey and keep a copy elsewhere: without it no backup can be read.")
