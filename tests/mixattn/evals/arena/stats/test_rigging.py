import numpy as np
import pytest

from mixattn.evals.arena.stats.rigging import ATTACKS, RiggingConfig, rigged_votes, votes_to_gain_a_place

SMALL = RiggingConfig(models=8, honest=8000, voters=400, target=4, most=3000)


def test_a_defence_makes_one_account_need_more_votes():
    needed = {
        d: votes_to_gain_a_place("target_only", d, SMALL)["votes_needed"] for d in ("none", "cap", "anomaly")
    }
    assert needed["none"] is not None
    assert needed["cap"] is None or needed["cap"] > needed["none"]
    assert needed["anomaly"] is None


def test_many_accounts_get_round_a_cap_alone():
    many = RiggingConfig(models=8, honest=8000, voters=400, target=4, most=3000, accounts=60)
    assert votes_to_gain_a_place("target_only", "cap", many)["votes_needed"] is not None


@pytest.mark.parametrize("attack", ATTACKS)
def test_rigged_votes_are_between_different_models_and_for_the_target(attack):
    xi = np.linspace(1, -1, 8)
    first, second, outcome = rigged_votes(attack, 2000, xi, 4, np.random.default_rng(0))
    assert (first != second).all()
    if attack == "always_left":
        assert (outcome == 2).all()
        return
    for_target = np.where(first == 4, outcome, np.where(second == 4, 2 - outcome, 2))
    assert (for_target == 2).all()
