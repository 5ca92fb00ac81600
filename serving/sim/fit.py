"""The constants of `StepCost` from the event log of a real engine, by least squares.

A step lies between two `tokens` lines. What it computed is read off the log: prompt tokens of requests
that were admitted since, and decode steps of all rows that have had their
first token, with the context they held.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from serving.fair.metrics import Event
from serving.request import RequestId
from serving.sim.cost import StepCost


@dataclass
class StepCostFit:
    """`cost`, how many steps it rests on, and how far it is off them: relative, the median."""

    cost: StepCost
    steps: int
    median_error: float

    def report(self) -> dict[str, float]:
        return {**asdict(self.cost), "steps": self.steps, "median_error": self.median_error}


@dataclass
class _Running:
    client: str
    context_tok: float
    decodes: bool = False


def of_events(events: Iterable[Event], *, least: int = 20) -> StepCostFit:
    """Fits all four constants; one that would come out negative is set to 0 and the others fitted again.

    Raises:
      ValueError: fewer than `least` steps in the log.
    """
    work, seconds = _steps(events)
    if len(work) < least:
        raise ValueError(f"the log has {len(work)} steps that follow one another; a fit needs {least}")
    x, y = np.array(work), np.array(seconds)
    constants = _non_negative(x, y)
    error = float(np.median(np.abs(x @ constants - y) / y))
    return StepCostFit(StepCost(*map(float, constants)), len(y), error)


def _steps(events: Iterable[Event]) -> tuple[list[tuple[float, float, float, float]], list[float]]:
    running: dict[RequestId, _Running] = {}
    work: list[tuple[float, float, float, float]] = []
    seconds: list[float] = []
    firsts: list[_Running] = []
    last_s: float | None = None
    prefill = 0.0
    for event in events:
        kind = event["event"]
        if kind == "admit":
            running[event["id"]] = _Running(event["client"], event["extend"] + event["hit"])
            prefill += event["extend"]
        elif kind == "first_token":
            firsts.append(running[event["id"]])
        elif kind in ("finish", "cancel", "preempt"):
            running.pop(event["id"], None)
            last_s = last_s if running else None  # what comes next may have waited for an arrival
        elif kind == "tokens":
            rows = [one for one in running.values() if one.decodes]
            steps = (sum(event["counts"].values()) - len(firsts)) / len(rows) if rows else 0.0
            if last_s is not None and event["t"] > last_s:
                context = sum(one.context_tok for one in rows)
                work.append((prefill, steps, steps * len(rows), steps * context))
                seconds.append(event["t"] - last_s)
            last_s, prefill = event["t"], 0.0
            for one in rows:
                one.context_tok += steps
            for one in firsts:
                one.decodes, one.context_tok = True, one.context_tok + 1
            firsts.clear()
    return work, seconds


def _non_negative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares with relative weights, so that a slow step does not outweigh a hundred quick ones."""
    kept = list(range(x.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(x[:, kept] / y[:, None], np.ones_like(y), rcond=None)
        if (found >= 0).all() or len(kept) == 1:
            constants = np.zeros(x.shape[1])
            constants[kept] = np.maximum(found, 0.0)
            return constants
        kept.pop(int(np.argmin(found * x[:, kept].mean(axis=0))))
