"""The commands that tell what is promised, and who did what."""

from __future__ import annotations

import contextlib
import io
import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.base.errors import DucklingError
from duckling_provider.base.units import about, ago, exact_span, short_about, short_ago
from duckling_provider.cli.options import AnyId, Json
from duckling_provider.cli.session import FAILED, Session, UsageError, session_of

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.oversight.notices import Message
    from duckling_provider.oversight.promises import Standing


def status(
    context: typer.Context,
    id: AnyId = None,
    every: Annotated[
        bool, typer.Option("--all", help="All entries, as without an ID: from what is recorded, no store is asked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Could it be recovered now, to when, how long would it take, and is that what was promised? Fails where it is not.

    Of one database the store is asked where this host's record knows no recent backup.
    """
    session = session_of(context, as_json)
    if id is not None:
        if every:
            raise UsageError("an id and --all were given", subject=id, hint="Give one of them.")
        _show_one(session, _standing(session, session.database(id)))
        return
    from duckling_provider.oversight.watch import look_at_all

    found = look_at_all(session.installation(), now=datetime.now(timezone.utc))
    terminal = session.terminal
    if terminal.json:
        terminal.document(found.as_json() | {"success": not found.troubles})
    else:
        if found.standings:
            terminal.table(_COLUMNS, [_cells(standing) for standing in found.standings])
        for trouble in found.troubles:
            terminal.say(str(trouble))
    if found.troubles:
        raise typer.Exit(FAILED)


_COLUMNS = ("DATABASE", "STATE", "RECOVERABLE TO (UTC)", "AGE>", "TAKES ABOUT>", "VERIFIED>", "TESTED>", "PROMISES")


def _cells(standing: Standing) -> list[str]:
    promise, now = standing.promise, datetime.now(timezone.utc)
    to = promise.recoverable_to
    return [
        standing.database.id,
        standing.state,
        "-" if to is None else f"{to:%Y-%m-%d %H:%M:%S}",
        "-" if to is None else short_ago(to, now),
        "-" if promise.seconds is None else short_about(promise.seconds),
        "-" if promise.verified is None else short_ago(promise.verified, now),
        "never" if promise.tested is None else short_ago(promise.tested, now),
        _promises(standing),
    ]


def _promises(standing: Standing) -> str:
    kept = {"rpoHours": standing.promise.rpo_kept, "rtoMinutes": standing.promise.rto_kept}
    words = {True: "kept", False: "BROKEN"}
    return ", ".join(f"{name} {words[is_kept]}" for name, is_kept in kept.items() if is_kept is not None) or "-"


def _standing(session: Session, database: Database) -> Standing:
    """Where it stands; the store is asked where the record knows no recent backup."""
    from duckling_provider.oversight.promises import standing_of
    from duckling_provider.oversight.record import note, read_record, renewed_from, transfers_of

    now = datetime.now(timezone.utc)
    transfers = transfers_of(database)
    standing = standing_of(database, read_record(database), now=now, transfers=transfers)
    if standing.state in ("no backup", "overdue") and (database.s3 is not None or database.is_here):
        source = session.source(database, local=False)
        session.terminal.note(f"{source.url} is asked: this host's record knows no recent backup")
        with session.control() as control:
            change = renewed_from(database, source.under(control), now=now)
        note(database, change)
        standing = standing_of(database, change(read_record(database)), now=now, transfers=transfers)
    return standing


def _show_one(session: Session, standing: Standing) -> None:
    database, promise, terminal = standing.database, standing.promise, session.terminal
    is_well = standing.recoverable and not promise.is_broken and standing.state != "failing"
    if terminal.json:
        terminal.document({"success": is_well, **standing.as_json()})
    else:
        now = datetime.now(timezone.utc)
        to = "nothing" if promise.recoverable_to is None else _moment(promise.recoverable_to, now)
        if promise.by_binlog:
            to += "; by MySQL's binlog until now"
        takes = "not known: nothing was read back yet"
        if promise.seconds is not None:
            takes = about(promise.seconds)
        tested = "never" if promise.tested is None else _moment(promise.tested, now)
        if promise.measured is not None:
            tested += f", in {exact_span(promise.measured)}"
        rows = [
            ("state", standing.state + (f": {standing.reason}" if standing.reason else "")),
            ("recoverable to", to),
            ("would take", takes),
            ("last verified", "never" if promise.verified is None else _moment(promise.verified, now)),
            ("last tested", tested),
            ("promises", "; ".join(promise.broken(database)) or _promises(standing).replace("-", "none were made")),
        ]
        for name, value in rows:
            terminal.say(f"{name:<14}  {value}")
    if not is_well:
        raise typer.Exit(FAILED)


def _moment(moment: datetime, now: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({ago(moment, now)})"


def notify(context: typer.Context, id: AnyId = None, as_json: Json = False) -> None:
    """Send a test to each Airflow connection of DUCKLING_NOTIFY_CONN_IDS; with an id, how that database stands."""
    from duckling_provider.oversight.notices import Message

    session = session_of(context, as_json)
    settings = session.installation().settings
    if not settings.notify_conn_ids:
        raise UsageError(
            "DUCKLING_NOTIFY_CONN_IDS names no connection",
            hint="Set it where Airflow's services get their environment.",
        )
    line = "this is a test; nothing is wrong"
    if id is not None:
        standing = _standing(session, session.database(id))
        line = f"this is a test; {id} is {standing.state}" + (f": {standing.reason}" if standing.reason else "")
    message = Message(f"Duckling on {settings.host}: a test", (line,))
    found: list[dict[str, Any]] = []
    for name in settings.notify_conn_ids:
        error = _sent(name, message)
        found.append({"connection": name, "error": error and session.terminal.hide(error)})
        session.terminal.say(f"{'FAILED' if error else 'ok    '}  {name}: {error or 'it took the message'}")
    failed = next((one["error"] for one in found if one["error"]), None)
    if session.terminal.json:
        session.terminal.document(
            {"success": failed is None, **({"error": failed} if failed else {}), "connections": found}
        )
    if failed:
        raise typer.Exit(FAILED)


def _sent(name: str, message: Message) -> str | None:
    """Send it; why it was not taken. What Airflow says meanwhile is swallowed: stdout may be for a JSON document."""
    silence = io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            from duckling_provider.tasks.notify import send

            send(name, message)
    except DucklingError as error:
        return str(error)
    except ImportError as error:
        return f"no Airflow is installed here ({error.name})"
    finally:
        logging.disable(logging.NOTSET)
    return None


def audit(context: typer.Context, id: AnyId = None, as_json: Json = False) -> None:
    """Who restored, deleted, changed or pinned what on this host, newest first: of one database, or of all."""
    from duckling_provider.oversight.audit import AUDIT, read_audit

    session = session_of(context, as_json)
    installation = session.installation()
    backups = installation.settings.backup_path
    # Also of entries that are gone.
    known = sorted({path.parent.name for path in backups.glob(f"*/{AUDIT}*")})
    if id is not None and id not in known:
        session.chosen(installation, id)
    ids = known if id is None else [id] if id in known else []
    lines = []
    for name in ids:
        try:
            lines += [(name, line) for line in read_audit(backups / name)]
        except (DucklingError, OSError) as error:
            session.terminal.warn(str(error))
    lines.sort(key=lambda item: item[1].at, reverse=True)
    terminal = session.terminal
    if terminal.json:
        shown: list[dict[str, Any]] = [{"database": name, **line.as_json()} for name, line in lines]
        terminal.document({"success": True, "audit": shown})
        return
    rows = [
        [name, line.at, line.what, line.by, line.host, line.key, f"FAILED: {line.error}" if line.error else line.detail]
        for name, line in lines
    ]
    if rows:
        terminal.table(("DATABASE", "AT", "WHAT", "BY", "HOST", "KEY", ""), rows)
    else:
        terminal.note("nothing was restored, deleted, changed or pinned on this host yet")
