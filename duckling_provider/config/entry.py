"""The fields of a databases.json entry but for its ``s3``, their rules, and the frozen `Database` that comes of them.

A new field is one line in `Entry`, and where it has a rule of its own, one in `check_entry`.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, SecretStr

from duckling_provider.base.errors import WrongHostError
from duckling_provider.base.strict_json import printable
from duckling_provider.config.environment import DATABASES_FILE
from duckling_provider.config.fields import (
    ANY_STRING,
    MAX_HOURS,
    FieldProblems,
    Shape,
    Text,
    any_object,
    check_choices,
    host_fault,
    is_same_host,
    secret_names,
)
from duckling_provider.config.masking import mask, mask_urls, spellings
from duckling_provider.config.s3 import S3Settings

_MAX_ID = 200  # Airflow allows 250 characters of DAG id, a folder's name 255 bytes
_WRITER_CONNECTION = "duckling_default"

Writer = Literal["duckling", "duckling-server"]
OnPositionLost = Literal["resync", "fail"]
_Texts = Annotated[tuple[str, ...], Field(strict=False)]  # JSON knows no tuples
#: An hour; a shorter interval is a typing error, and one of milliseconds would have drills run without end.
_LEAST_DRILL_DAYS = 0.0417


class Entry(Shape):
    """The fields of the file; which of them must not be empty is decided by `check_entry`."""

    id: str = ""
    name: str = ""
    mysql_connection_string: SecretStr = SecretStr("")  #: empty when the entry has none
    duckdb_path: str = ""  #: as written
    read_copy_path: Text = None  #: as written: where each sync leaves a copy for readers; None = nowhere
    created_at: Text = None
    updated_at: Text = None
    queue: Text = None
    host: Text = None  #: the machine that has the replica and its local backups; None = any
    #: Who keeps the replica up to date: our own sync, or the Node.js server.
    writer: Annotated[Writer, ANY_STRING] = "duckling"
    #: The Airflow connection to that server.
    writer_conn_id: Annotated[str, AfterValidator(lambda text: text or _WRITER_CONNECTION)] = _WRITER_CONNECTION
    include_tables: _Texts = ()  #: empty = all
    exclude_tables: _Texts = ()
    on_position_lost: Annotated[OnPositionLost, ANY_STRING] = "fail"
    max_sync_yields: int = Field(default=12, ge=0, le=10_000)  #: runs in a row that may make way; 0 = any number
    validate_interval_days: float = Field(default=7, ge=0, le=3650)  #: each table is compared once in it; 0 = never
    local_backups_max_bytes: int = Field(default=0, ge=0)  #: of all local backups together; 0 = no bound of its own
    rpo_hours: float = Field(default=0, ge=0, le=MAX_HOURS)  #: of changes that may be lost; 0 = nothing is promised
    rto_minutes: float = Field(default=0, ge=0, le=MAX_HOURS * 60)  #: that a recovery may take; 0 = same
    drill_interval_days: float = Field(default=7, ge=0, le=3650)  #: between two restores on trial; 0 = by hand only
    drill_queries: _Texts = ()  #: each must yield true on the restored file
    storage_version: str = "v1.5.0"  #: for files that we create, never for one that exists
    # Any object here: what is in it is read by `read_s3`, so that the mistakes of both levels are reported at once.
    s3: Annotated[S3Settings | None, PlainValidator(any_object)] = None


class Database(Entry):
    """One good entry of databases.json, with the environment's share worked in.

    Code that touches the files takes `replica`, `backup_dir` and `read_copy`, which exist on the entry's `host` alone.
    `replica_path`, `backup_path` and `read_copy_file` are the same as mere names, which can be shown anywhere. `s3` is
    None when absent or not enabled; `exclude_tables` has those of EXCLUDED_TABLES too.
    """

    replica_path: Path  #: absolute; symbolic links are not resolved
    backup_path: Path
    read_copy_file: Path | None = None
    drill_path: Path = Path("/nonexistent")  #: the folder of backups that are restored on trial
    here: str = ""  #: the machine that this is
    interval_hours: float = 24.0  #: the effective one
    local_retention_days: float = 7.0
    auto_backup: bool = True
    entry: Mapping[str, Any] = Field(default_factory=dict, repr=False)  #: as found, WITH its secrets
    looked_up: tuple[str, ...] = Field(default=(), repr=False)  #: the SECRETS that the entry only points to

    def __hash__(self) -> int:
        return hash((self.id, self.replica_path))  # the entry is a dict

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
    def read_copy(self) -> Path | None:
        """The copy for readers, for those who touch it; None where the entry wants none.

        :raises WrongHostError: it is on another machine.
        """
        self.require_host()
        return self.read_copy_file

    @property
    def files(self) -> tuple[Path, ...]:
        """The replica and the copy for readers, as mere names."""
        return (self.replica_path,) if self.read_copy_file is None else (self.replica_path, self.read_copy_file)

    @property
    def places(self) -> tuple[Path, ...]:
        """Where its files are on this machine, for `base.ownership.as_owner_of`."""
        return (*self.files, self.backup_path) if self.is_here else (self.backup_path,)

    @property
    def verifies_bytes(self) -> bool:
        """Whether bytes of a backup are read back, and not only asked for, before it counts as verified."""
        return self.s3 is None or self.s3.verify != "head"

    @property
    def is_here(self) -> bool:
        """Whether the files of this database are on this machine, as far as the entry says."""
        return self.host is None or is_same_host(self.host, self.here)

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
        return spellings(self._shown()[1])

    def masked(self) -> dict[str, Any]:
        """The entry as found, fit to be shown: every secret is ``***``, unknown fields and null stay."""
        return self._shown()[0]

    def _shown(self) -> tuple[dict[str, Any], list[str]]:
        found: list[str] = []
        s3 = self.entry.get("s3")
        tags = s3.get("tags") if self.s3 is not None and isinstance(s3, dict) else None
        secret = secret_names(S3Settings)
        for value in self.looked_up:
            found.append(value)
            mask_urls(value, found)
        return {name: mask(value, name, found, secret=secret, plain=tags) for name, value in self.entry.items()}, found


def check_entry(given: Entry, raw: Mapping[str, Any], report: FieldProblems) -> None:
    """The rules that need more than a type; those of ``id`` were checked before."""
    for name, text in (("id", given.id), ("name", given.name), ("duckdbPath", given.duckdb_path)):
        report.fault(name, None if text.strip() else "required")
    mysql = given.mysql_connection_string.get_secret_value()
    if not mysql:
        report.warn("mysqlConnectionString", "missing: backups and restores work, replication from MySQL cannot")
    report.fault("mysqlConnectionString", mysql_fault(mysql) if mysql else None)
    report.fault("host", host_fault(given.host or ""))
    check_choices(given, "", report)
    if raw.get("writerConnId") and given.writer == "duckling":
        report.warn("writerConnId", 'not used: writer is "duckling", not "duckling-server"')
    if given.read_copy_path and given.writer != "duckling":
        report.error("readCopyPath", f'the sync makes that copy, and writer is "{given.writer}"')
    check_tables("includeTables", given.include_tables, report)
    check_tables("excludeTables", given.exclude_tables, report)
    for table in given.include_tables:
        if table in given.exclude_tables:
            report.warn("excludeTables", f'"{printable(table)}" is in includeTables too, and is left out')
    if 0 < given.drill_interval_days < _LEAST_DRILL_DAYS:
        report.error("drillIntervalDays", f"expected 0 (by hand only) or at least {_LEAST_DRILL_DAYS:g}, an hour")
    for number, query in enumerate(given.drill_queries):
        report.fault(f"drillQueries.{number}", None if query.strip() else "is empty")
    if given.s3 is None and given.drill_queries:
        report.warn("drillQueries", "not used: only backups in S3 are restored on trial")
    report.fault("storageVersion", storage_version_fault(given.storage_version))


def belongs_to(path: Path, owner: Path) -> bool:
    """Whether the file `path` is `owner`, or has a name that something beside `owner` may get; links count for where
    they lead, and upper and lower case as one.
    """
    folder, name = Path(os.path.realpath(path.parent)), folded(path.name)
    for owned in (Path(os.path.realpath(owner)), Path(os.path.realpath(owner.parent)) / owner.name):
        # DuckDB's log of what?.db is what.wal?.db.
        own = folded(owned.name)
        begins = (f"{own}.", f"{own.partition('?')[0]}.wal")
        if folder == owned.parent and (name == own or name.startswith(begins)):
            return True
    return False


def log_names(replica: Path) -> tuple[str, ...]:
    """The paths at which DuckDB keeps logs of a replica; of what?.db it is what.wal?.db."""
    head, mark, tail = replica.name.partition("?")
    endings = (".wal", ".wal.checkpoint", ".wal.recovery")
    return tuple(os.path.join(replica.parent, f"{head}{ending}{mark}{tail}") for ending in endings)


def folded(name: str) -> str:
    """Equal for names that some file system takes for one: SMB, say, makes no difference between cases."""
    return unicodedata.normalize("NFC", name).casefold()


def check_tables(name: str, tables: Iterable[str], report: FieldProblems) -> None:
    """A MySQL table's name may hold nearly everything; a wrong one would silently match no table."""
    for number, table in enumerate(tables):
        blank = "white space at its ends" if table != table.strip() else None
        report.fault(f"{name}.{number}", blank if table else "is empty")


def id_fault(text: str) -> str | None:
    """An id becomes part of DAG ids, a folder's name and the default key prefix."""
    if len(text) > _MAX_ID:
        return f"expected at most {_MAX_ID} characters, got {len(text)}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        return "expected letters (A-Z, a-z), digits, '_', '.' and '-', a letter or digit first"
    return None


def mysql_fault(text: str) -> str | None:
    """``mysql://user:password@host:port/database?option=…``."""
    encode = "special characters of the password must be percent-encoded: # is %23, / is %2F, ? is %3F, @ is %40"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:  # its message quotes the password, should that hold a '/' or a '['
        return f"has a wrong port, or {encode}"
    if url.scheme != "mysql" or not text[6:].startswith("//"):
        return "expected mysql://user:password@host:port/database"
    if url.fragment or ("@" not in url.netloc and "@" in text):
        return encode
    if not host:
        return "names no host; expected mysql://user:password@host:port/database"
    return "expected a port from 1 to 65535" if port == 0 else None


def storage_version_fault(text: str) -> str | None:
    """What DuckDB's ``ATTACH … (STORAGE_VERSION …)`` takes; whether this DuckDB can write it shows when it is used."""
    return None if re.fullmatch(r"v\d+\.\d+\.\d+", text, re.ASCII) else "expected a DuckDB version such as v1.5.0"
