"""The commands about keys: make one, show which key reads what, change the key, try it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.base.errors import DucklingError
from duckling_provider.cli.options import Command, Id, Json
from duckling_provider.cli.session import FAILED, Session, session_of, who

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.config.keys import EncryptionKey
    from duckling_provider.stores.store import Store

app = typer.Typer(help="Keys of client-aes256: which of them reads what, change the key, try it.")

#: Where a key is that reads backups which no key of the entry reads.
_NOT_HERE = "not here"


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


@app.command(cls=Command)
def show(
    context: typer.Context,
    id: Id,
    encryption_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show the key in this file too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the fingerprints of an entry's keys, where each stands, and which backups in S3 it reads."""
    session = session_of(context, as_json)
    database = session.entry(id)
    store = session.remote(database)
    keys = _keys_of(database)
    if encryption_key_file is not None:
        keys.append((str(encryption_key_file), str(encryption_key_file), session.key_in(encryption_key_file)))
    found: dict[str | None, list[str]] = {}
    error: DucklingError | None = None
    try:
        found = _backups_by_key(session, store, [key for _, _, key in keys])
    except DucklingError as caught:
        error = caught
    rows = [(field, key.fingerprint, place, found.pop(key.fingerprint, [])) for field, place, key in keys]
    plain = found.pop("", [])
    # What is known by its fingerprint comes first.
    others = [(_NOT_HERE, fingerprint, "", found[fingerprint]) for fingerprint in sorted(found, key=lambda f: f or "~")]
    if session.terminal.json:
        shown = {
            "keys": [{"field": f, "fingerprint": k, "source": p, "backups": backups} for f, k, p, backups in rows],
            "others": [{"fingerprint": k, "backups": backups} for _, k, _, backups in others],
            "notEncrypted": plain,
        }
        if error is None:
            session.terminal.document({"success": True, **shown})
        else:
            session.terminal.fail_with(error, **shown)
    else:
        lines = [[f, k or "unknown", p, *_counted(backups, error)] for f, k, p, backups in (*rows, *others)]
        if plain:
            lines.append(["not encrypted", "-", "", *_counted(plain, error)])
        session.terminal.table(["KEY", "FINGERPRINT", "STANDS IN", "BACKUPS>", "NEWEST"], lines)
        if error is not None:
            session.terminal.fail_with(error)
    if error is not None:
        raise typer.Exit(FAILED)


@app.command(cls=Command)
def rotate(
    context: typer.Context,
    id: Id,
    encryption_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the new key from this file, in place of a random one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change the key of new backups in databases.json; the one before it is kept there for reading the older ones."""
    from duckling_provider.config.editing import rotate_key
    from duckling_provider.config.keys import EncryptionKey
    from duckling_provider.oversight.audit import audit

    session = session_of(context, as_json)
    settings = session.installation().settings
    session.entry(id)
    new = EncryptionKey.generate() if encryption_key_file is None else session.key_in(encryption_key_file)
    session.act_as_owner_of(settings.databases_file)
    session.terminal.know([new.hex(), new.hex().upper()])
    changed, _ = rotate_key(settings, id, new)
    audit(changed, "change", by=who(), detail=f"s3.encryptionKey: its fingerprint is now {new.fingerprint}")
    earlier = [] if changed.s3 is None else [key.fingerprint for key in changed.s3.reading_keys[1:]]
    if session.terminal.json:
        facts = {"fingerprint": new.fingerprint, "previousFingerprints": earlier}
        session.terminal.document({"success": True, **facts, "file": str(settings.databases_file)})
        return
    session.terminal.say(f"{id}: new backups get the key {new.fingerprint}")
    for fingerprint in earlier[:1]:
        session.terminal.say(f"{fingerprint} stays in s3.previousEncryptionKeys, for the backups made with it")
    session.terminal.note(
        f"Every other host with a databases.json of its own needs the same change: copy encryptionKey and "
        f"previousEncryptionKeys from {settings.databases_file} there."
    )
    session.terminal.note(f"Keep a copy of the new key elsewhere (duckling recovery-kit {id}), and back up now.")


@app.command(cls=Command)
def check(
    context: typer.Context,
    id: Id,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the newest backups to try.")] = 3,
    as_json: Json = False,
) -> None:
    """Try the entry's keys on the newest backups in S3, by their first bytes; fails when one can't be read."""
    from duckling_provider.backup.inventory.backup_object import identify_backup
    from duckling_provider.backup.inventory.choice import is_complete, list_backups

    session = session_of(context, as_json)
    database = session.database(id)
    store = session.remote(database)
    now = datetime.now(timezone.utc)
    complete = [found for found in list_backups(store) if is_complete(found, store.mode) and not found.misdated(now)]
    listed = complete[:last]
    tried: list[dict[str, Any]] = []
    for backup in listed:
        try:
            fingerprint = identify_backup(database, store, backup.key, chosen=True).key_fingerprint
            tried.append({"key": backup.key, "keyFingerprint": fingerprint, "error": None})
        except DucklingError as error:
            cause = session.terminal.explain(error)[0]
            tried.append({"key": backup.key, "keyFingerprint": None, "error": session.terminal.hide(cause)})
    bad = [row["error"] for row in tried if row["error"]]
    if session.terminal.json:
        first = {"error": bad[0]} if bad else {}
        session.terminal.document({"success": not bad, **first, "backups": tried})
    for row in tried:
        verdict = f"BAD  {row['error']}" if row["error"] else f"ok   {row['key']}: {_by(row['keyFingerprint'])}"
        session.terminal.say(verdict)
    if not tried:
        session.terminal.note(f"no backups of {id} that could be tried; make one: duckling backup {id}")
    if bad:
        raise typer.Exit(FAILED)


def _by(fingerprint: str | None) -> str:
    return "not encrypted here" if fingerprint is None else f"key {fingerprint}"


def _keys_of(database: Database) -> list[tuple[str, str, EncryptionKey]]:
    """(field, where its text stands, key) of each key of the entry, the present one first."""
    from duckling_provider.config.references import reference

    s3 = database.s3
    if s3 is None:
        return []
    raw = database.entry["s3"]
    fields = [("s3.encryptionKey", raw.get("encryptionKey"), s3.encryption_key)]
    for number, key in enumerate(s3.previous_encryption_keys):
        fields.append((f"s3.previousEncryptionKeys[{number}]", raw["previousEncryptionKeys"][number], key))
    found = []
    for field, text, key in fields:
        wanted = reference(text)
        if key is not None:
            found.append((field, "databases.json" if wanted is None else f"{wanted.source} {wanted.name}", key))
    return found


def _backups_by_key(session: Session, store: Store, keys: list[EncryptionKey]) -> dict[str | None, list[str]]:
    """The keys of the backups in S3 by the fingerprint of what reads them (`key_choice.key_of`): newest first, those
    last whose date can't be true.
    """
    from duckling_provider.backup.inventory.choice import list_backups
    from duckling_provider.backup.inventory.key_choice import key_of

    found: dict[str | None, list[str]] = {}
    with session.control() as control:
        store = store.under(control)
        now = datetime.now(timezone.utc)
        for backup in sorted(list_backups(store), key=lambda found: bool(found.misdated(now))):
            control.check()
            found.setdefault(key_of(store, backup.key, keys), []).append(backup.key)
    return found


def _counted(backups: list[str], error: DucklingError | None) -> list[str]:
    if error is not None:
        return ["?", ""]
    return [str(len(backups)), backups[0] if backups else ""]
