"""Every type, read back from MySQL and from DuckDB after both ways there: the full copy and the binlog."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import re

import duckdb
import pyarrow as pa
import pytest
from fixtures.replica_file import instance

from duckling_provider.replication.binlog.readers import ZERO_DATE
from duckling_provider.replication.binlog.stream import BinlogStream, Unfollowed
from duckling_provider.replication.model import types
from duckling_provider.replication.model.names import quote, quote_mysql
from duckling_provider.replication.model.tables import Column, RowChange
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, current_position, query

pytestmark = pytest.mark.mysql


def rows_of(source, position, table):
    """The rows inserted into `table` after `position`, as the binlog tells them."""
    with BinlogStream(source, position) as stream:
        events = list(stream.read())
    assert not [event for event in events if isinstance(event, Unfollowed)]
    changes = [event for event in events if isinstance(event, RowChange) and event.table == table.name]
    assert all(change.columns == tuple(column.name for column in table.columns) for change in changes)
    return [change.after for change in changes]


def by_copy_with_pymysql(source, table, _):
    select = ", ".join(map(types.select_expression, table.columns))
    with contextlib.closing(connect(source, cursor="stream")) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {select} FROM {quote_mysql(table.name)} ORDER BY 1")
        found = list(cursor.fetchall())
    arrays = [
        pa.array(values, types.transport_arrow(column))
        for column, values in zip(table.columns, zip(*found, strict=True), strict=True)
    ]
    return into_duckdb(table, pa.table(arrays, [f"c{i}" for i in range(len(arrays))]), types.from_transport)


def by_copy_with_connectorx(source, table, _):
    import connectorx

    select = ", ".join(f"{types.select_expression(column)} AS c{i}" for i, column in enumerate(table.columns))
    query = f"SELECT {select} FROM {quote_mysql(table.name)} ORDER BY 1"
    data = connectorx.read_sql(source.url().get_secret_value(), query, return_type="arrow")
    return into_duckdb(table, data, types.from_transport)


def by_changes(source, table, position):
    lanes = zip(*rows_of(source, position, table), strict=True)
    arrays = []
    for column, lane in zip(table.columns, lanes, strict=True):
        decode = types.decode(column)
        values = [None if value is ZERO_DATE else decode(value) for value in lane]
        arrays.append(pa.array(values, types.change_arrow(column)))
    return into_duckdb(table, pa.table(arrays, [f"c{i}" for i in range(len(arrays))]), types.from_change)


WAYS = [by_copy_with_pymysql, by_copy_with_connectorx, by_changes]


def into_duckdb(table, data, expression):
    """The rows that a table of DuckDB holds when `data` has been put into it."""
    with instance().cursor() as connection:
        columns = ", ".join(f"{quote(column.name)} {types.duck_type(column)}" for column in table.columns)
        connection.execute(f"CREATE TEMP TABLE {quote(table.name)} ({columns})")
        connection.register("data", data)
        select = ", ".join(expression(column, f"c{i}") for i, column in enumerate(table.columns))
        connection.execute(f"INSERT INTO {quote(table.name)} SELECT {select} FROM data")
        return connection.table(quote(table.name)).order("1").fetchall()


@pytest.fixture
def mirror(mariadb, database, source):
    """``mirror(declaration, literals, …) -> (in MySQL, {way: in DuckDB})``: the values of a column so declared."""

    def run(declaration, literals, *, shown="CAST(v AS CHAR)", name="v", sql_mode=""):
        values = ", ".join(f"({i}, {literal})" for i, literal in enumerate(literals))
        with contextlib.closing(connect(source)) as connection:
            position = current_position(connection)
            mariadb.execute(
                [
                    f"SET sql_mode = '{sql_mode}'",
                    f"CREATE TABLE t (id INT PRIMARY KEY, {quote_mysql(name)} {declaration})",
                    f"INSERT INTO t VALUES {values}",
                ],
                database,
            )
            table = read_tables(connection, database)["t"]
            here = [row[0] for row in query(connection, f"SELECT {shown} FROM t ORDER BY id")]
        there = {}
        for way in WAYS:
            rows = way(source, table, position)
            assert [row[0] for row in rows] == list(range(len(literals)))
            there[way.__name__] = [row[1] for row in rows]
        return here, there

    return run


def as_text(value):
    """A value of DuckDB as MySQL shows it."""
    if isinstance(value, dt.timedelta):
        count = abs(value) // dt.timedelta(microseconds=1)
        seconds, fraction = divmod(count, 1_000_000)
        text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"
        return "-" + text if value < dt.timedelta() else text
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "microseconds")
    if isinstance(value, bytes):
        return value.hex().upper()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    return None if value is None else str(value)


def without_zero_date(text):
    """Rounded up, the last moment of all is a zero date in MySQL."""
    return None if str(text).startswith("0000-00-00") else text


INTEGERS = {"TINYINT": 8, "SMALLINT": 16, "MEDIUMINT": 24, "INT": 32, "BIGINT": 64}
MOMENTS = ["'1000-01-01'", "'1969-12-31 23:59:59.999999'", "'1970-01-01'", "'9999-12-31 23:59:59.999999'"]
INSTANTS = ["'1970-01-01 00:00:01'", "'1970-01-01 00:00:01.5'", "'2024-02-29 12:30:59.123456'"]
INSTANTS += ["'2038-01-19 03:14:07.999999'"]
TIMES = ["'838:59:59'", "'-838:59:59'", "'00:00:00'", "'-00:00:00.5'", "'-00:00:01'", "'23:59:59.999999'"]
TIMES += ["'-12:34:56.777216'", "'-12:34:56.56'", "'-00:00:00.000001'", "'34:22:33'", "'-01:00:00'", "'-00:59:59.9'"]
TEXTS = ["''", "'plain'", "'łódź 🦆'", "'it''s'", "'a\\0b'", "'line\\nline'", "'trailing '", "'\"%s\\\\'"]
LATIN1 = ["''", "'é ÿ ß'", "'€ž…'", "X'818D8F909D'", "X'7F'"]
BYTES = ["''", "X'00'", "X'FF00'", "X'00FF0000'", "X'20'", "'text'"]
UUIDS = ["'c232ab00-9414-11ec-b3c8-9f6bdeced846'", "'123e4567-e89b-42d3-a456-426655440000'"]
UUIDS += ["'017f22e2-79b0-7cc3-98c4-dc0c0c07398f'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]
UUIDS += ["'00000000-0000-0000-0000-000000000000'", "'1ec9414c-232a-6b00-b3c8-9e6bdeced800'"]
SHAPES = ["POINT(1 2)", "LINESTRING(0 0, 1 1, 2 0)", "POLYGON((0 0, 0 3, 3 3, 0 0))", "MULTIPOINT(1 1, 2 2)"]
SHAPES += ["GEOMETRYCOLLECTION(POINT(1 1), LINESTRING(2 2, 3 3))"]


def exact(*literals):
    return [*literals, "NULL"]


CASES = {
    **{
        f"{name} {sign}".strip(): (f"{name} {sign}", exact(low, low + 1, 0, 1, high - 1, high), {})
        for name, bits in INTEGERS.items()
        for sign, low, high in (
            ("", -(1 << bits - 1), (1 << bits - 1) - 1),
            ("UNSIGNED", 0, (1 << bits) - 1),
        )
    },
    "BOOLEAN": ("BOOLEAN", exact("TRUE", "FALSE", 2, -128), {}),
    "ZEROFILL": ("INT(5) ZEROFILL", exact(0, 42, 4294967295), {"shown": "CAST(v + 0 AS CHAR)"}),
    "DECIMAL": ("DECIMAL(10, 2)", exact("0", "-0.01", "99999999.99", "-99999999.99", "0.10"), {}),
    "DECIMAL without fraction": ("DECIMAL(20, 0)", exact("0", "-1", "99999999999999999999"), {}),
    "DECIMAL of fractions": ("DECIMAL(5, 5)", exact("0.00001", "-0.99999", "0"), {}),
    "DECIMAL(38, 10)": ("DECIMAL(38, 10)", exact("9" * 28 + "." + "9" * 10, "-" + "9" * 28 + ".0000000001", "0"), {}),
    "DECIMAL(38, 38)": ("DECIMAL(38, 38)", exact("0." + "9" * 38, "-0." + "0" * 37 + "1", "0"), {}),
    "DECIMAL(65, 30)": ("DECIMAL(65, 30)", exact("9" * 35 + "." + "9" * 30, "-0." + "0" * 29 + "1", "0", "-12.5"), {}),
    "DECIMAL(65, 0)": ("DECIMAL(65, 0)", exact("9" * 65, "-" + "9" * 65, "0"), {}),
    "BIT(1)": ("BIT(1)", exact(0, 1), {"shown": "CAST(CAST(v AS UNSIGNED) AS CHAR)"}),
    "BIT(9)": ("BIT(9)", exact(0, 1, 256, 511), {"shown": "CAST(CAST(v AS UNSIGNED) AS CHAR)"}),
    "BIT(64)": ("BIT(64)", exact(0, (1 << 64) - 1, 1 << 63), {"shown": "CAST(CAST(v AS UNSIGNED) AS CHAR)"}),
    "CHAR": ("CHAR(20)", exact(*TEXTS), {"shown": "v"}),
    "CHAR that is long": ("CHAR(255)", exact("REPEAT('🦆', 255)", "'x'"), {"shown": "v"}),
    "VARCHAR": ("VARCHAR(200)", exact(*TEXTS), {"shown": "v"}),
    "VARCHAR that is long": ("VARCHAR(5000)", exact("REPEAT('🦆', 5000)", "''"), {"shown": "v"}),
    "VARCHAR utf8mb4_bin": ("VARCHAR(20) COLLATE utf8mb4_bin", exact(*TEXTS), {"shown": "v"}),
    "VARCHAR utf8mb3": ("VARCHAR(20) CHARACTER SET utf8mb3", exact("'łódź'", "''"), {"shown": "v"}),
    "VARCHAR of a new collation": ("VARCHAR(20) COLLATE uca1400_ai_ci", exact(*TEXTS), {"shown": "v"}),
    "VARCHAR latin1": ("VARCHAR(20) CHARACTER SET latin1", exact(*LATIN1), {"shown": "v"}),
    "CHAR latin1_bin": ("CHAR(20) CHARACTER SET latin1 COLLATE latin1_bin", exact(*LATIN1), {"shown": "v"}),
    "TEXT latin1": ("TEXT CHARACTER SET latin1", exact(*LATIN1), {"shown": "v"}),
    "VARCHAR utf16": ("VARCHAR(20) CHARACTER SET utf16", exact("'łódź 🦆'", "''"), {"shown": "v"}),
    "VARCHAR ucs2": ("VARCHAR(20) CHARACTER SET ucs2", exact("'łódź'", "''"), {"shown": "v"}),
    "VARCHAR latin2": ("VARCHAR(20) CHARACTER SET latin2", exact("'łódź'", "''"), {"shown": "v"}),
    "VARCHAR cp1251": ("VARCHAR(20) CHARACTER SET cp1251", exact("'ключ'", "''"), {"shown": "v"}),
    "VARCHAR sjis": ("VARCHAR(20) CHARACTER SET sjis", exact("'日本'", "''"), {"shown": "v"}),
    **{name: (name, exact(*TEXTS), {"shown": "v"}) for name in ("TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT")},
    "TEXT utf8mb4_bin": ("TEXT COLLATE utf8mb4_bin", exact(*TEXTS), {"shown": "v"}),
    "LONGTEXT that is long": ("LONGTEXT", exact("REPEAT('🦆', 500000)"), {"shown": "v"}),
    "BINARY": ("BINARY(4)", exact(*BYTES), {"shown": "HEX(v)"}),
    "VARBINARY": ("VARBINARY(4)", exact(*BYTES), {"shown": "HEX(v)"}),
    "VARCHAR binary": ("VARCHAR(4) CHARACTER SET binary", exact(*BYTES), {"shown": "HEX(v)"}),
    **{name: (name, exact(*BYTES), {"shown": "HEX(v)"}) for name in ("TINYBLOB", "BLOB", "MEDIUMBLOB", "LONGBLOB")},
    "JSON": ("JSON", exact("'{\"a\": [1, 2.50, null], \"ł\":\"🦆\"}'", "'[]'", "'\"text\"'", "'1e9'"), {"shown": "v"}),
    "ENUM": ("ENUM('small','it''s, large','ł','')", exact("'small'", "'it''s, large'", "'ł'", "''"), {"shown": "v"}),
    "ENUM latin1": ("ENUM('é','x') CHARACTER SET latin1", exact("'é'", "'x'"), {"shown": "v"}),
    "ENUM that is invalid": ("ENUM('a','b')", exact("'a'", "'unknown'", "0"), {"shown": "v"}),
    "ENUM of many": (
        "ENUM(" + ",".join(f"'value {i}'" for i in range(300)) + ")",
        exact("'value 0'", "'value 299'"),
        {"shown": "v"},
    ),
    "SET": ("SET('b','a','it''s','ł')", exact("''", "'a'", "'a,b'", "'ł,it''s,a,b'"), {"shown": "v"}),
    "SET of 64": ("SET(" + ",".join(f"'{i}'" for i in range(64)) + ")", exact((1 << 64) - 1, 1 << 63), {"shown": "v"}),
    "DATE": ("DATE", exact("'1000-01-01'", "'1969-12-31'", "'2024-02-29'", "'9999-12-31'", "'0001-01-01'"), {}),
    **{f"DATETIME({n})": (f"DATETIME({n})", exact(*MOMENTS), {"shown": "CAST(CAST(v AS DATETIME(6)) AS CHAR)"})
       for n in (1, 2, 3, 4, 5, 6)},
    "DATETIME": ("DATETIME", exact("'1000-01-01'", "'9999-12-31 23:59:59'"), {"shown": "CONCAT(v, '.000000')"}),
    **{f"TIMESTAMP({n})": (f"TIMESTAMP({n}) NULL", exact(*INSTANTS), {"shown": "CAST(CAST(v AS DATETIME(6)) AS CHAR)"})
       for n in (0, 1, 3, 6)},
    **{f"TIME({n})": (f"TIME({n})", exact(*TIMES), {"shown": "CAST(CAST(v AS TIME(6)) AS CHAR)"}) for n in range(7)},
    "YEAR": ("YEAR", exact(1901, 2155, 0, 2000), {"shown": "CAST(v + 0 AS CHAR)"}),
    "GEOMETRY": ("GEOMETRY", exact(*(f"ST_GeomFromText('{shape}', 4326)" for shape in SHAPES)),
                 {"shown": "SUBSTR(HEX(v), 9)"}),
    "POINT": ("POINT", exact("POINT(1.5, -2.5)"), {"shown": "HEX(ST_AsWKB(v))"}),
    "STORED": ("VARCHAR(20) AS (CONCAT('n', id)) STORED", ["DEFAULT", "DEFAULT"], {"shown": "v"}),
    "VIRTUAL": ("VARCHAR(20) AS (CONCAT('n', id)) VIRTUAL", ["DEFAULT", "DEFAULT"], {"shown": "v"}),
    "UUID": ("UUID", exact(*UUIDS), {}),
    "INET6": ("INET6", exact("'::1'", "'::ffff:1.2.3.4'", "'2001:db8::ff00:42:8329'"), {}),
    "INET4": ("INET4", exact("'127.0.0.1'", "'255.255.255.255'"), {}),
}  # fmt: skip


#: Cases that a server of MySQL has no such type or collation for.
ONLY_MARIADB = {"UUID", "INET4", "INET6", "VARCHAR of a new collation", "DECIMAL(38, 38)"}


@pytest.mark.parametrize("case", CASES)
def test_both_sides_show_the_same(mirror, mariadb, case):
    if case in ONLY_MARIADB and not mariadb.is_mariadb:
        pytest.skip("MySQL has no such type")
    declaration, literals, options = CASES[case]
    here, there = mirror(declaration, literals, **options)
    here = [without_zero_date(text) for text in here]
    for way, values in there.items():
        assert [as_text(value) for value in values] == here, way


@pytest.mark.mysql_too
def test_all_types_fit_into_one_table(mariadb, database, source):
    # What the binlog says of columns is counted by kinds of types: one that is taken for another kind moves the rest.
    cases = [CASES[name] for name in CASES if "long" not in name and (mariadb.is_mariadb or name not in ONLY_MARIADB)]
    columns = ", ".join(f"c{i} {declaration}" for i, (declaration, _, _) in enumerate(cases))
    rows = [", ".join(str(literals[n % len(literals)]) for _, literals, _ in cases) for n in range(9)]
    with contextlib.closing(connect(source)) as connection:
        position = current_position(connection)
        mariadb.execute(f"CREATE TABLE t (id INT PRIMARY KEY, {columns})", database)
        mariadb.execute([f"INSERT INTO t VALUES ({n}, {row})" for n, row in enumerate(rows)], database)
        table = read_tables(connection, database)["t"]
        shown = [
            re.sub(r"\bv\b", f"c{i}", options.get("shown", "CAST(v AS CHAR)"))
            for i, (_, _, options) in enumerate(cases)
        ]
        here = [
            tuple(map(without_zero_date, row))
            for row in query(connection, f"SELECT id, {', '.join(shown)} FROM t ORDER BY id")
        ]
    for way in WAYS:
        there = way(source, table, position)
        assert [(row[0], *map(as_text, row[1:])) for row in there] == here, way


@pytest.mark.parametrize("declaration", ["FLOAT", "DOUBLE", "FLOAT(7, 3)", "DOUBLE(10, 2)", "FLOAT UNSIGNED"])
def test_floating_point_numbers_keep_every_bit(mirror, declaration):
    literals = exact("3.14", "0", "0.1", "16777217", "1e-30", "1.17549435e-38")
    literals += ["3.4028234e38", "-123456.789"] if declaration in {"FLOAT", "DOUBLE"} else ["1234.5678"]
    if declaration == "DOUBLE":
        literals += ["1.7976931348623157e308", "2.2250738585072014e-308", "0.1 + 0.2e0", "1 / 3e0"]
    # The server makes text of a DOUBLE that reads back as the same one; of a FLOAT it doesn't.
    here, there = mirror(declaration, literals, shown="v + 0e0")
    for way, values in there.items():
        assert values == here, way


@pytest.mark.parametrize(
    "declaration,literals",
    [
        ("DATE", ["'0000-00-00'", "'2024-00-00'", "'2024-00-15'", "'2024-05-00'", "'0000-05-05'", "'2023-02-31'"]),
        ("DATETIME(6)", ["'0000-00-00'", "'2024-00-15'", "'2024-05-00 12:00:00'", "'0000-05-05 01:02:03.123456'"]),
        ("DATETIME", ["'0000-00-00'", "'0000-00-00 12:30:00'", "'2023-04-31'"]),
        ("TIMESTAMP(6) NULL", ["'0000-00-00'"]),
        ("TIMESTAMP NULL", ["0"]),
    ],
)
def test_dates_that_no_calendar_has_are_null(mirror, declaration, literals):
    here, there = mirror(declaration, [*literals, "'2024-02-29'", "NULL"], sql_mode="ALLOW_INVALID_DATES")
    assert [value is None for value in here] == [False] * len(literals) + [False, True]
    for way, values in there.items():
        assert [value is None for value in values] == [True] * len(literals) + [False, True], way


def test_zero_dates_can_be_counted_on_the_way(mariadb, database, source):
    declared = ["DATE", "DATETIME", "DATETIME(6)", "TIMESTAMP(6) NULL", "INT"]
    mariadb.execute(
        [
            "CREATE TABLE t (" + ", ".join(f"c{i} {kind}" for i, kind in enumerate(declared)) + ")",
            "INSERT t VALUES (0, 0, 0, 0, 0), (NULL, NULL, NULL, NULL, NULL)",
            "INSERT t VALUES ('2024-01-01', '2024-01-01', '2024-01-01', '2024-01-01', 1)",
            "INSERT t VALUES ('2024-00-01', '2024-00-01', '2024-00-01', NULL, 1)",
        ],
        database,
    )
    with contextlib.closing(connect(source)) as connection, connection.cursor() as cursor:
        table = read_tables(connection, database)["t"]
        cursor.execute(f"SELECT {', '.join(map(types.select_expression, table.columns))} FROM t")
        found = cursor.fetchall()
    counts = []
    for column, values in zip(table.columns, zip(*found, strict=True), strict=True):
        data = pa.table([pa.array(values, types.transport_arrow(column))], ["x"])
        zero = types.zero_date(column, "x")
        counts.append(zero and duckdb.from_arrow(data).aggregate(f"count(*) FILTER ({zero})").fetchall()[0][0])
    assert counts == [2, 2, 2, 1, None]


@pytest.mark.parametrize("name", ['"', "a b", "`", "ключ", "select", "it's", "a,b", "{}", "{v}", "%s", "c0"])
def test_columns_may_have_any_name(mirror, name):
    here, there = mirror("DATETIME", ["'2024-01-01'", "0", "NULL"], name=name, shown=quote_mysql(name))
    assert there == {way.__name__: [here[0], None, None] for way in WAYS}


def test_time_can_be_compared_and_added():
    column = Column("v", "time", "time(6)", precision=6)
    values = [-3020399000000, -1, 0, 1, 86399999999, 86400000000, 2592000000000, 3020399000000]
    with duckdb.connect() as connection:
        connection.register("data", pa.table({"v": pa.array(values, types.change_arrow(column))}))
        expression = types.from_change(column, "v")
        sql = f"SELECT v, {expression} AS t FROM data ORDER BY t"
        assert [row[0] for row in connection.execute(sql).fetchall()] == values
        sql = f"SELECT TIMESTAMP '2024-01-01' + {expression} FROM data ORDER BY v DESC LIMIT 1"
        assert connection.execute(sql).fetchall() == [(dt.datetime(2024, 2, 4, 22, 59, 59),)]  # noqa: DTZ001


def test_what_is_not_mirrored_exactly_is_reported():
    big = Column("amount", "decimal", "decimal(65,30)", precision=65, scale=30)
    assert types.duck_type(big) == "VARCHAR"
    assert "amount: DECIMAL(65,30)" in types.report(big)
    assert "SRID" in types.report(Column("p", "point", "point"))
    assert "not known" in types.report(Column("x", "mystery", "mystery(3)"))
    assert types.report(Column("i", "int", "int(11)")) is None


def test_the_lists_of_enum_and_set_are_read_as_they_are_written():
    column = Column("e", "enum", r"enum('a','it''s','back\\slash','line\nbreak','comma,','')")
    assert types.enum_values(column) == ["a", "it's", "back\\slash", "line\nbreak", "comma,", ""]


def test_binary_json_becomes_the_text_that_mysql_shows():
    value = {b"a": [1, -2.5, None, True], b"b": {b"\xc5\x82": b"\xf0\x9f\xa6\x86"}, b"c": decimal.Decimal("1.50")}
    assert types.json_text(value) == '{"a": [1, -2.5, null, true], "b": {"ł": "🦆"}, "c": 1.50}'
    assert types.json_text([1e20, 1e-7, 1.0]) == "[1e20, 1e-7, 1.0]"
    assert types.json_text("[1]") == "[1]"
