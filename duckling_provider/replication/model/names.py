"""Names in SQL: of MySQL and of DuckDB, and where both disagree about which names are the same."""

from __future__ import annotations

from collections.abc import Iterable


def quote(name: str) -> str:
    """`name` as an identifier of DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def quote_mysql(name: str) -> str:
    """`name` as an identifier of MySQL, whatever its ``sql_mode``."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """`text` as a string of DuckDB; in MySQL only where backslashes mean nothing (``NO_BACKSLASH_ESCAPES``)."""
    return "'" + text.replace("'", "''") + "'"


def fold(name: str) -> str:
    """What DuckDB compares names by: it ignores the case of A to Z and of nothing else."""
    return "".join(c.lower() if "A" <= c <= "Z" else c for c in name)


def collisions(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that MySQL may tell apart and DuckDB can't, e.g. ``("Orders", "orders")``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(fold(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def twin(name: str, names: Iterable[str]) -> str | None:
    """Another one of `names` that DuckDB takes for `name`."""
    return next((other for other in names if other != name and fold(other) == fold(name)), None)
