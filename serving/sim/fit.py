"""The constants of `StepCost` from the event log of a real engine, by least squares.

A step lies between two consecutive `tokens` events. The log tells what the step computed: the prompt tokens
of requests admitted in between, and decode steps of all rows past their first token, with their context.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from serving.fair.metrics import Event
from serving.request import RequestId
from serving.sim.cost import StepCost


@dataclass
class StepCostFit:
    """A fitted `cost`, the number of steps behind it, and the median of its relative errors."""

    cost: StepCost
    steps: int
    median_error: float

    def report(self) -> dict[str, float]:
        return {**asdict(self.cost), "steps": self.steps, "median_error": self.median_error}


@dataclass
class _RunningRequest:
    client: str
    context_tok: float
    decodes: bool = False


def fit_step_cost(events: Iterable[Event], *, min_steps: int = 20) -> StepCostFit:
    """Fits all four constants. A constant that would be negative is set to 0 and the others are fitted again.

    Raises:
      ValueError: the log has fewer than `min_steps` steps.
    """
    work, seconds = _steps(events)
    if len(work) < min_steps:
        raise ValueError(f"the log has {len(work)} consecutive steps; a fit needs {min_steps}")
    x, y = np.array(work), np.array(seconds)
    constants = _non_negative(x, y)
    error = float(np.median(np.abs(x @ constants - y) / y))
    return StepCostFit(StepCost(*map(float, constants)), len(y), error)


def _steps(events: Iterable[Event]) -> tuple[list[tuple[float, float, float, float]], list[float]]:
    """For each step (prompt tokens, decode steps, row steps, context tokens), and its seconds."""
    running: dict[RequestId, _RunningRequest] = {}
    work: list[tuple[float, float, float, float]] = []
    seconds: list[float] = []
    first_token_rows: list[_RunningRequest] = []
    last_s: float | None = None
    prefill = 0.0
    for event in events:
        kind = event["event"]
        if kind == "admit":
            running[event["id"]] = _RunningRequest(event["client"], event["extend"] + event["hit"])
            prefill += event["extend"]
        elif kind == "first_token":
            first_token_rows.append(running[event["id"]])
        elif kind in ("finish", "cancel", "preempt"):
            running.pop(event["id"], None)
            last_s = last_s if running else None  # the next step may have waited for an arrival
        elif kind == "tokens":
            rows = [one for one in running.values() if one.decodes]
            steps = (sum(event["counts"].values()) - len(first_token_rows)) / len(rows) if rows else 0.0
            if last_s is not None and event["t"] > last_s:
                context = sum(one.context_tok for one in rows)
                work.append((prefill, steps, steps * len(rows), steps * context))
                seconds.append(event["t"] - last_s)
            last_s, prefill = event["t"], 0.0
            for one in rows:
                one.context_tok += steps
            for one in first_token_rows:
                one.decodes, one.context_tok = True, one.context_tok + 1
            first_token_rows.clear()
    return work, seconds


def _non_negative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares with relative errors, so that one slow step does not outweigh a hundred quick ones."""
    kept = list(range(x.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(x[:, kept] / y[:, None], np.ones_like(y), rcond=None)
        if (found >= 0).all() or len(kept) == 1:
            constants = np.zeros(x.shape[1])
            constants[kept] = np.maximum(found, 0.0)
            return constants
        kept.pop(int(np.argmin(found * x[:, kept].mean(axis=0))))
