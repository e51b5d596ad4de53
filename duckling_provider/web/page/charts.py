"""Charts as inline SVG: points over time, without a script and without colours of their own; pure.

Colours come from the style sheet by class names, so that a chart is readable in both themes. Every point has a title,
the whole chart a text alternative; the table beside it has the numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from markupsafe import Markup

_WIDTH, _HEIGHT = 560, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 12, 10, 24
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Point:
    at: datetime
    value: float


@dataclass(frozen=True)
class Scale:
    """Of the vertical axis.

    :param units: of which an axis is labelled in, ascending: 1024 and its powers for bytes, 60 and 3600 for seconds.
    :param label: how a value is written.
    """

    units: tuple[float, ...]
    label: Callable[[float], str]


def chart(
    name: str,
    points: Sequence[Point],
    scale: Scale,
    *,
    ident: str,
    what: str = "backups",
    promised: float | None = None,
) -> Markup:
    """A line through `points`, oldest first; empty for fewer than two.

    :param ident: unique within the page.
    :param promised: what no value should exceed: a line across.
    """
    if len(points) < 2:
        return Markup("")
    told = describe(points, scale, what=what, promised=promised)
    ticks = axis(max(promised or 0.0, *(point.value for point in points)), scale.units)
    start, stop = points[0].at, points[-1].at
    seconds = max((stop - start).total_seconds(), 1.0)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    top = ticks[-1] or 1.0

    def x(at: datetime) -> float:
        return _LEFT + (at - start).total_seconds() / seconds * wide

    def y(value: float) -> float:
        return _TOP + high - value / top * high

    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
            '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
        ).format(_WIDTH, _HEIGHT, ident, ident, ident, name, ident, told)
    ]
    for tick in ticks:
        height = f"{y(tick):.1f}"
        parts.append(
            Markup('<line class="chart-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _LEFT, _WIDTH - _RIGHT, height, height
            )
        )
        parts.append(
            Markup(
                '<text class="chart-label" x="{}" y="{}" text-anchor="end" dominant-baseline="middle">{}</text>'
            ).format(_LEFT - 8, height, scale.label(tick) if tick else "0")
        )
    middle = start + timedelta(seconds=seconds / 2)
    shown = set()
    for at, anchor in ((start, "start"), (stop, "end"), (middle, "middle")):
        if _when(at, seconds) in shown:
            continue
        shown.add(_when(at, seconds))
        parts.append(
            Markup('<text class="chart-label" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                f"{x(at):.1f}", _HEIGHT - 6, anchor, _when(at, seconds)
            )
        )
    if promised is not None:
        height = f"{y(promised):.1f}"
        parts.append(
            Markup('<line class="chart-promise" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>').format(
                _LEFT, _WIDTH - _RIGHT, height, height, f"promised: {scale.label(promised)}"
            )
        )
    line = " ".join(f"{x(point.at):.1f},{y(point.value):.1f}" for point in points)
    base = f"{_TOP + high:.1f}"
    area = f"{x(start):.1f},{base} {line} {x(stop):.1f},{base}"
    parts.append(Markup('<polygon class="chart-area" points="{}"/>').format(area))
    parts.append(Markup('<polyline class="chart-line" points="{}"/>').format(line))
    radius = 3 if len(points) <= 40 else 2
    for point in points:
        title = f"{point.at:%Y-%m-%d %H:%M} UTC: {scale.label(point.value)}"
        parts.append(
            Markup('<circle class="chart-point" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                f"{x(point.at):.1f}", f"{y(point.value):.1f}", radius, title
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def describe(points: Sequence[Point], scale: Scale, *, what: str, promised: float | None = None) -> str:
    """The chart in a sentence, and in another one how many values are above what is promised."""
    values = [point.value for point in points]
    days = f"from {points[0].at:%Y-%m-%d} to {points[-1].at:%Y-%m-%d}"
    ends = f"the first {scale.label(values[0])}, the last {scale.label(values[-1])}"
    told = f"{len(points)} {what} {days}: {ends}, between {scale.label(min(values))} and {scale.label(max(values))}."
    if promised is None:
        return told
    above = sum(value > promised for value in values)
    return f"{told} Promised: at most {scale.label(promised)}; {above or 'none'} above."


def axis(highest: float, units: Sequence[float]) -> list[float]:
    """Three to five round values from 0 to at least `highest`, in the largest of `units` that fits."""
    # Below that nothing has a logarithm that a float can hold.
    if highest < sys.float_info.min * 4 * units[0]:
        return [0.0, units[0]]
    unit = max((unit for unit in units if unit <= highest), default=units[0])
    needed = highest / unit / 4
    power = 10 ** math.floor(math.log10(needed))
    step = next(step * power for step in _STEPS if step * power >= needed * (1 - 1e-9))
    count = max(1, math.ceil(highest / unit / step - 1e-9))
    return [index * step * unit for index in range(count + 1)]


def _when(at: datetime, seconds: float) -> str:
    if seconds < 2 * 86_400:
        return f"{at:%d %b %H:%M}"
    return f"{at:%d %b}" if seconds < 300 * 86_400 else f"{at:%b %Y}"
