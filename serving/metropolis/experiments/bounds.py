"""What no schedule can beat on a trace: the critical path, and the throughput of the server."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.schedule.schedulers import Sights
from serving.metropolis.worlds.trace import AgentTrace, RecordedCall

type CallCost = Callable[[Sequence[RecordedCall]], float]
"""What one agent-step's chain of calls costs, in seconds or tokens."""


def tokens(chain: Sequence[RecordedCall]) -> float:
    """The paper's cost: prompt and output tokens."""
    return sum(ask.prompt_tok + ask.output_tok for ask in chain)


def unloaded(server: ServerConfig) -> CallCost:
    """Seconds on an idle server, call after call."""
    return lambda chain: sum(server.unloaded_s(ask.prompt_tok, ask.output_tok) for ask in chain)


def sights(trace: AgentTrace, perceive: float | None = None) -> Sights:
    """Who sees whom at each step (Chebyshev), by agent numbers in the order of sorted names."""
    radius = trace.reach.perceive if perceive is None else perceive
    order = np.array(sorted(range(len(trace.names)), key=trace.names.__getitem__))
    x_AT, y_AT = np.array(trace.x)[order], np.array(trace.y)[order]
    seen: dict[tuple[int, int], Sequence[int]] = {}
    for step in range(trace.steps):
        x, y = x_AT[:, step], y_AT[:, step]
        by_x = np.argsort(x, kind="stable")
        # Only neighbours in x can be near: compare each agent with those up to `radius` east of it.
        ends = np.searchsorted(x[by_x], x[by_x] + radius, side="right")
        for i, end in enumerate(ends):
            if end == i + 1:
                continue
            a = by_x[i]
            others = by_x[i + 1 : end]
            for b in others[np.abs(y[others] - y[a]) <= radius].tolist():
                seen.setdefault((int(a), step), []).append(b)  # type: ignore[attr-defined]
                seen.setdefault((b, step), []).append(int(a))  # type: ignore[attr-defined]
    return seen


def critical_path(trace: AgentTrace, seen: Sights, cost: CallCost) -> float:
    """The costliest chain of agent-steps that must follow one another (paper section 4.1).

    f(A, s + 1) = cost(A, s) + max f(B, s) over A itself and whoever A sees at s or saw at s - 1.
    """
    order = sorted(range(len(trace.names)), key=trace.names.__getitem__)
    done = [0.0] * len(order)
    for step in range(trace.steps):
        following = done.copy()
        for agent, who in enumerate(order):
            chain = trace.calls[who].get(step)
            near = (*seen.get((agent, step), ()), *seen.get((agent, step - 1), ()))
            if near:
                following[agent] = max(done[agent], *(done[b] for b in near))
            if chain:
                following[agent] += cost(chain)
        done = following
    return max(done, default=0.0)


def mean_sights(trace: AgentTrace, seen: Mapping) -> float:
    """Agents within perception of an agent-step, itself included (paper: 1.85)."""
    return 1 + sum(len(others) for others in seen.values()) / (len(trace.names) * trace.steps)
