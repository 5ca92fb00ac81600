"""Distributed DLPM: the global router. Every worker runs `Dlpm` as its local policy.

Each client has credit at each worker. Among workers where it is positive, those with the longest matched
prefix are preferred, then those with the shortest queue. When a client has credit at no worker, it receives
`quantum_tok` at every worker until it is positive at one. This spreads each client's work over the workers:
small quanta approach round robin by work, large quanta follow prefixes. A client of weight phi receives
`quantum_tok * phi`.

Credit spreads each client alone. Clients that share a prefix would all follow it to one worker, each with
credit of its own, so two guards (ours) stand before it. A prefix is followed only if it covers `min_share` of
the prompt. And no request goes to a worker with over `max_lead` live requests more than the least loaded one
has (per unit of capacity): it goes to the best worker within the guard that has credit, or to the least
loaded one without.

Bounds. At dispatch, load(w) <= min load + `max_lead` + 1 on every worker that receives a request. A client's
work at two workers of equal capacity differs by at most quantum + one request + what was sent without credit
(`overridden`): each request sent without credit adds at most its own charge. The gap of two clients that wait
at all N workers is that of N times `Dlpm` and does not depend on the router.

A worker that is full or drains is outside both guards. A request that a worker loses pays there for the
output it has delivered and for nothing else; what is computed again elsewhere is paid for once, there.

A client without live requests beyond the last `idle_clients` is forgotten: its spread begins anew.

Deviation: a request is charged at dispatch, with its uncached tokens estimated from the prefix map and its
output predicted. The charge is corrected when the worker reports. With charges at completion, a burst would
be dispatched on credit that is already spent, and the quantum would not bound the spread.

Source: Locality-aware Fair Scheduling in LLM Serving (arXiv 2501.14312), Alg. 2.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from math import inf

from serving.fair.ledger import units
from serving.fair.predict import GivenLength, Predictor
from serving.fair.routers.base import DispatchedRequest, Router
from serving.fair.routers.load_index import WorkerId
from serving.fair.routers.prefix_map import Block, PrefixMap
from serving.request import ClientId, RequestId, RequestInfo


class D2lpm(Router):
    """Follows prefixes among the workers at which the client has credit.

    Attributes:
      spent: ledger units that each client was charged at each live worker, net of refunds.
      billed: the same at all workers, also those that have left.
      refills: rounds of credit that each client received.
      overridden: ledger units dispatched without credit.
      replicated: dispatches that left the holders of a prefix worth following for want of credit or room.
    """

    prefix_map: PrefixMap

    def __init__(
        self,
        *,
        quantum_tok: float | Fraction = 5000,
        prompt_weight: float | Fraction = 1,
        output_weight: float | Fraction = 2,
        predictor: Predictor | None = None,
        bill: str = "predicted",
        weights: Mapping[ClientId, float | Fraction] | None = None,
        max_lead: int | None = 8,
        min_share: float = 0.5,
        idle_clients: int = 4096,
        max_blocks: int = 100_000,
    ) -> None:
        """
        Args:
          quantum_tok: credit per refill at a worker of capacity 1, in weighted tokens.
          prompt_weight, output_weight: price of a computed prompt token and of an output token.
          predictor: predicts output lengths; default `GivenLength`.
          weights: share of each client, as for `Dlpm`; 1 where not named.
          max_lead: live requests by which a worker may lead the least loaded one; None for no guard.
          min_share: share of the prompt that a prefix must cover to be followed.
          idle_clients: clients without live requests whose credit is kept.
          bill: when output is charged: `predicted` (at dispatch) or `completion` (the paper's wording).
          max_blocks: see `PrefixMap`.
        """
        super().__init__()
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; credit per refill must be above 0")
        if bill not in ("predicted", "completion"):
            raise ValueError(f"unknown bill {bill!r}; known: predicted, completion")
        if max_lead is not None and max_lead < 0:
            raise ValueError(f"max_lead is {max_lead}; it must be at least 0, or None for no guard")
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share is {min_share}; a share lies between 0 and 1")
        self.weights = {client: Fraction(weight) for client, weight in (weights or {}).items()}
        for client, weight in self.weights.items():
            if weight <= 0:
                raise ValueError(f"client {client!r} has weight {weight}; a weight must be above 0")
        self.max_lead, self.min_share, self.idle_clients = max_lead, min_share, idle_clients
        self.quantum = max(1, units(quantum_tok))
        self.prompt_units, self.output_units = units(prompt_weight), units(output_weight)
        self.predictor: Predictor = predictor or GivenLength()
        self.bill = bill
        self.prefix_map = PrefixMap(max_blocks)
        self.spent: dict[tuple[ClientId, WorkerId], int] = {}
        self.billed: dict[ClientId, int] = {}
        self.refills: dict[ClientId, int] = {}
        self.overridden: dict[ClientId, int] = {}
        self.replicated = 0
        # Credit granted before the worker joined (0) or last changed its capacity, and the refills by then.
        self._granted: dict[tuple[ClientId, WorkerId], tuple[int, int]] = {}
        self._quanta: dict[tuple[ClientId, WorkerId], int] = {}  # of clients with a weight
        self._quantum_of: dict[WorkerId, int] = {}  # of all others
        self._live_of: dict[ClientId, int] = {}
        self._idle: dict[ClientId, None] = {}  # clients without live requests, longest idle first
        self._charged_tok: dict[RequestId, tuple[int, int]] = {}  # uncached and output tokens

    def credit(self, client: ClientId, worker: WorkerId) -> int:
        """Ledger units the client may still spend at the worker; at a worker that just joined, 0."""
        granted, since = self._granted.get((client, worker), (0, 0))
        rounds = self.refills.get(client, 0) - since
        return granted + rounds * self._quantum_at(client, worker) - self.spent.get((client, worker), 0)

    def _quantum_at(self, client: ClientId, worker: WorkerId) -> int:
        weight = self.weights.get(client)
        if weight is None:
            return self._quantum_of[worker]
        quantum = self._quanta.get((client, worker))
        if quantum is None:
            quantum = self._quanta[client, worker] = self._scaled(self.quantum * weight, worker)
        return quantum

    def _scaled(self, quantum: int | Fraction, worker: WorkerId) -> int:
        return max(1, round(quantum * Fraction(self.capacity_of[worker])))

    def _credits(self, client: ClientId) -> Iterator[tuple[WorkerId, int]]:
        """The client's credit at each worker that does not drain."""
        refills, spent, granted_at = self.refills.get(client, 0), self.spent, self._granted
        weighted, quantum_of = client in self.weights, self._quantum_of
        for worker in self.load_of:
            if worker in self.draining:
                continue
            key = client, worker
            granted, since = granted_at.get(key, (0, 0))
            quantum = self._quantum_at(client, worker) if weighted else quantum_of[worker]
            yield worker, granted + (refills - since) * quantum - spent.get(key, 0)

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        client = request.client
        assert self._first is not None
        least, idlest = self._first
        most = inf if self.max_lead is None else least + self.max_lead
        if client not in self.refills:  # it has credit nowhere, which need not be looked for
            self.refills[client] = 1
        longest, holders = self.prefix_map.longest(blocks)
        worth = longest > 0 and longest >= self.min_share * request.prompt_tok
        for refilled in (False, True):
            worker = self._first_allowed(client, most, holders) if worth else None
            if worker is None:
                worker = self._first_allowed(client, most, None)
                self.replicated += worth and worker is not None
            if worker is not None:
                return worker
            if refilled or any(credit > 0 for _, credit in self._credits(client)):
                break
            self._refill(client)
        return idlest  # the client has credit only where nobody may send

    def _first_allowed(
        self, client: ClientId, most: float, among: Collection[WorkerId] | None
    ) -> WorkerId | None:
        """The least loaded worker (of `among`) with room and within the guard where the client has credit."""
        if among is not None and self._few(among):
            able = [w for w in among if self._open(w) and self.load_of.load(w) <= most]
            return min([w for w in able if self.credit(client, w) > 0], key=self._rank, default=None)
        for load, worker in self.load_of.ordered(self._last_worker):
            if load > most:
                return None
            if (among is None or worker in among) and self._open(worker) and self.credit(client, worker) > 0:
                return worker
        return None

    def _refill(self, client: ClientId) -> None:
        """Gives at once all rounds until the client's credit is positive at one worker."""
        rounds = min(-credit // self._quantum_at(client, w) + 1 for w, credit in self._credits(client))
        self.refills[client] = self.refills.get(client, 0) + rounds

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None:
        hit_tok = self.prefix_map.held_tok(sent.blocks, sent.worker)
        extend_tok, output_tok = max(0, sent.request.prompt_tok - hit_tok), 0
        if self.bill == "predicted":
            output_tok = min(self.predictor.predict(sent.request), sent.request.max_output_tok)
        self._charged_tok[sent.request.id] = extend_tok, output_tok
        client, due = sent.request.client, self.prompt_units * extend_tok + self.output_units * output_tok
        self._live_of[client] = self._live_of.get(client, 0) + 1
        self._idle.pop(client, None)
        if self.credit(client, sent.worker) <= 0:
            self.overridden[client] = self.overridden.get(client, 0) + due
        self._spend(sent, due)
        self.prefix_map.insert(sent.blocks, sent.worker)

    def _on_admit(self, sent: DispatchedRequest, extend_tok: int) -> None:
        charged_tok, output_tok = self._charged_tok[sent.request.id]
        self._spend(sent, self.prompt_units * (extend_tok - charged_tok))
        self._charged_tok[sent.request.id] = extend_tok, output_tok

    def _on_end(self, sent: DispatchedRequest, output_tok: int) -> None:
        _, charged_tok = self._charged_tok.pop(sent.request.id)
        self._spend(sent, self.output_units * (output_tok - charged_tok))
        self.predictor.observe(sent.request.client, output_tok)
        self._less_live(sent.request.client)

    def _on_lost(self, sent: DispatchedRequest, output_tok: int) -> None:
        extend_tok, charged_tok = self._charged_tok.pop(sent.request.id)
        self._spend(sent, self.output_units * (output_tok - charged_tok) - self.prompt_units * extend_tok)
        self._less_live(sent.request.client)

    def _less_live(self, client: ClientId) -> None:
        self._live_of[client] -= 1
        if not self._live_of[client]:
            del self._live_of[client]
            self._idle[client] = None
            while len(self._idle) > self.idle_clients:
                self._forget(next(iter(self._idle)))

    def _forget(self, client: ClientId) -> None:
        for ledger in (self._idle, self.refills, self.overridden, self.billed):
            ledger.pop(client, None)
        for worker in self.load_of:
            for kept in (self.spent, self._granted, self._quanta):
                kept.pop((client, worker), None)

    def _on_leave(self, worker: WorkerId) -> None:
        self.prefix_map.remove_worker(worker)
        for ledger in (self.spent, self._granted, self._quanta):
            for key in [key for key in ledger if key[1] == worker]:
                del ledger[key]
        del self._quantum_of[worker]

    def join(self, worker: WorkerId, capacity: float = 1.0, *, max_live: int | None = None) -> None:
        super().join(worker, capacity, max_live=max_live)
        self._quantum_of[worker] = self._scaled(self.quantum, worker)
        for client, refills in self.refills.items():
            self._granted[client, worker] = 0, refills

    def set_capacity(self, worker: WorkerId, capacity: float) -> None:
        """See `Router`. Credit stays as it is; later refills count with the new capacity."""
        super().set_capacity(worker, capacity)
        self._quantum_of[worker] = self._scaled(self.quantum, worker)

    def _on_capacity(self, worker: WorkerId) -> None:
        for client, refills in self.refills.items():
            granted = self.credit(client, worker) + self.spent.get((client, worker), 0)
            self._granted[client, worker] = granted, refills
            self._quanta.pop((client, worker), None)

    def _spend(self, sent: DispatchedRequest, amount: int) -> None:
        client = sent.request.client
        key = client, sent.worker
        self.spent[key] = self.spent.get(key, 0) + amount
        self.billed[client] = self.billed.get(client, 0) + amount
