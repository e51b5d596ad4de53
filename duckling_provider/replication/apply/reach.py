"""What a statement writes besides the tables that it names: by triggers, views, routines and foreign keys.

Needed only for statements that the binlog has instead of rows. What the user may not see on the server counts as there,
and as writing everything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from duckling_provider.replication.ddl.sql_tokens import tokenize
from duckling_provider.replication.ddl.statements import Wrote
from duckling_provider.replication.model.names import fold, quote_mysql
from duckling_provider.replication.mysql.merge_tables import read_merge_tables
from duckling_provider.replication.mysql.source import query

_TRIGGERS = "SELECT EVENT_OBJECT_TABLE, ACTION_STATEMENT FROM information_schema.TRIGGERS"
_VIEWS = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA NOT IN (%s, %s)"
_ROUTINES = "SELECT ROUTINE_NAME, ROUTINE_DEFINITION FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA <> %s"
_GRANT = re.compile(r"GRANT (.*?) ON (\*\.\*|`(?:[^`]|``)+`\.\*) TO ")


@dataclass(frozen=True)
class Reach:
    """Who writes through whom on one server, by folded names without their database.

    :param through: table, view, MERGE table or routine -> every name in what it runs; None where that can't be seen.
    :param routines: those of them that a statement calls by naming them.
    :param is_hidden: the user may not see the triggers and routines of the mirrored database.
    :param is_hidden_elsewhere: nor, or not all, of other databases.
    """

    through: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    routines: frozenset[str] = frozenset()
    is_hidden: bool = True
    is_hidden_elsewhere: bool = True

    def written_by(self, wrote: Wrote, tables: Iterable[str], children: Mapping[str, Iterable[str]]) -> set[str]:
        """Which of `tables` the statement may have written.

        :param children: table -> those whose rows its foreign keys change.
        """
        known = {fold(name): name for name in tables}
        by_keys = {fold(name): {fold(child) for child in found} for name, found in children.items()}
        if not wrote.fires:
            return {name for key, name in known.items() if key in wrote.named}
        targets = wrote.named if wrote.targets is None else wrote.targets | (wrote.named & self.routines)
        if not targets:
            return set(known.values())  # a SELECT that writes, by a function that can't be seen
        if wrote.elsewhere and self.is_hidden_elsewhere:
            return set(known.values())
        foreign = targets if wrote.elsewhere else wrote.foreign
        #: Those that are not, or not only, tables of another database.
        ours = set(targets - foreign)
        found: set[str] = set()
        left = list(targets)
        while left:
            name = left.pop()
            if name in found:
                continue
            found.add(name)
            if self.is_hidden and name in known and name in ours:
                return set(known.values())
            inside = self.through.get(name, frozenset())
            if inside is None:
                return set(known.values())
            more = inside | by_keys.get(name, set())
            # A table of ours may have the name of one there that was looked at already.
            found -= more - ours
            ours |= more
            left += more
        return {known[name] for name in ours if name in known}


def read_reach(connection: Any, database: str) -> Reach:
    """What the user of `connection` sees now."""
    through: dict[str, frozenset[str] | None] = {}
    routines: set[str] = set()
    found = [
        *((row, False) for row in query(connection, _TRIGGERS)),
        *((row, False) for row in _views(connection)),
        *((row, True) for row in query(connection, _ROUTINES, "sys")),
    ]
    for (name, definition), is_routine in found:
        key = fold(_text(name))
        inside = _names(_text(definition)) if definition else None
        before = through.get(key, frozenset())
        through[key] = None if inside is None or before is None else before | inside
        if is_routine:
            routines.add(key)
    for (_, name), members in read_merge_tables(connection, database).members.items():
        key = fold(name)
        before = through.get(key, frozenset())
        through[key] = None if before is None else before | {fold(member) for member in members}
    here, everywhere = _rights(connection, database)
    return Reach(
        through,
        frozenset(routines),
        not _sees(here),
        not (_sees(everywhere) and bool(everywhere & {"SELECT", "ALL PRIVILEGES"})),
    )


def _views(connection: Any) -> list[tuple[Any, ...]]:
    """Name and definition of each view. ``information_schema`` shows definitions to nearly no user."""
    import pymysql.err

    found: list[tuple[Any, ...]] = []
    for schema, name in query(connection, _VIEWS, "sys", "information_schema"):
        definition = None
        with contextlib.suppress(pymysql.err.Error):
            shown = query(connection, f"SHOW CREATE VIEW {quote_mysql(_text(schema))}.{quote_mysql(_text(name))}")
            definition = shown[0][1]
        found.append((name, definition))
    return found


def _rights(connection: Any, database: str) -> tuple[set[str], set[str]]:
    """What the user may do with all of `database`, and with all databases."""
    lines = [_text(row[0]) for row in query(connection, "SHOW GRANTS")]
    here: set[str] = set()
    everywhere: set[str] = set()
    if any(line.startswith("REVOKE") for line in lines):
        return here, everywhere
    for match in filter(None, map(_GRANT.match, lines)):
        rights = {right.strip().upper() for right in match[1].split(",")}
        where = match[2].removesuffix(".*").strip("`").replace("``", "`").replace("\\", "")
        if where == "*":
            # With it the user reads where the server keeps routines.
            everywhere |= rights | ({"EXECUTE"} if "SELECT" in rights else set())
        if where in {"*", database}:
            here |= rights
    return here | everywhere, everywhere


def _sees(rights: set[str]) -> bool:
    """Whether no trigger and no routine is hidden from who has these rights."""
    if "ALL PRIVILEGES" in rights:
        return True
    return "TRIGGER" in rights and bool(rights & {"EXECUTE", "ALTER ROUTINE", "SHOW_ROUTINE"})


def _names(definition: str) -> frozenset[str]:
    return frozenset(fold(text) for kind, text in tokenize(definition) if kind in {"word", "name", "string"})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
