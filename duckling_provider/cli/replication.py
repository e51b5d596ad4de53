"""The commands of replication: ``duckling sync``, ``duckling adopt``, ``duckling validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.base.errors import DucklingError
from duckling_provider.base.units import human_seconds
from duckling_provider.cli.adopt import adopt_installation, is_path
from duckling_provider.cli.session import UsageError

if TYPE_CHECKING:
    from duckling_provider.cli.session import Session
    from duckling_provider.replication.validate.report import TableReport

FAILED = 1

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id in databases.json.", show_default=False)]
Wait = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for whoever uses the replica.")]


def sync(
    context: typer.Context,
    id: Id,
    seconds: Annotated[
        float | None,
        typer.Option("--for", min=1, metavar="SECONDS", help="Follow MySQL for so long instead of catching up once."),
    ] = None,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Bring the replica up to date from MySQL's binlog; the first time, copy everything."""
    from duckling_provider.replication.sync import sync as synchronise

    session = _session(context, as_json)
    database = session.database(id)
    with session.control() as control:
        done = synchronise(database, control=control, owner="duckling sync", seconds=seconds, wait=wait)
    made_way = done.outcome == "made way"
    if session.terminal.json:
        facts: dict[str, Any] = {
            "success": not made_way,
            "outcome": done.outcome,
            "copied": list(done.copied),
            "changes": done.changes,
            "position": None if done.position is None else str(done.position),
            "lagSeconds": round(done.lag, 1),
            "recopy": done.recopy,
            "notes": list(done.notes),
        }
        session.terminal.document(facts | ({"error": done.reason} if made_way else {}))
    if done.copied:
        session.terminal.say(f"{id}: copied {len(done.copied)} table{'s' * (len(done.copied) != 1)}")
    for note in done.notes:
        session.terminal.say(note)
    for name, reason in done.recopy.items():
        session.terminal.warn(f"{name} will be copied again by the next sync: {reason}")
    if made_way:
        session.terminal.say(f"{id}: made way after {done.changes} changes: {done.reason}")
        raise typer.Exit(FAILED)
    lag = "up to date" if done.outcome == "caught up" else f"{human_seconds(done.lag)} behind"
    at = f", at {done.position}" if done.position is not None else ""
    session.terminal.say(f"{id}: {done.changes} changes applied, {lag}{at}")


def adopt(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="ID|PATH", help="An entry's id, or a Node server's folder.", show_default=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With PATH: do it. Without, it is only shown.")] = False,
    backups: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="With PATH: look for the server's local backups there, too. Repeatable."),
    ] = None,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Take over a replica that the Node server has made, at its position; or with PATH all of its installation."""
    session = _session(context, as_json)
    if is_path(target, _known_ids(session)):
        if not adopt_installation(session, Path(target), backups=backups or (), yes=yes, wait=wait):
            raise typer.Exit(FAILED)
        return
    if yes or backups:
        raise UsageError("--yes and --backups go with a path", subject=target, hint="An id needs neither.")
    from duckling_provider.replication.sync import adopt_replica

    id = target
    database = session.database(id)
    with session.control() as control:
        states = adopt_replica(database, wait=wait, control=control)
    recopy = {state.name: state.note for state in states if state.state != "ok"}
    if session.terminal.json:
        session.terminal.document({"success": True, "tables": [state.name for state in states], "recopy": recopy})
    session.terminal.say(f"{id}: {database.replica} is ours now, {len(states)} tables")
    for name, reason in recopy.items():
        session.terminal.say(f"{name} will be copied again by the next sync: {reason}")


def validate(
    context: typer.Context,
    id: Id,
    differences: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to list of each table at most.")] = 20,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Compare the replica with MySQL, table by table, at one position; fails when they differ."""
    from duckling_provider.replication.sync import validate_replica

    session = _session(context, as_json)
    database = session.database(id)
    with session.control() as control:
        report = validate_replica(database, control=control, wait=wait, max_differences=differences)
    if session.terminal.json:
        session.terminal.document({"success": report.equal, **report.as_json()})
    for table in report.tables:
        _tell(session, table)
    if report.equal:
        session.terminal.say(f"{id}: all {len(report.tables)} tables are equal, at {report.position}")
        return
    differing = sum(not table.equal for table in report.tables)
    session.terminal.say(f"{id}: {differing} of {len(report.tables)} tables differ, at {report.position}")
    raise typer.Exit(FAILED)


def _known_ids(session: Session) -> list[str]:
    """None when there is no usable databases.json, as on the day of a take-over."""
    try:
        return [database.id for database in session.installation().databases]
    except DucklingError:
        return []


def _tell(session: Session, table: TableReport) -> None:
    session.terminal.say(str(table))


def _session(context: typer.Context, as_json: bool) -> Session:
    session: Session = context.obj
    session.terminal.json = as_json
    return session


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (sync, adopt, validate):
        app.command()(command)
