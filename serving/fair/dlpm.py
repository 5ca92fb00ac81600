"""Deficit longest prefix match: locality orders, fairness gates.

Source: Locality-aware Fair Scheduling in LLM Serving (arXiv 2501.14312), Alg. 1. Waiting requests are
ordered by prefix match; those of clients whose credit is used up are passed over; when no waiting client
has credit left, every known client in debt gets `quantum_tok`, again until a waiting one is positive. Only
computed input and output tokens are billed: a cache hit is free.

Credit is `quantum * refills - service`, and refills are given lazily: `rounds` counts them for all, and a
client in debt takes those it missed when it is looked at next, up to the one that made it positive. So a
refill costs O(log n) however many clients and rounds it has. Every client counts as known from the
beginning: one that comes late has the quantum of the first refill.

The bound (ours): credit stays in (-U, Q], U = w_q*M + max(0, w_e - w_q)*L_in, and two clients that both
wait get the same number of refills; hence |W_f - W_g| <= 2(U + Q) under `reserve` admission. A client that
cancels in mid-prefill may fall behind by what it cancelled, never get ahead.
"""

import math
from fractions import Fraction
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.cost import ServiceCost
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, units
from serving.fair.locality import Changed, LocalityOrder
from serving.fair.policy import Match
from serving.request import ClientId, RequestInfo


class Dlpm(PolicyBase):
    def __init__(
        self,
        *,
        match: Match,
        quantum_tok: float | Fraction = 5000,
        changed: Changed | None = None,
        aging_tok: int = 0,
        cost: str | ServiceCost = "extend",
        **options,
    ):
        """
        Args:
          match: prompt tokens of a waiting request that the prefix cache holds.
          quantum_tok: credit a refill gives, in weighted tokens: small is fair, `math.inf` is pure locality.
          changed: see `locality.Changed`; without it every waiting request is matched at every pick.
          aging_tok: tokens of match that every admission adds to all who still wait; 0 leaves a client's
            cold request behind its hot ones for ever.
        """
        super().__init__(cost=cost, **options)
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; a refill must give something, so above 0")
        self.quantum = None if quantum_tok == math.inf else max(1, units(quantum_tok))
        self.order = LocalityOrder(match, changed, aging_tok)
        self.rounds = 0
        self.refills = 0  # times that the gate had to be opened: how hard fairness presses on locality
        self._rounds_of: dict[ClientId, tuple[int, int]] = {}  # rounds received, rounds looked at
        self._forfeited: dict[ClientId, int] = {}  # see `_refunded`
        self._debtors = LazyMinHeap(self._round_due)  # waiting clients whose gate is closed

    def pick(self, now_s: float) -> RequestInfo | None:
        self.order.refresh()
        while len(self.backlog):
            request = self.order.best()
            if request is None:
                self._refill()
            elif self._positive(request.client):
                return request
            else:
                self._gate(request.client)
        return None

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        if self.quantum is None:
            return None
        batch = self.cost.batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        return 2 * (batch + self.quantum) / SCALE

    def credit(self, client: ClientId) -> int:
        """Ledger units the client may still overdraw from; at or below 0 its gate is closed."""
        account = self.ledger.accounts[client]
        received, _ = self._settle_rounds(account)
        return self._credit(account, received)

    def _credit(self, account: Account, received: int) -> int:
        return (self.quantum or 0) * received - account.served - self._forfeited.get(account.client, 0)

    def _positive(self, client: ClientId) -> bool:
        return self.quantum is None or self.credit(client) > 0

    def _settle_rounds(self, account: Account) -> tuple[int, int]:
        """Gives the refill rounds since the client was last looked at, as far as it was in debt."""
        received, looked = self._rounds_of.get(account.client, (0, 0))
        if looked < self.rounds and self.quantum:
            credit = self._credit(account, received)
            if credit <= 0:
                received += min(self.rounds - looked, -credit // self.quantum + 1)
        now = self._rounds_of[account.client] = received, self.rounds
        return now

    def _round_due(self, client: ClientId) -> int:
        """The refill round that makes this client positive."""
        assert self.quantum
        return self.rounds + -self.credit(client) // self.quantum + 1

    def _gate(self, client: ClientId) -> None:
        """Opens or closes the gate of a waiting client, as its credit says."""
        if self._positive(client):
            self._debtors.discard(client)
            self.order.open(client)
        else:
            self.order.close(client)
            self._debtors.push(client)

    def _refill(self) -> None:
        """All the rounds until a waiting client is positive, at once."""
        self.refills += 1
        client = self._debtors.top()
        assert client is not None, "something waits and no gate is open, so a gate is closed"
        self.rounds = self._round_due(client)
        while (client := self._debtors.top()) is not None and self._positive(client):
            self._gate(client)

    def _before_change(self, account: Account, amount: int) -> None:
        if self.quantum:
            self._settle_rounds(account)

    def _refunded(self, account: Account) -> None:
        """Caps credit at a quantum.

        Work that was charged and then not executed (a cancel in mid-prefill) may have been refilled in
        between; kept on top, charging and cancelling in turns would hoard credit without limit.
        """
        if self.quantum and (surplus := self.credit(account.client) - self.quantum) > 0:
            self._forfeited[account.client] = self._forfeited.get(account.client, 0) + surplus
        if account.client in self.backlog.waiting_of:
            self._gate(account.client)

    def _waits(self, tab: Charge) -> None:
        client = tab.request.client
        self.order.add(tab.request, tab.born, first=tab.billed > 0)
        if self.backlog.waiting_of[client] == 1:
            self._gate(client)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        self.order.remove(tab.request, emptied)
        if emptied:
            self._debtors.discard(tab.request.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Those with the credit of a newcomer, who counts as known from the beginning: none before the first
        refill, a whole quantum since.

        Debt is never forgotten. Credit is (it is worth at most a quantum), beyond `idle_clients` of them.
        """
        new = (self.quantum or 0) * min(self.rounds, 1)
        like_new = [a for a in idle if self.credit(a.client) == new]
        rich = sorted((a for a in idle if 0 < self.credit(a.client) != new), key=lambda a: a.turn)
        gone = like_new + rich[: max(0, len(rich) - self.idle_clients)]
        for account in gone:
            del self._rounds_of[account.client]
            self._forfeited.pop(account.client, None)
        return gone

    def snapshot(self) -> dict[str, Any]:
        rounds_of = {client: list(rounds) for client, rounds in self._rounds_of.items()}
        return super().snapshot() | {
            "rounds": self.rounds,
            "refills": self.refills,
            "rounds_of": rounds_of,
            "forfeited": dict(self._forfeited),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.rounds, self.refills = state["rounds"], state["refills"]
        self._rounds_of = {client: (got, looked) for client, (got, looked) in state["rounds_of"].items()}
        self._forfeited = dict(state["forfeited"])
        super().restore(state)

    def _rebuild(self) -> None:
        self.order.clear()
        self._debtors.clear()
        for tab in self._waiting_tabs():
            self.order.add(tab.request, tab.born, first=tab.billed > 0)
        for client in self.backlog.waiting_of:
            self._gate(client)
