"""Bradley-Terry scores from counts, with sandwich covariance (Chiang et al. 2024, section 4 and eq. 7).

P(first wins) = sigmoid(xi_first - xi_second); a tie is half a win and half a loss. Newton's method on the
grounded Laplacian: one model's score is held at 0 and its row dropped. (The pseudo-inverse of the whole
Laplacian keeps a null value of rounding size, which spoils standard errors.)
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.special import expit, log_expit

from mixattn.evals.arena.stats.counts import SCORE, Counts, Floats, Ints
from mixattn.evals.arena.stats.votes import FIRST_WINS, Votes

STEPS = 100
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Fit:
    """Scores and what their covariance is made of.

    Attributes:
      xi: (M,) scores with mean 0, in natural-log odds.
      bread: (M, M) inverse Hessian in the gauge where model `ground` has score 0 (its row and column are 0).
      meat: (M, M) sum of squared score contributions.
      ground: the grounded model.
    """

    xi: Floats
    bread: Floats
    meat: Floats
    ground: int

    @property
    def covariance(self) -> Floats:
        """(M, M) sandwich covariance in the grounded gauge; right for every difference of scores."""
        return self.bread @ self.meat @ self.bread


def fit(counts: Counts) -> Fit:
    """The weighted maximum-likelihood scores; the votes must be connected (`connected.check_connected`).

    Raises:
      ValueError: Newton's method does not converge.
    """
    win, total = counts.weight @ SCORE, counts.weight.sum(axis=1)
    scale = total.sum()
    win, total = win / scale, total / scale
    ground = int(np.argmax(_degree(counts, total)))
    xi, bread = _newton(counts, win, total, ground)
    bread = bread / scale
    return Fit(xi - xi.mean(), bread, meat_of_counts(counts, xi), ground)


def _degree(counts: Counts, total: Floats) -> Floats:
    m = counts.n_models
    return np.bincount(counts.low, total, m) + np.bincount(counts.high, total, m)


def _newton(counts: Counts, win: Floats, total: Floats, ground: int) -> tuple[Floats, Floats]:
    """Scores with that of `ground` at 0, and the inverse Hessian; weights sum to 1."""
    low, high, m = counts.low, counts.high, counts.n_models
    keep = np.delete(np.arange(m), ground)
    xi, best = np.zeros(m), np.inf
    for _ in range(STEPS):
        p = expit(xi[low] - xi[high])
        residual = win - total * p
        gradient = np.bincount(low, residual, m) - np.bincount(high, residual, m)
        factor = cho_factor(laplacian(counts, total * p * (1 - p))[np.ix_(keep, keep)])
        if np.abs(gradient).max() < TOLERANCE:
            bread = np.zeros((m, m))
            bread[np.ix_(keep, keep)] = cho_solve(factor, np.eye(m - 1))
            return xi, bread
        step = np.zeros(m)
        step[keep] = cho_solve(factor, gradient[keep])
        xi, best = _line_search(counts, win, total, xi, step, best)
    raise ValueError(
        f"the fit did not converge in {STEPS} steps: the largest score is {np.abs(xi).max():.1f}"
    )


def _line_search(
    counts: Counts, win: Floats, total: Floats, xi: Floats, step: Floats, best: float
) -> tuple[Floats, float]:
    """The full step, halved while it makes the likelihood worse."""
    for halving in range(30):
        ahead = xi + step * 0.5**halving
        d = ahead[counts.low] - ahead[counts.high]
        loss = -float(win @ log_expit(d) + (total - win) @ log_expit(-d))
        if loss <= best + 1e-14:
            break
    return ahead, min(loss, best)


def laplacian(counts: Counts, edge: Floats) -> Floats:
    """(M, M) sum over pairs of edge * e e^T, e = unit vector of `low` minus that of `high`."""
    matrix = np.zeros((counts.n_models, counts.n_models))
    matrix[counts.low, counts.high] = matrix[counts.high, counts.low] = -edge
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return matrix


def meat_of_counts(counts: Counts, xi: Floats) -> Floats:
    """(M, M) sum over votes of (weight * (y - p))^2 e e^T: every vote is independent (HC0)."""
    p = expit(xi[counts.low] - xi[counts.high])
    edge = (counts.weight_sq * (SCORE - p[:, None]) ** 2).sum(axis=1)
    return laplacian(counts, edge)


def meat_of_clusters(votes: Votes, weights: Floats | None, xi: Floats, cluster: Ints) -> Floats:
    """(M, M) sum over clusters of u u^T, u = sum of weight * (y - p) e over the cluster's votes.

    Args:
      cluster: (n,) number of each vote's cluster. No small-sample factor is applied.
    """
    residual = votes.outcome / FIRST_WINS - expit(xi[votes.first] - xi[votes.second])
    residual = residual if weights is None else residual * weights
    rows = np.concatenate([cluster, cluster])
    columns = np.concatenate([votes.first, votes.second])
    size = (int(cluster.max()) + 1, len(votes.models))
    u = csr_array((np.concatenate([residual, -residual]), (rows, columns)), shape=size)
    u.sum_duplicates()
    return (u.T @ u).toarray()


def contrast(m: int, reference: int | None) -> Floats:
    """(M, M) the map from scores to scores minus their mean (None), or minus that of model `reference`."""
    matrix = np.eye(m)
    if reference is None:
        return matrix - 1.0 / m
    matrix[:, reference] -= 1.0
    return matrix


def standard_errors(covariance: Floats, reference: int | None) -> Floats:
    """(M,) of score minus mean score, or minus that of model `reference` (0 for that model itself)."""
    c = contrast(len(covariance), reference)
    variance = np.einsum("ij,jk,ik->i", c, covariance, c, optimize=True)
    if reference is not None:
        variance[reference] = 0.0
    return np.sqrt(np.maximum(variance, 0.0))
