"""Virtual token counter: the client with the least service so far goes first.

Source: Fairness in Serving Large Language Models (arXiv 2401.00588), Alg. 2; weights section 4.3; general
costs section 4.2; prediction section 4.4.

A client that comes back from idle is lifted to the least counter among the waiting clients, so that time away
earns no credit; if nobody waits, to the counter of the client that was last to have something waiting
(dropping this second case lets a newcomer starve a veteran).

The bound: 2U with U = w_q*M + max(0, w_p - w_q)*L_in, where M bounds prompts plus *final* outputs of the
running batch (`reserve` admission). The paper's U = max(w_p*L_in, w_q*M) is too small for w_p > w_q, and
neither holds when only the momentary footprint is kept below M.
"""

from fractions import Fraction
from typing import Any, Literal

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, Amount
from serving.request import ClientId, RequestInfo

type Lift = Literal["paper", "no_idle", "none"]
"""`no_idle` leaves the idle-system case out, as a published artifact does; `none` is least counter first."""


class Vtc(PolicyBase):
    def __init__(self, *, lift: Lift = "paper", **options):
        super().__init__(**options)
        if lift not in ("paper", "no_idle", "none"):
            raise ValueError(f"unknown lift {lift!r}; known: paper, no_idle, none")
        self.lift = lift
        self.last_left: ClientId | None = None
        self._least = LazyMinHeap(self._key)

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._least.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        if self.lift != "paper":
            return None
        batch = self.cost.batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        least = min([Fraction(1), *self.ledger.weights.values()])
        return float(2 * batch / least) / SCALE

    def _key(self, client: ClientId) -> tuple[Amount, int, int]:
        """Least counter first; ties to the least recently served, then to the oldest request."""
        account = self.ledger.accounts[client]
        return account.counter, account.turn, self.backlog.head(client).seq

    def _floor(self) -> Amount | None:
        """What a returning client is lifted to; None if nobody was ever served."""
        if self.lift == "none":
            return None
        least = self._least.top()
        if least is None and self.lift == "paper":
            least = self.last_left
        return None if least is None else self.ledger.accounts[least].counter

    def _joins(self, account: Account) -> None:
        floor = self._floor()
        if floor is not None and account.counter <= floor:
            account.lift_to(floor)
            account.turn = -1  # like a newcomer, so that a forgotten account makes no difference

    def _waits(self, tab: Charge) -> None:
        self._least.push(tab.request.client)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        if emptied:
            self.last_left = tab.request.client
            self._least.discard(tab.request.client)

    def _refunded(self, account: Account) -> None:
        if account.client in self.backlog.waiting_of:
            self._least.push(account.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Those that a lift would bring to the floor anyway: the floor only grows, but for refunds to
        come."""
        floor = self._floor()
        if floor is None or self.lift != "paper":
            return []
        billed: dict[ClientId, int] = {}
        for tab in self.tabs.values():
            billed[tab.request.client] = billed.get(tab.request.client, 0) + tab.billed
        lowest = floor - max(
            (
                amount * self.ledger.accounts[c].den // self.ledger.accounts[c].num + 1
                for c, amount in billed.items()
            ),
            default=0,
        )
        return [a for a in idle if a.client != self.last_left and a.counter <= lowest]

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"last_left": self.last_left}

    def restore(self, state: dict[str, Any]) -> None:
        self.last_left = state["last_left"]
        super().restore(state)

    def _rebuild(self) -> None:
        self._least.clear(self.backlog.waiting_of)
