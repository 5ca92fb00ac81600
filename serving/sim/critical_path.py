"""Priorities by critical path: of a program's calls, the one with the longest chain of work behind it goes
first.

Source: list scheduling by critical path (Graham 1969), as agent schedulers use it for calls that wait for one
another.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

from serving.request import RequestId
from serving.sim.workload import SimulatedRequest, predecessors


def work_behind_tok(
    requests: Iterable[SimulatedRequest], prompt_weight: float = 0.01
) -> dict[RequestId, float]:
    """Output tokens of the longest chain that begins with each request, its own included.

    A prompt token counts `prompt_weight` output tokens: the ratio of their times on an idle server.

    Raises:
      ValueError: requests that follow each other in a circle.
    """
    by_id = {request.id: request for request in requests}
    followers: dict[RequestId, list[RequestId]] = defaultdict(list)
    missing: dict[RequestId, int] = {}
    for request in by_id.values():
        known = [id for id in predecessors(request) if id in by_id]
        for id in known:
            followers[id].append(request.id)
    missing = {id: len(followers[id]) for id in by_id}
    ready = [id for id, count in missing.items() if not count]
    found: dict[RequestId, float] = {}
    while ready:
        id = ready.pop()
        request = by_id[id]
        behind = max((found[follower] for follower in followers[id]), default=0.0)
        found[id] = behind + request.output_tok + prompt_weight * request.prompt_tok
        for before in predecessors(request):
            if before in missing:
                missing[before] -= 1
                if not missing[before]:
                    ready.append(before)
    if len(found) < len(by_id):
        raise ValueError(f"{len(by_id) - len(found)} requests follow each other in a circle")
    return found


def by_critical_path(requests: Sequence[SimulatedRequest]) -> list[SimulatedRequest]:
    """The same requests; those of programs with a priority, smaller for more work behind them."""
    behind = work_behind_tok(requests)
    return [dataclasses.replace(r, priority=-round(behind[r.id])) if r.program else r for r in requests]
