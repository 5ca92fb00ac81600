"""Random worlds in which every decision depends on everything in reach, so that one wrong read is visible.

An agent's move, mark and memory are hashes of its view, its memory and the model's replies.
"""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixattn.evals.llm import CallFailed, Completion, Prompt, Usage
from serving.metropolis import (
    Agent,
    Body,
    Grid,
    Hops,
    InMemoryStore,
    Intent,
    Reach,
    Simulation,
    SimulationRun,
    StepContext,
    StepOutcome,
    Write,
)
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.store import Commit, Store
from serving.metropolis.schedule.rules import Margin
from serving.metropolis.schedule.schedulers import Mode
from serving.metropolis.schedule.space import METRICS, Position, Space
from serving.metropolis.world import AgentId, Birth, stable_hash

type Ball = Callable[[Position, float], Sequence[Position]]
"""(center, radius) -> the cells within the radius."""
type Versions = list[tuple[int, Any]]
"""(version, value), oldest first."""


class MarkWorld:
    """Agents leave marks on cells. `versioned` keeps old marks and positions and answers views by step."""

    def __init__(
        self, bodies: Mapping[AgentId, Body], *, space: Space, around: Ball, versioned: bool = False
    ) -> None:
        self.space, self.versioned = space, versioned
        self._bodies, self._around = bodies, around
        self.reset(0)

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        self.marks: dict[Position, Versions] = {}  # by cell; one version only if not `versioned`
        self.places: dict[AgentId, Versions] = {name: [(0, body.pos)] for name, body in self._bodies.items()}
        self.reach = {name: body.reach for name, body in self._bodies.items()}
        return self._bodies

    def _at(self, versions: Versions, step: int) -> Any:
        if not self.versioned:
            return versions[-1][1]
        return next((value for version, value in reversed(versions) if version <= step), None)

    def view(self, agent: AgentId, step: int) -> Any:
        here = self._at(self.places[agent], step)
        near = set(self._around(here, self.reach[agent].perceive))
        marks = sorted((str(c), self._at(self.marks[c], step)) for c in near if c in self.marks)
        others = sorted((n, str(self._at(p, step))) for n, p in self.places.items())
        seen = {str(c) for c in near}
        marks = [(c, m) for c, m in marks if m is not None]
        return str(here), tuple(marks), tuple((n, p) for n, p in others if p in seen), here

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        claims: dict[Position, tuple[int, AgentId]] = {}
        for name, intent in sorted(intents.items()):
            cell, mark = intent.action["mark"]
            claims[cell] = max(claims.get(cell, (-1, "")), (mark, name))
        moves = {name: intent.action["to"] for name, intent in intents.items()}
        return StepOutcome(moves=moves, writes=[Write(n, cell, mark) for cell, (mark, n) in claims.items()])

    def apply(self, step: int, outcome: StepOutcome) -> None:
        for name, pos in outcome.moves.items():
            self._put(self.places[name], step + 1, pos)
        for birth in outcome.births:
            self.places[birth.id] = [(step + 1, birth.body.pos)]
            self.reach[birth.id] = birth.body.reach
        for name in outcome.deaths:
            del self.places[name]
        for _, cell, mark in outcome.writes:
            self._put(self.marks.setdefault(cell, []), step + 1, mark)

    def _put(self, versions: Versions, version: int, value: Any) -> None:
        if not self.versioned:
            versions[:] = [(version, value)]
        else:
            versions.append((version, value))
            versions.sort()

    def cells(self) -> dict[str, Any]:
        """The last mark of every marked cell."""
        return {str(cell): versions[-1][1] for cell, versions in self.marks.items()}

    def snapshot(self) -> Any:
        return {
            "marks": [[c, e] for c, e in self.marks.items()],
            "places": [[n, e] for n, e in self.places.items()],
            "reach": [[n, r.perceive, r.move, r.write] for n, r in self.reach.items()],
        }

    def restore(self, snapshot: Any) -> None:
        def cell(value: Any) -> Position:
            return tuple(value) if isinstance(value, list) else value

        self.marks = {cell(c): [tuple(e) for e in versions] for c, versions in snapshot["marks"]}
        self.places = {n: [(v, cell(p)) for v, p in versions] for n, versions in snapshot["places"]}
        self.reach = {n: Reach(*rest) for n, *rest in snapshot["reach"]}


@dataclass
class Wanderer:
    """Derives its actions from a hash of all it knows; calls the model in about half of its steps."""

    around: Ball
    move: float
    write: float
    stay_for: int = 0  # now and then it promises to stay for this many steps

    async def proceed(self, view: Any, ctx: StepContext) -> Intent:
        here, marks, others, pos = view
        memory, still = (ctx.state or "0 0").split()
        bits = stable_hash(ctx.step, here, str(marks), str(others), memory, str(ctx.rng.random()))
        replies = [(await ctx.llm(f"{bits} {i}")).text for i in range(bits % 3 if bits % 7 < 4 else 0)]
        bits = stable_hash(bits, *replies)
        near = self.around(pos, self.move)
        to = near[bits % len(near)] if ctx.step >= int(still) else pos
        until = int(still)
        if self.stay_for and bits % 5 == 0 and ctx.step >= until:
            until = ctx.step + 1 + self.stay_for
        marked = self.around(pos, self.write)[(bits >> 8) % len(self.around(pos, self.write))]
        return Intent(
            {"to": to, "mark": (marked, (bits >> 16) % 1000)}, state=f"{bits} {until}", still_until=until
        )

    def fallback(self, view: Any, ctx: StepContext) -> Intent:
        pos = view[3]
        memory, still = (ctx.state or "0 0").split()
        return Intent({"to": pos, "mark": (pos, 7)}, state=f"{stable_hash(memory, 'silent')} {still}")


class RandomLatencyModel:
    """A model whose replies depend on prompt and seed only and whose latencies are random.

    Args:
      slow: clients whose calls take a thousand times as long.
      fail, hang: shares of attempts that raise or never return; each attempt draws anew.
      even: a call takes the same time in every run, for runs whose lengths are compared.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        slow: Iterable[AgentId] = (),
        fail: float = 0.0,
        hang: float = 0.0,
        even: bool = False,
    ) -> None:
        self._even = even
        self._draw, self._slow, self._fail, self._hang = random.Random(seed), slow, fail, hang
        self.attempts = 0

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 0,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        client: str = "",
        stop: Sequence[str] = (),
    ) -> Completion:
        self.attempts += 1
        luck = self._draw.random()
        if luck < self._fail:
            raise CallFailed("the server is busy", transient=True)
        if luck < self._fail + self._hang:
            await asyncio.sleep(1e9)
        if self._even:
            wait_s = stable_hash(client, seed or 0, "latency") % 1000 / 500
        else:
            wait_s = self._draw.expovariate(1.0)
        await asyncio.sleep(wait_s * (1000 if client in self._slow else 1))
        return Completion(str(stable_hash(str(prompt), seed or 0)), Usage(1, 1))


def grid_ball(metric: str, size: int | None = None) -> Ball:
    """Cells within a radius under `metric`, inside a square of `size` if given; sorted."""
    distance = METRICS[metric]
    known: dict[tuple[Position, float], list[Position]] = {}

    def around(pos: Position, radius: float) -> list[Position]:
        if (pos, radius) not in known:
            r = int(min(radius, 10_000 if size is None else size))
            span = range(-r, r + 1)
            cells = [(pos[0] + i, pos[1] + j) for i in span for j in span]
            known[pos, radius] = [
                c
                for c in cells
                if distance(pos, c) <= radius and (size is None or (0 <= c[0] < size and 0 <= c[1] < size))
            ]
        return known[pos, radius]

    return around


def hop_ball(space: Hops) -> Ball:
    """Nodes within a number of hops, nearest first."""

    def around(pos: Position, radius: float) -> list[Position]:
        rings = (ring for hops, ring in enumerate(space.rings(pos)) if hops <= radius)
        return [node for ring in rings for node in ring]

    return around


@dataclass(frozen=True)
class Case:
    """A random world: reaches to draw from, the world's metric (or "graph") and the rule's, if it differs."""

    seed: int
    reaches: tuple[Reach, ...] = (Reach(4, 1),)
    agents: int = 8
    size: int = 24
    steps: int = 12
    metric: str = "chebyshev"
    rule_metric: str | None = None
    stay_for: int = 0
    versioned: bool = False


def ring_with_chords(n: int, seed: int) -> Hops:
    """A ring of `n` nodes with n / 4 random chords."""
    draw = random.Random(seed)
    edges = {i: {(i + 1) % n, (i - 1) % n} - {i} for i in range(n)}
    for _ in range(n // 4):
        a, b = draw.sample(range(n), 2)
        edges[a].add(b)
        edges[b].add(a)
    return Hops({i: sorted(e) for i, e in edges.items()})


def build(case: Case) -> tuple[MarkWorld, dict[AgentId, Wanderer]]:
    """The world of a case and its agents."""
    draw = random.Random(f"world {case.seed}")
    space: Space
    if case.metric == "graph":
        space = graph = ring_with_chords(case.size * 2, case.seed)
        around = hop_ball(graph)
        spots: list[Position] = [draw.randrange(case.size * 2) for _ in range(case.agents)]
    else:
        space = Grid(case.rule_metric or case.metric)  # type: ignore[arg-type]
        around = grid_ball(case.metric, case.size)
        spots = [(draw.randrange(case.size), draw.randrange(case.size)) for _ in range(case.agents)]
    bodies = {
        f"a{i:02}": Body(pos, case.reaches[draw.randrange(len(case.reaches))]) for i, pos in enumerate(spots)
    }
    # Where rule and world measure differently, moves are limited to what both allow: only vision differs.
    steps = grid_ball("euclidean", case.size) if case.rule_metric else around
    agents = {n: Wanderer(steps, b.reach.move, b.reach.write, case.stay_for) for n, b in bodies.items()}
    return MarkWorld(bodies, space=space, around=around, versioned=case.versioned), agents


class Nursery(MarkWorld):
    """At step 3 the first two agents each have a child; at step 6 the third dies."""

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        out = MarkWorld.resolve(self, step, intents)
        if step == 3:
            out.births = [
                Birth(n, n + "x", Body(self.places[n][-1][1], Reach(2, 1)))
                for n in ("a00", "a01")
                if n in intents
            ]
        if step == 6 and "a02" in intents:
            out.deaths = ["a02"]
            out.moves = {n: p for n, p in out.moves.items() if n != "a02"}
        return out


def build_nursery(case: Case) -> tuple[Nursery, dict[AgentId, Wanderer]]:
    """A case with births and a death, and its agents."""
    world, agents = build(case)
    nursery = Nursery(world._bodies, space=world.space, around=world._around)
    return nursery, {**agents, **{n + "x": agents[n] for n in ("a00", "a01")}}


@dataclass
class RunRecord:
    """Everything in which two runs could differ."""

    positions: dict[AgentId, Position]
    states: dict[AgentId, Any]
    cells: dict[str, Any]
    history: dict[AgentId, list[tuple[int, str, str]]]
    log: list[Commit]
    stats: RunStats


def run_case(
    case: Case,
    mode: Mode = "metropolis",
    *,
    latency: int = 0,
    world: MarkWorld | None = None,
    agents: Mapping[AgentId, Agent] | None = None,
    llm: Any = None,
    store: Store | None = None,
    **options: Any,
) -> RunRecord:
    """Runs a case in virtual time. `latency` seeds the model's latencies."""
    if world is None or agents is None:
        world, agents = build(case)
    store = store or InMemoryStore()
    llm = llm or RandomLatencyModel(latency)
    sim = Simulation(world, agents, llm, mode=mode, seed=case.seed, store=store, **options)
    result = run_virtual(sim.run(case.steps))
    return record_run(result, world, store)


def record_run(result: SimulationRun, world: MarkWorld, store: Store) -> RunRecord:
    """Collects what `same_end` compares."""
    log = list(store.commits())
    history: dict[AgentId, list[tuple[int, str, str]]] = {}
    for commit in log:
        for name in commit.members:
            marks = sorted((str(at), v) for who, at, v in commit.outcome.writes if who == name)
            history.setdefault(name, []).append(
                (commit.step, str(commit.outcome.moves.get(name)), str(marks))
            )
    return RunRecord(result.positions, result.states, world.cells(), history, log, result.stats)


def same_end(a: RunRecord, b: RunRecord) -> bool:
    """True if both runs made the same moves and marks and ended in the same state."""
    return (a.positions, a.states, a.cells, a.history) == (b.positions, b.states, b.cells, b.history)


def max_lead(distance: float, margin: Margin, move: float) -> float:
    """Steps that A can be ahead of a B that never commits, at this distance (from section 3.2).

    Infinite if B cannot move and is out of reach.
    """
    if distance <= margin.couple:
        return 0
    if move == 0:
        return math.inf
    return math.ceil((distance - margin.block) / move)
