"""Online Elo: cheap, and dependent on the order of the votes; hence also the median over permutations."""

import numpy as np
from numpy.random import Generator

from mixattn.evals.arena.stats.counts import Floats, Ints
from mixattn.evals.arena.stats.votes import FIRST_WINS, Votes

K, SCALE, START = 4.0, 400.0, 1000.0


def elo(votes: Votes, order: Ints | None = None, *, k: float = K) -> Floats:
    """(M,) ratings after all votes; their mean stays START.

    A vote moves k * (score - expected) points from loser to winner, expected = 1 / (1 + 10^((R_b - R_a) /
    400)).

    Args:
      order: (n,) the votes' order; as they stand if None.
    """
    order = np.arange(len(votes)) if order is None else order
    rating = [START] * len(votes.models)
    score = (votes.outcome[order] / FIRST_WINS).tolist()
    for a, b, s in zip(votes.first[order].tolist(), votes.second[order].tolist(), score):
        change = k * (s - 1.0 / (1.0 + 10.0 ** ((rating[b] - rating[a]) / SCALE)))
        rating[a] += change
        rating[b] -= change
    return np.array(rating)


def permuted(votes: Votes, permutations: int, rng: Generator, *, k: float = K) -> Floats:
    """(permutations, M) ratings after the votes in random orders."""
    return np.array([elo(votes, rng.permutation(len(votes)), k=k) for _ in range(permutations)])
