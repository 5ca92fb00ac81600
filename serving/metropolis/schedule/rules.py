"""Dependency rules: how far apart two agents must be for one to run ahead of the other.

Notation: A has committed `a` steps and is about to run step `a`; B has committed `b`. In one step an agent
reads within `perceive` of its position, moves at most `move` and writes within `write >= move`.

Running A at `a > b` on a single-version world is safe if none of these can happen (`g = a - b`):

    B's pending writes reach what A reads now      dist <= write_B + perceive_A + (g - 1) move_B
    A's writes reach what B has yet to read        dist <= write_A + perceive_B +    g    move_B
    A's writes meet B's pending writes             dist <= write_A + write_B    +    g    move_B

AI Metropolis (Xie et al., MLSys 2025, section 3.2) gives `perceive + (g + 1) move` for equal agents. That
covers the third line only if `perceive >= move`; `max(perceive, move) + (g + 1) move` covers all three. For
unequal agents `perceive + move` becomes `max(write_A + perceive_B, write_B + perceive_A, write_A + write_B)`.
The same margin at `g = 0` decides which agents must step together, so one commit resolves their conflicts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reach:
    """How far one agent reads, moves and writes in one step, in units of the space's metric.

    Attributes:
      perceive: radius of what it reads, around its position before the step.
      move: longest move; also the speed of any effect that spreads by itself (fire, sound).
      write: radius of what it changes; at least `move`. The default -1 means equal to `move`.
    """

    perceive: float
    move: float
    write: float = -1.0

    def __post_init__(self) -> None:
        if self.write == -1.0:
            object.__setattr__(self, "write", self.move)
        if min(self.perceive, self.move) < 0:
            raise ValueError(f"perceive={self.perceive} and move={self.move} must not be negative")
        if self.write < self.move:
            raise ValueError(f"write reach {self.write} is below move {self.move}: a move is a write")

    def within(self, other: "Reach") -> bool:
        """True if no radius exceeds that of `other`."""
        return self.perceive <= other.perceive and self.move <= other.move and self.write <= other.write


@dataclass(frozen=True, slots=True)
class Margin:
    """Distance thresholds of one ordered pair (A, B).

    Attributes:
      couple: A and B at the same step advance together iff dist <= couple.
      block: B, g >= 1 steps behind and free to move, blocks A iff dist <= block + g * move_B.
      still: B, behind but promised not to move before A's step, blocks A iff dist <= still.
    """

    couple: float
    block: float
    still: float


type Rule = Callable[[Reach, Reach], Margin]


def in_place(a: Reach, b: Reach) -> Margin:
    """Margins for a world with a single version that each commit overwrites: the paper's rule, corrected."""
    margin = max(a.write + b.perceive, b.write + a.perceive, a.write + b.write)
    return Margin(couple=margin, block=margin, still=margin)


def multi_version(a: Reach, b: Reach) -> Margin:
    """Margins for a world that keeps old versions, so that step `a` always reads version `a`.

    A leader's writes cannot affect a slower agent's reads, so that hazard disappears. Agents at equal steps
    couple only if they may write the same cell. Not in the paper. The world must answer `view` by version.
    """
    write_write = a.write + b.write
    write_read = b.write + a.perceive
    return Margin(
        couple=write_write,
        block=max(write_read - b.move, write_write),
        still=max(write_read, write_write),
    )


def moves_left(step: int, step_b: int, still_until: int) -> int:
    """Number of steps before `step` in which an agent at `step_b` with this promise may still move."""
    return max(0, step - max(step_b, still_until))


def blocked(distance: float, margin: Margin, moves: int, move_b: float) -> bool:
    """True if B, which may move in `moves` more steps before A's step, blocks A. Equality blocks."""
    return distance <= (margin.block + moves * move_b if moves else margin.still)


def earliest_release(distance: float, margin: Margin, step: int, from_step: int, move_b: float) -> int:
    """Returns the first step of B at which it may stop blocking A, for any movement of B; at most `step`.

    `from_step` is B's step, or the end of its promise to stay if that is later. Each further step of B lowers
    the threshold by `move_b` and raises the distance by at most `move_b`, so the gap shrinks by at most twice
    `move_b`.
    """
    if from_step >= step or move_b == 0:
        return step
    spare = margin.block + (step - from_step) * move_b - distance
    if math.isinf(spare):
        return step
    return min(step, from_step + max(1, math.floor(spare / (2 * move_b)) + 1))
