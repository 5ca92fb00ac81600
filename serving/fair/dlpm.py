"""Deficit longest prefix match: prefix match orders the requests, credit gates the clients.

Waiting requests are ordered by prefix match, and requests of clients without credit are skipped. When no
waiting client has credit, every known client in debt receives `quantum_tok`, repeatedly until the credit of
a waiting client is positive. Only computed input and output tokens are charged: a cache hit is free.

Credit is `quantum * refills - service`, and refills are given lazily: `rounds` counts them for all clients,
and a client in debt receives those it missed at its next update, up to the one that made it positive. So a
refill costs O(log n), whatever the number of clients and rounds. Every client counts as known from the
beginning: a client that arrives late has the quantum of the first refill.

The bound (ours): credit stays in (-U, Q] with U = w_q*M + max(0, w_e - w_q)*L_in, and two clients that both
wait receive the same number of refills; hence |W_f - W_g| <= 2(U + Q) under `reserve` admission. A client
that cancels during a prefill may fall behind by what it cancelled, but never gets ahead.

Source: Locality-aware Fair Scheduling in LLM Serving (arXiv 2501.14312), Alg. 1.
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
    """Serves the longest prefix match among clients with credit."""

    def __init__(
        self,
        *,
        match: Match,
        quantum_tok: float | Fraction = 5000,
        changed: Changed | None = None,
        aging_tok: int = 0,
        cost: str | ServiceCost = "extend",
        **options: Any,
    ) -> None:
        """
        Args:
          match: see `policy.Match`.
          quantum_tok: credit per refill, in weighted tokens. Small is fair; `math.inf` is pure locality.
          changed: see `locality.Changed`. Without it, every pick matches every waiting request again.
          aging_tok: match tokens that every admission adds to all waiting requests. With 0, a client's
            uncached request can wait behind its cached ones without limit.
        """
        super().__init__(cost=cost, **options)
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; credit per refill must be above 0")
        self.quantum = None if quantum_tok == math.inf else max(1, units(quantum_tok))
        self.order = LocalityOrder(match, changed, aging_tok)
        self.rounds = 0
        self.refills = 0  # picks that needed a refill: how often fairness overrides locality
        self._rounds_of: dict[ClientId, tuple[int, int]] = {}  # rounds received, rounds considered
        self._forfeited: dict[ClientId, int] = {}  # see `_on_refund`
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
        """Ledger units the client may still spend; its gate is closed at 0 and below."""
        account = self.ledger.accounts[client]
        received, _ = self._settle_rounds(account)
        return self._credit(account, received)

    def _credit(self, account: Account, received: int) -> int:
        return (self.quantum or 0) * received - account.served - self._forfeited.get(account.client, 0)

    def _positive(self, client: ClientId) -> bool:
        return self.quantum is None or self.credit(client) > 0

    def _settle_rounds(self, account: Account) -> tuple[int, int]:
        """Gives the refill rounds since the client's last update, as far as it was in debt."""
        received, considered = self._rounds_of.get(account.client, (0, 0))
        if considered < self.rounds and self.quantum:
            credit = self._credit(account, received)
            if credit <= 0:
                received += min(self.rounds - considered, -credit // self.quantum + 1)
        rounds = self._rounds_of[account.client] = received, self.rounds
        return rounds

    def _round_due(self, client: ClientId) -> int:
        """The refill round that makes this client's credit positive."""
        assert self.quantum
        return self.rounds + -self.credit(client) // self.quantum + 1

    def _gate(self, client: ClientId) -> None:
        """Opens or closes the gate of a waiting client according to its credit."""
        if self._positive(client):
            self._debtors.discard(client)
            self.order.open(client)
        else:
            self.order.close(client)
            self._debtors.push(client)

    def _refill(self) -> None:
        """Gives at once all rounds until the credit of a waiting client is positive."""
        self.refills += 1
        client = self._debtors.top()
        assert client is not None, "requests wait and no gate is open, so a gate must be closed"
        self.rounds = self._round_due(client)
        while (client := self._debtors.top()) is not None and self._positive(client):
            self._gate(client)

    def _before_charge(self, account: Account, amount: int) -> None:
        if self.quantum:
            self._settle_rounds(account)

    def _on_refund(self, account: Account) -> None:
        """Caps credit at a quantum.

        Work that was charged and then not executed (a cancel during a prefill) may have been refilled in
        between. Without the cap, alternating charges and cancels would accumulate credit without limit.
        """
        if self.quantum and (surplus := self.credit(account.client) - self.quantum) > 0:
            self._forfeited[account.client] = self._forfeited.get(account.client, 0) + surplus
        if account.client in self.backlog.waiting_of:
            self._gate(account.client)

    def _on_enqueue(self, charge: Charge) -> None:
        client = charge.request.client
        self.order.add(charge.request, charge.admissions_before, first=charge.charged > 0)
        if self.backlog.waiting_of[client] == 1:
            self._gate(client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        self.order.remove(charge.request, emptied)
        if emptied:
            self._debtors.discard(charge.request.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts with the credit of a new client: 0 before the first refill, a whole quantum after it.

        Debt is never forgotten. Other credit (at most a quantum) is forgotten beyond `idle_clients` accounts.
        """
        new = (self.quantum or 0) * min(self.rounds, 1)
        like_new = [a for a in idle if self.credit(a.client) == new]
        in_credit = sorted((a for a in idle if 0 < self.credit(a.client) != new), key=lambda a: a.turn)
        gone = like_new + in_credit[: max(0, len(in_credit) - self.idle_clients)]
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
        self._rounds_of = {
            client: (received, considered) for client, (received, considered) in state["rounds_of"].items()
        }
        self._forfeited = dict(state["forfeited"])
        super().restore(state)

    def _rebuild(self) -> None:
        self.order.clear()
        self._debtors.clear()
        for charge in self._waiting_charges():
            self.order.add(charge.request, charge.admissions_before, first=charge.charged > 0)
        for client in self.backlog.waiting_of:
            self._gate(client)
