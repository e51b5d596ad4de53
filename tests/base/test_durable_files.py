from __future__ import annotations

import os
from pathlib import Path

import pytest

from duckling_provider.base.durable_files import make_folder, partial_file, remove_unless_locked, write_durably


def test_a_partial_file_is_gone_after_the_block(tmp_path: Path):
    path = tmp_path / "x.partial"
    with partial_file(path) as fd:
        os.write(fd, b"half")
        assert path.read_bytes() == b"half"
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), partial_file(path):
        raise ZeroDivisionError
    assert not path.exists()


def test_a_partial_file_that_was_renamed_stays(tmp_path: Path):
    with partial_file(tmp_path / "x.partial") as fd:
        os.write(fd, b"whole")
        (tmp_path / "x.partial").rename(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_the_partial_file_of_another_is_neither_opened_nor_removed(tmp_path: Path):
    path = tmp_path / "x.partial"
    path.write_bytes(b"theirs")
    with pytest.raises(FileExistsError), partial_file(path):
        pass
    assert path.read_bytes() == b"theirs"


def test_a_partial_file_is_removed_by_a_clean_up_only_once_its_process_is_gone(tmp_path: Path):
    path = tmp_path / "x.partial"
    with partial_file(path):
        assert not remove_unless_locked(path)
        assert path.exists()
    path.write_bytes(b"of a dead process")
    assert remove_unless_locked(path)
    assert not path.exists()


def test_a_durable_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "note"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["note"]


def test_folders_are_made_for_their_owner_alone(tmp_path: Path):
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        make_folder(tmp_path / "restored" / "deep")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("restored", "restored/deep")] == [0o700, 0o700]
