import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mixattn.evals.arena.stats import style
from mixattn.evals.arena.stats.bradley_terry import fit, standard_errors
from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.synthetic import records
from mixattn.evals.arena.stats.votes import Votes
from tests.mixattn.evals.arena.worlds import design, some_votes


def with_metadata(votes):
    metadata = np.array([record["conv_metadata"] for record in records(votes)], dtype=object)
    return Votes(
        votes.rows,
        votes.models,
        votes.first,
        votes.second,
        votes.outcome,
        votes.row,
        {"conv_metadata": metadata},
    )


def test_the_fit_equals_unpenalised_logistic_regression_and_recovers_the_planted_weight():
    votes = with_metadata(some_votes(style_beta=1.2, tie_rate=0.0, votes=6000))
    z = style.features(votes)
    found = style.fit_style(votes, z)
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
    oracle.fit(np.hstack([design(votes)[:, 1:], z[:, :1]]), votes.outcome // 2)
    xi = np.concatenate([[0], oracle.coef_[0, :11]])
    np.testing.assert_allclose(found.xi, xi - xi.mean(), atol=1e-6)
    np.testing.assert_allclose(found.beta, [oracle.coef_[0, 11], 0, 0, 0], atol=1e-6)
    a, b = (np.array([r[f"sum_assistant_{s}_tokens"] for r in votes.columns["conv_metadata"]]) for s in "ab")
    scale = np.sqrt(np.mean(((a - b) / (a + b + 1)) ** 2))
    se = np.sqrt(found.covariance[12, 12])
    assert abs(found.beta[0] - 1.2 * scale) < 4 * se


def test_without_any_style_the_fit_is_bradley_terry():
    votes = with_metadata(some_votes())
    found, plain = style.fit_style(votes, np.zeros((len(votes), 4))), fit(count(votes))
    np.testing.assert_allclose(found.xi, plain.xi, atol=1e-8)
    np.testing.assert_allclose(
        standard_errors(found.covariance[:12, :12], None), standard_errors(plain.covariance, None), rtol=1e-6
    )


def test_counts_may_be_objects_and_the_metadata_text():
    votes = with_metadata(some_votes(votes=50))
    plain = style.features(votes)
    for i, record in enumerate(votes.columns["conv_metadata"]):
        votes.columns["conv_metadata"][i] = json.dumps(record | {"header_count_a": {"h1": 0, "h2": 0}})
    np.testing.assert_array_equal(style.features(votes), plain)
    votes.columns["conv_metadata"][7] = {"sum_assistant_a_tokens": 3}
    with pytest.raises(ValueError, match="row 8: conv_metadata lacks a number"):
        style.features(votes)
