"""Choosing tokens: filters against plain sorting in numpy, noise that depends on seed and place alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.sample import Knobs, keep, sample

B, V = 5, 17
_keep, _sample = jax.jit(keep), jax.jit(sample)


def knobs(temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, seed=0, rows=B) -> Knobs:
    made = Knobs.greedy(rows, np)
    for i in range(rows):
        made.set(i, temperature, top_k, top_p, min_p, seed + i)
    return made


def allowed(logits_V, top_k, top_p, min_p) -> set[int]:
    """By the book, in float64: top-k, then the smallest likely set that reaches p, then min-p."""
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
    kept_BV = _keep(logits_BV, knobs(top_k=top_k, top_p=top_p, min_p=min_p))
    for kept_V, logits_V in zip(kept_BV, logits_BV):
        assert set(np.flatnonzero(np.isfinite(kept_V))) == allowed(
            logits_V.astype(np.float64), top_k, top_p, min_p
        )


def test_every_row_obeys_its_own_knobs():
    logits_BV = np.tile(np.arange(V, dtype=np.float32), (3, 1))
    mixed = knobs(rows=3)
    mixed.set(0, 0.0, -1, 1.0, 0.0, 0)
    mixed.set(1, 5.0, 2, 1.0, 0.0, 0)
    seen = np.stack([_sample(logits_BV, mixed, np.full(3, place, np.int32)) for place in range(64)])
    assert set(seen[:, 0]) == {V - 1}
    assert set(seen[:, 1]) == {V - 2, V - 1}
    assert len(set(seen[:, 2])) > 2


def test_a_tokens_draw_depends_on_its_seed_and_place_only():
    logits_BV = np.random.default_rng(0).standard_normal((B, V)).astype(np.float32)
    place_B = np.arange(B, dtype=np.int32) * 7
    together = _sample(logits_BV, knobs(seed=11), place_B)
    order = np.array([3, 1, 4, 0, 2])
    moved = Knobs(*(x[order] for x in knobs(seed=11)))
    np.testing.assert_array_equal(_sample(logits_BV[order], moved, place_B[order]), together[order])
    other_place = [int(_sample(logits_BV, knobs(seed=11), place_B + i)[0]) for i in range(20)]
    assert len(set(other_place)) > 1


def test_draws_follow_the_probabilities():
    """2,000 draws of four tokens: no frequency further than five standard errors from its probability."""
    p = np.array([0.5, 0.25, 0.2, 0.05])
    logits_BV = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)), (2000, 1))
    drawn = np.asarray(_sample(logits_BV, knobs(rows=2000), np.zeros(2000, np.int32)))
    error = np.abs(np.bincount(drawn, minlength=4) / 2000 - p) / np.sqrt(p * (1 - p) / 2000)
    assert error.max() < 5


@pytest.mark.parametrize("temperature", [0.0, 1e-7])
def test_greedy_is_the_largest_logit_whatever_the_filters(temperature):
    logits_BV = np.random.default_rng(1).standard_normal((B, V)).astype(np.float32)
    got = _sample(logits_BV, knobs(temperature, top_k=3, top_p=0.1), np.zeros(B, np.int32))
    np.testing.assert_array_equal(got, logits_BV.argmax(-1))
