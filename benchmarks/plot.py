"""Draw what a run of the benchmarks has measured: ``python -m benchmarks.plot [RESULTS.json] [PICTURE.svg]``.

Of a run of ``--only differential``, the shares that travelled.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks import MIB, RESULTS, ROOT

mpl.use("svg")
# The same picture for the same figures, whenever it is drawn.
mpl.rcParams["svg.hashsalt"] = "duckling"

_LIMIT_MIB = 50


def draw(results: Path, picture: Path) -> None:
    """Throughput and memory of the commands against the size of the replica, from the memory case."""
    from matplotlib import pyplot as plt

    document = json.loads(results.read_text())
    rows = [row for case in document["cases"] for row in case["rows"]]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for command, marker in (("backup", "o"), ("restore", "s")):
        points = _points(rows, rf"duckling {command}, \d+ MiB")
        large = _points(rows, rf"duckling {command}, \d+ MiB, parts of \d+ MiB")
        sizes = [point["bytes"] / MIB for point in points]
        speed.plot(sizes, [point["mb_per_s"] for point in points], marker=marker, label=f"duckling {command}")
        (line,) = memory.plot(
            sizes, [point["peak_growth_mib"] for point in points], marker=marker, label=f"duckling {command}"
        )
        memory.plot(
            [point["bytes"] / MIB for point in large],
            [point["peak_growth_mib"] for point in large],
            marker=marker,
            linestyle="none",
            markerfacecolor="none",
            color=line.get_color(),
            label=f"{command}, parts of 64 MiB",
        )
    memory.axhline(_LIMIT_MIB, color="grey", linestyle="--", linewidth=1)
    memory.annotate(f"wanted: {_LIMIT_MIB} MiB at most", (64, _LIMIT_MIB + 1), color="grey", fontsize=8)
    memory.set_ylim(0, _LIMIT_MIB * 1.3)
    speed.set_ylim(bottom=0)
    speed.set_title("Throughput of the whole command, MB/s", fontsize=10)
    memory.set_title("Peak memory over the same process idle, MiB", fontsize=10)
    for axes in (speed, memory):
        axes.set_xscale("log", base=2)
        ticks = sorted({point["bytes"] / MIB for point in _points(rows, r"duckling backup, \d+ MiB")})
        axes.set_xticks(ticks, [_size(tick) for tick in ticks])
        axes.set_xlabel("size of the replica")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


def draw_shares(results: Path, picture: Path) -> None:
    """Of each size, which share was sent or fetched, beside what is wanted at most."""
    from matplotlib import pyplot as plt

    cases = json.loads(results.read_text())["cases"]
    found = [
        (f"{target['name'].partition(':')[0]} ({_mode(case['title'])})", target["value"], target["at most"], kind)
        for kind, word in (("sent", "Backups"), ("fetched", "Restores"))
        for case in cases
        for target in case["targets"]
        if case["title"].startswith(word) and target["name"].endswith(f"{kind} / size")
    ]
    figure, axes = plt.subplots(figsize=(9, 0.35 * len(found) + 1.2), layout="constrained")
    for place, (_, value, limit, kind) in enumerate(found):
        color = "C0" if kind == "sent" else "C1"
        axes.barh(
            place, value * 100, color=color, label=kind if kind not in axes.get_legend_handles_labels()[1] else ""
        )
        axes.plot([limit * 100] * 2, [place - 0.4, place + 0.4], color="grey", linewidth=1.5)
    axes.set_yticks(range(len(found)), [name for name, *_ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of the size; grey: wanted at most")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(picture, metadata={"Date": None})


def _mode(title: str) -> str:
    return title.split("; ")[1]


def _points(rows: list[dict[str, Any]], pattern: str) -> list[dict[str, Any]]:
    return [row for row in rows if re.fullmatch(pattern, row["name"])]


def _size(mib: float) -> str:
    return f"{mib / 1024:.0f} GiB" if mib >= 1000 else f"{mib:.0f} MiB"


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "bench.json"
    shares = any(
        case["title"].startswith("Backups of what changed") for case in json.loads(results.read_text())["cases"]
    )
    name = "differential.svg" if shares else "performance.svg"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "internals" / name
    (draw_shares if shares else draw)(results, picture)
    print(picture)


if __name__ == "__main__":
    main()
