"""First come, first served: all requests in order of arrival. No bound on service exists."""

import heapq
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.request import RequestId, RequestInfo


class Fcfs(PolicyBase):
    """Serves all requests in order of arrival."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._order: list[tuple[int, RequestId]] = []

    def pick(self, now_s: float) -> RequestInfo | None:
        while self._order:
            seq, id = self._order[0]
            request = self.backlog.requests.get(id)
            if request is not None and request.seq == seq:
                return request
            heapq.heappop(self._order)
        return None

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _on_enqueue(self, charge: Charge) -> None:
        heapq.heappush(self._order, (charge.request.seq, charge.request.id))

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        pass

    def _rebuild(self) -> None:
        self._order = []
        for charge in self._waiting_charges():
            self._on_enqueue(charge)
