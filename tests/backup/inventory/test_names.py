from __future__ import annotations

import posixpath
import re
from datetime import datetime, timedelta, timezone

import pytest
from fixtures.any_text import CHARACTERS, any_text
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.names import (
    ListedBackup,
    assemble,
    backup_name,
    checked_key,
    choose,
    parse_name,
)
from duckling_provider.backup.retention.rules import _kept_by
from duckling_provider.base.errors import DucklingError, NotFoundError
from duckling_provider.base.moments import parse_moment, readable, stamp_of
from duckling_provider.config.s3 import Retention
from duckling_provider.stores.store import StoredObject
from duckling_provider.web.page.wording import utc

#: After everything that the other tests list.
NOW = datetime(9999, 6, 1, tzinfo=timezone.utc)
EXAMPLE = datetime(2025, 3, 1, 14, 32, 11, 482_000, tzinfo=timezone.utc)
EXAMPLE_NAME = "backup-2025-03-01T14-32-11-482Z.db"

OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=OFFSETS)  # noqa: DTZ001
NAMES = MOMENTS.map(stamp_of).map(backup_name)
#: Nearly right names: every digit may be any character that regular expressions call a digit.
ALMOST = st.from_regex(r"\Abackup-\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}-\d{3}Z\.db\Z", alphabet=CHARACTERS)

# ---- names -------------------------------------------------------------------------------------------------


def test_the_contract_s_example():
    assert backup_name(stamp_of(EXAMPLE)) == EXAMPLE_NAME
    assert parse_name(EXAMPLE_NAME) == EXAMPLE


def test_a_year_has_four_digits_wherever_a_moment_is_shown():
    first = datetime(1, 1, 1, tzinfo=timezone.utc)
    assert (readable(first), stamp_of(first)) == ("0001-01-01 00:00:00", "0001-01-01T00-00-00-000Z")
    assert utc(first) == "0001-01-01 00:00:00 UTC"
    backups = [ListedBackup(backup_name(stamp_of(first)), first, 5000)]
    for rule, shown in (
        (Retention(daily=1), "daily: 0001-01-01"),
        (Retention(weekly=1), "weekly: 0001-W01"),
        (Retention(monthly=1), "monthly: 0001-01"),
        (Retention(yearly=1), "yearly: 0001"),
    ):
        assert [text for _, text in _kept_by(rule, backups, lambda _: "verified")] == [shown]


@given(MOMENTS)
def test_a_moment_comes_back_from_its_name_to_the_millisecond(moment: datetime):
    found = parse_name(backup_name(stamp_of(moment)))
    assert found is not None
    assert found == moment - timedelta(microseconds=moment.microsecond % 1000)
    assert found.utcoffset() == timedelta(0)


@given(MOMENTS, MOMENTS)
def test_names_sort_as_their_moments(one: datetime, other: datetime):
    earlier, later = sorted((one, other))
    assert backup_name(stamp_of(earlier)) <= backup_name(stamp_of(later))


@given(st.one_of(ALMOST, any_text(), NAMES))
def test_what_is_taken_for_a_name_is_exactly_one(name: str):
    moment = parse_name(name)
    if moment is not None and moment.year >= 1970:
        assert backup_name(stamp_of(moment)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "backup-.db",
        f" {EXAMPLE_NAME}",
        f"{EXAMPLE_NAME} ",
        f"{EXAMPLE_NAME}\n",
        f"{EXAMPLE_NAME}.mac",
        f"old/{EXAMPLE_NAME}",
        EXAMPLE_NAME.upper(),
        EXAMPLE_NAME.removesuffix(".db"),
        EXAMPLE_NAME.replace(".db", "xdb"),
        "backup-2025-02-30T14-32-11-482Z.db",
        "backup-2025-03-01T24-32-11-482Z.db",
        "backup-2025-03-01T14-32-60-482Z.db",
        "backup-2025-03-01T14-32-11-482.db",
        "backup-2025-03-01T14-32-11Z.db",
        "backup-2025-03-01T14:32:11.482Z.db",
        "backup-٢٠٢٥-03-01T14-32-11-482Z.db",
        "my-backup-2025-03-01T14-32-11-482Z.db",
    ],
)
def test_foreign_names_are_no_backups(name: str):
    assert parse_name(name) is None


# ---- listings ----------------------------------------------------------------------------------------------


@given(st.sets(NAMES, max_size=8), st.sets(NAMES, max_size=8), st.data())
def test_a_listing_becomes_the_backups_in_it_newest_first(backups: set[str], macs: set[str], data: st.DataObject):
    prefix = "production/"
    foreign = {
        f"{prefix}notes.txt",
        f"{prefix}{EXAMPLE_NAME}.bak",
        f"{prefix}old/{EXAMPLE_NAME}",
        f"production-eu/{EXAMPLE_NAME}",
        EXAMPLE_NAME,
        prefix,
    }
    rows = [StoredObject(prefix + name, 1) for name in backups]
    rows += [StoredObject(f"{prefix}{name}.mac", 64) for name in macs]
    rows += [StoredObject(key, 7) for key in foreign]
    found = assemble(prefix, data.draw(st.permutations(rows)))
    assert {backup.key for backup in found} == {prefix + name for name in backups}
    assert [backup.created for backup in found] == sorted((backup.created for backup in found), reverse=True)
    assert {backup.name for backup in found if backup.has_mac} == backups & macs


def test_size_and_time_of_the_store_are_kept():
    modified = datetime(2025, 3, 1, 15, tzinfo=timezone.utc)
    assert assemble("", [StoredObject(EXAMPLE_NAME, 214_748_364_800, "e", modified)]) == [
        ListedBackup(EXAMPLE_NAME, EXAMPLE, 214_748_364_800, modified, has_mac=False, etag="e")
    ]


# ---- which one is meant ------------------------------------------------------------------------------------


@given(st.lists(MOMENTS, max_size=8, unique_by=stamp_of), st.none() | MOMENTS)
def test_the_newest_before_a_moment_is_chosen(moments: list[datetime], before: datetime | None):
    listing = assemble("", [StoredObject(backup_name(stamp_of(moment)), 1) for moment in moments])
    allowed = [backup.created for backup in listing if before is None or backup.created < before]
    if allowed:
        assert choose(listing, now=NOW, subject="production", before=before).created == max(allowed)
    else:
        with pytest.raises(NotFoundError):
            choose(listing, now=NOW, subject="production", before=before)


def test_nothing_old_enough_is_told_with_the_oldest_there_is():
    with pytest.raises(NotFoundError, match=re.escape("2025-03-01T14:32:11+00:00")):
        choose([ListedBackup(EXAMPLE_NAME, EXAMPLE, 1)], now=NOW, subject="production", before=EXAMPLE)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("2025-03-01T14:32:11Z", datetime(2025, 3, 1, 14, 32, 11, tzinfo=timezone.utc)),
        (" 2025-03-01T15:32:11+01:00\n", datetime(2025, 3, 1, 14, 32, 11, tzinfo=timezone.utc)),
        ("2025-03-01 14:32", datetime(2025, 3, 1, 14, 32, tzinfo=timezone.utc)),
        ("2025-03-01", datetime(2025, 3, 1, tzinfo=timezone.utc)),
    ],
)
def test_a_time_given_by_a_person_without_an_offset_is_utc(text: str, expected: datetime):
    assert parse_moment(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-26T00-38-02-094Z",
        " 2026-11-26T00-38-02-094Z",
        "2026-11-26T00-38-02-094",
        "backup-2026-11-26T00-38-02-094Z.db",
        "2026-11-26T00:38:02.094Z",
    ],
)
def test_a_time_is_read_as_backups_names_have_it(text: str):
    assert parse_moment(text) == datetime(2026, 11, 26, 0, 38, 2, 94_000, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2025-02-30", "14:32", "2025-03-01T25:00Z", "2026-11-26T25-38-02-094Z"]
)
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(DucklingError, match="ISO 8601"):
        parse_moment(text)


# ---- keys given by a person --------------------------------------------------------------------------------


def test_a_bare_name_is_completed_and_a_full_key_taken():
    assert checked_key("production/", EXAMPLE_NAME) == f"production/{EXAMPLE_NAME}"
    assert checked_key("production/", f"production/{EXAMPLE_NAME}") == f"production/{EXAMPLE_NAME}"
    assert checked_key("", EXAMPLE_NAME) == EXAMPLE_NAME
    # Another program's name for a backup under our prefix may be restored; only what deletes is stricter.
    assert checked_key("production/", "production/before-migration.db") == "production/before-migration.db"


PIECES = st.sampled_from(
    ["production", "production/", "staging/", "..", ".", "/", "//", "\\", "%2e%2e", "\x00", "\n", "\x7f", ".mac"]
)


@given(
    st.sampled_from(["production/", "a/b/", ""]),
    st.lists(st.one_of(PIECES, NAMES, any_text(max_size=4)), max_size=6).map("".join),
)
def test_a_key_never_leaves_the_prefix(prefix: str, key: str):
    try:
        full = checked_key(prefix, key)
    except DucklingError:
        return
    assert full.startswith(prefix)
    assert len(full) > len(prefix)
    assert not full.endswith((".mac", "/"))
    inside = posixpath.normpath(f"/{full}")
    assert inside.startswith(f"/{prefix}")
    assert not set(full) & set("\\\x00\n\x7f")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "production/",
        "production/old/",
        f"staging/{EXAMPLE_NAME}",
        f"production-eu/{EXAMPLE_NAME}",
        f"/production/{EXAMPLE_NAME}",
        f"production//{EXAMPLE_NAME}",
        f"production/../staging/{EXAMPLE_NAME}",
        f"production/..\\{EXAMPLE_NAME}",
        f"../{EXAMPLE_NAME}",
        f"production/{EXAMPLE_NAME}\n",
        f"production/{EXAMPLE_NAME}.mac",
        f"{EXAMPLE_NAME}.mac",
        "LATEST",
    ],
)
def test_keys_that_are_refused(key: str):
    with pytest.raises(DucklingError):
        checked_key("production/", key)


@pytest.mark.parametrize(
    "key,advice",
    [
        (EXAMPLE_NAME.removesuffix(".db"), f"Perhaps {EXAMPLE_NAME}?"),
        (f"{EXAMPLE_NAME}.mac", f"Perhaps {EXAMPLE_NAME}?"),
        (EXAMPLE_NAME.removeprefix("backup-"), f"Perhaps {EXAMPLE_NAME}?"),
        ("backup-2025-03-01T14:32:11.482Z.db", "They look like backup-"),
        ("Latest", "write latest."),
        ("bakup.db", "They look like backup-"),
    ],
)
def test_a_mistyped_file_name_is_told_what_names_look_like(key: str, advice: str):
    with pytest.raises(DucklingError, match="no backup's file name") as caught:
        checked_key("production/", key)
    assert advice in (caught.value.hint or "")


# ---- moments that can't be true -----------------------------------------------------------------------------


TODAY = datetime(2026, 11, 26, 10, tzinfo=timezone.utc)


def listed(created, modified=None, key=None):
    return ListedBackup(key or f"backup-{stamp_of(created)}.db", created, 1, modified)


@pytest.mark.parametrize(
    "created,modified,believed",
    [
        (TODAY, TODAY, True),
        (TODAY + timedelta(minutes=9), TODAY + timedelta(minutes=9), True),
        (TODAY + timedelta(minutes=11), None, False),
        (TODAY + timedelta(minutes=11), TODAY + timedelta(minutes=11), False),
        (TODAY - timedelta(days=1), TODAY - timedelta(days=1, minutes=9), True),
        (TODAY - timedelta(days=1), TODAY - timedelta(days=2), False),  # an old object under a later name
        (TODAY - timedelta(days=400), TODAY, True),  # brought from another store: shown, and believed
        (TODAY - timedelta(days=1), None, True),
    ],
)
def test_a_name_later_than_now_or_than_the_store_is_not_believed(created, modified, believed):
    assert (listed(created, modified).misdated(TODAY) == "") is believed


def test_an_object_that_was_stored_much_later_is_remarked_on_and_still_believed():
    made, stored = TODAY - timedelta(days=9), TODAY - timedelta(days=2)
    assert listed(made, stored).misdated(TODAY) == ""
    assert listed(made, stored).remark(TODAY) == "stored 7 d later"
    assert listed(made, made + timedelta(hours=8)).remark(TODAY) == ""


def test_a_backup_of_the_future_hides_no_other():
    good = [listed(TODAY - timedelta(days=days)) for days in (1, 2)]
    future = listed(TODAY + timedelta(days=365))
    assert choose([future, *good], now=TODAY, subject="production") == good[0]
    assert choose([future, *good], now=TODAY, subject="production", before=TODAY + timedelta(days=999)) == good[0]


def test_where_every_date_is_impossible_the_error_names_a_backup_and_the_way():
    future = listed(TODAY + timedelta(days=365))
    with pytest.raises(NotFoundError, match=future.key) as caught:
        choose([future], now=TODAY, subject="production")
    assert "name its key" in str(caught.value)
