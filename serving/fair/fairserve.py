"""FairServe-style: service in units of what the client's application usually needs, and throttling that waits
for overload and for the end of an interaction.

  * The counter of a client grows by the charge over the mean charge of its own finished requests, so that an
    application with long prompts is not behind one with short ones. The client with the smallest counter goes
    first; the lift is VTC's.
  * Requests beyond `limit` per `window_s` are refused only while more than `overload_waiting` requests wait,
    and never in the middle of an interaction: a request of a `program` that has been accepted before passes.

A re-telling of the idea from the abstract of arXiv 2411.15997; the published constants are not known to us.
No bound on weighted tokens exists, since other units are shared.
"""

from collections import deque
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account
from serving.request import ClientId, RequestId, RequestInfo


class FairServe(PolicyBase):
    """Serves the client with the fewest usual requests' worth of service per weight."""

    WEIGHTED = True

    def __init__(
        self,
        *,
        limit: int | None = None,
        window_s: float = 60.0,
        overload_waiting: int = 32,
        interactions: int = 10_000,
        **options: Any,
    ) -> None:
        """
        Args:
          limit: requests per client and window that are accepted under overload; None: never throttles.
          overload_waiting: waiting requests above which the server counts as overloaded.
          interactions: programs that are remembered as accepted.
        """
        super().__init__(**options)
        if limit is not None and (limit < 1 or window_s <= 0):
            raise ValueError(f"limit is {limit} per {window_s} s; it must be at least 1 per window above 0 s")
        self.limit, self.window_s, self.overload_waiting = limit, window_s, overload_waiting
        self.interactions = interactions
        self._accepted: dict[ClientId, deque[float]] = {}
        self._known: dict[str, None] = {}  # programs accepted before, longest ago first
        self._mean: dict[ClientId, float] = {}  # charge of its finished requests
        self._first_cost: dict[ClientId, int] = {}  # of its first request, if it produces all it may
        self._counter: dict[ClientId, float] = {}
        self._order: LazyMinHeap[ClientId] = LazyMinHeap(
            lambda client: (self._counter[client], self.backlog.head(client).seq)
        )

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._order.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _accepts(self, request: RequestInfo, now_s: float) -> bool:
        if self.limit is None:
            return True
        times = self._accepted.setdefault(request.client, deque())
        while times and times[0] <= now_s - self.window_s:
            times.popleft()
        begins = request.program not in self._known
        if begins and len(times) >= self.limit and len(self.backlog) > self.overload_waiting:
            return False
        times.append(now_s)
        if request.program:
            self._known.pop(request.program, None)
            self._known[request.program] = None
            if len(self._known) > self.interactions:
                del self._known[next(iter(self._known))]
        return True

    def finish(self, id: RequestId) -> None:
        charge = self._live_charge(id, waiting=False)
        super().finish(id)
        client, mean = charge.request.client, self._mean.get(charge.request.client)
        self._mean[client] = charge.charged if mean is None else 0.8 * mean + 0.2 * charge.charged

    def _before_charge(self, account: Account, amount: int) -> None:
        # Before a client's first request ends, what that may cost stands for the mean.
        usual = self._mean.get(account.client) or float(max(1, self._first_cost[account.client]))
        change = amount * account.den / (account.num * usual)
        self._counter[account.client] = max(0.0, self._counter[account.client] + change)

    def _on_join(self, account: Account) -> None:
        least = self._order.top()
        floor = 0.0 if least is None else self._counter[least]
        self._counter[account.client] = max(floor, self._counter.get(account.client, 0.0))

    def _on_enqueue(self, charge: Charge) -> None:
        request = charge.request
        cost = self.cost.of(request.prompt_tok, 0, request.max_output_tok)
        self._first_cost.setdefault(request.client, cost)
        self._order.push(request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            self._order.discard(charge.request.client)

    def _on_refund(self, account: Account) -> None:
        if account.client in self._order:
            self._order.push(account.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        least = self._order.top()
        floor = 0.0 if least is None else self._counter[least]
        gone = [a for a in idle if self._counter.get(a.client, 0.0) <= floor]
        for account in gone:
            for kept in (self._counter, self._mean, self._first_cost, self._accepted):
                kept.pop(account.client, None)
        return gone

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {
            "accepted": {client: list(times) for client, times in self._accepted.items()},
            "known": list(self._known),
            "mean": dict(self._mean),
            "first_cost": dict(self._first_cost),
            "counter": dict(self._counter),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._accepted = {client: deque(times) for client, times in state["accepted"].items()}
        self._known = dict.fromkeys(state["known"])
        self._mean, self._counter = dict(state["mean"]), dict(state["counter"])
        self._first_cost = dict(state["first_cost"])
        super().restore(state)

    def _rebuild(self) -> None:
        self._order.clear(self.backlog.waiting_of)
