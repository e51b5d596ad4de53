"""How a moment is reached: which backup it begins with, and up to which transaction of MySQL's binlog."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.backup.inventory.names import LATEST, parse_name
from duckling_provider.base.errors import NotFoundError, ReplicationError, RequestError
from duckling_provider.base.moments import iso, parse_moment
from duckling_provider.replication.binlog.dump import FIRST_OFFSET, BinlogDump, previous_gtids
from duckling_provider.replication.binlog.gtids import GtidState
from duckling_provider.replication.binlog.stream import BinlogStream
from duckling_provider.replication.model.tables import Commit, Position, SchemaChange
from duckling_provider.replication.mysql.source import MySqlServer, connect, query, server_of
from duckling_provider.replication.run import Run

if TYPE_CHECKING:
    from duckling_provider.stores.store import BackupSource

_PLACE = re.compile(r"[^\s:,]+\.(\d+):(\d+)")
_MARIADB_GTID = re.compile(r"\d+-\d+-\d+(,\s*\d+-\d+-\d+)*")
_MYSQL_GTID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(:\d+(-\d+)?)+(,.*)?", re.DOTALL)
#: Seconds by which commits of one group may be out of the order of their times.
_DISORDER = 2.0
#: So many transactions in a row that are of an earlier time: no long statement, whose time is that of its beginning.
_STEPPED = 2


@dataclass(frozen=True)
class Goal:
    """What is wanted: all that was committed before `moment`, or up to the transaction `position`; one of them."""

    moment: datetime | None = None
    position: str = ""

    @classmethod
    def of(cls, until: str | None, position: str | None) -> Goal | None:
        """From the texts of a user; None where there is neither.

        :raises RequestError: both are given, or one can't be understood, or lies in the future.
        """
        until, position = (until or "").strip(), (position or "").strip()
        if until and position:
            raise RequestError("a time and a position were given", subject=position, hint="Give one of them.")
        if position and not any(kind.fullmatch(position) for kind in (_PLACE, _MARIADB_GTID, _MYSQL_GTID)):
            raise RequestError(
                "this is no position of a binlog",
                subject=position,
                hint="Write FILE:OFFSET, such as binlog.000012:4711, or a GTID as the server writes it.",
            )
        if position:
            return cls(position=position)
        if not until:
            return None
        moment = parse_moment(until)
        if moment > datetime.now(timezone.utc) + timedelta(minutes=10):
            raise RequestError("that time is in the future", subject=iso(moment), hint="Times are in UTC.")
        return cls(moment)

    @classmethod
    def of_restore(
        cls, until: str | None, position: str | None, *, target_path: str | None, key: str, before: str | None = None
    ) -> Goal | None:
        """From what was asked of a restore by run or API; None where no moment is wanted.

        :raises RequestError: as `of`; or it would go over the replica, or a backup is named as well.
        """
        goal = cls.of(until, position)
        if goal is None:
            return None
        if not (target_path or "").strip():
            raise RequestError(
                "until needs target_path",
                subject=str(goal),
                hint="Over the replica, the next sync would apply again what is to be undone. Name a new file.",
            )
        if key != LATEST or (before or "").strip():
            raise RequestError("until chooses the backup", subject=str(goal), hint="Leave key and before out.")
        return goal

    def __str__(self) -> str:
        return iso(self.moment) if self.moment is not None else self.position

    def includes(self, event: Commit | SchemaChange, *, mariadb: bool) -> bool | None:
        """Whether the transaction that ends here is wanted; None: it is the last one that is."""
        if self.moment is not None:
            limit = self.moment.timestamp()
            # A time without a fraction is that of a second: when in it, is not known.
            return event.timestamp < (limit if event.timestamp % 1 else math.floor(limit))
        if place := _PLACE.fullmatch(self.position):
            return event.position.order <= (int(place[1]), int(place[2]))
        return None if GtidState(event.position.gtid, mariadb=mariadb).covers(self.position) else True


@dataclass(frozen=True)
class Route:
    """How a moment is reached.

    :param created: when the backup was made that it begins with.
    :param end: of the last transaction that is wanted, which was committed at `reached`; None: none since the binlog's
        beginning.
    :param transactions, size: that the binlog has about from the backup to there; bytes.
    :param since, to: between these moments, every one can be reached.
    """

    key: str
    created: datetime
    end: Position
    reached: datetime | None
    transactions: int
    size: int
    since: datetime
    to: datetime

    def as_json(self) -> dict[str, Any]:
        return {
            "position": str(self.end),
            "reachedAt": None if self.reached is None else iso(self.reached),
            "transactions": self.transactions,
            "binlogBytes": self.size,
            "reachableFrom": iso(self.since),
            "reachableTo": iso(self.to),
        }


WITHOUT = "Restore the backup itself, without --until."


@dataclass
class _Scan:
    """What was met in the binlog: the last transaction that is wanted, the first that is not."""

    end: Commit | SchemaChange | None = None
    past: Commit | SchemaChange | None = None
    last: float = 0.0
    transactions: int = 0
    behind: int = field(default=0)


class Binlog:
    """The binlog of the server of a run, as it is now."""

    def __init__(self, run: Run) -> None:
        self._run = run
        with contextlib.closing(connect(run.source)) as connection:
            self._server: MySqlServer = server_of(connection)
            self._files = [(str(row[0]), int(row[1])) for row in query(connection, "SHOW BINARY LOGS")]
            theirs = float(query(connection, "SELECT UNIX_TIMESTAMP(NOW(6))")[0][0])
        #: Seconds by which the server's clock is ahead of ours.
        self._ahead = theirs - time.time()
        self._heads: dict[str, float] = {}

    def route(
        self, store: BackupSource, goal: Goal, *, any_origin: bool = False, before: datetime | None = None
    ) -> Route:
        """:param before: only backups made before that time."""
        scan: _Scan | None = None
        if goal.moment is not None:
            limit = goal.moment
        else:
            scan = self._scan(self._file_of(goal), goal)
            if scan.end is None or (scan.past is None and not self._is_end(goal, scan.end)):
                raise RequestError(
                    f"the binlog has no transaction {goal}",
                    subject=self._run.source.subject,
                    hint=f"It goes from {self._files[0][0]} to {self._files[-1][0]}.",
                )
            # What was made before the next transaction has nothing that is not wanted.
            limit = utc(time.time() + self._ahead if scan.past is None else scan.past.timestamp)
        # In our time, in which backups are named; where our clock is ahead, that is on the safe side.
        limit -= timedelta(seconds=max(0.0, self._ahead))
        key = resolve(
            self._run.database,
            store,
            LATEST,
            before=limit if before is None else min(limit, before),
            any_origin=any_origin,
        )
        created = parse_name(key.rpartition("/")[2])
        if created is None:
            raise NotFoundError("there is no backup", subject=key)
        first = self._file_at(created)
        scan = scan or self._scan(first, goal)
        end = scan.end.position if scan.end is not None else self._start(first)
        oldest = utc(self._head(self._files[0][0]))
        reachable = [b.created for b in list_backups(store) if b.created >= oldest]
        return Route(
            key=key,
            created=created,
            end=end,
            reached=None if scan.end is None else utc(scan.end.timestamp),
            transactions=scan.transactions,
            size=self._bytes(first, end),
            since=min(reachable, default=created),
            to=utc(scan.last) if scan.last else created,
        )

    def _scan(self, file: str, goal: Goal) -> _Scan:
        """Read which transactions there are from the beginning of `file` on to the end of the binlog.

        :raises ReplicationError: after the first that is not wanted there are such that would be.
        """
        scan, mariadb = _Scan(), self._server.kind == "mariadb"
        closed = False
        with BinlogStream(self._run.source, self._start(file), wanted=lambda _: False) as stream:
            for event in stream.read():
                self._run.control.check()
                if not isinstance(event, Commit | SchemaChange) or (isinstance(event, SchemaChange) and event.inside):
                    continue
                scan.last = event.timestamp
                included = not closed and goal.includes(event, mariadb=mariadb)
                if scan.past is None and included in (True, None):
                    scan.end, scan.transactions = event, scan.transactions + 1
                    closed = included is None
                    continue
                scan.past = scan.past or event
                if goal.moment is None:
                    break
                behind = event.timestamp < goal.moment.timestamp() - _DISORDER
                scan.behind = scan.behind + 1 if behind else 0
                if scan.behind >= _STEPPED:
                    break
        if scan.behind and scan.past is not None:
            raise ReplicationError(
                f"MySQL's clock stepped back: transactions of {iso(utc(scan.last))} come after {scan.past.position}, "
                f"which is of {iso(utc(scan.past.timestamp))}: the time {goal} was twice",
                subject=self._run.source.subject,
                hint=f"Name the last transaction that is wanted in place of the time, such as --until-position "
                f"{scan.end.position.file}:{scan.end.position.offset}."
                if scan.end is not None
                else "Name the last transaction that is wanted in place of the time: --until-position.",
            )
        return scan

    def _is_end(self, goal: Goal, end: Commit | SchemaChange) -> bool:
        """Whether the last transaction of the binlog is the one that is named."""
        place = _PLACE.fullmatch(goal.position)
        if place is None:
            return goal.includes(end, mariadb=self._server.kind == "mariadb") is None
        return end.position.order == (int(place[1]), int(place[2]))

    def _file_of(self, goal: Goal) -> str:
        """The file that has the position which is named."""
        place = _PLACE.fullmatch(goal.position)
        for name, _ in reversed(self._files):
            if place is not None:
                if Position(name, 0).order[0] == int(place[1]):
                    return name
            elif not self._covers(name, goal.position):
                return name
        raise RequestError(
            f"the binlog has no transaction {goal}" if place else f"{goal} lies before the beginning of the binlog",
            subject=self._run.source.subject,
            hint=f"It goes from {self._files[0][0]} to {self._files[-1][0]}.",
        )

    def _covers(self, file: str, gtid: str) -> bool:
        """Whether all transactions of `gtid` were there when `file` began."""
        with contextlib.closing(connect(self._run.source)) as connection:
            known = previous_gtids(connection, file)
        return GtidState(known, mariadb=self._server.kind == "mariadb").covers(gtid)

    def _file_at(self, created: datetime) -> str:
        """The file that was written when a backup was made.

        :raises ReplicationError: it was purged.
        """
        moment = created.timestamp() + self._ahead
        low, high = 0, len(self._files)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._head(self._files[middle][0]) <= moment else (low, middle)
        name = self._files[low][0]
        # Heads are of whole seconds.
        if self._head(name) > moment + 1:
            raise ReplicationError(
                f"MySQL's binlog does not reach back to the backup of {iso(created)}: it begins with {name}, of "
                f"{iso(utc(self._head(name)))}",
                subject=self._run.source.subject,
                hint=f"Only moments from a backup on that is later than that can be reached. {WITHOUT}",
            )
        return name

    def _head(self, file: str) -> float:
        """When `file` was begun, seconds since 1970."""
        if file not in self._heads:
            with contextlib.closing(BinlogDump(self._run.source, self._start(file), follow=False)) as dump:
                self._heads[file] = float(next((raw.timestamp for raw in dump.events() if raw.timestamp), 0))
        return self._heads[file]

    def _start(self, file: str) -> Position:
        return Position(file, FIRST_OFFSET, server=self._server.identity)

    def _bytes(self, first: str, end: Position) -> int:
        """Of the binlog from the beginning of `first` to `end`."""
        names: Sequence[str] = [name for name, _ in self._files]
        low, high = Position(first, 0).order[0], end.order[0]
        whole = sum(size for name, size in self._files if low <= Position(name, 0).order[0] < high)
        return whole + (end.offset if end.file in names else 0)


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
