"""The original Node.js server as the writer of a replica: its sync and its CDC are stopped and started over HTTP.

All that is used of its API, each with ``?db=ID`` and ``Authorization: Bearer KEY``:

- ``GET /automation/status`` and ``GET /cdc/status`` answer ``{"success": true, "status": {"isRunning": …}}``; for CDC
  the status also counts the changes that are read and not yet written, ``queueSize``;
- ``POST /automation/stop``, ``/automation/start``, ``/cdc/stop``, ``/cdc/start``.

Stopping tells that server to begin nothing more; a sync that is under way goes on to its end, and its API can't be
asked about that one. Nor does it ever close the DuckDB file, so a restore demands its process to be down in any case:
DuckDB's own lock on the file is what says so, see `replica.duckdb_file`.

What `pause` stops is noted beside the replica before it is stopped, so that `resume` starts that and nothing else, in
whatever process and after whatever crash.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from duckling_provider.base.cancellation import Control
from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import BusyError, CancelledError, ConfigError, DucklingError, StateFileError
from duckling_provider.base.state_files import read_state
from duckling_provider.base.strict_json import printable
from duckling_provider.config.databases import Database
from duckling_provider.replica.locks import state_path

NOTE_SUFFIX = ".duckling-server"

#: Where that server listens unless it is told otherwise.
DEFAULT_PORT = 3001

#: Stopped in this order, started in the reverse one.
SERVICES = ("automation", "cdc")

#: Seconds between two looks at a server that is still busy; it answers some hundred such questions a minute.
_POLL = 1.0
_MAX_ANSWER = 1024 * 1024
_NO_KEY = "The connection's password must be that server's DUCKLING_API_KEY."

log = logging.getLogger(__name__)


class ServerError(DucklingError):
    """The server refused, failed or did not answer."""

    retryable = True


class ServerDownError(ServerError):
    """Nothing listens at that address: the server's process is down, or the address is wrong."""


class _NotThereError(ServerError):
    """404."""

    retryable = False


@dataclass(frozen=True, kw_only=True)
class NodeServerClient:
    """Where the server listens, and the key that it wants; `parse` makes one out of what people write.

    :param path: in front of all paths of the API, empty or ``/something``.
    :param timeout: seconds that it may stay silent.
    """

    host: str
    port: int
    scheme: str = "http"
    path: str = ""
    api_key: SecretStr = field(default_factory=lambda: SecretStr(""))
    timeout: float = 20.0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @classmethod
    def parse(
        cls, host: str, *, port: int | None = None, scheme: str = "", api_key: str | SecretStr = "", subject: str
    ) -> NodeServerClient:
        """:param host: a name or an address, or a whole URL, which may bring the scheme, the port and a path.
        :param subject: what the values belong to, for messages.
        :raises ConfigError: which value is wrong; the key is never quoted.
        """
        key = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        if not re.fullmatch("[!-~]*", key.get_secret_value()):
            raise ConfigError("the API key holds white space or a character that is not ASCII", entry=subject)
        text = host.strip() if "://" in host else f"{scheme or 'http'}://{_bracketed(host.strip())}"
        try:
            url = urlsplit(text)
            name, own_port = url.hostname, url.port
        except ValueError:  # its message may quote all of the text
            raise ConfigError("the host or its port can't be read", entry=subject) from None
        if url.scheme not in ("http", "https"):
            raise ConfigError("the schema must be http or https", entry=subject)
        if not name or "@" in text or url.query or url.fragment or re.search(r"\s", text):
            hint = "Give the bare name or address of the host, e.g. duckling.internal."
            raise ConfigError("the host is missing, or is not a host", entry=subject, hint=hint)
        port = port or own_port or (443 if url.scheme == "https" else DEFAULT_PORT)
        return cls(host=name, port=port, scheme=url.scheme, path=url.path.rstrip("/"), api_key=key)

    def check(self) -> None:
        """Whether it is there and takes the key; changes nothing.

        :raises ServerError: what is wrong.
        """
        if self._call("GET", "/api/check-auth").get("authenticated") is not True:
            raise ServerError("refuses the API key", subject=str(self), hint=_NO_KEY, retryable=False)

    def status(self, service: str, database_id: str) -> ServiceStatus:
        """:param service: ``"automation"`` or ``"cdc"``.
        :raises ServerDownError: nothing listens there.
        :raises ServerError: it refused or failed; whether a retry can help says `retryable`.
        """
        try:
            answer = self._call("GET", f"/{service}/status", database_id)
        except _NotThereError as error:
            raise ServerError(
                f'knows no database "{database_id}": {error.cause}',
                subject=str(self),
                hint="The entry's id must be the one that the server has; the Airflow connection must lead to it.",
                retryable=False,
            ) from None
        status = answer.get("status")
        running = status.get("isRunning") if isinstance(status, dict) else None
        if not isinstance(status, dict) or not isinstance(running, bool):
            raise ServerError(
                f"/{service}/status does not say whether it is running",
                subject=str(self),
                hint="Is that the original Duckling server, and a version of it that writes DuckDB files?",
                retryable=False,
            )
        pending = status.get("queueSize")
        return ServiceStatus(running, pending if isinstance(pending, int) else 0)

    def stop(self, service: str, database_id: str) -> None:
        """:raises ServerError: as `status`."""
        # 404: that server makes its CDC when it is first started; it has none to stop.
        with contextlib.suppress(_NotThereError):
            self._call("POST", f"/{service}/stop", database_id)

    def start(self, service: str, database_id: str) -> None:
        """:raises ServerError: as `status`."""
        self._call("POST", f"/{service}/start", database_id)

    def _call(self, method: str, path: str, database_id: str = "") -> dict[str, object]:
        target = self.path + path + (f"?db={quote(database_id, safe='')}" if database_id else "")
        status, body = self._exchange(method, target)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        told = self._told(answer)
        if status in {401, 403}:
            raise ServerError(f"refuses the API key ({status}{told})", subject=str(self), hint=_NO_KEY, retryable=False)
        if status == 404:
            raise _NotThereError(f"{method} {path} was answered with 404{told}", subject=str(self))
        if status >= 300:
            raise ServerError(
                f"{method} {path} was answered with {status}{told}",
                subject=str(self),
                hint="That server's log says more." if status >= 500 else None,
                retryable=status >= 500 or status in (408, 429),
            )
        if not isinstance(answer, dict):
            hint = "Is that the address of the server itself? Its pages are answered by every path."
            raise ServerError(
                f"{method} {path} was not answered with JSON", subject=str(self), hint=hint, retryable=False
            )
        if answer.get("success") is False:
            raise ServerError(f"{method} {path} failed{told}", subject=str(self))
        return answer

    def _exchange(self, method: str, target: str) -> tuple[int, bytes]:
        """The status code and at most `_MAX_ANSWER` bytes. Redirects are not followed: the key would go along."""
        make = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = make(self.host, self.port, timeout=self.timeout)
        key = self.api_key.get_secret_value()
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        with contextlib.closing(connection):
            self._connect(connection)
            try:
                connection.request(method, target, headers=headers)
                response = connection.getresponse()
                return response.status, response.read(_MAX_ANSWER)
            except TimeoutError:
                raise ServerError(
                    f"accepted the connection, but did not answer for {self.timeout:g} s",
                    subject=str(self),
                    hint="It may be busy or stuck; its log says more.",
                ) from None
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(
                    f"broke the connection off: {type(error).__name__}",
                    subject=str(self),
                    hint="Does it speak https where http is asked for?" if self.scheme == "http" else None,
                ) from None

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except (ConnectionRefusedError, socket.gaierror) as error:
            reason = "its name is unknown" if isinstance(error, socket.gaierror) else "nothing listens there"
            raise ServerDownError(
                f"is not there: {reason}", subject=str(self), hint="Start it, or correct the Airflow connection."
            ) from None
        except ssl.SSLError as error:
            raise ServerError(
                f"TLS failed: {error.reason or type(error).__name__}",
                subject=str(self),
                hint="Its certificate must be valid for that name; schema http is for a server without TLS.",
                retryable=False,
            ) from None
        except TimeoutError:
            raise ServerError(f"can't be reached: no answer for {self.timeout:g} s", subject=str(self)) from None
        except OSError as error:
            raise ServerError(f"can't be reached: {error.strerror or error}", subject=str(self)) from None

    def _told(self, answer: object) -> str:
        """``": "`` and what the server itself says of its failure, without our key, should it echo it."""
        words = answer.get("error") or answer.get("message") if isinstance(answer, dict) else None
        if not isinstance(words, str):
            return ""
        key = self.api_key.get_secret_value()
        return ": " + printable(words.replace(key, "***") if key else words, limit=200)


def _bracketed(host: str) -> str:
    """A bare IPv6 address as URLs have it."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


@dataclass(frozen=True)
class ServiceStatus:
    """`pending`: changes that were read from MySQL and are not yet written."""

    running: bool
    pending: int = 0

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.pending


@dataclass(frozen=True)
class Note:
    """`owner` has stopped `services`, which were running."""

    owner: str
    services: tuple[str, ...]
    since: str

    def save(self, replica: Path) -> None:
        write_durably(state_path(replica, NOTE_SUFFIX), json.dumps(self.__dict__).encode())


def read_note(replica: Path) -> Note | None:
    """What is stopped for a restore of `replica`; None when nothing is.

    :raises DucklingError: when the file can't be read.
    """
    path = state_path(replica, NOTE_SUFFIX)
    try:
        data = json.loads(read_state(path))
        services = tuple(name for name in SERVICES if name in data["services"])
        return Note(str(data["owner"]), services, str(data["since"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateFileError(
            f"the note of what was stopped can't be read: {error}",
            subject=str(path),
            hint="See that the Duckling server runs its sync, then delete that file.",
        ) from error


def _forget(replica: Path) -> None:
    state_path(replica, NOTE_SUFFIX).unlink(missing_ok=True)


def pause(
    server: NodeServerClient, database: Database, *, owner: str, wait: float = 300.0, control: Control | None = None
) -> tuple[str, ...]:
    """Stop what the server does to the replica and wait until it is idle.

    A server that is not there is idle, for a restore the best state of all. When this fails, what it stopped is started
    again. The folder of the replica must exist, and its hold must be `owner`'s.

    :param owner: the run that `resume` will be called for.
    :param wait: seconds to wait for it to become idle.
    :returns: those of `SERVICES` that `resume` will start.
    :raises BusyError: it is still busy after `wait` seconds.
    :raises ServerError: it refused, failed or did not answer.
    """
    control = control or Control()
    replica = database.replica
    deadline = time.monotonic() + wait
    try:
        running = [name for name in SERVICES if server.status(name, database.id).running]
    except ServerDownError as error:
        log.info("%s: nothing to stop", error.what)
        running = []
    else:
        log.info("%s: running for %s: %s", server, database.id, ", ".join(running) or "nothing")
    before = read_note(replica)
    # What a run left stopped that never came to its end is ours to start.
    services = _ordered([*running, *(before.services if before else ())])
    if services or before:
        Note(owner, services, datetime.now(timezone.utc).isoformat(timespec="seconds")).save(replica)
    try:
        _stop_all(server, database.id, deadline, control)
    except ServerDownError as error:
        log.info("%s: nothing to stop", error.what)
    except BaseException as error:
        _undo(server, database, owner, error)
        raise
    return services


def _stop_all(server: NodeServerClient, database_id: str, deadline: float, control: Control) -> None:
    for name in SERVICES:
        control.check()
        try:
            server.stop(name, database_id)
        except ServerDownError:
            raise
        except ServerError as error:
            if not error.retryable:
                raise
            # It answers only after its last change is written, which may take longer than we wait for an answer:
            # whether it has stopped is for its status to say.
            log.warning("stop %s: %s", name, error.what)
    while busy := {name: status for name in SERVICES if not (status := server.status(name, database_id)).is_idle}:
        shown = ", ".join(f"{name} ({s.pending} changes to write)" if s.pending else name for name, s in busy.items())
        if time.monotonic() >= deadline:
            raise BusyError(
                f"is still at work after it was told to stop: {shown}",
                holder=str(server),
                subject=str(server),
                hint="Its log says what it does; try again later, or stop its process.",
            )
        control.wait_for(f"{server} is still at work: {shown}", _POLL)


def _undo(server: NodeServerClient, database: Database, owner: str, reason: BaseException) -> None:
    try:
        started = resume(server, database, owner=owner)
    except DucklingError as error:
        log.warning("%s; what was stopped there stays stopped until the next restore's resume", error.what)
    else:
        if started:
            why = "stopped on request" if isinstance(reason, CancelledError) else "the pause failed"
            log.info("%s: started again, since %s: %s", server, why, ", ".join(started))


def resume(server: NodeServerClient, database: Database, *, owner: str) -> tuple[str, ...]:
    """Start again what `pause` stopped for `owner`, and nothing else; CDC first.

    :returns: what was started; what runs already, since the server was restarted, is not.
    :raises ServerDownError: it is not there, and there is something to start. Retry once it runs again.
    :raises ServerError: it refused, failed or did not answer; what could be started is.
    """
    replica = database.replica
    note = read_note(replica)
    if note is None or note.owner != owner:
        return ()
    started: list[str] = []
    failed: ServerError | None = None
    for name in reversed(note.services):
        try:
            if not server.status(name, database.id).running:
                server.start(name, database.id)
                started.append(name)
        except ServerDownError:
            raise
        except ServerError as error:
            log.error("start %s: %s", name, error.what)
            failed = failed or error
            continue
        # One by one: a retry must not start what a person has stopped since.
        note = replace(note, services=tuple(other for other in note.services if other != name))
        note.save(replica)
    if failed is not None:
        raise failed
    _forget(replica)
    return tuple(started)


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    there = set(names)
    return tuple(name for name in SERVICES if name in there)
