"""The bookkeeping that all policies share: waiting and running requests, and the charge of each.

A policy is `PolicyBase` plus an order: hooks that run when a request starts or stops waiting, and `pick`.
Charging is implemented once, here, so that it cannot differ between policies:

  * A request pays `cost.of(extend, hit, output)` of what was executed, and in the end exactly that.
  * Predicted output is paid at admission. The part that was not produced is refunded once, when the request
    stops running.
  * A preempted request does not pay for recomputation (the driver's choice must not cost the client) unless
    `bill_recompute` is set.
  * An admission whose step was not carried out is undone by `preempt(id, prefilled_tok=0)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

from serving.fair.backlog import Backlog
from serving.fair.cost import ServiceCost, make_cost
from serving.fair.ledger import Account, Ledger
from serving.fair.predict import Predictor, no_prediction
from serving.request import ClientId, RequestId, RequestInfo

type Unit = Literal["client", "program"]
"""What shares the server: clients, or the programs that requests name (clients where they name none)."""


class Charge:
    """What one live request has used and paid.

    Attributes:
      extend_tok, hit_tok: prompt tokens computed and found in the cache so far, each token counted once.
      executed_tok: the part of these that earlier admissions executed; it is never refunded.
      output_tok: tokens produced.
      paid_output_tok: output tokens paid for, at least `output_tok`.
      recompute_charged: ledger units paid for recomputed tokens.
      charged: ledger units charged so far, net of refunds.
      admissions_before, work_before: admissions (of all clients) and service (to all clients, in ledger
        units) before the request arrived.
      admission: number of the request's last admission; -1 before the first.
      previous_turn: the client's `Account.turn` before that admission.
    """

    # In the order of a snapshot's rows.
    FIELDS = (
        *("extend_tok", "hit_tok", "executed_tok", "output_tok", "paid_output_tok", "recompute_charged"),
        *("charged", "admissions_before", "work_before", "admission", "previous_turn"),
    )
    __slots__ = ("account", "request", *FIELDS)

    def __init__(
        self, request: RequestInfo, account: Account, admissions_before: int = 0, work_before: int = 0
    ) -> None:
        self.request, self.account = request, account
        self.admissions_before, self.work_before = admissions_before, work_before
        self.extend_tok = self.hit_tok = self.executed_tok = 0
        self.output_tok = self.paid_output_tok = 0
        self.recompute_charged = self.charged = 0
        self.admission = self.previous_turn = -1


class PolicyBase(ABC):
    """Implements the events of `Policy`.

    With `unit="program"`, everything below that is said of clients holds of programs: the calls of a program
    are one queue and one account, whichever clients send them.

    Subclasses define `pick`, `gap_bound`, `_on_enqueue`, `_on_dequeue` and `_rebuild`, and override the other
    hooks as needed. `WEIGHTED`: whether the policy shares by weight; others refuse weights.
    """

    WEIGHTED: ClassVar[bool] = False

    def __init__(
        self,
        *,
        prompt_weight: float | Fraction = 1,
        output_weight: float | Fraction = 2,
        cost: str | ServiceCost = "tokens",
        weights: Mapping[ClientId, float | Fraction] | None = None,
        predictor: Predictor = no_prediction,
        bill_recompute: bool = False,
        idle_clients: int = 4096,
        unit: Unit = "client",
    ) -> None:
        """
        Args:
          prompt_weight, output_weight: price of a token (the paper: 1 and 2).
          cost: a name of `cost.COSTS`, or a `ServiceCost`.
          weights: share of each client (of each program where that is the unit); 1 where not named.
          predictor: predicts output lengths, which are paid in advance.
          bill_recompute: whether preempted requests pay for recomputed tokens.
          idle_clients: number of accounts above which those of idle clients are dropped if no decision needs
            them.
          unit: what shares the server.

        Raises:
          ValueError: weights for a policy that ignores them, or an unknown unit.
        """
        if unit not in ("client", "program"):
            raise ValueError(f"unknown unit {unit!r}; known: client, program")
        for client, weight in (weights or {}).items():
            self._check_weight(client, weight)
        self.unit: Unit = unit
        self.cost = make_cost(cost, prompt_weight, output_weight)
        self.ledger = Ledger({c: Fraction(w) for c, w in (weights or {}).items()})
        self.backlog = Backlog()
        self.predictor = predictor
        self.bill_recompute = bill_recompute
        self.idle_clients = idle_clients
        self.min_weight = min([Fraction(1), *self.ledger.weights.values()])  # there has ever been
        self.charge_of: dict[RequestId, Charge] = {}
        self.live_of: dict[ClientId, int] = {}
        self.turn = 0  # number of the next admission
        self.total_work = 0  # service given so far, in ledger units
        self._sweep_at = idle_clients

    # What a policy defines. Hooks with an empty implementation are optional.

    @abstractmethod
    def pick(self, now_s: float) -> RequestInfo | None:
        """Returns the request to admit next."""

    @abstractmethod
    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        """See `Policy`."""

    def _accepts(self, request: RequestInfo, now_s: float) -> bool:
        return True

    @abstractmethod
    def _on_enqueue(self, charge: Charge) -> None:
        """`charge.request` starts to wait; the backlog already holds it."""

    @abstractmethod
    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        """`charge.request` stops waiting. `emptied`: its client has no waiting request left."""

    def _on_join(self, account: Account) -> None:  # noqa: B027
        """A client without waiting requests is about to get one; the backlog does not hold it yet."""

    def _on_admit(self, charge: Charge) -> None:  # noqa: B027
        """`charge.request` was admitted and is not charged yet."""

    def _before_charge(self, account: Account, amount: int) -> None:  # noqa: B027
        """The account is about to be charged `amount`, or refunded if `amount` is negative."""

    def _on_refund(self, account: Account) -> None:  # noqa: B027
        """The account was refunded. Orders that assume growing counters must update its key."""

    def _on_live(self, account: Account) -> None:  # noqa: B027
        """The client's first live request arrives."""

    def _on_idle(self, account: Account) -> None:  # noqa: B027
        """The client's last live request has ended."""

    def _on_reweigh(self, account: Account) -> None:  # noqa: B027
        """The account is about to change its weight; see `set_weight`."""

    def _reweighed(self, account: Account) -> None:  # noqa: B027
        """The account has changed its weight."""

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Returns the accounts of idle clients whose loss changes no later decision."""
        return idle

    # Events.

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        if request.id in self.charge_of:
            raise ValueError(f"request {request.id!r} arrived, but a request of that id is still live")
        if self.unit == "program" and request.program:
            request = replace(request, client=request.program)
        if not self._accepts(request, now_s):
            return False
        live = self.live_of.get(request.client, 0)
        self.live_of[request.client] = live + 1
        if not live and len(self.ledger) >= self._sweep_at:
            self.forget()
        account = self.ledger.open(request.client)
        if not live:
            self._on_live(account)
        charge = self.charge_of[request.id] = Charge(request, account, self.turn, self.total_work)
        self._enqueue(charge, joins=True)
        return True

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        charge = self._live_charge(request.id, waiting=True)
        charge.previous_turn, charge.admission = charge.account.turn, self.turn
        charge.account.turn = self.turn
        self.turn += 1
        self._on_dequeue(charge, self.backlog.remove(request.id))
        self._on_admit(charge)
        new_tok = max(0, extend_tok + hit_tok - charge.extend_tok - charge.hit_tok - charge.output_tok)
        if self.bill_recompute and charge.charged:
            charge.recompute_charged += self.cost.of(max(0, extend_tok - new_tok), 0, 0)
        charge.extend_tok += min(new_tok, extend_tok)
        charge.hit_tok += new_tok - min(new_tok, extend_tok)
        predicted_tok = min(self.predictor.predict(charge.request), request.max_output_tok)
        charge.paid_output_tok = max(charge.output_tok, predicted_tok)
        self._update_charge(charge, self.cost.of(charge.extend_tok, charge.hit_tok, charge.paid_output_tok))

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        per_output = self.cost.per_output
        for id, count in tokens_of.items():
            charge = self.charge_of[id]
            charge.output_tok += count
            unpaid_tok = charge.output_tok - charge.paid_output_tok
            if unpaid_tok > 0:
                charge.paid_output_tok = charge.output_tok
                if per_output is None:
                    self._update_charge(
                        charge, self.cost.of(charge.extend_tok, charge.hit_tok, charge.output_tok)
                    )
                else:
                    due = unpaid_tok * per_output
                    charge.charged += due
                    self.total_work += due
                    self._before_charge(charge.account, due)
                    charge.account.charge(due)

    def finish(self, id: RequestId) -> None:
        charge = self._live_charge(id, waiting=False)
        self.predictor.observe(charge.request.client, charge.output_tok)
        self._settle(charge, None)
        self._close(charge)

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """See `Policy`. `prefilled_tok`: executed prefill tokens of a running request (None: all)."""
        charge = self._live_charge(id)
        if id in self.backlog:
            self._on_dequeue(charge, self.backlog.remove(id))
        else:
            self._settle(charge, prefilled_tok)
        self._close(charge)

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """See `Policy`. With `prefilled_tok=0` and no output, the admission is undone."""
        charge = self._live_charge(id, waiting=False)
        self._settle(charge, prefilled_tok)
        undone = charge.charged == 0
        if undone and charge.account.turn == charge.admission:
            charge.account.turn = charge.previous_turn
        self._enqueue(charge, joins=not undone)

    def set_weight(self, client: ClientId, weight: float | Fraction) -> None:
        """See `Policy`."""
        self._check_weight(client, weight)
        account = self.ledger.accounts.get(client)
        if account is not None:
            self._on_reweigh(account)
            account.reweigh(Fraction(weight))
        self.ledger.weights[client] = Fraction(weight)
        self.min_weight = min(self.min_weight, Fraction(weight))
        if account is not None:
            self._reweighed(account)

    def _check_weight(self, client: ClientId, weight: float | Fraction) -> None:
        if not 0 < weight < float("inf"):
            raise ValueError(f"client {client!r} has weight {weight}; a weight must be above 0")
        if not self.WEIGHTED and weight != 1:
            raise ValueError(
                f"client {client!r} has weight {weight}, but {type(self).__name__} cannot share by weight; "
                "vtc and its kin, drr and dlpm can"
            )

    # Steps that the events share.

    def _live_charge(self, id: RequestId, waiting: bool | None = None) -> Charge:
        charge = self.charge_of.get(id)
        if charge is None:
            raise ValueError(f"request {id!r} is not live: it never arrived, or it finished or was cancelled")
        if waiting is not None and (id in self.backlog) != waiting:
            actual, required = ("running", "waiting") if waiting else ("waiting", "running")
            raise ValueError(f"request {id!r} is {actual}; this event requires a {required} request")
        return charge

    def _enqueue(self, charge: Charge, joins: bool) -> None:
        if joins and charge.request.client not in self.backlog.waiting_of:
            self._on_join(charge.account)
        self.backlog.add(charge.request)
        self._on_enqueue(charge)

    def _update_charge(self, charge: Charge, due: int) -> None:
        """Charges or refunds the difference so that the total is `due` plus the charge for recomputation."""
        change = due + charge.recompute_charged - charge.charged
        charge.charged += change
        self.total_work += change
        if change:
            self._before_charge(charge.account, change)
        if change > 0:
            charge.account.charge(change)
        elif change < 0:
            charge.account.refund(-change)
            self._on_refund(charge.account)

    def _settle(self, charge: Charge, prefilled_tok: int | None) -> None:
        """Refunds, once, what was paid for and not executed."""
        if prefilled_tok is not None:
            executed_tok = max(prefilled_tok, charge.executed_tok)
            charge.hit_tok = min(charge.hit_tok, executed_tok)
            charge.extend_tok = min(charge.extend_tok, executed_tok - charge.hit_tok)
        charge.executed_tok = charge.extend_tok + charge.hit_tok
        charge.paid_output_tok = charge.output_tok
        if charge.executed_tok + charge.output_tok > 0:
            due = self.cost.of(charge.extend_tok, charge.hit_tok, charge.output_tok)
        else:
            due = -charge.recompute_charged
        self._update_charge(charge, due)

    def _close(self, charge: Charge) -> None:
        client = charge.request.client
        del self.charge_of[charge.request.id]
        self.live_of[client] -= 1
        if not self.live_of[client]:
            del self.live_of[client]
            self._on_idle(charge.account)

    # State.

    def forget(self) -> int:
        """Drops the accounts of idle clients that no later decision needs; returns their number."""
        gone = self._forgettable([a for a in self.ledger if a.client not in self.live_of])
        for account in gone:
            self.ledger.drop(account.client)
        self._sweep_at = max(self.idle_clients, 2 * len(self.ledger))
        return len(gone)

    def served(self) -> Mapping[ClientId, int]:
        return {a.client: a.served for a in self.ledger}

    def snapshot(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            "work": self.total_work,
            "sweep_at": self._sweep_at,
            "ledger": self.ledger.snapshot(),
            "predictor": self.predictor.snapshot(),
            "requests": [
                [
                    *_plain_request(c.request),
                    c.request.id in self.backlog,
                    *(getattr(c, f) for f in Charge.FIELDS),
                ]
                for c in self.charge_of.values()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.turn, self.total_work, self._sweep_at = state["turn"], state["work"], state["sweep_at"]
        self.ledger.restore(state["ledger"])
        self.min_weight = min([self.min_weight, *self.ledger.weights.values()])
        self.predictor.restore(state["predictor"])
        self.charge_of, self.live_of, self.backlog = {}, {}, Backlog()
        for row in state["requests"]:
            n = len(row) - 1 - len(Charge.FIELDS)
            request, waiting, values = RequestInfo(*row[:n]), row[n], row[n + 1 :]
            charge = self.charge_of[request.id] = Charge(request, self.ledger.accounts[request.client])
            for name, value in zip(Charge.FIELDS, values, strict=True):
                setattr(charge, name, value)
            self.live_of[request.client] = self.live_of.get(request.client, 0) + 1
            if waiting:
                self.backlog.add(request)
        self._rebuild()

    def _waiting_charges(self) -> Iterator[Charge]:
        return (self.charge_of[id] for id in self.backlog.requests)

    @abstractmethod
    def _rebuild(self) -> None:
        """Builds the order anew from ledger and backlog, after a restore."""


def _plain_request(request: RequestInfo) -> list[Any]:
    """Its fields for a snapshot; without `program` if it has none, as before there were programs."""
    values = list(astuple(request))
    return values if request.program else values[:-1]
