"""The rows of the overview: every entry of databases.json by trouble, searched, filtered, cut into pages; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from duckling_provider.base.errors import ConfigError
from duckling_provider.oversight.promises import STATES
from duckling_provider.web.services.status import Status, by_trouble

PER_PAGE = 50
MISCONFIGURED = "misconfigured"
#: In the order of the rows.
ROW_STATES: tuple[str, ...] = (MISCONFIGURED, *STATES)

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One entry. A misconfigured one has `mistakes` and no `status`."""

    id: str
    name: str
    state: str
    status: Status | None = None
    mistakes: tuple[str, ...] = ()

    @property
    def recoverable(self) -> bool:
        return self.status is not None and self.status.recoverable

    def matches(self, words: Sequence[str]) -> bool:
        text = f"{self.id}\n{self.name}".casefold()
        return all(word in text for word in words)


@dataclass(frozen=True)
class Paged(Generic[T]):
    """One page of a list: `first` and `last` count from 1, `total` is of all pages."""

    items: tuple[T, ...]
    page: int
    pages: int
    first: int
    last: int
    total: int


def rows_of(statuses: Sequence[Status], problems: Iterable[ConfigError]) -> list[Row]:
    """All rows, the worst first."""
    mistakes: dict[str, list[str]] = {}
    for problem in problems:
        mistakes.setdefault(problem.entry or "databases.json", []).append(str(problem))
    bad = [Row(entry, "", MISCONFIGURED, mistakes=tuple(found)) for entry, found in sorted(mistakes.items())]
    return bad + [Row(s.database.id, s.database.name, s.state, s) for s in by_trouble(statuses)]


def search(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows whose id or name has every word of `text`, in any case."""
    words = text.casefold().split()
    return [row for row in rows if row.matches(words)]


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows there are of each state; states without any are left out."""
    found = dict.fromkeys(ROW_STATES, 0)
    for row in rows:
        found[row.state] += 1
    return {state: count for state, count in found.items() if count}


def cut(items: Sequence[T], page: int, *, per_page: int = PER_PAGE) -> Paged[T]:
    """The page `page`, or the nearest that there is."""
    pages = max(1, -(-len(items) // per_page))
    page = min(max(page, 1), pages)
    start = (page - 1) * per_page
    chosen = tuple(items[start : start + per_page])
    return Paged(chosen, page, pages, start + 1 if chosen else 0, start + len(chosen), len(items))
