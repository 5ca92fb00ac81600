"""The dependency graph's cost per commit, for a hundred to a hundred thousand agents.

Agents walk at random at the density of a town (25 on 140 x 100 tiles) and finish their steps in random order,
so that leads, blocking and waking all occur. Only the graph's `commit` is timed. `full rescan` makes the same
graph check every waiting agent after every commit, as a scheduler without watched blockers must.
"""

import functools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from pallas_kernels.measure import interleave
from serving.metropolis.experiments.simulate import simulate_trace
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.schedule.dependency_graph import Cluster, DependencyGraph
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Grid
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace

TILES_PER_AGENT = 140 * 100 / 25


@dataclass(frozen=True)
class ControllerCost:
    """One row of the table.

    Attributes:
      commits: commits timed per repeat.
      median_us, minimum_us: microseconds per commit, over repeats.
      searches: searches for a blocker per commit.
      mean_cluster: agents per commit.
    """

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
    """Times `commits` commits `repeats` times in this thread."""
    method = "full rescan" if rescan else "watched blocker"
    drive = functools.partial(_drive, agents, commits, rescan, seed)
    taken = interleave({method: drive}, repeats, warmup=0)[method]
    costs = [1e6 * spent / commits for spent, _, _ in taken]
    _, searches, members = taken[-1]
    return ControllerCost(
        agents, method, commits, median(costs), min(costs), searches / commits, members / commits
    )


def _drive(agents: int, commits: int, rescan: bool, seed: int) -> tuple[float, float, int]:
    """Seconds spent in commits, searches for a blocker, and agents committed."""
    draw = random.Random(seed)
    side = int((agents * TILES_PER_AGENT) ** 0.5)
    graph = DependencyGraph(Grid(), until=1 << 40)
    places = [(draw.randrange(side), draw.randrange(side)) for _ in range(agents)]
    running = _RunningClusters(draw)
    for cluster in graph.start([(pos, 0, Reach(4, 1), 0) for pos in places]):
        running.push(cluster)
    for _ in range(2 * agents):  # warm-up, so that leads spread out
        cluster = running.pop()
        for ready in graph.commit(cluster.members, _walk(draw, graph, cluster)):
            running.push(ready)
    graph.blocker_searches, spent, members = 0, 0.0, 0
    for _ in range(commits):
        cluster = running.pop()
        moves = _walk(draw, graph, cluster)
        members += len(moves)
        began = time.perf_counter()
        found = graph.commit(cluster.members, moves)
        if rescan:
            _rescan_waiting(graph)
        spent += time.perf_counter() - began
        for ready in found:
            running.push(ready)
    return spent, graph.blocker_searches, members


def _walk(draw: random.Random, graph: DependencyGraph, cluster: Cluster) -> list[tuple[int, int]]:
    return [
        (graph.pos[x][0] + draw.randint(-1, 1), graph.pos[x][1] + draw.randint(-1, 1))
        if draw.random() < 0.2
        else graph.pos[x]
        for x in cluster.members
    ]


def _rescan_waiting(graph: DependencyGraph) -> None:
    for agent, watched in enumerate(graph.watching):
        if watched >= 0:
            graph.find_blocker(agent)


class _RunningClusters:
    """Running clusters in random order; one in ten is slow, and one draw in ten takes a slow one."""

    def __init__(self, draw: random.Random):
        self._draw = draw
        self._fast: list[Cluster] = []
        self._slow: list[Cluster] = []

    def push(self, cluster: Cluster) -> None:
        (self._slow if self._draw.random() < 0.1 else self._fast).append(cluster)

    def pop(self) -> Cluster:
        bag = self._fast if self._fast and (not self._slow or self._draw.random() < 0.9) else self._slow
        i = self._draw.randrange(len(bag))
        bag[i], bag[-1] = bag[-1], bag[i]
        return bag.pop()


def run(sizes: tuple[int, ...], *, commits: int = 20_000, repeats: int = 3) -> Iterator[ControllerCost]:
    """The table: every size with watched blockers, and sizes up to 1,000 also with a full rescan."""
    for agents in sizes:
        yield measure(agents, commits, repeats=repeats)
        if agents <= 1000:
            yield measure(agents, max(200, commits // 100), repeats=repeats, rescan=True)


def day(agents: int, seed: int = 0) -> dict[str, float]:
    """Simulates a synthetic day under metropolis on 8 replicas; returns its statistics and wall seconds."""
    began = time.perf_counter()
    trace = generate_trace(SyntheticTraceConfig(agents=agents, hour=-1, seed=seed))
    generated = time.perf_counter()
    stats = simulate_trace(trace, "metropolis", ServerConfig())
    return {
        "agents": agents,
        "generate_wall_s": generated - began,
        "replay_wall_s": time.perf_counter() - generated,
        **stats.summary(),
    }
