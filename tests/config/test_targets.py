"""A run writes restored files below one folder only, and never under a name that belongs to a replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from duckling_provider.base.errors import RequestError
from duckling_provider.config import load
from duckling_provider.config.targets import require_free_name, run_target


@pytest.fixture
def two(installation):
    installation.write(installation.entry("production"), installation.entry("crm"))
    return installation


def test_a_new_db_file_below_the_folder_is_fine(two):
    folder = two.data_path / "restored"
    assert run_target(str(folder / "x.db"), load()) == folder / "x.db"
    assert run_target(str(folder / "deep" / "er" / "x.db"), load()) == folder / "deep" / "er" / "x.db"


@pytest.mark.parametrize(
    "path,cause",
    [
        ("x.db", "absolute"),
        ("/opt/airflow/dags/x.db", "below"),
        ("{data}/x.db", "below"),
        ("{data}/restored/../x.db", "below"),
        ("{data}/restored", "below"),
        ("{data}/restored-too/x.db", "below"),
        ("{data}/restored/x.zip", "end in .db"),
        ("{data}/restored/x.py", "end in .db"),
        ("{data}/restored/.db", "end in .db"),
        ("{data}/restored/x.DB", "end in .db"),
        ("{data}/restored/x\0.db", "control character"),
        ("{data}/restored/x\n.db", "control character"),
        ("{data}/restored/../restored-too/x.db", "below"),
        ("~/restored/x.db", "absolute"),
    ],
)
def test_everything_else_is_refused(two, path, cause):
    text = path.format(data=two.data_path)
    with pytest.raises(RequestError, match=cause):
        run_target(text, load())


def test_a_link_out_of_the_folder_leads_where_it_leads(two, tmp_path):
    folder = two.data_path / "restored"
    folder.mkdir()
    (folder / "way-out").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="below"):
        run_target(str(folder / "way-out" / "x.db"), load())


def test_another_folder_can_be_allowed(two, tmp_path, monkeypatch):
    monkeypatch.setenv("DUCKLING_RESTORE_PATH", str(tmp_path / "big-disk"))
    assert run_target(str(tmp_path / "big-disk" / "x.db"), load()) == tmp_path / "big-disk" / "x.db"
    with pytest.raises(RequestError, match="below"):
        run_target(str(two.data_path / "restored" / "x.db"), load())


@pytest.mark.parametrize(
    "name", ["crm.db", "crm.db.duckling-hold", "crm.db.duckling-lock", "crm.db.wal", "crm.db.x.db"]
)
def test_names_of_every_entry_are_taken_even_while_it_has_no_replica(two, monkeypatch, name):
    monkeypatch.setenv("DUCKLING_RESTORE_PATH", str(two.data_path))
    with pytest.raises(RequestError, match='belongs to the replica of "crm"'):
        require_free_name(two.data_path / name, load())


@pytest.mark.parametrize("name", ["Crm.db", "CRM.DB", "CRM.db.wal", "Production.db.duckling-hold"])
def test_a_name_that_differs_in_case_only_is_taken_too(two, name):
    """SMB and the like make no difference."""
    with pytest.raises(RequestError, match="belongs to the replica"):
        require_free_name(two.data_path / name, load())


def test_two_spellings_of_one_letter_are_one_name(installation):
    installation.write(installation.entry(duckdbPath="data/caf\u00e9.db"))
    with pytest.raises(RequestError, match="belongs to the replica"):
        require_free_name(installation.data_path / "cafe\u0301.db", load())


@pytest.mark.parametrize(
    "name", ["databases.json", "Databases.json", ".databases.json.lock", "databases.json.before-x"]
)
def test_names_of_the_configuration_are_taken(two, name):
    with pytest.raises(RequestError, match=r"belongs to databases\.json"):
        require_free_name(two.data_path / name, load())


@pytest.mark.parametrize("name", ["x.db.duckling-new", "x.db.duckling-lock", "X.DB.DUCKLING-HOLD"])
def test_names_of_state_files_are_no_targets(two, tmp_path, name):
    """The next restore to x.db would take it for what a killed one left."""
    with pytest.raises(RequestError, match="state files"):
        require_free_name(tmp_path / name, load())


def test_the_names_of_a_linked_replica_are_those_of_both_ends(two, tmp_path):
    (tmp_path / "disk").mkdir()
    (two.data_path / "crm.db").symlink_to(tmp_path / "disk" / "real.db")
    for path in (two.data_path / "crm.db.wal", tmp_path / "disk" / "real.db", tmp_path / "disk" / "real.db.wal"):
        with pytest.raises(RequestError, match="crm"):
            require_free_name(path, load())


def test_local_backups_are_no_place_for_other_files(two):
    with pytest.raises(RequestError, match="local backups"):
        require_free_name(two.backup_path / "crm" / "x.db", load())


def test_the_log_of_a_replica_with_a_question_mark_is_taken_too(installation):
    installation.write(installation.entry("production", duckdbPath="data/what?.db"))
    with pytest.raises(RequestError, match="belongs to the replica"):
        require_free_name(installation.data_path / "what.wal?.db", load())


def test_other_names_are_free(two, tmp_path):
    require_free_name(tmp_path / "crm.db", load())
    require_free_name(two.data_path / "crm2.db", load())
    require_free_name(Path("/tmp/x"), load())


def test_the_name_of_a_copy_for_readers_is_not_free(installation):
    installation.write(installation.entry(readCopyPath=str(installation.data_path / "restored" / "read.db")))
    for name in ("read.db", "read.db.duckling-new.db"):
        with pytest.raises(RequestError, match='belongs to the copy for readers of "production"'):
            run_target(str(installation.data_path / "restored" / name), load())
