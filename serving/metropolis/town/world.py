"""The town as the engine sees it: who stands where, what they look like, what they last said."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Grid, Space
from serving.metropolis.town.streets import Streets, Tile
from serving.metropolis.world import AgentId, Body, Intent, StepOutcome, Write, stable_hash

REACH = Reach(perceive=4, move=1)


class Sighting(NamedTuple):
    """Another resident, as seen from near: `said` was said at step `said_at` to `said_to`."""

    name: AgentId
    pos: Tile
    doing: str
    said: str
    said_to: str
    said_at: int


class Sight(NamedTuple):
    """What a resident perceives: its own tile, the place, and everyone in the square around it."""

    pos: Tile
    place: str
    others: tuple[Sighting, ...]


class Town:
    """Positions and appearances. Nobody shares a tile, nobody walks through anybody."""

    def __init__(self, names: Sequence[AgentId], streets: Streets | None = None):
        self.space: Space = Grid("chebyshev")
        self.map = streets or Streets()
        self.names = list(names)
        self._at: dict[AgentId, Tile] = {}
        self._looks: dict[AgentId, dict[str, Any]] = {}
        self._seed = 0

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        homes = [p.name for p in self.map.places if p.kind == "home"]
        self._seed, self._at = seed, {}
        for i, name in enumerate(self.names):
            beds = [t for t in self.map.spots(homes[i % len(homes)]) if t not in self._at.values()]
            self._at[name] = beds[stable_hash(seed, name, "bed") % len(beds)]
        self._looks = {n: {"doing": "asleep", "said": "", "to": "", "at": -1} for n in self.names}
        return {
            n: Body(pos, REACH, {"home": homes[i % len(homes)]})
            for i, (n, pos) in enumerate(self._at.items())
        }

    def view(self, agent: AgentId, step: int) -> Sight:
        here = self._at[agent]
        near = [
            Sighting(name, pos, look["doing"], look["said"], look["to"], look["at"])
            for name, pos in self._at.items()
            if name != agent and self.space.distance(here, pos) <= REACH.perceive
            for look in (self._looks[name],)
        ]
        return Sight(here, self.map.where(here), tuple(sorted(near)))

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        """A tile goes to one of those who want it, by lot; a tile someone stands on goes to nobody.

        Only residents within two tiles of each other can want the same tile, and those share a cluster, so
        the lot (a hash of step and name) falls the same way however clusters are cut.
        """
        taken = {self._at[name] for name in intents}
        wishes: dict[Tile, list[AgentId]] = {}
        for name, intent in intents.items():
            goal = intent.action.get("to")
            if goal is not None and tuple(goal) not in taken:
                wishes.setdefault(tuple(goal), []).append(name)
        moves = {min(w, key=lambda n: stable_hash(self._seed, step, n)): tile for tile, w in wishes.items()}
        writes = [
            Write(name, self._at[name], intent.action["look"])
            for name, intent in intents.items()
            if "look" in intent.action
        ]
        return StepOutcome(moves=moves, writes=writes)

    def apply(self, step: int, outcome: StepOutcome) -> None:
        self._at.update(outcome.moves)
        for name, _, look in outcome.writes:
            self._looks[name] = {**self._looks[name], **look}

    def snapshot(self) -> Any:
        return {"at": {n: list(p) for n, p in self._at.items()}, "looks": self._looks, "seed": self._seed}

    def restore(self, snapshot: Any) -> None:
        self._at = {n: (p[0], p[1]) for n, p in snapshot["at"].items()}
        self._looks, self._seed = dict(snapshot["looks"]), snapshot["seed"]
