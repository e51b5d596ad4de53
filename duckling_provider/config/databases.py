"""Configuration: ``databases.json`` and the environment, read once and turned into frozen objects.

`load` is the only entrance. It is called whenever Airflow parses DAG files, so it imports nothing heavy and touches no
network. No message holds a secret, nor a value that could be one; `entry` and `s3` have the fields and their rules.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from duckling_provider.base.errors import ConfigError, NotFoundError
from duckling_provider.base.ownership import as_caller
from duckling_provider.base.strict_json import faults, kind, parse_json, printable
from duckling_provider.config import fields
from duckling_provider.config.entry import Database, Entry, belongs_to, check_entry, id_fault, log_names
from duckling_provider.config.environment import DATABASES_FILE, Settings
from duckling_provider.config.fields import FieldProblems
from duckling_provider.config.references import Answer, Reference, filled_in, look_up, references_in
from duckling_provider.config.s3 import MIB, Encryption, S3Settings, read_s3, target
from duckling_provider.config.trust import Trust, read_trusted

__all__ = ["MIB", "Database", "Encryption", "Installation", "S3Settings", "Settings", "load"]


#: Where backups are restored on trial, beside the local ones.
_DRILLS = "drills"
#: Of a replica, in bytes: temporary files of its state have 31 more, and Linux allows 255.
_LONGEST_NAME = 200
#: The other level, for fields that stand on the wrong one.
_S3, _ENTRY = ("s3.", S3Settings), ("", Entry)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """All that is configured: the good entries, and what is wrong with the others."""

    settings: Settings
    databases: tuple[Database, ...] = ()
    problems: tuple[ConfigError, ...] = ()
    warnings: tuple[str, ...] = ()

    def database(self, database_id: str) -> Database:
        """The entry with that id.

        :raises NotFoundError: for an unknown id, with the nearest known one.
        :raises ConfigError: when the entry is there but bad: its first problem.
        """
        for database in self.databases:
            if database.id == database_id:
                return database
        for problem in self.problems:
            if problem.entry == database_id:
                raise problem.with_traceback(None)  # of an earlier time: what was loaded is kept
        ids = [database.id for database in self.databases]
        near = difflib.get_close_matches(database_id, ids, n=1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(ids[:10]) or 'none'}."
        raise NotFoundError(f'no database "{printable(database_id)}" in {self.settings.databases_file}', hint=hint)


def load(environ: Mapping[str, str] | None = None) -> Installation:
    """Read the environment and ``DATA_PATH/databases.json``.

    A bad entry becomes one or more `Installation.problems` and leaves the others alone. Within a process an unchanged
    file under unchanged settings is not looked through again: with 1,000 entries that takes 0.2 seconds.

    :param environ: ``os.environ`` when omitted.
    :raises ConfigError: when the environment is wrong, or the file is missing, unreadable, another user's, no JSON or
        no list.
    """
    environ = os.environ if environ is None else environ
    settings = Settings.from_env(environ)
    path = settings.databases_file
    hint = f"DATA_PATH is {settings.data_path}; set it to the folder that holds {DATABASES_FILE}."
    with as_caller():
        content, trust = read_trusted(path, hint=hint)
        # What a secret elsewhere holds may change while this file stays.
        answers = tuple((wanted, look_up(wanted, environ, trust)) for wanted in _references(content, path))
    return _installation(settings, content, trust, answers)


@lru_cache(maxsize=1)
def _references(content: bytes, path: Path) -> tuple[Reference, ...]:
    return tuple(sorted(set(references_in(parse_json(content, path)))))


@lru_cache(maxsize=1)
def _installation(
    settings: Settings, content: bytes, trust: Trust, answers: tuple[tuple[Reference, Answer], ...]
) -> Installation:
    entries = parse_json(content, settings.databases_file)
    return interpret(entries, settings, trust=trust, answers=dict(answers))


def interpret(
    entries: Any,
    settings: Settings,
    *,
    trust: Trust,
    answers: Mapping[Reference, Answer] | None = None,
) -> Installation:
    """What the content of a databases.json means.

    :param entries: the parsed JSON.
    :param trust: what the file itself tells.
    :param answers: what its references lead to; what is not among them is looked up.
    :raises ConfigError: when it is no list.
    """
    if not isinstance(entries, list):
        brackets = "Put [ and ] around the entry." if isinstance(entries, dict) else None
        raise ConfigError(f"expected a list of entries, got {kind(entries)}", entry=DATABASES_FILE, hint=brackets)
    warnings = [*settings.warnings(), *trust.warnings]
    databases: list[Database] = []
    problems: list[ConfigError] = []
    positions: dict[str, int] = {}
    for position, raw in enumerate(entries, start=1):
        report = FieldProblems(f"{DATABASES_FILE} entry {position}")
        database = _database(raw, position, positions, settings, trust, answers or {}, report)
        if database is not None:
            databases.append(database)
        problems += report.errors
        warnings += report.warnings
    alone = _without_rivals(databases, positions, problems)
    return Installation(settings=settings, databases=alone, problems=tuple(problems), warnings=tuple(warnings))


def _without_rivals(
    databases: list[Database], positions: Mapping[str, int], problems: list[ConfigError]
) -> tuple[Database, ...]:
    """Leave out each database that uses the file or the prefix of an earlier one.

    ``latest`` of the one could be a backup of the other, and the restore of one would replace the other's replica.
    """
    replicas: dict[str, list[Database]] = {}
    targets: dict[tuple[str, str, str], str] = {}
    logs: dict[str, list[Database]] = {}
    for database in databases:
        for name in log_names(Path(os.path.realpath(database.replica_path))):
            logs.setdefault(name, []).append(database)
    alone = []
    for database in databases:
        file = os.path.realpath(database.replica_path)
        s3 = database.s3
        place = target(s3.endpoint, s3.bucket, s3.path_prefix) if s3 else None
        # The same path on two machines is two files.
        same = next((other for other in replicas.get(file, ()) if _may_share_host(database, other)), None)
        if same is not None:
            cause = f'the same file as that of "{same.id}" (entry {positions[same.id]})'
            problems.append(ConfigError(cause, entry=database.id, field="duckdbPath"))
        elif owner := next((other for other in logs.get(file, ()) if _may_share_host(database, other)), None):
            cause = f'DuckDB would take it for the write-ahead log of "{owner.id}" (entry {positions[owner.id]})'
            problems.append(ConfigError(cause, entry=database.id, field="duckdbPath", hint="Rename the file."))
        elif place is not None and place in targets:
            other = targets[place]
            cause = f'same endpoint, bucket and prefix as "{other}" (entry {positions[other]}): the backups would mix'
            problems.append(ConfigError(cause, entry=database.id, field="s3.pathPrefix"))
        else:
            replicas.setdefault(file, []).append(database)
            if place is not None:
                targets[place] = database.id
            alone.append(database)
    return tuple(d for number, d in enumerate(alone) if not _copy_is_taken(d, alone, alone[:number], problems))


def _copy_is_taken(
    database: Database, alone: list[Database], earlier: list[Database], problems: list[ConfigError]
) -> bool:
    """Whether the name of its copy for readers is, or may be, that of a replica or of an earlier entry's copy."""
    copy = database.read_copy_file
    if copy is None:
        return False
    taken = [("replica", other, other.replica_path) for other in alone]
    taken += [("copy for readers", other, other.read_copy_file) for other in earlier if other.read_copy_file]
    for what, other, file in taken:
        if _may_share_host(database, other) and (belongs_to(copy, file) or belongs_to(file, copy)):
            cause = f'a name that belongs to the {what} of "{other.id}" ({printable(str(file), limit=1000)})'
            problems.append(ConfigError(cause, entry=database.id, field="readCopyPath"))
            return True
    return False


def _may_share_host(one: Database, other: Database) -> bool:
    return one.host is None or other.host is None or fields.is_same_host(one.host, other.host)


def _database(
    raw: Any,
    position: int,
    positions: dict[str, int],
    settings: Settings,
    trust: Trust,
    answers: Mapping[Reference, Answer],
    report: FieldProblems,
) -> Database | None:
    """One entry as a `Database`, or None when `report` got errors.

    :param positions: learns the entry's id, even if the entry turns out to be bad.
    """
    if not isinstance(raw, dict):
        report.error(None, f"expected an object, got {kind(raw)}")
        return None
    if not _take_id(raw.get("id"), position, positions, report):
        return None
    for path, cause in faults(raw):
        report.error(path, cause)
    if report.errors:
        return None
    filled, secrets = filled_in(raw, "", trust, answers, report)
    s3_raw = raw.get("s3")
    if isinstance(s3_raw, dict) and s3_raw.get("enabled") is not False:
        s3_raw, more = filled_in(s3_raw, "s3.", trust, answers, report)
        secrets += more
    if report.errors:
        return None
    s3, s3_report = None, FieldProblems(report.subject)  # its own, so that mistakes on both levels are reported at once
    if isinstance(s3_raw, dict):
        s3 = read_s3(s3_raw, f"{raw.get('id')}/", s3_report, elsewhere=_ENTRY, least=settings.min_encryption)
    given = fields.validate(Entry, filled, "", report, elsewhere=_S3)
    if given is not None:
        check_entry(given, filled, report)
    report.errors += s3_report.errors
    report.warnings += s3_report.warnings
    if given is None or not given.id or not given.duckdb_path:
        return None
    backup_path = settings.backup_path / given.id
    replica_path = _file("duckdbPath", given.duckdb_path, backup_path, settings, report)
    copy = given.read_copy_path
    read_copy = _file("readCopyPath", copy, settings.backup_path, settings, report) if copy else None
    if report.errors:
        return None
    excluded = tuple(dict.fromkeys((*given.exclude_tables, *settings.excluded_tables)))
    return Database.model_construct(  # all of it is checked by now
        **{**dict(given), "s3": s3, "exclude_tables": excluded},
        replica_path=replica_path,
        backup_path=backup_path,
        read_copy_file=read_copy,
        drill_path=settings.drill_path / given.id if settings.drill_path else backup_path / _DRILLS,
        here=settings.host,
        interval_hours=(s3.backup_interval_hours if s3 else 0.0) or settings.backup_interval_hours,
        local_retention_days=settings.backup_retention_days,
        auto_backup=settings.auto_backup,
        entry=raw,
        looked_up=tuple(secrets),
    )


def _take_id(name: Any, position: int, positions: dict[str, int], report: FieldProblems) -> bool:
    """Call the entry by its id from now on; False where an earlier entry has it."""
    if not isinstance(name, str) or not name:
        return True
    if fault := id_fault(name):
        report.error("id", fault)
        return True
    report.subject = name
    if positions.setdefault(name, position) != position:
        report.error("id", f"used by entry {positions[name]} already, so entry {position} is left out")
        return False
    return True


def _file(field: str, text: str, backups: Path, settings: Settings, report: FieldProblems) -> Path:
    """The absolute path of a DuckDB file; a relative one must end inside DATA_PATH.

    :param backups: where it must not lie.
    """
    data = settings.data_path
    path = Path(text)
    if not path.is_absolute():
        path = Path(os.path.normpath(data.parent / path))
        if not _lies_in(path, data):
            hint = f'Write it as "{data.name}/{printable(path.name) or "x.db"}", or as an absolute path.'
            resolved = printable(str(path), limit=1000)
            report.error(field, f"resolves to {resolved}, which is outside DATA_PATH ({data})", hint=hint)
    if "?" in str(path.parent) or "\\" in str(path):
        cause = "DuckDB takes \\ for / and ? in a folder's name for parameters, so it would look elsewhere"
        report.error(field, cause, hint="Rename the folder or the file.")
    if len(path.name.encode(errors="replace")) > _LONGEST_NAME:
        cause = f"expected a file name of at most {_LONGEST_NAME} bytes: those of the files beside it are longer"
        report.error(field, cause)
    if text.endswith("/"):
        report.error(field, "names a folder; expected a file")
    if ".duckling-" in path.name:
        cause = "has the name of a state file of this program, which may be deleted or moved"
        report.error(field, cause, hint="Rename the file.")
    if path == settings.databases_file:
        report.error(field, "is the configuration file itself")
    real = field == "readCopyPath" and _lies_in(Path(os.path.realpath(path)), Path(os.path.realpath(backups)))
    if real or _lies_in(path, backups):
        report.error(field, f"lies in {backups}, where old backups are deleted")
    return path


def _lies_in(path: Path, folder: Path) -> bool:
    # Cheaper than `folder in path.parents`, which each entry would pay at each DAG parse.
    return str(path).startswith(os.path.join(folder, ""))
