"""Virtual token counter: the client with the least service so far goes first. With its variants:

  * `Lcf`, least counter first: no lift, so idle clients accumulate credit. Kept as a negative control.
  * `Wvtc`: service in proportion to client weights (section 4.3).
  * `VtcPredict`: expected output is charged at admission (section 4.4, Alg. 3).

A client that returns from idle is lifted to the smallest counter among the waiting clients, so that idle
time earns no credit. If none waits, it is lifted to the counter of the client that was the last to have a
waiting request (without this second case a new client starves an old one).

Under churn this lift starves, too: newcomers of one request each are all lifted to the smallest counter,
which stays where it is as long as one of them waits, and a client that has been served once is behind them
all until they stop coming. `lift="fluid"` (see `fluid_clock`) lifts them to a virtual time that goes on.

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
from serving.fair.fluid_clock import FluidClock
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import SCALE, Account, Amount
from serving.fair.predict import Predictor, make_predictor
from serving.request import ClientId, RequestInfo

type Lift = Literal["paper", "fluid", "no_idle", "none"]
"""`fluid` lifts to a virtual time and does not starve under churn. `no_idle` omits the lift when no client
waits, as a published artifact does; `none` is `Lcf`."""
LIFTS: tuple[Lift, ...] = ("paper", "fluid", "no_idle", "none")


class Vtc(PolicyBase):
    """Serves the client with the smallest virtual counter."""

    WEIGHTED = True

    def __init__(self, *, lift: Lift = "paper", **options: Any) -> None:
        super().__init__(**options)
        if lift not in LIFTS:
            raise ValueError(f"unknown lift {lift!r}; known: {', '.join(LIFTS)}")
        self.lift: Lift = lift
        self.clock = FluidClock(lambda client: self.ledger.accounts[client].counter)
        self.last_left: ClientId | None = None
        self._by_counter = LazyMinHeap(self._key)  # clients with waiting requests

    def pick(self, now_s: float) -> RequestInfo | None:
        client = self._by_counter.top()
        return None if client is None else self.backlog.head(client)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        if self.lift not in ("paper", "fluid"):
            return None
        batch = self.cost.batch_bound(
            memory_tok=memory_tok, max_prompt_tok=max_prompt_tok, max_hit_tok=max_hit_tok
        )
        return float(2 * batch / self.min_weight) / SCALE

    def _key(self, client: ClientId) -> tuple[Amount, int, int]:
        """Smallest counter first; ties by least recent service, then by the oldest request.

        Under the fluid lift newcomers must not pass at equal counters, so the oldest request decides.
        """
        account = self.ledger.accounts[client]
        turn = 0 if self.lift == "fluid" else account.turn
        return account.counter, turn, self.backlog.head(client).seq

    def _floor(self) -> Amount | None:
        """The counter that a returning client is lifted to by the paper's rule; None if there is none."""
        if self.lift == "none":
            return None
        client = self._by_counter.top()
        if client is None and self.lift != "no_idle":
            client = self.last_left
        return None if client is None else self.ledger.accounts[client].counter

    def _on_join(self, account: Account) -> None:
        floor = self._floor()
        if self.lift == "fluid":
            floor = self.clock.tag(floor)
        if floor is not None and account.counter <= floor:
            account.lift_to(floor)
            account.turn = -1  # as for a new client, so that a forgotten account makes no difference

    def _on_enqueue(self, charge: Charge) -> None:
        self._by_counter.push(charge.request.client)
        if self.lift == "fluid":
            self.clock.join(charge.request.client)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            self.last_left = charge.request.client
            self._by_counter.discard(charge.request.client)
            self.clock.leave(charge.request.client)

    def _on_live(self, account: Account) -> None:
        if self.lift == "fluid":
            self.clock.live_weight += account.weight

    def _on_idle(self, account: Account) -> None:
        if self.lift == "fluid":
            self.clock.live_weight -= account.weight

    def _on_reweigh(self, account: Account) -> None:
        if account.client in self.live_of:
            self._on_idle(account)

    def _reweighed(self, account: Account) -> None:
        if account.client in self.live_of:
            self._on_live(account)

    def _before_charge(self, account: Account, amount: int) -> None:
        if self.lift == "fluid":
            self.clock.charge(account, amount)

    def _on_refund(self, account: Account) -> None:
        if account.client in self.backlog.waiting_of:
            self._by_counter.push(account.client)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts that a lift would raise to the floor. The floor only grows, except for pending refunds."""
        floor = self._floor()
        if floor is None or self.lift not in ("paper", "fluid"):
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
        clock = {"clock": self.clock.snapshot()} if self.lift == "fluid" else {}
        return super().snapshot() | {"last_left": self.last_left} | clock

    def restore(self, state: dict[str, Any]) -> None:
        self.last_left = state["last_left"]
        if "clock" in state:
            self.clock.restore(state["clock"])
        super().restore(state)

    def _rebuild(self) -> None:
        self._by_counter.clear(self.backlog.waiting_of)
        live = sum((self.ledger.accounts[client].weight for client in self.live_of), Fraction(0))
        self.clock.rebuild(live, self.backlog.waiting_of if self.lift == "fluid" else ())


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
