"""Products of 8-bit integers: the arithmetic against float64 and exact integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import aot, int8
from pallas_kernels.grouped import grouped_matmul

D, F = 24, 7


def rows(X, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((X, D)) * rng.uniform(0.1, 30, (X, 1)), dtype)


def by_hand(x):
    """Codes and scales of rows, in float64."""
    x = np.asarray(x, np.float64)
    top = np.abs(x).max(axis=1, keepdims=True)
    scale = np.where(top == 0, 1, top / 127)
    return np.rint(x / scale), scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_the_nearest_whole_numbers_of_each_rows_largest_over_127(dtype):
    x_XD = rows(50, dtype)
    codes, scale = int8.quantize(x_XD)
    want, want_scale = by_hand(x_XD)
    assert codes.dtype == jnp.int8
    np.testing.assert_allclose(scale[:, None], want_scale, rtol=1e-6)
    # A quotient within rounding of a half may fall to either side.
    assert np.abs(np.asarray(codes, np.int64) - want).max() <= 1
    assert np.mean(np.asarray(codes, np.int64) != want) < 0.01
    assert np.abs(codes).max() == 127
    error = np.abs(np.asarray(int8.dequantize(int8.Codes(codes, scale)), np.float64) - np.float64(x_XD))
    assert (error <= np.float64(scale[:, None]) * 0.501).all()


@given(st.integers(1, 5), st.integers(0, 9))
def test_the_product_is_the_exact_sum_of_codes_times_both_scales(X, seed):
    x, w = int8.quantize(rows(X, seed=seed)), int8.quantize(rows(F, seed=seed + 100))
    got = np.asarray(int8.matmul(x, w, jnp.float32), np.float64)
    sums = np.asarray(x.codes, np.int64) @ np.asarray(w.codes, np.int64).T
    want = sums * np.float64(x.scale)[:, None] * np.float64(w.scale)[None]
    np.testing.assert_allclose(got, want, rtol=3e-7)


def test_a_row_gives_the_same_bits_alone_and_among_others():
    x_XD, w = rows(9), int8.quantize(rows(F, seed=1))
    alone = [int8.matmul(int8.quantize(x_XD[i : i + 1]), w, jnp.float32)[0] for i in range(9)]
    np.testing.assert_array_equal(np.stack(alone), int8.matmul(int8.quantize(x_XD), w, jnp.float32))


def test_zeros_give_zero_and_what_is_not_finite_stays_so_in_its_row_alone():
    x_XD = rows(4).at[0].set(0).at[1, 3].set(jnp.nan).at[2, 5].set(jnp.inf)
    w = int8.quantize(rows(F, seed=1).at[2].set(0))
    got = np.asarray(int8.matmul(int8.quantize(x_XD), w, jnp.float32))
    assert (got[0] == 0).all()
    assert (got[3, 2] == 0).all()
    assert not np.isfinite(got[1:3]).any()
    assert np.isfinite(got[3]).all()


def test_the_largest_sums_do_not_overflow():
    wide = 1 << 16
    ones = int8.Codes(jnp.full((2, wide), 127, jnp.int8), jnp.ones(2))
    want = 127 * 127 * wide  # half of what an int32 holds
    assert (np.asarray(int8.matmul(ones, ones, jnp.float32)) == np.float32(want)).all()


def test_widths_that_disagree_are_refused_with_both():
    with pytest.raises(ValueError, match="rows of 24 values cannot meet 7 channels of 6"):
        int8.matmul(int8.quantize(rows(2)), int8.quantize(rows(F)[:, :6]), jnp.float32)


@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize("sizes", [(9, 0, 30, 11), (0, 0, 0, 0), (0, 50, 0, 0), (1, 0, 0, 2)])
def test_grouped_products_of_codes_are_exact(backend, sizes):
    rng = np.random.default_rng(0)
    x_MD = rng.integers(-127, 128, (50, D)).astype(np.int8)
    w_EDF = rng.integers(-127, 128, (4, D, F)).astype(np.int8)
    got = grouped_matmul(
        jnp.asarray(x_MD), jnp.asarray(w_EDF), jnp.asarray(sizes, jnp.int32), backend=backend
    )
    want, ends = np.zeros((50, F), np.int64), np.cumsum(sizes)
    for e, end in enumerate(ends):
        want[end - sizes[e] : end] = x_MD[end - sizes[e] : end].astype(np.int64) @ w_EDF[e].astype(np.int64)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("C", [1, 3])
def test_products_by_expert_are_exact(C):
    rng = np.random.default_rng(0)
    x_ECD = rng.integers(-127, 128, (4, C, D)).astype(np.int8)
    w_EDF = rng.integers(-127, 128, (4, D, F)).astype(np.int8)
    want = np.einsum("ecd,edf->ecf", x_ECD.astype(np.int64), w_EDF.astype(np.int64))
    np.testing.assert_array_equal(int8.batched_sums(jnp.asarray(x_ECD), jnp.asarray(w_EDF)), want)


@pytest.mark.aot
@pytest.mark.parametrize("chip", ["v5e", "v6e", "h100"])
@pytest.mark.parametrize("X", [1, 16, 256])
def test_absent_chips_multiply_integers(chip, X):
    """The compiled program holds a product of int8, not one of widened copies of the weights."""
    if why := aot.missing(chip):
        pytest.skip(why)

    def product(x_XD, codes_FD, scale_F):
        return int8.matmul(int8.quantize(x_XD), int8.Codes(codes_FD, scale_F), jnp.bfloat16)

    shapes = [((X, 1024), "bfloat16"), ((4096, 1024), "int8"), ((4096,), "float32")]
    compiled = aot.compile_for(chip, product, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert "s8[4096,1024]" in compiled.as_text()
    # A copy of the weights as bfloat16 would take twice their bytes; outputs and rows take little.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 4096 * 1024
