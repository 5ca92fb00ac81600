"""Small models that many tests share, and their jitted forward."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from mixattn import ModelConfig, Transformer

TINY = ModelConfig(
    n_layers=6,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=61,
    kv_wiring="0s_0s_2_3s_3s_2",
    window=5,
)


def wired(wiring: str, **fields) -> ModelConfig:
    return dataclasses.replace(TINY, kv_wiring=wiring, **fields)


SHORT = wired("0s_1_0s", n_layers=3)  # compiles in half the time of TINY


@functools.cache
def model(config: ModelConfig) -> Transformer:
    return Transformer(config, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens_BT, kwargs):
    return nnx.merge(graphdef, params)(tokens_BT, **kwargs)


def logits(config: ModelConfig, tokens_BT, params=None, **kwargs) -> np.ndarray:
    """Teacher-forced logits_BTV."""
    graphdef, own = nnx.split(model(config))
    return np.asarray(_logits(graphdef, own if params is None else params, tokens_BT, kwargs))


def tokens(B: int = 2, T: int = 23, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (B, T), 0, TINY.vocab_size)
