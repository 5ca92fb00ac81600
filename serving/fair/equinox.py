"""Equinox-style: two counters per client, one of what the user got and one of what the server spent on it.

  * The user's counter grows by the charge, discounted by the wait of the request: a token that came late is
    worth 1 / (1 + wait / `patience_s`).
  * The resource counter grows by an estimate of the memory held over time, which long contexts fill.

The client with the smallest `alpha` * (share of all user counters) + (1 - `alpha`) * (share of all resource
counters), per weight, goes first. Expected output is charged at admission. Returning clients are lifted as in
VTC, in both counters. A decision looks at every waiting client.

A re-telling of the idea from the abstract of arXiv 2508.16646, which predicts with a mixture of experts and
measures the device; ours has a running mean and a formula. No bound exists.
"""

from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.cost import MemoryTime
from serving.fair.ledger import Account
from serving.fair.predict import Predictor, RunningMean
from serving.request import ClientId, RequestId, RequestInfo


class Equinox(PolicyBase):
    """Serves the client with the smallest mix of user and resource counters."""

    WEIGHTED = True

    def __init__(
        self,
        *,
        alpha: float = 0.7,
        patience_s: float = 10.0,
        predictor: Predictor | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
          alpha: weight of the user's counter.
          patience_s: wait at which a token is worth half.
        """
        super().__init__(predictor=predictor or RunningMean(), **options)
        if not 0 <= alpha <= 1 or not patience_s > 0:
            raise ValueError(f"alpha is {alpha}, patience_s {patience_s}; from 0 to 1, and above 0")
        self.alpha, self.patience_s = alpha, patience_s
        self._memory = MemoryTime(0, 0, 1)
        self._now_s = 0.0
        self._arrival_s: dict[RequestId, float] = {}
        self._discount: dict[ClientId, float] = {}  # of its last admission
        self._user: dict[ClientId, float] = {}
        self._resource: dict[ClientId, float] = {}
        self._total_user = self._total_resource = 1.0

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        self._now_s = max(now_s, self._now_s)
        self._arrival_s[request.id] = now_s
        accepted = super().arrive(request, now_s)
        if not accepted:
            del self._arrival_s[request.id]
        return accepted

    def pick(self, now_s: float) -> RequestInfo | None:
        self._now_s = max(now_s, self._now_s)
        client = self._least()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        return None

    def _least(self) -> ClientId | None:
        waiting = self.backlog.waiting_of
        return min(waiting, key=lambda c: (self._score(c), self.backlog.head(c).seq), default=None)

    def _score(self, client: ClientId) -> float:
        account = self.ledger.accounts[client]
        user = self._user[client] / self._total_user
        resource = self._resource[client] / self._total_resource
        return (self.alpha * user + (1 - self.alpha) * resource) * account.den / account.num

    def _on_join(self, account: Account) -> None:
        least = self._least()
        for counters in (self._user, self._resource):
            floor = 0.0 if least is None else counters[least]
            counters[account.client] = max(floor, counters.get(account.client, 0.0))

    def _on_enqueue(self, charge: Charge) -> None:
        pass

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        pass

    def _on_admit(self, charge: Charge) -> None:
        request = charge.request
        wait_s = self._now_s - self._arrival_s[request.id]
        self._discount[request.client] = 1 / (1 + wait_s / self.patience_s)
        expected_tok = min(self.predictor.predict(request), request.max_output_tok)
        held = float(self._memory.of(request.prompt_tok, 0, max(1, expected_tok)))
        self._resource[request.client] += held
        self._total_resource += held

    def _before_charge(self, account: Account, amount: int) -> None:
        value = amount * self._discount.get(account.client, 1.0)
        self._user[account.client] = max(0.0, self._user[account.client] + value)
        self._total_user = max(1.0, self._total_user + value)

    def finish(self, id: RequestId) -> None:
        super().finish(id)
        self._arrival_s.pop(id, None)

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        super().cancel(id, prefilled_tok=prefilled_tok)
        self._arrival_s.pop(id, None)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        least = self._least()
        if least is None:
            return []
        kept = (self._user, self._resource)
        gone = [a for a in idle if all(c.get(a.client, 0.0) <= c[least] for c in kept)]
        for account in gone:
            for counters in (*kept, self._discount):
                counters.pop(account.client, None)
        return gone

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {
            "now_s": self._now_s,
            "arrival_s": dict(self._arrival_s),
            "discount": dict(self._discount),
            "user": dict(self._user),
            "resource": dict(self._resource),
            "totals": [self._total_user, self._total_resource],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._now_s, self._arrival_s = state["now_s"], dict(state["arrival_s"])
        self._discount = dict(state["discount"])
        self._user, self._resource = dict(state["user"]), dict(state["resource"])
        self._total_user, self._total_resource = state["totals"]
        super().restore(state)

    def _rebuild(self) -> None:
        pass
