"""Row events as changes of a table: which columns they have, and what can't be read of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from duckling_provider.replication.binlog import dump
from duckling_provider.replication.binlog.charsets import UndecodableError
from duckling_provider.replication.binlog.dump import RawEvent
from duckling_provider.replication.binlog.rows import TableMap, read_rows, told_columns
from duckling_provider.replication.model.tables import RowChange

INSERTS, _UPDATES, _DELETES = {23, 30, 166, 169}, {24, 31, 167, 170}, {25, 32, 168, 171}
ROWS = INSERTS | _UPDATES | _DELETES
_V2, _COMPRESSED = {30, 31, 32, 169, 170, 171}, {166, 167, 168, 169, 170, 171}
#: A flag of row events.
_NO_FOREIGN_KEY_CHECKS = 2


@dataclass(frozen=True)
class Unfollowed:
    """What happened to `tables` is not shown by the binlog; they need a new copy."""

    note: str
    tables: tuple[str, ...]


class RowDecoder:
    """The row events of one stream."""

    def __init__(self) -> None:
        #: Tables some of whose changes lack columns: as described, and the places of those that all changes have.
        self._lacking: dict[str, tuple[TableMap, Sequence[int], tuple[str, ...]]] = {}

    def changes(self, raw: RawEvent, table: TableMap) -> Iterator[RowChange | Unfollowed]:
        """The changes of one row event; `Unfollowed` from where it can't be read on."""
        body, at = raw.body, 8
        if raw.kind in _V2:
            at += int.from_bytes(body[8:10], "little")
        name, columns = table.name, table.columns
        unchecked = bool(int.from_bytes(body[6:8], "little") & _NO_FOREIGN_KEY_CHECKS)
        try:
            if raw.kind in _COMPRESSED:
                # Number of columns and bitmaps stay in the clear.
                count = len(columns)
                head = (1 if count < 251 else 3) + (count + 7) // 8 * (2 if raw.kind in _UPDATES else 1)
                body = body[: at + head] + dump.uncompress(body, at + head)
            images = 2 if raw.kind in _UPDATES else 1
            places = told_columns(body, at, table, images=images)
            rows = read_rows(body, at, table, images=images, places=places)
            if name in self._lacking or len(places) < len(columns):
                columns, rows = self._those_told(table, places, rows)
            if raw.kind in _UPDATES:
                for before, after in rows:
                    yield RowChange("update", name, columns, before, after, unchecked, table.choices)
            elif raw.kind in INSERTS:
                for (row,) in rows:
                    yield RowChange("insert", name, columns, None, row, unchecked, table.choices)
            else:
                for (row,) in rows:
                    yield RowChange("delete", name, columns, row, None, unchecked, table.choices)
        except (UndecodableError, UnicodeDecodeError) as error:
            yield Unfollowed(f"its changes can't be read: {error}", (name,))
        except (IndexError, KeyError, ValueError, OverflowError, struct.error, zlib.error) as error:
            yield Unfollowed(f"its changes can't be read: {type(error).__name__}: {error}", (name,))

    def _those_told(
        self, table: TableMap, places: Sequence[int], rows: Iterator[tuple[tuple[Any, ...], ...]]
    ) -> tuple[tuple[str, ...], Iterator[tuple[tuple[Any, ...], ...]]]:
        """The columns that each change of the table has from now on, and `rows` with no others.

        MariaDB leaves generated columns out of updates and deletions, from 11.8 on, and not out of insertions.
        """
        known = self._lacking.get(table.name)
        if known is None or known[0] is not table or not set(known[1]) <= set(places):
            known = table, places, tuple(table.columns[place] for place in places)
            self._lacking[table.name] = known
        kept = [place for place, column in enumerate(places) if column in known[1]]
        if len(kept) == len(places):
            return known[2], rows
        return known[2], (tuple(tuple(image[place] for place in kept) for image in row) for row in rows)
