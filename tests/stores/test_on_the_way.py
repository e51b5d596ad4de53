"""What lies between here and a store: TLS, HTTP proxies, and credentials that end while a transfer runs."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import select
import socket
import sys
import threading

import pytest
from fixtures.stores import server_at

from duckling_provider.base.errors import StoreError
from duckling_provider.stores import s3_client
from duckling_provider.stores.s3 import open_store
from duckling_provider.stores.store import BytesBody, UploadLog

pytestmark = pytest.mark.server

PART = 5 << 20
KEY = "production/backup-2025-03-01T14-32-11-482Z.db"


class Parts:
    """Zero bytes in some parts of 5 MiB; `sent` is called with the number of each part that is read."""

    part_size = PART

    def __init__(self, count=2, sent=lambda _: None):
        self.count, self.size, self._sent = count, count * PART, sent

    def open(self, index):
        self._sent(index)
        return io.BytesIO(bytes(PART))


@pytest.fixture
def store_at(installation, monkeypatch):
    """``store_at(endpoint, **fields)``: of an installation that asks once and knows no proxy."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def make(endpoint, **fields):
        installation.write(installation.entry(s3=server_at(endpoint).s3("bucket", maxConcurrency=1, **fields)))
        return open_store(installation.database())

    return make


def failure(store):
    with pytest.raises(StoreError) as caught:
        store.put(KEY, BytesBody(b"x"))
    return caught.value


# ---- TLS ---------------------------------------------------------------------------------------------------


def test_a_certificate_of_an_authority_that_is_trusted_is_good(store_at, make_double, certificate, monkeypatch):
    sound = certificate("sound")
    double = make_double(sound.context())
    monkeypatch.setenv("AWS_CA_BUNDLE", str(sound.authority))
    assert store_at(double.endpoint).put(KEY, BytesBody(b"x")).size == 1


@pytest.mark.parametrize(
    "kind,trusted,words,advice",
    [
        ("sound", False, "is not trusted", "AWS_CA_BUNDLE"),
        ("self-signed", True, "is not trusted", "AWS_CA_BUNDLE"),
        ("wrong host", True, "is for another host", "s3.endpoint"),
        ("expired", True, "is out of date", "Renew it"),
        ("early", True, "is out of date", "clock"),
    ],
)
def test_each_fault_of_a_certificate_is_told_apart(
    store_at, make_double, certificate, monkeypatch, kind, trusted, words, advice
):
    made = certificate(kind)
    double = make_double(made.context())
    if trusted:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(made.authority))
    told = failure(store_at(double.endpoint))
    assert words in str(told)
    assert advice in str(told)
    assert double.endpoint in str(told)
    assert not told.retryable
    assert double.seen.total() == 0


def test_tls_to_a_port_of_plain_http_is_told_as_such(store_at, make_double):
    told = failure(store_at(make_double().endpoint.replace("http:", "https:")))
    assert "does not speak TLS" in str(told)
    assert not told.retryable


def test_plain_http_to_a_port_of_tls_says_to_write_https(store_at, make_double, certificate):
    double = make_double(certificate("sound").context())
    told = failure(store_at(double.endpoint.replace("https:", "http:")))
    assert "https://" in told.hint


# ---- proxies -----------------------------------------------------------------------------------------------


class ForwardProxy:
    """An HTTP proxy: it passes on, or answers each request with `refusal`, such as ``"407 Who are you"``."""

    def __init__(self):
        self.refusal, self.asked = "", []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            line = head.partition(b"\r\n")[0].decode()
            self.asked.append(line)
            if self.refusal:
                client.sendall(f"HTTP/1.1 {self.refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
            method, target, _ = line.split(" ")
            tunnel = method == "CONNECT"
            host, _, port = (target if tunnel else target.split("/")[2]).partition(":")
            with socket.create_connection((host, int(port))) as server:
                if tunnel:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = "/" + target.split("/", 3)[3]
                    server.sendall(head.replace(target.encode(), path.encode(), 1))
                _join(client, server)

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _join(one, other):
    while True:
        for ready in select.select([one, other], [], [])[0]:
            data = ready.recv(65536)
            if not data:
                return
            (other if ready is one else one).sendall(data)


@pytest.fixture
def proxy():
    made = ForwardProxy()
    yield made
    made.close()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy_of_the_environment_is_used(store_at, make_double, certificate, proxy, monkeypatch, tls):
    sound = certificate("sound")
    double = make_double(sound.context() if tls else None)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(sound.authority))
    monkeypatch.setenv("HTTPS_PROXY" if tls else "HTTP_PROXY", proxy.url)
    assert store_at(double.endpoint).put(KEY, BytesBody(b"x")).size == 1
    assert proxy.asked
    assert all(line.startswith("CONNECT") is tls for line in proxy.asked)
    before = len(proxy.asked)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert store_at(double.endpoint).put(KEY, BytesBody(b"x")).size == 1
    assert len(proxy.asked) == before


REFUSALS = [
    ("407 Proxy Authentication Required", "wants a user name and a password", False),
    ("403 Forbidden", "", False),
    ("503 Service Unavailable", "", True),
    ("504 Gateway Timeout", "", True),
]


@pytest.mark.parametrize("refusal,words,passing", REFUSALS, ids=lambda value: str(value)[:3])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_a_proxy_refuses_is_no_fault_of_the_store(store_at, proxy, monkeypatch, scheme, refusal, words, passing):
    proxy.refusal = refusal
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:the-password@"))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:the-password@"))
    told = failure(store_at(f"{scheme}://store.example:9"))
    assert words in str(told)
    assert told.retryable is passing
    assert "the-password" not in str(told)
    if scheme == "https":
        assert "proxy" in told.cause
        assert "NO_PROXY" in told.hint
    assert told.hint


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_answer_is_named(store_at, monkeypatch, scheme):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", url.replace("//", "//user:the-password@"))
        told = failure(store_at(f"{scheme}://store.example:9"))
    assert f"the HTTP proxy {url.replace('//', '//***:***@')}" in str(told)
    assert f"{scheme.upper()}_PROXY" in told.hint
    assert told.retryable
    assert "the-password" not in str(told)


@pytest.mark.parametrize(
    "value", ["http//proxy:3128", "socks5://127.0.0.1:1080", "http://[bad", "http://host:port", "a b"]
)
def test_a_variable_that_names_no_proxy_is_named(store_at, monkeypatch, value):
    monkeypatch.setenv("https_proxy", value)
    told = failure(store_at("https://store.example"))
    assert told.cause == "https_proxy names no HTTP proxy"
    assert not told.retryable


def test_the_proxy_that_wants_a_password_is_named_by_its_own_variable(store_at, proxy, monkeypatch):
    proxy.refusal = "407 Proxy Authentication Required"
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("HTTPS_PROXY", "http://another.example")
    told = failure(store_at("http://store.example:9"))
    assert "Put them into http_proxy" in told.hint


# ---- credentials that end ----------------------------------------------------------------------------------


class Vendor:
    """What hands out credentials: a program of ``credential_process``, which prints what a file has.

    :param seconds: until the ones it hands out end; botocore renews those that last for less than ten minutes.
    """

    def __init__(self, folder, monkeypatch):
        self._told, config = folder / "told.json", folder / "config"
        config.write_text(
            f"[default]\ncredential_process = {sys.executable} -S -c \"print(open('{self._told}').read())\"\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def gives(self, name, *, seconds):
        end = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=seconds)
        told = {"Version": 1, "AccessKeyId": name, "SecretAccessKey": "secret", "SessionToken": "t"}
        self._told.write_text(json.dumps({**told, "Expiration": end.isoformat()}))

    def fails(self):
        self._told.unlink()


@pytest.fixture
def vendor(tmp_path, monkeypatch, installation):
    return Vendor(tmp_path, monkeypatch)


CHAIN = {"accessKeyId": None, "secretAccessKey": None, "credentialSource": "default"}


def test_parts_after_the_end_of_credentials_are_signed_by_new_ones(store_at, make_double, vendor):
    vendor.gives("first", seconds=300)
    double = make_double()
    double.size = 3 * PART
    store = store_at(double.endpoint, **CHAIN)
    store.put(KEY, Parts(3, lambda index: vendor.gives("second", seconds=7200) if index == 1 else None))
    assert double.seen["UploadPart"] == 3
    # To begin, and the first part; from the second part on the others.
    assert double.signed_by == ["first"] * 2 + ["second"] * 4


def test_credentials_that_cannot_be_renewed_keep_what_arrived(store_at, make_double, vendor, tmp_path):
    vendor.gives("first", seconds=300)
    double = make_double()
    double.size = 3 * PART
    log = UploadLog(tmp_path / "log", {})
    with pytest.raises(StoreError, match="credentials can't be renewed") as caught:
        store_at(double.endpoint, **CHAIN).put(
            KEY, Parts(3, lambda index: vendor.fails() if index == 1 else None), upload_log=log
        )
    assert caught.value.retryable
    assert double.seen["AbortMultipartUpload"] == 0
    assert list(log.load()[1]) == [0]


def test_credentials_that_ended_before_they_were_handed_out_are_told_as_such(store_at, make_double, vendor):
    vendor.gives("first", seconds=300)
    double = make_double()
    double.size = 2 * PART
    with pytest.raises(StoreError, match="credentials can't be renewed") as caught:
        store_at(double.endpoint, **CHAIN).put(
            KEY, Parts(2, lambda index: vendor.gives("old", seconds=-60) if index == 1 else None)
        )
    assert caught.value.retryable
