"""Whether a server's binlog still has all that follows a position, also after a failover."""

from __future__ import annotations

import re
from typing import Any

from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.source import mariadb_gtid, query, server_of


def is_available(connection: Any, position: Position) -> bool:
    """Whether the server still has everything after `position` in its binlog.

    By transactions where the position names them and the server can look them up, so also after a failover to another
    server; by file and offset on the server that the position is of.
    """
    server = server_of(connection)
    by_gtid = bool(position.gtid) and server.has_gtid
    files = {str(row[0]): int(row[1]) for row in query(connection, "SHOW BINARY LOGS")}
    if position.server == server.identity or not position.server:
        is_there = files.get(position.file, -1) >= position.offset
        # After a reset the names of files and the numbers of transactions begin again, so both must be what they were.
        if server.kind == "mariadb" and position.gtid:
            return is_there and _same_gtids(mariadb_gtid(connection, position.file, position.offset), position.gtid)
        if not by_gtid:
            return is_there
        newest = max((Position(name, 0).order for name in files), default=(0, 0))
        if not is_there and (position.file in files or position.order > newest):
            return False
        if is_there and not _continues(connection, position):
            return False
    if not by_gtid:
        return False
    if server.kind == "mariadb":
        return _mariadb_has(connection, position.gtid, oldest=next(iter(files), ""))
    held = query(
        connection,
        "SELECT GTID_SUBSET(@@GLOBAL.gtid_purged, %s), GTID_SUBSET(%s, @@GLOBAL.gtid_executed)",
        position.gtid,
        position.gtid,
    )
    return bool(held[0][0]) and bool(held[0][1])


def _continues(connection: Any, position: Position) -> bool:
    """Whether what stands at `position` in MySQL's binlog is not one of the transactions up to there."""
    import pymysql.err

    try:
        events = query(connection, f"SHOW BINLOG EVENTS IN %s FROM {max(4, position.offset)} LIMIT 1", position.file)
    except pymysql.err.OperationalError:
        return False  # no event begins there
    except pymysql.err.Error:
        # Read with a privilege that the user may lack; the transactions decide then.
        return True
    named = re.search(r"GTID_NEXT= '([^']+)'", str(events[0][5])) if events else None
    if not named or named[1] == "ANONYMOUS":
        return True
    return not query(connection, "SELECT GTID_SUBSET(%s, %s)", named[1], position.gtid)[0][0]


def _mariadb_has(connection: Any, gtid: str, *, oldest: str) -> bool:
    """Whether MariaDB's binlog has the transactions `gtid`, and every one after them."""
    written = mariadb_written(connection)
    purged = _by_domain(mariadb_gtid(connection, oldest, 4)) if oldest else {}
    parts = [part.strip() for part in gtid.split(",")]
    if any(written.get(origin, -1) < int(number) for origin, _, number in (part.rpartition("-") for part in parts)):
        return False
    # What a domain had before the oldest file is gone: the position must be beyond it, also of domains it lacks.
    known = _by_domain(gtid)
    return all(known.get(domain, -1) >= number for domain, number in purged.items())


def mariadb_written(connection: Any) -> dict[str, int]:
    """MariaDB: ``domain-server`` -> number of the last transaction of it that the binlog ever had."""
    state = str(query(connection, "SELECT @@global.gtid_binlog_state")[0][0] or "")
    return {part.rpartition("-")[0]: int(part.rpartition("-")[2]) for part in state.split(",") if part}


def _by_domain(gtid: str) -> dict[str, int]:
    return {part.split("-")[0].strip(): int(part.rpartition("-")[2]) for part in gtid.split(",") if part.strip()}


def _same_gtids(one: str, other: str) -> bool:
    return set(one.split(",")) == set(other.split(","))
