"""How much does one voter move the ratings, and weights that bound it.

Leaving a voter out moves the scores, to first order, by -H^{-1} u, u the sum of that voter's score
contributions: one solve with the inverse Hessian of the fit, for all voters at once.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.special import expit

from mixattn.evals.arena.stats.bradley_terry import Fit, fit
from mixattn.evals.arena.stats.counts import Floats, Ints, count
from mixattn.evals.arena.stats.votes import FIRST_WINS, Votes

ROUNDS = 30
SLACK = 1.001


def cap_weights(voter: Ints, cap: float) -> Floats:
    """(n,) weights such that no voter counts for more than `cap` votes; `voter` (n,) numbers them from 0."""
    return np.minimum(1.0, cap / np.bincount(voter))[voter]


def leave_one_out(votes: Votes, weights: Floats | None, found: Fit, voter: Ints) -> Floats:
    """(V, M) by how much each voter's votes move the mean-centred scores, in natural-log odds."""
    residual = votes.outcome / FIRST_WINS - expit(found.xi[votes.first] - found.xi[votes.second])
    residual = residual if weights is None else residual * weights
    rows = np.concatenate([voter, voter])
    columns = np.concatenate([votes.first, votes.second])
    u = csr_array(
        (np.concatenate([residual, -residual]), (rows, columns)),
        shape=(int(voter.max()) + 1, len(votes.models)),
    )
    moved = u @ found.bread
    return moved - moved.mean(axis=1, keepdims=True)


def bounded_weights(
    votes: Votes, found: Fit, voter: Ints, limit: float, weights: Floats | None = None
) -> Floats:
    """(n,) weights that keep every voter's influence on every score at `limit` log odds or below, to first
    order and at the scores of `found`."""
    given = np.ones(len(votes)) if weights is None else weights
    largest = np.abs(leave_one_out(votes, given, found, voter)).max(axis=1)
    return given * np.minimum(1.0, limit / np.maximum(largest, 1e-300))[voter]


def limit_influence(
    votes: Votes, voter: Ints, limit: float, weights: Floats | None = None
) -> tuple[Floats, float]:
    """(n,) weights under whose own fit no voter moves a score by more than `limit` log odds, and the largest
    move that is left.

    Weighing one voter down makes the others heavier, so this is repeated. With few voters there are no such
    weights (of one voter, everything is theirs): then the largest move stays above the limit, and says so.
    """
    given = np.ones(len(votes)) if weights is None else weights
    for _ in range(ROUNDS):
        found = fit(count(votes, given))
        largest = float(np.abs(leave_one_out(votes, given, found, voter)).max())
        if largest <= limit * SLACK:
            break
        given = bounded_weights(votes, found, voter, limit, given)
    return given, largest
