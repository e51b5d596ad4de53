"""The benchmark in its short form: that it measures everything, not how fast anything is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from fixtures.command_line import run_here

pytestmark = [pytest.mark.slow, pytest.mark.mysql, pytest.mark.server]

ROOT = Path(__file__).parents[1]
GROUPS = [part for group in ("transfers", "formats", "memory", "plan", "recovery") for part in ("--only", group)]
MIB = 1 << 20


def _whole(path, size, mariadb):
    """As `make bench ARGS=--quick` runs it: each contestant in a process of its own, all peers, a server of its own."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--size", str(size), *GROUPS, "--output", str(path)]
    command += [part for group in ("copying", "applying", "validating") for part in ("--only", group)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr


def _in_this_process(path, size, mariadb):
    """The same cases, without a start of Python for each contestant and each command, and without Amazon's client."""
    import benchmarks.__main__
    from benchmarks import cases, copying, formats, jobs, measure, peers, recovery, servers

    def run_job(name, **arguments):
        # A command replaces the process's signal handlers and streams.
        return (
            measure.run_job(name, **arguments)
            if name == "command"
            else measure.measured(jobs.prepared(name, arguments))
        )

    def duckling(*arguments):
        done = run_here(*arguments, environ=dict(os.environ))
        assert done.code == 0, done.err
        return done.out

    @contextlib.contextmanager
    def table(rows):
        database = mariadb.create_database()
        mariadb.execute(
            [
                f"CREATE TABLE data ({copying._COLUMNS})",
                f"INSERT INTO data SELECT {copying._VALUES} FROM seq_1_to_{rows // 10}",
            ],
            database,
        )
        # The load is written by the user whom the product connects as.
        mariadb.execute(f"GRANT UPDATE ON `{database}`.* TO '{mariadb.user}'@'%'")
        yield mariadb.url(database), 0
        mariadb.execute(f"DROP DATABASE `{database}`")

    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        for module in (cases, formats):
            patch.setattr(module, "run_job", run_job)
        patch.setattr(peers, "program", lambda name: None if name == "aws" else servers.program(name))
        patch.setattr(recovery, "_duckling", duckling)
        patch.setattr(recovery, "_LOAD", 250)
        patch.setattr(recovery, "filled", table)
        benchmarks.__main__.main(["--quick", "--size", str(size), *GROUPS, "--output", str(path)])


@pytest.fixture(scope="module")
def size(full):
    """MiB of the replica: in the short form just more than a part."""
    return 64 if full else 9


@pytest.fixture(scope="module")
def results(tmp_path_factory, full, size, mariadb):
    path = tmp_path_factory.mktemp("benchmarks") / "quick.json"
    (_whole if full else _in_this_process)(path, size, mariadb)
    return json.loads(path.read_text())


def case(results, title):
    (found,) = [case for case in results["cases"] if case["title"].startswith(title)]
    return found


@pytest.mark.parametrize("title", ["Upload from a finished snapshot", "Download with fsync"])
@pytest.mark.parametrize("store", ["a double", "rclone"])
def test_our_transfers_stand_beside_boto3_and_the_peers(results, full, size, title, store):
    (found,) = [case for case in results["cases"] if case["title"].startswith(f"{title}; store: {store}")]
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "duckling, client-aes256"
    assert {"boto3", "rclone copyto"} <= set(names)
    # What is not there is named, so that a table without it is not taken for a whole one.
    assert found["missing"] == ([] if full else ["aws s3 cp", "openssl | aws s3 cp"])
    assert ("aws s3 cp" in names) is full
    for row in found["rows"]:
        assert row["bytes"] > (size - 4) * MIB
        assert row["wall_s"] > 0
        assert row["cpu_s_per_gib"] > 0
        assert row["ratio"] > 0
    (reference,) = [row for row in found["rows"] if row["name"] == "boto3"]
    assert reference["ratio"] == 1


def test_ceilings_snapshot_and_memory_are_measured(results, size):
    assert len(case(results, "Ceilings")["rows"]) == 3
    assert [row["name"] for row in case(results, "Snapshot")["rows"]] == ["cp, fsync", "duckling, client-aes256"]
    names = [row["name"] for row in case(results, "Memory of the commands")["rows"]]
    assert names == [f"duckling {command}, {size} MiB" for command in ("backup", "restore")]


def test_half_a_terabyte_fits_into_ten_thousand_parts(results):
    (target,) = case(results, "Plan of 500 GiB")["targets"]
    assert 0 < target["value"] <= 10_000


def test_a_restored_replica_catches_up_beside_a_full_copy(results, full):
    names = [row["name"] for row in case(results, "A lost replica")["rows"]]
    assert names == ["full copy", "backup", "restore", f"catching up with {2000 if full else 500:,} changes"]
    assert case(results, "Lag")["targets"][0]["value"] >= 0
    assert case(results, "How long a snapshot holds")["targets"][0]["value"] > 0


def test_replication_is_measured_on_mysql_beside_mariadb(results, full):
    if not full:
        pytest.skip("minutes: make full")
    for server in ("MariaDB", "MySQL 9.7"):
        titles = ("Full copy of 20,000 rows x 10 columns of", "Changes from the binlog of")
        measured = [case(results, f"{title} {server}") for title in titles]
        measured.append(case(results, f"Rolling validation beside 2,000 row events of {server}"))
        assert all(found["targets"] or found["missing"] for found in measured)


def test_the_machine_and_the_command_are_on_record(results):
    assert results["command"].startswith("python -m benchmarks --quick")
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["boto3"]


def test_a_store_double_that_was_told_to_forget_has_no_uploads(tmp_path):
    from benchmarks.jobs import _boto3
    from benchmarks.servers import double

    with double(tmp_path) as server:
        client, _ = _boto3(server.endpoint)
        client.put_object(Bucket="bench", Key="small", Body=b"kept as it is")
        assert client.get_object(Bucket="bench", Key="small")["Body"].read() == b"kept as it is"
        (tmp_path / "bench" / "file").write_bytes(bytes(range(256)) * 1000)
        part = client.get_object(Bucket="bench", Key="file", Range="bytes=300-999")
        assert part["Body"].read() == (bytes(range(256)) * 1000)[300:1000]
        server.forget()
        assert [row["Key"] for row in client.list_objects_v2(Bucket="bench")["Contents"]] == ["file"]
