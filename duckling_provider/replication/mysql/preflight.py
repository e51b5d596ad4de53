"""Whether a server can be replicated from: each thing that is missing, with the statement that cures it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from duckling_provider.replication.model.names import collisions, quote_mysql
from duckling_provider.replication.mysql.schema import unmirrored
from duckling_provider.replication.mysql.source import (
    MySqlServer,
    Source,
    SourceError,
    connect,
    query,
    server_of,
    status_statement,
    variable,
)

DAY = 86400.0

#: The oldest versions that are supported.
_OLDEST = {"mysql": (5, 7), "mariadb": (10, 6)}

#: Privileges by the names MySQL has for them, and MariaDB's names for the same.
_ALSO_CALLED = {
    "REPLICATION CLIENT": {"REPLICATION CLIENT", "BINLOG MONITOR"},
    "REPLICATION SLAVE": {"REPLICATION SLAVE", "REPLICATION REPLICA"},
}


@dataclass(frozen=True)
class Finding:
    """One thing about the server that is in the way, or may get there.

    :param setting: a server variable or privilege, e.g. ``"binlog_format"``.
    :param value: what it is, e.g. ``"MIXED"``.
    :param problem: what follows from that.
    :param cure: the statement or configuration that changes it.
    :param fatal: replication can't work; otherwise a warning.
    """

    setting: str
    value: str
    problem: str
    cure: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.setting} is {self.value}: {self.problem}. {self.cure}"


class PreflightError(SourceError):
    """The server lacks what replication needs; `findings` has everything, warnings too."""

    def __init__(self, findings: list[Finding], *, subject: str) -> None:
        fatal = [finding for finding in findings if finding.fatal]
        super().__init__(
            "; ".join(f"{finding.setting} is {finding.value}: {finding.problem}" for finding in fatal),
            operation="preflight",
            subject=subject,
            hint="; ".join(dict.fromkeys(finding.cure for finding in fatal)),
        )
        self.findings = findings


def preflight(source: Source, *, wanted: Callable[[str], bool] = lambda _: True) -> list[Finding]:
    """Look at everything that replication needs; what comes back are warnings.

    :param wanted: whether a table of this name is to be mirrored.
    :raises PreflightError: names all that is missing at once.
    :raises SourceError: when the server can't be reached.
    """
    with contextlib.closing(connect(source)) as connection:
        findings = examine(connection, source, wanted=wanted)
    if any(finding.fatal for finding in findings):
        raise PreflightError(findings, subject=source.subject)
    return findings


def examine(connection: Any, source: Source, *, wanted: Callable[[str], bool] = lambda _: True) -> list[Finding]:
    """All findings about the server at the other end of `connection`, the fatal ones first."""
    server = server_of(connection)
    findings = [
        *_version(server),
        *_binlog(connection, server),
        *_left_out(connection, server, source),
        *_grants(connection, server, source),
    ]
    findings += [*_tables(connection, source, wanted)]
    return sorted(findings, key=lambda finding: not finding.fatal)


def _version(server: MySqlServer) -> Iterator[Finding]:
    oldest = _OLDEST[server.kind]
    if server.version < oldest:
        wanted = "MySQL 5.7 or MariaDB 10.6"
        yield Finding("version", str(server), f"too old, {wanted} is the oldest that works", "Upgrade the server")


def _binlog(connection: Any, server: MySqlServer) -> Iterator[Finding]:
    restart = "in the [mysqld] section of the server's configuration, and restart it"
    log_bin = variable(connection, "log_bin") or "OFF"
    if log_bin.upper() not in {"ON", "1"}:
        yield Finding("log_bin", log_bin, "the server writes no binlog to follow", f"Set log_bin = mysql-bin {restart}")
    if (variable(connection, "server_id") or "0") == "0":
        yield Finding("server_id", "0", "the server refuses replicas", "Run: SET GLOBAL server_id = 1")
    yield from _must_be(connection, "binlog_format", "ROW", "it records statements, and changed rows are needed")
    yield from _must_be(connection, "binlog_row_image", "FULL", "rows are recorded incompletely")
    if variable(connection, "binlog_row_metadata") is None:
        yield Finding(
            "binlog_row_metadata",
            f"unknown to {server}",
            "the binlog says too little of columns to follow their changes, so every table that was changed is copied "
            "again by the next run",
            "Upgrade to MySQL 8.0.1 or later, where it can be FULL",
            fatal=False,
        )
    else:
        yield from _must_be(connection, "binlog_row_metadata", "FULL", "the binlog doesn't name columns")
    if (variable(connection, "binlog_row_value_options") or "").upper() == "PARTIAL_JSON":
        yield Finding(
            "binlog_row_value_options",
            "PARTIAL_JSON",
            "changes of JSON are recorded incompletely",
            "Run: SET GLOBAL binlog_row_value_options = ''",
        )
    seconds = retention(connection)
    if seconds is not None and seconds < DAY:
        name = "binlog_expire_logs_seconds"
        if variable(connection, name) is None:
            name = "expire_logs_days"
        value = f"{seconds:.0f} s" if name.endswith("seconds") else f"{seconds / DAY:g}"
        yield Finding(
            name,
            value,
            "a replica that rests longer, or is restored from an older backup, needs a full copy",
            f"Run: SET GLOBAL {name} = {7 * DAY if name.endswith('seconds') else 7:.0f}",
            fatal=False,
        )


def _left_out(connection: Any, server: MySqlServer, source: Source) -> Iterator[Finding]:
    """Settings by which the binlog lacks changes of the database: nothing would ever come, without any error."""
    for name, told in _binlog_filters(connection, server):
        listed = [part.strip() for part in told.split(",") if part.strip()]
        is_listed = any(part.lower() == source.database.lower() for part in listed)
        if listed and is_listed is (name == "binlog_ignore_db"):
            yield Finding(
                name,
                told,
                f"changes of {source.database} are not in the binlog",
                f"Remove {name} from the server's configuration and restart it, then copy the replica again",
            )
        elif listed:
            yield Finding(
                name,
                told,
                "with statements it goes by the current database, so changes may be missing in the binlog",
                f"Remove {name} from the server's configuration and restart it",
                fatal=False,
            )
    name = "log_replica_updates" if variable(connection, "log_replica_updates") is not None else "log_slave_updates"
    value = variable(connection, name) or "ON"
    if value.upper() in {"OFF", "0"} and _is_replica(connection):
        yield Finding(
            name,
            value,
            "the server is a replica, and does not write to its binlog what it gets from its primary",
            f"Set {name} = ON in the [mysqld] section of the server's configuration, and restart it; or replicate from "
            "the primary",
        )


def _binlog_filters(connection: Any, server: MySqlServer) -> Iterator[tuple[str, str]]:
    """binlog_do_db and binlog_ignore_db, which most servers have no variables for."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(status_statement(server))
        except Exception:
            return
        names = [column[0].lower() for column in cursor.description or ()]
        row = cursor.fetchone()
    status = dict(zip(names, row or (), strict=False))
    for name in ("binlog_do_db", "binlog_ignore_db"):
        yield name, str(status.get(name) or "")


def _is_replica(connection: Any) -> bool:
    """As far as a user without further privileges can see it."""
    for statement in (
        "SHOW GLOBAL STATUS WHERE Variable_name = 'Slaves_running' AND Value > 0",
        "SHOW GLOBAL VARIABLES WHERE Variable_name = 'gtid_slave_pos' AND Value <> ''",
        "SHOW REPLICA STATUS",
        "SHOW SLAVE STATUS",
    ):
        with contextlib.suppress(Exception):  # a word that this server does not know, or may not tell us
            if query(connection, statement):
                return True
    return False


def retention(connection: Any) -> float | None:
    """Seconds that the server keeps its binlog for; None for ever."""
    seconds = float(variable(connection, "binlog_expire_logs_seconds") or 0)
    seconds = seconds or DAY * float(variable(connection, "expire_logs_days") or 0)
    automatic = (variable(connection, "binlog_expire_logs_auto_purge") or "ON").upper() in {"ON", "1"}
    return seconds if seconds and automatic else None


def _must_be(connection: Any, name: str, wanted: str, problem: str) -> Iterator[Finding]:
    value = variable(connection, name)
    if value is not None and value.upper() != wanted:
        cure = f"Run: SET GLOBAL {name} = '{wanted}', and set it in the server's configuration; it takes effect for "
        yield Finding(name, value, problem, cure + "new connections, so reconnect the applications")


# ---- privileges --------------------------------------------------------------------------------------------


def _grants(connection: Any, server: MySqlServer, source: Source) -> Iterator[Finding]:
    rows = [str(row[0]) for row in query(connection, "SHOW GRANTS")]
    everywhere, here, complete = privileges(rows, source.database)
    user = str(query(connection, "SELECT CURRENT_USER()")[0][0])
    to = "@".join(quote_mysql(part) for part in user.rsplit("@", 1))

    def missing(name: str, scope: str, problem: str, *, fatal: bool = True) -> Finding:
        return Finding(
            name,
            f"not granted to {user}" if complete else f"not granted to {user} directly",
            problem,
            f"Run: GRANT {name} ON {scope} TO {to}",
            # Roles that aren't resolved may hold it.
            fatal and complete,
        )

    def has(name: str) -> bool:
        return bool(everywhere & (_ALSO_CALLED.get(name, {name}) | {"ALL PRIVILEGES", "ALL"}))

    if not has("SELECT") and not here & {"SELECT", "ALL PRIVILEGES", "ALL"}:
        scope = f"{quote_mysql(source.database)}.*"
        # Grants of single tables are not looked at: what the user can't see is not mirrored.
        finding = missing("SELECT", scope, "tables can't be read", fatal=not _sees_tables(connection, source))
        yield finding
    if not has("REPLICATION SLAVE"):
        yield missing("REPLICATION SLAVE", "*.*", "the server won't send its binlog")
    if not has("REPLICATION CLIENT"):
        name = "BINLOG MONITOR" if server.kind == "mariadb" else "REPLICATION CLIENT"
        yield missing(name, "*.*", "the binlog's position can't be asked")
    if not has("LOCK TABLES") and not here & {"LOCK TABLES", "ALL PRIVILEGES", "ALL"}:
        scope = f"{quote_mysql(source.database)}.*"
        yield missing(
            "LOCK TABLES", scope, "tables without a primary key can't be copied at a known point", fatal=False
        )


def privileges(rows: Iterable[str], database: str) -> tuple[set[str], set[str], bool]:
    """From ``SHOW GRANTS``: what is granted on everything, what on the whole of `database`, and whether that is all.

    It may not be all where roles are granted.
    """
    everywhere: set[str] = set()
    here: set[str] = set()
    complete = True
    for row in rows:
        match = re.match(r"GRANT (.+?) ON (?:TABLE )?(\*|`(?:[^`]|``)+`)\.(\*|`(?:[^`]|``)+`) TO ", row, re.IGNORECASE)
        if not match:
            # `GRANT role TO user`; a PROXY grant has an ON and means nothing here.
            complete = complete and not re.match(r"GRANT (?!PROXY).+ TO ", row, re.IGNORECASE)
            continue
        names = {re.sub(r"\s*\(.*", "", name).strip().upper() for name in _split(match[1])}
        scope, table = match[2], match[3]
        if table != "*":
            continue
        if scope == "*":
            everywhere |= names
        elif _matches(scope[1:-1].replace("``", "`"), database):
            here |= names
    return everywhere, here, complete


def _split(names: str) -> list[str]:
    """At the commas outside of parentheses, where columns are listed."""
    return re.split(r",\s*(?![^(]*\))", names)


def _matches(pattern: str, database: str) -> bool:
    """The name in a grant is a pattern of LIKE."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    regex = "".join({"%": ".*", "_": "."}.get(part, re.escape(part[-1])) for part in parts)
    return re.fullmatch(regex, database, re.DOTALL) is not None


def _sees_tables(connection: Any, source: Source) -> bool:
    sql = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE = 'BASE TABLE'"
    return bool(query(connection, sql, source.database)[0][0])


# ---- tables ------------------------------------------------------------------------------------------------


def _tables(connection: Any, source: Source, wanted: Callable[[str], bool]) -> Iterator[Finding]:
    rows = query(
        connection,
        "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s ORDER BY TABLE_NAME",
        source.database,
    )
    names = [(str(name), str(kind).upper()) for name, kind in rows if wanted(str(name))]
    for group in collisions(sorted(name for name, kind in names if kind == "BASE TABLE")):
        yield Finding(
            "tables",
            " and ".join(group),
            "DuckDB takes names that differ only in case for the same",
            "Exclude all but one of them by excludeTables, or rename them",
        )
    left_out = unmirrored(connection, source.database)
    for kind in dict.fromkeys(left_out.values()):
        yield Finding(
            "tables",
            ", ".join(name for name, other in left_out.items() if other == kind and wanted(name)),
            f"tables that are {kind} are not mirrored: their rows are not what the binlog tells",
            "Drop the versioning, or use InnoDB; or read them elsewhere",
            fatal=False,
        )
