"""A simulated language-model server in virtual time: continuous batching as arithmetic, without a device.

A replica works in iterations. At each iteration boundary it admits waiting calls, smallest priority first
and then oldest first, up to its slots and the iteration's prefill budget. The iteration then takes

    step_s + row_s * running + prefill_s * prompt tokens admitted

seconds (constants of `serving.sim.cost`), and every running call produces one token. A call goes to the
replica with the fewest outstanding calls. `Replica` skips iterations that admit and finish nothing.
"""

import asyncio
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from mixattn.evals.llm import Completion, LanguageModel, Prompt, Usage
from serving.sim.cost import StepCost


@dataclass(kw_only=True)
class ServerConfig:
    """A simulated server. The default cost is fitted to an 8B model on one L4 per replica.

    Attributes:
      replicas: data-parallel copies.
      cost: of an iteration; it must not depend on context lengths (`context_s` must be 0).
      max_running: slots per replica.
      prefill_tok: prompt tokens admitted per iteration; the first call is admitted at any length.
      priority: order waiting calls by priority, then arrival; otherwise by arrival alone.
    """

    replicas: int = 8
    cost: StepCost = field(default_factory=lambda: step_cost(0.065, 0.002, 0.0003))
    max_running: int = 64
    prefill_tok: int = 4096
    priority: bool = True

    def check(self) -> None:
        """Raises ValueError if a field is out of range."""
        for name in ("replicas", "max_running", "prefill_tok"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} is {getattr(self, name)}; it must be at least 1")
        self.cost.check()
        if self.cost.context_s:
            raise ValueError(f"server.cost.context_s is {self.cost.context_s}; this server supports only 0")
        if self.cost.step_s + self.cost.row_s == 0:
            raise ValueError("server.cost: step_s and row_s are both 0; an iteration would take no time")

    def unloaded_s(self, prompt_tok: int, output_tok: int) -> float:
        """Returns the latency of one call on an idle server."""
        return self.cost.prefill_s * prompt_tok + self.cost.decode(1, 0, max(1, output_tok))


def step_cost(step_s: float, row_s: float, prefill_s: float) -> StepCost:
    """Returns a cost that does not depend on context lengths."""
    return StepCost(step_s=step_s, row_s=row_s, prefill_s=prefill_s, context_s=0.0)


@dataclass(slots=True, eq=False)
class ReplicaJob:
    """A call at a replica. `done` is called once, after its last token."""

    prompt_tok: int
    output_tok: int
    done: Callable[[], None]
    cancelled: bool = False


class Replica:
    """One replica as a state machine.

    The caller submits and cancels jobs, and calls `wake` at time `wake_s`.

    Attributes:
      outstanding: jobs submitted and neither finished nor cancelled.
      wake_s: end of the planned iterations; infinite if idle.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.outstanding = 0
        self.wake_s = math.inf
        self._waiting: list[tuple[float, int, ReplicaJob]] = []
        self._running: list[tuple[int, int, ReplicaJob]] = []  # heap of (last iteration, order, job)
        self._order = itertools.count()
        self._iterations = 0  # completed so far
        self._planned = 0  # iterations until `wake_s`, of `_iteration_s` each, the first one at `_start_s`
        self._start_s = 0.0
        self._iteration_s = 0.0
        self._any_cancelled = False

    def submit(self, job: ReplicaJob, priority: int, now_s: float) -> None:
        """Queues a job. It is admitted at the next iteration boundary with a free slot."""
        self.outstanding += 1
        heappush(self._waiting, (priority if self.config.priority else 0, next(self._order), job))
        if self.wake_s == math.inf:
            self._planned, self.wake_s = 0, now_s  # idle: the boundary is now
        elif self._planned > 1 and len(self._running) < self.config.max_running:
            passed = (now_s - self._start_s) / self._iteration_s
            self._planned = min(self._planned, max(1, math.ceil(passed - 1e-9)))
            self.wake_s = self._start_s + self._planned * self._iteration_s

    def cancel(self, job: ReplicaJob) -> None:
        """Cancels a job. Its slot or queue place is freed at the next `wake`."""
        job.cancelled = self._any_cancelled = True
        self.outstanding -= 1

    def wake(self, now_s: float) -> None:
        """Completes the planned iterations: finishes jobs, admits jobs and plans the next iterations."""
        self._iterations += self._planned
        while self._running and self._running[0][0] <= self._iterations:
            job = heappop(self._running)[2]
            if not job.cancelled:
                self.outstanding -= 1
                job.done()
        if self._any_cancelled:
            self._running = sorted(entry for entry in self._running if not entry[2].cancelled)
            self._any_cancelled = False
        prefill = self._admit()
        running = len(self._running)
        if not running:
            self.wake_s, self._planned = math.inf, 0
            return
        cost = self.config.cost
        self._start_s = now_s
        self._iteration_s = cost.decode(running, 0, 1) + cost.prefill_s * prefill
        room = len(self._waiting) > 0 and running < self.config.max_running
        self._planned = 1 if prefill or room else self._running[0][0] - self._iterations
        self.wake_s = now_s + self._planned * self._iteration_s

    def _admit(self) -> int:
        """Moves waiting jobs into free slots; returns their prompt tokens."""
        prefill = 0
        while self._waiting and len(self._running) < self.config.max_running:
            job = self._waiting[0][2]
            if prefill and not job.cancelled and prefill + job.prompt_tok > self.config.prefill_tok:
                break
            heappop(self._waiting)
            if not job.cancelled:
                prefill += job.prompt_tok
                entry = (self._iterations + max(1, job.output_tok), next(self._order), job)
                heappush(self._running, entry)
        return prefill


class SimulatedServer(LanguageModel):
    """A `LanguageModel` over simulated replicas, on the running loop's clock (see `clock.run_virtual`).

    Args:
      reply: returns the text of a call from (prompt, seed). None answers "" with exactly `max_tokens` tokens,
        like a replay that ignores the end-of-sequence token.
    """

    def __init__(
        self, config: ServerConfig, reply: Callable[[Prompt, int | None], str] | None = None
    ) -> None:
        config.check()
        self._config, self._reply = config, reply
        self._replicas = [Replica(config) for _ in range(config.replicas)]
        self._timers: list[asyncio.TimerHandle | None] = [None] * config.replicas

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        client: str = "",
        stop: Sequence[str] = (),
    ) -> Completion:
        prompt_tok = len(prompt) if not isinstance(prompt, str) else max(1, len(prompt) // 4)
        text, output_tok = "", max_tokens
        if self._reply is not None:
            text = self._reply(prompt, seed)
            output_tok = min(max_tokens, max(1, len(text) // 4))
        await self._serve(prompt_tok, output_tok, priority)
        return Completion(text, Usage(prompt_tok, output_tok), "length" if self._reply is None else "stop")

    async def _serve(self, prompt_tok: int, output_tok: int, priority: int) -> None:
        """Waits as long as a call of these lengths takes under the current load."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        job = ReplicaJob(prompt_tok, output_tok, functools.partial(_set_done, done))
        number = min(range(len(self._replicas)), key=lambda i: self._replicas[i].outstanding)
        replica = self._replicas[number]
        replica.submit(job, priority, loop.time())
        self._set_timer(number, loop)
        try:
            await done
        except asyncio.CancelledError:
            replica.cancel(job)
            raise

    def _set_timer(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        wake_s, timer = self._replicas[number].wake_s, self._timers[number]
        if timer is not None:
            if timer.when() == wake_s:
                return
            timer.cancel()
        self._timers[number] = None if wake_s == math.inf else loop.call_at(wake_s, self._wake, number, loop)

    def _wake(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._timers[number] = None
        replica = self._replicas[number]
        replica.wake(replica.wake_s)
        self._set_timer(number, loop)


def _set_done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
