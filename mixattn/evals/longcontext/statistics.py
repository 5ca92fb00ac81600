"""Means with intervals, and differences from the full cache on the same questions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mixattn.evals.longcontext.journal import Answer
from mixattn.evals.longcontext.policies import FULL

RESAMPLES = 2000


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
    """One row for each task, length, mode and policy, with the paired difference from the full cache."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], float]] = {}
    for answer in answers:
        group = tuple(answer[name] for name in ("task", "length", "mode", "policy"))
        groups.setdefault(group, {})[answer["depth"], answer["index"]] = answer["score"]
    rows = []
    for (task, length, mode, policy), scores in groups.items():
        full = groups.get((task, length, mode, FULL), {})
        shared = [scores[key] - full[key] for key in scores if key in full]
        own, paired = interval(list(scores.values())), interval(shared) if shared else None
        row: dict[str, Any] = {"task": task, "length": length, "mode": mode, "policy": policy, "n": own.n}
        row |= {"score": own.mean, "low": own.low, "high": own.high, "median": own.median}
        if paired is not None:
            row |= {
                "minus_full": paired.mean,
                "minus_full_low": paired.low,
                "minus_full_high": paired.high,
                "minus_full_median": paired.median,
            }
        rows.append(row)
    return rows


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
