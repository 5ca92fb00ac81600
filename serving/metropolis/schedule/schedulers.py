"""Five answers to "who may run now?" behind two calls, `start` and `commit`.

`metropolis` is `graph.Graph`. Lock-step (`single_thread`, `parallel_sync`) is one cluster a step. `oracle`
and `no_dependency` are yardsticks: they order only what a recorded run shows was needed, or nothing, and keep
a run's results only where movement and calls are fixed by a trace.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from serving.metropolis.schedule.dependency_graph import Cluster, DependencyGraph, Spawn
from serving.metropolis.schedule.rules import Reach, Rule, in_place
from serving.metropolis.schedule.space import Position, Space

type Mode = Literal["single_thread", "parallel_sync", "metropolis", "oracle", "no_dependency"]
MODES: tuple[Mode, ...] = ("single_thread", "parallel_sync", "metropolis", "oracle", "no_dependency")
type Sights = Mapping[tuple[int, int], Sequence[int]]
"""(agent, step) -> the other agents it perceives there; absent means nobody."""


class Schedule(Protocol):
    """Who may run. Agents are numbered 0..n-1 in the order given to `start`."""

    base_step: int
    step: list[int]

    def start(
        self, agents: Sequence[tuple[Position, int, Reach, int]], gone: Iterable[int] = ()
    ) -> list[Cluster]: ...

    def commit(
        self,
        members: Sequence[int],
        places: Sequence[Position],
        *,
        still: dict[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        gone: Sequence[int] = (),
    ) -> list[Cluster]: ...

    def held_by(self, agent: int) -> int | None: ...


def make(
    mode: Mode,
    space: Space,
    *,
    until: int,
    rule: Rule = in_place,
    barriers: Iterable[int] = (),
    sights: Sights | None = None,
) -> Schedule:
    """The schedule of a mode.

    Raises:
      ValueError: an unknown mode, or `oracle` without the sights of a recorded run.
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
    """Everyone runs step s, everyone commits, then step s + 1."""

    def __init__(self, until: int):
        self.until = until
        self.step: list[int] = []
        self.base_step = 0
        self._alive: dict[int, None] = {}

    def start(self, agents, gone=()):
        self.step = [step for _, step, _, _ in agents]
        left_out = set(gone)
        self._alive = {x: None for x in range(len(agents)) if x not in left_out}
        steps = {self.step[x] for x in self._alive}
        if len(steps) > 1:
            raise ValueError(f"lock-step cannot go on from agents at steps {min(steps)} to {max(steps)}")
        return self._all()

    def commit(self, members, places, *, still=None, spawned=(), gone=()):
        for agent in members:
            self.step[agent] += 1
        for spawn in spawned:
            self.step.append(self.step[members[0]])
            self._alive[spawn.agent] = None
        for agent in gone:
            del self._alive[agent]
        return self._all()

    def _all(self):
        self.base_step = min((self.step[x] for x in self._alive), default=self.until)
        return [Cluster(self.base_step, tuple(self._alive))] if self.base_step < self.until else []

    def held_by(self, agent):
        return None


class NoDependency:
    """Every step of every agent may run at once; the throughput bound of a server."""

    def __init__(self, until: int):
        self.until = until
        self.step: list[int] = []
        self.base_step = 0

    def start(self, agents, gone=()):
        self.step = [step for _, step, _, _ in agents]
        return [
            Cluster(step, (agent,))
            for step in range(min(self.step, default=0), self.until)
            for agent in range(len(agents))
            if self.step[agent] <= step
        ]

    def commit(self, members, places, *, still=None, spawned=(), gone=()):
        if spawned or gone:
            raise ValueError("no_dependency replays a fixed set of agents; none may come or go")
        for agent in members:
            self.step[agent] += 1
        return []

    def held_by(self, agent):
        return None


class Oracle:
    """Perfect foresight (paper section 4.1): agents that see each other at a step meet before and after it.

    A may run step s once everyone it sees at s or saw at s - 1 has committed s steps. Sight is made mutual.
    """

    def __init__(self, until: int, sights: Sights):
        self.until = until
        self.step: list[int] = []
        self.base_step = 0
        self._sights: dict[tuple[int, int], set[int]] = {}
        for (agent, step), others in sights.items():
            for other in others:
                self._sights.setdefault((agent, step), set()).add(other)
                self._sights.setdefault((other, step), set()).add(agent)
        self._waiting: dict[tuple[int, int], list[int]] = {}  # (agent, step it must reach) -> who waits
        self._for: dict[int, int] = {}
        self._population: dict[int, int] = {}

    def start(self, agents, gone=()):
        self.step = [step for _, step, _, _ in agents]
        for step in self.step:
            self._population[step] = self._population.get(step, 0) + 1
        self.base_step = min(self.step, default=self.until)
        return self._try(range(len(agents)))

    def commit(self, members, places, *, still=None, spawned=(), gone=()):
        if spawned or gone:
            raise ValueError("an oracle replays a fixed set of agents; none may come or go")
        again: list[int] = []
        for agent in members:
            self.step[agent] += 1
            step = self.step[agent]
            self._population[step - 1] -= 1
            self._population[step] = self._population.get(step, 0) + 1
            again += [agent, *self._waiting.pop((agent, step), ())]
        while not self._population.get(self.base_step):
            self._population.pop(self.base_step, None)
            self.base_step += 1
        return self._try(again)

    def _try(self, agents):
        ready = []
        for agent in agents:
            step = self.step[agent]
            if step >= self.until:
                continue
            late = next((b for b in self._needs(agent, step) if self.step[b] < step), None)
            if late is None:
                self._for.pop(agent, None)
                ready.append(Cluster(step, (agent,)))
            else:
                self._for[agent] = late
                self._waiting.setdefault((late, step), []).append(agent)
        return ready

    def _needs(self, agent, step):
        yield from sorted(self._sights.get((agent, step), ()))
        yield from sorted(self._sights.get((agent, step - 1), ()))

    def held_by(self, agent):
        return self._for.get(agent)
