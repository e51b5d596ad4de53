"""A backup is in the store whole and as asked for, or not at all; an interrupted upload goes on where it was."""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from duckling_provider.backup.flow import back_up, interrupted_upload, unfinished_backup
from duckling_provider.backup.inventory.sidecar import find_snapshot, sidecar_of
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    BusyError,
    CancelledError,
    DamagedError,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.replica.reading import rows_digest
from duckling_provider.stores import clock, s3_client
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server

KEY = "c4" * 32
PART = 5 << 20
MODES = ["none", "sse-s3", "sse-kms", "client-aes256"]

_UPLOAD = """
import sys
from duckling_provider import config
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.stores.s3 import open_store
from duckling_provider.backup.inventory.sidecar import find_snapshot

database = config.load().database("production")
print("uploading")
upload_snapshot(database, open_store(database), find_snapshot(database, sys.argv[1]))
print("done")
"""


class Backup:
    """A snapshot of a replica, ready for the upload to one bucket."""

    def __init__(self, installation, server, bucket, **fields):
        self._installation, self._behind, self.bucket = installation, server, bucket
        self._fields = {"partSizeMiB": 5, "maxConcurrency": 2, **fields}
        if self._fields.get("encryption") == "client-aes256":
            self._fields.setdefault("encryptionKey", KEY)
        self.through(server)
        self.snapshot = take_snapshot(self.database)
        self.key = f"production/{self.snapshot.filename}"

    def through(self, server, **fields):
        """Go through another endpoint of the same store, or change fields of the entry's `s3`."""
        entry = server.s3(self.bucket, **{**self._fields, **fields})
        self._installation.write(self._installation.entry(s3=entry))
        self.database, self._store = self._installation.database(), None

    def upload(self, control=None):
        self._store = self._store or open_store(self.database)
        return upload_snapshot(self.database, self._store, self.snapshot, control=control)

    # What a program sees that has plain boto3 and no part of this package.

    @property
    def client(self):
        return self._behind.client()

    def keys(self):
        return [row["Key"] for row in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def unfinished(self):
        return [row["Key"] for row in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def bytes(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def kept(self):
        """The keys, without the note that a verification leaves."""
        return [key for key in self.keys() if not key.endswith(".state")]

    def is_whole(self):
        """The object, and the ``.mac`` where it should have one, are what the replica and the key make."""
        data = self._installation.replica().read_bytes()
        stored = self.bytes(self.key)
        if self._fields.get("encryption") != "client-aes256":
            return stored == data and self.kept() == [self.key]
        raw, iv = bytes.fromhex(KEY), stored[:16]
        plain = Cipher(algorithms.AES(raw), modes.CTR(iv)).decryptor().update(stored[16:])
        mac = hmac.new(raw, stored, hashlib.sha256).hexdigest()
        return plain == data and self.bytes(f"{self.key}.mac") == mac.encode() and len(self.kept()) == 2


@pytest.fixture
def ready(installation, small_replica, medium_replica):
    """``ready(server, big=True, **fields) -> Backup`` in a fresh bucket; a big one has four parts, else one."""

    def make(server, *, big=True, **fields):
        if big:
            medium_replica(installation.replica())
        else:
            small_replica(installation.replica())
        return Backup(installation, server, server.new_bucket(), **fields)

    return make


@pytest.fixture(params=["s3_server", "moto_server"])
def server(request):
    """Both kinds of server, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def impatient(monkeypatch):
    """Two attempts at each request, for tests whose server fails for good."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)


def leftovers(backup):
    """What lies beside the snapshot and its sidecar, but the lock and what is remembered, which stay."""
    mine = {"segments", backup.snapshot.filename, backup.snapshot.path.with_suffix(".json").name}
    return {*os.listdir(backup.database.backup_dir)} - mine - {backup.snapshot.upload_lock.name}


# ---- what is in the bucket ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("big", [False, True], ids=["one part", "four parts"])
def test_a_backup_is_in_the_store_as_the_mode_says(server, ready, mode, big):
    backup = ready(server, big=big, encryption=mode)
    result = backup.upload()
    size = backup.snapshot.size
    assert (result.key, result.size, result.mode) == (backup.key, size, mode)
    assert backup.is_whole()
    head = backup.client.head_object(Bucket=backup.bucket, Key=backup.key)
    client_side = mode == "client-aes256"
    assert head["ContentLength"] == size + (16 if client_side else 0)
    if mode.startswith("sse"):
        assert head["ServerSideEncryption"] == {"sse-s3": "AES256", "sse-kms": "aws:kms"}[mode]
    metadata = {name.lower(): value for name, value in head["Metadata"].items()}
    expected = {
        "duckling-format": "1",
        "duckling-mode": mode,
        "duckling-size": str(size),
        "duckling-database": "production",
        "duckling-origin": backup.snapshot.origin,
    }
    if client_side:
        content = f"production\0{backup.snapshot.stamp}\0{backup.snapshot.mac}\0".encode()
        identity_key = hmac.new(bytes.fromhex(KEY), b"duckling identity v1", hashlib.sha256).digest()
        expected["duckling-identity"] = hmac.new(identity_key, content, hashlib.sha256).hexdigest()
        expected["duckling-key-fingerprint"] = EncryptionKey.parse(KEY).fingerprint
        mac = backup.client.head_object(Bucket=backup.bucket, Key=f"{backup.key}.mac")
        assert mac["ContentType"].partition(";")[0] == "text/plain"
        assert mac["ContentLength"] == 64
    else:
        expected["duckling-sha256"] = hashlib.sha256(backup.snapshot.path.read_bytes()).hexdigest()
    key = EncryptionKey.parse(KEY) if client_side else None
    expected["duckling-rows"] = rows_digest(backup.snapshot.rows, key)
    assert metadata == expected
    if server.folder is None:
        assert head["ETag"].strip('"').endswith("-4") == big
        assert backup.unfinished() == []
    assert leftovers(backup) == set()


def test_the_openssl_command_decrypts_a_backup_into_the_replica(s3_server, ready, installation, tmp_path):
    backup = ready(s3_server, encryption="client-aes256")
    backup.upload()
    stored = s3_server.folder / backup.bucket / backup.key
    cipher, plain = tmp_path / "ciphertext", tmp_path / "plain.db"
    data = stored.read_bytes()
    cipher.write_bytes(data[16:])
    decrypt = ["openssl", "enc", "-d", "-aes-256-ctr", "-K", KEY, "-iv", data[:16].hex()]
    subprocess.run([*decrypt, "-in", str(cipher), "-out", str(plain)], check=True)
    assert plain.read_bytes() == installation.replica().read_bytes()
    digest = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{KEY}", str(stored)]
    printed = subprocess.run(digest, check=True, capture_output=True, text=True).stdout.split()[-1]
    assert stored.with_name(stored.name + ".mac").read_text() == printed


def test_the_log_of_an_upload_tells_mode_and_key(moto_server, ready, caplog):
    caplog.set_level("INFO")
    backup = ready(moto_server, big=False, encryption="client-aes256")
    backup.upload()
    fingerprint = EncryptionKey.parse(KEY).fingerprint
    assert f"{backup.key}: encryption client-aes256, key fingerprint {fingerprint}" in caplog.text
    assert KEY not in caplog.text


def test_nothing_secret_is_in_what_the_store_is_told(moto_server, ready, make_proxy):
    backup = ready(moto_server, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    backup.upload()
    told = " ".join(f"{name}: {value}" for seen in proxy.seen for name, value in seen.headers.items())
    assert "duckling-key-fingerprint" in told
    for secret in (KEY, moto_server.secret_access_key, backup.snapshot.sha256):
        assert secret not in told


# ---- the .mac comes first ----------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True], ids=["one part", "four parts"])
def test_the_mac_is_there_before_the_object_appears(moto_server, ready, make_proxy, big):
    backup = ready(moto_server, big=big, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    states = []

    def look(seen):
        appears = seen.operation == "CompleteMultipartUpload" or (
            seen.operation == "PutObject" and seen.key == backup.key
        )
        if appears:
            states.append(backup.keys())
            assert backup.bytes(f"{backup.key}.mac") == backup.snapshot.mac.encode()

    proxy.before = look
    backup.upload()
    assert states == [[f"{backup.key}.mac"]]
    assert backup.is_whole()


def test_an_upload_that_cannot_be_completed_leaves_neither_object_nor_mac(moto_server, ready, make_proxy):
    backup = ready(moto_server, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == "CompleteMultipartUpload" else None
    with pytest.raises(StoreError):
        backup.upload()
    assert proxy.count("PutObject", ".mac") == 1
    assert backup.keys() == []
    assert backup.unfinished() == []
    assert leftovers(backup) == set()


def test_a_mac_that_cannot_be_stored_lets_no_object_appear(moto_server, ready, make_proxy):
    backup = ready(moto_server, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.key.endswith(".mac") else None
    with pytest.raises(AccessDeniedError):
        backup.upload()
    assert backup.keys() == []
    assert backup.unfinished() == []


# ---- interrupted uploads -----------------------------------------------------------------------------------


def stall_after(proxy, parts):
    """Let that many parts through, hold the following ones for ever; returns the event that lets them go, unsent."""
    released, passed, lock = threading.Event(), [], threading.Lock()

    def hold(seen):
        if seen.operation != "UploadPart":
            return None
        with lock:
            if len(passed) < parts:
                passed.append(seen.part)
                return None
        released.wait(60)
        return proxy.HANG_UP

    proxy.before = hold
    return released


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never came")


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_killed_upload_shows_no_object_and_its_retry_goes_on(server, ready, make_proxy, start_child, mode):
    backup = ready(server, encryption=mode)
    proxy = make_proxy(server)
    backup.through(proxy.server)
    released = stall_after(proxy, 2)
    child = start_child(_UPLOAD, backup.snapshot.filename)
    assert child.line() == "uploading"
    wait_until(lambda: backup.snapshot.upload_log.exists() and backup.snapshot.upload_log.read_text().count("\n") == 3)
    child.kill()
    released.set()
    assert backup.keys() == []

    proxy.seen.clear()
    proxy.before = lambda _: None
    backup.upload()
    assert proxy.count("CreateMultipartUpload") == 0
    # By their numbers: a request of the killed one may be seen only now.
    assert len({seen.part for seen in proxy.seen if seen.operation == "UploadPart"}) == 2
    assert backup.is_whole()
    assert leftovers(backup) == set()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_fails_for_a_while_costs_only_the_missing_parts(moto_server, ready, make_proxy):
    backup = ready(moto_server, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    proxy.before = lambda seen: (503, "SlowDown") if seen.part > 2 else None
    with pytest.raises(StoreError) as caught:
        backup.upload()
    assert caught.value.retryable
    assert backup.keys() == []
    assert backup.unfinished() == [backup.key]

    proxy.seen.clear()
    proxy.before = lambda _: None
    backup.upload()
    assert sorted(seen.part for seen in proxy.seen if seen.operation == "UploadPart") == [3, 4]
    assert backup.is_whole()
    assert backup.unfinished() == []


def test_an_upload_that_the_store_has_forgotten_starts_anew(moto_server, ready, make_proxy):
    backup, _ = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    [upload] = backup.client.list_multipart_uploads(Bucket=backup.bucket)["Uploads"]
    backup.client.abort_multipart_upload(Bucket=backup.bucket, Key=backup.key, UploadId=upload["UploadId"])
    backup.upload()
    assert backup.is_whole()
    assert backup.unfinished() == []


def test_credentials_that_may_not_list_parts_start_anew_and_leave_no_old_upload(moto_server, ready, make_proxy):
    backup, proxy = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == "ListParts" else None
    backup.upload()
    assert proxy.count("UploadPart") == 4
    assert backup.is_whole()
    assert backup.unfinished() == []


def test_a_part_that_the_store_has_otherwise_is_sent_again(moto_server, ready, make_proxy):
    backup, proxy = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    [upload] = backup.client.list_multipart_uploads(Bucket=backup.bucket)["Uploads"]
    place = {"Bucket": backup.bucket, "Key": backup.key, "UploadId": upload["UploadId"]}
    backup.client.upload_part(**place, PartNumber=2, Body=b"x" * PART)
    backup.upload()
    assert 2 in [seen.part for seen in proxy.seen if seen.operation == "UploadPart"]
    assert backup.is_whole()


def test_a_torn_upload_log_costs_parts_but_no_correctness(moto_server, ready, make_proxy):
    backup, _ = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    log = backup.snapshot.upload_log
    log.write_bytes(log.read_bytes()[:-20])
    backup.upload()
    assert backup.is_whole()


def test_another_key_in_between_never_continues_the_old_ciphertext(moto_server, ready, make_proxy):
    backup, proxy = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    other = "5d" * 32
    backup.through(proxy.server, encryptionKey=other)
    backup.upload()
    stored, raw = backup.bytes(backup.key), bytes.fromhex(other)
    assert stored[:16].hex() != backup.snapshot.iv
    assert backup.bytes(f"{backup.key}.mac") == hmac.new(raw, stored, hashlib.sha256).hexdigest().encode()
    plain = Cipher(algorithms.AES(raw), modes.CTR(stored[:16])).decryptor().update(stored[16:])
    assert plain == backup.snapshot.path.read_bytes()
    assert proxy.count("UploadPart") == 4


def _interrupted(server, ready, make_proxy, *, mode):
    """A backup of which two parts of four have arrived when the store broke down; and the proxy, in order again."""
    backup = ready(server, encryption=mode)
    proxy = make_proxy(server)
    backup.through(proxy.server)
    broken = (400, "RequestTimeout")  # passing, but nothing that botocore would try again by itself for long
    proxy.before = lambda seen: broken if seen.part > 2 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_client, "ATTEMPTS", 1)
        with pytest.raises(StoreError):
            backup.upload()
    assert backup.unfinished() == [backup.key]
    backup.through(proxy.server)
    proxy.seen.clear()
    proxy.before = lambda _: None
    return backup, proxy


# ---- again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode,big",
    [("none", False), ("sse-s3", False), ("sse-kms", True), ("client-aes256", False), ("client-aes256", True)],
)
def test_after_a_success_the_same_upload_writes_nothing(server, ready, make_proxy, mode, big):
    backup = ready(server, big=big, encryption=mode)
    first = backup.upload()
    proxy = make_proxy(server)
    backup.through(proxy.server)
    again = backup.upload()
    assert replace(again, duration_ms=0) == replace(first, duration_ms=0)
    assert {seen.operation for seen in proxy.seen} <= {"HeadObject", "GetObject"}
    assert backup.is_whole()


def test_another_object_under_the_key_is_left_as_it_is(s3_server, ready, make_replica, tmp_path):
    backup = ready(s3_server, big=False)
    other = make_replica(tmp_path / "other.db", seed=1).read_bytes()
    backup.client.put_object(Bucket=backup.bucket, Key=backup.key, Body=other)
    with pytest.raises(DamagedError) as caught:
        backup.upload()
    assert backup.key in str(caught.value)
    assert backup.bytes(backup.key) == other


def test_two_uploads_of_one_snapshot_do_not_run_at_once(moto_server, ready, make_proxy, start_child):
    backup = ready(moto_server, encryption="client-aes256")
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    released = stall_after(proxy, 2)
    child = start_child(_UPLOAD, backup.snapshot.filename)
    assert child.line() == "uploading"
    wait_until(lambda: proxy.count("UploadPart") >= 3)
    control = Control()
    outcome = []

    def second():
        try:
            backup.upload(control)
        except (BusyError, CancelledError) as error:
            outcome.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.5)
    assert proxy.count("CreateMultipartUpload") == 1
    control.cancel()
    thread.join()
    assert [type(error) for error in outcome] == [CancelledError]
    proxy.before = lambda _: None
    released.set()
    assert child.line() == "done"
    assert backup.is_whole()


# ---- what must not be stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
@pytest.mark.parametrize("position", [PART // 2, 2 * PART + 100, -1], ids=["first part", "in the middle", "last byte"])
def test_a_snapshot_that_was_altered_is_not_uploaded(moto_server, ready, mode, position):
    backup = ready(moto_server, encryption=mode)
    _flip(backup.snapshot.path, position % backup.snapshot.size)
    with pytest.raises(DamagedError) as caught:
        backup.upload()
    assert str(backup.snapshot.path) in str(caught.value)
    assert not caught.value.retryable
    assert backup.keys() == []
    assert backup.unfinished() == []
    assert leftovers(backup) == set()


def test_a_small_snapshot_that_was_altered_is_not_uploaded(moto_server, ready):
    backup = ready(moto_server, big=False, encryption="client-aes256")
    _flip(backup.snapshot.path, 100_000)
    with pytest.raises(DamagedError):
        backup.upload()
    assert backup.keys() == []


def test_a_snapshot_altered_between_two_tries_is_not_uploaded(moto_server, ready, make_proxy):
    backup, _ = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    _flip(backup.snapshot.path, backup.snapshot.size - 1)
    with pytest.raises(DamagedError):
        backup.upload()
    assert backup.keys() == []
    assert backup.unfinished() == []


def test_a_snapshot_that_is_gone_is_not_found(moto_server, ready):
    backup = ready(moto_server, big=False)
    backup.snapshot.path.unlink()
    with pytest.raises(NotFoundError):
        find_snapshot(backup.database, backup.snapshot.filename)


def _flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_refusal_that_no_retry_cures_leaves_nothing_behind(moto_server, ready, make_proxy, mode):
    backup = ready(moto_server, encryption=mode)
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.part == 3 else None
    with pytest.raises(AccessDeniedError) as caught:
        backup.upload()
    assert caught.value.action == "s3:PutObject"
    assert backup.keys() == []
    assert backup.unfinished() == []
    assert leftovers(backup) == set()


@pytest.mark.parametrize("mode", ["sse-s3", "sse-kms"])
def test_encryption_that_the_store_dropped_fails_the_backup(moto_server, ready, make_proxy, mode):
    backup = ready(moto_server, encryption=mode)
    proxy = make_proxy(moto_server)
    proxy.hide = {"x-amz-server-side-encryption"}
    backup.through(proxy.server)
    with pytest.raises(IntegrityError):
        backup.upload()
    assert backup.keys() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", ["sse-s3", "sse-kms"])
def test_encryption_that_the_store_dropped_is_found_by_the_next_try_too(moto_server, ready, make_proxy, mode):
    # The first try ends between the object's appearance and the look at it.
    backup = ready(moto_server, encryption=mode)
    proxy = make_proxy(moto_server)
    proxy.hide = {"x-amz-server-side-encryption"}
    backup.through(proxy.server)
    proxy.before = lambda seen: (500, "InternalError") if seen.operation == "HeadObject" and backup.keys() else None
    with pytest.raises(StoreError):
        backup.upload()
    assert backup.keys() == [backup.key]
    proxy.before = lambda _: None
    with pytest.raises(IntegrityError):
        backup.upload()
    assert backup.keys() == []


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_cancelled_upload_stops_and_leaves_nothing_behind(moto_server, ready, make_proxy, mode):
    backup = ready(moto_server, encryption=mode, maxConcurrency=2)
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    control = Control()

    def cancel(seen):
        if seen.operation == "UploadPart":
            control.cancel()

    proxy.before = cancel
    with pytest.raises(CancelledError):
        backup.upload(control)
    assert 1 <= proxy.count("UploadPart") <= 2
    assert proxy.count("CompleteMultipartUpload") == 0
    assert backup.keys() == []
    assert backup.unfinished() == []
    assert leftovers(backup) == set()


def test_a_request_is_not_tried_again_once_cancelled(moto_server, ready, make_proxy):
    backup = ready(moto_server, encryption="none", maxConcurrency=1)
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    control = Control()

    def fail(seen):
        if seen.part == 2:
            control.cancel()
            return (503, "SlowDown")
        return None

    proxy.before = fail
    with pytest.raises(CancelledError):
        backup.upload(control)
    assert proxy.count("UploadPart") == 2
    assert backup.unfinished() == []


# ---- progress and the whole flow ---------------------------------------------------------------------------


def test_progress_ends_at_the_object_s_size_also_for_a_resumed_upload(moto_server, ready, make_proxy):
    backup, _ = _interrupted(moto_server, ready, make_proxy, mode="client-aes256")
    seen = []
    backup.upload(Control(lambda *report: seen.append(report)))
    total = backup.snapshot.size + 16
    uploads = [report for report in seen if report[0] == "upload"]
    assert uploads[0] == ("upload", 0, total)
    assert uploads[-1] == ("upload", total, total)
    assert [done for _, done, _ in uploads] == sorted(done for _, done, _ in uploads)


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_flow_makes_a_verified_backup(moto_server, installation, make_replica, mode):
    bucket = moto_server.new_bucket()
    extra = {"encryptionKey": KEY} if mode == "client-aes256" else {}
    installation.write(installation.entry(s3=moto_server.s3(bucket, encryption=mode, **extra)))
    make_replica(installation.replica(), wal=True)
    database = installation.database()
    done = back_up(database, open_store(database))
    assert done.upload.key == done.verified.key == f"production/{done.snapshot.filename}"
    assert done.verified.evidence == ("HMAC-SHA256" if mode == "client-aes256" else "SHA-256")
    assert done.snapshot.path.read_bytes() == installation.replica().read_bytes()


def test_a_backup_reports_wrong_dates_and_a_wrong_clock(moto_server, installation, make_replica, monkeypatch):
    installation.write(installation.entry(s3=moto_server.s3(bucket := moto_server.new_bucket())))
    make_replica(installation.replica())
    odd = "production/backup-2099-01-01T00-00-00-000Z.db"
    moto_server.client().put_object(Bucket=bucket, Key=odd, Body=b"x")
    late = datetime.now(timezone.utc) + timedelta(minutes=5)
    monkeypatch.setattr(clock, "_now", lambda: late)
    database = installation.database()
    done = back_up(database, open_store(database))
    assert [odd in done.notes[0], "clock is" in done.notes[1]] == [True, True]


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_a_resumed_backup_sends_only_what_is_missing(moto_server, ready, make_proxy, mode):
    backup, proxy = _interrupted(moto_server, ready, make_proxy, mode=mode)
    assert interrupted_upload(backup.database).path == backup.snapshot.path
    done = back_up(backup.database, open_store(backup.database), resume=True)
    assert (done.resumed, done.snapshot.filename, done.verified.key) == (True, backup.snapshot.filename, backup.key)
    assert proxy.count("UploadPart") == 2
    assert backup.is_whole()
    assert interrupted_upload(backup.database) is None
    # Now there is nothing to go on with.
    again = back_up(backup.database, open_store(backup.database), resume=True)
    assert (again.resumed, again.snapshot.filename > done.snapshot.filename) == (False, True)


def test_a_local_backup_whose_date_can_not_be_true_is_not_resumed_and_hides_no_other(moto_server, ready, make_proxy):
    backup, _ = _interrupted(moto_server, ready, make_proxy, mode="none")
    take_snapshot(backup.database, now=datetime.now(timezone.utc) + timedelta(days=365))
    assert interrupted_upload(backup.database).path == backup.snapshot.path
    assert unfinished_backup(backup.database, open_store(backup.database)).path == backup.snapshot.path


def test_a_sidecar_that_is_none_of_ours_keeps_no_new_backup_from_being_made(installation, make_replica):
    installation.write(installation.entry())
    make_replica(installation.replica())
    database = installation.database()
    sidecar = sidecar_of(take_snapshot(database).path)
    sidecar.rename(sidecar.with_name("elsewhere"))
    sidecar.symlink_to("elsewhere")
    assert interrupted_upload(database) is None


def test_a_backup_that_became_the_second_newest_is_not_resumed(moto_server, ready):
    backup = ready(moto_server, big=False)
    store = open_store(backup.database)
    assert unfinished_backup(backup.database, store).path == backup.snapshot.path  # killed before its upload began
    newer = take_snapshot(backup.database)
    upload_snapshot(backup.database, store, newer)
    newer.path.unlink()
    assert unfinished_backup(backup.database, store) is None


def test_a_damaged_local_copy_is_not_resumed(moto_server, ready):
    backup = ready(moto_server, big=False)
    backup.snapshot.path.write_bytes(backup.snapshot.path.read_bytes()[:-1])
    assert unfinished_backup(backup.database, open_store(backup.database)) is None
    assert back_up(backup.database, open_store(backup.database), resume=True).resumed is False


def test_the_whole_flow_without_a_store_makes_a_local_backup(installation, make_replica):
    installation.write(installation.entry())
    make_replica(installation.replica())
    done = back_up(installation.database(), None)
    assert (done.upload, done.verified) == (None, None)
    assert done.snapshot.path.read_bytes() == installation.replica().read_bytes()


def test_an_upload_that_fails_deletes_no_older_backup(moto_server, installation, small_replica, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    installation.write(installation.entry(s3=proxy.server.s3(bucket, s3BackupRetentionDays=1)))
    small_replica(installation.replica())
    database = installation.database()
    long_ago = datetime.now(timezone.utc) - timedelta(days=30)
    old = take_snapshot(database, now=long_ago)
    upload_snapshot(database, open_store(database), old)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == "PutObject" else None
    with pytest.raises(AccessDeniedError):
        back_up(database, open_store(database))
    assert old.path.exists()
    assert [row["Key"] for row in moto_server.client().list_objects_v2(Bucket=bucket)["Contents"]] == [
        f"production/{old.filename}"
    ]


def test_a_backup_that_does_not_verify_deletes_no_older_one(moto_server, installation, small_replica, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    installation.write(installation.entry(s3=proxy.server.s3(bucket, s3BackupRetentionDays=1)))
    small_replica(installation.replica())
    database = installation.database()
    old = take_snapshot(database, now=datetime.now(timezone.utc) - timedelta(days=30))
    upload_snapshot(database, open_store(database), old)
    client = moto_server.client()
    spoiled = []

    def spoil(seen):
        # Between the upload and the reading back, as a store does that loses bits.
        if seen.operation == "GetObject" and not spoiled:
            head = client.head_object(Bucket=bucket, Key=seen.key)
            data = bytearray(client.get_object(Bucket=bucket, Key=seen.key)["Body"].read())
            data[len(data) // 2] ^= 1
            client.put_object(Bucket=bucket, Key=seen.key, Body=bytes(data), Metadata=head["Metadata"])
            spoiled.append(seen.key)

    proxy.before = spoil
    with pytest.raises(IntegrityError):
        back_up(database, open_store(database))
    assert len(spoiled) == 1
    assert old.path.exists()
    assert f"production/{old.filename}" in [row["Key"] for row in client.list_objects_v2(Bucket=bucket)["Contents"]]


def test_a_bucket_that_is_full_of_others_is_left_alone(s3_server, ready):
    backup = ready(s3_server, big=False, encryption="client-aes256")
    others = s3_server.folder / backup.bucket / "production"
    others.mkdir()
    (others / "notes.txt").write_text("mine")
    shutil.copy(backup.snapshot.path, others / "backup-of-something-else.db")
    backup.upload()
    assert sorted(path.name for path in others.iterdir()) == sorted(
        ["notes.txt", "backup-of-something-else.db", backup.snapshot.filename, f"{backup.snapshot.filename}.mac"]
    )
