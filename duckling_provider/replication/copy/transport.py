"""Rows of a MySQL table as arrow tables, fast where possible and exact always.

The fast way is connectorx, which speaks MySQL's binary protocol in Rust and leaves Python's lock alone meanwhile. It
knows no TLS settings of ours and panics on what it did not expect, so every table can also be read by pymysql, several
times slower. Both send the same SELECT: `types.select_expression` has the server cast whatever doesn't travel well, and
`types.from_transport` makes the column's DuckDB type of it, from either.

Columns travel as ``c0``, ``c1``, …: no name of a user's has to survive three sets of quoting rules.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as percent

from duckling_provider.replication.copy.ranges import KeyRange, Pace
from duckling_provider.replication.model.families import CHOICES
from duckling_provider.replication.model.names import quote_mysql
from duckling_provider.replication.model.tables import Column, Table
from duckling_provider.replication.model.types import select_expression, transport_arrow
from duckling_provider.replication.mysql.source import Source, connect, query, variable

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

#: As in `source.connect`: both ways must read the same.
_SESSION = "SET time_zone = '+00:00', sql_mode = '', net_write_timeout = 600"


#: In the text of connectorx's error when its pool gets no connection.
_NO_CONNECTION = "timed out waiting for connection"


class _UnfitError(Exception):
    """connectorx could not read it; the text has no secrets."""


class Transport:
    """Reads one table. Thread-safe: each call has a connection of its own.

    :param pace: learns what rows of this table weigh.
    :param fast: whether to try connectorx, see `can_be_fast`.
    """

    def __init__(self, source: Source, table: Table, pace: Pace, *, fast: bool = True) -> None:
        self._source, self._table, self._pace = source, table, pace
        self._url = source.url().get_secret_value() if fast else None
        #: Whether connectorx found no way to the server, for which it waits half a minute each time.
        self.refused = False

    def read(self, key_range: KeyRange) -> pa.Table:
        """All rows of a range at once."""
        import pyarrow as pa

        sql = self._select(key_range.where)
        if (url := self._url) is not None:
            empty = self.empty()
            try:
                found = _as_text(_read_by_connectorx(url, self._source, sql, empty), empty.schema)
            except _UnfitError as error:
                log.warning("%s: read by pymysql, because connectorx says: %s", self._table.name, error)
                self._url = None
                self.refused = self.refused or _NO_CONNECTION in str(error)
            else:
                self._pace.learn(found.num_rows, found.nbytes)
                return found
        with contextlib.closing(connect(self._source, cursor="stream")) as connection:
            return pa.concat_tables([self.empty(), *self._stream(connection, sql)])

    def stream(self, connection: Any, where: str = "") -> Iterator[pa.Table]:
        """All rows that `where` holds for, in pieces; the caller that takes the pieces reads them.

        :param connection: with a streaming cursor; no other code may use it meanwhile.
        """
        return self._stream(connection, self._select(where))

    def _select(self, where: str) -> str:
        columns = ", ".join(f"{select_expression(column)} AS c{n}" for n, column in enumerate(self._table.columns))
        sql = f"SELECT {columns} FROM {quote_mysql(self._table.name)}"
        return f"{sql} WHERE {where}" if where else sql

    def _stream(self, connection: Any, sql: str) -> Iterator[pa.Table]:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            while rows := cursor.fetchmany(self._pace.rows):
                piece = self._as_arrow(rows)
                self._pace.learn(piece.num_rows, piece.nbytes)
                yield piece

    def _as_arrow(self, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
        import pyarrow as pa

        schema = self._schema()
        columns = zip(*rows, strict=True)
        return pa.table(
            [_array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
        )

    def empty(self) -> pa.Table:
        """No rows, with the columns that rows have."""
        table: pa.Table = self._schema().empty_table()
        return table

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(f"c{n}", transport_arrow(column)) for n, column in enumerate(self._table.columns)])


def holders(connection: Any, table: Table, value: bytes) -> list[Column]:
    """The columns of `table` that hold text of just these bytes, in the first row found; empty when there is none."""
    texts = [column for column in table.columns if column.charset or column.data_type in CHOICES]
    if not texts:
        return []
    tests = [f"HEX({quote_mysql(column.name)}) = '{value.hex().upper()}'" for column in texts]
    sql = f"SELECT {', '.join(tests)} FROM {quote_mysql(table.name)} WHERE {' OR '.join(tests)} LIMIT 1"
    return [column for row in query(connection, sql) for column, holds in zip(texts, row, strict=True) if holds]


def can_be_fast(source: Source, connection: Any) -> bool:
    """Whether connectorx may be used: it always talks TCP and never TLS, whatever its URL asks for.

    So not where TLS was asked for, and not where the server gives it to everybody else unless nothing leaves the host.

    :param connection: any of `source.connect`.
    """
    if source.unix_socket or source.tls.mode not in {"DISABLED", "PREFERRED"}:
        return False
    if _demands_tls(connection):
        return False
    if source.tls.mode == "DISABLED" or source.host == "localhost" or _is_loopback(source.host):
        return True
    encrypted = any(cipher for _, cipher in query(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'"))
    if encrypted:
        log.warning(
            "%s: the server offers TLS, which the fast way to read tables does not know: read several times slower. "
            "In a network that is to be trusted, ssl-mode=DISABLED in mysqlConnectionString allows the fast way",
            source.subject,
        )
    return not encrypted


def _demands_tls(connection: Any) -> bool:
    """Whether this user, or everyone, is turned away without TLS."""
    if (variable(connection, "require_secure_transport") or "OFF").upper() in {"ON", "1"}:
        return True
    with contextlib.suppress(Exception):  # a proxy may not know the statement
        shown = str(query(connection, "SHOW CREATE USER CURRENT_USER()")[0][0])
        return (
            re.search(r"\sREQUIRE\s+(SSL|X509|ISSUER|SUBJECT|CIPHER)\b", re.sub(r"'(?:[^'\\]|\\.|'')*'", "''", shown))
            is not None
        )
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_by_connectorx(url: str, source: Source, sql: str, empty: pa.Table) -> pa.Table:
    import connectorx

    try:
        found: pa.Table = connectorx.read_sql(
            url, sql, return_type="arrow", protocol="binary", pre_execution_query=[_SESSION]
        )
    except BaseException as error:
        # A panic of the Rust code is no Exception, so that Python's own handlers let it pass. This one is expected.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _UnfitError(_without_secrets(str(error), url, source)) from None
    return found if found.num_columns else empty


def _as_text(found: pa.Table, wanted: pa.Schema) -> pa.Table:
    """`found` with text where `wanted` has text: of an ENUM or SET of bytes come bytes, which DuckDB would write as
    escapes.
    """
    import pyarrow as pa

    for place, field in enumerate(wanted):
        if pa.types.is_large_string(field.type) and pa.types.is_large_binary(found.schema.field(place).type):
            try:
                found = found.set_column(place, field.name, found.column(place).cast(pa.large_string()))
            except pa.ArrowInvalid as error:
                raise _UnfitError(f"{field.name} is no text: {error}") from None
    return found


def _without_secrets(text: str, url: str, source: Source) -> str:
    password = source.password.get_secret_value()
    for secret in (url, password, percent(password, safe=""), percent(password)):
        if secret:
            text = text.replace(secret, "***")
    return text.splitlines()[0][:300] if text else "nothing"


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # pymysql makes of some expressions what it likes: a Decimal of a sum, bytes of a text.
        return pa.array([_fitting(value, kind) for value in values], type=kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value.decode() if isinstance(value, bytes) else str(value)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return value.encode() if isinstance(value, str) else bytes(value)
    if pa.types.is_integer(kind):
        return int(value)
    if pa.types.is_floating(kind):
        return float(value)
    return value
