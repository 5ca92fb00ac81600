"""Validated votes as arrays: who met whom, and who won."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECOND_WINS, TIE, FIRST_WINS = 0, 1, 2
# The labels of the public format. Anything else is refused: nothing becomes a tie by accident.
LABELS = {"model_a": FIRST_WINS, "model_b": SECOND_WINS, "tie": TIE, "tie (bothbad)": TIE}


@dataclass(frozen=True)
class Votes:
    """Votes that may count: `n` votes between models named by index.

    Attributes:
      rows: rows of the file, with those that are not used.
      models: names; an index in `first` and `second` points here.
      first, second: (n,) the two models of each vote; never equal.
      outcome: (n,) SECOND_WINS, TIE or FIRST_WINS.
      row: (n,) the vote's row in the file, counted from 1.
      columns: further columns, one entry a vote.
    """

    rows: int
    models: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    outcome: NDArray[np.int64]
    row: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: NDArray[np.bool_]) -> "Votes":
        """The votes that `mask` (n,) selects, with the models that still have one."""
        first, second = self.first[mask], self.second[mask]
        seen = np.zeros(len(self.models), dtype=bool)
        seen[first] = seen[second] = True
        renumber = np.cumsum(seen) - 1
        return Votes(
            self.rows,
            tuple(name for name, keep in zip(self.models, seen) if keep),
            renumber[first],
            renumber[second],
            self.outcome[mask],
            self.row[mask],
            {name: column[mask] for name, column in self.columns.items()},
        )

    def in_category(self, category: str) -> "Votes":
        """The votes whose column equals a value; `category` is "COLUMN=VALUE".

        Raises:
          ValueError: there is no such column, or no vote has the value.
        """
        column, equals, value = category.partition("=")
        if not equals:
            raise ValueError(f"--category={category} has no '='; it is COLUMN=VALUE")
        mask = np.array([str(x).lower() == value.lower() for x in self.columns[column]], dtype=bool)
        if not mask.any():
            found = sorted({str(x) for x in self.columns[column]})
            some = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise ValueError(
                f"no votes that count: no vote has {column} = {value!r}; the column has {some or 'no value'}"
            )
        return self.where(mask)

    def pair(self) -> NDArray[np.int64]:
        """(n,) a number for each unordered pair of models."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        return low * len(self.models) + high


def from_arrays(
    models: tuple[str, ...], first: Any, second: Any, outcome: Any, **columns: NDArray[Any]
) -> Votes:
    """Votes from arrays, e.g. of a simulation; the rows are counted from 1."""
    n = len(first)
    index = [np.asarray(x, dtype=np.int64) for x in (first, second, outcome)]
    return Votes(n, models, index[0], index[1], index[2], np.arange(1, n + 1), columns)
