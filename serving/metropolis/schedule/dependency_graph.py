"""The dependency graph: which agents step together, and which agent each waiting component watches.

Pure bookkeeping over integers, without a clock, an event loop or a world. Three facts keep it small:

* Once B stops blocking A, it never blocks A again at that step. While A waits it does not move, and each step
  of B lowers the threshold by at least as much as it can shorten the distance. So a waiting agent watches one
  blocker (its witness), and is checked again only when the witness has advanced far enough that it may have
  stopped blocking (`rules.earliest_release`).
* Agents of one step that are within reach form a component and advance together, blocked members included.
  Waiting agents do not move, so components only grow until they run. Merging lists replaces searching.
* A member found unblocked stays unblocked and is not checked again. A component resumes at its first
  unchecked member.
"""

from collections.abc import Iterable, Mapping, Sequence
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

type AgentStart = tuple[Position, int, Reach, int]
"""An agent at the start of a schedule: position, steps committed, reach, still until."""


class Cluster(NamedTuple):
    """Agents that run `step` together and commit together."""

    step: int
    members: tuple[int, ...]


class Spawn(NamedTuple):
    """A new agent, at the step its parent is at after the commit."""

    agent: int
    pos: Position
    reach: Reach


@dataclass(slots=True, eq=False)
class Component:
    """Idle agents of one step that must advance together.

    Attributes:
      unchecked: members not yet known to be unblocked.
    """

    step: int
    members: list[int]
    unchecked: list[int]


RUNNING, IDLE, DONE, REMOVED = range(4)


class DependencyGraph:
    """Dependency graph with watched blockers (paper sections 3.2 and 3.3, in one process).

    Args:
      space: the metric; module `space` states its requirements.
      until: agents that have committed this many steps are finished.
      rule: margins for a pair of reaches.
      barriers: steps that all agents run together at any distance; global state may change in them.

    Attributes:
      base_step: step of the slowest agent.
      step, pos, still_until, state: by agent; `state` is RUNNING, IDLE, DONE or REMOVED.
      watching: the blocker that a waiting agent watches, or -1; by agent.
      blocker_searches: number of searches for a blocker so far, the work that grows with the number of
        agents.
    """

    def __init__(
        self, space: Space, *, until: int, rule: Rule = in_place, barriers: Iterable[int] = ()
    ) -> None:
        self.space, self.rule, self.until = space, rule, until
        self.barriers = frozenset(barriers)
        self.step: list[int] = []
        self.pos: list[Position] = []
        self.still_until: list[int] = []
        self.state: list[int] = []
        self.watching: list[int] = []
        self.blocker_searches = 0
        self.base_step = 0
        self._distance = space.distance
        self._reach_class: list[int] = []  # by agent; agents of one class have equal reaches
        self._reaches: list[Reach] = []  # by reach class
        self._margins: list[list[Margin]] = []  # by pair of classes
        self._max_threshold: list[float] = []  # by class: largest threshold at no moves
        self._max_couple: list[float] = []  # by class: largest coupling distance
        self._max_move = 0.0
        self._index = space.index(1.0)
        self._component: list[Component | None] = []
        self._watchers: list[list[tuple[int, int]]] = []  # by blocker: heap of (its step to wake at, waiter)
        self._count_at_step: dict[int, int] = {}
        self._alive = 0
        self._at_barrier: dict[int, list[int]] = {}  # by barrier step: agents that wait there

    def start(self, agents: Sequence[AgentStart], removed: Iterable[int] = ()) -> list[Cluster]:
        """Adds agents 0..n-1 except `removed`; returns the clusters that may run."""
        for _, _, reach, _ in agents:
            self._reach_class_of(reach)
        edge = max(self._max_couple, default=1.0) + self._max_move
        self._index = self.space.index(max(1.0, edge))
        dead = set(removed)
        for agent, (pos, step, reach, still) in enumerate(agents):
            self._add(agent, pos, step, reach, still)
            if agent in dead:
                self._remove(agent)
        self.base_step = min(self._count_at_step, default=self.until)
        return self._update_components([x for x in range(len(agents)) if x not in dead], [])

    def _reach_class_of(self, reach: Reach) -> int:
        if reach in self._reaches:
            return self._reaches.index(reach)
        self._reaches.append(reach)
        self._margins = [[self.rule(a, b) for b in self._reaches] for a in self._reaches]
        self._max_threshold = [max(max(m.block, m.still) for m in row) for row in self._margins]
        self._max_couple = [max(m.couple for m in row) for row in self._margins]
        self._max_move = max(self._max_move, reach.move)
        return len(self._reaches) - 1

    def _add(self, agent: int, pos: Position, step: int, reach: Reach, still: int = 0) -> None:
        if agent != len(self.step):
            raise ValueError(f"agents are numbered in order: got {agent}, expected {len(self.step)}")
        self.step.append(step)
        self.pos.append(pos)
        self.still_until.append(still)
        self.state.append(IDLE)
        self.watching.append(-1)
        self._reach_class.append(self._reach_class_of(reach))
        self._component.append(None)
        self._watchers.append([])
        self._count_at_step[step] = self._count_at_step.get(step, 0) + 1
        self._alive += 1
        self._index.put(agent, pos, step)

    def commit(
        self,
        members: Sequence[int],
        positions: Sequence[Position],
        *,
        still: Mapping[int, int] | None = None,
        spawned: Sequence[Spawn] = (),
        removed: Sequence[int] = (),
    ) -> list[Cluster]:
        """Records the step of a running cluster; returns the clusters that may run because of it."""
        count_at_step, put = self._count_at_step, self._index.put
        for agent, pos in zip(members, positions):
            old = self.step[agent]
            self.step[agent] = new = old + 1
            self.pos[agent] = pos
            self.state[agent] = IDLE
            count_at_step[old] -= 1
            count_at_step[new] = count_at_step.get(new, 0) + 1
            put(agent, pos, new)
        for agent, until in (still or {}).items():
            self.still_until[agent] = max(self.still_until[agent], until)
        arrivals = list(members)
        for agent, pos, reach in spawned:
            self._add(agent, pos, self.step[members[0]], reach)
            arrivals.append(agent)
        woken: list[int] = []
        for agent in members:
            heap = self._watchers[agent]
            if heap:
                wake_all = (still is not None and agent in still) or agent in removed
                while heap and (wake_all or heap[0][0] <= self.step[agent]):
                    woken.append(heappop(heap)[1])
        for agent in removed:
            self._remove(agent)
            arrivals.remove(agent)
        base = self.base_step
        while self._alive and not count_at_step.get(base):
            count_at_step.pop(base, None)
            base += 1
        self.base_step = base if self._alive else self.until
        return self._update_components(arrivals, woken)

    def _remove(self, agent: int) -> None:
        self.state[agent] = REMOVED
        self._count_at_step[self.step[agent]] -= 1
        self._alive -= 1
        self._index.remove(agent)

    def _update_components(self, arrivals: list[int], woken: list[int]) -> list[Cluster]:
        """Adds new arrivals to components, then returns the affected components that may run."""
        affected: dict[int, Component] = {}
        ready: list[Cluster] = []
        for agent in arrivals:
            step = self.step[agent]
            if step >= self.until:
                self.state[agent] = DONE
            elif step in self.barriers:
                self._at_barrier.setdefault(step, []).append(agent)
            else:
                self._join_component(agent)
        for agent in woken:
            self.watching[agent] = -1
        for agent in (*arrivals, *woken):
            component = self._component[agent]
            if component is not None:
                affected[id(component)] = component
        for component in affected.values():
            if self._try_release(component):
                ready.append(self._run(component.step, component.members))
        waiting = self._at_barrier.get(self.base_step)
        if waiting is not None and len(waiting) == self._alive:
            ready.append(self._run(self.base_step, self._at_barrier.pop(self.base_step)))
        return ready

    def _run(self, step: int, members: list[int]) -> Cluster:
        for agent in members:
            self.state[agent] = RUNNING
            self._component[agent] = None
        return Cluster(step, tuple(sorted(members)))

    def _join_component(self, agent: int) -> None:
        """Merges `agent` with the idle agents of its step within reach, smaller list into larger."""
        own = Component(self.step[agent], [agent], [agent])
        self._component[agent] = own
        steps, states, classes, here = self.step, self.state, self._reach_class, self.pos[agent]
        step, margins, distance = steps[agent], self._margins[classes[agent]], self._distance
        for other in self._index.near(here, self._max_couple[classes[agent]]):
            if steps[other] != step or other == agent or states[other] == REMOVED:
                continue
            if distance(here, self.pos[other]) > margins[classes[other]].couple:
                continue
            if states[other] == RUNNING:
                raise AssertionError(f"agent {agent} reached running agent {other} at step {step}")
            smaller = self._component[other]
            if smaller is None or smaller is own:  # None: an arrival of the same commit, not yet added
                continue
            if len(smaller.members) > len(own.members):
                own, smaller = smaller, own
            own.members += smaller.members
            own.unchecked += smaller.unchecked
            for x in smaller.members:
                self._component[x] = own

    def _try_release(self, component: Component) -> bool:
        """Returns True if no member is blocked. Otherwise one member watches its blocker."""
        unchecked = component.unchecked
        while unchecked:
            agent = unchecked[-1]
            if self.watching[agent] >= 0:
                return False
            blocker = self.find_blocker(agent)
            if blocker is not None:
                self._watch(agent, blocker)
                return False
            unchecked.pop()
        return True

    def find_blocker(self, agent: int) -> int | None:
        """Returns an agent that blocks `agent` at its step, or None."""
        step = self.step[agent]
        if step == self.base_step:
            return None
        self.blocker_searches += 1
        classes, here, own_class = self._reach_class, self.pos[agent], self._reach_class[agent]
        margins, distance, steps = self._margins[own_class], self._distance, self.step

        def blocks(other: int) -> bool:
            moves = moves_left(step, steps[other], self.still_until[other])
            other_class = classes[other]
            apart, move = distance(here, self.pos[other]), self._reaches[other_class].move
            return blocked(apart, margins[other_class], moves, move)

        return self._index.behind(here, step, self._max_threshold[own_class], self._max_move, blocks)

    def _watch(self, agent: int, blocker: int) -> None:
        self.watching[agent] = blocker
        blocker_class = self._reach_class[blocker]
        wake_step = earliest_release(
            self._distance(self.pos[agent], self.pos[blocker]),
            self._margins[self._reach_class[agent]][blocker_class],
            self.step[agent],
            max(self.step[blocker], self.still_until[blocker]),
            self._reaches[blocker_class].move,
        )
        heappush(self._watchers[blocker], (wake_step, agent))
