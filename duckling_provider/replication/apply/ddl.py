"""MySQL's DDL statements, understood to the letter or not at all.

A statement becomes a list of steps. Every word of it has to be known: what isn't becomes `Unclear` for the table, which
then needs a new copy. General SQL parsers (sqlglot among them) read on past what they don't know, leave RENAME TABLE
and half of ALTER TABLE unparsed, and lose what stands in ``/*! */``; a mirror can't afford a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from duckling_provider.replication.apply.sql_tokens import END, NotUnderstoodError, Token, Tokens, split, tokenize
from duckling_provider.replication.model.families import CHOICES, INTEGERS, TEXTS, TIMES
from duckling_provider.replication.model.tables import Column, Table


@dataclass(frozen=True)
class Default:
    """What existing rows get in a new column: text, bytes or None; an "expression" is the server's business."""

    kind: Literal["none", "literal", "expression"] = "none"
    value: str | bytes | None = None


@dataclass(frozen=True)
class CreateTable:
    """:param like: the table whose shape it takes; `table` has no columns then."""

    table: Table
    if_not_exists: bool = False
    like: str | None = None

    @property
    def name(self) -> str:
        return self.table.name


@dataclass(frozen=True)
class DropTable:
    name: str


@dataclass(frozen=True)
class TruncateTable:
    name: str


@dataclass(frozen=True)
class RenameTable:
    name: str
    new: str


@dataclass(frozen=True)
class AddColumn:
    """:param if_not_exists: nothing happens when there is one of that name."""

    name: str
    column: Column
    default: Default = Default()
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropColumn:
    name: str
    column: str
    if_exists: bool = False


@dataclass(frozen=True)
class ChangeColumn:
    """The column `old` becomes `column`, which may have the same name."""

    name: str
    old: str
    column: Column
    if_exists: bool = False
    #: The column's own text said which character set it has, rather than the table's or database's default.
    explicit_charset: bool = False


@dataclass(frozen=True)
class RenameColumn:
    name: str
    old: str
    new: str


@dataclass(frozen=True)
class SetPrimaryKey:
    """`columns` in key order; empty for none."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Unclear:
    """What becomes of the table can't be told from the statement: `note` says why."""

    name: str
    note: str


Step: TypeAlias = (
    CreateTable
    | DropTable
    | TruncateTable
    | RenameTable
    | AddColumn
    | DropColumn
    | ChangeColumn
    | RenameColumn
    | SetPrimaryKey
    | Unclear
)


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
                charset = _charset_of(tokens.name())
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
        column = _column(action, charset=None)
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
        column = _column(part, charset=None)
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
            column = _column(element, charset=charset)
            columns.append(column.column)
            if column.is_key:
                key = (column.column.name,)
    if not columns:
        raise NotUnderstoodError("no columns")
    # MySQL takes names without case; the ledger has each as its column is written.
    written = {column.name.lower(): column.name for column in columns}
    key = tuple(written.get(part.lower(), part) for part in key)
    return Table(name, tuple(replace(c, nullable=c.nullable and c.name not in key) for c in columns), key)


# ---- columns ----

_SYNONYMS = {
    "INTEGER": "int", "INT1": "tinyint", "INT2": "smallint", "INT3": "mediumint", "INT4": "int", "INT8": "bigint",
    "MIDDLEINT": "mediumint", "DEC": "decimal", "NUMERIC": "decimal", "FIXED": "decimal", "REAL": "double",
    "FLOAT4": "float", "FLOAT8": "double", "CHARACTER": "char", "NCHAR": "char", "NVARCHAR": "varchar",
    "VARCHARACTER": "varchar",
}  # fmt: skip
_TEXTS = TEXTS | CHOICES
_SPATIAL = frozenset(
    {
        "geometry",
        "point",
        "linestring",
        "polygon",
        "multipoint",
        "multilinestring",
        "multipolygon",
        "geometrycollection",
    }
)
_OTHERS = frozenset(
    {"decimal", "float", "double", "bit", "date", "year", "json", "binary", "varbinary", "tinyblob", "blob",
     "mediumblob", "longblob"}
)  # fmt: skip
_AS_BYTES = {
    "char": "binary", "varchar": "varbinary", "tinytext": "tinyblob", "text": "blob", "mediumtext": "mediumblob",
    "longtext": "longblob",
}  # fmt: skip


@dataclass(frozen=True)
class _Definition:
    column: Column
    default: Default
    is_key: bool
    auto_increment: bool
    explicit_charset: bool


def _column(tokens: Tokens, *, charset: str | None) -> _Definition:
    """``name type attributes``, to the end of `tokens`.

    :param charset: the table's default; utf8mb4 when that isn't known either, which matters to bytes alone.
    """
    name = tokens.name()
    kind, arguments = _type(tokens)
    nullable = True
    unsigned = zerofill = is_key = auto_increment = generated = explicit = False
    collation = None
    default = Default()
    while not tokens.done:
        if tokens.skip("UNSIGNED"):
            unsigned = True
        elif tokens.skip("ZEROFILL"):
            unsigned = zerofill = True
        elif tokens.skip("SIGNED") or tokens.skip("UNIQUE", "KEY") or tokens.skip("UNIQUE") or tokens.skip("BINARY"):
            pass
        elif tokens.skip("CHARSET") or tokens.skip("CHARACTER", "SET"):
            charset, explicit = tokens.name().lower(), True
        elif tokens.skip("COLLATE"):
            tokens.skip_sign("=")
            collation = tokens.name().lower()
            charset, explicit = (charset if explicit else _charset_of(collation)), True
        elif tokens.skip("NOT", "NULL"):
            nullable = False
        elif tokens.skip("NULL") or tokens.skip_any("INVISIBLE", "VISIBLE", "VIRTUAL", "STORED", "PERSISTENT"):
            pass
        elif tokens.skip("DEFAULT"):
            default = _default(tokens)
        elif tokens.skip("ON", "UPDATE"):
            _skip_call(tokens)
        elif tokens.skip("AUTO_INCREMENT"):
            auto_increment = True
        elif tokens.skip("PRIMARY", "KEY") or tokens.skip("PRIMARY") or tokens.skip("KEY"):
            is_key, nullable = True, False
        elif tokens.skip("COMMENT"):
            tokens.next()
        elif tokens.skip("GENERATED", "ALWAYS", "AS") or tokens.skip("AS"):
            tokens.group()
            generated, default = True, Default("expression")
        elif tokens.skip("CONSTRAINT"):
            if not tokens.is_word("CHECK"):
                tokens.name()
        elif tokens.skip("CHECK"):
            tokens.group()
        elif tokens.skip("SRID") or tokens.skip("REF_SYSTEM_ID"):
            tokens.skip_sign("=")
            tokens.next()
        elif tokens.skip("REFERENCES"):
            _skip_reference(tokens)
        elif tokens.skip("COLUMN_FORMAT") or tokens.skip("STORAGE") or tokens.skip("AFTER"):
            tokens.name()
        elif tokens.skip("FIRST"):
            pass
        else:
            raise tokens.unknown()
    charset = charset or "utf8mb4"
    if charset == "binary" and kind in _AS_BYTES:
        kind = _AS_BYTES[kind]
    column = Column(
        name=name,
        data_type=kind,
        column_type=_written(kind, arguments, unsigned=unsigned, zerofill=zerofill),
        nullable=nullable,
        charset=charset if kind in _TEXTS else None,
        collation=collation if kind in _TEXTS else None,
        precision=_precision(kind, arguments),
        scale=int(arguments[1]) if kind == "decimal" and len(arguments) > 1 else 0 if kind == "decimal" else None,
        generated=generated,
        json=kind == "json",
    )
    return _Definition(column, default, is_key, auto_increment, explicit)


def _type(tokens: Tokens) -> tuple[str, list[str]]:
    kind, text = tokens.next()
    word = text.upper()
    if kind != "word" or word == "SERIAL":
        raise NotUnderstoodError(text)
    if word in {"BOOL", "BOOLEAN"}:
        return "tinyint", ["1"]
    if word == "NATIONAL":
        word = tokens.next()[1].upper()
    if word == "LONG":
        tokens.skip("VARCHAR")
        return "mediumtext", []
    if word == "DOUBLE":
        tokens.skip("PRECISION")
    name = _SYNONYMS.get(word, word.lower())
    if name == "char" and tokens.skip("VARYING"):
        name = "varchar"
    if name == "geomcollection":
        name = "geometrycollection"
    if name not in INTEGERS | _TEXTS | TIMES | _SPATIAL | _OTHERS:
        raise NotUnderstoodError(text)
    arguments = []
    if tokens.peek() == ("sign", "("):
        arguments = [part.next()[1] for part in split(tokens.group())]
    if name == "float" and len(arguments) == 1:
        name, arguments = ("double" if int(arguments[0]) > 24 else "float"), []
    return name, arguments


def _written(kind: str, arguments: list[str], *, unsigned: bool, zerofill: bool) -> str:
    """The type as ``information_schema.COLUMNS.COLUMN_TYPE`` writes it."""
    if kind in {"enum", "set"}:
        arguments = ["'" + value.replace("'", "''") + "'" for value in arguments]
    elif kind == "decimal":
        arguments = (arguments + ["10", "0"][len(arguments) :])[:2]
    elif kind in {"char", "binary", "bit"} and not arguments:
        arguments = ["1"]
    text = f"{kind}({','.join(arguments)})" if arguments else kind
    return text + " unsigned" * unsigned + " zerofill" * zerofill


def _precision(kind: str, arguments: list[str]) -> int | None:
    usual = {"decimal": 10, "bit": 1} | dict.fromkeys(TIMES, 0)
    if kind not in usual:
        return None
    return int(arguments[0]) if arguments else usual[kind]


def _default(tokens: Tokens) -> Default:
    sign = ""
    while tokens.peek() in {("sign", "-"), ("sign", "+")}:
        sign = tokens.next()[1].replace("+", "")
    kind, text = tokens.peek()
    if kind in {"string", "number"}:
        tokens.next()
        return Default("literal", sign + text)
    if kind == "hex":
        tokens.next()
        return Default("literal", bytes.fromhex(text if len(text) % 2 == 0 else "0" + text))
    if kind == "bits":
        tokens.next()
        return Default("literal", int(text or "0", 2).to_bytes((len(text) + 7) // 8, "big"))
    if tokens.skip("NULL"):
        return Default("literal", None)
    word = tokens.skip_any("TRUE", "FALSE")
    if word:
        return Default("literal", "1" if word == "TRUE" else "0")
    if tokens.peek() == ("sign", "("):
        tokens.group()
    else:
        _skip_call(tokens)
    return Default("expression")


def _skip_call(tokens: Tokens) -> None:
    """``CURRENT_TIMESTAMP``, ``now(6)``, ``uuid()``."""
    if tokens.next()[0] != "word":
        raise tokens.unknown()
    if tokens.peek() == ("sign", "("):
        tokens.group()


def _skip_reference(tokens: Tokens) -> None:
    tokens.name()
    if tokens.skip_sign("."):
        tokens.name()
    if tokens.peek() == ("sign", "("):
        tokens.group()
    while tokens.skip("MATCH") or tokens.skip("ON", "DELETE") or tokens.skip("ON", "UPDATE"):
        if not (tokens.skip("SET", "NULL") or tokens.skip("SET", "DEFAULT") or tokens.skip("NO", "ACTION")):
            tokens.next()


def _charset_of(collation: str) -> str:
    return collation.lower().partition("_")[0]
