"""The command ``duckling``: everything that Airflow does with backups, for the day Airflow itself is gone.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 128 + n stopped by signal n. Heavy imports are made inside
the commands, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duckling_provider import __version__
from duckling_provider.core.catalog import LATEST, checked_key, parse_moment, parse_name
from duckling_provider.core.errors import CancelledError, ConfigError, DucklingError, NotFoundError, human_bytes
from duckling_provider.progress_log import human_seconds
from duckling_provider.terminal import LogLines, Terminal, ago, iso, size

if TYPE_CHECKING:
    from types import FrameType

    from duckling_provider.core.check import CheckStep
    from duckling_provider.core.config import Database, Installation
    from duckling_provider.core.control import Control
    from duckling_provider.core.store import Store

FAILED, BAD_USAGE = 1, 2


class UsageError(DucklingError):
    """The command line asks for something that can't be."""


class Stopped(BaseException):  # noqa: N818 - like KeyboardInterrupt, which it stands for
    """Raised by a signal when there is nothing that could stop more gently; not to be caught by `except Exception`."""


class Session:
    """One command under way: its output, its configuration, and how to stop it."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.signal = 0
        self._control: Control | None = None

    def listen(self) -> None:
        """Let Ctrl-C, SIGTERM and a lost terminal end the command cleanly; what the caller ignores (nohup) stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = not self.signal, self.signal or number
        if not first or self._control is None:
            raise Stopped
        self._control.cancel()

    @contextlib.contextmanager
    def control(self) -> Iterator[Control]:
        """For a long operation: shows its progress and stops it at a safe point."""
        from duckling_provider.core.control import Control

        with self.terminal.progress() as callback:
            self._control = Control(callback)
            try:
                yield self._control
            finally:
                self._control = None

    def installation(self) -> Installation:
        from duckling_provider.core import config

        installation = config.load()
        for database in installation.databases:
            self.terminal.know(database.secrets())
        self.terminal.know(())
        return installation

    def database(self, database_id: str) -> Database:
        installation = self.installation()
        try:
            database = installation.database(database_id)
        except NotFoundError as error:
            raise UsageError(error.cause, hint=error.hint) from error
        for warning in installation.warnings:
            if warning.startswith((f"{database_id}: ", installation.settings.databases_file.name)):
                self.terminal.warn(warning)
        return database

    def store(self, database: Database) -> Store | None:
        """The entry's S3 store, None when it has none."""
        if database.s3 is None:
            return None
        from duckling_provider.core.s3 import Credentials, open_store

        if database.s3.aws_conn_id is None:
            return open_store(database)
        try:
            credentials = _connection_credentials(database.id)
        except Exception as error:
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            found = [os.environ.get(name) for name in names]
            if not found[0] or not found[1]:
                # Without its hint: the one below is about the day that Airflow is gone.
                cause = error.cause if isinstance(error, DucklingError) else f"{type(error).__name__} in Airflow"
                raise ConfigError(
                    f"no credentials from the Airflow connection {database.s3.aws_conn_id!r}: {cause}",
                    entry=database.id,
                    hint=f"Without Airflow, set {' and '.join(names)} in the environment.",
                ) from error
            credentials = Credentials(found[0], found[1], os.environ.get("AWS_SESSION_TOKEN") or None)
        self.terminal.know([s for s in (credentials.secret_access_key, credentials.session_token) if s])
        return open_store(database, credentials=credentials)

    def source(self, database: Database, *, local: bool) -> Store:
        """Where backups are taken from: S3 where it is configured, unless the local ones are asked for."""
        from duckling_provider.core.local import LocalBackups

        store = None if local else self.store(database)
        return LocalBackups(database) if store is None else store


def _connection_credentials(database_id: str) -> Any:
    """What the entry's Airflow connection holds. Importing Airflow takes seconds, so only entries that need it pay."""
    logging.disable(logging.ERROR)
    try:
        # Whatever Airflow prints must not get into a JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            from duckling_provider.hooks.duckling import DucklingHook

            return DucklingHook(database_id).credentials()
    finally:
        logging.disable(logging.NOTSET)


# ---- commands ----------------------------------------------------------------------------------------------

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
    version: Annotated[
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
    from duckling_provider.core.local import LocalBackups
    from duckling_provider.core.stored import list_backups

    session = _session(context, as_json)
    installation = session.installation()
    found: list[dict[str, Any]] = []
    rows = []
    for database in installation.databases:
        s3 = database.s3
        length = database.replica.stat().st_size if database.replica.is_file() else None
        last = next(iter(list_backups(LocalBackups(database))), None)
        target = f"s3://{s3.bucket}/{s3.path_prefix}" if s3 else None
        found.append(
            {
                "id": database.id,
                "name": database.name,
                "replica": str(database.replica),
                "replicaSize": length,
                "autoBackup": database.auto_backup,
                "intervalHours": database.interval_hours,
                "s3": target,
                "endpoint": s3.endpoint if s3 else None,
                "encryption": s3.encryption if s3 else None,
                "lastLocalBackup": {"filename": last.name, "size": last.size, "createdAt": iso(last.created)}
                if last
                else None,
            }
        )
        every = f"every {database.interval_hours:g} h" if database.auto_backup else "off"
        mode = s3.encryption if s3 else "-"
        last_seen = ago(last.created) if last else "never"
        rows.append([database.id, database.name, size(length), every, target or "-", mode, last_seen])
    problems = [session.terminal.hide(str(problem)) for problem in installation.problems]
    if session.terminal.json:
        session.terminal.document(
            {"databases": found, "problems": problems, "warnings": list(map(session.terminal.hide, installation.warnings))}
        )
    else:
        if rows:
            session.terminal.table(["ID", "NAME", "REPLICA>", "BACKUP", "S3", "ENCRYPTION", "LAST LOCAL"], rows)
        for problem in problems:
            session.terminal.say(f"BAD  {problem}")
        if not rows and not problems:
            session.terminal.note(f"{installation.settings.databases_file} has no entries")
        for warning in installation.warnings:
            session.terminal.warn(warning)
    if problems and not rows:
        raise typer.Exit(BAD_USAGE)


@app.command()
def check(
    context: typer.Context,
    id: Annotated[  # noqa: A002 - the argument's name in help and errors
        str | None, typer.Argument(metavar="[ID]", help="One entry; all when omitted.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Try whether a backup and a restore would work now: replica, folders, and the store under its prefix for real."""
    from duckling_provider.core.check import check_database

    session = _session(context, as_json)
    terminal = session.terminal
    problems: list[str] = []
    if id is None:
        installation = session.installation()
        chosen, warnings = installation.databases, list(installation.warnings)
        problems = [terminal.hide(str(problem)) for problem in installation.problems]
        for warning in warnings:
            terminal.warn(warning)
    else:
        chosen = (session.database(id),)
        warnings = [w for w in session.installation().warnings if w.startswith(f"{id}: ")]
    found, errors = [], list(problems)
    for database in chosen:
        terminal.say(database.id)
        steps = []
        for step in _steps(session, database, check_database):
            error = terminal.hide(step.error) if step.error else None
            steps.append({"name": step.name, "detail": terminal.hide(step.detail), "error": error})
            terminal.say(f"  {'FAILED' if error else 'ok    '}  {step.name}: {error or step.detail}")
            if error:
                errors.append(f"{database.id}: {step.name}: {error}")
        found.append({"id": database.id, "success": not any(step["error"] for step in steps), "steps": steps})
    for problem in problems:
        terminal.say(f"BAD  {problem}")
    if terminal.json:
        first = {"error": errors[0]} if errors else {}
        terminal.document(
            {
                "success": not errors,
                **first,
                "databases": found,
                "problems": problems,
                "warnings": list(map(terminal.hide, warnings)),
            }
        )
    if errors:
        raise typer.Exit(BAD_USAGE if problems else FAILED)


def _steps(session: Session, database: Database, check_database: Any) -> Iterator[CheckStep]:
    from duckling_provider.core.check import CheckStep

    try:
        store = session.store(database)
    except DucklingError as error:
        yield from (step for step in check_database(database, None) if step.name != "store")
        yield CheckStep("store", error=str(error))
    else:
        yield from check_database(database, store)


@app.command()
def backup(context: typer.Context, id: Id, wait: Wait = 60.0, as_json: Json = False) -> None:  # noqa: A002
    """Back up now: local copy, upload to S3, read back and verify, then delete what is older than the retention."""
    from duckling_provider.core.backup import back_up

    session = _session(context, as_json)
    database = session.database(id)
    store = session.store(database)
    with session.control() as control:
        done = back_up(database, store, control=control, owner="duckling backup", wait=wait)
    snapshot, upload = done.snapshot, done.upload
    if session.terminal.json:
        key = {"key": upload.key} if upload else {}
        facts = {"filename": snapshot.filename, "size": snapshot.size, "duration": done.duration_ms}
        session.terminal.document({"success": True, **key, **facts})
        return
    took = f"{human_bytes(snapshot.size)} in {human_seconds(done.duration_ms / 1000)}"
    if store is None or upload is None or done.verified is None:
        session.terminal.say(f"{snapshot.path}: {took}; local only, S3 is not configured")
    else:
        proof = f"verified ({done.verified.evidence})"
        session.terminal.say(f"{store.url}{upload.key}: {took}, encryption {upload.mode}, {proof}")
    if snapshot.bad_blocks:
        session.terminal.warn(
            f"{len(snapshot.bad_blocks)} blocks of the replica have a wrong checksum, though no table uses them"
        )
    deleted = (*done.cleanup.local_deleted, *done.cleanup.s3_deleted)
    if deleted:
        session.terminal.say(f"deleted by the retention: {', '.join(deleted)}")


@app.command("list")
def list_(context: typer.Context, id: Id, as_json: Json = False) -> None:  # noqa: A002
    """List the backups of a database, newest first, local ones and those in S3."""
    from duckling_provider.core.local import LocalBackups
    from duckling_provider.core.stored import CLIENT, list_backups

    session = _session(context, as_json)
    terminal = session.terminal
    database = session.database(id)
    local = list_backups(LocalBackups(database))
    error: DucklingError | None = None
    remote = []
    needs_mac = False
    try:
        store = session.store(database)
        if store is not None:
            needs_mac = store.mode == CLIENT
            remote = list_backups(store)
    except DucklingError as caught:
        error = caught
    shown = {
        "local": [{"filename": b.name, "size": b.size, "createdAt": iso(b.created)} for b in local],
        "s3": [{"key": b.key, "size": b.size, "lastModified": iso(b.modified or b.created)} for b in remote],
    }
    if terminal.json and error is None:
        terminal.document(shown)
    elif not terminal.json:
        rows = [["local", b.key, human_bytes(b.size), ago(b.created), ""] for b in local]
        for b in remote:
            state = "" if b.has_mac or not needs_mac else "incomplete: no .mac"
            rows.append(["s3", b.key, human_bytes(b.size), ago(b.created), state])
        if rows:
            terminal.table(["WHERE", "KEY", "SIZE>", "MADE>", ""], rows)
        elif error is None:
            terminal.note(f"no backups of {database.id} yet; make one: duckling backup {database.id}")
    if error is not None:
        terminal.fail_with(error, **shown)
        raise typer.Exit(_code_of(error))


@app.command()
def verify(context: typer.Context, id: Id, key: Key = LATEST, local: Local = False, as_json: Json = False) -> None:  # noqa: A002
    """Prove that a backup can be restored: read it whole, check HMAC or SHA-256, length and DuckDB's block checksums."""
    from duckling_provider.core.verify import verify_backup

    session = _session(context, as_json)
    database = session.database(id)
    source = session.source(database, local=local)
    _check_key(source, key)
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
                "badBlocks": done.bad_blocks,
            }
        )
        return
    took = human_seconds(done.duration_ms / 1000)
    session.terminal.say(
        f"{source.url}{done.key}: sound, {human_bytes(done.size)} read in {took}, verified by {done.evidence}"
    )
    if done.bad_blocks:
        session.terminal.warn(f"{done.bad_blocks} blocks had a wrong checksum already when they were backed up")


@app.command()
def restore(
    context: typer.Context,
    id: Id,  # noqa: A002
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
    from duckling_provider.core.restore import restore_backup

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
    _check_key(source, key)
    with session.control() as control:
        done = restore_backup(
            database,
            source,
            key,
            before=moment,
            # Not resolve(): a symbolic link is a name that is taken.
            to=None if to is None else Path(os.path.abspath(to)),  # noqa: PTH100
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
    id: Id,  # noqa: A002
    key: Annotated[str, typer.Argument(metavar="KEY", help="The backup's key or file name.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Delete one backup, with its .mac. Asks first; where nobody can be asked, --yes is needed."""
    from duckling_provider.core.retention import delete_backup

    session = _session(context, as_json)
    database = session.database(id)
    source = session.source(database, local=local)
    full = _check_key(source, key)
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
    id: Id,  # noqa: A002
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete backups older than the retention. The newest complete one always stays."""
    from duckling_provider.core.retention import clean_up

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
def release(context: typer.Context, id: Id, as_json: Json = False) -> None:  # noqa: A002
    """Remove a hold that was left behind by a restore whose owner is gone for good; says whose it was."""
    from duckling_provider.core.locks import read_hold, release_hold

    session = _session(context, as_json)
    replica = session.database(id).replica
    hold = read_hold(replica)
    if hold is not None and hold.process is not None and hold.process.is_here():
        raise DucklingError(
            f"held for {hold}, and that process is alive", subject=id, hint="Stop it first; its hold ends with it."
        )
    if hold is not None:
        release_hold(replica, owner=None)
    if session.terminal.json:
        session.terminal.document({"success": True, "released": None if hold is None else str(hold)})
    session.terminal.say(f"{id}: {'no hold' if hold is None else f'released: {hold}'}")


@app.command()
def keygen(context: typer.Context, as_json: Json = False) -> None:
    """Make a key for client-aes256."""
    from duckling_provider.core.keys import EncryptionKey

    session = _session(context, as_json)
    key = EncryptionKey.generate()
    if session.terminal.json:
        session.terminal.document({"success": True, "encryptionKey": key.hex(), "fingerprint": key.fingerprint})
        return
    print(key.hex())
    session.terminal.note("Put it into s3.encryptionKey and keep a copy elsewhere: without it no backup can be read.")


def _check_key(source: Store, key: str) -> str:
    """`key` in full, refused before anything is asked of the store or the replica."""
    if key == LATEST:
        return key
    try:
        return checked_key(source.prefix, key)
    except DucklingError as error:
        raise UsageError(error.cause, subject=error.subject, hint=error.hint) from error


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
        return code if isinstance(code, int) else 0
    except (Stopped, CancelledError) as stopped:
        name = "Ctrl-C" if session.signal == signal.SIGINT else signal.Signals(session.signal or signal.SIGTERM).name
        hint = stopped.hint if isinstance(stopped, CancelledError) else None
        terminal.fail(f"stopped by {name}. {hint}" if hint else f"stopped by {name}")
        return 128 + (session.signal or signal.SIGTERM)
    except typer.BadParameter.__bases__ as error:  # click's UsageError; typer has its own copy of click or not
        terminal.fail(_usage_message(error), _usage_hint(error))
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
        terminal.fail_with(error)
        return _code_of(error)


def _usage_message(error: Any) -> str:
    return str(error.format_message()).rstrip(".")


def _usage_hint(error: Any) -> str:
    path = error.ctx.command_path if error.ctx is not None else "duckling"
    return f"{path} --help shows the usage."


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A path that is no UTF-8, or a locale without it, must not end in a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
