"""A replica that looks like a shop's: five tables, the same contents for the same size, filled by DuckDB alone.

Everything that opens a replica happens in a child process (``python -m demo.replica COMMAND PATH …``), because DuckDB's
locks belong to a process, and a file that is opened and closed by hand in the same process loses them. So the parent
does not even import it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from demo import ROOT, DemoError
from demo.service import undisturbed

if TYPE_CHECKING:
    import duckdb

#: Measured: this many rows of `events` per MB of file; the other tables follow from it.
_EVENTS_PER_MB = 29_000

# What the replicas made by DuckDB 1.4 and 1.5 have by default, and the one with the nastiest trap: a WAL of another
# state of the file is replayed without a word.
_STORAGE_VERSION = "v1.0.0"


# fmt: off
_WORDS: dict[str, list[str]] = {
    "first": [
        "Ada", "Ben", "Chloe", "Davi", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas",
        "Kira", "Liam", "Mina", "Noor", "Olga", "Pablo", "Quinn", "Rosa", "Sami", "Tara",
    ],
    "last": [
        "Almeida", "Bauer", "Castro", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad", "Ivanova", "Jansen",
        "Kowalski", "Lindgren", "Moreau", "Nakamura", "Okafor", "Petrov", "Quiroga", "Rossi", "Schneider", "Tanaka",
        "Usman", "Vargas", "Weber", "Xu", "Yilmaz", "Zeman",
    ],
    "cities": [
        "Amsterdam", "Berlin", "Bogota", "Cairo", "Dublin", "Helsinki", "Istanbul", "Kyoto", "Lagos", "Lisbon", "Lima",
        "Lyon", "Oslo", "Porto", "Prague",
    ],
    "kinds": ["Lamp", "Chair", "Desk", "Kettle", "Bottle", "Backpack", "Notebook", "Speaker", "Jacket", "Bike"],
    "looks": ["Amber", "Cobalt", "Coral", "Ivory", "Jade", "Linen", "Maple", "Onyx", "Pearl", "Rust", "Slate"],
    "states": ["paid", "shipped", "delivered", "delivered", "delivered", "returned"],
    "actions": ["view", "view", "view", "search", "cart", "checkout"],
}
# fmt: on


@dataclass(frozen=True)
class Table:
    """What one table holds, whatever the order of its rows."""

    name: str
    rows: int
    digest: str  #: 16 hex digits made of the hashes of all rows


def make(path: Path, *, megabytes: int) -> list[Table]:
    """Create a replica of about `megabytes` MB at `path` and say what is in it."""
    return [Table(**table) for table in _child("make", path, megabytes)]


def tables(path: Path) -> list[Table]:
    """Read every value of every table.

    :raises DemoError: when DuckDB can't; its own words.
    """
    return [Table(**table) for table in _child("tables", path)]


def foreign_wal(path: Path) -> None:
    """Change the replica at `path` in a way that stays in the WAL beside it, as after a crash: prices, customers."""
    _child("foreign-wal", path)


def grow(path: Path) -> None:
    """One day more in the replica at `path`: a hundredth of the events again."""
    _child("grow", path)


def mistake(path: Path) -> None:
    """What a person did not mean: every price in the replica at `path` becomes 0."""
    _child("mistake", path)


def _child(*arguments: object) -> Any:
    command = [sys.executable, "-m", "demo.replica", *map(str, arguments)]
    child = None
    try:
        with undisturbed():
            # Its own session: Ctrl-C goes to the demo alone, which ends this one by itself.
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        output, errors = child.communicate()
    except BaseException:
        if child is not None:
            child.kill()
            child.wait()
        raise
    if child.returncode:
        raise DemoError(errors.strip() or f"demo.replica ended with {child.returncode}")
    return json.loads(output)


# ---- in the child ------------------------------------------------------------------------------------------


# Lists of words are the same in Python and in SQL; `Template` puts them in.
_SQL = """
CREATE TABLE customers AS
    WITH named AS (
        SELECT i, pick($first, i * 2) AS first, pick($last, i * 3) AS last FROM range(1, $customers + 1) t(i)
    )
    SELECT i::INTEGER AS id, first || ' ' || last AS name, lower(first || '.' || last) || i || '@example.com' AS email,
        pick($cities, i * 5) AS city, TIMESTAMP '2023-01-01' + to_seconds(i * 211) AS created_at
    FROM named;
CREATE TABLE products AS
    SELECT i::INTEGER AS id, pick($looks, i * 7) || ' ' || pick($kinds, i * 11) || ' ' || i AS name,
        price(i * 13) AS price, upto(900, i * 17)::INTEGER AS stock
    FROM range(1, $products + 1) t(i);
CREATE TABLE orders AS
    SELECT i AS id, upto($customers, i * 19)::INTEGER AS customer_id, pick($states, i * 23) AS status,
        TIMESTAMP '2023-01-01' + to_seconds(i * 67 + upto(60, i)) AS ordered_at
    FROM range(1, $orders + 1) t(i);
CREATE TABLE order_items AS
    SELECT i AS id, 1 + i * $orders // ($items + 1) AS order_id, upto($products, i * 29)::INTEGER AS product_id,
        upto(5, i * 31)::TINYINT AS quantity, price(i * 37) AS price
    FROM range(1, $items + 1) t(i);
CREATE TABLE events AS
    SELECT md5('e' || i)::UUID AS id, upto($customers, i * 41)::INTEGER AS customer_id,
        pick($actions, i * 43) AS action, '/products/' || upto($products, i * 47) AS path,
        md5('s' || i // 3)::UUID AS session,
        TIMESTAMP '2023-01-01' + to_milliseconds(i * 8000 + upto(8000, i)) AS happened_at
    FROM range(1, $events + 1) t(i);
"""

_MACROS = """
CREATE TEMP MACRO upto(top, seed) AS 1 + (hash(seed) % top)::BIGINT;
CREATE TEMP MACRO pick(words, seed) AS words[1 + (hash(seed) % len(words))::INTEGER];
CREATE TEMP MACRO price(seed) AS ((499 + hash(seed) % 49500) / 100)::DECIMAL(10, 2);
"""


def _make(path: str, megabytes: str) -> list[dict[str, Any]]:
    import duckdb

    events = _EVENTS_PER_MB * int(megabytes)
    counts = {
        "events": events,
        "items": events // 3,
        "orders": events // 8,
        "customers": events // 25,
        "products": events // 400,
    }
    with duckdb.connect() as connection:
        connection.execute(_MACROS)
        connection.execute(f"ATTACH '{path}' AS replica (STORAGE_VERSION '{_STORAGE_VERSION}')")
        connection.execute("USE replica")
        connection.execute(Template(_SQL).substitute(_WORDS, **counts))
        connection.execute("CHECKPOINT")
        return _tables_of(connection)


def _tables(path: str) -> list[dict[str, Any]]:
    import duckdb

    with duckdb.connect(path, read_only=True) as connection:
        return _tables_of(connection)


def _tables_of(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    names = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL").fetchall()
    found = []
    for (name,) in names:
        # A sum does not depend on the order, and unlike XOR it does not forget rows that are there twice.
        columns = ", ".join(f'"{column[0]}"' for column in connection.execute(f'DESCRIBE "{name}"').fetchall())
        query = f'SELECT count(*), coalesce(sum(hash({columns})::HUGEINT), 0) FROM "{name}"'  # noqa: S608 - our own names
        ((rows, total),) = connection.execute(query).fetchall()
        found.append({"name": name, "rows": rows, "digest": f"{total % 2**64:016x}"})
    return found


def _foreign_wal(path: str) -> None:
    import duckdb

    with duckdb.connect(path) as connection:
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
        connection.execute("SET wal_autocheckpoint = '1TB'")
        connection.execute("INSERT INTO customers SELECT -i, 'Nobody', NULL, 'Nowhere', now() FROM range(1, 1001) t(i)")
        connection.execute("UPDATE products SET price = 0")


def _grow(path: str) -> None:
    import duckdb

    with duckdb.connect(path) as connection:
        connection.execute("INSERT INTO events SELECT * FROM events LIMIT (SELECT count(*) // 100 FROM events)")
        connection.execute("CHECKPOINT")


def _mistake(path: str) -> None:
    import duckdb

    with duckdb.connect(path) as connection:
        connection.execute("UPDATE products SET price = 0")
        connection.execute("CHECKPOINT")


def main() -> None:
    import duckdb

    command, *arguments = sys.argv[1:]
    jobs: dict[str, Callable[..., Any]] = {
        "make": _make,
        "tables": _tables,
        "foreign-wal": _foreign_wal,
        "grow": _grow,
        "mistake": _mistake,
    }
    try:
        print(json.dumps(jobs[command](*arguments)))
    except duckdb.Error as error:
        sys.exit(str(error).strip().splitlines()[0])


if __name__ == "__main__":
    main()
