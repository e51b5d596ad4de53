"""The commands about backups: make, list, verify, delete, clean up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from duckling_provider.backup.inventory.names import LATEST, parse_name
from duckling_provider.base.errors import DamagedError, DucklingError, StateFileError
from duckling_provider.base.units import human_bytes, human_seconds
from duckling_provider.cli.options import EncryptionMode, Id, Json, Key, KeyFile, Local, Wait
from duckling_provider.cli.session import (
    FAILED,
    Session,
    UsageError,
    full_key,
    require_there,
    session_of,
    who,
    with_key,
)

if TYPE_CHECKING:
    from duckling_provider.backup.flow import FlowResult
    from duckling_provider.backup.retention.clean_up import CleanupResult
    from duckling_provider.backup.retention.rules import Decision
    from duckling_provider.config.databases import Database
    from duckling_provider.oversight.record import Change
    from duckling_provider.stores.store import BackupSource, Store


NamedKey = Annotated[str, typer.Argument(metavar="KEY", help="The backup's key or file name.", show_default=False)]

#: What was verified, where it was not all of it.
_PROOFS = {"sent": "what was sent, and a sample of what was copied", "head": "its head alone"}


def _reasons(decisions: Sequence[Decision]) -> dict[str, object]:
    """What became of each backup, for the JSON of a clean-up."""
    return {"decisions": [{"key": d.backup.key, "keep": d.keep, "reason": d.reason} for d in decisions]}


def backup(
    context: typer.Context,
    id: Id,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the upload that a killed or failed backup had begun.")
    ] = False,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Back up now: local copy, upload to S3, read back and verify, then delete what is older than the retention."""
    from duckling_provider.backup.flow import back_up, interrupted_upload
    from duckling_provider.base.host_load import cpu_seconds
    from duckling_provider.oversight.audit import audit
    from duckling_provider.oversight.record import noted

    session = session_of(context, as_json)
    database = session.database(id)
    store = session.store(database)
    go_on = f"to go on where it stopped: duckling backup {id} --resume"
    if store is not None and not resume and (left := interrupted_upload(database)) is not None:
        session.terminal.note(f"the upload of {left.filename} was interrupted: {go_on}")
    before = cpu_seconds()
    try:
        with session.control() as control, noted(database, "backup", "verify") as changes:
            done = back_up(database, store, resume=resume, control=control, owner="duckling backup", wait=wait)
            changes.extend(_changes(done))
    except DucklingError as error:
        if store is not None and interrupted_upload(database) is not None:
            # The command as it is typed, so that it can be copied.
            error.hint = f"{error.hint or ''} To{go_on[2:]}".strip()
        raise
    if done.deleted:
        audit(database, "retention", by=who(), detail=", ".join(done.deleted))
    if resume and not done.resumed:
        session.terminal.note("there was nothing to go on with, so this is a new backup")
    if session.terminal.json:
        work = {"bytesSent": control.sent, "bytesReceived": control.received, "cpuSeconds": cpu_seconds() - before}
        session.terminal.document(_facts(done, resume=resume, work=work))
    else:
        _tell(session, store, done)


def _facts(done: FlowResult, *, resume: bool, work: dict[str, float]) -> dict[str, object]:
    """What came of a backup, for JSON; `work` is what it cost."""
    snapshot, upload = done.snapshot, done.upload
    facts: dict[str, object] = {"success": True}
    facts |= {"key": upload.key} if upload else {}
    facts |= {"filename": snapshot.filename, "size": snapshot.size, "duration": done.duration_ms}
    facts |= {"bytesSent": work["bytesSent"], "bytesReceived": work["bytesReceived"]}
    facts |= {} if upload is None else {"bytesCopied": upload.bytes_copied, "fullBecause": upload.because or None}
    facts |= {"cpuSeconds": round(work["cpuSeconds"], 2), "held": snapshot.held_ms}
    facts |= {"resumed": done.resumed} if resume else {}
    facts |= {"cleanupError": str(done.cleanup_error)} if done.cleanup_error else {}
    return facts | ({"warnings": list(done.notes)} if done.notes else {})


def _tell(session: Session, store: Store | None, done: FlowResult) -> None:
    """What came of a backup, for people."""
    snapshot, upload = done.snapshot, done.upload
    took = f"{human_bytes(snapshot.size)} in {human_seconds(done.duration_ms / 1000)}"
    if snapshot.held_ms is not None and not done.resumed:
        took += f", the replica held for {human_seconds(snapshot.held_ms / 1000)}"
    if store is None or upload is None or done.verified is None:
        session.terminal.say(f"{snapshot.path}: {took}; local only, S3 is not configured")
    else:
        proof = f"verified ({_PROOFS.get(done.verified.evidence, done.verified.evidence)})"
        session.terminal.say(f"{store.url}{upload.key}: {took}, encryption {upload.mode}, {proof}")
        if upload.because:
            session.terminal.say(f"all of it was sent: {upload.because}")
        elif upload.bytes_copied and upload.bytes_sent is not None:
            copied = f"{human_bytes(upload.bytes_copied)} were copied by the store"
            session.terminal.say(f"{human_bytes(upload.bytes_sent)} were sent, {copied}")
    if done.cleanup_error is not None:
        session.terminal.warn(f"the backup is good, but deleting old ones failed: {done.cleanup_error}")
    for note in done.notes:
        session.terminal.warn(note)
    if done.deleted:
        session.terminal.say(f"deleted by the retention: {', '.join(done.deleted)}")


def _changes(done: FlowResult) -> list[Change]:
    """What a backup that went well changes in this host's record."""
    now, verified = datetime.now(timezone.utc), done.verified
    if verified is not None:
        seconds = verified.duration_ms / 1000 if verified.is_whole else None
        changes = [lambda record: record.verified(verified.key, verified.size, seconds=seconds, at=now)]
    else:
        changes = [lambda record: record.proven(done.snapshot.filename, done.snapshot.size, at=now)]
    if done.cleanup_error is not None:
        error = done.cleanup_error.as_record()
        return [*changes, lambda record: record.failed("cleanup", error, at=now)]
    return [*changes, lambda record: record.cleaned(done.notes)]


def verify(
    context: typer.Context,
    id: Id,
    key: Key = LATEST,
    encryption: EncryptionMode = None,
    encryption_key_file: KeyFile = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Prove that a backup can be restored: read it whole and check HMAC or SHA-256, length and DuckDB's checksums."""
    from duckling_provider.backup.reading.verify import verify_backup
    from duckling_provider.oversight.record import noted

    session = session_of(context, as_json)
    database = session.read_as(
        session.database(id), key, local=local, encryption=encryption, key_file=encryption_key_file
    )
    source = session.source(database, local=local)
    require_there(source, full_key(source, key))
    # What another key or mode found is not what the entry's own would find.
    note = encryption is None and encryption_key_file is None
    recorded = note and not local
    with session.control() as control, noted(database, *(("verify",) if recorded else ())) as changes:
        done = verify_backup(database, source, key, note=note, control=control)
        now = datetime.now(timezone.utc)
        changes.append(lambda record: record.verified(done.key, done.size, seconds=done.duration_ms / 1000, at=now))
    if session.terminal.json:
        session.terminal.document(
            {
                "success": True,
                "key": done.key,
                "size": done.size,
                "duration": done.duration_ms,
                "encryption": done.mode,
                "evidence": done.evidence,
                "keyFingerprint": done.key_fingerprint,
            }
        )
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(
        f"{source.url}{done.key}: sound, {human_bytes(done.size)} read in {took}, verified by {done.evidence}"
        f"{with_key(done.key_fingerprint)}"
    )


def pin(context: typer.Context, id: Id, key: NamedKey, local: Local = False, as_json: Json = False) -> None:
    """Keep a backup whatever its age, until it is unpinned."""
    _set_pin(session_of(context, as_json), id, key, local=local, pinned=True)


def unpin(context: typer.Context, id: Id, key: NamedKey, local: Local = False, as_json: Json = False) -> None:
    """Let the retention decide about a pinned backup again."""
    _set_pin(session_of(context, as_json), id, key, local=local, pinned=False)


def _set_pin(session: Session, id: str, key: str, *, local: bool, pinned: bool) -> None:
    from duckling_provider.backup.inventory import states
    from duckling_provider.oversight.audit import audited

    database = session.database(id)
    source, full = _named(session, database, key, local=local)
    with audited(database, "pin" if pinned else "unpin", by=who(), key=full):
        if pinned:
            states.pin(database, source, full, by=who())
        else:
            states.unpin(source, full)
    if session.terminal.json:
        session.terminal.document({"success": True, "key": full, "pinned": pinned})
    fate = "pinned: it stays whatever its age" if pinned else "not pinned: the retention decides about it"
    session.terminal.say(f"{source.url}{full}: {fate}")


def _named(session: Session, database: Database, key: str, *, local: bool) -> tuple[BackupSource, str]:
    """Where the backup is, and its full key.

    :raises UsageError: it is no backup's.
    """
    source = session.source(database, local=local)
    full = full_key(source, key)
    if parse_name(full[len(source.prefix) :]) is None:
        raise UsageError("this is not a backup's key", subject=key, hint=f"duckling list {database.id} shows them.")
    return source, full


def delete(
    context: typer.Context,
    id: Id,
    key: NamedKey,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Delete one backup, with its .mac. Asks first; without a terminal, --yes is needed."""
    from duckling_provider.backup.retention.clean_up import delete_backup
    from duckling_provider.oversight import record
    from duckling_provider.oversight.audit import audited
    from duckling_provider.stores.store import KEPT_VERSIONS

    session = session_of(context, as_json)
    database = session.database(id)
    source, full = _named(session, database, key, local=local)
    if not yes and not session.terminal.can_ask:
        raise UsageError("cannot prompt: no terminal", subject=full, hint="Add --yes to delete it without asking.")
    try:
        length = source.head(full).size
    except (DamagedError, StateFileError):
        # A local backup that can't be used can be deleted all the same.
        length = next((found.size for found in source.list(full) if found.key == full), 0)
    if not yes and not typer.confirm(f"Delete {source.url}{full} ({human_bytes(length)}) for good?", err=True):
        session.terminal.fail("nothing was deleted")
        raise typer.Exit(FAILED)
    with audited(database, "delete", by=who(), key=full):
        kept = delete_backup(source, full)
    record.note(database, lambda known: known.without(full))
    if session.terminal.json:
        warnings = {"warnings": [KEPT_VERSIONS]} if kept else {}
        session.terminal.document({"success": True, "key": full, "size": length, **warnings})
    session.terminal.say(f"{source.url}{full}: deleted, {human_bytes(length)}")
    if kept:
        session.terminal.note(KEPT_VERSIONS)


def cleanup(
    context: typer.Context,
    id: Id,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete backups older than the retention. The newest complete one always stays."""
    from duckling_provider.backup.retention.clean_up import clean_up
    from duckling_provider.oversight.audit import audit
    from duckling_provider.oversight.record import noted

    session = session_of(context, as_json)
    database = session.database(id)
    store = session.store(database)
    with session.control() as control, noted(database, *(() if dry_run else ("cleanup",))) as changes:
        done = clean_up(database, store, dry_run=dry_run, control=control)
        changes.append(lambda record: record.cleaned(done.notes))
        if done.s3_refused:
            now, refusal = datetime.now(timezone.utc), next(iter(done.s3_refused.values())).as_record()
            changes.append(lambda record: record.failed("cleanup", refusal, at=now))
    if not dry_run and (gone := (*done.local_deleted, *done.s3_deleted)):
        audit(database, "retention", by=who(), detail=", ".join(gone))
    faults = [*map(str, done.s3_refused.values()), *done.uploads_left]
    refused = {key: session.terminal.hide(str(error)) for key, error in done.s3_refused.items()}
    if session.terminal.json:
        session.terminal.document(
            {
                "success": not faults,
                **({"error": session.terminal.hide(faults[0])} if faults else {}),
                "dryRun": done.dry_run,
                "local": {"deleted": done.local_deleted, "kept": done.local_kept, "busy": done.busy}
                | _reasons(done.local_decisions),
                "s3": None
                if done.s3_kept is None
                else {"deleted": done.s3_deleted, "kept": done.s3_kept}
                | ({"refused": refused} if refused else {})
                | _reasons(done.s3_decisions),
                "uploadsAborted": done.uploads_aborted,
                "uploadsLeft": [session.terminal.hide(fault) for fault in done.uploads_left],
                "downloadsRemoved": [str(path) for path in done.downloads_removed],
                **({"warnings": list(done.notes)} if done.notes else {}),
            }
        )
    else:
        _show_cleaned(session, database, store, done)
        for fault in faults:
            session.terminal.fail(fault)
    if faults:
        raise typer.Exit(FAILED)


def _show_cleaned(session: Session, database: Database, store: Store | None, done: CleanupResult) -> None:
    from duckling_provider.stores.store import KEPT_VERSIONS

    dry_run = done.dry_run
    verb = "would delete" if dry_run else "deleted"
    here, there = f"{database.backup_path}/", store.url if store else ""
    for place, decisions in ((here, done.local_decisions), (there, done.s3_decisions)):
        for decision in decisions:
            name = decision.backup.key
            if dry_run and decision.keep:
                session.terminal.say(f"would keep {place}{name}: {decision.reason}")
            elif not decision.keep and (name in done.local_deleted or name in done.s3_deleted):
                session.terminal.say(f"{verb} {place}{name}: {decision.reason}")
    for name in done.busy:
        session.terminal.say(f"in use, left for the next time: {database.backup_dir / name}")
    if done.versions_stay:
        session.terminal.note(KEPT_VERSIONS)
    if done.uploads_aborted:
        session.terminal.say(f"gave up {done.uploads_aborted} unfinished upload{'s'[: done.uploads_aborted - 1]}")
    for path in done.downloads_removed:
        session.terminal.say(f"{verb} what a killed restore had left: {path}")
    for note in done.notes:
        session.terminal.warn(note)
    stay = f"{done.local_kept} local" + ("" if done.s3_kept is None else f", {done.s3_kept} in S3")
    session.terminal.say(f"{'would stay' if dry_run else 'kept'}: {stay}")
