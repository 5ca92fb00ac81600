"""First come, first served: the order of arrival, whoever asks. No bound on service exists."""

import heapq

from serving.fair.base import Base, Tab
from serving.request import Ask, RequestId


class Fcfs(Base):
    def __init__(self, **options):
        super().__init__(**options)
        self._order: list[tuple[int, RequestId]] = []

    def pick(self, now_s: float) -> Ask | None:
        while self._order:
            seq, id = self._order[0]
            ask = self.backlog.asks.get(id)
            if ask is not None and ask.seq == seq:
                return ask
            heapq.heappop(self._order)
        return None

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _waits(self, tab: Tab) -> None:
        heapq.heappush(self._order, (tab.ask.seq, tab.ask.id))

    def _leaves(self, tab: Tab, emptied: bool) -> None:
        pass

    def _rebuild(self) -> None:
        self._order = []
        for tab in self._waiting_tabs():
            self._waits(tab)
