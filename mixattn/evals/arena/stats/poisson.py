"""Exact Poisson draws in bulk, for cells whose means are whole numbers and repeat.

For each mean a table holds what most uniform 12-bit numbers stand for; a number whose 4096th of the unit
interval spans a step of the distribution function is resolved by a further uniform draw. So a draw costs a
look-up, several times less than a general generator.
"""

import functools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import pdtr

from mixattn.evals.arena.stats.counts import Floats, Ints

BINS = 4096
LARGEST = 2_000  # means beyond span so many values that a table does not pay
UNSURE = -1
SPAN = 9


def draw(means: Ints, size: int, rng: Generator) -> NDArray[np.float32]:
    """(n, size) independent Poisson draws; row i has mean `means[i]`, a whole number from 0."""
    drawn = np.zeros((len(means), size), dtype=np.float32)
    distinct, place = np.unique(means, return_inverse=True)
    order = np.argsort(place, kind="stable")
    for mean, rows in zip(distinct.tolist(), np.split(order, np.cumsum(np.bincount(place))[:-1])):
        if mean:
            drawn[rows] = _of_mean(mean, (len(rows), size), rng)
    return drawn


def _of_mean(mean: int, shape: tuple[int, int], rng: Generator) -> NDArray[np.integer]:
    if mean > LARGEST:
        return rng.poisson(mean, shape)
    first, steps, table = _table(mean)
    number = rng.integers(0, BINS, size=shape[0] * shape[1], dtype=np.uint16)
    value = table[number]
    open_ = np.flatnonzero(value == UNSURE)
    exact = (number[open_] + rng.random(len(open_))) / BINS
    value[open_] = np.searchsorted(steps, exact, side="right") + first
    return value.reshape(shape)


@functools.lru_cache(maxsize=1024)
def _table(mean: int) -> tuple[int, Floats, NDArray[np.int16]]:
    """The lowest value, the distribution function from it on, and the value of each bin, or UNSURE.

    Values further than `SPAN` standard deviations off are left out: less than 1e-15 on either side.
    """
    reach = int(SPAN * np.sqrt(mean)) + 20
    first = max(0, mean - reach)
    steps = pdtr(np.arange(first, mean + reach), mean)
    edges = np.searchsorted(steps, np.arange(BINS + 1) / BINS, side="right")
    inside = edges[:-1] == edges[1:]
    return first, steps, np.where(inside, edges[:-1] + first, UNSURE).astype(np.int16)
