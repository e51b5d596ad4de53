"""A bit that flips anywhere in a stored backup is found by a drill: by HMAC or SHA-256, by DuckDB's blocks, or by
reading.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import subprocess
import sys

import pytest
from fixtures.memory_store import MemoryStore

from duckling_provider.backup.inventory import segment_records
from duckling_provider.backup.inventory.choice import list_backups
from duckling_provider.backup.inventory.states import read_state
from duckling_provider.backup.making import differential
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.making.upload import upload_snapshot
from duckling_provider.base.errors import DucklingError
from duckling_provider.formats import segments
from duckling_provider.oversight.drills import drill
from duckling_provider.stores.parts import Limits

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


#: Kinds of which the store copies segments of an earlier object.
DIFFERENTIAL = ("none", "format 2")
SEGMENT = 64 * 1024
_CHANGE = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('UPDATE customers SET region = 1 WHERE id = 7')"


@pytest.fixture
def grown_from(installation, make_replica, monkeypatch):
    """``grown_from(database, store) -> key``: a backup of which most segments are copies of those of an earlier one."""
    for module in (segments, segment_records):
        monkeypatch.setattr(module, "SEGMENT_BYTES", SEGMENT)
    # As a store that takes parts as small as a segment would have it.
    monkeypatch.setattr(
        differential, "_limits", lambda *_: Limits(SEGMENT, 10_000, least=SEGMENT, most_copied=16 * SEGMENT)
    )

    def grown_from(database, store):
        make_replica(installation.replica(), rows=200_000)
        drill(database, store, upload_snapshot(database, store, take_snapshot(database)).key)
        subprocess.run([sys.executable, "-c", _CHANGE, str(installation.replica())], check=True)
        done = upload_snapshot(database, store, take_snapshot(database))
        assert done.bytes_copied > done.bytes_sent > 0
        return done.key

    return grown_from


@pytest.mark.parametrize(
    ("kind", "is_copied"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in DIFFERENTIAL)],
    ids=lambda value: value if isinstance(value, str) else "differential" if value else "sent",
)
def test_every_flipped_bit_is_found(installation, small_replica, request, kind, is_copied, full, capsys):
    count, fields = 200 if full else 20, KINDS[kind]
    s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s", **fields}
    installation.write(installation.entry(mysqlConnectionString=None, s3=s3))
    database, store = installation.database(), MemoryStore(prefix="production/", mode=fields["encryption"])
    if is_copied:
        key = request.getfixturevalue("grown_from")(database, store)
    else:
        small_replica(installation.replica())
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
    if full:
        with capsys.disabled():
            print(f"\n{kind}{', differential' * is_copied}: {count} of {count} flipped bits were found")
    store.objects = good
    assert read_state(database, store, list_backups(store)[0]).name == "tested"
