"""State files as a crash, another version or a stranger may leave them: an error of the family, or less than there was,
never something that was not written.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.any_text import any_text
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.sidecar import Snapshot
from duckling_provider.base.errors import DucklingError
from duckling_provider.replica.exchange import Journal
from duckling_provider.replica.locks import Hold
from duckling_provider.stores.store import UploadLog

BINDING = {"store": "s3://bucket/", "key": "production/x.db", "iv": "00" * 16, "part_size": 5 << 20}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@given(
    parts=st.lists(st.tuples(st.integers(0, 9999), st.text("0123456789abcdef-", max_size=40)), max_size=8),
    data=st.data(),
)
def test_an_upload_log_torn_anywhere_tells_a_part_of_what_was_recorded(
    folder: Path, parts: list[tuple[int, str]], data: st.DataObject
):
    path = folder / "torn.upload"
    written = UploadLog(path, BINDING)
    written.begin("upload-1")
    for part, etag in parts:
        written.record(part, etag)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = UploadLog(path, BINDING).load()
    if found is not None:
        upload_id, etags = found
        assert upload_id == "upload-1"
        assert set(etags.items()) <= set(parts)


@given(other=st.dictionaries(st.sampled_from([*BINDING, "mode"]), any_text(max_size=5), min_size=1, max_size=3))
def test_an_upload_log_of_something_else_is_not_continued(folder: Path, other: dict[str, str]):
    path = folder / "other.upload"
    UploadLog(path, BINDING).begin("upload-1")
    assert UploadLog(path, {**BINDING, **other}).load() is None
    assert UploadLog(path, BINDING).load() == ("upload-1", {})


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_foreign_upload_logs_are_none(folder: Path, content: bytes):
    path = folder / "foreign.upload"
    path.write_bytes(content)
    assert UploadLog(path, BINDING).load() is None
    assert UploadLog.owner(path) is None


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_foreign_sidecar_journal_or_hold_is_an_error_that_is_told(folder: Path, content: bytes):
    copy = folder / "backup-2025-03-01T00-00-00-000Z.db"
    copy.write_bytes(b"")
    copy.with_suffix(".json").write_bytes(content)
    with pytest.raises(DucklingError):
        Snapshot.load(copy)
    journal = folder / "journal"
    journal.write_bytes(content)
    with pytest.raises(DucklingError):
        Journal.read(journal, folder / "x.db")
    # What `read_hold` turns into an error of the family.
    with pytest.raises((ValueError, KeyError, TypeError)):
        Hold.from_json(content.decode("utf-8"))
