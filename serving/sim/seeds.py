"""An experiment over several seeds: every figure with its 95 % confidence interval."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from serving.fair.statistics import Interval, interval
from serving.sim.experiment import FairnessExperiment, PolicyOutcome, PolicyRun, run

type Rows = dict[str, list[dict[str, Any]]]
"""The rows of every run over the seeds, by run."""


def outcomes(
    experiment: FairnessExperiment,
    seeds: Sequence[int],
    *,
    runs: Sequence[PolicyRun] = (),
    on_run: Callable[[PolicyRun, int], dict[str, Any]] = lambda policy_run, seed: {},
) -> Iterator[tuple[int, PolicyOutcome]]:
    """Runs all policies on the workload of each seed; all meet the same workload.

    Args:
      runs: of these policies only.
      on_run: is called before each run; returns further arguments of `experiment.run`.
    """
    for seed in seeds:
        requests = experiment.workload(seed)
        for policy_run in runs or experiment.runs:
            yield seed, run(experiment, policy_run, requests=requests, **on_run(policy_run, seed))


def intervals(rows: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Mean and interval of every figure of one run over the seeds."""
    found = {}
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        if all(isinstance(value, int | float) for value in values):
            found[name] = interval([float(value) for value in values if value is not None])
    return found


def table_rows(by_run: Rows) -> list[dict[str, Any]]:
    """One row per run and figure: mean, bounds of the interval, and number of seeds with a value."""
    return [
        {
            "policy": name,
            "metric": metric,
            "mean": _rounded(found.mean),
            "low": _rounded(found.low),
            "high": _rounded(found.high),
            "seeds": found.runs,
        }
        for name, rows in by_run.items()
        for metric, found in intervals(rows).items()
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
