"""The command ``duckling``: everything that Airflow does with backups, for the day Airflow itself is gone.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 128 + n stopped by signal n. Heavy imports are made inside
the commands, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from duckling_provider import __version__
from duckling_provider.backup.names import LATEST, parse_name
from duckling_provider.base.errors import CancelledError, ConfigError, DucklingError, RequestError
from duckling_provider.base.moments import parse_moment
from duckling_provider.base.units import human_bytes, human_seconds
from duckling_provider.cli import replication as replication_cli
from duckling_provider.cli.session import Session, Stopped, UsageError, full_key
from duckling_provider.cli.terminal import LogLines, Terminal

if TYPE_CHECKING:
    from duckling_provider.config.databases import Database

FAILED, BAD_USAGE = 1, 2
#: click's UsageError. Newer typers have a click of their own, so it is found by way of its public child.
_USAGE_ERRORS = cast("tuple[type[Exception], ...]", typer.BadParameter.__bases__)


app = typer.Typer(
    name="duckling",
    help="Backups of DuckDB replicas in S3: make, list, verify and restore them.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 130 Ctrl-C, 143 SIGTERM.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON document.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The entry's id in databases.json.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="[KEY|latest]", help="A key, a file name, or latest.")]
Local = Annotated[bool, typer.Option("--local", help="Use the local backups although S3 is configured.")]
Wait = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for whoever uses the replica.")]


def _version(value: bool) -> None:
    if value:
        print(f"duckling {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    data_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The folder of databases.json, in place of DATA_PATH.")
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if data_path is not None:
        # Into the environment, because the Airflow hook and child processes read it there.
        os.environ["DATA_PATH"] = data_path


def _session(context: typer.Context, as_json: bool) -> Session:
    session: Session = context.obj
    session.terminal.json = as_json
    return session


@app.command()
def databases(context: typer.Context, as_json: Json = False) -> None:
    """Show what databases.json holds; a bad entry is shown with what is wrong. Fails only when no entry is good."""
    from duckling_provider.cli.databases import show_databases

    session = _session(context, as_json)
    installation = session.installation()
    show_databases(session.terminal, installation)
    if installation.problems and not installation.databases:
        raise typer.Exit(BAD_USAGE)


@app.command()
def check(
    context: typer.Context,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One entry; all when omitted.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Try whether a backup and a restore would work now: replica, folders, and the store under its prefix for real."""
    from duckling_provider.cli.databases import check_all

    session = _session(context, as_json)
    installation = session.installation()
    chosen: tuple[Database, ...] = installation.databases
    problems = [str(problem) for problem in installation.problems]
    warnings = installation.warnings
    if id is not None:
        chosen, problems, warnings = (session.chosen(installation, id),), [], session.warnings(installation, id)
    for warning in warnings:
        session.terminal.warn(warning)
    all_well = check_all(
        session, installation.settings, chosen, problems=problems, warnings=warnings, is_here=id is not None
    )
    if problems or not all_well:
        raise typer.Exit(BAD_USAGE if problems else FAILED)


@app.command()
def backup(context: typer.Context, id: Id, wait: Wait = 60.0, as_json: Json = False) -> None:
    """Back up now: local copy, upload to S3, read back and verify, then delete what is older than the retention."""
    from duckling_provider.backup.upload import back_up

    session = _session(context, as_json)
    database = session.database(id)
    store = session.store(database)
    with session.control() as control:
        done = back_up(database, store, control=control, owner="duckling backup", wait=wait)
    snapshot, upload = done.snapshot, done.upload
    if session.terminal.json:
        key = {"key": upload.key} if upload else {}
        facts = {"filename": snapshot.filename, "size": snapshot.size, "duration": done.duration_ms}
        failed = {"cleanupError": str(done.cleanup_error)} if done.cleanup_error else {}
        session.terminal.document({"success": True, **key, **facts, **failed})
        return
    took = f"{human_bytes(snapshot.size)} in {human_seconds(done.duration_ms / 1000)}"
    if store is None or upload is None or done.verified is None:
        session.terminal.say(f"{snapshot.path}: {took}; local only, S3 is not configured")
    else:
        proof = f"verified ({done.verified.evidence})"
        session.terminal.say(f"{store.url}{upload.key}: {took}, encryption {upload.mode}, {proof}")
    if done.cleanup_error is not None:
        session.terminal.warn(f"the backup is good, but deleting old ones failed: {done.cleanup_error}")
    deleted = (*done.cleanup.local_deleted, *done.cleanup.s3_deleted) if done.cleanup else ()
    if deleted:
        session.terminal.say(f"deleted by the retention: {', '.join(deleted)}")


@app.command("list")
def list_(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """List the backups of a database, newest first, local ones and those in S3."""
    from duckling_provider.cli.databases import show_backups

    session = _session(context, as_json)
    error = show_backups(session, session.database(id))
    if error is not None:
        raise typer.Exit(_code_of(error))


@app.command()
def verify(context: typer.Context, id: Id, key: Key = LATEST, local: Local = False, as_json: Json = False) -> None:
    """Prove that a backup can be restored: read it whole and check HMAC or SHA-256, length and DuckDB's checksums."""
    from duckling_provider.backup.verify import verify_backup

    session = _session(context, as_json)
    database = session.database(id)
    source = session.source(database, local=local)
    full_key(source, key)
    with session.control() as control:
        done = verify_backup(database, source, key, control=control)
    if session.terminal.json:
        session.terminal.document(
            {
                "success": True,
                "key": done.key,
                "size": done.size,
                "duration": done.duration_ms,
                "encryption": done.mode,
                "evidence": done.evidence,
            }
        )
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(
        f"{source.url}{done.key}: sound, {human_bytes(done.size)} read in {took}, verified by {done.evidence}"
    )


@app.command()
def restore(
    context: typer.Context,
    id: Id,
    key: Key = LATEST,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Take the newest backup made before this ISO 8601 time (UTC).")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write to this new file and leave the replica alone.")
    ] = None,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Keep the old replica beside the new one.")] = False,
    local: Local = False,
    wait: Wait = 60.0,
    as_json: Json = False,
) -> None:
    """Replace the replica by a backup. It is verified first; whatever fails leaves the replica as it was."""
    from duckling_provider.backup.restore import restore_backup

    session = _session(context, as_json)
    try:
        moment = parse_moment(before) if before is not None else None
    except DucklingError as error:
        raise UsageError(f"--before: {error.cause}", subject=error.subject, hint=error.hint) from error
    if moment is not None and key != LATEST:
        raise UsageError("a key and --before were given", subject=key, hint="Give one of them.")
    if to is not None and keep_old:
        raise UsageError("--keep-old makes no sense with --to", hint="With --to the replica is left alone anyway.")
    database = session.database(id)
    source = session.source(database, local=local)
    full_key(source, key)
    with session.control() as control:
        done = restore_backup(
            database,
            source,
            key,
            before=moment,
            # Not resolve(): a symbolic link is a name that is taken.
            to=None if to is None else Path(os.path.abspath(to)),
            keep_old=keep_old,
            control=control,
            wait=wait,
        )
    if session.terminal.json:
        facts = {"key": done.key, "size": done.size, "duration": done.duration_ms}
        kept = str(done.kept) if done.kept else None
        session.terminal.document({"success": True, **facts, "path": str(done.replaced), "kept": kept})
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(f"{done.replaced}: restored from {source.url}{done.key}, {human_bytes(done.size)} in {took}")
    if done.kept:
        session.terminal.say(f"the old file is {done.kept}")


@app.command()
def delete(
    context: typer.Context,
    id: Id,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The backup's key or file name.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Delete one backup, with its .mac. Asks first; where nobody can be asked, --yes is needed."""
    from duckling_provider.backup.retention import delete_backup

    session = _session(context, as_json)
    database = session.database(id)
    source = session.source(database, local=local)
    full = full_key(source, key)
    if parse_name(full[len(source.prefix) :]) is None:
        raise UsageError("this is not a backup's key", subject=key, hint=f"duckling list {database.id} shows them.")
    interactive = sys.stdin.isatty() and sys.stderr.isatty() and not as_json
    if not yes and not interactive:
        raise UsageError("nobody can be asked here", subject=full, hint="Add --yes to delete it without asking.")
    length = source.head(full).size
    if not yes and not typer.confirm(f"Delete {source.url}{full} ({human_bytes(length)}) for good?", err=True):
        session.terminal.fail("nothing was deleted")
        raise typer.Exit(FAILED)
    if database.s3 is None or local:
        source.delete(full)
    else:
        delete_backup(source, full)
    if session.terminal.json:
        session.terminal.document({"success": True, "key": full, "size": length})
    session.terminal.say(f"{source.url}{full}: deleted, {human_bytes(length)}")


@app.command()
def cleanup(
    context: typer.Context,
    id: Id,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete backups older than the retention. The newest complete one always stays."""
    from duckling_provider.backup.retention import clean_up

    session = _session(context, as_json)
    database = session.database(id)
    store = session.store(database)
    with session.control() as control:
        done = clean_up(database, store, dry_run=dry_run, control=control)
    if session.terminal.json:
        session.terminal.document(
            {
                "success": True,
                "dryRun": done.dry_run,
                "local": {"deleted": done.local_deleted, "kept": done.local_kept, "busy": done.busy},
                "s3": None if done.s3_kept is None else {"deleted": done.s3_deleted, "kept": done.s3_kept},
                "uploadsAborted": done.uploads_aborted,
            }
        )
        return
    verb = "would delete" if dry_run else "deleted"
    for name in done.local_deleted:
        session.terminal.say(f"{verb} {database.backup_dir / name}")
    for name in done.s3_deleted:
        session.terminal.say(f"{verb} {store.url if store else ''}{name}")
    for name in done.busy:
        session.terminal.say(f"in use, left for the next time: {database.backup_dir / name}")
    if done.uploads_aborted:
        session.terminal.say(f"gave up {done.uploads_aborted} unfinished uploads")
    stay = f"{done.local_kept} local" + ("" if done.s3_kept is None else f", {done.s3_kept} in S3")
    session.terminal.say(f"{'would stay' if dry_run else 'kept'}: {stay}")


@app.command()
def release(context: typer.Context, id: Id, as_json: Json = False) -> None:
    """Remove a hold that was left behind by a restore whose owner is gone for good; says whose it was."""
    from duckling_provider.replica.access import replica_access
    from duckling_provider.replica.locks import read_hold, release_hold

    session = _session(context, as_json)
    replica = session.database(id).replica
    hold = read_hold(replica)
    process = hold.process if hold is not None else None
    if process is not None and process.host == socket.gethostname() and not process.is_gone():
        raise RequestError(
            f"held for {hold}, and that process is alive", subject=id, hint="Stop it first; its hold ends with it."
        )
    # What the hold protected may be half-way: that is put in order before anybody else gets at the replica.
    owner = hold.owner if hold is not None else "duckling release"
    with replica_access(replica, operation="release", owner=owner, wait=5.0):
        release_hold(replica, owner=None)
    if session.terminal.json:
        session.terminal.document({"success": True, "released": None if hold is None else str(hold)})
    session.terminal.say(f"{id}: {'no hold' if hold is None else f'released: {hold}'}")


@app.command()
def keygen(context: typer.Context, as_json: Json = False) -> None:
    """Make a key for client-aes256."""
    from duckling_provider.config.keys import EncryptionKey

    session = _session(context, as_json)
    key = EncryptionKey.generate()
    if session.terminal.json:
        session.terminal.document({"success": True, "encryptionKey": key.hex(), "fingerprint": key.fingerprint})
        return
    print(key.hex())
    session.terminal.note("Put it into s3.encryptionKey and keep a copy elsewhere: without it no backup can be read.")


replication_cli.register(app)


# ---- the edge ----------------------------------------------------------------------------------------------


def _code_of(error: Exception) -> int:
    return BAD_USAGE if isinstance(error, (ConfigError, UsageError)) else FAILED


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every failure becomes one line, a hint, and a code."""
    terminal = Terminal(json="--json" in arguments)  # the parser's own errors come before the option is read
    session = Session(terminal)
    debug = os.environ.get("DUCKLING_DEBUG") == "1"
    logger = logging.getLogger("duckling_provider")
    logger.addHandler(LogLines(terminal))
    logger.propagate = False
    logging.getLogger().addHandler(logging.StreamHandler() if debug else logging.NullHandler())
    try:
        session.listen()
        code = app(list(arguments) or ["--help"], obj=session, prog_name="duckling", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is dealt with, not when Python ends
        return code if isinstance(code, int) else 0
    except (Stopped, CancelledError) as stopped:
        hint = f". {stopped.hint}" if isinstance(stopped, CancelledError) and stopped.hint else ""
        terminal.fail(f"stopped by {session.stopped_by}{hint}")
        return 128 + (session.signal or signal.SIGTERM)
    except _USAGE_ERRORS as error:
        usage = cast("Any", error)
        path = usage.ctx.command_path if usage.ctx is not None else "duckling"
        terminal.fail(usage.format_message().rstrip("."), f"{path} --help shows the usage.")
        return BAD_USAGE
    except (typer.Abort, EOFError):
        terminal.fail("nothing was done")
        return FAILED
    except BrokenPipeError:
        # Whoever reads us has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            raise
        if session.signal:
            terminal.fail(f"stopped by {session.stopped_by}: {terminal.explain(error)[0]}")
            return 128 + session.signal
        terminal.fail_with(error)
        return _code_of(error)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A path that is no UTF-8, or a locale without it, must not end in a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
