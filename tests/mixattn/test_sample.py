"""Sampling: filters against plain sorting in numpy, and noise that depends only on seed and position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.sample import SamplingParams, argmax, filter_logits, sample, threshold

B, V = 5, 17
_filter, _sample, _argmax, _threshold = (jax.jit(f) for f in (filter_logits, sample, argmax, threshold))


def params(temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, seed=0, rows=B) -> SamplingParams:
    made = SamplingParams.greedy(rows, np)
    for i in range(rows):
        made.set(i, temperature, top_k, top_p, min_p, seed + i)
    return made


def allowed(logits_V, top_k, top_p, min_p) -> set[int]:
    """The tokens kept by definition, in float64: top-k, then the smallest set that reaches p, then min-p."""
    order = sorted(range(V), key=lambda i: -logits_V[i])[: top_k if top_k > 0 else V]
    p = np.exp([logits_V[i] - logits_V[order[0]] for i in order])
    p /= p.sum()
    n = next((i + 1 for i in range(len(order)) if p[: i + 1].sum() >= top_p - 1e-9), len(order))
    return {i for i, x in zip(order[:n], p) if x >= min_p * p[0] * (1 - 1e-6)}


@given(
    st.integers(0, 50),
    st.sampled_from([-1, 1, 3, V, V + 5]),
    st.sampled_from([0.05, 0.3, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.02, 0.4, 1.0]),
)
def test_filters_keep_what_the_definitions_say(seed, top_k, top_p, min_p):
    logits_BV = 2 * np.random.default_rng(seed).standard_normal((B, V)).astype(np.float32)
    kept_BV = _filter(logits_BV, params(top_k=top_k, top_p=top_p, min_p=min_p))
    for kept_V, logits_V in zip(kept_BV, logits_BV):
        assert set(np.flatnonzero(np.isfinite(kept_V))) == allowed(
            logits_V.astype(np.float64), top_k, top_p, min_p
        )


@pytest.mark.parametrize("top_p", [1e-50, 1e-40, 1e-38, 1e-9])
def test_the_likeliest_token_stays_however_small_top_p_is(top_p):
    """1e-50 is 0 in float32, 1e-40 a subnormal, which processors may flush."""
    logits_BV = np.random.default_rng(0).standard_normal((B, V)).astype(np.float32)
    kept_BV = np.asarray(_filter(logits_BV, params(top_p=top_p)))
    np.testing.assert_array_equal(np.isfinite(kept_BV), logits_BV == logits_BV.max(1, keepdims=True))


@given(st.integers(0, 30), st.sampled_from([-1, 1, 2, 5, V]), st.sampled_from([0.3, 0.6, 0.9, 1.0]))
def test_equal_logits_stay_or_go_together(seed, top_k, top_p):
    """Integers, zeros of both signs and -inf: whatever ties with the last one kept is kept too."""
    logits_BV = np.random.default_rng(seed).integers(-2, 3, (B, V)).astype(np.float32)
    logits_BV[:, ::5] *= -1
    logits_BV[:, 3] = -np.inf
    kept_BV = np.asarray(_filter(logits_BV, params(top_k=top_k, top_p=top_p)))
    for kept_V, logits_V in zip(kept_BV, logits_BV.astype(np.float64)):
        among = logits_V >= (np.sort(logits_V)[-top_k] if top_k > 0 else -np.inf)
        mass = np.where(among, np.exp(logits_V - logits_V.max()), 0)
        above = np.array([mass[logits_V > x].sum() for x in logits_V]) / mass.sum()
        want = among & ((above < top_p) | (top_p == 1)) & np.isfinite(logits_V)
        np.testing.assert_array_equal(np.isfinite(kept_V), want)


WIDE = 4096 + 3  # not a whole number of lanes


@pytest.fixture(scope="module")
def wide_BV():
    return (3 * np.random.default_rng(2).standard_normal((B, WIDE))).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.999])
def test_top_p_of_a_wide_vocabulary_is_off_by_rounding_at_most(wide_BV, top_p):
    """Every kept token has less than p before it, every other p or more, give or take 1e-5."""
    kept_BV = np.isfinite(_filter(wide_BV, params(top_p=top_p)))
    for kept_V, logits_V in zip(kept_BV, wide_BV.astype(np.float64)):
        order = np.argsort(-logits_V)
        mass = np.exp(logits_V[order] - logits_V.max())
        before = (np.cumsum(mass) - mass) / mass.sum()
        assert kept_V.any()
        assert before[kept_V[order]].max() < top_p + 1e-5
        assert (before[~kept_V[order]] >= top_p - 1e-5).all()


@pytest.mark.parametrize("k", [1, 2, 50, WIDE - 1, WIDE, WIDE + 1])
def test_top_k_of_a_wide_vocabulary_keeps_exactly_the_k_argmax(wide_BV, k):
    kept_BV = np.isfinite(_filter(wide_BV, params(top_k=k)))
    for kept_V, logits_V in zip(kept_BV, wide_BV):
        assert set(np.flatnonzero(kept_V)) == set(np.argsort(-logits_V)[:k])


def test_what_a_row_keeps_does_not_depend_on_its_batch(wide_BV):
    together = _filter(wide_BV, params(top_k=700, top_p=0.9))
    for i in range(B):
        np.testing.assert_array_equal(
            _filter(wide_BV[i : i + 1], params(top_k=700, top_p=0.9, rows=1))[0], together[i]
        )


def test_the_threshold_is_found_wherever_floats_are():
    """Tiny, huge, negative and infinite values; the third largest of each row, bit for bit."""
    rows = [
        [2e-38, 3e-38, 4e-38, 0.0],
        [-3e38, 3e38, 1.0, 2.0],
        [-1.0, -2.0, -4.0, -8.0],
        [np.inf, 7.0, -np.inf, -7.0],
    ]
    x_BV = np.array(rows, np.float32)
    third_B = _threshold(x_BV, np.ones_like(x_BV, np.int32), np.full(4, 3, np.int32))
    np.testing.assert_array_equal(third_B, np.sort(x_BV)[:, -3])


@pytest.mark.parametrize("width", [V, 256, 1000, WIDE])
def test_the_largest_is_the_first_of_equals(width):
    x_BV = np.random.default_rng(width).integers(-9, 10, (64, width)).astype(np.float32)
    np.testing.assert_array_equal(_argmax(x_BV), x_BV.argmax(-1))
    np.testing.assert_array_equal(_argmax(np.full((2, width), -np.inf, np.float32)), [0, 0])


def test_every_row_obeys_its_own_params():
    logits_BV = np.tile(np.arange(V, dtype=np.float32), (3, 1))
    mixed = params(rows=3)
    mixed.set(0, 0.0, -1, 1.0, 0.0, 0)
    mixed.set(1, 5.0, 2, 1.0, 0.0, 0)
    seen = np.stack([_sample(logits_BV, mixed, np.full(3, place, np.int32)) for place in range(64)])
    assert set(seen[:, 0]) == {V - 1}
    assert set(seen[:, 1]) == {V - 2, V - 1}
    assert len(set(seen[:, 2])) > 2


def test_a_tokens_draw_depends_on_its_seed_and_place_only():
    logits_BV = np.random.default_rng(0).standard_normal((B, V)).astype(np.float32)
    place_B = np.arange(B, dtype=np.int32) * 7
    together = _sample(logits_BV, params(seed=11), place_B)
    order = np.array([3, 1, 4, 0, 2])
    moved = SamplingParams(*(x[order] for x in params(seed=11)))
    np.testing.assert_array_equal(_sample(logits_BV[order], moved, place_B[order]), together[order])
    other_place = [int(_sample(logits_BV, params(seed=11), place_B + i)[0]) for i in range(20)]
    assert len(set(other_place)) > 1


def test_draws_follow_the_probabilities():
    """2,000 draws of four tokens: no frequency further than five standard errors from its probability."""
    p = np.array([0.5, 0.25, 0.2, 0.05])
    logits_BV = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)), (2000, 1))
    drawn = np.asarray(_sample(logits_BV, params(rows=2000), np.zeros(2000, np.int32)))
    error = np.abs(np.bincount(drawn, minlength=4) / 2000 - p) / np.sqrt(p * (1 - p) / 2000)
    assert error.max() < 5


@pytest.mark.parametrize("temperature", [0.0, 1e-7])
def test_greedy_is_the_largest_logit_whatever_the_filters(temperature):
    logits_BV = np.random.default_rng(1).standard_normal((B, V)).astype(np.float32)
    got = _sample(logits_BV, params(temperature, top_k=3, top_p=0.1), np.zeros(B, np.int32))
    np.testing.assert_array_equal(got, logits_BV.argmax(-1))
