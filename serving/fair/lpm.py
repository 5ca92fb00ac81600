"""Longest prefix match: what the cache already holds goes first. No bound on service exists.

Source: SGLang (arXiv 2312.07104), cache-aware scheduling; the aging is ours (see `locality`).
"""

from serving.fair.base import Base, Tab
from serving.fair.locality import Changed, Locality
from serving.fair.policy import Match
from serving.request import Ask


class Lpm(Base):
    def __init__(self, *, match: Match, changed: Changed | None = None, aging_tok: int = 0, **options):
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.order = Locality(match, changed, aging_tok)

    def pick(self, now_s: float) -> Ask | None:
        self.order.refresh()
        return self.order.best()

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _waits(self, tab: Tab) -> None:
        self.order.add(tab.ask, tab.born, first=tab.billed > 0)
        self.order.open(tab.ask.client)

    def _leaves(self, tab: Tab, emptied: bool) -> None:
        self.order.remove(tab.ask, emptied)

    def _rebuild(self) -> None:
        self.order.clear()
        for tab in self._waiting_tabs():
            self._waits(tab)
