"""The controller: out-of-order simulation with the results of lock-step execution, in one asyncio task.

The members of a ready cluster take their views and run `proceed` concurrently. After the last decision the
controller resolves, validates, logs and applies the outcome without an await in between, so a commit is
atomic. Steps without a model call never wait for the event loop.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from mixattn.evals.llm import CallFailed, LanguageModel, RetryPolicy
from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.runtime.llm_calls import LlmCalls
from serving.metropolis.runtime.reach_check import ReachCheck
from serving.metropolis.runtime.recovery import (
    commits_to_keep,
    initial_table,
    make_checkpoint,
    recover,
    start_facts,
)
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.semaphore import PrioritySemaphore
from serving.metropolis.runtime.store import Commit, Store
from serving.metropolis.runtime.view_check import DEFAULT_SHARE, ViewCheck
from serving.metropolis.schedule.dependency_graph import Cluster
from serving.metropolis.schedule.rules import Rule, in_place
from serving.metropolis.schedule.schedulers import Mode, Schedule, Sights, make_schedule
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
    """A run was stopped by a failed call. Its store holds every commit so far and can be resumed."""


@dataclass(frozen=True, slots=True)
class SimulationRun:
    """The result of a run: final positions, private states and steps by agent, and statistics."""

    positions: dict[AgentId, Position]
    states: dict[AgentId, Json]
    steps: dict[AgentId, int]
    commits: int
    stats: RunStats


@dataclass(slots=True, eq=False)
class ClusterTask:
    """A running cluster.

    Attributes:
      viewed: commits applied before the members took their views.
      pending: members that have not decided.
    """

    cluster: Cluster
    names: list[AgentId]
    contexts: list[StepContext]
    views: list[Any]
    viewed: int
    start_s: float
    tasks: list[asyncio.Task[Any]]
    pending: int = 0


class Simulation:
    """Runs `agents` in `world` up to a step. All five modes give the same results.

    Args:
      world, agents: see module `world`. `agents` maps a name to its Agent, including agents born during the
        run.
      llm: any `mixattn.evals.llm.LanguageModel`.
      mode: the schedule; see `schedulers`.
      seed: of the world, of every `ctx.rng` and of every call.
      store: the log of commits and calls; None keeps none.
      rule: the margins; `rules.multi_version` needs a world that answers by version.
      barriers: steps that all agents run together; their views and writes may be global.
      sights: for mode `oracle`, the perceived agents; see `schedulers.Sights`. Agents are numbered by sorted
        name.
      max_in_flight: limit of concurrent model calls; of those that wait, the earliest step is first. 0: no
        limit.
      retry_policy: deadline and retries of a call.
      checkpoint_every: base steps between checkpoints of the world; 0 makes none.
      verify_views: share of the commits at which views are tested (`view_check`); CausalityError if one shows
        more than its agent perceives. True tests all, 0 none.
      on_commit: called with every commit after it is applied.
      on_fallback: called with agent, step and cause whenever an agent's `fallback` decides.
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
        retry_policy: RetryPolicy | None = None,
        checkpoint_every: int = 0,
        verify_views: float = DEFAULT_SHARE,
        on_commit: Callable[[Commit], None] | None = None,
        on_fallback: Callable[[AgentId, int, CallFailed], None] | None = None,
    ) -> None:
        self.world, self.agents, self.llm = world, agents, llm
        self.mode, self.seed, self.store = mode, seed, store
        self.barriers = frozenset(barriers)
        self.retry_policy = retry_policy or RetryPolicy()
        self.retry_policy.check()
        self.checkpoint_every, self.verify_views, self.on_commit = checkpoint_every, verify_views, on_commit
        self.on_fallback = on_fallback
        self.stats = RunStats()
        self.agent_table = AgentTable()
        self.schedule: Schedule
        self._rule, self._sights = rule, sights
        self._semaphore = PrioritySemaphore(max_in_flight) if max_in_flight else None
        self._seq = 0  # of the next commit
        self._running: dict[ClusterTask, None] = {}
        self._decided: list[tuple[int, int, ClusterTask]] = []  # heap of tasks to commit, by step
        self._idle_since_s: list[float] = []
        self._now: Callable[[], float] = time.monotonic

    def run_sync(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> SimulationRun:
        """Calls `run` from code without an event loop."""
        return asyncio.run(self.run(until_step, resume=resume, upto=upto))

    async def run(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> SimulationRun:
        """Advances all agents to `until_step`.

        Args:
          resume: continue the run in the store; without it the store must be empty.
          upto: with `resume`, keep only this many commits and continue from there.

        Raises:
          ValueError: the store holds a different run.
          CausalityError: an agent acted beyond its reach.
          Aborted: a call failed after its last retry and its agent has no `fallback`.
        """
        self._loop = asyncio.get_running_loop()
        self._now, self._wake = self._loop.time, asyncio.Event()
        self._llm_calls = LlmCalls(
            llm=self.llm,
            seed=self.seed,
            retry_policy=self.retry_policy,
            semaphore=self._semaphore,
            store=self.store,
            stats=self.stats,
            now=self._now,
        )
        self._load(resume, upto)
        table = self.agent_table
        self._reach_check = ReachCheck(table, self.world.space, self.barriers)
        self._view_check = ViewCheck(self.world, table, float(self.verify_views), self.barriers)
        self._until = until_step
        self.schedule = make_schedule(
            self.mode,
            self.world.space,
            until=until_step,
            rule=self._rule,
            barriers=self.barriers,
            sights=self._sights,
        )
        self.stats.begin(self._now(), len(table))
        self._idle_since_s = [self.stats.start_s] * len(table)
        agents = list(zip(table.pos, table.start_step, table.reach, table.still_until))
        try:
            await self._drive(self.schedule.start(agents, table.removed))
        finally:
            await self._cancel_tasks()
            self.stats.end_s = self._now()
            if self.store is not None:
                self.store.flush()
        self._check_finished(until_step)
        names, alive = table.names, table.alive()
        return SimulationRun(
            positions={names[x]: table.pos[x] for x in alive},
            states={names[x]: table.state[x] for x in alive},
            steps={names[x]: self.schedule.step[x] for x in alive},
            commits=self._seq,
            stats=self.stats,
        )

    def _load(self, resume: bool, upto: int | None) -> None:
        """Initializes world and agents, from the store if it holds commits."""
        if len(self.agent_table):
            raise ValueError("this Simulation has run already; make another one (it can resume the store)")
        self.agent_table = initial_table(self.world, self.agents, self.seed)
        if self.store is None:
            return
        self.store.begin({"seed": self.seed, "mode": self.mode, "agents": len(self.agent_table)})
        if "start" not in self.store.about():
            self.store.begin(start_facts(self.world.space, self.agent_table, self._rule, self.barriers))
        keep = commits_to_keep(self.store, resume, upto)
        self.agent_table, self._seq = recover(self.store, self.world, self.agent_table, keep)
        self.store.truncate(keep)
        self._llm_calls.recorded = {(c.agent, c.step, c.index): c for c in self.store.calls()}

    async def _drive(self, ready: list[Cluster]) -> None:
        """Dispatches ready clusters and commits decided ones, earliest step first, until none is left."""
        queue: list[tuple[int, int, Cluster]] = []
        order = turns = 0
        while True:
            for cluster in ready:
                heappush(queue, (cluster.step, order, cluster))
                order += 1
            ready = []
            if self._decided:
                ready = self._commit(heappop(self._decided)[2])
            elif queue:
                task = self._dispatch(heappop(queue)[2])
                if not task.pending:
                    ready = self._commit(task)
            elif self._running:
                self._wake.clear()
                await self._wake.wait()
            else:
                return
            turns += 1
            if turns % 1024 == 0:  # let timers, progress displays and Ctrl-C run
                await asyncio.sleep(0)

    async def _cancel_tasks(self) -> None:
        tasks = [task for cluster_task in self._running for task in cluster_task.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self._decided.clear()

    def _check_finished(self, until: int) -> None:
        steps = self.schedule.step
        unfinished = [x for x in self.agent_table.alive() if steps[x] < until]
        if unfinished:
            x = unfinished[0]
            raise AssertionError(
                f"no cluster can run, yet {self.agent_table.names[x]!r} is at step {steps[x]} of {until}"
            )

    # ---- one cluster --------------------------------------------------------------------------------------
    def _dispatch(self, cluster: Cluster) -> ClusterTask:
        """Takes the members' views and starts their decisions."""
        now, step, table = self._now(), cluster.step, self.agent_table
        names = [table.names[x] for x in cluster.members]
        contexts = [
            StepContext(name, step, table.state[x], self.seed, self._llm_calls)
            for name, x in zip(names, cluster.members)
        ]
        views = [self.world.view(name, step) for name in names]
        cluster_task = ClusterTask(cluster, names, contexts, views, self._seq, now, [])
        for x in cluster.members:
            self.stats.waited_s[x] += now - self._idle_since_s[x]
        decisions: list[Coroutine[Any, Any, Any]]
        if self.mode == "single_thread":
            decisions = [self._decide_in_turn(cluster_task)]
        else:
            decisions = [self._decide(*each) for each in zip(names, views, contexts)]
        for coroutine in decisions:
            task = asyncio.Task(coroutine, loop=self._loop, eager_start=True)
            cluster_task.tasks.append(task)
            if not task.done():
                cluster_task.pending += 1
                task.add_done_callback(lambda _, mine=cluster_task: self._member_decided(mine))  # type: ignore[misc]
        if cluster_task.pending:
            self._running[cluster_task] = None
        return cluster_task

    async def _decide_in_turn(self, task: ClusterTask) -> list[Intent]:
        return [await self._decide(*each) for each in zip(task.names, task.views, task.contexts)]

    async def _decide(self, name: AgentId, view: Any, ctx: StepContext) -> Intent:
        agent = self.agents[name]
        try:
            return await agent.proceed(view, ctx)
        except CallFailed as error:
            fallback = getattr(agent, "fallback", None)
            if fallback is None:
                raise Aborted(
                    f"agent {name!r} at step {ctx.step}: {error}; {self._seq} commits are kept to resume from"
                ) from error
            self.stats.fallbacks += 1
            if self.on_fallback is not None:
                self.on_fallback(name, ctx.step, error)
            return fallback(view, ctx)

    def _member_decided(self, task: ClusterTask) -> None:
        task.pending -= 1
        if not task.pending:
            heappush(self._decided, (task.cluster.step, task.cluster.members[0], task))
            self._wake.set()

    def _commit(self, task: ClusterTask) -> list[Cluster]:
        """Resolves, validates, logs and applies a decided cluster; returns the clusters that may run now."""
        began_s = time.perf_counter()
        step, members, names = task.cluster.step, task.cluster.members, task.names
        self._running.pop(task, None)
        decided = [each.result() for each in task.tasks]
        intents = dict(zip(names, decided[0] if self.mode == "single_thread" else decided))
        tested = self.mode not in ("no_dependency", "oracle") and self._view_check.is_due()
        if tested:
            self._view_check.check_taken(step, names, task.views)
        outcome = self._add_states(intents, self.world.resolve(step, intents))
        still = {n: i.still_until for n, i in intents.items() if i.still_until > step + 1}
        if self.mode != "no_dependency":  # it runs an agent's own steps out of order
            self._reach_check.validate(step, intents, outcome)
        probe = (
            self._view_check.probe(step, names, outcome, self.schedule.step, self._until) if tested else None
        )
        record = self._log_commit(task, outcome, still)
        self.world.apply(step, outcome)
        self._view_check.check_probe(probe, step)
        spawned, removed = self.agent_table.apply(step, outcome, still)
        self._seq += 1
        base, now = self.schedule.base_step, self._now()
        self.stats.record_commit(len(members), step - base)
        self._idle_since_s += [now] * len(spawned)
        self.stats.waited_s += [0.0] * len(spawned)
        for x in members:
            self._idle_since_s[x] = now
        ready = self.schedule.commit(
            members,
            [self.agent_table.pos[x] for x in members],
            still={self.agent_table.number[n]: s for n, s in still.items()} or None,
            spawned=spawned,
            removed=removed,
        )
        self._maybe_checkpoint(base)
        if self.on_commit is not None and record is not None:
            self.on_commit(record)
        self.stats.controller_s += time.perf_counter() - began_s
        return ready

    def _log_commit(
        self, task: ClusterTask, outcome: StepOutcome, still: Mapping[AgentId, int]
    ) -> Commit | None:
        """Logs a commit before it is applied; returns None if there is neither a store nor a callback."""
        if self.store is None and self.on_commit is None:
            return None
        record = Commit(
            seq=self._seq,
            step=task.cluster.step,
            members=tuple(task.names),
            outcome=outcome,
            viewed=task.viewed,
            start_s=task.start_s,
            end_s=self._now(),
            calls=sum(ctx.calls for ctx in task.contexts),
            still=tuple(still.items()),
        )
        if self.store is not None:
            try:
                self.store.commit(record)
            except (TypeError, ValueError) as why:  # before anything is written
                raise CausalityError(
                    f"agents {', '.join(task.names)} at step {record.step} do what JSON cannot hold: {why}"
                ) from why
        return record

    def _add_states(self, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> StepOutcome:
        """Adds to the outcome every private state that the step changed."""
        table = self.agent_table
        states = {n: i.state for n, i in intents.items() if i.state is not table.state[table.number[n]]}
        return replace(outcome, states={**states, **outcome.states}) if states else outcome

    def _maybe_checkpoint(self, base_before: int) -> None:
        """Writes a checkpoint if the base step has passed a multiple of `checkpoint_every`."""
        every, base = self.checkpoint_every, self.schedule.base_step
        if not every or self.store is None or base // every == base_before // every:
            return
        self.store.checkpoint(make_checkpoint(self._seq, self.world, self.agent_table, self.schedule.step))
