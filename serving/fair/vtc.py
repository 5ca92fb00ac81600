"""Virtual token counter: the client with the least service so far goes first. With its variants:

  * `Lcf`, least counter first: no lift, so idle clients accumulate credit. Kept as a negative control.
  * `Wvtc`: service in proportion to client weights (section 4.3).
  * `VtcPredict`: expected output is charged at admission (section 4.4, Alg. 3).

A client that returns from idle is lifted to the smallest counter among the waiting clients, so that idle
time earns no credit. If none waits, it is lifted to the counter of the client that was the last to have a
waiting request (without this second case a new client starves an old one).

The bound on the service gap is 2U with U = w_q*M + max(0, w_p - w_q)*L_in, where M bounds prompts plus
*final* outputs of the running batch (`reserve` admission). The paper's U = max(w_p*L_in, w_q*M) is too small
for w_p > w_q. Neither holds if only the current footprint is kept below M. With weights, the bound holds for
service divided by weight, and U is divided by the smallest weight. Prediction keeps the bound: charges in
advance are capped by the output limit, so one client's advance charges and another's outstanding charges
share the memory M.

Source: Fairness in Serving Large Language Models (arXiv 2401.00588), Alg. 2; general costs section 4.2.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, Amount
from serving.fair.predict import Predictor, make_predictor
from serving.request import ClientId, RequestInfo

type Lift = Literal["paper", "no_idle", "none"]
"""`no_idle` omits the lift when no client waits, as a published artifact does; `none` is `Lcf`."""


class Vtc(PolicyBase):
    """Serves the client with the smallest virtual counter."""

    def __init__(self, *, lift: Lift = "paper", **options: Any) -> None:
        super().__init__(**options)
        if lift not in ("paper", "no_idle", "none"):
            raise ValueError(f"unknown lift {lift!r}; known: paper, no_idle, none")
        self.lift = lift
        self.last_left: ClientId | None = None
        self._by_counter = LazyMinHeap(self._key)  # clients with waiting requests

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._by_counter.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        if self.lift != "paper":
            return None
        batch = self.cost.batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        min_weight = min([Fraction(1), *self.ledger.weights.values()])
        return float(2 * batch / min_weight) / SCALE

    def _key(self, client: ClientId) -> tuple[Amount, int, int]:
        """Smallest counter first; ties by least recent service, then by the oldest request."""
        account = self.ledger.accounts[client]
        return account.counter, account.turn, self.backlog.head(client).seq

    def _floor(self) -> Amount | None:
        """The counter that a returning client is lifted to; None if there is none."""
        if self.lift == "none":
            return None
        client = self._by_counter.top()
        if client is None and self.lift == "paper":
            client = self.last_left
        return None if client is None else self.ledger.accounts[client].counter

    def _on_join(self, account: Account) -> None:
        floor = self._floor()
        if floor is not None and account.counter <= floor:
            account.lift_to(floor)
            account.turn = -1  # as for a new client, so that a forgotten account makes no difference

    def _on_enqueue(self, charge: Charge) -> None:
        self._by_counter.push(charge.request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            self.last_left = charge.request.client
            self._by_counter.discard(charge.request.client)

    def _on_refund(self, account: Account) -> None:
        if account.client in self.backlog.waiting_of:
            self._by_counter.push(account.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts that a lift would raise to the floor. The floor only grows, except for pending refunds."""
        floor = self._floor()
        if floor is None or self.lift != "paper":
            return []
        charged_of: dict[ClientId, int] = {}
        for charge in self.charge_of.values():
            client = charge.request.client
            charged_of[client] = charged_of.get(client, 0) + charge.charged
        max_refund = max(
            (
                charged * self.ledger.accounts[client].den // self.ledger.accounts[client].num + 1
                for client, charged in charged_of.items()
            ),
            default=0,
        )
        return [a for a in idle if a.client != self.last_left and a.counter <= floor - max_refund]

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"last_left": self.last_left}

    def restore(self, state: dict[str, Any]) -> None:
        self.last_left = state["last_left"]
        super().restore(state)

    def _rebuild(self) -> None:
        self._by_counter.clear(self.backlog.waiting_of)


class Lcf(Vtc):
    """Least counter first: VTC without the lift."""

    FIXED_OPTIONS = ("lift",)

    def __init__(self, **options: Any) -> None:
        super().__init__(lift="none", **options)


class Wvtc(Vtc):
    """Weighted VTC: in the long run, service is proportional to the clients' weights."""

    def __init__(self, *, weights: Mapping[ClientId, float | Fraction], **options: Any) -> None:
        """`weights`: share of each client; 1 where not named."""
        super().__init__(weights=weights, **options)


class VtcPredict(Vtc):
    """VTC with length prediction.

    The worst-case gap is that of VTC. The usual gap is much smaller, because the expected output of admitted
    requests counts at once.
    """

    def __init__(
        self,
        *,
        predictor: str | Predictor = "mean",
        seed: int = 0,
        spread: float = 0.5,
        window: int = 5,
        **options: Any,
    ) -> None:
        """
        Args:
          predictor: `oracle`, `noisy` (uniform in 1 -+ `spread`, drawn from `seed`), `mean` (of the client's
            last `window` outputs), or an object.
        """
        if isinstance(predictor, str):
            predictor = make_predictor(predictor, seed=seed, spread=spread, window=window)
        super().__init__(predictor=predictor, **options)
