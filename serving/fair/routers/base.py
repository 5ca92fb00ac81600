"""Which worker of a cluster gets a request: what a router is, and three plain ones.

Like a policy, a router is a ledger behind events: no clock, no sockets. `blocks` is the prompt as
`(key, tokens)` pieces, equal keys for equal tokens (see `routed`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from serving.fair.routers.prefix_map import Block, PrefixMap, WorkerId
from serving.request import RequestId, RequestInfo


@dataclass(slots=True)
class Sent:
    """A dispatched request that has not ended."""

    request: RequestInfo
    blocks: Sequence[Block]
    worker: WorkerId


class Router(ABC):
    """Subclasses define `_choose` and, if they keep books, the hooks."""

    def __init__(self):
        self.load_of: dict[WorkerId, int] = {}  # live requests
        self.capacity_of: dict[WorkerId, float] = {}
        self.sent: dict[RequestId, Sent] = {}

    # Events.

    def join(self, worker: WorkerId, capacity: float = 1.0) -> None:
        """A worker is up. `capacity`: its speed relative to the others."""
        if worker in self.load_of:
            raise ValueError(f"worker {worker} is up already")
        if not capacity > 0:
            raise ValueError(f"worker {worker} has capacity {capacity}; it must be above 0")
        self.load_of[worker], self.capacity_of[worker] = 0, capacity

    def leave(self, worker: WorkerId) -> list[RequestInfo]:
        """A worker is down; returns the requests it loses, which are live nowhere until dispatched again."""
        del self.load_of[worker], self.capacity_of[worker]
        lost = [sent for sent in self.sent.values() if sent.worker == worker]
        for sent in lost:
            del self.sent[sent.request.id]
            self._lost(sent)
        self._gone(worker)
        return [sent.request for sent in lost]

    def dispatch(self, request: RequestInfo, blocks: Sequence[Block], now_s: float = 0.0) -> WorkerId:
        """Sends a request to a live worker.

        Raises:
          ValueError: no worker is up, or the id is live already.
        """
        if not self.load_of:
            raise ValueError(f"request {request.id!r} has nowhere to go: no worker is up")
        if request.id in self.sent:
            raise ValueError(f"request {request.id!r} was dispatched already")
        worker = self._choose(request, blocks, now_s)
        self.load_of[worker] += 1
        self.sent[request.id] = sent = Sent(request, blocks, worker)
        self._dispatched(sent, now_s)
        return worker

    def admitted(self, id: RequestId, *, extend_tok: int, hit_tok: int) -> None:
        """The worker began with it and found `hit_tok` cached."""
        self._admitted(self.sent[id], extend_tok)

    def ended(self, id: RequestId, output_tok: int) -> None:
        """It finished or was cancelled after so many output tokens."""
        sent = self.sent.pop(id)
        self.load_of[sent.worker] -= 1
        self._ended(sent, output_tok)

    # What a router adds.

    @abstractmethod
    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        """A live worker."""

    def _dispatched(self, sent: Sent, now_s: float) -> None: ...  # noqa: B027
    def _admitted(self, sent: Sent, extend_tok: int) -> None: ...  # noqa: B027
    def _ended(self, sent: Sent, output_tok: int) -> None: ...  # noqa: B027
    def _lost(self, sent: Sent) -> None: ...  # noqa: B027
    def _gone(self, worker: WorkerId) -> None: ...  # noqa: B027

    def _least_loaded(self, workers: Sequence[WorkerId]) -> WorkerId:
        return min(workers, key=lambda w: (self.load_of[w] / self.capacity_of[w], w))


class RoundRobinRouter(Router):
    """Each request to the next worker."""

    def __init__(self):
        super().__init__()
        self._next = 0

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        workers = sorted(self.load_of)
        worker = next((w for w in workers if w >= self._next), workers[0])
        self._next = worker + 1
        return worker


class LeastLoad(Router):
    """The worker with the fewest live requests."""

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        return self._least_loaded(list(self.load_of))


class Sticky(Router):
    """The worker with the longest matching prefix, however long its queue; the least loaded if none has
    any."""

    def __init__(self, *, max_blocks: int = 100_000):
        super().__init__()
        self.tree = PrefixMap(max_blocks)

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        found = self.tree.matched(blocks)
        longest = max(found.values(), default=0)
        return self._least_loaded([w for w in self.load_of if found.get(w, 0) == longest])

    def _dispatched(self, sent: Sent, now_s: float) -> None:
        self.tree.insert(sent.blocks, sent.worker)

    def _gone(self, worker: WorkerId) -> None:
        self.tree.forget(worker)
