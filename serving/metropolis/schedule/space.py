"""Spaces: a metric, and an index that finds who is near and who holds a step back.

The metric must be one (triangle inequality) and must never exceed the distance that the world itself uses to
limit perception, moves and writes: a rule that measures Euclidean distances in a world of square vision lets
agents run ahead that can see each other.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

type Position = Any  # (x, y) on a grid, a node on a graph; hashable and JSON


class Index(Protocol):
    """Where every agent is and how far it has come. Agents are small integers."""

    def put(self, agent: int, pos: Position, step: int) -> None: ...
    def drop(self, agent: int) -> None: ...
    def near(self, pos: Position, radius: float) -> Iterable[int]:
        """A superset of the agents within `radius` of `pos`."""

    def behind(
        self, pos: Position, step: int, slack: float, move: float, holds: Callable[[int], bool]
    ) -> int | None:
        """Some agent B with fewer than `step` steps for which `holds(B)`, or None.

        Only agents with dist <= slack + (step - step_B) * move need be asked.
        """


class Space(Protocol):
    def distance(self, p: Position, q: Position) -> float: ...
    def index(self, edge: float) -> Index:
        """An empty index for questions of radius about `edge`."""


def chebyshev(p, q) -> float:
    dx, dy = abs(p[0] - q[0]), abs(p[1] - q[1])
    return dx if dx > dy else dy


def manhattan(p, q) -> float:
    return abs(p[0] - q[0]) + abs(p[1] - q[1])


def euclidean(p, q) -> float:
    return math.hypot(p[0] - q[0], p[1] - q[1])


METRICS = {"chebyshev": chebyshev, "manhattan": manhattan, "euclidean": euclidean}


@dataclass(frozen=True)
class Grid:
    """The plane, integer or real, under one of three metrics."""

    metric: Literal["chebyshev", "manhattan", "euclidean"] = "chebyshev"
    distance: Callable[[Position, Position], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is not one of {', '.join(METRICS)}")
        object.__setattr__(self, "distance", METRICS[self.metric])

    def index(self, edge: float) -> "GridIndex":
        return GridIndex(edge)


class GridIndex:
    """A grid hash under a pyramid of minima: each square knows the smallest step of anyone inside it.

    Squares double in edge from level to level. A search for someone behind walks down only into squares that
    are close enough for how far back their slowest agent is, so a leader far from everyone slow asks a few
    squares, not n agents. All three metrics are at least Chebyshev, so the distance to a square by Chebyshev
    never hides anyone.
    """

    LEVELS = 14

    def __init__(self, edge: float):
        self.edge = edge if 0 < edge < math.inf else 1.0 if edge <= 0 else 2.0**40
        self._cell: dict[int, tuple[int, int]] = {}
        self._step: dict[int, int] = {}
        self._inside: dict[tuple[int, int], dict[int, None]] = {}
        self._low: dict[tuple[int, int], int] = {}  # of a smallest square
        # Above: of each square, the minima of its four quarters; slot 1 is east, slot 2 is north.
        self._quarters: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(self.LEVELS + 1)]
        self._top = self.LEVELS

    def put(self, agent, pos, step):
        edge = self.edge
        cell = (int(pos[0] // edge), int(pos[1] // edge))
        old = self._cell.get(agent)
        before = self._step.get(agent, -1)
        self._step[agent] = step
        if old == cell:
            if self._low[cell] == before:
                self._lift(cell)
            return
        if old is not None:
            self._leave(agent, old)
        self._cell[agent] = cell
        inside = self._inside.get(cell)
        if inside is None:
            inside = self._inside[cell] = {}
        inside[agent] = None
        if step < self._low.get(cell, _NOBODY):
            self._lift(cell)

    def drop(self, agent):
        self._leave(agent, self._cell.pop(agent))
        del self._step[agent]

    def _leave(self, agent, cell):
        inside = self._inside[cell]
        del inside[agent]
        if not inside:
            del self._inside[cell]
        self._lift(cell)

    def _lift(self, cell):
        """Recomputes the minimum of `cell` and of the squares above it, until one does not change."""
        step, inside = self._step, self._inside.get(cell)
        low = min([step[x] for x in inside]) if inside else _NOBODY
        if low == self._low.get(cell, _NOBODY):
            return
        if low == _NOBODY:
            del self._low[cell]
        else:
            self._low[cell] = low
        x, y = cell
        for squares in self._quarters[1:]:
            slot = (x & 1) | (y & 1) << 1
            x, y = x >> 1, y >> 1
            quarters = squares.get((x, y))
            if quarters is None:
                quarters = squares[x, y] = [_NOBODY] * 4
            before = min(quarters)
            quarters[slot] = low
            low = min(quarters)
            if low == _NOBODY:
                del squares[x, y]
            if low == before:
                return

    def _entry(self) -> int:
        """The level to start a search at: the lowest with a handful of squares."""
        top, squares = self._top, self._quarters
        while top > 1 and len(squares[top - 1]) <= 4:
            top -= 1
        while top < self.LEVELS and len(squares[top]) > 4:
            top += 1
        self._top = top
        return top

    def near(self, pos, radius):
        edge, inside = self.edge, self._inside
        if radius > edge * 64:  # more squares than anyone should visit one by one
            return [x for cell in inside.values() for x in cell]
        x0, x1 = int((pos[0] - radius) // edge), int((pos[0] + radius) // edge)
        y0, y1 = int((pos[1] - radius) // edge), int((pos[1] + radius) // edge)
        found: list[int] = []
        for x in range(x0, x1 + 1):
            for y in range(y0, y1 + 1):
                here = inside.get((x, y))
                if here:
                    found += here
        return found

    def behind(self, pos, step, slack, move, holds):
        px, py = pos[0], pos[1]
        top = self._entry()
        stack = [(top, x, y, 0) for x, y in self._quarters[top]]
        while stack:
            level, x, y, _ = stack.pop()
            if level == 0:
                steps = self._step
                for other in self._inside[x, y]:
                    if steps[other] < step and holds(other):
                        return other
                continue
            half = self.edge * (1 << (level - 1))
            close = []
            for slot, low in enumerate(self._quarters[level][x, y]):
                if low < step:
                    reach = slack + (step - low) * move
                    i, j = 2 * x + (slot & 1), 2 * y + (slot >> 1)
                    if -reach <= px - i * half <= half + reach and -reach <= py - j * half <= half + reach:
                        close.append((level - 1, i, j, low))
            if len(close) > 1:  # slowest first: the witness that will hold longest
                close.sort(key=_by_low)
            stack += close
        return None


_NOBODY = 1 << 62


def _by_low(square):
    return -square[3]


@dataclass(frozen=True)
class Hops:
    """An undirected graph; distance is the number of edges on a shortest path, infinite if there is none.

    For directed read graphs (who follows whom) pass the symmetric closure.
    """

    neighbours: Mapping[Hashable, Sequence[Hashable]]

    def __post_init__(self):
        for node, others in self.neighbours.items():
            for other in others:
                if node not in self.neighbours.get(other, ()):
                    raise ValueError(
                        f"edge {node!r} -> {other!r} has no way back; pass the symmetric closure"
                    )

    def rings(self, start: Hashable):
        """Yields the nodes at hop distance 0, 1, 2, ... from `start`."""
        seen, ring = {start}, [start]
        while ring:
            yield ring
            ring = [n for node in ring for n in self.neighbours[node] if not (n in seen or seen.add(n))]  # type: ignore[func-returns-value]

    def distance(self, p, q) -> float:
        return next((hops for hops, ring in enumerate(self.rings(p)) if q in ring), math.inf)

    def index(self, edge: float) -> "HopIndex":
        return HopIndex(self)


class HopIndex:
    """Agents by node; searches walk outward ring by ring, as far as the slowest agent can matter."""

    def __init__(self, space: Hops):
        self._space = space
        self._node: dict[int, Hashable] = {}
        self._step: dict[int, int] = {}
        self._at: dict[Hashable, dict[int, None]] = {}
        self._count: dict[int, int] = {}  # agents by step: the smallest key bounds every search

    def put(self, agent, pos, step):
        if agent in self._node:
            self.drop(agent)
        self._node[agent], self._step[agent] = pos, step
        self._at.setdefault(pos, {})[agent] = None
        self._count[step] = self._count.get(step, 0) + 1

    def drop(self, agent):
        del self._at[self._node.pop(agent)][agent]
        step = self._step.pop(agent)
        self._count[step] -= 1
        if not self._count[step]:
            del self._count[step]

    def near(self, pos, radius):
        return [
            agent
            for hops, ring in _upto(self._space.rings(pos), radius)
            for node in ring
            for agent in self._at.get(node, ())
        ]

    def behind(self, pos, step, slack, move, holds):
        low = min(self._count)
        if low >= step:
            return None
        for _, ring in _upto(self._space.rings(pos), slack + (step - low) * move):
            for node in ring:
                for agent in self._at.get(node, ()):
                    if self._step[agent] < step and holds(agent):
                        return agent
        return None


def _upto(rings, radius):
    for hops, ring in enumerate(rings):
        if hops > radius:
            return
        yield hops, ring
