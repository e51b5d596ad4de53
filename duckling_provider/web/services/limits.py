"""What keeps the API from being overrun: bodies that end, writes that are counted, guesses that get slow; and a line in
the log for each call.

Counted in memory, per process: enough against scripts in a loop, which is what it is for.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.exceptions import HTTPException

from duckling_provider.base.strict_json import printable
from duckling_provider.config.environment import Settings
from duckling_provider.web.services.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

#: Bytes of a request's body. The largest that is meant is an entry's s3 object: a few kilobytes.
MAX_BODY = 64 * 1024
#: Wrong credentials from one address.
_GUESSES = "30/minute"
_GUESSED = "too many wrong credentials from this address"

# Not the moving window: its storage keeps an entry of each address for ever.
_limiter = FixedWindowRateLimiter(MemoryStorage())
_rate = lru_cache(maxsize=8)(parse)


def count_write(caller: str) -> None:
    """:raises ApiError: 429 when `caller` writes more often than ``DUCKLING_API_RATE`` allows."""
    _count(_rate(Settings.from_env(os.environ).api_rate), "write", caller, "too many requests that change something")


def refuse_guesser(address: str) -> None:
    """To be asked before a token is looked at: an address that guessed too often learns nothing, not even from the
    right one.

    :raises ApiError: 429 after too many wrong credentials from one address.
    """
    if not _limiter.test(_rate(_GUESSES), "guess", _guesser(address)):
        raise _too_many(_rate(_GUESSES), "guess", _guesser(address), _GUESSED)


def count_guess(address: str) -> None:
    """Wrong credentials came from there.

    :raises ApiError: 429 when they are too many: of several at once, too, only so many learn that they are wrong.
    """
    _count(_rate(_GUESSES), "guess", _guesser(address), _GUESSED)


def _guesser(address: str) -> str:
    """Whose guesses are counted together: those of an IPv4 address, and of an IPv6 network of 64 bits, which is what
    one machine has at its disposal.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # of a test, or of a socket without addresses
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), 64), strict=False))


def _count(rate: RateLimitItem, kind: str, who: str, error: str) -> None:
    if not _limiter.hit(rate, kind, who):
        raise _too_many(rate, kind, who, error)


def _too_many(rate: RateLimitItem, kind: str, who: str, error: str) -> ApiError:
    wait = max(1, int(_limiter.get_window_stats(rate, kind, who).reset_time - time.time()) + 1)
    return ApiError(429, f"{error}; try again in {wait} s", headers={"Retry-After": str(wait)})


class Guard:
    """ASGI middleware: bounds each body, and logs each call without its query, which may hold anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, received = time.monotonic(), 0, 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
            return message

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, bounded, told)
        finally:
            caller = getattr(scope.get("state", {}).get("duckling_caller"), "name", "-")
            took = (time.monotonic() - started) * 1000
            path = printable(scope["path"], limit=200)
            log.info("%s %s %s by %s in %.0f ms", scope["method"], path, status or "gone", printable(caller), took)
