"""The audit's file: bounded, whole lines, and no secret."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from duckling_provider.base.errors import StoreError
from duckling_provider.oversight import audit as module
from duckling_provider.oversight.audit import AUDIT, audit, audited, read_audit


@pytest.fixture
def database(installation: Any) -> Any:
    installation.write(installation.entry())
    return installation.database()


def test_the_files_stay_bounded_and_keep_the_newest_lines(database: Any, monkeypatch: Any):
    monkeypatch.setattr(module, "_FULL", 2000)
    for number in range(100):
        audit(database, "delete", by="me", key=f"backup {number}")
    sizes = [os.stat(database.backup_path / name).st_size for name in (AUDIT, f"{AUDIT}.1")]
    assert max(sizes) <= 2000
    keys = [line.key for line in read_audit(database.backup_path)]
    assert keys == [f"backup {number}" for number in range(99, 99 - len(keys), -1)]
    assert len(keys) > 15


def test_lines_of_several_writers_are_whole(database: Any):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: audit(database, "pin", by=f"user {number}"), range(40)))
    assert {line.by for line in read_audit(database.backup_path)} == {f"user {number}" for number in range(40)}


def test_a_failure_is_told_without_the_secret_in_it(database: Any):
    with pytest.raises(StoreError), audited(database, "restore", by="me", key="latest"):
        raise StoreError("refused with mysql-password-production")
    (line,) = read_audit(database.backup_path)
    assert line.error == "refused with ***"


def test_damaged_lines_hide_no_others(database: Any):
    audit(database, "pin", by="me")
    with (database.backup_path / AUDIT).open("ab") as file:
        file.write(b'{"at": \n[]\n{"what": "x"}\n')
    audit(database, "unpin", by="me")
    assert [line.what for line in read_audit(database.backup_path)] == ["unpin", "pin"]


def test_where_no_line_can_be_written_the_deed_is_done_all_the_same(database: Any, caplog: Any):
    database.backup_path.parent.mkdir(parents=True)
    database.backup_path.write_text("no folder")
    with audited(database, "delete", by="me"):
        pass
    assert "no line could be written" in caplog.text
