"""Changing databases.json: secrets stay, wrong settings change nothing, other entries are left alone."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import datetime, timezone

import pytest

from duckling_provider.base.errors import ConfigError, DucklingError, NotFoundError
from duckling_provider.config.editing import change_s3
from duckling_provider.config.environment import Settings

KEY = "ab" * 32
S3 = {
    "enabled": True,
    "bucket": "backups",
    "region": "eu-west-1",
    "accessKeyId": "AKIAEXAMPLE",
    "secretAccessKey": "a-secret-of-the-store",
    "encryption": "client-aes256",
    "encryptionKey": KEY,
}


@pytest.fixture
def settings(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    entries = [
        {"id": "shop", "name": "Shop", "mysqlConnectionString": "mysql://u:p@h/d", "duckdbPath": "data/shop.db",
         "updatedAt": "2024-01-01T00:00:00.000Z", "custom": {"kept": [1, None]}, "s3": S3},
        {"id": "crm", "name": "CRM Überblick", "mysqlConnectionString": "mysql://u:p@h/d", "duckdbPath": "data/crm.db"},
    ]  # fmt: skip
    file = data / "databases.json"
    file.write_text(json.dumps(entries))
    file.chmod(0o640)
    return Settings.from_env({"DATA_PATH": str(data)})


def read(settings):
    return json.loads(settings.databases_file.read_text())


def test_masked_secrets_stand_for_those_that_are_there(settings):
    database, _ = change_s3(
        settings, "shop", {**S3, "secretAccessKey": "***", "encryptionKey": "***", "storageClass": "STANDARD_IA"}
    )
    entry = read(settings)[0]
    assert entry["s3"] == {**S3, "storageClass": "STANDARD_IA"}
    assert database.s3 is not None
    assert database.s3.storage_class == "STANDARD_IA"


def test_a_mask_that_stands_for_nothing_is_refused(settings):
    before = settings.databases_file.read_bytes()
    with pytest.raises(ConfigError, match=r"crm: s3\.secretAccessKey: \*\*\* stands for the value that is there"):
        change_s3(settings, "crm", {**S3, "secretAccessKey": "***"})
    assert settings.databases_file.read_bytes() == before


def test_everything_else_stays_as_it_was_and_the_file_gets_private(settings):
    before = read(settings)
    change_s3(settings, "crm", {**S3, "pathPrefix": "elsewhere/"}, now=datetime(2025, 3, 1, tzinfo=timezone.utc))
    after = read(settings)
    assert after[0] == before[0]
    assert after[1] == {**before[1], "s3": {**S3, "pathPrefix": "elsewhere/"}}
    assert list(after[0]) == list(before[0])
    assert stat.S_IMODE(settings.databases_file.stat().st_mode) == 0o600
    assert "Überblick" in settings.databases_file.read_text()


def test_updated_at_is_kept_up_to_date_where_there_is_one(settings):
    change_s3(settings, "shop", None, now=datetime(2025, 3, 1, 14, 32, 11, 482000, tzinfo=timezone.utc))
    entry = read(settings)[0]
    assert "s3" not in entry
    assert entry["updatedAt"] == "2025-03-01T14:32:11.482Z"


@pytest.mark.parametrize(
    "change,message",
    [
        ({"encryptionKey": "ab"}, "shop: s3.encryptionKey: expected 64 hex characters, got 2"),
        ({"bucket": ""}, "shop: s3.bucket: required"),
        ({"encryption": "rot13"}, "shop: s3.encryption: expected none"),
        ({"partSizeMiB": 1}, "shop: s3.partSizeMiB: expected a whole number from 5 to 5120"),
    ],
)
def test_wrong_settings_change_nothing(settings, change, message):
    before = settings.databases_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        change_s3(settings, "shop", {**S3, **change})
    assert message in str(caught.value)
    assert KEY not in str(caught.value)
    assert settings.databases_file.read_bytes() == before


def test_an_entry_cannot_take_the_place_of_another(settings):
    change_s3(settings, "crm", {**S3, "pathPrefix": "crm/"})
    before = settings.databases_file.read_bytes()
    with pytest.raises(ConfigError, match="same endpoint, bucket and prefix"):
        change_s3(settings, "shop", {**S3, "pathPrefix": "crm/"})
    assert settings.databases_file.read_bytes() == before


def test_an_unknown_entry_is_named(settings):
    with pytest.raises(NotFoundError, match='no database "shpo"'):
        change_s3(settings, "shpo", S3)


def test_changes_at_the_same_time_are_all_kept(settings):
    errors = []

    def change(database_id, prefix):
        try:
            change_s3(settings, database_id, {**S3, "pathPrefix": prefix})
        except DucklingError as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(i, f"{i}-{n}/")) for n in range(5) for i in ("shop", "crm")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {entry["s3"]["pathPrefix"][:-3] for entry in read(settings)} == {"shop", "crm"}


def test_a_link_stays_a_link(settings, tmp_path):
    real = tmp_path / "elsewhere.json"
    os.replace(settings.databases_file, real)
    settings.databases_file.symlink_to(real)
    change_s3(settings, "shop", None)
    assert settings.databases_file.is_symlink()
    assert "s3" not in json.loads(real.read_text())[0]
