"""The dependency graph: which agents step together, and the one agent each waiting group is watching.

Pure bookkeeping over integers; it knows no clock, no loop and no world. Three facts keep it small:

* "B holds A" ends once and for all. While A waits it does not move; each step B takes lowers the threshold
  by at least as much as it can shorten the distance. So a waiting agent needs one witness, and is looked at
  again only when that witness has gone far enough that it might have let go (`rules.earliest_release`).
* Agents of one step that are within reach form a component and advance as one, blocked members included.
  Waiting agents stand still, so components only grow until they run: merging lists replaces searching.
* A member found free stays free, so each is cleared once; a component resumes at its first uncleared member.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from serving.metropolis.schedule.rules import (
    Margin,
    Reach,
    Rule,
    blocked,
    earliest_release,
    in_place,
    moves_left,
)
from serving.metropolis.schedule.space import Position, Space


class Cluster(NamedTuple):
    """Agents that run `step` together and commit as one."""

    step: int
    members: tuple[int, ...]


class Spawn(NamedTuple):
    agent: int
    pos: Position
    reach: Reach


@dataclass(slots=True, eq=False)
class Component:
    """Idle agents of one step that must advance together, and those not yet known to be free."""

    step: int
    members: list[int]
    uncleared: list[int]


RUNNING, IDLE, DONE, GONE = range(4)


class DependencyGraph:
    """Watched-blocker dependency graph (paper section 3.2 and 3.3, in one process).

    Args:
      space: the metric; see `space` for what makes one legal.
      rule: margins for a pair of reaches.
      barriers: steps that everyone runs together, whatever the distance; global state may change there.
      until: agents that have committed this many steps are finished.
    """

    def __init__(self, space: Space, *, until: int, rule: Rule = in_place, barriers: Iterable[int] = ()):
        self.space, self.rule, self.until = space, rule, until
        self.barriers = frozenset(barriers)
        self.step: list[int] = []
        self.pos: list[Position] = []
        self.still_until: list[int] = []
        self.state: list[int] = []
        self.watching: list[int] = []  # the witness of a waiting agent, or -1
        self.checks = 0  # searches for a blocker so far; the work that scales
        self.base_step = 0
        self._distance = space.distance
        self._kind: list[int] = []  # reach class of each agent; pairs of classes have one Margin
        self._reaches: list[Reach] = []
        self._margins: list[list[Margin]] = []
        self._slack: list[float] = []  # of a class: the largest threshold at no moves
        self._couple: list[float] = []  # of a class: the largest coupling distance
        self._fastest = 0.0
        self._index = space.index(1.0)
        self._component: list[Component | None] = []
        self._watchers: list[list[tuple[int, int]]] = []  # heaps of (step of mine that may free it, agent)
        self._population: dict[int, int] = {}  # agents by step
        self._alive = 0
        self._arrived: dict[int, list[int]] = {}  # at a barrier

    # ---- building -----------------------------------------------------------------------------------------
    def start(
        self, agents: Sequence[tuple[Position, int, Reach, int]], gone: Iterable[int] = ()
    ) -> list[Cluster]:
        """Places agents 0..n-1, each (position, steps committed, reach, still until); who may run."""
        for _, _, reach, _ in agents:
            self._class_of(reach)
        edge = max(self._couple, default=1.0) + self._fastest
        self._index = self.space.index(max(1.0, edge))
        left_out = set(gone)
        for agent, (pos, step, reach, still) in enumerate(agents):
            self._new(agent, pos, step, reach, still)
            if agent in left_out:
                self._remove(agent)
        self.base_step = min(self._population, default=self.until)
        return self._settle([x for x in range(len(agents)) if x not in left_out], [])

    def _class_of(self, reach: Reach) -> int:
        if reach in self._reaches:
            return self._reaches.index(reach)
        self._reaches.append(reach)
        self._margins = [[self.rule(a, b) for b in self._reaches] for a in self._reaches]
        self._slack = [max(max(m.block, m.still) for m in row) for row in self._margins]
        self._couple = [max(m.couple for m in row) for row in self._margins]
        self._fastest = max(self._fastest, reach.move)
        return len(self._reaches) - 1

    def _new(self, agent: int, pos: Position, step: int, reach: Reach, still: int = 0) -> None:
        if agent != len(self.step):
            raise ValueError(f"agents are numbered in order: got {agent}, expected {len(self.step)}")
        self.step.append(step)
        self.pos.append(pos)
        self.still_until.append(still)
        self.state.append(IDLE)
        self.watching.append(-1)
        self._kind.append(self._class_of(reach))
        self._component.append(None)
        self._watchers.append([])
        self._population[step] = self._population.get(step, 0) + 1
        self._alive += 1
        self._index.put(agent, pos, step)

    # ---- advancing ----------------------------------------------------------------------------------------
    def commit(
        self,
        members: Sequence[int],
        places: Sequence[Position],
        *,
        still: dict[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        gone: Sequence[int] = (),
    ) -> list[Cluster]:
        """A running cluster has finished its step; returns the clusters that may run because of it."""
        population, put = self._population, self._index.put
        for agent, pos in zip(members, places):
            old = self.step[agent]
            self.step[agent] = new = old + 1
            self.pos[agent] = pos
            self.state[agent] = IDLE
            population[old] -= 1
            population[new] = population.get(new, 0) + 1
            put(agent, pos, new)
        for agent, until in (still or {}).items():
            self.still_until[agent] = max(self.still_until[agent], until)
        arrivals = list(members)
        for agent, pos, reach in spawned:
            self._new(agent, pos, self.step[members[0]], reach)
            arrivals.append(agent)
        freed: list[int] = []
        for agent in members:
            heap = self._watchers[agent]
            if heap:
                everyone = (still is not None and agent in still) or agent in gone
                while heap and (everyone or heap[0][0] <= self.step[agent]):
                    freed.append(heappop(heap)[1])
        for agent in gone:
            self._remove(agent)
            arrivals.remove(agent)
        base = self.base_step
        while self._alive and not population.get(base):
            population.pop(base, None)
            base += 1
        self.base_step = base if self._alive else self.until
        return self._settle(arrivals, freed)

    def _remove(self, agent: int) -> None:
        self.state[agent] = GONE
        self._population[self.step[agent]] -= 1
        self._alive -= 1
        self._index.drop(agent)

    def _settle(self, arrivals: list[int], freed: list[int]) -> list[Cluster]:
        """Groups new arrivals, then tries every component something has happened to."""
        touched: dict[int, Component] = {}
        ready: list[Cluster] = []
        for agent in arrivals:
            step = self.step[agent]
            if step >= self.until:
                self.state[agent] = DONE
            elif step in self.barriers:
                self._arrived.setdefault(step, []).append(agent)
            else:
                self._join(agent)
        for agent in freed:
            self.watching[agent] = -1
        for agent in (*arrivals, *freed):
            component = self._component[agent]
            if component is not None:
                touched[id(component)] = component
        for component in touched.values():
            if self._clear(component):
                ready.append(self._run(component.step, component.members))
        waiting = self._arrived.get(self.base_step)
        if waiting is not None and len(waiting) == self._alive:
            ready.append(self._run(self.base_step, self._arrived.pop(self.base_step)))
        return ready

    def _run(self, step: int, members: list[int]) -> Cluster:
        for agent in members:
            self.state[agent] = RUNNING
            self._component[agent] = None
        return Cluster(step, tuple(sorted(members)))

    def _join(self, agent: int) -> None:
        """Merges `agent` with the idle agents of its step within reach; the smaller list moves."""
        mine = Component(self.step[agent], [agent], [agent])
        self._component[agent] = mine
        steps, states, kinds, here = self.step, self.state, self._kind, self.pos[agent]
        step, margins, distance = steps[agent], self._margins[kinds[agent]], self._distance
        for other in self._index.near(here, self._couple[kinds[agent]]):
            if steps[other] != step or other == agent or states[other] == GONE:
                continue
            if distance(here, self.pos[other]) > margins[kinds[other]].couple:
                continue
            if states[other] == RUNNING:
                raise AssertionError(f"agent {agent} reached running agent {other} at step {step}")
            theirs = self._component[other]
            if theirs is None or theirs is mine:  # None: an arrival of this same commit, not yet grouped
                continue
            if len(theirs.members) > len(mine.members):
                mine, theirs = theirs, mine
            mine.members += theirs.members
            mine.uncleared += theirs.uncleared
            for x in theirs.members:
                self._component[x] = mine

    def _clear(self, component: Component) -> bool:
        """True if nobody holds any member; otherwise one member is left watching its blocker."""
        uncleared = component.uncleared
        while uncleared:
            agent = uncleared[-1]
            if self.watching[agent] >= 0:
                return False
            blocker = self._blocker(agent)
            if blocker is not None:
                self._watch(agent, blocker)
                return False
            uncleared.pop()
        return True

    def _blocker(self, agent: int) -> int | None:
        step = self.step[agent]
        if step == self.base_step:
            return None
        self.checks += 1
        kinds, here, kind = self._kind, self.pos[agent], self._kind[agent]
        margins, distance, steps = self._margins[kind], self._distance, self.step

        def holds(other: int) -> bool:
            moves = moves_left(step, steps[other], self.still_until[other])
            theirs = kinds[other]
            return blocked(
                distance(here, self.pos[other]), margins[theirs], moves, self._reaches[theirs].move
            )

        return self._index.behind(here, step, self._slack[kind], self._fastest, holds)

    def _watch(self, agent: int, blocker: int) -> None:
        self.watching[agent] = blocker
        kind = self._kind[blocker]
        wake = earliest_release(
            self._distance(self.pos[agent], self.pos[blocker]),
            self._margins[self._kind[agent]][kind],
            self.step[agent],
            max(self.step[blocker], self.still_until[blocker]),
            self._reaches[kind].move,
        )
        heappush(self._watchers[blocker], (wake, agent))

    # ---- looking ------------------------------------------------------------------------------------------
    def held_by(self, agent: int) -> int | None:
        """Whom a waiting agent's component is watching, or None."""
        component = self._component[agent]
        if component is None:
            return None
        return next((self.watching[x] for x in component.uncleared if self.watching[x] >= 0), None)
