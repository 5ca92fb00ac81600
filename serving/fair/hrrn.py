"""Highest response ratio next: work given to all since a request arrived, over what it still has to compute.

Long waits and short uncached prompts go first; a fully cached prompt goes at once.

Source: SGLang's policy of the same name. One request's ratio overtakes another's as work goes by, so no heap
keeps the order; but among requests with equally many tokens to compute the oldest is best, so only one
request for each such number is looked at.
"""

import heapq

from serving.fair.base import Charge, PolicyBase
from serving.fair.locality import Changed
from serving.fair.policy import Match
from serving.request import RequestId, RequestInfo


class Hrrn(PolicyBase):
    def __init__(self, *, match: Match, changed: Changed | None = None, **options):
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.match: Match = match
        self.changed: Changed | None = changed or getattr(match, "changed", None)
        self._uncached: dict[RequestId, int] = {}
        self._oldest: dict[int, list[tuple[int, RequestId]]] = {}  # by tokens to compute

    def pick(self, now_s: float) -> RequestInfo | None:
        self._refresh()
        heads = [head for uncached in list(self._oldest) if (head := self._head(uncached))]
        return max(heads, key=self._rank, default=None)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _rank(self, request: RequestInfo) -> tuple[bool, float, int]:
        uncached = self._uncached[request.id]
        return uncached == 0, (self.work - self.tabs[request.id].work) / max(1, uncached), -request.seq

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
                self._place(self.backlog.requests[id])

    def _place(self, request: RequestInfo) -> None:
        uncached = request.prompt_tok - self.match(request)
        if self._uncached.get(request.id) != uncached:
            self._uncached[request.id] = uncached
            heapq.heappush(self._oldest.setdefault(uncached, []), (request.seq, request.id))

    def _waits(self, tab: Charge) -> None:
        self._place(tab.request)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        del self._uncached[tab.request.id]

    def _rebuild(self) -> None:
        self._uncached, self._oldest = {}, {}
        for tab in self._waiting_tabs():
            self._place(tab.request)
