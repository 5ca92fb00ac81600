"""Who may affect whom: how far two agents must be apart before one may run ahead of the other.

Notation: A has committed `a` steps and wants to run step `a`; B has committed `b`. In one step an agent
reads within `perceive` of its position, moves at most `move` and writes within `write >= move`.

Running A at `a > b` on a single-version world is safe if none of these can happen (`g = a - b`):

    B's pending writes reach what A reads now      dist <= write_B + perceive_A + (g - 1) move_B
    A's writes reach what B has yet to read        dist <= write_A + perceive_B +    g    move_B
    A's writes meet B's pending writes             dist <= write_A + write_B    + (g - 1) move_B

AI Metropolis (Xie et al., MLSys 2025, section 3.2) prints `perceive + (g + 1) move` for equal agents. That
covers the third line only if `perceive >= move`; with the larger of the two in its place it is right for all,
and for unequal agents it becomes `max(write_A + perceive_B, write_B + perceive_A, write_A + write_B)`.
The same margin at `g = 0` says who must step together: a conflict is resolved inside one commit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reach:
    """How far one agent gets in one step, in units of the space's metric.

    Attributes:
      perceive: radius of what it reads, around its position before the step.
      move: longest move; also the speed of any effect that travels by itself (fire, sound).
      write: radius of what it changes; at least `move`. None means equal to `move`.
    """

    perceive: float
    move: float
    write: float = -1.0

    def __post_init__(self):
        if self.write == -1.0:
            object.__setattr__(self, "write", self.move)
        if min(self.perceive, self.move) < 0:
            raise ValueError(f"perceive={self.perceive} and move={self.move} must not be negative")
        if self.write < self.move:
            raise ValueError(f"write reach {self.write} is below move {self.move}: a move is a write")

    def within(self, other: "Reach") -> bool:
        """True if this agent can do nothing in a step that `other` could not."""
        return self.perceive <= other.perceive and self.move <= other.move and self.write <= other.write


@dataclass(frozen=True, slots=True)
class Margin:
    """Distances that decide for one ordered pair (A, B).

    Attributes:
      couple: A and B at the same step advance together iff dist <= couple.
      block: B behind by g >= 1 steps, free to move, holds A iff dist <= block + g * move_B.
      still: B behind but promised not to move before A's step holds A iff dist <= still.
    """

    couple: float
    block: float
    still: float


type Rule = Callable[[Reach, Reach], Margin]


def in_place(a: Reach, b: Reach) -> Margin:
    """One version of the world, overwritten by each commit: the paper's setting, corrected."""
    c = max(a.write + b.perceive, b.write + a.perceive, a.write + b.write)
    return Margin(couple=c, block=c, still=c)


def multi_version(a: Reach, b: Reach) -> Margin:
    """The world keeps old versions: step `a` reads version `a`, whoever has written later ones.

    Nobody can spoil a slower agent's reads, so that hazard goes; equal steps couple only if they may write
    the same cell. Ours; the paper names neither. Needs a world that really answers by version.
    """
    meet = a.write + b.write
    see = b.write + a.perceive
    return Margin(couple=meet, block=max(see - b.move, meet), still=max(see, meet))


def moves_left(step: int, behind: int, still_until: int) -> int:
    """Steps before `step` in which an agent at `behind`, promised still until `still_until`, may yet move."""
    return max(0, step - max(behind, still_until))


def blocked(distance: float, margin: Margin, moves: int, move_b: float) -> bool:
    """True if B, which may still move in `moves` steps before A's, holds A. Equality blocks."""
    return distance <= (margin.block + moves * move_b if moves else margin.still)


def earliest_release(distance: float, margin: Margin, step: int, from_step: int, move_b: float) -> int:
    """The first step of B at which it could stop holding A, however it moves; never after `step`.

    `from_step` is B's step, or the end of its promise to stay if that is later. Each further step of B takes
    `move_b` off the threshold and adds at most `move_b` to the distance, so a gap closes at twice that speed.
    """
    if from_step >= step or move_b == 0:
        return step
    spare = margin.block + (step - from_step) * move_b - distance
    if math.isinf(spare):
        return step
    return min(step, from_step + max(1, math.floor(spare / (2 * move_b)) + 1))


def max_lead(distance: float, margin: Margin, move: float) -> float:
    """Steps A can be ahead of a B that never commits, at this distance (section 3.2 turned around).

    Infinite if B cannot move at all and is out of reach.
    """
    if distance <= margin.couple:
        return 0
    if move == 0:
        return math.inf
    return math.ceil((distance - margin.block) / move)
