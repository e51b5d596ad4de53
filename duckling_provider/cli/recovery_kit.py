"""One page for the day on which nothing of this machine is left: where the backups are, the key, and what to do.

The page is made twice with the same content, as text and as HTML, and needs nothing but itself.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider import __version__
from duckling_provider.base.errors import DucklingError, FileSystemError, RequestError
from duckling_provider.base.moments import iso
from duckling_provider.base.units import human_bytes
from duckling_provider.cli.options import Id, Json
from duckling_provider.cli.session import Session, session_of

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database
    from duckling_provider.config.s3 import S3Settings
    from duckling_provider.replica.origin import Origin

#: As many of the newest backups are on the page.
_NEWEST = 5
#: Columns of the text.
_WIDTH = 92

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em}
pre{background:#f2f2f2;padding:.8em;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}
td,th{text-align:left;vertical-align:top;padding:.1em 1.2em .1em 0;overflow-wrap:anywhere}
@media print{body{margin:0;max-width:none}}"""


#: Of format 1: what proves the object "$FILE" under "$KEY", and what decrypts it.
_PROVE = r"""MADE=$(openssl dgst -sha256 -mac HMAC -macopt "hexkey:$KEY" "$FILE" | sed "s/.*= *//")
WANTED=$(tr -d " \r\n" < "$FILE.mac" | tr A-F a-f)
if [ ${#MADE} = 64 ] && [ "$MADE" = "$WANTED" ]; then echo GENUINE; else echo DAMAGED; fi"""
_DECRYPT = r"""IV=$(head -c 16 "$FILE" | od -An -tx1 | tr -d " \n")
tail -c +17 "$FILE" | openssl enc -d -aes-256-ctr -K "$KEY" -iv "$IV" > restored.db"""
#: Of format 2: its footer and index first, then each segment; docs/internals/format.md explains them.
_PROVE_2 = r"""hex() { od -An -v -tx1 | tr -d ' \n'; }
bin() { printf "$(sed 's/../\\x&/g' <<< "$1")"; }
mac() { openssl dgst -sha256 -mac HMAC -macopt "hexkey:$1" -binary | hex; }
EXTRACTED=$(bin $KEY | mac $(printf 'duckling backup format 2' | hex))
sub() { printf "$1\1" | mac $EXTRACTED; }
part() { tail -c +$(($1 + 1)) "$FILE" | head -c $2; }
LENGTH=$(wc -c < "$FILE"); N=$((16#$(part $((LENGTH - 48)) 4 | hex)))
fact() { part $((LENGTH - 48 - N)) $N | sed -E "s/.*\"$1\":\"?([^\",}]*).*/\1/"; }
SIZE=$(fact size); ID=$(fact database); LINEAGE=$(fact lineage)
MADE=$(part $SIZE $((LENGTH - SIZE - 32)) | mac $(sub footer))
WANTED=$(tr -d " \r\n" < "$FILE.mac" | tr A-F a-f)
if [ ${#MADE} = 64 ] && [ "$MADE" = "$WANTED" ]; then echo GENUINE; else echo DAMAGED; fi"""
_DECRYPT_2 = r"""for ((I = 0, AT = 0; AT < SIZE; I++, AT += 8388608)); do
part $((SIZE + 32 * I)) 32 > tag
part $AT $((SIZE - AT < 8388608 ? SIZE - AT : 8388608)) > sealed
openssl enc -d -aes-256-ctr -K $(mac $(sub 'segment key') < tag) -iv $(printf %032d 0) -in sealed -out segment
BOUND=$LINEAGE$(printf %016x%08x%04x $I 8388608 $(printf %s "$ID" | wc -c))
MADE=$({ bin $BOUND; printf %s "$ID"; cat segment; } | mac $(sub 'segment tag'))
if [ "$MADE" != $(hex < tag) ]; then echo "DAMAGED at byte $AT"; break; fi
cat segment >> restored.db
done
if [ $AT -ge $SIZE ]; then echo WHOLE; fi
rm -f tag sealed segment"""


@dataclass
class Section:
    """A heading and what is under it: a string is a paragraph, `Code` a block to copy, a list the rows of a table."""

    title: str
    blocks: list[str | Code | list[tuple[str, ...]]] = field(default_factory=list)


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Found:
    """One of the newest backups: `fingerprint` of its key, ``""`` where it has none, None where it is not known;
    `origin` says of which replica it is, where that is not the one here, or there are several; `is_format_2` of what
    client-aes256 made.
    """

    key: str
    size: int
    fingerprint: str | None
    origin: str = ""
    is_format_2: bool = False


def recovery_kit(
    context: typer.Context,
    id: Id,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it; the current folder.")] = Path(),
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Leave the keys out, and show their fingerprints only.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a page (text and HTML) with all that a restore needs on another machine, also without this software."""
    session = session_of(context, as_json)
    database = session.entry(id)
    s3 = session.s3_of(database)
    found, problem = _newest(session, database)
    now = datetime.now(timezone.utc)
    sections = list(page(database, s3, found, with_key=not without_key, now=now))
    title = f"Recovery kit of {database.id}"
    folder = Path(os.path.abspath(to))
    files = {
        folder / f"recovery-kit-{database.id}.txt": as_text(title, sections),
        folder / f"recovery-kit-{database.id}.html": as_html(title, sections),
    }
    session.act_as_owner_of(folder)
    _write(files)
    if problem is not None:
        session.terminal.warn(f"the page lists no backups: {problem}")
    has_key = not without_key and bool(s3.reading_keys)
    if session.terminal.json:
        session.terminal.document({"success": True, "files": [str(path) for path in files], "withKey": has_key})
        return
    for path in files:
        session.terminal.say(str(path))
    session.terminal.note(
        "It holds the key: print it, or keep it in a password manager, then delete it here. Not beside the backups."
        if has_key
        else "It holds no key: keep the key at another safe place."
    )


def _newest(session: Session, database: Database) -> tuple[list[Found], str | None]:
    """The newest backups that may be good, or why they can't be listed: the page is worth having all the same."""
    from duckling_provider.backup.inventory.choice import is_complete, list_backups
    from duckling_provider.backup.inventory.key_choice import is_format_2, key_of
    from duckling_provider.backup.inventory.metadata import origin_of
    from duckling_provider.backup.inventory.states import read_state

    try:
        store = session.store(database)
        if store is None or database.s3 is None:
            return [], None
        now = datetime.now(timezone.utc)
        whole = (b for b in list_backups(store) if is_complete(b, store.mode) and not b.misdated(now))
        good = (b for b in whole if read_state(database, store, b).name != "disproved")
        listed = [(b, origin_of(store.head(b.key))) for b in itertools.islice(good, _NEWEST)]
        mine = _own_origin(database)
        several = len({origin.replica for _, origin in listed if origin is not None}) > 1
        keys = database.s3.reading_keys
        found = []
        for backup, origin in listed:
            foreign = origin is not None and (several if mine is None else not mine.owns(origin, backup.created))
            fingerprint = key_of(store, backup.key, keys)
            second = bool(keys) and is_format_2(store, backup.key, backup.size)
            found.append(Found(backup.key, backup.size, fingerprint, f"of {origin}" if foreign else "", second))
        return found, None
    except DucklingError as error:
        return [], session.terminal.explain(error)[0]


def _own_origin(database: Database) -> Origin | None:
    """Of the replica that is here; None where there is none, or this user can't see it."""
    from duckling_provider.base.ownership import as_owner_of
    from duckling_provider.replica.origin import read_origin

    with contextlib.suppress(DucklingError, OSError):
        if database.is_here:
            with as_owner_of(*database.files):
                return read_origin(database.replica, host=database.here)
    return None


def page(
    database: Database, s3: S3Settings, found: Sequence[Found], *, with_key: bool, now: datetime
) -> Iterator[Section]:
    """The content of the page.

    :param found: the newest backups, the newest first.
    :param with_key: False leaves the keys out.
    """
    from duckling_provider.config.s3 import CLIENT
    from duckling_provider.formats.trailer import FORMAT

    # Also where new backups are made otherwise, and older ones were encrypted here.
    encrypted = bool(s3.reading_keys)
    yield Section(
        "What this is",
        [
            (
                f'How to get back the DuckDB database "{database.name}" from its backups. Written on {iso(now)} by '
                f"duckling {__version__}."
            ),
            "Keep it where the backups are not. Who has it and may read the bucket can read every backup."
            if with_key and encrypted
            else "Keep it where the machine is not.",
        ],
    )
    yield _where(database, s3, found)
    if encrypted:
        yield _keys(s3, with_key=with_key)
    own = next((b.key.rpartition("/")[2] for b in found if not b.origin), "KEY")
    latest = own if any(b.origin for b in found) else "latest"
    yield _with_this_software(database, s3, latest, with_key=with_key)
    name = f"{s3.path_prefix}backup-YYYY-MM-DDTHH-MM-SS-mmmZ.db"
    unknown = Found(name, 0, None, is_format_2=s3.object_format == FORMAT)
    if encrypted:
        formats = {b.is_format_2 for b in found if b.fingerprint != ""} or {unknown.is_format_2}
        for second in sorted(formats):
            like = [b for b in found if b.is_format_2 == second]
            yield _with_openssl(s3, _example(like, unknown, encrypted=True), with_key=with_key)
    if s3.encryption != CLIENT:
        yield _without_software(s3, _example(found, unknown, encrypted=False).key)


def _example(found: Sequence[Found], unknown: Found, *, encrypted: bool) -> Found:
    """The newest of that kind, of this replica where there is one."""
    fitting = [b for b in found if (b.fingerprint != "") == encrypted]
    return next((b for b in fitting if not b.origin), fitting[0] if fitting else unknown)


def _where(database: Database, s3: S3Settings, found: Sequence[Found]) -> Section:
    from duckling_provider.config.references import reference

    shown = not reference(database.entry["s3"].get("accessKeyId"))
    rows: list[tuple[str, ...]] = [
        ("store", s3.endpoint or "AWS S3"),
        ("bucket", s3.bucket),
        ("region", s3.region),
        ("addresses", "path style (endpoint/bucket/key)" if s3.force_path_style else "bucket as a host name"),
        ("keys begin with", s3.path_prefix),
        ("encryption", s3.encryption),
        ("access key id", (s3.access_key_id or "in an Airflow connection") if shown else "not on this page"),
    ]
    if s3.encryption == "sse-kms":
        rows.insert(-1, ("KMS key", f"{s3.kms_key_id or 'of the account'}; to read with it takes kms:Decrypt"))
    section = Section("Where the backups are", [rows])
    section.blocks.append(
        "The secret access key is not on this page. Where it is lost, make new credentials at the provider that may "
        "list the bucket and read its objects."
    )
    if found:
        section.blocks += [
            "The newest when this was written; later ones have later names:",
            [(b.key, human_bytes(b.size), _by(b.fingerprint), b.origin) for b in found],
        ]
    if any(b.origin for b in found):
        section.blocks.append(
            "Those with a host at their end are of another replica than the one here, or of one of several: another "
            "machine backs up under these names too. Take the newest of the machine whose data are wanted."
        )
    return section


def _by(fingerprint: str | None) -> str:
    if fingerprint is None:
        return "key not known"
    return f"key {fingerprint}" if fingerprint else "not encrypted"


def _keys(s3: S3Settings, *, with_key: bool) -> Section:
    from duckling_provider.config.s3 import CLIENT

    rows = []
    for key in s3.reading_keys:
        when = "new backups" if s3.encryption == CLIENT and key == s3.encryption_key else "older backups"
        rows.append((when, f"fingerprint {key.fingerprint}", *([key.hex()] if with_key else [])))
    blocks: list[str | Code | list[tuple[str, ...]]] = [rows]
    if not with_key:
        blocks.append("The keys themselves, 64 hex digits each, are kept elsewhere. Write here where: ______________")
    return Section("The key", blocks)


def _with_this_software(database: Database, s3: S3Settings, latest: str, *, with_key: bool) -> Section:
    """:param latest: which backup is restored; its name, where another replica's may be newer."""
    from duckling_provider.config.s3 import CLIENT
    from duckling_provider.formats.trailer import FORMAT

    place: dict[str, Any] = {
        "enabled": True,
        "bucket": s3.bucket,
        "region": s3.region,
        "accessKeyId": "ACCESS-KEY-ID",
        "secretAccessKey": "SECRET-ACCESS-KEY",
        **({"endpoint": s3.endpoint} if s3.endpoint else {}),
        "forcePathStyle": s3.force_path_style,
        "pathPrefix": s3.path_prefix,
        "encryption": s3.encryption,
        **({"kmsKeyId": s3.kms_key_id} if s3.encryption == "sse-kms" and s3.kms_key_id else {}),
        **({"requireIdentity": True} if s3.require_identity else {}),
        **({"objectFormat": FORMAT} if s3.object_format == FORMAT else {}),
    }
    keys = [key.hex() if with_key else "64-HEX-DIGITS" for key in s3.reading_keys]
    if s3.encryption == CLIENT:
        place["encryptionKey"] = keys.pop(0)
    if keys:
        place["previousEncryptionKeys"] = keys
    older = []
    if s3.encryption != CLIENT and keys:
        older.append("A backup that is encrypted with one of the keys is named, with --encryption client-aes256.")
    entry = {"id": database.id, "name": database.name, "duckdbPath": "data/restored.db", "s3": place}
    return Section(
        "With this software",
        [
            (
                f"1. Install Duckling for Airflow, version {__version__} or later (the Python package "
                "duckling-provider). Airflow itself need not run."
            ),
            "2. Make a folder named data, and in it databases.json with this content and the credentials filled in:",
            Code(json.dumps([entry], indent=2)),
            "3. Look at what there is, and restore; it is verified first, and ends in data/restored.db:",
            Code(
                "chmod 600 data/databases.json\n"
                'export DATA_PATH="$PWD/data"\n'
                f"duckling list {database.id}\n"
                f"duckling restore {database.id} {latest}"
            ),
            *older,
        ],
    )


def _with_openssl(s3: S3Settings, example: Found, *, with_key: bool) -> Section:
    key, file = example.key, example.key.rpartition("/")[2]
    # Since a change of the key there may be no newer backup yet.
    fitting = next((k for k in s3.reading_keys if k.fingerprint == example.fingerprint), s3.reading_keys[0])
    several = len(s3.reading_keys) > 1
    secret = fitting.hex() if with_key else '$(tr -d " \\r\\n" < key.txt)'
    given = "" if with_key else " Put the key into a file key.txt there."
    other = " If it says DAMAGED, try each other key before you give the backup up." if several else ""
    begin = f"KEY={secret}\nFILE={file}\n"
    prove, decrypt = (_PROVE_2, _DECRYPT_2) if example.is_format_2 else (_PROVE, _DECRYPT)
    how = (
        "its segments of 8 MiB are decrypted, and proven, one by one. Only after it says WHOLE is restored.db the "
        "database."
        if example.is_format_2
        else "the first 16 bytes are the IV, the rest is AES-256-CTR."
    )
    return Section(
        "With openssl alone, backups of format 2" if example.is_format_2 else "With openssl alone",
        [
            (
                "1. Into an empty folder, download a backup and the object of the same name with .mac at its end, by "
                f"any S3 client or the provider's console.{given} For example:"
            ),
            Code("\n".join(_download(s3, name) for name in (key, f"{key}.mac"))),
            f"2. In that folder, prove that nobody changed it. This must say GENUINE.{other}"
            + (" The shell must be bash." if example.is_format_2 else ""),
            Code(begin + prove),
            f"3. In the same shell, decrypt it: {how}",
            Code(decrypt),
            (
                "4. restored.db is the database; open it with DuckDB. These commands show the key in the machine's "
                "list of processes while they run: use a machine that you share with nobody."
            ),
        ],
    )


def _without_software(s3: S3Settings, key: str) -> Section:
    file = key.rpartition("/")[2]
    return Section(
        "Without this software",
        [
            "1. Download a backup by any S3 client or the provider's console. For example:",
            Code(_download(s3, key)),
            "2. It is the database as it was. Where the object's metadata has duckling-sha256, this must print it:",
            Code(f"sha256sum {file}"),
            "3. Open it with DuckDB.",
        ],
    )


def _download(s3: S3Settings, key: str) -> str:
    endpoint = ["--endpoint-url", s3.endpoint] if s3.endpoint else []
    return shlex.join(["aws", "s3", "cp", *endpoint, "--region", s3.region, f"s3://{s3.bucket}/{key}", "."])


# ---- the two forms -----------------------------------------------------------------------------------------


def as_text(title: str, sections: Sequence[Section]) -> str:
    """What is to be copied is indented by four blanks, which neither a shell nor JSON minds."""
    lines = [title, "=" * len(title)]
    for section in sections:
        lines += ["", section.title, "-" * len(section.title)]
        for block in section.blocks:
            lines.append("")
            if isinstance(block, Code):
                lines += [f"    {line}" for line in block.text.splitlines()]
            elif isinstance(block, str):
                lines += textwrap.wrap(block, _WIDTH, break_long_words=False, break_on_hyphens=False)
            else:
                widths = [max(map(len, column)) for column in zip(*block, strict=True)]
                cells = ([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in block)
                lines += [f"- {'  '.join(row).rstrip()}" for row in cells]
    return "\n".join(lines) + "\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The same for a browser; it loads nothing."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"]
    parts.append(f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        for block in section.blocks:
            if isinstance(block, Code):
                parts.append(f"<pre>{html.escape(block.text)}</pre>")
            elif isinstance(block, str):
                parts.append(f"<p>{html.escape(block)}</p>")
            else:
                rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in block)
                parts.append(f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    return "\n".join(parts) + "\n"


def _write(files: dict[Path, str]) -> None:
    """All of them or none, each new and for its owner only."""
    written: list[Path] = []
    try:
        for path, content in files.items():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            written.append(path)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o600)
                file.write(content)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise RequestError(
                "there is a file of that name already", subject=str(error.filename), hint="Move it away, or use --to."
            ) from None
        if isinstance(error, OSError):
            raise FileSystemError(
                f"cannot be written: {error.strerror}", errno=error.errno or 0, subject=str(error.filename)
            ) from error
        raise
