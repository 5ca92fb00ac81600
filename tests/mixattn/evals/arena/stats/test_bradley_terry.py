import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from mixattn.evals.arena.stats.bradley_terry import (
    Fit,
    contrast,
    fit,
    meat_of_clusters,
    meat_of_counts,
    standard_errors,
)
from mixattn.evals.arena.stats.counts import Counts, count, vote_weights
from mixattn.evals.arena.stats.ranking import PER_UNIT, numbered
from mixattn.evals.arena.stats.votes import from_arrays
from tests.mixattn.evals.arena.worlds import design, figure_2, some_votes

# Spec of the replay: scores, sandwich errors (centred), Elo with mixtral at 1114; then the same weighted
# by pair.
GOLDEN = np.array([
    [1.1803, 0.0221, 1302.3, 1.1208, 0.0363, 1285.2],
    [0.4212, 0.0222, 1170.5, 0.4013, 0.0275, 1160.2],
    [0.3196, 0.0306, 1152.8, 0.3141, 0.0548, 1145.0],
    [0.0962, 0.0281, 1114.0, 0.1355, 0.0485, 1114.0],
    [0.1228, 0.0376, 1118.6, 0.0788, 0.0722, 1104.2],
    [0.0829, 0.0244, 1111.7, 0.1213, 0.0432, 1111.5],
    [0.0569, 0.0224, 1107.2, 0.0788, 0.0264, 1104.2],
    [-0.0635, 0.0329, 1086.3, -0.0342, 0.0449, 1084.5],
    [-0.2134, 0.0326, 1060.2, -0.2255, 0.0521, 1051.3],
    [-0.5330, 0.0383, 1004.7, -0.4792, 0.0565, 1007.2],
    [-0.6609, 0.0456, 982.5, -0.6029, 0.0650, 985.7],
    [-0.8092, 0.0418, 956.7, -0.9089, 0.0579, 932.6],
])  # fmt: skip


@pytest.mark.parametrize(("columns", "min_pair_count"), [((0, 1, 2), None), ((3, 4, 5), 1)])
def test_figure_2_gives_the_golden_table(columns, min_pair_count):
    found = fit(figure_2(min_pair_count))
    xi, se, elo = GOLDEN[:, columns].T
    np.testing.assert_allclose(found.xi, xi, atol=1e-4)
    np.testing.assert_allclose(standard_errors(found.covariance, None), se, atol=1e-4)
    np.testing.assert_allclose(1114 + PER_UNIT * (found.xi - found.xi[3]), elo, atol=0.06)


def test_the_textbook_example_of_four_players():
    wins = np.array([[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]], dtype=float)  # row beats column
    low, high = np.triu_indices(4, 1)
    votes = np.stack([wins[high, low], 0 * wins[low, high], wins[low, high]], 1)
    met = votes.sum(1) > 0
    found = fit(Counts(4, low[met], high[met], votes[met], votes[met], votes[met]))
    np.testing.assert_allclose(np.exp(found.xi), [0.640, 1.043, 0.660, 2.270], rtol=1e-3)


@pytest.mark.parametrize("weighting", ["none", "ipw_logged", "ipw_empirical"])
def test_scores_equal_unpenalised_logistic_regression(weighting):
    votes = some_votes()
    weights = vote_weights(votes, weighting)
    w = np.ones(len(votes)) if weights is None else weights / weights.mean()
    x, y = design(votes), votes.outcome / 2
    twice = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    target = np.repeat([1, 0], len(y))
    twice.fit(np.vstack([x, x])[:, 1:], target, sample_weight=np.concatenate([w * y, w * (1 - y)]))
    xi = np.concatenate([[0], twice.coef_[0]])
    np.testing.assert_allclose(fit(count(votes, weights)).xi, xi - xi.mean(), atol=1e-6)


def test_scores_equal_a_plain_minimiser_of_the_loss():
    votes = some_votes(models=5, votes=500)
    x, y = design(votes), votes.outcome / 2

    def loss(xi):
        return np.logaddexp(0, -(x @ xi)) @ y + np.logaddexp(0, x @ xi) @ (1 - y)

    def gradient(xi):
        return -x.T @ (y - 1 / (1 + np.exp(-(x @ xi))))

    best = minimize(loss, np.zeros(5), jac=gradient, method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(fit(count(votes)).xi, best - best.mean(), atol=1e-6)


@pytest.mark.parametrize("kind", ["HC0", "cluster"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_covariance_equals_that_of_statsmodels(kind, weighted):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is an oracle: pip install statsmodels")
    votes = some_votes()
    weights = vote_weights(votes, "ipw_empirical") if weighted else None
    group = numbered(votes.columns["judge"])
    found = fit(count(votes, weights))
    if kind == "cluster":
        found = Fit(found.xi, found.bread, meat_of_clusters(votes, weights, found.xi, group), found.ground)
    x, y = design(votes), votes.outcome / 2
    # A weighted score is what HC0 squares; frequency weights give the same estimate but not that square.
    ours = contrast(12, 0) @ found.covariance @ contrast(12, 0).T
    if weighted:
        p = 1 / (1 + np.exp(-(x @ found.xi)))
        a = np.linalg.inv((x[:, 1:].T * (weights * p * (1 - p))) @ x[:, 1:])
        u = x[:, 1:] * (weights * (y - p))[:, None]
        if kind == "cluster":
            u = np.array([u[group == g].sum(0) for g in range(group.max() + 1)])
        theirs = a @ u.T @ u @ a
    else:
        options = {"HC0": {}, "cluster": {"groups": group, "use_correction": False}}[kind]
        result = sm.GLM(y, x[:, 1:], family=sm.families.Binomial()).fit(
            cov_type=kind, cov_kwds=options or None, tol=1e-12
        )
        theirs = result.cov_params()
        np.testing.assert_allclose(found.xi[1:] - found.xi[0], result.params, atol=1e-8)
    np.testing.assert_allclose(ours[1:, 1:], theirs, rtol=1e-6, atol=1e-12)


def test_scores_equal_those_of_choix_and_evalica():
    choix = pytest.importorskip("choix", reason="choix is an oracle: pip install choix")
    evalica = pytest.importorskip("evalica", reason="evalica is an oracle: pip install evalica")
    votes = some_votes()
    xi = fit(count(votes)).xi
    wins = np.zeros((12, 12))
    np.add.at(wins, (votes.first, votes.second), votes.outcome / 2)
    np.add.at(wins, (votes.second, votes.first), 1 - votes.outcome / 2)
    np.testing.assert_allclose(choix.ilsr_pairwise_dense(wins, alpha=0.0), xi, atol=1e-6)
    label = {2: evalica.Winner.X, 0: evalica.Winner.Y, 1: evalica.Winner.Draw}
    names = votes.models
    result = evalica.bradley_terry(
        [names[i] for i in votes.first],
        [names[i] for i in votes.second],
        [label[int(o)] for o in votes.outcome],
        tolerance=1e-14,
        limit=100_000,
    )
    theirs = np.log([result.scores[name] for name in names])
    np.testing.assert_allclose(theirs - theirs.mean(), xi, atol=1e-6)


def test_swapping_sides_permuting_models_and_constant_weights_change_nothing():
    votes, rng = some_votes(), np.random.default_rng(0)
    xi = fit(count(votes)).xi
    swap = rng.random(len(votes)) < 0.5
    swapped = from_arrays(
        votes.models,
        np.where(swap, votes.second, votes.first),
        np.where(swap, votes.first, votes.second),
        np.where(swap, 2 - votes.outcome, votes.outcome),
    )
    np.testing.assert_allclose(fit(count(swapped)).xi, xi, atol=1e-9)
    order = rng.permutation(12)
    permuted = from_arrays(votes.models, order[votes.first], order[votes.second], votes.outcome)
    np.testing.assert_allclose(fit(count(permuted)).xi[order], xi, atol=1e-9)
    constant = fit(count(votes, np.full(len(votes), 7.0)))
    np.testing.assert_allclose(constant.xi, xi, atol=1e-9)
    np.testing.assert_allclose(constant.covariance, fit(count(votes)).covariance, rtol=1e-6)


def test_counts_give_the_covariance_of_rows():
    votes = some_votes(votes=1500)
    weights = vote_weights(votes, "ipw_logged")
    xi = fit(count(votes, weights)).xi
    own_cluster = meat_of_clusters(votes, weights, xi, np.arange(len(votes)))
    np.testing.assert_allclose(meat_of_counts(count(votes, weights), xi), own_cluster, rtol=1e-9)


def test_weights_recover_the_uniform_score_of_an_intransitive_population():
    skewed = some_votes(models=6, votes=60_000, skew=4.0, intransitive=0.6, tie_rate=0.0, width=1.0)
    uniform = fit(
        count(some_votes(models=6, votes=60_000, skew=0.0, intransitive=0.6, tie_rate=0.0, width=1.0))
    ).xi
    error = {
        weighting: np.abs(fit(count(skewed, vote_weights(skewed, weighting))).xi - uniform).max()
        for weighting in ("none", "ipw_logged", "ipw_empirical")
    }
    assert error["ipw_logged"] < 0.1
    assert error["ipw_empirical"] < 0.1
    assert (
        error["none"] > 2 * error["ipw_logged"]
    )  # control: without weights the score depends on the sampling


def test_dependent_votes_need_the_cluster_covariance():
    """Every vote copied three times by the same voter is no new information."""
    votes = some_votes(voters=4000)
    three = from_arrays(votes.models, *(np.repeat(x, 3) for x in (votes.first, votes.second, votes.outcome)))
    once = fit(count(votes))
    naive = fit(count(three))
    group = np.repeat(np.arange(len(votes)), 3)
    robust = Fit(naive.xi, naive.bread, meat_of_clusters(three, None, naive.xi, group), naive.ground)
    np.testing.assert_allclose(robust.covariance, once.covariance, rtol=1e-6)
    np.testing.assert_allclose(naive.covariance, once.covariance / 3, rtol=1e-6)
