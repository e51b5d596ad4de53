"""A bit that flips anywhere in a stored backup is found by a drill: by HMAC or SHA-256, by DuckDB's blocks, or by
reading.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.backup_object import list_backups
from duckling_provider.backup.snapshot import take_snapshot
from duckling_provider.backup.states import read_state
from duckling_provider.backup.upload import upload_snapshot
from duckling_provider.base.errors import DucklingError
from duckling_provider.oversight.drills import drill

pytestmark = [pytest.mark.survival, pytest.mark.slow]

KEY = "c4" * 32
#: Fields of the entry's `s3` by what an object is like.
KINDS = {
    "none": {"encryption": "none"},
    "sse-s3": {"encryption": "sse-s3"},
    "sse-kms": {"encryption": "sse-kms"},
    "client-aes256": {"encryption": "client-aes256", "encryptionKey": KEY},
    "format 2": {"encryption": "client-aes256", "encryptionKey": KEY, "objectFormat": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(installation, small_replica, kind, full):
    count, fields = 200 if full else 20, KINDS[kind]
    small_replica(installation.replica())
    s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s", **fields}
    installation.write(installation.entry(mysqlConnectionString=None, s3=s3))
    database, store = installation.database(), MemoryStore(prefix="production/", mode=fields["encryption"])
    key = upload_snapshot(database, store, take_snapshot(database)).key
    assert drill(database, store, key).compared
    good = dict(store.objects)
    dice, missed = random.Random(), []
    for number in range(count):
        # Nine of ten in the file, the others in what lies beside it.
        name = key if number % 10 or f"{key}.mac" not in good else f"{key}.mac"
        stored, data = good[name]
        spoilt = bytearray(data)
        while spoilt == data or (name != key and spoilt.lower() == data):  # its digits may be capital letters
            spoilt, bit = bytearray(data), dice.randrange(8 * len(data))
            spoilt[bit // 8] ^= 1 << bit % 8
        etag = hashlib.md5(spoilt, usedforsecurity=False).hexdigest()
        store.objects = {**good, name: (dataclasses.replace(stored, etag=etag), bytes(spoilt))}
        try:
            drill(database, store, key)
        except DucklingError:
            continue
        missed.append((name, bit))
    assert missed == []
    store.objects = good
    assert read_state(database, store, list_backups(store)[0]).name == "tested"
