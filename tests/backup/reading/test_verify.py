"""Verifying tells a backup that would restore from one that would not, and writes nothing anywhere."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest

from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.states import read_state
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.cancellation import Control
from duckling_provider.base.errors import (
    AccessDeniedError,
    CancelledError,
    DucklingError,
    IntegrityError,
    ModeError,
    NotFoundError,
    StoreError,
    WrongKeyError,
)
from duckling_provider.stores import s3
from duckling_provider.stores.s3 import open_store

pytestmark = pytest.mark.server

KEY = "c4" * 32
MODES = ["none", "sse-s3", "sse-kms", "client-aes256"]
BLOCK = 262_144

_VERIFY = """
import json
import resource
from duckling_provider import config
from duckling_provider.stores.s3 import open_store
from duckling_provider.backup.reading.verify import verify_backup

database = config.load().database("production")
store = open_store(database)
# From here on not one byte can be written into any file.
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
result = verify_backup(database, store)
print(json.dumps([result.evidence, result.size]))
"""


class Stored:
    """A backup in a bucket, and ways to spoil it."""

    def __init__(self, installation, server, *, replica, **fields):
        self._installation, self._server, self.bucket = installation, server, server.new_bucket()
        self._fields = {"encryption": "none", **fields}
        if self._fields["encryption"] == "client-aes256":
            self._fields.setdefault("encryptionKey", KEY)
        self.through(server)
        snapshot = take_snapshot(self.database)
        self.size = replica.stat().st_size
        self._local = snapshot.path.parent
        self.key = upload_snapshot(self.database, self.store(), snapshot).key

    def through(self, server, **fields):
        entry = server.s3(self.bucket, **{**self._fields, **fields})
        self._installation.write(self._installation.entry(s3=entry))
        self.database, self._store = self._installation.database(), None

    def store(self):
        self._store = self._store or open_store(self.database)
        return self._store

    def verify(self, key="latest", **options):
        return verify_backup(self.database, self.store(), key, **options)

    @property
    def client(self):
        return self._server.client()

    def data(self):
        return self.client.get_object(Bucket=self.bucket, Key=self.key)["Body"].read()

    def put(self, data, *, metadata=True):
        """Other bytes under the key, with the metadata that was there or with none."""
        kept = self.client.head_object(Bucket=self.bucket, Key=self.key)["Metadata"] if metadata else {}
        self.client.put_object(Bucket=self.bucket, Key=self.key, Body=data, Metadata=kept)

    def forget_here(self):
        """Remove the local copy and what it would say about the object."""
        shutil.rmtree(self._local)

    def flip(self, position, **options):
        data = bytearray(self.data())
        data[position] ^= 1
        self.put(bytes(data), **options)


@pytest.fixture
def stored(installation, small_replica):
    """``stored(server, **fields) -> Stored``: the backup of a small replica in a bucket of its own."""

    def make(server, **fields):
        return Stored(installation, server, replica=small_replica(installation.replica()), **fields)

    return make


@pytest.fixture(params=["s3_server", "moto_server"])
def server(request):
    """Both kinds of server, one after the other."""
    return request.getfixturevalue(request.param)


# ---- sound backups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_sound_backup_verifies_and_the_evidence_is_named(server, stored, mode):
    backup = stored(server, encryption=mode)
    result = backup.verify()
    assert (result.key, result.mode, result.size) == (backup.key, mode, backup.size)
    assert result.object_size == backup.size + (16 if mode == "client-aes256" else 0)
    assert result.evidence == ("HMAC-SHA256" if mode == "client-aes256" else "SHA-256")


@pytest.mark.parametrize("mode,evidence", [("none", "DuckDB block checksums"), ("client-aes256", "HMAC-SHA256")])
def test_a_backup_without_metadata_verifies_by_what_it_holds(moto_server, stored, mode, evidence):
    backup = stored(moto_server, encryption=mode)
    backup.put(backup.data(), metadata=False)
    backup.forget_here()
    assert backup.verify().evidence == evidence


def test_the_local_copys_digest_stands_in_for_missing_metadata(moto_server, stored):
    backup = stored(moto_server, encryption="none")
    backup.put(backup.data(), metadata=False)
    assert backup.verify().evidence == "SHA-256"


def test_a_mac_with_white_space_and_capitals_is_the_same_mac(moto_server, stored):
    backup = stored(moto_server, encryption="client-aes256")
    mac = backup.client.get_object(Bucket=backup.bucket, Key=f"{backup.key}.mac")["Body"].read()
    backup.client.put_object(Bucket=backup.bucket, Key=f"{backup.key}.mac", Body=b" " + mac.upper() + b"\r\n")
    assert backup.verify().evidence == "HMAC-SHA256"


def test_a_key_may_be_given_whole_or_as_a_file_name(moto_server, stored):
    backup = stored(moto_server)
    name = backup.key.removeprefix("production/")
    assert backup.verify(backup.key).key == backup.verify(name).key == backup.verify("latest").key == backup.key


def test_a_local_backup_verifies_like_one_in_the_store(installation, make_replica):
    installation.write(installation.entry())
    replica = make_replica(installation.replica())
    database = installation.database()
    snapshot = take_snapshot(database)
    result = verify_backup(database, LocalBackups(database))
    assert (result.key, result.size, result.evidence) == (snapshot.filename, replica.stat().st_size, "SHA-256")
    data = bytearray(snapshot.path.read_bytes())
    data[-5] ^= 1
    snapshot.path.write_bytes(data)
    with pytest.raises(IntegrityError):
        verify_backup(database, LocalBackups(database))


def test_a_big_backup_is_read_once_and_progress_ends_at_its_size(moto_server, installation, medium_replica, make_proxy):
    backup = Stored(
        installation, moto_server, replica=medium_replica(installation.replica()), encryption="client-aes256"
    )
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    seen = []
    backup.verify(control=Control(lambda *report: seen.append(report)))
    assert seen[-1] == ("verify", backup.size + 16, backup.size + 16)
    reads = [exchange for exchange in proxy.seen if exchange.operation == "GetObject"]
    ranges = [_range(exchange) for exchange in reads if not exchange.key.endswith(".state")]
    asked = sum(stop - start + 1 for start, stop in ranges)
    assert backup.size + 16 <= asked < backup.size + 4096


def _range(exchange):
    start, _, stop = exchange.headers["range"].removeprefix("bytes=").partition("-")
    return int(start), int(stop)


# ---- no plain text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_verifying_writes_no_byte_into_any_file(moto_server, stored, start_child, mode):
    backup = stored(moto_server, encryption=mode)
    child = start_child(_VERIFY)
    code, lines = child.end()
    assert code == 0
    assert json.loads(lines[-1]) == ["HMAC-SHA256" if mode == "client-aes256" else "SHA-256", backup.size]


def test_verifying_leaves_every_folder_as_it_was(moto_server, stored, installation, tmp_path, monkeypatch):
    backup = stored(moto_server, encryption="client-aes256")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    def everything():
        return sorted((folder, *files) for folder, _, files in os.walk(tmp_path))

    before, during = everything(), []
    backup.verify(control=Control(lambda *_: during.append(everything())))
    assert during
    assert all(state == before for state in [*during, everything()])
    assert installation.replica().stat().st_size == backup.size


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
@pytest.mark.parametrize("region", ["first bytes", "header", "first block", "middle", "last byte"])
@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
def test_one_flipped_bit_anywhere_is_found(moto_server, stored, mode, region, metadata):
    backup = stored(moto_server, encryption=mode)
    size = len(backup.data())
    position = {"first bytes": 3, "header": 5000, "first block": 12_400, "middle": size // 2, "last byte": size - 1}
    backup.flip(position[region], metadata=metadata)
    # Spoiling the IV or the first bytes of a ciphertext without metadata can't be told from a wrong key.
    with pytest.raises(IntegrityError) as caught:
        backup.verify()
    assert backup.key in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
@pytest.mark.parametrize("cut", ["one byte", "a block", "nearly all", "all"])
def test_a_truncated_object_is_found(moto_server, stored, mode, metadata, cut):
    backup = stored(moto_server, encryption=mode)
    data = backup.data()
    lead = 16 if mode == "client-aes256" else 0
    kept = {"one byte": len(data) - 1, "a block": len(data) - BLOCK, "nearly all": lead + 12_288, "all": 0}[cut]
    backup.put(data[:kept], metadata=metadata)
    with pytest.raises(IntegrityError) as caught:
        backup.verify()
    assert backup.key in str(caught.value)


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
@pytest.mark.parametrize("more", [1, 16, BLOCK])
def test_an_extended_object_is_found(moto_server, stored, mode, more):
    backup = stored(moto_server, encryption=mode)
    backup.put(backup.data() + random.Random(0).randbytes(more))
    with pytest.raises(IntegrityError):
        backup.verify()


class BadLine:
    """Alters one bit of each large answer, at most `times`; each time another one."""

    def __init__(self, proxy, key, times):
        self._key, self.left, self.read = key, times, 0
        proxy.alter = self

    def __call__(self, seen, content):
        if seen.operation != "GetObject" or seen.key != self._key or len(content) < 1000:
            return content
        self.read += 1
        if self.left == 0:
            return content
        self.left -= 1
        spoiled = bytearray(content)
        spoiled[-100 - self.left] ^= 1
        return bytes(spoiled)


def state_of(stored):
    listed = next(found for found in list_backups(stored.store()) if found.key == stored.key)
    return read_state(stored.database, stored.store(), listed).name


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
@pytest.mark.parametrize("times", [1, 2])
def test_readings_that_differ_disprove_nothing(moto_server, stored, make_proxy, mode, times):
    found = stored(moto_server, encryption=mode)
    proxy = make_proxy(moto_server)
    line = BadLine(proxy, found.key, times)
    found.through(proxy.server)
    with pytest.raises(StoreError, match="two readings of it differ") as caught:
        found.verify()
    assert caught.value.retryable
    assert line.read == 2
    assert state_of(found) == "uploaded"
    found.verify()
    assert state_of(found) == "verified"


@pytest.mark.parametrize("mode", ["none", "client-aes256"])
def test_damage_is_noted_after_a_second_reading_and_forgotten_after_a_good_one(
    moto_server, stored, make_proxy, monkeypatch, mode
):
    found = stored(moto_server, encryption=mode)
    sound = found.data()
    found.flip(-100)
    proxy = make_proxy(moto_server)
    line = BadLine(proxy, found.key, 0)
    found.through(proxy.server)
    found.store()
    made = []
    monkeypatch.setattr(s3, "make_client", lambda *a, real=s3.make_client, **k: made.append(1) or real(*a, **k))
    with pytest.raises(IntegrityError, match="read twice, with the same result"):
        found.verify()
    assert (line.read, len(made)) == (2, 1)
    assert state_of(found) == "disproved"
    found.put(sound)
    found.verify()
    assert state_of(found) == "verified"


def test_two_blocks_that_changed_places_are_found(moto_server, stored):
    # Each of them still has its own right checksum.
    backup = stored(moto_server)
    data = bytearray(backup.data())
    first, second = slice(12_288, 12_288 + BLOCK), slice(12_288 + BLOCK, 12_288 + 2 * BLOCK)
    data[first], data[second] = data[second], data[first]
    assert len(data) == backup.size
    backup.put(bytes(data))
    with pytest.raises(IntegrityError) as caught:
        backup.verify()
    assert "SHA-256" in str(caught.value)


def test_an_object_that_is_replaced_while_it_is_read_is_found(
    moto_server, installation, medium_replica, make_proxy, make_replica, tmp_path
):
    backup = Stored(installation, moto_server, replica=medium_replica(installation.replica()))
    other = make_replica(tmp_path / "other.db", seed=1).read_bytes()
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)

    def swap(seen):
        if seen.operation == "GetObject" and _range(seen)[0] == 8 << 20:
            backup.put(other.ljust(backup.size, b"\0"))

    proxy.before = swap
    with pytest.raises(IntegrityError):
        backup.verify()


def test_a_missing_mac_is_named(moto_server, stored):
    backup = stored(moto_server, encryption="client-aes256")
    backup.client.delete_object(Bucket=backup.bucket, Key=f"{backup.key}.mac")
    with pytest.raises(IntegrityError) as caught:
        backup.verify(backup.key)
    assert ".mac" in str(caught.value)
    # An object without one was never complete, so it is not the latest either.
    with pytest.raises(NotFoundError):
        backup.verify("latest")


@pytest.mark.parametrize("mac", [b"", b"0" * 64, b"not a mac", b"f" * 65, b"x" * 10_000])
def test_a_wrong_mac_is_found(moto_server, stored, mac):
    backup = stored(moto_server, encryption="client-aes256")
    backup.client.put_object(Bucket=backup.bucket, Key=f"{backup.key}.mac", Body=mac)
    with pytest.raises(IntegrityError):
        backup.verify()


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without"])
def test_a_wrong_key_is_told_before_the_object_is_read(moto_server, stored, make_proxy, metadata):
    backup = stored(moto_server, encryption="client-aes256")
    if not metadata:
        backup.put(backup.data(), metadata=False)
    proxy = make_proxy(moto_server)
    backup.through(proxy.server, encryptionKey="5d" * 32)
    with pytest.raises(WrongKeyError) as caught:
        backup.verify()
    assert "5d" * 32 not in str(caught.value)
    assert sum(_range(seen)[1] - _range(seen)[0] for seen in proxy.seen if seen.operation == "GetObject") < 4096


@pytest.mark.parametrize("stored_as,read_as", [("client-aes256", "none"), ("none", "client-aes256")])
def test_an_object_of_another_mode_is_refused(moto_server, stored, stored_as, read_as):
    backup = stored(moto_server, encryption=stored_as)
    backup.through(moto_server, encryption=read_as, encryptionKey=KEY)
    with pytest.raises(ModeError):
        backup.verify(backup.key)


# ---- head only ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_look_at_the_head_reads_a_few_bytes_only(moto_server, stored, make_proxy, mode):
    backup = stored(moto_server, encryption=mode)
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    result = backup.verify(full=False)
    assert (result.evidence, result.size) == ("head", backup.size)
    assert sum(_range(seen)[1] - _range(seen)[0] for seen in proxy.seen if seen.operation == "GetObject") < 4096


def test_a_look_at_the_head_finds_a_truncated_object(moto_server, stored):
    backup = stored(moto_server, encryption="client-aes256")
    backup.put(backup.data()[:-1])
    with pytest.raises(IntegrityError):
        backup.verify(full=False)


# ---- what is not there -------------------------------------------------------------------------------------


def test_an_unknown_key_is_not_found(server, stored):
    backup = stored(server)
    with pytest.raises(NotFoundError) as caught:
        backup.verify("backup-2001-01-01T00-00-00-000Z.db")
    assert "backup-2001-01-01T00-00-00-000Z.db" in str(caught.value)


@pytest.mark.parametrize("key", ["elsewhere/backup-2025-03-01T14-32-11-482Z.db", "production/../x.db", "production/"])
def test_a_key_outside_of_the_prefix_is_refused(moto_server, stored, key):
    with pytest.raises(DucklingError) as caught:
        stored(moto_server).verify(key)
    assert key in str(caught.value)
    assert not isinstance(caught.value, NotFoundError)


def test_credentials_that_may_not_read_are_told_so(moto_auth_server, stored):
    backup = stored(moto_auth_server)
    backup.through(moto_auth_server.user("s3:PutObject", "s3:ListBucket"))
    with pytest.raises(AccessDeniedError) as caught:
        backup.verify(backup.key)
    assert caught.value.action == "s3:GetObject"


def test_verifying_can_be_cancelled(moto_server, installation, big_replica, make_proxy):
    backup = Stored(installation, moto_server, replica=big_replica(installation.replica()))
    proxy = make_proxy(moto_server)
    backup.through(proxy.server)
    control = Control()

    def cancel(seen):
        if seen.operation == "GetObject" and _range(seen)[0] > 0:
            control.cancel()

    proxy.before = cancel
    with pytest.raises(CancelledError):
        backup.verify(control=control)
    # Of seven ranges no more than those that were under way.
    assert proxy.count("GetObject") <= 6
