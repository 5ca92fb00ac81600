"""The event loop of virtual time: arrivals, ends of steps, cancels and failures of one or more workers."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.fair.routers.base import Router
from serving.fair.routers.prefix_map import Block
from serving.kvcache.tokens import TokenIds, TokenSequence
from serving.request import RequestId, RequestInfo
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Step, Worker
from serving.sim.workload import SimulatedRequest, predecessors

# Events at the same time are handled in this order: ended steps are recorded before arrivals are queued.
_STEP, _DOWN, _UP, _ARRIVE, _CANCEL = range(5)
PRIORITY_STEP = 2**40  # places in the order of arrival that one step of priority is worth
BLOCK_TOK = 64  # block size in which a router sees real token ids


@dataclass(frozen=True)
class Failure:
    """A worker is down from `down_s` to `up_s` (inf: for good).

    What it ran goes on elsewhere, with the tokens that were produced as part of the prompt.
    """

    worker: int
    down_s: float
    up_s: float


@dataclass
class SimulationResult:
    """Totals of a simulation; the event log holds the details.

    Attributes:
      end_s: when the last request ended. busy_s: seconds of steps by worker.
      cancelled: by their clients. expired: by their deadlines.
      refused: ids rejected by a rate limit. moved: requests whose worker failed.
      plans: steps planned.
    """

    end_s: float = 0.0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    moved: int = 0
    plans: int = 0
    refused: list[RequestId] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)


class ServingSimulation:
    """Runs requests until all have ended.

    Args:
      capacities: of the workers, as the router is told; none = all are 1.

    Raises:
      ValueError: more than one worker without a router.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        requests: Iterable[SimulatedRequest],
        router: Router | None = None,
        failures: Sequence[Failure] = (),
        capacities: Sequence[float] = (),
    ):
        if len(workers) > 1 and router is None:
            raise ValueError(f"{len(workers)} workers need a router")
        self.workers, self.router = list(workers), router
        self.now_s = 0.0
        self.result = SimulationResult()
        self._queue: list[tuple[float, int, int, Any]] = []
        self._pushed = self._arrivals = 0
        self._dependents: dict[RequestId, list[SimulatedRequest]] = defaultdict(list)
        self._unmet: dict[RequestId, int] = {}  # requests that it follows and that have not ended
        self._worker_of: dict[RequestId, int] = {}
        self._down: dict[int, None] = {}
        self._unrouted: list[SimulatedRequest] = []  # arrived while all workers were down
        self._produced: dict[RequestId, int] = {}  # of requests that lost a worker, what they had by then
        self._may_begin: dict[int, None] = {}
        self._capacities = list(capacities) or [1.0] * len(workers)
        for worker in range(len(workers)):
            if router:
                router.join(worker, self._capacities[worker])
        for request in requests:
            before = predecessors(request)
            if not before:
                self._push(request.arrival_s, _ARRIVE, request)
            self._unmet[request.id] = len(before)
            for id in before:
                self._dependents[id].append(request)
        for failure in failures:
            self._push(failure.down_s, _DOWN, failure.worker)
            if failure.up_s < math.inf:
                self._push(failure.up_s, _UP, failure.worker)

    def run(self, progress: Callable[[float], None] = lambda now_s: None) -> SimulationResult:
        handle: dict[int, Callable[[Any], None]] = {
            _STEP: self._end_step,
            _DOWN: self._fail,
            _UP: self._recover,
            _ARRIVE: self._arrive,
            _CANCEL: self._cancel,
        }
        queue = self._queue
        while queue:
            self.now_s, kind, _, what = heapq.heappop(queue)
            handle[kind](what)
            if self._may_begin and not (queue and queue[0][0] == self.now_s):
                may_begin, self._may_begin = self._may_begin, {}
                for index in may_begin:
                    self._begin(index)
                progress(self.now_s)
        self.result.busy_s = [worker.busy_s for worker in self.workers]
        return self.result

    def _push(self, at_s: float, kind: int, what: Any) -> None:
        heapq.heappush(self._queue, (at_s, kind, self._pushed, what))
        self._pushed += 1

    def _arrive(self, request: SimulatedRequest) -> None:
        got = self._produced.get(request.id, 0)
        info = RequestInfo(
            request.id,
            request.client,
            self._arrivals + request.priority * PRIORITY_STEP,
            request.prompt_tok,
            request.max_output_tok,
            request.output_tok,
            request.program,
        )
        self._arrivals += 1
        if len(self._down) == len(self.workers):
            self._unrouted.append(request)
            return
        index = 0 if self.router is None else self._route(request, info, got)
        worker = self.workers[index]
        end_s = worker.step_end_s
        if worker.submit(request, info, self.now_s, output_tok=got):
            self._worker_of[request.id] = index
            if request.cancel_s is not None:
                self._push(self.now_s + request.cancel_s, _CANCEL, (request, False))
            if request.deadline_s is not None:
                self._push(self.now_s + request.deadline_s, _CANCEL, (request, True))
            if worker.step is None:
                self._may_begin[index] = None
            elif worker.step_end_s != end_s:  # its step was shortened for the newcomer
                self._push(worker.step_end_s, _STEP, (index, worker.step))
        else:
            self.result.refused.append(request.id)
            self._ended(request.id, 0)

    def _route(self, request: SimulatedRequest, info: RequestInfo, got: int) -> int:
        """The router's choice; what has been produced already is prompt to it."""
        assert self.router is not None
        if got:
            predicted = None if info.predicted_tok is None else info.predicted_tok - got
            info = replace(
                info,
                prompt_tok=info.prompt_tok + got,
                max_output_tok=info.max_output_tok - got,
                predicted_tok=predicted,
            )
        return self.router.dispatch(info, prompt_blocks(request), self.now_s)

    def _begin(self, index: int) -> None:
        worker = self.workers[index]
        if worker.step is None and index not in self._down:
            end_s = worker.begin(self.now_s)
            if end_s is not None:
                self.result.plans += 1
                self._push(end_s, _STEP, (index, worker.step))

    def _end_step(self, what: tuple[int, Step]) -> None:
        index, step = what
        worker = self.workers[index]
        if worker.step is not step or worker.step_end_s != self.now_s:
            return  # the step was shortened since, or its worker failed
        if self.router:
            for chunk in step.plan.chunks:
                req = chunk.req
                if req.admit_s == step.start_s:
                    total_tok = req.info.prompt_tok + self._produced.get(req.info.id, 0)
                    self.router.admitted(req.info.id, extend_tok=total_tok - req.hit_tok, hit_tok=req.hit_tok)
        for done in worker.end():
            self.result.finished += 1
            self._ended(done.id, done.output_tok)
        self._may_begin[index] = None

    def _cancel(self, what: tuple[SimulatedRequest, bool]) -> None:
        (request, expires), id = what, what[0].id
        index = self._worker_of.get(id)
        if index is not None and self.workers[index].requests.get(id) is request:
            output_tok = self.workers[index].cancel(id, self.now_s)
            self.result.expired += expires
            self.result.cancelled += not expires
            self._ended(id, output_tok)
            self._may_begin[index] = None

    def _fail(self, index: int) -> None:
        if index in self._down:
            raise ValueError(f"worker {index} fails at {self.now_s} s, but it is already down")
        self._down[index] = None
        lost = self.workers[index].fail(self.now_s)
        if self.router:
            produced = {r.id: output_tok - self._produced.get(r.id, 0) for r, output_tok in lost}
            self.router.leave(index, produced)
        self.result.moved += len(lost)
        for request, output_tok in lost:
            del self._worker_of[request.id]
            self._produced[request.id] = output_tok
            self._push(self.now_s, _ARRIVE, request)

    def _recover(self, index: int) -> None:
        del self._down[index]
        if self.router:
            self.router.join(index, self._capacities[index])
        unrouted, self._unrouted = self._unrouted, []
        for request in unrouted:
            self._push(self.now_s, _ARRIVE, request)

    def _ended(self, id: RequestId, output_tok: int) -> None:
        self.result.end_s = self.now_s
        self._worker_of.pop(id, None)
        if self.router:
            self.router.ended(id, output_tok - self._produced.pop(id, 0))
        for request in self._dependents.pop(id, ()):
            self._unmet[request.id] -= 1
            if self._unmet[request.id]:
                continue
            self._push(self.now_s + request.arrival_s, _ARRIVE, request)


def prompt_blocks(request: SimulatedRequest) -> list[Block]:
    """The prompt in blocks of (key, tokens), as a router sees it."""
    tokens: TokenSequence = request.tokens
    if isinstance(tokens, SyntheticTokens):
        return [(key, length) for key, _, length in tokens.pieces(0, request.prompt_tok)]
    assert isinstance(tokens, TokenIds)
    ends = range(BLOCK_TOK, request.prompt_tok + BLOCK_TOK, BLOCK_TOK)
    return [
        (tokens.head(end - BLOCK_TOK, BLOCK_TOK), min(end, request.prompt_tok) - end + BLOCK_TOK)
        for end in ends
    ]
