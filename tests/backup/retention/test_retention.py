from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.memory_store import MemoryStore
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider import config
from duckling_provider.backup.flow import back_up
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import ListedBackup, backup_name
from duckling_provider.backup.inventory.sidecar import companions, sidecar_of
from duckling_provider.backup.inventory.states import State
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.retention.clean_up import clean_up, delete_backup, trim_local
from duckling_provider.backup.retention.rules import Room, plan_retention, trimmed
from duckling_provider.base.cancellation import Control
from duckling_provider.base.disk_space import disk_errors
from duckling_provider.base.errors import CancelledError, ConfigError, FileSystemError, StoreError
from duckling_provider.base.moments import stamp_of
from duckling_provider.config.s3 import Retention
from duckling_provider.stores.store import BytesBody

NOW = datetime(2025, 3, 31, 12, tzinfo=timezone.utc)
PREFIX = "production/"
DAY = timedelta(days=1)


def key_of(age: timedelta, *, prefix: str = PREFIX) -> str:
    return prefix + backup_name(stamp_of(NOW - age))


def listed(age: timedelta, *, has_mac: bool) -> ListedBackup:
    return ListedBackup(key_of(age), NOW - age, 1, has_mac=has_mac)


AGES = st.one_of(
    st.integers(-100, 2_000).map(lambda hours: hours * timedelta(hours=1)),
    # Around the limits that are tried.
    st.builds(lambda days, off: days * DAY + timedelta(milliseconds=off), st.integers(0, 40), st.integers(-1, 1)),
)
DAYS = st.one_of(st.sampled_from([0.0, 1.0, 7.0, 30.0]), st.floats(0, 400))
BACKUPS = st.lists(st.builds(listed, AGES, has_mac=st.booleans()), max_size=12, unique_by=lambda b: b.key)


# ---- what the system refuses --------------------------------------------------------------------------------


def test_a_refusal_of_the_system_is_one_of_our_errors(installation: Any):
    """Its class decides about the exit code, the status of HTTP and the retry."""
    installation.write(installation.entry())
    database = installation.database()
    database.backup_path.parent.mkdir(parents=True, exist_ok=True)
    database.backup_path.write_text("no folder")
    backup = backup_name(stamp_of(NOW))
    local = LocalBackups(database)
    calls: list[Callable[[], object]] = [
        lambda: clean_up(database, None),
        lambda: list(local.list("")),
        lambda: local.head(backup),
        lambda: local.open_range(backup, 0, 1),
        lambda: local.delete(backup),
        lambda: take_snapshot(database),
    ]
    for call in calls:
        with pytest.raises(FileSystemError) as caught:
            call()
        assert (caught.value.errno, caught.value.subject) in {
            (errno.ENOTDIR, "production"),
            (errno.EEXIST, "production"),
        }


def test_an_error_of_a_network_is_none_of_the_disk(tmp_path: Path):
    with pytest.raises(ConnectionResetError), disk_errors(tmp_path, subject="production"):
        raise ConnectionResetError


# ---- the plan ----------------------------------------------------------------------------------------------


@given(backups=BACKUPS, days=DAYS, needs_mac=st.booleans(), random=st.randoms())
def test_the_plan_parts_the_list_and_its_order_does_not_matter(
    backups: list[ListedBackup],
    days: float,
    random: Any,
    *,
    needs_mac: bool,
):
    plan = plan_retention(backups, now=NOW, keep_days=days, needs_mac=needs_mac)
    assert sorted(plan.delete + plan.keep, key=lambda b: b.key) == sorted(backups, key=lambda b: b.key)
    for part in (plan.delete, plan.keep):
        assert list(part) == sorted(part, key=lambda b: b.created, reverse=True)
    shuffled = list(backups)
    random.shuffle(shuffled)
    assert plan_retention(shuffled, now=NOW, keep_days=days, needs_mac=needs_mac) == plan


@given(backups=BACKUPS, days=DAYS, needs_mac=st.booleans())
def test_the_newest_complete_backup_always_stays(backups: list[ListedBackup], days: float, *, needs_mac: bool):
    plan = plan_retention(backups, now=NOW, keep_days=days, needs_mac=needs_mac)
    complete = [backup for backup in backups if backup.has_mac or not needs_mac]
    if complete:
        assert max(complete, key=lambda b: b.created) in plan.keep


@given(backups=BACKUPS, days=DAYS, needs_mac=st.booleans())
def test_what_is_older_than_the_limit_goes_and_nothing_else(
    backups: list[ListedBackup],
    days: float,
    *,
    needs_mac: bool,
):
    plan = plan_retention(backups, now=NOW, keep_days=days, needs_mac=needs_mac)
    limit = timedelta(days=days)
    assert all(NOW - backup.created > limit for backup in plan.delete)
    # One at most outlives the limit: the newest complete one.
    assert sum(NOW - backup.created > limit for backup in plan.keep) <= 1


@given(backups=BACKUPS, days=DAYS, needs_mac=st.booleans())
def test_a_second_plan_finds_nothing_more(backups: list[ListedBackup], days: float, *, needs_mac: bool):
    plan = plan_retention(backups, now=NOW, keep_days=days, needs_mac=needs_mac)
    again = plan_retention(plan.keep, now=NOW, keep_days=days, needs_mac=needs_mac)
    assert again.delete == ()
    assert again.keep == plan.keep


@given(BACKUPS, DAYS, st.integers(0, 500))
def test_what_goes_today_goes_tomorrow(backups: list[ListedBackup], days: float, hours: int):
    today = plan_retention(backups, now=NOW, keep_days=days)
    later = plan_retention(backups, now=NOW + timedelta(hours=hours), keep_days=days)
    assert set(today.delete) <= set(later.delete)


# ---- carried out -------------------------------------------------------------------------------------------


def database_with(folder: Path, **s3: Any) -> config.Database:
    settings = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s", **s3}
    entry = {
        "id": "production",
        "name": "Production",
        "mysqlConnectionString": "mysql://u:p@127.0.0.1/production",
        "duckdbPath": str(folder / "production.db"),
        "s3": settings,
    }
    (folder / "databases.json").write_text(json.dumps([entry]))
    (folder / "databases.json").chmod(0o600)
    return config.load({"DATA_PATH": str(folder), "BACKUP_RETENTION_DAYS": "7"}).database("production")


@pytest.fixture(scope="module")
def database_keeping(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], config.Database]:
    """The database with a retention of so many days in S3."""
    made: dict[float, config.Database] = {}

    def keeping(days: float) -> config.Database:
        if days not in made:
            folder = tmp_path_factory.mktemp("data")
            secret = {"encryption": "client-aes256", "encryptionKey": "c4" * 32}
            made[days] = database_with(folder, s3BackupRetentionDays=days, **secret)
        return made[days]

    return keeping


FOREIGN = (
    f"{PREFIX}notes.txt",
    f"{PREFIX}before-migration.db",
    key_of(90 * DAY) + ".bak",
    key_of(90 * DAY, prefix=f"{PREFIX}archive/"),
    key_of(90 * DAY, prefix="production-eu/"),
    key_of(90 * DAY, prefix="staging/"),
    key_of(90 * DAY, prefix=""),
    key_of(91 * DAY) + ".mac",  # of an object that is not there
)


def filled(ages: list[timedelta], *, without_mac: Collection[int] = ()) -> MemoryStore:
    store = MemoryStore(prefix=PREFIX, mode="client-aes256")
    for key in FOREIGN:
        store.put(key, BytesBody(b"another program's"))
    for index, age in enumerate(ages):
        store.put(key_of(age), BytesBody(b"object"))
        if index not in without_mac:
            store.put(key_of(age) + ".mac", BytesBody(b"mac"))
    return store


@given(st.lists(AGES, max_size=8, unique_by=key_of), st.sets(st.integers(0, 7)), st.sampled_from([1.0, 7.0, 30.0]))
def test_objects_go_with_their_macs_and_nothing_else_does(
    database_keeping: Callable[[float], config.Database], ages: list[timedelta], without_mac: set[int], days: float
):
    store, database = filled(ages, without_mac=without_mac), database_keeping(days)
    before = set(store.objects)
    planned = clean_up(database, store, dry_run=True, now=NOW)
    assert planned.dry_run
    assert set(store.objects) == before

    done = clean_up(database, store, now=NOW)
    assert (done.s3_deleted, done.s3_kept) == (planned.s3_deleted, planned.s3_kept)
    gone = before - set(store.objects)
    assert gone == {end for key in done.s3_deleted for end in (key, f"{key}.mac")} & before
    assert not gone & set(FOREIGN)
    complete = [age for index, age in enumerate(ages) if index not in without_mac]
    if complete:
        assert {key_of(min(complete)), key_of(min(complete)) + ".mac"} <= set(store.objects)

    left = dict(store.objects)
    assert clean_up(database, store, now=NOW).s3_deleted == ()
    assert store.objects == left


def test_without_a_retention_of_their_own_objects_are_kept_for_ever(
    database_keeping: Callable[[float], config.Database],
):
    store = filled([DAY, 4000 * DAY])
    before = dict(store.objects)
    result = clean_up(database_keeping(0), store, now=NOW)
    assert (result.s3_deleted, result.s3_kept) == ((), 2)
    assert store.objects == before


def test_a_crash_between_object_and_mac_never_leaves_an_object_alone(
    database_keeping: Callable[[float], config.Database],
):
    class Crashing(MemoryStore):
        def delete(self, key: str) -> None:
            super().delete(key)
            raise KeyboardInterrupt

    store = Crashing(prefix=PREFIX, mode="client-aes256")
    store.objects.update(filled([DAY, 60 * DAY]).objects)
    with pytest.raises(KeyboardInterrupt):
        clean_up(database_keeping(30), store, now=NOW)
    assert key_of(60 * DAY) not in store.objects
    assert key_of(60 * DAY) + ".mac" in store.objects


def test_deleting_twice_is_no_error():
    store = filled([DAY])
    delete_backup(store, key_of(DAY))
    delete_backup(store, key_of(DAY))
    assert set(store.objects) == set(FOREIGN)


# ---- the local folder --------------------------------------------------------------------------------------


def unpinned(copy: Path) -> list[Path]:
    """The companions of a local backup that may go."""
    return [companion for companion in companions(copy) if companion.suffix != ".pin"]


def fill_folder(folder: Path, ages: list[timedelta]) -> None:
    folder.mkdir(parents=True)
    for age in ages:
        copy = folder / key_of(age, prefix="")
        copy.write_bytes(b"copy")
        for companion in unpinned(copy):
            companion.write_text("{}")


def local_database(tmp_path: Path) -> config.Database:
    database = database_with(tmp_path)
    assert database.local_retention_days == 7
    return database


def test_a_local_backup_is_deleted_as_one_in_a_store_is_and_no_other_file(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [DAY])
    foreign = database.backup_dir / "notes.db"
    foreign.write_text("not a backup")
    local = LocalBackups(database)
    for _ in range(2):
        delete_backup(local, key_of(DAY, prefix=""))
    for key in (foreign.name, "../notes.db"):
        delete_backup(local, key)
    assert os.listdir(database.backup_dir) == [foreign.name]


def test_a_local_backup_that_goes_while_it_is_listed_hides_no_other(tmp_path: Path):
    """And so does a link that leads nowhere."""
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [DAY, 3 * DAY])
    gone = database.backup_dir / key_of(DAY, prefix="")
    gone.unlink()
    gone.symlink_to("nowhere")
    assert [found.key for found in list_backups(LocalBackups(database))] == [key_of(3 * DAY, prefix="")]
    (database.backup_dir / key_of(3 * DAY, prefix="")).with_suffix(".db.pin").symlink_to("itself.db.pin")
    gone.unlink()
    gone.symlink_to(gone.name)  # to itself
    assert [found.key for found in list_backups(LocalBackups(database))] == [key_of(3 * DAY, prefix="")]


def test_old_local_backups_go_with_all_that_belongs_to_them(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [DAY, 3 * DAY, 8 * DAY, 90 * DAY])
    foreign = {"notes.txt", "production.db", f"{key_of(90 * DAY, prefix='')}.bak", "archive"}
    for name in foreign - {"archive"}:
        (database.backup_dir / name).write_text(name)
    other = database.backup_dir.parent / "staging"
    for folder in (database.backup_dir / "archive", other):
        fill_folder(folder, [90 * DAY])
    listing = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    planned = clean_up(database, None, dry_run=True, now=NOW)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == listing
    done = clean_up(database, None, now=NOW)
    assert done.local_deleted == planned.local_deleted
    assert set(done.local_deleted) == {key_of(8 * DAY, prefix=""), key_of(90 * DAY, prefix="")}
    assert (done.local_kept, done.s3_kept, done.busy) == (2, None, ())
    expected = set(foreign)
    for age in (DAY, 3 * DAY):
        copy = database.backup_dir / key_of(age, prefix="")
        expected |= {copy.name, *(companion.name for companion in unpinned(copy))}
    assert set(os.listdir(database.backup_dir)) == expected
    assert len(list(other.iterdir())) == len(list((database.backup_dir / "archive").iterdir())) == 5
    assert clean_up(database, None, now=NOW).local_deleted == ()


def test_the_last_local_backup_stays_however_old(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [300 * DAY, 400 * DAY])
    assert clean_up(database, None, now=NOW).local_deleted == (key_of(400 * DAY, prefix=""),)
    assert (database.backup_dir / key_of(300 * DAY, prefix="")).exists()


def test_a_copy_without_its_sidecar_is_not_the_one_that_stays(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [20 * DAY, 300 * DAY])
    sidecar_of(database.backup_dir / key_of(20 * DAY, prefix="")).unlink()
    assert clean_up(database, None, now=NOW).local_deleted == ()
    assert (database.backup_dir / key_of(300 * DAY, prefix="")).exists()


def test_a_backup_in_use_is_left_for_the_next_time(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [DAY, 20 * DAY])
    old = database.backup_dir / key_of(20 * DAY, prefix="")
    before = set(os.listdir(database.backup_dir))
    with old.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        result = clean_up(database, None, now=NOW)
    assert (result.busy, result.local_deleted, result.local_kept) == ((old.name,), (), 2)
    assert set(os.listdir(database.backup_dir)) == before
    assert clean_up(database, None, now=NOW).local_deleted == (old.name,)


def test_what_is_none_of_ours_beside_old_backups_keeps_no_other_from_going(tmp_path: Path):
    database = local_database(tmp_path)
    folder = database.backup_dir
    fill_folder(folder, [DAY, *(days * DAY for days in range(8, 12))])
    # A folder in the place of a copy, and of a companion; links, pipes and open modes in the places of the rest.
    stuck = folder / key_of(9 * DAY, prefix="")
    stuck.unlink()
    stuck.mkdir()
    log, lock = (stuck.with_name(key_of(10 * DAY, prefix="")).with_suffix(suffix) for suffix in (".upload", ".lock"))
    for path in (log, lock):
        path.unlink()
    log.mkdir()
    os.mkfifo(lock)
    partial = folder / f"{key_of(7 * DAY, prefix='')}.partial"
    partial.symlink_to("/etc/hostname")
    torn = folder / ".backup-x.json.0123.tmp"
    torn.touch(mode=0o666)
    torn.chmod(0o666)
    ours = folder / f"{key_of(6 * DAY, prefix='')}.partial"
    ours.touch(mode=0o600)
    theirs = folder / "download.partial"
    theirs.touch(mode=0o600)
    store = MemoryStore(prefix=PREFIX)
    store.put(key_of(DAY), BytesBody(b"object"))

    done = clean_up(database, store, now=NOW)
    assert {key_of(days * DAY, prefix="") for days in (8, 11)} <= set(done.local_deleted)
    assert done.local_kept + len(done.local_deleted) == 5
    assert not ours.exists()
    assert all(os.path.lexists(path) for path in (stuck, log, partial, torn, theirs))
    for odd in (stuck, log, partial, torn):
        assert any(str(odd) in note for note in done.notes), (odd, done.notes)
    assert not any(theirs.name in note for note in done.notes)


def test_an_upload_log_that_is_none_of_ours_stops_no_clean_up_of_the_store(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [2 * DAY, 3 * DAY])
    odd = (database.backup_dir / key_of(3 * DAY, prefix="")).with_suffix(".upload")
    odd.unlink()
    odd.symlink_to("/etc/hostname")
    lone = (database.backup_dir / key_of(2 * DAY, prefix="")).with_suffix(".lock")
    lone.chmod(0o666)
    store = MemoryStore(prefix=PREFIX)
    store.put(key_of(DAY), BytesBody(b"object"))
    store.put(key_of(2 * DAY) + ".mac", BytesBody(b"mac"))
    store.put(key_of(3 * DAY) + ".mac", BytesBody(b"mac"))
    done = clean_up(database, store, now=NOW)
    assert all(any(str(path) in note for note in done.notes) for path in (odd, lone)), done.notes
    assert sorted(store.objects) == [key_of(2 * DAY) + ".mac", key_of(DAY)]
    assert odd.is_symlink()


def test_a_database_without_any_backup_is_no_error(tmp_path: Path):
    result = clean_up(local_database(tmp_path), None, now=NOW)
    assert (result.local_deleted, result.local_kept) == ((), 0)


def test_a_cancelled_cleanup_deletes_nothing_more(tmp_path: Path):
    database = local_database(tmp_path)
    fill_folder(database.backup_dir, [DAY, 20 * DAY])
    before = set(os.listdir(database.backup_dir))
    control = Control()
    control.cancel()
    with pytest.raises(CancelledError):
        clean_up(database, None, now=NOW, control=control)
    assert set(os.listdir(database.backup_dir)) == before


def test_where_the_mode_leaves_no_backup_complete_the_newest_of_all_stays():
    plain = [ListedBackup(f"backup-{n}", NOW - timedelta(days=n), 10**6) for n in (10, 20, 30)]
    assert plan_retention(plain, now=NOW, keep_days=1, needs_mac=True).keep == (plain[0],)


def test_an_empty_object_does_not_take_the_place_of_the_newest_good_one():
    empty = ListedBackup("backup-empty", NOW - timedelta(days=10), 16, has_mac=True)
    good = ListedBackup("backup-good", NOW - timedelta(days=20), 10**6, has_mac=True)
    assert plan_retention([good, empty], now=NOW, keep_days=1, needs_mac=True).delete == ()


def test_a_backup_of_the_future_is_not_the_one_that_stays():
    """A wrong clock made one that is a year ahead; the newest real one is older than the retention."""
    future = ListedBackup("future", NOW + timedelta(days=365), 9000)
    real = [ListedBackup(str(days), NOW - timedelta(days=days), 9000) for days in (8, 9, 10)]
    plan = plan_retention([future, *real], now=NOW, keep_days=7)
    assert real[0] in plan.keep
    assert plan.delete == (real[1], real[2])
    # Where there is no other, it stays as well.
    assert plan_retention([future], now=NOW, keep_days=7).keep == (future,)


# ---- evidence, pins, and a rule beyond days ------------------------------------------------------------------

RULE = Retention(daily=7, weekly=4, monthly=12, yearly=2)
STATES = st.sampled_from(["uploaded", "verified", "tested", "disproved"])


def states_of(backups: list[ListedBackup], states: list[State]) -> Callable[[ListedBackup], State]:
    known = {backup.key: state for backup, state in zip(backups, states, strict=False)}
    return lambda backup: known.get(backup.key, "uploaded")


@given(BACKUPS, DAYS, st.lists(STATES, min_size=12, max_size=12), st.none() | st.just(RULE))
def test_the_newest_complete_verified_and_tested_ones_always_stay(
    backups: list[ListedBackup], days: float, states: list[State], rule: Retention | None
):
    state = states_of(backups, states)
    plan = plan_retention(backups, now=NOW, keep_days=days, rule=rule, state=state)
    dated = [b for b in backups if not b.misdated(NOW)] or backups
    for wanted in (("uploaded", "verified", "tested"), ("verified", "tested"), ("tested",)):
        found = [b for b in dated if state(b) in wanted]
        if found:
            assert max(found, key=lambda b: b.created) in plan.keep
    if backups:
        assert plan.keep


@given(BACKUPS, st.lists(STATES, min_size=12, max_size=12))
def test_a_disproved_backup_stays_only_for_its_age_or_where_there_is_no_other(
    backups: list[ListedBackup], states: list[State]
):
    state = states_of(backups, states)
    plan = plan_retention(backups, now=NOW, keep_days=7, rule=RULE, state=state)
    for decision in plan.decisions:
        old = NOW - decision.backup.created > 7 * DAY
        if decision.keep and old and state(decision.backup) == "disproved":
            dated = [b for b in backups if not b.misdated(NOW)] or backups
            assert all(state(b) == "disproved" for b in dated)


@given(BACKUPS, DAYS, st.sets(st.integers(0, 11)))
def test_a_pinned_backup_stays_whatever_its_age(backups: list[ListedBackup], days: float, pinned: set[int]):
    backups = [replace(b, is_pinned=number in pinned) for number, b in enumerate(backups)]
    plan = plan_retention(backups, now=NOW, keep_days=days, state=lambda _: "disproved")
    assert {b.key for b in backups if b.is_pinned} <= {b.key for b in plan.keep}


def test_a_year_of_nights_of_which_some_weeks_failed_leaves_what_the_rule_says():
    """Each night a backup is made and the retention runs; in some weeks none is made, in some none is verified."""
    kept: list[ListedBackup] = []
    unverified: set[str] = set()
    start = datetime(2024, 1, 1, 3, tzinfo=timezone.utc)
    for night in range(366):
        now = start + night * DAY
        if night // 7 not in {9, 23, 24}:
            made = ListedBackup(PREFIX + backup_name(stamp_of(now)), now, 100_000, has_mac=True)
            if night // 7 in {30, 31}:
                unverified.add(made.key)
            kept.append(made)
        plan = plan_retention(
            kept,
            now=now + timedelta(hours=1),
            keep_days=0,
            rule=RULE,
            state=lambda b: "uploaded" if b.key in unverified else "verified",
        )
        kept = list(plan.keep)
        assert len(kept) <= 7 + 4 + 12 + 2 + 2
    days = [backup.created.date().isoformat() for backup in sorted(kept, key=lambda b: b.created)]
    # The last of each month, the Sundays of the last weeks (ISO), the last seven days.
    months = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31", "2024-06-30"]
    months += ["2024-07-28", "2024-08-31", "2024-09-30", "2024-10-31", "2024-11-30"]
    recent = [f"2024-12-{day}" for day in ("15", "22", *range(25, 32))]
    assert days == months + recent


def test_each_decision_has_its_reason():
    def made(days: float, **fields: Any) -> ListedBackup:
        return replace(listed(days * DAY, has_mac=True), size=100_000, **fields)

    backups = [made(1), made(2), made(5, is_pinned=True), made(6), made(9), made(40)]
    states: list[State] = ["uploaded", "verified", "verified", "tested", "verified", "verified"]
    rule = Retention(weekly=2)
    plan = plan_retention(backups, now=NOW, keep_days=3, rule=rule, state=states_of(backups, states))
    assert [(decision.keep, decision.reason) for decision in plan.decisions] == [
        (True, "the newest complete one"),
        (True, "the newest verified one"),
        (True, "pinned"),
        (True, "the newest that a drill restored"),
        (True, "weekly: 2025-W12"),
        (False, "older than 3 days"),
    ]


def test_with_a_rule_and_no_days_only_the_rule_keeps():
    backups = [replace(listed(days * DAY, has_mac=True), size=100_000) for days in range(30)]
    plan = plan_retention(backups, now=NOW, keep_days=0, rule=Retention(daily=3))
    assert len(plan.keep) == 3
    assert plan.decisions[-1].reason == "older than what s3.retention keeps"
    future = replace(listed(-9 * DAY, has_mac=True), size=100_000)
    plan = plan_retention([*backups, future], now=NOW, keep_days=0, rule=Retention(daily=3))
    assert (plan.decisions[0].keep, plan.decisions[0].reason) == (True, "its date can't be true")


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({}, "keeps nothing"),
        ({"daily": 0}, "keeps nothing"),
        ({"weeks": 4}, "retention"),
        ({"daily": -1}, "retention"),
        ({"daily": 1.5}, "retention"),
        ([], "retention"),
    ],
)
def test_a_rule_that_can_t_be_followed_is_an_error(tmp_path: Path, rule: Any, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        database_with(tmp_path, retention=rule)


# ---- room ----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=10),
    most=st.integers(0, 300),
    free=st.integers(0, 300),
    needed=st.integers(0, 300),
    pinned=st.sets(st.integers(0, 9)),
    disproved=st.sets(st.integers(0, 9)),
)
def test_want_of_room_takes_the_oldest_local_backups_and_never_the_newest_good_one(
    sizes: list[int], most: int, free: int, needed: int, pinned: set[int], disproved: set[int]
):
    backups = [
        replace(listed(number * DAY, has_mac=False), size=size, is_pinned=number in pinned)
        for number, size in enumerate(sizes)
    ]
    bad = {backups[number].key for number in disproved if number < len(backups)}

    def state(backup: ListedBackup) -> State:
        return "disproved" if backup.key in bad else "verified"

    everything = plan_retention(backups, now=NOW, keep_days=365, state=state)
    plan = trimmed(everything, Room(most, free, needed))
    kept = set(plan.keep)
    newest = next((b for b in backups if b.key not in bad), backups[0])
    assert newest in kept
    assert {b for b in backups if b.is_pinned} <= kept
    may_go = [b for b in backups if b != newest and not b.is_pinned]
    # The oldest first, and no more than needed.
    going = [b for b in may_go if b not in kept]
    assert going == may_go[len(may_go) - len(going) :]
    left, freed = sum(b.size for b in kept), sum(b.size for b in going)
    assert going == may_go or ((not most or left <= most) and free + freed >= needed)
    if going:
        last = going[0].size
        assert (most and left + last > most) or free + freed - last < needed


def test_local_backups_are_trimmed_before_the_next_one_while_uploads_fail(installation: Any, make_replica: Any):
    replica = make_replica(installation.replica(), rows=50)
    size = replica.stat().st_size
    unreachable = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}
    unreachable |= {"endpoint": "http://127.0.0.1:9"}
    installation.write(installation.entry(s3=unreachable, localBackupsMaxBytes=3 * size))
    database = installation.database()

    class Down(MemoryStore):
        def put(self, *_: Any, **__: Any) -> Any:
            raise StoreError("it is down", subject="memory:")

    made = []
    for _ in range(5):
        with pytest.raises(StoreError):
            back_up(database, Down(prefix="production/"))
        here = [backup.key for backup in list_backups(LocalBackups(database))]
        made.append(here[0])
        assert here == made[::-1][:3]


def test_room_for_one_more_replica_is_made_when_the_disk_is_full(
    installation: Any, make_replica: Any, monkeypatch: Any
):
    make_replica(installation.replica(), rows=50)
    installation.write(installation.entry())
    database = installation.database()
    names = [take_snapshot(database).filename for _ in range(3)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    done = clean_up(database, None, dry_run=True)
    assert sorted(done.local_deleted) == sorted(names[:2])
    assert "the room for one more, is free" in done.local_decisions[-1].reason
    assert sorted(trim_local(database)) == sorted(names[:2])
    assert [backup.key for backup in list_backups(LocalBackups(database))] == names[2:]
