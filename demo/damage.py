"""What must not happen to a replica, on purpose: blocks overwritten, and a WAL beside it of another state."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from demo import replica
from demo.replica import Table

# DuckDB's files: three headers of 4 KiB, then blocks of 256 KiB.
_HEADERS, _BLOCK = 3 * 4096, 256 * 1024


def overwrite_blocks(path: Path) -> tuple[int, int]:
    """Fill one block in twenty, but three at least, with random bytes.

    :return: how many, and of how many.
    """
    chance = random.Random(1)
    count = (path.stat().st_size - _HEADERS) // _BLOCK
    chosen = chance.sample(range(count), min(count, max(3, count // 20)))
    with path.open("r+b") as file:
        for block in chosen:
            file.seek(_HEADERS + block * _BLOCK)
            file.write(chance.randbytes(_BLOCK))
    return len(chosen), count


def make_foreign_wal(path: Path, scratch: Path) -> Path:
    """A WAL that fits the replica at `path` well enough to be replayed, made by a copy that went its own way."""
    scratch.mkdir(exist_ok=True)
    other = scratch / "other.db"
    shutil.copyfile(path, other)
    replica.foreign_wal(other)
    other.unlink()
    return wal_of(other)


def naive_restore(backup: Path, wal: Path, scratch: Path) -> list[Table]:
    """What would be in the replica if `backup` were just copied over it and `wal` stayed: its tables."""
    naive = scratch / "naive.db"
    try:
        shutil.copyfile(backup, naive)
        shutil.copyfile(wal, wal_of(naive))
        return replica.tables(naive)
    finally:
        naive.unlink(missing_ok=True)
        wal_of(naive).unlink(missing_ok=True)


def wal_of(path: Path) -> Path:
    """Where DuckDB looks for the WAL of the database at `path`."""
    return path.with_name(f"{path.name}.wal")
