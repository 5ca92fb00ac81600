"""Distributed DLPM: the global half. Every worker runs `Dlpm` for itself.

Source: Locality-aware Fair Scheduling in LLM Serving (arXiv 2501.14312), Alg. 2. Each client has credit at
each worker. Among workers where it is positive, those with the longest matched prefix are preferred, then the
shortest queue. When a client has credit nowhere, it is given `quantum_tok` at every worker, until it is
positive somewhere. So one client's work is spread over the workers: small quanta are round robin by work,
large ones stick to prefixes.

Deviation: the bill is made at dispatch, with the extension estimated from the tree and the output
predicted, and put right when the worker reports. Billed at completion, a burst would be dispatched on
credit that is long spent, and the spread would not be bounded by the quantum.
"""

from collections.abc import Sequence
from fractions import Fraction

from serving.fair.ledger import units
from serving.fair.predict import Given, Predictor
from serving.fair.routers.base import Router, Sent
from serving.fair.routers.prefix_map import Block, PrefixMap, WorkerId
from serving.request import ClientId, RequestId, RequestInfo


class D2lpm(Router):
    def __init__(
        self,
        *,
        quantum_tok: float | Fraction = 5000,
        prompt_weight: float | Fraction = 1,
        output_weight: float | Fraction = 2,
        predictor: Predictor | None = None,
        bill: str = "predicted",
        max_blocks: int = 100_000,
    ):
        """
        Args:
          quantum_tok: credit of a refill at a worker of capacity 1, in weighted tokens.
          predictor: guesses outputs; by default what came with the request, or its limit.
          bill: `predicted`, or `completion`: outputs are billed when they are known (the paper's wording).
        """
        super().__init__()
        if not quantum_tok > 0:
            raise ValueError(f"quantum_tok is {quantum_tok}; a refill must give something, so above 0")
        if bill not in ("predicted", "completion"):
            raise ValueError(f"unknown bill {bill!r}; known: predicted, completion")
        self.quantum = max(1, units(quantum_tok))
        self.w_e, self.w_q = units(prompt_weight), units(output_weight)
        self.predictor: Predictor = predictor or Given()
        self.bill = bill
        self.tree = PrefixMap(max_blocks)
        self.spent: dict[tuple[ClientId, WorkerId], int] = {}
        self.refills: dict[ClientId, int] = {}
        self._refills_at_join: dict[tuple[ClientId, WorkerId], int] = {}
        self._billed: dict[RequestId, list[int]] = {}  # extension and output tokens billed so far

    def credit(self, client: ClientId, worker: WorkerId) -> int:
        """Ledger units the client may still spend at the worker; one that just came up starts at 0."""
        key = (client, worker)
        given = self.refills.get(client, 0) - self._refills_at_join.get(key, 0)
        return given * self._quantum_at(worker) - self.spent.get(key, 0)

    def _quantum_at(self, worker: WorkerId) -> int:
        return max(1, round(self.quantum * Fraction(self.capacity_of[worker])))

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        client = request.client
        with_credit = [w for w in self.load_of if self.credit(client, w) > 0]
        if not with_credit:
            self._refill(client)
            with_credit = [w for w in self.load_of if self.credit(client, w) > 0]
        found = self.tree.matched(blocks)
        longest = max((found.get(w, 0) for w in self.load_of), default=0)
        best = [w for w in with_credit if longest and found.get(w, 0) == longest]
        return self._least_loaded(best or with_credit)

    def _refill(self, client: ClientId) -> None:
        """All the rounds until one worker is positive, at once."""
        rounds = min(-self.credit(client, w) // self._quantum_at(w) + 1 for w in self.load_of)
        self.refills[client] = self.refills.get(client, 0) + rounds

    def _dispatched(self, sent: Sent, now_s: float) -> None:
        known = self.tree.matched(sent.blocks).get(sent.worker, 0)
        extend = max(0, sent.request.prompt_tok - known)
        output = 0
        if self.bill == "predicted":
            output = min(self.predictor.guess(sent.request), sent.request.max_output_tok)
        self._billed[sent.request.id] = [extend, output]
        self._spend(sent, self.w_e * extend + self.w_q * output)
        self.tree.insert(sent.blocks, sent.worker)

    def _admitted(self, sent: Sent, extend_tok: int) -> None:
        bill = self._billed[sent.request.id]
        self._spend(sent, self.w_e * (extend_tok - bill[0]))
        bill[0] = extend_tok

    def _ended(self, sent: Sent, output_tok: int) -> None:
        _, output = self._billed.pop(sent.request.id)
        self._spend(sent, self.w_q * (output_tok - output))
        self.predictor.learn(sent.request.client, output_tok)

    def _lost(self, sent: Sent) -> None:
        del self._billed[sent.request.id]

    def _gone(self, worker: WorkerId) -> None:
        self.tree.forget(worker)
        for ledger in (self.spent, self._refills_at_join):
            for key in [key for key in ledger if key[1] == worker]:
                del ledger[key]

    def join(self, worker: WorkerId, capacity: float = 1.0) -> None:
        super().join(worker, capacity)
        for client, refills in self.refills.items():
            self._refills_at_join[client, worker] = refills

    def _spend(self, sent: Sent, amount: int) -> None:
        key = (sent.request.client, sent.worker)
        self.spent[key] = self.spent.get(key, 0) + amount
