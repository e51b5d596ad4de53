"""What a person or a script sees of a command: results on stdout, everything else on stderr, no secret on either.

With `json` the result is one JSON document, errors included, and stderr has nothing but progress bars on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duckling_provider.base.errors import DucklingError, NotFoundError
from duckling_provider.tasks.progress_log import ProgressLog

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from duckling_provider.base.cancellation import ProgressCallback

#: Seconds until a command says that it waits for the store.
PATIENCE = 3.0
#: Seconds between two progress lines where there is no terminal.
_SPARSE = 30.0
#: Columns of a table that goes to a file or a pipe, where nothing may be folded or cut.
_UNBOUNDED = 100_000


class Terminal:
    """Both output streams of one command.

    :param json: whether the result is to be JSON.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        #: The id of the entry that the command is about, for advice.
        self.entry = "ID"
        self._secrets: tuple[str, ...] | None = None
        self._live: Console | None = None

    @property
    def can_ask(self) -> bool:
        """Whether a person sits before it who can answer a question."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.json

    def know(self, secrets: Sequence[str]) -> None:
        """Learn what must never be printed."""
        self._secrets = tuple(sorted({*(self._secrets or ()), *secrets}, key=len, reverse=True))

    def hide(self, text: str) -> str:
        """`text` on one line, without control characters and secrets."""
        if self._secrets:
            # Not for help and mistakes, which know no secrets: the configuration takes half a second to import.
            from duckling_provider.config.masking import MASK

            for secret in self._secrets:
                text = text.replace(secret, MASK)
        return "".join(c if c.isprintable() else "?" for c in " ".join(text.splitlines()))

    # -- stdout -----------------------------------------------------------------------------------------------------

    def document(self, content: Mapping[str, Any]) -> None:
        # Pure ASCII: the locale of a cron job must not spoil it.
        sys.stdout.write(json.dumps(content, indent=2) + "\n")

    def say(self, line: str) -> None:
        """One line of the result for a person; nothing with `json`."""
        if not self.json:
            sys.stdout.write(self.hide(line) + "\n")
            sys.stdout.flush()  # into a pipe or a file, too: whoever watches it sees each line when it is due

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: str = "") -> None:
        """A table with a heading; columns whose heading ends in ``>`` are right-aligned.

        :param whole: the column that is to be copied: on a terminal too narrow for the table, each row becomes two
            lines, one with that cell, one with the others.
        """
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)
        widths = [max(map(cell_len, column)) + 2 for column in zip(columns, *rows, strict=True)]
        if whole in columns and sum(widths) > console.width:
            at = columns.index(whole)
            for row in rows:
                self.say(row[at])
                self.say("  " + "  ".join(cell for number, cell in enumerate(row) if cell and number != at))
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in columns:
            right = name.endswith(">")
            table.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
        for row in rows:
            # Text, not str: brackets in names are no markup.
            table.add_row(*(Text(self.hide(cell)) for cell in row))
        with console.capture() as shown:
            console.print(table)
        # Without the blanks after the last cell, which a narrow window would wrap.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in shown.get().splitlines()))

    # -- stderr -----------------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """A line beside the result; nothing with `json`."""
        if not self.json:
            self._error_line(line)

    def info(self, line: str) -> None:
        """What `ProgressLog` calls."""
        self.note(line)

    def warn(self, line: str) -> None:
        self.note(f"duckling: warning: {line}")

    def _error_line(self, line: str) -> None:
        line = self.hide(line)
        if self._live is None:
            sys.stderr.write(line + "\n")
        else:
            self._live.print(line, markup=False, highlight=False, soft_wrap=True)

    def fail(self, cause: str, hint: str | None = None, **facts: Any) -> None:
        """Say why the command failed: one line and one for the hint, or the JSON document.

        :param facts: what else the JSON document is to hold.
        """
        cause = self.hide(cause)
        hint = self.hide(hint) if hint else None
        if self.json:
            self.document({"success": False, "error": cause, **({"hint": hint} if hint else {}), **facts})
            return
        self._error_line(f"duckling: {cause}")
        if hint:
            self._error_line(f"hint: {hint}")

    def fail_with(self, error: Exception, **facts: Any) -> None:
        """`fail` with what `error` says."""
        self.fail(*self.explain(error), **facts)

    def explain(self, error: Exception) -> tuple[str, str | None]:
        """(cause, hint) of an error; the message of a foreign one is shown only when secrets can be told from it."""
        if isinstance(error, DucklingError):
            hint = (
                f"duckling list {self.entry} shows the backups there are." if isinstance(error, NotFoundError) else None
            )
            cause = ": ".join(part for part in (error.subject, error.operation, error.cause) if part)
            return cause, error.hint or hint
        if isinstance(error, OSError) and error.strerror:
            return ": ".join(str(part) for part in (error.filename, error.strerror) if part), None
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
        words = f": {error}" if self._secrets is not None and str(error) else ""
        return f"unexpected {type(error).__name__}{place}{words}", "DUCKLING_DEBUG=1 shows the whole traceback."

    @staticmethod
    def wait_begins(tell: Callable[[], object]) -> threading.Timer:
        """Call `tell` after `PATIENCE`, unless what is returned is cancelled before."""
        timer = threading.Timer(PATIENCE, tell)
        timer.daemon = True
        timer.start()
        return timer

    @contextlib.contextmanager
    def patience(self, tell: Callable[[], object]) -> Iterator[None]:
        """Call `tell` once when the block takes longer than `PATIENCE`; it has ended before what follows."""
        timer = self.wait_begins(tell)
        try:
            yield
        finally:
            timer.cancel()
            timer.join(1.0)

    @contextlib.contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """Where a long operation reports to: bars on a terminal, else a line now and then, with `json` nothing."""
        if not sys.stderr.isatty():
            yield None if self.json else ProgressLog(self, seconds=_SPARSE)
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
            self._live = console
            try:
                yield _Bars(progress)
            finally:
                self._live = None


class _Bars:
    """A `ProgressCallback` that draws one bar per step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        with self._lock:
            bar = self._bars.get(step)
            if bar is None:
                self._bars[step] = self._progress.add_task(step, completed=done, total=total or None)
            else:
                self._progress.update(bar, completed=done, total=total or None)


class LogLines(logging.Handler):
    """Shows what the core warns of on the way, e.g. that it undid an interrupted restore; the same words once."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            self._terminal.warn(message)
