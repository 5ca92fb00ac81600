"""One server in virtual time: the engine's scheduler, and a cost model where the engine has a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from serving.config import Limits
from serving.engine.plan import MemoryManager, RequestState, StepPlan, StepResult
from serving.engine.scheduler import Scheduler
from serving.fair.policy import Policy
from serving.request import RequestId, RequestInfo
from serving.sim.cost import StepCost
from serving.sim.workload import SimulatedRequest


@dataclass(slots=True)
class Step:
    """A step under way: what runs, since when, until when, and how many decode steps of it count."""

    plan: StepPlan
    start_s: float
    end_s: float
    steps: int
    context_tok: int


class Worker:
    """Start a step, learn when it ends, end it. Somebody else keeps the time."""

    def __init__(
        self,
        policy: Policy | Callable[..., Policy],
        memory: MemoryManager,
        limits: Limits,
        cost: StepCost,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ):
        self.scheduler = Scheduler(policy, memory, limits, log)
        self.cost = cost
        self.step: Step | None = None
        self.busy_s = 0.0
        self.jobs: dict[RequestId, SimulatedRequest] = {}

    def submit(self, job: SimulatedRequest, info: RequestInfo, now_s: float) -> bool:
        """Queues a job; False if the policy refuses it. Cuts a long decode short, so that it may be admitted.

        Raises:
          ValueError: it could not run even alone.
        """
        alone = not self.scheduler.waiting
        if self.step is not None:
            self._book_past(self.step, now_s)
        self.jobs[info.id] = job
        if not self.scheduler.submit(RequestState(info, job.tokens, job.cache_salt, now_s), now_s):
            del self.jobs[info.id]
            return False
        if alone and self.step is not None:
            self._cut(self.step, now_s)
        return True

    @property
    def ends_s(self) -> float:
        """When the step under way ends; infinity if none is."""
        return inf if self.step is None else self.step.end_s

    def cancel(self, id: RequestId, now_s: float) -> int:
        """Ends a live request; what a step under way did of it is lost, as in the engine. Returns its
        outputs."""
        live = self.scheduler.running.get(id) or self.scheduler.waiting[id]
        self.scheduler.cancel(id, now_s)
        del self.jobs[id]
        return live.output_tok

    def fail(self, now_s: float) -> list[SimulatedRequest]:
        """Loses the step under way, everything cached, and all requests; returns these."""
        lost, self.step = list(self.jobs.values()), None
        for job in lost:
            self.cancel(job.id, now_s)
        self.scheduler.memory.clear_cache()
        return lost

    def begin(self, now_s: float) -> float | None:
        """Starts the next step; returns when it ends, or None if there is nothing to do."""
        plan = self.scheduler.plan(now_s)
        if plan is None:
            return None
        context = sum([req.computed_tok + 1 for req in plan.decode])
        # The device would stop where the first request ends; a plan only knows how long it may go on.
        jobs, steps = self.jobs, plan.steps
        for req in plan.decode:
            left = jobs[req.info.id].output_tok - req.output_tok
            if left < steps:
                steps = left
        cost_s = self.cost.prefill(plan) + self.cost.decode(len(plan.decode), context, steps)
        self.step = Step(plan, now_s, now_s + cost_s, steps, context)
        return self.step.end_s

    def end(self) -> list[SimulatedRequest]:
        """Books the step that is under way; returns the jobs that it finished."""
        step, self.step = self.step, None
        assert step is not None
        return self._record_tokens(step)

    def _record_tokens(self, step: Step) -> list[SimulatedRequest]:
        self.busy_s += step.end_s - step.start_s
        produced: dict[RequestId, StepResult] = {}
        self._produce([chunk.req for chunk in step.plan.chunks if chunk.samples], 1, produced)
        self._produce(step.plan.decode, step.steps, produced)
        return [self.jobs.pop(out.id) for out in self.scheduler.commit(step.plan, produced, step.end_s)]

    def _produce(
        self, rows: Sequence[RequestState], steps: int, produced: dict[RequestId, StepResult]
    ) -> None:
        """Tokens of rows: each stops by itself where its job says, possibly before its allowance."""
        jobs, usual = self.jobs, StepResult(steps)
        for req in rows:
            job = jobs.get(req.info.id)
            if job is not None:  # else it was cancelled while the step ran
                left = job.output_tok - req.output_tok
                produced[job.id] = usual if left > steps else StepResult(left, (), "stop")

    def _book_past(self, step: Step, now_s: float) -> None:
        """Books what is over of a jump: what a policy makes of a newcomer depends on what others have had by
        now."""
        if step.steps > 1:  # then it has no chunks
            rows, passed_s = len(step.plan.decode), now_s - step.start_s
            over = self.cost.steps_within(rows, step.context_tok, passed_s, step.steps) - 1
            if over > 0:
                took_s = self.cost.decode(rows, step.context_tok, over)
                past = replace(step, steps=over, end_s=step.start_s + took_s)
                self._record_tokens(past)
                step.start_s, step.steps = past.end_s, step.steps - over
                step.context_tok += rows * over

    def _cut(self, step: Step, now_s: float) -> None:
        if step.steps > 1:
            before = step.end_s - step.start_s
            fixed = self.cost.prefill(step.plan)
            rows = len(step.plan.decode)
            passed_s = now_s - step.start_s - fixed
            step.steps = self.cost.steps_within(rows, step.context_tok, passed_s, step.steps)
            step.end_s = step.start_s + fixed + self.cost.decode(rows, step.context_tok, step.steps)
            assert step.end_s <= step.start_s + before + 1e-9
