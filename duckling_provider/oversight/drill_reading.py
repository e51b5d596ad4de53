"""What a drill asks of DuckDB, for `replica.duckdb_program`.

The action is ``read``. Its job is JSON: ``queries``, and ``seconds``, the most that each of them may take. The result
is JSON too, see `Reading`.

The file is opened read-only, nothing outside of it can be reached, and no query can change that: whoever may edit
databases.json need not be trusted with the files of this host.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from duckling_provider.base.errors import ReplicaError
from duckling_provider.replica.child_process import JOB
from duckling_provider.replica.duckdb_program import READER
from duckling_provider.replica.reading import Rows, read_rows, rows_of_json
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.tables import Position

_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Reading:
    """What DuckDB found in the restored file.

    :param faults: of each query, why it is not passed; empty where it yielded true.
    :param position: where the replica stands in its server's binlog; None where no sync of ours wrote it.
    :param source: the name of the MySQL database that it mirrors; empty where that is not known.
    :param open_ms, read_ms: what opening it took, and reading every table.
    """

    rows: Rows
    faults: tuple[str, ...]
    position: Position | None
    source: str
    open_ms: int
    read_ms: int

    @classmethod
    def of_json(cls, data: Any) -> Reading:
        """From what `read` left as JSON."""
        position = data["position"]
        return cls(
            **{
                **data,
                "rows": rows_of_json(data["rows"]),
                "faults": tuple(data["faults"]),
                "position": None if position is None else Position(**position),
            }
        )


def read(path: str, temp: str) -> dict[str, Any]:
    """Open the file, read every table to its end, and ask the queries."""
    job = json.loads(Path(temp, JOB).read_text(encoding="utf-8"))
    started = time.monotonic()
    config: dict[str, str | bool | int | float | list[str]] = {
        **READER,
        "temp_directory": temp,
        "max_temp_directory_size": "4GiB",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "enable_external_access": "false",
        "lock_configuration": "true",
    }
    with duckdb.connect(path, config=config) as connection:
        opened = time.monotonic()
        rows = read_rows(connection)
        read = time.monotonic()
        position, source = _standing(connection)
        faults = tuple(_fault(connection, query, float(job["seconds"])) for query in job["queries"])
    spans = int((opened - started) * 1000), int((read - opened) * 1000)
    return asdict(Reading(rows, faults, position, source, *spans))


def _standing(connection: duckdb.DuckDBPyConnection) -> tuple[Position | None, str]:
    try:
        ledger = Ledger.open(connection)
    except ReplicaError:
        return None, ""  # another program's replica
    return ledger.position(), ledger.source()


def _fault(connection: duckdb.DuckDBPyConnection, query: str, seconds: float) -> str:
    """Why `query` is not passed; empty where it yielded one row with one value, true."""
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        connection.interrupt()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1:
            return f"it is {len(statements)} statements, and must be one"
        rows = connection.execute(statements[0]).fetchmany(2)
    except duckdb.Error as error:
        return f"it took longer than {seconds:g} s" if late.is_set() else str(error).splitlines()[0][:_LONGEST_MESSAGE]
    finally:
        timer.cancel()
    if len(rows) != 1 or len(rows[0]) != 1:
        many = "no row" if not rows else "more than one row" if len(rows) > 1 else f"{len(rows[0])} values"
        return f"it yielded {many} instead of one value"
    return "" if rows[0][0] is True else f"it yielded {str(rows[0][0])[:_LONGEST_MESSAGE]!r} instead of true"


ACTIONS = {"read": read}
