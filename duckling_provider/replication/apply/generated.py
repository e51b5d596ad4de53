"""Rows of the server by their keys, for generated columns that its binlog leaves out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from duckling_provider.replication.copy.ranges import Pace
from duckling_provider.replication.copy.transport import Transport
from duckling_provider.replication.ddl.apply_ddl import NotFollowedError
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Table
from duckling_provider.replication.mysql.source import CHANGED, Source, SourceError, connect, translated

if TYPE_CHECKING:
    import pyarrow as pa

#: Keys that one query asks for.
_KEYS = 1000


def read_by_keys(source: Source, table: Table, keys: Sequence[tuple[Any, ...]]) -> pa.Table:
    """The rows that `source` has of `keys` now; others too where a collation takes their keys for equal.

    :param keys: as the binlog has them, in the order of the table's key: integers, texts and decimals.
    :raises SourceError: MySQL can't be read.
    :raises NotFollowedError: the table there is another one by now.
    """
    try:
        return _read(source, table, keys)
    except SourceError as error:
        if error.code not in CHANGED:
            raise
        note = "the binlog leaves its generated columns out, and it was altered since"
        raise NotFollowedError(table.name, note) from error


def _read(source: Source, table: Table, keys: Sequence[tuple[Any, ...]]) -> pa.Table:
    import pyarrow as pa

    names = [quote_mysql(name) for name in table.primary_key]
    transport = Transport(source, table, Pace(1), fast=False)
    pieces: list[pa.Table] = []
    form = f"({', '.join(['%s'] * len(names))})"
    with contextlib.closing(connect(source, cursor="stream")) as connection, translated(source, "read rows"):
        for start in range(0, len(keys), _KEYS):
            with connection.cursor() as cursor:
                said = ", ".join(cursor.mogrify(form, key) for key in keys[start : start + _KEYS])
            where = f"({', '.join(names)}) IN ({said})"
            pieces += transport.stream(connection, where)
    return pa.concat_tables([transport.empty(), *pieces])
