"""The constants of `StepCost` from the event log of a real engine, by least squares.

A step lies between two consecutive `tokens` events. The log tells what the step computed: decode steps of all
rows past their first token, with their context, and prompt tokens. A long prompt is computed in chunks: its
tokens are shared evenly among the steps from its admission to its first token.
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


def _steps(events: Iterable[Event]) -> tuple[list[list[float]], list[float]]:
    """For each step [prompt tokens, decode steps, row steps, context tokens], and its seconds."""
    running: dict[RequestId, _RunningRequest] = {}
    prompts: dict[RequestId, tuple[int, float]] = {}  # the step that began it, its computed tokens
    work: list[list[float]] = []
    seconds: list[float] = []
    first_tokens: list[RequestId] = []
    last_s: float | None = None
    for event in events:
        kind, name = event["event"], event.get("id", "")
        if kind == "admit":
            running[name] = _RunningRequest(event["client"], event["extend"] + event["hit"])
            prompts[name] = (len(work), event["extend"])
        elif kind == "first_token":
            first_tokens.append(name)
        elif kind in ("finish", "cancel", "preempt"):
            running.pop(name, None)
            prompts.pop(name, None)
            last_s = last_s if running else None  # the next step may have waited for an arrival
        elif kind == "tokens":
            rows = [one for one in running.values() if one.decodes]
            steps = (sum(event["counts"].values()) - len(first_tokens)) / len(rows) if rows else 0.0
            context = sum(one.context_tok for one in rows)
            work.append([0.0, steps, steps * len(rows), steps * context])
            seconds.append(0.0 if last_s is None else event["t"] - last_s)
            last_s = event["t"]
            for one in rows:
                one.context_tok += steps
            for name in first_tokens:
                running[name].decodes = True
                running[name].context_tok += 1
                _spread(work, *prompts.pop(name))
            first_tokens.clear()
    measured = [i for i, step_s in enumerate(seconds) if step_s > 0]
    return [work[i] for i in measured], [seconds[i] for i in measured]


def _spread(work: list[list[float]], first: int, prompt_tok: float) -> None:
    """Shares a prompt among the steps from `first` to the last."""
    for step in work[first:]:
        step[0] += prompt_tok / (len(work) - first)


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
