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

from mixattn.evals.llm import CallFailed, Completion, Divergence, LanguageModel, digest
from serving.metropolis.calls import Gate, Patience, persist
from serving.metropolis.graph import Cluster, Spawn
from serving.metropolis.meter import Meter
from serving.metropolis.modes import Mode, Schedule, Sights, make
from serving.metropolis.rules import Reach, Rule, in_place
from serving.metropolis.space import Position
from serving.metropolis.store import Call, Checkpoint, Commit, Store, position
from serving.metropolis.world import (
    Agent,
    AgentId,
    CausalityError,
    Intent,
    Json,
    Outcome,
    StepContext,
    World,
    key,
)


class Aborted(RuntimeError):
    """A run that could not go on; its store holds every commit so far and can be resumed."""


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run: where everyone is, what they know, and what the run was like."""

    positions: dict[AgentId, Position]
    states: dict[AgentId, Json]
    steps: dict[AgentId, int]
    commits: int
    meter: Meter


@dataclass(slots=True, eq=False)
class Job:
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
        patience: Patience | None = None,
        checkpoint_every: int = 0,
        verify_views: bool = False,
        on_commit: Callable[[Commit], None] | None = None,
    ):
        self.world, self.agents, self.llm = world, agents, llm
        self.mode, self.seed, self.store = mode, seed, store
        self.barriers = frozenset(barriers)
        self.patience = patience or Patience()
        self.patience.check()
        self.checkpoint_every, self.verify_views, self.on_commit = checkpoint_every, verify_views, on_commit
        self.meter = Meter()
        self.names: list[AgentId] = []
        self.pos: list[Position] = []
        self.schedule: Schedule
        self._rule, self._sights = rule, sights
        self._gate = Gate(max_in_flight) if max_in_flight else None
        self._number: dict[AgentId, int] = {}
        self._reach: list[Reach] = []
        self._state: list[Json] = []
        self._still: list[int] = []
        self._step: list[int] = []  # only until the schedule takes over
        self._gone: set[int] = set()
        self._paid: dict[tuple[AgentId, int, int], Call] = {}
        self._seq = 0
        self._jobs: dict[Job, None] = {}
        self._acks: list[tuple[int, int, Job]] = []
        self._idle_since: list[float] = []
        self._now: Callable[[], float] = time.monotonic

    # ---- running ------------------------------------------------------------------------------------------
    def run_sync(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> Result:
        """`run` for callers without an event loop."""
        return asyncio.run(self.run(until_step, resume=resume, upto=upto))

    async def run(self, until_step: int, *, resume: bool = False, upto: int | None = None) -> Result:
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
        self._prepare(resume, upto)
        self.schedule = make(
            self.mode,
            self.world.space,
            until=until_step,
            rule=self._rule,
            barriers=self.barriers,
            sights=self._sights,
        )
        self.meter.start_s = self.meter._since_s = self._now()
        self._idle_since = [self.meter.start_s] * len(self.names)
        self.meter.waited_s = [0.0] * len(self.names)
        start = list(zip(self.pos, self._step, self._reach, self._still))
        try:
            await self._drive(self.schedule.start(start, self._gone))
        finally:
            await self._stop()
            self.meter.end_s = self._now()
            if self.store is not None:
                self.store.flush()
        self._check_finished(until_step)
        alive = [x for x in range(len(self.names)) if x not in self._gone]
        return Result(
            positions={self.names[x]: self.pos[x] for x in alive},
            states={self.names[x]: self._state[x] for x in alive},
            steps={self.names[x]: self.schedule.step[x] for x in alive},
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
        short = [x for x in range(len(steps)) if x not in self._gone and steps[x] < until]
        if short:
            name = self.names[short[0]]
            raise AssertionError(f"nothing can run, yet {name!r} is at step {steps[short[0]]} of {until}")

    # ---- one cluster --------------------------------------------------------------------------------------
    def _dispatch(self, cluster: Cluster) -> Job:
        now, step = self._now(), cluster.step
        names = [self.names[x] for x in cluster.members]
        contexts = [
            StepContext(name, step, self._state[x], self.seed, self._ask)
            for name, x in zip(names, cluster.members)
        ]
        views = [self.world.view(name, step) for name in names]
        job = Job(cluster, names, contexts, views, self._seq, now, [])
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

    async def _one_by_one(self, job: Job) -> list[Intent]:
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

    def _acknowledge(self, job: Job) -> None:
        job.pending -= 1
        if not job.pending:
            heappush(self._acks, (job.cluster.step, job.cluster.members[0], job))
            self._wake.set()

    def _commit(self, job: Job) -> list[Cluster]:
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
            self._validate(step, intents, outcome)
        now = self._now()
        if self.store is not None or self.on_commit is not None:
            calls = sum(ctx.calls for ctx in job.contexts)
            promises = tuple(still.items())
            record = Commit(
                self._seq, step, tuple(names), outcome, job.viewed, job.start_s, now, calls, promises
            )
            if self.store is not None:
                self.store.commit(record)
        spawned, gone = self._enact(step, outcome, still)
        self._seq += 1
        meter = self.meter
        meter.commits += 1
        meter.agent_steps += len(members)
        meter.clusters[len(members)] += 1
        meter.leads[step - self.schedule.base_step] += len(members)
        for x in members:
            self._idle_since[x] = now
        base = self.schedule.base_step
        ready = self.schedule.commit(
            members,
            [self.pos[x] for x in members],
            still={self._number[n]: s for n, s in still.items()} or None,
            spawned=spawned,
            gone=gone,
        )
        self._checkpoint(base)
        if self.on_commit is not None:
            self.on_commit(record)
        meter.controller_s += time.perf_counter() - began
        return ready

    def _with_states(self, intents: Mapping[AgentId, Intent], outcome: Outcome) -> Outcome:
        """Adds to the outcome every private state that the step changed."""
        states = {n: i.state for n, i in intents.items() if i.state is not self._state[self._number[n]]}
        return replace(outcome, states={**states, **outcome.states}) if states else outcome

    def _enact(self, step: int, outcome: Outcome, still: dict[AgentId, int]) -> tuple[list[Spawn], list[int]]:
        """Applies an outcome to the world and to the engine's own tables."""
        self.world.apply(step, outcome)
        number = self._number
        for name, pos in outcome.moves.items():
            self.pos[number[name]] = pos
        spawned = []
        for _, name, body in outcome.births:
            spawned.append(Spawn(len(self.names), body.pos, body.reach))
            self._admit(name, body.pos, body.reach, body.state, step + 1)
        for name, state in outcome.states.items():
            self._state[number[name]] = state
        for name, until in still.items():
            self._still[number[name]] = max(self._still[number[name]], until)
        gone = [number[name] for name in outcome.deaths]
        self._gone.update(gone)
        return spawned, gone

    def _admit(
        self, name: AgentId, pos: Position, reach: Reach, state: Json, step: int, still: int = 0
    ) -> None:
        self._number[name] = len(self.names)
        self.names.append(name)
        self.pos.append(pos)
        self._reach.append(reach)
        self._state.append(state)
        self._still.append(still)
        self._step.append(step)
        self._idle_since.append(self._now())
        self.meter.waited_s.append(0.0)

    # ---- the law ------------------------------------------------------------------------------------------
    def _validate(self, step: int, intents: Mapping[AgentId, Intent], outcome: Outcome) -> None:
        everywhere = step in self.barriers
        for name, pos in outcome.moves.items():
            x = self._member(name, step, intents, "moves")
            if pos != self.pos[x] and step < self._still[x]:
                raise CausalityError(
                    f"agent {name!r} promised to stay until step {self._still[x]}, but moves at step {step}"
                )
            if not everywhere:
                self._within(name, step, x, pos, self._reach[x].move, "moves")
        for name, at, _ in outcome.writes:
            x = self._member(name, step, intents, "writes")
            if not everywhere:
                self._within(name, step, x, at, self._reach[x].write, "writes")
        for name, child, body in outcome.births:
            x = self._member(name, step, intents, "has a child")
            self._within(name, step, x, body.pos, self._reach[x].move, "has a child")
            if child in self._number:
                raise CausalityError(f"agent {child!r}, born at step {step}, exists already")
            if not body.reach.within(self._reach[x]):
                raise CausalityError(
                    f"agent {child!r} would reach {body.reach}, its parent {name!r} only {self._reach[x]}"
                )
        born = {birth.id for birth in outcome.births}
        for name in outcome.deaths:
            self._member(name, step, intents, "dies")
        for name in outcome.states:
            if name not in born:
                self._member(name, step, intents, "changes state")

    def _member(self, name: AgentId, step: int, intents: Mapping[AgentId, Intent], does: str) -> int:
        if name not in intents:
            raise CausalityError(f"agent {name!r} {does} at step {step} in a commit it has no part in")
        return self._number[name]

    def _within(self, name: AgentId, step: int, x: int, at: Position, limit: float, does: str) -> None:
        distance = self.world.space.distance(self.pos[x], at)
        if distance > limit:
            raise CausalityError(
                f"agent {name!r} {does} {distance} away at step {step}, from {self.pos[x]} to {at};"
                f" its reach is {limit}"
            )

    def _look_again(self, job: Job) -> None:
        for name, view in zip(job.names, job.views):
            if self.world.view(name, job.cluster.step) != view:
                raise CausalityError(
                    f"what {name!r} saw at step {job.cluster.step} changed before its commit"
                )

    # ---- calls --------------------------------------------------------------------------------------------
    async def _ask(self, ctx: StepContext, index, prompt, max_tokens, temperature, stop) -> Completion:
        paid = self._paid.pop((ctx.agent, ctx.step, index), None)
        if paid is not None:
            if paid.prompt_digest != digest(prompt):
                raise Divergence(
                    f"agent {ctx.agent!r} at step {ctx.step}, call {index}, was answered when it asked"
                    f" {paid.prompt!r} and now asks {prompt!r}"
                )
            self.meter.reused += 1
            return paid.completion
        seed = key(self.seed, ctx.agent, ctx.step, index)
        start_s = self._now()

        async def attempt() -> Completion:
            self.meter.flight(+1, self._now())
            try:
                return await self.llm.complete(
                    prompt,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                    priority=ctx.step,
                    client=ctx.agent,
                    stop=stop,
                )
            finally:
                self.meter.flight(-1, self._now())

        if self._gate is None:
            done, retries = await persist(attempt, self.patience)
        else:
            async with self._gate.enter(ctx.step):
                done, retries = await persist(attempt, self.patience)
        self.meter.calls += 1
        self.meter.retries += retries
        self.meter.prompt_tok += done.usage.prompt_tok
        self.meter.output_tok += done.usage.output_tok
        if self.store is not None:
            text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
            row = (ctx.agent, ctx.step, index, text, digest(prompt), done, start_s, self._now(), retries)
            self.store.call(Call(*row))
        return done

    # ---- starting, stopping, going on ---------------------------------------------------------------------
    def _prepare(self, resume: bool, upto: int | None) -> None:
        if self.names:
            raise ValueError("this Simulation has run already; make another one (it can resume the store)")
        bodies = self.world.reset(self.seed)
        for name in sorted(bodies):
            if name not in self.agents:
                raise ValueError(f"the world holds {name!r}, but there is no agent of that name")
            body = bodies[name]
            self._admit(name, body.pos, body.reach, body.state, 0)
        if self.store is None:
            return
        self.store.begin({"seed": self.seed, "mode": self.mode, "agents": len(self.names)})
        held = sum(1 for _ in self.store.commits())
        if held and not resume:
            raise ValueError(f"the store holds a run of {held} commits; resume it or name another one")
        keep = held if upto is None else upto
        if keep > held:
            raise ValueError(f"cannot resume from commit {keep}: the store holds {held}")
        self._rebuild(keep)
        self.store.cut(keep)
        self._paid = {(c.agent, c.step, c.index): c for c in self.store.calls()}

    def _rebuild(self, keep: int) -> None:
        """Brings world and agents to where they were after `keep` commits."""
        assert self.store is not None
        last = self.store.last_checkpoint(keep)
        if last is not None:
            self._restore(last)
        for commit in self.store.commits():
            if self._seq <= commit.seq < keep:
                self._enact(commit.step, commit.outcome, dict(commit.still))
                for name in commit.members:
                    self._step[self._number[name]] += 1
                self._seq = commit.seq + 1

    def _checkpoint(self, base_before: int) -> None:
        every, base = self.checkpoint_every, self.schedule.base_step
        if not every or self.store is None or base // every == base_before // every:
            return
        agents = [
            [n, self.pos[x], self.schedule.step[x], _numbers(self._reach[x]), self._still[x], self._state[x]]
            for n, x in self._number.items()
        ]
        state = {"world": self.world.snapshot(), "agents": agents, "gone": sorted(self._gone)}
        self.store.checkpoint(Checkpoint(self._seq, state))

    def _restore(self, checkpoint: Checkpoint) -> None:
        for table in (self.names, self.pos, self._reach, self._state, self._still, self._step):
            table.clear()
        self._number.clear()
        self.world.restore(checkpoint.state["world"])
        for name, pos, step, reach, still, state in checkpoint.state["agents"]:
            self._admit(name, position(pos), Reach(*reach), state, step, still)
        self._gone = set(checkpoint.state["gone"])
        self._seq = checkpoint.seq


def _numbers(reach: Reach) -> list[float]:
    return [reach.perceive, reach.move, reach.write]
