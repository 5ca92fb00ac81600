"""The map of the town: places, walkable tiles and shortest paths."""

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

WIDTH, HEIGHT = 64, 40
type Tile = tuple[int, int]


@dataclass(frozen=True)
class TownPlace:
    """A building with a two-tile door in its lower wall, or an open square (`walls=False`)."""

    name: str
    kind: str
    x: int
    y: int
    width: int
    height: int
    walls: bool = True

    def interior_tiles(self) -> list[Tile]:
        inset = 1 if self.walls else 0
        return [
            (i, j)
            for j in range(self.y + inset, self.y + self.height - inset)
            for i in range(self.x + inset, self.x + self.width - inset)
        ]

    def wall_tiles(self) -> set[Tile]:
        if not self.walls:
            return set()
        right, bottom = self.x + self.width - 1, self.y + self.height - 1
        ring = {(i, j) for i in range(self.x, right + 1) for j in (self.y, bottom)}
        ring |= {(i, j) for i in (self.x, right) for j in range(self.y, bottom + 1)}
        middle = self.x + self.width // 2
        return ring - {(middle - 1, bottom), (middle, bottom)}


PLACES = (
    TownPlace("Alder House", "home", 2, 2, 9, 7),
    TownPlace("Birch House", "home", 14, 2, 9, 7),
    TownPlace("Cedar House", "home", 41, 2, 9, 7),
    TownPlace("Dogwood House", "home", 53, 2, 9, 7),
    TownPlace("Elm House", "home", 2, 29, 9, 7),
    TownPlace("Fir House", "home", 53, 29, 9, 7),
    TownPlace("Café Linden", "café", 26, 2, 12, 8),
    TownPlace("Library", "library", 2, 14, 12, 9),
    TownPlace("Market", "shop", 49, 14, 13, 9),
    TownPlace("Workshop", "workshop", 14, 29, 11, 8),
    TownPlace("School", "school", 39, 29, 11, 8),
    TownPlace("Park", "park", 20, 14, 23, 11, walls=False),
)
WATER = frozenset((i, j) for i in range(28, 35) for j in range(17, 21) if (i, j) not in {(28, 17), (34, 20)})


@dataclass
class TownMap:
    """Walkable tiles and shortest paths in four directions."""

    places: tuple[TownPlace, ...] = PLACES
    blocked: frozenset[Tile] = field(init=False)

    def __post_init__(self) -> None:
        walls = set().union(*(place.wall_tiles() for place in self.places))
        self.blocked = frozenset(walls | WATER)

    def is_walkable(self, tile: Tile) -> bool:
        return 0 <= tile[0] < WIDTH and 0 <= tile[1] < HEIGHT and tile not in self.blocked

    def place(self, name: str) -> TownPlace:
        return next(p for p in self.places if p.name == name)

    def walkable_tiles(self, name: str) -> list[Tile]:
        """The walkable tiles of a place, row by row."""
        return [tile for tile in self.place(name).interior_tiles() if self.is_walkable(tile)]

    def place_name_at(self, tile: Tile) -> str:
        """The name of the place that contains a tile, or "street"."""
        return next((p.name for p in self.places if tile in _tiles(p)), "street")

    def next_tiles(self, here: Tile, goal: Tile) -> list[Tile]:
        """Neighbours of `here` that are nearer to `goal`, nearest first; empty at the goal."""
        distance = _distances(self, goal)
        nearer = [t for t in neighbour_tiles(here) if t in distance and distance[t] < distance.get(here, 0)]
        return sorted(nearer, key=lambda t: (distance[t], t))

    def __hash__(self) -> int:  # identity, so that paths can be cached by map
        return id(self)


def neighbour_tiles(tile: Tile) -> list[Tile]:
    x, y = tile
    return [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]


@lru_cache(maxsize=64)
def _tiles(place: TownPlace) -> frozenset[Tile]:
    return frozenset(place.interior_tiles())


@lru_cache(maxsize=512)
def _distances(town_map: TownMap, goal: Tile) -> dict[Tile, int]:
    """Steps to `goal` from every tile that has a path (breadth-first search)."""
    distance, queue = {goal: 0}, deque([goal])
    while queue:
        here = queue.popleft()
        for tile in neighbour_tiles(here):
            if tile not in distance and town_map.is_walkable(tile):
                distance[tile] = distance[here] + 1
                queue.append(tile)
    return distance
