"""Root in another user's folders: it acts as that user, or refuses.

The owner of a folder, or of one around it, can put a link in the place of any file in it at any moment, also between a
look and the use. So root must not write, move, delete or read there with its own rights: as the owner, the same calls
can do no more than the owner can do anyway.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path

import duckling_provider
from duckling_provider.base.errors import FileSystemError


@contextlib.contextmanager
def as_owner_of(*paths: Path) -> Iterator[int | None]:
    """Within the block, root acts as the user that owns the folders of `paths`, in all threads and in programs that
    `acting_user` is handed to. It stays root where they are root's, and any other user stays what it is.

    :param paths: files or folders, there or not; links count for both of their ends.
    :returns: the id of the user in whose place root acts; None where it does not.
    :raises FileSystemError: they belong to several users, or that user can't run this program.
    """
    owners = {} if os.geteuid() != 0 else _owners(paths)
    if not owners:
        yield None
        return
    if len(owners) > 1:
        each = ", ".join(f"{folder} of UID {uid}" for uid, (folder, _) in sorted(owners.items()))
        raise FileSystemError(
            f"root works in no folders of several other users: {each}",
            subject=str(paths[0]),
            hint="Run it as the user that Airflow runs as.",
        )
    ((uid, (folder, gid)),) = owners.items()
    gid, groups = _groups(uid, gid)
    before = os.getegid(), os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        for needed, way in ((sys.executable, os.X_OK), (duckling_provider.__file__, os.R_OK)):
            if not os.access(needed, way, effective_ids=True):
                raise FileSystemError(
                    f"root acts as its owner here (UID {uid}), and that user can't use {needed}",
                    subject=str(folder),
                    hint="Run it as that user, with an installation that is not root's alone.",
                )
        yield uid
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])


@contextlib.contextmanager
def as_caller() -> Iterator[None]:
    """Within the block, root that acts as another user is root again: to read the secrets that its caller keeps, in
    files that may be root's alone. All threads are; so it is for the beginning of a command, before there are others.
    """
    if (acting := acting_user()) is None:
        yield
        return
    user, group = acting
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)


def acting_user() -> tuple[int, int] | None:
    """(user id, group id) for a program that is started while root acts as another user; None otherwise."""
    return (os.geteuid(), os.getegid()) if os.geteuid() != os.getuid() else None


def _owners(paths: tuple[Path, ...]) -> dict[int, tuple[Path, int]]:
    """Users other than root that own a folder on the way to one of `paths`: by id, (folder, its group)."""
    found: dict[int, tuple[Path, int]] = {}
    for path in paths:
        for end in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
            for folder in (end, *end.parents):
                with contextlib.suppress(OSError):
                    status = folder.stat()
                    if status.st_uid != 0:
                        found.setdefault(status.st_uid, (folder, status.st_gid))
    return found


def _groups(uid: int, gid: int) -> tuple[int, list[int]]:
    """The user's own group and all of its groups; `gid` for a user that has no name here."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return gid, [gid]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)
