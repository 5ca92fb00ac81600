"""Column sums, keep-sets and slabs against H2O stepped in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import heavy_hitter
from pallas_kernels.attention import attention, tpu_blocks
from tests.pallas_kernels import oracle, races
from tests.pallas_kernels.attention_cases import CASES, inputs

SUM_TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-1}
QUICK = ("full_ragged_tail", "documents_window")
CAUSAL = [case for case in CASES if case.causal]
RUNS = [
    pytest.param(case, backend, dtype, id=f"{case.name}-{backend}-{dtype}", marks=marks)
    for case in CAUSAL
    for backend, dtype, marks in (
        ("reference", "float32", ()),
        ("xla", "float32", ()),
        ("xla", "bfloat16", () if case.name in QUICK else pytest.mark.long),
    )
]


@functools.partial(jax.jit, static_argnames=("case", "backend"))
def sums(q, k, lse, positions, *, case, backend):
    options = {name: value for name, value in case.options.items() if name != "causal"}
    return heavy_hitter.column_sums(q, k, lse, **positions, **options, backend=backend)


def expected(case, dtype):
    arrays, positions = inputs(case, dtype)
    _, lse, weight_BTNS = oracle.attention(**arrays, **positions, **case.options)
    B, _, _, S = weight_BTNS.shape
    return (
        arrays,
        positions,
        lse.astype("float32"),
        weight_BTNS.sum(axis=1).reshape(B, case.K, -1, S).sum(axis=2),
    )


@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", "float32"), ("xla", "float32"), ("xla", "bfloat16")]
)
@pytest.mark.parametrize("case", CAUSAL, ids=lambda case: case.name)
def test_column_sums_agree_with_the_definition(case, backend, dtype):
    arrays, positions, lse, want = expected(case, dtype)
    got = sums(arrays["q_BTNH"], arrays["k_BSKH"], lse, positions, case=case, backend=backend)
    assert got.dtype == "float32"
    np.testing.assert_allclose(np.float64(got), want, atol=SUM_TOLERANCE[dtype] * max(1, want.max()), rtol=0)


INTERPRETED = [
    pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.long) for case in CAUSAL
]


@pytest.mark.parametrize("case", INTERPRETED)
def test_the_tpu_kernel_agrees_with_the_definition(case, monkeypatch):
    monkeypatch.setattr(tpu_blocks, "ROWS", 64)
    monkeypatch.setattr(tpu_blocks, "KEYS", 16)
    arrays, positions, lse, want = expected(case, "float32")
    got = sums(arrays["q_BTNH"], arrays["k_BSKH"], lse, positions, case=case, backend="interpret")
    np.testing.assert_allclose(
        np.float64(got), want, atol=SUM_TOLERANCE["float32"] * max(1, want.max()), rtol=0
    )


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.long)
        for case in CAUSAL
        if case.H in (64, 128)
    ],
)
def test_the_gpu_kernel_agrees_with_the_definition(case):
    """Under the Hopper interpreter with its race detector."""
    arrays, positions, lse, want = expected(case, "bfloat16")
    with races.detected_on_gpu() as found:
        got = sums(arrays["q_BTNH"], arrays["k_BSKH"], lse, positions, case=case, backend="gpu")
        tolerance = SUM_TOLERANCE["bfloat16"] * max(1, want.max())
        np.testing.assert_allclose(np.float64(got), want, atol=tolerance, rtol=0)
        assert not found()


@pytest.mark.parametrize("name", ["full_ragged_tail", "window", "documents_window", "several_blocks"])
def test_the_sums_of_a_row_add_up_to_its_query_heads(name):
    case = next(c for c in CASES if c.name == name)
    arrays, positions, lse, _ = expected(case, "float32")
    got = sums(arrays["q_BTNH"], arrays["k_BSKH"], lse, positions, case=case, backend="xla")
    np.testing.assert_allclose(got.sum(axis=-1), case.T * case.N / case.K, rtol=1e-5)


def test_chunks_of_queries_add_up_to_the_whole():
    case = next(c for c in CASES if c.name == "several_blocks_full")
    arrays, _, lse, want = expected(case, "float32")
    k_pos = np.arange(case.S, dtype=np.int32)[None]
    total = 0
    for start in range(0, case.T, 100):
        part = slice(start, start + 100)
        positions = {"k_pos_BS": k_pos, "q_pos_BT": k_pos[:, case.S - case.T :][:, part]}
        q = arrays["q_BTNH"][:, part]
        total += sums(q, arrays["k_BSKH"], lse[:, part], positions, case=case, backend="xla")
    np.testing.assert_allclose(total, want, atol=1e-4)


def test_a_log_sum_exp_of_other_queries_raises():
    q, k = jnp.zeros((1, 8, 4, 64)), jnp.zeros((1, 8, 2, 64))
    with pytest.raises(ValueError, match="needs a log-sum-exp of shape"):
        heavy_hitter.column_sums(q, k, jnp.zeros((1, 4, 4)))


def keep_by_sorting(score, position, heavy, recent):
    """The rule, for one head: newest first, then by (score descending, position ascending)."""
    filled = [i for i in range(len(position)) if position[i] >= 0]
    newest = sorted(filled, key=lambda i: -position[i])[:recent]
    rest = sorted((i for i in filled if i not in newest), key=lambda i: (-score[i], position[i]))
    return set(newest) | set(rest[:heavy])


@pytest.mark.parametrize(("heavy", "recent"), [(0, 1), (0, 4), (3, 1), (4, 3), (20, 5)])
@given(data=st.data())
def test_keep_sets_follow_the_rule_ties_included(heavy, recent, data):
    score = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.0]), min_size=24, max_size=24))
    position = np.array(data.draw(st.permutations(range(24))))
    position[data.draw(st.lists(st.integers(0, 23), max_size=24))] = -1
    keep = heavy_hitter.keep_set(
        jnp.array(score, jnp.float32)[None, None], jnp.array(position)[None, None], heavy=heavy, recent=recent
    )
    assert set(np.flatnonzero(keep[0, 0])) == keep_by_sorting(score, position, heavy, recent)


class Stepped:
    """H2O for one key/value head in float64, a dictionary of position -> (key, value, score)."""

    def __init__(self, q_TGH, k_TH, v_TH, heavy, recent):
        self.heavy, self.recent = heavy, recent
        _, _, weight = oracle.attention(q_TGH[None], k_TH[None, :, None], v_TH[None, :, None])
        score_T = weight[0].sum(axis=(0, 1))
        keep = keep_by_sorting(score_T, np.arange(len(k_TH)), heavy, recent)
        self.kept = {i: (k_TH[i], v_TH[i], score_T[i]) for i in sorted(keep)}

    def step(self, q_GH, k_H, v_H, position):
        self.kept[position] = (k_H, v_H, 0.0)
        k, v, score = (np.array(x) for x in zip(*self.kept.values(), strict=True))
        out, _, weight = oracle.attention(q_GH[None, None], k[None, :, None], v[None, :, None], causal=False)
        score = score + weight[0, 0].sum(axis=0)
        self.kept = {i: (k[n], v[n], score[n]) for n, i in enumerate(self.kept)}
        if len(self.kept) > self.heavy + self.recent:
            old = sorted(self.kept)[: -self.recent]
            del self.kept[min(old, key=lambda i: (self.kept[i][2], -i))]
        return out[0, 0]


@jax.jit
def step(slab, q_BNH, k_BKH, v_BKH, position_B):
    slab = heavy_hitter.append(slab, k_BKH, v_BKH, position_B)
    out, slab = heavy_hitter.attend(q_BNH, slab, position_B)
    return out, heavy_hitter.evict(slab)


@functools.partial(jax.jit, static_argnames=("heavy", "recent"))
def prefill(q, k, v, heavy, recent):
    _, lse = attention(q, k, v, return_lse=True)
    position_BS = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
    return heavy_hitter.compact(
        k, v, heavy_hitter.column_sums(q, k, lse), position_BS, heavy=heavy, recent=recent
    )


@pytest.mark.parametrize(("heavy", "recent", "G"), [(5, 4, 1), (0, 6, 4), (7, 1, 3), (40, 4, 2)])
def test_a_slab_walks_through_the_same_keep_sets_as_float64(heavy, recent, G):
    B, K, T, steps, H = 2, 2, 21, 16, 16
    rng = np.random.default_rng(heavy)
    q, k, v = (rng.standard_normal((B, T + steps, heads, H)).astype("float32") for heads in (K * G, K, K))
    slab = prefill(q[:, :T], k[:, :T], v[:, :T], heavy, recent)
    twins = {
        (b, c): Stepped(q[b, :T, c * G : (c + 1) * G], k[b, :T, c], v[b, :T, c], heavy, recent)
        for b, c in np.ndindex(B, K)
    }
    for t in range(T, T + steps):
        out, slab = step(slab, q[:, t], k[:, t], v[:, t], np.full(B, t, np.int32))
        for (b, c), twin in twins.items():
            want = twin.step(q[b, t, c * G : (c + 1) * G], k[b, t, c], v[b, t, c], t)
            np.testing.assert_allclose(out[b, c * G : (c + 1) * G], want, atol=oracle.TOLERANCE["float32"])
            position = np.asarray(slab.position_BKR[b, c])
            assert sorted(position[position >= 0]) == sorted(twin.kept)
            score = dict(zip(position.tolist(), np.asarray(slab.score_BKR[b, c]).tolist(), strict=True))
            assert all(abs(score[i] - twin.kept[i][2]) < 1e-4 for i in twin.kept)


def test_decoding_without_eviction_accumulates_what_prefill_sums():
    B, T, N, K, H = 1, 24, 4, 2, 16
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, T, heads, H)).astype("float32") for heads in (N, K, K))
    slab = prefill(q[:, :1], k[:, :1], v[:, :1], T, 1)
    for t in range(1, T):
        _, slab = step(slab, q[:, t], k[:, t], v[:, t], np.full(B, t, np.int32))
    whole = prefill(q, k, v, T, 1)
    order = np.argsort(slab.position_BKR[..., :T], axis=-1)
    stepped = np.take_along_axis(np.asarray(slab.score_BKR), order, axis=-1)
    np.testing.assert_allclose(stepped, whole.score_BKR[..., :T], atol=1e-4)


def test_padding_rows_neither_enter_nor_score():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 9, heads, 16)).astype("float32") for heads in (4, 2, 2))
    slab = prefill(q, k, v, 5, 4)
    out, after = step(slab, q[:, 0], k[:, 0], v[:, 0], np.array([9, -1], np.int32))
    assert np.all(np.asarray(out)[1] == 0)
    assert np.array_equal(after.position_BKR[1], slab.position_BKR[1])
    assert np.array_equal(after.score_BKR[1], slab.score_BKR[1])
    assert not np.array_equal(after.score_BKR[0], slab.score_BKR[0])


def test_the_order_of_slots_means_nothing():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 12, heads, 16)).astype("float32") for heads in (4, 2, 2))
    slab = prefill(q[:, :11], k[:, :11], v[:, :11], 5, 4)
    turned = jax.tree.map(lambda x: x[:, :, ::-1] if jnp.ndim(x) > 1 else x, slab)
    out, after = step(slab, q[:, 11], k[:, 11], v[:, 11], np.array([11], np.int32))
    out2, after2 = step(turned, q[:, 11], k[:, 11], v[:, 11], np.array([11], np.int32))
    np.testing.assert_allclose(out, out2, atol=1e-6)
    assert np.array_equal(np.sort(after.position_BKR), np.sort(after2.position_BKR))
