"""A real MariaDB for the tests of replication: private, on a free loopback port; or the server of MYSQL_TEST_URL."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

START_SECONDS = 120.0

#: Every character that a URL wants percent-encoded, and one that is not Latin-1.
_PASSWORD = "p@ss:w/rd?#%1 ł"
_USER = "duckling"


@dataclass(frozen=True)
class MariaDb:
    """A running server: the product connects by `url`, which has few rights, the test itself by `connect` as root.

    For the test's own connections ``sql_mode`` is empty: they can write zero dates.
    """

    host: str
    port: int
    user: str
    password: str
    admin_user: str
    admin_password: str

    def url(self, database: str = "", **options: str) -> str:
        """The ``mysqlConnectionString`` for `database`; options' names with ``_`` for ``-``."""
        query = "&".join(f"{name.replace('_', '-')}={quote(value, safe='')}" for name, value in options.items())
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"mysql://{credentials}@{self.host}:{self.port}/{quote(database, safe='')}" + ("?" + query) * bool(query)

    def connect(self, database: str | None = None, **settings: Any) -> Any:
        """A pymysql connection as root in UTC; the caller closes it."""
        import pymysql

        defaults: dict[str, Any] = {"autocommit": True, "charset": "utf8mb4", "sql_mode": "", "connect_timeout": 10}
        return pymysql.connect(
            host=self.host,
            port=self.port,
            # Half of the time that connecting takes goes into reading the certificates of the world.
            ssl_disabled=self.host == "127.0.0.1",
            user=self.admin_user,
            password=self.admin_password.encode(),
            database=database,
            init_command="SET time_zone = '+00:00'",
            **(defaults | settings),
        )

    def execute(self, sql: str | Sequence[str], database: str | None = None) -> tuple[Any, ...]:
        """Run one statement, or several in one session, as root; the rows of the last one."""
        rows: tuple[Any, ...] = ()
        with contextlib.closing(self.connect(database)) as connection, connection.cursor() as cursor:
            for statement in [sql] if isinstance(sql, str) else sql:
                cursor.execute(statement)
                rows = tuple(cursor.fetchall())
        return rows

    @property
    def is_mariadb(self) -> bool:
        """False for the MySQL that MYSQL_TEST_URL may lead to."""
        return "mariadb" in str(self.execute("SELECT VERSION()")[0][0]).lower()

    def create_database(self, charset: str = "utf8mb4") -> str:
        """The name of a fresh, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE `{name}` CHARACTER SET {charset}")
        return name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(*names: str) -> str:
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found:
            return found
    pytest.fail(
        f"{names[0]} is not installed: apt-get install mariadb-server-core mariadb-client-core, or set MYSQL_TEST_URL"
    )


def _die_with_parent() -> None:
    """In the child: a server must not outlive a test run that was killed (prctl's PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def _private_server(*options: str) -> Iterator[MariaDb]:
    """A new MariaDB with an empty data folder until the block ends; `options` come last on its command line."""
    # Not pytest's folder: the path of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="duckling-mariadb-") as folder:
        home = Path(folder)
        data, log, sock, port = home / "data", home / "log", home / "sock", _free_port()
        as_root = ["--user=root"] if os.geteuid() == 0 else []
        install = [_program("mariadb-install-db", "mysql_install_db"), "--no-defaults", f"--datadir={data}", *as_root]
        install += [f"--tmpdir={home}"]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        # Servers that share /tmp sometimes take each other's temporary tables for their own; so do their installers.
        environ = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(install, capture_output=True, text=True, timeout=START_SECONDS, check=False, env=environ)
        if done.returncode:
            pytest.fail(f"mariadb-install-db failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        command = [_program("mariadbd", "mysqld"), "--no-defaults", f"--datadir={data}", *as_root]
        command += [f"--socket={sock}", f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={home / 'pid'}"]
        command += [f"--tmpdir={home}"]
        command += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0"]
        command += ["--log-bin=mysql-bin", "--binlog-format=ROW", "--binlog-row-image=FULL", "--server-id=4711"]
        command += ["--binlog-row-metadata=FULL", "--character-set-server=utf8mb4", "--skip-name-resolve"]
        # Somewhere else than UTC: who takes the server's zone for granted is found out.
        command += ["--default-time-zone=+03:00", "--max-connections=200", "--max-allowed-packet=64M", *options]
        with log.open("wb") as output:
            # A group of its own: Ctrl-C at the terminal is for pytest, which then ends the server.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls nothing that could hold a lock
            )
        try:
            server = MariaDb("127.0.0.1", port, _USER, _PASSWORD, "root", "")
            _create_user(server, sock, process, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _create_user(server: MariaDb, sock: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers, then let root in by TCP and create the user of `server.url`."""
    import pymysql

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connection = pymysql.connect(unix_socket=str(sock), user="root", charset="utf8mb4")
            break
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"mariadbd did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("CREATE USER IF NOT EXISTS 'root'@'127.0.0.1' IDENTIFIED BY ''")
        cursor.execute("GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION")
        cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (server.user, server.password))
        cursor.execute(
            "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT, LOCK TABLES, RELOAD ON *.* TO %s@'%%'", (server.user,)
        )


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """One server for the session; each test takes a database of its own (`database`)."""
    given = os.environ.get("MYSQL_TEST_URL")
    if given:
        url = urlsplit(given)
        user, password = unquote(url.username or "root"), unquote(url.password or "")
        yield MariaDb(url.hostname or "127.0.0.1", url.port or 3306, user, password, user, password)
        return
    with _private_server() as server:
        yield server


@pytest.fixture(scope="session")
def new_server() -> Callable[..., contextlib.AbstractContextManager[MariaDb]]:
    """``with new_server("--option=…") as server:`` one more, for tests that can't share theirs; takes some seconds."""
    return _private_server


@pytest.fixture
def database(mariadb: MariaDb) -> Iterator[str]:
    """The name of a fresh database."""
    name = mariadb.create_database()
    yield name
    mariadb.execute(f"DROP DATABASE IF EXISTS `{name}`")


@pytest.fixture
def source(mariadb: MariaDb, database: str) -> Any:
    """`database` as the product is told of it."""
    from duckling_provider.replication.mysql.source import Source

    return Source.parse(mariadb.url(database), subject="production")
