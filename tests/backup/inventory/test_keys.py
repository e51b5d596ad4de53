"""Which key reads a backup: the present one, an earlier one of the entry, or one that is named for a single run."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory.backup_object import identify_backup
from duckling_provider.backup.inventory.key_choice import read_as
from duckling_provider.backup.inventory.metadata import describe
from duckling_provider.backup.reading.restore import restore_backup
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.base.errors import ModeError, RequestError, WrongKeyError
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.stores.store import BytesBody

OLDEST, OLD, NOW = ("a1" * 32, "b2" * 32, "c3" * 32)
IV = bytes(range(16))
KEY = "production/backup-2025-03-01T14-32-11-482Z.db"


def fingerprint(key):
    return EncryptionKey.parse(key).fingerprint


def encrypted(plain, key):
    """The object and its ``.mac``, made by the libraries themselves."""
    raw = bytes.fromhex(key)
    stored = IV + Cipher(algorithms.AES(raw), modes.CTR(IV)).encryptor().update(plain)
    return stored, hmac.new(raw, stored, hashlib.sha256).hexdigest().encode()


@pytest.fixture
def site(installation, make_replica):
    """``site(**s3) -> (database, store)``: an encrypted entry; `store.add` puts a backup of its replica there."""
    plain = make_replica(installation.replica()).read_bytes()

    class Store(MemoryStore):
        def add(self, key=KEY, *, by=None, metadata=True):
            proof = {"sha256": hashlib.sha256(plain).hexdigest()} if by is None else {"fingerprint": fingerprint(by)}
            body, mode = plain, "none"
            if by is not None:
                body, mac = encrypted(plain, by)
                mode = "client-aes256"
                self.put(f"{key}.mac", BytesBody(mac))
            told = describe(mode=mode, size=len(plain), database="production", **proof)
            self.put(key, BytesBody(body), metadata=told if metadata else {})

    def make(**fields):
        s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s3cret-1"}
        s3 |= {"encryption": "client-aes256", "encryptionKey": NOW, **fields}
        installation.write(installation.entry(s3=s3))
        return installation.database(), Store(prefix="production/", mode=s3["encryption"])

    make.plain = plain
    return make


@pytest.mark.parametrize("metadata", [True, False], ids=["by fingerprint", "by first bytes"])
@pytest.mark.parametrize("by", [NOW, OLD, OLDEST])
def test_an_earlier_key_of_the_entry_reads_what_it_was_made_with(site, tmp_path, metadata, by):
    database, store = site(previousEncryptionKeys=[OLD, OLDEST])
    store.add(by=by, metadata=metadata)
    assert verify_backup(database, store).key_fingerprint == fingerprint(by)
    done = restore_backup(database, store, to=tmp_path / "copy.db")
    assert done.key_fingerprint == fingerprint(by)
    assert (tmp_path / "copy.db").read_bytes() == site.plain


@pytest.mark.parametrize("metadata", [True, False], ids=["by fingerprint", "by first bytes"])
def test_a_key_that_is_none_of_the_entrys_is_told_by_name_and_shows_no_key(site, metadata):
    database, store = site(previousEncryptionKeys=[OLD])
    store.add(by=OLDEST, metadata=metadata)
    with pytest.raises(WrongKeyError, match="previousEncryptionKeys") as caught:
        identify_backup(database, store, KEY)
    assert not any(key in str(caught.value) for key in (NOW, OLD, OLDEST))
    assert (fingerprint(OLD) in str(caught.value)) == metadata


def test_a_plain_object_names_no_key(site):
    database, store = site(encryption="none", encryptionKey=None)
    store.add()
    assert verify_backup(database, store).key_fingerprint is None


def test_earlier_keys_are_secrets_of_the_entry(site):
    database, _ = site(previousEncryptionKeys=[OLD, OLDEST.upper()])
    assert {OLD, OLD.upper(), OLDEST, OLDEST.upper()} <= set(database.secrets())
    assert database.masked()["s3"]["previousEncryptionKeys"] == "***"
    assert OLD not in repr(database) + repr(database.s3) + str(database.s3.previous_encryption_keys)


# ---- another mode or key for one run -----------------------------------------------------------------------


def read(database, store, key, **options):
    """What the command line and the restore DAG do with their options."""
    database = read_as(database, key, **options)
    store.mode = database.s3.encryption
    return verify_backup(database, store, key)


def test_a_plain_backup_of_an_encrypted_entry_is_read_when_it_is_named_and_never_as_latest(site):
    database, store = site()
    store.add()
    with pytest.raises(ModeError, match="--encryption none"):
        verify_backup(database, store, KEY)
    assert read(database, store, KEY, encryption="none").mode == "none"
    for mode in ("none", "sse-s3", "sse-kms"):
        with pytest.raises(RequestError, match="has to be named"):
            read_as(database, "latest", encryption=mode)


def test_an_encrypted_backup_of_a_plain_entry_is_read_with_the_key_of_a_file(site):
    database, store = site(encryption="none", encryptionKey=None)
    store.add(by=OLD, metadata=False)
    with pytest.raises(ModeError):
        verify_backup(database, store, KEY)
    result = read(database, store, "latest", encryption_key=EncryptionKey.parse(OLD))
    assert (result.mode, result.key_fingerprint) == ("client-aes256", fingerprint(OLD))


def test_a_key_for_one_run_is_the_only_one_that_is_tried(site):
    database, store = site(previousEncryptionKeys=[OLD])
    store.add(by=OLD)
    with pytest.raises(WrongKeyError):
        read(database, store, KEY, encryption_key=EncryptionKey.parse(OLDEST))
    assert database.s3.reading_keys == (EncryptionKey.parse(NOW), EncryptionKey.parse(OLD))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encryption": "rot13"}, "encryption: expected none"),
        ({"encryption": "none", "encryption_key": EncryptionKey.parse(OLD)}, "a key is given"),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(site, options, message):
    database, _ = site()
    with pytest.raises(RequestError, match=message):
        read_as(database, KEY, **options)
    assert read_as(database, KEY) is database


def test_an_entry_without_s3_has_nothing_to_decrypt(installation):
    installation.write(installation.entry())
    with pytest.raises(RequestError, match="local ones are not encrypted"):
        read_as(installation.database(), KEY, encryption="none")


def test_a_run_can_ask_for_nothing_below_the_floor_of_the_installation(site):
    database, _ = site()
    with pytest.raises(RequestError, match="weaker than DUCKLING_MIN_ENCRYPTION"):
        read_as(database, KEY, encryption="none", least="sse-s3")
    assert read_as(database, KEY, encryption="sse-kms", least="sse-s3").s3.encryption == "sse-kms"
