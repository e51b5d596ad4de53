"""What callers see who may not know where data lies: the same texts, without the names of stores and servers.

Where it lies is for those who may edit Airflow's connections: they could look it up there as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from urllib.parse import unquote, urlsplit

from duckling_provider.backup.inventory.names import find_name
from duckling_provider.base.errors import ConfigError, ErrorRecord
from duckling_provider.config.databases import Database
from duckling_provider.web.services.access import Caller
from duckling_provider.web.services.records import Backup, Record, Run, Wait

Hide = Callable[[str], str]

HIDDEN = "…"
#: Shorter names are not looked for: they would blot out ordinary text.
_SHORTEST = 3

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>()]*[^\s\"'<>().,:;]", re.IGNORECASE)
# What is no name of the configuration: addresses that a name led to, accounts as MySQL and AWS write them, regions.
_OTHERS = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|\[[0-9a-f.]*:[0-9a-f:.]*\](?::\d+)?"
    r"|'[^']*'@'[^']*'"
    r"|\barn:[^\s\"'<>()]*[^\s\"'<>().,:;]"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
    r"|\b(?:us|eu|ap|ca|sa|me|af|il|mx|cn)(?:-[a-z]+)+-\d\b",
    re.IGNORECASE,
)


def sees_places(caller: Caller | None) -> bool:
    """Whether a caller may know where data lies; the same for every database, because it is a right to connections."""
    return caller is not None and caller.may("configure", "")


def hiding(caller: Caller | None, databases: Iterable[Database]) -> Hide:
    """What leaves texts about these databases as `caller` may read them."""
    if sees_places(caller):
        return lambda text: text
    found = tuple(databases)

    @cache
    def words() -> re.Pattern[str]:
        known = {text.casefold() for one in found for text in (one.id, one.name)}
        places = {word for one in found for word in _places(one) if len(word) >= _SHORTEST}
        ordered = sorted((word for word in places if word.casefold() not in known), key=lambda word: (-len(word), word))
        any_of = "|".join(re.escape(word) for word in ordered) or "(?!)"
        return re.compile(rf"(?<![\w-])(?:[\w-]+\.)*(?:{any_of})(?::\d+)?(?![\w-])", re.IGNORECASE)

    def hide(text: str) -> str:
        return words().sub(HIDDEN, _OTHERS.sub(HIDDEN, _URL.sub(_without_place, text))) if text else text

    return hide


def _without_place(match: re.Match[str]) -> str:
    """Of a backup's URL, its name stays: listings show it to every caller."""
    name = find_name(match.group())
    return f"{HIDDEN}/{name}" if name else HIDDEN


def _places(database: Database) -> Iterator[str]:
    """Names of where the data of an entry lies, and of who opens it."""
    s3 = database.s3
    if s3 is not None:
        key = s3.access_key_id
        yield from (s3.bucket, s3.region, key or "", s3.kms_key_id or "", s3.aws_conn_id or "")
        yield urlsplit(s3.endpoint or "").hostname or ""
    try:
        mysql = urlsplit(database.mysql_connection_string.get_secret_value())
        yield from (mysql.hostname or "", unquote(mysql.username or ""), unquote(mysql.path.strip("/")))
    except ValueError:
        return


def hidden_mistake(problem: ConfigError) -> ConfigError:
    """A mistake in databases.json without what is written there."""
    return ConfigError(
        "there is a mistake, which is shown to those who may edit connections",
        entry=problem.entry,
        field=problem.field,
    )


def hidden_run(run: Run, hide: Hide) -> Run:
    error, wait = run.error, run.wait
    if error is not None:
        hint = error.get("hint")
        error = ErrorRecord(
            kind=error["kind"],
            what=hide(error.get("what", "")),
            hint=hide(hint) if hint else hint,
            retryable=error.get("retryable", False),
        )
    return replace(run, error=error, wait=wait and Wait(wait.word, hide(wait.why)))


def hidden_backup(backup: Backup, hide: Hide) -> Backup:
    failure = backup.failure and hidden_run(backup.failure, hide)
    return replace(backup, failure=failure, full_because=hide(backup.full_because))


def hidden_record(record: Record, hide: Hide) -> Record:
    """All that runs recorded about a database, its texts as `hide` leaves them."""

    def run(found: Run | None) -> Run | None:
        return found and hidden_run(found, hide)

    return replace(
        record,
        verified=record.verified and hidden_backup(record.verified, hide),
        disproved=run(record.disproved),
        backup=run(record.backup),
        restore=run(record.restore),
        verify=run(record.verify),
        drill=run(record.drill),
        sync_run=run(record.sync_run),
        active=tuple(hidden_run(found, hide) for found in record.active),
        notes=tuple(hide(note) for note in record.notes),
    )
