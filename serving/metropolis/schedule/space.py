"""Spaces: a metric, and an index that finds nearby agents and agents that block a step.

The metric must satisfy the triangle inequality. It must never exceed the distance by which the world limits
perception, moves and writes: a rule that measures Euclidean distances in a world with square vision lets
  agents that can perceive each other run ahead.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

type Position = Any  # (x, y) on a grid, a node of a graph; hashable and JSON
type Cell = tuple[int, int]


class Index(Protocol):
    """Positions and steps of all agents. Agents are small integers."""

    def put(self, agent: int, pos: Position, step: int) -> None:
        """Adds or moves an agent that has committed `step` steps."""

    def remove(self, agent: int) -> None:
        """Removes an agent."""

    def near(self, pos: Position, radius: float) -> Iterable[int]:
        """Returns a superset of the agents within `radius` of `pos`."""

    def behind(
        self, pos: Position, step: int, threshold: float, move: float, blocks: Callable[[int], bool]
    ) -> int | None:
        """Returns an agent B behind `step` for which `blocks(B)` is true, or None.

        Only agents with dist <= threshold + (step - step_B) * move need to be tested.
        """


class Space(Protocol):
    """A metric space of positions."""

    def distance(self, p: Position, q: Position) -> float:
        """Returns the distance of two positions."""

    def index(self, edge: float) -> Index:
        """Returns an empty index for searches of radius about `edge`."""


def check_position(space: Space, at: Position) -> None:
    """Refuses what is no position of a space: nan, infinity, another shape, what JSON cannot hold.

    Raises:
      ValueError: says why.
    """
    if type(at) is tuple and len(at) == 2 and type(at[0]) is int and type(at[1]) is int:
        return  # the usual case, quickly
    try:
        hash(at)
        json.dumps(at, allow_nan=False)
        fits = space.distance(at, at) == 0
    except (TypeError, ValueError, LookupError, OverflowError) as why:
        raise ValueError(f"that is no position ({why})") from why
    if not fits:
        raise ValueError("that is no position")


def chebyshev(p: Position, q: Position) -> float:
    """Larger of the two coordinate differences."""
    dx, dy = abs(p[0] - q[0]), abs(p[1] - q[1])
    return dx if dx > dy else dy  # faster than max(), and called most often


def manhattan(p: Position, q: Position) -> float:
    """Sum of the two coordinate differences."""
    return abs(p[0] - q[0]) + abs(p[1] - q[1])


def euclidean(p: Position, q: Position) -> float:
    """Length of the straight line."""
    return math.hypot(p[0] - q[0], p[1] - q[1])


METRICS = {"chebyshev": chebyshev, "manhattan": manhattan, "euclidean": euclidean}


@dataclass(frozen=True)
class Grid:
    """The plane, with integer or real coordinates and one of three metrics."""

    metric: Literal["chebyshev", "manhattan", "euclidean"] = "chebyshev"
    distance: Callable[[Position, Position], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is not one of {', '.join(METRICS)}")
        object.__setattr__(self, "distance", METRICS[self.metric])

    def index(self, edge: float) -> "GridIndex":
        return GridIndex(edge)


class GridIndex:
    """A grid hash with a pyramid of minima: each square stores the smallest step of the agents inside it.

    The edge of a square doubles from level to level. A search for a blocker descends only into squares that
    are close enough given the step of their slowest agent. A leader far from all slow agents thus tests a few
    squares instead of n agents. All three metrics are at least as large as Chebyshev's, so pruning squares by
    their Chebyshev distance misses no agent.
    """

    LEVELS = 14

    def __init__(self, edge: float) -> None:
        self.edge = edge if 0 < edge < math.inf else 1.0 if edge <= 0 else 2.0**40
        self._cell: dict[int, Cell] = {}
        self._step: dict[int, int] = {}
        self._inside: dict[Cell, dict[int, None]] = {}
        self._min_step: dict[Cell, int] = {}  # by cell (square of the lowest level)
        # By level and square: the minima of its four quarters. Bit 0 of the slot is east, bit 1 is north.
        self._quarters: list[dict[Cell, list[int]]] = [{} for _ in range(self.LEVELS + 1)]
        self._search_level = self.LEVELS

    def put(self, agent: int, pos: Position, step: int) -> None:
        edge = self.edge
        cell = (int(pos[0] // edge), int(pos[1] // edge))
        old = self._cell.get(agent)
        before = self._step.get(agent, -1)
        self._step[agent] = step
        if old == cell:
            if self._min_step[cell] == before:
                self._update_min_step(cell)
            return
        if old is not None:
            self._leave_cell(agent, old)
        self._cell[agent] = cell
        inside = self._inside.get(cell)
        if inside is None:
            inside = self._inside[cell] = {}
        inside[agent] = None
        if step < self._min_step.get(cell, _EMPTY):
            self._update_min_step(cell)

    def remove(self, agent: int) -> None:
        self._leave_cell(agent, self._cell.pop(agent))
        del self._step[agent]

    def _leave_cell(self, agent: int, cell: Cell) -> None:
        inside = self._inside[cell]
        del inside[agent]
        if not inside:
            del self._inside[cell]
        self._update_min_step(cell)

    def _update_min_step(self, cell: Cell) -> None:
        """Recomputes the minimum of `cell` and of the squares above it, until one does not change."""
        step, inside = self._step, self._inside.get(cell)
        low = min([step[x] for x in inside]) if inside else _EMPTY
        if low == self._min_step.get(cell, _EMPTY):
            return
        if low == _EMPTY:
            del self._min_step[cell]
        else:
            self._min_step[cell] = low
        x, y = cell
        for squares in self._quarters[1:]:
            slot = (x & 1) | (y & 1) << 1
            x, y = x >> 1, y >> 1
            quarters = squares.get((x, y))
            if quarters is None:
                quarters = squares[x, y] = [_EMPTY] * 4
            before = min(quarters)
            quarters[slot] = low
            low = min(quarters)
            if low == _EMPTY:
                del squares[x, y]
            if low == before:
                return

    def _start_level(self) -> int:
        """Returns the level to start a search at: the lowest one with at most 4 squares."""
        top, squares = self._search_level, self._quarters
        while top > 1 and len(squares[top - 1]) <= 4:
            top -= 1
        while top < self.LEVELS and len(squares[top]) > 4:
            top += 1
        self._search_level = top
        return top

    def near(self, pos: Position, radius: float) -> Iterable[int]:
        edge, inside = self.edge, self._inside
        if radius > edge * 64:  # too many cells to visit one by one
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

    def behind(
        self, pos: Position, step: int, threshold: float, move: float, blocks: Callable[[int], bool]
    ) -> int | None:
        px, py = pos[0], pos[1]
        top = self._start_level()
        stack = [(top, x, y, 0) for x, y in self._quarters[top]]
        while stack:
            level, x, y, _ = stack.pop()
            if level == 0:
                steps = self._step
                for other in self._inside[x, y]:
                    if steps[other] < step and blocks(other):
                        return other
                continue
            half = self.edge * (1 << (level - 1))
            close = []
            for slot, low in enumerate(self._quarters[level][x, y]):
                if low < step:
                    reach = threshold + (step - low) * move
                    i, j = 2 * x + (slot & 1), 2 * y + (slot >> 1)
                    if -reach <= px - i * half <= half + reach and -reach <= py - j * half <= half + reach:
                        close.append((level - 1, i, j, low))
            if len(close) > 1:  # slowest first: it blocks for the longest time
                close.sort(key=_by_min_step)
            stack += close
        return None


_EMPTY = 1 << 62


def _by_min_step(square: tuple[int, int, int, int]) -> int:
    return -square[3]


@dataclass(frozen=True)
class Hops:
    """An undirected graph. The distance is the number of edges on a shortest path, infinite if there is none.

    For directed read graphs (A follows B) pass the symmetric closure.
    """

    neighbours: Mapping[Hashable, Sequence[Hashable]]

    def __post_init__(self) -> None:
        for node, others in self.neighbours.items():
            for other in others:
                if node not in self.neighbours.get(other, ()):
                    raise ValueError(
                        f"edge {node!r} -> {other!r} has no way back; pass the symmetric closure"
                    )

    def rings(self, start: Hashable) -> Iterator[list[Hashable]]:
        """Yields the nodes at hop distance 0, 1, 2, ... from `start`."""
        seen, ring = {start}, [start]
        while ring:
            yield ring
            ring = [n for node in ring for n in self.neighbours[node] if not (n in seen or seen.add(n))]  # type: ignore[func-returns-value]

    def distance(self, p: Position, q: Position) -> float:
        return next((hops for hops, ring in enumerate(self.rings(p)) if q in ring), math.inf)

    def index(self, edge: float) -> "HopIndex":
        return HopIndex(self)


class HopIndex:
    """Agents by node. Searches go outward ring by ring, as far as the slowest agent could block."""

    def __init__(self, space: Hops) -> None:
        self._space = space
        self._node: dict[int, Hashable] = {}
        self._step: dict[int, int] = {}
        self._at: dict[Hashable, dict[int, None]] = {}
        self._count: dict[int, int] = {}  # by step; the smallest key bounds every search

    def put(self, agent: int, pos: Position, step: int) -> None:
        if agent in self._node:
            self.remove(agent)
        self._node[agent], self._step[agent] = pos, step
        self._at.setdefault(pos, {})[agent] = None
        self._count[step] = self._count.get(step, 0) + 1

    def remove(self, agent: int) -> None:
        del self._at[self._node.pop(agent)][agent]
        step = self._step.pop(agent)
        self._count[step] -= 1
        if not self._count[step]:
            del self._count[step]

    def near(self, pos: Position, radius: float) -> Iterable[int]:
        return [
            agent
            for ring in _rings_within(self._space.rings(pos), radius)
            for node in ring
            for agent in self._at.get(node, ())
        ]

    def behind(
        self, pos: Position, step: int, threshold: float, move: float, blocks: Callable[[int], bool]
    ) -> int | None:
        low = min(self._count)
        if low >= step:
            return None
        for ring in _rings_within(self._space.rings(pos), threshold + (step - low) * move):
            for node in ring:
                for agent in self._at.get(node, ()):
                    if self._step[agent] < step and blocks(agent):
                        return agent
        return None


def _rings_within(rings: Iterable[list[Hashable]], radius: float) -> Iterator[list[Hashable]]:
    for hops, ring in enumerate(rings):
        if hops > radius:
            return
        yield ring
