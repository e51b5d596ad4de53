"""The words of replication: tables and columns as MySQL describes them, positions in its binlog, what a binlog tells.

Plain values without behaviour of their own: `source` and `stream` make them, `copy`, `apply` and `validate` use them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

_FILE_NUMBER = re.compile(r"\.(\d+)$")


@dataclass(frozen=True)
class Column:
    """One column, as ``information_schema.COLUMNS`` has it.

    :param data_type: lower case and bare, e.g. ``"int"``, ``"varchar"``, ``"geometry"``.
    :param column_type: in full, e.g. ``"int(10) unsigned"``, ``"enum('a','b')"``.
    :param charset: None for what is no text.
    :param precision: digits of a DECIMAL, fractional digits of a time, None where there is none.
    :param json: declared JSON; on MariaDB such a column is a LONGTEXT with a check.
    """

    name: str
    data_type: str
    column_type: str
    nullable: bool = True
    charset: str | None = None
    collation: str | None = None
    precision: int | None = None
    scale: int | None = None
    generated: bool = False
    json: bool = False

    @property
    def unsigned(self) -> bool:
        return "unsigned" in self.column_type


@dataclass(frozen=True)
class Table:
    """One base table; `primary_key` in key order, empty when it has none."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()


@dataclass(frozen=True)
class Position:
    """Everything up to here is in the replica: the end of a transaction in the binlog.

    :param file: e.g. ``"mysql-bin.000042"``.
    :param offset: bytes from the file's start.
    :param gtid: the set of transactions up to here, as the server writes it; empty where the server has none.
    :param server: identity of the server that `file` and `offset` belong to.
    """

    file: str
    offset: int
    gtid: str = ""
    server: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """Sorts positions of one server: the number in the file's name, then the offset."""
        number = _FILE_NUMBER.search(self.file)
        return int(number.group(1)) if number else 0, self.offset

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}" + (f" ({self.gtid})" if self.gtid else "")


@dataclass(frozen=True)
class RowChange:
    """One row event's row: `before` and `after` hold values in the order of `columns`, as `stream` decoded them.

    An insert has no `before`, a deletion no `after`.

    :param unchecked: made with ``foreign_key_checks`` off: rows of other tables did not go with it.
    :param choices: of each ENUM and SET, as the binlog has them.
    """

    kind: Literal["insert", "update", "delete"]
    table: str
    columns: tuple[str, ...]
    before: tuple[Any, ...] | None
    after: tuple[Any, ...] | None
    unchecked: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SchemaChange:
    """A statement of DDL, or of what else the binlog has as text; the mirrored database was the current one.

    :param position: its end, when it is a transaction of its own.
    :param inside: it is part of a transaction that goes on, and `position` is where that begins.
    :param folds: the server takes names of databases and tables in lower case, however a statement writes them.
    :param sql_mode: the bits of ``sql_mode`` that it was given in; None when the binlog does not tell.
    :param of_session: it depended on the session that gave it, whose temporary tables it may be about.
    :param mariadb: the server is MariaDB, to which ``/*M! */`` is no comment.
    """

    statement: str
    position: Position
    timestamp: float
    inside: bool = False
    folds: bool = False
    sql_mode: int | None = None
    of_session: bool = False
    mariadb: bool = True


@dataclass(frozen=True)
class Commit:
    """All changes since the last one belong to a transaction that ends at `position`.

    :param timestamp: of the transaction on the server, seconds since 1970.
    """

    position: Position
    timestamp: float


BinlogEvent: TypeAlias = RowChange | SchemaChange | Commit
