"""What a run shows while it runs: one live line on a terminal, a row of metrics.csv for every step.

A row is written whole. When a run goes on from step n, rows after n are dropped first: they will come again.
"""

import csv
import io
import math
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mixattn.tools import files

_PLAIN_EVERY_S = 10.0  # seconds between lines where there is no terminal


@dataclass
class Row:
    """One step. Losses in nats a token, `rate` of the rule's matrices, `seconds` since training began.

    `utilisation`: model FLOPs a second (`train.flops`) as a share of the devices' peak; None if unknown.
    """

    step: int
    stage: str
    loss: float
    grad_norm: float
    rate: float
    tokens: int
    seconds: float
    tokens_per_s: float
    load_balance: float = 0.0
    expert_load_max: float = 0.0
    utilisation: float | None = None
    validation: float | None = None


_COLUMNS = [field.name for field in fields(Row)]


class MetricsFile:
    """metrics.csv of a run, open for appending.

    Args:
      path: is made, or cut back to the rows up to `step`.
    """

    def __init__(self, path: Path, step: int):
        kept = [row for row in read(path) if int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        files.write_text(path, text.getvalue())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, _COLUMNS, lineterminator="\n")

    def write(self, row: Row) -> None:
        values = {k: repr(v) if isinstance(v, float) else v for k, v in asdict(row).items() if v is not None}
        self._writer.writerow(values)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv; a last row that a kill cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for row in rows if None not in row.values() and row["step"].isdigit()]


class Board:
    """The same rows as TensorBoard events, one scalar a column.

    Args:
      folder: for the events; those after `step`, of a run that goes on, are taken back.

    Raises:
      ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as why:
            raise ValueError("--tensorboard needs tensorboardX: pip install 'mixattn[tensorboard]'") from why
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, row: Row) -> None:
        values = asdict(row)
        stage, step = values.pop("stage"), values.pop("step")
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class TrainingLine:
    """The live line. Without a terminal the same words are printed every ten seconds.

    Args:
      total: steps of the whole run.
      quiet: print nothing (processes other than the first).
    """

    def __init__(self, total: int, *, quiet: bool = False, console: Console | None = None):
        self.total, self.quiet = total, quiet
        self.console = console or Console(file=sys.stdout, highlight=False)
        self._said_s = -_PLAIN_EVERY_S
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def show(self, row: Row, validation: str, left_s: float) -> None:
        if self.quiet:
            return
        utilisation = "" if row.utilisation is None else f"{row.utilisation:.0%} of peak  "
        words = (
            f"step {row.step}/{self.total}  loss {row.loss:.3f}  {validation}"
            f"{row.tokens_per_s:,.0f} tokens/s  {utilisation}rate {row.rate:.2g}  {clock(left_s)} left"
        )
        if self._live:
            self._live.update(Text(words, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._said_s >= _PLAIN_EVERY_S or row.step == self.total:
            self._said_s = time.monotonic()
            self.console.print(words, soft_wrap=True)

    def say(self, words: str) -> None:
        """Prints above the live line."""
        if not self.quiet:
            self.console.print(words, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()


def clock(seconds: float) -> str:
    """61 -> "1:01"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


@dataclass
class Pace:
    """Seconds a step, smoothed over about twenty."""

    step_s: float = 0.0
    last: tuple[int, float] | None = None

    def at(self, step: int, seconds: float) -> float:
        """Takes note that `step` was done `seconds` into the run; returns the pace."""
        if self.last and step > self.last[0]:
            now = max(seconds - self.last[1], 1e-6) / (step - self.last[0])
            self.step_s = 0.95 * self.step_s + 0.05 * now if self.step_s else now
        self.last = (step, seconds)
        return self.step_s or math.inf  # nothing is known after one step
