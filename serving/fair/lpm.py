"""Longest prefix match: what the cache already holds goes first. No bound on service exists.

Source: SGLang (arXiv 2312.07104), cache-aware scheduling; the aging is ours (see `locality`).
"""

from serving.fair.base import Charge, PolicyBase
from serving.fair.locality import Changed, LocalityOrder
from serving.fair.policy import Match
from serving.request import RequestInfo


class Lpm(PolicyBase):
    def __init__(self, *, match: Match, changed: Changed | None = None, aging_tok: int = 0, **options):
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.order = LocalityOrder(match, changed, aging_tok)

    def pick(self, now_s: float) -> RequestInfo | None:
        self.order.refresh()
        return self.order.best()

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _waits(self, tab: Charge) -> None:
        self.order.add(tab.request, tab.born, first=tab.billed > 0)
        self.order.open(tab.request.client)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        self.order.remove(tab.request, emptied)

    def _rebuild(self) -> None:
        self.order.clear()
        for tab in self._waiting_tabs():
            self._waits(tab)
