"""Who takes part: every agent's name, place, reach, state and promise, in tables by number."""

from collections.abc import Mapping
from typing import Any

from serving.metropolis.runtime.store import position
from serving.metropolis.schedule.dependency_graph import Spawn
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Position
from serving.metropolis.world import AgentId, Json, StepOutcome


class AgentTable:
    """The engine's own tables. A number is given once and kept beyond death.

    Attributes:
      names, pos, reach, state: by number.
      still: the step until which an agent has promised not to move; 0 without a promise.
      first: the step an agent begins with, or goes on from; what follows is the schedule's.
      number: by name.
      gone: numbers of the dead.
    """

    def __init__(self) -> None:
        self.names: list[AgentId] = []
        self.pos: list[Position] = []
        self.reach: list[Reach] = []
        self.state: list[Json] = []
        self.still: list[int] = []
        self.first: list[int] = []
        self.number: dict[AgentId, int] = {}
        self.gone: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    def alive(self) -> list[int]:
        return [x for x in range(len(self.names)) if x not in self.gone]

    def admit(
        self, name: AgentId, pos: Position, reach: Reach, state: Json, step: int, still: int = 0
    ) -> None:
        self.number[name] = len(self.names)
        self.names.append(name)
        self.pos.append(pos)
        self.reach.append(reach)
        self.state.append(state)
        self.still.append(still)
        self.first.append(step)

    def enact(
        self, step: int, outcome: StepOutcome, still: Mapping[AgentId, int]
    ) -> tuple[list[Spawn], list[int]]:
        """Takes over what a step came to and promised; returns who was born and who died."""
        number = self.number
        for name, pos in outcome.moves.items():
            self.pos[number[name]] = pos
        spawned = []
        for _, name, body in outcome.births:
            spawned.append(Spawn(len(self.names), body.pos, body.reach))
            self.admit(name, body.pos, body.reach, body.state, step + 1)
        for name, state in outcome.states.items():
            self.state[number[name]] = state
        for name, until in still.items():
            self.still[number[name]] = max(self.still[number[name]], until)
        gone = [number[name] for name in outcome.deaths]
        self.gone.update(gone)
        return spawned, gone

    def snapshot(self, step: list[int]) -> dict[str, Any]:
        """Plain JSON values; `step` by number."""
        agents = [
            [n, self.pos[x], step[x], _numbers(self.reach[x]), self.still[x], self.state[x]]
            for n, x in self.number.items()
        ]
        return {"agents": agents, "gone": sorted(self.gone)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "AgentTable":
        """The roster of which `state` is a snapshot."""
        roster = cls()
        for name, pos, step, reach, still, own in state["agents"]:
            roster.admit(name, position(pos), Reach(*reach), own, step, still)
        roster.gone = set(state["gone"])
        return roster


def _numbers(reach: Reach) -> list[float]:
    return [reach.perceive, reach.move, reach.write]
