"""The loop of virtual time: arrivals, steps that end, cancels and failures, in order, on one worker or
many."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.fair.routers.base import Router
from serving.fair.routers.prefix_map import Block
from serving.kvcache.tokens import TokenIds, TokenSequence
from serving.request import RequestId, RequestInfo
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.worker import Step, Worker
from serving.sim.workload import SimulatedRequest

# Events of one time are handled in this order: what ended is booked before what arrives is queued.
_STEP, _DOWN, _UP, _ARRIVE, _CANCEL = range(5)
BLOCK_TOK = 64  # pieces in which a router looks at real token ids


@dataclass(frozen=True)
class Failure:
    """A worker that is down for a while; what it was doing starts again elsewhere."""

    worker: int
    at_s: float
    back_s: float


@dataclass
class SimulationResult:
    """How a run went; what it did is in the event log.

    Attributes:
      end_s: when the last request ended. busy_s: by worker.
      refused: ids that a rate limit turned away. moved: requests that lost their worker.
      plans: steps planned.
    """

    end_s: float = 0.0
    finished: int = 0
    cancelled: int = 0
    moved: int = 0
    plans: int = 0
    refused: list[RequestId] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)


class ServingSimulation:
    """Runs jobs until all have ended. `router` is needed for more than one worker."""

    def __init__(
        self,
        workers: Sequence[Worker],
        jobs: Iterable[SimulatedRequest],
        router: Router | None = None,
        failures: Sequence[Failure] = (),
    ):
        if len(workers) > 1 and router is None:
            raise ValueError(f"{len(workers)} workers need a router")
        self.workers, self.router = list(workers), router
        self.now_s = 0.0
        self.result = SimulationResult()
        self._queue: list[tuple[float, int, int, Any]] = []
        self._pushed = self._asked = 0
        self._after: dict[RequestId, list[SimulatedRequest]] = defaultdict(list)
        self._at: dict[RequestId, int] = {}  # worker of each live request
        self._down: dict[int, None] = {}
        self._stranded: list[SimulatedRequest] = []  # nobody is up
        self._awake: dict[int, None] = {}  # workers that may have something to begin
        for worker in range(len(workers)):
            if router:
                router.join(worker)
        for job in jobs:
            if job.after is None:
                self._push(job.arrival_s, _ARRIVE, job)
            else:
                self._after[job.after].append(job)
        for failure in failures:
            self._push(failure.at_s, _DOWN, failure.worker)
            self._push(failure.back_s, _UP, failure.worker)

    def run(self, progress: Callable[[float], None] = lambda now_s: None) -> SimulationResult:
        handle: dict[int, Callable[[Any], None]] = {
            _STEP: self._step_over,
            _DOWN: self._fail,
            _UP: self._come_back,
            _ARRIVE: self._arrive,
            _CANCEL: self._cancel,
        }
        queue = self._queue
        while queue:
            self.now_s, kind, _, what = heapq.heappop(queue)
            handle[kind](what)
            if self._awake and not (queue and queue[0][0] == self.now_s):
                awake, self._awake = self._awake, {}
                for index in awake:
                    self._begin(index)
                progress(self.now_s)
        self.result.busy_s = [worker.busy_s for worker in self.workers]
        return self.result

    def _push(self, at_s: float, kind: int, what: Any) -> None:
        heapq.heappush(self._queue, (at_s, kind, self._pushed, what))
        self._pushed += 1

    def _arrive(self, job: SimulatedRequest) -> None:
        info = RequestInfo(
            job.id, job.client, self._asked, job.prompt_tok, job.max_output_tok, job.output_tok
        )
        self._asked += 1
        if len(self._down) == len(self.workers):
            self._stranded.append(job)
            return
        index = 0 if self.router is None else self.router.dispatch(info, blocks(job), self.now_s)
        worker = self.workers[index]
        end_s = worker.ends_s
        if worker.submit(job, info, self.now_s):
            self._at[job.id] = index
            if job.cancel_s is not None:
                self._push(self.now_s + job.cancel_s, _CANCEL, job.id)
            if worker.step is None:
                self._awake[index] = None
            elif worker.ends_s != end_s:  # its step was cut short for the newcomer
                self._push(worker.ends_s, _STEP, (index, worker.step))
        else:
            self.result.refused.append(job.id)
            self._ended(job.id, 0)

    def _begin(self, index: int) -> None:
        worker = self.workers[index]
        if worker.step is None and index not in self._down:
            end_s = worker.begin(self.now_s)
            if end_s is not None:
                self.result.plans += 1
                self._push(end_s, _STEP, (index, worker.step))

    def _step_over(self, what: tuple[int, Step]) -> None:
        index, step = what
        worker = self.workers[index]
        if worker.step is not step or worker.ends_s != self.now_s:
            return  # the step was cut short since, or its worker failed
        if self.router:
            for chunk in step.plan.chunks:
                req = chunk.req
                if req.admit_s == step.start_s:
                    self.router.admitted(
                        req.info.id, extend_tok=req.info.prompt_tok - req.hit_tok, hit_tok=req.hit_tok
                    )
        for done in worker.end():
            self.result.finished += 1
            self._ended(done.id, done.output_tok)
        self._awake[index] = None

    def _cancel(self, id: RequestId) -> None:
        index = self._at.get(id)
        if index is not None:
            output_tok = self.workers[index].cancel(id, self.now_s)
            self.result.cancelled += 1
            self._ended(id, output_tok)
            self._awake[index] = None

    def _fail(self, index: int) -> None:
        if index in self._down:
            raise ValueError(f"worker {index} fails at {self.now_s} s, but it is down already")
        self._down[index] = None
        jobs = self.workers[index].fail(self.now_s)
        if self.router:
            self.router.leave(index)
        self.result.moved += len(jobs)
        for job in jobs:
            del self._at[job.id]
            self._push(self.now_s, _ARRIVE, job)

    def _come_back(self, index: int) -> None:
        del self._down[index]
        if self.router:
            self.router.join(index)
        stranded, self._stranded = self._stranded, []
        for job in stranded:
            self._push(self.now_s, _ARRIVE, job)

    def _ended(self, id: RequestId, output_tok: int) -> None:
        self.result.end_s = self.now_s
        self._at.pop(id, None)
        if self.router:
            self.router.ended(id, output_tok)
        for job in self._after.pop(id, ()):
            self._push(self.now_s + job.arrival_s, _ARRIVE, job)


def blocks(job: SimulatedRequest) -> list[Block]:
    """The prompt as a router sees it."""
    tokens: TokenSequence = job.tokens
    if isinstance(tokens, SyntheticTokens):
        return [(key, length) for key, _, length in tokens.pieces(0, job.prompt_tok)]
    assert isinstance(tokens, TokenIds)
    ends = range(BLOCK_TOK, job.prompt_tok + BLOCK_TOK, BLOCK_TOK)
    return [
        (tokens.head(end - BLOCK_TOK, BLOCK_TOK), min(end, job.prompt_tok) - end + BLOCK_TOK) for end in ends
    ]
