"""How much of a replica one go compares, and which tables first: pure arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from duckling_provider.replication.model.validated import Place, TableValidation
from duckling_provider.replication.validate.schedule import PIECE_ROWS, allowance, due, piece_rows

NOW = datetime(2026, 1, 10, tzinfo=timezone.utc)
DAY = 86_400.0


def looked(ago: float, **fields: object) -> dict[str, TableValidation]:
    return {"t": TableValidation("t", looked_at=NOW - timedelta(seconds=ago), **fields)}  # type: ignore[arg-type]


def test_all_shares_of_half_an_interval_are_the_whole():
    rows = {"t": 1_000_000, "u": 2_000_000}
    each = allowance(rows, looked(900), 7 * DAY, NOW).rows
    assert 3_000_000 <= each * (3.5 * DAY / 900) < 3_100_000


def test_a_go_takes_a_twentieth_of_the_time_at_most_and_five_minutes_after_a_long_pause():
    assert allowance({"t": 1}, looked(10), 7 * DAY, NOW).seconds == 0
    for passed in (60.0, 900.0, 3600.0):
        assert 0 < allowance({"t": 1}, looked(passed), 7 * DAY, NOW).seconds <= passed / 20
    assert allowance({"t": 1}, looked(30 * DAY), 7 * DAY, NOW).seconds == 300
    assert allowance({"t": 1000}, looked(30 * DAY), 7 * DAY, NOW).rows == 1500


def test_what_was_begun_comes_first_then_what_was_never_compared_then_the_oldest():
    def begun(days: float, **fields: object) -> TableValidation:
        return TableValidation("", begun_at=NOW - timedelta(days=days), **fields)  # type: ignore[arg-type]

    known = {
        "recent": begun(3),
        "old": begun(4),
        "older": begun(5),
        "going": begun(1, place=Place()),
        "future": begun(-1),  # by a clock that was wrong
    }
    assert due(["never", *known], known, 7 * DAY, NOW) == ["going", "never", "older", "old", "future"]


def test_a_piece_is_small_in_rows_and_in_bytes():
    assert piece_rows(0) == piece_rows(100) == PIECE_ROWS
    assert piece_rows(1 << 20) == 8
    assert piece_rows(1 << 40) == 1
