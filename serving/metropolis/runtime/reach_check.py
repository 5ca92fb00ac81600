"""Checks outcomes against the assumptions of the dependency rules.

No agent may act beyond its reach, outside its own commit, or against its promise to stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.schedule.space import Position, Space, check_position
from serving.metropolis.world import AgentId, CausalityError, Intent, StepOutcome


@dataclass(frozen=True, slots=True)
class ReachCheck:
    """Validates the outcomes of a run.

    Attributes:
      barriers: steps in which views and writes may be global.
    """

    agent_table: AgentTable
    space: Space
    barriers: frozenset[int]

    def validate(self, step: int, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> None:
        """Checks one outcome before it is applied.

        Raises:
          CausalityError: names the agent, the step and the rule that `outcome` breaks.
        """
        table, unlimited = self.agent_table, step in self.barriers
        for name, pos in outcome.moves.items():
            x = self._member(name, step, intents, "moves")
            self._check_position(name, step, pos, "moves to")
            if pos != table.pos[x] and step < table.still_until[x]:
                raise CausalityError(
                    f"agent {name!r} promised to stay until step {table.still_until[x]},"
                    f" but moves at step {step}"
                )
            if not unlimited:
                self._check_distance(name, step, x, pos, table.reach[x].move, "moves")
        for name, at, _ in outcome.writes:
            x = self._member(name, step, intents, "writes")
            self._check_position(name, step, at, "writes at")
            if not unlimited:
                self._check_distance(name, step, x, at, table.reach[x].write, "writes")
        self._validate_births(step, intents, outcome)
        born = {birth.id for birth in outcome.births}
        for name in outcome.deaths:
            self._member(name, step, intents, "dies")
        for name in outcome.states:
            if name not in born:
                self._member(name, step, intents, "changes state")

    def _validate_births(self, step: int, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> None:
        table = self.agent_table
        for name, child, body in outcome.births:
            x = self._member(name, step, intents, "has a child")
            self._check_position(name, step, body.pos, "has a child at")
            self._check_distance(name, step, x, body.pos, table.reach[x].move, "has a child")
            if child in table.number:
                raise CausalityError(f"agent {child!r}, born at step {step}, exists already")
            if not body.reach.within(table.reach[x]):
                raise CausalityError(
                    f"agent {child!r} would reach {body.reach}, its parent {name!r} only {table.reach[x]}"
                )

    def _member(self, name: AgentId, step: int, intents: Mapping[AgentId, Intent], action: str) -> int:
        """Returns the number of an agent that must be a member of the commit."""
        if name not in intents:
            raise CausalityError(
                f"agent {name!r} {action} at step {step} in a commit that it is not a member of"
            )
        return self.agent_table.number[name]

    def _check_position(self, name: AgentId, step: int, at: Position, action: str) -> None:
        """Refuses what is no position of the space: nan, infinity, another shape, an unknown node."""
        try:
            check_position(self.space, at)
        except ValueError as why:
            raise CausalityError(f"agent {name!r} {action} {at!r} at step {step}: {why}") from why

    def _check_distance(
        self, name: AgentId, step: int, x: int, at: Position, limit: float, action: str
    ) -> None:
        distance = self.space.distance(self.agent_table.pos[x], at)
        if not distance <= limit:
            raise CausalityError(
                f"agent {name!r} {action} {distance} away at step {step},"
                f" from {self.agent_table.pos[x]} to {at}; its reach is {limit}"
            )
