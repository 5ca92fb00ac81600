"""Are the intervals and rank ranges right? Repeated simulated worlds with known scores."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2, norm

from mixattn.evals.arena.stats import ranks
from mixattn.evals.arena.stats.bradley_terry import fit, standard_errors
from mixattn.evals.arena.stats.counts import Floats, Ints, count
from mixattn.evals.arena.stats.synthetic import SyntheticConfig, simulate


@dataclass(frozen=True)
class CoverageResult:
    """Shares over `trials` worlds; widths in places.

    Attributes:
      marginal: share of intervals that hold the true mean-centred score, nominal 1 - alpha.
      chi_square: share of worlds in which all projected chi-square intervals hold; at least 1 - alpha.
      rank_error: for each rank rule, share of worlds in which some true rank is outside its range.
      width: for each rank rule, mean number of places in a range.
    """

    world: str
    models: int
    votes: int
    trials: int
    marginal: float
    chi_square: float
    rank_error: dict[str, float]
    width: dict[str, float]


def true_ranges(xi: Floats) -> Ints:
    """(M, 2) the places that a model shares with its equals."""
    xi = np.round(xi, 9)
    above = (xi[None, :] > xi[:, None]).sum(axis=1)
    below = (xi[None, :] < xi[:, None]).sum(axis=1)
    return np.stack([1 + above, len(xi) - below], axis=1)


def measure(config: SyntheticConfig, trials: int, alpha: float = 0.05) -> CoverageResult:
    """Fits `trials` worlds with seeds from config.seed on, without ties so that the model is true."""
    m, rng = config.models, np.random.default_rng(config.seed)
    hits, joint = 0.0, 0
    error, width = (dict.fromkeys(ranks.RULES, 0.0) for _ in range(2))
    for trial in range(trials):
        votes, xi = simulate(replace(config, tie_rate=0.0, seed=config.seed + trial))
        found = fit(count(votes))
        covariance = found.covariance
        off = np.abs(found.xi - xi) / standard_errors(covariance, None)
        hits += float((off <= norm.ppf(1 - alpha / 2)).mean())
        joint += bool(off.max() <= np.sqrt(chi2.ppf(1 - alpha, m - 1)))
        truth = true_ranges(xi)
        for rule in ranks.RULES:
            found_range = ranks.ranges(rule, found.xi, covariance, alpha, rng)
            outside = (found_range[:, 0] > truth[:, 0]) | (found_range[:, 1] < truth[:, 1])
            error[rule] += outside.any()
            width[rule] += float(np.diff(found_range, axis=1).mean()) + 1
    shares = [{rule: total[rule] / trials for rule in ranks.RULES} for total in (error, width)]
    return CoverageResult(
        config.world, m, config.votes, trials, hits / trials, joint / trials, shares[0], shares[1]
    )
