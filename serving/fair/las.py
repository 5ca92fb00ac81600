"""Least attained service with decay: the client that received the least in the recent past goes first.

Service loses half of its weight every `half_life_s` seconds. No lift is needed, since idle clients cannot
save up more than what decays, and no bound on service exists: what a client received long ago is forgotten,
so two clients that both wait may drift apart without limit at different rates of service.

A re-telling of the program-aware fairness of llm-d's router (least attained service, half-life 60 s), without
its share for the wait of the head.
"""

import math
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account
from serving.request import ClientId, RequestInfo

MAX_HALVINGS = 500  # since the epoch, before all amounts are scaled down


class LeastAttained(PolicyBase):
    """Serves the client with the least decayed service per weight.

    Amounts are kept as of the epoch: service at time t counts 2^((t - epoch) / half-life), so that decay
    changes no key.
    """

    WEIGHTED = True

    def __init__(self, *, half_life_s: float = 60.0, **options: Any) -> None:
        super().__init__(**options)
        if not half_life_s > 0:
            raise ValueError(f"half_life_s is {half_life_s}; it must be above 0")
        self.half_life_s = half_life_s
        self._now_s = self._epoch_s = 0.0
        self._attained: dict[ClientId, float] = {}
        self._order: LazyMinHeap[ClientId] = LazyMinHeap(self._key)

    def pick(self, now_s: float) -> RequestInfo | None:
        self._now_s = max(now_s, self._now_s)
        client = self._order.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _key(self, client: ClientId) -> tuple[float, int]:
        return self._attained.get(client, 0.0), self.backlog.head(client).seq

    def _before_charge(self, account: Account, amount: int) -> None:
        halvings = (self._now_s - self._epoch_s) / self.half_life_s
        if halvings > MAX_HALVINGS:
            self._attained = {c: v for c, a in self._attained.items() if (v := math.ldexp(a, -int(halvings)))}
            self._epoch_s += int(halvings) * self.half_life_s
            halvings -= int(halvings)
            self._rebuild()
        change = 2.0**halvings * amount * account.den / account.num
        self._attained[account.client] = max(0.0, self._attained.get(account.client, 0.0) + change)

    def _on_refund(self, account: Account) -> None:
        if account.client in self._order:
            self._order.push(account.client)

    def _on_enqueue(self, charge: Charge) -> None:
        self._order.push(charge.request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            self._order.discard(charge.request.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts whose service has all but decayed: thirty half-lives, a billionth."""
        scale = 2.0 ** ((self._now_s - self._epoch_s) / self.half_life_s - 30)
        gone = [a for a in idle if self._attained.get(a.client, 0.0) <= scale * a.served * a.den / a.num]
        for account in gone:
            self._attained.pop(account.client, None)
        return gone

    def snapshot(self) -> dict[str, Any]:
        times = {"now_s": self._now_s, "epoch_s": self._epoch_s}
        return super().snapshot() | times | {"attained": dict(self._attained)}

    def restore(self, state: dict[str, Any]) -> None:
        self._now_s, self._epoch_s = state["now_s"], state["epoch_s"]
        self._attained = dict(state["attained"])
        super().restore(state)

    def _rebuild(self) -> None:
        self._order.clear(self.backlog.waiting_of)
