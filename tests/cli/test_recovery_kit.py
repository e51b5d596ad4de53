"""``duckling recovery-kit``: the page alone brings a backup back, also where nothing of this software is."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import stat
import subprocess
from datetime import datetime, timezone

import pytest

from duckling_provider import config
from duckling_provider.backup.inventory.states import record_state
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.base.moments import stamp_of
from duckling_provider.cli import recovery_kit as kit
from duckling_provider.cli.app import app
from duckling_provider.cli.session import Session
from duckling_provider.cli.terminal import Terminal
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server
OLD, NOW = "a1" * 32, "b2" * 32


class Site:
    def __init__(self, installation, server):
        self.installation, self._server = installation, server
        self.bucket = server.new_bucket()

    def write(self, **fields):
        fields = {"encryption": "client-aes256", "encryptionKey": NOW, **fields}
        s3 = self._server.s3(self.bucket, **{name: value for name, value in fields.items() if value is not None})
        self.installation.write(self.installation.entry(s3=s3))
        return self.installation.database()

    def backup(self, **fields):
        database = self.write(**fields)
        return upload_snapshot(database, open_store(database), take_snapshot(database)).key

    def object(self, key):
        return self._server.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key, body, metadata):
        self._server.client().put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=metadata)

    def download(self, key, folder):
        data = self.object(key)
        (folder / key.rpartition("/")[2]).write_bytes(data)


@pytest.fixture
def site(installation, moto_server, small_replica):
    small_replica(installation.replica())
    return Site(installation, moto_server)


@pytest.fixture
def duckling(capsys):
    """``duckling(arguments…) -> document``: the command in this process, without signal handlers."""

    def run(*arguments):
        terminal = Terminal(json=True)
        app([*map(str, arguments), "--json"], obj=Session(terminal), prog_name="duckling", standalone_mode=False)
        out = capsys.readouterr().out
        assert OLD not in out
        assert NOW not in out
        return json.loads(out)

    return run


def written(duckling, folder):
    folder.mkdir()
    duckling("recovery-kit", "production", "--to", folder)
    return (folder / "recovery-kit-production.txt").read_text()


def blocks(text, section):
    """What a reader of the text is to copy from a section, block by block."""
    inside = re.search(rf"^{section}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)[1]
    return [
        re.sub("^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^    .*\n)+", inside, re.MULTILINE)
    ]


def follow(commands, folder, program="sh"):
    """What a bare shell says to them: no home, no Python of ours, no setting."""
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    shell = shutil.which(program, path=environ["PATH"])
    done = subprocess.run(
        [shell, "-eu"], input="\n".join(commands), cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def spoilt(data, at):
    """`data` with another byte at `at`: a byte that is written there may be the one that is there."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("with_key", [True, False], ids=["with the key", "without"])
def test_its_openssl_steps_bring_the_database_back_in_an_empty_environment(site, duckling, tmp_path, with_key):
    key = site.backup()
    out, empty = tmp_path / "kit", tmp_path / "empty"
    out.mkdir(), empty.mkdir()
    options = [] if with_key else ["--without-key"]
    done = duckling("recovery-kit", "production", "--to", out, *options)
    assert done["withKey"] is with_key
    text = (out / "recovery-kit-production.txt").read_text()
    download, prove, decrypt = blocks(text, "With openssl alone")
    # A provider's console does what these lines say.
    names = re.findall(rf"s3://{site.bucket}/(\S+)", download)
    assert names == [key, f"{key}.mac"]
    for name in names:
        site.download(name, empty)
    if not with_key:
        (empty / "key.txt").write_text(NOW + "\r\n")
    assert follow([prove, decrypt], empty) == ["GENUINE"]
    assert (empty / "restored.db").read_bytes() == site.installation.replica().read_bytes()
    # And they tell when the bytes are not those that were uploaded.
    file = empty / key.rpartition("/")[2]
    file.write_bytes(spoilt(file.read_bytes(), -1))
    assert follow([prove], empty) == ["DAMAGED"]
    # Nothing is genuine because nothing could be computed.
    unproven = prove.replace("openssl", "false").replace('"$FILE.mac"', "/dev/null")
    assert follow([unproven], empty) == ["DAMAGED"]


def test_its_openssl_steps_bring_a_backup_of_format_2_back_and_tell_what_is_damaged(site, duckling, tmp_path):
    key = site.backup(objectFormat=2)
    duckling("recovery-kit", "production", "--to", tmp_path)
    text = (tmp_path / "recovery-kit-production.txt").read_text()
    assert json.loads(blocks(text, "With this software")[0])[0]["s3"]["objectFormat"] == 2
    _, prove, decrypt = blocks(text, "With openssl alone, backups of format 2")
    for name in (key, f"{key}.mac"):
        site.download(name, tmp_path)
    assert follow([prove, decrypt], tmp_path, program="bash") == ["GENUINE", "WHOLE"]
    assert (tmp_path / "restored.db").read_bytes() == site.installation.replica().read_bytes()
    file = tmp_path / key.rpartition("/")[2]
    good = file.read_bytes()
    (tmp_path / "restored.db").unlink()
    file.write_bytes(spoilt(good, 0))
    assert follow([prove, decrypt], tmp_path, program="bash")[:2] == ["GENUINE", "DAMAGED"]
    file.write_bytes(spoilt(good, -49))
    assert follow([prove], tmp_path, program="bash") == ["DAMAGED"]


def test_its_databases_json_is_one_that_this_software_takes(site, duckling, tmp_path):
    site.write(previousEncryptionKeys=[OLD], pathPrefix="it's here/")
    duckling("recovery-kit", "production", "--to", tmp_path)
    text = (tmp_path / "recovery-kit-production.txt").read_text()
    entries, commands = blocks(text, "With this software")
    folder = tmp_path / "elsewhere" / "data"
    folder.mkdir(parents=True)
    (folder / "databases.json").write_text(entries)
    (folder / "databases.json").chmod(0o600)
    loaded = config.load({"DATA_PATH": str(folder)})
    assert loaded.problems == ()
    (database,) = loaded.databases
    ours = site.installation.database()
    for name in ("bucket", "region", "endpoint", "path_prefix", "force_path_style", "encryption", "reading_keys"):
        assert getattr(database.s3, name) == getattr(ours.s3, name)
    assert "duckling restore production latest" in commands


def test_both_files_are_private_new_and_say_the_same(site, duckling, tmp_path):
    key = site.backup()
    umask = os.umask(0)
    try:
        done = duckling("recovery-kit", "production", "--to", tmp_path)
    finally:
        os.umask(umask)
    files = [tmp_path / "recovery-kit-production.txt", tmp_path / "recovery-kit-production.html"]
    assert done["files"] == [str(path) for path in files]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
    text, page = (path.read_text() for path in files)
    assert "src=" not in page
    assert "href=" not in page
    assert "@import" not in page
    for section in ("With openssl alone", "With this software"):
        for block in blocks(text, section):
            assert html.escape(block.rstrip("\n")) in page
    fingerprint = EncryptionKey.parse(NOW).fingerprint
    for found in (text, page):
        assert all(part in found for part in (key, fingerprint, NOW, site.bucket))
        assert "s3cret" not in found
        assert site.installation.database().s3.secret_access_key.get_secret_value() not in found


def test_its_steps_name_the_key_of_the_newest_backup_also_when_the_key_was_changed_since(site, duckling, tmp_path):
    key = site.backup(encryptionKey=OLD)
    site.write(previousEncryptionKeys=[OLD])
    duckling("recovery-kit", "production", "--to", tmp_path)
    prove, decrypt = blocks((tmp_path / "recovery-kit-production.txt").read_text(), "With openssl alone")[1:]
    for name in (key, f"{key}.mac"):
        site.download(name, tmp_path)
    assert follow([prove, decrypt], tmp_path) == ["GENUINE"]


def test_damaged_backups_are_not_on_it_and_those_of_another_machine_are_marked(site, duckling, tmp_path):
    good = site.backup()
    database = site.write()
    store = open_store(database)
    bad = site.backup()
    record_state(database, store, store.head(bad), "disproved", means="full", reason="a test")
    text = written(duckling, tmp_path / "one")
    assert (good in text, bad in text) == (True, False)
    assert "replica" not in text
    # A clone of the machine: its backups carry another identity.
    foreign = f"production/backup-{stamp_of(datetime.now(timezone.utc))}.db"
    stored = store.head(good)
    note = {**stored.metadata, "duckling-origin": "replica=0123456789abcdef; host=clone"}
    for suffix in ("", ".mac"):
        body = site.object(good + suffix)
        site.put(foreign + suffix, body, note if not suffix else {})
    text = written(duckling, tmp_path / "two")
    (line,) = [line for line in text.splitlines() if line.startswith(f"- {foreign}")]
    assert line.endswith("of clone (replica 0123456789abcdef)")
    (line,) = [line for line in text.splitlines() if line.startswith(f"- {good}")]
    assert "replica" not in line
    # Its steps are shown with one of this machine.
    assert f"/{good}.mac ." in "\n".join(blocks(text, "With openssl alone"))
    assert f"duckling restore production {good.rpartition('/')[2]}" in blocks(text, "With this software")[-1]


@pytest.mark.parametrize("name", ["recovery-kit-production.txt", "recovery-kit-production.html"])
def test_a_file_or_link_that_is_there_is_left_alone_and_nothing_is_written(site, duckling, tmp_path, name):
    site.write()
    folder, target = tmp_path / "kit", tmp_path / "target"
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(Exception, match="there is a file of that name already"):
        duckling("recovery-kit", "production", "--to", folder)
    assert not target.exists()
    assert [path.name for path in folder.iterdir()] == [name]


def test_without_the_key_no_key_is_on_it(site, duckling, tmp_path):
    site.write(previousEncryptionKeys=[OLD])
    duckling("recovery-kit", "production", "--to", tmp_path, "--without-key")
    for path in tmp_path.glob("recovery-kit-*"):
        content = path.read_text()
        assert OLD not in content
        assert NOW not in content
        assert EncryptionKey.parse(OLD).fingerprint in content


def test_it_is_written_also_when_the_store_is_gone(site, duckling, tmp_path):
    site.write(endpoint="http://127.0.0.1:9")
    duckling("recovery-kit", "production", "--to", tmp_path)
    assert "With openssl alone" in (tmp_path / "recovery-kit-production.txt").read_text()


def test_backups_that_are_not_encrypted_here_have_steps_without_openssl(installation, moto_server):
    s3 = moto_server.s3("bucket", encryption="sse-s3")
    installation.write(installation.entry(s3=s3, name='The "shop" <b>'))
    database = installation.database()
    sections = list(kit.page(database, database.s3, [], with_key=True, now=datetime.now(timezone.utc)))
    text = kit.as_text("Kit", sections)
    assert "sha256sum" in text
    assert "openssl" not in text
    assert "<b>" not in kit.as_html("Kit", sections)


def test_keys_of_older_backups_are_on_the_page_although_new_ones_are_not_encrypted_here(site, duckling, tmp_path):
    encrypted = site.backup()
    site.write(encryption="sse-s3", encryptionKey=None, previousEncryptionKeys=[NOW])
    assert duckling("recovery-kit", "production", "--to", tmp_path)["withKey"] is True
    text = (tmp_path / "recovery-kit-production.txt").read_text()
    download, prove, decrypt = blocks(text, "With openssl alone")
    assert re.findall(rf"s3://{site.bucket}/(\S+)", download) == [encrypted, f"{encrypted}.mac"]
    assert all(NOW in block for block in (prove, decrypt) if "KEY=" in block)
    assert "sha256sum" in text.partition("Without this software")[2]
    (entry,) = json.loads(blocks(text, "With this software")[0])
    assert entry["s3"]["previousEncryptionKeys"] == [NOW]
    assert "--encryption client-aes256" in " ".join(text.split())


def test_the_kms_key_and_a_demanded_identity_are_on_the_page(installation, moto_server):
    def text_of(**fields):
        installation.write(installation.entry(s3=moto_server.s3("bucket", **fields)))
        database = installation.database()
        return kit.as_text(
            "Kit", list(kit.page(database, database.s3, [], with_key=True, now=datetime.now(timezone.utc)))
        )

    arn = "arn:aws:kms:eu-west-1:111122223333:key/abc"
    kms = text_of(encryption="sse-kms", kmsKeyId=arn)
    assert f"{arn}; to read with it takes kms:Decrypt" in kms
    assert json.loads(blocks(kms, "With this software")[0])[0]["s3"]["kmsKeyId"] == arn
    strict = text_of(encryption="client-aes256", encryptionKey=NOW, requireIdentity=True)
    assert json.loads(blocks(strict, "With this software")[0])[0]["s3"]["requireIdentity"] is True
