"""What the demo shows: one line per step with a check mark and the seconds it took, details below it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LABEL, _SECONDS = 13, 8
#: Wide enough for a backup's key and short enough for every terminal's log.
_PLAIN_WIDTH = 100


class Step:
    """One step while it runs: its `result` goes into the line, `note` adds lines below."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.result = ""
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes += text.splitlines()


class Screen:
    """Writes to standard output; a spinner shows what is going on if that is a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the screen was made."""
        return time.monotonic() - self._started

    @contextmanager
    def step(self, label: str, doing: str) -> Iterator[Step]:
        """Run a step, `doing` in words; what it raises leaves a cross in place of the check mark."""
        step, started = Step(label), time.monotonic()
        try:
            with self._console.status(f"{label}: {doing}") if self._console.is_terminal else _nothing():
                yield step
        except BaseException:
            self._line(step, "[red]✗[/]", step.result or doing, started)
            raise
        self._line(step, "[green]✓[/]", step.result or doing, started)

    def _line(self, step: Step, mark: str, text: str, started: float) -> None:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(width=_LABEL, no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(width=_SECONDS, justify="right", no_wrap=True)
        seconds = Text(f"{time.monotonic() - started:.1f} s", style="dim")
        grid.add_row(mark, Text(step.label, style="bold"), Text(text), seconds)
        for note in step.notes:
            grid.add_row("", "", Text(note, style="dim"), "")
        self._console.print(grid)

    def title(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/]\n")

    def say(self, text: str = "") -> None:
        """Text as it is; long lines are left to the terminal, so that commands and paths can be copied."""
        self._console.print(Text(text), soft_wrap=True)

    def error(self, text: str) -> None:
        self._console.print(Text(f"\n{text}", style="red"), soft_wrap=True)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Numbers to the right: every column but the first and the last."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", width=_LABEL)
        for position, head in enumerate(heads):
            table.add_column(head, justify="right" if 0 < position < len(heads) - 1 else "left", no_wrap=True)
        for row in rows:
            table.add_row("", *map(Text, row))
        self._console.print(table)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
