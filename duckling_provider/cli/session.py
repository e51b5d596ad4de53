"""One command of the command line under way: its configuration, its stores, and how a signal ends it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pwd
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from duckling_provider.backup.inventory.names import RULES, checked_key
from duckling_provider.base.errors import CancelledError, ConfigError, DucklingError, NotFoundError, RequestError
from duckling_provider.cli.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    import typer

    from duckling_provider.base.cancellation import Control
    from duckling_provider.config.databases import Database, Installation
    from duckling_provider.config.keys import EncryptionKey
    from duckling_provider.config.s3 import S3Settings
    from duckling_provider.stores.s3_client import Credentials
    from duckling_provider.stores.store import BackupSource, Store

#: Exit codes.
FAILED, BAD_USAGE = 1, 2
#: Seconds that an operation gets to reach a safe point after a signal.
_GRACE = 5.0


class UsageError(DucklingError):
    """The command line asks for something that can't be."""


class Stopped(BaseException):
    """Raised by a signal when nothing can stop more gently. Like KeyboardInterrupt, it passes `except Exception`."""


class Session:
    """One command under way: its output, its configuration, and how to stop it."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.signal = 0
        self._control: Control | None = None
        self._installation: Installation | None = None
        self._acting = contextlib.ExitStack()

    def listen(self) -> None:
        """Let Ctrl-C, SIGTERM and a lost terminal end the command cleanly.

        What the caller has made ignored (nohup, a script's background job) stays ignored.
        """
        signal.signal(signal.SIGALRM, self._out_of_patience)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @property
    def stopped_by(self) -> str:
        """What to call the signal that came, ``"SIGTERM"`` if none did."""
        return "Ctrl-C" if self.signal == signal.SIGINT else signal.Signals(self.signal or signal.SIGTERM).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = not self.signal, self.signal or number
        if not first or self._control is None:
            raise Stopped
        self._control.cancel()
        # A store that does not answer keeps a request, and its retries, for minutes.
        signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def _out_of_patience(self, number: int, frame: FrameType | None) -> None:
        raise Stopped

    @contextlib.contextmanager
    def control(self) -> Iterator[Control]:
        """For a long operation: shows its progress and stops it at a safe point."""
        from duckling_provider.base.cancellation import Control
        from duckling_provider.base.host_load import lowered_priority
        from duckling_provider.config.environment import Settings, bandwidth_of

        # Not the installation's: a take-over begins where there is no databases.json yet.
        settings = Settings.from_env(os.environ)
        with self.terminal.progress() as callback, lowered_priority(settings.nice, for_good=True):
            self._control = Control(callback, bandwidth=bandwidth_of(settings))
            try:
                yield self._control
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self._control = None

    def installation(self) -> Installation:
        if self._installation is None:
            from duckling_provider import config

            self._installation = config.load()
            for database in self._installation.databases:
                self.terminal.know(database.secrets())
            self.terminal.know(())
        return self._installation

    def act_as_owner_of(self, *paths: Path) -> None:
        """From now on, root is the user whose folders these are, see `base.ownership`."""
        from duckling_provider.base.ownership import as_owner_of

        self._acting.enter_context(as_owner_of(*paths))

    def close(self) -> None:
        self._acting.close()

    def entry(self, database_id: str) -> Database:
        """The entry of a command that leaves its files alone; its warnings are shown."""
        installation = self.installation()
        database = self.chosen(installation, database_id)
        self.terminal.entry = database_id
        for warning in self.warnings(installation, database_id):
            self.terminal.warn(warning)
        return database

    def database(self, database_id: str, *more: Path) -> Database:
        """The entry that the command is about; its warnings are shown.

        From now on, root is the user whose folders its files, and those of `more`, lie in.
        """
        database = self.entry(database_id)
        self.act_as_owner_of(*database.places, *more)
        return database

    @staticmethod
    def chosen(installation: Installation, database_id: str) -> Database:
        """:raises UsageError: there is no such entry.
        :raises ConfigError: it is there but bad.
        """
        try:
            return installation.database(database_id)
        except NotFoundError as error:
            raise UsageError(error.cause, hint=error.hint) from error

    @staticmethod
    def warnings(installation: Installation, database_id: str) -> tuple[str, ...]:
        """Those about one entry, and those about the file."""
        about = (f"{database_id}: ", f"{installation.settings.databases_file.name}: ")
        return tuple(warning for warning in installation.warnings if warning.startswith(about))

    @staticmethod
    def s3_of(database: Database) -> S3Settings:
        """The entry's ``s3``, for commands that make no sense without.

        :raises UsageError: it has none.
        """
        if database.s3 is None:
            raise _no_s3(database)
        return database.s3

    def remote(self, database: Database) -> Store:
        """The entry's S3 store, for commands that make no sense without.

        :raises UsageError: it has none.
        """
        store = self.store(database)
        if store is None:
            raise _no_s3(database)
        return store

    def store(self, database: Database) -> Store | None:
        """The entry's S3 store, None when it has none."""
        if database.s3 is None:
            return None
        from duckling_provider.base.ownership import as_caller
        from duckling_provider.stores.s3 import open_store
        from duckling_provider.stores.s3_client import Credentials, default_credentials

        if database.s3.aws_conn_id is None:
            if database.s3.credential_source is None:
                return open_store(database)
            with as_caller():
                credentials: Credentials | None = default_credentials(database.id)
            self.terminal.know(credentials.secrets if credentials is not None else ())
            return open_store(database, credentials=credentials)
        try:
            credentials = _connection_credentials(database.id)
        except Exception as error:
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            found = [os.environ.get(name) for name in names]
            if not found[0] or not found[1]:
                unreadable = (
                    f"the Airflow connection {database.s3.aws_conn_id!r} can't be read ({type(error).__name__})"
                )
                raise ConfigError(
                    error.cause if isinstance(error, DucklingError) else unreadable,
                    entry=database.id,
                    # In place of the error's own, which is for those who have an Airflow.
                    hint=f"Without Airflow, set {' and '.join(names)} in the environment.",
                ) from error
            credentials = Credentials(found[0], found[1], os.environ.get("AWS_SESSION_TOKEN") or None)
        if credentials is not None:
            self.terminal.know(credentials.secrets)
        return open_store(database, credentials=credentials)

    def read_as(
        self, database: Database, key: str, *, local: bool, encryption: str | None, key_file: Path | None
    ) -> Database:
        """The entry as the command wants one backup to be read.

        :raises UsageError: the options contradict each other or the entry, or there is no key in the file.
        """
        if encryption is None and key_file is None:
            return database
        from duckling_provider.backup.inventory.key_choice import read_as

        if local:
            raise UsageError("local backups are not encrypted", hint="Leave --encryption and the key out.")
        key_of_file = None if key_file is None else self.key_in(key_file)
        try:
            return read_as(database, key, encryption=encryption, encryption_key=key_of_file)
        except RequestError as error:
            raise UsageError(error.cause, subject=error.subject, hint=error.hint) from error

    def key_in(self, path: Path) -> EncryptionKey:
        """The key of client-aes256 that a file holds; it is never printed.

        :raises UsageError: it holds none.
        """
        from duckling_provider.base.ownership import as_caller
        from duckling_provider.config.keys import EncryptionKey
        from duckling_provider.config.references import read_secret_file
        from duckling_provider.config.trust import Trust

        with as_caller():
            answer = read_secret_file(path, Trust(data_owner=self.installation().settings.data_path.stat().st_uid))
        if answer.value is None:
            raise UsageError(answer.fault or "", hint=answer.hint)
        self.terminal.know([answer.value, answer.value.lower(), answer.value.upper()])
        for warning in answer.warnings:
            self.terminal.warn(warning)
        try:
            return EncryptionKey.parse(answer.value)
        except ValueError as error:
            raise UsageError(str(error), subject=str(path), hint="The file holds a key and nothing else.") from None

    def source(self, database: Database, *, local: bool) -> BackupSource:
        """Where backups are taken from: S3 where it is configured, unless the local ones are asked for."""
        from duckling_provider.backup.inventory.local_backups import backups_of

        return backups_of(database, None if local else self.store(database))


def who() -> str:
    """Who runs the command, for the audit: not by LOGNAME or USER, which any caller may set."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers run as users that have no name there
        user = f"UID {os.getuid()}"
    sudo = os.environ.get("SUDO_USER")
    return f"{user}{f', by sudo from {sudo},' if sudo else ''} on the command line"


def session_of(context: typer.Context, as_json: bool) -> Session:
    """The session of a command that begins."""
    session: Session = context.obj
    session.terminal.json = as_json
    return session


def code_of(error: Exception) -> int:
    """The exit code for what made a command fail."""
    return BAD_USAGE if isinstance(error, (ConfigError, UsageError)) else FAILED


def _no_s3(database: Database) -> UsageError:
    hint = "Add an s3 section with enabled: true to the entry."
    return UsageError("S3 is not configured", subject=database.id, hint=hint)


def _connection_credentials(database_id: str) -> Credentials | None:
    """What the entry's Airflow connection holds. Importing Airflow takes seconds, so only entries that need it pay."""
    # Airflow tells what it does there, on stdout too, where a JSON document is due.
    silence = io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            from duckling_provider.hooks.duckling import DucklingHook

            return DucklingHook(database_id).credentials()
    finally:
        logging.disable(logging.NOTSET)


def require_there(source: BackupSource, key: str) -> None:
    """Refuse a backup that is named and does not exist before its database gets into trouble for it.

    :param key: in full, or a rule.
    :raises NotFoundError: there is no such backup. Whatever else goes wrong, the command itself will meet.
    """
    if key in RULES:
        return
    try:
        source.head(key)
    except (NotFoundError, CancelledError):
        raise
    except DucklingError:
        pass


def full_key(source: BackupSource, key: str) -> str:
    """`key` in full, refused before anything is asked of the store or the replica."""
    if key in RULES:
        return key
    try:
        # As this program prints it, with the store in front, a key is right too.
        return checked_key(source.prefix, key.removeprefix(source.url))
    except DucklingError as error:
        raise UsageError(error.cause, subject=error.subject, hint=error.hint) from error


def with_key(fingerprint: str | None) -> str:
    """How a line of a result ends that tells which key read a backup."""
    return f", key {fingerprint}" if fingerprint else ""
