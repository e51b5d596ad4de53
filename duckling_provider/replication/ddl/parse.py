"""MySQL's DDL statements, understood to the letter or not at all.

A statement becomes a list of steps. Every word of it has to be known: what isn't becomes `Unclear` for the table, which
then needs a new copy. General SQL parsers (sqlglot among them) read on past what they don't know, leave RENAME TABLE
and half of ALTER TABLE unparsed, and lose what stands in ``/*! */``; a mirror can't afford a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from duckling_provider.replication.ddl.alter import INDEX_WORDS, action_steps, key_columns, skip_option
from duckling_provider.replication.ddl.columns import charset_of, read_column
from duckling_provider.replication.ddl.sql_tokens import NotUnderstoodError, Token, Tokens, split, tokenize
from duckling_provider.replication.ddl.steps import (
    AddColumn,
    CreateTable,
    DropTable,
    RenameTable,
    SetPrimaryKey,
    Step,
    TruncateTable,
    Unclear,
)
from duckling_provider.replication.model.tables import Column, Table


def drops_database(statement: str | list[Token], database: str, *, folds: bool = False) -> bool:
    """Whether it is DROP DATABASE of `database`."""
    words = Tokens(tokenize(statement) if isinstance(statement, str) else statement)
    if not words.skip("DROP") or not words.skip_any("DATABASE", "SCHEMA"):
        return False
    words.skip("IF", "EXISTS")
    name = words.next()[1]
    return (name.lower() if folds else name) == database and words.done


def parse(statement: str | list[Token], database: str, *, schema: str | None = None, folds: bool = False) -> list[Step]:
    """What `statement` does to tables of `database`; empty when that is nothing that a mirror would see.

    :param statement: its text or its tokens.
    :param schema: the current database when it was given; `database` itself when omitted.
    :param folds: the server takes the names of databases and tables in lower case, as `database` is.
    :raises NotUnderstoodError: when not even the tables can be told.
    """
    tokens = tokenize(statement) if isinstance(statement, str) else statement
    return _Statement(tokens, database, database if schema is None else schema, folds=folds).steps()


def rebuilt(tokens: list[Token], database: str, *, schema: str, folds: bool = False) -> tuple[str, ...]:
    """The tables of `database` whose rows a statement that `parse` understands may have written again, one by one.

    Each ALTER TABLE, CREATE INDEX, DROP INDEX and OPTIMIZE TABLE does so on some engine or with some setting of the
    session (``old_alter_table``), unless it asks for an algorithm that does not; only names and keys that are off and
    on are sure.
    """
    words = [text.upper() for _, text in tokens]
    if any(word in _IN_PLACE and "ALGORITHM" in words[max(0, at - 2) : at] for at, word in enumerate(words)):
        return ()
    return tuple(_Statement(tokens, database, schema, folds=folds).rebuilt())


def truncated(tokens: list[Token], *, schema: str, folds: bool = False) -> tuple[tuple[str, str], ...]:
    """(database, name) of the tables that TRUNCATE empties; none where it is another statement."""
    words = Tokens(tokens)
    if not words.skip("TRUNCATE"):
        return ()
    words.skip("TABLE")
    found: list[tuple[str, str]] = []
    while True:
        database, name = schema, words.name()
        if words.skip_sign("."):
            database, name = name, words.name()
        found.append((database.lower(), name.lower()) if folds else (database, name))
        if not words.skip_sign(","):
            return tuple(found)


def is_merge(tokens: list[Token]) -> bool:
    """Whether it defines a MERGE table: rows of other tables are written through that."""
    words = [text.upper() for _, text in tokens]
    return any(
        (word in _MERGE and ("ENGINE" in words[max(0, at - 2) : at] or "TYPE" in words[max(0, at - 2) : at]))
        or (word == "UNION" and words[at + 1 : at + 2] in (["="], ["("]))
        for at, word in enumerate(words)
    )


# ---- statements ----

_MERGE = frozenset({"MERGE", "MRG_MYISAM"})
#: Algorithms of ALTER TABLE by which no row is computed again.
_IN_PLACE = ("INPLACE", "INSTANT", "NOCOPY")


class _Statement:
    def __init__(self, statement: list[Token], database: str, schema: str, *, folds: bool) -> None:
        self._tokens, self._folds = Tokens(statement), folds
        self._database, self._schema = database, schema

    def steps(self) -> list[Step]:
        tokens = self._tokens
        verb = tokens.next()[1].upper()
        if verb == "TRUNCATE":
            tokens.skip("TABLE")
            return [TruncateTable(name) for name in self._names()]
        if verb == "RENAME" and tokens.skip_any("TABLE", "TABLES"):
            return self._renames()
        if verb == "DROP" and tokens.skip_any("TABLE", "TABLES"):
            tokens.skip("IF", "EXISTS")
            return [DropTable(name) for name in self._names()]
        if verb == "CREATE" and (tokens.skip("TABLE") or tokens.skip("OR", "REPLACE", "TABLE")):
            return self._create(replaces=tokens.peek(-2)[1].upper() == "REPLACE")
        if verb == "ALTER":
            tokens.skip("ONLINE")
            if tokens.skip("IGNORE", "TABLE") or tokens.skip("IGNORE", "ONLINE", "TABLE"):
                tokens.skip("IF", "EXISTS")
                ours, name = self._table()
                return [Unclear(name, "ALTER IGNORE may have left rows out")] if ours else []
            if tokens.skip("TABLE"):
                return self._alter()
        if verb in {"CREATE", "DROP"} and self._is_index():
            return self._index()
        raise tokens.unknown()

    def rebuilt(self) -> list[str]:
        tokens = self._tokens
        verb = tokens.next()[1].upper()
        if verb == "OPTIMIZE":
            if not tokens.skip_any("TABLE", "TABLES"):
                raise tokens.unknown()
            return list(self._names())
        if verb == "ALTER":
            while tokens.skip_any("ONLINE", "IGNORE", "TABLE") or tokens.skip("IF", "EXISTS"):
                pass
            ours, name = self._table()
            is_sure = all(
                (action.is_word("RENAME") and not action.is_word("COLUMN", "INDEX", "KEY", ahead=1))
                or (action.is_word("ENABLE", "DISABLE") and action.is_word("KEYS", ahead=1))
                for action in split(tokens.rest())
            )
            return [name] if ours and not is_sure else []
        if verb in {"CREATE", "DROP"} and self._is_index():
            while not tokens.done and not tokens.skip("ON"):
                tokens.next()
            ours, name = self._table()
            return [name] if ours else []
        return []

    def _is_index(self) -> bool:
        """Whether it is CREATE INDEX or DROP INDEX: then the index's name comes next."""
        tokens = self._tokens
        ahead = 0
        while tokens.is_word("OR", "REPLACE", "ONLINE", "OFFLINE", "UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR",
                             ahead=ahead):  # fmt: skip
            ahead += 1
        if not tokens.is_word("INDEX", ahead=ahead):
            return False
        for _ in range(ahead + 1):
            tokens.next()
        if not tokens.skip("IF", "NOT", "EXISTS"):
            tokens.skip("IF", "EXISTS")
        return True

    def _index(self) -> list[Step]:
        tokens = self._tokens
        if tokens.peek()[1].upper() != "PRIMARY":
            return []
        tokens.next()
        if not tokens.skip("ON"):
            raise tokens.unknown()
        ours, name = self._table()
        return [SetPrimaryKey(name, ())] if ours else []

    def _table(self) -> tuple[bool, str]:
        return self._of(self._tokens)

    def _names(self) -> Iterator[str]:
        while True:
            ours, name = self._table()
            if ours:
                yield name
            if not self._tokens.skip_sign(","):
                self._end()
                return

    def _end(self) -> None:
        """Nothing but how long to wait may follow."""
        tokens = self._tokens
        tokens.skip_any("RESTRICT", "CASCADE")
        if tokens.skip_any("WAIT", "NOWAIT") == "WAIT":
            tokens.next()
        if not tokens.done:
            raise tokens.unknown()

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
                self._end()
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
                tokens.skip_sign(")")
                if not tokens.done:
                    raise tokens.unknown()
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
            elif tokens.skip("START", "TRANSACTION"):
                pass  # MySQL writes its CREATE TABLE … SELECT so: the rows follow
            else:
                skip_option(tokens)
        return charset

    def _alter(self) -> list[Step]:
        tokens = self._tokens
        tokens.skip("IF", "EXISTS")
        ours, name = self._table()
        if tokens.skip("WAIT"):
            tokens.next()
        tokens.skip("NOWAIT")
        rest = tokens.rest()
        steps: list[Step] = []
        renames: list[Step] = []
        try:
            redefined: set[str] = set()
            for action in split(rest):
                if action.is_word("ALTER"):  # [COLUMN] [IF EXISTS] name
                    redefined |= {action.peek(ahead)[1].lower() for ahead in range(1, 5)}
                if action.is_word("RENAME") and not action.is_word("COLUMN", "INDEX", "KEY", ahead=1):
                    action.next()
                    action.skip_any("TO", "AS")
                    action.skip_sign("=")
                    new = self._of(action)
                    renames += _renamed((ours, name), new)
                elif ours:
                    steps += action_steps(name, action)
            if any(isinstance(step, AddColumn) and step.column.name.lower() in redefined for step in steps):
                raise NotUnderstoodError("ALTER of a column that it adds")
        except (NotUnderstoodError, ValueError, LookupError) as word:
            steps = [Unclear(name, f"its ALTER TABLE is not understood at “{word}”")] if ours else []
        return steps + renames

    def _of(self, action: Tokens) -> tuple[bool, str]:
        """(whether the table that comes next is of the mirrored database, its name)."""
        schema, name = self._schema, action.name()
        if action.skip_sign("."):
            schema, name = name, action.name()
        if self._folds:
            schema, name = schema.lower(), name.lower()
        return schema == self._database, name


def _renamed(old: tuple[bool, str], new: tuple[bool, str]) -> list[Step]:
    if old[0] and new[0]:
        return [RenameTable(old[1], new[1])]
    if old[0]:
        return [DropTable(old[1])]
    return [moved_here(new[1])] if new[0] else []


def moved_here(name: str) -> Unclear:
    """A table of another database got that name."""
    return Unclear(name, "moved here from another database")


def _shape(name: str, elements: list[Token], charset: str) -> Table:
    columns: list[Column] = []
    key: tuple[str, ...] = ()
    for element in split(elements):
        if element.skip("CONSTRAINT") and not element.is_word("PRIMARY", *INDEX_WORDS):
            element.name()
        if element.skip("PRIMARY", "KEY"):
            key = key_columns(element)
        elif element.is_word(*INDEX_WORDS):
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
