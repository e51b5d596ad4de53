"""What a run takes the file at duckdbPath for, before it has asked the server anything."""

import duckdb
import pytest

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import ReplicaError
from duckling_provider.replication.run import Run


@pytest.fixture
def run(installation):
    installation.write(installation.entry())
    return Run(installation.database(), Control(), "test", 1.0)


def test_without_a_file_there_is_no_replica(run):
    assert not run.look_at_replica()


def foreign(path):
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")


@pytest.mark.parametrize(
    "make,told",
    [
        (lambda path: path.symlink_to(path.parent / "not mounted"), "a link to .*not mounted, and nothing is there"),
        (lambda path: path.write_bytes(b"no database" * 2000), "not a valid DuckDB database"),
        (lambda path: path.write_bytes(b""), "not a valid DuckDB database"),
        (lambda path: path.mkdir(), "Is a directory"),
        (foreign, "made by another program"),
    ],
    ids=["a link that leads nowhere", "no database", "nothing in it", "a folder", "another program's"],
)
def test_what_is_no_replica_of_ours_is_told_and_left(run, make, told):
    path = run.database.replica
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    before = path.lstat()
    with pytest.raises(ReplicaError, match=told):
        run.look_at_replica()
    assert (path.lstat().st_ino, path.lstat().st_size) == (before.st_ino, before.st_size)
