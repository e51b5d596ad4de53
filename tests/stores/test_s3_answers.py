"""What a store's answers are told as, whether a retry can help, and what to do; doubles answer what real servers here
do not.
"""

from __future__ import annotations

import pytest
from fixtures.store_double import CALLS, HTML, KEY, PART, Answer, Parts, error, failure, page
from fixtures.stores import server_at

from duckling_provider.base.errors import (
    AccessDeniedError,
    ConfigError,
    DucklingError,
    NotFoundError,
    StoreError,
)
from duckling_provider.stores import parts, s3, s3_client
from duckling_provider.stores.parts import TooManyPartsError
from duckling_provider.stores.store import BytesBody, UploadLog

pytestmark = pytest.mark.server


@pytest.fixture
def double(make_double, monkeypatch):
    """A store that answers as it is told to; each request is made once."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "_SHOWN_AFTER", (0.01,))
    return make_double()


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
    ("AccessDenied", 403, "not authorized to perform: kms:Decrypt on resource: x", False, "on the key (s3.kmsKeyId)"),
    ("AccessDenied", 403, "not authorized to perform: s3:PutObject with an explicit deny", False, "out of that policy"),
    ("KMS.DisabledException", 400, "key is disabled", False, "s3.kmsKeyId"),
    ("KMS.ThrottlingException", 400, "", True, "fewer requests"),
    ("EntityTooLarge", 400, "", False, "s3.partSizeMiB"),
    ("EntityTooSmall", 400, "", False, "Raise s3.partSizeMiB"),
    ("InvalidPart", 400, "", True, "sends them again"),
    ("MissingContentLength", 411, "", False, "Content-Length"),
    ("InvalidTag", 400, "", False, "s3.tags"),
    ("ObjectLockedByBucketPolicy", 403, "", False, "the object is locked"),
    ("RetentionPolicyNotMet", 403, "", False, "the object is locked"),
    ("ExpiredToken", 400, "", False, "s3.sessionToken"),
    ("RequestTimeout", 400, "", True, "where it was"),
    ("InternalError", 500, "", True, "try again later"),
    ("NoSuchKey", 404, "", False, "no such bucket. Check s3.bucket"),
    ("PreconditionFailed", 412, "", False, "PreconditionFailed"),
]


@pytest.mark.parametrize("code,status,message,retryable,advice", MEANINGS, ids=lambda value: str(value)[:24])
def test_each_answer_has_its_own_meaning(store_at, double, code, status, message, retryable, advice):
    double.answers("PutObject", error(status, code, message))
    told = failure("put", store_at(server_at(double.endpoint), "bucket"))
    assert told.retryable is retryable
    assert advice in str(told)
    assert "None" not in str(told)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_is_one_request_and_names_the_address(store_at, double, status, call):
    double.answers("*", Answer(status, b"", {"Location": "https://store.example/bucket/key?X-Amz-Signature=abc"}))
    error = failure(call, store_at(server_at(double.endpoint), "bucket"))
    assert double.seen.total() == 1
    assert "set s3.endpoint to https://store.example" in str(error)
    assert "X-Amz" not in str(error)
    assert not error.retryable


@pytest.mark.parametrize("call", CALLS)
def test_pages_for_everything_are_no_store(store_at, double, call):
    double.answers("*", Answer(200, b"<!doctype html><html><body>Welcome</body></html>", {**HTML, "ETag": '"1"'}))
    error = failure(call, store_at(server_at(double.endpoint), "bucket"))
    assert "is no S3 store" in str(error)
    assert not error.retryable


def test_what_is_too_large_for_a_proxy_says_what_to_change(store_at, double):
    double.answers("PutObject", page(413, "413 Request Entity Too Large"))
    error = failure("put", store_at(server_at(double.endpoint), "bucket"))
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


@pytest.mark.parametrize(
    "answer,advice",
    [
        (error(400, "ExpiredToken"), "session token has ended"),
        (error(403, "RequestTimeTooSkewed"), "clock"),
        (error(403, "InvalidAccessKeyId"), "s3.accessKeyId"),
        (error(403, "SignatureDoesNotMatch"), "s3.secretAccessKey"),
        (error(403, "AccountProblem"), "account"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("call", ["head", "reach"])
def test_the_reason_of_a_refused_head_is_asked_for(store_at, double, call, answer, advice):
    double.answers("*", answer)
    assert advice in str(failure(call, store_at(server_at(double.endpoint), "bucket")))


def test_an_empty_object_whose_head_is_refused_is_there(store_at, double):
    store = store_at(server_at(double.endpoint), "bucket")
    double.answers("HeadObject", Answer(403))
    double.sound = lambda operation, key, usual=double.sound: (
        error(416, "InvalidRange") if operation == "GetObject" else usual(operation, key)
    )
    assert store.head(KEY).size == 0


def test_a_404_right_after_the_upload_is_asked_again(store_at, moto_server, make_proxy):
    proxy = make_proxy(moto_server)
    proxy.before = lambda seen: (404, "") if proxy.count("HeadObject") == 1 and seen.operation == "HeadObject" else None
    assert store_at(proxy.server, moto_server.new_bucket()).put(KEY, BytesBody(b"x")).size == 1


def test_an_upload_that_cannot_be_asked_about_is_given_up_only_for_another_one(store_at, double, tmp_path):
    log = UploadLog(tmp_path / "log", {})
    log.begin("u1")
    log.record(0, '"e"')
    double.answers("*", error(400, "ExpiredToken"))
    with pytest.raises(AccessDeniedError, match="session token"):
        store_at(server_at(double.endpoint), "bucket").put(KEY, Parts(), upload_log=log)
    assert double.seen["AbortMultipartUpload"] == 0
    assert log.load() == ("u1", {0: '"e"'})
    double.answers("ListParts", error(501, "NotImplemented"))
    double.size = 2 * PART
    store_at(server_at(double.endpoint), "bucket").put(KEY, Parts(), upload_log=log)
    assert double.seen["AbortMultipartUpload"] == 1
    assert double.seen["UploadPart"] == 2


def test_parts_that_are_gone_at_the_end_are_sent_again_by_the_next_try(store_at, double, tmp_path):
    log = UploadLog(tmp_path / "log", {})
    double.size = 2 * PART
    double.answers("CompleteMultipartUpload", error(400, "InvalidPart"))
    store = store_at(server_at(double.endpoint), "bucket")
    with pytest.raises(StoreError, match="no longer has parts"):
        store.put(KEY, Parts(), upload_log=log)
    assert double.seen["AbortMultipartUpload"] == 0
    double.answers("", Answer())
    store.put(KEY, Parts(), upload_log=log)
    assert (double.seen["CreateMultipartUpload"], double.seen["UploadPart"]) == (0, 2)


def test_what_fails_in_tidying_up_does_not_hide_what_failed_first(store_at, double):
    usual = double.sound
    double.sound = lambda operation, key: (
        error(500, "InternalError") if operation == "AbortMultipartUpload" else usual(operation, key)
    )
    double.answers("UploadPart", error(403, "AccountProblem"))
    told = failure("multipart", store_at(server_at(double.endpoint), "bucket", maxConcurrency=1))
    assert double.seen["AbortMultipartUpload"] == 1
    assert "AccountProblem" in str(told)
    assert "InternalError" not in str(told)


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


# ---- any answer to any operation ---------------------------------------------------------------------------

_DENIALS = ["AccessDenied", "InvalidObjectState", "AccountProblem", "QuotaExceeded", "SignatureDoesNotMatch", "Odd"]
_BAD = ["InvalidArgument", "InvalidRequest", "MalformedXML", "EntityTooLarge", "KMS.DisabledException", "ExpiredToken"]
FINAL = {
    **{code: error(403, code) for code in _DENIALS},
    **{code: error(400, code) for code in _BAD},
    **{f"bare {status}": Answer(status) for status in (400, 401, 402, 403, 405, 410, 411, 413, 417, 431, 451, 501)},
    **{f"page {status}": page(status, "no") for status in (400, 401, 403, 405, 407, 413, 421, 501)},
    **{f"redirect {status}": Answer(status) for status in (300, 301, 302, 303, 307, 308)},
    "login": Answer(302, b"", {"Location": "/login"}),
    "another region": error(301, "PermanentRedirect", "use", "<Endpoint>b.store.example</Endpoint>"),
    "forbidden in JSON": Answer(403, b'{"message": null}', {"Content-Type": "application/json"}),
    "half an error": Answer(403, b"<Error><Code>Acc"),
    "bytes": Answer(403, b"\xff\xfe\0"),
    "other namespace": Answer(403, b"<e:Error xmlns:e='x'><e:Code>AccessDenied</e:Code></e:Error>"),
    "page": page(200, "Welcome"),
}
PASSING = {
    **{code: error(503, code) for code in ("SlowDown", "ServiceUnavailable", "XMinioServerNotInitialized")},
    **{code: error(400, code) for code in ("RequestTimeout", "BadDigest")},
    "clock": error(403, "RequestTimeTooSkewed"),
    "conflict": error(409, "OperationAborted"),
    **{f"bare {status}": Answer(status) for status in (408, 409, 429, 500, 502, 503, 504, 520)},
    **{f"page {status}": page(status, "Bad Gateway") for status in (500, 502, 503, 504)},
    "half a failure": Answer(500, b"<Error><Code>Inter"),
    "hung up": Answer(hang_up=True),
    "reset": Answer(reset=True),
    "no HTTP": Answer(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
}
#: What is right for some operations, or told in one of several ways.
EITHER = {
    "missing": error(404, "NoSuchKey"),
    "missing page": page(404, "Not Found"),
    "missing upload": error(404, "NoSuchUpload"),
    "missing bucket": error(404, "NoSuchBucket"),
    "condition": error(412, "PreconditionFailed"),
    "range": error(416, "InvalidRange"),
    "nothing": Answer(200),
    "no content": Answer(204),
    "unchanged": Answer(304),
    "OK": Answer(200, b"OK"),
    "failure with 200": error(200, "InternalError"),
    "refusal with 200": error(200, "AccessDenied"),
    "failure after blanks": Answer(200, b" \n <?xml version='1.0'?><Error><Code>InternalError</Code></Error>"),
    "cut off": Answer(200, b"<ListBucketResult>", {"ETag": '"e"'}, cut=True),
    "no date": Answer(200, b"", {"ETag": '"e"', "Last-Modified": "yesterday"}),
    "empty rows": Answer(200, b"<ListBucketResult><Contents/></ListBucketResult>"),
    "empty upload": Answer(200, b"<InitiateMultipartUploadResult/>"),
    "odd size": Answer(200, b"<ListBucketResult><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>"),
}
#: By name: what meets the answer, and how many of its answers a sound store would give as well.
OPERATIONS = {
    "PutObject": "put",
    "HeadObject": "head",
    "GetObject": "get",
    "ListObjects": "list",
    "CreateMultipartUpload": "multipart",
    "UploadPart": "multipart",
    "CompleteMultipartUpload": "multipart",
    "ListParts": "resume",
    "AbortMultipartUpload": "abort",
    "ListMultipartUploads": "sweep",
    "DeleteObject": "delete",
    "HeadBucket": "reach",
    "*": "multipart",
}
#: Answers that an operation may take for a yes: what a refused HEAD keeps silent about, others tell; a store need not
#: list parts or uploads, nor have what is to be removed.
EXCUSED = {"HeadObject", "HeadBucket", "ListParts", "ListMultipartUploads", "AbortMultipartUpload", "DeleteObject"}


def _resume(store, folder):
    log = UploadLog(folder / "log", {})
    log.begin("u1")
    return store.put(KEY, Parts(), upload_log=log)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_answer_to_any_operation_is_an_error_with_advice(store_at, double, tmp_path, operation, full):
    calls = {
        **CALLS,
        "get": lambda store: store.open_range(KEY, 0, 1).read(),
        "resume": lambda store: _resume(store, tmp_path),
        "abort": lambda store: store.abort(KEY, "u1"),
        "sweep": lambda store: store.sweep("production/", abandoned=lambda *_: True),
        "delete": lambda store: store.delete(KEY),
    }
    store = store_at(server_at(double.endpoint), "bucket", maxConcurrency=1)
    double.size = 2 * PART if OPERATIONS[operation] in {"multipart", "resume"} else 1
    answers = [
        (name, answer, retryable)
        for retryable, kind in ((False, FINAL), (True, PASSING), (None, EITHER))
        for name, answer in kind.items()
    ]
    start = list(OPERATIONS).index(operation) % 4
    for name, answer, retryable in answers if full else answers[start::4]:
        double.answers(operation, answer)
        about = f"{operation} answered by {name}"
        try:
            calls[OPERATIONS[operation]](store)
        except DucklingError as told:
            said = f"{about}: {told!s}"
            assert told.hint or isinstance(told, NotFoundError), said
            assert "None" not in str(told), said
            assert ".." not in str(told), said
            # The reason of a refused HEAD, and of one that came with other answers, is another request's.
            assert retryable is None or told.retryable is retryable, said
        else:
            assert retryable is None or operation in EXCUSED, f"{about} was taken for a success"
        if operation in {"UploadPart", "CompleteMultipartUpload"} and retryable is False:
            assert double.seen["AbortMultipartUpload"] == 1, about
