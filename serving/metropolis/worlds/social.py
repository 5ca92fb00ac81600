"""A social network: people never move, read their contacts' latest posts each step, and may post.

With one version of every post, contacts at the same step must commit together, because one would read what
the other has just written. In a connected graph that couples everybody: lock-step. A network that answers by
version only needs every contact to have committed `a` steps before step `a` runs (`rules.multi_version`). A
slow person then delays its contacts first and others hop by hop.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.schedulers import Sights
from serving.metropolis.schedule.space import Hops, Position, Space
from serving.metropolis.world import AgentId, Body, Intent, Json, StepContext, StepOutcome, Write


@dataclass(unsafe_hash=True, kw_only=True)
class NetworkConfig:
    """A small-world graph and how often its people call the model.

    Attributes:
      nodes, contacts: number of people, and of contacts per person before rewiring (even).
      rewire: share of edges rewired to a random person.
      steps: length of the run.
      busy: probability that a step makes any calls.
      longest: maximum number of calls in a step; the probability of a length falls as 1/length.
    """

    nodes: int = 1000
    contacts: int = 4
    rewire: float = 0.05
    steps: int = 60
    busy: float = 0.15
    longest: int = 32
    seed: int = 0

    def check(self) -> None:
        if self.contacts % 2 or not 0 < self.contacts < self.nodes:
            raise ValueError(f"contacts={self.contacts} must be even and between 0 and nodes={self.nodes}")


def small_world_graph(config: NetworkConfig) -> Hops:
    """A symmetric ring lattice with some edges rewired (Watts-Strogatz)."""
    config.check()
    draw = random.Random(f"graph {config.seed}")
    edges: dict[int, set[int]] = {i: set() for i in range(config.nodes)}
    for i in range(config.nodes):
        for hop in range(1, config.contacts // 2 + 1):
            j = (i + hop) % config.nodes
            if draw.random() < config.rewire:
                j = draw.choice([k for k in (draw.randrange(config.nodes) for _ in range(8)) if k != i])
            edges[i].add(j)
            edges[j].add(i)
    return Hops({i: tuple(sorted(others)) for i, others in edges.items()})


class SocialNetwork:
    """Every person's posts by version. Reads reach one hop, writes zero hops, and nobody moves."""

    def __init__(self, config: NetworkConfig):
        self.config = config
        self.contacts = small_world_graph(config)
        self.space: Space = self.contacts
        self.posts: dict[Position, list[list[Any]]] = {}  # person -> [version, post], oldest first

    def name(self, node: int) -> AgentId:
        return f"p{node:05}"

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        self.posts = {i: [[0, ""]] for i in range(self.config.nodes)}
        return {self.name(i): Body(i, Reach(1, 0)) for i in range(self.config.nodes)}

    def view(self, agent: AgentId, step: int) -> tuple[tuple[Position, str], ...]:
        me = int(agent[1:])
        return tuple((i, self._read(i, step)) for i in (me, *self.contacts.neighbours[me]))

    def _read(self, person: Position, version: int) -> str:
        return next(post for first_version, post in reversed(self.posts[person]) if first_version <= version)

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        writes = [Write(n, int(n[1:]), i.action) for n, i in intents.items() if i.action is not None]
        return StepOutcome(writes=writes)

    def apply(self, step: int, outcome: StepOutcome) -> None:
        for _, node, post in outcome.writes:
            self.posts[node].append([step + 1, post])

    def snapshot(self) -> Json:
        return list(self.posts.values())

    def restore(self, snapshot: Json) -> None:
        self.posts = dict(enumerate(snapshot))


@dataclass(frozen=True)
class Poster:
    """Makes a chain of calls of heavy-tailed length, then posts a digest of what it has read."""

    config: NetworkConfig

    async def proceed(self, view: tuple[tuple[Position, str], ...], ctx: StepContext) -> Intent:
        draw = ctx.rng
        if draw.random() >= self.config.busy:
            return Intent()
        for _ in range(int(self.config.longest ** draw.random())):
            await ctx.llm(range(draw.randint(200, 900)), max_tokens=draw.randint(4, 40))
        return Intent(action=f"{ctx.agent}@{ctx.step}:{sum(len(post) for _, post in view)}")


def network_sights(world: SocialNetwork) -> Sights:
    """The contacts whose posts each person reads; the same at every step."""
    return {
        (i, step): world.contacts.neighbours[i]  # type: ignore[misc]
        for i in range(world.config.nodes)
        for step in range(world.config.steps)
    }
