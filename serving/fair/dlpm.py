"""Deficit longest prefix match: prefix match orders the requests, credit gates the clients.

Waiting requests are ordered by prefix match, and requests of clients without credit are skipped. When no
waiting client has credit, every known client in debt receives `quantum_tok`, repeatedly until the credit of
a waiting client is positive. Only computed input and output tokens are charged: a cache hit is free.

Credit is `quantum * refills - service`, and refills are given lazily: `rounds` counts them for all clients,
and a client in debt receives those it missed at its next update, up to the one that made it positive. So a
refill costs O(log n), whatever the number of clients and rounds.

A client begins with no credit, and credit that is left when a client goes idle lapses, as in deficit round
robin: an idle client is then the same as one never seen, and newcomers wait for a refill like all others.
`newcomers="quantum"` counts every client as known from the beginning instead, so that one that arrives late
has the quantum of the first refill. That starves under churn: newcomers with a quantum each keep the refill
from ever coming to those who have spent theirs.

The bound (ours): credit stays in (-U, Q phi] with U = w_q*M + max(0, w_e - w_q)*L_in for a client of weight
phi, whose refills are Q phi. Two clients that both wait receive the same number of refills; hence
|W_f/phi_f - W_g/phi_g| <= 2(U/min phi + Q) under `reserve` admission. A client that cancels during a prefill
may fall behind by what it cancelled, but never gets ahead.

Source: Locality-aware Fair Scheduling in LLM Serving (arXiv 2501.14312), Alg. 1; weighted quanta and the
lapse of credit: Shreedhar and Varghese, Efficient fair queueing using deficit round robin (1995).
"""

import math
from fractions import Fraction
from typing import Any, Literal

from serving.fair.base import Charge, PolicyBase
from serving.fair.cost import ServiceCost
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, units
from serving.fair.locality import Changed, LocalityOrder
from serving.fair.policy import Match
from serving.request import ClientId, RequestInfo


class Dlpm(PolicyBase):
    """Serves the longest prefix match among clients with credit."""

    WEIGHTED = True

    def __init__(
        self,
        *,
        match: Match,
        quantum_tok: float | Fraction = 5000,
        changed: Changed | None = None,
        aging_tok: int = 0,
        newcomers: Literal["zero", "quantum"] = "zero",
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
          newcomers: credit of a client that returns from idle or is new: none, or what it would have if it
            had been known from the beginning.
        """
        super().__init__(cost=cost, **options)
        if newcomers not in ("zero", "quantum"):
            raise ValueError(f"unknown newcomers {newcomers!r}; known: zero, quantum")
        self.newcomers = newcomers
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; credit per refill must be above 0")
        self.quantum = None if quantum_tok == math.inf else max(1, units(quantum_tok))
        self.order = LocalityOrder(match, changed, aging_tok)
        self.rounds = 0
        self.refills = 0  # picks that needed a refill: how often fairness overrides locality
        self._rounds_of: dict[ClientId, tuple[int, int]] = {}  # rounds received, rounds considered
        self._forfeited: dict[ClientId, int] = {}  # credit that lapsed; see `_on_refund`
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
        return float(2 * (batch / self.min_weight + self.quantum)) / SCALE

    def credit(self, client: ClientId) -> int:
        """Ledger units the client may still spend; its gate is closed at 0 and below."""
        account = self.ledger.accounts[client]
        rounds = self._rounds_of.get(client)
        if rounds is None or rounds[1] < self.rounds:
            rounds = self._settle_rounds(account)
        return self._credit(account, rounds[0])

    def _credit(self, account: Account, received: int) -> int:
        quantum = self._quantum_of(account)
        served = account.charges - account.refunds
        return quantum * received - served - self._forfeited.get(account.client, 0)

    def _quantum_of(self, account: Account) -> int:
        """Credit per refill; at least a unit, so that every debt is paid in the end."""
        if account.num == account.den or not self.quantum:
            return self.quantum or 0
        return max(1, self.quantum * account.num // account.den)

    def _positive(self, client: ClientId) -> bool:
        return self.quantum is None or self.credit(client) > 0

    def _settle_rounds(self, account: Account) -> tuple[int, int]:
        """Gives the refill rounds since the client's last update, as far as it was in debt."""
        first = 0 if self.newcomers == "quantum" else self.rounds
        received, considered = self._rounds_of.get(account.client, (0, first))
        if considered < self.rounds and self.quantum:
            credit = self._credit(account, received)
            if credit <= 0:
                received += min(self.rounds - considered, -credit // self._quantum_of(account) + 1)
        rounds = self._rounds_of[account.client] = received, self.rounds
        return rounds

    def _round_due(self, client: ClientId) -> int:
        """The refill round that makes this client's credit positive."""
        quantum = self._quantum_of(self.ledger.accounts[client])
        return self.rounds + -self.credit(client) // quantum + 1

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
            rounds = self._rounds_of.get(account.client)
            if rounds is None or rounds[1] < self.rounds:
                self._settle_rounds(account)

    def _on_refund(self, account: Account) -> None:
        """Caps credit at a quantum.

        Work that was charged and then not executed (a cancel during a prefill) may have been refilled in
        between. Without the cap, alternating charges and cancels would accumulate credit without limit.
        """
        self._cap(account, self._quantum_of(account))
        if account.client in self.backlog.waiting_of:
            self._gate(account.client)

    def _cap(self, account: Account, limit: int) -> None:
        """Credit above the limit lapses."""
        if self.quantum and (surplus := self.credit(account.client) - limit) > 0:
            self._forfeited[account.client] = self._forfeited.get(account.client, 0) + surplus

    def _on_live(self, account: Account) -> None:
        if self.newcomers == "zero":
            self._cap(account, 0)

    def _on_reweigh(self, account: Account) -> None:
        self._kept_credit = self.credit(account.client)

    def _reweighed(self, account: Account) -> None:
        """Credit stays as it was, up to the new quantum."""
        lost = self.credit(account.client) - self._kept_credit
        self._forfeited[account.client] = self._forfeited.get(account.client, 0) + lost
        self._cap(account, self._quantum_of(account))
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
        """Accounts that a new client's would replace without a difference: all without debt.

        With `newcomers="quantum"`: those with 0 before the first refill, and a whole quantum after it. Other
        credit is forgotten beyond `idle_clients` accounts. Debt is never forgotten.
        """
        if self.newcomers == "zero":
            gone = [a for a in idle if self.credit(a.client) >= 0]
        else:
            first = min(self.rounds, 1)
            like_new = [a for a in idle if self.credit(a.client) == self._quantum_of(a) * first]
            in_credit = [a for a in idle if 0 < self.credit(a.client) != self._quantum_of(a) * first]
            in_credit.sort(key=lambda a: a.turn)
            gone = like_new + in_credit[: max(0, len(in_credit) - self.idle_clients)]
        for account in gone:
            self._rounds_of.pop(account.client, None)
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
