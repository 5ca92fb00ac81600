"""Who perceives whom in a trace, and the critical path that no schedule beats."""

from collections.abc import Callable, Sequence

import numpy as np

from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.schedule.schedulers import Sights
from serving.metropolis.worlds.trace import AgentTrace, RecordedCall

type CallCost = Callable[[Sequence[RecordedCall]], float]
"""The cost of one agent-step's chain of calls, in seconds or tokens."""


def token_cost(chain: Sequence[RecordedCall]) -> float:
    """Prompt and output tokens, the paper's cost."""
    return sum(call.prompt_tok + call.output_tok for call in chain)


def unloaded_latency(server: ServerConfig) -> CallCost:
    """Seconds on an idle server, one call after another."""
    return lambda chain: sum(server.unloaded_s(call.prompt_tok, call.output_tok) for call in chain)


def sights(trace: AgentTrace, perceive: float | None = None) -> Sights:
    """Who perceives whom at each step (Chebyshev); agents are numbered in the order of their names."""
    radius = trace.reach.perceive if perceive is None else perceive
    order = np.array(sorted(range(len(trace.names)), key=trace.names.__getitem__))
    x_AT, y_AT = np.array(trace.x)[order], np.array(trace.y)[order]
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(trace.steps):
        x, y = x_AT[:, step], y_AT[:, step]
        by_x = np.argsort(x, kind="stable")
        # Compare each agent only with those up to `radius` east of it: no other pairs can be near.
        ends = np.searchsorted(x[by_x], x[by_x] + radius, side="right")
        for i, end in enumerate(ends):
            if end == i + 1:
                continue
            a = by_x[i]
            others = by_x[i + 1 : end]
            for b in others[np.abs(y[others] - y[a]) <= radius].tolist():
                seen.setdefault((int(a), step), []).append(b)
                seen.setdefault((b, step), []).append(int(a))
    return seen


def critical_path(trace: AgentTrace, seen: Sights, cost: CallCost) -> float:
    """The cost of the costliest chain of agent-steps that depend on one another (paper section 4.1).

    f(A, s + 1) = cost(A, s) + max f(B, s) over A itself and the agents that A perceives at s or s - 1.
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


def mean_sights(trace: AgentTrace, seen: Sights) -> float:
    """Mean number of agents within perception of an agent, itself included (paper: 1.85)."""
    return 1 + sum(len(others) for others in seen.values()) / (len(trace.names) * trace.steps)
