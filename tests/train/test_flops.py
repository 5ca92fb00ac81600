"""FLOPs of a step agree with a count by hand and with what XLA counts in the compiled forward pass."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mixattn import ModelConfig
from train import flops, objective

PLAIN = {
    "n_layers": 2,
    "d_model": 8,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 4,
    "d_ff": 16,
    "vocab_size": 10,
}


def test_a_small_model_by_hand():
    config = ModelConfig(**PLAIN, kv_wiring="0s_1", window=2)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, and the gated feed-forward
    assert flops.weights(config) == 2 * layer + 8 * 10
    assert flops.pairs(config, 5) == [1 + 2 + 2 + 2 + 2, 1 + 2 + 3 + 4 + 5]
    matmuls, attention = 2 * (2 * layer + 80) * 5, 4 * 8 * (9 + 15)
    assert flops.step(config, rows=3, length=5) == 3 * 3 * (matmuls + attention)


def test_a_reader_has_no_keys_and_a_tied_head_counts_once():
    def weights(**more):
        return flops.weights(ModelConfig(**PLAIN, **more))

    assert weights() - weights(kv_wiring="0_0") == 2 * 8 * 4
    assert weights(tied=True) == weights()


def test_only_the_chosen_experts_count():
    config = ModelConfig(**PLAIN, n_experts=4, experts_per_token=1)
    router = 2 * 8 * 4
    assert flops.weights(config) == flops.weights(ModelConfig(**PLAIN)) + router


def test_xla_counts_about_as_many_in_the_forward_pass():
    sizes = {**PLAIN, "d_model": 64, "head_dim": 32, "d_ff": 256, "vocab_size": 256}
    config = ModelConfig(**sizes)
    forward = functools.partial(objective.model_of, config)
    shapes = jax.eval_shape(lambda: objective.init_params(config, 0))
    tokens = jax.ShapeDtypeStruct((4, 16), jnp.int32)
    lowered = jax.jit(lambda params, tokens: forward(params)(tokens)).lower(shapes, tokens)
    counted = lowered.compile().cost_analysis()["flops"]
    assert flops.step(config, 4, 16) / 3 == pytest.approx(counted, rel=0.1)


def test_the_peak_is_given_or_looked_up_by_name_or_none(monkeypatch):
    assert flops.peak() is None  # CPUs have no such figure
    assert flops.peak(2e12) == 2e12 * jax.device_count()
    monkeypatch.setitem(flops.PEAKS, jax.devices()[0].device_kind, 5e12)
    assert flops.peak() == 5e12 * jax.device_count()
