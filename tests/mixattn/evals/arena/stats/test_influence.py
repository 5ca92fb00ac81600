import numpy as np

from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.influence import bounded_weights, cap_weights, leave_one_out
from mixattn.evals.arena.stats.ranking import numbered
from tests.mixattn.evals.arena.worlds import some_votes


def test_leaving_a_voter_out_moves_the_scores_as_one_solve_says():
    votes = some_votes(votes=8000, voters=100)
    voter = numbered(votes.columns["judge"])
    found = fit(count(votes))
    predicted = leave_one_out(votes, None, found, voter)
    for v in (0, 5, 20):
        without = fit(count(votes.where(voter != v))).xi
        np.testing.assert_allclose(
            found.xi - without, predicted[v], atol=0.25 * np.abs(predicted[v]).max() + 1e-3
        )


def test_no_voter_counts_for_more_than_the_cap():
    voter = np.array([0] * 500 + [1] * 20 + [2])
    weights = cap_weights(voter, 100.0)
    np.testing.assert_allclose(np.bincount(voter, weights), [100, 20, 1])


def test_no_voter_moves_a_score_by_more_than_the_stated_amount():
    votes = some_votes(votes=8000, voters=100)
    voter = numbered(votes.columns["judge"])
    found = fit(count(votes))
    before = np.abs(leave_one_out(votes, None, found, voter)).max()
    weights = bounded_weights(votes, found, voter, before / 4)
    after = np.abs(leave_one_out(votes, weights, found, voter)).max()
    assert after <= before / 4 * (1 + 1e-9)
