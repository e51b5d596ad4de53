"""The S3 store against real servers: what it stores, what it asks for, and what it says when it is refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import Credentials as BotocoreCredentials
from fixtures.stores import server_at
from urllib3 import HTTPResponse

from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    CancelledError,
    ConfigError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    StoreError,
)
from duckling_provider.stores import s3_client
from duckling_provider.stores.s3 import S3Store, open_store
from duckling_provider.stores.s3_client import Credentials
from duckling_provider.stores.store import BytesBody, UploadLog

pytestmark = pytest.mark.server

PART = 5 << 20
KEY = "production/backup-2025-03-01T14-32-11-482Z.db"
BYTES = random.Random(1).randbytes(2 * PART + 500)


class Parts:
    """A body of several parts from memory."""

    part_size = PART

    def __init__(self, data=BYTES):
        self._data = data
        self.size = len(data)
        self.count = -(-self.size // PART)

    def open(self, index):
        return io.BytesIO(self._data[index * PART : (index + 1) * PART])


@pytest.fixture(params=["s3_server", "moto_server"])
def server(request):
    """Both kinds of server, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def impatient(monkeypatch):
    """Two attempts at each request, for tests whose server fails for good."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)


def stored_bytes(server, bucket, key):
    return server.client().get_object(Bucket=bucket, Key=key)["Body"].read()


def keys_in(server, bucket):
    return [row["Key"] for row in server.client().list_objects_v2(Bucket=bucket).get("Contents", [])]


def uploads_in(server, bucket):
    return [row["Key"] for row in server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


# ---- objects -----------------------------------------------------------------------------------------------


def test_a_small_object_comes_back_whole_and_in_ranges(server, store_at):
    bucket = server.new_bucket()
    store = store_at(server, bucket)
    confirmed = store.put(KEY, BytesBody(b"0123456789"), content_type="text/plain", metadata={"duckling-mode": "none"})
    assert confirmed.size == 10
    assert stored_bytes(server, bucket, KEY) == b"0123456789"
    found = store.head(KEY)
    assert (found.key, found.size, found.metadata["duckling-mode"]) == (KEY, 10, "none")
    assert server.client().head_object(Bucket=bucket, Key=KEY)["ContentType"] == "text/plain"
    for start, stop in [(0, 10), (0, 1), (3, 7), (9, 10)]:
        with contextlib.closing(store.open_range(KEY, start, stop)) as stream:
            assert stream.read() == b"0123456789"[start:stop]
    store.delete(KEY)
    assert keys_in(server, bucket) == []


def test_an_object_of_several_parts_arrives_in_as_many_parts(server, store_at, make_proxy):
    bucket = server.new_bucket()
    proxy = make_proxy(server)
    store_at(proxy.server, bucket).put(KEY, Parts(), metadata={"duckling-mode": "none"})
    assert stored_bytes(server, bucket, KEY) == BYTES
    sizes = {seen.part: seen.size for seen in proxy.seen if seen.operation == "UploadPart"}
    assert sizes == {1: PART, 2: PART, 3: 500}
    head = server.client().head_object(Bucket=bucket, Key=KEY)
    assert server.folder is not None or head["ETag"].strip('"').endswith("-3")  # rclone's ETags are its own
    assert {name.lower(): value for name, value in head["Metadata"].items()} == {"duckling-mode": "none"}


def test_parts_that_fail_at_first_are_sent_again_whole(s3_server, store_at, make_proxy):
    bucket = s3_server.new_bucket()
    proxy = make_proxy(s3_server)
    failures = {1: (503, "SlowDown"), 2: proxy.HANG_UP, 3: (500, "InternalError")}
    proxy.before = lambda seen: failures.pop(seen.part, None)
    store_at(proxy.server, bucket).put(KEY, Parts())
    assert failures == {}
    assert proxy.count("UploadPart") == 6
    assert stored_bytes(s3_server, bucket, KEY) == BYTES


def test_an_answer_that_is_lost_after_the_store_has_done_its_work_is_no_failure(moto_server, store_at, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    lost = ["CompleteMultipartUpload"]

    def lose(seen):
        if seen.operation in lost:
            lost.remove(seen.operation)
            return proxy.HANG_UP
        return None

    proxy.after = lose
    store_at(proxy.server, bucket).put(KEY, Parts())
    assert proxy.count("CompleteMultipartUpload") == 2
    assert stored_bytes(moto_server, bucket, KEY) == BYTES


def test_no_request_carries_a_trailing_checksum(moto_server, store_at, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    store = store_at(proxy.server, bucket)
    store.put(KEY, Parts())
    store.put("small", BytesBody(b"x"))
    sent = [seen for seen in proxy.seen if seen.operation in {"UploadPart", "PutObject"}]
    assert len(sent) == 4
    for seen in sent:
        assert "x-amz-trailer" not in seen.headers
        assert "aws-chunked" not in seen.headers.get("content-encoding", "")


def test_a_range_of_another_version_of_the_object_is_refused(moto_server, store_at):
    bucket = moto_server.new_bucket()
    store = store_at(moto_server, bucket)
    etag = store.put(KEY, BytesBody(b"first")).etag
    store.put(KEY, BytesBody(b"other"))
    with pytest.raises(IntegrityError):
        store.open_range(KEY, 0, 5, etag=etag)


def test_a_download_that_breaks_off_is_an_error_that_a_retry_may_cure(store_at):
    def answer(connection):
        connection.recv(65536)
        connection.sendall(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\nETag: "x"\r\n\r\nonly this')
        connection.close()

    with _socket_server(answer) as port:
        store = store_at(server_at(f"http://127.0.0.1:{port}"), "bucket")
        stream = store.open_range(KEY, 0, 100)
        with pytest.raises(StoreError) as caught:
            list(iter(lambda: stream.read(10), b""))
    assert caught.value.retryable


def test_a_missing_object_is_not_found(server, store_at):
    store = store_at(server, server.new_bucket())
    with pytest.raises(NotFoundError) as caught:
        store.head(KEY)
    assert KEY in str(caught.value)
    with pytest.raises(NotFoundError):
        store.open_range(KEY, 0, 1)
    store.delete(KEY)


def test_a_store_that_answers_404_to_a_delete_has_deleted(moto_server, store_at, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (404, "NoSuchKey") if seen.operation == "DeleteObject" else None
    store_at(proxy.server, moto_server.new_bucket()).delete(KEY)
    assert proxy.count("DeleteObject") == 1


def test_every_page_of_a_listing_is_read(s3_server, store_at, make_proxy, installation):
    bucket = s3_server.new_bucket()
    names = [f"production/backup-2025-03-01T{n // 60:02d}-{n % 60:02d}-00-000Z.db" for n in range(1050)]
    for name in [*names, "production2/backup-2025-03-02T00-00-00-000Z.db"]:
        path = s3_server.folder / bucket / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    proxy = make_proxy(s3_server)
    store = store_at(proxy.server, bucket)
    assert [found.key for found in store.list("production/")] == names
    assert proxy.count("ListObjects") == 2
    assert [backup.key for backup in list_backups(store)] == names[::-1]
    assert resolve(installation.database(), store) == names[-1]


# ---- options of an object ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [BytesBody(b"small"), Parts()], ids=["one part", "parts"])
@pytest.mark.parametrize(
    "fields,sse,kms_key",
    [
        ({"encryption": "none"}, None, None),
        ({"encryption": "sse-s3"}, "AES256", None),
        ({"encryption": "sse-kms"}, "aws:kms", None),
        ({"encryption": "sse-kms", "kmsKeyId": "1234abcd-12ab-34cd-56ef-1234567890ab"}, "aws:kms", "1234567890ab"),
        ({"encryption": "client-aes256", "encryptionKey": "ab" * 32}, None, None),
    ],
    ids=["none", "sse-s3", "sse-kms default key", "sse-kms", "client-aes256"],
)
def test_the_server_is_asked_for_the_encryption_of_the_entry(
    moto_server, store_at, make_proxy, fields, sse, kms_key, body
):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    store_at(proxy.server, bucket, **fields).put(KEY, body)
    head = moto_server.client().head_object(Bucket=bucket, Key=KEY)
    [asked] = [seen.headers for seen in proxy.seen if seen.operation in {"PutObject", "CreateMultipartUpload"}]
    assert asked.get("x-amz-server-side-encryption") == sse
    assert head.get("ServerSideEncryption") == sse or (sse is None and head["ServerSideEncryption"] == "AES256")
    assert asked.get("x-amz-server-side-encryption-aws-kms-key-id") == fields.get("kmsKeyId")
    if kms_key is not None:
        assert head["SSEKMSKeyId"].endswith(kms_key)


@pytest.mark.parametrize("body", [BytesBody(b"small"), Parts()], ids=["one part", "parts"])
def test_storage_class_and_tags_are_those_of_the_entry(moto_server, store_at, body):
    bucket = moto_server.new_bucket()
    tags = {"team": "data + analytics", "cost centre": "a=b/c:d"}
    store = store_at(moto_server, bucket, storageClass="STANDARD_IA", tags=tags)
    store.put(KEY, body)
    client = moto_server.client()
    assert client.head_object(Bucket=bucket, Key=KEY)["StorageClass"] == "STANDARD_IA"
    found = client.get_object_tagging(Bucket=bucket, Key=KEY)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in found} == tags


@pytest.mark.parametrize("mode,asked", [("sse-s3", "AES256"), ("sse-kms", "aws:kms")])
@pytest.mark.parametrize("body", [BytesBody(b"small"), Parts()], ids=["one part", "parts"])
def test_a_store_that_drops_the_encryption_silently_keeps_no_object(s3_server, store_at, make_proxy, mode, asked, body):
    bucket = s3_server.new_bucket()
    proxy = make_proxy(s3_server)
    store = store_at(_deaf(proxy), bucket, encryption=mode)
    with pytest.raises(IntegrityError) as caught:
        store.put(KEY, body)
    assert asked in str(caught.value)
    assert "removed" in str(caught.value)
    assert not caught.value.retryable
    assert keys_in(s3_server, bucket) == []


def test_a_store_that_uses_another_kms_key_keeps_no_object(moto_server, store_at, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    store = store_at(proxy.server, bucket, encryption="sse-kms", kmsKeyId="1234abcd-12ab-34cd-56ef-1234567890ab")
    proxy.show = {"x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:us-east-1:1:key/another"}
    with pytest.raises(IntegrityError) as caught:
        store.put(KEY, BytesBody(b"small"))
    assert "another" in str(caught.value)
    assert keys_in(moto_server, bucket) == []


def test_dropped_encryption_is_told_even_when_the_object_cannot_be_removed(s3_server, store_at, make_proxy):
    bucket = s3_server.new_bucket()
    proxy = make_proxy(s3_server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation == "DeleteObject" else None
    store = store_at(_deaf(proxy), bucket, encryption="sse-s3")
    with pytest.raises(IntegrityError) as caught:
        store.put(KEY, BytesBody(b"small"))
    assert "AES256" in str(caught.value)
    assert "s3:DeleteObject" in str(caught.value)


def _deaf(proxy):
    """The store behind `proxy`, which does as if it had never heard of server-side encryption."""
    proxy.hide = {"x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"}
    return proxy.server


def test_a_store_that_loses_bytes_keeps_no_object(moto_server, store_at, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)

    def cut(seen):
        if seen.operation == "HeadObject":
            moto_server.client().put_object(Bucket=bucket, Key=KEY, Body=b"cut")

    proxy.before = cut
    with pytest.raises(IntegrityError) as caught:
        store_at(proxy.server, bucket).put(KEY, BytesBody(b"whole"))
    assert "3 bytes" in str(caught.value)
    assert keys_in(moto_server, bucket) == []


# ---- failures ----------------------------------------------------------------------------------------------

ALL = {"s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject", "s3:AbortMultipartUpload"}
NEEDS = {
    "put": ("s3:PutObject", lambda store: store.put("x", BytesBody(b"x"))),
    "multipart": ("s3:PutObject", lambda store: store.put("x", Parts())),
    "head": ("s3:GetObject", lambda store: store.head(KEY)),
    "get": ("s3:GetObject", lambda store: store.open_range(KEY, 0, 1)),
    "list": ("s3:ListBucket", lambda store: list(store.list("production/"))),
    "delete": ("s3:DeleteObject", lambda store: store.delete(KEY)),
}


@pytest.mark.parametrize("call", NEEDS)
def test_a_missing_permission_is_named(moto_auth_server, store_at, call):
    action, do = NEEDS[call]
    bucket = moto_auth_server.new_bucket()
    moto_auth_server.client().put_object(Bucket=bucket, Key=KEY, Body=b"x")
    with pytest.raises(AccessDeniedError) as caught:
        do(store_at(moto_auth_server.user(*(ALL - {action})), bucket))
    assert caught.value.action == action
    assert action in str(caught.value)
    assert not caught.value.retryable
    assert keys_in(moto_auth_server, bucket) == [KEY]
    assert uploads_in(moto_auth_server, bucket) == []
    # With it the same call works.
    do(store_at(moto_auth_server.user(*ALL), bucket))


def test_a_403_to_a_head_says_that_listing_may_be_what_is_missing(moto_server, store_at, make_proxy):
    # Without s3:ListBucket, AWS answers 403 in place of 404 where there is no such object.
    proxy = make_proxy(moto_server)
    proxy.before = lambda _: (403, "AccessDenied")
    with pytest.raises(AccessDeniedError) as caught:
        store_at(proxy.server, moto_server.new_bucket()).head(KEY)
    assert "s3:GetObject" in str(caught.value)
    assert "s3:ListBucket" in str(caught.value)


def test_a_wrong_secret_is_an_error_of_the_credentials(s3_server, store_at):
    bucket = s3_server.new_bucket()
    store = store_at(s3_server, bucket, secretAccessKey="not-the-secret")
    with pytest.raises(AccessDeniedError) as caught:
        store.put(KEY, BytesBody(b"x"))
    assert "s3.secretAccessKey" in str(caught.value)
    assert "not-the-secret" not in str(caught.value)
    assert keys_in(s3_server, bucket) == []


@pytest.mark.parametrize(
    "do",
    [
        lambda store: store.put(KEY, BytesBody(b"x")),
        lambda store: store.put(KEY, Parts()),
        lambda store: list(store.list("production/")),
        lambda store: store.open_range(KEY, 0, 1),
    ],
    ids=["put", "multipart", "list", "get"],
)
def test_an_unknown_bucket_is_named_and_no_retry_is_asked_for(server, store_at, do):
    with pytest.raises(NoSuchBucketError) as caught:
        do(store_at(server, "no-such-bucket-anywhere"))
    assert "no-such-bucket-anywhere" in str(caught.value)
    assert "s3.bucket" in str(caught.value)
    assert not caught.value.retryable


def test_the_wrong_region_is_told_as_such(moto_server, store_at, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda _: (400, "AuthorizationHeaderMalformed")
    with pytest.raises(NoSuchBucketError) as caught:
        store_at(proxy.server, "bucket").put(KEY, BytesBody(b"x"))
    assert "s3.region" in str(caught.value)
    assert "'us-east-1'" in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_a_dead_endpoint_is_an_error_that_a_retry_may_cure(store_at):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        store = store_at(server_at(endpoint), "bucket")
        for do in (lambda: store.head(KEY), lambda: store.put(KEY, Parts()), lambda: list(store.list(""))):
            with pytest.raises(StoreError) as caught:
                do()
            assert caught.value.retryable
            assert endpoint in str(caught.value)
            assert "s3.endpoint" in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_answer_is_given_up_after_all_attempts(store_at, moto_server, make_proxy, monkeypatch):
    monkeypatch.setattr(s3_client, "READ_TIMEOUT", 0.3)
    proxy = make_proxy(moto_server)
    proxy.before = lambda _: time.sleep(2)
    with pytest.raises(StoreError) as caught:
        store_at(proxy.server, moto_server.new_bucket()).head(KEY)
    assert caught.value.retryable
    assert proxy.count("HeadObject") == 2


@pytest.mark.usefixtures("impatient")
def test_throttling_is_passing_and_named_by_its_code(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda _: (503, "SlowDown")
    with pytest.raises(StoreError) as caught:
        store_at(proxy.server, moto_server.new_bucket()).put(KEY, BytesBody(b"x"))
    assert (caught.value.code, caught.value.retryable) == ("SlowDown", True)
    assert proxy.count("PutObject") == 2


def test_a_refusal_for_other_reasons_is_final_and_leaves_no_upload(store_at, moto_server, make_proxy, tmp_path):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (400, "EntityTooLarge") if seen.part == 2 else None
    log = UploadLog(tmp_path / "log", {})
    with pytest.raises(StoreError) as caught:
        store_at(proxy.server, bucket).put(KEY, Parts(), upload_log=log)
    assert (caught.value.code, caught.value.retryable) == ("EntityTooLarge", False)
    assert uploads_in(moto_server, bucket) == []
    assert keys_in(moto_server, bucket) == []
    assert log.load() is None


@pytest.mark.usefixtures("impatient")
def test_a_passing_failure_leaves_no_upload_where_nobody_would_remember_it(store_at, moto_server, make_proxy):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (503, "SlowDown") if seen.part == 3 else None
    with pytest.raises(StoreError):
        store_at(proxy.server, bucket).put(KEY, Parts())
    assert uploads_in(moto_server, bucket) == []


class CancelledParts(Parts):
    """Cancelled while its second part is on its way, as a task that a user kills; then refuses to be read, as the
    parts of a snapshot do. Each part is read twice: to be signed, and to be sent.
    """

    def __init__(self, control, *, after):
        super().__init__()
        self.control, self.refusals, self.left = control, 0, after

    def open(self, index):
        body, data = self, BYTES[index * PART : (index + 1) * PART]

        class Reader(io.BytesIO):
            def read(self, size=-1):
                if body.left < 0:
                    body.control.cancel()
                if body.control.cancelled:
                    body.refusals += 1
                    body.control.check()
                data = super().read(size)
                body.left -= len(data) if index == 1 else 0
                return data

        return Reader(data)


@pytest.mark.parametrize("after", [PART // 2, PART + PART // 2], ids=["while signing", "while sending"])
def test_after_a_cancellation_nothing_more_is_sent_but_the_abort(store_at, moto_server, make_proxy, after):
    bucket = moto_server.new_bucket()
    proxy = make_proxy(moto_server)
    body = CancelledParts(Control(), after=after)
    with pytest.raises(CancelledError):
        store_at(proxy.server, bucket, maxConcurrency=1).put(KEY, body, control=body.control)
    assert body.refusals == 1
    assert uploads_in(moto_server, bucket) == []
    assert keys_in(moto_server, bucket) == []
    assert proxy.count("UploadPart") <= 2
    assert proxy.operations()[-1] == "AbortMultipartUpload"


def test_a_sweep_aborts_what_the_caller_calls_abandoned_and_nothing_else(moto_server, store_at):
    bucket = moto_server.new_bucket()
    client = moto_server.client()
    keys = [KEY, "production/somebody-else.bin", "other/backup-2025-03-01T14-32-11-482Z.db"]
    for key in keys:
        client.create_multipart_upload(Bucket=bucket, Key=key)
    asked = []

    def abandoned(key, begun):
        asked.append((key, begun.tzinfo is not None))
        return key == KEY

    assert store_at(moto_server, bucket).sweep("production/", abandoned=abandoned).aborted == 1
    assert sorted(uploads_in(moto_server, bucket)) == sorted(keys[1:])
    assert sorted(asked) == [(KEY, True), ("production/somebody-else.bin", True)]


def test_a_sweep_that_may_not_list_uploads_says_so(moto_auth_server, store_at):
    bucket = moto_auth_server.new_bucket()
    store = store_at(moto_auth_server.user("s3:PutObject"), bucket)
    swept = store.sweep("production/", abandoned=lambda _key, _begun: True)
    assert "s3:ListBucketMultipartUploads" in swept.left[0]


# ---- where requests go -------------------------------------------------------------------------------------


class Hashed(io.BytesIO):
    """A part that knows its SHA-256 and says how often it was read."""

    reads = 0

    def __init__(self, data):
        super().__init__(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def read(self, size=-1):
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("region", ["eu-central-1", "auto"])
def test_a_body_that_knows_its_digest_is_not_read_for_the_signature_which_is_the_usual_one(installation, region):
    endpoint = "http://store.internal"
    entry = {"enabled": True, "bucket": "backups", "accessKeyId": "id", "secretAccessKey": "secret"}
    installation.write(installation.entry(s3={**entry, "region": region, "endpoint": endpoint}))
    client = open_store(installation.database())._client
    body = Hashed(BYTES[:1000])
    sent = []

    def answer(request, **_):
        assert body.reads == 0
        sent.append(request)
        return AWSResponse(request.url, 200, {"ETag": "1"}, HTTPResponse(io.BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3", answer)
    client.upload_part(Bucket="backups", Key=KEY, UploadId="u", PartNumber=1, Body=body, ContentLength=1000)
    client.put_object(Bucket="backups", Key=KEY, Body=body)
    assert len(sent) == 2
    for request in sent:
        headers = {name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()}
        assert headers["X-Amz-Content-SHA256"] == body.sha256
        scope, signed, signature = headers.pop("Authorization").split(", ")
        names = signed.removeprefix("SignedHeaders=").split(";")
        again = AWSRequest(
            request.method, request.url, {name: value for name, value in headers.items() if name.lower() in names}
        )
        again.context["timestamp"] = headers["X-Amz-Date"]
        usual = S3SigV4Auth(BotocoreCredentials("id", "secret"), "s3", region)
        assert scope.endswith(usual.scope(again))
        assert signature == "Signature=" + usual.signature(
            usual.string_to_sign(again, usual.canonical_request(again)), again
        )


class InBlocks(io.BytesIO):
    """A part of a snapshot, which was not hashed."""

    sha256 = None

    def blocks(self):
        yield memoryview(self.getvalue())


@pytest.mark.parametrize(
    "endpoint,fields,covered",
    [
        ("https://store.internal", {}, False),
        (None, {}, False),
        ("https://store.internal", {"signPayload": True}, True),
        ("http://store.internal", {}, True),
    ],
)
def test_the_signature_of_a_part_covers_its_bytes_where_tls_does_not_guard_them(
    installation, endpoint, fields, covered
):
    entry = {"enabled": True, "bucket": "backups", "accessKeyId": "id", "secretAccessKey": "secret"}
    installation.write(installation.entry(s3={**entry, "region": "eu-central-1", "endpoint": endpoint, **fields}))
    store = open_store(installation.database())
    assert store.signs_payloads is covered
    sent = []

    def answer(request, **_):
        sent.append(request.headers["X-Amz-Content-SHA256"].decode())
        return AWSResponse(request.url, 200, {"ETag": "1"}, HTTPResponse(io.BytesIO(), preload_content=False))

    store._client.meta.events.register("before-send.s3", answer)
    store._client.upload_part(
        Bucket="backups", Key=KEY, UploadId="u", PartNumber=1, Body=InBlocks(b"part"), ContentLength=4
    )
    store._client.put_object(Bucket="backups", Key=f"{KEY}.mac", Body=b"mac")
    assert sent == [
        hashlib.sha256(b"part").hexdigest() if covered else "UNSIGNED-PAYLOAD",
        hashlib.sha256(b"mac").hexdigest(),
    ]


def test_what_botocore_signs_with_is_left_as_it_is():
    """Other libraries in the process, the amazon provider for one, use it too."""
    code = (
        "from botocore.auth import AUTH_TYPE_MAPS as known; before = dict(known); "
        "from duckling_provider.stores import s3_client; assert known == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_presigned_put_is_signed_as_usual(installation):
    entry = {"enabled": True, "bucket": "backups", "accessKeyId": "id", "secretAccessKey": "secret"}
    installation.write(installation.entry(s3={**entry, "region": "eu-central-1"}))
    client = open_store(installation.database())._client
    assert "X-Amz-Signature=" in client.generate_presigned_url("put_object", Params={"Bucket": "b", "Key": "k"})


@pytest.mark.parametrize(
    "fields,expected",
    [
        ({"region": "eu-central-1"}, "https://backups.s3.eu-central-1.amazonaws.com/"),
        (
            {"region": "auto", "endpoint": "https://acc0unt.r2.cloudflarestorage.com"},
            "https://backups.acc0unt.r2.cloudflarestorage.com/",
        ),
        (
            {"region": "us-west-004", "endpoint": "https://s3.us-west-004.backblazeb2.com"},
            "https://backups.s3.us-west-004.backblazeb2.com/",
        ),
        (
            {"region": "nyc3", "endpoint": "https://nyc3.digitaloceanspaces.com"},
            "https://backups.nyc3.digitaloceanspaces.com/",
        ),
        (
            {"region": "us-east-1", "endpoint": "http://minio.internal:9000", "forcePathStyle": True},
            "http://minio.internal:9000/backups/",
        ),
        (
            {"region": "eu-west-1", "endpoint": None, "forcePathStyle": True},
            "https://s3.eu-west-1.amazonaws.com/backups/",
        ),
    ],
    ids=["AWS", "R2", "B2", "Spaces", "MinIO", "AWS path style"],
)
def test_each_provider_is_addressed_in_its_style_by_configuration_alone(installation, monkeypatch, fields, expected):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://from.the.environment")
    entry = {"enabled": True, "bucket": "backups", "accessKeyId": "id", "secretAccessKey": "secret", **fields}
    installation.write(installation.entry(s3=entry))
    store = open_store(installation.database())
    url = store._client.generate_presigned_url("get_object", Params={"Bucket": "backups", "Key": KEY})
    assert url.startswith(expected + KEY + "?")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    assert f"/{fields['region']}/s3/aws4_request" in query["X-Amz-Credential"][0]


def test_an_entry_without_s3_has_no_store(installation):
    installation.write(installation.entry())
    with pytest.raises(ConfigError):
        open_store(installation.database())


def test_credentials_show_their_secrets_toserver_at():
    shown = repr(Credentials("id", "the-secret", "the-token"))
    assert "the-secret" not in shown
    assert "the-token" not in shown


# ---- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory, s3_server):
    """rclone with a certificate of our own: (server, file of the certificate)."""
    home = tmp_path_factory.mktemp("tls")
    certificate, key = home / "cert.pem", home / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "buckets").mkdir()
    server = replace(s3_server, endpoint=f"https://127.0.0.1:{port}", folder=home / "buckets")
    rclone = Path(sys.executable).parent / "rclone"
    command = [str(rclone), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--cert", str(certificate)]
    command += ["--key", str(key), "--auth-key", f"{server.access_key_id},{server.secret_access_key}"]
    process = subprocess.Popen(
        [*command, str(server.folder)],
        env={"HOME": str(home), "RCLONE_CONFIG": str(home / "rclone.conf")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_port(port, process)
        yield server, certificate
    finally:
        process.terminate()
        process.wait(10)


def _wait_for_port(port, process):
    for _ in range(600):
        assert process.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    pytest.fail("rclone did not start")


def test_uploads_over_tls_work_with_a_certificate_of_ones_own(tls_server, store_at, monkeypatch):
    server, certificate = tls_server
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    bucket = server.new_bucket()
    store = store_at(server, bucket)
    store.put("small", BytesBody(b"small"))
    store.put(KEY, Parts())
    assert (server.folder / bucket / "small").read_bytes() == b"small"
    assert (server.folder / bucket / KEY).read_bytes() == BYTES
    with contextlib.closing(store.open_range(KEY, PART - 5, PART + 5)) as stream:
        assert stream.read() == BYTES[PART - 5 : PART + 5]


def test_a_cancellation_is_no_reason_to_try_again_over_tls_either(tls_server, store_at, monkeypatch):
    server, certificate = tls_server
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    bucket = server.new_bucket()
    body = CancelledParts(Control(), after=PART + PART // 2)
    with pytest.raises(CancelledError):
        store_at(server, bucket, maxConcurrency=1).put(KEY, body, control=body.control)
    assert body.refusals == 1
    assert not (server.folder / bucket / KEY).exists()


@pytest.mark.usefixtures("impatient")
def test_an_unknown_certificate_is_refused_for_good(tls_server, store_at):
    server, _ = tls_server
    with pytest.raises(StoreError) as caught:
        store_at(server, "over-tls").put("refused", BytesBody(b"x"))
    assert not caught.value.retryable
    assert "certificate" in str(caught.value)
    assert "AWS_CA_BUNDLE" in str(caught.value)
    assert not (server.folder / "over-tls" / "refused").exists()
    assert isinstance(store_at(server, "over-tls"), S3Store)


# ---- bare sockets ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _socket_server(answer):
    """A port on which `answer(connection)` meets one client after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("server_name", ["s3_server", "moto_server"])
def test_a_small_object_may_be_empty_or_missing(request, store_at, server_name):
    server = request.getfixturevalue(server_name)
    store = store_at(server, server.new_bucket())
    store.write_small("production/x.state", b"")
    assert store.read_small("production/x.state", 100) == b""
    assert store.read_small("production/y.state", 100) is None
