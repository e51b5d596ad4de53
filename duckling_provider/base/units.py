"""Sizes, spans of time and numbers of days as people read them: in the log, on the command line, on the page."""

from __future__ import annotations

from datetime import datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def human_bytes(count: float) -> str:
    """``1536`` -> ``"1.5 KiB"``; bytes in, binary units out."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """``4210.0`` -> ``"1 h 10 min"``: rounded, for what takes hours at the most."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def span(seconds: float) -> str:
    """``11400`` -> ``"3 h 10 min"``: full units, two at the most, up to years; what is below zero counts as zero."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < 2 * _DAY:
        return _two(whole, (_HOUR, "h"), (_MINUTE, "min"))
    if whole < 10 * _DAY:
        return _two(whole, (_DAY, "d"), (_HOUR, "h"))
    return f"{whole // _DAY} d"


def exact_span(seconds: float) -> str:
    """As `span`, and within the hour to the second: how long something took."""
    return _two(int(seconds), (_MINUTE, "min"), (1, "s")) if _MINUTE <= seconds < _HOUR else span(seconds)


def about(seconds: float) -> str:
    """An estimated duration: ``"about 1 min 5 s"``, ``"less than a second"``."""
    return "less than a second" if seconds < 1 else f"about {exact_span(seconds)}"


def short_about(seconds: float) -> str:
    """As `about`, for a table."""
    return "< 1 s" if seconds < 1 else short_span(seconds)


def short_span(seconds: float) -> str:
    """``11400`` -> ``"3 h"``: one unit, which is enough to tell one backup from another."""
    for length, unit, limit in ((1, "s", 2 * _MINUTE), (_MINUTE, "min", 2 * _HOUR), (_HOUR, "h", 2 * _DAY)):
        if seconds < limit:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // _DAY:.0f} d"


def ago(moment: datetime, now: datetime) -> str:
    """``"3 h 10 min ago"``; what lies in the future is a clock's mistake, and counts as now."""
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 10 else f"{span(seconds)} ago"


def short_ago(moment: datetime, now: datetime) -> str:
    """``"3 h ago"``, for a column of a table."""
    seconds = (now - moment).total_seconds()
    return "in the future" if seconds < 0 else f"{short_span(seconds)} ago"


def interval_words(interval: timedelta) -> str:
    """What stands after "every": ``"hour"``, ``"6 hours"``, ``"15 minutes"``, ``"1.5 seconds"``."""
    seconds = interval.total_seconds()
    unit, length = "second", 1
    for name, least in (("hour", _HOUR), ("minute", _MINUTE)):
        if seconds >= least:
            unit, length = name, least
            break
    count = round(seconds / length, 2)
    return unit if count == 1 else f"{count:g} {unit}s"


def human_days(count: float, *, zero: str) -> str:
    """``7.0`` -> ``"7 days"``; `zero` says what none means."""
    if count == 0:
        return zero
    return "1 day" if count == 1 else f"{count:g} days"


def _two(seconds: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    """`seconds` in two units; the smaller one is left out when there is none of it."""
    count, rest = seconds // large[0], seconds % large[0] // small[0]
    return f"{count} {large[1]} {rest} {small[1]}" if rest else f"{count} {large[1]}"
