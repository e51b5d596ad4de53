"""What the page is made of, where it needs no server: words, rows, lists, charts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.names import ListedBackup
from duckling_provider.base.units import human_bytes
from duckling_provider.web.page import overview, wording
from duckling_provider.web.page.charts import Point, Scale, axis, chart
from duckling_provider.web.page.listing import merge, recorded_items
from duckling_provider.web.services.records import Backup

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
BYTES = Scale(tuple(1024.0**power for power in range(5)), human_bytes)


@pytest.mark.parametrize(
    "seconds,told",
    [
        (None, ""),
        (-1, "0.0 s"),
        (3.25, "3.2 s"),
        (59, "59 s"),
        (119, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (11_400, "3 h 10 min"),
        (90_000, "25 h"),
        (200_000, "2 d 7 h"),
        (9_000_000, "104 d"),
    ],
)
def test_spans_are_told_in_two_units_at_the_most(seconds, told):
    assert wording.span(seconds) == told


@pytest.mark.parametrize(
    "seconds,told", [(None, ""), (3.25, "3.2 s"), (119, "1 min 59 s"), (120, "2 min"), (3600, "1 h")]
)
def test_durations_are_told_to_the_second_within_the_hour(seconds, told):
    assert wording.took(seconds) == told


@pytest.mark.parametrize(
    "total,lost,told",
    [
        (0, 0, "databases.json has no entries yet."),
        (1, 0, "The one database has a sufficiently recent verified backup."),
        (12, 0, "All 12 databases have a sufficiently recent verified backup."),
        (12, 3, "3 of 12 databases have no sufficiently recent verified backup."),
    ],
)
def test_one_sentence_sums_it_up(total, lost, told):
    assert wording.summary(total=total, lost=lost) == told


def test_a_broken_promise_is_summed_up_beside_it():
    assert wording.summary(total=12, lost=0, broken=1).endswith("verified backup. 1 breaks a promise.")
    assert wording.summary(total=12, lost=3, broken=2).endswith("verified backup. 2 break a promise.")


@given(st.lists(st.integers(), max_size=200), st.integers(-3, 50), st.integers(1, 60))
def test_pages_hold_everything_once(items, page, per_page):
    cut = overview.cut(items, page, per_page=per_page)
    assert 1 <= cut.page <= cut.pages
    pages = [overview.cut(items, number + 1, per_page=per_page) for number in range(cut.pages)]
    assert [item for one in pages for item in one.items] == items
    assert items[max(0, cut.first - 1) : cut.last] == list(cut.items)


def test_a_search_wants_every_word_in_id_or_name():
    rows = [
        overview.Row("shop-eu", "Shop (Europe)", "protected"),
        overview.Row("crm", "Customers of the shop", "overdue"),
    ]
    assert [row.id for row in overview.search(rows, " SHOP eu")] == ["shop-eu"]
    assert [row.id for row in overview.search(rows, "shop")] == ["shop-eu", "crm"]
    assert overview.counts(rows) == {"overdue": 1, "protected": 1}


def backup(hours: int, *, verified: bool = True) -> Backup:
    created = NOW - timedelta(hours=hours)
    name = f"shop/backup-{created:%Y-%m-%dT%H-%M-%S}-000Z.db"
    return Backup(name, created, 1000 + hours, "client-aes256", created if verified else None, 5000, f"run-{hours}")


def listed(one: Backup, *, mac: bool = True) -> ListedBackup:
    return ListedBackup(one.key, one.created, one.size + 16, one.created, has_mac=mac)


def test_the_stores_list_keeps_what_runs_recorded_and_drops_what_is_gone():
    kept, gone, foreign, torn = backup(1), backup(2), backup(3), backup(4, verified=False)
    local = ListedBackup(foreign.key.partition("/")[2], foreign.created, 1003)
    found = merge(
        recorded_items([gone, kept]),
        [listed(foreign), listed(torn, mac=False), listed(kept)],
        [local],
        now=NOW,
        needs_mac=True,
    )
    assert [item.key for item in found] == [kept.key, foreign.key, torn.key]
    assert [(item.recorded, item.verified is not None, item.complete, item.here) for item in found] == [
        (True, True, True, False),
        (False, False, True, True),
        (False, False, False, False),
    ]
    assert found[0].size == kept.size  # of the file, not of the object


def test_a_list_says_which_date_cannot_be_true():
    (future, good) = merge([], [listed(backup(-48)), listed(backup(1))], [], now=NOW)
    assert ("in the future" in future.misdated, good.misdated) == (True, "")


# ---- charts ----------------------------------------------------------------------------------------------------


@given(st.floats(1, 1e15))
def test_an_axis_is_round_and_covers_the_highest_value(highest):
    ticks = axis(highest, BYTES.units)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-6)
    assert ticks[-1] <= highest * 2.6


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e14)), min_size=2, max_size=60))
def test_a_chart_is_wellformed_and_stays_within_its_frame(values):
    points = [Point(datetime.fromtimestamp(at, timezone.utc), value) for at, value in sorted(values)]
    svg = ET.fromstring(str(chart("Size", points, BYTES, ident="size")))  # noqa: S314 - our own
    _, _, wide, high = map(float, svg.attrib["viewBox"].split())
    circles = [part for part in svg if part.tag == "circle"]
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= wide
        assert 0 <= float(circle.attrib["cy"]) <= high
        assert circle.find("title").text


def test_a_chart_says_in_words_what_it_shows_and_escapes_its_name():
    points = [Point(NOW - timedelta(days=9 - n), value * 1024.0) for n, value in enumerate((5, 9, 2))]
    svg = str(chart("<Size>", points, BYTES, ident="size"))
    assert (
        "3 backups from 2026-02-20 to 2026-02-22: the first 5.0 KiB, the last 2.0 KiB, between 2.0 KiB and 9.0 KiB."
        in svg
    )
    assert "<Size>" not in svg
    assert "style=" not in svg  # the Content-Security-Policy would drop it
    assert chart("Size", points[:1], BYTES, ident="size") == ""


def test_a_chart_shows_what_is_promised_within_its_frame_and_says_how_often_it_was_broken():
    points = [Point(NOW - timedelta(days=9 - n), value * 1024.0) for n, value in enumerate((5, 9, 2))]
    svg = str(chart("Size", points, BYTES, ident="size", promised=8 * 1024.0))
    assert "Promised: at most 8.0 KiB; 1 above." in svg
    assert "<title>promised: 8.0 KiB</title>" in svg
    above = ET.fromstring(str(chart("Size", points, BYTES, ident="size", promised=1e6)))  # noqa: S314 - our own
    (line,) = [part for part in above if part.attrib.get("class") == "chart-promise"]
    assert 0 <= float(line.attrib["y1"]) <= 30
    assert "Promised: at most 976.6 KiB; none above." in "".join(above.itertext())
