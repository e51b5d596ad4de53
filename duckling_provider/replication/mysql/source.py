"""The MySQL or MariaDB server that a replica mirrors: its address, connections to it, and where its binlog stands."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pydantic import SecretStr

from duckling_provider.base.errors import ConfigError, DucklingError
from duckling_provider.config.masking import MASK
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.tls import Tls, tls_of, unchecked

FIELD = "mysqlConnectionString"
_FORM = "expected mysql://user:password@host:port/database"
_PORT = 3306

_OPTIONS = {
    "sslmode": "ssl-mode",
    "tls": "ssl-mode",
    "ssl": "ssl-mode",
    "usessl": "ssl-mode",
    "sslca": "ssl-ca",
    "sslrootcert": "ssl-ca",
    "sslcert": "ssl-cert",
    "sslkey": "ssl-key",
    "socket": "socket",
    "unixsocket": "socket",
}
#: We always talk utf8mb4, and time zones don't matter to us.
_MEANINGLESS = frozenset({"charset", "characterset", "collation", "timezone", "servertimezone", "connectionlimit"})

#: Errors after which another attempt may succeed: no route, lost, shutdown, too many connections, deadlock, killed.
_RETRYABLE = frozenset(
    {1040, 1053, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1317, 1927, 2002, 2003, 2006, 2013, 2055, 3024, 3169, 4031}
)
#: Ways to log in by which the other side gets the password as it is; and pymysql's number for refusing one.
_CLEAR_TEXT = ("mysql_clear_password", "dialog")
_CLEAR_TEXT_ASKED = 2061
_HINTS = {
    1044: "Grant the user SELECT on the database",
    1045: "Check user and password in mysqlConnectionString: special characters must be percent-encoded",
    1049: "Check the database's name in mysqlConnectionString",
    1142: "Grant the user SELECT on the database",
    1227: "Grant the user REPLICATION SLAVE and REPLICATION CLIENT ON *.*",
    1698: "Check user and password in mysqlConnectionString: special characters must be percent-encoded",
    2003: "Check that the server runs and that host and port of mysqlConnectionString can be reached from here",
    _CLEAR_TEXT_ASKED: "Add ssl-mode=VERIFY_IDENTITY and ssl-ca to mysqlConnectionString; or give the user another "
    "way to log in, such as caching_sha2_password",
    2026: "Check ssl-mode and ssl-ca of mysqlConnectionString",
}


class SourceError(DucklingError):
    """The MySQL server can't be reached, refuses, or lacks what replication needs; `code` is MySQL's own number."""

    def __init__(
        self,
        cause: str,
        *,
        code: int = 0,
        operation: str | None = None,
        subject: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(cause, operation=operation, subject=subject, hint=hint, retryable=retryable)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Source:
    """One database on one server, and how to get there."""

    host: str
    user: str
    database: str
    port: int = _PORT
    password: SecretStr = field(default_factory=lambda: SecretStr(""))
    unix_socket: str | None = None
    tls: Tls = field(default_factory=Tls)
    #: Names of options in the connection string that mean nothing to us.
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, connection_string: SecretStr | str, *, subject: str) -> Source:
        """``mysql://user:password@host:port/database?ssl-mode=…&ssl-ca=…&ssl-cert=…&ssl-key=…&socket=…``.

        Every part is percent-encoded; an IPv6 address stands in brackets. Spellings of other clients are understood,
        unknown options are in `ignored`. A CA without a mode means VERIFY_CA.

        :param subject: the entry's id, for messages.
        :raises ConfigError: names the field and never quotes the text, which holds a password.
        """
        text = connection_string if isinstance(connection_string, str) else connection_string.get_secret_value()

        def fault(cause: str, hint: str | None = None) -> ConfigError:
            return ConfigError(cause, entry=subject, field=FIELD, hint=hint)

        if not text:
            raise fault("missing", f"Replication needs it: {_FORM}")
        encode = "special characters of the password must be percent-encoded: # is %23, / is %2F, ? is %3F, @ is %40"
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            # Without the cause: its text quotes what stands where the port should be.
            raise fault(f"has a wrong port, or {encode}") from None
        if url.scheme != "mysql" or not url.netloc:
            raise fault(_FORM)
        if url.fragment or "@" in url.path:
            raise fault(encode)
        options, ignored = _options(url.query)
        socket = options.get("socket")
        host, user, database = unquote(url.hostname or ""), unquote(url.username or ""), unquote(url.path[1:])
        if not host and not socket:
            raise fault(f"names no host; {_FORM}")
        if not user:
            raise fault(f"names no user; {_FORM}")
        if not database.strip("/"):
            raise fault(f"names no database; {_FORM}")
        if port == 0:
            raise fault("expected a port from 1 to 65535")
        return cls(
            host=host or "localhost",
            port=port or _PORT,
            user=user,
            password=SecretStr(unquote(url.password or "")),
            database=database,
            unix_socket=socket,
            tls=tls_of(options, fault),
            ignored=ignored,
        )

    @property
    def subject(self) -> str:
        """Who this is, for messages: ``mysql://host:port/database``."""
        return f"mysql://{self.host}:{self.port}/{self.database}"

    def settings(self) -> dict[str, Any]:
        """Arguments of ``pymysql.connect`` that say where and who; the password is among them.

        :raises SourceError: for TLS files that can't be used.
        """
        settings: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            # As bytes: pymysql would encode a text as Latin-1, and its failure to do so would quote the password.
            "password": self.password.get_secret_value().encode(),
            "charset": "utf8mb4",
            "connect_timeout": 10,
        }
        if self.unix_socket:
            settings["unix_socket"] = self.unix_socket
        elif self.tls.mode == "DISABLED":
            settings["ssl_disabled"] = True
        elif self.tls.mode != "PREFERRED":
            try:
                settings["ssl"] = self.tls.context()
            except OSError as error:
                raise SourceError(
                    f"the TLS files can't be used: {error}",
                    subject=self.subject,
                    hint="Check ssl-ca, ssl-cert and ssl-key of mysqlConnectionString",
                ) from error
        return settings

    def url(self) -> SecretStr:
        """The address for programs that take a URL: percent-encoded, without options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        password = quote(self.password.get_secret_value(), safe="")
        return SecretStr(
            f"mysql://{quote(self.user, safe='')}:{password}@{host}:{self.port}/{quote(self.database, safe='')}"
        )


def _options(query: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Known options by our names for them, and the names of the unknown ones."""
    known: dict[str, str] = {}
    ignored: list[str] = []
    # A '+' is a plus here, as it is in passwords and paths; parse_qsl would make it a space.
    for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        bare = re.sub("[-_]", "", name).lower()
        if bare in _OPTIONS:
            known[_OPTIONS[bare]] = value
        elif bare not in _MEANINGLESS:
            ignored.append(name)
    return known, tuple(ignored)


#: Errors of MySQL: the table was altered since the statement began; a column or the table does not exist (any more).
CHANGED = frozenset({1412, 1054, 1146, 1051})

# ---- connections -------------------------------------------------------------------------------------------

#: Zero dates stay readable and backslashes, quotes and CHARs mean the same everywhere. The server waits for a slow
#: reader for ten minutes instead of one: DuckDB's checkpoints may take that long.
_SESSION = "SET time_zone = '+00:00', sql_mode = '', net_write_timeout = 600, net_read_timeout = 600"


class _RefusedPlugin:
    """pymysql's handler of a way to log in that is not gone: any machine in between could ask for it."""

    def __init__(self, connection: Any) -> None:
        del connection

    def authenticate(self, packet: Any) -> Any:
        import pymysql.err

        del packet
        raise pymysql.err.OperationalError(
            _CLEAR_TEXT_ASKED, "the server asked for the password in clear text, and it is not certain who that is"
        )


@functools.cache
def _connection_class() -> Any:
    """pymysql's, but without the world's certificates where none is checked: to read them takes longer than all else of
    a connection, and a sync makes several.
    """
    import pymysql.connections

    class Connection(pymysql.connections.Connection):  # type: ignore[misc]
        def _create_ssl_ctx(self, options: Any) -> Any:
            # Without options the mode is PREFERRED: pymysql checks nothing.
            return unchecked() if not options else super()._create_ssl_ctx(options)

    return Connection


def connect(
    source: Source, *, cursor: Literal["list", "stream"] = "list", autocommit: bool = True, read_timeout: float = 600.0
) -> Any:
    """A pymysql connection to `source`: utf8mb4, UTC, zero dates readable; the caller closes it.

    :param cursor: "list" fetches results at once, "stream" leaves them on the server until they are read.
    :param read_timeout: seconds without a byte from the server after which it counts as lost.
    :raises SourceError: when it can't be had; later errors are pymysql's own (see `translated`).
    """
    import pymysql.cursors

    cursor_class = pymysql.cursors.SSCursor if cursor == "stream" else pymysql.cursors.Cursor
    settings = source.settings()
    is_safe = source.tls.mode.startswith("VERIFY") or source.unix_socket
    with translated(source, "connect"):
        return _connection_class()(
            **settings,
            auth_plugin_map={} if is_safe else dict.fromkeys(_CLEAR_TEXT, _RefusedPlugin),
            database=source.database,
            autocommit=autocommit,
            cursorclass=cursor_class,
            init_command=_SESSION,
            read_timeout=read_timeout,
            write_timeout=read_timeout,
        )


@contextlib.contextmanager
def translated(source: Source, operation: str) -> Iterator[None]:
    """Turn pymysql's errors inside the block into `SourceError`, retryable where it is a matter of network or load."""
    import pymysql.err

    try:
        yield
    except pymysql.err.Error as error:
        raise source_error(error, source, operation) from error
    except RuntimeError as error:
        # pymysql has no error of its own for it.
        if "LOAD_LOCAL" not in str(error):
            raise
        raise SourceError(
            "the server asked for a file of this machine (LOAD DATA LOCAL INFILE), which no statement of ours calls "
            "for; nothing was sent",
            operation=operation,
            subject=source.subject,
            hint="Find out what answers at that address before anything else is trusted",
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"it sent text that is not UTF-8: the bytes {error.object[:40].hex(' ')}",
            operation=operation,
            subject=source.subject,
            hint="Find the column that holds them and correct its values, or exclude the table.",
        ) from error
    except (OSError, EOFError) as error:
        raise SourceError(
            f"{type(error).__name__}: {error}", operation=operation, subject=source.subject, retryable=True
        ) from error


def source_error(error: Exception, source: Source, operation: str) -> SourceError:
    """`error` of pymysql as one of ours."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    password = source.password.get_secret_value()
    if len(password) > 2:
        text = text.replace(password, MASK)
    # It arrives as 2003, and stays wrong.
    wrong_certificate = "CERTIFICATE_VERIFY_FAILED" in text
    return SourceError(
        f"{text.rstrip('.')} (MySQL error {code})" if code else text,
        code=code,
        operation=operation,
        subject=source.subject,
        hint=_HINTS.get(2026 if wrong_certificate else code),
        # Without a number: the connection broke off in a way that pymysql has no word for.
        retryable=(code in _RETRYABLE or code == 0) and not wrong_certificate,
    )


# ---- the server --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MySqlServer:
    """What runs there.

    :param version: e.g. ``(8, 4, 3)``, ``(10, 11, 6)``.
    :param identity: of the binlog whose files and offsets a position names.
    :param has_gtid: transactions carry identifiers that outlive a change of server.
    :param folds_names: it takes names of databases and tables in lower case (``lower_case_table_names``).
    """

    kind: Literal["mysql", "mariadb"]
    version: tuple[int, ...]
    identity: str
    has_gtid: bool
    folds_names: bool = False

    def __str__(self) -> str:
        name = "MariaDB" if self.kind == "mariadb" else "MySQL"
        return f"{name} {'.'.join(map(str, self.version))}"


def query(connection: Any, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments or None)
        return [tuple(row) for row in cursor.fetchall()]


def variable(connection: Any, name: str) -> str | None:
    """The global value of a server variable, None where the server doesn't know it."""
    rows = query(connection, "SHOW GLOBAL VARIABLES WHERE Variable_name = %s", name)
    return str(rows[0][1]) if rows else None


def server_of(connection: Any) -> MySqlServer:
    """What `connection` leads to."""
    text = str(query(connection, "SELECT VERSION()")[0][0])
    # MariaDB behind old proxies calls itself 5.5.5-10.11.6-MariaDB.
    number = re.search(r"(\d+)\.(\d+)\.(\d+)", text.removeprefix("5.5.5-"))
    version = tuple(map(int, number.groups())) if number else (0,)
    folds = (variable(connection, "lower_case_table_names") or "0") != "0"
    if "mariadb" in text.lower():
        # It has nothing like MySQL's server_uuid that survives a move to another machine.
        return MySqlServer("mariadb", version, f"server-id-{variable(connection, 'server_id')}", True, folds)
    identity = variable(connection, "server_uuid") or f"server-id-{variable(connection, 'server_id')}"
    has_gtid = (variable(connection, "gtid_mode") or "OFF").upper() == "ON"
    return MySqlServer("mysql", version, identity, has_gtid, folds)


def status_statement(server: MySqlServer) -> str:
    """The statement that shows where the binlog stands."""
    is_new = server.kind == "mysql" and server.version >= (8, 2)
    return "SHOW BINARY LOG STATUS" if is_new else "SHOW MASTER STATUS"  # MariaDB knows no other before 10.5


def current_position(connection: Any) -> Position:
    """The end of the binlog now.

    :raises SourceError: when the server writes none.
    """
    server = server_of(connection)
    with connection.cursor() as cursor:
        cursor.execute(status_statement(server))
        names = [column[0].lower() for column in cursor.description or ()]
        row = cursor.fetchone()
    if row is None:
        raise SourceError("the server writes no binlog", hint="Set log_bin in its configuration and restart it")
    status = dict(zip(names, row, strict=True))
    file, offset = str(status["file"]), int(status["position"])
    if server.kind == "mariadb":
        gtid = mariadb_gtid(connection, file, offset)
    else:
        # The server breaks long sets into lines.
        gtid = re.sub(r"\s", "", str(status.get("executed_gtid_set") or ""))
    return Position(file, offset, gtid, server.identity)


def mariadb_gtid(connection: Any, file: str, offset: int) -> str:
    """The transactions up to there, as MariaDB writes them."""
    # Asked by position, since the variables gtid_binlog_pos and gtid_current_pos may be ahead of it by now.
    return str(query(connection, "SELECT BINLOG_GTID_POS(%s, %s)", file, offset)[0][0] or "")
