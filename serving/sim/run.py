"""The loop of virtual time: arrivals, steps that end, cancels and failures, in order, on one worker or
many."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving.request import Ask, RequestId
from serving.sim.worker import Worker
from serving.sim.workload import Job

# Events of one time are handled in this order: what ended is booked before what arrives is queued.
_STEP, _ARRIVE, _CANCEL = range(3)


@dataclass
class Result:
    """How a run went; what it did is in the event log."""

    end_s: float = 0.0
    finished: int = 0
    cancelled: int = 0
    refused: list[RequestId] = field(default_factory=list)
    plans: int = 0


class Simulation:
    """Runs jobs on one worker until all have ended."""

    def __init__(self, worker: Worker, jobs: Iterable[Job]):
        self.worker = worker
        self.now_s = 0.0
        self.result = Result()
        self._queue: list[tuple[float, int, int, Any]] = []
        self._pushed = 0
        self._asked = 0
        self._after: dict[RequestId, list[Job]] = defaultdict(list)
        for job in jobs:
            if job.after is None:
                self._push(job.arrival_s, _ARRIVE, job)
            else:
                self._after[job.after].append(job)

    def run(self, progress: Callable[[float], None] = lambda now_s: None) -> Result:
        queue = self._queue
        while queue:
            self.now_s, kind, _, what = heapq.heappop(queue)
            if kind == _STEP:
                if self.worker.step is not what or what.end_s != self.now_s:
                    continue  # the step was cut short since
                self._step_over()
            elif kind == _ARRIVE:
                self._arrive(what)
            else:
                self._cancel(what)
            if self.worker.step is None and not (queue and queue[0][0] == self.now_s):
                self._begin()
                progress(self.now_s)
        self.result.end_s = self.now_s
        return self.result

    def _push(self, at_s: float, kind: int, what: Any) -> None:
        heapq.heappush(self._queue, (at_s, kind, self._pushed, what))
        self._pushed += 1

    def _arrive(self, job: Job) -> None:
        ask = Ask(job.id, job.client, self._asked, job.prompt_tok, job.max_output_tok, job.output_tok)
        self._asked += 1
        under_way = self.worker.step
        end_s = under_way.end_s if under_way else 0.0
        if not self.worker.submit(job, ask, self.now_s):
            self.result.refused.append(job.id)
            self._ended(job.id)
        elif job.cancel_s is not None:
            self._push(self.now_s + job.cancel_s, _CANCEL, job.id)
        if under_way and under_way.end_s != end_s:  # cut short for the newcomer
            self._push(under_way.end_s, _STEP, under_way)

    def _cancel(self, id: RequestId) -> None:
        if id in self.worker.jobs:
            self.worker.cancel(id, self.now_s)
            self.result.cancelled += 1
            self._ended(id)

    def _begin(self) -> None:
        end_s = self.worker.begin(self.now_s)
        if end_s is not None:
            self.result.plans += 1
            self._push(end_s, _STEP, self.worker.step)

    def _step_over(self) -> None:
        for output in self.worker.end():
            self.result.finished += 1
            self._ended(output.id)

    def _ended(self, id: RequestId) -> None:
        for job in self._after.pop(id, ()):
            self._push(self.now_s + job.arrival_s, _ARRIVE, job)
