"""A column's definition in CREATE TABLE and ALTER TABLE, understood to the letter or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from duckling_provider.replication.ddl.sql_tokens import NotUnderstoodError, Tokens, split
from duckling_provider.replication.ddl.steps import Default
from duckling_provider.replication.model.families import CHOICES, INTEGERS, TEXTS, TIMES
from duckling_provider.replication.model.tables import Column

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
     "mediumblob", "longblob", "vector"}
)  # fmt: skip
_AS_BYTES = {
    "char": "binary", "varchar": "varbinary", "tinytext": "tinyblob", "text": "blob", "mediumtext": "mediumblob",
    "longtext": "longblob",
}  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """A column as a statement defines it.

    :param explicit_charset: its own text says which character set it has.
    """

    column: Column
    default: Default
    is_key: bool
    auto_increment: bool
    explicit_charset: bool
    explicit_null: bool


@dataclass
class _Attributes:
    """What follows the type, as far as it has been read."""

    charset: str | None
    collation: str | None = None
    default: Default = field(default_factory=Default)
    nullable: bool = True
    unsigned: bool = False
    zerofill: bool = False
    is_key: bool = False
    auto_increment: bool = False
    generated: bool = False
    explicit_charset: bool = False
    explicit_null: bool = False


def _unsigned(found: _Attributes, _: Tokens) -> None:
    found.unsigned = True


def _zerofill(found: _Attributes, _: Tokens) -> None:
    found.unsigned = found.zerofill = True


def _charset(found: _Attributes, tokens: Tokens) -> None:
    found.charset, found.explicit_charset = tokens.name().lower(), True


def _collation(found: _Attributes, tokens: Tokens) -> None:
    tokens.skip_sign("=")
    found.collation = tokens.name().lower()
    if not found.explicit_charset:
        found.charset = charset_of(found.collation)
    found.explicit_charset = True


def _not_null(found: _Attributes, _: Tokens) -> None:
    found.nullable = False


def _null(found: _Attributes, _: Tokens) -> None:
    found.explicit_null = True


def _default_of(found: _Attributes, tokens: Tokens) -> None:
    found.default = _default(tokens)


def _auto_increment(found: _Attributes, _: Tokens) -> None:
    found.auto_increment = True


def _key(found: _Attributes, _: Tokens) -> None:
    found.is_key, found.nullable = True, False


def _generated(found: _Attributes, tokens: Tokens) -> None:
    tokens.group()
    found.generated, found.default = True, Default("expression")


def _nothing(_: _Attributes, __: Tokens) -> None:
    """Of no concern to values."""


def _call(_: _Attributes, tokens: Tokens) -> None:
    _skip_call(tokens)


def _word(_: _Attributes, tokens: Tokens) -> None:
    tokens.next()


def _name(_: _Attributes, tokens: Tokens) -> None:
    tokens.name()


def _group(_: _Attributes, tokens: Tokens) -> None:
    tokens.group()


def _constraint(_: _Attributes, tokens: Tokens) -> None:
    if not tokens.is_word("CHECK"):
        tokens.name()


def _srid(_: _Attributes, tokens: Tokens) -> None:
    tokens.skip_sign("=")
    tokens.next()


def _reference(_: _Attributes, tokens: Tokens) -> None:
    _skip_reference(tokens)


#: All attributes that a column may have; of those that begin alike the longer ones come first.
_ATTRIBUTES: dict[tuple[str, ...], Callable[[_Attributes, Tokens], None]] = {
    ("UNSIGNED",): _unsigned,
    ("ZEROFILL",): _zerofill,
    ("SIGNED",): _nothing,
    ("UNIQUE", "KEY"): _nothing,
    ("UNIQUE",): _nothing,
    ("BINARY",): _nothing,
    ("CHARSET",): _charset,
    ("CHARACTER", "SET"): _charset,
    ("COLLATE",): _collation,
    ("NOT", "NULL"): _not_null,
    ("NULL",): _null,
    ("INVISIBLE",): _nothing,
    ("VISIBLE",): _nothing,
    ("VIRTUAL",): _nothing,
    ("STORED",): _nothing,
    ("PERSISTENT",): _nothing,
    ("DEFAULT",): _default_of,
    ("ON", "UPDATE"): _call,
    ("AUTO_INCREMENT",): _auto_increment,
    ("PRIMARY", "KEY"): _key,
    ("PRIMARY",): _key,
    ("KEY",): _key,
    ("COMMENT",): _word,
    ("GENERATED", "ALWAYS", "AS"): _generated,
    ("AS",): _generated,
    ("CONSTRAINT",): _constraint,
    ("CHECK",): _group,
    ("SRID",): _srid,
    ("REF_SYSTEM_ID",): _srid,
    ("REFERENCES",): _reference,
    ("COLUMN_FORMAT",): _name,
    ("STORAGE",): _name,
    ("AFTER",): _name,
    ("FIRST",): _nothing,
}


def _attributes(tokens: Tokens, charset: str | None) -> _Attributes:
    found = _Attributes(charset)
    while not tokens.done:
        for words, read in _ATTRIBUTES.items():
            if tokens.skip(*words):
                read(found, tokens)
                break
        else:
            raise tokens.unknown()
    return found


def read_column(tokens: Tokens, *, charset: str | None) -> Definition:
    """``name type attributes``, to the end of `tokens`.

    :param charset: the table's default; utf8mb4 when that isn't known either, which matters to bytes alone.
    :raises NotUnderstoodError: at a word that is not known.
    :raises ValueError: for arguments of a type that are no numbers.
    """
    name = tokens.name()
    kind, arguments = _type(tokens)
    found = _attributes(tokens, charset)
    charset = found.charset or "utf8mb4"
    if charset == "binary" and kind in _AS_BYTES:
        kind = _AS_BYTES[kind]
    column = Column(
        name=name,
        data_type=kind,
        column_type=_written(kind, arguments, unsigned=found.unsigned, zerofill=found.zerofill),
        nullable=found.nullable,
        charset=charset if kind in _TEXTS else None,
        collation=found.collation if kind in _TEXTS else None,
        precision=_precision(kind, arguments),
        scale=int(arguments[1]) if kind == "decimal" and len(arguments) > 1 else 0 if kind == "decimal" else None,
        generated=found.generated,
        json=kind == "json",
    )
    return Definition(
        column, found.default, found.is_key, found.auto_increment, found.explicit_charset, found.explicit_null
    )


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
    if name in CHOICES:
        arguments = [value.rstrip(" ") for value in arguments]  # as the server keeps them
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
    if tokens.peek() in {("sign", "-"), ("sign", "+")} and tokens.peek(1)[0] == "number":
        sign = tokens.next()[1].replace("+", "")
    kind, text = tokens.peek()
    if kind in {"string", "number"}:
        tokens.next()
        return Default("literal", sign + text, kind == "number")
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
        return Default("literal", "1" if word == "TRUE" else "0", number=True)
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


def charset_of(collation: str) -> str:
    """The character set that a collation belongs to."""
    return collation.lower().partition("_")[0]
