"""Percentile bootstrap of Bradley-Terry scores, all resamples of a batch at once.

Single votes are resampled by cells of equal votes, each cell's number being Poisson: given their total the
numbers are multinomial, and scores do not depend on the total. Clusters are drawn with replacement.

A resample's scores are found by chord iterations: its own gradient, the original fit's inverse Hessian. A
resample that does not converge so, or has no finite scores, is fitted alone or left out.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from scipy.sparse import csr_array
from scipy.special import expit

from mixattn.evals.arena.stats import poisson
from mixattn.evals.arena.stats.bradley_terry import Fit, fit
from mixattn.evals.arena.stats.connected import is_connected
from mixattn.evals.arena.stats.counts import SCORE, Counts, Floats, Ints, cells
from mixattn.evals.arena.stats.votes import Votes

BATCH = 100
STEPS = 40
TOLERANCE = 1e-9  # of the relative gradient


def of_votes(counts: Counts, found: Fit, resamples: int, rng: Generator) -> Floats:
    """(R, M) mean-centred scores of resamples of single votes. R < resamples where no finite scores exist."""
    number, shape = counts.votes.astype(np.int64).ravel(), counts.votes.shape
    mean_weight = counts.weight / np.maximum(counts.votes, 1)
    plain = bool((mean_weight[counts.votes > 0] == 1).all())

    def batches() -> Iterator[Floats]:
        for start in range(0, resamples, BATCH):
            drawn = poisson.draw(number, min(BATCH, resamples - start), rng).reshape(*shape, -1)
            yield drawn.astype(np.float64) if plain else drawn * mean_weight[..., None]

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
            yield np.asarray(table.T @ times.T.astype(np.float64)).reshape(len(pairs), 3, size)

    return _scores(counts, found, batches())


def _scores(counts: Counts, found: Fit, batches: Iterator[Floats]) -> Floats:
    """(R, M) scores of resamples; a batch is (P, 3, r) weights of cells."""
    scores = []
    for weight in batches:
        xi, converged = _chord(counts, found, weight)
        for r in np.flatnonzero(~converged):
            alone = replace(counts, weight=weight[..., r].astype(np.float64))
            if is_connected(alone):
                xi[r], converged[r] = fit(alone).xi, True
        scores.append(xi[converged])
    return np.concatenate(scores)


def _chord(counts: Counts, found: Fit, weight: Floats) -> tuple[Floats, np.ndarray]:
    """(r, M) centred scores of r resamples with cell weights (P, 3, r), and (r,) which converged."""
    r = weight.shape[2]
    win = SCORE[1] * weight[:, 1] + weight[:, 2]
    total = weight[:, 0] + weight[:, 1] + weight[:, 2]
    incidence = _incidence(counts)
    scale = total.sum(axis=0, dtype=np.float64)
    relative = counts.weight.sum() / scale
    xi = np.repeat(found.xi[:, None], r, axis=1)
    p = expit(found.xi[counts.low] - found.xi[counts.high])[:, None]  # the same for all, at first
    active, converged = np.arange(r), np.zeros(r, dtype=bool)
    for _ in range(STEPS):
        gradient = incidence @ (win - total * p)
        done = np.abs(gradient).max(axis=0) < TOLERANCE * scale[active]
        if done.any():
            converged[active[done]] = True
            gradient, active = gradient[:, ~done], active[~done]
            win, total = win[:, ~done], total[:, ~done]
        if not len(active):
            break
        xi[:, active] += (found.bread @ gradient) * relative[active]
        p = expit(incidence.T @ xi[:, active])
    return (xi - xi.mean(axis=0)).T, converged


def _incidence(counts: Counts) -> csr_array:
    """(M, P) +1 for the pair's `low`, -1 for its `high`."""
    pairs = len(counts.low)
    one, index = np.ones(pairs), np.tile(np.arange(pairs), 2)
    rows = np.concatenate([counts.low, counts.high])
    return csr_array((np.concatenate([one, -one]), (rows, index)), shape=(counts.n_models, pairs))
