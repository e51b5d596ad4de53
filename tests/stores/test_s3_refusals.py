"""What is asked again and for how long, which refusals are a proxy's, and what is left of unfinished uploads."""

from __future__ import annotations

import pytest
from botocore import endpoint
from fixtures.store_double import CALLS, KEY, PART, XML, Answer, Parts, error, failure, page
from fixtures.stores import server_at

from duckling_provider.base.errors import AccessDeniedError, NotFoundError, StoreError
from duckling_provider.stores import concurrency, s3, s3_client
from duckling_provider.stores.concurrency import pause_after
from duckling_provider.stores.fetch import fetch
from duckling_provider.stores.store import BytesBody, UploadLog

pytestmark = pytest.mark.server


@pytest.fixture
def double(make_double, monkeypatch):
    """A store that answers as it is told to; each request is made once."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "_SHOWN_AFTER", (0.0, 0.0))
    return make_double()


@pytest.fixture
def waited(monkeypatch):
    """The pauses that were made, in seconds; none is waited for."""
    pauses = []
    monkeypatch.setattr(concurrency, "pause_after", lambda attempt: pauses.append(pause_after(attempt)) or 0.0)
    return pauses


# ---- what is asked again -----------------------------------------------------------------------------------

PASSES = {"bare 503": Answer(503), "reset": Answer(reset=True), "coded": error(503, "SlowDown")}


@pytest.mark.parametrize("answer", PASSES)
@pytest.mark.parametrize("operation,call", [("HeadObject", "head"), ("UploadPart", "multipart")])
def test_what_may_pass_is_asked_again_for_tens_of_seconds(store_at, make_double, waited, operation, call, answer):
    double = make_double()
    double.answers(operation, PASSES[answer])
    assert failure(call, store_at(server_at(double.endpoint), "bucket", maxConcurrency=1)).retryable
    assert double.seen[operation] == s3_client.ATTEMPTS
    assert 15 <= sum(waited) <= 31


def test_what_will_not_pass_is_not_waited_for(store_at, make_double, waited):
    double = make_double()
    failure("list", store_at(server_at(double.endpoint.replace("http://", "https://")), "bucket"))
    assert waited == []
    failure("list", store_at(server_at("http://127.0.0.1:9"), "bucket"))
    assert len(waited) == s3_client.REFUSED_ATTEMPTS - 1


def test_a_store_that_restarts_in_the_middle_is_waited_for(store_at, make_double, waited):
    double = make_double()
    double.answers("HeadObject", Answer(200, b"", {"ETag": '"e"', "Content-Length": "1", "Connection": "close"}))
    store = store_at(server_at(double.endpoint), "bucket")
    assert store.head(KEY).size == 1
    double.close()
    failure("list", store)
    assert len(waited) == s3_client.ATTEMPTS - 1


def test_a_part_is_sent_unasked_once_the_store_has_taken_one_until_it_refuses(store_at, make_double):
    double = make_double()
    double.size = 3 * PART
    store = store_at(server_at(double.endpoint), "bucket", maxConcurrency=1)
    store.put(KEY, Parts(3))
    assert double.asked == [True, False, False]
    double.answers("UploadPart", error(403, "AccessDenied"))
    failure("multipart", store)
    assert double.asked[3:] == [False]
    double.answers("", Answer())
    store.put(KEY, Parts(3))
    assert double.asked[4:] == [True, False, False]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_part_that_is_refused_while_it_is_sent_is_asked_for_and_sent_again(
    store_at, make_double, certificate, monkeypatch, tls
):
    sound = certificate("sound")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(sound.authority))
    double = make_double(sound.context() if tls else None)
    double.hasty, double.size = True, 6 * PART
    store = store_at(server_at(double.endpoint), "bucket", maxConcurrency=1)
    assert store.put(KEY, Parts(6)).size == 6 * PART
    assert double.asked == [True, False, True, False, True, False, True, False, True, False, True]


@pytest.mark.parametrize(
    "told,least",
    [("7", 7), ("86400", 30), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("-1", 0), ("²", 0), ("9" * 400, 0)],
)
def test_a_store_may_ask_for_a_longer_pause(store_at, double, monkeypatch, told, least):
    pauses = []
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    double.answers("ListObjects", Answer(429, b"", {"Retry-After": told}))
    failure("list", store_at(server_at(double.endpoint), "bucket"))
    assert pauses == [least]


@pytest.mark.parametrize("status,again", [(520, True), (408, True), (501, False), (507, False), (400, False)])
def test_statuses_that_pass_and_that_last(store_at, double, monkeypatch, status, again):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    double.answers("ListObjects", Answer(status))
    failure("list", store_at(server_at(double.endpoint), "bucket"))
    assert double.seen["ListObjects"] == 1 + again


def test_a_download_is_given_up_after_twice_the_tries_of_the_client(store_at, make_double):
    double = make_double()
    double.answers("GetObject", error(503, "SlowDown"))
    with pytest.raises(StoreError, match="SlowDown"):
        list(fetch(store_at(server_at(double.endpoint), "bucket"), KEY, size=10, etag='"e"', threads=1))
    assert double.seen["GetObject"] == 2 * s3_client.ATTEMPTS


def test_an_object_that_was_there_a_moment_ago_is_asked_for_again(store_at, moto_server, make_proxy, monkeypatch):
    monkeypatch.setattr(s3, "_SHOWN_AFTER", (0.0, 0.0))
    bucket, proxy = moto_server.new_bucket(), make_proxy(moto_server)
    store = store_at(proxy.server, bucket)
    stored = store.put(KEY, BytesBody(b"there"))
    proxy.before = lambda _: (404, "NoSuchKey") if proxy.count("GetObject") == 1 else None
    assert store.open_range(KEY, 0, 5, etag=stored.etag).read() == b"there"
    proxy.seen.clear()
    with pytest.raises(NotFoundError):
        store.open_range(KEY, 0, 5)
    assert proxy.count("GetObject") == 1


def test_what_a_store_took_and_does_not_have_is_its_fault(store_at, double):
    double.answers("HeadObject", Answer(404))
    told = failure("put", store_at(server_at(double.endpoint), "bucket"))
    assert "the store took it" in told.cause
    assert told.retryable
    assert not isinstance(told, NotFoundError)


def test_a_listing_without_end_is_no_silence(store_at, double):
    again = "<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
    double.answers("ListObjects", Answer(200, f"<ListBucketResult>{again}</ListBucketResult>".encode(), XML))
    assert "can't be read" in failure("list", store_at(server_at(double.endpoint), "bucket")).cause


# ---- what is not the store's answer ------------------------------------------------------------------------


@pytest.mark.parametrize("operation,call", [("PutObject", "put"), ("UploadPart", "multipart"), ("HeadObject", "head")])
def test_an_answer_without_its_etag_says_so(store_at, double, operation, call):
    double.size = 2 * PART if call == "multipart" else 1
    double.answers(operation, Answer(200))
    told = failure(call, store_at(server_at(double.endpoint), "bucket", maxConcurrency=1))
    assert "no ETag" in str(told)
    assert "proxy" in told.hint


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [page(403, "Blocked").body, b'{"blocked": true}', b"Request denied. Support ID 1"])
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_that_is_no_store_s_is_a_proxy_s(store_at, double, status, body, call):
    double.answers("*", Answer(status, body))
    told = failure(call, store_at(server_at(double.endpoint), "bucket"))
    assert "a proxy or a firewall before it" in str(told)
    assert not isinstance(told, AccessDeniedError)
    assert not told.retryable


def test_a_missing_page_of_a_site_is_no_missing_object(store_at, double):
    double.answers("GetObject", page(404, "Not Found"))
    assert "a proxy or a firewall" in str(failure("get", store_at(server_at(double.endpoint), "bucket")))


@pytest.mark.parametrize(
    "location,word",
    [
        ("ftp://files.example/x", "where no S3 store can be"),
        ("https://b.example/", "set s3.endpoint to https://b.example"),
    ],
)
def test_a_redirect_to_what_can_be_no_store_is_no_advice(store_at, double, location, word):
    double.answers("*", Answer(302, b"", {"Location": location}))
    told = failure("list", store_at(server_at(double.endpoint), "bucket"))
    assert word in str(told)
    assert "set s3.endpoint to ftp" not in str(told)


# ---- advice that fits --------------------------------------------------------------------------------------


def test_a_store_that_takes_no_uploads_in_parts_is_told_as_such(store_at, double):
    double.answers("CreateMultipartUpload", error(501, "NotImplemented"))
    told = failure("multipart", store_at(server_at(double.endpoint), "bucket"))
    assert "takes no uploads in parts" in told.hint
    assert "s3.partSizeMiB" in told.hint


REGIONS = {
    "header": Answer(301, b"", {"x-amz-bucket-region": "eu-west-3"}),
    "body": error(400, "AuthorizationHeaderMalformed", "wrong", "<Region>eu-west-3</Region>"),
}


@pytest.mark.parametrize("answer", REGIONS)
@pytest.mark.parametrize("call", ["put", "list", "reach"])
def test_the_region_that_an_answer_names_is_told(store_at, double, answer, call):
    double.answers("*", REGIONS[answer])
    told = failure(call, store_at(server_at(double.endpoint), "bucket"))
    assert "Set s3.region to eu-west-3" in told.hint


def test_a_bucket_that_stands_in_the_endpoint_is_told_as_such(store_at, double):
    double.answers("*", error(404, "NoSuchBucket"))
    assert "leave it out" in failure("list", store_at(server_at(f"{double.endpoint}/bucket"), "bucket")).hint
    assert "leave it out" not in failure("list", store_at(server_at(double.endpoint), "bucket")).hint


# ---- unfinished uploads ------------------------------------------------------------------------------------


def test_an_upload_that_cannot_be_aborted_keeps_none_of_the_others(store_at, moto_server, make_proxy):
    bucket, proxy = moto_server.new_bucket(), make_proxy(moto_server)
    for key in ("production/a", "production/b", "production/c"):
        moto_server.client().create_multipart_upload(Bucket=bucket, Key=key)

    def refuse(seen):
        return (403, "AccessDenied") if seen.operation == "AbortMultipartUpload" and seen.key[-1] in "ac" else None

    proxy.before = refuse
    swept = store_at(proxy.server, bucket).sweep("production/", abandoned=lambda *_: True)
    assert swept.aborted == 1
    assert ["production/a:" in swept.left[0], "production/c:" in swept.left[1]] == [True, True]
    assert "s3:AbortMultipartUpload" in swept.left[0]


@pytest.mark.parametrize("code,status", [("AccessDenied", 403), ("SlowDown", 503)])
def test_uploads_that_cannot_be_listed_are_told(store_at, double, code, status):
    double.answers("ListMultipartUploads", error(status, code))
    swept = store_at(server_at(double.endpoint), "bucket").sweep("production/", abandoned=lambda *_: True)
    assert code in swept.left[0]


def test_a_store_without_a_listing_of_uploads_is_no_fault(store_at, double):
    double.answers("ListMultipartUploads", error(501, "NotImplemented"))
    swept = store_at(server_at(double.endpoint), "bucket").sweep("production/", abandoned=lambda *_: True)
    assert not swept.left
    assert "lifecycle rule" in swept.note


def test_keys_that_ended_in_an_upload_keep_its_parts(store_at, double, tmp_path):
    log = UploadLog(tmp_path / "log", {})
    double.size = 2 * PART
    double.answers("UploadPart", error(400, "ExpiredToken"))
    with pytest.raises(AccessDeniedError, match="session token"):
        store_at(server_at(double.endpoint), "bucket").put(KEY, Parts(), upload_log=log)
    assert double.seen["AbortMultipartUpload"] == 0
    assert log.load() is not None
