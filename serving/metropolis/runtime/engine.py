"""Out-of-order simulation with lock-step's results: one asyncio controller around a schedule and a world.

A ready cluster takes its members' views and runs their `proceed` side by side. When the last one has decided,
the controller, and nobody else, resolves, checks, logs and applies the outcome in one stretch without an
await: a commit happens wholly or not at all. Steps without a model call never touch the event loop.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from mixattn.evals.llm import CallFailed, LanguageModel
from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.runtime.llm_calls import LlmCalls
from serving.metropolis.runtime.reach_check import ReachCheck
from serving.metropolis.runtime.retry import Gate, RetryPolicy
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.store import Checkpoint, Commit, Store
from serving.metropolis.schedule.dependency_graph import Cluster
from serving.metropolis.schedule.rules import Rule, in_place
from serving.metropolis.schedule.schedulers import Mode, Schedule, Sights, make
from serving.metropolis.schedule.space import Position
from serving.metropolis.world import (
    Agent,
    AgentId,
    CausalityError,
    Intent,
    Json,
    StepContext,
    StepOutcome,
    World,
)


class Aborted(RuntimeError):
    """A run that could not go on; its store holds every commit so far and can be resumed."""


@dataclass(frozen=True, slots=True)
class SimulationRun:
    """The end of a run: where everyone is, what they know, and what the run was like."""

    positions: dict[AgentId, Position]
    states: dict[AgentId, Json]
    steps: dict[AgentId, int]
    commits: int
    meter: RunStats


@dataclass(slots=True, eq=False)
class ClusterTask:
    """A cluster in progress."""

    cluster: Cluster
    names: list[AgentId]
    contexts: list[StepContext]
    views: list[Any]
    viewed: int
    start_s: float
    tasks: list[asyncio.Task[Any]]
    pending: int = 0


class Simulation:
    """Runs `agents` in `world` up to a step, in any of five modes with the same results.

    Args:
      world, agents: see `world`. `agents` maps a name to its Agent; it must know agents born on the way.
      llm: any `mixattn.evals.llm.LanguageModel`.
      mode: who may run when; see `modes`.
      seed: of the world, of every `ctx.rng` and of every call.
      store: where commits and calls are logged; None keeps nothing.
      rule: the margins; `rules.multi_version` needs a world that answers by version.
      barriers: steps that everyone runs together; views and writes of such a step may be global.
      sights: for `oracle`, who sees whom; see `modes.Sights`, numbered by the agents' sorted names.
      max_in_flight: calls at the model at once; more wait here, the earliest step first. 0 means no cap.
      patience: deadlines and retries of a call.
      checkpoint_every: base steps between checkpoints of the world; 0 makes none.
      verify_views: look again at commit and raise CausalityError if a view has changed (for tests).
      on_commit: told of every commit, after it was applied.
    """

    def __init__(
        self,
        world: World,
        agents: Mapping[AgentId, Agent],
        llm: LanguageModel,
        *,
        mode: Mode = "metropolis",
        seed: int = 0,
        store: Store | None = None,
        rule: Rule = in_place,
        barriers: Iterable[int] = (),
        sights: Sights | None = None,
        max_in_flight: int = 256,
        patience: RetryPolicy | None = None,
        checkpoint_every: int = 0,
        verify_views: bool = False,
        on_commit: Callable[[Commit], None] | None = None,
    ):
        self.world, self.agents, self.llm = world, agents, llm
        self.mode, self.seed, self.store = mode, seed, store
        self.barriers = frozenset(barriers)
        self.patience = patience or RetryPolicy()
        self.patience.check()
        self.checkpoint_every, self.verify_views, self.on_commit = checkpoint_every, verify_views, on_commit
        self.meter = RunStats()
        self.roster = AgentTable()
        self.schedule: Schedule
        self._rule, self._sights = rule, sights
        self._gate = Gate(max_in_flight) if max_in_flight else None
        self._seq = 0
        self._jobs: dict[ClusterTask, None] = {}
        self._acks: list[tuple[int, int, ClusterTask]] = []
        self._idle_since: list[float] = []
        self._now: Callable[[], float] = time.monotonic

    # ---- running ------------------------------------------------------------------------------------------
    def run_sync(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> SimulationRun:
        """`run` for callers without an event loop."""
        return asyncio.run(self.run(until_step, resume=resume, upto=upto))

    async def run(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> SimulationRun:
        """Advances everyone to `until_step`.

        Args:
          resume: go on from what the store holds; without it the store must be empty.
          upto: with `resume`, keep only this many commits and go on from there.

        Raises:
          ValueError: the store's run does not fit.
          CausalityError: an agent left its reach.
          Aborted: a call failed for good and its agent has no `fallback`.
        """
        self._loop = asyncio.get_running_loop()
        self._now, self._wake = self._loop.time, asyncio.Event()
        self._ask = LlmCalls(
            llm=self.llm,
            seed=self.seed,
            patience=self.patience,
            gate=self._gate,
            store=self.store,
            meter=self.meter,
            now=self._now,
        )
        self._prepare(resume, upto)
        roster = self.roster
        self._law = ReachCheck(roster, self.world.space, self.barriers)
        self.schedule = make(
            self.mode,
            self.world.space,
            until=until_step,
            rule=self._rule,
            barriers=self.barriers,
            sights=self._sights,
        )
        self.meter.begin(self._now(), len(roster))
        self._idle_since = [self.meter.start_s] * len(roster)
        start = list(zip(roster.pos, roster.first, roster.reach, roster.still))
        try:
            await self._drive(self.schedule.start(start, roster.gone))
        finally:
            await self._stop()
            self.meter.end_s = self._now()
            if self.store is not None:
                self.store.flush()
        self._check_finished(until_step)
        names, alive = roster.names, roster.alive()
        return SimulationRun(
            positions={names[x]: roster.pos[x] for x in alive},
            states={names[x]: roster.state[x] for x in alive},
            steps={names[x]: self.schedule.step[x] for x in alive},
            commits=self._seq,
            meter=self.meter,
        )

    async def _drive(self, ready: list[Cluster]) -> None:
        """Dispatches what is ready and commits what is done, earliest step first, until neither is left."""
        queue: list[tuple[int, int, Cluster]] = []
        order = turns = 0
        while True:
            for cluster in ready:
                heappush(queue, (cluster.step, order, cluster))
                order += 1
            ready = []
            if self._acks:
                ready = self._commit(heappop(self._acks)[2])
            elif queue:
                job = self._dispatch(heappop(queue)[2])
                if not job.pending:
                    ready = self._commit(job)
            elif self._jobs:
                self._wake.clear()
                await self._wake.wait()
            else:
                return
            turns += 1
            if turns % 1024 == 0:  # let timers, progress and Ctrl-C through
                await asyncio.sleep(0)

    async def _stop(self) -> None:
        tasks = [task for job in self._jobs for task in job.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._jobs.clear()
        self._acks.clear()

    def _check_finished(self, until: int) -> None:
        steps = self.schedule.step
        short = [x for x in self.roster.alive() if steps[x] < until]
        if short:
            name = self.roster.names[short[0]]
            raise AssertionError(f"nothing can run, yet {name!r} is at step {steps[short[0]]} of {until}")

    # ---- one cluster --------------------------------------------------------------------------------------
    def _dispatch(self, cluster: Cluster) -> ClusterTask:
        now, step, roster = self._now(), cluster.step, self.roster
        names = [roster.names[x] for x in cluster.members]
        contexts = [
            StepContext(name, step, roster.state[x], self.seed, self._ask)
            for name, x in zip(names, cluster.members)
        ]
        views = [self.world.view(name, step) for name in names]
        job = ClusterTask(cluster, names, contexts, views, self._seq, now, [])
        for x in cluster.members:
            self.meter.waited_s[x] += now - self._idle_since[x]
        work: list[Coroutine[Any, Any, Any]]
        if self.mode == "single_thread":
            work = [self._one_by_one(job)]
        else:
            work = [self._decide(*each) for each in zip(names, views, contexts)]
        for coroutine in work:
            task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)
            job.tasks.append(task)
            if not task.done():
                job.pending += 1
                task.add_done_callback(lambda _, job=job: self._acknowledge(job))  # type: ignore[misc]
        if job.pending:
            self._jobs[job] = None
        return job

    async def _one_by_one(self, job: ClusterTask) -> list[Intent]:
        return [await self._decide(*each) for each in zip(job.names, job.views, job.contexts)]

    async def _decide(self, name: AgentId, view: Any, ctx: StepContext) -> Intent:
        agent = self.agents[name]
        try:
            return await agent.proceed(view, ctx)
        except CallFailed as why:
            fallback = getattr(agent, "fallback", None)
            if fallback is None:
                raise Aborted(
                    f"agent {name!r} at step {ctx.step}: {why}; {self._seq} commits are kept to resume from"
                ) from why
            self.meter.fallbacks += 1
            return fallback(view, ctx)

    def _acknowledge(self, job: ClusterTask) -> None:
        job.pending -= 1
        if not job.pending:
            heappush(self._acks, (job.cluster.step, job.cluster.members[0], job))
            self._wake.set()

    def _commit(self, job: ClusterTask) -> list[Cluster]:
        began = time.perf_counter()
        step, members, names = job.cluster.step, job.cluster.members, job.names
        self._jobs.pop(job, None)
        decided = [task.result() for task in job.tasks]
        intents = dict(zip(names, decided[0] if self.mode == "single_thread" else decided))
        if self.verify_views:
            self._look_again(job)
        outcome = self._with_states(intents, self.world.resolve(step, intents))
        still = {n: i.still_until for n, i in intents.items() if i.still_until > step + 1}
        if self.mode != "no_dependency":  # which runs an agent's own steps out of order
            self._law.judge(step, intents, outcome)
        record = self._log(job, outcome, still)
        self.world.apply(step, outcome)
        spawned, gone = self.roster.enact(step, outcome, still)
        self._seq += 1
        base, now = self.schedule.base_step, self._now()
        self.meter.committed(len(members), step - base)
        self._idle_since += [now] * len(spawned)
        self.meter.waited_s += [0.0] * len(spawned)
        for x in members:
            self._idle_since[x] = now
        ready = self.schedule.commit(
            members,
            [self.roster.pos[x] for x in members],
            still={self.roster.number[n]: s for n, s in still.items()} or None,
            spawned=spawned,
            gone=gone,
        )
        self._checkpoint(base)
        if self.on_commit is not None and record is not None:
            self.on_commit(record)
        self.meter.controller_s += time.perf_counter() - began
        return ready

    def _log(self, job: ClusterTask, outcome: StepOutcome, still: dict[AgentId, int]) -> Commit | None:
        """Writes the commit down before it happens; None if nobody keeps commits."""
        if self.store is None and self.on_commit is None:
            return None
        calls = sum(ctx.calls for ctx in job.contexts)
        about = (self._seq, job.cluster.step, tuple(job.names), outcome, job.viewed, job.start_s)
        record = Commit(*about, self._now(), calls, tuple(still.items()))
        if self.store is not None:
            self.store.commit(record)
        return record

    def _with_states(self, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> StepOutcome:
        """Adds to the outcome every private state that the step changed."""
        states = {
            n: i.state for n, i in intents.items() if i.state is not self.roster.state[self.roster.number[n]]
        }
        return replace(outcome, states={**states, **outcome.states}) if states else outcome

    def _look_again(self, job: ClusterTask) -> None:
        for name, view in zip(job.names, job.views):
            if self.world.view(name, job.cluster.step) != view:
                raise CausalityError(
                    f"what {name!r} saw at step {job.cluster.step} changed before its commit"
                )

    # ---- starting, stopping, going on ---------------------------------------------------------------------
    def _prepare(self, resume: bool, upto: int | None) -> None:
        if len(self.roster):
            raise ValueError("this Simulation has run already; make another one (it can resume the store)")
        bodies = self.world.reset(self.seed)
        for name in sorted(bodies):
            if name not in self.agents:
                raise ValueError(f"the world holds {name!r}, but there is no agent of that name")
            body = bodies[name]
            self.roster.admit(name, body.pos, body.reach, body.state, 0)
        if self.store is None:
            return
        self.store.begin({"seed": self.seed, "mode": self.mode, "agents": len(self.roster)})
        held = sum(1 for _ in self.store.commits())
        if held and not resume:
            raise ValueError(f"the store holds a run of {held} commits; resume it or name another one")
        keep = held if upto is None else upto
        if keep > held:
            raise ValueError(f"cannot resume from commit {keep}: the store holds {held}")
        self._rebuild(keep)
        self.store.cut(keep)
        self._ask.paid = {(c.agent, c.step, c.index): c for c in self.store.calls()}

    def _rebuild(self, keep: int) -> None:
        """Brings world and agents to where they were after `keep` commits."""
        assert self.store is not None
        last = self.store.last_checkpoint(keep)
        if last is not None:
            self.world.restore(last.state["world"])
            self.roster, self._seq = AgentTable.restored(last.state), last.seq
        for commit in self.store.commits():
            if self._seq <= commit.seq < keep:
                self.world.apply(commit.step, commit.outcome)
                self.roster.enact(commit.step, commit.outcome, dict(commit.still))
                for name in commit.members:
                    self.roster.first[self.roster.number[name]] += 1
                self._seq = commit.seq + 1

    def _checkpoint(self, base_before: int) -> None:
        every, base = self.checkpoint_every, self.schedule.base_step
        if not every or self.store is None or base // every == base_before // every:
            return
        state = {"world": self.world.snapshot(), **self.roster.snapshot(self.schedule.step)}
        self.store.checkpoint(Checkpoint(self._seq, state))
