"""The interface of a router, which chooses the worker of a cluster for each request, and three baselines.

Like a policy, a router is a ledger that is called with events: no clock, no sockets. `blocks` is the prompt
as `(key, tokens)` pairs, where equal keys stand for equal tokens (see `prefix_map`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from serving.fair.routers.prefix_map import Block, PrefixMap, WorkerId
from serving.request import RequestId, RequestInfo


@dataclass(slots=True)
class DispatchedRequest:
    """A request that was dispatched to a worker and has not ended."""

    request: RequestInfo
    blocks: Sequence[Block]
    worker: WorkerId


class Router(ABC):
    """Subclasses define `_choose`, and override the hooks if they keep a ledger."""

    def __init__(self) -> None:
        self.load_of: dict[WorkerId, int] = {}  # live requests
        self.capacity_of: dict[WorkerId, float] = {}
        self.dispatched: dict[RequestId, DispatchedRequest] = {}
        self._last_worker: WorkerId = -1

    # Events.

    def join(self, worker: WorkerId, capacity: float = 1.0) -> None:
        """Adds a worker. `capacity`: its speed relative to the others.

        Raises:
          ValueError: the worker is up already, or the capacity is not positive.
        """
        if worker in self.load_of:
            raise ValueError(f"worker {worker} is up already")
        if not capacity > 0:
            raise ValueError(f"worker {worker} has capacity {capacity}; it must be above 0")
        self.load_of[worker], self.capacity_of[worker] = 0, capacity

    def leave(self, worker: WorkerId) -> list[RequestInfo]:
        """Removes a worker; returns the requests it lost, which are not live until dispatched again."""
        del self.load_of[worker], self.capacity_of[worker]
        lost = [sent for sent in self.dispatched.values() if sent.worker == worker]
        for sent in lost:
            del self.dispatched[sent.request.id]
            self._on_lost(sent)
        self._on_leave(worker)
        return [sent.request for sent in lost]

    def dispatch(self, request: RequestInfo, blocks: Sequence[Block], now_s: float = 0.0) -> WorkerId:
        """Chooses a live worker for a request and records it.

        Raises:
          ValueError: no worker is up, or the id is live already.
        """
        if not self.load_of:
            raise ValueError(f"request {request.id!r} cannot be dispatched: no worker is up")
        if request.id in self.dispatched:
            raise ValueError(
                f"request {request.id!r} is already dispatched to worker {self.dispatched[request.id].worker}"
            )
        worker = self._choose(request, blocks, now_s)
        self.load_of[worker] += 1
        self._last_worker = worker
        self.dispatched[request.id] = sent = DispatchedRequest(request, blocks, worker)
        self._on_dispatch(sent, now_s)
        return worker

    def admitted(self, id: RequestId, *, extend_tok: int, hit_tok: int) -> None:
        """The worker admitted the request: it computes `extend_tok` and found `hit_tok` in its cache."""
        self._on_admit(self.dispatched[id], extend_tok)

    def ended(self, id: RequestId, output_tok: int) -> None:
        """The request finished or was cancelled after `output_tok` output tokens."""
        sent = self.dispatched.pop(id)
        self.load_of[sent.worker] -= 1
        self._on_end(sent, output_tok)

    # What a router defines. Hooks with an empty implementation are optional.

    @abstractmethod
    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        """Returns a live worker."""

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None: ...  # noqa: B027
    def _on_admit(self, sent: DispatchedRequest, extend_tok: int) -> None: ...  # noqa: B027
    def _on_end(self, sent: DispatchedRequest, output_tok: int) -> None: ...  # noqa: B027
    def _on_lost(self, sent: DispatchedRequest) -> None: ...  # noqa: B027
    def _on_leave(self, worker: WorkerId) -> None: ...  # noqa: B027

    def _load(self, worker: WorkerId) -> float:
        """Live requests per unit of capacity."""
        return self.load_of[worker] / self.capacity_of[worker]

    def _least_loaded(self, workers: Sequence[WorkerId]) -> WorkerId:
        """Ties rotate: the next worker after the one chosen last, so that no worker gets all idle moments."""
        return min(workers, key=lambda w: (self._load(w), w <= self._last_worker, w))


class RoundRobinRouter(Router):
    """Each request goes to the next worker."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        workers = sorted(self.load_of)
        worker = next((w for w in workers if w >= self._next), workers[0])
        self._next = worker + 1
        return worker


class LeastLoad(Router):
    """Each request goes to the worker with the fewest live requests."""

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        return self._least_loaded(list(self.load_of))


class Sticky(Router):
    """Each request goes to the worker with the longest matching prefix, whatever its queue.

    If no prefix matches, it goes to the least loaded worker.
    """

    def __init__(self, *, max_blocks: int = 100_000) -> None:
        super().__init__()
        self.prefix_map = PrefixMap(max_blocks)

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        found = self.prefix_map.match(blocks)
        longest = max(found.values(), default=0)
        return self._least_loaded([w for w in self.load_of if found.get(w, 0) == longest])

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None:
        self.prefix_map.insert(sent.blocks, sent.worker)

    def _on_leave(self, worker: WorkerId) -> None:
        self.prefix_map.remove_worker(worker)
