"""Deficit round robin for requests of unknown length.

Clients with waiting requests form a ring. At its turn, a client without credit receives `quantum_tok`. Its
requests are admitted while its credit is positive; then the ring moves on. Output tokens are charged as they
are produced, so credit may fall far below zero and take several turns to recover.

The ring moves by arithmetic: a client that needs k turns to positive credit is inserted k rounds ahead, so a
decision costs O(log n) whatever the debts.

The bound (ours): a client of weight phi receives Q phi per turn, and only without credit, so its credit stays
in (-U, Q phi] with VTC's U. Of two clients that both wait, none has a turn more than one ahead of the other.
Hence |W_f/phi_f - W_g/phi_g| <= Q + 2(U/min phi + Q) under `reserve` admission. A client that cancels during
a prefill may fall behind by what it cancelled.

Source: VTC (arXiv 2401.00588), App. C.2; weighted quanta: Shreedhar and Varghese, Efficient fair queueing
using deficit round robin (1995).
"""

from fractions import Fraction
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, units
from serving.request import ClientId, RequestInfo


class Drr(PolicyBase):
    """Serves clients in a ring, with a credit of `quantum_tok` times the weight per turn."""

    WEIGHTED = True

    def __init__(self, *, quantum_tok: float | Fraction, **options: Any) -> None:
        """`quantum_tok`: credit per turn, in weighted tokens (the artifact: a twentieth of the pool)."""
        super().__init__(**options)
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; credit per turn must be above 0")
        self.quantum = max(1, units(quantum_tok))
        self.round = self.places = 0  # the current round; positions given out so far
        self._place_of: dict[ClientId, int] = {}  # position in the ring, of clients with waiting requests
        self._turns_of: dict[ClientId, int] = {}  # quanta received
        self._last_round_of: dict[ClientId, int] = {}  # round of the last turn
        self._forfeited: dict[ClientId, int] = {}  # credit that lapsed; see `_on_refund`
        self._ring: LazyMinHeap[ClientId] = LazyMinHeap(
            lambda client: (self._round_due(client), self._place_of[client])
        )

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._ring.top()
        if client is None:
            return None
        due = self._round_due(client)
        self._turns_of[client] = self._turns_of.get(client, 0) + self._turns_needed(client)
        self.round = self._last_round_of[client] = due
        return self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        batch = self.cost.batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        return float(2 * batch / self.min_weight + 3 * self.quantum) / SCALE

    def credit(self, client: ClientId) -> int:
        """Ledger units the client may still spend; negative in debt."""
        account = self.ledger.accounts[client]
        received = self._quantum_of(account) * self._turns_of.get(client, 0)
        return received - account.served - self._forfeited.get(client, 0)

    def _quantum_of(self, account: Account) -> int:
        if account.num == account.den:
            return self.quantum
        return max(1, self.quantum * account.num // account.den)

    def _turns_needed(self, client: ClientId) -> int:
        credit = self.credit(client)
        return 0 if credit > 0 else -credit // self._quantum_of(self.ledger.accounts[client]) + 1

    def _round_due(self, client: ClientId) -> int:
        """The first round after whose turn the client's credit is positive."""
        return max(self.round, self._last_round_of[client] + self._turns_needed(client))

    def _on_join(self, account: Account) -> None:
        """Joins behind all others: those that had their turn of this round have their next one before it.

        With a turn of this round still due, newcomers would keep the round from ever ending.
        """
        self._place_of[account.client] = self.places
        self._last_round_of[account.client] = self.round
        self.places += 1

    def _on_enqueue(self, charge: Charge) -> None:
        client = charge.request.client
        if client not in self._place_of:  # an undone admission
            self._on_join(charge.account)
        self._ring.push(client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            client = charge.request.client
            self._ring.discard(client)
            del self._place_of[client], self._last_round_of[client]

    def _on_refund(self, account: Account) -> None:
        """Caps credit at a quantum: charges and cancels in turns must not accumulate it (see `Dlpm`)."""
        self._cap(account)
        if account.client in self._ring:
            self._ring.push(account.client)

    def _cap(self, account: Account) -> None:
        if (surplus := self.credit(account.client) - self._quantum_of(account)) > 0:
            self._forfeited[account.client] = self._forfeited.get(account.client, 0) + surplus

    def _on_reweigh(self, account: Account) -> None:
        self._kept_credit = self.credit(account.client)

    def _reweighed(self, account: Account) -> None:
        """Credit stays as it was, up to the new quantum."""
        lost = self.credit(account.client) - self._kept_credit
        self._forfeited[account.client] = self._forfeited.get(account.client, 0) + lost
        self._on_refund(account)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts with zero credit, like those of new clients."""
        gone = [account for account in idle if self.credit(account.client) == 0]
        for account in gone:
            self._turns_of.pop(account.client, None)
            self._forfeited.pop(account.client, None)
        return gone

    def snapshot(self) -> dict[str, Any]:
        forfeited = {"forfeited": dict(self._forfeited)} if self._forfeited else {}
        return (
            super().snapshot()
            | forfeited
            | {
                "round": self.round,
                "places": self.places,
                "place_of": dict(self._place_of),
                "turns_of": dict(self._turns_of),
                "last_round_of": dict(self._last_round_of),
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        self.round, self.places = state["round"], state["places"]
        self._place_of, self._turns_of = dict(state["place_of"]), dict(state["turns_of"])
        self._last_round_of = dict(state["last_round_of"])
        self._forfeited = dict(state.get("forfeited", {}))
        super().restore(state)

    def _rebuild(self) -> None:
        self._ring.clear(self.backlog.waiting_of)
