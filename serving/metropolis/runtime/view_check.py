"""Samples whether views show only what lies within the agent's `perceive`, the first requirement of a world.

Two tests, each on a share of the commits. A view taken again before its commit must not have changed. And the
view of an agent far from everything that a commit changes must be the same before and after the commit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.schedule.space import Position
from serving.metropolis.world import AgentId, CausalityError, StepOutcome, World

DEFAULT_SHARE = 1 / 16


class ViewProbe(NamedTuple):
    """The view of `agent` before a commit that is `distance` away."""

    agent: AgentId
    step: int
    view: Any
    distance: float


@dataclass(slots=True)
class ViewCheck:
    """Tests of the views of one run.

    Attributes:
      share: of the commits that are tested: 0 to 1.
      barriers: steps whose views may be global.
    """

    world: World
    table: AgentTable
    share: float
    barriers: frozenset[int]
    _due: float = field(default=0.0)
    _next: int = field(default=0)

    def is_due(self) -> bool:
        """Whether the next commit is tested; every call counts as one commit."""
        self._due += self.share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    def check_taken(self, step: int, names: Iterable[AgentId], views: Iterable[Any]) -> None:
        """Takes the views of a cluster again.

        Raises:
          CausalityError: one has changed since its agent decided.
        """
        for name, view in zip(names, views):
            if self.world.view(name, step) != view:
                raise CausalityError(f"the view of {name!r} at step {step} changed before its commit")

    def probe(
        self, step: int, members: Iterable[AgentId], outcome: StepOutcome, steps: list[int], until: int
    ) -> ViewProbe | None:
        """Takes the view of an agent far from an outcome, the next one in turn; None if there is none."""
        table, inside = self.table, set(members)
        changed = list(self._changed(outcome))
        if step in self.barriers or not changed:
            return None
        for _ in range(min(len(table), 8)):  # a few attempts
            self._next = (self._next + 1) % len(table)
            x, name = self._next, table.names[self._next]
            if x in table.removed or name in inside or steps[x] >= until or steps[x] in self.barriers:
                continue
            away = min(self.world.space.distance(table.pos[x], at) for at in changed)
            if away > table.reach[x].perceive:
                return ViewProbe(name, steps[x], self.world.view(name, steps[x]), away)
        return None

    def check_probe(self, probe: ViewProbe | None, step: int) -> None:
        """Compares a probe's view with the one after the commit.

        Raises:
          CausalityError: the agent sees farther than its `perceive`.
        """
        if probe is not None and self.world.view(probe.agent, probe.step) != probe.view:
            reach = self.table.reach[self.table.number[probe.agent]].perceive
            raise CausalityError(
                f"the view of {probe.agent!r} at step {probe.step} shows a change of step {step} at distance"
                f" {probe.distance}, but its reach says that it perceives {reach}; lock-step would differ"
            )

    def _changed(self, outcome: StepOutcome) -> Iterator[Position]:
        """Positions that an outcome changes, before and after it."""
        for name, pos in outcome.moves.items():
            yield self.table.pos[self.table.number[name]]
            yield pos
        yield from (write.at for write in outcome.writes)
        yield from (birth.body.pos for birth in outcome.births)
        yield from (self.table.pos[self.table.number[name]] for name in outcome.deaths)
