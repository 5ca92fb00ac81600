"""Longest prefix match: the most cached prompt tokens go first. No bound on service exists.

Source: SGLang (arXiv 2312.07104), cache-aware scheduling. The aging is ours (see `locality`).
"""

from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.locality import Changed, LocalityOrder
from serving.fair.policy import Match
from serving.request import RequestInfo


class Lpm(PolicyBase):
    """Serves the request with the most cached prompt tokens."""

    def __init__(
        self, *, match: Match, changed: Changed | None = None, aging_tok: int = 0, **options: Any
    ) -> None:
        """See `Dlpm` for the arguments."""
        super().__init__(**{"cost": "extend"} | options)
        self.order = LocalityOrder(match, changed, aging_tok)

    def pick(self, now_s: float) -> RequestInfo | None:
        self.order.refresh()
        return self.order.best()

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _on_enqueue(self, charge: Charge) -> None:
        self.order.add(charge.request, charge.admissions_before, first=charge.charged > 0)
        self.order.open(charge.request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        self.order.remove(charge.request, emptied)

    def _rebuild(self) -> None:
        self.order.clear()
        for charge in self._waiting_charges():
            self._on_enqueue(charge)
