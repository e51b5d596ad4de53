"""Receiving large ranges of an object straight into memory that is there already.

boto3 spends a few milliseconds on each answer, and its bodies come in pieces of memory of their own, copied twice. Here
a request is signed by botocore's signer and sent by the connections of the client itself: its TLS, certificates,
proxies and deadlines are those of every other request. Only the body is taken from the connection by
`http.client.HTTPResponse.readinto`, without a copy.

Only one kind of answer is taken: the very range that was asked for. After any other, or none, the caller asks again by
the client's own ``get_object``, which tries again as often as it should, follows a bucket to its region, and says what
is wrong. Where a botocore or an urllib3 of the future lacks what this needs, everything goes that way.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import urllib.parse
from typing import TYPE_CHECKING, Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

#: Of fewer bytes an answer is not worth a second way of asking.
LEAST = 1 << 20
_SCHEME = "AWS4-HMAC-SHA256"


class DirectReceiver:
    """GET requests for ranges, for one client. Thread-safe.

    :param credentials: what the client signs with; it may renew itself.
    """

    def __init__(self, client: S3Client, credentials: Credentials, *, bucket: str) -> None:
        self._client, self._credentials, self._bucket = client, credentials, bucket
        # Private to botocore, but the one place that knows how its client reaches the store.
        self._session: Any = getattr(getattr(client, "_endpoint", None), "http_session", None)
        self._lock = threading.Lock()
        self._known: tuple[str, _Place] | None = None

    def open(self, key: str, start: int, stop: int, *, etag: str) -> DirectBody | None:
        """Bytes `start` to before `stop`; None when the answer is any other, or there is none."""
        if self._session is None or stop - start < LEAST:
            return None
        try:
            place = self._place(key)
            raw = None if place is None else self._session.send(self._request(place, start, stop, etag)).raw
        except BotoCoreError as error:
            log.debug("%s: asked again by boto3: %s", key, error)
            return None
        if raw is None:
            return None
        answer = getattr(raw, "_fp", None)
        whole = f"bytes {start}-{stop - 1}/"
        if (
            # Some stores (rclone) call a range 200.
            raw.status in {200, 206}
            and raw.headers.get("content-range", "").startswith(whole)
            and raw.headers.get("etag")
            and isinstance(answer, http.client.HTTPResponse)
            and answer.length == stop - start
        ):
            return DirectBody(raw, answer)
        _hang_up(raw)
        return None

    def _place(self, key: str) -> _Place | None:
        with self._lock:
            if self._known is None or self._known[0] != key:
                place = _Place.of(self._client, self._bucket, key)
                if place is None:
                    self._session = None  # signed in a way that is not known here
                    return None
                self._known = (key, place)
            return self._known[1]

    def _request(self, place: _Place, start: int, stop: int, etag: str) -> Any:
        headers = {"Range": f"bytes={start}-{stop - 1}", "User-Agent": _user_agent(self._client)}
        if etag:
            headers["If-Match"] = etag
        request = AWSRequest("GET", place.url, headers, stream_output=True)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), place.service, place.region).add_auth(request)
        return request.prepare()


class _Place:
    """Where an object is, and the names that its requests are signed for, by the client's own rules."""

    def __init__(self, url: str, service: str, region: str) -> None:
        self.url, self.service, self.region = url, service, region

    @classmethod
    def of(cls, client: S3Client, bucket: str, key: str) -> _Place | None:
        signed = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        url = urllib.parse.urlsplit(signed)
        query = dict(urllib.parse.parse_qsl(url.query))
        # Key, date, region, service, "aws4_request" ("Signature Version 4", Amazon S3 API Reference).
        scope = query.get("X-Amz-Credential", "").split("/")
        if query.get("X-Amz-Algorithm") != _SCHEME or len(scope) < 5:
            return None
        return cls(urllib.parse.urlunsplit(url._replace(query="")), scope[-2], scope[-3])


class DirectBody:
    """The bytes of an answer (`s3_connection.ResponseBody`).

    They are taken from the socket itself, since each of the three layers above it (a buffered reader, a raw one, the
    answer) costs a call for every 16 KiB of TLS. What came along with the header lies in the reader and is taken there
    first; the last byte is left to the answer, which then knows that it is whole.

    :param raw: urllib3's answer, which owns the connection.
    :param answer: the one below it, which reads from it.
    """

    def __init__(self, raw: Any, answer: http.client.HTTPResponse) -> None:
        self._raw, self._answer = raw, answer
        sock = getattr(getattr(raw, "connection", None), "sock", None)
        # Anything else (a tunnel in a tunnel) is read as http.client would.
        self._sock: socket.socket | None = sock if isinstance(sock, socket.socket) else None
        self._drained = False

    def readinto(self, target: Any, /) -> int:
        sock, left = self._sock, self._answer.length
        if sock is None or left is None:
            return self._answer.readinto(target)
        if not self._drained:
            here = len(self._answer.fp.peek(1))
            self._drained = here <= len(target)
            return self._answer.readinto(memoryview(target)[:here])
        most = min(len(target), left - 1)
        if most <= 0:
            return self._answer.readinto(target)
        read = 0
        view = memoryview(target)
        while read < most and (count := sock.recv_into(view[read:], most - read)):
            read += count
        self._answer.length = left - read
        return read

    def read(self, amt: int | None = None) -> bytes:
        return self._answer.read(amt)

    def close(self) -> None:
        if self._answer.isclosed():
            # Whole: the connection serves the next request.
            self._raw.release_conn()
        else:
            _hang_up(self._raw)


def _hang_up(raw: Any) -> None:
    """What is left of the answer would have to be read before the connection could serve another."""
    raw.close()
    raw.release_conn()


def _user_agent(client: Any) -> str:
    return str(client.meta.config.user_agent)
