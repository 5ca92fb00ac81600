"""Every body of `attention` against float64, over one list of cases, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import attention, explain
from pallas_kernels.attention.cases import CASES, Case, inputs
from tests.pallas_kernels import oracle

BODIES = ("reference", "xla")


@functools.cache
def want(case: Case, dtype: str):
    arrays, places = inputs(case, dtype)
    return oracle.attention(**arrays, **places, **case.options)


@functools.partial(jax.jit, static_argnames=("case", "backend"))
def run(arrays, places, *, case, backend):
    return attention(**arrays, **places, **case.options, return_lse=True, backend=backend)


@functools.partial(jax.jit, static_argnames=("case", "backend"))
def pull(arrays, places, out, lse, *, case, backend):
    """Gradients of q, k, v for cotangents of out and log-sum-exp."""
    both = functools.partial(attention, **places, **case.options, return_lse=True, backend=backend)
    _, back = jax.vjp(lambda a: both(**a), arrays)
    return back((out, lse))[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BODIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_the_definition(case, backend, dtype):
    arrays, places = inputs(case, dtype)
    out, lse = run(arrays, places, case=case, backend=backend)
    want_out, want_lse, _ = want(case, dtype)
    assert out.dtype == dtype
    assert lse.dtype == "float32"
    np.testing.assert_allclose(np.float64(out), want_out, atol=oracle.TOLERANCE[dtype], rtol=0)
    np.testing.assert_allclose(np.float64(lse), want_lse, atol=oracle.LSE_TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_agree_with_those_of_the_float64_definition(case, dtype):
    arrays, places = inputs(case, dtype)
    rng = np.random.default_rng(1)
    out = rng.standard_normal(arrays["q_BTNH"].shape)
    lse = rng.standard_normal(out.shape[:3])
    lse = np.where(np.isfinite(want(case, dtype)[1]), lse, 0)
    got = pull(arrays, places, out.astype(dtype), lse.astype("float32"), case=case, backend="xla")
    with jax.enable_x64(True):
        wide = {name: x.astype("float64") for name, x in arrays.items()}
        exact = pull(wide, places, out.astype(dtype).astype("float64"), lse, case=case, backend="reference")
    for name in arrays:
        assert got[name].dtype == dtype
        np.testing.assert_allclose(
            np.float64(got[name]), exact[name], atol=oracle.GRADIENT_TOLERANCE[dtype], rtol=0, err_msg=name
        )


def test_the_float64_gradient_is_a_difference_quotient():
    """What the other gradients are held against, held against the numpy oracle by finite differences."""
    case = Case("tiny", 5, 7, 2, 1, 4, window=3, softcap=2.0, B=1)
    arrays, _ = inputs(case, "float64")
    rng = np.random.default_rng(1)
    out, lse = rng.standard_normal((1, 5, 2, 4)), rng.standard_normal((1, 5, 2))
    with jax.enable_x64(True):
        got = jax.tree.map(np.asarray, pull(arrays, {}, out, lse, case=case, backend="reference"))

    def loss(arrays):
        o, s, _ = oracle.attention(**arrays, **case.options)
        return (o * out).sum() + (s * lse).sum()

    for name, x in arrays.items():
        for index in list(np.ndindex(x.shape))[::5]:
            step = np.zeros_like(x)
            step[index] = 1e-5
            slope = (loss(arrays | {name: x + step}) - loss(arrays | {name: x - step})) / 2e-5
            assert abs(slope - got[name][index]) < 1e-8, (name, index)


@pytest.mark.parametrize("backend", BODIES)
def test_the_key_that_leaves_the_window_is_the_first_unseen(backend):
    """Off by one at both edges: age window - 1 is seen, age window is not."""
    case = Case("edge", 1, 16, 1, 1, 64, window=4, B=1)
    arrays, _ = inputs(case)
    base = run(arrays, {}, case=case, backend=backend)[0]
    for key, seen in ((15 - 4, False), (15 - 3, True), (15, True)):
        v = arrays["v_BSKH"].copy()
        v[:, key] += 1
        moved = run(arrays | {"v_BSKH": v}, {}, case=case, backend=backend)[0]
        assert bool(jnp.any(moved != base)) == seen, key


@pytest.mark.parametrize("backend", BODIES)
def test_a_query_that_sees_nothing_gives_zero_and_no_nan(backend):
    case = Case("blind", 4, 8, 2, 1, 64, window=3, B=1)
    arrays, _ = inputs(case)
    places = {"q_pos_BT": np.array([[50, 3, -1, 60]], np.int32), "k_pos_BS": np.full((1, 8), -1, np.int32)}
    places["k_pos_BS"][0, :4] = range(4)
    out, lse = run(arrays, places, case=case, backend=backend)
    assert np.all(np.asarray(out)[:, [0, 2, 3]] == 0)
    assert np.all(np.asarray(lse)[:, [0, 2, 3]] == -np.inf)
    cotangents = np.ones((1, 4, 2, 64), np.float32), np.zeros((1, 4, 2), np.float32)
    back = pull(arrays, places, *cotangents, case=case, backend=backend)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(back))


@pytest.mark.parametrize("case", [c for c in CASES if not c.ring], ids=lambda case: case.name)
def test_plain_positions_said_aloud_change_nothing(case):
    arrays, places = inputs(case)
    k_pos = np.tile(np.arange(case.S, dtype=np.int32), (case.B, 1))
    aloud = places | {"k_pos_BS": k_pos, "q_pos_BT": k_pos[:, case.S - case.T :]}
    silent_out, silent_lse = run(arrays, places, case=case, backend="xla")
    out, lse = run(arrays, aloud, case=case, backend="xla")
    np.testing.assert_allclose(out, silent_out, atol=oracle.TOLERANCE["float32"])
    np.testing.assert_allclose(lse, silent_lse, atol=oracle.TOLERANCE["float32"])


def shapes(q=(2, 8, 4, 64), k=(2, 8, 2, 64), dtype="float32"):
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in (q, k, k))


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        (shapes(q=(2, 8, 3, 64)), {}, "3 query heads do not split over 2"),
        (shapes(q=(2, 8, 4, 32)), {}, "needs k and v of shape"),
        (shapes(q=(2, 9, 4, 64)), {}, "9 queries cannot be the last of 8 keys"),
        (shapes(), {"window": 0}, "window 0"),
        (shapes(), {"window": 4, "causal": False}, "looks back only"),
        (shapes(), {"softcap": 0.0}, "softcap 0.0"),
        (shapes(), {"q_pos_BT": np.zeros((2, 8), np.int32)}, "come together"),
        (shapes(), {"backend": "triton"}, "'triton' is none of"),
        ((*shapes()[:2], *shapes(dtype="bfloat16")[2:]), {}, "share a dtype"),
    ],
)
def test_bad_calls_name_what_disagrees(arrays, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        explain(*arrays, **options)


def test_explain_names_the_body_that_runs():
    choice = explain(*shapes(), window=4)
    assert choice.backend == "xla"
    assert not choice.interpret
