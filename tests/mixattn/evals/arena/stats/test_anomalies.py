import numpy as np
import pytest
from scipy.stats import kstest

from mixattn.evals.arena.stats import anomalies
from mixattn.evals.arena.stats.synthetic import SyntheticConfig, simulate
from mixattn.evals.arena.stats.votes import Votes


def voters(anomaly, share=0.1):
    """10 models, 180 voters of 100 votes; a tenth of them vote as `anomaly` says."""
    config = SyntheticConfig(models=10, votes=18_000, tie_rate=0.1, anomaly=anomaly, anomalous=0, seed=5)
    votes, xi = simulate(config)
    voter = np.arange(18_000) // 100
    odd = voter < 180 * share
    rng = np.random.default_rng(0)
    second_better = xi[votes.second] > xi[votes.first]
    changed = {
        "random": rng.integers(0, 3, 18_000),
        "opposite": 2 - votes.outcome,
        "worse": np.where(second_better, 2, 0),
        "none": votes.outcome,
    }[anomaly if anomaly in ("random", "opposite") else "worse" if anomaly == "favourite" else "none"]
    outcome = np.where(odd, changed, votes.outcome)
    judge = np.array([f"{'odd' if o else 'fair'}{v:03d}" for o, v in zip(odd, voter)], dtype=object)
    return Votes(votes.rows, votes.models, votes.first, votes.second, outcome, votes.row, {"judge": judge})


def rates(anomaly, rule, alpha):
    """Share of odd and of fair voters that are flagged."""
    found = anomalies.find_anomalies(voters(anomaly), rule=rule, alpha=alpha, rng=np.random.default_rng(1))
    odd = [v.flagged for v in found if v.voter.startswith("odd")]
    fair = [v.flagged for v in found if v.voter.startswith("fair")]
    return np.mean(odd), np.mean(fair)


@pytest.mark.parametrize(("rule", "alpha"), [("randomised", 0.1), ("products", 0.05), ("betting", 0.05)])
def test_a_voter_for_the_worse_model_is_found_and_honest_voters_are_left_alone(rule, alpha):
    odd, fair = rates("favourite", rule, alpha)
    assert odd >= 0.8
    assert fair <= alpha + 0.03


def test_an_opposite_voter_is_found_more_often_than_an_honest_one():
    odd, fair = rates("opposite", "randomised", 0.1)
    assert odd > 0.4 > fair + 0.2


def test_the_published_rule_has_no_power():
    assert rates("favourite", "paper", 0.3) == (0.0, 0.0)


def test_the_randomised_p_is_uniform_for_honest_votes():
    rng = np.random.default_rng(2)
    history = rng.multinomial(50, [0.3, 0.2, 0.5], size=4000)
    outcome = rng.choice(3, 4000, p=[0.3, 0.2, 0.5])
    for upper in (True, False):
        beyond, equal, n = anomalies.p_values(history, outcome, upper=upper)
        p = (beyond + rng.random(4000) * (1 + equal)) / (n + 1)
        assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("anomaly", ["favourite", "always_left", "nothing"])
def test_betting_finds_those_who_favour_a_model_or_a_side(anomaly):
    votes = voters("none")
    odd = np.char.startswith(votes.columns["judge"].astype(str), "odd")
    changed = {
        "favourite": np.where(votes.first == 9, 2, np.where(votes.second == 9, 0, votes.outcome)),
        "always_left": np.full(len(votes), 2),
        "nothing": votes.outcome,  # the control
    }[anomaly]
    outcome = np.where(odd, changed, votes.outcome)
    votes = Votes(votes.rows, votes.models, votes.first, votes.second, outcome, votes.row, votes.columns)
    found = anomalies.find_anomalies(votes, rule="betting", alpha=0.05, rng=np.random.default_rng(0))
    share = {
        kind: np.mean([v.flagged for v in found if v.voter.startswith(kind)]) for kind in ("odd", "fair")
    }
    assert share["fair"] <= 0.05
    assert share["odd"] <= 0.1 if anomaly == "nothing" else share["odd"] >= 0.8
