"""The map: what stands where, who can walk where, and the way to every place."""

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

    def inside(self) -> list[Tile]:
        inset = 1 if self.walls else 0
        return [
            (i, j)
            for j in range(self.y + inset, self.y + self.height - inset)
            for i in range(self.x + inset, self.x + self.width - inset)
        ]

    def wall(self) -> set[Tile]:
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
    """Walkable tiles and shortest ways (four directions)."""

    places: tuple[TownPlace, ...] = PLACES
    closed: frozenset[Tile] = field(init=False)

    def __post_init__(self):
        walls = set().union(*(place.wall() for place in self.places))
        self.closed = frozenset(walls | WATER)

    def open(self, tile: Tile) -> bool:
        return 0 <= tile[0] < WIDTH and 0 <= tile[1] < HEIGHT and tile not in self.closed

    def place(self, name: str) -> TownPlace:
        return next(p for p in self.places if p.name == name)

    def spots(self, name: str) -> list[Tile]:
        return [tile for tile in self.place(name).inside() if self.open(tile)]

    def where(self, tile: Tile) -> str:
        """The place a tile lies in, or "street"."""
        return next((p.name for p in self.places if tile in _tiles(p)), "street")

    def toward(self, here: Tile, goal: Tile) -> list[Tile]:
        """Tiles one step nearer to `goal`, best first; empty if there."""
        far = _distances(self, goal)
        ways = [t for t in neighbour_tiles(here) if t in far and far[t] < far.get(here, 0)]
        return sorted(ways, key=lambda t: (far[t], t))

    def __hash__(self):
        return id(self)


def neighbour_tiles(tile: Tile) -> list[Tile]:
    x, y = tile
    return [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]


@lru_cache(maxsize=64)
def _tiles(place: TownPlace) -> frozenset[Tile]:
    return frozenset(place.inside())


@lru_cache(maxsize=512)
def _distances(streets: TownMap, goal: Tile) -> dict[Tile, int]:
    far, queue = {goal: 0}, deque([goal])
    while queue:
        here = queue.popleft()
        for tile in neighbour_tiles(here):
            if tile not in far and streets.open(tile):
                far[tile] = far[here] + 1
                queue.append(tile)
    return far
