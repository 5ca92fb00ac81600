"""Every backend of `attention` against float64, over one list of cases, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import (
    attention,
    explain,
    gpu_positions,
    operands,
    tpu_blocks,
    xla,
    xla_streamed,
)
from tests.pallas_kernels import oracle, races
from tests.pallas_kernels.attention_cases import CASES, AttentionCase, inputs

# A variant is a backend, or "streamed": the xla backend with its plan for long inputs, in small blocks.
QUICK = ("full_ragged_tail", "window", "documents_window", "ring")
VARIANTS = ("reference", "xla", "streamed")
# "interpret" is the tpu backend under the Pallas interpreter, with tiles small enough to make several.
RUNS = [
    pytest.param(case, variant, dtype, id=f"{case.name}-{variant}-{dtype}", marks=marks)
    for case in CASES
    for variant, dtype, marks in (
        ("reference", "float32", ()),
        ("xla", "float32", ()),
        ("streamed", "float32", pytest.mark.long if case.name.startswith(("head", "one")) else ()),
        ("xla", "bfloat16", () if case.name in QUICK else pytest.mark.long),
    )
]


def quick(case, dtype):
    """The other cases run nightly, since compiling dominates the time."""
    return () if case.name in QUICK and dtype == "float32" else pytest.mark.long


INTERPRETED = [
    pytest.param(case, dtype, id=f"{case.name}-{dtype}", marks=quick(case, dtype))
    for case in CASES
    if case.causal
    for dtype in ("float32", "bfloat16")
]


@functools.cache
def given(case: AttentionCase, dtype: str):
    """Arguments, cotangents, and what the float64 definition makes of them."""
    arrays, positions = inputs(case, dtype)
    rng = np.random.default_rng(1)
    dout = rng.standard_normal(arrays["q_BTNH"].shape).astype(dtype)
    out, lse, _ = oracle.attention(**arrays, **positions, **case.options)
    dlse = np.where(np.isfinite(lse), rng.standard_normal(lse.shape), 0).astype("float32")
    gradients = oracle.gradients(*arrays.values(), dout, dlse, **positions, **case.options)
    gradients = dict(zip(arrays, gradients, strict=True))
    return arrays, positions, (dout, dlse), (out, lse), gradients


def run(arrays, positions, case, variant, cotangents=None):
    """(out, lse) of one variant, and with cotangents also the gradients of q, k and v."""
    with pytest.MonkeyPatch.context() as patch:
        if variant == "streamed":
            patch.setattr(xla, "plan", lambda *_: xla_streamed)
            patch.setattr(xla_streamed, "BLOCK", 16)
            patch.setattr(xla_streamed, "MIN_BLOCK", 4)
        if variant == "interpret":
            patch.setattr(tpu_blocks, "ROWS", 64)
            patch.setattr(tpu_blocks, "KEYS", 16)
        return _run(arrays, positions, cotangents, case=case, variant=variant)


@functools.partial(jax.jit, static_argnames=("case", "variant"))
def _run(arrays, positions, cotangents, *, case, variant):
    backend = "xla" if variant == "streamed" else variant
    both = functools.partial(attention, **positions, **case.options, return_lse=True, backend=backend)
    if cotangents is None:
        return both(**arrays)
    result, back = jax.vjp(lambda a: both(**a), arrays)
    return result, back(cotangents)[0]


def check(case, variant, dtype):
    arrays, positions, cotangents, (want_out, want_lse), want = given(case, dtype)
    if variant == "reference":  # nothing differentiates the definition
        (out, lse), gradients, want = run(arrays, positions, case, variant), {}, {}
    else:
        (out, lse), gradients = run(arrays, positions, case, variant, cotangents)
    assert (out.dtype, lse.dtype) == (dtype, "float32")
    assert all(x.dtype == dtype for x in gradients.values())
    np.testing.assert_allclose(np.float64(out), want_out, atol=oracle.TOLERANCE[dtype], rtol=0)
    np.testing.assert_allclose(np.float64(lse), want_lse, atol=oracle.LSE_TOLERANCE[dtype], rtol=0)
    for name, exact in want.items():
        tolerance = oracle.GRADIENT_TOLERANCE[dtype]
        np.testing.assert_allclose(np.float64(gradients[name]), exact, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize(("case", "variant", "dtype"), RUNS)
def test_values_and_gradients_agree_with_the_definition(case, variant, dtype):
    check(case, variant, dtype)


@pytest.mark.parametrize(("case", "dtype"), INTERPRETED)
def test_the_tpu_kernels_agree_with_the_definition(case, dtype):
    """The forward kernel, and both backward kernels."""
    check(case, "interpret", dtype)


GPU_CASES = [
    pytest.param(
        case, id=case.name, marks=() if case.name in ("window", "documents_window") else pytest.mark.long
    )
    for case in CASES
    if case.H in (64, 128) and case.causal
]


@pytest.mark.interpreter
@pytest.mark.parametrize("case", GPU_CASES)
def test_the_gpu_kernels_agree_with_the_definition(case):
    """Forward and backward under the Hopper interpreter with its race detector."""
    with races.detected_on_gpu() as found:
        check(case, "gpu", "bfloat16")
        assert not found()


@pytest.mark.interpreter
@pytest.mark.long
@pytest.mark.parametrize("case", GPU_CASES)
def test_the_gpu_kernel_for_explicit_positions_agrees_on_plain_ones(case):
    arrays, positions, _, want, _ = given(case, "bfloat16")
    static = operands.StaticOptions(
        case.window, True, operands.ScoreTransform(case.scale or case.H**-0.5, case.softcap)
    )
    names = ("q_pos_BT", "k_pos_BS", "segment_q_BT", "segment_k_BS")
    with races.detected_on_gpu() as found:
        got = gpu_positions.forward(
            static, *arrays.values(), operands.TokenPositions(*(positions.get(name) for name in names))
        )
        assert not found()
    for x, exact, tolerance in zip(got, want, (oracle.TOLERANCE, oracle.LSE_TOLERANCE), strict=True):
        np.testing.assert_allclose(np.float64(x), exact, atol=tolerance["bfloat16"], rtol=0)


def test_what_the_gpu_kernels_do_not_support_they_name():
    for arrays, options, why in (
        (shapes(), {}, "wgmma multiplies 16-bit floats"),
        (shapes(q=(2, 8, 4, 80), k=(2, 8, 2, 80), dtype="bfloat16"), {}, "head size 80"),
        (shapes(dtype="bfloat16"), {"causal": False}, "only causal attention"),
    ):
        with pytest.raises(NotImplementedError, match=why):
            explain(*arrays, backend="gpu", **options)
    positions = {"q_pos_BT": np.zeros((2, 8), np.int32), "k_pos_BS": np.zeros((2, 8), np.int32)}
    assert explain(*shapes(dtype="bfloat16"), backend="gpu", **positions).backend == "gpu"


def test_what_the_tpu_kernel_does_not_support_it_names():
    with pytest.raises(NotImplementedError, match="tpu: only causal attention is implemented"):
        explain(*shapes(), causal=False, backend="interpret")
    assert explain(*shapes(), backend="interpret").interpret


def test_the_definitions_gradient_is_a_difference_quotient():
    case = AttentionCase("tiny", 5, 7, 2, 1, 4, window=3, softcap=2.0, B=1)
    arrays, _, (dout, dlse), _, gradients = given(case, "float64")

    def loss(arrays):
        out, lse, _ = oracle.attention(**arrays, **case.options)
        return (out * dout).sum() + (lse * dlse).sum()

    for name, x in arrays.items():
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = 1e-5
            slope = (loss(arrays | {name: x + step}) - loss(arrays | {name: x - step})) / 2e-5
            assert abs(slope - gradients[name][index]) < 1e-7, (name, index)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_key_that_leaves_the_window_is_the_first_unseen(variant):
    """Off by one at both edges: age window - 1 is seen, age window is not."""
    case = AttentionCase("edge", 1, 16, 1, 1, 64, window=4, B=1)
    arrays, _ = inputs(case)
    base = run(arrays, {}, case, variant)[0]
    for key, seen in ((15 - 4, False), (15 - 3, True), (15, True)):
        v = arrays["v_BSKH"].copy()
        v[:, key] += 1
        moved = run(arrays | {"v_BSKH": v}, {}, case, variant)[0]
        assert bool(jnp.any(moved != base)) == seen, key


@pytest.mark.parametrize("variant", [*VARIANTS, "interpret"])
def test_a_query_that_sees_nothing_gives_zero_and_no_nan(variant):
    case = AttentionCase("blind", 4, 8, 2, 1, 64, window=3, B=1)
    arrays, _ = inputs(case)
    positions = {"q_pos_BT": np.array([[50, 3, -1, 60]], np.int32), "k_pos_BS": np.full((1, 8), -1, np.int32)}
    positions["k_pos_BS"][0, :4] = range(4)
    cotangents = np.ones((1, 4, 2, 64), np.float32), np.zeros((1, 4, 2), np.float32)
    (out, lse), gradients = run(arrays, positions, case, variant, cotangents)
    assert np.all(np.asarray(out)[:, [0, 2, 3]] == 0)
    assert np.all(np.asarray(lse)[:, [0, 2, 3]] == -np.inf)
    assert all(np.isfinite(x).all() for x in gradients.values())


@pytest.mark.parametrize("name", ["window", "full_ragged_tail", "documents_window"])
def test_explicit_plain_positions_change_nothing(name):
    case = next(c for c in CASES if c.name == name)
    arrays, positions, _, want, _ = given(case, "float32")
    k_pos = np.tile(np.arange(case.S, dtype=np.int32), (case.B, 1))
    explicit = positions | {"k_pos_BS": k_pos, "q_pos_BT": k_pos[:, case.S - case.T :]}
    for x, exact in zip(run(arrays, explicit, case, "xla"), want, strict=True):
        np.testing.assert_allclose(x, exact, atol=oracle.TOLERANCE["float32"])


def test_no_array_of_queries_by_keys_is_ever_made():
    """Neither direction holds T x S scores, and a window's memory is independent of the context."""
    T = 4096

    @functools.partial(jax.jit, static_argnames="window")
    def both(q, k, v, window):
        return jax.grad(lambda q: attention(q, k, v, window=window).sum())(q)

    q, k = jax.ShapeDtypeStruct((1, T, 2, 64), "float32"), jax.ShapeDtypeStruct((1, T, 1, 64), "float32")
    inputs_bytes = 4 * T * 64 * 4
    for window in (None, 64):
        temporary = both.lower(q, k, k, window=window).compile().memory_analysis().temp_size_in_bytes
        assert temporary < 2 * T * T * 4 / 2, window
    assert temporary < 12 * inputs_bytes


@pytest.mark.parametrize(
    ("q", "k", "window", "given_positions", "name"),
    [
        ((64, 1, 8, 64), (64, 4096, 2, 64), None, True, "xla_dense"),  # decoding: one dense product
        ((4, 256, 2, 64), (4, 256, 1, 64), None, False, "xla_dense"),
        ((4, 256, 2, 64), (4, 256, 1, 64), 64, False, "xla_banded"),
        ((1, 8192, 4, 64), (1, 8192, 1, 64), 1024, False, "xla_streamed"),
        ((1, 512, 4, 64), (1, 8192, 1, 64), None, True, "xla_streamed"),
    ],
)
def test_the_plan_follows_the_shape(q, k, window, given_positions, name):
    static = operands.StaticOptions(window, True, operands.ScoreTransform(1.0, None))
    positions = operands.TokenPositions(*[object() if given_positions else None] * 2, None, None)
    assert xla.plan(static, positions, q, k).__name__ == f"pallas_kernels.attention.{name}"


def test_key_blocks_that_no_query_sees_are_not_visited():
    """The streamed plan's ranges: out of window, after the query, of another document."""
    static = operands.StaticOptions(None, True, operands.ScoreTransform(1.0, None))
    none = operands.TokenPositions(None, None, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla_streamed, "BLOCK", 16)
        patch.setattr(xla_streamed, "MIN_BLOCK", 16)
        grid = xla_streamed.BlockGrid(none, static, 64, 96)
        assert list(zip(grid.first_n.tolist(), grid.end_n.tolist(), strict=True)) == [
            (0, 3),
            (0, 4),
            (0, 5),
            (0, 6),
        ]
        grid = xla_streamed.BlockGrid(none, static._replace(window=17), 64, 96)
        assert grid.first_n.tolist() == [1, 2, 3, 4]
        grid = xla_streamed.BlockGrid(none, static._replace(window=18), 64, 96)
        assert grid.first_n.tolist() == [0, 1, 2, 3]
        segment = np.repeat(np.arange(3), 32)[None]
        grid = xla_streamed.BlockGrid(
            none._replace(segment_q_BT=segment, segment_k_BS=segment), static, 96, 96
        )
        assert grid.first_n.tolist() == [0, 0, 2, 2, 4, 4]
        assert grid.end_n.tolist() == [1, 2, 3, 4, 5, 6]


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


def test_explain_names_the_backend_that_runs():
    choice = explain(*shapes(), window=4)
    assert choice.backend == "xla"
    assert not choice.interpret
