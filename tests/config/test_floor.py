"""``DUCKLING_MIN_ENCRYPTION``: no entry of the installation stores backups more weakly than that."""

from __future__ import annotations

import os

import pytest

from duckling_provider import config
from duckling_provider.base.errors import ConfigError
from duckling_provider.config.databases import Settings
from duckling_provider.config.editing import change_s3
from duckling_provider.config.s3 import MODES

S3 = {"enabled": True, "bucket": "b", "region": "eu-west-1", "accessKeyId": "A", "secretAccessKey": "secret-0815"}
S3 |= {"encryptionKey": "ab" * 32, "kmsKeyId": "k"}


@pytest.mark.parametrize("least", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_a_weaker_entry_is_a_mistake_that_names_it(installation, monkeypatch, mode, least):
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", least)
    installation.write(
        installation.entry("a", s3={**S3, "encryption": mode}),
        installation.entry("b", s3={**S3, "encryption": "client-aes256"}),
    )
    found = config.load()
    if MODES.index(mode) >= MODES.index(least):
        assert [database.id for database in found.databases] == ["a", "b"]
        return
    (problem,) = found.problems
    assert (problem.entry, problem.field) == ("a", "s3.encryption")
    assert f"'{mode}' is weaker than DUCKLING_MIN_ENCRYPTION ({least})" in str(problem)
    assert [database.id for database in found.databases] == ["b"]


def test_an_entry_that_leaves_encryption_out_is_as_weak_as_none(installation, monkeypatch):
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", "sse-s3")
    installation.write(installation.entry(s3=S3))
    with pytest.raises(ConfigError, match="weaker than DUCKLING_MIN_ENCRYPTION"):
        installation.database()


def test_backups_that_are_local_or_switched_off_have_no_mode(installation, monkeypatch):
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", "client-aes256")
    installation.write(installation.entry("a"), installation.entry("b", s3={**S3, "enabled": False}))
    assert len(config.load().databases) == 2


def test_an_edit_cannot_go_below_the_floor(installation, monkeypatch):
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", "sse-kms")
    path = installation.write(installation.entry(s3={**S3, "encryption": "client-aes256"}))
    before = path.read_bytes()
    for mode in ("none", "sse-s3"):
        with pytest.raises(ConfigError, match="weaker than DUCKLING_MIN_ENCRYPTION"):
            change_s3(Settings.from_env(os.environ), "production", {**S3, "encryption": mode})
    assert path.read_bytes() == before
    change_s3(Settings.from_env(os.environ), "production", {**S3, "encryption": "sse-kms"})


@pytest.mark.parametrize("text", ["strong", "AES256", "client", "none,sse-s3"])
def test_a_floor_that_is_no_mode_stops_everything(installation, monkeypatch, text):
    monkeypatch.setenv("DUCKLING_MIN_ENCRYPTION", text)
    with pytest.raises(ConfigError, match="expected none, sse-s3, sse-kms or client-aes256") as caught:
        config.load()
    assert caught.value.field == "DUCKLING_MIN_ENCRYPTION"
