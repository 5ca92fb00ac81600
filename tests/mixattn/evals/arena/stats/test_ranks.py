import numpy as np

from mixattn.evals.arena.stats import ranks
from mixattn.evals.arena.stats.bradley_terry import fit, standard_errors
from mixattn.evals.arena.stats.counts import count
from tests.mixattn.evals.arena.worlds import figure_2, some_votes

GOLDEN = [
    (1, 1),
    (2, 3),
    (2, 6),
    (3, 8),
    (3, 8),
    (3, 8),
    (4, 8),
    (4, 9),
    (8, 9),
    (10, 12),
    (10, 12),
    (10, 12),
]


def test_figure_2_gives_the_golden_chi_square_ranges():
    found = fit(figure_2())
    assert list(map(tuple, ranks.simultaneous(found.xi, found.covariance, 0.05))) == GOLDEN


def test_intervals_give_ranks_as_counting_does():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=20)
    half = rng.uniform(0.01, 1, 20)
    lower, upper = centre - half, centre + half
    best = [1 + sum(lower > upper[i]) for i in range(20)]
    worst = [20 - sum(upper < lower[i]) for i in range(20)]
    np.testing.assert_array_equal(ranks.from_intervals(lower, upper), np.stack([best, worst], 1))


def test_wider_intervals_never_narrow_a_range_and_touching_ones_do_not_separate():
    lower, upper = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    assert ranks.from_intervals(lower, upper).tolist() == [[2, 3], [1, 3], [1, 2]]
    wider = ranks.from_intervals(lower - 1, upper + 1)
    assert (wider[:, 0] <= 2).all()
    assert wider.tolist() == [[1, 3]] * 3


def test_pairwise_lies_between_marginal_of_differences_and_chi_square():
    found = fit(count(some_votes(models=30, votes=20_000)))
    rng = np.random.default_rng(0)
    width = {
        rule: float(np.diff(ranks.ranges(rule, found.xi, found.covariance, 0.05, rng), axis=1).mean())
        for rule in ranks.RULES
    }
    assert width["marginal"] <= width["pairwise"] < width["simultaneous"]


def test_two_models_need_the_plain_normal_quantile():
    covariance = np.array([[0.04, 0.0], [0.0, 0.0]])
    se = ranks.difference_errors(covariance)
    quantile = ranks.studentised_maximum(covariance, se, 0.05, np.random.default_rng(0), draws=200_000)
    assert abs(quantile - 1.96) < 0.02


def test_ranks_and_errors_of_differences_do_not_depend_on_the_grounded_model():
    found = fit(count(some_votes()))
    c = np.eye(12)
    c[:, 5] -= 1  # the same differences, model 5 grounded
    other = c @ found.covariance @ c.T
    np.testing.assert_allclose(
        ranks.difference_errors(other), ranks.difference_errors(found.covariance), atol=1e-9
    )
    np.testing.assert_allclose(standard_errors(other, None), standard_errors(found.covariance, None))


def test_indistinguishable_models_share_all_places():
    xi, covariance = np.zeros(4), np.eye(4)
    assert ranks.pairwise(xi, covariance, 0.05, np.random.default_rng(0)).tolist() == [[1, 4]] * 4
