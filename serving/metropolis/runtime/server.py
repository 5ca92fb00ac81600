"""A language-model server in virtual time: continuous batching as arithmetic, no device.

One replica works in iterations. At each boundary it admits waiting calls, smallest priority first and then
the oldest, while it has slots and the iteration's prefill budget lasts; the iteration then takes

    step_s + row_s * running + prefill_s * prompt tokens admitted

(the constants of `serving.sim.cost`) and gives every running call one token. A call goes to the replica with
the fewest calls outstanding. `Replica` jumps over iterations that admit and finish nothing.
"""

import asyncio
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from mixattn.evals.llm import Completion, Prompt, Usage
from serving.sim.cost import StepCost


@dataclass(kw_only=True)
class ServerConfig:
    """A simulated server; the default cost is fitted to an 8B model on one L4 per replica.

    Attributes:
      replicas: data-parallel copies.
      cost: of an iteration; how long contexts are is left out (`context_s` must be 0).
      max_running: slots of a replica.
      prefill_tok: prompt tokens admitted per iteration; one call is admitted however long it is.
      priority: order waiting calls by priority; else by arrival alone.
    """

    replicas: int = 8
    cost: StepCost = field(default_factory=lambda: step_cost(0.065, 0.002, 0.0003))
    max_running: int = 64
    prefill_tok: int = 4096
    priority: bool = True

    def check(self) -> None:
        for name in ("replicas", "max_running", "prefill_tok"):
            if getattr(self, name) < 1:
                raise ValueError(f"server.{name} is {getattr(self, name)}; it must be at least 1")
        self.cost.check()
        if self.cost.context_s:
            raise ValueError(f"server.cost.context_s is {self.cost.context_s}; this model knows only 0")
        if self.cost.step_s + self.cost.row_s == 0:
            raise ValueError("server.cost: step_s and row_s are both 0; an iteration would take no time")

    def alone_s(self, prompt_tok: int, output_tok: int) -> float:
        """Latency of one call on an idle server."""
        return self.cost.prefill_s * prompt_tok + self.cost.decode(1, 0, max(1, output_tok))


def step_cost(step_s: float, row_s: float, prefill_s: float) -> StepCost:
    """A cost that does not depend on how long contexts are."""
    return StepCost(step_s=step_s, row_s=row_s, prefill_s=prefill_s, context_s=0.0)


@dataclass(slots=True, eq=False)
class ReplicaJob:
    """A call at a replica; `done` is called once, when its last token is out."""

    prompt_tok: int
    output_tok: int
    done: Callable[[], None]
    cancelled: bool = False


class Replica:
    """One replica as a state machine: tell it arrivals, ask when it wants to be woken, wake it then."""

    def __init__(self, config: ServerConfig):
        self.config = config
        self.outstanding = 0
        self.wake_s = math.inf  # when the current stretch of iterations ends
        self._waiting: list[tuple[float, int, ReplicaJob]] = []
        self._finish: list[
            tuple[int, int, ReplicaJob]
        ] = []  # (iteration count at which it is done, order, call)
        self._order = itertools.count()
        self._iteration = 0
        self._start_s = 0.0  # of the current stretch: `_count` iterations of `_each_s`
        self._each_s = 0.0
        self._count = 0
        self._dropped = False

    def arrive(self, job: ReplicaJob, priority: int, now_s: float) -> None:
        """A call joins the queue; it is admitted at the next boundary with room."""
        self.outstanding += 1
        heappush(self._waiting, (priority if self.config.priority else 0, next(self._order), job))
        if self.wake_s == math.inf:
            self._count, self.wake_s = 0, now_s  # idle: a boundary is now
        elif self._count > 1 and len(self._finish) < self.config.max_running:
            passed = (now_s - self._start_s) / self._each_s
            self._count = min(self._count, max(1, math.ceil(passed - 1e-9)))
            self.wake_s = self._start_s + self._count * self._each_s

    def cancel(self, job: ReplicaJob) -> None:
        """The caller no longer waits; slot and queue place are freed at the next boundary."""
        job.cancelled = self._dropped = True
        self.outstanding -= 1

    def wake(self, now_s: float) -> None:
        """Ends the stretch at `wake_s`: finishes, admits, and plans the next one."""
        self._iteration += self._count
        while self._finish and self._finish[0][0] <= self._iteration:
            job = heappop(self._finish)[2]
            if not job.cancelled:
                self.outstanding -= 1
                job.done()
        if self._dropped:
            self._finish = sorted(entry for entry in self._finish if not entry[2].cancelled)
            self._dropped = False
        prefill = self._admit()
        running = len(self._finish)
        if not running:
            self.wake_s, self._count = math.inf, 0
            return
        cost = self.config.cost
        self._start_s = now_s
        self._each_s = cost.decode(running, 0, 1) + cost.prefill_s * prefill
        room = len(self._waiting) > 0 and running < self.config.max_running
        self._count = 1 if prefill or room else self._finish[0][0] - self._iteration
        self.wake_s = now_s + self._count * self._each_s

    def _admit(self) -> int:
        prefill = 0
        while self._waiting and len(self._finish) < self.config.max_running:
            job = self._waiting[0][2]
            if prefill and not job.cancelled and prefill + job.prompt_tok > self.config.prefill_tok:
                break
            heappop(self._waiting)
            if not job.cancelled:
                prefill += job.prompt_tok
                entry = (self._iteration + max(1, job.output_tok), next(self._order), job)
                heappush(self._finish, entry)
        return prefill


class SimulatedServer:
    """Replicas behind one `complete`, on the running loop's clock (`clock.run_virtual` makes it virtual).

    Args:
      reply: the text of a call from (prompt, seed); None answers "" with exactly `max_tokens` tokens, as a
        replay that ignores the end-of-sequence token does.
    """

    def __init__(self, config: ServerConfig, reply: Callable[[Prompt, int | None], str] | None = None):
        config.check()
        self._config, self._reply = config, reply
        self._replicas = [Replica(config) for _ in range(config.replicas)]
        self._timers: list[asyncio.TimerHandle | None] = [None] * config.replicas

    async def complete(
        self, prompt, *, max_tokens=256, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        prompt_tok = len(prompt) if not isinstance(prompt, str) else max(1, len(prompt) // 4)
        text, output_tok = "", max_tokens
        if self._reply is not None:
            text = self._reply(prompt, seed)
            output_tok = min(max_tokens, max(1, len(text) // 4))
        await self.occupy(prompt_tok, output_tok, priority)
        return Completion(text, Usage(prompt_tok, output_tok), "length" if self._reply is None else "stop")

    async def occupy(self, prompt_tok: int, output_tok: int, priority: int = 0) -> None:
        """Takes as long as a call of these lengths does under the present load."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        job = ReplicaJob(prompt_tok, output_tok, functools.partial(_finish, done))
        number = min(range(len(self._replicas)), key=lambda i: self._replicas[i].outstanding)
        replica = self._replicas[number]
        replica.arrive(job, priority, loop.time())
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


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
