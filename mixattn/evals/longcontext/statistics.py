"""Means with intervals, and differences from the full cache and from H2O on the same questions."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixattn.evals.longcontext.journal import Answer
from mixattn.evals.longcontext.policies import FULL

RESAMPLES = 2000
MIN_PAIRS = 10
REFERENCE = "h2o"  # the scorer that others are compared with at the same budget


class ScoreInterval(NamedTuple):
    """A mean and its 95 % bootstrap interval, over `n` samples."""

    mean: float
    low: float
    high: float
    median: float
    n: int


def interval(values: Sequence[float]) -> ScoreInterval:
    """Percentile bootstrap with a fixed seed.

    Raises:
      ValueError: no values.
    """
    if not len(values):
        raise ValueError("an interval of no values")
    array = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), (0.025, 0.975))
    return ScoreInterval(float(array.mean()), float(low), float(high), float(np.median(array)), len(array))


def table(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row for each task, length, mode and policy.

    Differences are paired by question: from the full cache, and from `REFERENCE` at the same budget.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], float]] = {}
    for answer in answers:
        group = tuple(answer[name] for name in ("task", "length", "mode", "policy"))
        groups.setdefault(group, {})[answer["depth"], answer["index"]] = answer["score"]
    rows = []
    for (task, length, mode, policy), scores in groups.items():
        own = interval(list(scores.values()))
        row: dict[str, Any] = {"task": task, "length": length, "mode": mode, "policy": policy, "n": own.n}
        row |= {"score": own.mean, "low": own.low, "high": own.high, "median": own.median}
        scorer, _, budget = policy.rpartition(" ")
        same_budget = f"{REFERENCE} {budget}" if scorer not in ("", REFERENCE) else ""
        for name, other in (("minus_full", FULL), (f"minus_{REFERENCE}", same_budget)):
            row |= _paired(name, scores, groups.get((task, length, mode, other), {}))
        rows.append(row)
    return rows


def _paired(
    name: str, scores: Mapping[tuple[Any, ...], float], other: Mapping[tuple[Any, ...], float]
) -> dict[str, float]:
    shared = [scores[key] - other[key] for key in scores if key in other]
    if not shared:
        return {}
    paired = interval(shared)
    means = {name: paired.mean, f"{name}_low": paired.low, f"{name}_high": paired.high}
    return means | {f"{name}_median": paired.median}


def where_it_loses(rows: Sequence[Mapping[str, Any]], less_is_better: Collection[str]) -> list[str]:
    """A sentence for every place where `REFERENCE` is worse, beyond its 95 % interval, than something else.

    Fewer than `MIN_PAIRS` questions decide nothing: their bootstrap interval is too narrow.

    Args:
      rows: of `table`. less_is_better: tasks whose score is a cost.
    """
    found = []
    for row in rows:
        sign = 1 if row["task"] in less_is_better else -1
        place = f"{row['task']}, {row['length']} tokens" + (", question unseen" * (row["mode"] == "agnostic"))
        scorer, _, budget = row["policy"].rpartition(" ")
        name = "minus_full" if scorer == REFERENCE else f"minus_{REFERENCE}"
        if name not in row or row["n"] < MIN_PAIRS:
            continue
        worse = sign if scorer == REFERENCE else -sign  # the sign of a difference that is against it
        low, high = sorted((worse * row[f"{name}_low"], worse * row[f"{name}_high"]))
        if low > 0:
            to = "the full cache" if scorer == REFERENCE else scorer
            by = f"{abs(row[name]):.3f} (95 % interval {low:.3f} to {high:.3f})"
            found.append(f"{place}, budget {budget}: {REFERENCE} loses to {to} by {by}")
    return found


def by_depth(answers: Sequence[Answer], task: str) -> dict[str, dict[tuple[float, int], float]]:
    """Mean score of each policy at each (depth, length) of a task."""
    cells: dict[str, dict[tuple[float, int], list[float]]] = {}
    for answer in answers:
        if answer["task"] == task and answer["depth"] >= 0:
            cell = answer["depth"], answer["length"]
            cells.setdefault(answer["policy"], {}).setdefault(cell, []).append(answer["score"])
    return {
        policy: {cell: float(np.mean(scores)) for cell, scores in by_cell.items()}
        for policy, by_cell in cells.items()
    }
