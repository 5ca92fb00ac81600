"""What an outcome must keep to, or the schedule's promises are worth nothing: nobody acts beyond their reach,
for others, or against their own word."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.schedule.space import Position, Space
from serving.metropolis.world import AgentId, CausalityError, Intent, StepOutcome


@dataclass(frozen=True, slots=True)
class ReachCheck:
    """Judges the outcomes of a run.

    Attributes:
      barriers: steps in which views and writes may be global.
    """

    roster: AgentTable
    space: Space
    barriers: frozenset[int]

    def judge(self, step: int, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> None:
        """Raises CausalityError, with who, what and when, if `outcome` breaks a rule."""
        roster, everywhere = self.roster, step in self.barriers
        for name, pos in outcome.moves.items():
            x = self._member(name, step, intents, "moves")
            if pos != roster.pos[x] and step < roster.still[x]:
                raise CausalityError(
                    f"agent {name!r} promised to stay until step {roster.still[x]}, but moves at step {step}"
                )
            if not everywhere:
                self._within(name, step, x, pos, roster.reach[x].move, "moves")
        for name, at, _ in outcome.writes:
            x = self._member(name, step, intents, "writes")
            if not everywhere:
                self._within(name, step, x, at, roster.reach[x].write, "writes")
        self._judge_births(step, intents, outcome)
        born = {birth.id for birth in outcome.births}
        for name in outcome.deaths:
            self._member(name, step, intents, "dies")
        for name in outcome.states:
            if name not in born:
                self._member(name, step, intents, "changes state")

    def _judge_births(self, step: int, intents: Mapping[AgentId, Intent], outcome: StepOutcome) -> None:
        roster = self.roster
        for name, child, body in outcome.births:
            x = self._member(name, step, intents, "has a child")
            self._within(name, step, x, body.pos, roster.reach[x].move, "has a child")
            if child in roster.number:
                raise CausalityError(f"agent {child!r}, born at step {step}, exists already")
            if not body.reach.within(roster.reach[x]):
                raise CausalityError(
                    f"agent {child!r} would reach {body.reach}, its parent {name!r} only {roster.reach[x]}"
                )

    def _member(self, name: AgentId, step: int, intents: Mapping[AgentId, Intent], does: str) -> int:
        if name not in intents:
            raise CausalityError(f"agent {name!r} {does} at step {step} in a commit it has no part in")
        return self.roster.number[name]

    def _within(self, name: AgentId, step: int, x: int, at: Position, limit: float, does: str) -> None:
        distance = self.space.distance(self.roster.pos[x], at)
        if distance > limit:
            raise CausalityError(
                f"agent {name!r} {does} {distance} away at step {step}, from {self.roster.pos[x]} to {at};"
                f" its reach is {limit}"
            )
