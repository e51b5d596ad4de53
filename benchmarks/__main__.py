"""Measure everything, show it, keep it: ``make bench``."""

from __future__ import annotations

import argparse
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks import RESULTS, WORK
from benchmarks.applying import applying
from benchmarks.cases import Case, clients, dags, memory, plan, transfers
from benchmarks.copying import copying
from benchmarks.differential import counted, differential
from benchmarks.formats import formats
from benchmarks.listing import listing
from benchmarks.network import network
from benchmarks.page import page
from benchmarks.recovery import recovery
from benchmarks.report import save, show
from benchmarks.validating import validating
from benchmarks.watching import watching

_GROUPS = (
    "transfers",
    "network",
    "formats",
    "differential",
    "counted",
    "memory",
    "plan",
    "dags",
    "listing",
    "page",
    "watching",
    "copying",
    "applying",
    "validating",
    "recovery",
)
#: MiB: more would take an hour.
_MOST_OVER_A_LINE = 2048
#: Alone, each has a file of its own.
_APART = ("network", "differential", "counted")
#: Measured for a decision once; only when asked for.
_EXTRA = ("clients",)


def main(arguments: list[str] | None = None) -> None:
    """:param arguments: of the command line; those of this process when omitted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and one run: that it works, not how fast")
    parser.add_argument("--size", type=int, metavar="MIB", help="of the replica (default 1024; quick: 64)")
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--only", choices=_GROUPS + _EXTRA, action="append", help="only this group; may be repeated")
    where = f"the JSON file (default benchmarks/results/bench.json; {', '.join(_APART)} alone: theirs; quick: .bench)"
    parser.add_argument("--output", type=Path, help=where)
    publish = "also write the network's table and picture into docs/internals"
    parser.add_argument("--publish", action="store_true", help=publish)
    options = parser.parse_args(arguments)
    options.size = options.size or (64 if options.quick else 1024)
    if options.publish and options.only != ["network"]:
        parser.error("--publish goes with --only network")
    options.runs = 1 if options.quick else options.runs
    alone = "".join(options.only or ())
    name = f"{alone}.json" if alone in _APART else "bench.json"
    output = options.output or (WORK / "quick.json" if options.quick else RESULTS / name)
    console = Console()
    WORK.mkdir(exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        # Two at once would measure each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        cases = []
        for case in _cases(options.only or _GROUPS, options.size, runs=options.runs, quick=options.quick):
            show(case, console)
            cases.append(case)
            # Each time: what a run that is stopped has measured is kept.
            save(output, cases, command=" ".join(["python -m benchmarks", *arguments]))
    console.print(f"{output}: everything above as JSON", soft_wrap=True)
    if options.publish:
        # The picture's library is not needed for a run without.
        from benchmarks.tables import PAGE, PICTURE
        from benchmarks.tables import publish as write_down

        write_down(output)
        console.print(f"{PAGE}, {PICTURE}: the table and the picture", soft_wrap=True)


def _cases(groups: tuple[str, ...], mib: int, *, runs: int, quick: bool) -> Iterator[Case]:
    if "transfers" in groups:
        yield from transfers(mib, runs=runs)
    if "network" in groups:
        yield from network(mib, runs=runs, quick=quick)
    if "formats" in groups:
        yield from formats(mib, runs=runs)
    if "differential" in groups:
        yield from differential(mib, line=not quick and mib <= _MOST_OVER_A_LINE)
    if "counted" in groups:
        yield from counted(mib)
    if "clients" in groups:
        yield from clients(mib, runs=runs)
    if "memory" in groups:
        yield memory([mib], large_parts=None) if quick else memory([64, 256, 1024, 8192], large_parts=(1024, 64))
    if "plan" in groups:
        yield plan()
    if "dags" in groups:
        yield dags()
    if "listing" in groups:
        yield listing(200 if quick else 10_000, runs=runs)
    if "page" in groups:
        yield page(100 if quick else 500, runs=runs)
    if "watching" in groups:
        yield watching(100 if quick else 1000, runs=runs)
    if "copying" in groups:
        yield from copying(20_000 if quick else 1_000_000, runs=runs)
    if "applying" in groups:
        yield from applying(2_000 if quick else 60_000, runs=min(runs, 3), seconds=2 if quick else 15)
    if "validating" in groups:
        yield from validating(2_000 if quick else 1_200_000, rows=5_000 if quick else 300_000)
    if "recovery" in groups:
        yield from recovery(50_000 if quick else 36_000_000, seconds=2 if quick else 15)


if __name__ == "__main__":
    main()
