"""Any statement of the binlog, sorted by what it may do to the mirrored tables.

The lists here are of what is known: statements that leave all rows as they are, and those that a parser understands.
Everything else counts as having written whatever it names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from duckling_provider.replication.ddl.parse import drops_database, is_merge, parse, rebuilt, truncated
from duckling_provider.replication.ddl.sql_tokens import NotUnderstoodError, Token, Tokens, tokenize
from duckling_provider.replication.ddl.steps import Step
from duckling_provider.replication.model.names import fold

#: Statements that neither write rows of tables nor change tables, by their first words.
_HARMLESS = (
    ("GRANT",), ("REVOKE",), ("ANALYZE", "TABLE"), ("ANALYZE", "TABLES"), ("FLUSH",), ("SAVEPOINT",), ("RELEASE",),
    ("ROLLBACK",), ("SET", "PASSWORD"), ("SET", "DEFAULT", "ROLE"), ("INSTALL",), ("UNINSTALL",), ("RENAME", "USER"),
)  # fmt: skip
#: Views, and what runs statements.
_WRITERS = frozenset({"VIEW", "TRIGGER", "FUNCTION", "PROCEDURE", "PACKAGE"})
#: What else than tables CREATE, ALTER and DROP are for, without a change of rows.
_OTHERS = _WRITERS | {
    "EVENT", "USER", "ROLE", "SERVER", "DATABASE", "SCHEMA", "SEQUENCE", "TABLESPACE", "UNDO", "LOGFILE", "INSTANCE",
    "RESOURCE", "TEMPORARY", "PREPARE",
}  # fmt: skip
#: What stands between CREATE and such a word.
_MODIFIERS = frozenset(
    {"OR", "REPLACE", "DEFINER", "CURRENT_USER", "CURRENT_ROLE", "ALGORITHM", "UNDEFINED", "MERGE", "TEMPTABLE", "SQL",
     "SECURITY", "INVOKER", "AGGREGATE"}
)  # fmt: skip
_DDL = frozenset({"CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE"})
#: Session variables that neither values nor the meaning of a statement depend on.
_HARMLESS_SETTINGS = frozenset(
    {"LOCK_WAIT_TIMEOUT", "INNODB_LOCK_WAIT_TIMEOUT", "MAX_STATEMENT_TIME", "SKIP_PARALLEL_REPLICATION",
     "ALTER_ALGORITHM", "LONG_QUERY_TIME", "SLOW_QUERY_LOG"}
)  # fmt: skip
#: Bits of sql_mode: what a backslash and a double quote mean in a statement.
_NO_BACKSLASH_ESCAPES, _ANSI_QUOTES = 1 << 20, 1 << 2
#: Those in which a definition of a table means the same as without them, or is read so here: REAL_AS_FLOAT,
#: PIPES_AS_CONCAT, ANSI_QUOTES, IGNORE_SPACE, IGNORE_BAD_TABLE_OPTIONS, ONLY_FULL_GROUP_BY, NO_UNSIGNED_SUBTRACTION,
#: NO_DIR_IN_CREATE; NO_KEY_OPTIONS, NO_TABLE_OPTIONS, NO_FIELD_OPTIONS; ANSI to NO_ENGINE_SUBSTITUTION. Not so
#: PAD_CHAR_TO_FULL_LENGTH, EMPTY_STRING_IS_NULL, TIME_ROUND_FRACTIONAL, ORACLE and other dialects.
_HARMLESS_MODES = 0xFF | 0xE000 | (0x7FFFFFFF & ~0x3FFFF)


@dataclass(frozen=True)
class Followed:
    """A statement whose every word is understood, or whose doubts concern the tables of its `steps` only.

    :param rebuilt: tables whose rows the server may have written again, each computed from its columns once more.
    :param truncated: what was emptied, by database and name; a MERGE table empties its tables.
    :param redefines: a trigger, view or routine, or what a table had of them, is not what it was.
    :param drops_all: it is DROP DATABASE of the mirrored one.
    """

    steps: tuple[Step, ...]
    rebuilt: tuple[str, ...] = ()
    truncated: tuple[tuple[str, str], ...] = ()
    redefines: bool = False
    drops_all: bool = False


@dataclass(frozen=True)
class Wrote:
    """A statement that wrote rows which the binlog does not show, or may have.

    :param targets: folded names of tables and views that it writes; None for all that it names.
    :param named: all names in it, folded: of routines, which write too, or of tables.
    :param foreign: folded names among `targets` that are of another database for certain.
    :param known: whether it is a kind of statement that is known to write rows.
    :param fires: triggers and foreign keys may have done more.
    :param elsewhere: it was given in another database and does not name the mirrored one, so it writes there by
        triggers, views and routines only.
    """

    note: str
    targets: frozenset[str] | None
    named: frozenset[str]
    foreign: frozenset[str] = frozenset()
    known: bool = True
    fires: bool = True
    elsewhere: bool = False


Meaning: TypeAlias = Followed | Wrote


def read_statement(
    statement: str,
    database: str,
    schema: str,
    *,
    folds: bool = False,
    sql_mode: int | None = None,
    of_session: bool = False,
    mariadb: bool = True,
) -> Meaning:
    """What `statement`, given while `schema` was the current database, may have done to tables of `database`.

    :param folds: the server takes the names of databases and tables in lower case, as both of these are.
    :param sql_mode: its bits at the time; None when they are not known.
    :param of_session: it may be about temporary tables.
    :param mariadb: whether ``/*M! */`` is no comment.
    """
    mode = sql_mode or 0
    tokens = tokenize(statement, escapes=not mode & _NO_BACKSLASH_ESCAPES, names='`"' if mode & _ANSI_QUOTES else "`")
    is_ddl = Tokens(tokens).is_word(*_DDL)
    if is_ddl and sql_mode is None and "\\" in statement and tokens != tokenize(statement, escapes=False):
        return _unknown(tokens, "what a backslash means in it is not known", known=True)
    if not mariadb and "/*M!" in statement:
        return _unknown(tokens, "it has a comment that only MariaDB reads", known=True)
    tokens, settings = _without_settings(tokens)
    if settings:
        return _unknown(tokens, f"done with {settings} set for it alone", known=True)
    words = Tokens(tokens)
    word = words.peek()[1].upper()
    if any(words.skip(*known) for known in _HARMLESS):
        return Followed(())
    if word == "OPTIMIZE":
        return _rebuilt(tokens, database, schema, folds=folds)
    if word not in _DDL:
        meaning = _changed_rows(tokens, word, database, schema, folds=folds)
        is_elsewhere = fold(schema) != fold(database) and fold(database) not in meaning.named
        return replace(meaning, elsewhere=True) if is_elsewhere else meaning
    if drops_database(tokens, database, folds=folds):
        return Followed((), redefines=True, drops_all=True)
    words = Tokens(tokens)
    if words.skip_any("CREATE", "ALTER", "DROP") and _other_object(words):
        return Followed((), redefines=_redefines(tokens))
    # Temporary tables are created and dropped as such, and altered and emptied without that word.
    is_dropped = word == "DROP" and Tokens(tokens).is_word("TABLE", "TABLES", ahead=1)
    if of_session and word != "CREATE" and not is_dropped:
        return _unknown(tokens, "it may be about a temporary table of that name", known=True)
    if mode & ~_HARMLESS_MODES and word in {"CREATE", "ALTER"}:
        return _unknown(tokens, "its sql_mode is one in which values may become others", known=True)
    if is_merge(tokens):
        return _unknown(tokens, "rows of it may have been written through a MERGE table", known=True)
    try:
        return Followed(
            tuple(parse(tokens, database, schema=schema, folds=folds)),
            rebuilt(tokens, database, schema=schema, folds=folds),
            truncated(tokens, schema=schema, folds=folds),
            _redefines(tokens),
        )
    except NotUnderstoodError as error:
        return _unknown(tokens, f"a statement is not understood at \u201c{error}\u201d", known=False)


def _rebuilt(tokens: list[Token], database: str, schema: str, *, folds: bool) -> Meaning:
    """OPTIMIZE TABLE."""
    try:
        return Followed((), rebuilt(tokens, database, schema=schema, folds=folds))
    except NotUnderstoodError as error:
        return _unknown(tokens, f"a statement is not understood at \u201c{error}\u201d", known=False)


def _changed_rows(tokens: list[Token], word: str, database: str, schema: str, *, folds: bool) -> Wrote:
    if folds:
        tokens = [(kind, text.lower() if kind in {"word", "name"} else text) for kind, text in tokens]
    if word in {"INSERT", "REPLACE"}:
        return _inserted(tokens, database, schema)
    if word in {"UPDATE", "DELETE", "LOAD", "CALL", "WITH"}:
        return Wrote(_BY_STATEMENT, None, _names(tokens))
    if word in {"SELECT", "DO"}:
        return Wrote(_BY_STATEMENT, frozenset(), _names(tokens))
    return _unknown(tokens, f"a statement that is not known: {word[:20] or 'without a word'}", known=False)


_BY_STATEMENT = "changed by a statement: binlog_format was not ROW"


def _unknown(tokens: list[Token], note: str, *, known: bool) -> Wrote:
    fires = tokens[0][1].upper() not in _DDL | {"REPAIR"} if tokens else True
    return Wrote(note, None, _names(tokens), known=known, fires=fires)


def _names(tokens: list[Token]) -> frozenset[str]:
    # ANSI_QUOTES makes names of double-quoted texts.
    # Where the server folds names, it does so beyond ASCII.
    said = [text for kind, text in tokens if kind in {"word", "name", "string"}]
    return frozenset(map(fold, said)) | frozenset(text.lower() for text in said if not text.isascii())


def _inserted(tokens: list[Token], database: str, schema: str) -> Wrote:
    """What it selects from is only read."""
    words = Tokens(tokens)
    words.next()
    while words.skip_any("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO"):
        pass
    try:
        name = words.name()
        if words.skip_sign("."):
            schema, name = name, words.name()
    except NotUnderstoodError:
        return Wrote(_BY_STATEMENT, None, _names(tokens))
    target = frozenset({fold(name)})
    return Wrote(_BY_STATEMENT, target, _names(tokens), frozenset() if fold(schema) == fold(database) else target)


def _without_settings(tokens: list[Token]) -> tuple[list[Token], str]:
    """What MariaDB's ``SET STATEMENT … FOR`` stands before, and the name of a variable there that may matter."""
    words = Tokens(tokens)
    if not words.skip("SET", "STATEMENT"):
        return tokens, ""
    matters = ""
    depth = 0
    is_name = True
    while not words.done:
        if not depth and words.skip("FOR"):
            inner, more = _without_settings(words.rest())
            return inner, matters or more
        kind, text = words.next()
        depth += ((kind, text) == ("sign", "(")) - ((kind, text) == ("sign", ")"))
        if is_name and text.upper() not in _HARMLESS_SETTINGS:
            matters = text[:40]
        is_name = not depth and (kind, text) == ("sign", ",")
    return tokens, "STATEMENT"


def _redefines(tokens: list[Token]) -> bool:
    """Whether a statement of DDL changes or removes what writes rows on behalf of others."""
    words = Tokens(tokens)
    is_new = words.skip("CREATE") and not words.skip("OR", "REPLACE")
    words.skip_any("ALTER", "DROP")
    return not is_new and (words.is_word("TABLE", "TABLES") or _other_object(words) in _WRITERS)


def _other_object(tokens: Tokens) -> str:
    """What else than a table a CREATE, ALTER or DROP is about; empty when that is not known."""
    while not tokens.done:
        if tokens.is_word(*_OTHERS):
            return tokens.next()[1].upper()
        if tokens.skip("SPATIAL", "REFERENCE", "SYSTEM"):
            return "SPATIAL REFERENCE SYSTEM"
        if tokens.is_word("DEFINER") and tokens.peek(1) == ("sign", "="):
            for _ in range(3):
                tokens.next()
            if tokens.peek() == ("sign", "("):
                tokens.group()
            if tokens.skip_sign("@"):
                tokens.next()
        elif not tokens.skip_any(*_MODIFIERS) and not tokens.skip_sign("="):
            return ""
    return ""
