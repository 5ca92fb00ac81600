"""Highest response ratio next: service to all clients since a request arrived, over its uncached tokens.

Long waits and short uncached prompts go first. A fully cached prompt goes before all others.

Ratios overtake one another as service is given, so a heap cannot keep the order. Among requests with equally
many uncached tokens the oldest is best, so `pick` compares one request per number of uncached tokens.

Source: SGLang's policy of the same name.
"""

import heapq
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.locality import Changed
from serving.fair.policy import Match
from serving.request import RequestId, RequestInfo


class Hrrn(PolicyBase):
    """Serves the request with the highest response ratio."""

    def __init__(self, *, match: Match, changed: Changed | None = None, **options: Any) -> None:
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.match: Match = match
        self.changed: Changed | None = changed or getattr(match, "changed", None)
        self._uncached: dict[RequestId, int] = {}
        self._oldest: dict[int, list[tuple[int, RequestId]]] = {}  # by number of uncached tokens

    def pick(self, now_s: float) -> RequestInfo | None:
        self._refresh()
        heads = [head for uncached in list(self._oldest) if (head := self._head(uncached))]
        return max(heads, key=self._rank, default=None)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _rank(self, request: RequestInfo) -> tuple[bool, float, int]:
        uncached = self._uncached[request.id]
        return (
            uncached == 0,
            (self.total_work - self.charge_of[request.id].work_before) / max(1, uncached),
            -request.seq,
        )

    def _head(self, uncached: int) -> RequestInfo | None:
        heap = self._oldest[uncached]
        while heap:
            seq, id = heap[0]
            request = self.backlog.requests.get(id)
            if request is not None and request.seq == seq and self._uncached[id] == uncached:
                return request
            heapq.heappop(heap)
        del self._oldest[uncached]
        return None

    def _refresh(self) -> None:
        ids = self.changed() if self.changed else None
        for id in list(self.backlog.requests) if ids is None else ids:
            if id in self.backlog.requests:
                self._update(self.backlog.requests[id])

    def _update(self, request: RequestInfo) -> None:
        uncached = request.prompt_tok - self.match(request)
        if self._uncached.get(request.id) != uncached:
            self._uncached[request.id] = uncached
            heapq.heappush(self._oldest.setdefault(uncached, []), (request.seq, request.id))

    def _on_enqueue(self, charge: Charge) -> None:
        self._update(charge.request)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        del self._uncached[charge.request.id]

    def _rebuild(self) -> None:
        self._uncached, self._oldest = {}, {}
        for charge in self._waiting_charges():
            self._update(charge.request)
