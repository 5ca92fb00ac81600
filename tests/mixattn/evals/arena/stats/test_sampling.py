import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.arena.stats.sampling import PairSampler


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=30))
def test_probabilities_sum_to_one_and_leave_no_pair_out(pairs):
    votes = np.array([n for n, _ in pairs], dtype=float)
    wins = votes * np.array([share for _, share in pairs])
    p = PairSampler(explore=0.05).probabilities(votes, wins)
    assert abs(p.sum() - 1) < 1e-12
    assert (p >= 0.05 / len(p) - 1e-15).all()


def test_pairs_with_few_or_undecided_votes_are_drawn_more_often():
    p = PairSampler().probabilities(np.array([10.0, 100.0, 100.0]), np.array([5.0, 50.0, 95.0]))
    assert p[0] > p[1] > p[2]
    new = PairSampler(explore=0.0).probabilities(np.array([10.0, 0.0, 1.0]), np.array([5.0, 0.0, 1.0]))
    assert new.tolist() == [0.0, 0.5, 0.5]


def test_the_logged_probability_is_the_one_that_was_used_and_a_seed_repeats_it():
    votes, wins = np.array([5.0, 9.0, 40.0]), np.array([2.0, 3.0, 20.0])
    sampler = PairSampler()
    p = sampler.probabilities(votes, wins)
    drawn = [sampler.draw(votes, wins, np.random.default_rng(seed)) for seed in range(3000)]
    assert all(logged == p[pair] for pair, logged in drawn)
    share = np.bincount([pair for pair, _ in drawn], minlength=3) / 3000
    np.testing.assert_allclose(share, p, atol=0.04)
    assert drawn[7] == sampler.draw(votes, wins, np.random.default_rng(7))
