"""The town as a `World`: where residents stand, what they do and what they last said; and its time of day.

A step is ten seconds; the day starts at seven in the morning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Grid, Space
from serving.metropolis.town.town_map import Tile, TownMap
from serving.metropolis.world import AgentId, Body, Intent, Json, StepOutcome, Write, stable_hash

REACH = Reach(perceive=4, move=1)
STEPS_PER_HOUR = 360
START_HOUR = 7


def time_of_day(step: int) -> str:
    """The time at a step, as HH:MM."""
    minutes = START_HOUR * 60 + step * 60 // STEPS_PER_HOUR
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"


def step_at(hour: int, minute: int) -> int:
    """The step at a time of day; times before the start are step 0."""
    return max(0, (hour - START_HOUR) * STEPS_PER_HOUR + minute * STEPS_PER_HOUR // 60)


class SeenResident(NamedTuple):
    """Another resident within perception; it said `said` to `said_to` at step `said_at`."""

    name: AgentId
    pos: Tile
    doing: str
    said: str
    said_to: str
    said_at: int


class TownView(NamedTuple):
    """What a resident perceives: its tile, the place it is in, and everyone within perception."""

    pos: Tile
    place: str
    others: tuple[SeenResident, ...]


class Town:
    """Positions and appearances of residents; a tile holds at most one of them."""

    def __init__(self, names: Sequence[AgentId], town_map: TownMap | None = None):
        self.space: Space = Grid("chebyshev")
        self.map = town_map or TownMap()
        self.names = list(names)
        self._at: dict[AgentId, Tile] = {}
        self._looks: dict[AgentId, dict[str, Any]] = {}
        self._seed = 0

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        homes = [p.name for p in self.map.places if p.kind == "home"]
        self._seed, self._at = seed, {}
        for i, name in enumerate(self.names):
            beds = [t for t in self.map.walkable_tiles(homes[i % len(homes)]) if t not in self._at.values()]
            self._at[name] = beds[stable_hash(seed, name, "bed") % len(beds)]
        self._looks = {n: {"doing": "asleep", "said": "", "to": "", "at": -1} for n in self.names}
        return {
            n: Body(pos, REACH, {"home": homes[i % len(homes)]})
            for i, (n, pos) in enumerate(self._at.items())
        }

    def view(self, agent: AgentId, step: int) -> TownView:
        here = self._at[agent]
        near = [
            SeenResident(name, pos, look["doing"], look["said"], look["to"], look["at"])
            for name, pos in self._at.items()
            if name != agent and self.space.distance(here, pos) <= REACH.perceive
            for look in (self._looks[name],)
        ]
        return TownView(here, self.map.place_name_at(here), tuple(sorted(near)))

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        """Gives each tile to one of the residents who want it, by a hash; an occupied tile goes to nobody.

        Only residents within two tiles of each other can want the same tile, and they share a cluster. The
        hash of seed, step and name therefore decides the same way for every grouping into clusters.
        """
        occupied = {self._at[name] for name in intents}
        claims: dict[Tile, list[AgentId]] = {}
        for name, intent in intents.items():
            goal = intent.action.get("to")
            if goal is not None and tuple(goal) not in occupied:
                claims.setdefault(tuple(goal), []).append(name)
        moves = {min(c, key=lambda n: stable_hash(self._seed, step, n)): tile for tile, c in claims.items()}
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

    def snapshot(self) -> Json:
        return {"at": {n: list(p) for n, p in self._at.items()}, "looks": self._looks, "seed": self._seed}

    def restore(self, snapshot: Json) -> None:
        self._at = {n: (p[0], p[1]) for n, p in snapshot["at"].items()}
        self._looks, self._seed = dict(snapshot["looks"]), snapshot["seed"]
