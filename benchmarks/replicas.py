"""Replicas to measure with: real DuckDB files of a wanted size whose contents do not compress."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import MIB, WORK

# Hashes of consecutive numbers look random, so DuckDB stores them as they are: 8 bytes each.
_MAKE = """
import sys
import duckdb

path, mib = sys.argv[1], int(sys.argv[2])
connection = duckdb.connect(config={"memory_limit": "2GiB"})
connection.execute("SET enable_progress_bar = false")
connection.execute(f"ATTACH '{path}' AS replica (STORAGE_VERSION 'v1.0.0')")
connection.execute(f'''
    CREATE TABLE replica.noise AS SELECT hash(i) AS a, hash(-i) AS b, hash(i * 3 + 1) AS c, hash(~i) AS d
    FROM range({mib * 32_500}) t(i)''')
connection.execute("CHECKPOINT replica")
"""


def replica(mib: int) -> Path:
    """A replica of about `mib` MiB, made when it is not there yet. No test may write to it."""
    return _made(f"{mib}-mib.db", _MAKE, mib)


def _made(name: str, program: str, mib: int) -> Path:
    path = WORK / "replicas" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(".making")
        making.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", program, str(making), str(mib)], check=True)
        making.rename(path)
    return path


# Sixteen columns of 8 bytes: what changes in one of them is a sixteenth of the table.
_MAKE_WIDE = """
import sys
import duckdb

path, mib = sys.argv[1], int(sys.argv[2])
connection = duckdb.connect(config={"memory_limit": "2GiB"})
connection.execute("SET enable_progress_bar = false")
connection.execute(f"ATTACH '{path}' AS replica (STORAGE_VERSION 'v1.0.0')")
columns = ", ".join(f"hash(i * 16 + {number}) AS c{number}" for number in range(15))
connection.execute(
    f"CREATE TABLE replica.noise AS SELECT hash(i) AS id, {columns} FROM range({mib * 8_125}) t(i)")
connection.execute("CHECKPOINT replica")
"""


def wide(mib: int) -> Path:
    """As `replica`, of a table with sixteen columns."""
    return _made(f"{mib}-mib-wide.db", _MAKE_WIDE, mib)


def sparse(gib: int) -> Path:
    """A file of `gib` GiB that takes no room: for plans, not for transfers."""
    path = WORK / "replicas" / f"{gib}-gib.sparse"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(gib * 1024 * MIB)
    return path
