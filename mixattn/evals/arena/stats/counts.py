"""Votes summed over equal ones: the cost of a fit then depends on pairs of models, not on votes."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixattn.evals.arena.stats.votes import FIRST_WINS, TIE, Votes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WEIGHTINGS = ("none", "ipw_logged", "ipw_empirical")
DENSE_CELLS = 4_000_000  # up to here a histogram over all cells is smaller than sorting the votes
BLOCK = 1 << 17  # votes
SCORE = np.array([0.0, 0.5, 1.0])  # y of an outcome: what the first model of the pair scores


@dataclass(frozen=True)
class Counts:
    """Sums over the votes of each (pair, outcome). `low[p] < high[p]` are the models of pair p.

    Outcomes are seen from `low`: column 0 low loses, 1 tie, 2 low wins.

    Attributes:
      n_models: models, with or without votes.
      low, high: (P,) models of the pairs that met.
      votes: (P, 3) number of votes.
      weight: (P, 3) sum of weights; the likelihood needs it.
      weight_sq: (P, 3) sum of squared weights; the sandwich needs it.
    """

    n_models: int
    low: Ints
    high: Ints
    votes: Floats
    weight: Floats
    weight_sq: Floats


def vote_weights(votes: Votes, weighting: str, min_pair_count: int = 50) -> Floats | None:
    """(n,) inverse-probability weights (Chiang et al. 2024, eq. 7); None where all are 1.

    ipw_logged: 1 / `pair_probability` of the vote. ipw_empirical: 1 / max(count of the pair, min_pair_count).

    Raises:
      ValueError: the weighting is none of WEIGHTINGS.
    """
    if weighting == "none":
        return None
    if weighting == "ipw_logged":
        return 1.0 / np.asarray(votes.columns["pair_probability"], dtype=np.float64)
    if weighting != "ipw_empirical":
        raise ValueError(f"weighting {weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    _, pair, count = np.unique(votes.pair(), return_inverse=True, return_counts=True)
    return 1.0 / np.maximum(count, min_pair_count)[pair]


def cells(votes: Votes) -> tuple[Ints, int]:
    """(n,) the cell (pair, outcome seen from the lower index) of each vote, and the number of cells."""
    first, second = votes.first, votes.second
    swapped = first > second
    outcome = np.where(swapped, FIRST_WINS - votes.outcome, votes.outcome)
    return votes.pair() * 3 + outcome, 3 * len(votes.models) ** 2


def count(votes: Votes, weights: Floats | None = None) -> Counts:
    """The sums over votes (n,) with `weights` (n,), or weight 1."""
    m = len(votes.models)
    if 3 * m * m > DENSE_CELLS:
        return _count_sparse(votes, weights)
    number = _dense(votes, None)
    low, high = np.nonzero(np.triu(number.any(axis=2), 1))
    number = number[low, high]
    if weights is None:
        return Counts(m, low, high, number, number, number)
    weight, weight_sq = (_dense(votes, w)[low, high] for w in (weights, weights**2))
    return Counts(m, low, high, number, weight, weight_sq)


def _dense(votes: Votes, weights: Floats | None) -> Floats:
    """(M, M, 3) sums by lower index, higher index and outcome; a block of votes at a time stays in cache."""
    m = len(votes.models)
    table = np.zeros(3 * m * m)
    for start in range(0, len(votes), BLOCK):
        block = slice(start, start + BLOCK)
        cell = (votes.first[block] * m + votes.second[block]) * 3 + votes.outcome[block]
        table += np.bincount(cell, None if weights is None else weights[block], len(table))
    cube = table.reshape(m, m, 3)
    return cube + cube.transpose(1, 0, 2)[..., ::-1]


def _count_sparse(votes: Votes, weights: Floats | None) -> Counts:
    """Few of the cells are in use: numbers those pairs only."""
    cell, _ = cells(votes)
    used, pair = np.unique(cell // 3, return_inverse=True)
    cell, size, m = pair * 3 + cell % 3, 3 * len(used), len(votes.models)
    number = np.bincount(cell, minlength=size).reshape(-1, 3).astype(np.float64)
    weight = weight_sq = number
    if weights is not None:
        weight, weight_sq = (
            np.bincount(cell, w, minlength=size).reshape(-1, 3) for w in (weights, weights**2)
        )
    return Counts(m, used // m, used % m, number, weight, weight_sq)


def with_prior(counts: Counts, ties: float) -> Counts:
    """The same with `ties` further ties of every pair that met, as weight only: they pull ratings together,
    so that an undefeated model has a finite one. They are no votes: neither counted nor a source of variance.
    """
    if not ties:
        return counts
    weight = counts.weight.copy()
    weight[:, TIE] += ties
    return replace(counts, weight=weight)


def without_ties(votes: Votes) -> Votes:
    """The votes that one model won.

    Raises:
      ValueError: there is none.
    """
    decided = votes.outcome != TIE
    if not decided.any():
        raise ValueError(f"no votes that count: all {len(votes)} are ties and --ties=drop leaves them out")
    return votes.where(decided)


def tally(counts: Counts) -> Ints:
    """(M, 3) wins, losses and ties of each model, over `counts.votes`."""
    table = np.zeros((counts.n_models, 3), dtype=np.int64)
    loses, ties, wins = counts.votes.astype(np.int64).T
    np.add.at(table, counts.low, np.stack([wins, loses, ties], axis=1))
    np.add.at(table, counts.high, np.stack([loses, wins, ties], axis=1))
    return table
