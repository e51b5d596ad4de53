"""``duckling adopt``: one replica that the Node.js server has made, or all that is in its installation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider.base.errors import DucklingError
from duckling_provider.base.moments import iso
from duckling_provider.base.units import human_bytes, short_ago
from duckling_provider.cli.options import Json, Wait
from duckling_provider.cli.session import FAILED, Session, UsageError, session_of, who

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.node_server.takeover import EntryFinding, Step, Survey
    from duckling_provider.stores.store import Store

_OWNERS = {
    "ours": "ours already",
    "duckling-server": "the server's",
    "foreign": "another program's",
    "absent": "missing",
}


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
    session = session_of(context, as_json)
    if _is_path(target, _known_ids(session)):
        if not _adopt_installation(session, Path(target), backups=backups or (), yes=yes, wait=wait):
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


def _is_path(target: str, known_ids: Sequence[str]) -> bool:
    """Whether the argument of ``duckling adopt`` means a folder; an id that is known is one in any case."""
    return os.sep in target or target in {".", ".."} or (Path(target).is_dir() and target not in known_ids)


def _known_ids(session: Session) -> list[str]:
    """None of them when there is no usable databases.json, as on the day of a take-over."""
    try:
        return [database.id for database in session.installation().databases]
    except DucklingError:
        return []


def _adopt_installation(session: Session, path: Path, *, backups: Sequence[Path], yes: bool, wait: float) -> bool:
    """Show what there is and would be done, and with `yes` do it.

    :returns: whether all went well; to show problems is no failure.
    """
    from duckling_provider.config.environment import DATABASES_FILE
    from duckling_provider.node_server.takeover import find_data, survey, take_over
    from duckling_provider.oversight.audit import audit

    def open_store(database: Database) -> Store | None:
        session.terminal.know(database.secrets())
        return session.store(database)

    found = survey(find_data(path), environ=dict(os.environ), backups=backups, open_store=open_store)
    session.terminal.know(())
    steps: list[Step] = []
    if not session.terminal.json:
        _show(session, found)
    if yes:
        settings = found.installation.settings
        session.act_as_owner_of(path, settings.data_path, settings.backup_path, *backups)
        session.terminal.say("Doing it:")
        with session.control() as control:
            for step in take_over(found, control=control, wait=wait):
                steps.append(step)
                what = f"{step.database}: {step.name}" if step.database else step.name
                session.terminal.say(f"  {'FAILED' if step.error else 'ok    '}  {what}: {step.error or step.detail}")
        for finding in found.findings:
            if finding.state == "to be added" and any(s.name == DATABASES_FILE and not s.error for s in steps):
                audit(finding.database, "change", by=who(), detail="the entry was taken over from the Node server")
    failed = [step for step in steps if step.error]
    if session.terminal.json:
        session.terminal.document(_document(session, found, steps, yes=yes))
    elif yes:
        _show_next(session, found, steps)
    elif found.is_done:
        session.terminal.say("Nothing is left to take over.")
        _show_next(session, found, steps)
    else:
        session.terminal.say("Nothing was done. To do it, add --yes.")
    return not failed


def _show(session: Session, found: Survey) -> None:
    from duckling_provider.config.environment import DATABASES_FILE

    say = session.terminal.say
    count = len(found.findings)
    say(f"{found.data}: an installation of the Node server, {count} {'entry' if count == 1 else 'entries'}")
    if count:
        headings = [
            "ID",
            DATABASES_FILE.upper(),
            "REPLICA",
            "POSITION",
            "LOCAL>",
            "NEW>",
            "S3>",
            "NEWEST>",
            "ENCRYPTION",
        ]
        session.terminal.table(headings, [_row(finding) for finding in found.findings])
    for warning in found.installation.warnings:
        session.terminal.warn(warning)
    for problem in found.problems:
        say(f"PROBLEM  {problem}")
    for folder in found.strangers:
        say(f"PROBLEM  {folder}: a local backup of a database that is in no entry; it is left alone")
    plan = _plan(found)
    if plan:
        say("To do:")
        for line in plan:
            say(f"  - {line}")


def _row(finding: EntryFinding) -> list[str]:
    objects = finding.objects
    listed = () if objects is None else objects.restorable + objects.incomplete
    replica = finding.database.replica_path
    owner = _OWNERS.get(finding.owner or "", "in use" if finding.holder else "unknown")
    size = f"{human_bytes(replica.stat().st_size)}, " if finding.owner not in {None, "absent"} else ""
    return [
        finding.database.id,
        finding.state.partition(",")[0],
        size + owner,
        finding.position or "-",
        str(len(finding.backups)),
        str(sum(not backup.is_ours for backup in finding.backups)),
        "-" if objects is None else str(len(listed)),
        short_ago(listed[0].created, datetime.now(timezone.utc)) if listed else "-",
        (objects.proof if objects is not None else "") or "-",
    ]


def _plan(found: Survey) -> list[str]:
    plan = []
    added = [finding.database for finding in found.findings if finding.state == "to be added"]
    if added:
        there = "add to" if found.target.exists() else "write"
        kept = "; the file as it is now is kept beside it" if found.target.exists() else ""
        plan.append(f"{there} {found.target}: {', '.join(database.id for database in added)}{kept}")
    for finding in found.findings:
        database = finding.database
        if finding.state == "differs from ours, which stays":
            continue
        new = [backup for backup in finding.backups if not backup.is_ours]
        if new:
            size = human_bytes(sum(backup.size for backup in new))
            plan.append(
                f"{database.id}: check {len(new)} local backups ({size}) and list them in {database.backup_path}; "
                "the server's own files stay"
            )
        if finding.will_be_adopted:
            plan.append(
                f"{database.id}: take the replica over at {finding.position}; MySQL is asked, and the server must "
                "never write it again"
            )
    return plan


def _show_next(session: Session, found: Survey, steps: Sequence[Step]) -> None:
    lines = []
    if any(step.error for step in steps):
        lines.append("fix what FAILED and run this again: what is done is not done twice")
    if os.environ.get("DATA_PATH") is None:
        lines.append(f"export DATA_PATH={found.target.parent}, for Airflow's processes and for this command")
    days = found.installation.settings.backup_retention_days
    if any(finding.backups for finding in found.findings):
        lines.append(
            f"local backups older than BACKUP_RETENTION_DAYS ({days:g}) leave the list with the next clean-up; the "
            "server's own folders backup-… are never touched: delete them when you no longer want them"
        )
    lines.append("duckling check: whether backups and restores work now")
    ready = next((found.database.id for found in found.findings if found.objects and found.objects.restorable), None)
    if ready is not None:
        lines.append(f"duckling verify {ready} latest: reads the newest backup in the store whole")
    lines.append("leave the Node server stopped; put the DAG files into Airflow's dags folder, and unpause the syncs")
    session.terminal.say("Next:")
    for line in lines:
        session.terminal.say(f"  - {line}")


def _document(session: Session, found: Survey, steps: Sequence[Step], *, yes: bool) -> dict[str, Any]:
    hide = session.terminal.hide
    errors = [hide(step.error) for step in steps if step.error]
    return {
        "success": not errors,
        **({"error": errors[0]} if errors else {}),
        "done": yes,
        "data": str(found.data),
        "databasesJson": str(found.target),
        "plan": [hide(line) for line in _plan(found)],
        "databases": [
            {
                "id": finding.database.id,
                "state": finding.state,
                "replica": str(finding.database.replica_path),
                "owner": finding.owner,
                "position": finding.position or None,
                "openIn": finding.holder or None,
                "local": [
                    {"path": str(b.path), "size": b.size, "createdAt": iso(b.created), "ours": b.is_ours}
                    for b in finding.backups
                ],
                "s3": None
                if finding.objects is None
                else [
                    {"key": b.key, "size": b.size, "createdAt": iso(b.created), "restorable": restorable}
                    for restorable, group in ((True, finding.objects.restorable), (False, finding.objects.incomplete))
                    for b in group
                ],
            }
            for finding in found.findings
        ],
        "problems": [hide(problem) for problem in found.problems],
        "strangers": [str(folder) for folder in found.strangers],
        "steps": [
            {"database": s.database or None, "name": s.name, "detail": s.detail, "error": s.error and hide(s.error)}
            for s in steps
        ],
    }
