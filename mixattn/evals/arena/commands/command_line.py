"""What the arena's commands share: help, flags of the votes file, one JSON object on stdout."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from mixattn.evals.arena.stats.reading import read_votes
from mixattn.evals.arena.stats.votes import Votes
from mixattn.tools import cli


def run(command: str, main: Callable[[], None], argv: list[str]) -> None:
    """Runs a command, or prints its help (the docstring of module `command` and its flags)."""
    if {"-h", "--help"} & set(argv[1:]):
        print((sys.modules[command].__doc__ or "").strip(), flags.FLAGS.module_help(command), sep="\n\n")
    else:
        cli.run(main, argv)


def votes(path: str | None, columns: Sequence[str] = ()) -> Votes:
    """The validated votes of `--votes`.

    Raises:
      ValueError: the flag is missing, or the file is unreadable or wrong.
    """
    if not path:
        raise ValueError("--votes is missing; name a file of votes, e.g. --votes=votes.parquet")
    return read_votes(path, columns)


def fraction(name: str, value: float) -> float:
    """`value`, if it lies strictly between 0 and 1.

    Raises:
      ValueError: it does not.
    """
    if not 0 < value < 1:
        raise ValueError(f"--{name}={value} is not between 0 and 1")
    return value


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object; numbers that are not finite are null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry; the first is flush left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )
