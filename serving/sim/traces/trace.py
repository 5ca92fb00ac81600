"""What all importers share: rows as read, how they become a workload, and errors that name line and field."""

import gzip
import io
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.kvcache.tokens import TokenSequence
from serving.request import ClientId, RequestId
from serving.sim.synthetic_tokens import TokenSegment
from serving.sim.workload import SimulatedRequest


@dataclass(slots=True)
class TraceRow:
    """A request as its file describes it.

    Attributes:
      where: the row's place in the file, e.g. "line 7".
      arrival_s: seconds on the file's own clock; None if it has no times or the row follows another.
      prompt_tok, output_tok: lengths of its own, without what a session puts before.
      max_output_tok: the limit it asks for.
      columns: what may name its client, by column.
      segments: the prompt; None: tokens of its own that nothing shares. tokens: real ids, if the file has
        them.
      session: rows of one session follow each other; the prompt of each holds all before it.
      after: the request at whose end, and `think_s` later, it arrives. think_s: also between turns of a
        session.
    """

    where: str
    arrival_s: float | None
    prompt_tok: int
    output_tok: int
    max_output_tok: int
    columns: dict[str, str] = field(default_factory=dict)
    segments: list[TokenSegment] | None = None
    tokens: TokenSequence | None = None
    id: RequestId = ""
    weight: float = 1.0
    session: str | None = None
    after: RequestId | None = None
    think_s: float | None = None
    cancel_s: float | None = None
    deadline_s: float | None = None
    priority: int = 0
    salt: Hashable = ""
    program: str = ""


@dataclass
class RequestTrace:
    """A workload read from a file.

    Attributes:
      weights: of the clients that do not have weight 1.
      rows: rows of the file. dropped: how many are left out, by reason. clipped: how many were cut to fit.
      random: whether another seed gives another workload.
    """

    requests: list[SimulatedRequest] = field(default_factory=list)
    weights: dict[ClientId, float] = field(default_factory=dict)
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    clipped: int = 0
    random: bool = False

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def account(self) -> str:
        """What became of the rows, in words."""
        parts = [f"{self.rows:,} rows, {len(self.requests):,} requests"]
        parts += [f"{count:,} dropped ({reason})" for reason, count in sorted(self.dropped.items())]
        if self.clipped:
            parts.append(f"{self.clipped:,} clipped to the memory")
        return "; ".join(parts)


def open_text(path: str | Path) -> io.TextIOBase:
    """Opens a text file, unpacked if its name ends in .gz; a byte order mark is skipped."""
    path = Path(path)
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number, text) of every line that is not blank.

    Raises:
      ValueError: bytes that are not UTF-8.
    """
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as why:
        raise ValueError(f"{path} after line {number}: not readable as text: {why}") from why


def whole(value: Any, name: str, minimum: int = 0) -> int:
    """A whole number of at least `minimum`; text is read as a number.

    Raises:
      ValueError: anything else; the message names the field and the value.
    """
    found = number(value, name, minimum)
    if found != int(found):
        raise ValueError(f"{name} is {value}, not a whole number")
    return int(found)


def number(value: Any, name: str, minimum: float = -math.inf) -> float:
    """A finite number of at least `minimum`; text is read as a number. Raises as `whole` does."""
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{name} is {value!r}, not a number")
    if found < minimum:
        raise ValueError(f"{name} is {value}; it must be at least {minimum:g}")
    return found
