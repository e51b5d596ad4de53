"""A store that breaks off, stalls, lies or trickles: the right result or a clear error, after a few tries."""

from __future__ import annotations

import threading

import pytest

from duckling_provider.backup.flow import back_up
from duckling_provider.backup.inventory.sidecar import find_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.errors import IntegrityError, StoreError
from duckling_provider.formats.crypto import IV_BYTES
from duckling_provider.stores import fetch, s3_client
from duckling_provider.stores.s3 import open_store

full_only = pytest.mark.full
MODES = ["client-aes256", pytest.param("none", marks=full_only)]
_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>by the test</Message></Error>"


@pytest.fixture
def impatient(monkeypatch):
    """Seconds where the product waits for minutes."""
    monkeypatch.setattr(s3_client, "READ_TIMEOUT", 1)
    monkeypatch.setattr(s3_client, "CONNECT_TIMEOUT", 1)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 3)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)


@pytest.fixture
def site(make_site, moto_server, fault_proxy, contents, request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    mode = parameters.get("mode", "client-aes256")
    made = make_site(moto_server, mode)
    made.proxy = fault_proxy(moto_server)
    made.replica.write_bytes(contents.new)
    return made


def first(proxy, operation, count, **fault):
    """The first `count` requests of that kind meet the fault."""
    left, lock = [None] * count, threading.Lock()

    def choose(request):
        with lock:
            if request.operation == operation and left:
                left.pop()
                return proxy.Fault(**fault)
        return None

    proxy.choose = choose


def always(proxy, operation, **fault):
    first(proxy, operation, 1000, **fault)


def through(site):
    """The database and its store behind the proxy."""
    site.write(site.proxy.server)
    database = site.installation.database()
    return database, open_store(database)


def is_whole(site, key, contents, tmp_path):
    site.write()
    out = tmp_path / "out.db"
    done = site.duckling("restore", "production", key, "--to", str(out))
    assert done.code == 0, done.said
    return out.read_bytes() == contents.new


# ---- uploads -----------------------------------------------------------------------------------------------

PASSING = {
    "reset in a part": ("part", 2, {"reset_sent": 1 << 20}),
    "reset after a part": ("part", 1, {"reset_sent": 5 << 20}),
    "stalled part": ("part", 1, {"stall_sent": 1 << 20}),
    "500": ("part", 2, {"status": 500, "body": _ERROR % b"InternalError"}),
    "503": ("part", 2, {"status": 503, "body": _ERROR % b"SlowDown"}),
    "503 at the beginning": ("create", 2, {"status": 503, "body": _ERROR % b"SlowDown"}),
    "500 for the .mac": ("put", 2, {"status": 500, "body": _ERROR % b"InternalError"}),
    "200 with an error, nothing done": ("complete", 1, {"status": 200, "body": _ERROR % b"InternalError"}),
    "200 with an error, all done": (
        "complete",
        1,
        {"status": 200, "body": _ERROR % b"InternalError", "reached": True},
    ),
    "reset instead of an answer": ("complete", 1, {"reset_answer": 0}),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "fault",
    [
        name
        if name in {"reset in a part", "503", "200 with an error, all done"}
        else pytest.param(name, marks=full_only)
        for name in PASSING
    ],
)
def test_a_backup_gets_through_what_passes(site, contents, tmp_path, fault):
    operation, count, options = PASSING[fault]
    database, store = through(site)
    first(site.proxy, operation, count, **options)
    done = back_up(database, store)
    assert site.proxy.count(operation) > (0 if fault.startswith("reset after") else 1) or operation == "put"
    assert is_whole(site, done.upload.key, contents, tmp_path)
    site.assert_tidy()


LASTING = {
    "reset in a part": ("part", {"reset_sent": 1 << 20}, "no answer from the store"),
    "stalled part": ("part", {"stall_sent": 1 << 20}, "no answer from the store"),
    "500": ("part", {"status": 500, "body": _ERROR % b"InternalError"}, "InternalError"),
    "503": ("part", {"status": 503, "body": _ERROR % b"SlowDown"}, "SlowDown"),
    "200 with an error": ("complete", {"status": 200, "body": _ERROR % b"InternalError"}, "InternalError"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fault", [name if name.startswith(("st", "200")) else pytest.param(name, marks=full_only) for name in LASTING]
)
def test_what_lasts_is_a_clear_error_and_the_retry_finishes_the_upload(site, contents, tmp_path, fault, mode):
    operation, options, words = LASTING[fault]
    database, store = through(site)
    always(site.proxy, operation, **options)
    with pytest.raises(StoreError) as caught:
        back_up(database, store)
    assert words in caught.value.cause
    assert caught.value.retryable
    assert [key for key in site.objects() if key.endswith(".db")] == []
    # Three attempts for each of three parts, or of one call.
    assert site.proxy.count(operation) <= 9
    site.proxy.choose = lambda _: None
    [snapshot] = [find_snapshot(database, path.name) for path in site.backups.glob("backup-*.db")]
    done = upload_snapshot(database, store, snapshot)
    assert site.proxy.count("create") == 1
    assert is_whole(site, done.key, contents, tmp_path)
    site.assert_tidy()
    assert mode == store.mode


# ---- downloads ---------------------------------------------------------------------------------------------

READ_PASSING = {
    "reset": {"reset_answer": 1 << 20},
    "cut off": {"cut_answer": 1 << 20},
    "stalled": {"stall_answer": 1 << 20},
    "500": {"status": 500, "body": _ERROR % b"InternalError"},
    "503": {"status": 503, "body": _ERROR % b"SlowDown"},
}


#: Of a plain object, and of one whose first bytes, the IV, were read before.
SECOND_RANGE = (f"bytes={fetch.RANGE}-", f"bytes={fetch.RANGE + IV_BYTES}-")


def spoil_the_body(proxy, count, **fault):
    """Only requests for whole ranges: the first look at an object is a few bytes."""
    left, lock = [None] * count, threading.Lock()

    def choose(request):
        with lock:
            if request.operation == "get" and request.headers.get("range", "").startswith(SECOND_RANGE) and left:
                left.pop()
                return proxy.Fault(**fault)
        return None

    proxy.choose = choose


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", READ_PASSING)
def test_a_restore_gets_through_what_passes(site, contents, fault, mode):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    database, store = through(site)
    spoil_the_body(site.proxy, 1, **READ_PASSING[fault])
    restore_backup(database, store, no_delta=True)
    assert site.replica.read_bytes() == contents.new
    site.assert_tidy()
    assert mode == store.mode


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "fault", ["stalled", *(pytest.param(name, marks=full_only) for name in READ_PASSING if name != "stalled")]
)
def test_a_download_that_fails_for_good_leaves_the_replica(site, contents, fault):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    database, store = through(site)
    spoil_the_body(site.proxy, 1000, **READ_PASSING[fault])
    if fault in {"reset", "cut off", "stalled"}:
        # Each attempt brings a megabyte more: with the default number of attempts it gets there in the end.
        always(site.proxy, "get", **dict.fromkeys(READ_PASSING[fault], 0))
    with pytest.raises(StoreError) as caught:
        restore_backup(database, store, no_delta=True)
    assert caught.value.retryable
    assert site.replica.read_bytes() == contents.old
    site.assert_tidy()
    assert site.proxy.count("get") <= 4 * 3 * 2 + 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", [1 << 20, *(pytest.param(at, marks=full_only) for at in (0, (4 << 20) - 1))])
def test_one_flipped_bit_on_the_way_never_becomes_a_replica(site, contents, position, mode):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    database, store = through(site)
    spoil_the_body(site.proxy, 1, flip=position)
    with pytest.raises(IntegrityError, match="verification failed"):
        restore_backup(database, store, no_delta=True)
    assert site.replica.read_bytes() == contents.old
    site.assert_tidy()
    # It was the line, not the object.
    restore_backup(database, store, no_delta=True)
    assert site.replica.read_bytes() == contents.new
    assert mode == store.mode


def test_a_bit_flipped_on_the_way_up_is_found_by_the_verification(site, contents):
    database, store = through(site)
    done = back_up(database, store)
    whole = site.client.get_object(Bucket=site.bucket, Key=done.upload.key)["Body"].read()
    broken = bytearray(whole)
    broken[5 << 20] ^= 4
    metadata = site.client.head_object(Bucket=site.bucket, Key=done.upload.key)["Metadata"]
    site.client.put_object(Bucket=site.bucket, Key=done.upload.key, Body=bytes(broken), Metadata=metadata)
    with pytest.raises(IntegrityError):
        verify_backup(database, store, done.upload.key)
    assert site.replica.read_bytes() == contents.new


@pytest.mark.usefixtures("impatient")
def test_a_slow_trickle_is_no_failure(site, contents):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    database, store = through(site)
    # Longer in all than the deadline for one answer.
    spoil_the_body(site.proxy, 1, pause=0.006)
    restore_backup(database, store, no_delta=True)
    assert site.replica.read_bytes() == contents.new
    site.assert_tidy()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stalls_in_every_kind_of_answer_is_given_up(site, contents):
    assert site.duckling("backup", "production").code == 0
    site.replica.write_bytes(contents.old)
    database, store = through(site)
    for operation in ("list", "head", "get"):
        always(site.proxy, operation, stall_sent=0)
        before = len(site.proxy.requests)
        with pytest.raises(StoreError):
            verify_backup(database, store)
        assert len(site.proxy.requests) - before < 20
    assert site.replica.read_bytes() == contents.old
