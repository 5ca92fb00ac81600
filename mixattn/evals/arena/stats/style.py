"""Style control: Bradley-Terry scores beside coefficients for how an answer looks.

logit = xi_first - xi_second + beta . z, where z compares the two answers' tokens, headers, lists and bold
marks: (a - b) / (a + b + 1), divided by its root mean square. It is not centred, so that exchanging the
sides of a vote changes nothing. No penalty. Oracle: logistic regression on the same columns.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.special import expit

from mixattn.evals.arena.stats.bradley_terry import STEPS
from mixattn.evals.arena.stats.counts import Floats, Ints
from mixattn.evals.arena.stats.votes import FIRST_WINS, Votes

COLUMN = "conv_metadata"
# feature -> the fields of `conv_metadata` of side a and side b; a field may be a number or an object of
# numbers
FEATURES = {
    "tokens": "sum_assistant_{}_tokens",
    "headers": "header_count_{}",
    "lists": "list_count_{}",
    "bold": "bold_count_{}",
}
TOLERANCE = 1e-11


@dataclass(frozen=True)
class StyleFit:
    """Scores (M,) with mean 0, style coefficients (F,), and their joint sandwich covariance.

    `covariance` is (M + F, M + F) in the gauge where model `ground` has score 0. A feature without
    variance has coefficient 0 and standard error 0.
    """

    xi: Floats
    beta: Floats
    covariance: Floats
    ground: int


def features(votes: Votes) -> Floats:
    """(n, 4) the columns of FEATURES, scaled by their root mean square.

    The column `conv_metadata` holds objects or their JSON text; or, (n, 4), their `differences`.

    Raises:
      ValueError: a vote's `conv_metadata` lacks a field; names its row.
    """
    column = votes.columns[COLUMN]
    raw = np.asarray(column, dtype=np.float64) if column.ndim == 2 else _read(votes)
    scale = np.sqrt((raw**2).mean(axis=0))
    return raw / np.where(scale > 0, scale, 1.0)


def _read(votes: Votes) -> Floats:
    """(n, 4) the differences of the votes' metadata."""
    raw = np.empty((len(votes), len(FEATURES)))
    for i, metadata in enumerate(votes.columns[COLUMN]):
        try:
            raw[i] = differences(json.loads(metadata) if isinstance(metadata, str) else metadata)
        except (KeyError, TypeError, ValueError) as why:
            raise ValueError(f"row {votes.row[i]}: {COLUMN} lacks a number: {why}") from why
    return raw


def differences(metadata: Any) -> list[float]:
    """(a - b) / (a + b + 1) of each of FEATURES.

    Raises:
      KeyError, TypeError, ValueError: a field is missing, or no count.
    """
    sides = [[_amount(metadata[name.format(side)]) for name in FEATURES.values()] for side in "ab"]
    return [(a - b) / (a + b + 1) for a, b in zip(*sides)]


def _amount(value: Any) -> float:
    """A count, or the sum of an object of counts such as {"h1": 2, "h2": 0}."""
    if isinstance(value, dict):
        return sum(_amount(x or 0) for x in value.values())
    count = float(value)
    if not 0 <= count < math.inf:
        raise ValueError(f"{value!r} is no count")
    return count


def fit_style(
    votes: Votes,
    z: Floats,
    weights: Floats | None = None,
    cluster: Ints | None = None,
    start: StyleFit | None = None,
) -> StyleFit:
    """Joint fit of scores and the coefficients of `z` (n, F), by Newton's method over rows.

    Args:
      cluster: (n,) for the cluster-robust covariance.
      start: an earlier fit to begin at.

    Raises:
      ValueError: the fit does not converge: the styles tell the winner, or repeat each other.
    """
    m, f = len(votes.models), z.shape[1]
    ground = int(np.argmax(np.bincount(votes.first, minlength=m) + np.bincount(votes.second, minlength=m)))
    alive = np.flatnonzero(np.abs(z).max(axis=0) > 0)
    keep = np.concatenate([np.delete(np.arange(m), ground), m + alive])
    design = _design(votes, z)
    y = votes.outcome / FIRST_WINS
    weight = np.ones(len(votes)) if weights is None else weights
    theta = np.zeros(m + f) if start is None else np.concatenate([start.xi - start.xi[ground], start.beta])
    for _ in range(STEPS):
        p = expit(design @ theta)
        gradient = design.T @ (weight * (y - p))
        hessian = (design.T @ design.multiply((weight * p * (1 - p))[:, None])).toarray()
        try:
            factor = cho_factor(hessian[np.ix_(keep, keep)])
        except np.linalg.LinAlgError as why:
            raise ValueError("the style columns repeat each other or the models: no unique fit") from why
        if np.abs(gradient[keep]).max() < TOLERANCE * weight.sum():
            break
        theta[keep] += cho_solve(factor, gradient[keep])
    else:
        raise ValueError(f"the fit with style did not converge in {STEPS} steps")
    bread = np.zeros((m + f, m + f))
    bread[np.ix_(keep, keep)] = cho_solve(factor, np.eye(len(keep)))
    scores = design.multiply((weight * (y - p))[:, None]).tocsr()
    if cluster is not None:
        scores = csr_array((np.ones(len(votes)), (cluster, np.arange(len(votes))))) @ scores
    meat = (scores.T @ scores).toarray()
    xi = theta[:m]
    return StyleFit(xi - xi.mean(), theta[m:], bread @ meat @ bread, ground)


def _design(votes: Votes, z: Floats) -> csr_array:
    """(n, M + F) +1 for the first model, -1 for the second, then the style columns."""
    n, m, f = len(votes), len(votes.models), z.shape[1]
    columns = np.empty((n, 2 + f), dtype=np.int64)
    columns[:, 0], columns[:, 1] = votes.first, votes.second
    columns[:, 2:] = m + np.arange(f)
    values = np.concatenate([np.ones((n, 1)), -np.ones((n, 1)), z], axis=1)
    starts = np.arange(0, (n + 1) * (2 + f), 2 + f)
    return csr_array((values.ravel(), columns.ravel(), starts), shape=(n, m + f))


def bootstrap(
    votes: Votes,
    z: Floats,
    weights: Floats | None,
    cluster: Ints | None,
    found: StyleFit,
    resamples: int,
    rng: Generator,
) -> Floats:
    """(R, M) mean-centred scores of resamples of votes, or of whole clusters; those without a fit are left
    out."""
    weight = np.ones(len(votes)) if weights is None else weights
    group: NDArray[np.int64] = np.arange(len(votes)) if cluster is None else cluster
    groups = int(group.max()) + 1
    scores = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(0, groups, groups), minlength=groups)[group]
        drawn = times > 0
        part = votes.where(drawn)
        if len(part.models) < len(votes.models):
            continue
        try:
            scores.append(fit_style(part, z[drawn], (weight * times)[drawn], start=found).xi)
        except ValueError:
            continue
    return np.array(scores).reshape(-1, len(votes.models))
