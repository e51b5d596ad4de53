"""The command ``list``: the backups there are, of one database or of all, and what each of them is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import typer

from duckling_provider.base.errors import DucklingError, WrongHostError
from duckling_provider.base.moments import iso, readable
from duckling_provider.base.units import human_bytes, short_ago
from duckling_provider.cli.databases import read_copy_facts
from duckling_provider.cli.options import AnyId, Json
from duckling_provider.cli.session import BAD_USAGE, Session, code_of, session_of

if TYPE_CHECKING:
    from duckling_provider.backup.inventory.names import ListedBackup
    from duckling_provider.config.databases import Database
    from duckling_provider.replica.origin import Origin
    from duckling_provider.stores.store import BackupSource

_COLUMNS = ("WHERE", "KEY", "SIZE>", "TAKEN (UTC)", "AGE>", "STATE", "MODE", "FINGERPRINT", "")


@dataclass(frozen=True)
class _Row:
    """One backup. `state` is that of `inventory.states`, or ``incomplete`` for an object that can't be restored, and
    `state_at` the moment of the evidence for it; `remark` says what is odd about it. `mode` and `fingerprint` are None
    where nothing tells, `bytes_sent` (the rest was copied by the store) where this machine does not know.
    """

    backup: ListedBackup
    where: str
    state: str
    mode: str | None = None
    fingerprint: str | None = None
    remark: str = ""
    origin: Origin | None = None
    state_at: datetime | None = None
    bytes_sent: int | None = None

    @property
    def complete(self) -> bool:
        return self.state != "incomplete"

    def json(self) -> dict[str, Any]:
        backup = self.backup
        if self.where == "local":
            named: dict[str, Any] = {"filename": backup.name, "size": backup.size, "createdAt": iso(backup.created)}
        else:
            modified = iso(backup.modified or backup.created)
            named = {"key": backup.key, "size": backup.size, "lastModified": modified, "createdAt": iso(backup.created)}
            named["bytesSent"] = self.bytes_sent
        facts: dict[str, Any] = {
            "complete": self.complete,
            "state": self.state,
            "stateAt": iso(self.state_at) if self.state_at else None,
            "pinned": backup.is_pinned,
            "mode": self.mode,
            "keyFingerprint": self.fingerprint,
        }
        origin = {} if self.origin is None else {"origin": self.origin.as_json()}
        return named | facts | origin | ({"remark": self.remark} if self.remark else {})

    def cells(self, now: datetime) -> list[str]:
        backup = self.backup
        taken = readable(backup.created)
        state = self.state + ("*" if backup.is_pinned else "")
        facts = [human_bytes(backup.size), taken, short_ago(backup.created, now), state]
        return [self.where, backup.key, *facts, self.mode or "-", self.fingerprint or "-", self.remark]


@dataclass(frozen=True)
class _Found:
    """The backups of one database, newest first, and why one of the two places could not be listed."""

    database: Database
    local: list[_Row] = field(default_factory=list)
    remote: list[_Row] = field(default_factory=list)
    error: DucklingError | None = None
    #: Whether the local ones were shown while the store was waited for.
    shown: bool = False

    def json(self) -> dict[str, Any]:
        copy = {"readCopy": read_copy_facts(self.database)} if self.database.read_copy_file else {}
        return {"local": [row.json() for row in self.local], "s3": [row.json() for row in self.remote], **copy}


def list_(context: typer.Context, id: AnyId = None, as_json: Json = False) -> None:
    """List backups, newest first, local ones and those in S3: of one database, or of all."""
    session = session_of(context, as_json)
    if id is None:
        _list_all(session)
        return
    found = _find(session, session.database(id), is_chosen=True)
    terminal = session.terminal
    if terminal.json:
        if found.error is None:
            terminal.document(found.json())
        else:
            terminal.fail_with(found.error, **found.json())
    else:
        _show(session, [found], named=False)
    if found.error is not None:
        raise typer.Exit(code_of(found.error))


def _list_all(session: Session) -> None:
    installation, terminal = session.installation(), session.terminal
    found = [_find(session, database, is_chosen=False) for database in installation.databases]
    problems = [terminal.hide(str(problem)) for problem in installation.problems]
    error = next((one.error for one in found if one.error is not None), None)
    if terminal.json:
        databases = [
            {"id": one.database.id, **one.json(), **({"error": terminal.hide(str(one.error))} if one.error else {})}
            for one in found
        ]
        facts = {"databases": databases, "problems": problems}
        if error is not None:
            terminal.fail_with(error, **facts)
        else:
            terminal.document({"success": not problems, **({"error": problems[0]} if problems else {}), **facts})
    else:
        _show(session, found, named=True)
        if not found and not problems:
            terminal.note("databases.json has no entries")
        for problem in problems:
            terminal.say(f"BAD  {problem}")
    if problems or error is not None:
        raise typer.Exit(BAD_USAGE if problems or error is None else code_of(error))


def _show(session: Session, found: Sequence[_Found], *, named: bool) -> None:
    """:param named: whether each row tells its database."""
    terminal, now = session.terminal, datetime.now(timezone.utc)
    rows = [
        ([one.database.id] if named else []) + row.cells(now)
        for one in found
        for row in ((*one.local, *one.remote) if named or not one.shown else one.remote)
    ]
    if rows:
        terminal.table((["DATABASE"] if named else []) + list(_COLUMNS), rows, whole="KEY")
        if any(row.backup.is_pinned for one in found for row in (*one.local, *one.remote)):
            terminal.note("* pinned: it stays whatever its age")
    for one in found:
        if one.error is not None:
            terminal.fail_with(one.error)
        elif not one.local and not one.remote:
            terminal.note(f"no backups of {one.database.id} yet; make one: duckling backup {one.database.id}")
        if one.database.read_copy_file is not None:
            copy = read_copy_facts(one.database)
            made = f"of {copy['madeAt']}" if copy["madeAt"] else "not there yet"
            state = {None: "", True: ", equal to the replica", False: ", older than the replica"}[copy["current"]]
            terminal.note(f"copy for readers of {one.database.id}: {copy['path']}, {made}{state}")


def _find(session: Session, database: Database, *, is_chosen: bool) -> _Found:
    """:param is_chosen: that local backups are on another machine is an error; else they are passed over."""
    from duckling_provider.backup.inventory.local_backups import LocalBackups

    local: list[_Row] = []
    remote: list[_Row] = []
    error: DucklingError | None = None
    shown = threading.Event()
    try:
        local = _rows(session, database, "local", LocalBackups(database))
    except WrongHostError as caught:
        error = caught if is_chosen else None
    try:
        store = session.store(database)
        if store is not None:
            with session.terminal.patience(lambda: _tell_of_waiting(session, local, store.url, shown)):
                remote = _rows(session, database, "s3", store)
    except DucklingError as caught:
        error = error or caught
    return _Found(database, local, remote, error, shown.is_set())


def _tell_of_waiting(session: Session, local: Sequence[_Row], url: str, shown: threading.Event) -> None:
    """Where the store is slow to answer, show what is here, and say what is waited for."""
    terminal = session.terminal
    if local and not terminal.json:
        now = datetime.now(timezone.utc)
        terminal.table(list(_COLUMNS), [row.cells(now) for row in local], whole="KEY")
        shown.set()
    terminal.note(f"waiting for {url}, which does not answer; Ctrl-C stops")


def _rows(session: Session, database: Database, where: str, source: BackupSource) -> list[_Row]:
    from duckling_provider.backup.inventory.choice import is_complete, list_backups
    from duckling_provider.backup.inventory.segment_records import bytes_sent
    from duckling_provider.backup.inventory.states import read_states
    from duckling_provider.config.s3 import CLIENT
    from duckling_provider.oversight.check import Look, looks

    now, backups = datetime.now(timezone.utc), list_backups(source)
    states = read_states(database, source, backups)
    found, unknown = looks(source, backups)
    if unknown is not None:
        session.terminal.warn(f"not all sizes could be compared with those recorded: {unknown}")
    # Where all are of one replica, there is nothing to tell apart.
    several = len({look.origin.replica for look in found.values() if look.origin is not None}) > 1
    rows = []
    for backup in backups:
        look = found.get(backup.key, Look())
        fault = look.fault if is_complete(backup, source.mode) else "no .mac"
        known = states[backup.key]
        state = "incomplete" if fault else known.name
        reason = known.decisive.reason if known.decisive is not None else ""
        mode = look.mode or (CLIENT if backup.has_mac else None)
        remark = (
            fault
            or reason
            or backup.remark(now)
            or (f"of {look.origin}" if several and look.origin is not None else "")
        )
        sent = None if where == "local" else bytes_sent(database, backup.name)
        rows.append(_Row(backup, where, state, mode, look.fingerprint, remark, look.origin, known.since, sent))
    return rows
