"""Secrets that databases.json points to: in a file or in a variable, taken up anew, shown nowhere."""

from __future__ import annotations

import json
import os
import stat

import pytest

from duckling_provider import config
from duckling_provider.base.errors import ConfigError
from duckling_provider.config.databases import Settings
from duckling_provider.config.editing import change_s3
from duckling_provider.config.entry import Entry
from duckling_provider.config.fields import secret_names
from duckling_provider.config.references import REFERABLE
from duckling_provider.config.s3 import S3Settings

KEY, OLD = "ab" * 32, "cd" * 32
S3 = {
    "enabled": True,
    "bucket": "backups",
    "region": "eu-west-1",
    "accessKeyId": "AKIDEXAMPLE",
    "secretAccessKey": "very-secret-0815",
    "encryption": "client-aes256",
    "encryptionKey": KEY,
}


@pytest.fixture
def secret(tmp_path):
    """``secret(text, name="secret", mode=0o600) -> {"file": …}``."""

    def make(text, name="secret", mode=0o600):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return {"file": str(path)}

    return make


def test_every_secret_of_an_entry_may_stand_elsewhere():
    assert secret_names(Entry) | secret_names(S3Settings) | {"accessKeyId"} == REFERABLE


def test_a_secret_is_read_from_its_file_or_variable(installation, secret, monkeypatch):
    url = "mysql://user:p%40ss-0815@db/shop"
    monkeypatch.setenv("ACCESS", "AKIDOTHER")
    monkeypatch.setenv("URL", url)
    s3 = {
        **S3,
        "accessKeyId": {"env": "ACCESS"},
        "secretAccessKey": secret("of-the-file-42\n", "access"),
        "sessionToken": secret("token-of-the-file", "token"),
        "encryptionKey": secret(f"  {KEY}\r\n", "key"),
        "previousEncryptionKeys": ["ef" * 32, secret(OLD, "old")],
    }
    installation.write(installation.entry(s3=s3, mysqlConnectionString={"env": "URL"}))
    database = installation.database()
    assert database.mysql_connection_string.get_secret_value() == url
    assert database.s3.access_key_id == "AKIDOTHER"
    assert database.s3.secret_access_key.get_secret_value() == "of-the-file-42"
    assert [key.hex() for key in database.s3.reading_keys] == [KEY, "ef" * 32, OLD]
    # What was read counts as secret, where it was read from does not.
    assert {"of-the-file-42", KEY, OLD, "p%40ss-0815", "p@ss-0815"} <= set(database.secrets())
    assert not [known for known in database.secrets() if known in json.dumps([s3["encryptionKey"], "URL"])]
    shown = database.masked()
    assert shown["mysqlConnectionString"] == "***"
    assert {name for name, value in shown["s3"].items() if value == "***"} == REFERABLE - {"mysqlConnectionString"}
    assert [known for known in database.secrets() if known in repr(database)] == ["AKIDOTHER"]


def test_a_changed_secret_is_taken_up_without_a_restart(installation, secret, monkeypatch):
    monkeypatch.setenv("ACCESS", "first-access-key")
    s3 = {**S3, "encryptionKey": secret(KEY), "secretAccessKey": {"env": "ACCESS"}}
    installation.write(installation.entry(s3=s3))
    first = installation.database()
    secret(OLD)
    monkeypatch.setenv("ACCESS", "second-access-key")
    second = installation.database()
    assert (first.s3.encryption_key.hex(), second.s3.encryption_key.hex()) == (KEY, OLD)
    assert second.s3.secret_access_key.get_secret_value() == "second-access-key"


def test_the_environment_that_is_given_counts(installation):
    installation.write(installation.entry(s3={**S3, "encryptionKey": {"env": "BACKUP_KEY"}}))
    environ = {"DATA_PATH": os.environ["DATA_PATH"], "BACKUP_KEY": KEY}
    assert config.load(environ).database("production").s3.encryption_key.hex() == KEY


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"file": "relative/key"}, '"file": expected an absolute path'),
        ({"file": "/nonexistent/key"}, "the file /nonexistent/key does not exist"),
        ({"file": "/"}, "/ is no regular file"),
        ({"file": "/dev/zero"}, "/dev/zero is no regular file"),
        ({"file": "/a\0b"}, "cannot read the file"),
        ({"env": "NOT_SET_0815"}, "the environment variable NOT_SET_0815 is not set"),
        ({"env": "EMPTY_0815"}, "the environment variable EMPTY_0815 is empty"),
        ({"env": "no name"}, '"env": expected the name of an environment variable'),
        ({"env": KEY}, '"env": expected the name of an environment variable'),
        ({"file": 7}, 'expected a string, {"file": "/path"} or {"env": "NAME"}, got an object'),
        ({"file": "/a", "env": "B"}, 'expected a string, {"file": "/path"} or {"env": "NAME"}, got an object'),
        ({}, 'expected a string, {"file": "/path"} or {"env": "NAME"}, got an object'),
    ],
)
@pytest.mark.parametrize("place", ["encryptionKey", "previousEncryptionKeys", "secretAccessKey"])
def test_a_reference_that_leads_nowhere_is_named_with_its_field(installation, monkeypatch, place, value, message):
    monkeypatch.setenv("EMPTY_0815", "")
    number = ".0" if place == "previousEncryptionKeys" else ""
    installation.write(installation.entry(s3={**S3, place: [value] if number else value}))
    (problem,) = config.load().problems
    assert str(problem).startswith(f"production: s3.{place}{number}: ")
    assert message in str(problem)
    assert KEY not in str(problem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("x" * 65_537, "is larger than 64 KiB"),
        ("ab" * 31, "s3.encryptionKey: expected 64 hex characters, got 62"),
        (f"{KEY}\n{OLD}", "s3.encryptionKey: holds a control character"),
    ],
)
def test_a_file_that_holds_no_such_secret_is_an_error_that_does_not_quote_it(installation, secret, text, message):
    installation.write(installation.entry(s3={**S3, "encryptionKey": secret(text)}))
    (problem,) = config.load().problems
    assert message in str(problem)
    assert "abab" not in str(problem)


@pytest.mark.parametrize(("mode", "says"), [(0o600, None), (0o400, None), (0o644, "chmod 600"), (0o640, "chmod 600")])
def test_a_file_that_others_can_read_brings_a_warning(installation, secret, mode, says):
    installation.write(installation.entry(s3={**S3, "encryptionKey": secret(KEY, mode=mode)}))
    assert installation.database().s3.encryption_key.hex() == KEY
    found = [warning for warning in config.load().warnings if "s3.encryptionKey" in warning]
    assert (says in found[0]) if says else (found == [])


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o660, 0o666])
def test_a_file_that_others_can_write_is_refused(installation, secret, mode):
    installation.write(installation.entry(s3={**S3, "encryptionKey": secret(KEY, mode=mode)}))
    with pytest.raises(ConfigError, match="others than its owner can write the file"):
        installation.database()


def test_a_secret_may_be_a_link_as_kubernetes_mounts_it(installation, secret, tmp_path):
    target = secret(KEY, "..data")["file"]
    (tmp_path / "link").symlink_to(target)
    installation.write(installation.entry(s3={**S3, "encryptionKey": {"file": str(tmp_path / "link")}}))
    assert installation.database().s3.encryption_key.hex() == KEY


def test_one_bad_reference_leaves_the_other_entries_alone(installation):
    installation.write(
        installation.entry("a", s3={**S3, "encryptionKey": {"env": "NOT_SET_0815"}}),
        installation.entry("b", s3={**S3, "pathPrefix": "b/"}),
    )
    found = config.load()
    assert [database.id for database in found.databases] == ["b"]
    assert [problem.entry for problem in found.problems] == ["a"]


def test_what_is_switched_off_is_not_looked_up(installation):
    installation.write(installation.entry(s3={**S3, "enabled": False, "encryptionKey": {"file": "/nonexistent"}}))
    assert installation.database().masked()["s3"]["encryptionKey"] == "***"


# ---- edits, as the REST API makes them ---------------------------------------------------------------------


def test_an_edit_keeps_a_reference_that_comes_back_masked_or_as_it_is(installation, secret):
    s3 = {**S3, "encryptionKey": secret(KEY), "previousEncryptionKeys": [secret(OLD, "old")]}
    path = installation.write(installation.entry(s3=s3))
    masked = installation.database().masked()["s3"]
    for sent in (masked, s3):
        database, _ = change_s3(Settings.from_env(os.environ), "production", {**sent, "storageClass": "STANDARD_IA"})
        assert json.loads(path.read_text())[0]["s3"] == {**s3, "storageClass": "STANDARD_IA"}
        assert database.s3.encryption_key.hex() == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("value", [{"file": "/etc/hostname"}, {"env": "DUCKLING_API_KEY"}, {"file": "/a", "x": 1}])
@pytest.mark.parametrize("field", ["accessKeyId", "secretAccessKey", "encryptionKey", "previousEncryptionKeys"])
def test_an_edit_cannot_set_a_reference(installation, secret, field, value):
    s3 = {**S3, "encryptionKey": secret(KEY)}
    path = installation.write(installation.entry(s3=s3))
    before = path.read_bytes()
    for sent in (value, [value]):
        with pytest.raises(ConfigError, match="not through an edit") as caught:
            change_s3(Settings.from_env(os.environ), "production", {**s3, field: sent})
        assert caught.value.field == f"s3.{field}"
    assert path.read_bytes() == before


def test_tags_that_look_like_a_reference_are_tags(installation):
    tags = {"env": "production"}
    installation.write(installation.entry(s3={**S3, "tags": tags}))
    assert installation.database().masked()["s3"]["tags"] == tags
    database, _ = change_s3(Settings.from_env(os.environ), "production", {**S3, "tags": {"file": "x"}})
    assert database.s3.tags == {"file": "x"}
