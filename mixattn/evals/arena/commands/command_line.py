"""What the arena's commands share beside `mixattn.evals.command_line`: the votes file, fractions."""

from collections.abc import Sequence

from mixattn.evals.arena.stats.reading import read_votes
from mixattn.evals.arena.stats.votes import Votes
from mixattn.evals.command_line import print_json, run, table

__all__ = ["fraction", "print_json", "run", "table", "votes"]


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
