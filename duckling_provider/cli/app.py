"""The command ``duckling``: everything that Airflow does with backups, for the day Airflow itself is gone.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 128 + n stopped by signal n. Heavy imports are made inside
the commands, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import typer

from duckling_provider import __version__
from duckling_provider.base.errors import CancelledError
from duckling_provider.cli import (
    adopt,
    backups,
    databases,
    keys,
    listing,
    oversight,
    recovery_kit,
    replication,
    restores,
)
from duckling_provider.cli.options import Command, Group
from duckling_provider.cli.session import BAD_USAGE, FAILED, Session, Stopped, code_of
from duckling_provider.cli.terminal import LogLines, Terminal

app = typer.Typer(
    name="duckling",
    cls=Group,
    help="DuckDB replicas of MySQL databases: make them and keep them up to date, back them up to S3, bring them back.",
    epilog="The environment is that of Airflow: DATA_PATH (the folder of databases.json), BACKUP_PATH, DUCKLING_HOST. "
    "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 130 Ctrl-C, 143 SIGTERM. "
    "duckling COMMAND --help shows the options of a command.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: In the order of ``duckling --help``.
_COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Look around": {
        "databases": databases.databases,
        "check": databases.check,
        "list": listing.list_,
        "status": oversight.status,
        "audit": oversight.audit,
        "notify": oversight.notify,
    },
    "Backups": {
        "backup": backups.backup,
        "verify": backups.verify,
        "cleanup": backups.cleanup,
        "delete": backups.delete,
        "pin": backups.pin,
        "unpin": backups.unpin,
    },
    "Restores": {
        "restore": restores.restore,
        "drill": restores.drill,
        "release": restores.release,
    },
    "Replicas": {
        "sync": replication.sync,
        "validate": replication.validate,
        "adopt": adopt.adopt,
    },
    "Keys": {
        "keygen": keys.keygen,
        "recovery-kit": recovery_kit.recovery_kit,
    },
}
for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_panel)(_command)
app.add_typer(keys.app, name="keys", cls=Group, rich_help_panel="Keys")


@runtime_checkable
class _ParserError(Protocol):
    """What a mistake on the command line raises, by its documented attributes: the class is click's UsageError in older
    typers, and in newer ones the same by another name that is not exported.
    """

    ctx: typer.Context | None

    def format_message(self) -> str: ...


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


#: What reads a command line, made of `app` once: that takes longer than most commands.
_command_line = typer.main.get_command(app)


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
        code = _command_line(list(arguments) or ["--help"], obj=session, prog_name="duckling", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is dealt with, not when Python ends
        return code if isinstance(code, int) else 0
    except (Stopped, CancelledError) as stopped:
        hint = f". {stopped.hint}" if isinstance(stopped, CancelledError) and stopped.hint else ""
        terminal.fail(f"stopped by {session.stopped_by}{hint}")
        return 128 + (session.signal or signal.SIGTERM)
    except (typer.Abort, EOFError):
        terminal.fail("nothing was done")
        return FAILED
    except BrokenPipeError:
        # The program that reads our output has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if isinstance(error, _ParserError):
            path = error.ctx.command_path if error.ctx is not None else "duckling"
            hint = f"{path} --help shows the usage."
            if path == "duckling" and str(getattr(error, "option_name", "")).startswith("-"):
                hint = f"Options of a command go behind it; {hint}"
            terminal.fail(error.format_message().rstrip("."), hint)
            return BAD_USAGE
        if debug:
            raise
        if session.signal:
            terminal.fail(f"stopped by {session.stopped_by}: {terminal.explain(error)[0]}")
            return 128 + session.signal
        terminal.fail_with(error)
        return code_of(error)
    finally:
        session.close()


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A path that is no UTF-8, or a locale without it, must not end in a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
