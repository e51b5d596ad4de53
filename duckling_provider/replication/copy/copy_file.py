"""The new DuckDB file that a full copy fills: created, written piece by piece, and rid of tables that are not whole."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duckling_provider.replica.duckdb_file import open_error, wal_of
from duckling_provider.replication.copy.ranges import RANGE_ROWS
from duckling_provider.replication.model.ledger import Ledger, TableState
from duckling_provider.replication.model.names import literal, quote
from duckling_provider.replication.model.tables import Table
from duckling_provider.replication.model.types import from_transport, zero_date

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

#: The name under which the file is attached.
REPLICA = "replica"

#: What the ledger's counter of dates that became NULL is called.
_ZERO_DATES = "zero dates"
#: Bytes of rows, as they arrive, that may wait for their row group to be full.
_ROW_GROUP_BYTES = 64 << 20
#: The variable that holds what is being written.
_BATCH = "duckling_batch"
#: A DuckDB file that is shorter has not been created to the end: its three headers take as much.
_HEADERS = 3 * 4096

log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened_copy(target: Path, storage_version: str, memory_limit: str) -> Iterator[DuckDBPyConnection]:
    """A connection with `target` attached, which is created with `storage_version` where it is missing."""
    import duckdb

    with contextlib.suppress(FileNotFoundError):
        if target.stat().st_size < _HEADERS:
            log.warning("%s: begun again, its creation was interrupted", target)
            for file in (target, wal_of(target)):
                file.unlink(missing_ok=True)
    # A file keeps the version it was created with: naming one for a file that exists would upgrade it for good.
    options = "" if os.path.lexists(target) else f" (STORAGE_VERSION '{storage_version}')"
    path = literal(str(target))
    with duckdb.connect(config={"memory_limit": memory_limit, "autoinstall_known_extensions": "false"}) as connection:
        connection.execute("SET enable_progress_bar = false")
        try:
            connection.execute(f"ATTACH {path} AS {REPLICA}{options}")
        except duckdb.Error as error:
            raise open_error(
                target,
                error,
                cause="the unfinished copy can't be opened",
                operation="copy",
                hint="Delete that file; the copy then begins from the start.",
            ) from error
        # Beside the file, where there is room for it, and not in whatever folder this process was started in.
        spill = target.with_name(target.name + ".tmp")
        shutil.rmtree(spill, ignore_errors=True)
        connection.execute(f"SET temp_directory = {literal(str(spill))}")
        yield connection
        connection.execute(f"DETACH {REPLICA}")


def drop_copied(replica: DuckDBPyConnection, ledger: Ledger, table: str) -> None:
    """Remove a table that is not whole, or not wanted any more."""
    replica.begin()
    replica.execute(f"DROP TABLE IF EXISTS {place_of(table)}")
    ledger.forget_table(table)
    replica.commit()


def place_of(table: str) -> str:
    """SQL of a table's name in the file."""
    return f"{REPLICA}.main.{quote(table)}"


class Writer:
    """Inserts a table's pieces and counts its rows."""

    def __init__(self, replica: DuckDBPyConnection, ledger: Ledger, table: Table) -> None:
        self._replica, self._ledger, self._table = replica, ledger, table
        self.rows = 0
        #: Some of the rows are committed, as those of a table in state "copying".
        self.is_partial = False
        self._open_rows = self._open_bytes = 0
        values = ", ".join(from_transport(column, f"c{n}") for n, column in enumerate(table.columns))
        self._insert = f"INSERT INTO {place_of(table.name)} SELECT {values} FROM {_BATCH}"
        zeros = [zero for n, column in enumerate(table.columns) if (zero := zero_date(column, f"c{n}"))]
        # count_if() of nothing but NULLs is NULL.
        counts = " + ".join(f"coalesce(count_if({zero}), 0)" for zero in zeros)
        self._count = f"SELECT {counts} FROM {_BATCH}" if zeros else None
        self._zeros = 0

    def write(self, duckling_batch: pa.Table) -> None:
        # DuckDB finds the table by the name of this variable. If it were registered, the transaction would hold on to
        # it until its end, and with it to every row of the table.
        if not duckling_batch.num_rows:
            return
        self._replica.execute(self._insert)
        if self._count is not None:
            self._zeros += self._replica.execute(self._count).fetchall()[0][0]
        self.rows += duckling_batch.num_rows
        self._open_rows += duckling_batch.num_rows
        self._open_bytes += duckling_batch.nbytes
        if self._open_rows >= RANGE_ROWS:
            self._open_rows = self._open_bytes = 0
        elif self._open_bytes >= _ROW_GROUP_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Commit and checkpoint what there is: a row group leaves memory when it is full, and these rows are large."""
        if not self.is_partial:
            self.is_partial = True
            self._ledger.save_table(TableState(self._table, "copying"))
        self._replica.commit()
        self._replica.execute(f"CHECKPOINT {REPLICA}")
        self._replica.begin()
        self._open_rows = self._open_bytes = 0

    def finish(self) -> None:
        """Tell the ledger how many dates became NULL."""
        if self._zeros:
            self._ledger.count({(self._table.name, _ZERO_DATES): int(self._zeros)})
