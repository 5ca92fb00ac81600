"""Round robin: one request of each client in turn, whatever it costs. Fair in requests, not in service."""

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account
from serving.request import ClientId, RequestInfo


class RoundRobin(PolicyBase):
    def __init__(self, **options):
        super().__init__(**options)
        self._ring: LazyMinHeap[ClientId] = LazyMinHeap(lambda client: self.ledger.accounts[client].turn)

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._ring.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _joins(self, account: Account) -> None:
        """At the end of the ring, behind whoever was served last."""
        account.turn = self.turn
        self.turn += 1

    def _waits(self, tab: Charge) -> None:
        self._ring.push(tab.request.client)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        if emptied:
            self._ring.discard(tab.request.client)

    def _rebuild(self) -> None:
        self._ring.clear(self.backlog.waiting_of)
