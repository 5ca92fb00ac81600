import numpy as np

from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.elo import elo, permuted
from mixattn.evals.arena.stats.votes import from_arrays
from tests.mixattn.evals.arena.worlds import some_votes


def test_one_vote_between_equals_moves_half_of_k():
    one = from_arrays(("a", "b", "c"), [0], [1], [2])
    assert elo(one, k=4.0).tolist() == [1002.0, 998.0, 1000.0]
    assert elo(one, k=0.0).tolist() == [1000.0] * 3


def test_the_sum_is_conserved_and_the_order_matters():
    votes = some_votes()
    forward, backward = elo(votes), elo(votes, np.arange(len(votes))[::-1])
    assert abs(forward.sum() - 12_000) < 1e-6
    assert np.abs(forward - backward).max() > 1


def test_the_median_over_orders_ranks_as_bradley_terry_does():
    votes = some_votes(votes=20_000)
    median = np.median(permuted(votes, 9, np.random.default_rng(0)), axis=0)
    assert np.corrcoef(median, fit(count(votes)).xi)[0, 1] > 0.99
