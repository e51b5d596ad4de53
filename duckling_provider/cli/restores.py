"""The commands about restores: put a backup in place of the replica, try one, remove a hold that was left behind."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.backup.inventory.names import LATEST, RULES
from duckling_provider.base.disk_space import room
from duckling_provider.base.errors import DucklingError, RequestError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.base.units import about, ago, human_bytes, human_seconds, span
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
    from duckling_provider.backup.reading.restore import RestoreResult
    from duckling_provider.backup.reading.restore_plan import RestorePlan
    from duckling_provider.config.databases import Database
    from duckling_provider.replication.route import Goal
    from duckling_provider.stores.store import BackupSource


def restore(
    context: typer.Context,
    id: Id,
    key: Key = LATEST,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Take the newest backup made before this ISO 8601 time (UTC).")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --to: the database as MySQL had it at this ISO 8601 time (UTC)."),
    ] = None,
    until_position: Annotated[
        str | None,
        typer.Option(metavar="GTID|FILE:OFFSET", help="With --to: the database up to this transaction of MySQL."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write to this new file and leave the replica alone.")
    ] = None,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the old replica beside the new one.")] = False,
    encryption: EncryptionMode = None,
    encryption_key_file: KeyFile = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Where the backup is damaged, take the newest older one that is not.")
    ] = False,
    no_delta: Annotated[
        bool, typer.Option("--no-delta", help="Fetch all of it, also what lies on this machine already.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    any_origin: Annotated[
        bool, typer.Option("--any-origin", help="Take the latest also when it is of another replica than this one.")
    ] = False,
    local: Local = False,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Replace the replica by a backup. It is verified first; whatever fails leaves the replica as it was.

    On a terminal it asks before it replaces a replica.
    """
    from duckling_provider.backup.reading.restore import restore_backup
    from duckling_provider.backup.reading.restore_plan import plan_restore
    from duckling_provider.config.targets import require_free_name
    from duckling_provider.oversight.audit import audited
    from duckling_provider.oversight.record import Transfer, expected_seconds, note

    session = session_of(context, as_json)
    moment, goal = _moment(before), _goal(until, until_position)
    _require_sense(key, moment, goal, to=to, keep_old=keep_old)
    target = None if to is None else _target(to)
    database = session.read_as(
        session.database(id, *([] if target is None else [target])),
        key,
        local=local,
        encryption=encryption,
        key_file=encryption_key_file,
    )
    if target is not None:
        require_free_name(target, session.installation())
    source = session.source(database, local=local)
    full_key(source, key)
    if goal is not None and target is not None:
        _until(session, database, source, goal, target, any_origin=any_origin, dry_run=dry_run)
        return
    asks = not yes and target is None and session.terminal.can_ask and os.path.lexists(database.replica)
    if dry_run or asks:
        plan = plan_restore(database, source, key, before=moment, to=target, fallback=fallback, any_origin=any_origin)
        if dry_run:
            _show(session, database, source, plan)
            return
        _ask(session, database, source, plan)
        # What was agreed to, and not what has become the latest meanwhile.
        key, moment = plan.backup.key, None
    if not asks and (takes := expected_seconds(database, key)) is not None:
        session.terminal.note(f"by what transfers took on this host, it will take {about(takes)}")
    # To another path, the entry's host need not be this one.
    into = str(to or database.replica_path)
    with (
        session.control() as control,
        audited(database, "restore", by=who(), key=key, detail=into) as told,
    ):
        done = restore_backup(
            database,
            source,
            key,
            before=moment,
            to=target,
            keep_old=keep_old,
            fallback=fallback,
            no_delta=no_delta,
            any_origin=any_origin,
            control=control,
            wait=wait,
        )
        told.key = done.key
    if not done.bytes_lent:  # what was here already says nothing of the way
        transfer = Transfer(datetime.now(timezone.utc), done.size, done.duration_ms / 1000, "restore")
        note(database, lambda record: record.transferred(transfer))
    _tell(session, source, done, received=control.received)


def _moment(before: str | None) -> datetime | None:
    try:
        return None if before is None else parse_moment(before)
    except DucklingError as error:
        raise UsageError(f"--before: {error.cause}", subject=error.subject, hint=error.hint) from error


def _require_sense(key: str, moment: datetime | None, goal: Goal | None, *, to: str | None, keep_old: bool) -> None:
    """:raises UsageError: options contradict each other."""
    if goal is not None and (key != LATEST or moment is not None):
        raise UsageError("--until chooses the backup", hint="Leave the key and --before out.")
    if goal is not None and to is None:
        raise UsageError(
            "--until needs --to",
            hint="Over the replica, the next sync would apply again what is to be undone. Name a new file.",
        )
    if moment is not None and key not in RULES:
        raise UsageError("a key and --before were given", subject=key, hint="Give one of them.")
    if to is not None and keep_old:
        raise UsageError("--keep-old makes no sense with --to", hint="With --to the replica is left alone anyway.")


def _ask(session: Session, database: Database, source: BackupSource, plan: RestorePlan) -> None:
    """:raises typer.Exit: the replica is to stay."""
    for line in _plan_lines(database, source, plan):
        session.terminal.note(line)
    if not typer.confirm(f"Replace {plan.target} by this backup?", err=True):
        session.terminal.fail("nothing was replaced")
        raise typer.Exit(FAILED)


def _tell(session: Session, source: BackupSource, done: RestoreResult, *, received: int) -> None:
    """What came of a restore; `received` bytes came from the store."""
    if session.terminal.json:
        facts = {"key": done.key, "size": done.size, "duration": done.duration_ms}
        kept = str(done.kept) if done.kept else None
        where = {"path": str(done.replaced), "kept": kept, "keyFingerprint": done.key_fingerprint}
        origin = done.origin.as_json() if done.origin else None
        delta = {"bytesLent": done.bytes_lent, "fullBecause": done.full_because or None}
        delta["bytesReceived"] = received
        session.terminal.document({"success": True, **facts, **where, "origin": origin, **delta})
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(
        f"{done.replaced}: restored from {source.url}{done.key}, {human_bytes(done.size)} in {took}"
        f"{with_key(done.key_fingerprint)}"
    )
    if done.bytes_lent:
        lent = f"{human_bytes(done.bytes_lent)} of it were on this machine already"
        session.terminal.say(f"{lent}, {human_bytes(received)} were fetched")
    elif done.full_because:
        session.terminal.say(f"all of it was fetched: {done.full_because}")
    if done.origin:
        session.terminal.say(f"it was made on {done.origin}")
    if done.kept:
        session.terminal.say(f"the old file is {done.kept}")


def _target(text: str) -> Path:
    """The absolute path of ``--to``.

    :raises UsageError: it names no file.
    """
    if not text.strip():
        raise UsageError("--to: names no file", hint="Is a variable empty? Write the path of a new file.")
    if text == "-":
        hint = "Write the path of a new file; ./- for one of that name."
        raise UsageError("--to: a restore writes a file, not to standard output", hint=hint)
    if text.endswith("/") or os.path.isdir(text):
        raise UsageError("--to: this is a folder", subject=text, hint="Write the path of a new file in it.")
    # Not resolve(): a symbolic link is a name that is taken.
    return Path(os.path.abspath(text))


def _goal(until: str | None, position: str | None) -> Goal | None:
    if until is None and position is None:
        return None
    from duckling_provider.replication.route import Goal

    try:
        return Goal.of(until, position)
    except DucklingError as error:
        option = "--until" if position is None else "--until-position"
        raise UsageError(f"{option}: {error.cause}", subject=error.subject, hint=error.hint) from error


def _until(
    session: Session,
    database: Database,
    source: BackupSource,
    goal: Goal,
    to: Path,
    *,
    any_origin: bool,
    dry_run: bool,
) -> None:
    """Restore to a moment, or say what that would do."""
    from duckling_provider.oversight.audit import audited
    from duckling_provider.replication.until import plan_until, restore_until

    if dry_run:
        with session.control() as control:
            plan, route = plan_until(database, source, goal, to=to, any_origin=any_origin, control=control)
        if not session.terminal.json:
            reached = f", of {iso(route.reached)}" if route.reached else ""
            for name, value in [
                ("until", f"{goal}: the last transaction before it ends at {route.end}{reached}"),
                ("binlog", f"{route.transactions} transactions, {human_bytes(route.size)} from the backup on, about"),
                ("reach", f"every moment from {iso(route.since)} to {iso(route.to)}"),
            ]:
                session.terminal.say(f"{name:<8}  {value}")
        _show(session, database, source, plan, {"until": str(goal), **route.as_json()})
        return
    detail = f"as it was at {goal}, into {to}"
    with session.control() as control, audited(database, "restore", by=who(), detail=detail) as told:
        done = restore_until(database, source, goal, to=to, any_origin=any_origin, control=control)
        told.key = done.restored.key
    restored, route = done.restored, done.route
    if session.terminal.json:
        facts = {"key": restored.key, "size": restored.size, "duration": restored.duration_ms}
        where = {"path": str(to), "kept": None, "keyFingerprint": restored.key_fingerprint}
        origin = restored.origin.as_json() if restored.origin else None
        session.terminal.document(
            {"success": True, **facts, **where, "origin": origin, "until": str(goal), **done.as_json()}
        )
        return
    reached = f", committed at {iso(route.reached)}" if route.reached else ""
    session.terminal.say(
        f"{to}: as it was at {goal}: {source.url}{restored.key} and {done.changes:,} changes of the binlog up to "
        f"{route.end}{reached}; {human_bytes(restored.size)} in {human_seconds(restored.duration_ms / 1000)}"
        f"{with_key(restored.key_fingerprint)}"
    )
    for table in done.left:
        as_of = f"at {iso(table.at)}" if table.at else "in the backup"
        session.terminal.warn(f"{table.name} is as it was {as_of}, and could not be followed further: {table.reason}")


def _show(
    session: Session, database: Database, source: BackupSource, plan: RestorePlan, more: dict[str, Any] | None = None
) -> None:
    """The result of ``--dry-run``; it fails where the restore would for lack of room."""
    short = (
        f"no space left for the restored file in {plan.target.parent}: {room(plan.backup.size, plan.free)}"
        if plan.free < plan.needed
        else None
    )
    facts = {
        "dryRun": True,
        "key": plan.backup.key,
        "createdAt": iso(plan.created) if plan.created else None,
        "size": plan.backup.size,
        "path": str(plan.target),
        "estimatedSeconds": _expected(database, plan),
        "needed": plan.needed,
        "margin": plan.margin,
        "free": plan.free,
        "holder": plan.holder,
        "encryption": plan.backup.mode,
        "keyFingerprint": _fingerprint(plan),
        "origin": plan.backup.origin.as_json() if plan.backup.origin else None,
        "replacedSize": plan.old_size,
        "replacedModifiedAt": iso(plan.old_written) if plan.old_written else None,
        "newerSeconds": round(plan.newer_by, 3),
        **(more or {}),
    }
    if session.terminal.json:
        if short is None:
            session.terminal.document({"success": True, **facts})
    else:
        for line in _plan_lines(database, source, plan):
            session.terminal.say(line)
        session.terminal.say("nothing was changed: this is what a restore would do")
    if short is not None:
        session.terminal.fail(short, "Make room there, or restore elsewhere with --to.", **facts)
        raise typer.Exit(FAILED)


def _plan_lines(database: Database, source: BackupSource, plan: RestorePlan) -> list[str]:
    """What a person sees before a restore: one fact per line."""
    made = f", made {iso(plan.created)} ({ago(plan.created, datetime.now(timezone.utc))})" if plan.created else ""
    fingerprint = _fingerprint(plan)
    if plan.old_size is None:
        replaced = "nothing: the file does not exist yet"
    else:
        size = human_bytes(plan.old_size)
        written = f", last written {iso(plan.old_written)}" if plan.old_written else ""
        replaced = f"a file of {size}{written}"
    if plan.created is None and plan.old_size is not None:
        lost = "not known: the backup's name says no time"
    elif plan.newer_by:
        again = (
            ""
            if database.mysql_connection_string.get_secret_value() == ""
            else ("; a sync brings back what MySQL's binlog still has")
        )
        lost = f"what came into the replica in the {span(plan.newer_by)} after the backup{again}"
    else:
        lost = "nothing: the replica was not written after the backup"
    takes = _expected(database, plan)
    rows = [
        ("backup", f"{source.url}{plan.backup.key}{made}"),
        ("origin", str(plan.backup.origin or "not known: the backup does not say")),
        ("size", human_bytes(plan.backup.size)),
        ("key", f"{plan.backup.mode}, key {fingerprint}" if fingerprint else f"none: encryption is {plan.backup.mode}"),
        ("into", str(plan.target)),
        ("takes", "not known: nothing was read back here yet" if takes is None else about(takes)),
        ("disk", room(plan.backup.size, plan.free)),
        ("holder", plan.holder or "none"),
        ("replaces", replaced),
        ("lost", lost),
    ]
    return [f"{name:<8}  {value}" for name, value in rows]


def _expected(database: Database, plan: RestorePlan) -> float | None:
    """Seconds that the restore is likely to take."""
    from duckling_provider.oversight.record import estimated_seconds, transfers_of

    return estimated_seconds(plan.backup.size, transfers_of(database))


def _fingerprint(plan: RestorePlan) -> str | None:
    return plan.backup.key_fingerprint


def drill(context: typer.Context, id: Id, key: Key = LATEST, as_json: Json = False) -> None:
    """Restore a backup on trial: download, verify, let DuckDB read every table, compare the rows, throw it away."""
    from duckling_provider.oversight.drills import drill
    from duckling_provider.oversight.record import noted

    session = session_of(context, as_json)
    database = session.database(id)
    store = session.remote(database)
    require_there(store, full_key(store, key))
    with session.control() as control, noted(database, "drill"):
        done = drill(database, store, key, control=control)
    if session.terminal.json:
        session.terminal.document({"success": True, **done.as_json()})
        return
    session.terminal.say(f"{store.url}{done.sentence}{with_key(done.key_fingerprint)}")
    if done.catch_up == "yes":
        session.terminal.say("MySQL's binlog still has all that came after it")
    elif done.catch_up == "unknown":
        session.terminal.say(f"whether MySQL's binlog reaches back to it is not known: {done.catch_up_note}")
    for note in done.warnings:
        session.terminal.warn(note)


def release(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Remove a hold that was left behind by a restore whose owner is gone for good; says whose it was."""
    from duckling_provider.oversight.audit import audit
    from duckling_provider.replica.access import replica_access
    from duckling_provider.replica.locks import read_hold, release_hold

    session = session_of(context, as_json)
    database = session.database(id)
    replica = database.replica
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
    if hold is not None:
        audit(database, "release", by=who(), detail=str(hold))
    if session.terminal.json:
        session.terminal.document({"success": True, "released": None if hold is None else str(hold)})
    session.terminal.say(f"{id}: {'no hold' if hold is None else f'released: {hold}'}")
