"""The commands about restores: put a backup in place of the replica, and remove a hold that one left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from duckling_provider.backup.names import LATEST
from duckling_provider.base.errors import DucklingError, RequestError
from duckling_provider.base.moments import parse_moment
from duckling_provider.base.units import human_bytes, human_seconds
from duckling_provider.cli.options import EncryptionMode, Id, Json, Key, KeyFile, Local, Wait
from duckling_provider.cli.session import UsageError, full_key, session_of, with_key


def restore(
    context: typer.Context,
    id: Id,
    key: Key = LATEST,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Take the newest backup made before this ISO 8601 time (UTC).")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write to this new file and leave the replica alone.")
    ] = None,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the old replica beside the new one.")] = False,
    encryption: EncryptionMode = None,
    encryption_key_file: KeyFile = None,
    local: Local = False,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Replace the replica by a backup. It is verified first; whatever fails leaves the replica as it was."""
    from duckling_provider.backup.restore import restore_backup
    from duckling_provider.config.targets import require_free_name

    session = session_of(context, as_json)
    try:
        moment = parse_moment(before) if before is not None else None
    except DucklingError as error:
        raise UsageError(f"--before: {error.cause}", subject=error.subject, hint=error.hint) from error
    if moment is not None and key != LATEST:
        raise UsageError("a key and --before were given", subject=key, hint="Give one of them.")
    if to is not None and keep_old:
        raise UsageError("--keep-old makes no sense with --to", hint="With --to the replica is left alone anyway.")
    database = session.read_as(
        session.database(id), key, local=local, encryption=encryption, key_file=encryption_key_file
    )
    if to is not None:
        require_free_name(Path(os.path.abspath(to)), session.installation())
    source = session.source(database, local=local)
    full_key(source, key)
    with session.control() as control:
        done = restore_backup(
            database,
            source,
            key,
            before=moment,
            # Not resolve(): a symbolic link is a name that is taken.
            to=None if to is None else Path(os.path.abspath(to)),
            keep_old=keep_old,
            control=control,
            wait=wait,
        )
    if session.terminal.json:
        facts = {"key": done.key, "size": done.size, "duration": done.duration_ms}
        kept = str(done.kept) if done.kept else None
        where = {"path": str(done.replaced), "kept": kept, "keyFingerprint": done.key_fingerprint}
        session.terminal.document({"success": True, **facts, **where})
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(
        f"{done.replaced}: restored from {source.url}{done.key}, {human_bytes(done.size)} in {took}"
        f"{with_key(done.key_fingerprint)}"
    )
    if done.kept:
        session.terminal.say(f"the old file is {done.kept}")


def release(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Remove a hold that was left behind by a restore whose owner is gone for good; says whose it was."""
    from duckling_provider.replica.access import replica_access
    from duckling_provider.replica.locks import read_hold, release_hold

    session = session_of(context, as_json)
    replica = session.database(id).replica
    hold = read_hold(replica)
    process = hold.process if hold is not None else None
    if process is not None and process.host == socket.gethostname() and not process.is_gone():
        raise RequestError(
            f"held for {hold}, and that process is alive", subject=id, hint="Stop it first; its hold ends with it."
        )
    # What the hold protected may be half-way: that is put in order before anybody else gets at the replica.
    owner = hold.owner if hold is not None else "duckling release"
    with replica_access(replica, operation="release", owner=owner, wait=5.0):
        release_hold(replica, owner=None)
    if session.terminal.json:
        session.terminal.document({"success": True, "released": None if hold is None else str(hold)})
    session.terminal.say(f"{id}: {'no hold' if hold is None else f'released: {hold}'}")
