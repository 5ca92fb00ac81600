from dataclasses import replace

import numpy as np
import pytest

from mixattn.evals.arena.stats import bootstrap, poisson
from mixattn.evals.arena.stats.bradley_terry import Fit, fit, meat_of_clusters, standard_errors
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.ranking import numbered
from tests.mixattn.evals.arena.worlds import some_votes


@pytest.mark.parametrize("weighted", [False, True])
def test_a_resample_has_the_scores_of_its_own_fit(weighted):
    votes = some_votes(models=5, votes=800)
    counts = count(votes, np.linspace(0.5, 2, 800) if weighted else None)
    draws = bootstrap.of_votes(counts, fit(counts), 3, np.random.default_rng(3))
    number = counts.votes.astype(int)
    again = poisson.draw(number.ravel(), 3, np.random.default_rng(3)).reshape(*number.shape, 3)
    mean_weight = counts.weight / np.maximum(number, 1)
    for r in range(3):
        own = fit(replace(counts, weight=again[..., r] * mean_weight)).xi
        np.testing.assert_allclose(own, draws[r], atol=1e-7)


def test_bootstrap_and_sandwich_agree_for_votes_and_for_clusters():
    votes = some_votes(votes=8000, voters=300)
    counts = count(votes)
    found = fit(counts)
    rng = np.random.default_rng(0)
    draws = bootstrap.of_votes(counts, found, 600, rng)
    np.testing.assert_allclose(draws.std(0), standard_errors(found.covariance, None), rtol=0.12)
    group = numbered(votes.columns["judge"])
    robust = Fit(found.xi, found.bread, meat_of_clusters(votes, None, found.xi, group), found.ground)
    draws = bootstrap.of_clusters(votes, None, counts, found, group, 600, rng)
    np.testing.assert_allclose(draws.std(0), standard_errors(robust.covariance, None), rtol=0.2)


def test_resamples_without_finite_scores_are_left_out():
    votes = some_votes(models=8, votes=60, width=4.0, tie_rate=0.1, seed=3)
    counts = count(votes)
    draws = bootstrap.of_votes(counts, fit(counts), 200, np.random.default_rng(0))
    assert 0 < len(draws) < 200
    assert np.isfinite(draws).all()
