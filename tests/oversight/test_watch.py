"""All databases at once, from what is recorded; and a week of nights, some of which fail."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider import config
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import backup_name
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.backup.retention.clean_up import clean_up
from duckling_provider.base import state_files
from duckling_provider.base.errors import DucklingError, StoreError
from duckling_provider.base.moments import stamp_of
from duckling_provider.oversight import record as record_module
from duckling_provider.oversight.notices import Message, notify
from duckling_provider.oversight.record import Record, SyncSeen, note, noted, read_record
from duckling_provider.oversight.watch import DagFacts, Watched, ask_stores, look_at_all
from duckling_provider.stores.store import BytesBody

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
S3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s"}


def key_at(moment: datetime, prefix: str = "production/") -> str:
    return prefix + backup_name(stamp_of(moment))


def look(**more: Any) -> Watched:
    return look_at_all(config.load(), now=NOW, **more)


def kinds(found: Watched) -> list[tuple[str, str]]:
    return [(trouble.database_id, trouble.kind) for trouble in found.troubles]


def test_all_that_is_wrong_is_found_also_with_entries_that_have_no_dag(installation: Any):
    ids = ("fine", "late", "bare", "shaky", "odd", "off", "gone")
    entries = [installation.entry(name, s3={**S3, "pathPrefix": f"{name}/"}, rpoHours=48) for name in ids]
    installation.write(*entries, {"id": "bad", "name": "Bad"})
    error = StoreError("it is down", hint="Wait.").as_record()

    def verified(name: str, hours: float, *changes: Any) -> None:
        made = NOW - hours * HOUR
        good = Record().verified(key_at(made, f"{name}/"), 7, seconds=1.0, at=made)
        note(installation.database(name), lambda _: good, *changes)

    for name in ("fine", "off", "gone"):
        verified(name, 2)
    verified("late", 50)
    verified(
        "shaky", 2, *(lambda r, work=work: r.failed(work, error, at=NOW) for work in ("backup", "verify", "drill"))
    )
    verified("odd", 2, lambda r: r.failed("cleanup", error, at=NOW))
    sync = SyncSeen(NOW, 0.0, None, 3, NOW - HOUR)
    note(installation.database("odd"), lambda r: r.synced(sync), lambda r: Record.cleaned(r, ["the clock is off"]))
    note(installation.database("odd"), lambda r: r.failed("cleanup", error, at=NOW))
    dags = {name: DagFacts(paused=name == "off") for name in ids if name != "gone"}
    assert sorted(kinds(look(dags=dags))) == [
        ("bad", "misconfigured"),
        ("bare", "overdue"),
        ("bare", "promise"),
        ("gone", "dag"),
        ("late", "overdue"),
        ("late", "promise"),
        ("odd", "clock"),
        ("odd", "differs"),
        ("odd", "retention"),
        ("off", "dag"),
        ("shaky", "backup"),
        ("shaky", "drill"),
        ("shaky", "verify"),
    ]
    # Where Airflow can't be asked, nothing is said of its DAGs.
    assert {kind for _, kind in kinds(look())} & {"dag"} == set()
    document = json.loads(json.dumps(look().as_json()))
    assert document["databases"][0]["state"] == "no backup"


def test_a_drill_that_is_long_due_is_told_until_one_goes_well(installation: Any):
    installation.write(installation.entry("shop", s3=S3), installation.entry("by-hand", s3=S3, drillIntervalDays=0))
    day = timedelta(days=1)
    for name in ("shop", "by-hand"):
        for age in (12, 0.01):
            made = NOW - age * day
            key = key_at(made, f"{name}/")
            note(installation.database(name), lambda r, key=key, made=made: r.proven(key, 7, at=made))
    (trouble,) = look().troubles
    assert trouble.text == "no backup was ever restored on trial, and one is due every 7 days"
    assert trouble.hint == "duckling drill shop makes one; see why duckling_drill__shop did not."
    tested = key_at(NOW - 12 * day, "shop/")
    late = "the last drill that went well was 9 d 19 h ago, and one is due every 7 days"
    for age, troubles in ((9.8, [late]), (9, [])):
        at = NOW - age * day
        note(installation.database("shop"), lambda r, at=at: r.proven(tested, 7, at=at, seconds=1.0, tested=True))
        assert [trouble.text for trouble in look().troubles] == troubles
    dags = {name: DagFacts(drill_paused=True) for name in ("shop", "by-hand")}
    assert [(t.id, t.text) for t in look(dags=dags).troubles] == [("shop dag", "its drill DAG is paused in Airflow")]


def test_the_last_drill_is_remembered_when_the_store_is_asked_until_its_backup_is_gone(installation: Any):
    installation.write(installation.entry("shop", s3=S3))
    database, store = installation.database("shop"), MemoryStore(prefix="shop/")
    keys = [key_at(NOW - hours * HOUR, "shop/") for hours in range(60)]
    for key in keys:
        store.put(key, BytesBody(b"x"))
    note(database, lambda r: r.proven(keys[50], 1, at=NOW - 2 * HOUR, seconds=1.0, tested=True))
    for gone in (False, True):
        if gone:
            store.delete(keys[50])
        note(database, record_module.renewed_from(database, store, now=NOW))
        tested = read_record(database).tested
        assert (tested and tested.key) == (None if gone else keys[50])


def test_that_rows_differed_is_told_for_a_day(installation: Any):
    installation.write(installation.entry(s3=S3))
    fresh = Record().verified(key_at(NOW - HOUR), 7, seconds=1.0, at=NOW)
    for hours, told in ((23, True), (25, False)):
        seen = SyncSeen(NOW, 0.0, None, 3, NOW - hours * HOUR)
        note(installation.database(), lambda _, seen=seen: fresh.synced(seen))
        assert (("production", "differs") in kinds(look())) is told


def test_a_thousand_entries_cost_a_file_each_and_no_store(installation: Any, monkeypatch: Any):
    ids = [f"db-{number:04}" for number in range(1000)]
    installation.write(*(installation.entry(name, s3={**S3, "pathPrefix": f"{name}/"}) for name in ids))
    fresh = Record().verified(key_at(NOW - HOUR), 7, seconds=1.0, at=NOW)
    content = record_module._adapter().dump_json(fresh)
    for name in ids:
        folder = installation.backup_path / name
        folder.mkdir(parents=True, mode=0o700)
        (folder / "record.json").write_bytes(content)
        (folder / "record.json").chmod(0o600)
    read = []

    def counted(path: Any) -> bytes:
        read.append(path)
        return state_files.read_state(path)

    monkeypatch.setattr(record_module, "read_state", counted)
    # A connection to any store, this quick test would not survive.
    found = look()
    assert (len(found.standings), len(found.troubles), len(read)) == (1000, 0, 1000)


def test_stores_are_asked_for_what_is_not_known_here_and_seldom_for_the_rest(installation: Any):
    ids = [f"db-{number:02}" for number in range(30)]
    installation.write(*(installation.entry(name, s3={**S3, "pathPrefix": f"{name}/"}) for name in ids))
    databases = config.load().databases
    stores = {}
    for database in databases:
        stores[database.id] = store = MemoryStore(prefix=f"{database.id}/")
        stored = store.put(key_at(NOW - HOUR, f"{database.id}/"), BytesBody(b"backup"))
        record_state(database, store, stored, "verified", means="full", at=NOW - HOUR)
    asked: list[str] = []

    def open_source(database: Any) -> Any:
        asked.append(database.id)
        if database.id == "db-00":
            raise StoreError("it is down")
        return stores[database.id]

    assert ask_stores(databases, open_source, now=NOW) == 19
    assert ask_stores(databases, open_source, now=NOW + HOUR / 4) == 10
    # What is known, whose store was asked lately, costs no request; db-00 is asked again.
    assert len(asked) == 31
    asked.clear()
    ask_stores(databases, open_source, now=NOW + HOUR / 2)
    assert asked == ["db-00"]
    assert kinds(look()) == [("db-00", "overdue")]
    asked.clear()
    ask_stores(databases, open_source, now=NOW + 7 * HOUR)
    assert len(asked) == 20


class Nights(MemoryStore):
    """A store that is down in some nights."""

    down = False

    def put(self, *arguments: Any, **more: Any) -> Any:
        if self.down:
            raise StoreError("it is down", subject="memory:")
        return super().put(*arguments, **more)


@pytest.mark.slow
def test_a_week_with_failing_nights_keeps_the_right_backups_and_tells_each_trouble_once(
    installation: Any, make_replica: Any
):
    """Backups at three in the morning; in the nights to Wednesday and Thursday the store is down, in that to Saturday
    the newest backup is found damaged.
    """
    make_replica(installation.replica(), rows=50)
    s3 = {**S3, "s3BackupRetentionDays": 2, "retention": {"weekly": 1}}
    installation.write(installation.entry(s3=s3, rpoHours=40))
    database, store = installation.database(), Nights(prefix="production/")
    monday = (datetime.now(timezone.utc) - timedelta(days=20)).replace(hour=3, minute=0, second=0, microsecond=0)
    monday -= timedelta(days=monday.weekday())
    sent: list[tuple[datetime, Message]] = []
    uploaded: dict[int, str] = {}

    def night(day: int, now: datetime) -> None:
        store.down = day in (2, 3)
        try:
            with noted(database, "backup", "verify"):
                snapshot = take_snapshot(database, now=now)
                key = upload_snapshot(database, store, snapshot).key
                uploaded[day] = key
                if day == 5:
                    stored, data = store.objects[key]
                    store.objects[key] = (stored, data[:-1] + bytes([data[-1] ^ 1]))
                done = verify_backup(database, store, key)
        except DucklingError as error:
            if day == 5:
                # As the task that verifies has it.
                failure = error.as_record()
                note(database, lambda r: r.went_well("backup").failed("verify", failure, at=now))
            return
        note(database, lambda record: record.verified(done.key, done.size, seconds=1.0, at=now))
        clean_up(database, store, now=now)

    for quarter in range(7 * 24 * 4):
        now = monday + quarter * timedelta(minutes=15)
        if quarter % 96 == 0:
            night(quarter // 96, now)
        found = look_at_all(config.load(), now=now)

        def send(_: str, message: Message, now: datetime = now) -> None:
            sent.append((now, message))

        assert notify(installation.backup_path, found.troubles, ["mail"], send, now=now, host="db1") == []

    def told(kind: str) -> list[tuple[str, float]]:
        """(first words, hours since Monday's backup)."""
        lines = [(line, at) for at, message in sent for line in getattr(message, kind)]
        return [(line.split(": ")[1][:15], round((at - monday) / HOUR, 2)) for line, at in lines]

    failed, late, promise, damaged = "a backup failed", "the last verifi", "rpoHours is 40,", "a verification "
    assert told("new") == [
        (failed, 48.0), (late, 54.25), (promise, 64.25), (damaged, 120.0), (late, 126.25), (promise, 136.25)
    ]  # fmt: skip
    assert [at for _, at in told("over")] == [96.5] * 3 + [144.5] * 3
    assert sorted(told("over")) == sorted(
        [
            (what, at)
            for at, whats in ((96.5, (failed, late, promise)), (144.5, (damaged, late, promise)))
            for what in whats
        ]
    )
    # Friday's and Sunday's by their age, Saturday's because it is not older than the days either, though disproved; of
    # the week, its newest good one is Sunday's.
    assert [b.key for b in list_backups(store)] == [uploaded[day] for day in (6, 5, 4)]
    assert len(list_backups(LocalBackups(database))) == 7
    newest = read_record(database).newest
    assert newest is not None
    assert newest.key == uploaded[6]
