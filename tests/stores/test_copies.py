"""Parts that the store copies from an earlier object: no answer to a copy is trusted; what is not proven is sent."""

from __future__ import annotations

import io
import random
import re
from dataclasses import replace

import pytest

from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import StoreError
from duckling_provider.stores import s3_client
from duckling_provider.stores.parts import Cut
from duckling_provider.stores.s3_probe import COPY_STEP, NO_COPIES
from duckling_provider.stores.store import Copies, CopyRefusedError, UploadLog

pytestmark = pytest.mark.server

PART = 5 << 20
OLD, NEW = "production/old", "production/new"
FIRST = random.Random(3).randbytes(3 * PART + 700)
#: The second of its four parts is another one.
SECOND = FIRST[:PART] + random.Random(4).randbytes(PART) + FIRST[2 * PART :]
CUT = Cut((PART, 2 * PART, 3 * PART, 3 * PART + 700), frozenset({0, 2, 3}))


class Body:
    """An object from memory in the parts of a cut."""

    part_size = 0

    def __init__(self, data, cut):
        self._data, self._cut = data, cut
        self.size, self.count = cut.size, cut.count

    def open(self, index):
        start, stop = self._cut.bounds(index)
        return io.BytesIO(self._data[start:stop])


class Bucket:
    """A bucket with the first object, seen through a proxy."""

    def __init__(self, server, store_at, make_proxy):
        self.client, self.name = server.client(), server.new_bucket()
        self.client.put_object(Bucket=self.name, Key=OLD, Body=FIRST)
        self.proxy = make_proxy(server)
        self.store = store_at(self.proxy.server, self.name, maxConcurrency=2)
        self.control = Control()
        self.copies = None

    def put(self, *, upload_log=None):
        """Store the second object."""
        self.copies = Copies(CUT, self.store.head(OLD), set(CUT.copied))
        self.store.put(NEW, Body(SECOND, CUT), copies=self.copies, upload_log=upload_log, control=self.control)
        assert self.client.get_object(Bucket=self.name, Key=NEW)["Body"].read() == SECOND

    def sent(self):
        """The parts that were sent, from 0, in order."""
        return [seen.part - 1 for seen in self.proxy.seen if seen.operation == "UploadPart" and seen.status == 200]

    def unfinished(self):
        return self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])


@pytest.fixture
def bucket(moto_server, store_at, make_proxy):
    return Bucket(moto_server, store_at, make_proxy)


@pytest.fixture
def impatient(monkeypatch):
    """No second tries within a request."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)


@pytest.mark.parametrize("server", ["moto_server", "seaweed_server"])
def test_only_what_changed_is_sent(request, store_at, make_proxy, server):
    bucket = Bucket(request.getfixturevalue(server), store_at, make_proxy)
    bucket.put()
    assert bucket.sent() == [1]
    assert bucket.copies.parts == {0, 2, 3}
    assert bucket.control.copied == 2 * PART + 700


def test_a_store_that_answers_without_an_etag_is_asked_once_and_keeps_nothing(s3_server, store_at, make_proxy):
    bucket = Bucket(s3_server, store_at, make_proxy)  # rclone
    with pytest.raises(CopyRefusedError, match="without an ETag"):
        bucket.put()
    assert bucket.proxy.count("UploadPartCopy") == 1
    assert bucket.sent() == []
    assert not bucket.unfinished()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ((501, "NotImplemented"), False),
        ((403, "AccessDenied"), False),
        ((403, "InvalidObjectState"), True),
        ((404, "NoSuchKey"), True),
        ((412, "PreconditionFailed"), True),
        ((503, "SlowDown"), True),
    ],
)
def test_a_store_that_refuses_the_first_copy_gets_nothing_else_and_it_is_told_whether_that_passes(
    bucket, tmp_path, answer, passes
):
    def refuse(seen):
        if seen.operation != "UploadPartCopy":
            return None
        if answer[0] in (404, 412):  # as it is when the source went
            bucket.client.delete_object(Bucket=bucket.name, Key=OLD)
        return answer

    bucket.proxy.before = refuse
    with pytest.raises(CopyRefusedError) as caught:
        bucket.put(upload_log=UploadLog(tmp_path / "new.upload", {"key": NEW}))
    assert caught.value.retryable is passes
    assert (bucket.proxy.count("UploadPartCopy"), bucket.sent()) == (1, [])
    assert not bucket.unfinished()
    assert not (tmp_path / "new.upload").exists()


@pytest.mark.usefixtures("impatient")
def test_a_store_that_lists_no_parts_can_prove_no_copy(bucket):
    bucket.proxy.before = lambda seen: (501, "NotImplemented") if seen.operation == "ListParts" else None
    with pytest.raises(CopyRefusedError, match="can't be proven"):
        bucket.put()
    assert bucket.proxy.count("UploadPartCopy") == 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer", [(503, "SlowDown"), (404, "NoSuchKey"), (416, "InvalidRange"), (500, "InternalError")]
)
def test_a_copy_that_is_refused_later_is_sent(bucket, answer):
    bucket.proxy.before = lambda seen: answer if (seen.operation, seen.part) == ("UploadPartCopy", 3) else None
    bucket.put()
    assert sorted(bucket.sent()) == [1, 2]
    assert bucket.copies.parts == {0, 3}


def test_a_source_that_is_replaced_meanwhile_lends_nothing(bucket):
    def replace_it(seen):
        if (seen.operation, seen.part) == ("UploadPart", 2):
            bucket.client.put_object(Bucket=bucket.name, Key=OLD, Body=b"x" * len(FIRST))

    bucket.proxy.before = replace_it
    bucket.put()
    assert sorted(bucket.sent()) == [0, 1, 2, 3]
    assert bucket.copies.parts == set()


def test_a_source_that_is_deleted_meanwhile_lends_nothing(bucket):
    def delete_it(seen):
        if (seen.operation, seen.part) == ("UploadPart", 2):
            bucket.client.delete_object(Bucket=bucket.name, Key=OLD)

    bucket.proxy.before = delete_it
    bucket.put()
    assert sorted(bucket.sent()) == [0, 1, 2, 3]


def test_a_version_of_the_source_is_copied_though_a_newer_one_has_its_key(moto_server, store_at, make_proxy):
    bucket = Bucket(moto_server, store_at, make_proxy)
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    bucket.client.put_object(Bucket=bucket.name, Key=OLD, Body=FIRST)
    assert bucket.store.head(OLD).version

    def replace_it(seen):
        if (seen.operation, seen.part) == ("UploadPartCopy", 1):
            bucket.client.put_object(Bucket=bucket.name, Key=OLD, Body=b"x" * len(FIRST))

    bucket.proxy.before = replace_it
    bucket.put()
    assert bucket.sent() == [1]


def test_a_copy_that_came_out_short_is_sent(bucket):
    # moto, as Swift, copies what there is of a range past the end.
    bucket.client.put_object(Bucket=bucket.name, Key=OLD, Body=FIRST[: 3 * PART + 5])
    bucket.put()
    assert sorted(bucket.sent()) == [1, 3]


@pytest.mark.parametrize("answers", ["UploadPartCopy", "ListParts"])
def test_a_copy_whose_etag_is_another_in_the_list_of_parts_is_sent(bucket, answers):
    def another(seen, content):
        if seen.operation != answers or (seen.part and seen.part != 1):
            return content
        return re.sub(rb"<ETag>[^<]*</ETag>", b'<ETag>"00112233445566778899aabbccddeeff"</ETag>', content, count=1)

    bucket.proxy.alter = another
    bucket.put()
    assert sorted(bucket.sent()) == [0, 1]
    assert bucket.copies.parts == {2, 3}


def test_a_right_condition_that_the_store_refuses_is_left_out(bucket):
    def refuse(seen):
        refused = seen.operation == "UploadPartCopy" and "x-amz-copy-source-if-match" in seen.headers
        return (412, "PreconditionFailed") if refused else None

    bucket.proxy.before = refuse
    bucket.put()
    assert bucket.sent() == [1]


@pytest.mark.usefixtures("impatient")
def test_a_store_that_completes_equal_parts_only_gets_no_copies(bucket):
    bucket.proxy.before = lambda seen: (400, "InvalidPart") if seen.operation == "CompleteMultipartUpload" else None
    with pytest.raises(CopyRefusedError, match="completes no upload"):
        bucket.put()
    assert not bucket.unfinished()


@pytest.mark.usefixtures("impatient")
def test_an_interrupted_upload_goes_on_and_knows_what_was_sent_in_place_of_a_copy(bucket, tmp_path):
    refused = {3}  # part numbers, from 1
    bucket.proxy.before = lambda seen: (
        (503, "SlowDown")
        if (seen.operation == "UploadPartCopy" and seen.part in refused)
        or (seen.operation == "CompleteMultipartUpload" and refused)
        else None
    )
    upload_log = UploadLog(tmp_path / "new.upload", {"key": NEW})
    with pytest.raises(StoreError, match="fewer requests"):
        bucket.put(upload_log=upload_log)
    assert sorted(bucket.sent()) == [1, 2]
    before = bucket.proxy.count("UploadPartCopy")
    refused.clear()
    bucket.put(upload_log=upload_log)
    assert bucket.copies.parts == {0, 3}
    assert (len(bucket.sent()), bucket.proxy.count("UploadPartCopy")) == (2, before)


def test_copies_and_sendings_are_steps_of_their_own(bucket):
    seen = []
    bucket.control = Control(lambda step, done, total: seen.append((step, done, total)))
    bucket.put()
    assert ("copy", 2 * PART + 700, 2 * PART + 700) in seen
    assert seen[-1] == ("upload", PART, PART)


@pytest.mark.parametrize(("server", "copies"), [("moto_server", True), ("seaweed_server", True), ("s3_server", False)])
def test_the_connection_test_finds_out_whether_the_store_copies(request, store_at, server, copies):
    server = request.getfixturevalue(server)
    steps = {step.name: step for step in store_at(server, server.new_bucket()).probe("production/")}
    assert steps[COPY_STEP].error is None
    assert steps[COPY_STEP].note.startswith(NO_COPIES) is not copies


def test_parts_must_be_equal_on_r2_only(store_at, moto_server):
    r2 = replace(moto_server, endpoint="https://account.r2.cloudflarestorage.com")
    assert store_at(r2, "bucket").equal_parts
    assert not store_at(moto_server, "bucket").equal_parts
