"""A whole installation of the original Node.js server: what is there, and taking it over.

That server keeps databases.json and the replicas in one folder, and its local backups as folders
``backup-{id}-{timestamp}`` with the file ``duckling-{id}.db`` in each. Its objects in S3 are those of the contract and
need nothing.

`survey` only looks. `take_over` does what the survey found to be done, in an order that can be broken off anywhere and
begun again: nothing of that server's is moved, changed or deleted, but for the replicas themselves, which get our
bookkeeping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from duckling_provider import config
from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.backup.inventory.sidecar import sidecar_of
from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import make_folder
from duckling_provider.base.errors import BusyError, ConfigError, DucklingError, NotFoundError, WrongHostError
from duckling_provider.base.strict_json import opened, parse_json
from duckling_provider.config.databases import Database, Installation
from duckling_provider.config.editing import add_entries
from duckling_provider.config.environment import DATABASES_FILE
from duckling_provider.config.s3 import CLIENT
from duckling_provider.node_server.import_backup import import_backup, imported_path
from duckling_provider.replication.model.ledger import Owner, owner_of, server_position
from duckling_provider.replication.sync import adopt_replica
from duckling_provider.stores.store import Store

#: What becomes of an entry of that server's databases.json.
EntryState = Literal["ours already", "to be added", "differs from ours, which stays"]

_BACKUP_FOLDER = re.compile(r"backup-(?P<id>.+)-(?P<when>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:-\d{1,6})?Z?|\d{13}|\d{10})")


@dataclass(frozen=True)
class FoundBackup:
    """A local backup of that server: the file, when it was made, and where it lies or would lie among ours."""

    path: Path
    created: datetime
    size: int
    target: Path

    @property
    def is_ours(self) -> bool:
        return self.target.exists() and sidecar_of(self.target).exists()


@dataclass(frozen=True)
class FoundObjects:
    """The backups of one database in its store.

    :param restorable: those that are complete: with a ``.mac`` where the mode demands one.
    :param proof: what the newest restorable one turned out to be when it was looked at.
    """

    restorable: tuple[ListedBackup, ...] = ()
    incomplete: tuple[ListedBackup, ...] = ()
    proof: str = ""


@dataclass
class EntryFinding:
    """What there is of one database.

    :param owner: who made the replica; None when it could not be looked at.
    :param position: that server's position in the binlog, where the replica has one.
    :param objects: None without S3, or when the store could not be asked.
    :param holder: who has the replica open for writing.
    """

    database: Database
    state: EntryState
    owner: Owner | None = None
    position: str = ""
    holder: str = ""
    backups: tuple[FoundBackup, ...] = ()
    objects: FoundObjects | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def will_be_adopted(self) -> bool:
        return (
            self.owner == "duckling-server"
            and bool(self.position)
            and self.database.writer == "duckling"
            and bool(self.database.mysql_connection_string.get_secret_value())
        )


@dataclass(frozen=True)
class Survey:
    """An installation of that server, as it was found.

    :param data: its data folder.
    :param installation: what its databases.json says, with our BACKUP_PATH.
    :param target: our databases.json; the same file as its own when it is taken over in place.
    :param strangers: folders of local backups whose database is in no entry.
    """

    data: Path
    installation: Installation
    target: Path
    findings: tuple[EntryFinding, ...]
    strangers: tuple[Path, ...] = ()

    @property
    def is_in_place(self) -> bool:
        return _is_same(self.data / DATABASES_FILE, self.target)

    @property
    def running(self) -> tuple[EntryFinding, ...]:
        """Those whose replica another program writes, though it is to be ours."""
        return tuple(found for found in self.findings if found.holder and found.database.writer == "duckling")

    @property
    def problems(self) -> tuple[str, ...]:
        of_entries = [str(problem) for problem in self.installation.problems]
        return (*of_entries, *(f"{found.database.id}: {text}" for found in self.findings for text in found.problems))

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to take over."""
        return not any(
            found.state == "to be added" or found.will_be_adopted or any(not b.is_ours for b in found.backups)
            for found in self.findings
        )


@dataclass(frozen=True)
class Step:
    """One thing that was done; `error` says why it was not."""

    database: str
    name: str
    detail: str = ""
    error: str | None = None


def find_data(path: Path) -> Path:
    """The data folder of an installation: `path` itself, or its folder ``data``.

    :raises NotFoundError: there is no databases.json in either.
    """
    folder = Path(os.path.abspath(path))
    for data in (folder, folder / "data"):
        if (data / DATABASES_FILE).is_file():
            return data
    raise NotFoundError(
        f"no {DATABASES_FILE} there, nor in its folder data",
        subject=str(folder),
        hint="Name the data folder of the Node server, which holds databases.json.",
    )


def survey(
    data: Path,
    *,
    environ: dict[str, str],
    backups: Sequence[Path] = (),
    open_store: Callable[[Database], Store | None],
) -> Survey:
    """Look at an installation; nothing is changed.

    :param data: its data folder, from `find_data`.
    :param environ: the environment; without a DATA_PATH in it, the installation is taken over where it is.
    :param backups: more folders to look for local backups in.
    :param open_store: gives the store of a database.
    :raises ConfigError: the environment, or that databases.json as a whole, is wrong.
    """
    ours = config.Settings.from_env({"DATA_PATH": str(data)} | environ)
    theirs = config.load(environ | {"DATA_PATH": str(data), "BACKUP_PATH": str(ours.backup_path)})
    known = _entries(ours.databases_file)
    places = dict.fromkeys(Path(os.path.abspath(p)) for p in (data / "backups", data, *backups, ours.backup_path))
    found: dict[str, list[tuple[Path, datetime]]] = {}
    for place in places:
        for database_id, path, created in _backup_folders(place):
            found.setdefault(database_id, []).append((path, created))
    findings = tuple(
        _look(database, _state(database, known, data), found.pop(database.id, []), open_store)
        for database in theirs.databases
    )
    bad = {problem.entry for problem in theirs.problems}
    strangers = tuple(path.parent for name, rows in sorted(found.items()) if name not in bad for path, _ in rows)
    return Survey(data, theirs, ours.databases_file, findings, strangers)


def take_over(
    surveyed: Survey, *, control: Control | None = None, wait: float = 60.0, now: datetime | None = None
) -> Iterator[Step]:
    """Do what is to be done, database by database; yields each step as it is over. A failed one stops no other.

    :raises BusyError: another program writes a replica; nothing was done.
    """
    control = control or Control()
    if surveyed.running:
        first = surveyed.running[0]
        raise BusyError(
            f"the server is still running: {first.database.replica_path} is open in {first.holder}; nothing was done",
            holder=first.holder,
            subject=str(surveyed.data),
            hint="Stop it for good, then run this again. To leave a replica to it, write "
            '"writer": "duckling-server" into its entry.',
        )
    yield from _place_entries(surveyed, now or datetime.now(timezone.utc))
    for found in surveyed.findings:
        if found.state == "differs from ours, which stays":
            # Its paths and its key may be other ones.
            continue
        for backup in sorted(found.backups, key=lambda b: b.created):
            if backup.is_ours:
                continue
            try:
                taken = import_backup(found.database, backup.path, backup.created, control=control)
                yield Step(found.database.id, "local backup", f"{backup.path} is {taken.path}")
            except DucklingError as error:
                yield Step(found.database.id, "local backup", error=str(error))
        if found.will_be_adopted:
            try:
                states = adopt_replica(found.database, wait=wait, control=control)
                recopy = [state.name for state in states if state.state != "ok"]
                detail = f"ours now, {len(states)} tables, from {found.position}"
                if recopy:
                    detail += f"; copied again by the next sync: {', '.join(recopy)}"
                yield Step(found.database.id, "replica", detail)
            except DucklingError as error:
                yield Step(found.database.id, "replica", error=str(error))


def _place_entries(surveyed: Survey, now: datetime) -> Iterator[Step]:
    added = [found for found in surveyed.findings if found.state == "to be added"]
    if not added:
        return
    target = surveyed.target
    make_folder(target.parent)
    kept = add_entries(target, [_moved(found.database, surveyed.data) for found in added], now=now)
    detail = f"{target}: {', '.join(found.database.id for found in added)}"
    yield Step("", DATABASES_FILE, detail if kept is None else f"{detail} added; as it was before: {kept}")


def _moved(database: Database, data: Path) -> dict[str, object]:
    """The entry for another data folder: the replica stays where it is, so its path must not depend on that."""
    entry = dict(database.entry)
    if not os.path.isabs(database.duckdb_path):
        entry["duckdbPath"] = str(Path(os.path.normpath(data.parent / database.duckdb_path)))
    return entry


def _entries(path: Path) -> dict[str, object]:
    """Our entries as they stand in the file, by id; none when there is no file."""
    if not path.exists():
        return {}
    with opened(path) as file:
        entries = parse_json(file.read(), path)
    if not isinstance(entries, list):
        raise ConfigError("expected a list of entries", entry=str(path))
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)}


def _state(database: Database, known: dict[str, object], data: Path) -> EntryState:
    if database.id not in known:
        return "to be added"
    same = known[database.id] in (dict(database.entry), _moved(database, data))
    return "ours already" if same else "differs from ours, which stays"


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _backup_folders(place: Path) -> Iterator[tuple[str, Path, datetime]]:
    """(database id, file, moment) of each local backup of that server in the folder."""
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return
    for name in names:
        match = _BACKUP_FOLDER.fullmatch(name)
        if match is None:
            continue
        path = place / name / f"duckling-{match['id']}.db"
        created = _moment(match["when"])
        if created is not None and path.is_file():
            yield match["id"], path, created


def _moment(text: str) -> datetime | None:
    """``2025-03-01T14-32-11-482Z``, with or without its last parts, or seconds or milliseconds since 1970."""
    try:
        if text.isdigit():
            return datetime.fromtimestamp(int(text) / (1000 if len(text) == 13 else 1), timezone.utc)
        day, _, clock = text.removesuffix("Z").partition("T")
        hour, minute, second, *rest = clock.split("-")
        micros = int((rest[0] if rest else "0").ljust(6, "0"))
        moment = datetime.strptime(f"{day} {hour}:{minute}:{second}+0000", "%Y-%m-%d %H:%M:%S%z")
        return moment.replace(microsecond=micros)
    except (ValueError, OverflowError):
        return None


def _look(
    database: Database,
    state: EntryState,
    files: Sequence[tuple[Path, datetime]],
    open_store: Callable[[Database], Store | None],
) -> EntryFinding:
    finding = EntryFinding(database, state)
    if state == "differs from ours, which stays":
        finding.problems.append("our databases.json has another entry with this id; it stays, and this one is left out")
    try:
        finding.backups = tuple(
            FoundBackup(path, created, path.stat().st_size, imported_path(database, created))
            for path, created in sorted(files, key=lambda row: row[1], reverse=True)
        )
        _look_at_replica(finding)
    except WrongHostError as error:
        finding.problems.append(error.cause)
    try:
        store = open_store(database)
        finding.objects = None if store is None else _look_at_store(database, store, finding.problems)
    except DucklingError as error:
        finding.problems.append(str(error))
    return finding


def _look_at_replica(finding: EntryFinding) -> None:
    database = finding.database
    try:
        finding.owner = owner_of(database.replica)
        if finding.owner == "duckling-server":
            position = server_position(database.replica, database.id)
            finding.position = "" if position is None else str(position)
            if position is None:
                finding.problems.append("the replica has no position of this id: the next sync can't go on from it")
    except BusyError as error:
        finding.holder = error.holder
        if database.writer == "duckling":
            finding.problems.append(f"the server is still running: the replica is open in {error.holder}")
    except DucklingError as error:
        finding.problems.append(str(error))
    if finding.owner == "absent":
        finding.problems.append(f"no replica at {database.replica_path}: restore a backup, or let a sync copy it again")
    elif finding.owner == "foreign":
        finding.problems.append(
            "the replica has no table cdc_binlog_position: backups work, a sync would have to copy it again"
        )


def _look_at_store(database: Database, store: Store, problems: list[str]) -> FoundObjects:
    listed = list_backups(store)
    whole = tuple(backup for backup in listed if backup.has_mac or store.mode != CLIENT)
    proof = ""
    if whole:
        try:
            proof = identify_backup(database, store, whole[0].key, chosen=True).mode
        except DucklingError as error:
            problems.append(str(error))
    return FoundObjects(whole, tuple(backup for backup in listed if backup not in whole), proof)
