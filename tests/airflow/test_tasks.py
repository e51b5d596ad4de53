"""What tasks do beside their work: being killed, failing, hiding secrets."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading

import pytest

from duckling_provider.backup.making import snapshot
from duckling_provider.base.errors import ConfigError, DucklingError, NotFoundError

pytestmark = pytest.mark.airflow

KEY = "0123456789abcdef" * 4

DAG_FILE = """
from airflow.sdk import DAG
from duckling_provider.operators.backup import DucklingBackupOperator, DucklingCleanupOperator
from duckling_provider.operators.hold import DucklingHoldOperator, DucklingReleaseOperator
from duckling_provider.operators.restore import S3RestoreOperator

with DAG("one_task", schedule=None):
    {operator}(task_id="task", database_id="shop", {arguments})
"""


@pytest.fixture
def run_task(run_dag, tmp_path):
    """``run_task("DucklingBackupOperator", snapshot=…)``: a run of one operator alone."""

    def run(operator, **arguments):
        folder = tmp_path / "dags"
        folder.mkdir(exist_ok=True)
        listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        (folder / "one_task.py").write_text(DAG_FILE.format(operator=operator, arguments=listed))
        return run_dag("one_task", folder=folder)

    return run


@pytest.fixture
def shop(installation, s3_server, make_replica):
    """A replica of several parts and a bucket."""

    class Shop:
        bucket = s3_server.new_bucket()
        replica = make_replica(installation.replica("shop"), rows=300_000)

        def configure(self, **fields):
            s3 = s3_server.s3(
                self.bucket, **{"encryption": "client-aes256", "encryptionKey": KEY, "partSizeMiB": 5, **fields}
            )
            installation.write(installation.entry("shop", s3=s3))

        def keys(self):
            listing = s3_server.client().list_objects_v2(Bucket=self.bucket)
            return sorted(item["Key"] for item in listing.get("Contents", []))

        def unfinished(self):
            try:
                return s3_server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
            except s3_server.client().exceptions.NoSuchUpload:  # how rclone says that there are none
                return []

    shop = Shop()
    assert shop.replica.stat().st_size > 11 * 1024 * 1024
    shop.configure()
    return shop


@pytest.mark.server
def test_a_killed_upload_leaves_nothing_in_the_store_and_the_next_try_succeeds(
    shop, run_task, installation, s3_server, interceptor
):
    from duckling_provider.backup.making.snapshot import take_snapshot

    parts = []

    def kill_at_the_second_part(request):
        if request.part is not None:
            parts.append(request.part)
            if len(parts) == 2:
                os.kill(os.getpid(), signal.SIGTERM)  # what the supervisor sends; the task runner calls on_kill

    shop.configure(endpoint=interceptor(s3_server.endpoint, kill_at_the_second_part), maxConcurrency=1)
    snapshot = take_snapshot(installation.database("shop")).filename
    run = run_task("DucklingBackupOperator", snapshot=snapshot)
    assert (run.state, shop.keys(), shop.unfinished()) == ("failed", [], [])
    assert len(parts) == 2
    run = run_task("DucklingBackupOperator", snapshot=snapshot)
    assert (run.state, shop.keys()) == ("success", [f"shop/{snapshot}", f"shop/{snapshot}.mac"])


@pytest.mark.server
def test_a_killed_restore_leaves_the_replica_and_its_folder_as_they_were(
    shop, run_task, make_replica, s3_server, interceptor, installation
):
    assert run_task("DucklingBackupOperator").state == "success"
    shop.replica.unlink()
    make_replica(shop.replica, seed=1)
    before = hashlib.sha256(shop.replica.read_bytes()).digest()
    names = set(os.listdir(installation.data_path))
    killed = []

    def kill_at_the_first_data(request):
        if request.is_data and not killed:
            killed.append(request)
            os.kill(os.getpid(), signal.SIGTERM)

    shop.configure(endpoint=interceptor(s3_server.endpoint, kill_at_the_first_data))
    run = run_task("S3RestoreOperator", no_delta=True)
    assert (run.state, len(killed)) == ("failed", 1)
    assert hashlib.sha256(shop.replica.read_bytes()).digest() == before
    assert set(os.listdir(installation.data_path)) <= names | {"shop.db.duckling-lock", "shop.db.duckling-origin"}


@pytest.mark.server
def test_a_backup_task_without_a_snapshot_takes_one(shop, run_task, installation):
    run = run_task("DucklingBackupOperator")
    key = run.xcom("task")["key"]
    assert shop.keys() == [key, f"{key}.mac"]
    assert (installation.backup_path / "shop" / key.removeprefix("shop/")).exists()


@pytest.mark.server
def test_a_task_works_at_the_priority_that_the_host_sets_and_leaves_it_after(shop, run_task, monkeypatch):
    if os.geteuid():
        pytest.skip("only root may raise a priority again, so a process that lives on is left as it is")

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    shop.configure()
    monkeypatch.setenv("DUCKLING_NICE", "3")
    before, seen = nice(), []
    real = snapshot.one_pass

    def watched(fd, size, stages, *arguments, **options):
        # In this thread and in one that the pass starts.
        seen.append(nice())
        real(fd, size, [*stages, lambda _: seen.append(nice())], *arguments, **options)

    monkeypatch.setattr(snapshot, "one_pass", watched)
    assert run_task("DucklingBackupOperator").state == "success"
    assert len(seen) > 1
    assert set(seen) == {min(19, before + 3)}
    assert nice() == before


def test_a_dry_cleanup_names_what_would_go_and_deletes_nothing(installation, make_replica, run_task, monkeypatch):
    from datetime import datetime, timezone

    from duckling_provider.backup.making.snapshot import take_snapshot

    monkeypatch.setenv("BACKUP_RETENTION_DAYS", "1")
    make_replica(installation.replica("shop"))
    installation.write(installation.entry("shop"))
    old, new = (
        take_snapshot(installation.database("shop"), now=moment).filename
        for moment in (datetime(2024, 1, 1, tzinfo=timezone.utc), datetime.now(timezone.utc))
    )

    def there():
        return {path.name for path in (installation.backup_path / "shop").glob("*.db")}

    assert run_task("DucklingCleanupOperator", dry_run=True).xcom("task")["local"] == [old]
    assert there() == {old, new}
    assert run_task("DucklingCleanupOperator").xcom("task")["local"] == [old]
    assert there() == {new}


@pytest.mark.server
def test_uploads_that_stay_are_a_note_of_the_cleanup_and_a_refused_deletion_its_failure(
    shop, run_task, s3_server, make_proxy, installation
):
    proxy = make_proxy(s3_server)
    shop.configure(endpoint=proxy.server.endpoint, s3BackupRetentionDays=7)
    key = run_task("DucklingBackupOperator").xcom("task")["key"]
    old = "shop/backup-2020-01-02T03-04-05-678Z.db"
    bucket = installation.database("shop").s3.bucket
    for suffix in ("", ".mac"):
        s3_server.client().put_object(Bucket=bucket, Key=old + suffix, Body=bytes(10_000))
    refused = {"DeleteObject": (403, "AccessDenied")}
    proxy.before = lambda seen: refused.get(seen.operation)
    assert run_task("DucklingCleanupOperator").state == "failed"
    assert old in list(shop.keys())
    refused = {"ListMultipartUploads": (403, "AccessDenied")}
    done = run_task("DucklingCleanupOperator")
    assert done.state == "success"
    assert done.xcom("task")["s3"] == [old]
    (note,) = done.xcom("task")["notes"]
    assert "s3:ListBucketMultipartUploads" in note
    assert shop.keys() == [key, f"{key}.mac"]


def test_a_hold_belongs_to_its_run_and_is_not_needed_for_a_restore_elsewhere(installation, make_replica, run_task):
    from duckling_provider.replica.locks import read_hold

    installation.write(installation.entry("shop"))
    replica = make_replica(installation.replica("shop"))
    assert (
        run_task("DucklingHoldOperator", target_path=str(installation.data_path / "restored" / "x.db")).state
        == "success"
    )
    assert read_hold(replica) is None
    run = run_task("DucklingHoldOperator")
    assert read_hold(replica).owner == f"one_task {run.row.run_id}"


@pytest.mark.parametrize(
    ("mode", "floor", "message"),
    [("none", "none", "has to be named"), ("rot13", "none", "encryption: expected"), ("none", "sse-s3", "weaker than")],
)
def test_what_a_run_may_not_read_is_refused_before_anything_is_paused(
    installation, make_replica, run_task, monkeypatch, mode, floor, message
):
    from duckling_provider.replica.locks import read_hold

    s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "secret-0815"}
    s3 |= {"encryption": "client-aes256", "encryptionKey": "ab" * 32}
    installation.write(installation.entry("shop", s3=s3))
    replica = make_replica(installation.replica("shop"))
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", floor)
    run = run_task("DucklingHoldOperator", encryption=mode)
    assert run.state == "failed"
    assert message in run.xcom("task", "error")["what"]
    assert read_hold(replica) is None


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"before": "yesterday"}, "not an ISO 8601 time"),
        ({"before": "2025-03-01", "key": "backup-2025-03-01T14-32-11-482Z.db"}, "a key and a time were given"),
        ({"until": "2025-03-01T14:30:00Z"}, "until needs target_path"),
        ({"until_position": "binlog.000012:4711"}, "until needs target_path"),
        ({"until": "half past two", "target_path": "IN"}, "not an ISO 8601 time"),
        ({"until": "2025-03-01", "until_position": "binlog.000012:4711", "target_path": "IN"}, "a time and a position"),
        ({"until": "2025-03-01", "before": "2025-03-01", "target_path": "IN"}, "until chooses the backup"),
        ({"until": "2999-03-01", "target_path": "IN"}, "that time is in the future"),
    ],
)
def test_a_time_that_can_not_be_is_refused_before_anything_is_paused(
    installation, make_replica, run_task, conf, message
):
    from duckling_provider.replica.locks import read_hold

    if "target_path" in conf:
        conf = {**conf, "target_path": str(installation.data_path / "restored" / "x.db")}
    installation.write(installation.entry("shop"))
    replica = make_replica(installation.replica("shop"))
    run = run_task("DucklingHoldOperator", **conf)
    assert run.state == "failed"
    assert message in run.xcom("task", "error")["what"]
    assert read_hold(replica) is None


def test_a_release_leaves_the_hold_of_another_run_alone(installation, make_replica, run_task):
    from duckling_provider.replica.locks import place_hold, read_hold

    installation.write(installation.entry("shop"))
    replica = make_replica(installation.replica("shop"))
    place_hold(replica, owner="another run", reason="restore", seconds=60)
    assert run_task("DucklingReleaseOperator").state == "success"
    assert read_hold(replica).owner == "another run"


def test_only_errors_that_a_retry_can_cure_are_retried():
    from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

    from duckling_provider.tasks.run import airflow_errors

    for retryable, expected in ((True, AirflowException), (False, AirflowFailException)):
        with pytest.raises(AirflowException) as caught, airflow_errors():
            raise DucklingError("the store is asleep", subject="shop", hint="Wake it.", retryable=retryable)
        assert type(caught.value) is expected
        assert str(caught.value) == "shop: the store is asleep. Wake it."
        assert caught.value.__suppress_context__


def test_secrets_are_masked_as_soon_as_an_entry_is_read(installation):
    from airflow.sdk._shared.secrets_masker import redact

    from duckling_provider.hooks.duckling import DucklingHook

    url = "mysql://user:sesame-open@db/shop"
    s3 = {
        "enabled": True,
        "bucket": "b",
        "region": "eu-west-1",
        "accessKeyId": "AKIA",
        "secretAccessKey": "a-secret-access-key",
        "encryption": "client-aes256",
        "encryptionKey": "ab12" * 16,
    }
    installation.write(installation.entry("shop", s3=s3, mysqlConnectionString=url))
    assert DucklingHook("shop").database.id == "shop"
    for secret in ("sesame-open", "a-secret-access-key", "ab12" * 16):
        assert redact(f"<{secret}>") == "<***>"


def test_an_unknown_or_bad_entry_is_named(installation):
    from duckling_provider.hooks.duckling import DucklingHook

    installation.write(installation.entry("shop"), installation.entry("bad", s3={"enabled": True}))
    with pytest.raises(NotFoundError, match='Did you mean "shop"'):
        _ = DucklingHook("shopp").database
    with pytest.raises(ConfigError, match=r"bad: s3.bucket: required"):
        _ = DucklingHook("bad").database


def test_a_missing_connection_is_an_error_and_not_the_machines_own_credentials(
    installation, run_task, monkeypatch, capsys
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-machine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-machine")
    s3 = {"enabled": True, "bucket": "b", "region": "eu-west-1", "awsConnId": "nowhere"}
    installation.write(installation.entry("shop", s3=s3))
    run = run_task("DucklingBackupOperator")
    assert (run.state, run.tries) == ("failed", {"task": 1})
    assert "shop: s3.awsConnId: the Airflow connection 'nowhere' does not exist" in capsys.readouterr().out


def test_a_database_without_s3_has_no_store(installation):
    from duckling_provider.hooks.duckling import DucklingHook

    installation.write(installation.entry("shop"))
    with pytest.raises(ConfigError, match="shop: s3: "):
        DucklingHook("shop").store()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_task_of_root_acts_as_the_owner_of_the_replica_s_folder(installation, monkeypatch):
    from duckling_provider.tasks.run import CoreTask

    class Task(CoreTask):
        log = logging.getLogger("task")
        database_id = "production"

    folder = installation.data_path / "of-another-user"
    folder.mkdir()
    os.chown(folder, 54321, 54321)
    installation.write(installation.entry(duckdbPath=str(folder / "production.db")))
    monkeypatch.setattr("sys.executable", "/bin/sh")  # one that every user can run
    monkeypatch.setattr("duckling_provider.__file__", "/bin/sh")
    with Task().core_call():
        assert os.geteuid() == 54321
    assert os.geteuid() == 0
