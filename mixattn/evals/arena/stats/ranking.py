"""From votes to a ranking: ratings, standard errors, intervals and rank ranges, as a report of plain
values."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from mixattn.evals.arena.stats import bootstrap, ranks, style
from mixattn.evals.arena.stats.bradley_terry import Fit, fit, meat_of_clusters, standard_errors
from mixattn.evals.arena.stats.connected import check_connected
from mixattn.evals.arena.stats.counts import (
    Counts,
    Floats,
    Ints,
    count,
    tally,
    vote_weights,
    with_prior,
    without_ties,
)
from mixattn.evals.arena.stats.davidson import fit_davidson
from mixattn.evals.arena.stats.influence import cap_weights, limit_influence
from mixattn.evals.arena.stats.votes import Votes

PER_UNIT = 400 / math.log(10)  # Elo points of one natural-log odds
TIES = ("half", "drop", "davidson")
INTERVALS = ("sandwich", "bootstrap")
CLUSTERS = ("none", "judge", "question_id")
FEW_CLUSTERS = 10  # robust intervals from fewer are too narrow; of one cluster they have no width at all
LOST_RESAMPLES = 0.05  # more without finite scores, and the bootstrap says nothing


@dataclass(frozen=True)
class Options:
    """How votes become a ranking; the flags of `arena fit` of the same names."""

    weighting: str = "none"
    min_pair_count: int = 50
    anchor: str = "mean"
    anchor_rating: float = 1000.0
    ties: str = "half"
    intervals: str = "sandwich"
    resamples: int = 1000
    seed: int = 0
    cluster: str = "none"
    alpha: float = 0.05
    rank: str = "pairwise"
    style: bool = False
    prior_ties: float = 0.0

    def columns(self) -> list[str]:
        """The columns of the votes file that these options read."""
        wanted = [self.cluster] * (self.cluster != "none") + [style.COLUMN] * self.style
        return wanted + ["pair_probability"] * (self.weighting == "ipw_logged")

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
          ValueError: names the two options that disagree.
        """
        if not 0 <= self.prior_ties < math.inf:
            raise ValueError(f"--prior_ties={self.prior_ties} is not a number from 0 up")
        if not math.isfinite(self.anchor_rating):
            raise ValueError(f"--anchor_rating={self.anchor_rating} is not a finite number")
        if self.prior_ties:
            for name, given in {
                "--intervals=bootstrap": self.intervals == "bootstrap",
                "--style": self.style,
                "--ties=drop": self.ties == "drop",
            }.items():
                if given:
                    raise ValueError(f"--prior_ties={self.prior_ties:g} does not go with {name}")
        if self.ties == "davidson":
            wrong = {
                "--intervals=bootstrap": self.intervals == "bootstrap",
                f"--cluster={self.cluster}": self.cluster != "none",
                "--style": self.style,
            }
            for name, given in wrong.items():
                if given:
                    raise ValueError(
                        f"--ties=davidson has sandwich intervals of single votes only; leave out {name}"
                    )


@dataclass(frozen=True)
class Estimate:
    """Scores (M,) with mean 0, covariance (M, M) right for differences, perhaps bootstrap draws (R, M)."""

    xi: Floats
    covariance: Floats
    draws: Floats | None = None
    extra: dict[str, Any] | None = None


def rank_models(
    votes: Votes, options: Options, cap: float | None = None, max_move: float = 0.0
) -> dict[str, Any]:
    """The report that `arena fit --json` prints, without the time it took to load the votes.

    Args:
      cap: no voter (column `judge`) counts for more than this many votes.
      max_move: Elo points by which no voter may move a rating, to first order; 0 is no limit. The report's
        `largest_move` says what was reached.

    Raises:
      ValueError: the votes determine no finite ratings, or an option does not fit them.
    """
    options.check()
    started = time.perf_counter()
    anchor = _anchor(votes, options.anchor)
    votes = without_ties(votes) if options.ties == "drop" else votes
    if anchor is not None:
        anchor = _anchor(votes, options.anchor)
    weights = vote_weights(votes, options.weighting, options.min_pair_count)
    if cap is not None:
        capped = cap_weights(numbered(votes.columns["judge"]), cap)
        weights = capped if weights is None else weights * capped
    counts = with_prior(count(votes, weights), options.prior_ties)
    check_connected(counts, votes.models)
    moves: dict[str, Any] = {"prior_ties": options.prior_ties} if options.prior_ties else {}
    if max_move:
        voter = numbered(votes.columns["judge"])
        weights, largest = limit_influence(votes, voter, max_move / PER_UNIT, weights)
        counts = with_prior(count(votes, weights), options.prior_ties)
        moves |= {"largest_move": PER_UNIT * largest}
    cluster = None if options.cluster == "none" else numbered(votes.columns[options.cluster])
    rng = np.random.default_rng(options.seed)
    estimate, seconds = _estimate(votes, weights, counts, cluster, options, rng)
    seconds = {"fit": time.perf_counter() - started - sum(seconds.values()), **seconds}
    started = time.perf_counter()
    if cluster is not None:
        moves |= {"clusters": int(cluster.max()) + 1}
    report = moves | _report(votes, counts, estimate, anchor, options, rng)
    report["seconds"] = seconds | {"rank": time.perf_counter() - started}
    return report


def _anchor(votes: Votes, name: str) -> int | None:
    if name == "mean":
        return None
    if name not in votes.models:
        raise ValueError(
            f"--anchor={name} is neither 'mean' nor one of the models: {', '.join(votes.models)}"
        )
    return votes.models.index(name)


def numbered(column: np.ndarray) -> Ints:
    """(n,) equal values of `column` as numbers from 0."""
    if column.dtype.kind == "i":
        return np.unique(column, return_inverse=True)[1].astype(np.int64, copy=False)
    place: dict[Any, int] = {}
    return np.fromiter((place.setdefault(x, len(place)) for x in column), dtype=np.int64, count=len(column))


def _estimate(
    votes: Votes,
    weights: Floats | None,
    counts: Counts,
    cluster: Ints | None,
    options: Options,
    rng: np.random.Generator,
) -> tuple[Estimate, dict[str, float]]:
    """The fit that `options` ask for, and the seconds of the bootstrap."""
    if options.ties == "davidson":
        tied = fit_davidson(counts)
        return Estimate(tied.xi, tied.covariance, extra={"tie_strength": tied.nu}), {}
    draws, m = None, len(votes.models)
    if options.style:
        z = style.features(votes)
        styled = style.fit_style(votes, z, weights, cluster)
        se = np.sqrt(np.diag(styled.covariance)[m:])
        extra = {
            "style": {
                n: {"beta": b, "se": s} for n, b, s in zip(style.FEATURES, styled.beta.tolist(), se.tolist())
            }
        }
        found = Estimate(styled.xi, styled.covariance[:m, :m], None, extra)
    else:
        plain = fit(counts)
        if cluster is not None:
            plain = Fit(
                plain.xi, plain.bread, meat_of_clusters(votes, weights, plain.xi, cluster), plain.ground
            )
        found = Estimate(plain.xi, plain.covariance)
    if options.intervals != "bootstrap":
        return found, {}
    started = time.perf_counter()
    if options.style:
        draws = style.bootstrap(votes, z, weights, cluster, styled, options.resamples, rng)
    elif cluster is None:
        draws = bootstrap.of_votes(counts, plain, options.resamples, rng)
    else:
        draws = bootstrap.of_clusters(votes, weights, counts, plain, cluster, options.resamples, rng)
    _enough(draws, options.resamples)
    return Estimate(found.xi, np.cov(draws.T), draws, found.extra), {
        "bootstrap": time.perf_counter() - started
    }


def _enough(draws: Floats, resamples: int) -> None:
    lost = resamples - len(draws)
    if lost > LOST_RESAMPLES * resamples or len(draws) < 2:
        raise ValueError(
            f"{lost} of {resamples} resamples have no finite ratings (a model lost all its wins or losses); "
            "there are too few votes for --intervals=bootstrap, use --intervals=sandwich"
        )


def _report(
    votes: Votes,
    counts: Counts,
    estimate: Estimate,
    anchor: int | None,
    options: Options,
    rng: np.random.Generator,
) -> dict[str, Any]:
    xi, covariance, alpha = estimate.xi, estimate.covariance, options.alpha
    reference = 0.0 if anchor is None else xi[anchor]
    rating = options.anchor_rating + PER_UNIT * (xi - reference)
    if estimate.draws is None:
        se = PER_UNIT * standard_errors(covariance, anchor)
        half = norm.ppf(1 - alpha / 2) * se
        lower, upper = rating - half, rating + half
        marginal = ranks.marginal(xi, covariance, alpha)
    else:
        draws = estimate.draws
        shifted = options.anchor_rating + PER_UNIT * (draws if anchor is None else draws - draws[:, [anchor]])
        se = shifted.std(axis=0, ddof=1)
        lower, upper = np.quantile(shifted, [alpha / 2, 1 - alpha / 2], axis=0)
        marginal = ranks.from_intervals(*np.quantile(draws, [alpha / 2, 1 - alpha / 2], axis=0))
    rule = marginal if options.rank == "marginal" else ranks.ranges(options.rank, xi, covariance, alpha, rng)
    wins = tally(counts)
    rows = [
        {
            "model": votes.models[i],
            "rating": float(rating[i]),
            "se": float(se[i]),
            "lower": float(lower[i]),
            "upper": float(upper[i]),
            "rank": rule[i].tolist(),
            "rank_marginal": marginal[i].tolist(),
            "battles": int(wins[i].sum()),
            "wins": int(wins[i, 0]),
            "losses": int(wins[i, 1]),
            "ties": int(wins[i, 2]),
        }
        for i in sorted(range(len(xi)), key=lambda i: (-rating[i], votes.models[i]))
    ]
    settings = {
        "votes": votes.rows,
        "used": len(votes),
        "weighting": options.weighting,
        "anchor": options.anchor,
        "anchor_rating": options.anchor_rating,
        "ties": options.ties,
        "intervals": options.intervals,
        "cluster": options.cluster,
        "alpha": alpha,
        "rank": options.rank,
    }
    return settings | (estimate.extra or {}) | {"models": rows}
