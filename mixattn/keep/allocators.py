"""How the layers share a budget: the part of the mean that each full owner gets.

An allocator is a function (index, layers) -> Fraction; the parts of all layers average to 1.
"""

from collections.abc import Callable
from fractions import Fraction

STEEPEST = 20  # the deepest layer of a pyramid gets this part of the mean


def uniform(index: int, layers: int) -> Fraction:
    """Every layer the same."""
    return Fraction(1)


def pyramid(index: int, layers: int) -> Fraction:
    """Less from layer to layer in equal steps, down to a twentieth of the mean.

    Source: PyramidKV (arXiv 2406.02069).
    """
    if layers == 1:
        return Fraction(1)
    least = Fraction(1, STEEPEST)
    return 2 - least - Fraction(index, layers - 1) * 2 * (1 - least)


ALLOCATORS: dict[str, Callable[[int, int], Fraction]] = {"uniform": uniform, "pyramid": pyramid}
