"""Configuration: ``databases.json`` and the environment, read once and turned into frozen objects.

`load` is the only entrance. It is called whenever Airflow parses DAG files, so it imports nothing heavy and touches no
network. No message holds a secret, nor a value that could be one; see `fields` for the rules of single values.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

from duckling_provider.base.errors import ConfigError, NotFoundError, WrongHostError
from duckling_provider.base.strict_json import faults, kind, parse_json, printable, read_file
from duckling_provider.config import fields
from duckling_provider.config.environment import DATABASES_FILE, Settings
from duckling_provider.config.fields import EntryShape, FieldProblems, OnPositionLost, Writer
from duckling_provider.config.masking import mask, mask_urls, spellings
from duckling_provider.config.s3 import MIB, Encryption, S3Settings, Verify, read_s3, target

__all__ = [
    "MIB",
    "Database",
    "Encryption",
    "Installation",
    "OnPositionLost",
    "S3Settings",
    "Settings",
    "Verify",
    "Writer",
    "load",
]


#: Fields on the level below, for those that stand here by mistake.
_S3 = ("s3.", S3Settings)
_WRITER_CONNECTION = "duckling_default"


@dataclass(frozen=True, kw_only=True)
class Database:
    """One good entry of databases.json, with the environment's share worked in.

    Code that touches the files takes `replica` and `backup_dir`, which exist on the entry's `host` alone.
    `replica_path` and `backup_path` are the same as mere names, which can be shown anywhere.
    """

    id: str
    name: str
    mysql_connection_string: SecretStr  #: empty when the entry has none
    duckdb_path: str  #: as written
    replica_path: Path  #: absolute; symbolic links are not resolved
    backup_path: Path
    s3: S3Settings | None = None  #: None when absent or not enabled
    queue: str | None = None
    host: str | None = None  #: the machine that has the replica and its local backups; None = any
    here: str = ""  #: the machine that this is
    created_at: str | None = None
    updated_at: str | None = None
    interval_hours: float = 24.0  #: the effective one
    local_retention_days: float = 7.0
    auto_backup: bool = True
    writer: Writer = "duckling"  #: who keeps the replica up to date: our own sync, or the Node.js server
    writer_conn_id: str = _WRITER_CONNECTION  #: the Airflow connection to that server
    include_tables: tuple[str, ...] = ()  #: empty = all
    exclude_tables: tuple[str, ...] = ()  #: with those of EXCLUDED_TABLES
    on_position_lost: OnPositionLost = "fail"
    storage_version: str = "v1.5.0"  #: for files that we create, never for one that exists
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)  #: as found, WITH its secrets

    @property
    def replica(self) -> Path:
        """The replica, for those who touch it.

        :raises WrongHostError: it is on another machine.
        """
        self.require_host()
        return self.replica_path

    @property
    def backup_dir(self) -> Path:
        """The folder of the local backups, for those who touch it.

        :raises WrongHostError: it is on another machine.
        """
        self.require_host()
        return self.backup_path

    @property
    def verifies_whole(self) -> bool:
        """Whether a backup is read back whole, and not only asked for, before it counts as verified."""
        return self.s3 is None or self.s3.verify == "full"

    @property
    def is_here(self) -> bool:
        """Whether the files of this database are on this machine, as far as the entry says."""
        return self.host is None or fields.is_same_host(self.host, self.here)

    def require_host(self) -> None:
        """:raises WrongHostError: the files of this database are on another machine."""
        if self.host is None or self.is_here:
            return
        queue = f'only a worker on "{self.host}" may listen to the queue "{self.queue}"' if self.queue else ""
        in_airflow = queue or f'the entry needs a "queue" to which only a worker on "{self.host}" listens'
        raise WrongHostError(
            f'its replica and local backups are on host "{self.host}", and this is "{self.here}"; nothing was touched',
            host=self.host,
            here=self.here,
            subject=self.id,
            hint=f"In Airflow, {in_airflow}; on the command line, go to that machine. If this is that machine, renamed "
            f'or replaced, correct "host" in {DATABASES_FILE}; in a container, set DUCKLING_HOST={self.host}.',
        )

    def mirrors(self, table: str) -> bool:
        """Whether the MySQL table belongs into the replica; what is excluded is so even when it is included too."""
        return table not in self.exclude_tables and (not self.include_tables or table in self.include_tables)

    def secrets(self) -> tuple[str, ...]:
        """Every secret string in the entry, in each spelling that may turn up in a log; the longest first."""
        found = self._shown()[1]
        mask_urls(self.mysql_connection_string.get_secret_value(), found)
        if self.s3 is not None and self.s3.secret_access_key is not None:
            found.append(self.s3.secret_access_key.get_secret_value())
        if self.s3 is not None and self.s3.encryption_key is not None:
            found.append(self.s3.encryption_key.hex())
        return spellings(found)

    def masked(self) -> dict[str, Any]:
        """The entry as found, fit to be shown: every secret is ``***``, unknown fields and null stay."""
        return self._shown()[0]

    def _shown(self) -> tuple[dict[str, Any], list[str]]:
        found: list[str] = []
        s3 = self.entry.get("s3")
        tags = s3.get("tags") if self.s3 is not None and isinstance(s3, dict) else None
        return {name: mask(value, name, found, plain=tags) for name, value in self.entry.items()}, found


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
    :raises ConfigError: when the environment is wrong, or the file is missing, unreadable, no JSON or no list.
    """
    settings = Settings.from_env(os.environ if environ is None else environ)
    path = settings.databases_file
    hint = f"DATA_PATH is {settings.data_path}; set it to the folder that holds {DATABASES_FILE}."
    content, mode = read_file(path, hint=hint)
    return _installation(settings, content, mode)


@lru_cache(maxsize=1)
def _installation(settings: Settings, content: bytes, mode: int) -> Installation:
    return interpret(parse_json(content, settings.databases_file), settings, mode=mode)


def interpret(entries: Any, settings: Settings, *, mode: int = 0o600) -> Installation:
    """What the content of a databases.json means.

    :param entries: the parsed JSON.
    :param mode: the file's permission bits.
    :raises ConfigError: when it is no list.
    """
    if not isinstance(entries, list):
        brackets = "Put [ and ] around the entry." if isinstance(entries, dict) else None
        raise ConfigError(f"expected a list of entries, got {kind(entries)}", entry=DATABASES_FILE, hint=brackets)
    warnings: list[str] = []
    if mode & 0o066:
        others = f"others than its owner can read or write {settings.databases_file} (mode {mode:04o})"
        warnings.append(f"{DATABASES_FILE}: {others}: it holds secrets, chmod 600")
    databases: list[Database] = []
    problems: list[ConfigError] = []
    positions: dict[str, int] = {}
    for position, raw in enumerate(entries, start=1):
        report = FieldProblems(f"{DATABASES_FILE} entry {position}")
        database = _database(raw, position, positions, settings, report)
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
        elif place is not None and place in targets:
            other = targets[place]
            cause = f'same endpoint, bucket and prefix as "{other}" (entry {positions[other]}): the backups would mix'
            problems.append(ConfigError(cause, entry=database.id, field="s3.pathPrefix"))
        else:
            replicas.setdefault(file, []).append(database)
            if place is not None:
                targets[place] = database.id
            alone.append(database)
    return tuple(alone)


def _may_share_host(one: Database, other: Database) -> bool:
    return one.host is None or other.host is None or fields.is_same_host(one.host, other.host)


def _database(
    raw: Any, position: int, positions: dict[str, int], settings: Settings, report: FieldProblems
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
    s3, s3_report = None, FieldProblems(report.subject)  # its own, so that mistakes on both levels are reported at once
    if isinstance(raw.get("s3"), dict):
        s3 = read_s3(raw["s3"], f"{raw.get('id')}/", s3_report)
    given = fields.validate(EntryShape, raw, "", report, elsewhere=_S3)
    if given is not None:
        _check_entry(given, report)
    report.errors += s3_report.errors
    report.warnings += s3_report.warnings
    if given is None or not given.id or not given.duckdb_path:
        return None
    backup_dir = settings.backup_path / given.id
    replica = _replica(given.duckdb_path, backup_dir, settings, report)
    if report.errors:
        return None
    return Database(
        id=given.id,
        name=given.name,
        mysql_connection_string=given.mysql_connection_string,
        duckdb_path=given.duckdb_path,
        replica_path=replica,
        backup_path=backup_dir,
        s3=s3,
        queue=given.queue or None,
        host=given.host or None,
        here=settings.host,
        created_at=given.created_at or None,
        updated_at=given.updated_at or None,
        interval_hours=(s3.backup_interval_hours if s3 else 0.0) or settings.backup_interval_hours,
        local_retention_days=settings.backup_retention_days,
        auto_backup=settings.auto_backup,
        writer=given.writer,
        writer_conn_id=given.writer_conn_id or _WRITER_CONNECTION,
        include_tables=tuple(given.include_tables),
        exclude_tables=tuple(dict.fromkeys((*given.exclude_tables, *settings.excluded_tables))),
        on_position_lost=given.on_position_lost,
        storage_version=given.storage_version,
        entry=raw,
    )


def _take_id(name: Any, position: int, positions: dict[str, int], report: FieldProblems) -> bool:
    """Call the entry by its id from now on; False where an earlier entry has it."""
    if not isinstance(name, str) or not name:
        return True
    if fault := fields.id_fault(name):
        report.error("id", fault)
        return True
    report.subject = name
    if positions.setdefault(name, position) != position:
        report.error("id", f"used by entry {positions[name]} already, so entry {position} is left out")
        return False
    return True


def _check_entry(given: EntryShape, report: FieldProblems) -> None:
    for field_name, text in (("id", given.id), ("name", given.name), ("duckdbPath", given.duckdb_path)):
        if not text.strip():
            report.error(field_name, "required")
    mysql = given.mysql_connection_string.get_secret_value()
    if not mysql:
        report.warn("mysqlConnectionString", "missing: backups and restores work, replication from MySQL cannot")
    elif fault := fields.mysql_fault(mysql):
        report.error("mysqlConnectionString", fault)
    if fault := fields.host_fault(given.host):
        report.error("host", fault)
    fields.one_of(get_args(fields.Writer), given.writer, "writer", report)
    fields.one_of(get_args(fields.OnPositionLost), given.on_position_lost, "onPositionLost", report)
    _check_replication(given, report)


def _check_replication(given: EntryShape, report: FieldProblems) -> None:
    if given.writer_conn_id and given.writer == "duckling":
        report.warn("writerConnId", 'not used: writer is "duckling", not "duckling-server"')
    for name, tables in (("includeTables", given.include_tables), ("excludeTables", given.exclude_tables)):
        for number, table in enumerate(tables):
            if fault := fields.table_fault(table):
                report.error(f"{name}.{number}", fault)
    for table in given.include_tables:
        if table in given.exclude_tables:
            report.warn("excludeTables", f'"{printable(table)}" is in includeTables too, and is left out')
    if fault := fields.storage_version_fault(given.storage_version):
        report.error("storageVersion", fault)


def _replica(text: str, backup_dir: Path, settings: Settings, report: FieldProblems) -> Path:
    """The replica's absolute path; a relative one must end inside DATA_PATH."""
    data = settings.data_path
    path = Path(text)
    if not path.is_absolute():
        path = Path(os.path.normpath(data.parent / path))
        if data not in path.parents:
            hint = f'Write it as "{data.name}/{printable(path.name) or "x.db"}", or as an absolute path.'
            resolved = printable(str(path), limit=1000)
            report.error("duckdbPath", f"resolves to {resolved}, which is outside DATA_PATH ({data})", hint=hint)
    if text.endswith("/"):
        report.error("duckdbPath", "names a folder; expected the replica file")
    if path == settings.databases_file:
        report.error("duckdbPath", "is the configuration file itself")
    if backup_dir in path.parents:
        report.error("duckdbPath", f"lies in {backup_dir}, where old backups are deleted")
    return path
