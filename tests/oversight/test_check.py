"""A check tries each step for real, says what is missing, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from datetime import datetime, timedelta, timezone

import pytest

from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.oversight.check import check_database
from duckling_provider.replica.exchange import JOURNAL_SUFFIX, NEW_SUFFIX
from duckling_provider.replica.locks import LOCK_SUFFIX, place_hold, release_hold
from duckling_provider.replica.origin import ORIGIN_SUFFIX
from duckling_provider.stores import clock, s3_client
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server

STORE_STEPS = [
    "store: bucket",
    "store: put, and head with encryption",
    "store: ranged get",
    "store: list",
    "store: multipart upload",
    "store: part 10000",
    "store: copy a part",
    "store: list parts",
    "store: list uploads",
    "store: abort an upload",
    "store: delete",
]
ALL = {
    "s3:PutObject",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
    "s3:ListBucketMultipartUploads",
}
#: AWS asks for s3:ListBucket where moto asks for an action that does not exist.
MOTO = {"s3:ListBucket": {"s3:HeadBucket"}}

_WRITER = """
import sys
import duckdb

connection = duckdb.connect(sys.argv[1])
print("writing")
sys.stdin.read()
"""


@pytest.fixture
def check(installation, small_replica):
    """``check(server, bucket, **fields) -> {step name: step}`` of an entry with a sound replica."""

    def run(server=None, bucket="", **fields):
        section = None if server is None else server.s3(bucket, **fields)
        installation.write(installation.entry(s3=section))
        if not os.path.lexists(installation.replica()):
            small_replica(installation.replica())
        database = installation.database()
        store = None if server is None else open_store(database)
        return {step.name: step for step in check_database(database, store)}

    return run


def failed(steps):
    return {name: step.error for name, step in steps.items() if step.error is not None}


def allowed(actions):
    return {*actions, *(more for action in actions for more in MOTO.get(action, ()))}


def objects_in(server, bucket):
    return server.client().list_objects_v2(Bucket=bucket).get("Contents", [])


@pytest.mark.parametrize("server_name", ["s3_server", "moto_server"])
@pytest.mark.parametrize(
    "fields",
    [
        {"encryption": "none"},
        {"encryption": "sse-s3"},
        {"encryption": "sse-kms"},
        {"encryption": "client-aes256", "encryptionKey": "ab" * 32},
    ],
    ids=lambda fields: fields["encryption"],
)
def test_a_store_that_can_do_all_passes_every_step_and_stays_empty(request, check, server_name, fields):
    server = request.getfixturevalue(server_name)
    bucket = server.new_bucket()
    steps = check(server, bucket, **fields)
    assert list(steps) == ["replica", "hold", "local backups", *STORE_STEPS]
    assert failed(steps) == {}
    assert objects_in(server, bucket) == []


def test_a_backup_whose_date_cannot_be_true_is_named(installation, small_replica, check, s3_server, monkeypatch):
    bucket = s3_server.new_bucket()
    check(s3_server, bucket)
    s3_server.client().put_object(Bucket=bucket, Key="production/backup-2099-01-01T00-00-00-000Z.db", Body=b"x")
    snapshot = take_snapshot(installation.database(), now=datetime(2098, 1, 1, tzinfo=timezone.utc))
    steps = list(check_database(installation.database(), open_store(installation.database())))
    told = [step.error for step in steps if step.name == "dates"]
    assert [str(snapshot.path) in told[0], "production/backup-2099" in told[1]] == [True, True]
    assert not [step for step in steps if step.error and step.name != "dates"]


def test_backups_of_two_replicas_are_both_named_with_what_to_do(installation, small_replica, check, s3_server):
    """A clone with the same databases.json backs up under the same prefix."""
    bucket = s3_server.new_bucket()
    check(s3_server, bucket)
    database = installation.database()
    client = s3_server.client()

    def back_up(day, replica, host):
        key = f"production/backup-2025-03-{day:02}T00-00-00-000Z.db"
        note = {"duckling-origin": f"replica={replica * 8}; host={host}"}
        client.put_object(Bucket=bucket, Key=key, Body=b"x", Metadata=note)
        return key

    first, second = back_up(1, "ab", "one"), back_up(2, "cd", "two")
    for here in (True, False):
        if not here:
            installation.replica().unlink()
        (told,) = [s.error for s in check_database(database, open_store(database)) if s.name == "origin"]
        wanted = (first, second, "one (replica ababab", "two (replica cdcdcd", "of several replicas", "pathPrefix")
        assert all(part in told for part in wanted), told
    # Of one other replica alone: where there is none here, that is how a machine is replaced.
    client.delete_object(Bucket=bucket, Key=first)
    assert not [s for s in check_database(database, open_store(database)) if s.name == "origin"]
    small_replica(installation.replica())
    (told,) = [s.error for s in check_database(database, open_store(database)) if s.name == "origin"]
    assert "the newest backup is of another replica than the one here" in told


@pytest.mark.parametrize("ahead,word", [(3, "ahead of"), (-3, "behind")])
def test_a_clock_that_differs_from_the_stores_is_told(s3_server, check, monkeypatch, ahead, word):
    bucket = s3_server.new_bucket()
    assert "clock" not in check(s3_server, bucket)
    there = datetime.now(timezone.utc) + timedelta(minutes=ahead)
    monkeypatch.setattr(clock, "_now", lambda: there)
    assert f"{word} the store's" in failed(check(s3_server, bucket))["clock"]


def test_the_probe_stays_under_the_prefix(moto_server, check, make_proxy):
    proxy = make_proxy(moto_server)
    check(proxy.server, moto_server.new_bucket(), pathPrefix="deep/er/")
    keys = {seen.key for seen in proxy.seen if seen.key}
    assert keys
    assert all(key.startswith("deep/er/duckling-check-") for key in keys)


@pytest.mark.parametrize(
    "action,step",
    [
        ("s3:PutObject", "store: put, and head with encryption"),
        ("s3:GetObject", "store: put, and head with encryption"),
        ("s3:ListBucket", "store: bucket"),
        ("s3:DeleteObject", "store: delete"),
    ],
)
def test_a_missing_permission_is_named_once_in_the_first_step_that_needs_it(moto_auth_server, check, action, step):
    bucket = moto_auth_server.new_bucket()
    complaints = failed(check(moto_auth_server.user(*allowed(ALL - {action})), bucket))
    assert list(complaints) == [step]
    assert action in complaints[step]
    uploads = moto_auth_server.client().list_multipart_uploads(Bucket=bucket)
    assert uploads.get("Uploads", []) == []
    if action != "s3:DeleteObject":
        assert objects_in(moto_auth_server, bucket) == []


@pytest.mark.parametrize(
    "operation,step",
    [
        ("ListParts", "store: list parts"),
        ("ListMultipartUploads", "store: list uploads"),
        ("AbortMultipartUpload", "store: abort an upload"),
    ],
)
def test_what_resuming_and_cleaning_up_need_is_tried(moto_server, check, make_proxy, operation, step):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == operation else None
    assert list(failed(check(proxy.server, moto_server.new_bucket()))) == [step]


def test_a_store_that_lists_no_parts_passes_with_a_note(moto_server, check, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (501, "NotImplemented") if seen.operation == "ListParts" else None
    steps = check(proxy.server, moto_server.new_bucket())
    assert failed(steps) == {}
    assert "starts from its beginning" in steps["store: list parts"].detail


def test_a_store_with_few_parts_is_found_out(moto_server, check, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (400, "InvalidArgument") if seen.part > 1000 else None
    bucket = moto_server.new_bucket()
    complaints = failed(check(proxy.server, bucket))
    assert list(complaints) == ["store: part 10000"]
    assert "set s3.maxParts to 1000" in complaints["store: part 10000"]
    assert objects_in(moto_server, bucket) == []
    assert moto_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_a_bucket_with_versions_is_said_to_keep_them(moto_server, check):
    bucket = moto_server.new_bucket()
    moto_server.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "noncurrent version" in check(moto_server, bucket)["store: delete"].detail


def test_credentials_with_all_permissions_pass(moto_auth_server, check):
    assert failed(check(moto_auth_server.user(*allowed(ALL)), moto_auth_server.new_bucket())) == {}


def test_a_wrong_secret_is_told_once(s3_server, check):
    steps = check(s3_server, s3_server.new_bucket(), secretAccessKey="not-the-secret")
    complaints = failed(steps)
    assert list(complaints) == ["store: bucket"]
    assert "s3.secretAccessKey" in complaints["store: bucket"]
    assert "not-the-secret" not in str(steps)


@pytest.mark.parametrize("server_name", ["s3_server", "moto_server"])
def test_an_unknown_bucket_is_named_as_such(request, check, server_name):
    complaints = failed(check(request.getfixturevalue(server_name), "no-such-bucket-anywhere"))
    assert "no-such-bucket-anywhere" in complaints["store: bucket"]
    assert "s3.bucket" in complaints["store: bucket"]
    assert "object" not in complaints["store: bucket"].replace("no-such-bucket-anywhere", "")


def test_a_dead_endpoint_is_told_once(s3_server, check, monkeypatch):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    complaints = failed(check(s3_server, "bucket", endpoint="http://127.0.0.1:9"))
    assert list(complaints) == ["store: bucket"]
    assert "s3.endpoint" in complaints["store: bucket"]


SILENT = {
    "HeadBucket": "store: bucket",
    "PutObject": "store: put, and head with encryption",
    "UploadPart": "store: multipart upload",
}


@pytest.fixture
def hanging(moto_server, make_proxy, monkeypatch):
    """``hanging(operations)``: a proxy that keeps such requests waiting."""
    monkeypatch.setattr(s3_client, "READ_TIMEOUT", 0.5)
    proxy, over = make_proxy(moto_server), threading.Event()

    def make(*operations):
        proxy.before = lambda seen: over.wait(60) and None if seen.operation in operations else None
        return proxy

    yield make
    over.set()


@pytest.mark.parametrize("silent", SILENT)
def test_a_store_that_hangs_is_told_once_and_asked_no_more(moto_server, check, hanging, silent):
    proxy, bucket = hanging(silent), moto_server.new_bucket()
    steps = check(proxy.server, bucket)
    assert list(failed(steps)) == [SILENT[silent]] == list(steps)[-1:]
    assert "no answer from the store" in steps[SILENT[silent]].error
    assert proxy.count(silent) == 1
    assert moto_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_what_may_be_left_at_a_store_that_no_longer_answers_is_named(moto_server, check, hanging):
    proxy = hanging("PutObject", "DeleteObject")
    steps = check(proxy.server, moto_server.new_bucket())
    assert list(failed(steps)) == ["store: put, and head with encryption", "store: tidy up"]
    assert "duckling-check-" in steps["store: tidy up"].error
    assert proxy.operations() == ["HeadBucket", "PutObject", "DeleteObject"]


def test_what_follows_from_a_put_that_failed_is_no_fault_of_its_own(moto_server, check, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (413, "EntityTooLarge") if seen.operation == "PutObject" else None
    assert list(failed(check(proxy.server, moto_server.new_bucket()))) == ["store: put, and head with encryption"]


def test_encryption_that_the_store_drops_is_told(moto_server, check, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.hide = {"x-amz-server-side-encryption"}
    bucket = moto_server.new_bucket()
    complaints = failed(check(proxy.server, bucket, encryption="sse-s3"))
    assert "AES256" in complaints["store: put, and head with encryption"]
    assert objects_in(moto_server, bucket) == []


def test_without_s3_the_local_part_is_checked(check, installation):
    steps = check()
    assert list(steps) == ["replica", "hold", "local backups", "store"]
    assert failed(steps) == {}
    assert "local backups only" in steps["store"].detail
    assert "storage v1.5" in steps["replica"].detail
    assert str(installation.backup_path) in steps["local backups"].detail


def _empty(path):
    path.touch()


def _folder(path):
    path.mkdir()


def _text(path):
    path.write_text("x" * 20_000)


@pytest.mark.parametrize("make", [_empty, _folder, _text])
def test_a_replica_that_is_none_is_named(check, installation, make):
    make(installation.replica())
    assert str(installation.replica()) in failed(check())["replica"]


def test_a_missing_replica_is_named(check, installation):
    installation.replica().symlink_to(installation.data_path / "nowhere.db")
    assert str(installation.replica()) in failed(check())["replica"]


def test_a_damaged_header_is_told_with_the_path(check, installation, make_replica):
    replica = make_replica(installation.replica())
    with replica.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 8)
    complaint = failed(check())["replica"]
    assert str(replica) in complaint
    assert "checksum" in complaint


def test_a_writer_and_its_log_are_told(check, installation, make_replica, start_child):
    make_replica(installation.replica(), wal=True)
    writer = start_child(_WRITER, installation.replica())
    assert writer.line() == "writing"
    detail = check()["replica"].detail
    assert f"PID {writer.pid}" in detail
    writer.kill()
    assert "write-ahead log" in check()["replica"].detail


@pytest.mark.parametrize("suffix", [LOCK_SUFFIX, JOURNAL_SUFFIX, NEW_SUFFIX, ORIGIN_SUFFIX])
def test_what_is_none_of_ours_in_the_place_of_a_state_file_is_named(check, installation, suffix):
    """A backup or a restore would fail for it."""
    odd = installation.replica().with_name(installation.replica().name + suffix)
    odd.symlink_to("nowhere")
    assert str(odd) in failed(check())["hold"]


@pytest.mark.parametrize("make", [_empty, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_a_place_for_backups_that_is_no_folder_is_named(check, installation, make):
    make(installation.backup_path)
    assert f"{installation.backup_path}: is no folder" in failed(check())["local backups"]


def test_a_hold_is_told_with_its_owner(check, installation, make_replica):
    make_replica(installation.replica())
    place_hold(installation.replica(), owner="run 7", reason="restore", seconds=600)
    assert "run 7" in check()["hold"].detail
    release_hold(installation.replica(), owner="run 7")
    assert check()["hold"].detail == "none"


def test_a_check_changes_nothing_on_disk(check, installation, make_replica):
    replica = make_replica(installation.replica(), wal=True)

    def everything():
        return {path: path.read_bytes() for path in sorted(installation.data_path.rglob("*")) if path.is_file()}

    check()
    before = everything()
    check()
    assert everything() == before
    assert replica.with_name(replica.name + ".wal") in before
