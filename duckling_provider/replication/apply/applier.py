"""Changes from the binlog into the replica, in micro-batches: each is one DuckDB transaction, together with its
position.

So after a crash at any moment the replica is exactly at the position that it names. Of a batch only the net effect on
each table is applied: for tables with a primary key the last state of each key, by a keyed DELETE and an INSERT, which
makes changes that are in the replica already harmless; for the others, how many equal rows came and went.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from duckling_provider.base.errors import ReplicationError
from duckling_provider.replication.apply.batch import Applied, Batch, BatchLimits
from duckling_provider.replication.apply.foreign_keys import Reference
from duckling_provider.replication.apply.net_changes import Reread
from duckling_provider.replication.apply.reach import Reach
from duckling_provider.replication.apply.schema_changes import SchemaChanges
from duckling_provider.replication.binlog.stream import Begin, StreamEvent, Unfollowed
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.names import quote
from duckling_provider.replication.model.tables import Commit, RowChange, SchemaChange
from duckling_provider.replication.mysql.merge_tables import MergeTables

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Applier:
    """Takes what `BinlogStream` tells and brings it into the replica.

    :param connection: to the replica, in no transaction; no other code uses it meanwhile.
    :param database: the mirrored database, for names in DDL.
    :param wanted: whether a table of this name is mirrored, for those that come into being.
    :param limits: when a batch is committed.
    :param references: the foreign keys that MySQL has.
    :param read_references: asked for those that it has now when they have changed.
    :param reach: asked for what statements write besides the tables that they name; when omitted, that is everything.
    :param merged: asked for the tables that are emptied through others.
    :param reread: asked for rows whose generated columns the binlog leaves out; when omitted, their tables are marked.
    :param catalog: the name under which the replica is attached; the connection's own database when omitted.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        ledger: Ledger,
        *,
        database: str,
        wanted: Callable[[str], bool] | None = None,
        limits: BatchLimits | None = None,
        catalog: str | None = None,
        references: Iterable[Reference] = (),
        read_references: Callable[[], Iterable[Reference]] | None = None,
        reach: Callable[[], Reach] = Reach,
        merged: Callable[[], MergeTables] = MergeTables,
        reread: Reread | None = None,
    ) -> None:
        prefix = (f"{quote(catalog)}." if catalog else "") + "main."
        self._batch = Batch(
            connection,
            ledger,
            prefix=prefix,
            wanted=wanted or (lambda _: True),
            limits=limits or BatchLimits(),
            references=references,
            reread=reread,
        )
        self._schema_changes = SchemaChanges(
            connection,
            ledger,
            self._batch,
            database=database,
            prefix=prefix,
            read_references=read_references or (lambda: references),
            reach=reach,
            merged=merged,
        )

    @property
    def applied(self) -> Applied:
        return self._batch.applied

    def take(self, event: StreamEvent | None) -> bool:
        """Take the next event; None says that there is none at the moment. Whether a batch was committed.

        :raises DucklingError: when DuckDB can't write; nothing of the current batch is in the replica then.
        """
        batch = self._batch
        if isinstance(event, RowChange):
            batch.take(event)
            return False
        if isinstance(event, Commit):
            return self._commit(event)
        if isinstance(event, SchemaChange):
            return self._statement(event)
        if isinstance(event, Begin):
            batch.begin = event.position
        elif isinstance(event, Unfollowed):
            # Its transaction has not ended: until then nothing can be committed.
            batch.is_open = True
            batch.mark_new(event.tables, event.note)
        elif batch.last is not None and not batch.is_open and batch.is_due:
            self.flush()
            return True
        return False

    def flush(self) -> None:
        """Commit what has been taken, up to the last end of a transaction.

        In the middle of a transaction there is no committing: call `abandon` instead.
        """
        if self._batch.is_open:
            raise ReplicationError("a transaction of the source is not complete", operation="apply")
        self._batch.commit()

    def abandon(self) -> None:
        """Drop everything that is not committed; a new stream from the ledger's position brings it again."""
        self._batch.abandon()

    @property
    def pending(self) -> int:
        """How many row changes wait for their commit."""
        return self._batch.uncommitted

    @property
    def in_transaction(self) -> bool:
        """Whether the source's current transaction has no end yet, so that `flush` has to wait."""
        return self._batch.is_open

    def _commit(self, commit: Commit) -> bool:
        self._batch.end(commit)
        if not self._batch.is_full:
            return False
        self.flush()
        return True

    def _statement(self, change: SchemaChange) -> bool:
        if self._schema_changes.take(change):
            return True
        if change.inside:
            # Its transaction has not ended: until then nothing can be committed.
            self._batch.is_open = True
            return False
        return self._commit(Commit(change.position, change.timestamp))
