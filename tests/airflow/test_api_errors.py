from __future__ import annotations

import pytest

from duckling_provider.base.errors import (
    BusyError,
    ConfigError,
    DamagedError,
    DucklingError,
    FileSystemError,
    IntegrityError,
    ModeError,
    NoSpaceError,
    NotFoundError,
    RequestError,
    StoreError,
)
from duckling_provider.web.services.errors import of_core, of_record

ANSWERS = [
    (RequestError("a key outside the prefix"), 400),
    (ModeError("it is not encrypted"), 400),
    (ConfigError("is missing", entry="shop"), 400),
    (NotFoundError("no such backup"), 404),
    (BusyError("is held", holder="a restore"), 409),
    (FileSystemError("Read-only file system", errno=30), 500),
    (NoSpaceError("the disk is full", needed=2, free=1), 500),
    (DamagedError("a block has a wrong checksum"), 500),
    (StoreError("no answer"), 502),
    (IntegrityError("wrong HMAC"), 502),
]


@pytest.mark.parametrize("error,status", ANSWERS, ids=[type(error).__name__ for error, _ in ANSWERS])
def test_the_status_says_whose_fault_it_is_at_once_and_from_what_a_run_recorded(error, status):
    assert of_core(error).status == status
    assert of_record(error.as_record(), more={}).status == status


def test_an_error_that_this_version_does_not_know_is_a_fault_on_this_side():
    assert of_core(DucklingError("?")).status == 500
    known = DucklingError("?").as_record()
    assert of_record({**known, "kind": "ErrorOfALaterVersion"}, more={}).status == 500
    assert of_record(None, more={}).status == 500
