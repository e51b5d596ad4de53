"""``duckling keys`` and the options for another key or mode, in this process, on a real S3 server."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat

import pytest

from duckling_provider.cli.app import run
from duckling_provider.config.keys import EncryptionKey

pytestmark = pytest.mark.server

OLD, NOW, NEXT = "a1" * 32, "b2" * 32, "c3" * 32


def fingerprint(key):
    return EncryptionKey.parse(key).fingerprint


class Shell:
    """Runs ``duckling …`` here; nothing that it says may hold a key."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *arguments):
        code = run([str(argument) for argument in arguments])
        said = self._capsys.readouterr()
        assert not [key for key in (OLD, NOW, NEXT) if key in said.out + said.err]
        return code, said.out, said.err

    def json(self, *arguments):
        code, out, _ = self(*arguments, "--json")
        return code, json.loads(out)


@pytest.fixture
def duckling(capsys):
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in signals}
    loggers = {name: logging.getLogger(name) for name in ("", "duckling_provider")}
    handlers = {name: (list(logger.handlers), logger.propagate) for name, logger in loggers.items()}
    yield Shell(capsys)
    for number, handler in before.items():
        signal.signal(number, handler)
    for name, (kept, propagate) in handlers.items():
        loggers[name].handlers[:], loggers[name].propagate = kept, propagate


class Site:
    def __init__(self, installation, server, duckling):
        self._installation, self._server, self._duckling = installation, server, duckling
        self.bucket = server.new_bucket()
        self.file = installation.data_path / "databases.json"

    def write(self, **fields):
        fields = {"encryption": "client-aes256", "encryptionKey": NOW, **fields}
        s3 = self._server.s3(self.bucket, **{name: value for name, value in fields.items() if value is not None})
        self._installation.write(self._installation.entry(s3=s3))

    def backup(self, **fields):
        """One backup, made under these fields of ``s3``; its key."""
        self.write(**fields)
        code, done = self._duckling.json("backup", "production")
        assert code == 0
        return done["key"]

    def client(self):
        return self._server.client()

    def forget_metadata(self, key):
        client = self.client()
        body = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def s3(self):
        return json.loads(self.file.read_text())[0]["s3"]


@pytest.fixture
def site(installation, moto_server, small_replica, duckling):
    small_replica(installation.replica())
    return Site(installation, moto_server, duckling)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(OLD + "\n")
    path.chmod(0o600)
    return path


def test_show_tells_which_key_reads_which_backup(site, duckling, key_file):
    plain = site.backup(encryption="none", encryptionKey=None)
    lost = site.backup(encryptionKey="d4" * 32)
    oldest, old = site.backup(encryptionKey=OLD), site.backup(encryptionKey=OLD)
    site.forget_metadata(oldest)
    new = site.backup(previousEncryptionKeys=[{"file": str(key_file)}])
    code, shown = duckling.json("keys", "show", "production")
    assert code == 0
    assert shown["keys"] == [
        {"field": "s3.encryptionKey", "fingerprint": fingerprint(NOW), "source": "databases.json", "backups": [new]},
        {
            "field": "s3.previousEncryptionKeys[0]",
            "fingerprint": fingerprint(OLD),
            "source": f"file {key_file}",
            "backups": [old, oldest],
        },
    ]
    assert shown["others"] == [{"fingerprint": fingerprint("d4" * 32), "backups": [lost]}]
    assert shown["notEncrypted"] == [plain]
    code, out, _ = duckling("keys", "show", "production")
    assert code == 0
    assert all(text in out for text in (fingerprint(NOW), fingerprint(OLD), "not here", "not encrypted"))


def test_show_tells_the_fingerprint_of_a_key_at_hand_also_when_the_store_is_gone(site, duckling, key_file):
    site.write(endpoint="http://127.0.0.1:9")
    code, shown = duckling.json("keys", "show", "production", "--encryption-key-file", key_file)
    assert (code, shown["success"]) == (1, False)
    assert [row["fingerprint"] for row in shown["keys"]] == [fingerprint(NOW), fingerprint(OLD)]


def test_rotate_keeps_what_was_readable_and_new_backups_get_the_new_key(site, duckling):
    old = site.backup()
    code, out, err = duckling("keys", "rotate", "production")
    assert code == 0
    s3 = site.s3()
    assert s3["previousEncryptionKeys"] == [NOW]
    assert s3["encryptionKey"] not in out + err
    assert fingerprint(NOW) in out
    assert fingerprint(s3["encryptionKey"]) in out
    assert "Every other host" in err
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
    code, backup = duckling.json("backup", "production")
    for key, by in ((old, NOW), (backup["key"], s3["encryptionKey"])):
        code, verified = duckling.json("verify", "production", key)
        assert (code, verified["keyFingerprint"]) == (0, fingerprint(by))
    code, checked = duckling.json("keys", "check", "production")
    assert (code, [row["keyFingerprint"] for row in checked["backups"]]) == (
        0,
        [fingerprint(s3["encryptionKey"]), fingerprint(NOW)],
    )


def test_rotate_takes_a_key_from_a_file_also_an_earlier_one(site, duckling, key_file):
    site.write(previousEncryptionKeys=[OLD])
    code, done = duckling.json("keys", "rotate", "production", "--encryption-key-file", key_file)
    assert (code, done["fingerprint"], done["previousFingerprints"]) == (0, fingerprint(OLD), [fingerprint(NOW)])
    assert (site.s3()["encryptionKey"], site.s3()["previousEncryptionKeys"]) == (OLD, [NOW])
    code, done = duckling.json("keys", "rotate", "production", "--encryption-key-file", key_file)
    assert (code, "this is the present key already" in done["error"]) == (2, True)


def test_rotate_refuses_a_key_that_stands_elsewhere_and_says_what_to_do(site, duckling, key_file):
    site.write(encryptionKey={"file": str(key_file)})
    before = site.file.read_bytes()
    code, done = duckling.json("keys", "rotate", "production")
    assert code == 2
    assert str(key_file) in done["error"]
    assert "previousEncryptionKeys" in done["hint"]
    assert site.file.read_bytes() == before


def test_rotate_refuses_an_entry_that_does_not_encrypt_here(site, duckling):
    site.write(encryption="sse-s3", encryptionKey=None)
    before = site.file.read_bytes()
    code, done = duckling.json("keys", "rotate", "production")
    assert (code, "client-aes256" in done["error"]) == (2, True)
    assert site.file.read_bytes() == before


def test_check_fails_when_one_of_the_newest_backups_needs_another_key(site, duckling):
    bad = site.backup(encryptionKey=OLD)
    good = site.backup()
    code, checked = duckling.json("keys", "check", "production")
    assert code == 1
    assert [(row["key"], row["error"] is None) for row in checked["backups"]] == [(good, True), (bad, False)]
    assert fingerprint(OLD) in checked["error"]
    code, checked = duckling.json("keys", "check", "production", "--last", 1)
    assert (code, len(checked["backups"])) == (0, 1)


def test_a_backup_whose_date_can_not_be_true_is_none_of_the_newest(site, duckling):
    good = site.backup()
    client, future = site.client(), "production/backup-2099-01-01T00-00-00-000Z.db"
    for end in ("", ".mac"):
        client.copy_object(Bucket=site.bucket, Key=future + end, CopySource=f"{site.bucket}/{good}{end}")
    code, checked = duckling.json("keys", "check", "production", "--last", 1)
    assert (code, [row["key"] for row in checked["backups"]]) == (0, [good])
    assert duckling.json("keys", "show", "production")[1]["keys"][0]["backups"] == [good, future]


# ---- another key or mode for one command -------------------------------------------------------------------


def test_a_key_in_a_file_reads_one_backup_and_leaves_the_configuration_alone(site, duckling, key_file, tmp_path):
    old = site.backup(encryptionKey=OLD)
    site.write()
    before = site.file.read_bytes()
    assert duckling("verify", "production", old)[0] == 1
    code, done = duckling.json("verify", "production", old, "--encryption-key-file", key_file)
    assert (code, done["keyFingerprint"]) == (0, fingerprint(OLD))
    code, out, _ = duckling("restore", "production", old, "--encryption-key-file", key_file, "--to", tmp_path / "x.db")
    assert (code, f"key {fingerprint(OLD)}" in out) == (0, True)
    assert site.file.read_bytes() == before


def test_a_plain_backup_needs_its_name_and_its_mode(site, duckling, tmp_path):
    plain = site.backup(encryption="none", encryptionKey=None)
    site.write()
    code, failed = duckling.json("restore", "production", plain, "--to", tmp_path / "x.db")
    assert (code, "--encryption none" in failed["hint"]) == (1, True)
    code, failed = duckling.json("restore", "production", "--encryption", "none", "--to", tmp_path / "x.db")
    assert (code, "has to be named" in failed["error"]) == (2, True)
    code, done = duckling.json("restore", "production", plain, "--encryption", "none", "--to", tmp_path / "x.db")
    assert (code, done["keyFingerprint"]) == (0, None)


@pytest.mark.parametrize(
    "arguments",
    [("--encryption", "rot13"), ("--encryption", "none", "--local"), ("--encryption-key-file", "/nonexistent/key")],
)
def test_options_that_do_not_fit_are_bad_usage(site, duckling, arguments):
    site.write()
    assert duckling("verify", "production", *arguments)[0] == 2


def test_a_file_that_holds_no_key_is_bad_usage_and_is_not_quoted(site, duckling, key_file):
    key_file.write_text("not-a-key-0815")
    site.write()
    code, out, err = duckling("verify", "production", "--encryption-key-file", key_file)
    assert code == 2
    assert "64 hex characters" in err
    assert "0815" not in out + err


def test_the_floor_of_the_installation_does_not_keep_an_old_backup_from_the_command_line(
    site, duckling, monkeypatch, tmp_path
):
    plain = site.backup(encryption="none", encryptionKey=None)
    site.write()
    monkeypatch.setitem(os.environ, "DUCKLING_MIN_ENCRYPTION", "client-aes256")
    assert duckling("restore", "production", plain, "--encryption", "none", "--to", tmp_path / "x.db")[0] == 0
