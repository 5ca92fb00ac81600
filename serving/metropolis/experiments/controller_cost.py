"""What the dependency graph costs a commit, from a hundred agents to a hundred thousand.

Agents walk at random at the density of a town (25 on 140 x 100 tiles) and finish their steps in random order,
some of them a hundred times slower than others, so that leads, blocking and waking all happen. Only the
graph's `commit` is timed. `full rescan` is the same graph made to look at every waiting agent after every
commit, as a scheduler without watched blockers must.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from serving.metropolis.experiments.replay import replay
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.schedule.dependency_graph import Cluster, DependencyGraph
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Grid
from serving.metropolis.worlds.synthetic import TownConfig, generate

TILES_PER_AGENT = 140 * 100 / 25


@dataclass(frozen=True)
class ControllerCost:
    """One row: `median_us` and `minimum_us` a commit over repeats, `searches` for a blocker a commit."""

    agents: int
    method: str
    commits: int
    median_us: float
    minimum_us: float
    searches: float
    mean_cluster: float


def measure(
    agents: int, commits: int, *, repeats: int = 3, rescan: bool = False, seed: int = 0
) -> ControllerCost:
    """Times `commits` commits, `repeats` times over; all in this thread."""
    means, searches, members = [], 0.0, 0
    for _ in range(repeats):
        spent, searches, members = _drive(agents, commits, rescan, seed)
        means.append(1e6 * spent / commits)
    method = "full rescan" if rescan else "watched blocker"
    middle = sorted(means)[len(means) // 2]
    return ControllerCost(agents, method, commits, middle, min(means), searches / commits, members / commits)


def _drive(agents: int, commits: int, rescan: bool, seed: int) -> tuple[float, float, int]:
    draw = random.Random(seed)
    side = int((agents * TILES_PER_AGENT) ** 0.5)
    graph = DependencyGraph(Grid(), until=1 << 40)
    places = [(draw.randrange(side), draw.randrange(side)) for _ in range(agents)]
    running = _Bag(draw)
    for cluster in graph.start([(pos, 0, Reach(4, 1), 0) for pos in places]):
        running.put(cluster)
    for _ in range(2 * agents):  # warm up: leads spread out
        cluster = running.take()
        for ready in graph.commit(cluster.members, _walk(draw, graph, cluster)):
            running.put(ready)
    graph.blocker_searches, spent, members = 0, 0.0, 0
    for _ in range(commits):
        cluster = running.take()
        moves = _walk(draw, graph, cluster)
        members += len(moves)
        began = time.perf_counter()
        found = graph.commit(cluster.members, moves)
        if rescan:
            _look_at_everyone(graph)
        spent += time.perf_counter() - began
        for ready in found:
            running.put(ready)
    return spent, graph.blocker_searches, members


def _walk(draw: random.Random, graph: DependencyGraph, cluster: Cluster) -> list[tuple[int, int]]:
    return [
        (graph.pos[x][0] + draw.randint(-1, 1), graph.pos[x][1] + draw.randint(-1, 1))
        if draw.random() < 0.2
        else graph.pos[x]
        for x in cluster.members
    ]


def _look_at_everyone(graph: DependencyGraph) -> None:
    for agent, watched in enumerate(graph.watching):
        if watched >= 0:
            graph.find_blocker(agent)


class _Bag:
    """Running clusters; a tenth of them are slow and are drawn a hundred times less often."""

    def __init__(self, draw: random.Random):
        self._draw = draw
        self._quick: list[Cluster] = []
        self._slow: list[Cluster] = []

    def put(self, cluster: Cluster) -> None:
        (self._slow if self._draw.random() < 0.1 else self._quick).append(cluster)

    def take(self) -> Cluster:
        bag = self._quick if self._quick and (not self._slow or self._draw.random() < 0.9) else self._slow
        i = self._draw.randrange(len(bag))
        bag[i], bag[-1] = bag[-1], bag[i]
        return bag.pop()


def run(sizes: tuple[int, ...], *, commits: int = 20_000, repeats: int = 3) -> Iterator[ControllerCost]:
    """The table: every size with watched blockers, sizes to 1,000 with a full rescan beside it."""
    for agents in sizes:
        yield measure(agents, commits, repeats=repeats)
        if agents <= 1000:
            yield measure(agents, max(200, commits // 100), repeats=repeats, rescan=True)


def day(agents: int, seed: int = 0) -> dict[str, float]:
    """Replays a synthetic whole day under metropolis on 8 simulated replicas; wall seconds beside it."""
    began = time.perf_counter()
    trace = generate(TownConfig(agents=agents, hour=-1, seed=seed))
    drawn = time.perf_counter()
    meter = replay(trace, "metropolis", ServerConfig())
    return {
        "agents": agents,
        "generate_wall_s": drawn - began,
        "replay_wall_s": time.perf_counter() - drawn,
        **meter.summary(),
    }
