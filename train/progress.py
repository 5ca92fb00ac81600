"""What a run shows and records: the progress line, a row of metrics.csv per step, TensorBoard events."""

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mixattn.tools import files
from mixattn.tools.progress import ProgressLines


@dataclass
class Row:
    """One step. Losses in nats per token, `rate` of the optimizer's matrices, `seconds` since training began.

    `utilisation`: model FLOPs per second (`train.flops`) as a share of the devices' peak; None if unknown.
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
    """metrics.csv of a run, open for appending; each row is written whole.

    Args:
      path: created, or truncated to the rows up to `step`, since a resumed run writes the later ones again.
    """

    def __init__(self, path: Path, step: int) -> None:
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
    """The complete rows of a metrics.csv; a torn last row is left out.

    Raises:
      ValueError: names the first line that this program did not write so.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        names, *rows = [line.decode().split(",") for line in lines] or [[]]
    except UnicodeDecodeError as why:
        raise ValueError(f"{path} is damaged ({why}); it only records: move it away and start again") from why
    kept = []
    for number, row in enumerate(rows, start=2):
        found = dict(zip(names, row))
        if len(row) != len(names) or not _is_row(found):
            raise ValueError(
                f"{path} line {number} is damaged: {','.join(row)[:60]!r}; it only records:"
                " move the file away and start again"
            )
        kept.append(found)
    return kept


def _is_row(row: dict[str, str]) -> bool:
    numbers = [text for name, text in row.items() if name not in ("step", "stage") and text]
    try:
        return row["step"].isdigit() and bool(numbers) and all(float(text) == float(text) for text in numbers)
    except (KeyError, ValueError):
        return False


class Board:
    """The same rows as TensorBoard events, one scalar per column.

    Args:
      folder: for the events; a resumed run purges those after `step`.

    Raises:
      ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
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
    """The progress line of a run.

    Args:
      total: steps of the whole run.
      quiet: print nothing (processes other than the first).
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total = total
        self._lines = ProgressLines(quiet=quiet, transient=True)
        self._line = self._lines.add(total)

    def show(self, row: Row, validation: str, left_s: float) -> None:
        utilisation = "" if row.utilisation is None else f"{row.utilisation:.0%} of peak  "
        words = (
            f"step {row.step}/{self.total}  loss {row.loss:.3f}  {validation}"
            f"{row.tokens_per_s:,.0f} tokens/s  {utilisation}rate {row.rate:.2g}  {clock(left_s)} left"
        )
        self._line.update(row.step, words)

    def close(self) -> None:
        self._lines.close()


def clock(seconds: float) -> str:
    """61 -> "1:01"."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


@dataclass
class Pace:
    """Seconds per step, an exponential moving average over about twenty steps."""

    step_s: float = 0.0
    last: tuple[int, float] | None = None

    def at(self, step: int, seconds: float) -> float:
        """Records that `step` was done `seconds` into the run; returns the pace."""
        if self.last and step > self.last[0]:
            now = max(seconds - self.last[1], 1e-6) / (step - self.last[0])
            self.step_s = 0.95 * self.step_s + 0.05 * now if self.step_s else now
        self.last = (step, seconds)
        return self.step_s or math.inf  # nothing is known after one step
