"""What a host records, where a database stands by it, and what is promised; pure, but for the record's file."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.base.errors import IntegrityError, StoreError
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight.promises import LOCAL_ONLY, Standing, standing_of
from duckling_provider.oversight.record import (
    RECORD,
    Reach,
    Record,
    SyncSeen,
    Transfer,
    estimated_seconds,
    note,
    noted,
    read_record,
    transfers_of,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
S3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
GIB = 1 << 30


def key_at(moment: datetime) -> str:
    return f"production/{backup_name(stamp_of(moment))}"


@pytest.fixture
def database(installation: Any) -> Any:
    """``database(**fields)``: an entry with S3, or as the fields say."""

    def make(**fields: Any) -> Any:
        installation.write(installation.entry(**{"s3": S3, **fields}))
        return installation.database()

    return make


def verified(hours_ago: float, size: int = GIB) -> Record:
    made = NOW - hours_ago * HOUR
    return Record().verified(key_at(made), size, seconds=size / (100 << 20), at=made)


def stands(database: Any, record: Record) -> Standing:
    return standing_of(database, record, now=NOW)


# ---- the record -----------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_noted_and_only_its_owner_reads_it(database: Any):
    entry = database()
    full = (
        verified(3)
        .proven(key_at(NOW - HOUR), 7, at=NOW, seconds=4.5, tested=True)
        .failed("drill", StoreError("it is down", hint="Wait.").as_record(), at=NOW)
        .cleaned(["a clock is off"])
        .synced(SyncSeen(NOW, 1.5, NOW, 3, NOW))
    )
    full = replace(full, reach=Reach("backup", reaches=True, at=NOW), asked=NOW)
    note(entry, lambda _: full)
    assert read_record(entry) == full
    assert stat.S_IMODE(os.stat(entry.backup_path / RECORD).st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"backups": [1]}', b'{"asked": "2026-03-01T12:00:00"}'])
def test_a_record_that_makes_no_sense_is_passed_over_with_a_warning(database: Any, caplog: Any, content: bytes):
    entry = database()
    note(entry, lambda record: record)
    (entry.backup_path / RECORD).write_bytes(content)
    assert read_record(entry) == Record()
    assert "is not believed" in caplog.text


def test_a_record_that_others_may_write_is_not_believed(database: Any, caplog: Any):
    entry = database()
    note(entry, lambda record: replace(record, asked=NOW))
    (entry.backup_path / RECORD).chmod(0o666)
    assert read_record(entry) == Record()
    assert "is not believed" in caplog.text


def test_a_note_goes_with_what_a_killed_one_was_writing(database: Any):
    entry = database()
    note(entry, lambda record: record)
    torn = entry.backup_path / f".{RECORD}.0a1b2c3d.tmp"
    torn.write_bytes(b'{"fail')
    note(entry, lambda record: replace(record, asked=NOW))
    assert not torn.exists()
    assert read_record(entry).asked == NOW


def test_what_failed_is_noted_until_it_goes_well(database: Any):
    entry = database()
    for number in range(2):
        with pytest.raises(StoreError), noted(entry, "backup", "verify"):
            raise StoreError(f"it is down {number}")
    failure = read_record(entry).failures["backup"]
    assert (failure.what, failure.kind, failure.since < failure.at) == ("it is down 1", "StoreError", True)
    with noted(entry, "backup", "verify") as changes:
        changes.append(lambda record: record.proven(key_at(NOW), 7, at=NOW))
    record = read_record(entry)
    assert (record.failures, record.newest and record.newest.key) == ({}, key_at(NOW))


def test_a_backup_that_a_verification_found_damaged_is_known_no_more(database: Any):
    key = key_at(NOW - HOUR)
    down = StoreError("it is down", subject=f"s3://b/{key}").as_record()
    assert verified(1).failed("verify", down, at=NOW).newest is not None
    damaged = IntegrityError("cut off", subject=f"s3://b/{key}").as_record()
    record = verified(1).failed("verify", damaged, at=NOW)
    assert (record.newest, stands(database(), record).state) == (None, "no backup")


# ---- where it stands ---------------------------------------------------------------------------------------------


def test_a_standing_goes_by_age_failures_and_where_the_backups_are(database: Any):
    entry = database()
    assert stands(entry, Record()).state == "no backup"
    assert stands(entry, verified(1)).state == "protected"
    assert stands(entry, verified(31)).state == "overdue"
    failed = verified(1).failed("backup", StoreError("it is down").as_record(), at=NOW)
    assert (stands(entry, failed).state, stands(entry, failed).reason) == ("failing", "it is down")
    alone = stands(database(s3=None), Record().proven(key_at(NOW - HOUR).partition("/")[2], 7, at=NOW))
    assert (alone.state, alone.reason, alone.recoverable) == ("local only", LOCAL_ONLY, True)


@given(size=st.integers(1, 1 << 40), rates=st.lists(st.integers(1, 1 << 32), min_size=1, max_size=9))
def test_an_estimate_lies_within_what_transfers_took(size: int, rates: list[int]):
    transfers = [Transfer(NOW, rate * 10, 10.0, "verify") for rate in rates]
    seconds = estimated_seconds(size, transfers)
    assert seconds is not None
    assert size / max(rates) <= seconds * 1.0001
    assert seconds <= size / min(rates) * 1.0001


def test_restores_tell_more_than_verifications_and_large_ones_more_than_small_ones():
    fast, slow = Transfer(NOW, 10 * GIB, 10.0, "verify"), Transfer(NOW, 10 * GIB, 40.0, "restore")
    tiny = Transfer(NOW, 1000, 10.0, "restore")
    assert estimated_seconds(10 * GIB, [fast]) == 10
    assert estimated_seconds(10 * GIB, [fast, slow, tiny]) == 40
    assert estimated_seconds(100, [tiny]) == 1
    assert estimated_seconds(GIB, []) is None


def test_without_own_transfers_those_of_the_host_count(database: Any, installation: Any):
    entry = database()
    other = Transfer(NOW, GIB, 5.0, "restore")
    installation.write(installation.entry(s3=S3), installation.entry("crm"))
    note(installation.database("crm"), lambda record: record.transferred(other))
    assert transfers_of(entry) == (other,)
    own = Transfer(NOW, GIB, 7.0, "verify")
    note(entry, lambda record: record.transferred(own))
    assert transfers_of(entry) == (own,)


def test_promises_are_kept_or_broken_by_what_a_recovery_now_would_bring(database: Any):
    # 1 GiB at 100 MiB/s takes 10.24 s.
    entry = database(rpoHours=2, rtoMinutes=0.2)
    promise = stands(entry, verified(1)).promise
    assert (promise.rpo_kept, promise.rto_kept, promise.broken(entry)) == (True, True, [])
    late = stands(entry, verified(3, size=2 * GIB)).promise
    assert (late.rpo_kept, late.rto_kept) == (False, False)
    assert late.broken(entry) == [
        "rpoHours is 2, and 3 h would be lost",
        "rtoMinutes is 0.2, and a recovery takes about 20 s",
    ]
    none = stands(entry, Record()).promise
    assert (none.rpo_kept, none.rto_kept, none.broken(entry)) == (
        False, None, ["rpoHours is 2, and nothing can be recovered"]
    )  # fmt: skip
    unpromised = stands(database(), verified(3)).promise
    assert (unpromised.rpo_kept, unpromised.rto_kept, unpromised.is_broken) == (None, None, False)


def test_a_binlog_that_reaches_back_loses_nothing_until_that_is_long_ago(database: Any):
    entry, record = database(rpoHours=2), verified(3)
    assert record.newest is not None

    def promise(name: str, *, reaches: bool, asked: timedelta) -> Any:
        return stands(entry, replace(record, reach=Reach(name, reaches, NOW - asked))).promise

    name = record.newest.name
    found = promise(name, reaches=True, asked=timedelta(minutes=15))
    assert (found.by_binlog, found.loss, found.rpo_kept, found.recoverable_to) == (True, 0.0, True, NOW - 3 * HOUR)
    for wrong in (
        promise(name, reaches=False, asked=timedelta(minutes=15)),
        promise(name, reaches=True, asked=2 * HOUR),
        promise("backup-2025-03-01T14-32-11-482Z.db", reaches=True, asked=timedelta(minutes=15)),
    ):
        assert (wrong.by_binlog, wrong.loss, wrong.rpo_kept) == (False, 3 * 3600, False)


def test_the_last_drill_is_told_although_newer_backups_were_made(database: Any):
    record = Record().proven(key_at(NOW - 40 * HOUR), GIB, at=NOW - 39 * HOUR, seconds=33.0, tested=True)
    for hours in range(30, 0, -1):
        record = record.verified(key_at(NOW - hours * HOUR), GIB, seconds=9.0, at=NOW - hours * HOUR)
    promise = stands(database(), record).promise
    assert (promise.tested, promise.measured) == (NOW - 39 * HOUR, 33.0)
    assert promise.recoverable_to == NOW - HOUR
