"""Sets of transactions by their identifiers, counted on as the binlog is read."""

from __future__ import annotations

import re
import struct


class GtidState:
    """The set of transactions so far, as the server writes it.

    MariaDB: the last one of each domain. MySQL: intervals of each server. Unknown when it was at the start.
    """

    def __init__(self, text: str | None, *, mariadb: bool) -> None:
        self._known, self._mariadb = text is not None, mariadb
        self._last: dict[str, str] = {}
        self._sets: dict[str, list[list[int]]] = {}
        self._pending: tuple[str, str] | None = None
        for part in filter(None, re.split(r"[\s,]+", text or "")):
            if mariadb:
                domain, _, rest = part.partition("-")
                self._last[domain] = rest
            else:
                sid, *ranges = part.split(":")
                bounds = [interval.split("-") for interval in ranges]
                self._sets[sid.lower()] = sorted([int(bound[0]), int(bound[-1])] for bound in bounds)

    def begin(self, origin: str, number: str) -> None:
        self._pending = origin, number

    def end(self) -> str:
        """Count the transaction in that began last; the set with it."""
        if self._pending is not None:
            origin, number = self._pending
            self._pending = None
            if self._mariadb:
                self._last[origin] = number
            else:
                _add(self._sets.setdefault(origin, []), int(number))
        return self.text()

    def covers(self, text: str) -> bool:
        """Whether all transactions of the set `text` are in it; not where it is unknown."""
        if not self._known:
            return False
        other = GtidState(text, mariadb=self._mariadb)
        if self._mariadb:
            return all(
                int(self._last.get(domain, "0-0").rpartition("-")[2]) >= int(rest.rpartition("-")[2])
                for domain, rest in other._last.items()
            )
        return all(
            any(mine[0] <= low and high <= mine[1] for mine in self._sets.get(sid, ()))
            for sid, intervals in other._sets.items()
            for low, high in intervals
        )

    def give_up(self) -> None:
        self._known = False

    def text(self) -> str:
        if not self._known:
            return ""
        if self._mariadb:
            return ",".join(f"{domain}-{rest}" for domain, rest in self._last.items())
        return ",".join(
            ":".join([sid, *(f"{low}-{high}" if low < high else str(low) for low, high in intervals)])
            for sid, intervals in self._sets.items()
        )


def gtid_list(body: bytes) -> list[str]:
    """The transactions that MariaDB's event GTID_LIST names, of each domain the last one of each server."""
    count = int.from_bytes(body[:4], "little") & 0xFFFFFFF
    entries = (struct.unpack_from("<IIQ", body, 4 + 16 * n) for n in range(count))
    return [f"{domain}-{server}-{number}" for domain, server, number in entries] or [""]


def _add(intervals: list[list[int]], number: int) -> None:
    for interval in reversed(intervals):
        if interval[0] <= number <= interval[1]:
            return
        if number == interval[1] + 1:
            interval[1] = number
            break
    else:
        intervals.append([number, number])
    intervals.sort()
    # Gaps may have closed.
    merged: list[list[int]] = []
    for interval in intervals:
        if merged and interval[0] <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], interval[1])
        else:
            merged.append(interval)
    intervals[:] = merged
