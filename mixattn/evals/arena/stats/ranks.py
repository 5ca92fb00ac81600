"""Rank ranges: between which places can each model stand, given how precisely it is known?

Three rules. `marginal` compares intervals of single scores, which takes no account of there being many
models.
`simultaneous` is the paper's chi-square set projected on each score: right, and wide. `pairwise` compares
simultaneous intervals of all differences (studentised maximum): right, and nearly as narrow as `marginal`.
None depends on the anchor.
"""

import numpy as np
from numpy.random import Generator
from scipy.stats import chi2, norm

from mixattn.evals.arena.stats.bradley_terry import standard_errors
from mixattn.evals.arena.stats.counts import Floats, Ints

RULES = ("pairwise", "simultaneous", "marginal")
DRAWS = 10_000
WORK = 400_000_000  # draws x pairs; many models get fewer draws, but never fewer than 2,000


def from_intervals(lower: Floats, upper: Floats) -> Ints:
    """(M, 2) best and worst rank when only disjoint intervals tell two models apart.

    Best is 1 + the number of intervals wholly above; worst is M - the number wholly below.
    """
    best = 1 + len(lower) - np.searchsorted(np.sort(lower), upper, side="right")
    worst = len(upper) - np.searchsorted(np.sort(upper), lower, side="left")
    return np.stack([best, worst], axis=1).astype(np.int64)


def marginal(xi: Floats, covariance: Floats, alpha: float) -> Ints:
    """(M, 2) from each model's own interval of level 1 - alpha around its mean-centred score."""
    half = norm.ppf(1 - alpha / 2) * standard_errors(covariance, None)
    return from_intervals(xi - half, xi + half)


def simultaneous(xi: Floats, covariance: Floats, alpha: float) -> Ints:
    """(M, 2) from the projections of the joint chi-square set with M - 1 degrees of freedom."""
    half = np.sqrt(chi2.ppf(1 - alpha, len(xi) - 1)) * standard_errors(covariance, None)
    return from_intervals(xi - half, xi + half)


def pairwise(xi: Floats, covariance: Floats, alpha: float, rng: Generator, draws: int | None = None) -> Ints:
    """(M, 2) from simultaneous intervals of all differences of two scores."""
    se = difference_errors(covariance)
    half = studentised_maximum(covariance, se, alpha, rng, draws) * se
    ahead = (xi[:, None] - xi[None, :]) > half  # row surely above column
    return np.stack([1 + ahead.sum(axis=0), len(xi) - ahead.sum(axis=1)], axis=1).astype(np.int64)


def difference_errors(covariance: Floats) -> Floats:
    """(M, M) standard error of xi_row - xi_column."""
    variance = np.diag(covariance)
    return np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0))


def studentised_maximum(
    covariance: Floats, se: Floats, alpha: float, rng: Generator, draws: int | None = None
) -> float:
    """The 1 - alpha quantile of max |Z_i - Z_j| / se_ij for Gaussian Z with `covariance`."""
    m = len(covariance)
    draws = draws or int(np.clip(WORK / (m * m / 2), 2_000, DRAWS))
    value, vector = np.linalg.eigh(covariance)
    root = (vector * np.sqrt(np.maximum(value, 0.0))).astype(np.float32)
    z = root @ rng.standard_normal((m, draws), dtype=np.float32)
    inverse = np.divide(1.0, se, out=np.zeros_like(se), where=se > 0).astype(np.float32)
    largest = np.zeros(draws, dtype=np.float32)
    for i in range(m - 1):
        gap = np.abs(z[i + 1 :] - z[i])
        gap *= inverse[i, i + 1 :, None]
        np.maximum(largest, gap.max(axis=0), out=largest)
    return float(np.quantile(largest, 1 - alpha))


def ranges(rule: str, xi: Floats, covariance: Floats, alpha: float, rng: Generator) -> Ints:
    """(M, 2) best and worst rank by one of RULES.

    Raises:
      ValueError: there is no such rule.
    """
    if rule == "pairwise":
        return pairwise(xi, covariance, alpha, rng)
    if rule not in RULES:
        raise ValueError(f"rank rule {rule!r} is not one of {', '.join(RULES)}")
    return (marginal if rule == "marginal" else simultaneous)(xi, covariance, alpha)
