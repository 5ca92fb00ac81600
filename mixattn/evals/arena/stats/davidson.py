"""Ties as an outcome of their own (Davidson 1970; Newman 2023 fits the same model with nu / 2).

P(win) : P(tie) : P(loss) = exp(d / 2) : nu : exp(-d / 2), with d the difference of two scores. Where a tie
is half a win, as in Bradley-Terry, ties pull equal models together; here they say how close two models
must be to tie.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from mixattn.evals.arena.stats.bradley_terry import STEPS, TOLERANCE, laplacian
from mixattn.evals.arena.stats.counts import Counts, Floats

HALF = np.array([-0.5, 0.0, 0.5])  # what an outcome tells of d
IS_TIE = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class DavidsonFit:
    """Scores (M,) with mean 0, tie strength `nu`, sandwich covariance (M, M) in the grounded gauge."""

    xi: Floats
    nu: float
    covariance: Floats


def fit_davidson(counts: Counts) -> DavidsonFit:
    """The weighted maximum-likelihood fit; every vote is independent.

    Raises:
      ValueError: there is no tie or nothing but ties, or the fit does not converge.
    """
    if not 0 < counts.votes[:, 1].sum() < counts.votes.sum():
        raise ValueError("--ties=davidson needs votes of both kinds, ties and others; use --ties=half")
    m, total = counts.n_models, counts.weight.sum(axis=1)
    ground = int(np.argmax(np.bincount(counts.low, total, m) + np.bincount(counts.high, total, m)))
    keep = np.delete(np.arange(m + 1), ground)
    theta = np.zeros(m + 1)  # scores, then log nu
    for _ in range(STEPS):
        p = _probabilities(counts, theta)
        gradient = _contributions(counts, (counts.weight - total[:, None] * p) @ np.stack([HALF, IS_TIE], 1))
        factor = cho_factor(_hessian(counts, total, p)[np.ix_(keep, keep)])
        if np.abs(gradient[keep]).max() < TOLERANCE * total.sum():
            break
        step = np.zeros(m + 1)
        step[keep] = cho_solve(factor, gradient[keep])
        theta += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
    else:
        raise ValueError(f"the fit with ties did not converge in {STEPS} steps")
    bread = np.zeros((m + 1, m + 1))
    bread[np.ix_(keep, keep)] = cho_solve(factor, np.eye(m))
    covariance = bread @ _meat(counts, p) @ bread
    return DavidsonFit(theta[:m] - theta[:m].mean(), float(np.exp(theta[m])), covariance[:m, :m])


def _probabilities(counts: Counts, theta: Floats) -> Floats:
    """(P, 3) of the outcomes loss, tie and win of `low`."""
    d = theta[counts.low] - theta[counts.high]
    logits = d[:, None] * HALF + theta[-1] * IS_TIE
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _contributions(counts: Counts, of_pair: Floats) -> Floats:
    """(M + 1,) sums of what each pair adds to its scores (column 0) and to log nu (column 1)."""
    m = counts.n_models
    scores = np.bincount(counts.low, of_pair[:, 0], m) - np.bincount(counts.high, of_pair[:, 0], m)
    return np.append(scores, of_pair[:, 1].sum())


def _hessian(counts: Counts, total: Floats, p: Floats) -> Floats:
    mean_half, tie = p @ HALF, p @ IS_TIE
    variance = p @ HALF**2 - mean_half**2
    return _bordered(counts, total * variance, -total * mean_half * tie, float(total @ (tie * (1 - tie))))


def _meat(counts: Counts, p: Floats) -> Floats:
    score = HALF - (p @ HALF)[:, None]
    tie = IS_TIE - (p @ IS_TIE)[:, None]
    w = counts.weight_sq
    return _bordered(
        counts, (w * score**2).sum(axis=1), (w * score * tie).sum(axis=1), float((w * tie**2).sum())
    )


def _bordered(counts: Counts, edge: Floats, cross: Floats, corner: float) -> Floats:
    """(M + 1, M + 1) Laplacian of the scores, bordered by log nu."""
    m = counts.n_models
    matrix = np.zeros((m + 1, m + 1))
    matrix[:m, :m] = laplacian(counts, edge)
    matrix[m, :m] = matrix[:m, m] = np.bincount(counts.low, cross, m) - np.bincount(counts.high, cross, m)
    matrix[m, m] = corner
    return matrix
