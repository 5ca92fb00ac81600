"""First come, first served: the order of arrival, whoever asks. No bound on service exists."""

import heapq

from serving.fair.base import Charge, PolicyBase
from serving.request import RequestId, RequestInfo


class Fcfs(PolicyBase):
    def __init__(self, **options):
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

    def _waits(self, tab: Charge) -> None:
        heapq.heappush(self._order, (tab.request.seq, tab.request.id))

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        pass

    def _rebuild(self) -> None:
        self._order = []
        for tab in self._waiting_tabs():
            self._waits(tab)
