"""What a store's answers are told as, whether a retry can help, and what to do; doubles answer what real servers here
do not.
"""

from __future__ import annotations

import http.server
import io
import threading

import pytest
from fixtures.stores import server_at

from duckling_provider.base.errors import (
    ConfigError,
    DucklingError,
    NotFoundError,
)
from duckling_provider.stores import parts, s3_client
from duckling_provider.stores.parts import TooManyPartsError
from duckling_provider.stores.s3 import open_store
from duckling_provider.stores.store import BytesBody

pytestmark = pytest.mark.server

PART = 5 << 20
KEY = "production/backup-2025-03-01T14-32-11-482Z.db"


class Parts:
    """Zero bytes in some parts of 5 MiB."""

    part_size = PART

    def __init__(self, count=2):
        self.count, self.size = count, count * PART

    def open(self, index):
        return io.BytesIO(bytes(PART))


@pytest.fixture
def store_at(installation):
    def make(server, bucket, **fields):
        installation.write(installation.entry(s3=server.s3(bucket, **fields)))
        return open_store(installation.database())

    return make


@pytest.fixture
def answering(monkeypatch):
    """``answering(status, headers, body) -> endpoint`` of something that answers every request so; counts them."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    servers = []

    def start(status, headers, body=b""):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.count += 1
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names are the interface's

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.count = 0
        server.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


CALLS = {
    "put": lambda store: store.put(KEY, BytesBody(b"x")),
    "multipart": lambda store: store.put(KEY, Parts()),
    "head": lambda store: store.head(KEY),
    "get": lambda store: store.open_range(KEY, 0, 1),
    "list": lambda store: list(store.list("production/")),
    "reach": lambda store: store.reach(),
}


def failure(call, store):
    with pytest.raises(DucklingError) as caught:
        CALLS[call](store)
    return caught.value


MEANINGS = [
    ("InvalidObjectState", 403, "", False, "restore-object"),
    ("RequestTimeTooSkewed", 403, "", True, "clock"),
    ("SignatureDoesNotMatch", 403, "Signature not yet current: 20260101T000000Z", True, "clock"),
    ("QuotaExceeded", 403, "", False, "quota"),
    ("AccountProblem", 403, "", False, "account"),
    ("UserSuspended", 403, "", False, "account"),
    ("KMS.NotFoundException", 400, "", False, "s3.kmsKeyId"),
    ("InvalidAccessKeyId", 403, "Failed to retrieve the actual key", False, "s3.kmsKeyId"),
    ("AccessDenied", 403, "Access Denied because object protected by object lock.", False, "locked"),
    ("AuthorizationHeaderMalformed", 400, "", False, "s3.region"),
    ("NotImplemented", 501, "", False, "s3.tags"),
    ("SlowDown", 503, "", True, "maxConcurrency"),
    ("AccessDenied", 403, "User x is not authorized to perform: kms:Decrypt on y", False, "kms:Decrypt is not allowed"),
    ("AccessDenied", 403, "", False, "s3:PutObject is not allowed"),
]


@pytest.mark.parametrize("code,status,message,retryable,advice", MEANINGS, ids=lambda value: str(value)[:24])
def test_each_answer_has_its_own_meaning(store_at, answering, code, status, message, retryable, advice):
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    server = answering(status, {"Content-Type": "application/xml"}, body)
    error = failure("put", store_at(server_at(server.endpoint), "bucket"))
    assert error.retryable is retryable
    assert advice in str(error)
    assert "None" not in str(error)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_is_one_request_and_names_the_address(store_at, answering, status, call):
    server = answering(status, {"Location": "https://store.example/bucket/key?X-Amz-Signature=abc"})
    error = failure(call, store_at(server_at(server.endpoint), "bucket"))
    assert server.count == 1
    assert "set s3.endpoint to https://store.example" in str(error)
    assert "X-Amz" not in str(error)
    assert not error.retryable


@pytest.mark.parametrize("call", CALLS)
def test_pages_for_everything_are_no_store(store_at, answering, call):
    page = b"<!doctype html><html><body>Welcome</body></html>"
    server = answering(200, {"Content-Type": "text/html", "ETag": '"1"'}, page)
    error = failure(call, store_at(server_at(server.endpoint), "bucket"))
    assert "is no S3 store" in str(error)
    assert not error.retryable


def test_what_is_too_large_for_a_proxy_says_what_to_change(store_at, answering):
    page = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head><hr></html>"
    error = failure("put", store_at(server_at(answering(413, {"Content-Type": "text/html"}, page).endpoint), "bucket"))
    assert "client_max_body_size" in str(error)
    assert "s3.partSizeMiB" in str(error)
    assert not error.retryable


def test_a_missing_object_that_the_store_denies_is_missing_by_the_listing(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (403, "AccessDenied") if seen.operation.startswith("Head") else None
    bucket = moto_server.new_bucket()
    store = store_at(proxy.server, bucket)
    with pytest.raises(NotFoundError):
        store.head(KEY)
    store.reach()
    moto_server.client().put_object(Bucket=bucket, Key=KEY, Body=b"there", Metadata={"a": "b"})
    found = store.head(KEY)
    assert (found.size, found.metadata) == (5, {"a": "b"})


def test_a_404_right_after_the_upload_is_asked_again(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (404, "") if proxy.count("HeadObject") == 1 and seen.operation == "HeadObject" else None
    assert store_at(proxy.server, moto_server.new_bucket()).put(KEY, BytesBody(b"x")).size == 1


def test_an_upload_that_is_gone_starts_again_with_the_next_try(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (404, "NoSuchUpload") if seen.operation == "UploadPart" else None
    error = failure("multipart", store_at(proxy.server, moto_server.new_bucket()))
    assert error.retryable
    assert "next try starts it again" in str(error)


@pytest.mark.parametrize("body", [BytesBody(b"small"), Parts()], ids=["one part", "parts"])
def test_a_bucket_with_an_object_lock_takes_backups(store_at, moto_server, body):
    client, bucket = moto_server.client(), "locked-" + str(id(body))
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    assert store_at(moto_server, bucket).put(KEY, body).size == body.size


def test_a_store_that_demands_digests_of_parts_gets_them_after_one_refusal(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)

    def demand(seen):
        bare = seen.operation == "UploadPart" and "content-md5" not in seen.headers
        return (400, "MissingUploadObjectWithObjectLockHeaders") if bare else None

    proxy.before = demand
    store_at(proxy.server, moto_server.new_bucket(), maxConcurrency=1).put(KEY, Parts(3))
    assert [seen.status for seen in proxy.seen if seen.operation == "UploadPart"] == [400, 200, 200, 200]


def test_the_last_of_many_parts_is_tried_first(store_at, moto_server, make_proxy, monkeypatch):
    monkeypatch.setattr(parts, "SAFE_PARTS", 2)
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (400, "InvalidArgument") if seen.part > 2 else None
    with pytest.raises(TooManyPartsError):
        store_at(proxy.server, moto_server.new_bucket(), maxConcurrency=1).put(KEY, Parts(3))
    assert proxy.count("UploadPart") == 1
    assert proxy.operations()[-1] == "AbortMultipartUpload"


def test_settings_of_others_do_not_break_keys_of_the_entry(store_at, moto_server, monkeypatch, tmp_path):
    bucket = moto_server.new_bucket()
    broken = tmp_path / "config"
    broken.write_text("[default\nthis is no config")
    for name, value in {
        "AWS_PROFILE": "nope",
        "AWS_CONFIG_FILE": str(broken),
        "AWS_SHARED_CREDENTIALS_FILE": str(broken),
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_RETRY_MODE": "nonsense",
        "AWS_MAX_ATTEMPTS": "many",
    }.items():
        monkeypatch.setenv(name, value)
    assert store_at(moto_server, bucket).put(KEY, BytesBody(b"x")).size == 1


def test_the_chain_of_the_machine_gives_the_credentials_when_it_is_asked_for(
    store_at, moto_auth_server, monkeypatch, tmp_path
):
    file = tmp_path / "credentials"
    file.write_text(
        f"[backups]\naws_access_key_id={moto_auth_server.access_key_id}\n"
        f"aws_secret_access_key={moto_auth_server.secret_access_key}\n"
    )
    fields = {"accessKeyId": None, "secretAccessKey": None, "credentialSource": "default"}
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    bucket = moto_auth_server.new_bucket()
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(ConfigError, match="nope"):
        store_at(moto_auth_server, bucket, **fields)
    monkeypatch.setenv("AWS_PROFILE", "backups")
    assert store_at(moto_auth_server, bucket, **fields).put(KEY, BytesBody(b"x")).size == 1


def test_a_session_token_is_sent_and_shown_to_nobody(store_at, moto_server, make_proxy, installation):
    proxy = make_proxy(moto_server)
    store = store_at(proxy.server, moto_server.new_bucket(), sessionToken="the-session-token")
    store.put(KEY, BytesBody(b"x"))
    assert {seen.headers.get("x-amz-security-token") for seen in proxy.seen} == {"the-session-token"}
    assert "the-session-token" in installation.database().secrets()
    assert "the-session-token" not in repr(installation.database())


@pytest.mark.parametrize("kind", ["missing", "garbage"])
def test_a_bundle_of_certificates_that_cannot_be_used_is_named(store_at, moto_server, monkeypatch, tmp_path, kind):
    bundle = tmp_path / "bundle.pem"
    if kind == "garbage":
        bundle.write_text("no certificate")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    error = failure("list", store_at(server_at(moto_server.endpoint.replace("http://", "https://")), "bucket"))
    assert "AWS_CA_BUNDLE" in str(error)
    assert not error.retryable


def test_tls_to_a_port_without_it_is_told_as_such(store_at, moto_server):
    endpoint = moto_server.endpoint.replace("http://", "https://")
    error = failure("list", store_at(server_at(endpoint), "bucket"))
    assert "does not speak TLS" in str(error)
    assert not error.retryable
