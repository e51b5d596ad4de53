"""MySQL's DDL statements, understood to the letter or not at all.

A statement becomes a list of steps. Every word of it has to be known: what isn't becomes `Unclear` for the table, which
then needs a new copy. General SQL parsers (sqlglot among them) read on past what they don't know, leave RENAME TABLE
and half of ALTER TABLE unparsed, and lose what stands in ``/*! */``; a mirror can't afford a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from duckling_provider.replication.apply.ddl_columns import charset_of, read_column
from duckling_provider.replication.apply.sql_tokens import END, NotUnderstoodError, Token, Tokens, split, tokenize
from duckling_provider.replication.apply.steps import (
    AddColumn,
    ChangeColumn,
    CreateTable,
    DropColumn,
    DropTable,
    RenameColumn,
    RenameTable,
    SetPrimaryKey,
    Step,
    TruncateTable,
    Unclear,
)
from duckling_provider.replication.model.tables import Column, Table


def drops_database(statement: str, database: str) -> bool:
    """Whether it is DROP DATABASE of `database`."""
    words = Tokens(tokenize(statement))
    if not words.skip("DROP") or not words.skip_any("DATABASE", "SCHEMA"):
        return False
    words.skip("IF", "EXISTS")
    return words.next()[1] == database and words.done


def parse(statement: str, database: str, *, schema: str | None = None) -> list[Step]:
    """What `statement` does to tables of `database`; empty when that is nothing that a mirror would see.

    :param schema: the current database when it was given; `database` itself when omitted.
    :raises NotUnderstoodError: when not even the tables can be told.
    """
    return _Statement(statement, database, database if schema is None else schema).steps()


def mentioned(statement: str) -> set[str]:
    """All names that occur in a statement of any kind."""
    return {text for kind, text in tokenize(statement) if kind in {"word", "name"}}


# ---- statements ----

_PARTITION_STEPS = frozenset({"ADD", "REORGANIZE", "COALESCE", "REBUILD", "OPTIMIZE", "ANALYZE", "CHECK", "REPAIR"})
_INDEX_WORDS = ("INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK")
_OPTIONS = frozenset(
    {"ENGINE", "AUTO_INCREMENT", "AVG_ROW_LENGTH", "CHECKSUM", "COMMENT", "COMPRESSION", "CONNECTION",
     "DELAY_KEY_WRITE", "ENCRYPTED", "ENCRYPTION", "ENCRYPTION_KEY_ID", "IETF_QUOTES", "INSERT_METHOD",
     "KEY_BLOCK_SIZE", "MAX_ROWS", "MIN_ROWS", "PACK_KEYS", "PAGE_CHECKSUM", "PAGE_COMPRESSED",
     "PAGE_COMPRESSION_LEVEL", "PASSWORD", "ROW_FORMAT", "SECONDARY_ENGINE", "STATS_AUTO_RECALC",
     "STATS_PERSISTENT", "STATS_SAMPLE_PAGES", "TRANSACTIONAL", "TYPE", "ALGORITHM", "LOCK"}
)  # fmt: skip


class _Statement:
    def __init__(self, statement: str, database: str, schema: str) -> None:
        self._tokens = Tokens(tokenize(statement))
        self._database, self._schema = database, schema

    def steps(self) -> list[Step]:
        tokens = self._tokens
        verb = tokens.next()[1].upper()
        if verb == "TRUNCATE":
            tokens.skip("TABLE")
            return [TruncateTable(name) for name in self._names()]
        if verb == "RENAME":
            return self._renames() if tokens.skip_any("TABLE", "TABLES") else []
        if verb == "DROP":
            if tokens.skip_any("DATABASE", "SCHEMA"):
                return []  # the tables stay as they were; a new database of that name makes its own again
            if not tokens.skip_any("TABLE", "TABLES"):
                return []
            tokens.skip("IF", "EXISTS")
            return [DropTable(name) for name in self._names()]
        if verb == "CREATE":
            replaces = tokens.skip("OR", "REPLACE")
            return self._create(replaces=replaces) if tokens.skip("TABLE") else []
        if verb == "ALTER":
            while tokens.skip_any("ONLINE", "IGNORE"):
                pass
            return self._alter() if tokens.skip("TABLE") else []
        return []

    def _table(self) -> tuple[bool, str]:
        """(whether it is of the mirrored database, name)."""
        schema, name = self._schema, self._tokens.name()
        if self._tokens.skip_sign("."):
            schema, name = name, self._tokens.name()
        return schema == self._database, name

    def _names(self) -> Iterator[str]:
        while True:
            ours, name = self._table()
            if ours:
                yield name
            if not self._tokens.skip_sign(","):
                return

    def _renames(self) -> list[Step]:
        steps: list[Step] = []
        self._tokens.skip("IF", "EXISTS")
        while True:
            old = self._table()
            while self._tokens.skip_any("WAIT", "NOWAIT") or self._tokens.peek()[0] == "number":
                if self._tokens.peek()[0] == "number":
                    self._tokens.next()
            if not self._tokens.skip("TO"):
                return [*steps, *([Unclear(old[1], "renamed in a way that is not understood")] if old[0] else [])]
            steps += _renamed(old, self._table())
            if not self._tokens.skip_sign(","):
                return steps

    def _create(self, *, replaces: bool) -> list[Step]:
        tokens = self._tokens
        careful = tokens.skip("IF", "NOT", "EXISTS")
        ours, name = self._table()
        if not ours:
            return []
        try:
            like = tokens.skip("LIKE")
            if like or (tokens.is_word("LIKE", ahead=1) and tokens.skip_sign("(") and tokens.skip("LIKE")):
                other_is_ours, other = self._table()
                if not other_is_ours:
                    return [Unclear(name, "made like a table of another database")]
                return [CreateTable(Table(name, ()), careful, other)]
            elements = tokens.group()
            charset = self._table_options()
            return [CreateTable(_shape(name, elements, charset), careful and not replaces)]
        except (NotUnderstoodError, ValueError, LookupError) as word:
            return [Unclear(name, f"its CREATE TABLE is not understood at “{word}”")]

    def _table_options(self) -> str:
        tokens, charset = self._tokens, "utf8mb4"
        while not tokens.done:
            tokens.skip_sign(",")
            if tokens.is_word("PARTITION"):
                return charset  # up to the end, and without columns
            tokens.skip("DEFAULT")
            if tokens.skip("CHARSET") or tokens.skip("CHARACTER", "SET"):
                tokens.skip_sign("=")
                charset = tokens.name().lower()
            elif tokens.skip("COLLATE"):
                tokens.skip_sign("=")
                charset = charset_of(tokens.name())
            else:
                _skip_option(tokens)
        return charset

    def _alter(self) -> list[Step]:
        tokens = self._tokens
        tokens.skip("IF", "EXISTS")
        ours, name = self._table()
        if tokens.skip("WAIT"):
            tokens.next()
        tokens.skip("NOWAIT")
        rest = []
        while not tokens.done:
            rest.append(tokens.next())
        steps: list[Step] = []
        renames: list[Step] = []
        try:
            for action in split(rest):
                if action.is_word("RENAME") and not action.is_word("COLUMN", "INDEX", "KEY", ahead=1):
                    action.next()
                    action.skip_any("TO", "AS")
                    action.skip_sign("=")
                    new = self._of(action)
                    renames += _renamed((ours, name), new)
                elif ours:
                    steps += _action(name, action)
        except (NotUnderstoodError, ValueError, LookupError) as word:
            steps = [Unclear(name, f"its ALTER TABLE is not understood at “{word}”")] if ours else []
        return steps + renames

    def _of(self, action: Tokens) -> tuple[bool, str]:
        schema, name = self._schema, action.name()
        if action.skip_sign("."):
            schema, name = name, action.name()
        return schema == self._database, name


def _renamed(old: tuple[bool, str], new: tuple[bool, str]) -> list[Step]:
    if old[0] and new[0]:
        return [RenameTable(old[1], new[1])]
    if old[0]:
        return [DropTable(old[1])]
    return [Unclear(new[1], "moved here from another database")] if new[0] else []


def _skip_option(tokens: Tokens) -> None:
    """One option of a table like ENGINE=InnoDB."""
    if tokens.skip("DATA", "DIRECTORY") or tokens.skip("INDEX", "DIRECTORY"):
        pass
    elif tokens.skip("UNION"):
        tokens.skip_sign("=")
        tokens.group()
        return
    elif not tokens.skip_any(*_OPTIONS):
        raise tokens.unknown()
    tokens.skip_sign("=")
    if tokens.next()[0] not in {"word", "string", "number", "name"}:
        raise tokens.unknown()


def _action(table: str, action: Tokens) -> list[Step]:
    """One action of an ALTER TABLE; empty for those that change neither columns nor rows."""
    if any(action.is_word(verb) for verb in _PARTITION_STEPS) and action.is_word("PARTITION", ahead=1):
        return []
    if action.skip("ADD"):
        return _added(table, action)
    if action.skip("DROP"):
        return _dropped(table, action)
    if action.skip("MODIFY") or action.is_word("CHANGE"):
        change = action.skip("CHANGE")
        action.skip("COLUMN")
        if_exists = action.skip("IF", "EXISTS")
        old = action.name() if change else action.peek()[1]
        column = read_column(action, charset=None)
        if column.is_key:
            raise NotUnderstoodError("PRIMARY KEY")
        return [ChangeColumn(table, old, column.column, if_exists, column.explicit_charset)]
    if action.skip("RENAME", "COLUMN"):
        action.skip("IF", "EXISTS")
        old = action.name()
        if not action.skip("TO"):
            raise action.unknown()
        return [RenameColumn(table, old, action.name())]
    if action.skip("RENAME") and action.skip_any("INDEX", "KEY"):
        return []
    if action.skip("ALTER"):
        # SET DEFAULT, DROP DEFAULT, visibility of columns and indexes, enforcement of checks: of no concern to rows.
        return []
    if action.skip("PARTITION", "BY") or action.skip("REMOVE", "PARTITIONING") or action.skip("ORDER", "BY"):
        return []
    if action.skip_any("FORCE", "NOWAIT") or (action.skip_any("ENABLE", "DISABLE") and action.skip("KEYS")):
        return []
    if action.skip("CONVERT", "TO"):
        text = {token[1].lower() for token in (action.next() for _ in range(4)) if token != END}
        if text & {"utf8mb4", "utf8mb3", "utf8"}:
            return []  # text is kept as Unicode here whatever it is there
        raise NotUnderstoodError("CONVERT TO CHARACTER SET")
    while not action.done:
        # A new default changes no existing column.
        action.skip("DEFAULT")
        if action.skip("CHARSET") or action.skip("CHARACTER", "SET") or action.skip("COLLATE"):
            action.skip_sign("=")
            action.name()
        elif action.skip("PARTITION", "BY"):
            return []
        else:
            _skip_option(action)
    return []


def _added(table: str, action: Tokens) -> list[Step]:
    if action.skip("CONSTRAINT") and not action.is_word("PRIMARY", *_INDEX_WORDS):
        action.name()
    if action.skip("PRIMARY", "KEY"):
        return [SetPrimaryKey(table, _key(action))]
    if action.is_word(*_INDEX_WORDS):
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
        steps.append(AddColumn(table, column.column, column.default, if_not_exists))
        if column.is_key:
            steps.append(SetPrimaryKey(table, (column.column.name,)))
    return steps


def _dropped(table: str, action: Tokens) -> list[Step]:
    if action.skip("PRIMARY", "KEY"):
        return [SetPrimaryKey(table, ())]
    if action.is_word("INDEX", "KEY", "FOREIGN", "CONSTRAINT", "CHECK") and action.peek(1) != END:
        return []
    if action.is_word("PARTITION", "PERIOD", "SYSTEM") and action.peek(1) != END:
        raise action.unknown()
    action.skip("COLUMN")
    if_exists = action.skip("IF", "EXISTS")
    name = action.name()
    action.skip_any("RESTRICT", "CASCADE")
    return [DropColumn(table, name, if_exists)]


def _key(tokens: Tokens) -> tuple[str, ...]:
    # An optional name and type of the index come first.
    while not tokens.done and tokens.peek() != ("sign", "("):
        tokens.next()
    return tuple(part.name() for part in split(tokens.group()))


def _shape(name: str, elements: list[Token], charset: str) -> Table:
    columns: list[Column] = []
    key: tuple[str, ...] = ()
    for element in split(elements):
        if element.skip("CONSTRAINT") and not element.is_word("PRIMARY", *_INDEX_WORDS):
            element.name()
        if element.skip("PRIMARY", "KEY"):
            key = _key(element)
        elif element.is_word(*_INDEX_WORDS):
            continue
        elif element.is_word("PERIOD"):
            raise element.unknown()
        else:
            column = read_column(element, charset=charset)
            columns.append(column.column)
            if column.is_key:
                key = (column.column.name,)
    if not columns:
        raise NotUnderstoodError("no columns")
    # MySQL takes names without case; the ledger has each as its column is written.
    written = {column.name.lower(): column.name for column in columns}
    key = tuple(written.get(part.lower(), part) for part in key)
    return Table(name, tuple(replace(c, nullable=c.nullable and c.name not in key) for c in columns), key)
