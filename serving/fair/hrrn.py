"""Highest response ratio next: work given to all since a request arrived, over what it still has to compute.

Long waits and short uncached prompts go first; a fully cached prompt goes at once.

Source: SGLang's policy of the same name. One request's ratio overtakes another's as work goes by, so no heap
keeps the order; but among requests with equally many tokens to compute the oldest is best, so only one
request for each such number is looked at.
"""

import heapq

from serving.fair.base import Base, Tab
from serving.fair.locality import Changed
from serving.fair.policy import Match
from serving.request import Ask, RequestId


class Hrrn(Base):
    def __init__(self, *, match: Match, changed: Changed | None = None, **options):
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.match: Match = match
        self.changed: Changed | None = changed or getattr(match, "changed", None)
        self._uncached: dict[RequestId, int] = {}
        self._oldest: dict[int, list[tuple[int, RequestId]]] = {}  # by tokens to compute

    def pick(self, now_s: float) -> Ask | None:
        self._refresh()
        heads = [head for uncached in list(self._oldest) if (head := self._head(uncached))]
        return max(heads, key=self._rank, default=None)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _rank(self, ask: Ask) -> tuple[bool, float, int]:
        uncached = self._uncached[ask.id]
        return uncached == 0, (self.work - self.tabs[ask.id].work) / max(1, uncached), -ask.seq

    def _head(self, uncached: int) -> Ask | None:
        heap = self._oldest[uncached]
        while heap:
            seq, id = heap[0]
            ask = self.backlog.asks.get(id)
            if ask is not None and ask.seq == seq and self._uncached[id] == uncached:
                return ask
            heapq.heappop(heap)
        del self._oldest[uncached]
        return None

    def _refresh(self) -> None:
        ids = self.changed() if self.changed else None
        for id in list(self.backlog.asks) if ids is None else ids:
            if id in self.backlog.asks:
                self._place(self.backlog.asks[id])

    def _place(self, ask: Ask) -> None:
        uncached = ask.prompt_tok - self.match(ask)
        if self._uncached.get(ask.id) != uncached:
            self._uncached[ask.id] = uncached
            heapq.heappush(self._oldest.setdefault(uncached, []), (ask.seq, ask.id))

    def _waits(self, tab: Tab) -> None:
        self._place(tab.ask)

    def _leaves(self, tab: Tab, emptied: bool) -> None:
        del self._uncached[tab.ask.id]

    def _rebuild(self) -> None:
        self._uncached, self._oldest = {}, {}
        for tab in self._waiting_tabs():
            self._place(tab.ask)
