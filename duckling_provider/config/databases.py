"""Configuration: ``databases.json`` and the environment, read once and turned into frozen objects.

`load` is the only entrance. It is called whenever Airflow parses DAG files, so it imports nothing heavy and touches no
network. No message holds a secret, nor a value that could be one; see `fields` for the rules of single values.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import SecretStr

from duckling_provider.base.errors import ConfigError, NotFoundError, WrongHostError
from duckling_provider.base.strict_json import faults, kind, parse_json, printable, read_file
from duckling_provider.config import fields
from duckling_provider.config.environment import DATABASES_FILE, Settings
from duckling_provider.config.fields import MIN_HOURS, EntryShape, FieldProblems, S3Shape
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.masking import mask, mask_urls, spellings

Encryption = Literal["none", "sse-s3", "sse-kms", "client-aes256"]
Verify = Literal["full", "head"]
Writer = Literal["duckling", "duckling-server"]
OnPositionLost = Literal["resync", "fail"]
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

MIB = 1024 * 1024

_MODES: tuple[Encryption, ...] = get_args(Encryption)
_VERIFY: tuple[Verify, ...] = get_args(Verify)
_WRITERS: tuple[Writer, ...] = get_args(Writer)
_ON_POSITION_LOST: tuple[OnPositionLost, ...] = get_args(OnPositionLost)

_WRITER_CONNECTION = "duckling_default"


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where and how the backups of one database are stored; sizes in bytes, all defaults filled in."""

    enabled: bool = True
    bucket: str
    region: str
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    endpoint: str | None = None  #: None = AWS; never ends in '/'
    force_path_style: bool = False
    path_prefix: str  #: in front of ``backup-<stamp>.db``
    encryption: Encryption = "none"
    kms_key_id: str | None = None
    encryption_key: EncryptionKey | None = None
    backup_interval_hours: float = 0.0  #: 0 = inherit
    backup_retention_days: float = 0.0  #: 0 = for ever
    aws_conn_id: str | None = None
    storage_class: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    verify: Verify = "full"
    part_size: int = 8 * MIB
    max_parts: int = 10_000
    max_concurrency: int = 4


@dataclass(frozen=True, kw_only=True)
class Database:
    """One good entry of databases.json, with the environment's share worked in.

    Whoever touches the files takes `replica` and `backup_dir`, which exist on the entry's `host` alone; `replica_path`
    and `backup_path` are the same as mere names, which can be shown anywhere.
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
        place = fields.target(s3.endpoint, s3.bucket, s3.path_prefix) if s3 else None
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
    name = raw.get("id")
    if isinstance(name, str) and name:
        fault = fields.id_fault(name)
        if fault:
            report.error("id", fault)
        elif positions.setdefault(name, position) != position:
            report.subject = name
            report.error("id", f"used by entry {positions[name]} already, so entry {position} is left out")
            return None
        else:
            report.subject = name
    for path, cause in faults(raw):
        report.error(path, cause)
    if report.errors:
        return None
    raw_s3 = raw.get("s3")
    s3_report = FieldProblems(report.subject)  # its own, so that mistakes on both levels are told at once
    s3 = _s3(raw_s3, f"{name}/", s3_report) if isinstance(raw_s3, dict) else None
    given = fields.validate(EntryShape, raw, "", report)
    if given is not None:
        for field_name, text in (("id", given.id), ("name", given.name), ("duckdbPath", given.duckdb_path)):
            if not text.strip():
                report.error(field_name, "required")
        mysql = given.mysql_connection_string.get_secret_value()
        mysql_fault = fields.mysql_fault(mysql) if mysql else None
        if mysql_fault:
            report.error("mysqlConnectionString", mysql_fault)
        elif not mysql:
            report.warn("mysqlConnectionString", "missing: backups and restores work, replication from MySQL cannot")
    writer = lost = None
    if given is not None:
        if fault := fields.host_fault(given.host):
            report.error("host", fault)
        writer = fields.one_of(_WRITERS, given.writer, "writer", report)
        lost = fields.one_of(_ON_POSITION_LOST, given.on_position_lost, "onPositionLost", report)
        _check_replication(given, writer, report)
    report.errors += s3_report.errors
    report.warnings += s3_report.warnings
    if given is None or writer is None or lost is None or not given.id or not given.duckdb_path:
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
        writer=writer,
        writer_conn_id=given.writer_conn_id or _WRITER_CONNECTION,
        include_tables=tuple(given.include_tables),
        exclude_tables=tuple(dict.fromkeys((*given.exclude_tables, *settings.excluded_tables))),
        on_position_lost=lost,
        storage_version=given.storage_version,
        entry=raw,
    )


def _check_replication(given: EntryShape, writer: Writer | None, report: FieldProblems) -> None:
    if given.writer_conn_id and writer == "duckling":
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


def _s3(raw: dict[str, Any], default_prefix: str, report: FieldProblems) -> S3Settings | None:
    """The ``s3`` object, or None when it is switched off or `report` got errors."""
    if raw.get("enabled") is False:
        # Nothing of it is used, so nothing is demanded of it; a misspelled name is worth a word all the same.
        fields.warn_unknown(S3Shape, raw, "s3.", report)
        return None
    given = fields.validate(S3Shape, raw, "s3.", report)
    if given is None:
        return None
    secret, key_text = given.secret_access_key.get_secret_value(), given.encryption_key.get_secret_value()

    def check(name: str, fault: str | None) -> None:
        if fault:
            report.error(f"s3.{name}", fault)

    def warn(name: str, texts: Iterable[str]) -> None:
        for text in texts:
            report.warn(f"s3.{name}", text)

    has_endpoint = bool(given.endpoint)
    check("bucket", fields.bucket_fault(given.bucket) if given.bucket else "required")
    check("region", fields.region_fault(given.region, has_endpoint=has_endpoint) if given.region else "required")
    inline = {"accessKeyId": given.access_key_id, "secretAccessKey": secret}
    if given.aws_conn_id:
        both = " and ".join(name for name, value in inline.items() if value)
        check("awsConnId", f"given together with {both}: credentials come from one or the other" if both else None)
    else:
        for name, value in inline.items():
            check(name, None if value else "required, unless awsConnId is given")
    prefix = given.path_prefix or default_prefix
    check("pathPrefix", fields.prefix_fault(prefix))
    check("endpoint", fields.endpoint_fault(given.endpoint) if has_endpoint else None)
    if not report.errors:
        warn("pathPrefix", fields.prefix_warnings(prefix))
        warn("endpoint", fields.endpoint_warnings(given.endpoint, given.bucket))
    mode = fields.one_of(_MODES, given.encryption, "s3.encryption", report)
    verify = fields.one_of(_VERIFY, given.verify, "s3.verify", report)
    key = _key(key_text, mode, report)
    if given.kms_key_id and mode not in (None, "sse-kms"):
        report.warn("s3.kmsKeyId", f'not used: encryption is "{mode}", not "sse-kms"')
    if 0 < given.s3_backup_interval_hours < MIN_HOURS:
        check("s3BackupIntervalHours", "expected 0 (BACKUP_INTERVAL_HOURS) or at least a second")
    check("storageClass", fields.storage_class_fault(given.storage_class) if given.storage_class else None)
    if given.storage_class.upper() in ("GLACIER", "DEEP_ARCHIVE"):
        report.warn("s3.storageClass", "archived objects can't be read at once: verify and restore fail until then")
    for name, fault in fields.tags_faults(given.tags):
        check(name, fault)
    if report.errors or mode is None or verify is None:
        return None
    return S3Settings(
        bucket=given.bucket,
        region=given.region,
        access_key_id=given.access_key_id or None,
        secret_access_key=given.secret_access_key if secret else None,
        endpoint=given.endpoint.rstrip("/") or None,
        force_path_style=given.force_path_style,
        path_prefix=prefix,
        encryption=mode,
        kms_key_id=given.kms_key_id or None,
        encryption_key=key,
        backup_interval_hours=given.s3_backup_interval_hours,
        backup_retention_days=given.s3_backup_retention_days,
        aws_conn_id=given.aws_conn_id or None,
        storage_class=given.storage_class or None,
        tags=dict(given.tags),
        verify=verify,
        part_size=given.part_size_mib * MIB,
        max_parts=given.max_parts,
        max_concurrency=given.max_concurrency,
    )


def _key(text: str, mode: Encryption | None, report: FieldProblems) -> EncryptionKey | None:
    """The key; only client-aes256 demands one, and a good one."""
    if not text:
        if mode == "client-aes256":
            report.error("s3.encryptionKey", "required for client-aes256", hint="`duckling keygen` makes one.")
        return None
    key = None
    try:
        key = EncryptionKey.parse(text)
    except ValueError as error:
        if mode == "client-aes256":
            report.error("s3.encryptionKey", str(error))
    if mode not in (None, "client-aes256"):
        # Kept when it is a key, but no reason to stop: files like that exist and work.
        report.warn("s3.encryptionKey", f'not used: encryption is "{mode}", not "client-aes256"')
    return key
