import numpy as np
import pytest
from scipy.stats import chisquare
from scipy.stats import poisson as oracle

from mixattn.evals.arena.stats import poisson


@pytest.mark.parametrize("mean", [1, 4, 67, 900, 5000])
def test_draws_have_poissons_distribution(mean):
    drawn = poisson.draw(np.full(40, mean), 5000, np.random.default_rng(1)).ravel()
    last = int(oracle.ppf(0.9995, mean))
    first = int(oracle.ppf(0.0005, mean))
    values = np.arange(first, last + 1)
    observed = np.bincount(
        np.clip(drawn, first - 1, last + 1).astype(int) - first + 1, minlength=len(values) + 2
    )
    expected = np.concatenate(
        [[oracle.cdf(first - 1, mean)], oracle.pmf(values, mean), [oracle.sf(last, mean)]]
    )
    used = expected > 0
    assert chisquare(observed[used], expected[used] / expected[used].sum() * len(drawn)).pvalue > 1e-3
    # The control: the same draws do not fit a mean that is 2 % off.
    wrong = np.concatenate(
        [
            [oracle.cdf(first - 1, 1.02 * mean)],
            oracle.pmf(values, 1.02 * mean),
            [oracle.sf(last, 1.02 * mean)],
        ]
    )
    assert chisquare(observed[used], wrong[used] / wrong[used].sum() * len(drawn)).pvalue < 1e-3


def test_rows_keep_their_means_in_any_order_and_an_empty_cell_stays_empty():
    means = np.array([7, 0, 300, 7, 2500, 1])
    drawn = poisson.draw(means, 20_000, np.random.default_rng(0))
    assert (drawn[1] == 0).all()
    np.testing.assert_allclose(drawn.mean(axis=1), means, rtol=0.03, atol=0)
    np.testing.assert_allclose(drawn.var(axis=1), means, rtol=0.06, atol=0)
    assert abs(np.corrcoef(drawn[0], drawn[3])[0, 1]) < 0.03
