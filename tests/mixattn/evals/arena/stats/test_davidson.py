import numpy as np
import pytest
from scipy.optimize import minimize

from mixattn.evals.arena.stats.bradley_terry import standard_errors
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.davidson import fit_davidson
from tests.mixattn.evals.arena.worlds import some_votes


def logits(theta, votes):
    d = theta[votes.first] - theta[votes.second]
    z = np.stack([-d / 2, np.full(len(d), theta[-1]), d / 2], 1)
    return z - np.logaddexp.reduce(z, axis=1)[:, None]


def test_scores_equal_a_plain_minimiser_of_the_loss():
    votes = some_votes(models=5, votes=600)
    best = minimize(
        lambda theta: -logits(theta, votes)[np.arange(len(votes)), votes.outcome].sum(), np.zeros(6), tol=1e-9
    ).x
    found = fit_davidson(count(votes))
    np.testing.assert_allclose(found.xi, best[:5] - best[:5].mean(), atol=1e-4)
    assert abs(np.log(found.nu) - best[5]) < 1e-4


def test_scores_equal_newmans():
    evalica = pytest.importorskip("evalica", reason="evalica is an oracle: pip install evalica")
    votes = some_votes()
    label = {2: evalica.Winner.X, 0: evalica.Winner.Y, 1: evalica.Winner.Draw}
    result = evalica.newman(
        [votes.models[i] for i in votes.first],
        [votes.models[i] for i in votes.second],
        [label[int(o)] for o in votes.outcome],
        tolerance=1e-13,
        limit=100_000,
    )
    theirs = np.log([result.scores[name] for name in votes.models])
    np.testing.assert_allclose(theirs - theirs.mean(), fit_davidson(count(votes)).xi, atol=1e-5)


def test_errors_equal_a_numerical_sandwich():
    votes = some_votes(models=4, votes=500)
    found = fit_davidson(count(votes))
    at = np.append(found.xi, np.log(found.nu))

    def each(theta):
        return logits(theta, votes)[np.arange(len(votes)), votes.outcome]

    h = 1e-4
    step = h * np.eye(5)
    scores = np.stack([(each(at + e) - each(at - e)) / (2 * h) for e in step], 1)
    total = lambda theta: each(theta).sum()  # noqa: E731

    def second(a, b):
        return (total(at + a + b) - total(at + a - b) - total(at - a + b) + total(at - a - b)) / (4 * h * h)

    hessian = np.array([[second(a, b) for b in step] for a in step])
    a = np.linalg.inv(hessian[1:, 1:])  # model 0 grounded
    covariance = np.zeros((5, 5))
    covariance[1:, 1:] = a @ (scores.T @ scores)[1:, 1:] @ a
    np.testing.assert_allclose(
        standard_errors(found.covariance, None), standard_errors(covariance[:4, :4], None), rtol=1e-3
    )


def test_votes_of_one_kind_are_refused():
    with pytest.raises(ValueError, match="needs votes of both kinds"):
        fit_davidson(count(some_votes(tie_rate=0.0)))
