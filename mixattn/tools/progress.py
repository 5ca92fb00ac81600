"""Progress of long work: live lines on a terminal; elsewhere the same words, printed from time to time."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

PLAIN_INTERVAL_S = 10.0  # seconds between printed lines of one task where there is no terminal


class ProgressLines:
    """The live lines of one command, one per task; a context manager.

    Args:
      quiet: show and print nothing.
      transient: remove the live lines at the end.
      console: standard output by default.
    """

    def __init__(
        self, *, quiet: bool = False, transient: bool = False, console: Console | None = None
    ) -> None:
        self.quiet = quiet
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.live: Progress | None = None
        if self.console.is_terminal and not quiet:
            words = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self.live = Progress(
                TextColumn("{task.description}", markup=False, table_column=words),
                BarColumn(20),
                TimeElapsedColumn(),
                console=self.console,
                transient=transient,
                expand=True,
            )

    def add(self, total: float, words: str = "") -> "ProgressLine":
        """A line for a task of `total` units of work."""
        if self.live:
            self.live.start()
            return ProgressLine(self, total, self.live.add_task(words, total=total))
        return ProgressLine(self, total, None)

    def print(self, words: str) -> None:
        """Prints a line above the live ones."""
        if not self.quiet:
            self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stops the live display."""
        if self.live:
            self.live.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ProgressLine:
    """One task's line, made by `ProgressLines.add`."""

    def __init__(self, lines: ProgressLines, total: float, task: TaskID | None) -> None:
        self.total = total
        self._lines, self._task = lines, task
        self._printed_s = -PLAIN_INTERVAL_S

    def update(self, completed: float, words: str) -> None:
        """Shows that `completed` of the total is done. Printed lines: one per interval, and the last."""
        if self._lines.live and self._task is not None:
            self._lines.live.update(self._task, completed=completed, description=words)
        elif completed >= self.total or time.monotonic() - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = time.monotonic()
            self._lines.print(words)
