"""Sinks: a sliding layer also sees the first positions, in one pass and token by token, and never others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer, kv_bytes
from mixattn.cache import Contiguous, Ring
from mixattn.cache.sinks import attend_layer
from mixattn.spec import Layer

CONFIG = ModelConfig(
    *(3, 16, 4, 2, 8, 24, 32),
    kv_wiring="0s_1_0s",
    window=5,
    sinks=2,
    dtype="float32",
)
T = 17


def dense(q_TNH, k_SKH, v_SKH, window, sinks):
    """Float64 attention of one sequence, a query at a time."""
    groups = q_TNH.shape[1] // k_SKH.shape[1]
    k, v = (np.repeat(np.asarray(x, np.float64), groups, axis=1) for x in (k_SKH, v_SKH))
    out = np.zeros(q_TNH.shape)
    for t, q_NH in enumerate(np.asarray(q_TNH, np.float64)):
        seen = [s for s in range(t + 1) if t - s < window or s < sinks]
        for n, q_H in enumerate(q_NH):
            score = k[seen, n] @ q_H / np.sqrt(len(q_H))
            p = np.exp(score - score.max())
            out[t, n] = p @ v[seen, n] / p.sum()
    return out


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("window", "sinks"), [(5, 2), (1, 1), (16, 4), (3, 9), (40, 2)])
def test_attention_over_window_and_sinks_is_the_dense_softmax(window, sinks):
    q, k, v = random(1, T, 4, 8), random(1, T, 2, 8), random(1, T, 2, 8) * 2
    out = attend_layer(Layer(0, 0, window, sinks), q, k, v)
    np.testing.assert_allclose(out[0], dense(q[0], k[0], v[0], window, sinks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Contiguous, Ring])
@pytest.mark.parametrize("prompt", [1, 4, 9])
def test_decoding_sees_what_one_pass_sees(kind, prompt):
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 32, (2, T)))
    whole = model(tokens)
    cache = kind.init(CONFIG, 2, T)
    forward = model.forward(tokens[:, :prompt], cache=cache)
    logits = [model.head(forward.hidden_BTD)]
    for t in range(prompt, T):
        forward = model.forward(tokens[:, t : t + 1], cache=forward.cache)
        logits.append(model.head(forward.hidden_BTD))
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), whole, rtol=2e-4, atol=2e-5)


def test_a_chunk_after_others_sees_what_one_pass_sees():
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(4).integers(0, 32, (2, T)))
    cache, parts = Ring.init(CONFIG, 2, T), []
    for start in range(0, T, 6):
        forward = model.forward(tokens[:, start : start + 6], cache=cache)
        cache = forward.cache
        parts.append(model.head(forward.hidden_BTD))
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), model(tokens), rtol=2e-4, atol=2e-5)


def test_sinks_change_what_is_seen_once_the_window_has_passed_them():
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    plain = Transformer(dataclasses.replace(CONFIG, sinks=0), rngs=nnx.Rngs(0))
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 32, (1, T)))
    difference = jnp.max(jnp.abs(model(tokens) - plain(tokens)), axis=(0, 2))
    assert jnp.all(difference[:5] < 1e-5)
    assert jnp.all(difference[8:] > 1e-4)


def test_a_ring_keeps_the_window_and_the_sinks():
    assert sum(Ring.init(CONFIG, 1, 100).nbytes().values()) == kv_bytes(CONFIG, 100, CONFIG.dtype)


def test_gradients_through_both_sets_of_keys_are_finite():
    k, v = random(1, T, 2, 8), random(1, T, 2, 8)
    gradient = jax.grad(lambda q: attend_layer(Layer(0, 0, 5, 2), q, k, v).sum())(random(1, T, 4, 8))
    assert jnp.all(jnp.isfinite(gradient))
