"""One server in virtual time: the engine's scheduler with a cost model in place of the device."""

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
    """A step in progress.

    Attributes:
      plan: what it computes. start_s, end_s: when it began and when it ends.
      steps: decode steps still to record. context_tok: tokens its rows hold before the first of them.
    """

    plan: StepPlan
    start_s: float
    end_s: float
    steps: int
    context_tok: int


class Worker:
    """Begins and ends steps. The caller keeps the time: `begin` returns when to call `end`."""

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
        self.requests: dict[RequestId, SimulatedRequest] = {}

    def submit(
        self, request: SimulatedRequest, info: RequestInfo, now_s: float, *, output_tok: int = 0
    ) -> bool:
        """Queues a request; False if the policy refuses it. Ends a multi-step decode early for its admission.

        Args:
          output_tok: tokens that a lost worker has produced already.

        Raises:
          ValueError: it does not fit even alone.
        """
        queue_was_empty = not self.scheduler.waiting
        if self.step is not None:
            self._record_elapsed(self.step, now_s)
        self.requests[info.id] = request
        state = RequestState(info, request.tokens, request.cache_salt, now_s)
        state.output_tok = output_tok
        if not self.scheduler.submit(state, now_s):
            del self.requests[info.id]
            return False
        if queue_was_empty and self.step is not None:
            self._shorten(self.step, now_s)
        return True

    @property
    def step_end_s(self) -> float:
        """When the step in progress ends; infinity if there is none."""
        return inf if self.step is None else self.step.end_s

    def cancel(self, id: RequestId, now_s: float) -> int:
        """Ends a live request. Its tokens of the step in progress are lost, as in the engine.

        Returns: output tokens it produced.
        """
        live = self.scheduler.running.get(id) or self.scheduler.waiting[id]
        self.scheduler.cancel(id, now_s)
        del self.requests[id]
        return live.output_tok

    def fail(self, now_s: float) -> list[tuple[SimulatedRequest, int]]:
        """Loses the step in progress, the prefix cache and all requests; returns the requests, and the output
        tokens that each has produced."""
        requests, self.step = list(self.requests.values()), None
        lost = [(request, self.cancel(request.id, now_s)) for request in requests]
        self.scheduler.memory.clear_cache()
        return lost

    def begin(self, now_s: float) -> float | None:
        """Begins the next step; returns when it ends, or None if there is nothing to do."""
        plan = self.scheduler.plan(now_s)
        if plan is None:
            return None
        context = sum([req.computed_tok + 1 for req in plan.decode])
        if slab_tok := getattr(self.scheduler.memory, "slab_tok", 0):
            context = sum([min(req.computed_tok + 1, slab_tok) for req in plan.decode])
        # The device stops where the first request ends; a plan only knows the maximum.
        requests, steps = self.requests, plan.steps
        for req in plan.decode:
            left = requests[req.info.id].output_tok - req.output_tok
            if left < steps:
                steps = left
        cost_s = self.cost.prefill(plan) + self.cost.decode(len(plan.decode), context, steps)
        self.step = Step(plan, now_s, now_s + cost_s, steps, context)
        return self.step.end_s

    def end(self) -> list[SimulatedRequest]:
        """Records the step in progress; returns the requests that it finished."""
        step, self.step = self.step, None
        assert step is not None
        return self._record_tokens(step)

    def _record_tokens(self, step: Step) -> list[SimulatedRequest]:
        self.busy_s += step.end_s - step.start_s
        produced: dict[RequestId, StepResult] = {}
        self._produce([chunk.req for chunk in step.plan.chunks if chunk.samples], 1, produced)
        self._produce(step.plan.decode, step.steps, produced)
        return [self.requests.pop(out.id) for out in self.scheduler.commit(step.plan, produced, step.end_s)]

    def _produce(
        self, rows: Sequence[RequestState], steps: int, produced: dict[RequestId, StepResult]
    ) -> None:
        """Adds the tokens of each row, which stops at its simulated output length."""
        requests, usual = self.requests, StepResult(steps)
        for req in rows:
            request = requests.get(req.info.id)
            if request is not None:  # None: it was cancelled while the step ran
                left = request.output_tok - req.output_tok
                produced[request.id] = usual if left > steps else StepResult(left, (), "stop")

    def _record_elapsed(self, step: Step, now_s: float) -> None:
        """Records the decode steps completed by now: policies compare a newcomer with service so far."""
        if step.steps > 1:  # such a step has no chunks
            rows, elapsed_s = len(step.plan.decode), now_s - step.start_s
            elapsed = self.cost.steps_within(rows, step.context_tok, elapsed_s, step.steps) - 1
            if elapsed > 0:
                took_s = self.cost.decode(rows, step.context_tok, elapsed)
                past = replace(step, steps=elapsed, end_s=step.start_s + took_s)
                self._record_tokens(past)
                step.start_s, step.steps = past.end_s, step.steps - elapsed
                step.context_tok += rows * elapsed

    def _shorten(self, step: Step, now_s: float) -> None:
        """Ends a multi-step decode at the next step boundary."""
        if step.steps > 1:
            before = step.end_s - step.start_s
            fixed = self.cost.prefill(step.plan)
            rows = len(step.plan.decode)
            elapsed_s = now_s - step.start_s - fixed
            step.steps = self.cost.steps_within(rows, step.context_tok, elapsed_s, step.steps)
            step.end_s = step.start_s + fixed + self.cost.decode(rows, step.context_tok, step.steps)
            assert step.end_s <= step.start_s + before + 1e-9
