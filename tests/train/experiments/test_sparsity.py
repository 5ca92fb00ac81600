"""Figures of sparsity on attention whose weights are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.experiments.sparsity import observed, of_layer


def test_equal_scores_are_not_sparse_and_columns_sum_harmonically():
    T, N = 8, 2
    q = jnp.zeros((T, N, 4))
    kv = (jnp.ones((1, T, 1, 4)), jnp.ones((1, T, 1, 4)))
    small, sums_NS = observed(q, kv, None, None, None)
    assert small == 0
    expected = [sum(1 / (i + 1) for i in range(j, T)) for j in range(T)]
    np.testing.assert_allclose(sums_NS, [expected] * N, rtol=1e-5)


def test_one_loud_key_makes_every_other_weight_small():
    T = 10
    k = jnp.zeros((1, T, 1, 4)).at[0, 0].set(10.0)
    small, sums_NS = observed(jnp.full((T, 1, 4), 2.0), (k, k), None, None, None)
    assert small == pytest.approx((T * (T + 1) / 2 - T) / (T * (T + 1) / 2))
    assert sums_NS[0, 0] == pytest.approx(T, rel=1e-4)


def test_a_window_hides_older_keys():
    q = jnp.zeros((6, 1, 4))
    kv = (jnp.ones((1, 6, 1, 4)), jnp.ones((1, 6, 1, 4)))
    _, sums_NS = observed(q, kv, 2, None, None)
    np.testing.assert_allclose(sums_NS[0], [1.5, 1, 1, 1, 1, 0.5], rtol=1e-5)


def test_a_power_law_has_its_exponent_as_slope():
    sums = 1 / np.arange(1, 101) ** 1.5
    about = of_layer(np.array([0.5]), sums[None, None] * 100 / sums.sum())
    assert about["slope"] == pytest.approx(-1.5)
    assert about["top_tenth_gets"] == pytest.approx(sums[:10].sum() / sums.sum())
