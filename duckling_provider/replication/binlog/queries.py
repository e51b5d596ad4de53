"""Events that hold a statement: its text, and what of its session it depends on.

Format: MySQL's ``libs/mysql/binlog/event/statement_events.h``, "Query_event".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from duckling_provider.replication.binlog import dump
from duckling_provider.replication.binlog.charsets import Charsets, UndecodableError
from duckling_provider.replication.binlog.dump import RawEvent

EXECUTE_LOAD_QUERY = 18

_SQL_MODE, _CATALOG, _CHARSET, _TIME_ZONE, _CATALOG_NZ, _INVOKER, _DATABASES = 1, 2, 4, 5, 6, 11, 12
#: What the other status variables take, in bytes.
_SIZES = {0: 4, _SQL_MODE: 8, 3: 4, _CHARSET: 6, 7: 2, 8: 2, 9: 8, 10: 4, 13: 3, 16: 1, 17: 8, 18: 2, 19: 1, 20: 1}
#: "More databases than fit."
_TOO_MANY = 254

#: What MariaDB and MySQL pass over in front of a statement.
_COMMENT = re.compile(r"\s*(/\*(?!M?!).*?\*/|--[ \t][^\n]*\n?|#[^\n]*\n?)", re.DOTALL)
_MYSQL_COMMENT = re.compile(_COMMENT.pattern.replace("M?!", "!"), re.DOTALL)
_WORD = re.compile(r"[\s;(]*(?:/\*M?!\d*\s*)?([A-Za-z]+)")


@dataclass(frozen=True)
class Query:
    """One statement.

    :param schema: the current database.
    :param text: in the character set of the client.
    :param sql_mode: its bits; None when it is not told.
    :param collation: id of a collation of the client's character set; None likewise.
    :param databases: those of the tables that it wrote, by triggers too; None likewise, as MariaDB does it.
    """

    schema: str
    text: bytes
    sql_mode: int | None = None
    collation: int | None = None
    databases: frozenset[str] | None = None

    def decoded(self, charsets: Charsets) -> str:
        """Its text; empty when that can't be told."""
        if self.text.isascii() or self.collation is None:
            return self.text.decode(errors="backslashreplace")
        if charsets.name(self.collation) in {"utf8", "utf8mb3", "utf8mb4"}:
            # What is no UTF-8 may stand in texts, not in names.
            return self.text.decode(errors="backslashreplace")
        try:
            text = charsets.decoder(self.collation, "of a statement")(self.text)
            return text if isinstance(text, str) else text.decode()
        except (UndecodableError, UnicodeDecodeError):
            return ""


def read_query(raw: RawEvent) -> Query:
    """The statement of an event QUERY, QUERY_COMPRESSED or EXECUTE_LOAD_QUERY."""
    body = raw.body
    # LOAD DATA has 13 bytes more in front of the same.
    start = 26 if raw.kind == EXECUTE_LOAD_QUERY else 13
    end = start + int.from_bytes(body[11:13], "little")
    mode, collation, databases = _status(body[start:end])
    schema = body[end : end + body[8]].decode(errors="replace")
    text = end + body[8] + 1
    compressed = raw.kind == dump.QUERY_COMPRESSED
    return Query(schema, dump.uncompress(body, text) if compressed else body[text:], mode, collation, databases)


def _status(data: bytes) -> tuple[int | None, int | None, frozenset[str] | None]:
    """sql_mode, the client's collation, and the databases written, as far as they come before what is unknown."""
    mode = collation = databases = None
    at = 0
    while at < len(data):
        code, at = data[at], at + 1
        value = data[at:]
        if code == _SQL_MODE:
            mode = int.from_bytes(value[:8], "little")
        elif code == _CHARSET:
            collation = int.from_bytes(value[:2], "little")
        if code in _SIZES:
            at += _SIZES[code]
        elif code in {_TIME_ZONE, _CATALOG_NZ} and value:
            at += 1 + value[0]
        elif code == _CATALOG and value:
            at += 2 + value[0]
        elif code == _INVOKER and value:
            at += 1 + value[0]
            at += 1 + data[at] if at < len(data) else 0
        elif code == _DATABASES and value and value[0] != _TOO_MANY:
            names = value[1:].split(b"\0")[: value[0]]
            databases = frozenset(name.decode(errors="replace") for name in names)
            at += 1 + sum(len(name) + 1 for name in names)
        elif code == _DATABASES and value:
            at += 1
        else:
            break
    return mode, collation, databases


def first_word(statement: str, *, mariadb: bool) -> str:
    """In upper case, behind comments; empty when it begins with none."""
    comments = _COMMENT if mariadb else _MYSQL_COMMENT
    at = 0
    while comment := comments.match(statement, at):
        at = comment.end()
    word = _WORD.match(statement, at)
    return word.group(1).upper() if word else ""
