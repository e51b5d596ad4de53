"""Entries that name their machine: on another one, their files stay untouched."""

from __future__ import annotations

import pytest

from duckling_provider import config
from duckling_provider.backup.flow import back_up
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.backup.retention.clean_up import clean_up
from duckling_provider.base.errors import ConfigError, WrongHostError
from duckling_provider.config.fields import is_same_host
from duckling_provider.oversight.check import check_database
from duckling_provider.replication.sync import adopt_replica, sync, validate_replica

NAME = "backup-2025-03-01T14-32-11-482Z.db"


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def elsewhere(installation, make_replica, monkeypatch):
    """A database with a local backup, seen from another machine than its own."""
    make_replica(installation.replica())
    installation.write(installation.entry(host="db-1", queue="db-1-queue"))
    monkeypatch.setenv("DUCKLING_HOST", "db-1")
    taken = take_snapshot(installation.database())
    monkeypatch.setenv("DUCKLING_HOST", "worker-7")
    return installation.database(), taken


OPERATIONS = {
    "snapshot": lambda database, _: take_snapshot(database),
    "find": lambda database, taken: find_snapshot(database, taken.filename),
    "backup": lambda database, _: back_up(database, None),
    "list": lambda database, _: list_backups(LocalBackups(database)),
    "verify": lambda database, taken: verify_backup(database, LocalBackups(database), taken.filename),
    "delete": lambda database, taken: LocalBackups(database).delete(taken.filename),
    "restore": lambda database, taken: restore_backup(database, LocalBackups(database), taken.filename),
    "cleanup": lambda database, _: clean_up(database, None),
    "sync": lambda database, _: sync(database),
    "validate": lambda database, _: validate_replica(database),
    "lock": lambda database, _: database.replica,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_refuses_and_touches_nothing(elsewhere, installation, name):
    database, taken = elsewhere
    before = contents(installation.data_path)
    with pytest.raises(WrongHostError) as caught:
        OPERATIONS[name](database, taken)
    assert contents(installation.data_path) == before
    error = caught.value
    assert (error.host, error.here, error.retryable) == ("db-1", "worker-7", False)
    for expected in ('"db-1"', '"worker-7"', '"db-1-queue"', "DUCKLING_HOST=db-1", "production: "):
        assert expected in str(error)


def test_an_adoption_refuses_before_it_asks_mysql(elsewhere):
    with pytest.raises(WrongHostError):
        adopt_replica(elsewhere[0])


def test_a_check_names_the_hosts_and_leaves_the_local_steps_out(elsewhere):
    steps = list(check_database(elsewhere[0], None))
    assert [step.name for step in steps] == ["host", "store"]
    assert '"db-1"' in steps[0].error
    assert '"worker-7"' in steps[0].error


@pytest.mark.server
def test_what_reads_the_store_alone_works_anywhere(installation, make_replica, s3_server, monkeypatch, tmp_path):
    from duckling_provider.stores.s3 import open_store

    replica = make_replica(installation.replica())
    installation.write(installation.entry(host="db-1", s3=s3_server.s3(s3_server.new_bucket())))
    monkeypatch.setenv("DUCKLING_HOST", "db-1")
    database = installation.database()
    taken = take_snapshot(database)
    key = upload_snapshot(database, open_store(database), taken).key
    monkeypatch.setenv("DUCKLING_HOST", "laptop")
    database = installation.database()
    store = open_store(database)
    assert verify_backup(database, store, key).size == taken.size
    assert restore_backup(database, store, to=tmp_path / "copy.db").size == replica.stat().st_size
    with pytest.raises(WrongHostError):
        restore_backup(database, store)
    with pytest.raises(WrongHostError):
        upload_snapshot(database, store, find_snapshot(database, taken.filename))


def test_without_a_host_any_machine_will_do(installation, make_replica, monkeypatch):
    make_replica(installation.replica())
    installation.write(installation.entry())
    monkeypatch.setenv("DUCKLING_HOST", "worker-7")
    assert take_snapshot(installation.database()).size > 0


def test_the_machines_own_name_counts_unless_the_environment_gives_another(installation, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "db-1.internal")
    installation.write(installation.entry(host="DB-1"))
    assert installation.database().is_here
    monkeypatch.setenv("DUCKLING_HOST", "db-2")
    assert not installation.database().is_here


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("db-1", "db-1", True),
        ("DB-1", "db-1", True),
        ("db-1", "db-1.example.com", True),
        ("db-1.example.com.", "db-1.example.com", True),
        ("db-1.example.com", "db-1.example.org", False),
        ("db-1", "db-10", False),
    ],
)
def test_names_of_machines_are_compared_as_people_write_them(one, other, same):
    assert is_same_host(one, other) is same
    assert is_same_host(other, one) is same


@pytest.mark.parametrize("host", ["a b", "db/1", "-db", "x" * 300])
def test_a_host_that_is_no_name_is_an_error_of_its_entry(installation, host):
    installation.write(installation.entry(host=host))
    (problem,) = config.load().problems
    assert problem.field == "host"


@pytest.mark.usefixtures("installation")
def test_a_wrong_host_in_the_environment_names_the_variable(monkeypatch):
    monkeypatch.setenv("DUCKLING_HOST", "a b")
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.field == "DUCKLING_HOST"


def test_one_path_on_two_machines_is_two_files(installation):
    shared = str(installation.replica("one"))
    entries = [installation.entry(name, duckdbPath=shared, host=host) for name, host in (("a", "h1"), ("b", "h2"))]
    installation.write(*entries)
    assert not config.load().problems
    installation.write(*entries, installation.entry("c", duckdbPath=shared, host="h2.example.com"))
    assert [problem.entry for problem in config.load().problems] == ["c"]
    installation.write(*entries, installation.entry("c", duckdbPath=shared))
    assert [problem.entry for problem in config.load().problems] == ["c"]
