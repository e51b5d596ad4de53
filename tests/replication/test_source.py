from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import time

import pytest
from pydantic import SecretStr

from duckling_provider.base.errors import ConfigError
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.availability import is_available
from duckling_provider.replication.mysql.preflight import PreflightError, examine, preflight, privileges
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import Source, SourceError, connect, current_position, query, server_of
from duckling_provider.replication.mysql.tls import Tls

SECRET = "p@ss:w/rd?#%1 ł"
ENCODED = "p%40ss%3Aw%2Frd%3F%23%251%20%C5%82"


def parse(text):
    return Source.parse(text, subject="production")


# ---- connection strings ------------------------------------------------------------------------------------


def test_every_part_is_percent_decoded():
    source = parse(f"mysql://us%40er:{ENCODED}@db.internal:3307/my%2Fshop")
    assert (source.host, source.port, source.user, source.database) == ("db.internal", 3307, "us@er", "my/shop")
    assert source.password.get_secret_value() == SECRET
    assert parse(source.url()) == source


def test_what_is_left_out_has_a_default():
    source = parse("mysql://root@db/shop")
    assert source == Source(host="db", user="root", database="shop", port=3306, password=SecretStr(""))
    assert source.tls == Tls(mode="PREFERRED")


def test_ipv6_addresses_stand_in_brackets():
    source = parse("mysql://root@[::1]:3307/shop")
    assert (source.host, source.port) == ("::1", 3307)
    assert parse(source.url()) == source


@pytest.mark.parametrize(
    "options,tls",
    [
        ("", Tls(mode="PREFERRED")),
        ("ssl-mode=DISABLED", Tls(mode="DISABLED")),
        ("ssl-mode=VERIFY_IDENTITY", Tls(mode="VERIFY_IDENTITY")),
        ("sslmode=require", Tls(mode="REQUIRED")),
        ("sslMode=VERIFY_CA&sslCa=/ca.pem", Tls(mode="VERIFY_CA", ca="/ca.pem")),
        ("sslmode=verify-full&sslrootcert=/a+b.pem", Tls(mode="VERIFY_IDENTITY", ca="/a+b.pem")),
        ("ssl=true", Tls(mode="REQUIRED")),
        ("ssl=false", Tls(mode="DISABLED")),
        ("ssl=true&ssl-ca=/ca.pem", Tls(mode="VERIFY_CA", ca="/ca.pem")),
        ("ssl-ca=%2Fca.pem", Tls(mode="VERIFY_CA", ca="/ca.pem")),
        ("ssl-cert=/c.pem&ssl-key=/k.pem", Tls(mode="REQUIRED", cert="/c.pem", key="/k.pem")),
    ],
)
def test_tls_options_in_the_spellings_of_several_clients(options, tls):
    assert parse(f"mysql://root@db/shop?{options}").tls == tls


def test_a_socket_needs_no_host():
    source = parse("mysql://root@/shop?socket=%2Frun%2Fmysqld%2Fmysqld.sock")
    assert source.unix_socket == "/run/mysqld/mysqld.sock"
    assert source.settings()["unix_socket"] == "/run/mysqld/mysqld.sock"


def test_unknown_options_are_told_and_ignored():
    assert parse("mysql://root@db/shop?charset=latin1&pool=5&ssl-mode=REQUIRED").ignored == ("pool",)


@pytest.mark.parametrize(
    "text,cause",
    [
        ("", "missing"),
        ("postgres://u:hunter2@db/shop", "expected mysql://"),
        ("mysql:u:hunter2@db/shop", "expected mysql://"),
        ("mysql://u:hunter2@/shop", "no host"),
        ("mysql://:hunter2@db/shop", "no user"),
        ("mysql://u:hunter2@db", "no database"),
        ("mysql://u:hunter2@db/", "no database"),
        ("mysql://u:hunter2@db:0/shop", "from 1 to 65535"),
        ("mysql://u:hunter2@db:port/shop", "wrong port"),
        ("mysql://u:hunter2@db:70000/shop", "wrong port"),
        ("mysql://u:hunter2/x@db/shop", "percent-encoded"),
        ("mysql://u:hunter2#x@db/shop", "percent-encoded"),
        ("mysql://u:hunter2[x@db/shop", "percent-encoded"),
        ("mysql://u:hunter2@db/shop?ssl-mode=hunter2", "VERIFY_IDENTITY"),
        ("mysql://u:hunter2@db/shop?ssl-cert=/c.pem", "go together"),
    ],
)
def test_faults_name_the_field_and_not_the_password(text, cause):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    error = caught.value
    assert (error.entry, error.field) == ("production", "mysqlConnectionString")
    assert cause in str(error)
    assert "hunter2" not in f"{error} {error!r} {error.__cause__!r} {error.__suppress_context__ or error.__context__!r}"


def test_the_password_is_in_no_text_of_a_source():
    source = parse(f"mysql://u:{ENCODED}@db/shop")
    assert not {SECRET, ENCODED} & {part for text in (repr(source), str(source), source.subject) for part in (text,)}
    assert "p@ss" not in repr(source)
    assert "p%40ss" not in repr(source)


# ---- connections -------------------------------------------------------------------------------------------


@pytest.mark.mysql
def test_a_connection_is_in_utc_and_reads_zero_dates(mariadb, database, source):
    mariadb.execute(
        [
            "CREATE TABLE t (d DATE, ts TIMESTAMP, s VARCHAR(20))",
            "INSERT t VALUES ('0000-00-00', '2024-01-01 00:00:00', 'ł🦆')",
        ],
        database,
    )
    with contextlib.closing(connect(source)) as connection:
        rows = query(connection, "SELECT CAST(d AS CHAR), CAST(ts AS CHAR), s FROM t")
    assert rows == [("0000-00-00", "2024-01-01 00:00:00", "ł🦆")]


@pytest.mark.mysql
def test_a_stream_is_read_row_by_row(mariadb, database, source):
    mariadb.execute("CREATE TABLE t AS SELECT seq FROM seq_1_to_100000", database)
    with contextlib.closing(connect(source, cursor="stream", autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT seq FROM t ORDER BY seq")
            assert [cursor.fetchone(), cursor.fetchone()] == [(1,), (2,)]
            assert cursor.rownumber == 2


@pytest.mark.mysql
@pytest.mark.parametrize(
    "change,code,retryable",
    [
        ({"password": SecretStr("wrong-password")}, 1045, False),
        ({"database": "absent"}, 1049, False),
        ({"port": 1}, 2003, True),
    ],
)
def test_refusals_say_what_to_do_and_whether_to_try_again(source, change, code, retryable):
    wrong = dataclasses.replace(source, **change)
    with pytest.raises(SourceError) as caught:
        connect(wrong)
    error = caught.value
    assert (error.code, error.retryable, error.operation) == (code, retryable, "connect")
    assert error.hint
    assert source.database in str(error) or code == 1049
    for text in (str(error), repr(error), repr(error.__cause__), repr(error.__context__)):
        assert "wrong-password" not in text
        assert "p@ss" not in text


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA, a certificate of it for 127.0.0.1, and another CA."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl") or pytest.fail("openssl is not installed")

    def run(*arguments):
        subprocess.run([openssl, *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "other"):
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ca}",
            "-keyout", f"{ca}.key", "-out", f"{ca}.pem")  # fmt: skip
    run("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=DNS:db.internal")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tls_server(new_server, certificates):
    with new_server(f"--ssl-cert={certificates / 'server.pem'}", f"--ssl-key={certificates / 'server.key'}") as server:
        yield server


@pytest.mark.mysql
@pytest.mark.parametrize(
    "options,outcome",
    [
        ({"ssl_mode": "DISABLED"}, ""),
        ({"ssl_mode": "PREFERRED"}, "encrypted"),
        ({"ssl_mode": "REQUIRED"}, "encrypted"),
        ({"ssl_mode": "VERIFY_CA", "ssl_ca": "ca.pem"}, "encrypted"),
        ({"ssl_ca": "other.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_mode": "VERIFY_CA"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_mode": "VERIFY_IDENTITY", "ssl_ca": "ca.pem"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_ca": "absent.pem"}, "can't be used"),
    ],
)
def test_tls_checks_what_its_mode_says(tls_server, certificates, options, outcome):
    if "ssl_ca" in options:
        options = options | {"ssl_ca": str(certificates / options["ssl_ca"])}
    source = parse(tls_server.url("mysql", **options))
    if outcome in {"", "encrypted"}:
        with contextlib.closing(connect(source)) as connection:
            cipher = query(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1]
        assert bool(cipher) is bool(outcome)
        return
    with pytest.raises(SourceError) as caught:
        connect(source)
    assert outcome in str(caught.value)
    assert "ssl-ca of mysqlConnectionString" in caught.value.hint.replace(", ssl-cert and ssl-key", "")
    assert not caught.value.retryable


@pytest.mark.mysql
def test_tls_that_is_demanded_is_not_done_without(release, new_server):
    # Newer servers make themselves a certificate unless they are told not to.
    with new_server("--skip-ssl" if release.is_mariadb else "--tls-version=") as server:
        with pytest.raises(SourceError) as caught:
            connect(parse(server.url("mysql", ssl_mode="REQUIRED")))
    assert caught.value.code == 2026
    assert not caught.value.retryable


# ---- preflight ---------------------------------------------------------------------------------------------


@pytest.mark.mysql
def test_a_server_that_is_fit_gives_no_findings(source):
    assert preflight(source) == []


@pytest.mark.mysql
@pytest.mark.parametrize(
    "setting,bad",
    [
        ("binlog_format", "MIXED"),
        ("binlog_row_image", "MINIMAL"),
        ("binlog_row_metadata", "MINIMAL"),
        pytest.param("expire_logs_days", "0.5", marks=pytest.mark.mariadb_only),
        pytest.param("binlog_expire_logs_seconds", "3600", marks=pytest.mark.mysql_only),
    ],
)
def test_every_setting_that_is_wrong_is_named_with_its_value_and_cure(mariadb, source, setting, bad):
    before = mariadb.execute(f"SELECT @@GLOBAL.{setting}")[0][0]
    quoted = bad if bad[0].isdigit() else f"'{bad}'"
    mariadb.execute(f"SET GLOBAL {setting} = {quoted}")
    try:
        with contextlib.closing(connect(source)) as connection:
            findings = examine(connection, source)
        if "expire" in setting:
            assert preflight(source) == findings
        else:
            with pytest.raises(PreflightError) as caught:
                preflight(source)
            assert f"{setting} is {bad}" in str(caught.value)
            assert f"SET GLOBAL {setting} = 'FULL'" in str(caught.value) or setting == "binlog_format"
    finally:
        mariadb.execute(f"SET GLOBAL {setting} = {before if setting == 'expire_logs_days' else repr(before)}")
    assert len(findings) == 1
    assert f"SET GLOBAL {findings[0].setting} = " in findings[0].cure


@pytest.mark.mysql
def test_all_faults_are_told_at_once(mariadb, source):
    mariadb.execute(["SET GLOBAL binlog_format = 'STATEMENT'", "SET GLOBAL binlog_row_image = 'NOBLOB'"])
    try:
        with pytest.raises(PreflightError) as caught:
            preflight(source)
    finally:
        mariadb.execute(["SET GLOBAL binlog_format = 'ROW'", "SET GLOBAL binlog_row_image = 'FULL'"])
    assert [finding.setting for finding in caught.value.findings] == ["binlog_format", "binlog_row_image"]
    assert not caught.value.retryable


@pytest.mark.mysql
def test_a_server_without_binlog_is_refused(new_server):
    with new_server("--skip-log-bin", "--server-id=0") as server:
        source = parse(server.url("mysql"))
        with pytest.raises(PreflightError) as caught:
            preflight(source)
        assert {finding.setting for finding in caught.value.findings} >= {"log_bin"}
        with contextlib.closing(connect(source)) as connection, pytest.raises(SourceError, match="no binlog"):
            current_position(connection)


@pytest.mark.mysql
@pytest.mark.parametrize(
    "granted,missing",
    [
        ("ALL ON *.*", []),
        ("SELECT, REPLICATION SLAVE, BINLOG MONITOR, LOCK TABLES ON *.*", []),
        ("REPLICATION SLAVE, BINLOG MONITOR, LOCK TABLES ON *.*", ["SELECT"]),
        ("SELECT, BINLOG MONITOR, LOCK TABLES ON *.*", ["REPLICATION SLAVE"]),
        ("SELECT, REPLICATION SLAVE, LOCK TABLES ON *.*", ["BINLOG MONITOR"]),
        ("SELECT, REPLICATION SLAVE, BINLOG MONITOR ON *.*", ["LOCK TABLES"]),
    ],
)
def test_missing_privileges_are_named_with_the_grant_that_cures_it(mariadb, database, granted, missing):
    mariadb.execute(
        ["CREATE USER `fe``w`@`127.0.0.1` IDENTIFIED BY 'few-password'", f"GRANT {granted} TO `fe``w`@`127.0.0.1`"]
    )
    try:
        # The right to use the database at all, which a connection to it needs.
        mariadb.execute(f"GRANT INSERT ON `{database}`.* TO `fe``w`@`127.0.0.1`")
        source = Source(
            host=mariadb.host, port=mariadb.port, user="fe`w", password=SecretStr("few-password"), database=database
        )
        with contextlib.closing(connect(source)) as connection:
            findings = examine(connection, source)
            assert [finding.setting for finding in findings] == [mariadb.says(name) for name in missing]
            for finding in findings:
                mariadb.execute(finding.cure.removeprefix("Run: "))
            if missing:
                assert findings[0].fatal is (missing != ["LOCK TABLES"])
        with contextlib.closing(connect(source)) as connection:
            assert examine(connection, source) == []
    finally:
        mariadb.execute("DROP USER `fe``w`@`127.0.0.1`")


def test_grants_are_read_as_both_servers_write_them():
    rows = [
        "GRANT SELECT (`a`, `b`), RELOAD, REPLICATION SLAVE ON *.* TO `u`@`%` WITH GRANT OPTION",
        "GRANT INSERT ON `sho_\\_x`.* TO `u`@`%`",
        "GRANT DELETE ON `other`.* TO `u`@`%`",
        "GRANT UPDATE ON `shop_x`.`t` TO `u`@`%`",
        "GRANT PROXY ON ''@'' TO 'u'@'%' WITH GRANT OPTION",
    ]
    assert privileges(rows, "shop_x") == ({"SELECT", "RELOAD", "REPLICATION SLAVE"}, {"INSERT"}, True)
    assert privileges([*rows, "GRANT `reader`@`%` TO `u`@`%`"], "shop_x")[2] is False


@pytest.mark.mysql
def test_tables_that_duckdb_cannot_tell_apart_are_refused(mariadb, database, source):
    mariadb.execute(["CREATE TABLE Orders (i INT)", "CREATE TABLE orders (i INT)"], database)
    with pytest.raises(PreflightError) as caught:
        preflight(source)
    assert "Orders and orders" in str(caught.value)
    assert preflight(source, wanted=lambda name: name != "Orders") == []


# ---- server, position, schema ------------------------------------------------------------------------------


@pytest.mark.mysql
def test_the_server_tells_what_it_is(mariadb, source):
    with contextlib.closing(connect(source)) as connection:
        server = server_of(connection)
    assert server.kind == ("mariadb" if mariadb.is_mariadb else "mysql")
    assert server.version >= ((10, 6) if mariadb.is_mariadb else (8, 0))
    assert server.has_gtid
    assert server.identity


@pytest.mark.mysql
def test_the_position_moves_with_each_transaction_and_is_available_until_it_is_purged(mariadb, database, source):
    with contextlib.closing(connect(source)) as connection:
        before = current_position(connection)
        mariadb.execute("CREATE TABLE t (i INT)", database)
        after = current_position(connection)
        assert before.order < after.order
        assert before.gtid != after.gtid
        assert after.server == server_of(connection).identity
        assert is_available(connection, before)
        assert is_available(connection, after)
        assert not is_available(connection, dataclasses.replace(after, offset=after.offset + 1_000_000))
        assert not is_available(connection, dataclasses.replace(after, file="mysql-bin.999999"))
        # Transactions have the same names everywhere, files and offsets have not.
        assert is_available(connection, dataclasses.replace(after, server="another"))
        assert not is_available(connection, dataclasses.replace(after, server="another", gtid=""))
        unknown = "0-1-999999" if mariadb.is_mariadb else f"{after.server}:1-999999"
        assert not is_available(connection, dataclasses.replace(before, gtid=unknown))
        mariadb.execute("FLUSH BINARY LOGS")
        assert is_available(connection, after)
        mariadb.execute("INSERT INTO t VALUES (1)", database)  # MySQL counts by transactions what is gone
        mariadb.execute("FLUSH BINARY LOGS")
        # A log that a connection of another test still reads is kept until the server notices that it has gone.
        deadline = time.monotonic() + 120
        while is_available(connection, after) and time.monotonic() < deadline:
            mariadb.execute(f"PURGE BINARY LOGS TO '{current_position(connection).file}'")
            time.sleep(0.1)
        assert not is_available(connection, after)


@pytest.mark.mysql
def test_a_position_of_before_a_reset_is_not_taken_for_one_of_after_it(new_server):
    with new_server() as server, contextlib.closing(connect(parse(server.url("mysql")))) as connection:
        server.execute(["CREATE DATABASE d", "CREATE TABLE d.t (i INT)", "INSERT d.t VALUES (1)"])
        old = current_position(connection)
        server.execute(["RESET MASTER", *["INSERT d.t VALUES (1)"] * 20])
        assert current_position(connection).order > (1, old.offset)
        assert not is_available(connection, dataclasses.replace(old, file=current_position(connection).file))
        assert is_available(connection, current_position(connection))
        assert isinstance(old, Position)


@pytest.mark.mysql
def test_tables_are_described_with_their_columns_and_keys(mariadb, database, source):
    mariadb.execute(
        [
            """CREATE TABLE `a ``b` (
                id INT UNSIGNED NOT NULL, part CHAR(3) CHARACTER SET latin1 NOT NULL, amount DECIMAL(12, 3),
                doc JSON, plain LONGTEXT, at DATETIME(3) DEFAULT current_timestamp(3), double_id INT AS (id * 2) STORED,
                PRIMARY KEY (part, id))""",
            "CREATE TABLE keyless (`select` INT, KEY (`select`))",
            "CREATE VIEW v AS SELECT 1",
            *["CREATE SEQUENCE s"] * mariadb.is_mariadb,
        ],
        database,
    )
    with contextlib.closing(connect(source)) as connection:
        tables = read_tables(connection, database)
    assert set(tables) == {"a `b", "keyless"}
    table = tables["a `b"]
    assert table.primary_key == ("part", "id")
    assert tables["keyless"].primary_key == ()
    columns = {column.name: column for column in table.columns}
    assert list(columns) == ["id", "part", "amount", "doc", "plain", "at", "double_id"]
    assert columns["id"].unsigned
    assert not columns["id"].nullable
    assert (columns["part"].charset, columns["part"].data_type) == ("latin1", "char")
    assert (columns["amount"].precision, columns["amount"].scale) == (12, 3)
    assert [name for name, column in columns.items() if column.json] == ["doc"]
    assert [name for name, column in columns.items() if column.generated] == ["double_id"]
    assert (columns["at"].precision, columns["at"].scale) == (3, None)


@pytest.mark.mysql
@pytest.mark.mysql_too
def test_a_user_who_must_use_tls_is_copied_by_it_also_on_this_machine(tls_server):
    from duckling_provider.replication.copy.transport import can_be_fast

    tls_server.execute(
        ["CREATE USER 'strict'@'%' IDENTIFIED BY 'p' REQUIRE SSL", "GRANT SELECT ON *.* TO 'strict'@'%'"]
    )
    strict = dataclasses.replace(parse(tls_server.url("mysql")), user="strict", password=SecretStr("p"))
    with contextlib.closing(connect(strict)) as connection:
        assert not can_be_fast(strict, connection)
    with contextlib.closing(connect(parse(tls_server.url("mysql")))) as connection:
        assert can_be_fast(parse(tls_server.url("mysql")), connection)
