"""Changing databases.json: what is written is checked by the rules that reading follows, and written in one step.

Unknown fields, other entries and the order of everything stay as they were. An editor sees secrets as ``***`` and
sends them back like that: such a value stands for the one that is there.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from duckling_provider.base.durable_files import write_durably
from duckling_provider.base.errors import BusyError, ConfigError, FileSystemError, NotFoundError
from duckling_provider.base.file_lock import FileLock
from duckling_provider.base.moments import iso, stamp_of
from duckling_provider.base.strict_json import MAX_DEPTH, parse_json, printable
from duckling_provider.config.databases import Database, Encryption, Installation, interpret
from duckling_provider.config.environment import Settings
from duckling_provider.config.keys import EncryptionKey
from duckling_provider.config.masking import MASK
from duckling_provider.config.references import REFERABLE, reference
from duckling_provider.config.s3 import CLIENT
from duckling_provider.config.trust import read_trusted

_LOCK_SECONDS = 10.0
#: Fields that decide to which host and bucket requests go.
_PLACE = ("endpoint", "bucket", "region", "forcePathStyle")
#: Fields that say where the credentials are, when they are not in the file.
_CREDENTIALS_ELSEWHERE = ("awsConnId", "credentialSource")
_WORDS = {
    "endpoint": "another endpoint",
    "bucket": "another bucket",
    "region": "another region",
    "forcePathStyle": "another style of addresses",
    "awsConnId": "another Airflow connection",
    "credentialSource": "another source of credentials",
    "encryption": "weaker encryption",
}


def change_s3(
    settings: Settings, database_id: str, s3: Mapping[str, Any] | None, *, now: datetime | None = None
) -> tuple[Database, tuple[str, ...]]:
    """Set the ``s3`` object of an entry, or remove it, in the file; its mode is 0600 afterwards.

    :param s3: the whole object; ``***`` stands for the value that is there. None removes it.
    :param now: the clock, for tests; goes into ``updatedAt`` where the entry has that field.
    :returns: the entry as it now is, and the warnings about it.
    :raises NotFoundError: there is no entry of that id.
    :raises ConfigError: the entry would be wrong; the file stays as it is.
    :raises BusyError: another process is changing the file.
    """

    def edit(entry: dict[str, Any]) -> None:
        if s3 is None:
            entry.pop("s3", None)
        else:
            _require_secrets(s3, entry.get("s3"), database_id)
            entry["s3"] = _unmasked(dict(s3), entry.get("s3"), database_id, "s3")

    return _changed(settings, database_id, edit, now)


def rotate_key(
    settings: Settings, database_id: str, key: EncryptionKey, *, now: datetime | None = None
) -> tuple[Database, tuple[str, ...]]:
    """Make `key` the one for new backups; the one before it goes to the front of ``previousEncryptionKeys``.

    Parameters, result and errors are otherwise those of `change_s3`.

    :raises ConfigError: the entry does not encrypt here, or its key stands elsewhere; the file stays as it is.
    """

    def edit(entry: dict[str, Any]) -> None:
        s3 = entry.get("s3")
        if not isinstance(s3, dict) or s3.get("enabled") is False or s3.get("encryption") != CLIENT:
            raise ConfigError(f"only {CLIENT} has a key", entry=database_id, field="s3.encryption")
        old, earlier = s3.get("encryptionKey"), s3.get("previousEncryptionKeys") or []
        if wanted := reference(old):
            raise ConfigError(
                f"the key stands in {wanted.place}, which is changed by those who keep it",
                entry=database_id,
                field="s3.encryptionKey",
                hint=f"Put a new key (duckling keygen) into another {wanted.kind}, name that here, and move the "
                'present reference to the front of "previousEncryptionKeys".',
            )
        if _is_key(old, key):
            raise ConfigError("this is the present key already", entry=database_id, field="s3.encryptionKey")
        s3["encryptionKey"] = key.hex()
        s3["previousEncryptionKeys"] = [old, *(text for text in earlier if not _is_key(text, key))]

    return _changed(settings, database_id, edit, now)


def _is_key(text: Any, key: EncryptionKey) -> bool:
    return isinstance(text, str) and text.lower() == key.hex()


def _changed(
    settings: Settings, database_id: str, edit: Callable[[dict[str, Any]], None], now: datetime | None
) -> tuple[Database, tuple[str, ...]]:
    # Where the name is a symbolic link, the file behind it is replaced and the link stays.
    path = Path(os.path.realpath(settings.databases_file))
    with _lock(path):
        before = _identity(path)
        content, trust = read_trusted(settings.databases_file)
        entries = parse_json(content, path)
        interpret(entries, settings, trust=trust)  # no list: an error before anything is looked for in it
        position = next((n for n, e in enumerate(entries) if isinstance(e, dict) and e.get("id") == database_id), None)
        if position is None:
            raise NotFoundError(f'no database "{printable(database_id)}" in {settings.databases_file}')
        changed = copy.deepcopy(entries)
        entry = changed[position]
        edit(entry)
        if "updatedAt" in entry:
            entry["updatedAt"] = iso(now or datetime.now(timezone.utc))
        installation = interpret(changed, settings, trust=trust)
        database = installation.database(database_id)
        _harms_nobody(installation, interpret(entries, settings, trust=trust))
        _write(path, changed, before)
    about = f"{database_id}: "
    return database, tuple(w.removeprefix(about) for w in installation.warnings if w.startswith(about))


def add_entries(path: Path, added: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> Path | None:
    """Write entries behind those of the file, or a new file; its mode is 0600 afterwards.

    :param path: a databases.json, or where one is to be; its folder exists.
    :returns: the copy of the file as it was before; None when there was none.
    :raises ConfigError: the file that is there can't be used; it stays as it is.
    :raises BusyError: another process is changing it.
    """
    named, path = path, Path(os.path.realpath(path))
    with _lock(path):
        before = _identity(path)
        if not path.exists():
            _write(path, list(added), before)
            return None
        content, _ = read_trusted(named)
        entries = parse_json(content, path)
        if not isinstance(entries, list):
            raise ConfigError("expected a list of entries", entry=str(path))
        kept = path.with_name(f"{path.name}.before-{stamp_of(now or datetime.now(timezone.utc))}")
        write_durably(kept, _as_before(path, content))
        _write(path, [*entries, *added], before)
        return kept


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), operation="change of databases.json", wait=_LOCK_SECONDS)


def _unmasked(value: Any, current: Any, entry: str, path: str, depth: int = 0) -> Any:
    """`value` with each ``***`` replaced by what stands at the same place of `current`; `interpret` refuses what is
    nested more deeply than this looks.
    """
    if value == MASK:
        if current in (None, ""):
            raise ConfigError(f"{MASK} stands for the value that is there, and there is none", entry=entry, field=path)
        return current
    if path.rpartition(".")[2] in REFERABLE and value != current and _points_elsewhere(value):
        raise ConfigError(
            "a reference to a file or a variable is set in databases.json itself, not through an edit",
            entry=entry,
            field=path,
            hint=f"Send {MASK} to keep the one that is there, or the secret itself.",
        )
    if isinstance(value, dict) and depth <= MAX_DEPTH:
        known = current if isinstance(current, dict) else {}
        return {
            name: _unmasked(item, known.get(name), entry, f"{path}.{printable(name)}", depth + 1)
            for name, item in value.items()
        }
    return value


def _points_elsewhere(value: Any) -> bool:
    """Whoever may edit by the API could otherwise have any file or variable of the server used as a credential."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _require_secrets(sent: Mapping[str, Any], current: Any, entry: str) -> None:
    """Who may edit settings need not know the secrets in them, and must not be able to send them, or backups that they
    protected, to another place.

    :raises ConfigError: ``***`` was sent together with another place, other credentials or weaker encryption; or
        credentials that stand elsewhere were to be used for another place.
    """
    there = current if isinstance(current, dict) else {name: sent.get(name) for name in _PLACE if name != "endpoint"}
    moved = next((name for name in _PLACE if _place(sent.get(name)) != _place(there.get(name))), None)
    elsewhere = next((name for name in _CREDENTIALS_ELSEWHERE if sent.get(name)), None)
    if moved is not None and elsewhere is not None:
        raise ConfigError(
            f"{_WORDS[moved]} for credentials that stand elsewhere ({elsewhere}) is set in databases.json itself, not "
            "through an edit",
            entry=entry,
            field=f"s3.{moved}",
        )
    if not isinstance(current, dict) or not _holds_mask(sent):
        return
    changed = moved or next(
        (name for name in _CREDENTIALS_ELSEWHERE if _place(sent.get(name)) != _place(current.get(name))), None
    )
    if changed is None and _strength(sent.get("encryption")) < _strength(current.get("encryption")):
        changed = "encryption"
    if changed is not None:
        raise ConfigError(
            f"{_WORDS[changed]} needs the secrets in full, and {MASK} was sent for one",
            entry=entry,
            field=f"s3.{changed}",
            hint="Send secretAccessKey and encryptionKey in full.",
        )


def _holds_mask(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (dict, list)) and depth <= MAX_DEPTH:
        items = value.values() if isinstance(value, dict) else value
        return any(_holds_mask(item, depth + 1) for item in items)
    return bool(value == MASK)


def _place(value: Any) -> Any:
    return (value or "").rstrip("/") if isinstance(value or "", str) else value


def _strength(mode: Any) -> int:
    """The rank of an encryption mode; unknown ones are refused elsewhere."""
    modes = get_args(Encryption)
    return modes.index(mode or "none") if (mode or "none") in modes else len(modes)


def _harms_nobody(after: Installation, before: Installation) -> None:
    """A later entry must not lose its place to this one (the same bucket and prefix, say)."""
    known = {str(problem) for problem in before.problems}
    for problem in after.problems:
        if str(problem) not in known:
            raise problem


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)  # `read_trusted` says what is wrong
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _write(path: Path, entries: list[Any], before: tuple[int, int, int]) -> None:
    content = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    if _identity(path) != before:
        raise BusyError(
            "the file was edited meanwhile; nothing was changed",
            holder="an editor",
            subject=str(path),
            hint="Try again.",
        )
    try:
        write_durably(path, _as_before(path, content.encode()))
    except OSError as error:
        raise FileSystemError(
            f"cannot be written: {error.strerror}",
            errno=error.errno or 0,
            subject=str(path),
            hint="Its folder must be writable for the user that this process runs as.",
        ) from error


def _as_before(path: Path, content: bytes) -> Callable[[int], bytes]:
    """`content`, for `write_durably`: where root writes, the new file belongs to the owner of the one at `path`, which
    need not be that of the folder.
    """

    def written(fd: int) -> bytes:
        if os.geteuid() == 0 and path.exists():
            owner = path.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return content

    return written
