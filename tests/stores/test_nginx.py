"""nginx before a store: what it answers in the store's stead, as it words it."""

from __future__ import annotations

import io
import socket

import pytest
from fixtures.stores import server_at

from duckling_provider.base.errors import StoreError
from duckling_provider.stores import s3_client
from duckling_provider.stores.s3 import open_store
from duckling_provider.stores.store import BytesBody

pytestmark = [pytest.mark.server, pytest.mark.full]

PART = 5 << 20
KEY = "production/backup-2025-03-01T14-32-11-482Z.db"


class Parts:
    part_size, count, size = PART, 2, 2 * PART

    def open(self, index):
        return io.BytesIO(bytes(PART))


@pytest.fixture
def store_at(installation, monkeypatch):
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)

    def make(endpoint):
        installation.write(installation.entry(s3=server_at(endpoint).s3("bucket", maxConcurrency=1)))
        return open_store(installation.database())

    return make


def failure(store, body=None):
    with pytest.raises(StoreError) as caught:
        store.put(KEY, body or BytesBody(b"x"))
    return caught.value


def test_a_store_behind_nginx_is_used_as_any_other(store_at, nginx, make_double, certificate, monkeypatch):
    sound, double = certificate("sound"), make_double()
    double.size = Parts.size
    monkeypatch.setenv("AWS_CA_BUNDLE", str(sound.authority))
    store_at(nginx(f"proxy_pass {double.endpoint};", sound.file)).put(KEY, Parts())
    assert double.seen["UploadPart"] == 2


@pytest.mark.parametrize("kind,words", [("wrong host", "for another host"), ("expired", "out of date")])
def test_a_certificate_that_nginx_shows_is_told_by_its_fault(
    store_at, nginx, make_double, certificate, monkeypatch, kind, words
):
    made, double = certificate(kind), make_double()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made.authority))
    told = failure(store_at(nginx(f"proxy_pass {double.endpoint};", made.file)))
    assert words in str(told)
    assert not told.retryable


def test_plain_http_to_a_tls_port_of_nginx_says_to_write_https(store_at, nginx, make_double, certificate):
    endpoint = nginx(f"proxy_pass {make_double().endpoint};", certificate("sound").file)
    assert "https://" in failure(store_at(endpoint.replace("https:", "http:"))).hint


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nginx_that_sends_elsewhere_is_asked_once_and_the_address_is_named(store_at, nginx, status):
    told = failure(store_at(nginx(f"return {status} https://store.example$request_uri;")))
    assert "set s3.endpoint to https://store.example" in str(told)
    assert not told.retryable


def test_nginx_to_the_same_address_with_tls_names_it(store_at, nginx):
    told = failure(store_at(nginx("return 301 https://$http_host$request_uri;")))
    assert "redirects to https://127.0.0.1:" in str(told)


def test_a_part_above_the_limit_of_nginx_is_told_as_such_and_leaves_no_upload(store_at, nginx, make_double):
    double = make_double()
    told = failure(store_at(nginx(f"client_max_body_size 1m; proxy_pass {double.endpoint};")), Parts())
    assert "client_max_body_size" in str(told)
    assert "s3.partSizeMiB" in str(told)
    assert not told.retryable
    assert double.seen["UploadPart"] == 0
    assert double.seen["AbortMultipartUpload"] == 1


def test_a_store_that_is_down_behind_nginx_is_a_passing_failure(store_at, nginx):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        told = failure(store_at(nginx(f"proxy_pass http://127.0.0.1:{bound.getsockname()[1]};")))
    assert "502" in str(told)
    assert "its log says why" in told.hint
    assert told.retryable


def test_a_store_that_is_silent_behind_nginx_is_a_passing_failure(store_at, nginx):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        told = failure(store_at(nginx(f"proxy_read_timeout 1s; proxy_pass http://127.0.0.1:{port};")))
    assert "504" in str(told)
    assert told.retryable


def test_a_login_before_a_store_is_no_store(store_at, nginx):
    told = failure(store_at(nginx("default_type text/html; return 200 '<html>Log in</html>';")))
    assert "is no S3 store" in str(told)
    assert not told.retryable
