"""Charts as inline SVG: points over time, without a script and without colours of their own; pure.

Colours come from the style sheet by class names, so that a chart is readable in both themes. Every point has a title,
the whole chart a text alternative; the table beside it has the numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
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
    plot = _Plot(points[0].at, points[-1].at, ticks[-1] or 1.0, scale)
    head = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-desc">'
        '<title id="{}-title">{}</title><desc id="{}-desc">{}</desc>'
    ).format(_WIDTH, _HEIGHT, ident, ident, ident, name, ident, told)
    promise = [] if promised is None else [plot.promise(promised)]
    parts = [head, *plot.values(ticks), *plot.moments(), *promise, *plot.line(points), Markup("</svg>")]
    return Markup("").join(parts)


@dataclass(frozen=True)
class _Plot:
    """Draws between `start` and `stop` from zero to `top`."""

    start: datetime
    stop: datetime
    top: float
    scale: Scale

    @property
    def seconds(self) -> float:
        return max((self.stop - self.start).total_seconds(), 1.0)

    def x(self, at: datetime) -> str:
        wide = _WIDTH - _LEFT - _RIGHT
        return f"{_LEFT + (at - self.start).total_seconds() / self.seconds * wide:.1f}"

    def y(self, value: float) -> str:
        high = _HEIGHT - _TOP - _BOTTOM
        return f"{_TOP + high - value / self.top * high:.1f}"

    def values(self, ticks: Sequence[float]) -> Iterator[Markup]:
        """A line across at each tick, and what it is."""
        for tick in ticks:
            yield Markup('<line class="chart-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                _LEFT, _WIDTH - _RIGHT, self.y(tick), self.y(tick)
            )
            yield Markup(
                '<text class="chart-label" x="{}" y="{}" text-anchor="end" dominant-baseline="middle">{}</text>'
            ).format(_LEFT - 8, self.y(tick), self.scale.label(tick) if tick else "0")

    def moments(self) -> Iterator[Markup]:
        """The first, the last and the middle one; none that reads as another does."""
        middle = self.start + timedelta(seconds=self.seconds / 2)
        shown = set()
        for at, anchor in ((self.start, "start"), (self.stop, "end"), (middle, "middle")):
            text = _when(at, self.seconds)
            if text not in shown:
                yield Markup('<text class="chart-label" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                    self.x(at), _HEIGHT - 6, anchor, text
                )
            shown.add(text)

    def promise(self, value: float) -> Markup:
        return Markup('<line class="chart-promise" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>').format(
            _LEFT, _WIDTH - _RIGHT, self.y(value), self.y(value), f"promised: {self.scale.label(value)}"
        )

    def line(self, points: Sequence[Point]) -> Iterator[Markup]:
        """Through the points, the area below it, and a dot on each."""
        line = " ".join(f"{self.x(point.at)},{self.y(point.value)}" for point in points)
        base = self.y(0.0)
        area = f"{self.x(self.start)},{base} {line} {self.x(self.stop)},{base}"
        yield Markup('<polygon class="chart-area" points="{}"/>').format(area)
        yield Markup('<polyline class="chart-line" points="{}"/>').format(line)
        radius = 3 if len(points) <= 40 else 2
        for point in points:
            title = f"{point.at:%Y-%m-%d %H:%M} UTC: {self.scale.label(point.value)}"
            yield Markup('<circle class="chart-point" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                self.x(point.at), self.y(point.value), radius, title
            )


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
