"""The bookkeeping every policy shares: who waits, who runs, and the bill of each live request.

A policy is `PolicyBase` plus an order: it says what it does when a request starts or stops waiting, and which
one is next. Billing is done here once, so that it cannot differ between policies:

  * a request pays `cost.of(extend, hit, output)` of what was executed, in the end exactly that;
  * predicted output is paid at admission; what was not produced is given back once, when it stops running;
  * a preempted request pays nothing for what it does again (the driver's choice must not cost the client)
    unless `bill_recompute`;
  * an admission whose step was not carried out is undone: `preempt(id, prefilled_tok=0)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from fractions import Fraction
from typing import Any

from serving.fair.backlog import Backlog
from serving.fair.cost import ServiceCost, named
from serving.fair.ledger import Account, Ledger
from serving.fair.predict import Predictor, no_prediction
from serving.request import ClientId, RequestId, RequestInfo


class Charge:
    """The bill of one live request.

    Attributes:
      extend, hit: prompt tokens computed and found in the cache so far, each token counted once.
      done: of these, what earlier admissions executed: it stays billed whatever becomes of this one.
      output: tokens produced. paid: output tokens paid for, at least `output`.
      again: ledger units paid for work done again. billed: units charged so far, refunds taken off.
      born, work: admissions (of anybody) and ledger units of service (to all) before its arrival.
      admitted: number of its own last admission.
      turn: what the client's `turn` was before that.
    """

    FIELDS = (
        *("extend", "hit", "done", "output", "paid", "again"),
        *("billed", "born", "work", "admitted", "turn"),
    )
    __slots__ = ("account", "request", *FIELDS)

    def __init__(self, request: RequestInfo, account: Account, born: int = 0, work: int = 0):
        self.request, self.account, self.born, self.work = request, account, born, work
        self.extend = self.hit = self.done = self.output = self.paid = self.again = self.billed = 0
        self.admitted = self.turn = -1


class PolicyBase(ABC):
    """See `Policy`. Subclasses define `_waits`, `_leaves`, `pick` and `gap_bound`."""

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
    ):
        """
        Args:
          prompt_weight, output_weight: price of a token (the paper: 1 and 2).
          cost: a name of `cost.COSTS`, or a `ServiceCost`.
          weights: share of each client; 1 where not named.
          predictor: guesses output lengths, paid in advance.
          bill_recompute: preempted requests pay again for work done again.
          idle_clients: accounts kept of clients without requests before a sweep forgets those it may.
        """
        self.cost = named(cost, prompt_weight, output_weight)
        self.ledger = Ledger({c: Fraction(w) for c, w in (weights or {}).items()})
        self.backlog = Backlog()
        self.predictor = predictor
        self.bill_recompute = bill_recompute
        self.idle_clients = idle_clients
        self.tabs: dict[RequestId, Charge] = {}
        self.live_of: dict[ClientId, int] = {}
        self.turn = 0  # admissions so far
        self.work = 0  # service given out so far, in ledger units
        self._sweep_at = idle_clients

    # What a policy adds; the hooks without a body are for those that need them.

    @abstractmethod
    def pick(self, now_s: float) -> RequestInfo | None:
        """The request to admit next."""

    @abstractmethod
    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> float | None:
        """See `Policy`."""

    def _accepts(self, request: RequestInfo, now_s: float) -> bool:
        return True

    @abstractmethod
    def _waits(self, tab: Charge) -> None:
        """`tab.request` waits from now on; the backlog has it."""

    @abstractmethod
    def _leaves(self, tab: Charge, emptied: bool) -> None:
        """`tab.request` waits no more; `emptied`: its client has nothing waiting now."""

    def _joins(self, account: Account) -> None:  # noqa: B027
        """A client without waiting requests is about to have one; the backlog does not have it yet."""

    def _admitted(self, tab: Charge) -> None:  # noqa: B027
        """`tab` was admitted; its bill is still to come."""

    def _before_change(self, account: Account, amount: int) -> None:  # noqa: B027
        """The account is about to be charged `amount`, or refunded if that is negative."""

    def _refunded(self, account: Account) -> None:  # noqa: B027
        """The account was refunded: orders that rely on growing counters look again."""

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Those accounts of idle clients whose loss changes no later decision."""
        return idle

    # Events.

    def arrive(self, request: RequestInfo, now_s: float) -> bool:
        if request.id in self.tabs:
            raise ValueError(f"request {request.id!r} arrives, but one of that id is still live")
        if not self._accepts(request, now_s):
            return False
        live = self.live_of.get(request.client, 0)
        self.live_of[request.client] = live + 1
        if not live and len(self.ledger) >= self._sweep_at:
            self.forget()
        tab = self.tabs[request.id] = Charge(request, self.ledger.open(request.client), self.turn, self.work)
        self._enqueue(tab, joins=True)
        return True

    def admit(self, request: RequestInfo, *, extend_tok: int, hit_tok: int) -> None:
        tab = self._tab(request.id, waiting=True)
        tab.turn, tab.admitted = tab.account.turn, self.turn
        tab.account.turn = self.turn
        self.turn += 1
        self._leaves(tab, self.backlog.remove(request.id))
        self._admitted(tab)
        first_time = max(0, extend_tok + hit_tok - tab.extend - tab.hit - tab.output)
        if self.bill_recompute and tab.billed:
            tab.again += self.cost.of(max(0, extend_tok - first_time), 0, 0)
        tab.extend += min(first_time, extend_tok)
        tab.hit += first_time - min(first_time, extend_tok)
        tab.paid = max(tab.output, min(self.predictor.guess(request), request.max_output_tok))
        self._bill(tab, self.cost.of(tab.extend, tab.hit, tab.paid))

    def decoded(self, tokens_of: Mapping[RequestId, int]) -> None:
        per_output = self.cost.per_output
        for id, count in tokens_of.items():
            tab = self.tabs[id]
            tab.output += count
            over = tab.output - tab.paid
            if over > 0:
                tab.paid = tab.output
                if per_output is None:
                    self._bill(tab, self.cost.of(tab.extend, tab.hit, tab.output))
                else:
                    due = over * per_output
                    tab.billed += due
                    self.work += due
                    self._before_change(tab.account, due)
                    tab.account.charge(due)

    def finish(self, id: RequestId) -> None:
        tab = self._tab(id, waiting=False)
        self.predictor.learn(tab.request.client, tab.output)
        self._settle(tab, None)
        self._close(tab)

    def cancel(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """See `Policy`. `prefilled_tok`: how much of a running request's prefill was executed (None: all)."""
        tab = self._tab(id)
        if id in self.backlog:
            self._leaves(tab, self.backlog.remove(id))
        else:
            self._settle(tab, prefilled_tok)
        self._close(tab)

    def preempt(self, id: RequestId, *, prefilled_tok: int | None = None) -> None:
        """See `Policy`. With `prefilled_tok=0` and nothing produced the admission is undone."""
        tab = self._tab(id, waiting=False)
        self._settle(tab, prefilled_tok)
        undone = tab.billed == 0
        if undone and tab.account.turn == tab.admitted:
            tab.account.turn = tab.turn
        self._enqueue(tab, joins=not undone)

    # What every event is made of.

    def _tab(self, id: RequestId, waiting: bool | None = None) -> Charge:
        tab = self.tabs.get(id)
        if tab is None:
            raise ValueError(f"request {id!r} is not live: it never arrived, or it finished or was cancelled")
        if waiting is not None and (id in self.backlog) != waiting:
            is_, must = ("running", "waiting") if waiting else ("waiting", "running")
            raise ValueError(f"request {id!r} is {is_}; this event needs it {must}")
        return tab

    def _enqueue(self, tab: Charge, joins: bool) -> None:
        if joins and tab.request.client not in self.backlog.waiting_of:
            self._joins(tab.account)
        self.backlog.add(tab.request)
        self._waits(tab)

    def _bill(self, tab: Charge, due: int) -> None:
        """Brings the bill to `due` (and what was paid for work done again)."""
        change = due + tab.again - tab.billed
        tab.billed += change
        self.work += change
        if change:
            self._before_change(tab.account, change)
        if change > 0:
            tab.account.charge(change)
        elif change < 0:
            tab.account.refund(-change)
            self._refunded(tab.account)

    def _settle(self, tab: Charge, prefilled_tok: int | None) -> None:
        """Gives back, once, what was paid for and not executed."""
        if prefilled_tok is not None:
            executed_tok = max(prefilled_tok, tab.done)
            tab.hit = min(tab.hit, executed_tok)
            tab.extend = min(tab.extend, executed_tok - tab.hit)
        tab.done, tab.paid = tab.extend + tab.hit, tab.output
        executed = tab.done + tab.output > 0
        self._bill(tab, self.cost.of(tab.extend, tab.hit, tab.output) if executed else -tab.again)

    def _close(self, tab: Charge) -> None:
        client = tab.request.client
        del self.tabs[tab.request.id]
        self.live_of[client] -= 1
        if not self.live_of[client]:
            del self.live_of[client]

    # State.

    def forget(self) -> int:
        """Drops the accounts of idle clients that no later decision needs; returns how many."""
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
            "work": self.work,
            "sweep_at": self._sweep_at,
            "ledger": self.ledger.snapshot(),
            "predictor": self.predictor.snapshot(),
            "requests": [
                [*astuple(t.request), t.request.id in self.backlog, *(getattr(t, f) for f in Charge.FIELDS)]
                for t in self.tabs.values()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.turn, self.work, self._sweep_at = state["turn"], state["work"], state["sweep_at"]
        self.ledger.restore(state["ledger"])
        self.predictor.restore(state["predictor"])
        self.tabs, self.live_of, self.backlog = {}, {}, Backlog()
        ask_fields = len(fields(RequestInfo))
        for row in state["requests"]:
            request, waiting, bill = RequestInfo(*row[:ask_fields]), row[ask_fields], row[ask_fields + 1 :]
            tab = self.tabs[request.id] = Charge(request, self.ledger.accounts[request.client])
            for name, value in zip(Charge.FIELDS, bill):
                setattr(tab, name, value)
            self.live_of[request.client] = self.live_of.get(request.client, 0) + 1
            if waiting:
                self.backlog.add(request)
        self._rebuild()

    def _waiting_tabs(self) -> Iterator[Charge]:
        return (self.tabs[id] for id in self.backlog.requests)

    @abstractmethod
    def _rebuild(self) -> None:
        """Makes the order afresh from ledger and backlog, after a restore."""
