"""How long the watch takes to look at all databases, without a request to any store."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from benchmarks.cases import Case, Target
from duckling_provider import config
from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight.record import Transfer, note
from duckling_provider.oversight.watch import look_at_all

S3 = {"enabled": True, "bucket": "bench", "region": "eu-central-1", "accessKeyId": "bench", "secretAccessKey": "bench"}


def watching(databases: int, *, runs: int) -> Case:
    """So many entries, each with a full record, read and judged with a new databases.json each time; medians."""
    with tempfile.TemporaryDirectory(prefix="duckling-bench-watch-") as home:
        path, environ = Path(home, "databases.json"), {"DATA_PATH": home}
        entries = [
            {
                "id": f"db-{number:05}",
                "name": f"Database {number}",
                "duckdbPath": f"{home}/db-{number:05}.db",
                "rpoHours": 24,
                "rtoMinutes": 60,
                "s3": {**S3, "pathPrefix": f"db-{number:05}/"},
            }
            for number in range(databases)
        ]
        now = datetime.now(timezone.utc)
        path.write_text(json.dumps(entries), encoding="utf-8")
        path.chmod(0o600)
        made = [now - timedelta(hours=hours) for hours in range(10, 0, -1)]
        for database in config.load(environ).databases:
            keys = [f"{database.id}/{backup_name(stamp_of(moment))}" for moment in made]
            changes = [
                lambda record, key=key, at=at: record.verified(key, 1 << 30, seconds=9.0, at=at)
                for key, at in zip(keys, made, strict=True)
            ]
            note(database, *changes, lambda record: record.transferred(Transfer(now, 1 << 30, 12.0, "restore")))
        took = []
        for number in range(runs):
            # What was loaded of the same bytes is kept within a process, and the watch is a new one each time.
            path.write_text(json.dumps(entries) + " " * number, encoding="utf-8")
            began = time.perf_counter()
            found = look_at_all(config.load(environ), now=now)
            took.append(time.perf_counter() - began)
            if found.troubles:
                raise SystemExit(f"not all is well: {found.troubles[0]}")
    return Case(
        f"The watch of {databases:,} databases",
        targets=[Target("s", statistics.median(took), 2.0)],
        notes=("databases.json loaded, a record read for each, no store asked",),
    )
