"""The interface of a router, which chooses the worker of a cluster for each request, and three baselines.

Like a policy, a router is a ledger that is called with events: no clock, no sockets. `blocks` is the prompt
as `(key, tokens)` pairs, where equal keys stand for equal tokens (see `prefix_map`).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from serving.fair.routers.load_index import LoadIndex, WorkerId
from serving.fair.routers.prefix_map import Block, PrefixMap
from serving.request import RequestId, RequestInfo


@dataclass(slots=True)
class DispatchedRequest:
    """A request that was dispatched to a worker and has not ended."""

    request: RequestInfo
    blocks: Sequence[Block]
    worker: WorkerId


class Router(ABC):
    """Subclasses define `_choose`, and override the hooks if they keep a ledger.

    A worker may have a limit of live requests; one that has reached it, or drains, is not chosen.
    """

    prefix_map: PrefixMap | None = None

    def __init__(self) -> None:
        self.load_of = LoadIndex()  # live requests
        self.limit_of: dict[WorkerId, int] = {}  # live requests it may have, where there is a limit
        self.draining: dict[WorkerId, None] = {}
        self.dispatched: dict[RequestId, DispatchedRequest] = {}
        self._last_worker: WorkerId = -1
        self._first: tuple[float, WorkerId] | None = None  # in a dispatch: see `_first_open`

    @property
    def capacity_of(self) -> dict[WorkerId, float]:
        return self.load_of.capacity_of

    # Events.

    def join(self, worker: WorkerId, capacity: float = 1.0, *, max_live: int | None = None) -> None:
        """Adds a worker.

        Args:
          capacity: its speed relative to the others.
          max_live: most live requests it may have; None for any number.

        Raises:
          ValueError: the worker is up already, or the capacity is not positive.
        """
        if worker in self.load_of:
            raise ValueError(f"worker {worker} is up already")
        _check_capacity(worker, capacity)
        self.load_of.set_capacity(worker, capacity)
        self.load_of[worker] = 0
        if max_live is not None:
            self.limit_of[worker] = max_live

    def leave(self, worker: WorkerId, produced: Mapping[RequestId, int] | None = None) -> list[RequestInfo]:
        """Removes a worker; returns the requests it lost, which are not live until dispatched again.

        Args:
          produced: output tokens that each of them has delivered from there; 0 where not named.
        """
        lost = [sent for sent in self.dispatched.values() if sent.worker == worker]
        for sent in lost:
            del self.dispatched[sent.request.id]
            self._on_lost(sent, (produced or {}).get(sent.request.id, 0))
        self._on_leave(worker)
        del self.load_of[worker]
        self.limit_of.pop(worker, None)
        self.draining.pop(worker, None)
        return [sent.request for sent in lost]

    def drain(self, worker: WorkerId) -> None:
        """From now on the worker gets no requests; it keeps those it has. Raises KeyError if it is not up."""
        self.load_of[worker]
        self.draining[worker] = None

    def set_capacity(self, worker: WorkerId, capacity: float) -> None:
        """From now on the worker has this speed.

        Raises:
          ValueError: it is not positive.
        """
        _check_capacity(worker, capacity)
        self._on_capacity(worker)
        self.load_of.set_capacity(worker, capacity)

    def forget_prefixes(self, worker: WorkerId) -> None:
        """The worker's cache was flushed."""
        if self.prefix_map is not None:
            self.prefix_map.remove_worker(worker)

    @property
    def has_room(self) -> bool:
        """Whether any worker may receive a request."""
        return self._first_open() is not None

    def dispatch(self, request: RequestInfo, blocks: Sequence[Block], now_s: float = 0.0) -> WorkerId:
        """Chooses a live worker for a request and records it.

        Raises:
          ValueError: no worker is up or has room, or the id is live already.
        """
        if not self.load_of:
            raise ValueError(f"request {request.id!r} cannot be dispatched: no worker is up")
        if request.id in self.dispatched:
            raise ValueError(
                f"request {request.id!r} is already dispatched to worker {self.dispatched[request.id].worker}"
            )
        self._first = self._first_open()
        if self._first is None:
            raise ValueError(f"request {request.id!r} cannot be dispatched: no worker has room")
        worker = self._choose(request, blocks, now_s)
        self.load_of[worker] += 1
        self._last_worker = worker
        self.dispatched[request.id] = sent = DispatchedRequest(request, blocks, worker)
        self._on_dispatch(sent, now_s)
        return worker

    def admitted(self, id: RequestId, *, extend_tok: int, hit_tok: int) -> None:
        """The worker admitted the request: it computes `extend_tok` and found `hit_tok` in its cache."""
        sent = self.dispatched[id]
        if self.prefix_map is not None:
            self.prefix_map.disprove(sent.blocks, sent.worker, hit_tok)
        self._on_admit(sent, extend_tok)

    def ended(self, id: RequestId, output_tok: int) -> None:
        """The request finished or was cancelled after `output_tok` output tokens."""
        sent = self.dispatched.pop(id)
        self.load_of[sent.worker] -= 1
        if self.prefix_map is not None and output_tok:
            self.prefix_map.confirm(sent.blocks, sent.worker)
        self._on_end(sent, output_tok)

    def withdrawn(self, id: RequestId, output_tok: int) -> None:
        """The request is taken from its worker after `output_tok` output tokens, to be dispatched again."""
        sent = self.dispatched.pop(id)
        self.load_of[sent.worker] -= 1
        self._on_lost(sent, output_tok)

    # What a router defines. Hooks with an empty implementation are optional.

    @abstractmethod
    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        """Returns a live worker that has room; there is one."""

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None: ...  # noqa: B027
    def _on_admit(self, sent: DispatchedRequest, extend_tok: int) -> None: ...  # noqa: B027
    def _on_end(self, sent: DispatchedRequest, output_tok: int) -> None: ...  # noqa: B027
    def _on_lost(self, sent: DispatchedRequest, output_tok: int) -> None: ...  # noqa: B027
    def _on_leave(self, worker: WorkerId) -> None: ...  # noqa: B027
    def _on_capacity(self, worker: WorkerId) -> None: ...  # noqa: B027

    def _open(self, worker: WorkerId) -> bool:
        """Whether a worker may receive a request."""
        limit = self.limit_of.get(worker)
        return (limit is None or self.load_of[worker] < limit) and worker not in self.draining

    def _first_open(self) -> tuple[float, WorkerId] | None:
        """Load and id of the least loaded worker that has room. Ties rotate: the next worker after the one
        chosen last, so that no worker gets all idle moments."""
        for load, worker in self.load_of.ordered(self._last_worker):
            if self._open(worker):
                return load, worker
        return None

    def _least_loaded(self, workers: Collection[WorkerId] | None = None) -> WorkerId | None:
        """The least loaded of `workers` (None: of all) that has room; ties rotate."""
        if workers is None:
            first = self._first_open()
            return None if first is None else first[1]
        if not self._few(workers):
            ordered = self.load_of.ordered(self._last_worker)
            return next((w for _, w in ordered if w in workers and self._open(w)), None)
        able = [w for w in workers if self._open(w)]
        return min(able, key=self._rank, default=None)

    def _few(self, workers: Collection[WorkerId]) -> bool:
        """Whether to compare these is less work than to find one of them among all, in order of load."""
        return len(workers) ** 2 <= len(self.load_of)

    def _rank(self, worker: WorkerId) -> tuple[float, bool, WorkerId]:
        return self.load_of.load(worker), worker <= self._last_worker, worker


def _check_capacity(worker: WorkerId, capacity: float) -> None:
    if not capacity > 0:
        raise ValueError(f"worker {worker} has capacity {capacity}; it must be above 0")


class RoundRobinRouter(Router):
    """Each request goes to the next worker."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        workers = sorted(w for w in self.load_of if self._open(w))
        worker = next((w for w in workers if w >= self._next), workers[0])
        self._next = worker + 1
        return worker


class LeastLoad(Router):
    """Each request goes to the worker with the fewest live requests."""

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        worker = self._least_loaded()
        assert worker is not None
        return worker


class Sticky(Router):
    """Each request goes to the worker with the longest matching prefix, whatever its queue.

    If no prefix matches, or its holders have no room, it goes to the least loaded worker.
    """

    prefix_map: PrefixMap

    def __init__(self, *, max_blocks: int = 100_000) -> None:
        super().__init__()
        self.prefix_map = PrefixMap(max_blocks)

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        worker = self._least_loaded(self.prefix_map.longest(blocks)[1])
        worker = self._least_loaded() if worker is None else worker
        assert worker is not None
        return worker

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None:
        self.prefix_map.insert(sent.blocks, sent.worker)

    def _on_leave(self, worker: WorkerId) -> None:
        self.prefix_map.remove_worker(worker)
