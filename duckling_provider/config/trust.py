"""Whom the files with secrets may belong to: databases.json, and the files that it points to.

The owner of a file can change it at any moment, so it is worth as much trust as its owner. As sshd has it, that is
root, the user who runs this program, or the owner of DATA_PATH, in whose place root acts. Root takes orders from no
other user, and where that owner wrote databases.json, it reads no files for it that are not that user's own.

In a container, files of the host belong to users that may not exist there. So for any other user than root, a file of
the owner of DATA_PATH, and one that is mounted there, brings a warning: only who makes mounts can have put it there.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from duckling_provider.base.errors import ConfigError
from duckling_provider.base.strict_json import opened


@dataclass(frozen=True)
class Trust:
    """Whom to believe what a file says; users as ids.

    `caller` runs this program, `data_owner` owns DATA_PATH, `author` owns the databases.json that points to the file
    (the caller for a file that the command line names). `warnings` are about databases.json itself.
    """

    caller: int = field(default_factory=os.getuid)
    data_owner: int = 0
    author: int = 0
    warnings: tuple[str, ...] = ()

    def look(self, fd: int) -> Look:
        """What the owner of an open file makes of it."""
        uid = os.fstat(fd).st_uid
        if self.caller == 0 and self.author not in (0, uid):
            return Look(
                f"belongs to UID {uid}, and databases.json to UID {self.author}, who could have root read any file",
                fatal=True,
                hint=f"Run it as UID {self.author}, or give databases.json to root.",
            )
        if uid in (0, self.caller) or (self.caller == 0 and uid == self.data_owner):
            return Look()
        return Look(
            f"belongs to UID {uid}, who can change it at any moment",
            fatal=uid != self.data_owner and (self.caller == 0 or not _is_mounted(fd)),
            hint=f"See whether its content is what you wrote, then: chown {self.caller}",
        )


@dataclass(frozen=True)
class Look:
    """`doubt` says why a file is not certain to be what its reader thinks, empty where it is; where it is `fatal`, the
    file must not be used.
    """

    doubt: str = ""
    fatal: bool = False
    hint: str = ""


def read_trusted(path: Path, *, hint: str | None = None) -> tuple[bytes, Trust]:
    """The content of a databases.json, and whom to trust with what it points to.

    :param path: as DATA_PATH names it: links are followed.
    :param hint: what to do when it is not there.
    :raises ConfigError: missing, unreadable, of a user who is not trusted, or others can write it.
    """
    with opened(path, hint=hint) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        # What others wrote may say anything.
        if mode & 0o022:
            raise ConfigError(
                f"others than its owner can write {path} (mode {mode:04o}): it is not used",
                entry=path.name,
                hint=f"See whether its content is what you wrote, then: chmod 600 {path}",
            )
        data_owner = path.parent.stat().st_uid
        look = Trust(data_owner=data_owner).look(file.fileno())
        if look.fatal:
            raise ConfigError(f"{path} {look.doubt}: it is not used", entry=path.name, hint=f"{look.hint} {path}")
        warnings = [f"{path} {look.doubt}: {look.hint} {path}"] if look.doubt else []
        if mode & 0o044:
            others = f"others than its owner can read {path} (mode {mode:04o})"
            warnings.append(f"{others}: it holds secrets, chmod 600")
        # Where the name is a link, both ends count.
        for folder in dict.fromkeys((path.parent, Path(os.path.realpath(path)).parent)):
            wide = stat.S_IMODE(folder.stat().st_mode)
            if wide & 0o022 and not wide & stat.S_ISVTX:
                others = f"others than its owner can write its folder (mode {wide:04o}), so they can replace the file"
                warnings.append(f"{others}: chmod go-w {folder}")
        author = os.fstat(file.fileno()).st_uid
        about = tuple(f"{path.name}: {warning}" for warning in warnings)
        return file.read(), Trust(data_owner=data_owner, author=author, warnings=about)


def look_at_secret(fd: int, shown: str, trust: Trust) -> tuple[str | None, str | None, tuple[str, ...]]:
    """(why an open file that holds a secret must not be used, what to do, warnings), for messages that name it
    `shown`.
    """
    mode = os.fstat(fd).st_mode
    if mode & 0o022:
        fault = f"others than its owner can write the file {shown}, so its content may be anyone's"
        return fault, f"See whether it is what you wrote, then: chmod 600 {shown}", ()
    look = trust.look(fd)
    if look.fatal:
        return f"the file {shown} {look.doubt}: it is not used", f"{look.hint} {shown}", ()
    warnings = [f"the file {shown} {look.doubt}: {look.hint} {shown}"] if look.doubt else []
    if mode & 0o044:
        warnings.append(f"others than its owner can read the file {shown}: chmod 600")
    return None, None, tuple(warnings)


def _is_mounted(fd: int) -> bool:
    """Whether an open file is a mount of its own, as containers get single files, or lies on one that is read-only.

    Formats: proc_pid_fdinfo(5), proc_pid_mountinfo(5).
    """
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return True
    try:
        found = re.search(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text("utf-8"), re.MULTILINE)
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            number, _, _, _, point, *_ = line.split(b" ")
            if found is not None and number.decode() == found[1]:
                name = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8)]), point)
                return not os.path.isdir(name)
    except (OSError, ValueError):
        pass
    return False
