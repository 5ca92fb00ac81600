"""Random worlds in which everything depends on everything in reach, so that one wrong read shows.

An agent's move, mark and memory are hashes of all it sees, of its memory and of what the model replied.
"""

import asyncio
import math
import random
from dataclasses import dataclass

from mixattn.evals.llm import Completion, Usage
from serving.metropolis import Body, Grid, Hops, InMemoryStore, Intent, Reach, Simulation, StepOutcome, Write
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.schedule.space import METRICS
from serving.metropolis.world import key


class MarkWorld:
    """Agents leave marks on cells. `versioned` keeps old marks and places and answers by step."""

    def __init__(self, bodies, *, space, around, versioned=False):
        self.space, self.versioned = space, versioned
        self._bodies, self._around = bodies, around
        self.reset(0)

    def reset(self, seed):
        self.marks = {}  # cell -> [(version, mark)], one entry only if not versioned
        self.places = {name: [(0, body.pos)] for name, body in self._bodies.items()}
        self.reach = {name: body.reach for name, body in self._bodies.items()}
        return self._bodies

    def _at(self, entries, step):
        if not self.versioned:
            return entries[-1][1]
        return next((value for version, value in reversed(entries) if version <= step), None)

    def view(self, agent, step):
        here = self._at(self.places[agent], step)
        near = set(self._around(here, self.reach[agent].perceive))
        marks = sorted((str(c), self._at(self.marks[c], step)) for c in near if c in self.marks)
        others = sorted((n, str(self._at(p, step))) for n, p in self.places.items())
        seen = {str(c) for c in near}
        marks = [(c, m) for c, m in marks if m is not None]
        return str(here), tuple(marks), tuple((n, p) for n, p in others if p in seen), here

    def resolve(self, step, intents):
        claims = {}
        for name, intent in sorted(intents.items()):
            cell, mark = intent.action["mark"]
            claims[cell] = max(claims.get(cell, (-1, "")), (mark, name))
        moves = {name: intent.action["to"] for name, intent in intents.items()}
        return StepOutcome(moves=moves, writes=[Write(n, cell, mark) for cell, (mark, n) in claims.items()])

    def apply(self, step, outcome):
        for name, pos in outcome.moves.items():
            self._put(self.places[name], step + 1, pos)
        for birth in outcome.births:
            self.places[birth.id] = [(step + 1, birth.body.pos)]
            self.reach[birth.id] = birth.body.reach
        for name in outcome.deaths:
            del self.places[name]
        for _, cell, mark in outcome.writes:
            self._put(self.marks.setdefault(cell, []), step + 1, mark)

    def _put(self, entries, version, value):
        if not self.versioned:
            entries[:] = [(version, value)]
        else:
            entries.append((version, value))
            entries.sort()

    def cells(self):
        return {str(cell): entries[-1][1] for cell, entries in self.marks.items()}

    def snapshot(self):
        return {
            "marks": [[c, e] for c, e in self.marks.items()],
            "places": [[n, e] for n, e in self.places.items()],
            "reach": [[n, r.perceive, r.move, r.write] for n, r in self.reach.items()],
        }

    def restore(self, snapshot):
        def cell(value):
            return tuple(value) if isinstance(value, list) else value

        self.marks = {cell(c): [tuple(e) for e in entries] for c, entries in snapshot["marks"]}
        self.places = {n: [(v, cell(p)) for v, p in entries] for n, entries in snapshot["places"]}
        self.reach = {n: Reach(*rest) for n, *rest in snapshot["reach"]}


@dataclass
class Wanderer:
    """Hashes what it knows into what it does; asks the model in about half of its steps."""

    around: object
    move: float
    write: float
    stay_for: int = 0  # promises to stand still this long, now and then

    async def proceed(self, view, ctx):
        here, marks, others, pos = view
        memory = ctx.state or "0 0"
        told, still = memory.split()
        draw = key(ctx.step, here, str(marks), str(others), told, ctx.rng.random())
        replies = [(await ctx.llm(f"{draw} {i}")).text for i in range(draw % 3 if draw % 7 < 4 else 0)]
        draw = key(draw, *replies)
        near = self.around(pos, self.move)
        to = near[draw % len(near)] if ctx.step >= int(still) else pos
        until = int(still)
        if self.stay_for and draw % 5 == 0 and ctx.step >= until:
            until = ctx.step + 1 + self.stay_for
        marked = self.around(pos, self.write)[(draw >> 8) % len(self.around(pos, self.write))]
        return Intent(
            {"to": to, "mark": (marked, (draw >> 16) % 1000)}, state=f"{draw} {until}", still_until=until
        )

    def fallback(self, view, ctx):
        pos = view[3]
        told, still = (ctx.state or "0 0").split()
        return Intent({"to": pos, "mark": (pos, 7)}, state=f"{key(told, 'silent')} {still}")


class Muddle:
    """A model whose words depend on the question only and whose answers take unpredictable times.

    `fail` and `hang` are shares of attempts that raise or never return; the next attempt draws anew.
    `even`: a call takes the same time in every run, for runs whose lengths are compared.
    """

    def __init__(self, seed=0, *, slow=(), fail=0.0, hang=0.0, even=False):
        self._even = even
        self._draw, self._slow, self._fail, self._hang = random.Random(seed), slow, fail, hang
        self.asked = 0

    async def complete(
        self, prompt, *, max_tokens=0, temperature=0.0, seed=None, priority=0, client="", stop=()
    ) -> Completion:
        from mixattn.evals.llm import CallFailed

        self.asked += 1
        luck = self._draw.random()
        if luck < self._fail:
            raise CallFailed("the server is busy", transient=True)
        if luck < self._fail + self._hang:
            await asyncio.sleep(1e9)
        wait = key(client, seed, "latency") % 1000 / 500 if self._even else self._draw.expovariate(1.0)
        await asyncio.sleep(wait * (1000 if client in self._slow else 1))
        return Completion(str(key(prompt, seed or 0)), Usage(1, 1))


def grid_ball(metric, size=None):
    """Cells within a radius under `metric`, inside a square of `size` if given; sorted."""
    distance, known = METRICS[metric], {}

    def around(pos, radius):
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


def hop_ball(space: Hops):
    def around(pos, radius):
        rings = (ring for hops, ring in enumerate(space.rings(pos)) if hops <= radius)
        return [node for ring in rings for node in ring]

    return around


@dataclass(frozen=True)
class Case:
    """A random world: reaches by agent, a metric (or "graph"), and how the rule is to measure it."""

    seed: int
    reaches: tuple = (Reach(4, 1),)
    agents: int = 8
    size: int = 24
    steps: int = 12
    metric: str = "chebyshev"
    rule_metric: str | None = None
    stay_for: int = 0
    versioned: bool = False


def ring_with_chords(n, seed):
    draw = random.Random(seed)
    edges = {i: {(i + 1) % n, (i - 1) % n} - {i} for i in range(n)}
    for _ in range(n // 4):
        a, b = draw.sample(range(n), 2)
        edges[a].add(b)
        edges[b].add(a)
    return Hops({i: sorted(e) for i, e in edges.items()})


def build(case: Case):
    """The world of a case and its agents."""
    draw = random.Random(f"world {case.seed}")
    if case.metric == "graph":
        space = ring_with_chords(case.size * 2, case.seed)
        around = hop_ball(space)
        spots = [draw.randrange(case.size * 2) for _ in range(case.agents)]
    else:
        space = Grid(case.rule_metric or case.metric)
        around = grid_ball(case.metric, case.size)
        spots = [(draw.randrange(case.size), draw.randrange(case.size)) for _ in range(case.agents)]
    bodies = {
        f"a{i:02}": Body(pos, case.reaches[draw.randrange(len(case.reaches))]) for i, pos in enumerate(spots)
    }
    # Where rule and world measure differently, moves keep to what both allow: only vision differs.
    steps = grid_ball("euclidean", case.size) if case.rule_metric else around
    agents = {n: Wanderer(steps, b.reach.move, b.reach.write, case.stay_for) for n, b in bodies.items()}
    return MarkWorld(bodies, space=space, around=around, versioned=case.versioned), agents


@dataclass
class Told:
    """Everything a run could differ in."""

    positions: dict
    states: dict
    cells: dict
    history: dict
    log: list
    meter: object


def play(case: Case, mode="metropolis", *, latency=0, world=None, agents=None, llm=None, **options) -> Told:
    """Runs a case in virtual time."""
    if world is None:
        world, agents = build(case)
    store = options.pop("store", None) or InMemoryStore()
    llm = llm or Muddle(latency)
    sim = Simulation(world, agents, llm, mode=mode, seed=case.seed, store=store, **options)
    result = run_virtual(sim.run(case.steps))
    return told(result, world, store)


def told(result, world, store) -> Told:
    log = list(store.commits())
    history: dict = {}
    for commit in log:
        for name in commit.members:
            marks = sorted((str(at), v) for who, at, v in commit.outcome.writes if who == name)
            history.setdefault(name, []).append(
                (commit.step, str(commit.outcome.moves.get(name)), str(marks))
            )
    return Told(result.positions, result.states, world.cells(), history, log, result.meter)


def same(a: Told, b: Told) -> bool:
    return (a.positions, a.states, a.cells, a.history) == (b.positions, b.states, b.cells, b.history)


def infinite(reach=math.inf):
    return Reach(reach, 1)
