"""One action of an ALTER TABLE, and what CREATE TABLE has in common with it: options and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from duckling_provider.replication.ddl.columns import read_column
from duckling_provider.replication.ddl.sql_tokens import END, NotUnderstoodError, Tokens, split
from duckling_provider.replication.ddl.steps import (
    AddColumn,
    ChangeColumn,
    DropColumn,
    RenameColumn,
    Rewrite,
    SetPrimaryKey,
    Step,
)

#: Not REPAIR: it may leave rows out.
_PARTITION_STEPS = frozenset({"ADD", "REORGANIZE", "COALESCE", "REBUILD", "OPTIMIZE", "ANALYZE", "CHECK"})
#: Engines that keep exactly the rows that they are given.
_ENGINES = frozenset({"INNODB", "MYISAM", "ARIA", "ROCKSDB"})
INDEX_WORDS = ("INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK")
_OPTIONS = frozenset(
    {"AUTO_INCREMENT", "AVG_ROW_LENGTH", "CHECKSUM", "COMMENT", "COMPRESSION", "DELAY_KEY_WRITE", "ENCRYPTED",
     "ENCRYPTION", "ENCRYPTION_KEY_ID", "KEY_BLOCK_SIZE", "MAX_ROWS", "MIN_ROWS", "PACK_KEYS", "PAGE_CHECKSUM",
     "PAGE_COMPRESSED", "PAGE_COMPRESSION_LEVEL", "PASSWORD", "ROW_FORMAT", "SECONDARY_ENGINE", "STATS_AUTO_RECALC",
     "STATS_PERSISTENT", "STATS_SAMPLE_PAGES", "TRANSACTIONAL", "ALGORITHM", "LOCK"}
)  # fmt: skip


def skip_option(tokens: Tokens) -> None:
    """One option of a table like ENGINE=InnoDB."""
    if tokens.skip("DATA", "DIRECTORY") or tokens.skip("INDEX", "DIRECTORY"):
        pass
    elif tokens.skip_any("ENGINE", "TYPE"):
        tokens.skip_sign("=")
        if tokens.peek()[1].upper() not in _ENGINES:
            raise tokens.unknown()
    elif not tokens.skip_any(*_OPTIONS):
        raise tokens.unknown()
    tokens.skip_sign("=")
    if tokens.next()[0] not in {"word", "string", "number", "name"}:
        raise tokens.unknown()


def action_steps(table: str, action: Tokens) -> list[Step]:
    """One action of an ALTER TABLE; empty for those that change neither columns nor rows."""
    if any(action.is_word(verb) for verb in _PARTITION_STEPS) and action.is_word("PARTITION", ahead=1):
        return []
    for verb, followed in _ACTIONS:
        if action.skip(*verb):
            return followed(table, action)
    return _options(table, action)


def _options(table: str, action: Tokens) -> list[Step]:
    """Options of the table, several of them without commas."""
    steps: list[Step] = []
    while not action.done:
        if action.is_word("ENGINE", "TYPE") or action.is_word("COPY", ahead=1) or action.is_word("COPY", ahead=2):
            steps = [Rewrite(table)]
        # A new default changes no existing column.
        action.skip("DEFAULT")
        if action.skip("CHARSET") or action.skip("CHARACTER", "SET") or action.skip("COLLATE"):
            action.skip_sign("=")
            action.name()
        elif action.skip("PARTITION", "BY"):
            return [Rewrite(table)]
        else:
            skip_option(action)
    return steps


_VISIBILITY = (("SET", "VISIBLE"), ("SET", "INVISIBLE"))


def _nothing(table: str, action: Tokens) -> list[Step]:
    del table, action
    return []


def _rewritten(table: str, action: Tokens) -> list[Step]:
    del action
    return [Rewrite(table)]


def _modified(table: str, action: Tokens, *, renames: bool = False) -> list[Step]:
    action.skip("COLUMN")
    if_exists = action.skip("IF", "EXISTS")
    old = action.name() if renames else action.peek()[1]
    column = read_column(action, charset=None)
    if column.is_key:
        raise NotUnderstoodError("PRIMARY KEY")
    return [ChangeColumn(table, old, column.column, if_exists, column.explicit_charset, column.auto_increment)]


def _renamed_column(table: str, action: Tokens) -> list[Step]:
    action.skip("IF", "EXISTS")
    old = action.name()
    if not action.skip("TO"):
        raise action.unknown()
    return [RenameColumn(table, old, action.name())]


def _altered(table: str, action: Tokens) -> list[Step]:
    del table
    # Visibility of indexes and enforcement of checks.
    if action.is_word("INDEX", "KEY", "CHECK", "CONSTRAINT") and action.peek(1)[0] in {"name", "word"}:
        return []
    action.skip("COLUMN")
    action.skip("IF", "EXISTS")
    action.name()
    # A new default is for rows to come.
    if any(action.skip(*words) for words in (("DROP", "DEFAULT"), ("SET", "DEFAULT"), *_VISIBILITY)):
        return []
    raise action.unknown()


def _converted(table: str, action: Tokens) -> list[Step]:
    if action.skip("CHARSET") or action.skip("CHARACTER", "SET"):
        action.skip_sign("=")
        if action.name().lower() == "utf8mb4" and (action.done or action.skip("COLLATE")):
            return [Rewrite(table)]  # it has every character, and text is kept as Unicode here
    raise NotUnderstoodError("CONVERT TO CHARACTER SET")


def _added(table: str, action: Tokens) -> list[Step]:
    if action.skip("CONSTRAINT") and not action.is_word("PRIMARY", *INDEX_WORDS):
        action.name()
    if action.skip("PRIMARY", "KEY"):
        return [SetPrimaryKey(table, key_columns(action))]
    if action.is_word(*INDEX_WORDS):
        return []
    if action.is_word("PERIOD", "SYSTEM"):
        raise action.unknown()
    action.skip("COLUMN")
    if_not_exists = action.skip("IF", "NOT", "EXISTS")
    parts = list(split(action.group())) if action.peek() == ("sign", "(") else [action]
    steps: list[Step] = []
    for part in parts:
        column = read_column(part, charset=None)
        if column.auto_increment:
            raise NotUnderstoodError("AUTO_INCREMENT")
        steps.append(AddColumn(table, column.column, column.default, if_not_exists, column.explicit_null))
        if column.is_key:
            steps.append(SetPrimaryKey(table, (column.column.name,)))
    return steps


def _dropped(table: str, action: Tokens) -> list[Step]:
    if action.skip("PRIMARY", "KEY"):
        return [SetPrimaryKey(table, ())]
    if action.is_word("INDEX", "KEY", "FOREIGN", "CONSTRAINT", "CHECK") and action.peek(1) != END:
        is_primary = any(token[1].upper() == "PRIMARY" for token in (action.peek(1), action.peek(3)))
        return [SetPrimaryKey(table, ())] if is_primary else []
    if action.is_word("PARTITION", "PERIOD", "SYSTEM") and action.peek(1) != END:
        raise action.unknown()
    action.skip("COLUMN")
    if_exists = action.skip("IF", "EXISTS")
    name = action.name()
    action.skip_any("RESTRICT", "CASCADE")
    return [DropColumn(table, name, if_exists)]


def key_columns(tokens: Tokens) -> tuple[str, ...]:
    # An optional name and type of the index come first.
    while not tokens.done and tokens.peek() != ("sign", "("):
        tokens.next()
    return tuple(part.name() for part in split(tokens.group()))


_Followed = Callable[[str, Tokens], "list[Step]"]
#: How an action begins, and what it comes to.
_ACTIONS: tuple[tuple[tuple[str, ...], _Followed], ...] = (
    (("ADD",), _added),
    (("DROP",), _dropped),
    (("MODIFY",), _modified),
    (("CHANGE",), partial(_modified, renames=True)),
    (("RENAME", "COLUMN"), _renamed_column),
    (("RENAME", "INDEX"), _nothing),
    (("RENAME", "KEY"), _nothing),
    (("ALTER",), _altered),
    (("PARTITION", "BY"), _rewritten),
    (("REMOVE", "PARTITIONING"), _rewritten),
    (("ORDER", "BY"), _rewritten),
    (("FORCE",), _rewritten),
    (("NOWAIT",), _nothing),
    (("ENABLE", "KEYS"), _nothing),
    (("DISABLE", "KEYS"), _nothing),
    (("CONVERT", "TO"), _converted),
)
