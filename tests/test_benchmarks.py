"""The benchmark in its short form: that it measures everything, not how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks") / "quick.json"
    groups = [part for group in ("transfers", "memory", "plan", "recovery") for part in ("--only", group)]
    command = [sys.executable, "-m", "benchmarks", "--quick", *groups, "--output", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def case(results, title):
    (found,) = [case for case in results["cases"] if case["title"].startswith(title)]
    return found


@pytest.mark.server
@pytest.mark.parametrize("title", ["Upload from a finished snapshot", "Download with fsync"])
@pytest.mark.parametrize("store", ["a double", "rclone"])
def test_our_transfers_stand_beside_boto3_and_the_peers(results, title, store):
    (found,) = [case for case in results["cases"] if case["title"].startswith(f"{title}; store: {store}")]
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "duckling, client-aes256"
    assert {"boto3", "aws s3 cp", "rclone copyto"} <= set(names)
    assert found["missing"] == []
    for row in found["rows"]:
        assert row["bytes"] > 60 << 20
        assert row["wall_s"] > 0
        assert row["cpu_s_per_gib"] > 0
        assert row["ratio"] > 0
    (reference,) = [row for row in found["rows"] if row["name"] == "boto3"]
    assert reference["ratio"] == 1


def test_ceilings_snapshot_and_memory_are_measured(results):
    assert len(case(results, "Ceilings")["rows"]) == 3
    assert [row["name"] for row in case(results, "Snapshot")["rows"]] == ["cp, fsync", "duckling, client-aes256"]
    names = [row["name"] for row in case(results, "Memory of the commands")["rows"]]
    assert names == ["duckling backup, 64 MiB", "duckling restore, 64 MiB"]


def test_half_a_terabyte_fits_into_ten_thousand_parts(results):
    (target,) = case(results, "Plan of 500 GiB")["targets"]
    assert 0 < target["value"] <= 10_000


@pytest.mark.mysql
def test_a_restored_replica_catches_up_beside_a_full_copy(results):
    names = [row["name"] for row in case(results, "A lost replica")["rows"]]
    assert names == ["full copy", "backup", "restore", "catching up with 2,000 changes"]
    assert case(results, "Lag")["targets"][0]["value"] < 60
    assert case(results, "How long a snapshot holds")["targets"][0]["value"] > 0


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
