"""databases.json and the environment: every rule with the message a person gets to read. Real files, no doubles."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from fixtures.any_text import any_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from duckling_provider.base.errors import ConfigError, NotFoundError
from duckling_provider.config.databases import Database, Installation, load
from duckling_provider.config.editing import add_entries, change_s3
from duckling_provider.config.entry import Entry
from duckling_provider.config.environment import Settings
from duckling_provider.config.fields import ANY_STRING, Shape, field_names, secret_names
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.masking import mask
from duckling_provider.config.s3 import S3Settings

KEY = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789ABCDEF"
SECRET = "wJalrXUtnFEMI-K7MDENG"
PASSWORD = "correct/h@rse"
S3: dict[str, Any] = {
    "enabled": True,
    "bucket": "backups",
    "region": "eu-west-1",
    "accessKeyId": "AKIDEXAMPLE",
    "secretAccessKey": SECRET,
}
ENTRY: dict[str, Any] = {
    "id": "production",
    "name": "Production",
    "mysqlConnectionString": "mysql://duck:correct%2Fh%40rse@db.internal:3306/shop?ssl=true",
    "duckdbPath": "data/production.db",
}


MASKED_URL = "mysql://duck:***@db.internal:3306/shop?ssl=true"
WRITERS = "writer: expected duckling or duckling-server"


class Site:
    """An installation in a temporary folder, whose databases.json is written by the test."""

    def __init__(self, root: Path) -> None:
        self.data = root / "data"
        self.data.mkdir()
        self.file = self.data / "databases.json"

    def load(self, content: Any, **environ: str) -> Installation:
        if isinstance(content, bytes):
            self.file.write_bytes(content)
        else:
            self.file.write_text(content if isinstance(content, str) else json.dumps(content))
        self.file.chmod(0o600)
        return load({"DATA_PATH": str(self.data), **environ})

    def s3(self, **s3: Any) -> Installation:
        return self.load([{**ENTRY, "s3": {**S3, **s3}}])

    def problems(self, content: Any) -> list[str]:
        installation = self.load(content)
        return [str(problem) for problem in installation.problems]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


# ---- what a good file becomes -------------------------------------------------------------------------------------


def test_a_minimal_entry_gets_every_default_of_the_contract(site: Site) -> None:
    installation = site.load([{**ENTRY, "s3": S3}])
    assert installation.problems == ()
    assert installation.warnings == ()
    database = installation.database("production")
    assert (database.id, database.name, database.duckdb_path) == ("production", "Production", "data/production.db")
    assert database.replica == site.data / "production.db"
    assert database.backup_dir == site.data / "backups" / "production"
    assert (database.interval_hours, database.local_retention_days, database.auto_backup) == (24.0, 7.0, True)
    assert (database.queue, database.created_at, database.updated_at) == (None, None, None)
    assert (database.writer, database.writer_conn_id) == ("duckling", "duckling_default")
    assert (database.include_tables, database.exclude_tables) == ((), ())
    assert (database.on_position_lost, database.storage_version) == ("fail", "v1.5.0")
    s3 = database.s3
    assert s3 is not None
    assert (s3.endpoint, s3.force_path_style, s3.path_prefix) == (None, False, "production/")
    assert (s3.encryption, s3.kms_key_id, s3.encryption_key) == ("none", None, None)
    assert (s3.backup_interval_hours, s3.backup_retention_days, s3.verify) == (0.0, 0.0, None)
    assert (s3.part_size, s3.max_parts, s3.max_concurrency) == (8 * 1024 * 1024, 10_000, 16)
    assert (s3.aws_conn_id, s3.storage_class, dict(s3.tags)) == (None, None, {})
    assert s3.secret_access_key is not None
    assert s3.secret_access_key.get_secret_value() == SECRET


def test_every_field_of_the_file_arrives(site: Site) -> None:
    s3 = {
        **S3,
        "endpoint": "https://minio.example.org:9000/",
        "forcePathStyle": True,
        "pathPrefix": "nightly/prod/",
        "encryption": "client-aes256",
        "encryptionKey": KEY,
        "s3BackupIntervalHours": 6,
        "s3BackupRetentionDays": 30.5,
        "storageClass": "STANDARD_IA",
        "tags": {"team": "data platform"},
        "verify": "head",
        "partSizeMiB": 64,
        "maxParts": 1000,
        "maxConcurrency": 2,
    }
    entry = {**ENTRY, "queue": "host-a", "createdAt": "2025-03-01T14:32:11.482Z", "updatedAt": "2025-03-02", "s3": s3}
    installation = site.load([entry])
    assert installation.problems == ()
    assert installation.warnings == ()
    database = installation.databases[0]
    assert (database.queue, database.created_at, database.updated_at) == (
        "host-a",
        "2025-03-01T14:32:11.482Z",
        "2025-03-02",
    )
    assert database.interval_hours == 6.0
    got = database.s3
    assert got is not None
    assert got.endpoint == "https://minio.example.org:9000"
    assert got.force_path_style is True
    assert got.path_prefix == "nightly/prod/"
    assert got.encryption == "client-aes256"
    assert got.encryption_key == EncryptionKey.parse(KEY)
    assert (got.backup_retention_days, got.storage_class, got.verify) == (30.5, "STANDARD_IA", "head")
    assert dict(got.tags) == {"team": "data platform"}
    assert (got.part_size, got.max_parts, got.max_concurrency) == (64 * 1024 * 1024, 1000, 2)


def test_the_fields_of_the_replication_arrive(site: Site) -> None:
    given = {
        "writer": "duckling-server",
        "writerConnId": "the_server",
        "includeTables": ["orders", "Kunden 2"],
        "excludeTables": ["sessions"],
        "onPositionLost": "resync",
        "maxSyncYields": 3,
        "validateIntervalDays": 0.5,
        "storageVersion": "v1.4.0",
    }
    installation = site.load([{**ENTRY, **given}])
    assert (installation.problems, installation.warnings) == ((), ())
    database = installation.databases[0]
    assert (database.writer, database.writer_conn_id) == ("duckling-server", "the_server")
    assert (database.include_tables, database.exclude_tables) == (("orders", "Kunden 2"), ("sessions",))
    assert (database.on_position_lost, database.storage_version) == ("resync", "v1.4.0")
    assert database.max_sync_yields == 3
    assert database.validate_interval_days == 0.5
    nulls = site.load([{**ENTRY, **dict.fromkeys(given)}])
    assert nulls.databases[0].masked() == {**ENTRY, "mysqlConnectionString": MASKED_URL, **dict.fromkeys(given)}
    assert nulls.databases[0].writer == "duckling"


@pytest.mark.parametrize(
    ("given", "mirrored"),
    [
        ({}, ["a", "b", "c"]),
        ({"includeTables": ["a", "b"]}, ["a"]),
        ({"excludeTables": ["a"]}, ["c"]),
        ({"includeTables": ["a", "c"], "excludeTables": ["a"]}, ["c"]),
        ({"includeTables": [], "excludeTables": []}, ["a", "c"]),
    ],
)
def test_tables_are_chosen_by_both_lists_and_the_environment(
    site: Site, given: dict[str, Any], mirrored: list[str]
) -> None:
    excluded = "b" if given else ""
    database = site.load([{**ENTRY, **given}], EXCLUDED_TABLES=excluded).databases[0]
    assert [table for table in "abc" if database.mirrors(table)] == mirrored


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"writer": "duckling_server"}, WRITERS + ', got "duckling_server". Did you mean duckling-server?'),
        ({"writer": PASSWORD}, WRITERS + ", got a string of 13 characters"),
        ({"writer": True}, "writer: expected a string, got true or false"),
        ({"writerConnId": " x"}, "writerConnId: white space at its ends"),
        ({"includeTables": "a,b"}, "includeTables: expected a list, got a string"),
        ({"excludeTables": {"a": 1}}, "excludeTables: expected a list, got an object"),
        ({"includeTables": ["a", 7]}, "includeTables.1: expected a string, got a number"),
        ({"includeTables": ["a", ""]}, "includeTables.1: is empty"),
        ({"excludeTables": ["a "]}, "excludeTables.0: white space at its ends"),
        ({"onPositionLost": "ask"}, "onPositionLost: expected resync or fail, got a string of 3 characters"),
        ({"maxSyncYields": -1}, "maxSyncYields: expected a whole number from 0 to 10000"),
        ({"maxSyncYields": "3"}, "maxSyncYields: expected a whole number, got a string"),
        ({"localBackupsMaxBytes": -5}, "localBackupsMaxBytes: expected a whole number from 0 on"),
        (
            {"drillIntervalDays": 1e-7},
            "drillIntervalDays: expected 0 (by hand only) or at least 0.0417, an hour",
        ),
        ({"storageVersion": "1.5.0"}, "storageVersion: expected a DuckDB version such as v1.5.0"),
        ({"storageVersion": "v1.5.0'"}, "storageVersion: expected a DuckDB version such as v1.5.0"),
        ({"storageVersion": ""}, "storageVersion: expected a DuckDB version such as v1.5.0"),
    ],
)
def test_a_wrong_field_of_the_replication_is_named(site: Site, given: dict[str, Any], message: str) -> None:
    assert site.problems([{**ENTRY, **given}]) == [f"production: {message}"]


def test_what_contradicts_itself_in_the_replication_is_worth_a_warning(site: Site) -> None:
    given = {"writerConnId": "the_server", "includeTables": ["a", "b"], "excludeTables": ["b"]}
    assert site.load([{**ENTRY, **given}]).warnings == (
        'production: writerConnId: not used: writer is "duckling", not "duckling-server"',
        'production: excludeTables: "b" is in includeTables too, and is left out',
    )


def test_null_means_absent_in_every_optional_field(site: Site) -> None:
    optional = ("endpoint", "forcePathStyle", "pathPrefix", "encryption", "kmsKeyId", "encryptionKey")
    optional += ("s3BackupIntervalHours", "s3BackupRetentionDays", "awsConnId", "storageClass", "tags", "verify")
    installation = site.s3(**dict.fromkeys((*optional, "partSizeMiB", "maxParts", "maxConcurrency")))
    assert installation.problems == ()
    assert installation.databases[0].s3 == site.s3().databases[0].s3


def test_an_empty_endpoint_means_aws_and_an_empty_prefix_the_default(site: Site) -> None:
    s3 = site.s3(endpoint="", pathPrefix="").databases[0].s3
    assert s3 is not None
    assert (s3.endpoint, s3.path_prefix) == (None, "production/")


@pytest.mark.parametrize("s3", [None, {"enabled": False}, {"enabled": False, "encryption": "later", "bucket": 7}])
def test_without_s3_switched_on_nothing_of_it_is_demanded(site: Site, s3: Any) -> None:
    installation = site.load([{**ENTRY, "s3": s3}])
    assert installation.problems == ()
    assert installation.databases[0].s3 is None


def test_the_schedule_is_the_databases_own_when_s3_is_on_and_the_environments_otherwise(site: Site) -> None:
    entries = [
        {**ENTRY, "id": "own", "duckdbPath": "data/1.db", "s3": {**S3, "s3BackupIntervalHours": 0.5}},
        {**ENTRY, "id": "zero", "duckdbPath": "data/2.db", "s3": {**S3, "s3BackupIntervalHours": 0}},
        {**ENTRY, "id": "off", "duckdbPath": "data/3.db", "s3": {"enabled": False, "s3BackupIntervalHours": 3}},
    ]
    installation = site.load(entries, BACKUP_INTERVAL_HOURS="12")
    assert {d.id: d.interval_hours for d in installation.databases} == {"own": 0.5, "zero": 12.0, "off": 12.0}


def test_a_byte_order_mark_is_accepted(site: Site) -> None:
    assert site.load(b"\xef\xbb\xbf" + json.dumps([ENTRY]).encode()).database("production").name == "Production"


def test_a_change_of_the_file_is_seen_by_the_next_load(site: Site) -> None:
    assert [d.name for d in site.load([ENTRY]).databases] == ["Production"]
    assert [d.name for d in site.load([{**ENTRY, "name": "Renamed"}]).databases] == ["Renamed"]


def test_what_load_returns_cannot_be_changed(site: Site) -> None:
    database = site.s3().databases[0]
    with pytest.raises(AttributeError):
        database.name = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        database.s3.bucket = "x"  # type: ignore[misc,union-attr]


# ---- the file as a whole ------------------------------------------------------------------------------------------


def test_a_missing_file_names_data_path_and_the_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"DATA_PATH": str(tmp_path / "nowhere")})
    path = tmp_path / "nowhere"
    assert str(caught.value) == (
        f"databases.json: not found: looked for {path}/databases.json. "
        f"DATA_PATH is {path}; set it to the folder that holds databases.json."
    )


def test_a_folder_in_place_of_the_file_is_reported(site: Site) -> None:
    site.file.mkdir()
    with pytest.raises(ConfigError, match=r"databases\.json: cannot read .*: Is a directory"):
        load({"DATA_PATH": str(site.data)})


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(site: Site) -> None:
    os.mkfifo(site.file)
    with pytest.raises(ConfigError, match="it is no regular file"):
        load({"DATA_PATH": str(site.data)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON: line 1, column 1: the file is empty"),
        ('[\n  {"id": "a",\n   "name" "b"}\n]', "not JSON: line 3, column 11: Expecting ':' delimiter"),
        ("[] x", "not JSON: line 1, column 4: Extra data"),
        (b'[{"name": "\xff"}]', "not UTF-8: byte 12 of "),
        ("{}", "expected a list of entries, got an object. Put [ and ] around the entry."),
        ("null", "expected a list of entries, got null"),
        ('"x"', "expected a list of entries, got a string"),
        ("[" * 200_000, "nested too deeply"),
        ("[" + "1" * 6000 + "]", "holds a number of thousands of digits"),
    ],
)
def test_a_file_that_is_no_json_list_of_entries_is_an_error(site: Site, content: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        site.load(content)
    assert str(caught.value).startswith(f"databases.json: {message}")


def test_a_syntax_error_carries_no_piece_of_the_file(site: Site) -> None:
    with pytest.raises(ConfigError) as caught:
        site.load('[{"secretAccessKey": "' + SECRET + '" oops}]')
    # A decoder's exception holds the whole text: it must not hang on as context, where error reporters look.
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_open_to_others_is_worth_a_warning(site: Site, mode: int, *, warned: bool) -> None:
    site.load([ENTRY])
    site.file.chmod(mode)
    warnings = load({"DATA_PATH": str(site.data)}).warnings
    expected = (
        f"databases.json: others than its owner can read {site.file} (mode {mode:04o}): it holds secrets, chmod 600"
    )
    assert warnings == ((expected,) if warned else ())


@pytest.mark.parametrize("mode", [0o666, 0o662, 0o620, 0o602, 0o664])
def test_a_file_that_others_can_write_is_refused_and_left_as_it_is(site: Site, mode: int) -> None:
    site.load([ENTRY])
    site.file.chmod(mode)
    before = site.file.read_bytes()
    cause = f"others than its owner can write {site.file} (mode {mode:04o}): it is not used"
    with pytest.raises(ConfigError, match=re.escape(cause)):
        load({"DATA_PATH": str(site.data)})
    with pytest.raises(ConfigError, match=re.escape(cause)):
        change_s3(Settings.from_env({"DATA_PATH": str(site.data)}), ENTRY["id"], None)
    with pytest.raises(ConfigError, match=re.escape(cause)):
        add_entries(site.file, [])
    assert site.file.read_bytes() == before
    site.file.chmod(0o600)
    assert load({"DATA_PATH": str(site.data)}).problems == ()


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o700, False), (0o755, False), (0o1777, False), (0o777, True), (0o775, True)]
)
def test_a_folder_in_which_others_can_replace_the_file_is_worth_a_warning(
    site: Site, mode: int, *, warned: bool
) -> None:
    site.load([ENTRY])
    site.data.chmod(mode)
    warnings = load({"DATA_PATH": str(site.data)}).warnings
    assert ["can replace the file" in warning for warning in warnings] == ([True] if warned else [])


# ---- entries ------------------------------------------------------------------------------------------------------


def test_a_bad_entry_takes_no_other_down(site: Site) -> None:
    good = {**ENTRY, "id": "good"}
    bad = [7, None, [], {}, {**ENTRY, "id": "bad", "s3": "x"}, {**ENTRY, "id": "worse", "name": 1}]
    installation = site.load([*bad, good])
    assert [database.id for database in installation.databases] == ["good"]
    assert [str(problem) for problem in installation.problems] == [
        "databases.json entry 1: expected an object, got a number",
        "databases.json entry 2: expected an object, got null",
        "databases.json entry 3: expected an object, got a list",
        "databases.json entry 4: id: required",
        "databases.json entry 4: name: required",
        "databases.json entry 4: duckdbPath: required",
        "bad: s3: expected an object, got a string",
        "worse: name: expected a string, got a number",
    ]


def test_mistakes_on_both_levels_are_told_at_once(site: Site) -> None:
    s3 = {**without(S3, "bucket"), "region": "eu west"}
    assert site.problems([{**ENTRY, "name": " ", "s3": s3}]) == [
        "production: name: required",
        "production: s3.bucket: required",
        "production: s3.region: expected a region's name such as eu-west-1",
    ]


@pytest.mark.parametrize("id", ["a", "A1", "prod.eu_1-x", "9", "x" * 200])
def test_ids_that_fit_dag_ids_and_folder_names_are_accepted(site: Site, id: str) -> None:
    assert site.load([{**ENTRY, "id": id}]).database(id).backup_dir.name == id


@pytest.mark.parametrize("id", [".hidden", "-x", "_x", "a b", "a/b", "../x", "é", "a\n", "a:b"])
def test_other_ids_are_refused(site: Site, id: str) -> None:
    cause = "id: expected letters (A-Z, a-z), digits, '_', '.' and '-', a letter or digit first"
    assert site.problems([{**ENTRY, "id": id}]) == [f"databases.json entry 1: {cause}"]


def test_an_id_that_is_too_long_is_refused(site: Site) -> None:
    assert site.problems([{**ENTRY, "id": "x" * 201}]) == [
        "databases.json entry 1: id: expected at most 200 characters, got 201"
    ]


def test_an_id_that_is_no_string_is_refused(site: Site) -> None:
    assert site.problems([{**ENTRY, "id": 5}]) == ["databases.json entry 1: id: expected a string, got a number"]


def test_of_two_entries_with_one_id_the_later_is_left_out(site: Site) -> None:
    installation = site.load([ENTRY, {**ENTRY, "id": "b", "duckdbPath": "data/b.db"}, {**ENTRY, "name": "Other"}])
    assert [(d.id, d.name) for d in installation.databases] == [("production", "Production"), ("b", "Production")]
    assert [str(p) for p in installation.problems] == [
        "production: id: used by entry 1 already, so entry 3 is left out"
    ]
    assert installation.database("production").name == "Production"


def test_the_id_of_a_bad_entry_is_not_passed_on_to_a_later_one(site: Site) -> None:
    installation = site.load([{**ENTRY, "name": 5}, ENTRY])
    assert installation.databases == ()
    assert len(installation.problems) == 2


@pytest.mark.parametrize("name", ["name", "duckdbPath"])
@pytest.mark.parametrize("value", [None, "", "absent"])
def test_required_fields_of_an_entry_are_demanded(site: Site, name: str, value: str | None) -> None:
    entry = without(ENTRY, name) if value == "absent" else {**ENTRY, name: value}
    assert site.problems([entry]) == [f"production: {name}: required"]


def test_an_entry_without_mysql_is_good_for_backups(site: Site) -> None:
    installation = site.load([without(ENTRY, "mysqlConnectionString")])
    assert installation.databases[0].mysql_connection_string.get_secret_value() == ""
    assert installation.warnings == (
        "production: mysqlConnectionString: missing: backups and restores work, replication from MySQL cannot",
    )


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:p@h/db",
        "mysql://u:p%40%2F@h:3306/db?charset=utf8mb4",
        "mysql://u@h",
        "mysql://[::1]:3306/db",
        "mysql://u:p@ss@h/db",
        "MYSQL://h/db",
    ],
)
def test_mysql_urls_of_the_usual_forms_are_accepted(site: Site, url: str) -> None:
    database = site.load([{**ENTRY, "mysqlConnectionString": url}]).databases[0]
    assert database.mysql_connection_string.get_secret_value() == url


ENCODE = "special characters of the password must be percent-encoded: # is %23, / is %2F, ? is %3F, @ is %40"
SHAPE = "expected mysql://user:password@host:port/database"


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgres://u:hunter22@h/db", SHAPE),
        ("mariadb://u:hunter22@h/db", SHAPE),
        ("u:hunter22@h/db", SHAPE),
        ("mysql:hunter22@h", SHAPE),
        ("mysql:///hunter22", f"names no host; {SHAPE}"),
        ("mysql://u:hunter22@/db", f"names no host; {SHAPE}"),
        ("mysql://u:hunter22@h:70000/db", f"has a wrong port, or {ENCODE}"),
        ("mysql://u:hunter22@h:0/db", "expected a port from 1 to 65535"),
        ("mysql://u:hunter22/x@h/db", f"has a wrong port, or {ENCODE}"),
        ("mysql://u:hunter22[x@h/db", f"has a wrong port, or {ENCODE}"),
        ("mysql://u:22/hunter22@h/db", ENCODE),
        ("mysql://u:22#hunter22@h/db", ENCODE),
        ("mysql://u:hunter22@h/db\n", "white space at its ends"),
        ("mysql://u:hunter22\t@h/db", "holds a control character"),
    ],
)
def test_a_wrong_mysql_url_is_explained_without_its_password(site: Site, url: str, cause: str) -> None:
    problems = site.problems([{**ENTRY, "mysqlConnectionString": url}])
    assert problems == [f"production: mysqlConnectionString: {cause}"]
    assert "hunter22" not in problems[0]


# ---- the replica's path -------------------------------------------------------------------------------------------


def test_a_relative_path_resolves_against_the_parent_of_data_path(site: Site) -> None:
    for written, place in [
        ("data/x.db", site.data / "x.db"),
        ("data/sub/x.db", site.data / "sub/x.db"),
        ("./data/../data/x.db", site.data / "x.db"),
    ]:
        database = site.load([{**ENTRY, "duckdbPath": written}]).databases[0]
        assert (database.replica, database.duckdb_path) == (place, written)


@pytest.mark.parametrize("path", ["x.db", "../x.db", "data/../x.db", "database/x.db", "data", "~/x.db", ":memory:"])
def test_a_relative_path_outside_data_path_shows_what_it_resolves_to(site: Site, path: str) -> None:
    (problem,) = site.problems([{**ENTRY, "duckdbPath": path}])
    name = Path(path).name
    resolved = (site.data.parent / path).resolve()
    assert problem == (
        f"production: duckdbPath: resolves to {resolved}, which is outside DATA_PATH ({site.data}). "
        f'Write it as "data/{name}", or as an absolute path.'
    )


def test_an_absolute_path_may_lie_anywhere_and_its_links_stay(site: Site, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    path = tmp_path / "link" / "x.db"
    assert site.load([{**ENTRY, "duckdbPath": str(path)}]).databases[0].replica == path


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("data/x.db/", "names a folder; expected a file"),
        (
            f"data/{'x' * 198}.db",
            "expected a file name of at most 200 bytes: those of the files beside it are longer",
        ),
        ("data/databases.json", "is the configuration file itself"),
        ("data/backups/production/x.db", "lies in {data}/backups/production, where old backups are deleted"),
        (
            "data/a?b/x.db",
            (
                "DuckDB takes \\ for / and ? in a folder's name for parameters, so it would look elsewhere. "
                "Rename the folder or the file."
            ),
        ),
        (
            "data/x\\y.db",
            (
                "DuckDB takes \\ for / and ? in a folder's name for parameters, so it would look elsewhere. "
                "Rename the folder or the file."
            ),
        ),
        ("data/x\x00.db", "holds a control character"),
        (
            "data/x.db.duckling-new",
            "has the name of a state file of this program, which may be deleted or moved. Rename the file.",
        ),
        (" data/x.db", "white space at its ends"),
    ],
)
def test_paths_that_cannot_be_a_replica_are_refused(site: Site, path: str, cause: str) -> None:
    problems = site.problems([{**ENTRY, "duckdbPath": path}])
    assert problems == [f"production: duckdbPath: {cause.format(data=site.data)}"]


def test_two_databases_on_one_replica_are_refused_even_through_a_link(site: Site, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    entries = [ENTRY, {**ENTRY, "id": "b", "duckdbPath": str(tmp_path / "link/production.db")}]
    installation = site.load(entries)
    assert [d.id for d in installation.databases] == ["production"]
    assert str(installation.problems[0]) == 'b: duckdbPath: the same file as that of "production" (entry 1)'


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("data/production.db", 'a name that belongs to the replica of "production" ({data}/production.db)'),
        ("data/production.db.copy", 'a name that belongs to the replica of "production" ({data}/production.db)'),
        ("data/production", 'a name that belongs to the replica of "production" ({data}/production.db)'),
        ("data/link/production.db.wal", 'a name that belongs to the replica of "production" ({data}/production.db)'),
        ("data/other.db.duckling-new", "has the name of a state file of this program"),
        ("data/read.db", 'a name that belongs to the copy for readers of "other" ({data}/read.db)'),
        ("data/read.db.duckling-new", "has the name of a state file of this program"),
        ("data/databases.json", "is the configuration file itself"),
        ("data/backups/read.db", "lies in {data}/backups, where old backups are deleted"),
        ("data/kept/read.db", "lies in {data}/backups, where old backups are deleted"),
        ("data/readers/", "names a folder; expected a file"),
    ],
)
def test_a_copy_for_readers_takes_no_name_that_another_file_may_have(site: Site, path: str, cause: str) -> None:
    (site.data / "backups" / "deep").mkdir(parents=True)
    (site.data / "link").symlink_to(site.data)
    (site.data / "kept").symlink_to(site.data / "backups" / "deep")
    other = {**ENTRY, "id": "other", "duckdbPath": "data/other.db", "readCopyPath": "data/read.db"}
    problems = site.problems([other, {**ENTRY, "readCopyPath": path}])
    assert problems[0].startswith(f"production: readCopyPath: {cause.format(data=site.data)}")


def test_a_copy_for_readers_may_lie_anywhere_else_and_on_another_machine_under_the_same_name(site: Site) -> None:
    entries = [
        {**ENTRY, "host": "one", "readCopyPath": "data/read.db"},
        {**ENTRY, "id": "b", "duckdbPath": "data/b.db", "host": "two", "readCopyPath": "data/read.db"},
        {**ENTRY, "id": "c", "duckdbPath": "data/c.db", "host": "two", "readCopyPath": "/srv/readers/c.db"},
    ]
    found = site.load(entries)
    assert found.problems == ()
    files = [database.read_copy_file for database in found.databases]
    assert files == [site.data / "read.db", site.data / "read.db", Path("/srv/readers/c.db")]


def test_a_copy_for_readers_needs_our_own_sync(site: Site) -> None:
    entry = {**ENTRY, "writer": "duckling-server", "readCopyPath": "data/read.db"}
    assert site.problems([entry]) == [
        'production: readCopyPath: the sync makes that copy, and writer is "duckling-server"'
    ]


@pytest.mark.parametrize(
    ("log", "replica"),
    [("a.db.wal", "a.db"), ("a.db.wal.checkpoint", "a.db"), ("a.wal?b.db", "a?b.db"), ("a.db.wal", "link.db")],
)
def test_no_replica_has_the_name_of_another_one_s_log(site: Site, log: str, replica: str) -> None:
    """DuckDB would apply it to that one, and delete it."""
    (site.data / "link.db").symlink_to("a.db")
    entries = [
        {**ENTRY, "id": "log", "duckdbPath": f"data/{log}"},
        {**ENTRY, "id": "replica", "duckdbPath": f"data/{replica}"},
    ]
    installation = site.load(entries)
    assert [d.id for d in installation.databases] == ["replica"]
    assert str(installation.problems[0]) == (
        'log: duckdbPath: DuckDB would take it for the write-ahead log of "replica" (entry 2). Rename the file.'
    )
    # On two machines these are two files, and alone it is one like any other.
    entries[0]["host"], entries[1]["host"] = "one", "two"
    assert len(site.load(entries).databases) == 2
    assert len(site.load(entries[:1]).databases) == 1


def two(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**ENTRY, "id": "a", "duckdbPath": "data/a.db", "s3": {**S3, **first}},
        {**ENTRY, "id": "b", "duckdbPath": "data/b.db", "s3": {**S3, **second}},
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"pathPrefix": "x/"}, {"pathPrefix": "x/"}),
        ({}, {"pathPrefix": "a/"}),
        (
            {"pathPrefix": "x/", "endpoint": "https://S3.example.org/"},
            {"pathPrefix": "x/", "endpoint": "https://s3.example.org:443"},
        ),
        ({"pathPrefix": "x/"}, {"pathPrefix": "x/", "endpoint": "https://s3.eu-west-1.amazonaws.com"}),
    ],
)
def test_two_databases_on_one_prefix_are_refused(site: Site, first: dict[str, Any], second: dict[str, Any]) -> None:
    installation = site.load(two(first, second))
    assert [d.id for d in installation.databases] == ["a"]
    assert [str(p) for p in installation.problems] == [
        'b: s3.pathPrefix: same endpoint, bucket and prefix as "a" (entry 1): the backups would mix'
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"pathPrefix": "x/"}, {"pathPrefix": "x/y/"}),
        ({"pathPrefix": "x/"}, {"pathPrefix": "x/", "bucket": "other"}),
        ({"pathPrefix": "x/"}, {"pathPrefix": "x/", "endpoint": "https://s3.example.org"}),
    ],
)
def test_databases_may_share_a_bucket_or_a_prefix_in_different_places(
    site: Site, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert [d.id for d in site.load(two(first, second)).databases] == ["a", "b"]


# ---- the s3 object ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bucket", "region", "accessKeyId", "secretAccessKey"])
@pytest.mark.parametrize("value", [None, "", "absent"])
def test_required_fields_of_s3_are_demanded(site: Site, name: str, value: str | None) -> None:
    s3 = without(S3, name) if value == "absent" else {**S3, name: value}
    hint = ", unless awsConnId or credentialSource is given" if "Key" in name else ""
    assert site.problems([{**ENTRY, "s3": s3}]) == [f"production: s3.{name}: required{hint}"]


@pytest.mark.parametrize("s3", [{}, {"enabled": None, "bucket": "b"}])
def test_enabled_must_be_said(site: Site, s3: dict[str, Any]) -> None:
    assert site.problems([{**ENTRY, "s3": s3}]) == ["production: s3.enabled: required"]


MODES = "expected none, sse-s3, sse-kms or client-aes256"


@pytest.mark.parametrize(
    ("s3", "message"),
    [
        ({"enabled": "true"}, "s3.enabled: expected true or false, got a string"),
        ({"enabled": 1}, "s3.enabled: expected true or false, got a number"),
        ({"enabled": 0}, "s3.enabled: expected true or false, got a number"),
        ({"forcePathStyle": "no"}, "s3.forcePathStyle: expected true or false, got a string"),
        ({"bucket": 5}, "s3.bucket: expected a string, got a number"),
        ({"secretAccessKey": ["x"]}, "s3.secretAccessKey: expected a string, got a list"),
        ({"encryptionKey": True}, "s3.encryptionKey: expected a string, got true or false"),
        ({"secretAccessKey": SECRET + "\n"}, "s3.secretAccessKey: white space at its ends"),
        ({"accessKeyId": "A\rB"}, "s3.accessKeyId: holds a control character"),
        ({"bucket": "s3://b"}, "s3.bucket: expected the bucket's bare name: letters, digits, '.', '-' and '_'"),
        ({"region": "eu_west"}, "s3.region: expected a region's name such as eu-west-1"),
        ({"region": "auto"}, 's3.region: "auto" needs an endpoint; AWS wants a region such as eu-west-1'),
        ({"encryption": "aes256"}, f's3.encryption: {MODES}, got "aes256". Did you mean client-aes256?'),
        ({"encryption": "SSE-S3"}, f's3.encryption: {MODES}, got "SSE-S3". Did you mean sse-s3?'),
        ({"encryption": SECRET}, f"s3.encryption: {MODES}, got a string of 21 characters"),
        ({"encryption": ""}, f"s3.encryption: {MODES}, got a string of 0 characters"),
        (
            {"encryption": "client-aes256"},
            "s3.encryptionKey: required for client-aes256. `duckling keygen` makes one.",
        ),
        (
            {"encryption": "client-aes256", "encryptionKey": KEY[:63]},
            "s3.encryptionKey: expected 64 hex characters, got 63",
        ),
        (
            {"encryption": "client-aes256", "encryptionKey": "0x" + KEY[2:]},
            "s3.encryptionKey: expected 64 hex characters, character 2 is not one",
        ),
        (
            {"awsConnId": "aws_backups"},
            "s3.awsConnId: given together with accessKeyId and secretAccessKey: credentials come from one or the other",
        ),
        ({"pathPrefix": "/x/"}, "s3.pathPrefix: must not begin with '/'"),
        ({"pathPrefix": "x/../"}, "s3.pathPrefix: must not hold '..' or a backslash"),
        ({"pathPrefix": "x\\y/"}, "s3.pathPrefix: must not hold '..' or a backslash"),
        ({"pathPrefix": "x\ty/"}, "s3.pathPrefix: holds a control character"),
        ({"pathPrefix": "ü" * 451}, "s3.pathPrefix: expected at most 900 bytes, got 902"),
        ({"s3BackupIntervalHours": "6"}, "s3.s3BackupIntervalHours: expected a number, got a string"),
        ({"s3BackupIntervalHours": True}, "s3.s3BackupIntervalHours: expected a number, got true or false"),
        ({"s3BackupIntervalHours": -1}, "s3.s3BackupIntervalHours: expected a number from 0 to 876000"),
        (
            {"s3BackupIntervalHours": 1e-9},
            "s3.s3BackupIntervalHours: expected 0 (BACKUP_INTERVAL_HOURS) or at least a second",
        ),
        ({"s3BackupIntervalHours": 10**400}, "s3.s3BackupIntervalHours: expected a number, got one that is too large"),
        ({"s3BackupRetentionDays": -0.5}, "s3.s3BackupRetentionDays: expected a number from 0 to 36500"),
        ({"s3BackupRetentionDays": float("nan")}, "s3.s3BackupRetentionDays: expected a finite number"),
        ({"verify": "none"}, "s3.verify: expected full, sent or head, got a string of 4 characters"),
        ({"verify": "Head"}, 's3.verify: expected full, sent or head, got "Head". Did you mean head?'),
        ({"partSizeMiB": 4}, "s3.partSizeMiB: expected a whole number from 5 to 5120"),
        ({"partSizeMiB": 5121}, "s3.partSizeMiB: expected a whole number from 5 to 5120"),
        ({"partSizeMiB": 8.5}, "s3.partSizeMiB: expected a whole number, got one with a fraction"),
        ({"maxParts": 0}, "s3.maxParts: expected a whole number from 1 to 10000"),
        ({"maxParts": 10_001}, "s3.maxParts: expected a whole number from 1 to 10000"),
        ({"maxConcurrency": 33}, "s3.maxConcurrency: expected a whole number from 1 to 32"),
        ({"storageClass": "STANDARD IA"}, "s3.storageClass: expected a storage class such as STANDARD_IA"),
        ({"tags": ["a"]}, "s3.tags: expected an object, got a list"),
        ({"tags": {"a": 1}}, "s3.tags.a: expected a string, got a number"),
        ({"tags": {f"t{n}": "" for n in range(11)}}, "s3.tags: expected at most 10 tags, got 11"),
        (
            {"tags": {"a": "x" * 257}},
            "s3.tags.a: expected a name of 1 to 128 characters and a value of at most 256",
        ),
        ({"tags": {"a": "x;y"}}, "s3.tags.a: expected letters, digits, blanks and + - = . _ : / @"),
        ({"tags": {"aws:x": "y"}}, 's3.tags.aws:x: names that begin with "aws:" are reserved'),
        ({"retention": 7}, "s3.retention: expected an object, got a number"),
        ({"retention": []}, "s3.retention: expected an object, got a list"),
        ({"retention": {"daily": -1}}, "s3.retention.daily: expected a whole number from 0 to 36500"),
        ({"retention": {"yearly": 101}}, "s3.retention.yearly: expected a whole number from 0 to 100"),
        ({"retention": {"daily": 1.5}}, "s3.retention.daily: expected a whole number, got one with a fraction"),
        ({"retention": {"daily": "7"}}, "s3.retention.daily: expected a whole number, got a string"),
        ({"retention": {"daily": True}}, "s3.retention.daily: expected a whole number, got true or false"),
        ({"retention": {"daily": None}}, "s3.retention.daily: expected a whole number, got null"),
        ({"retention": {"daily": 10**30}}, "s3.retention.daily: expected a whole number from 0 to 36500"),
        (
            {"retention": {"days": 7}},
            "s3.retention.days: unknown field; expected daily, weekly, monthly or yearly",
        ),
        ({"tags": {"a": {"b": 1}}}, "s3.tags.a: expected a string, got an object"),
        ({"previousEncryptionKeys": "x"}, "s3.previousEncryptionKeys: expected a list, got a string"),
        ({"previousEncryptionKeys": {"file": "/k"}}, "s3.previousEncryptionKeys: expected a list, got an object"),
        ({"previousEncryptionKeys": [7]}, "s3.previousEncryptionKeys.0: expected a string, got a number"),
    ],
)
def test_a_wrong_s3_field_is_named_with_what_is_expected(site: Site, s3: dict[str, Any], message: str) -> None:
    installation = site.s3(**s3)
    assert [str(problem) for problem in installation.problems] == [f"production: {message}"]
    assert installation.databases == ()


@pytest.mark.parametrize("limit", [{"partSizeMiB": 5}, {"partSizeMiB": 5120}, {"maxParts": 1}, {"maxConcurrency": 32}])
def test_the_limits_themselves_are_allowed(site: Site, limit: dict[str, Any]) -> None:
    assert site.s3(**limit).problems == ()


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://0123456789abcdef.r2.cloudflarestorage.com",
        "https://s3.us-west-004.backblazeb2.com",
        "https://nyc3.digitaloceanspaces.com",
        "http://127.0.0.1:9000",
        "http://localhost:9000/",
        "http://[::1]:9000",
        "https://store.example.org:8443/s3",
    ],
)
def test_endpoints_of_the_providers_are_accepted_without_a_word(site: Site, endpoint: str) -> None:
    installation = site.s3(endpoint=endpoint, region="auto")
    assert installation.problems == ()
    assert installation.warnings == ()


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [
        ("minio:9000", "expected http(s)://host or http(s)://host:port, beginning with https://"),
        ("s3.example.org", "expected http(s)://host or http(s)://host:port, beginning with https://"),
        ("ftp://example.org", "expected http(s)://host or http(s)://host:port, beginning with https://"),
        ("https://", "expected http(s)://host or http(s)://host:port, beginning with https://"),
        ("https://h:99999", "expected http(s)://host or http(s)://host:port, got a wrong host or port"),
        ("https://h:port", "expected http(s)://host or http(s)://host:port, got a wrong host or port"),
        (
            f"https://AKID:{SECRET}@example.org",
            "must not hold credentials; they belong into accessKeyId and secretAccessKey",
        ),
        ("https://example.org/?x=1", "must not hold '?' or '#'"),
        ("https://example.org\x7f", "holds a control character"),
    ],
)
def test_a_wrong_endpoint_is_refused(site: Site, endpoint: str, cause: str) -> None:
    installation = site.s3(endpoint=endpoint)
    assert [str(problem) for problem in installation.problems] == [f"production: s3.endpoint: {cause}"]


def test_credentials_may_come_from_an_airflow_connection(site: Site) -> None:
    s3 = {**without(S3, "accessKeyId", "secretAccessKey"), "awsConnId": "aws_backups"}
    got = site.load([{**ENTRY, "s3": s3}]).databases[0].s3
    assert got is not None
    assert (got.aws_conn_id, got.access_key_id, got.secret_access_key) == ("aws_backups", None, None)


# ---- warnings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s3", "warning"),
    [
        ({"encyption": "none"}, "s3.encyption: unknown field, did you mean encryption?"),
        ({"path_prefix": "x"}, "s3.path_prefix: unknown field, did you mean pathPrefix?"),
        ({"partSizeMib": 9}, "s3.partSizeMib: unknown field, did you mean partSizeMiB?"),
        ({"duckdbPath": "x"}, "s3.duckdbPath: unknown field, did you mean duckdbPath?"),
        ({"zzzzzz": 1}, "s3.zzzzzz: unknown field"),
        ({"encryptionKey": KEY}, 's3.encryptionKey: not used: encryption is "none", not "client-aes256"'),
        ({"encryptionKey": "later"}, 's3.encryptionKey: not used: encryption is "none", not "client-aes256"'),
        (
            {"encryption": "sse-s3", "kmsKeyId": "k"},
            's3.kmsKeyId: not used: encryption is "sse-s3", not "sse-kms"',
        ),
        (
            {"pathPrefix": "prod"},
            "s3.pathPrefix: does not end with '/': keys will look like \"prodbackup-2025-03-01T14-32-11-482Z.db\"",
        ),
        ({"pathPrefix": "{id}/"}, 's3.pathPrefix: "{id}/" is taken literally, nothing is filled in'),
        (
            {"endpoint": "http://store.example.org:9000"},
            "s3.endpoint: plain http: backups travel unencrypted, and anybody on the way can change them",
        ),
        (
            {"endpoint": "https://backups.nyc3.digitaloceanspaces.com"},
            "s3.endpoint: holds the bucket's name; the provider's bare endpoint is wanted, the bucket is added to it",
        ),
        (
            {"endpoint": "https://0123.r2.cloudflarestorage.com/backups"},
            "s3.endpoint: holds the bucket's name; the provider's bare endpoint is wanted, the bucket is added to it",
        ),
        (
            {"storageClass": "DEEP_ARCHIVE"},
            "s3.storageClass: archived objects can't be read at once: verify and restore fail until then",
        ),
    ],
)
def test_what_is_odd_but_works_is_a_warning(site: Site, s3: dict[str, Any], warning: str) -> None:
    installation = site.s3(**s3)
    assert installation.problems == ()
    assert installation.warnings == (f"production: {warning}",)
    assert len(installation.databases) == 1


def test_an_unknown_field_of_the_entry_is_kept_and_reported(site: Site) -> None:
    installation = site.load([{**ENTRY, "bucket": "b", "duckdbpath": "x", "colour": {"of": "ducks"}}])
    assert installation.warnings == (
        "production: bucket: unknown field, did you mean s3.bucket?",
        "production: duckdbpath: unknown field, did you mean duckdbPath?",
        "production: colour: unknown field",
    )
    assert installation.databases[0].masked()["colour"] == {"of": "ducks"}


def test_a_misspelled_field_is_reported_for_a_store_that_is_switched_off_too(site: Site) -> None:
    installation = site.load([{**ENTRY, "s3": {"enabled": False, "buket": "b"}}])
    assert installation.warnings == ("production: s3.buket: unknown field, did you mean bucket?",)


# ---- JSON that readers disagree about -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('"name": "again"', "name: appears twice in the same object"),
        ('"s3": {"enabled": false, "bucket": "a", "bucket": "b"}', "s3.bucket: appears twice in the same object"),
        ('"x": [{"y": NaN}]', "x[1].y: expected a finite number"),
        ('"x": -Infinity', "x: expected a finite number"),
        ('"x": 1e999', "x: expected a finite number"),
        ('"x": "\\ud800"', "x: holds half a surrogate pair (\\ud800 to \\udfff), which is no character"),
        ('"\\ud800": 1', "\\ud800: a name that holds half a surrogate pair, which is no character"),
        ('"x": ' + "[" * 30 + "]" * 30, "x" + "[1]" * 20 + ": nested too deeply"),
    ],
)
def test_json_that_does_not_mean_one_thing_makes_its_entry_bad(site: Site, more: str, message: str) -> None:
    text = json.dumps(ENTRY)[:-1] + ", " + more + "}"
    other = json.dumps({**ENTRY, "id": "other", "duckdbPath": "data/other.db"})
    installation = site.load(f"[{text}, {other}]")
    assert [str(problem) for problem in installation.problems] == [f"production: {message}"]
    assert [database.id for database in installation.databases] == ["other"]


# ---- looking up a database ----------------------------------------------------------------------------------------


def test_an_unknown_database_is_answered_with_the_nearest(site: Site) -> None:
    with pytest.raises(NotFoundError) as caught:
        site.load([ENTRY]).database("prodution")
    assert str(caught.value) == f'no database "prodution" in {site.file}. Did you mean "production"?'
    with pytest.raises(NotFoundError, match=r"Known: production\."):
        site.load([ENTRY]).database("zzz")
    with pytest.raises(NotFoundError, match=r"Known: none\."):
        site.load([]).database("production")


def test_asking_for_a_bad_entry_raises_its_problem(site: Site) -> None:
    installation = site.s3(encryption="client-aes256", encryptionKey="abc")
    with pytest.raises(ConfigError) as caught:
        installation.database("production")
    assert str(caught.value) == "production: s3.encryptionKey: expected 64 hex characters, got 3"
    assert (caught.value.entry, caught.value.field) == ("production", "s3.encryptionKey")


# ---- the environment ----------------------------------------------------------------------------------------------


def test_without_any_variable_the_defaults_of_the_contract_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Site(tmp_path).load([ENTRY])
    for environ in ({}, dict.fromkeys(("DATA_PATH", "BACKUP_PATH", "AUTO_BACKUP", "BACKUP_INTERVAL_HOURS"), "")):
        got = load(environ).settings
        assert got.data_path == tmp_path / "data"
        assert got.backup_path == tmp_path / "data" / "backups"
        assert (got.auto_backup, got.backup_interval_hours, got.backup_retention_days) == (True, 24.0, 7.0)
        assert got.api_key is None
        assert (got.sync_interval_minutes, got.cdc_enabled, got.auto_start_sync) == (15.0, False, False)
        assert got.excluded_tables == ()


def test_load_reads_the_environment_of_the_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.load([ENTRY])
    monkeypatch.setenv("DATA_PATH", str(site.data))
    monkeypatch.setenv("BACKUP_RETENTION_DAYS", "0")
    assert load().databases[0].local_retention_days == 0.0


def test_every_variable_arrives(site: Site, tmp_path: Path) -> None:
    got = site.load(
        [ENTRY],
        BACKUP_PATH=str(tmp_path / "elsewhere"),
        AUTO_BACKUP="false",
        BACKUP_INTERVAL_HOURS="1.5",
        BACKUP_RETENTION_DAYS="30",
        DUCKLING_API_KEY="api-token-4711",
        SYNC_INTERVAL_MINUTES="0.5",
        CDC_ENABLED="true",
        AUTO_START_SYNC="yes",
        EXCLUDED_TABLES=" sessions,, Log 2 ,sessions,",
    )
    assert (got.settings.sync_interval_minutes, got.settings.excluded_tables) == (0.5, ("sessions", "Log 2"))
    assert (got.settings.cdc_enabled, got.settings.auto_start_sync) == (True, True)
    assert got.settings.api_key is not None
    assert got.settings.api_key.get_secret_value() == "api-token-4711"
    assert "api-token-4711" not in repr(got)
    (database,) = got.databases
    assert database.backup_dir == tmp_path / "elsewhere" / "production"
    assert (database.auto_backup, database.interval_hours, database.local_retention_days) == (False, 1.5, 30.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("TRUE", True),
        ("1", True),
        ("yes", True),
        ("On", True),
        ("false", False),
        ("0", False),
        ("no", False),
        (" off ", False),
    ],
)
def test_auto_backup_takes_the_usual_words(site: Site, text: str, *, value: bool) -> None:
    assert site.load([ENTRY], AUTO_BACKUP=text).settings.auto_backup is value


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("AUTO_BACKUP", "maybe", 'expected true or false (or 1/0, yes/no, on/off), got "maybe"'),
        ("BACKUP_INTERVAL_HOURS", "0", 'expected a number above 0 and up to 876000, got "0"'),
        ("BACKUP_INTERVAL_HOURS", "-3", 'expected a number above 0 and up to 876000, got "-3"'),
        ("BACKUP_INTERVAL_HOURS", "daily", 'expected a number above 0 and up to 876000, got "daily"'),
        ("BACKUP_INTERVAL_HOURS", "nan", 'expected a number above 0 and up to 876000, got "nan"'),
        ("BACKUP_INTERVAL_HOURS", "1_0", 'expected a number above 0 and up to 876000, got "1_0"'),
        ("BACKUP_INTERVAL_HOURS", "\u0967", 'expected a number above 0 and up to 876000, got "\u0967"'),
        ("BACKUP_INTERVAL_HOURS", "1e999", 'expected a number above 0 and up to 876000, got "1e999"'),
        ("DUCKLING_MAX_MBIT_PER_SECOND", "0.5", "expected 0 (no limit) or a number from 1 to 1000000"),
        ("DUCKLING_MAX_MBIT_PER_SECOND", "fast", 'expected a number from 0 to 1000000, got "fast"'),
        ("BACKUP_RETENTION_DAYS", "-1", 'expected a number from 0 to 36500, got "-1"'),
        ("BACKUP_RETENTION_DAYS", "7 days", 'expected a number from 0 to 36500, got "7 days"'),
        ("BACKUP_PATH", "a\x00b", "holds a null character"),
        ("SYNC_INTERVAL_MINUTES", "0", 'expected a number above 0 and up to 52560000, got "0"'),
        ("SYNC_INTERVAL_MINUTES", "often", 'expected a number above 0 and up to 52560000, got "often"'),
        ("CDC_ENABLED", "2", 'expected true or false (or 1/0, yes/no, on/off), got "2"'),
        ("AUTO_START_SYNC", "ja", 'expected true or false (or 1/0, yes/no, on/off), got "ja"'),
    ],
)
def test_a_wrong_variable_is_named(site: Site, name: str, text: str, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        site.load([ENTRY], **{name: text})
    assert str(caught.value) == f"environment: {name}: {cause}"


# ---- secrets ------------------------------------------------------------------------------------------------------


def encrypted(site: Site) -> Database:
    entry = {
        **ENTRY,
        "mysqlPasswordOld": "hunter22",
        "replicaOf": "https://me:sesame-open@example.org/?token=tok-12345",
        "s3": {
            **S3,
            "encryption": "client-aes256",
            "encryptionKey": KEY,
            "sessionToken": "FwoGZXIvYXdz",
            "tags": {"secret-santa": "no"},
            "kmsKeyId": None,
        },
    }
    return site.load([entry]).databases[0]


ALL_SECRETS = (KEY, KEY.lower(), KEY.upper(), SECRET, "correct%2Fh%40rse", "correct/h%40rse", PASSWORD)
ALL_SECRETS += ("hunter22", "FwoGZXIvYXdz", "sesame-open", "tok-12345")


def test_secrets_lists_each_in_every_spelling_the_longest_first(site: Site) -> None:
    found = encrypted(site).secrets()
    assert set(found) == set(ALL_SECRETS)
    assert [len(text) for text in found] == sorted((len(text) for text in found), reverse=True)
    assert "AKIDEXAMPLE" not in found


def test_secrets_too_short_to_be_masked_in_text_are_left_out(site: Site) -> None:
    database = site.load([{**ENTRY, "mysqlConnectionString": "mysql://u:root@h/db"}]).databases[0]
    assert database.secrets() == ()


def test_masked_is_the_entry_as_found_but_for_its_secrets(site: Site) -> None:
    masked = encrypted(site).masked()
    assert masked == {
        **ENTRY,
        "mysqlConnectionString": "mysql://duck:***@db.internal:3306/shop?ssl=true",
        "mysqlPasswordOld": "***",
        "replicaOf": "https://me:***@example.org/?token=***",
        "s3": {
            **S3,
            "secretAccessKey": "***",
            "encryption": "client-aes256",
            "encryptionKey": "***",
            "sessionToken": "***",
            "tags": {"secret-santa": "no"},
            "kmsKeyId": None,
        },
    }
    assert list(masked) == [*ENTRY, "mysqlPasswordOld", "replicaOf", "s3"]


def test_a_store_that_is_switched_off_is_masked_too(site: Site) -> None:
    s3 = {**S3, "enabled": False, "encryptionKey": KEY}
    database = site.load([{**ENTRY, "s3": s3}]).databases[0]
    assert database.masked()["s3"] == {**s3, "secretAccessKey": "***", "encryptionKey": "***"}
    assert {SECRET, KEY} <= set(database.secrets())


def test_a_field_of_a_secret_type_is_masked_whatever_its_name() -> None:
    class Later(Shape):
        plain_name: SecretStr | None
        older: tuple[Annotated[EncryptionKey, ANY_STRING], ...]
        label: str

    assert {"secretAccessKey", "encryptionKey"} <= secret_names(S3Settings)
    found: list[str] = []
    s3 = {"plainName": SECRET, "older": [KEY], "label": "x"}
    assert mask(s3, "s3", found, secret=secret_names(Later)) == {"plainName": "***", "older": "***", "label": "x"}
    assert found == [SECRET, KEY]


def test_no_repr_shows_a_secret(site: Site) -> None:
    database = encrypted(site)
    shown = f"{database!r} {database} {database.s3!r} {load({'DATA_PATH': str(site.data)})!r}"
    assert [secret for secret in ALL_SECRETS if secret in shown] == []
    assert "production" in shown


def test_a_database_survives_pickling(site: Site) -> None:
    database = encrypted(site)
    assert pickle.loads(pickle.dumps(database)) == database  # noqa: S301 - our own bytes


# ---- at DAG parse time --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_module_imports_nothing_heavy() -> None:
    heavy = {"airflow", "boto3", "botocore", "duckdb", "numpy", "cryptography", "requests"}
    code = f"import sys, duckling_provider.config.databases; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- the documentation --------------------------------------------------------------------------------------------

GUIDE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
PROVIDERS = GUIDE.parents[1] / "operate" / "providers.md"


def test_every_example_of_the_guides_is_good_without_a_warning(site: Site) -> None:
    text = GUIDE.read_text() + PROVIDERS.read_text()
    examples = [json.loads(found) for found in re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    assert len(examples) == 6
    for example in examples:
        installation = site.load(example if isinstance(example, list) else [{**ENTRY, "s3": example}])
        assert (installation.problems, installation.warnings) == ((), ())
        assert installation.databases[0].s3 is not None


def test_an_unchanged_file_is_not_looked_through_again_and_a_changed_one_is(installation, monkeypatch):
    installation.write(installation.entry("a"))
    first = load()
    assert load() is first
    installation.write(installation.entry("b"))
    second = load()
    assert [database.id for database in second.databases] == ["b"]
    monkeypatch.setenv("BACKUP_INTERVAL_HOURS", "3")
    assert load().databases[0].interval_hours == 3
    (installation.data_path / "databases.json").chmod(0o644)
    assert "chmod 600" in load().warnings[0]


def test_a_problem_that_is_raised_again_and_again_keeps_no_frames(installation):
    installation.write(installation.entry("a", name=7))
    depths = []
    for _ in range(3):
        with pytest.raises(ConfigError) as caught:
            load().database("a")
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


def test_the_providers_page_names_every_action_that_an_error_may_name() -> None:
    core = GUIDE.parents[2] / "duckling_provider" / "stores"
    named = {action for path in core.glob("s3*.py") for action in re.findall(r"s3:[A-Z]\w+", path.read_text())}
    page = PROVIDERS.read_text()
    assert len(named) > 5
    assert {action for action in named if f"`{action}`" not in page} == set()
    policy = page[page.index('"Version"') : page.index("## Cloudflare R2")]
    assert {action for action in named if f'"{action}"' not in policy} == set()


def test_the_guide_has_every_field_and_variable() -> None:
    described = set(re.findall(r"`(\w+)`", GUIDE.read_text()))
    assert field_names(Entry) | field_names(S3Settings) <= described
    assert {"DATA_PATH", "BACKUP_PATH", "AUTO_BACKUP", "BACKUP_INTERVAL_HOURS", "BACKUP_RETENTION_DAYS"} <= described
    assert {"SYNC_INTERVAL_MINUTES", "CDC_ENABLED", "AUTO_START_SYNC", "EXCLUDED_TABLES"} <= described
    assert {"DUCKLING_API_KEY", "DUCKLING_HOST", "DUCKLING_POOL", "DUCKLING_POOL_SLOTS"} <= described


# ---- properties ---------------------------------------------------------------------------------------------------

PLANTED = "Pl4nted/S3cr3t+Value"
WORDS = st.sampled_from(["", "none", "client-aes256", "auto", "x/", "https://h", PLANTED, f"mysql://u:{PLANTED}@h"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text() | st.characters(categories=["Cs"]) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
# Messages show a relative path, an id and a prefix on purpose, so no secret is planted there.
SHOWN = st.one_of(
    st.none(), st.integers(), any_text(), st.sampled_from(["data/x.db", "/x.db", "../x", "a", "a/", ".."])
)
S3_NAMES = [*S3, "endpoint", "forcePathStyle", "encryption", "kmsKeyId", "encryptionKey", "s3BackupIntervalHours"]
S3_NAMES += ["s3BackupRetentionDays", "awsConnId", "storageClass", "tags", "verify", "partSizeMiB", "maxParts", "more"]


def mutated(good: dict[str, Any], names: list[str], shown: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Good objects with some fields replaced by anything."""
    changes = st.fixed_dictionaries({}, optional={**dict.fromkeys(names, VALUES), **dict.fromkeys(shown, SHOWN)})
    return changes.map(lambda change: {**good, **change})


ENTRIES = st.builds(
    lambda entry, s3: {**entry, "s3": s3},
    mutated(ENTRY, ["name", "mysqlConnectionString", "createdAt", "queue", "more"], ["id", "duckdbPath"]),
    mutated(S3, S3_NAMES, ["pathPrefix"]) | VALUES,
)


@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(ENTRIES | VALUES, max_size=3) | VALUES)
def test_no_json_value_whatever_breaks_the_reader_or_leaks_into_messages(tmp_path: Path, content: Any) -> None:
    (tmp_path / "databases.json").write_text(json.dumps(content))
    try:
        installation = load({"DATA_PATH": str(tmp_path)})
    except ConfigError as error:
        assert not isinstance(content, list)
        messages = [str(error)]
    else:
        assert isinstance(content, list)
        assert len(installation.databases) + len({p.entry for p in installation.problems}) >= min(len(content), 1)
        assert len(installation.databases) <= len(content)
        messages = [*map(str, installation.problems), *installation.warnings, repr(installation.problems)]
        for database in installation.databases:
            json.dumps(database.masked(), allow_nan=False)
            assert all(len(secret) >= 5 for secret in database.secrets())
    for message in messages:
        assert PLANTED not in message
        assert message.isprintable()


@settings(max_examples=2 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | any_text(max_size=40).map(lambda text: f'[{{"secret": "{text}'.encode()))
def test_no_file_content_whatever_raises_anything_but_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "databases.json").write_bytes(content)
    try:
        installation = load({"DATA_PATH": str(tmp_path)})
    except ConfigError as error:
        assert str(error).startswith("databases.json: ")
    else:
        assert isinstance(installation, Installation)


@settings(max_examples=2 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40))
def test_a_secret_of_a_good_entry_is_in_secrets_and_neither_in_masked_nor_in_repr(tmp_path: Path, secret: str) -> None:
    marked = f"\u00a7{secret}\u00a7"  # a mark that occurs nowhere else, so that finding it means leaking
    entry = {**ENTRY, "duckdbPath": "/x.db", "s3": {**S3, "secretAccessKey": marked}}
    (tmp_path / "databases.json").write_text(json.dumps([entry]))
    (database,) = load({"DATA_PATH": str(tmp_path)}).databases
    assert marked in database.secrets()
    assert marked not in json.dumps(database.masked(), ensure_ascii=False)
    assert marked not in repr(database)
