import numpy as np

from mixattn.evals.arena.stats.counts import count, vote_weights
from mixattn.evals.arena.stats.win_matrix import horvitz_thompson, rows_of, win_matrix
from tests.mixattn.evals.arena.worlds import some_votes


def test_rates_of_both_directions_sum_to_one_and_lie_in_their_intervals():
    votes = some_votes()
    matrix = win_matrix(count(votes))
    met = matrix.votes > 0
    assert np.allclose((matrix.rate + matrix.rate.T)[met], 1)
    assert np.allclose((matrix.lower + matrix.upper.T)[met], 1)
    assert ((matrix.lower <= matrix.rate) & (matrix.rate <= matrix.upper))[met].all()
    assert matrix.votes.sum() == 2 * len(votes)
    assert len(rows_of(matrix, votes.models)) == met.sum() / 2


def test_the_interval_without_ties_is_wilsons():
    votes = some_votes(models=2, votes=100, tie_rate=0.0)
    from scipy.stats import binomtest

    matrix = win_matrix(count(votes))
    wins = int(count(votes).votes[0, 2])
    wilson = binomtest(wins, 100).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose([matrix.lower[0, 1], matrix.upper[0, 1]], wilson, atol=1e-12)


def test_the_inverse_probability_estimate_is_unbiased_under_skewed_sampling():
    votes = some_votes(models=4, votes=40_000, skew=3.0)
    mean, se = horvitz_thompson(count(votes, vote_weights(votes, "ipw_logged")), len(votes))
    rate = win_matrix(count(votes)).rate[np.triu_indices(4, 1)]
    assert (np.abs(mean - rate) < 4 * se).all()
