import numpy as np
import pytest

from mixattn.evals.arena.stats.coverage import measure, true_ranges
from mixattn.evals.arena.stats.synthetic import SyntheticConfig


def test_equal_models_share_their_places():
    assert true_ranges(np.array([1.0, 0.5, 0.5, 0.0])).tolist() == [[1, 1], [2, 3], [2, 3], [4, 4]]


@pytest.mark.parametrize("world", ["spread", "tied", "equal"])
def test_a_few_worlds_are_covered(world):
    found = measure(SyntheticConfig(models=10, votes=5000, world=world, seed=100), 20)
    assert found.marginal > 0.88
    assert found.rank_error["pairwise"] <= 0.2


@pytest.mark.long
@pytest.mark.parametrize("world", ["spread", "tied", "equal"])
@pytest.mark.parametrize("models", [4, 10, 20])
def test_coverage_is_nominal_and_ranks_are_right(world, models):
    """200 worlds: standard deviations are 0.015 of a share, less of the mean over models."""
    found = measure(SyntheticConfig(models=models, votes=1000 * models, world=world, seed=1000), 200)
    assert 0.93 <= found.marginal <= 0.97
    assert found.rank_error["pairwise"] <= 0.05 + 2 * 0.0154
    assert found.rank_error["simultaneous"] <= 0.05 + 2 * 0.0154
    if world == "equal" and models >= 10:  # the control: single intervals are not enough
        assert found.rank_error["marginal"] > 0.1
