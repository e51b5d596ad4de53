"""A restored file gets its name without taking anybody's, also where the file system has no hard links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from duckling_provider.base.errors import RequestError
from duckling_provider.replica.downloads import give_name


@pytest.fixture(params=[None, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES])
def files(request, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A finished download and the name it is to get; with an error number, links fail as on SMB or FUSE."""
    new = tmp_path / "copy.db.duckling-new"
    new.write_bytes(b"restored")
    new.chmod(0o600)
    if request.param is not None:

        def refuse(source: object, target: object) -> None:
            # As the kernel does: a name that is taken comes first.
            raise OSError(errno.EEXIST if os.path.lexists(str(target)) else request.param, "refused")

        monkeypatch.setattr(os, "link", refuse)
    return new, tmp_path / "copy.db"


def test_a_finished_download_gets_its_name(files):
    new, to = files
    give_name(new, to)
    assert to.read_bytes() == b"restored"
    assert to.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("taken", ["file", "link", "folder"])
def test_a_name_that_is_taken_meanwhile_is_left_as_it_is(files, taken):
    new, to = files
    if taken == "file":
        to.write_bytes(b"of another program")
    elif taken == "link":
        to.symlink_to("nowhere")
    else:
        to.mkdir()
    before = to.lstat()
    with pytest.raises(RequestError, match="there is a file of that name by now"):
        give_name(new, to)
    assert (to.lstat().st_ino, to.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert new.read_bytes() == b"restored"


def test_another_error_of_the_disk_is_none_of_a_missing_feature(files, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    new, to = files
    with pytest.raises(OSError, match="No space left"):
        give_name(new, to)
    assert not to.exists()
