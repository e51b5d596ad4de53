"""What the tests of stores share."""

from __future__ import annotations

import pytest

from duckling_provider.stores.s3 import open_store


@pytest.fixture
def store_at(installation):
    """``store_at(server, bucket, **fields) -> S3Store``: the store of an entry with these fields in `s3`."""

    def make(server, bucket, **fields):
        installation.write(installation.entry(s3=server.s3(bucket, **fields)))
        return open_store(installation.database())

    return make
