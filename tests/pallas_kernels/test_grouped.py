"""Grouped matmul: every backend and every gradient against a float64 loop over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import aot
from pallas_kernels.grouped import explain, gpu, grouped_matmul

E, D, F = 4, 6, 5
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2}


def by_hand(x_MD, w_EDF, sizes):
    y_MF = np.zeros((x_MD.shape[0], w_EDF.shape[2]))
    ends = np.cumsum(sizes)
    for e, (start, end) in enumerate(zip(ends - sizes, ends)):
        y_MF[start:end] = np.asarray(x_MD, np.float64)[start:end] @ np.asarray(w_EDF, np.float64)[e]
    return y_MF


@functools.partial(jax.jit, static_argnums=3)
def multiply(x_MD, w_EDF, sizes_E, backend):
    return grouped_matmul(x_MD, w_EDF, sizes_E, backend=backend)


def operands(M, dtype="float32"):
    rng = np.random.default_rng(M)
    return jnp.asarray(rng.standard_normal((M, D)), dtype), jnp.asarray(rng.standard_normal((E, D, F)), dtype)


def sizes(M):
    return st.lists(st.integers(0, M), min_size=E, max_size=E).filter(lambda s: sum(s) <= M)


@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.data(), st.sampled_from([1, 9, 70]))
def test_each_group_meets_its_own_matrix_and_the_rest_is_zero(backend, dtype, data, M):
    group_sizes = np.array(data.draw(sizes(M)), np.int32)
    x_MD, w_EDF = operands(M, dtype)
    got = multiply(x_MD, w_EDF, group_sizes, backend)
    assert got.dtype == dtype
    want = by_hand(x_MD, w_EDF, group_sizes)
    np.testing.assert_allclose(np.float64(got), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "group_sizes", [(9, 0, 11, 0), (0, 0, 0, 0), (0, 70, 0, 0), (17, 17, 17, 19), (1, 0, 0, 2)]
)
def test_gradients_are_those_of_the_definition(group_sizes):
    x_MD, w_EDF = operands(70)
    t_MF = jax.random.normal(jax.random.key(0), (70, F))

    def loss(x, w, backend):
        return jnp.vdot(grouped_matmul(x, w, jnp.asarray(group_sizes, jnp.int32), backend=backend), t_MF)

    got, want = (jax.grad(loss, (0, 1))(x_MD, w_EDF, backend) for backend in ("xla", "reference"))
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_xla_backend_does_the_work_of_the_rows_not_of_rows_times_experts():
    """16 experts, 512 rows: the compiler counts one block's product in the loop, and no all-expert
    product."""
    x, w, g = (
        jax.ShapeDtypeStruct(s, d) for s, d in (((512, 64), "f4"), ((16, 64, 64), "f4"), ((16,), "i4"))
    )
    flops = (
        jax.jit(lambda *a: grouped_matmul(*a, backend="xla"))
        .lower(x, w, g)
        .compile()
        .cost_analysis()["flops"]
    )
    assert flops < 0.2 * 2 * 512 * 16 * 64 * 64


@pytest.mark.parametrize(
    ("x", "w", "g", "why"),
    [
        ((3, 4), (2, 5, 6), (2,), r"\[M, D\] and \[E, D, F\]"),
        ((3, 4), (2, 4, 6), (3,), "2 matrices need 2 group sizes"),
    ],
)
def test_shapes_that_disagree_raise(x, w, g, why):
    with pytest.raises(ValueError, match=why):
        grouped_matmul(jnp.zeros(x), jnp.zeros(w), jnp.zeros(g, jnp.int32))


def test_explain_names_the_backend_that_runs():
    x, w = operands(9)
    assert explain(x, w, jnp.zeros(E, jnp.int32)).backend == "xla"


def test_tokamax_serves_gpus_and_only_where_it_is_installed(monkeypatch):
    x, w = operands(9)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with aot.target("h100"):
        choice = explain(x, w, jnp.zeros(E, jnp.int32))
        assert (choice.backend, choice.unsupported) == (
            "xla",
            {"gpu": "tokamax is not installed (the gpu extra)"},
        )
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object())
        assert explain(x, w, jnp.zeros(E, jnp.int32)).backend == "gpu"
    with pytest.raises(NotImplementedError, match="need a GPU, not a cpu"):
        grouped_matmul(x, w, jnp.zeros(E, jnp.int32), backend="gpu")


@pytest.mark.aot
@pytest.mark.parametrize("group_sizes", [(9, 0, 30, 11), (0, 0, 0, 0), (0, 70, 0, 0)])
def test_tokamax_by_its_xla_form_agrees_with_the_definition(group_sizes):
    """Its kernels need the device; this shows that it is called with the right arguments."""
    pytest.importorskip("tokamax")
    x_MD, w_EDF = operands(70)
    got = gpu.grouped_matmul(x_MD, w_EDF, jnp.asarray(group_sizes, jnp.int32))
    np.testing.assert_allclose(got, by_hand(x_MD, w_EDF, np.array(group_sizes)), atol=1e-5)
