"""Large ranges straight from the connection into memory: when that is done, and what happens when it can't be."""

from __future__ import annotations

import contextlib
import random

import pytest

from duckling_provider.base.errors import AccessDeniedError, IntegrityError, NotFoundError, StoreError
from duckling_provider.stores import s3_client
from duckling_provider.stores.fetch import fetch
from duckling_provider.stores.s3_receive import LEAST, DirectBody

pytestmark = pytest.mark.server

KEY = "production/a key with blanks, a + and an ü.db"
DATA = random.Random(3).randbytes(3 * LEAST + 500)
SIZE = len(DATA)


@pytest.fixture
def bucket(moto_server):
    name = moto_server.new_bucket()
    moto_server.client().put_object(Bucket=name, Key=KEY, Body=DATA)
    return name


def received(store, start=0, stop=SIZE, **options):
    target = memoryview(bytearray(stop - start))
    with contextlib.closing(store.open_range(KEY, start, stop, **options)) as stream:
        left = target
        while left:
            count = stream.readinto(left)
            assert count
            left = left[count:]
    return bytes(target)


def is_direct(store, start=0, stop=SIZE):
    body = store._receiver.open(KEY, start, stop, etag="")
    if body is not None:
        body.close()
    return isinstance(body, DirectBody)


def test_a_large_range_is_one_request_and_small_ones_go_the_usual_way(moto_server, bucket, store_at, make_proxy):
    proxy = make_proxy(moto_server)
    store = store_at(proxy.server, bucket)
    etag = store.head(KEY).etag
    assert received(store, 7, SIZE - 9, etag=etag) == DATA[7 : SIZE - 9]
    assert proxy.count("GetObject") == 1
    assert is_direct(store)
    assert not is_direct(store, 0, LEAST - 1)


def test_its_signature_is_one_that_stores_take(moto_auth_server, store_at):
    bucket = moto_auth_server.new_bucket()
    moto_auth_server.client().put_object(Bucket=bucket, Key=KEY, Body=DATA)
    store = store_at(moto_auth_server, bucket)
    assert is_direct(store)
    assert received(store) == DATA


def test_a_real_server_sends_ranges_directly_too(s3_server, store_at):
    bucket = s3_server.new_bucket()
    s3_server.client().put_object(Bucket=bucket, Key=KEY, Body=DATA)
    assert is_direct(store_at(s3_server, bucket))


def test_connections_are_kept(moto_server, bucket, store_at):
    store = store_at(moto_server, bucket)
    for _ in range(5):
        assert received(store) == DATA
    [pool] = store._receiver._session._manager.pools._container.values()
    assert pool.num_connections == 1


def test_boto3_bodies_are_read_where_the_entry_says_so(moto_server, bucket, store_at):
    store = store_at(moto_server, bucket, receive="boto3")
    assert store._receiver is None
    assert received(store) == DATA


def test_a_client_that_lacks_what_it_needs_goes_the_usual_way(moto_server, bucket, store_at):
    store = store_at(moto_server, bucket)
    store._receiver._session = None
    assert received(store) == DATA


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (500, "InternalError"), (0, "")], ids=["503", "500", "hung up"])
def test_after_any_other_answer_boto3_asks_again_and_tries_as_often_as_it_should(
    moto_server, bucket, store_at, make_proxy, answer
):
    proxy = make_proxy(moto_server)
    proxy.before = lambda _: answer if proxy.count("GetObject") == 1 else None
    assert received(store_at(proxy.server, bucket)) == DATA
    assert proxy.count("GetObject") == 2


@pytest.mark.parametrize("header", ["content-range", "etag"])
def test_an_answer_that_does_not_say_which_bytes_it_is_is_not_taken(moto_server, bucket, store_at, make_proxy, header):
    proxy = make_proxy(moto_server)
    proxy.hide = {header}
    assert not is_direct(store_at(proxy.server, bucket))


def test_refusals_are_told_as_ever(moto_server, bucket, store_at, make_proxy, monkeypatch):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    proxy = make_proxy(moto_server)
    store = store_at(proxy.server, bucket)
    with pytest.raises(IntegrityError, match="replaced"):
        received(store, etag='"another"')
    proxy.before = lambda _: (403, "AccessDenied")
    with pytest.raises(AccessDeniedError, match="s3:GetObject"):
        received(store)
    proxy.before = lambda _: (404, "NoSuchKey")
    with pytest.raises(NotFoundError):
        received(store)
    proxy.before = lambda _: (503, "SlowDown")
    with pytest.raises(StoreError) as caught:
        received(store)
    assert (caught.value.code, caught.value.retryable) == ("SlowDown", True)


def test_a_whole_object_comes_back_by_it(moto_server, bucket, store_at):
    store = store_at(moto_server, bucket)
    pieces = fetch(store, KEY, size=SIZE, etag=store.head(KEY).etag)
    assert b"".join(map(bytes, pieces)) == DATA


def test_bytes_come_from_the_socket_in_pieces_of_any_size_and_the_connection_serves_again(
    moto_server, bucket, store_at
):
    receiver = store_at(moto_server, bucket)._receiver
    for piece in (1, 700, 9000, 100_000, SIZE):
        body = receiver.open(KEY, 0, SIZE, etag="")
        beginning = bytearray(50_000)
        at = 0
        while at < len(beginning):
            at += body.readinto(memoryview(beginning)[at : at + piece])
        assert beginning + body.read() == DATA
        assert not body.readinto(bytearray(10))
        body.close()
    [pool] = receiver._session._manager.pools._container.values()
    assert pool.num_connections == 1


def test_what_is_left_of_an_answer_is_not_taken_for_the_next_one(moto_server, bucket, store_at):
    store = store_at(moto_server, bucket)
    for read in (1, 9000, SIZE - 1):
        body = store._receiver.open(KEY, 0, SIZE, etag="")
        assert 0 < body.readinto(memoryview(bytearray(read))) <= read
        body.close()
        assert received(store, 5) == DATA[5:]
