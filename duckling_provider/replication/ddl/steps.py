"""What a DDL statement does to tables, step by step: `parse` makes these of its text, `apply_ddl` does them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from duckling_provider.replication.model.tables import Column, Table


@dataclass(frozen=True)
class Default:
    """What existing rows get in a new column: text, bytes or None; an "expression" is the server's business."""

    kind: Literal["none", "literal", "expression"] = "none"
    value: str | bytes | None = None
    #: A literal without quotes, by its sign, digits, point and exponent.
    number: bool = field(default=False, compare=False)


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
    """:param if_not_exists: nothing happens when there is one of that name.
    :param explicit_null: its text says NULL, which for a TIMESTAMP is not what saying nothing means.
    """

    name: str
    column: Column
    default: Default = Default()
    if_not_exists: bool = False
    explicit_null: bool = False


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
    #: It numbers rows by itself: those that have 0 there get a number.
    auto_increment: bool = False


@dataclass(frozen=True)
class RenameColumn:
    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Rewrite:
    """Each row is written again, or its texts compare by another collation: generated columns are computed again."""

    name: str


@dataclass(frozen=True)
class SetPrimaryKey:
    """`columns` in key order; empty for none."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Unclear:
    """The statement does not show what becomes of the table: `note` says why."""

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
    | Rewrite
    | RenameColumn
    | SetPrimaryKey
    | Unclear
)
