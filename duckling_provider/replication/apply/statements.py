"""Any statement of the binlog, sorted by what it may do to the mirrored tables.

The lists here are of what is known: statements that leave all rows as they are, and those that a parser understands.
Everything else counts as having written whatever it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from duckling_provider.replication.apply import ddl
from duckling_provider.replication.apply.sql_tokens import NotUnderstoodError, Token, Tokens, tokenize
from duckling_provider.replication.apply.steps import Step
from duckling_provider.replication.model.names import fold

#: Statements that neither write rows of tables nor change tables, by their first words.
_HARMLESS = (
    ("GRANT",), ("REVOKE",), ("ANALYZE",), ("OPTIMIZE",), ("FLUSH",), ("SAVEPOINT",), ("RELEASE",), ("ROLLBACK",),
    ("SET", "PASSWORD"), ("SET", "DEFAULT", "ROLE"), ("INSTALL",), ("UNINSTALL",), ("RENAME", "USER"),
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


@dataclass(frozen=True)
class Followed:
    """A statement whose every word is understood, or whose doubts concern the tables of its `steps` only.

    :param redefines: a trigger, view or routine, or what a table had of them, is not what it was.
    :param drops_all: it is DROP DATABASE of the mirrored one.
    """

    steps: tuple[Step, ...]
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
    """

    note: str
    targets: frozenset[str] | None
    named: frozenset[str]
    foreign: frozenset[str] = frozenset()
    known: bool = True
    fires: bool = True


Meaning: TypeAlias = Followed | Wrote


def read_statement(statement: str, database: str, schema: str, *, folds: bool = False) -> Meaning:
    """What `statement`, given while `schema` was the current database, may have done to tables of `database`.

    :param folds: the server takes the names of databases and tables in lower case, as both of these are.
    """
    tokens = tokenize(statement)
    if "\\" in statement and tokens != tokenize(statement, escapes=False):
        # Whether a backslash escapes is a matter of sql_mode, which the statement does not tell.
        words = Tokens(tokens)
        if words.peek()[1].upper() in _DDL:
            return _unknown(tokens, "what a backslash means in it is not known", known=True)
    tokens, settings = _without_settings(tokens)
    if settings:
        return _unknown(tokens, f"done with {settings} set for it alone", known=True)
    words = Tokens(tokens)
    word = words.peek()[1].upper()
    if any(words.skip(*known) for known in _HARMLESS):
        return Followed(())
    if folds and word not in _DDL:
        tokens = [(kind, text.lower() if kind in {"word", "name"} else text) for kind, text in tokens]
    if word in {"INSERT", "REPLACE"}:
        return _inserted(tokens, database, schema)
    if word in {"UPDATE", "DELETE", "LOAD", "CALL", "WITH"}:
        return Wrote(_BY_STATEMENT, None, _names(tokens))
    if word in {"SELECT", "DO"}:
        return Wrote(_BY_STATEMENT, frozenset(), _names(tokens))
    if word not in _DDL:
        return _unknown(tokens, f"a statement that is not known: {word[:20] or 'without a word'}", known=False)
    if ddl.drops_database(tokens, database, folds=folds):
        return Followed((), redefines=True, drops_all=True)
    words = Tokens(tokens)
    if words.skip_any("CREATE", "ALTER", "DROP") and _other_object(words):
        return Followed((), _redefines(tokens))
    try:
        return Followed(tuple(ddl.parse(tokens, database, schema=schema, folds=folds)), _redefines(tokens))
    except NotUnderstoodError as error:
        return _unknown(tokens, f"a statement is not understood at \u201c{error}\u201d", known=False)


_BY_STATEMENT = "changed by a statement: binlog_format was not ROW"


def _unknown(tokens: list[Token], note: str, *, known: bool) -> Wrote:
    fires = tokens[0][1].upper() not in _DDL | {"REPAIR"} if tokens else True
    return Wrote(note, None, _names(tokens), known=known, fires=fires)


def _names(tokens: list[Token]) -> frozenset[str]:
    # ANSI_QUOTES makes names of double-quoted texts.
    return frozenset(fold(text) for kind, text in tokens if kind in {"word", "name", "string"})


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
