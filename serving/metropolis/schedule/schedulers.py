"""The five schedules, one per mode: which agents may run after each commit.

`metropolis` is `dependency_graph.DependencyGraph`. Lock-step (`single_thread`, `parallel_sync`) runs one
cluster per step. `oracle` and `no_dependency` are bounds for comparison: they order only what a recorded run
shows to be necessary, or nothing. They reproduce a run's results only where a trace fixes all movement and
calls.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from serving.metropolis.schedule.dependency_graph import AgentStart, Cluster, DependencyGraph, Spawn
from serving.metropolis.schedule.rules import Rule, in_place
from serving.metropolis.schedule.space import Position, Space

type Mode = Literal["single_thread", "parallel_sync", "metropolis", "oracle", "no_dependency"]
MODES: tuple[Mode, ...] = ("single_thread", "parallel_sync", "metropolis", "oracle", "no_dependency")
type Sights = Mapping[tuple[int, int], Sequence[int]]
"""(agent, step) -> the other agents it perceives at that step; a missing key means none."""


class Schedule(Protocol):
    """Decides which agents may run. Agents are numbered 0..n-1 in the order given to `start`.

    Attributes:
      base_step: step of the slowest agent.
      step: steps committed, by agent.
    """

    base_step: int
    step: list[int]

    def start(self, agents: Sequence[AgentStart], removed: Iterable[int] = ()) -> list[Cluster]:
        """Adds all agents except `removed` and returns the clusters that may run."""

    def commit(
        self,
        members: Sequence[int],
        positions: Sequence[Position],
        *,
        still: Mapping[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        removed: Sequence[int] = (),
    ) -> list[Cluster]:
        """Records the step of a running cluster and returns the clusters that may run because of it.

        Args:
          members, positions: the cluster and where its members are now.
          still: new promises, agent -> the step before which it will not move.
          spawned, removed: agents born and dead in this step.
        """


def make_schedule(
    mode: Mode,
    space: Space,
    *,
    until: int,
    rule: Rule = in_place,
    barriers: Iterable[int] = (),
    sights: Sights | None = None,
) -> Schedule:
    """Returns the schedule of a mode.

    Raises:
      ValueError: an unknown mode, or `oracle` without `sights`.
    """
    match mode:
        case "metropolis":
            return DependencyGraph(space, until=until, rule=rule, barriers=barriers)
        case "single_thread" | "parallel_sync":
            return LockStep(until)
        case "oracle":
            if sights is None:
                raise ValueError("mode 'oracle' needs `sights`, mined from a recorded run; none were given")
            return Oracle(until, sights)
        case "no_dependency":
            return NoDependency(until)
    raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")


class LockStep:
    """All agents run step s and commit before any runs step s + 1."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.step: list[int] = []
        self.base_step = 0
        self._alive: dict[int, None] = {}

    def start(self, agents: Sequence[AgentStart], removed: Iterable[int] = ()) -> list[Cluster]:
        self.step = [step for _, step, _, _ in agents]
        dead = set(removed)
        self._alive = {x: None for x in range(len(agents)) if x not in dead}
        steps = {self.step[x] for x in self._alive}
        if len(steps) > 1:
            raise ValueError(f"lock-step cannot resume from agents at steps {min(steps)} to {max(steps)}")
        return self._next_cluster()

    def commit(
        self,
        members: Sequence[int],
        positions: Sequence[Position],
        *,
        still: Mapping[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        removed: Sequence[int] = (),
    ) -> list[Cluster]:
        for agent in members:
            self.step[agent] += 1
        for spawn in spawned:
            self.step.append(self.step[members[0]])
            self._alive[spawn.agent] = None
        for agent in removed:
            del self._alive[agent]
        return self._next_cluster()

    def _next_cluster(self) -> list[Cluster]:
        self.base_step = min((self.step[x] for x in self._alive), default=self.until)
        return [Cluster(self.base_step, tuple(self._alive))] if self.base_step < self.until else []


class NoDependency:
    """Every step of every agent may run at once. Bounds the throughput of a server."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.step: list[int] = []
        self.base_step = 0

    def start(self, agents: Sequence[AgentStart], removed: Iterable[int] = ()) -> list[Cluster]:
        self.step = [step for _, step, _, _ in agents]
        return [
            Cluster(step, (agent,))
            for step in range(min(self.step, default=0), self.until)
            for agent in range(len(agents))
            if self.step[agent] <= step
        ]

    def commit(
        self,
        members: Sequence[int],
        positions: Sequence[Position],
        *,
        still: Mapping[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        removed: Sequence[int] = (),
    ) -> list[Cluster]:
        if spawned or removed:
            raise ValueError(
                "no_dependency replays a fixed set of agents: births and deaths are not supported"
            )
        for agent in members:
            self.step[agent] += 1
        return []


class Oracle:
    """Perfect foresight (paper section 4.1): agents that perceive each other synchronize before and after.

    A may run step s once all agents that it perceives at s or perceived at s - 1 have committed s steps.
    Perception is made mutual.
    """

    def __init__(self, until: int, sights: Sights) -> None:
        self.until = until
        self.step: list[int] = []
        self.base_step = 0
        self._sights: dict[tuple[int, int], set[int]] = {}
        for (agent, step), others in sights.items():
            for other in others:
                self._sights.setdefault((agent, step), set()).add(other)
                self._sights.setdefault((other, step), set()).add(agent)
        self._waiters: dict[tuple[int, int], list[int]] = {}  # (agent, step it must reach) -> waiting agents
        self._count_at_step: dict[int, int] = {}

    def start(self, agents: Sequence[AgentStart], removed: Iterable[int] = ()) -> list[Cluster]:
        self.step = [step for _, step, _, _ in agents]
        for step in self.step:
            self._count_at_step[step] = self._count_at_step.get(step, 0) + 1
        self.base_step = min(self.step, default=self.until)
        return self._release(range(len(agents)))

    def commit(
        self,
        members: Sequence[int],
        positions: Sequence[Position],
        *,
        still: Mapping[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        removed: Sequence[int] = (),
    ) -> list[Cluster]:
        if spawned or removed:
            raise ValueError("an oracle replays a fixed set of agents: births and deaths are not supported")
        candidates: list[int] = []
        for agent in members:
            self.step[agent] += 1
            step = self.step[agent]
            self._count_at_step[step - 1] -= 1
            self._count_at_step[step] = self._count_at_step.get(step, 0) + 1
            candidates += [agent, *self._waiters.pop((agent, step), ())]
        while not self._count_at_step.get(self.base_step):
            self._count_at_step.pop(self.base_step, None)
            self.base_step += 1
        return self._release(candidates)

    def _release(self, candidates: Iterable[int]) -> list[Cluster]:
        """Returns the candidates that may run; the others wait for their first blocker."""
        ready = []
        for agent in candidates:
            step = self.step[agent]
            if step >= self.until:
                continue
            blocker = next((b for b in self._prerequisites(agent, step) if self.step[b] < step), None)
            if blocker is None:
                ready.append(Cluster(step, (agent,)))
            else:
                self._waiters.setdefault((blocker, step), []).append(agent)
        return ready

    def _prerequisites(self, agent: int, step: int) -> Iterator[int]:
        yield from sorted(self._sights.get((agent, step), ()))
        yield from sorted(self._sights.get((agent, step - 1), ()))
