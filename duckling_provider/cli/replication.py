"""The commands of replication: bring a replica up to date, and compare it with MySQL."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.base.moments import iso
from duckling_provider.base.units import ago, human_seconds
from duckling_provider.cli.options import Id, Json, Wait
from duckling_provider.cli.session import FAILED, Session, session_of

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database


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
    from duckling_provider.oversight.back_reach import note_reach
    from duckling_provider.oversight.record import SyncSeen, noted
    from duckling_provider.replication.sync import sync as synchronise

    session = session_of(context, as_json)
    database = session.database(id)
    with session.control() as control, noted(database, "sync") as changes:
        done = synchronise(database, control=control, owner="duckling sync", seconds=seconds, wait=wait)
        seen = SyncSeen(datetime.now(timezone.utc), done.lag, done.validated, done.differences, done.differed)
        changes.append(lambda record: record.synced(seen))
    note_reach(database, done.began)
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
            "yields": done.yields,
            "validated": None if done.validated is None else iso(done.validated),
            "rowsCompared": done.compared,
            "differing": done.differing,
            "differences": done.differences,
        }
        if done.read_copy is not None:
            facts["readCopyAt"] = iso(done.read_copy)
        session.terminal.document(facts | ({"error": done.reason} if made_way else {}))
    if done.copied:
        session.terminal.say(f"{id}: copied {len(done.copied)} table{'s' * (len(done.copied) != 1)}")
    for note in done.notes:
        session.terminal.say(note)
    for name, reason in done.recopy.items():
        session.terminal.warn(f"{name} will be copied again by the next sync: {reason}")
    for name, count in done.differing.items():
        rows = f"{count} row{'s' * (count != 1)}"
        session.terminal.warn(f"{name}: {rows} differed from MySQL; see _duckling.history in the replica")
    if made_way:
        waits = f"; changes wait for {human_seconds(done.lag)}" if done.lag else ""
        session.terminal.say(f"{id}: made way after {done.changes} changes{waits}: {done.reason}")
        raise typer.Exit(FAILED)
    lag = f"{human_seconds(done.lag)} behind" if done.lag else "up to date"
    at = f", at {done.position}" if done.position is not None else ""
    session.terminal.say(f"{id}: {done.changes} changes applied, {lag}{at}")


def validate(
    context: typer.Context,
    id: Id,
    differences: Annotated[int, typer.Option(min=0, metavar="N", help="Rows to list of each table at most.")] = 20,
    status: Annotated[
        bool, typer.Option("--status", help="Only show when each table was last found equal; MySQL is not asked.")
    ] = False,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Compare the replica with MySQL, table by table, at one position; fails when they differ."""
    session = session_of(context, as_json)
    database = session.database(id)
    if status:
        _show_status(session, database, wait)
        return
    from duckling_provider.replication.sync import validate_replica

    with session.control() as control:
        report = validate_replica(database, control=control, wait=wait, max_differences=differences)
    if session.terminal.json:
        session.terminal.document({"success": report.equal, **report.as_json()})
    for table in report.tables:
        session.terminal.say(str(table))
    if report.equal:
        session.terminal.say(f"{id}: all {len(report.tables)} tables are equal, at {report.position}")
        return
    differing = sum(not table.equal for table in report.tables)
    session.terminal.say(f"{id}: {differing} of {len(report.tables)} tables differ, at {report.position}")
    raise typer.Exit(FAILED)


def _show_status(session: Session, database: Database, wait: float) -> None:
    from duckling_provider.replication.standing import read_standing

    with session.control() as control:
        standing = read_standing(database, control=control, wait=wait)
    terminal = session.terminal
    if terminal.json:
        terminal.document({"success": True, **standing.as_json()})
        return
    now = datetime.now(timezone.utc)
    if standing.tables:
        rows = [
            (
                table.name,
                table.state,
                "never" if table.validated is None else ago(table.validated, now),
                f"{table.differences}" if table.differences else "-",
                table.note,
            )
            for table in standing.tables
        ]
        terminal.table(("TABLE", "STATE", "FOUND EQUAL", "DIFFERENCES", "NOTE"), rows)
    terminal.say(f"{database.id}: {standing.sentence(now)}")
