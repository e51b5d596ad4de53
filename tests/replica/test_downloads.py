"""A restored file gets its name without taking anybody's, also where the file system has no hard links."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from duckling_provider.base.errors import RequestError
from duckling_provider.replica import downloads
from duckling_provider.replica.downloads import clear_downloads, give_name, unfinished


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


@pytest.fixture(params=["renameat2", "rename"])
def renames(request, monkeypatch) -> str:
    """The two ways around a missing link: the second one is for file systems and systems that lack renameat2(2)."""
    if request.param == "rename":
        monkeypatch.setattr(downloads, "_rename_alone", lambda *_: False)
    return request.param


@pytest.mark.usefixtures("renames")
def test_a_finished_download_gets_its_name(files, tmp_path):
    new, to = files
    give_name(new, to, notes=tmp_path)
    assert to.read_bytes() == b"restored"
    assert to.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("taken", ["file", "link", "folder"])
def test_a_name_that_is_taken_meanwhile_is_left_as_it_is(files, taken, tmp_path):
    new, to = files
    if taken == "file":
        to.write_bytes(b"of another program")
    elif taken == "link":
        to.symlink_to("nowhere")
    else:
        to.mkdir()
    before = to.lstat()
    with pytest.raises(RequestError, match="there is a file of that name by now"):
        give_name(new, to, notes=tmp_path)
    assert (to.lstat().st_ino, to.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert new.read_bytes() == b"restored"


def test_another_error_of_the_disk_is_none_of_a_missing_feature(files, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    new, to = files
    with pytest.raises(OSError, match="No space left"):
        give_name(new, to, notes=new.parent)
    assert not to.exists()


def killed_while_naming(new: Path, to: Path, notes: Path) -> None:
    """What a restore leaves that is killed when it has taken its name by an empty file."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch, unfinished(new, notes=notes) as download:

                def refuse(*_: object) -> None:
                    raise OSError(errno.EPERM, "refused")

                patch.setattr(os, "link", refuse)
                patch.setattr(downloads, "_rename_alone", lambda *_: False)
                os.write(download.fd, b"restored")
                patch.setattr(os, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                give_name(new, to, notes=notes)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
def test_an_empty_file_that_a_killed_restore_left_in_its_name_goes_with_its_download(tmp_path):
    notes, to = tmp_path / "backups", tmp_path / "copy.db"
    new = tmp_path / "copy.db.duckling-new"
    killed_while_naming(new, to, notes)
    assert (to.stat().st_size, new.read_bytes()) == (0, b"restored")
    before = sorted(tmp_path.rglob("*"))
    assert clear_downloads(notes, dry_run=True) == (new, to)
    assert sorted(tmp_path.rglob("*")) == before
    assert clear_downloads(notes) == (new, to)
    assert sorted(tmp_path.rglob("*")) == [notes]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"restored", b""])
def test_a_file_of_another_program_in_that_name_stays(tmp_path, content):
    """Also an empty one, where no restore said that it took the name."""
    notes, to = tmp_path / "backups", tmp_path / "copy.db"
    new = tmp_path / "copy.db.duckling-new"
    killed_while_naming(new, to, notes)
    to.write_bytes(content)
    (note,) = notes.iterdir()
    if not content:
        note.write_text(json.dumps({"download": str(new)}))
    assert clear_downloads(notes) == (new,)
    assert to.read_bytes() == content
    assert not note.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"download": 7}',
        '{"download": "/etc/passwd"}',
        '{"download": "x.duckling-new"}',
        '{"download": "/.duckling-new", "naming": true}',
        "[" * 50_000,
    ],
)
def test_a_note_that_is_none_is_left_and_stops_nothing(tmp_path, caplog, text):
    note = tmp_path / "restoring-0123abcd.json"
    note.write_text(text)
    left = tmp_path / "copy.db.duckling-new"
    left.touch(mode=0o600)
    (tmp_path / "restoring-89abcdef.json").write_text(json.dumps({"download": str(left)}))
    assert clear_downloads(tmp_path) == (left,)
    assert f"{note} is left as it is: it is no note of a restore" in caplog.text
    assert note.read_text() == text
