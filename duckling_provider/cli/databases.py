"""The commands about entries: what is configured, and whether backups and restores would work now."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import typer

from duckling_provider.base.errors import DucklingError, FileSystemError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.base.units import human_bytes, short_ago
from duckling_provider.cli.options import AnyId, Json
from duckling_provider.cli.session import BAD_USAGE, FAILED, Session, session_of
from duckling_provider.cli.terminal import Terminal

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database, Installation, Settings
    from duckling_provider.oversight.check import CheckStep


def databases(context: typer.Context, as_json: Json = False) -> None:
    """Show what databases.json holds; a bad entry is shown with what is wrong. Fails only when no entry is good."""
    session = session_of(context, as_json)
    installation = session.installation()
    _show_databases(session.terminal, installation)
    if installation.problems and not installation.databases:
        raise typer.Exit(BAD_USAGE)


def check(
    context: typer.Context,
    id: AnyId = None,
    as_json: Json = False,
) -> None:
    """Try whether a backup and a restore would work now: replica, folders, and the store under its prefix for real."""
    session = session_of(context, as_json)
    installation = session.installation()
    chosen: tuple[Database, ...] = installation.databases
    problems = [str(problem) for problem in installation.problems]
    warnings = installation.warnings
    if id is not None:
        chosen, problems, warnings = (session.chosen(installation, id),), [], session.warnings(installation, id)
    for warning in warnings:
        session.terminal.warn(warning)
    all_well = _check_all(
        session, installation.settings, chosen, problems=problems, warnings=warnings, is_here=id is not None
    )
    if problems or not all_well:
        raise typer.Exit(BAD_USAGE if problems else FAILED)


def _show_databases(terminal: Terminal, installation: Installation) -> None:
    """Every entry: the good ones as a table, the bad ones with what is wrong."""
    now = datetime.now(timezone.utc)
    found = [_facts(database) for database in installation.databases]
    problems = [terminal.hide(str(problem)) for problem in installation.problems]
    if terminal.json:
        warnings = [terminal.hide(warning) for warning in installation.warnings]
        terminal.document({"databases": found, "problems": problems, "warnings": warnings})
        return
    rows = []
    for facts in found:
        size, last = facts["replicaSize"], facts["lastLocalBackup"]
        rows.append(
            [
                facts["id"],
                facts["name"],
                _where(facts) if size is None else human_bytes(size),
                f"every {facts['intervalHours']:g} h" if facts["autoBackup"] else "off",
                facts["s3"] or "-",
                facts["encryption"] or "-",
                short_ago(parse_moment(last["createdAt"]), now) if last else "never" if facts["here"] else "",
            ]
        )
    if rows:
        terminal.table(["ID", "NAME", "REPLICA>", "BACKUP", "S3", "ENCRYPTION", "LAST LOCAL"], rows)
    for problem in problems:
        terminal.say(f"BAD  {problem}")
    if not rows and not problems:
        terminal.note(f"{installation.settings.databases_file} has no entries")
    for warning in installation.warnings:
        terminal.warn(warning)


def _facts(database: Database) -> dict[str, Any]:
    from duckling_provider.backup.inventory.choice import list_backups
    from duckling_provider.backup.inventory.local_backups import LocalBackups

    s3 = database.s3
    here = database.is_here
    last = next(iter(list_backups(LocalBackups(database))), None) if here else None
    return {
        "id": database.id,
        "name": database.name,
        "host": database.host,
        "here": here,
        "replica": str(database.replica_path),
        "replicaSize": database.replica.stat().st_size if here and database.replica.is_file() else None,
        **({"readCopy": read_copy_facts(database)} if database.read_copy_file else {}),
        "autoBackup": database.auto_backup,
        "intervalHours": database.interval_hours,
        "s3": f"s3://{s3.bucket}/{s3.path_prefix}" if s3 else None,
        "endpoint": s3.endpoint if s3 else None,
        "encryption": s3.encryption if s3 else None,
        "lastLocalBackup": {"filename": last.name, "size": last.size, "createdAt": iso(last.created)} if last else None,
    }


def read_copy_facts(database: Database) -> dict[str, Any]:
    """The copy for readers, for JSON: `madeAt` and `current` are null where it is not there or can't be looked at."""
    from duckling_provider.replica.read_copy import find_read_copy

    copy = None
    if database.is_here:
        with contextlib.suppress(DucklingError, OSError):  # which `check` reports
            copy = find_read_copy(database)
    facts = {"madeAt": iso(copy.made), "current": copy.is_current(database)} if copy else {}
    return {"path": str(database.read_copy_file), "madeAt": None, "current": None, **facts}


def _where(facts: dict[str, Any]) -> str:
    return "missing" if facts["here"] else f"on {facts['host']}"


def _check_all(
    session: Session,
    settings: Settings,
    databases: Sequence[Database],
    *,
    problems: Iterable[str],
    warnings: Iterable[str],
    is_here: bool,
) -> bool:
    """Try each database for real, step by step, and say at once how each step went.

    :param is_here: that a database is on another machine is a failure; else its local half is passed over.
    :param problems: what is wrong with entries that can't be tried.
    :returns: whether every step went well; `problems` do not count.
    """
    terminal = session.terminal
    problems = [terminal.hide(problem) for problem in problems]
    found, errors = [], []
    for database in databases:
        terminal.say(database.id)
        steps = []
        waiting = _Waiting(terminal, f"s3://{database.s3.bucket}/" if database.s3 else "")
        for step in _steps_as_owner(session, database, is_here=is_here, begin=waiting.begin):
            waiting.end()
            error = terminal.hide(step.error) if step.error else None
            steps.append({"name": step.name, "detail": terminal.hide(step.detail), "error": error})
            terminal.say(f"  {'FAILED' if error else 'ok    '}  {step.name}: {error or step.detail}")
            if error:
                errors.append(f"{database.id}: {step.name}: {error}")
        waiting.end()
        found.append({"id": database.id, "success": not any(step["error"] for step in steps), "steps": steps})
    pool = _pool(settings)
    if pool is not None:
        terminal.say("Airflow")
        terminal.say(f"  {'FAILED' if pool.error else 'ok    '}  {pool.name}: {pool.error or pool.detail}")
        errors += [f"Airflow: {pool.error}"] if pool.error else []
    for problem in problems:
        terminal.say(f"BAD  {problem}")
    if terminal.json:
        failures = [*problems, *errors]
        result: dict[str, Any] = {"success": not failures}
        if failures:
            result["error"] = failures[0]
        shown = [terminal.hide(warning) for warning in warnings]
        told = None if pool is None else {"name": settings.pool, "detail": pool.detail, "error": pool.error}
        terminal.document(result | {"databases": found, "pool": told, "problems": problems, "warnings": shown})
    return not errors


class _Waiting:
    """Says what is waited for once a step with a store takes long."""

    def __init__(self, terminal: Terminal, url: str) -> None:
        self._terminal, self._url = terminal, url
        self._timer: threading.Timer | None = None

    def begin(self, step: str) -> None:
        self.end()
        told = f"  waiting for {self._url}, which does not answer ({step}); Ctrl-C stops"
        self._timer = self._terminal.wait_begins(lambda: self._terminal.note(told))

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _pool(settings: Settings) -> CheckStep | None:
    """Whether tasks that transfer would ever be started; None where there is no Airflow, or no pool is wanted."""
    from duckling_provider.oversight.check import CheckStep
    from duckling_provider.tasks.transfer_pool import find_slots, is_airflow_here

    if settings.pool is None or not is_airflow_here():
        return None
    name = f"pool {settings.pool}"
    try:
        slots = find_slots(settings.pool)
    except DucklingError as error:
        return CheckStep(name, f"not checked: {error.cause}")
    if slots is None:
        make = f'airflow pools set {settings.pool} {settings.pool_slots} "transfers of Duckling"'
        return CheckStep(name, error=f"does not exist: tasks that transfer would never start. Make it: {make}")
    return CheckStep(name, "endless" if slots < 0 else f"{slots} slots")


def _steps_as_owner(
    session: Session, database: Database, *, is_here: bool, begin: Callable[[str], object]
) -> Iterator[CheckStep]:
    from duckling_provider.base.ownership import as_owner_of
    from duckling_provider.oversight.check import CheckStep

    try:
        with as_owner_of(*database.places):
            yield from _steps(session, database, is_here=is_here, begin=begin)
    except FileSystemError as error:
        yield CheckStep("user", error=str(error))


def _steps(
    session: Session, database: Database, *, is_here: bool, begin: Callable[[str], object]
) -> Iterator[CheckStep]:
    from duckling_provider.oversight.check import CheckStep, check_database

    store, fault = None, None
    try:
        store = session.store(database)
    except DucklingError as error:
        # The local half can be looked at all the same.
        fault = str(error)
    for step in check_database(database, store, begin=begin):
        if step.name == "host" and step.error and not is_here:
            yield CheckStep("host", f"replica and local backups are on {database.host}: not looked at")
        elif step.name != "store" or fault is None:
            yield step
    if fault is not None:
        yield CheckStep("store", error=fault)
