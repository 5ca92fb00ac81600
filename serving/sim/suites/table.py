"""The result table of all experiments: one row per experiment, policy, client and metric.

An empty `client` means all clients together. `paper` is the figure of a paper or its logs, if any;
`ratio` is `value / paper`. A line above the table for each experiment says what made its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallas_kernels import results

NAME = "results.csv"
ABOUT = (
    "one row per experiment, policy, client (none: all clients together) and metric; "
    "paper: the figure of a paper or its logs; ratio: value / paper"
)


@dataclass(frozen=True)
class TableRow:
    """One figure; an empty string where a column does not apply."""

    experiment: str
    policy: str
    client: str
    metric: str
    value: float | str
    paper: float | str = ""
    ratio: float | str = ""


def provenance(title: str, **surroundings: str) -> str:
    """The line above the table for one experiment: title, device, versions and commit.

    Surroundings that are not given are those of this process.
    """
    made = surroundings | results.surroundings(but=surroundings)
    return f"{title}; {made['device']}; {made['versions']}; commit {made['commit']}"


def read(path: Path) -> tuple[dict[str, str], list[TableRow]]:
    """The provenance line of each experiment, and all rows. Values remain text, exactly as in the file."""
    recipe = results.read_recipe(path)
    head = {key: text for key, text in recipe.items() if key not in ("about", *results.SURROUNDINGS)}
    return head, [TableRow(**row) for row in results.read_csv(path)]


def update(out: Path, provenance_of: Mapping[str, str], rows: Sequence[TableRow]) -> None:
    """Replaces the rows of the experiments in `provenance_of`; rows of other experiments stay as they are."""
    path = out / NAME
    head, kept = read(path) if path.exists() else ({}, [])
    by_experiment: dict[str, list[TableRow]] = {name: [] for name in {**head, **provenance_of}}
    for row in kept:
        if row.experiment not in provenance_of:
            by_experiment[row.experiment].append(row)
    for row in rows:
        by_experiment[row.experiment].append(row)
    recipe: dict[str, Any] = {
        "about": ABOUT,
        **dict.fromkeys(results.SURROUNDINGS, "of each experiment below"),
    }
    results.write_csv(
        path,
        [vars(row) for rows in by_experiment.values() for row in rows],
        **{**recipe, **head, **provenance_of},
    )
