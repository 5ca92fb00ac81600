"""Percentile bootstrap of Bradley-Terry scores, all resamples of a batch at once.

A resample's scores are found by chord iterations: its own gradient, the original fit's inverse Hessian. A
resample that does not converge so, or has no finite scores, is fitted alone or left out.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from scipy.sparse import csr_array
from scipy.special import expit

from mixattn.evals.arena.stats.bradley_terry import Fit, fit
from mixattn.evals.arena.stats.connected import is_connected
from mixattn.evals.arena.stats.counts import SCORE, Counts, Floats, Ints, cells
from mixattn.evals.arena.stats.votes import Votes

BATCH = 50
STEPS = 40
TOLERANCE = 1e-10  # of the relative gradient


def of_votes(counts: Counts, found: Fit, resamples: int, rng: Generator) -> Floats:
    """(R, M) mean-centred scores of resamples of single votes. R < resamples where no finite scores exist."""
    number = counts.votes.ravel()
    used = np.flatnonzero(number)
    share = number[used] / number.sum()
    mean_weight = counts.weight.ravel()[used] / number[used]

    def batches() -> Iterator[Floats]:
        for start in range(0, resamples, BATCH):
            drawn = rng.multinomial(int(number.sum()), share, size=min(BATCH, resamples - start))
            weight = np.zeros((len(drawn), len(number)))
            weight[:, used] = drawn * mean_weight
            yield weight

    return _scores(counts, found, batches())


def of_clusters(
    votes: Votes,
    weights: Floats | None,
    counts: Counts,
    found: Fit,
    cluster: Ints,
    resamples: int,
    rng: Generator,
) -> Floats:
    """(R, M) mean-centred scores of resamples of whole clusters; `cluster` (n,) numbers them from 0."""
    m, clusters = len(votes.models), int(cluster.max()) + 1
    cell, _ = cells(votes)
    place = np.full(m * m, -1, dtype=np.int64) if m * m < 50_000_000 else None
    pairs = counts.low * m + counts.high
    if place is not None:
        place[pairs] = np.arange(len(pairs))
        pair = place[cell // 3]
    else:
        pair = np.searchsorted(pairs, cell // 3)
    weight = np.ones(len(votes)) if weights is None else weights
    table = csr_array((weight, (cluster, pair * 3 + cell % 3)), shape=(clusters, 3 * len(pairs)))
    table.sum_duplicates()

    def batches() -> Iterator[Floats]:
        for start in range(0, resamples, BATCH):
            size = min(BATCH, resamples - start)
            times = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)
            yield np.asarray(table.T @ times.T.astype(np.float64)).T

    return _scores(counts, found, batches())


def _scores(counts: Counts, found: Fit, batches: Iterator[Floats]) -> Floats:
    scores = []
    for weight in batches:
        xi, converged = _chord(counts, found, weight)
        for r in np.flatnonzero(~converged):
            alone = replace(counts, weight=weight[r].reshape(-1, 3))
            if is_connected(alone):
                xi[r], converged[r] = fit(alone).xi, True
        scores.append(xi[converged])
    return np.concatenate(scores)


def _chord(counts: Counts, found: Fit, weight: Floats) -> tuple[Floats, np.ndarray]:
    """(r, M) centred scores of r resamples with cell weights (r, 3P), and (r,) which converged."""
    r, pairs, m = len(weight), len(counts.low), counts.n_models
    cube = weight.reshape(r, pairs, 3)
    win, total = (cube @ SCORE).T, cube.sum(axis=2).T  # (P, r)
    one = np.ones(pairs)
    index = np.concatenate([counts.low, counts.high]), np.tile(np.arange(pairs), 2)
    incidence = csr_array((np.concatenate([one, -one]), index), shape=(m, pairs))
    scale = total.sum(axis=0)
    xi = np.repeat(found.xi[:, None], r, axis=1)
    active = np.arange(r)
    converged = np.zeros(r, dtype=bool)
    relative = counts.weight.sum() / scale
    for _ in range(STEPS):
        part = xi[:, active]
        p = expit(part[counts.low] - part[counts.high])
        gradient = incidence @ (win[:, active] - total[:, active] * p)
        done = np.abs(gradient).max(axis=0) < TOLERANCE * scale[active]
        converged[active[done]] = True
        gradient, active = gradient[:, ~done], active[~done]
        if not len(active):
            break
        xi[:, active] += (found.bread @ gradient) * relative[active]
    return (xi - xi.mean(axis=0)).T, converged
