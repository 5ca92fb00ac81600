"""Round robin: one request of each client in turn, whatever its cost. Fair in requests, not in service."""

from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account
from serving.request import ClientId, RequestInfo


class RoundRobin(PolicyBase):
    """Serves one request of each client in turn."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ring: LazyMinHeap[ClientId] = LazyMinHeap(lambda client: self.ledger.accounts[client].turn)

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._ring.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _on_join(self, account: Account) -> None:
        """Joins at the end of the ring, behind the client that was served last."""
        account.turn = self.turn
        self.turn += 1

    def _on_enqueue(self, charge: Charge) -> None:
        self._ring.push(charge.request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            self._ring.discard(charge.request.client)

    def _rebuild(self) -> None:
        self._ring.clear(self.backlog.waiting_of)
