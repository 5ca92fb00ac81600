"""The win rates of pairs, with intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from mixattn.evals.arena.stats.counts import SCORE, Counts, Floats


@dataclass(frozen=True)
class WinMatrix:
    """(M, M) score of row against column, its interval and the number of votes; NaN where a pair never
    met."""

    rate: Floats
    lower: Floats
    upper: Floats
    votes: Floats


def win_matrix(counts: Counts, alpha: float = 0.05) -> WinMatrix:
    """Mean score of each pair with Wilson's interval; a tie scores one half.

    The interval's number of trials is votes * q (1 - q) / variance: ties make a score less variable than a
    coin.
    """
    n = counts.votes.sum(axis=1)
    q = counts.votes @ SCORE / n
    variance = counts.votes @ SCORE**2 / n - q**2
    trials = n * np.where(variance > 0, q * (1 - q) / np.maximum(variance, 1e-300), 1.0)
    z = norm.ppf(1 - alpha / 2)
    centre = (q + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(q * (1 - q) / trials + z**2 / (4 * trials**2))
    fill = lambda upper, lower: _both(counts, upper, lower)  # noqa: E731
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return WinMatrix(fill(q, 1 - q), fill(low, 1 - high), fill(high, 1 - low), np.nan_to_num(fill(n, n)))


def _both(counts: Counts, of_low: Floats, of_high: Floats) -> Floats:
    matrix = np.full((counts.n_models, counts.n_models), np.nan)
    matrix[counts.low, counts.high] = of_low
    matrix[counts.high, counts.low] = of_high
    return matrix


def horvitz_thompson(counts: Counts, rows: int) -> tuple[Floats, Floats]:
    """(P,) unbiased win rates of `low` and their standard errors (eq. 4-6), from logged probabilities.

    Args:
      counts: with weights 1 / (logged probability).
      rows: all votes T. Noisier than the mean of each pair, and free of its bias under adaptive sampling.
    """
    mean = counts.weight @ SCORE / rows
    second = counts.weight_sq @ SCORE**2 / rows
    return mean, np.sqrt(np.maximum(second - mean**2, 0.0) / rows)


def rows_of(matrix: WinMatrix, models: tuple[str, ...]) -> list[dict[str, Any]]:
    """One record for each pair that met, the lower index first."""
    low, high = np.nonzero(np.triu(matrix.votes))
    return [
        {
            "model_a": models[i],
            "model_b": models[j],
            "votes": int(matrix.votes[i, j]),
            "win_rate": float(matrix.rate[i, j]),
            "lower": float(matrix.lower[i, j]),
            "upper": float(matrix.upper[i, j]),
        }
        for i, j in zip(low, high)
    ]
