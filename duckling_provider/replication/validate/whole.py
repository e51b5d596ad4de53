"""Tables whose rows can't be named one by one, compared as a whole: those without a key, or with one of another kind
than `keys` knows.

The server computes the checksum of `checksum.TableChecksum` in one statement. Buckets in which rows changed meanwhile
are left out. Where others differ, their rows are read, and only while nothing changes in the table do they say
anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.validate.checksum import Bucket, TableChecksum
from duckling_provider.replication.validate.row_diff import Contrast
from duckling_provider.replication.validate.sides import relation_of
from duckling_provider.replication.validate.touched import Touched

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

Buckets = set[str | None]


class WholeTable:
    """One table and its checksum.

    :param rows: about how many there are.
    """

    def __init__(self, table: Table, rows: int) -> None:
        self.table, self.checksum = table, TableChecksum(table, rows)

    @property
    def columns(self) -> tuple[Column, ...]:
        """What `Touched` has to keep of its rows."""
        return tuple(column for _, column in self.checksum.bucket_columns)

    def differing(
        self, connection: DuckDBPyConnection, theirs: dict[str | None, Bucket], touched: Touched
    ) -> Buckets | None:
        """The buckets that are not the same on both sides although nothing changed in them; None if that is unknown."""
        rows = connection.execute(self.checksum.replica_query(relation_of(self.table))).fetchall()
        ours = {name: Bucket(int(count), int(total)) for name, count, total in rows}
        changed = touched.registered(connection, self.table)
        if changed is None:
            return None
        names = ", ".join(f"k{k} AS c{place}" for k, (place, _) in enumerate(self.checksum.bucket_columns))
        hidden = {
            row[0]
            for row in connection.execute(
                f"SELECT DISTINCT {self.checksum.replica_bucket} FROM (SELECT {names} FROM {changed})"
            ).fetchall()
        }
        found: Buckets = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
        return found - hidden

    def contrast(
        self, connection: DuckDBPyConnection, pieces: list[pa.Table], buckets: Buckets
    ) -> tuple[int, int, int]:
        """How many rows of `buckets` are (missing, extra, different) in the replica.

        :param pieces: those that the server has, as a copy reads them.
        """
        contrast = Contrast(connection, self.table)
        for piece in pieces:
            contrast.add(piece)
        here = self.checksum.replica_where(buckets)
        return contrast.against(f"{relation_of(self.table)}{here and ' WHERE '}{here}")
