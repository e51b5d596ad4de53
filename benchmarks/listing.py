"""How long ``GET /api/backups`` takes beyond the listing of the bucket that it can't do without."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from benchmarks import BUCKET, DATABASE, ROOT
from benchmarks.cases import Case, Target
from benchmarks.servers import ACCESS_KEY, SECRET_KEY, rclone
from benchmarks.site import site
from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.moments import stamp_of
from duckling_provider.stores.store import StoredObject

_FIRST = datetime(2024, 1, 1, tzinfo=timezone.utc)


def listing(objects: int, *, runs: int) -> Case:
    """A bucket of so many objects, half of them ``.mac``; boto3's own listing of them and the call take turns.

    What the call takes beyond its own listing is measured inside the call: two listings of such a bucket, one after the
    other, differ by more. The application is Airflow's, in a process of its own, asked without a network; `runs`
    rounds, medians.
    """
    with site() as place, rclone(place.folder / "objects") as server:
        if server is None:
            return Case("GET /api/backups", missing=("rclone",))
        place.configure(server)
        folder = place.folder / "objects" / BUCKET / DATABASE
        folder.mkdir(parents=True)
        for number in range(objects // 2):
            name = backup_name(stamp_of(_FIRST + number * timedelta(hours=1)))
            (folder / name).write_bytes(b"x" * 64)
            (folder / f"{name}.mac").write_text("0" * 64)
        measured = _measured(server.endpoint, runs)
    beyond = statistics.median(measured["beyond"])
    api, boto3 = (statistics.median(measured[name]) for name in ("api", "boto3"))
    return Case(
        f"GET /api/backups of {measured['listed']:,} backups ({objects:,} objects) beside boto3's listing",
        targets=[Target("ms beyond the listing", beyond * 1000, 100.0)],
        notes=(f"medians: GET {api * 1000:.0f} ms, boto3's list_objects_v2 {boto3 * 1000:.0f} ms",),
    )


def _measured(endpoint: str, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="duckling-bench-airflow-") as home:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "DUCKLING_API_KEY": "bench",
        }
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        subprocess.run(command, env=environ, cwd=home, check=True, capture_output=True)
        command = [sys.executable, "-m", "benchmarks.listing", endpoint, str(runs)]
        done = subprocess.run(command, env=environ, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(endpoint: str, runs: int) -> dict[str, Any]:
    import boto3
    from airflow.api_fastapi.app import create_app
    from starlette.testclient import TestClient

    from duckling_provider.stores.s3 import S3Store

    inside, listed_by = [0.0], S3Store.list

    def timed(store: S3Store, prefix: str) -> Iterator[StoredObject]:
        rows = listed_by(store, prefix)
        while True:
            before = time.perf_counter()
            row = next(rows, None)
            inside[0] += time.perf_counter() - before
            if row is None:
                return
            yield row

    S3Store.list = timed  # type: ignore[method-assign]
    client = TestClient(create_app())
    headers = {"Authorization": "Bearer bench"}
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    walls: dict[str, list[float]] = {"api": [], "boto3": [], "beyond": []}
    listed = 0
    for number in range(runs + 1):
        inside[0], started = 0.0, time.perf_counter()
        answer = client.get("/api/backups", params={"db": DATABASE}, headers=headers)
        middle = time.perf_counter()
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{DATABASE}/")
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        ended = time.perf_counter()
        answer.raise_for_status()
        listed = len(answer.json()["s3"])
        if not keys or listed * 2 != len(keys):
            raise RuntimeError(f"{listed} backups of {len(keys)} objects")
        if number:  # the first of each pays for imports and connections
            walls["api"].append(middle - started)
            walls["boto3"].append(ended - middle)
            walls["beyond"].append(middle - started - inside[0])
    return {**walls, "listed": listed}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
