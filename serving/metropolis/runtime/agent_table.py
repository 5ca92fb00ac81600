"""The engine's table of agents: name, position, reach, state and promise, by agent number."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.metropolis.runtime.store import position_from_json
from serving.metropolis.schedule.dependency_graph import Spawn
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Position
from serving.metropolis.world import AgentId, Json, StepOutcome


class AgentTable:
    """Columns indexed by agent number. A number is never reused, not even after the agent's death.

    Attributes:
      names, pos, reach, state: by number.
      still_until: the step before which an agent has promised not to move; 0 without a promise.
      start_step: the step an agent starts or resumes at. The schedule counts from there.
      number: agent number by name.
      removed: numbers of dead agents.
    """

    def __init__(self) -> None:
        self.names: list[AgentId] = []
        self.pos: list[Position] = []
        self.reach: list[Reach] = []
        self.state: list[Json] = []
        self.still_until: list[int] = []
        self.start_step: list[int] = []
        self.number: dict[AgentId, int] = {}
        self.removed: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    def alive(self) -> list[int]:
        """Returns the numbers of the living agents."""
        return [x for x in range(len(self.names)) if x not in self.removed]

    def add(
        self, name: AgentId, pos: Position, reach: Reach, state: Json, step: int, still_until: int = 0
    ) -> None:
        """Adds an agent under the next number."""
        self.number[name] = len(self.names)
        self.names.append(name)
        self.pos.append(pos)
        self.reach.append(reach)
        self.state.append(state)
        self.still_until.append(still_until)
        self.start_step.append(step)

    def apply(
        self, step: int, outcome: StepOutcome, still_until: Mapping[AgentId, int]
    ) -> tuple[list[Spawn], list[int]]:
        """Applies an outcome of `step` and its promises; returns the newborn agents and the dead ones."""
        number = self.number
        for name, pos in outcome.moves.items():
            self.pos[number[name]] = pos
        spawned = []
        for _, name, body in outcome.births:
            spawned.append(Spawn(len(self.names), body.pos, body.reach))
            self.add(name, body.pos, body.reach, body.state, step + 1)
        for name, state in outcome.states.items():
            self.state[number[name]] = state
        for name, until in still_until.items():
            self.still_until[number[name]] = max(self.still_until[number[name]], until)
        removed = [number[name] for name in outcome.deaths]
        self.removed.update(removed)
        return spawned, removed

    def snapshot(self, steps: Sequence[int]) -> dict[str, Any]:
        """Returns the table as JSON. `steps`: steps committed, by number."""
        agents = [
            [
                name,
                self.pos[x],
                steps[x],
                [self.reach[x].perceive, self.reach[x].move, self.reach[x].write],
                self.still_until[x],
                self.state[x],
            ]
            for name, x in self.number.items()
        ]
        return {"agents": agents, "gone": sorted(self.removed)}

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> "AgentTable":
        """Returns the table that `snapshot` was taken of."""
        table = cls()
        for name, pos, step, reach, still_until, state in snapshot["agents"]:
            table.add(name, position_from_json(pos), Reach(*reach), state, step, still_until)
        table.removed = set(snapshot["gone"])
        return table
