"""The figures of docs/internals/performance.md: ``make bench``, or ``python -m benchmarks --help``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Replicas and everything else that is made for the measurements; a second run finds the replicas there.
WORK = ROOT / ".bench"
RESULTS = Path(__file__).parent / "results"

MIB = 1 << 20
BUCKET = "bench"
REGION = "us-east-1"
DATABASE = "bench"

#: Of every client that can be told: bytes of a part, and parts under way at once.
PART = 8 * MIB
CONCURRENCY = 4
